"""The run's side of its trackers: a process, started, told when the run is over, and waited for a minute at most."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lodestar.config.run import RunConfig
from lodestar.local.board import Board
from lodestar.local.progress import ProgressReader

LAST_SECONDS = 60.0
"""After the run's end, for what trackers still have to write."""
LOOK_SECONDS = 1.0
FOLDER, WARNINGS = "tracking", "warnings.jsonl"


@contextmanager
def tracked(run: RunConfig, root: Path, board: Board) -> Iterator[None]:
    """While a run is conducted, its trackers follow it; what goes wrong with them is a warning on the board."""
    if not run.tracking:
        yield
        return
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    reader = ProgressReader(folder / WARNINGS)
    reader.forget()
    over = threading.Event()
    with (root / FOLDER / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "lodestar.tracking", str(root)],
            stdin=subprocess.PIPE,  # its end is the run's
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # Ctrl-C ends the run; then it is told
        )
    thread = threading.Thread(target=_tell, args=(process, reader, board, over), name="trackers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        _end(process, board)
        over.set()
        thread.join()


def _end(process: subprocess.Popen[bytes], board: Board) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(LAST_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        board.say(f"tracking: the trackers did not finish within {LAST_SECONDS:.0f} s and were stopped", "warning")


def _tell(process: subprocess.Popen[bytes], reader: ProgressReader, board: Board, over: threading.Event) -> None:
    while not (ended := over.wait(LOOK_SECONDS)) and process.poll() is None:
        _say(reader, board)
    _say(reader, board)
    if process.returncode and not ended:
        board.say(f"tracking: its process ended with exit code {process.returncode}; the run goes on", "warning")


def _say(reader: ProgressReader, board: Board) -> None:
    for line in reader.new():
        board.say(f"tracking: {line['warning']}", "warning")
