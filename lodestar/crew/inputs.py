"""A run's inputs, looked at before anything runs: models, data, functions, and how many prompts there will be.

All of it would end the run later, after stages that cost hours, or make it a lesser run without a word. No torch.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lodestar.config import DataConfig, RunConfig
from lodestar.errors import ConfigError, DataError, ModelError
from lodestar.labelling.options import PeopleOptions
from lodestar.recipe import named
from lodestar.recipe.plan import Plan, Step

COUNTED_BYTES = 64 * 2**20
"""Of data files that are read for their prompts to be counted; more take longer than anybody waits for a check."""


def refuse_missing(run: RunConfig, plan: Plan) -> None:
    """
    Raises:
        ConfigError: what the run names and is not there: every folder, file and function, with its key.
    """
    if missing := [f"{key}: {said}" for key, said in _missing(run, plan)]:
        raise ConfigError("", "; ".join(missing))


def few_prompts(run: RunConfig, plan: Plan) -> list[str]:
    """Warnings with numbers where stages want more prompts than the data will leave them.

    Raises:
        LodestarError: the data cannot be read, or a stage asks for more prompts than there can be.
    """
    step = plan.last("data")
    if step is None or not isinstance(step.stage, DataConfig):
        return []
    data = step.stage
    kept, evaluated, how = _prompts(data, run)
    return [how] if how else few_of(plan, step, kept, evaluated)


def few_of(plan: Plan, step: Step, kept: int, evaluated: int) -> list[str]:
    """The same where a data stage leaves so many prompts for rolling out and for the evaluation.

    Raises:
        ConfigError: a stage asks for more prompts than there are.
    """
    data = step.stage
    assert isinstance(data, DataConfig)
    found = []
    for other in plan.steps:
        if other.inputs.get("prompts", ("",))[0].partition("/")[0] != step.name:
            continue
        tickets, wanted = getattr(other.stage, "tickets", 0), getattr(other.stage, "prompts", None)
        if other.kind == "sample" and wanted is not None and wanted > kept:
            raise ConfigError(
                f"stages.{other.name}.prompts", f"is {wanted}, and the data leave {kept} at most: {_more(data)}"
            )
        if other.stage.rolls_out and other.kind != "sample" and tickets > kept:
            found.append(
                f"{other.name}: a step takes {tickets} prompts, and the data leave {kept} at most, so each stands in a "
                f"step about {tickets / max(1, kept):.1f} times: lower {other.name}.batch, or {_more(data)}"
            )
        if other.kind == "evaluate" and isinstance(wanted, int) and wanted > evaluated:
            found.append(f"{other.name}: {wanted} prompts are asked for, and {evaluated} at most are kept for it")
    return found


def prompts_left(run: RunConfig, plan: Plan) -> int:
    """Prompts that the data leave for rolling out, at most; 0 where they are not counted here."""
    step = plan.last("data")
    return _prompts(step.stage, run)[0] if step and isinstance(step.stage, DataConfig) else 0


def _more(data: DataConfig) -> str:
    if data.source == "synthetic":
        return "raise data.prompt_rows"
    return (
        "give more: PPO's prompts are those that no training comparison contains (data.held_out_fraction "
        f"{data.held_out_fraction:g} of them, at most data.prompt_rows {data.prompt_rows}); data.prompts names a file "
        "of others"
    )


def _prompts(data: DataConfig, run: RunConfig) -> tuple[int, int, str]:
    """Prompts for rolling out and for the evaluation, as many as there can be before too long ones are left out; or
    why they were not counted."""
    if data.source == "synthetic":
        return data.prompt_rows, data.evaluation_rows, ""
    if data.source == "hub":
        return 0, 0, "data: prompts of a hub's data set are counted when it has been fetched"
    from lodestar.data.corpus import split_families
    from lodestar.data.files import BadRows
    from lodestar.data.hh import Dialogues
    from lodestar.data.jsonl import corpus_files, read_files, reading_of

    size = sum(path.stat().st_size for path in corpus_files(data))
    if size > COUNTED_BYTES:
        return 0, 0, f"data: {size / 2**20:,.0f} MiB are not read here; the data stage counts prompts and bad rows"
    functions = any(source.kind == "function" for source in run.services.reward.sources)
    corpus, _ = read_files(
        data, Dialogues(), BadRows(strict=data.strict), reading_of(data, functions=functions)
    ).one_family_per_prompt()
    prompts = corpus.every_prompt()
    splits = split_families((prompt.family for prompt in prompts), data.held_out_fraction, run.seed)
    learned = {row.family for row in corpus.feedback if splits[row.family] == "train"}
    evaluated = sum(splits[prompt.family] == "evaluation" for prompt in prompts)
    kept = sum(splits[prompt.family] != "evaluation" and prompt.family not in learned for prompt in prompts)
    return min(kept, data.prompt_rows), min(evaluated, data.evaluation_rows), ""


def _missing(run: RunConfig, plan: Plan) -> Iterator[tuple[str, str]]:
    """Key and what is wrong, of everything that the run names and is not there."""
    if run.model.path is not None:
        yield from _model("model.path", run.model.path)
    for kind, path in run.given.items():
        if kind == "reward_model":
            yield from _model(f"given.{kind}", path)
        elif not Path(path).exists():
            yield f"given.{kind}", f"{path}: no such file or folder"
    for number, source in enumerate(run.services.reward.sources):
        key = f"services.reward.sources.{number}"
        for path in source.paths:
            yield from _model(f"{key}.paths", path)
        if source.function is not None:
            yield from _function(f"{key}.function", source.function)
    for step in plan.steps:
        yield from _of_stage(step)
    password = run.services.queue.password_file
    if password is not None and not password.is_file():
        yield "services.queue.password_file", f"{password}: no such file"


def _of_stage(step: Step) -> Iterator[tuple[str, str]]:
    key, stage = f"stages.{step.name}", step.stage
    if isinstance(stage, DataConfig):
        if stage.source in ("hh", "jsonl"):
            yield from _data(key, stage)
        return
    options: list[tuple[str, Any]] = [(option, getattr(stage, option, None)) for option in ("path", "start")]
    options.append(("critic.path", getattr(getattr(stage, "critic", None), "path", None)))
    options += [(f"judge.{one}", getattr(getattr(stage, "judge", None), one, None)) for one in ("model", "reward")]
    for option, path in options:
        if isinstance(path, str):
            yield from _model(f"{key}.{option}", path)
    if isinstance(people := getattr(stage, "people", None), PeopleOptions):
        yield from _people(f"{key}.people", people)


def _people(key: str, people: PeopleOptions) -> Iterator[tuple[str, str]]:
    """People would come to the page before these are read."""
    from lodestar.labelling.known import known_items

    for option, file in (("gold", people.gold), ("practice", people.practice), ("token_file", people.token_file)):
        if file is not None and not Path(file).is_file():
            yield f"{key}.{option}", f"{file}: no such file"
            return
    try:
        known_items(people)
    except DataError as error:
        yield key, str(error)


def _data(key: str, data: DataConfig) -> Iterator[tuple[str, str]]:
    root = Path(str(data.root))
    if not root.is_dir():
        yield f"{key}.root", f"{root}: no such folder; it is where the data files are"
        return
    named_files: list[tuple[str, str | None]] = [("files", name) for name in data.files]
    named_files += [("demonstrations", data.demonstrations), ("prompts", data.prompts), ("text", data.text)]
    for option, name in named_files:
        if name is not None and not (root / name).is_file():
            yield f"{key}.{option}", f"{root / name}: no such file (names are taken below data.root)"


def _model(key: str, path: str) -> Iterator[tuple[str, str]]:
    try:
        named.model_itself(path)
    except ModelError as error:
        yield key, str(error)


def _function(key: str, spec: str) -> Iterator[tuple[str, str]]:
    """Without running it: what a file defines is read, and a module is looked for."""
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        yield key, f"{spec!r} must be module:name or file.py:name"
    elif not place.endswith(".py"):
        try:
            known = importlib.util.find_spec(place) is not None
        except (ImportError, ValueError):
            known = False
        if not known:
            yield key, f"no module {place} can be imported from here"
    elif not Path(place).is_file():
        yield key, f"{place}: no such file"
    else:
        try:
            defined = _defined(ast.parse(Path(place).read_text(encoding="utf-8")).body)
        except (SyntaxError, UnicodeDecodeError) as error:
            yield key, f"{place} is no Python: {error}"
            return
        if name not in defined and "*" not in defined:
            yield key, f"{place} has no {name}; it has {', '.join(sorted(defined)) or 'nothing'}"


def _defined(body: Sequence[ast.stmt]) -> set[str]:
    """Names that a module's own statements bind, also below if and try; ``*`` where it imports everything."""
    found: set[str] = set()
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        else:
            stored = (one for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store))
            found |= {one.id for one in stored}
            for part in ("body", "orelse", "handlers", "finalbody"):
                for inner in getattr(node, part, []):
                    found |= _defined(inner.body if isinstance(inner, ast.ExceptHandler) else [inner])
    return found


def refuse(run: RunConfig, plan: Plan) -> list[str]:
    """Both looks; the warnings.

    Raises:
        ConfigError, DataError: see refuse_missing and few_prompts.
    """
    refuse_missing(run, plan)
    try:
        return few_prompts(run, plan)
    except DataError as error:
        raise ConfigError("stages.data", str(error)) from error
