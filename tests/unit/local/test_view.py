"""What a person sees while a run lasts."""

import io
import time

import pytest
from rich.console import Console

from lodestar.crew.progress import to_proto
from lodestar.local.board import Board, StageRow
from lodestar.local.page import Page, sparkline
from lodestar.local.view import PlainPrinter
from lodestar.numerals import clock
from lodestar.records import ModelInfo, RunState, RunStatus, WeightVersion


def _board() -> Board:
    rows = [StageRow(name, budget) for name, budget in (("data", 5.0), ("sft", 45.0), ("ppo", 130.0), ("report", None))]
    board = Board("demo", rows)
    board.stage("data").state, board.stage("data").seconds = "done", 4.2
    board.stage("sft").state = "kept"
    board.stage("ppo").state, board.stage("ppo").started = "running", time.monotonic() - 65
    for name, port in (("policy-0", 50051), ("learner-0", 50052)):
        row = board.service(name, port)
        row.state, row.pid, row.rpcs, row.tokens, row.weight_step = "ready", 4711, 12345, 678901, 7
    board.service("policy-0", 50051).restarts = 1
    board.say("policy-0 was killed by signal 9; restarting it in 0.25 s", "warning")
    board.queue_waiting, board.queue_taken = 5, 12
    board.win_rate = {"step": 5, "value": 0.625, "low": 0.5, "high": 0.74, "n": 64}
    for step in range(1, 8):
        board.update_status("ppo", _status(step))
    return board


def _status(step: int) -> RunStatus:
    figures = {
        "score": 0.1 * step,
        "kl_sequence": 0.5 * step,
        "tokens_per_second": 900.0 + step,
        "response_length": 20.0,
    }
    model = ModelInfo("demo", WeightVersion("00c0ffee", step, "ab"), "cd")
    return RunStatus("demo", model, RunState.COLLECTING, step, 40, 33, 128, metrics=figures, eta_seconds=75.0)


@pytest.mark.parametrize("width", [80, 120])
def test_the_page_shows_stages_figures_services_and_warnings(width: int) -> None:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(Page(_board()))
    assert isinstance(console.file, io.StringIO)
    page = console.file.getvalue()
    for shown in (
        "demo", "of about 3:00", "kept from before", "1:05", "of 2:10", "7 / 40", "1:15 left", "collecting 33/128",
        "+0.700", "62.5%", "50%–74% of 64, after step 5", "waiting, 12 taken", "50051", "678,901", "step 7",
        "policy-0 was killed by signal 9",
    ):  # fmt: skip
        assert shown in page, shown
    assert max(map(len, page.splitlines())) <= width


def test_plain_lines_tell_each_step_and_win_rate_once(capsys: pytest.CaptureFixture[str]) -> None:
    board = _board()
    printer = PlainPrinter(board)
    printer.tick()
    printer.tick()
    board.update_status("ppo", _status(8))
    printer.tick()
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "step 7/40" in line] == [lines[0]]
    assert "score +0.700" in lines[0]
    assert "win rate after step 5: 62.5% [50.0%, 74.0%] of 64" in lines[1]
    assert "step 8/40" in lines[2]
    assert len(lines) == 3


def test_a_stage_tells_its_start_its_end_and_its_failure() -> None:
    board = Board("demo", [StageRow("sft", 45.0), StageRow("ppo")])
    heard: list[str] = []
    board.listener = lambda message: heard.append(message.text)
    with board.running("sft") as row:
        row.detail = "loss 1.2"
    assert heard == ["sft: starts, budget 45 s", "sft: done in 0.0 s · loss 1.2"]
    with pytest.raises(RuntimeError), board.running("ppo"):
        raise RuntimeError
    assert board.stage("ppo").state == "failed"


def test_sparklines_span_their_own_range() -> None:
    assert sparkline([0.0, 1.0, 2.0, 7.0], 4) == "▁▂▃█"
    assert sparkline([3.0, 3.0], 4) == "▁▁"
    assert sparkline([9.0, 0.0, 1.0], 2) == "▁█"


@pytest.mark.parametrize(("seconds", "shown"), [(5, "0:05"), (65.9, "1:05"), (3725, "1:02:05")])
def test_clocks(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown


def test_a_long_detail_leaves_room_for_the_stages_names() -> None:
    board = _board()
    board.stage("sft").detail = " · ".join(f"figure {n} 0.125" for n in range(20))
    console = Console(width=80, file=io.StringIO(), force_terminal=False)
    console.print(Page(board))
    assert isinstance(console.file, io.StringIO)
    for name in ("data", "sft", "ppo", "report", "figure 0"):
        assert name in console.file.getvalue()


def test_a_stage_that_its_clock_ended_says_how_far_it_came() -> None:
    board = _board()
    board.progress("sft", [{"stage": "sft", "seconds": 45.0, "done": 320, "total": 960, "held_out_loss": 1.25}])
    board.progress("sft", [{"stage": "sft", "seconds": 45.0, "done": 320, "total": 960, "cut_short": 1 / 3}])
    console = Console(width=120, file=io.StringIO(), force_terminal=False)
    console.print(Page(board))
    assert isinstance(console.file, io.StringIO)
    rows = [line for line in console.file.getvalue().splitlines() if " sft " in line]
    assert any("cut short at 320 of 960 steps · held out loss 1.25" in row for row in rows)


def test_the_way_in_is_shown_at_a_terminal_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    board = _board()
    board.invitation = "http://127.0.0.1:1/join/secret"
    board.service("feedback-0", 1).state = "ready"
    PlainPrinter(board).tick()
    assert "secret" not in capsys.readouterr().out, "a file or a log"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    printer = PlainPrinter(board)
    printer.tick()
    printer.tick()
    assert capsys.readouterr().out.count("come in and judge: http://127.0.0.1:1/join/secret") == 1
    console = Console(file=io.StringIO(), width=100)
    console.print(Page(board))
    assert "  http://127.0.0.1:1/join/secret\n" in console.file.getvalue(), "a line of its own, which is not cut"
    assert "secret" not in str(to_proto(board)), "whoever asks how far the run is"
