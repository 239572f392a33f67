"""Arguments that several commands share."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer


class Served(enum.StrEnum):
    """What ``lodestar serve`` can be by itself."""

    policy = "policy"
    reward = "reward"
    reference = "reference"
    gateway = "gateway"
    training = "training"
    feedback = "feedback"
    task = "task"


Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="The run's YAML, or its folder.", show_default=False)]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or its YAML.", show_default=False)]
MODEL = "Run's folder or YAML, model's folder or hub id"
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]…", help="Options over those of the file: ppo.steps=8", show_default=False),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what the run's folder holds.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Throw away what the run's folder holds, and start over.")]
Plain = Annotated[
    bool, typer.Option("--plain", help="Log lines instead of the live view; the default without a terminal.")
]
Tls = Annotated[
    Path | None,
    typer.Option(envvar="LODESTAR_TLS", help="Folder with ca.crt, tls.crt and tls.key; unset: plaintext."),
]
Token = Annotated[
    str | None,
    typer.Option(envvar="LODESTAR_TOKEN", help="Bearer token, instead of a certificate. Better set the variable."),
]
Redis = Annotated[
    str | None,
    typer.Option(envvar="LODESTAR_REDIS", help="URL of the rollout queue, over the file's."),
]
Digest = Annotated[str | None, typer.Option(envvar="LODESTAR_TASK", help="SHA-256 of the file to wait for.")]
