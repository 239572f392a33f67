"""Every start of a stage that issues tickets has an id of its own, made durable before anything carries it."""

from __future__ import annotations

import secrets
import socket
from dataclasses import dataclass
from pathlib import Path

from lodestar.files import append


@dataclass(frozen=True, slots=True)
class Incarnation:
    """``Incarnation("9f31c2aa", owner="00c0ffee", where="host:runs/demo")``."""

    id: str
    owner: str
    """The first start's: the same for all starts of one stage of one run."""
    where: str
    """Whose it is, for people."""

    @classmethod
    def begin(cls, state: Path, root: Path) -> Incarnation:
        """Draws this start's; ``state`` is the folder that the stage keeps over its starts."""
        drawn, path = secrets.token_hex(4), state / "incarnations.txt"
        append(path, drawn + "\n")
        return cls(drawn, path.read_text(encoding="utf-8").split()[0], f"{socket.gethostname()}:{root}")
