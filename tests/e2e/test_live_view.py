"""The live view of a real run in a terminal of 80×24: every frame holds together, and the end is told below it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pyte
import pytest
import yaml

COLUMNS, LINES = 80, 24
STAGES = {
    "data": {
        "demonstration_rows": 300,
        "comparison_rows": 300,
        "prompt_rows": 100,
        "evaluation_rows": 24,
        "max_prompt_tokens": 32,
    },
    "sft": {"epochs": 1.0, "evaluations_per_epoch": 1},
    "reward": {"epochs": 1.0, "evaluations_per_epoch": 1},
    "filtered": {"epochs": 1.0, "evaluations_per_epoch": 1},
    "ppo": {"steps": 4, "batch": 16, "max_tokens": 24, "epochs": 2, "running": {"every": 2, "prompts": 8}},
    "evaluate": {"best_of": [2]},
}


def watched(command: list[str | Path], seconds: float) -> tuple[int, list[list[str]], bytes]:
    """Exit code, the screen about once a second, and all that was written, of a program in a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    emulator = pyte.HistoryScreen(COLUMNS, LINES, history=1000)
    stream, frames, written, last = pyte.ByteStream(emulator), [], b"", 0.0
    environment = {**os.environ, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1"}
    environment = {key: value for key, value in environment.items() if key not in ("COLUMNS", "LINES")}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as run:
        os.close(theirs)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if select.select([ours], [], [], 0.2)[0]:
                try:
                    data = os.read(ours, 65_536)
                except OSError:  # the terminal's other side is closed
                    break
                stream.feed(data)
                written += data
            if time.monotonic() - last > 1:
                last = time.monotonic()
                frames.append([line.rstrip() for line in emulator.display])
        code = run.wait(10)
    os.close(ours)
    above = ["".join(cell.data for _, cell in sorted(line.items())).rstrip() for line in emulator.history.top]
    frames.append([*above, *(line.rstrip() for line in emulator.display)])
    return code, frames, written


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_real_run_is_shown_whole_in_a_terminal_of_80_by_24(tmp_path: Path) -> None:
    shape = {"hidden_size": 32, "intermediate_size": 64, "layers": 2, "context_tokens": 96}
    tree = {"name": "tiny", "runs_dir": str(tmp_path), "model": {"architecture": shape}, "recipe": "instruct-gpt"}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**tree, "stages": STAGES}))
    lodestar = Path(sys.executable).with_name("lodestar")
    code, frames, _ = watched([lodestar, "run", tmp_path / "tiny.yaml"], 800)
    if keep := os.environ.get("LODESTAR_KEEP_FRAMES"):
        Path(keep).write_text("\n".join("\n".join(["-" * COLUMNS, *frame]) for frame in frames))
    assert code == 0, "\n".join(frames[-1])
    drawn = [frame for frame in frames[:-1] if any("✦ lodestar tiny" in line for line in frame)]
    assert len(drawn) > 5
    for frame in drawn:
        assert sum("✦ lodestar tiny" in line for line in frame) == 1, "\n".join(frame)
        names = " ".join(frame)
        assert all(name in names for name in ("data", "report")), "\n".join(frame)
    in_ppo = [
        frame for frame in drawn if any("●  ppo" in line for line in frame) and any("/ 4" in line for line in frame)
    ]
    assert in_ppo
    assert all(any("learner-0" in line for line in frame) for frame in in_ppo)
    end = "\n".join(frames[-1])
    for said in ("win rate", "Before and after", "The simulated people like", "Next", "chat", "report:"):
        assert said in end
