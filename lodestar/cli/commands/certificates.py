"""Certificates and tokens: certs dev, certs token."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer


class Access(enum.StrEnum):
    """What a token permits (lodestar.rpc.access)."""

    caller = "caller"
    worker = "worker"
    operator = "operator"


def certs_dev(
    folder: Annotated[Path, typer.Argument(help="Where to; an authority that is there already is used again.")],
    host: Annotated[
        list[str] | None, typer.Option(help="Host name or address that servers are called by; may be repeated.")
    ] = None,
    days: Annotated[float, typer.Option(min=0, help="How long the certificates are good for.")] = 30.0,
) -> None:
    """An authority and a certificate per role, for development. Run again to renew: nothing needs a restart."""
    from lodestar.cli.certs import write_development

    write_development(folder, host or [], days)


def certs_token(
    file: Annotated[Path, typer.Argument(help="Tokens file that servers read (--tokens); made or added to.")],
    name: Annotated[str, typer.Argument(help="Who will hold the token.", show_default=False)],
    role: Annotated[Access, typer.Option(help="What it permits.")] = Access.caller,
) -> None:
    """Print a new token, once; the file gets its digest. Delete the line there to withdraw it."""
    from lodestar.cli.certs import write_token

    write_token(file, name, role.value)
