"""On PYTHONPATH, it lets a run's processes die at a chosen change of the run's files: SIGKILL between two system calls.

Python's audit events tell of every file that is opened for writing, renamed or removed, before it happens. They are
counted per process and stage; ``deaths.json`` in the folder ``LODESTAR_DEATHS`` says at which one to die, once each,
and ``events.jsonl``, where there is one, takes them all down.
"""

import json
import os
import signal
import sys
from pathlib import Path

_CHANGES = {"os.rename": 1, "os.remove": 0, "os.mkdir": 0, "open": 0}
"""Event → which of its arguments is the name that changes."""
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_ELSEWHERE = {"logs", "services", "redis", ".lock"}
"""Below the run's folder, but no stage's."""


class Deaths:
    """The hook of one process; a fork of it counts on its own."""

    def __init__(self, folder: Path) -> None:
        told = json.loads((folder / "deaths.json").read_text())
        self._folder = folder
        self._root = told["root"] + "/"
        self._deaths = {(death["who"], death["stage"], death["event"]): death["id"] for death in told["deaths"]}
        self._events = folder / "events.jsonl"
        self._records = self._events.exists()
        conducts = [Path(word).name for word in sys.orig_argv[1:2]] == ["lodestar"]
        self._who, self._pid = ("conductor", os.getpid()) if conducts else ("", 0)
        self._seen: dict[str, int] = {}

    def hear(self, event: str, arguments: tuple[object, ...]) -> None:
        """Counts a change, and dies of it if that is its turn."""
        if event not in _CHANGES or not isinstance(path := arguments[_CHANGES[event]], str | os.PathLike):
            return
        if event == "open" and not (isinstance(flags := arguments[2], int) and flags & _WRITES):
            return
        text = os.fspath(path)
        if not isinstance(text, str) or not text.startswith(self._root):
            return
        stage, *rest = text.removeprefix(self._root).split("/")
        if stage == "logs" and self._who != "conductor" and text.endswith(".log"):
            self._who, self._pid, self._seen = (
                Path(text).stem,
                os.getpid(),
                {},
            )  # the fork server's child begins its log
        if stage in _ELSEWHERE or self._pid != os.getpid():
            return
        self._count(stage if rest else "", event, text)

    def _count(self, stage: str, event: str, text: str) -> None:
        number = self._seen[stage] = self._seen.get(stage, 0) + 1
        if self._who != "conductor":  # a stage that goes on has less to do: what its predecessors did counts too
            with (self._folder / f"count-{self._who}-{stage}").open("ab") as file:
                file.write(b".")
                number = file.tell()
        if self._records:
            line = {"who": self._who, "stage": stage, "event": number, "what": f"{event} {text}"}
            with self._events.open("a") as file:
                file.write(json.dumps(line) + "\n")
        died = self._deaths.get((self._who, stage, number))
        if died is not None and not (mark := self._folder / f"struck-{died}").exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


if "LODESTAR_DEATHS" in os.environ:
    deaths = Deaths(Path(os.environ["LODESTAR_DEATHS"]))
    sys.addaudithook(deaths.hear)
