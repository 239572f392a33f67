"""One process: serve, work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lodestar.cli.commands.arguments import MODEL, Digest, Overrides, Redis, Served, Tls


def serve(
    role: Annotated[
        str,
        typer.Argument(
            metavar="ROLE|MODEL",
            help=f"{', '.join(Served)}; or a run folder, model folder or hub id: policy server and gateway in one.",
            show_default=False,
        ),
    ],
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT",
            help=f"Of a role: {MODEL}; gateway: HOST:PORT,… of policy servers; feedback: a folder for what people say, "
            "or a run's; task: JSON file.",
            show_default=False,
        ),
    ] = "",
    options: Overrides = None,
    host: Annotated[str, typer.Option(help="Address to bind.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="gRPC port; 0 takes a free one.")] = 0,
    caller_port: Annotated[
        int | None,
        typer.Option(envvar="LODESTAR_CALLER_PORT", help="gRPC port for tokens instead of certificates; unset: none."),
    ] = None,
    health_port: Annotated[
        int | None, typer.Option(help="Port that answers health alone, in plaintext, for probes; unset: none.")
    ] = None,
    metrics_port: Annotated[int, typer.Option(help="Prometheus port; 0 takes a free one.")] = 0,
    http_port: Annotated[int, typer.Option(help="gateway: port of its HTTP API; 0 takes a free one.")] = 8000,
    http_tls: Annotated[
        Path | None, typer.Option(help="gateway: folder of the HTTP API's certificate; unset: --tls.")
    ] = None,
    best_of: Annotated[
        int | None,
        typer.Option(help="policy: draw so many samples for each that is asked for, and answer the best by --reward."),
    ] = None,
    reward: Annotated[
        list[str] | None, typer.Option(metavar="HOST:PORT", help="policy: a reward server that chooses; repeat it.")
    ] = None,
    training: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="gateway: a training server, for the tinker SDK; WHAT may be left out."),
    ] = None,
    redis: Redis = None,
    digest: Digest = None,
    replica: Annotated[int, typer.Option(help="Which of the role's processes this is.")] = 0,
    device: Annotated[str, typer.Option(help="auto: cuda when there is one, else cpu.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    tls: Tls = None,
    tokens: Annotated[
        Path | None, typer.Option(envvar="LODESTAR_TOKENS", help="File of callers' tokens (lodestar certs token).")
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", envvar="LODESTAR_INSECURE", help="Bind a non-loopback address without TLS."),
    ] = False,
    reflection: Annotated[
        bool | None, typer.Option("--reflection/--no-reflection", help="gRPC reflection; unset: on loopback only.")
    ] = None,
) -> None:
    """One service in this process, until it is told to stop. Options of its section follow: max_sequences=64.

    lodestar serve runs/demo answers OpenAI's HTTP API and gRPC for one model.
    """
    from lodestar.cli.serve import serve, serve_model

    listening = {
        "host": host,
        "port": port,
        "caller_port": caller_port,
        "health_port": health_port,
        "metrics_port": metrics_port,
        "http_port": http_port,
        "http_tls": http_tls,
        "replica": replica,
        "tls": tls,
        "tokens": tokens,
        "insecure": insecure,
        "reflection": reflection,
    }
    pairs = options or []
    if role not in list(Served):
        pairs = [what, *pairs] if what else pairs
        raise typer.Exit(serve_model(role, pairs, listening=listening, device=device, dtype=dtype))
    if not what and training is None:
        raise typer.BadParameter("a role wants a WHAT: lodestar serve policy runs/demo", param_hint="WHAT")
    raise typer.Exit(
        serve(
            role,
            what,
            pairs,
            listening=listening,
            redis=redis,
            digest=digest,
            device=device,
            dtype=dtype,
            best_of=best_of,
            rewards=reward or (),
            training=training,
        )
    )


def work(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What to do, as JSON.", show_default=False)],
    redis: Redis = None,
    digest: Digest = None,
) -> None:
    """One stage in this process, as a conductor's file says it: what the pod of a stage does."""
    from lodestar.cli.serve import work

    raise typer.Exit(work(file, redis=redis, digest=digest))
