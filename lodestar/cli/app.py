"""The typer application: which commands there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

import lodestar
from lodestar.cli.commands import certificates, cluster, configuration, feedback, ledger, models, runs, serve, share


@dataclass
class Options:
    """What stands before the command."""

    debug: bool = False


options = Options()


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lodestar {lodestar.__version__}")
        raise typer.Exit


def _main(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of expected errors too.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    options.debug = debug


def _group(help_text: str) -> typer.Typer:
    return typer.Typer(no_args_is_help=True, help=help_text)


app = typer.Typer(
    name="lodestar",
    help="RLHF as a set of services: SFT, a reward model from human comparisons, PPO and evaluation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.callback()(_main)
app.command()(runs.demo)
app.command()(configuration.init)
app.command()(runs.run)
app.command()(serve.serve)
app.command()(serve.work)
app.command()(runs.train)
app.command("eval")(runs.evaluate)
app.command()(models.chat)
app.command()(models.generate)
app.command()(runs.report)
app.command()(share.export)
app.command()(share.push)
app.command()(feedback.rank)
app.command()(feedback.duel)
app.command()(feedback.card)
app.command()(cluster.conduct)
app.command()(cluster.submit)
app.command()(cluster.status)
app.command()(cluster.logs)
app.command()(cluster.cancel)

config_app = _group("Check a run's configuration, or print every option.")
config_app.command("check")(configuration.check)
config_app.command("options")(configuration.options)
config_app.command("schema")(configuration.schema)
app.add_typer(config_app, name="config")

certs_app = _group("Certificates and tokens for a fleet that speaks TLS.")
certs_app.command("dev")(certificates.certs_dev)
certs_app.command("token")(certificates.certs_token)
app.add_typer(certs_app, name="certs")

ledger_app = _group("Check what a run trained on.")
ledger_app.command("check")(ledger.check)
app.add_typer(ledger_app, name="ledger")

data_app = _group("Look at a file of human feedback, split it by prompt, or make one from demonstrations.")
data_app.command("check")(feedback.check_data)
data_app.command("split")(feedback.split_data)
data_app.command("contrast")(feedback.contrast_data)
app.add_typer(data_app, name="data")
