"""Human feedback and who was preferred: data, rank, card."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

FeedbackFile = Annotated[
    Path,
    typer.Argument(metavar="FILE", help="JSONL, JSON, CSV, Parquet or Arrow: own rows or a published format."),
]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse a file with a bad row or a column that nothing reads.")]
Columns = Annotated[
    list[str] | None,
    typer.Option("--column", metavar="OURS=THEIRS", help="What a column is, such as prompt=question; repeat it."),
]
Ignore = Annotated[list[str] | None, typer.Option("--ignore", metavar="COLUMN", help="Leave a column out; repeat it.")]


class Ties(enum.StrEnum):
    """What a tie means."""

    half = "half"
    davidson = "davidson"


def check_data(
    file: FeedbackFile,
    strict: Strict = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    bad_rows: Annotated[int, typer.Option(help="Bad rows to name.")] = 20,
    columns: Columns = None,
    ignore: Ignore = None,
) -> None:
    """Format, counts, lengths, ties, agreement, unread columns and bad rows of feedback, demonstrations or prompts."""
    from lodestar.cli import data

    data.check(file, strict=strict, as_json=as_json, bad_rows=bad_rows, reading=data.reading(columns, ignore))


def split_data(
    file: FeedbackFile,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where train.jsonl and held_out.jsonl go.")],
    held_out: Annotated[float, typer.Option(help="Share of prompts held out.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    strict: Strict = False,
    columns: Columns = None,
    ignore: Ignore = None,
) -> None:
    """Two files of feedback with no prompt on both sides."""
    from lodestar.cli import data

    reading = data.reading(columns, ignore)
    data.split(file, folder, held_out=held_out, seed=seed, strict=strict, reading=reading)


def contrast_data(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL of demonstrations, or .gz of one.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="JSONL of comparisons to write.")],
    rows: Annotated[int | None, typer.Option(min=1, help="Rows to write; unset: one per demonstration.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Language model of the demonstrations, folder or hub id, whose likelihoods judge every pair; "
            "unset: the demonstration wins.",
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            help="Of --by: nats per unit of reward, 1 where unset; a third of the usual difference keeps labels soft.",
        ),
    ] = None,
    strict: Strict = False,
) -> None:
    """Comparisons from demonstrations alone, to pretrain a reward model on (reward_model.start)."""
    from lodestar.cli import data

    data.contrast(file, output, rows=rows, seed=seed, strict=strict, by=by, temperature=temperature)


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


class DuelMethod(enum.StrEnum):
    """How pairs are chosen."""

    double_thompson = "double_thompson"
    rucb = "rucb"
    copeland = "copeland"
    uniform = "uniform"


def duel(
    replies: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME=]FILE", help='JSONL of {"prompt", "completion"}, one file per contestant.'),
    ] = None,
    by: Annotated[
        str,
        typer.Option(
            help="Who judges: table:FILE (recorded comparisons), gold (the synthetic world), reward:ADDRESS (a reward "
            "server) or people:ADDRESS (a feedback server)."
        ),
    ] = "gold",
    method: Annotated[
        DuelMethod, typer.Option(help="copeland: where the best may beat each other in a circle.")
    ] = DuelMethod.double_thompson,
    error: Annotated[float, typer.Option(help="Probability of naming a wrong winner.")] = 0.05,
    tolerance: Annotated[
        float, typer.Option(help="Those who win against each other within 0.5 ± this are equally good.")
    ] = 0.0,
    limit: Annotated[int, typer.Option(min=1, help="Duels at most.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    output: Annotated[Path | None, typer.Option(help="CSV of what was judged; unset is duels.csv.")] = None,
) -> None:
    """Which of several policies, checkpoints or decoding settings is best, with as few judgements as it takes."""
    from lodestar.cli.duel import Contest, duel

    duel(replies or [], by, Contest(method.value, error, tolerance, limit, seed, output))


def card(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="CARD", help="A card.json, a model's folder, a run's folder or YAML.", show_default=False
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(help="HTML file to write; unset is beside the card, or card.html in a run.")
    ] = None,
) -> None:
    """Write a reward model's card as one HTML page with pictures."""
    from lodestar.report.card import write_card_page

    typer.echo(write_card_page(path, output))
