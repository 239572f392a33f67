"""Runs on Kubernetes: submit, status, logs, cancel."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lodestar.cli.commands.arguments import Config, Overrides, Plain, Role, Tls

Namespace = Annotated[str, typer.Option("--namespace", "-n", help="Kubernetes namespace.")]
Context = Annotated[str | None, typer.Option(help="kubeconfig context; unset is the current one.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="The run's name.", show_default=False)]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")]


def submit(
    config: Config,
    overrides: Overrides = None,
    overlay: Annotated[Path, typer.Option(help="kustomize overlay to render the fleet from.")] = Path(
        "k8s/overlays/gpu"
    ),
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
    run: RunName,
    namespace: Namespace = "lodestar",
    context: Context = None,
    follow: Follow = False,
    plain: Plain = False,
    tls: Tls = None,
) -> None:
    """What a submitted run's processes are doing, and what is wrong with them; the live view with -f."""
    from lodestar.cli.cluster import show_status

    show_status(run, namespace=namespace, context=context, follow=follow, plain=plain, tls=tls)


def logs(
    run: RunName,
    role: Annotated[Role, typer.Argument(help="Whose log.")] = Role.learner,
    namespace: Namespace = "lodestar",
    context: Context = None,
    follow: Follow = False,
) -> None:
    """The log of a submitted run's service."""
    from lodestar.cli.cluster import show_logs

    show_logs(run, role.value, namespace=namespace, context=context, follow=follow)


def cancel(run: RunName, namespace: Namespace = "lodestar", context: Context = None) -> None:
    """Ends a submitted run; its volume stays."""
    from lodestar.cli.cluster import cancel_run

    cancel_run(run, namespace=namespace, context=context)
