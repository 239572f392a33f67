"""``lodestar certs``: development certificates and callers' tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from lodestar.rpc.access import Role, add_token
from lodestar.rpc.certificates import LOOPBACK, Authority

HOLDERS: dict[str, str] = {
    **dict.fromkeys(
        ("policy", "against", "filtered", "previous", "reward", "reference", "learner", "stage", "rollout", "feedback"),
        Role.WORKER,
    ),
    "conductor": Role.OPERATOR,
    "redis": "",
    "caller": Role.CALLER,
    "gateway": Role.CALLER,
    "training": Role.CALLER,
    "operator": Role.OPERATOR,
}
"""Who gets a certificate, and the role in it; Redis calls nobody."""


def write_development(folder: Path, hosts: Sequence[str], days: float) -> None:
    """Writes ``folder/NAME/{ca.crt,tls.crt,tls.key}`` for every holder, signed by the authority in ``folder``."""
    authority = Authority.kept(folder)
    for name, role in HOLDERS.items():
        authority.issue(folder / name, role, name, hosts=[*LOOPBACK, name, *hosts], days=days)
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        escape(f"{folder}: {', '.join(HOLDERS)}; good for {days:g} days, for {', '.join([*LOOPBACK, *hosts])}")
    )
    console.print(f"[dim]lodestar serve reward run.yaml --host 0.0.0.0 --tls {escape(str(folder))}/reward[/]")


def write_token(file: Path, name: str, role: str) -> None:
    """Prints a new token on standard output, and nothing else there."""
    print(add_token(file, name, Role(role)))
