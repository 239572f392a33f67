"""The typer application: every command's arguments; what they do is imported when they are called."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

import lodestar

app = typer.Typer(
    name="lodestar",
    help="RLHF as a set of services: SFT, a reward model from human comparisons, PPO and evaluation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(no_args_is_help=True, help="Check a run's configuration, or print every option.")
app.add_typer(config_app, name="config")
certs_app = typer.Typer(no_args_is_help=True, help="Certificates and tokens for a fleet that speaks TLS.")
app.add_typer(certs_app, name="certs")

data_app = typer.Typer(no_args_is_help=True, help="Look at a file of human feedback, or split it by prompt.")
app.add_typer(data_app, name="data")


@dataclass
class Options:
    """What stands before the command."""

    debug: bool = False


options = Options()


class Role(enum.StrEnum):
    """The five services."""

    policy = "policy"
    reward = "reward"
    reference = "reference"
    learner = "learner"
    rollout = "rollout"


class Stage(enum.StrEnum):
    """The supervised stages."""

    pretrain = "pretrain"
    sft = "sft"
    reward = "reward"


class Access(enum.StrEnum):
    """What a token permits (lodestar.rpc.access)."""

    caller = "caller"
    worker = "worker"
    operator = "operator"


Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="The run's YAML file.", show_default=False)]
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


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lodestar {lodestar.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of expected errors too.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    options.debug = debug


@app.command()
def demo(
    overrides: Overrides = None,
    resume: Resume = False,
    fresh: Fresh = False,
    plain: Plain = False,
) -> None:
    """A tiny model learns from the preferences of simulated people, in about five minutes on a laptop."""
    from lodestar.cli import runs

    runs.demo(overrides or [], resume=resume, fresh=fresh, plain=plain)


@app.command()
def run(
    config: Config,
    overrides: Overrides = None,
    resume: Resume = False,
    fresh: Fresh = False,
    plain: Plain = False,
) -> None:
    """The whole pipeline on this machine: data, SFT, reward model, PPO through the services, evaluation, report."""
    from lodestar.cli import runs

    runs.run(config, overrides or [], resume=resume, fresh=fresh, plain=plain)


@app.command()
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


@app.command()
def train(
    stage: Annotated[Stage, typer.Argument(help="Which training stage.", show_default=False)],
    config: Config,
    overrides: Overrides = None,
) -> None:
    """One supervised stage in this process; makes the run's data first where it is missing."""
    from lodestar.cli.train import train

    train(stage.value, config, overrides or [])


@app.command("eval")
def evaluate(config: Config, overrides: Overrides = None, plain: Plain = False) -> None:
    """Win rate, best-of-n and report of a trained run once more; evaluation.* options may differ from the run's."""
    from lodestar.cli import runs

    runs.evaluate(config, overrides or [], plain=plain)


@app.command()
def chat(
    model: Annotated[str, typer.Argument(help="Run folder, model folder, hub id, or HOST:PORT of a policy server.")],
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.7,
    max_tokens: Annotated[int, typer.Option(help="New tokens per reply at most.")] = 256,
    seed: Annotated[int | None, typer.Option(help="Makes replies repeatable.")] = None,
    tls: Tls = None,
    token: Token = None,
) -> None:
    """Talk with a model in the terminal."""
    from lodestar.cli.generate import chat, opened

    chat(opened(model, tls=tls, token=token), model, temperature=temperature, max_tokens=max_tokens, seed=seed)


@app.command()
def generate(
    model: Annotated[str, typer.Argument(help="Run folder, model folder, hub id, or HOST:PORT of a policy server.")],
    prompt: Annotated[str, typer.Argument(help="Text to go on from; - reads standard input.", show_default=False)],
    n: Annotated[int, typer.Option("-n", help="Samples.")] = 1,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Nucleus sampling.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(help="New tokens per sample at most.")] = 128,
    seed: Annotated[int | None, typer.Option(help="Makes samples repeatable.")] = None,
    tls: Tls = None,
    token: Token = None,
) -> None:
    """Complete one prompt."""
    from lodestar.cli.generate import generate, opened

    source = opened(model, tls=tls, token=token)
    generate(source, prompt, n=n, temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed)


@app.command()
def report(run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.", show_default=False)]) -> None:
    """Write report.html again from what a run's folder holds."""
    from lodestar.cli import runs

    runs.report(run)


class Ties(enum.StrEnum):
    """What a tie means."""

    half = "half"
    davidson = "davidson"


@app.command()
def rank(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="CSV or JSONL rows: first, second, label (or winner), count.")
    ],
    ties: Annotated[
        Ties, typer.Option(help='half: a tie is two votes that disagree; davidson: people said "equal".')
    ] = Ties.half,
    penalty: Annotated[float, typer.Option(help="Precision of a normal prior on the strengths; 0 is none.")] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures for a program.")] = False,
) -> None:
    """Rank policies, checkpoints or annotators from a table of comparisons; ties allowed."""
    from lodestar.cli.rank import rank

    rank(file, ties=ties.value, penalty=penalty, as_json=as_json)


@app.command()
def card(
    path: Annotated[
        Path,
        typer.Argument(metavar="CARD", help="A card.json, or a model's or run's folder.", show_default=False),
    ],
    output: Annotated[Path | None, typer.Option(help="HTML file to write; unset is beside the card.")] = None,
) -> None:
    """Write a reward model's card as one HTML page with pictures."""
    from lodestar.report.card import write_card_page

    typer.echo(write_card_page(path, output))


Namespace = Annotated[str, typer.Option("--namespace", "-n", help="Kubernetes namespace.")]
Context = Annotated[str | None, typer.Option(help="kubeconfig context; unset is the current one.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="The run's name.", show_default=False)]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")]


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
def cancel(run: RunName, namespace: Namespace = "lodestar", context: Context = None) -> None:
    """Ends a submitted run; its volume stays."""
    from lodestar.cli.cluster import cancel_run

    cancel_run(run, namespace=namespace, context=context)


FeedbackFile = Annotated[
    Path,
    typer.Argument(metavar="FILE", help="JSONL, JSON or CSV, or .gz of one: own rows or a published set's."),
]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse the file at its first bad row.")]


@data_app.command("check")
def check_data(
    file: FeedbackFile,
    strict: Strict = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    bad_rows: Annotated[int, typer.Option(help="Bad rows to name.")] = 20,
) -> None:
    """Counts, lengths, ties, duplicates, annotators' agreement and bad rows of a file of feedback."""
    from lodestar.cli import data

    data.check(file, strict=strict, as_json=as_json, bad_rows=bad_rows)


@data_app.command("split")
def split_data(
    file: FeedbackFile,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where train.jsonl and held_out.jsonl go.")],
    held_out: Annotated[float, typer.Option(help="Share of prompts held out.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    strict: Strict = False,
) -> None:
    """Two files of feedback with no prompt on both sides."""
    from lodestar.cli import data

    data.split(file, folder, held_out=held_out, seed=seed, strict=strict)


@config_app.command("check")
def check(config: Config, overrides: Overrides = None) -> None:
    """Say whether the file can be run, and what is wrong when it cannot."""
    from lodestar.config import load_config

    loaded = load_config(config, overrides or [])
    typer.echo(f"{config}: fine; run {loaded.name} would write to {Path(loaded.runs_dir) / loaded.name}")


@config_app.command("schema")
def schema() -> None:
    """Every option with its type, default and meaning, as JSON Schema."""
    import json

    from lodestar.config import RunConfig

    typer.echo(json.dumps(RunConfig.model_json_schema(), indent=2))


@certs_app.command("dev")
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


@certs_app.command("token")
def certs_token(
    file: Annotated[Path, typer.Argument(help="Tokens file that servers read (--tokens); made or added to.")],
    name: Annotated[str, typer.Argument(help="Who will hold the token.", show_default=False)],
    role: Annotated[Access, typer.Option(help="What it permits.")] = Access.caller,
) -> None:
    """Print a new token, once; the file gets its digest. Delete the line there to withdraw it."""
    from lodestar.cli.certs import write_token

    write_token(file, name, role.value)
