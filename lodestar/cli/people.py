"""``lodestar demo --people``: the person at this machine judges, and is shown what was learned from them."""

from __future__ import annotations

import os
import sys
import threading
import webbrowser
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from lodestar.cli.runs import conduct_config
from lodestar.config import load_config
from lodestar.local.board import Board
from lodestar.recipe.conduct import Wanted

LOOK_SECONDS = 0.5


def demo(overrides: Sequence[str], *, resume: bool, fresh: bool, plain: bool) -> None:
    """SFT, twenty pairs for the person, a reward model of them, PPO; opens the page and the result where it can."""
    from lodestar.local.view import view_for

    with resources.as_file(resources.files("lodestar.local") / "people.yaml") as path:
        config = load_config(path, overrides)
    view = view_for(plain)

    @contextmanager
    def seen(board: Board) -> Iterator[None]:
        with view(board), _inviting(board):
            yield

    again = ["lodestar", "demo", "--people", *overrides]
    conduct_config(config, Wanted(), again, resume=resume, fresh=fresh, plain=plain, view=seen)
    figures = Path(config.runs_dir) / config.name / "taught" / "figures"
    tell(Console(soft_wrap=True, highlight=False), figures)
    if has_screen():
        webbrowser.open((figures / "taught.html").resolve().as_uri())


def tell(console: Console, figures: Path) -> None:
    """What was learned, in a few lines."""
    from lodestar.files import read_json
    from lodestar.report.taught import sentence

    found = read_json(figures / "taught.json")
    console.print(Text(sentence(found["accuracy"]), style="bold green"))
    score = found["score"]["after"] - found["score"]["before"]
    console.print(Text(f"After PPO it scores the replies {score:+.2f} above those of before; {_changes(found)}."))
    console.print(Text(f"the same requests before and after: {figures / 'taught.html'}"))


def has_screen() -> bool:
    """Whether a browser can be opened that is not one in this terminal."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _changes(found: Mapping[str, Any]) -> str:
    words = found["words"]
    said = [f"they have {words['after']:.1f} words instead of {words['before']:.1f}"]
    for kind in ("more", "fewer"):
        if rows := found["changed"][kind]:
            shares = (f"{row['word']} ({row['before']:.0%} → {row['after']:.0%})" for row in rows[:4])
            said.append(f"{kind} say {', '.join(shares)}")
    return "; ".join(said)


@contextmanager
def _inviting(board: Board) -> Iterator[None]:
    """Opens the page as soon as there is one."""
    ended = threading.Event()

    def wait() -> None:
        while not ended.wait(LOOK_SECONDS):
            if board.invitation:
                webbrowser.open(board.invitation)
                return

    thread = threading.Thread(target=wait, name="inviting", daemon=True)
    if has_screen():
        thread.start()
    try:
        yield
    finally:
        ended.set()
