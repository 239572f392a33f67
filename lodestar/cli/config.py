"""``lodestar config``: a run's plan as a table, and every option there is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from lodestar.config import RunConfig
from lodestar.config.load import read_tree
from lodestar.crew import inputs
from lodestar.errors import ConfigError, ModelError
from lodestar.recipe import named
from lodestar.recipe.folder import CONFIG, refuse_old
from lodestar.recipe.plan import GIVEN, Plan, Step, calls_of, plan
from lodestar.recipe.stage import registry
from lodestar.recipe.store import Store
from lodestar.recipe.written import nearest, whole, written_as_before


def check(path: Path, overrides: Sequence[str]) -> None:
    """Prints the plan, and what the models in local folders will do.

    Raises:
        ConfigError: as load_config and plan; a folder, file or function that the run names is not there.
        ModelError: a model will not do what the run asks of it.
    """
    run = named.run_config(path, [*overrides])
    planned = plan(run)
    root = Path(run.runs_dir) / run.name
    refuse_old(root)
    store = Store(root, run)
    table = Table("stage", "takes", "makes", "runs as", "", box=box.SIMPLE_HEAD, pad_edge=False)
    for step in planned.steps:
        takes = [f"{port} ← {', '.join(artifacts)}" for port, artifacts in step.inputs.items()]
        table.add_row(step.name, "\n".join(takes), ", ".join(step.makes), _place(step), _state(store, step))
    console = Console(highlight=False)
    console.print(table)
    begun = any(store.seal_of(step.name) for step in planned.steps)  # then what it was made of may be gone
    warnings = [] if begun else inputs.refuse(run, planned)
    _tell_models(console, run, planned)
    for warning in warnings:
        console.print(f"[yellow]warning: {escape(warning)}[/]")
    held = (root / CONFIG).exists()
    console.print(
        f"{escape(str(path))}: fine; run {run.name} {'goes on in' if held else 'would write to'} {escape(str(root))}"
    )
    tree = read_tree(path) if path.is_file() else {}
    if old := written_as_before(tree):
        console.print(f"\n[dim]{', '.join(old)} at the top is how runs were written before recipes. Now it is[/]\n")
        print(yaml.safe_dump(whole(tree), sort_keys=False, width=100), end="")


def options(name: str | None, *, as_markdown: bool) -> None:
    """Prints a page of options, or which pages there are."""
    from lodestar.recipe.options import markdown, page, pages

    if as_markdown:
        print(markdown(), end="")
        return
    console = Console(highlight=False)
    if name is None:
        table = Table("page", "", box=box.SIMPLE_HEAD, pad_edge=False)
        for one in pages().values():
            table.add_row(one.name, escape(one.says))
        console.print(table)
        console.print("lodestar config options PAGE, or a part of one (ppo.kl), says what may be set", style="dim")
        return
    found = page(name)
    console.print(f"\n[bold]{found.name}[/]  {escape(found.says)}\n")
    for option in found.options:
        console.print(
            f"[cyan]{option.name}[/]  {escape(option.default)}  [dim]{escape(option.may_be)}[/]", soft_wrap=True
        )
        console.print(Padding(escape(option.meaning), (0, 0, 0, 4)))


def schema(stage: str | None) -> None:
    """Prints the JSON Schema of a stage, or of the whole with every stage's below ``stages``."""
    stages = registry()
    if stage is not None:
        if stage not in stages:
            raise ConfigError(stage, f"is no stage{nearest(stage, stages)}; there are {', '.join(sorted(stages))}")
        print(json.dumps(stages[stage].model_json_schema(), indent=2))
        return
    tree: dict[str, Any] = RunConfig.model_json_schema()
    definitions = tree.setdefault("$defs", {})
    properties = {}
    for name, kind in stages.items():
        part = kind.model_json_schema(ref_template="#/$defs/{model}")
        definitions |= part.pop("$defs", {})
        properties[name] = {"anyOf": [part, {"type": "null"}]}
    tree["properties"]["stages"]["properties"] = properties
    print(json.dumps(tree, indent=2))


def _tell_models(console: Console, run: RunConfig, planned: Plan) -> None:
    """What the preflight says; loads torch where a model lies in a local folder."""
    from lodestar.crew.before import in_words, looked_at

    found = looked_at(run, planned)
    if found is None:
        return
    table = Table("model", "", "", box=box.SIMPLE_HEAD, pad_edge=False)
    for one in found.findings:
        says = escape(one.says)
        table.add_row(escape(one.model), one.aspect, f"[red]✗ {says}[/]" if one.refused else says)
    console.print(table)
    if found.refusals:
        raise ModelError(in_words([asdict(one) for one in found.refusals]))


def _place(step: Step) -> str:
    """What runs it, and which servers and workers beside it."""
    own = f"{step.stage.serves} service" if step.stage.serves else "a process"
    fleets = [*calls_of(step), *(["rollout workers"] if step.stage.rolls_out else [])]
    return f"{own}, with {', '.join(fleets)}" if fleets else own


def _state(store: Store, step: Step) -> str:
    if changes := store.changes(step):
        return f"[yellow]asked otherwise: {escape(', '.join(map(str, changes)))}; --from {step.name}[/]"
    if store.done(step):
        return "[green]done[/]"
    sources = {artifact.partition("/")[0] for artifacts in step.inputs.values() for artifact in artifacts} - {GIVEN}
    if all(store.seal_of(name) for name in sources) and (more := store.grows(step)):
        return f"[green]done, goes on from {more[0]} to {more[1]} {step.stage.grows}[/]"
    if store.seal_of(step.name):
        return "[yellow]done, to be made anew: what it takes changed[/]"
    return "begun" if store.unfinished(step).exists() else ""
