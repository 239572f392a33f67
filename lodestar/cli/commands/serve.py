"""One service: serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lodestar.cli.commands.arguments import Config, Overrides, Role, Tls


def serve(
    role: Annotated[Role, typer.Argument(help="Which service.", show_default=False)],
    config: Config,
    overrides: Overrides = None,
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
    weights_port: Annotated[int, typer.Option(help="learner: port of its WeightsService; 0 takes a free one.")] = 0,
    run_dir: Annotated[Path | None, typer.Option(help="The run's folder; unset is runs_dir/name.")] = None,
    redis: Annotated[str | None, typer.Option(help="URL of the rollout queue; unset is queue.url.")] = None,
    policy: Annotated[list[str] | None, typer.Option(help="A policy server; may be repeated.")] = None,
    reward: Annotated[list[str] | None, typer.Option(help="A reward server; may be repeated.")] = None,
    reference: Annotated[list[str] | None, typer.Option(help="A reference server; may be repeated.")] = None,
    weights: Annotated[str | None, typer.Option(help="The learner's WeightsService.")] = None,
    replica: Annotated[int, typer.Option(help="Which of the role's processes this is.")] = 0,
    model: Annotated[str | None, typer.Option(help="Model folder or hub id to serve; unset is the run's own.")] = None,
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
    resume: Annotated[bool, typer.Option("--resume", help="learner: go on from the newest checkpoint.")] = False,
    linger: Annotated[
        float, typer.Option(help="learner: seconds to stay after the last step, for scrapers and watchers.")
    ] = 2.5,
) -> None:
    """One service in this process, until it is told to stop."""
    from lodestar.cli.serve import serve

    endpoints = {"redis": redis, "policy": policy or (), "reward": reward or (), "reference": reference or ()}
    raise typer.Exit(
        serve(
            role.value,
            config,
            overrides or [],
            run_dir=run_dir,
            host=host,
            port=port,
            caller_port=caller_port,
            health_port=health_port,
            metrics_port=metrics_port,
            weights_port=weights_port,
            replica=replica,
            model=model,
            tls=tls,
            tokens=tokens,
            insecure=insecure,
            reflection=reflection,
            resume=resume,
            linger_seconds=linger,
            endpoints=endpoints | {"weights": weights},
        )
    )
