"""How a run that ended is told: its result, what changed in its replies, and what to do next."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from lodestar.cautions import cautions
from lodestar.files import read_json
from lodestar.numerals import fixed
from lodestar.recipe.folder import RunFolder
from lodestar.samples import judgement, spread

PAIRS = ("the largest gain", "the middle", "the largest loss")
LONGEST = 300
"""Characters of a reply shown here; the report has it whole."""


def tell(root: Path, last: str | None) -> None:
    """The result in a few lines. ``last``: the stage at which a part of a run ended."""
    console = Console(soft_wrap=True, highlight=False)
    folder = RunFolder.open(root)
    if last is not None or not (root / "summary.json").exists():
        step = folder.plan.step(last) if last else folder.plan.steps[-1]
        for port in step.makes:
            console.print(f"[green]✓[/] {root / step.name / port}")
        return
    summary = read_json(root / "summary.json")
    ppo = folder.plan.last("ppo")
    _result(console, summary, cautions(summary, getattr(ppo.stage, "steps", 0) if ppo else 0))
    _pairs(console, folder)
    _next(console, folder)


def _result(console: Console, summary: Mapping[str, Any], doubts: Sequence[str]) -> None:
    rate, model = summary["win_rate"], summary["reward_model"]
    if rate:
        praise = "bold green" if rate["low"] > 0.5 and not doubts else "bold"
        console.print(
            f"[{praise}]win rate {rate['value']:.1%}[/] [dim]({rate['low']:.1%}–{rate['high']:.1%}, n = {rate['n']}, "
            f"judge: {rate['judge']})[/] against the model it started from, after {summary['steps']} PPO steps"
        )
    for doubt in doubts:
        _prose(console, Text(doubt, "yellow"))
    if learned := summary.get("learned"):
        _prose(console, learned["sentence"])
    rivals: Mapping[str, Any] = summary["rivals"] or {}
    beaten = [f"{name.replace('_', ' ')} {row['against_policy']['value']:.1%}" for name, row in rivals.items()]
    accuracy = [f"reward model accuracy {model['accuracy']:.1%}"] if model else []
    figures = [f"wins against {', '.join(beaten)}" if beaten else "", *accuracy, f"{summary['wall_seconds']:.0f} s"]
    console.print(f"[dim]{' · '.join(filter(None, figures))}[/]")


def _pairs(console: Console, folder: RunFolder) -> None:
    """Three prompts with the reply before and after."""
    evaluated = folder.last("evaluate")
    judge = folder.figures(evaluated, "evaluation.json").get("judge", "reward")
    rows = spread(folder.rows(evaluated, "samples.jsonl"), judge, len(PAIRS))
    if len(rows) < len(PAIRS):
        return
    console.print(f"\n[bold]Before and after[/] [dim]on prompts that no stage has seen, judged by {judge}[/]")
    for which, row in zip(PAIRS, rows, strict=True):
        _prose(console, Text.assemble("\n  ", (_short(row["prompt"]), "cyan"), (f"   {which}", "dim")))
        for side in ("before", "after"):
            value = fixed(judgement(row[side], judge))
            _prose(console, Text.assemble((f"  {side:<7}{value:>6}  ", "dim"), _short(row[side]["text"])))
        if folder.plan.is_synthetic:
            from lodestar.data.world.tastes import best

            _prose(console, Text.assemble((f"  {'best':<7}{'':>6}  ", "dim"), (best(row["prompt"]), "dim")))
    if folder.plan.is_synthetic:
        from lodestar.data.world.tastes import tastes

        console.print()
        for sentence in tastes():
            _prose(console, sentence)


def _next(console: Console, folder: RunFolder) -> None:
    """The next commands, as they can be typed here."""
    command, root = _typed(), folder.root
    what = f"{command} chat {root}"
    prompt = next(iter(folder.rows(folder.last("evaluate"), "samples.jsonl")), {}).get("prompt", "")
    console.print("\n[bold]Next[/]")
    console.print(f"  {what:<44}  [dim]talk with it[/]", highlight=False)
    if folder.plan.is_synthetic and prompt:
        console.print(Text.assemble("  ", ("it knows its own world alone; say: ", "dim"), prompt))
    console.print(f"  {f'{command} serve policy {root} --port 50051':<44}  [dim]serve it to programs (README)[/]")
    console.print(f"  report: {root / 'report.html'}")


def _prose(console: Console, text: str | Text) -> None:
    """Sentences, wrapped between words where a person reads them."""
    console.print(text, markup=False, soft_wrap=not console.is_terminal)


def _typed() -> str:
    """How this program is called from where its user is: by its path where the shell would not find it."""
    found, own = shutil.which("lodestar"), Path(sys.argv[0]).resolve()
    if own.name != "lodestar" or (found and Path(found).resolve() == own):
        return "lodestar"
    return os.path.relpath(own)


def _short(text: str) -> str:
    text = " ".join(text.split()) or "(empty)"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
