"""Runs on Kubernetes: conduct, submit, status, logs, cancel."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lodestar.cli.commands.arguments import Config, Overrides, Plain, Tls

SCRAPES_SECONDS = 35.0
"""How long a learner stays after its last step: two scrapes see that it is finished."""
Namespace = Annotated[str, typer.Option("--namespace", "-n", help="Kubernetes namespace.")]
Context = Annotated[str | None, typer.Option(help="kubeconfig context; unset is the current one.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="The run's name.", show_default=False)]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")]


def conduct(
    config: Config,
    overrides: Overrides = None,
    suffix: Annotated[str, typer.Option(help="After the names of the fleet's objects.")] = "",
    reward: Annotated[str, typer.Option(help="gRPC target of shared reward servers; empty: the fleet's own.")] = "",
    reference: Annotated[str, typer.Option(help="The same of reference servers.")] = "",
    host: Annotated[str, typer.Option(help="Address that every pod binds.")] = "0.0.0.0",
    port: Annotated[int, typer.Option(help="gRPC port of every pod.")] = 50051,
    weights_port: Annotated[int, typer.Option(help="Port of the learner's weights.")] = 50052,
    caller_port: Annotated[
        int | None, typer.Option(envvar="LODESTAR_CALLER_PORT", help="gRPC port for tokens; unset: none.")
    ] = None,
    health_port: Annotated[int | None, typer.Option(help="Port that answers health alone; unset: none.")] = None,
    metrics_port: Annotated[int, typer.Option(help="Prometheus port.")] = 9090,
    tls: Tls = None,
    tokens: Annotated[Path | None, typer.Option(envvar="LODESTAR_TOKENS", help="File of callers' tokens.")] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", envvar="LODESTAR_INSECURE", help="Bind a non-loopback address without TLS.")
    ] = False,
) -> None:
    """A run on the cluster that this pod is in: its stages as Jobs, its fleets as their tasks want them."""
    from lodestar.cli.cluster import conduct_here

    conduct_here(
        config,
        overrides or [],
        suffix=suffix,
        shared={role: target for role, target in (("reward", reward), ("reference", reference)) if target},
        listening={
            "host": host,
            "port": port,
            "weights_port": weights_port,
            "caller_port": caller_port,
            "health_port": health_port,
            "metrics_port": metrics_port,
            "tls": tls,
            "tokens": tokens,
            "insecure": insecure,
            "linger_seconds": SCRAPES_SECONDS,
        },
    )


def submit(
    config: Config,
    overrides: Overrides = None,
    overlay: Annotated[
        Path | None,
        typer.Option(help="kustomize overlay to render the fleet from; unset: k8s/overlays/gpu, here or as installed."),
    ] = None,
    namespace: Namespace = "lodestar",
    context: Context = None,
    image: Annotated[str | None, typer.Option(help="Image to run; unset is the overlay's.")] = None,
    reward: Annotated[
        str | None, typer.Option(help="Reward servers that serve this run's model already: dns:///NAME.NAMESPACE:50051")
    ] = None,
    reference: Annotated[str | None, typer.Option(help="Reference servers that do.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the objects and create nothing.")] = False,
    follow: Follow = False,
    plain: Plain = False,
    tls: Tls = None,
) -> None:
    """A run on Kubernetes: a fleet of its own, from the same YAML as on a laptop."""
    from lodestar.cli.cluster import submit_run

    shared = {"reward": reward, "reference": reference}
    submit_run(
        config,
        overrides or [],
        overlay=overlay,
        namespace=namespace,
        context=context,
        image=image,
        shared={role: target for role, target in shared.items() if target},
        dry_run=dry_run,
        follow=follow,
        plain=plain,
        tls=tls,
    )


def status(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="A run's folder or YAML here, or its name on a cluster.", show_default=False
        ),
    ],
    namespace: Namespace = "lodestar",
    context: Context = None,
    follow: Follow = False,
    plain: Plain = False,
    tls: Tls = None,
) -> None:
    """What a run is doing, here or on a cluster, and what is wrong with it; the live view with -f."""
    from lodestar.cli.cluster import show_status

    show_status(run, namespace=namespace, context=context, follow=follow, plain=plain, tls=tls)


def logs(
    run: RunName,
    what: Annotated[
        str,
        typer.Argument(metavar="[WHAT]", help="A stage (r2.ppo), a fleet, conductor; unset: what runs now."),
    ] = "",
    namespace: Namespace = "lodestar",
    context: Context = None,
    follow: Follow = False,
) -> None:
    """The log of a run's stage, of one of its fleets, or of what runs now."""
    from lodestar.cli.cluster import show_logs

    show_logs(run, what, namespace=namespace, context=context, follow=follow)


def cancel(run: RunName, namespace: Namespace = "lodestar", context: Context = None) -> None:
    """Ends a submitted run; its volume stays."""
    from lodestar.cli.cluster import cancel_run

    cancel_run(run, namespace=namespace, context=context)
