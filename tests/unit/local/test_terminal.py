"""The live view in a terminal emulator: what is on the screen, at the sizes that people have."""

import io
import time

import pyte
import pytest
from rich.console import Console
from rich.live import Live

from lodestar.local.board import Board, StageRow
from lodestar.local.page import Page
from lodestar.records import ModelInfo, RunState, RunStatus, WeightVersion

DATA = {
    "bad_rows": 0, "long_rows": 0, "long_prompts": 0, "cut_prompts": 0, "merged_turns": 0, "folded_systems": 0,
    "joined_families": 0, "demonstrations.train": 5604, "demonstrations.held_out": 701, "comparisons.train": 10_403,
    "comparisons.held_out": 1301, "comparisons.evaluation": 1296, "prompts.ppo": 2048, "prompts.evaluation": 512,
    "text.train": 5604, "text.held_out": 701,
}  # fmt: skip
"""Figures of the demo's data stage, as it writes them."""
SIZES = [(80, 24), (100, 30), (120, 40), (240, 60), (60, 24), (80, 16)]


def screen(board: Board, columns: int, lines: int, frames: int = 3) -> list[str]:
    """What stands on an emulated terminal of this size after a few frames of the live view, and at its end."""
    emulator = pyte.Screen(columns, lines)
    stream = pyte.Stream(emulator)
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=columns, height=lines, color_system="256")
    with Live(Page(board, fitted=True), console=console, auto_refresh=False, redirect_stdout=False) as live:
        for _ in range(frames):
            live.refresh()
            stream.feed(written.getvalue().replace("\n", "\r\n"))
            written.seek(0)
            written.truncate()
    stream.feed(written.getvalue().replace("\n", "\r\n"))
    return [line.rstrip() for line in emulator.display]


def demo(stages: tuple[str, ...] = ("data", "sft", "reward", "filtered", "ppo", "evaluate", "report")) -> Board:
    """A run in the middle of PPO, with the details that its stages write."""
    board = Board("demo", [StageRow(name, 60.0) for name in stages])
    _over(board, stages[0], {f"{name}": float(count) for name, count in DATA.items()}, 4.2)
    _over(board, stages[1], {"loss": 1.0421, "held_out_loss": 1.0517}, 31.0)
    _over(board, stages[2], {"loss": 0.41, "held_out_loss": 0.4316, "held_out_accuracy": 0.822}, 58.0)
    board.progress(stages[2], [{"stage": "", "seconds": 9, "done": 320, "total": 960, "cut_short": 0.33}])
    board.stage(stages[4]).state, board.stage(stages[4]).started = "running", time.monotonic() - 65
    for number, name in enumerate(("reward-0", "filtered-0", "policy-0", "reference-0", "learner-0", "rollout-0")):
        row = board.service(name, 50_051 + number)
        row.state = "stopped" if name == "filtered-0" else "ready"
        row.pid, row.rpcs, row.tokens = 1_234_567, 12_345, 123_678_901
    board.service("policy-0", 50_053).weight_step = 7
    board.service("reward-0", 50_051).restarts = 2
    for step in range(1, 8):
        figures = {"score": 0.1 * step, "kl_sequence": -1e-7 * step, "tokens_per_second": 900.0 + step}
        model = ModelInfo("demo", WeightVersion("00c0ffee", step, "ab"), "cd")
        status = RunStatus("demo", model, RunState.COLLECTING, step, 40, 33, 128, metrics=figures, eta_seconds=75.0)
        board.update_status(stages[4], status)
    board.win_rate = {"step": 5, "value": 0.625, "low": 0.5, "high": 0.74, "n": 64}
    board.queue_waiting, board.queue_taken = 5, 12
    return board


def _over(board: Board, name: str, figures: dict[str, float], seconds: float) -> None:
    board.progress(name, [{"stage": name, "seconds": seconds, "done": 1, "total": 1, **figures}])
    board.stage(name).state, board.stage(name).seconds = "done", seconds


@pytest.mark.parametrize(("columns", "lines"), SIZES)
def test_every_part_is_on_the_screen_once_whatever_its_size(columns: int, lines: int) -> None:
    shown = screen(demo(), columns, lines)
    text = "\n".join(shown)
    parts = ["✦ lodestar demo", "✓", "reward", "●", "ppo", "1:05", "7 / 40", "+0.700", "KL, nats", "907"]
    parts += ["policy-0", "learner-0", "rollout-0", "62.5%"]
    parts += ["data", "sft", "evaluate", "report", "collecting 33/128", "cut short"] if columns >= 80 else []
    for part in parts:
        assert part in text, part
    assert text.count("✦ lodestar") == 1, "a frame that is higher than the screen leaves its head behind"
    assert "e+0" not in text
    assert "−0.000" not in text


def test_a_low_terminal_keeps_the_last_service_and_a_high_one_shows_all() -> None:
    low, high = screen(demo(), 80, 24), screen(demo(), 120, 50)
    assert any("rollout-0" in line for line in low)
    assert any("filtered-0" in line and "stopped" in line for line in high)
    assert any("policy-0" in line and "step 7" in line and "123,678,901" in line for line in high)
    assert any("reward-0" in line and "↻ 2" in line for line in high)


def test_no_detail_moves_a_column_and_counts_are_whole() -> None:
    rows = [line for line in screen(demo(), 120, 50) if line[2:3] in "✓●·"]
    places = {row.index(" of 1:00") for row in rows if " of 1:00" in row}
    assert len(places) == 1, "the clocks stand below each other"
    data = next(row for row in rows if " data " in row)
    assert "demonstrations train 5,604" in data, "figures that are 0 come last"
    assert data.endswith("…")


def test_the_stages_of_many_rounds_fit_a_low_terminal() -> None:
    rounds = [f"r{n}.{kind}" for n in range(1, 7) for kind in ("sample", "label", "reward", "ppo")]
    board = demo(("data", "sft", "r0.reward", "r0.label", "r0.ppo", *rounds, "evaluate", "report"))
    shown = screen(board, 80, 24)
    assert any(line.lstrip().startswith("● r0.ppo") or "●  r0.ppo" in line for line in shown)
    assert any("7 / 40" in line for line in shown)
    assert any("rollout-0" in line for line in shown)
    assert any("· r1.sample   · r1.label" in line and "more" in line for line in shown), "the next are named"


def test_a_name_a_reason_and_a_warning_of_any_length_and_letters_stay_in_their_line() -> None:
    board = demo()
    board.say("policy-0 ended with exit code 1 (" + "宽" * 200 + ")\nand a second line; restarting it", "warning")
    assert board.status is not None
    for columns, lines in SIZES:
        shown = screen(board, columns, lines)
        assert sum("policy-0 ended" in line for line in shown) == 1
        assert not any("second line" in line for line in shown)
