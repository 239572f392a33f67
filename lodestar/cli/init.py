"""``lodestar init``: a commented YAML for what a folder has."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import yaml
from rich.console import Console
from rich.markup import escape

from lodestar.config.load import parse_config
from lodestar.crew import inputs
from lodestar.errors import ConfigError, DataError
from lodestar.files import write_atomically
from lodestar.recipe.found import Finds, FoundModel, FoundRows, look
from lodestar.recipe.plan import plan

PROMPT_TOKENS, RESPONSE_TOKENS, BATCH = 192, 64, 64
NEEDED = (
    "name a folder with rows of {prompt, chosen, rejected}, {prompt, completions, ranking or ratings}, "
    "{prompt, completion}, {prompt}, or of a published format (lodestar data check FILE says what one holds)"
)

ALONE = (
    "# Without preferences this is fine-tuning alone. PPO can follow with rows of {prompt, chosen, rejected}, or a",
    "# reward of your own (services.reward.sources): lodestar init again, or docs/options.md.",
)


def init(folder: Path, output: Path, *, name: str | None, force: bool) -> None:
    """Looks, writes, checks what it wrote, and says what comes next.

    Raises:
        ConfigError: the output is there already.
        DataError: there is nothing to begin a run with.
    """
    if output.exists() and not force:
        raise ConfigError(str(output), "is there already; --output names another file, --force writes over it")
    found = look(folder)
    if not found.rows:
        refused = f"; {found.refused[0][1]}" if found.refused else ""
        raise DataError(folder, f"holds no rows that can be read{refused}: {NEEDED}")
    text = written(found, name or _name(folder), batch=BATCH)
    tree = yaml.safe_load(text)
    run = parse_config(tree, (), str(output))
    warnings = inputs.refuse(run, planned := plan(run))
    if warnings and planned.last("ppo"):
        most = max((one for one in (8, 16, 32) if one <= _prompts(text, found, output)), default=4)
        text = written(found, run.name, batch=most)
        run = parse_config(yaml.safe_load(text), (), str(output))
        warnings = inputs.refuse(run, plan(run))
    write_atomically(output, text)
    console = Console(highlight=False, soft_wrap=True)
    for warning in warnings:
        console.print(f"[yellow]warning: {escape(warning)}[/]")
    for path, why in found.refused:
        console.print(f"[yellow]left out: {escape(str(path))}: {escape(why.removeprefix(f'{path}: '))}[/]")
    console.print(f"[green]✓[/] {escape(str(output))}")
    console.print(f"  lodestar config check {escape(str(output))}   [dim]the plan[/]")
    console.print(f"  lodestar run {escape(str(output))}            [dim]from data to report[/]")


def written(found: Finds, name: str, *, batch: int) -> str:
    """The YAML, with a comment for every choice that was made."""
    models = [one for one in found.models if not one.scores]
    scorers = [one for one in found.models if one.scores]
    model = models[0] if models else None
    root, files = _root(found)
    preferences, shown = bool(found.of("feedback")), bool(found.of("demonstrations"))
    scored = preferences or bool(scorers)
    lines = [f"name: {name}"]
    if scored:
        lines.append(_line("recipe: instruct-gpt", "data → sft → reward → filtered → ppo → evaluate → report"))
    prompt, response = _lengths(model)
    lines += [
        *_model_lines(model, models),
        "stages:",
        "  data:",
        "    source: jsonl",
        f"    root: {_quoted(root)}",
        *files,
    ]
    lines.append(_line(f"    max_prompt_tokens: {prompt}", "longer ones are left out of PPO and the evaluation"))
    if not scored:
        lines += ["  sft: {}", "  report: {}", *ALONE]
        return "\n".join(lines) + "\n"
    lines += [_sft_line(model, shown), *_reward_lines(scorers, preferences)]
    if model is not None and not shown and model.chats and preferences:
        lines.append(_line("  filtered: null", "a rival that learns from demonstrations"))
    rate = "1.0e-5" if model else "4.0e-4"
    lines += [
        "  ppo:",
        _line("    steps: 40", "may be raised later: the run goes on from its last checkpoint"),
        _line(f"    batch: {batch}", "sequences per step, each of another prompt where there are so many"),
        _line(f"    max_tokens: {response}", "of a response"),
        _line(f"    learning_rate: {rate}", "more for small models, less where the KL runs away"),
    ]
    if len(scorers) > 1:
        lines.append(
            _line("    critic: {init: policy}", "several reward models have no one head to start a critic from")
        )
    lines.append(
        _line("  evaluate: {judge: reward}", "how far training got; whether it is better, people say (README)")
    )
    return "\n".join(lines) + "\n" + _sources(scorers)


def _line(text: str, comment: str) -> str:
    return f"{text:<31} # {comment}"


def _model_lines(model: FoundModel | None, models: list[FoundModel]) -> list[str]:
    if model is None:
        shape = f"{{hidden_size: 128, intermediate_size: 384, layers: 4, context_tokens: {2 * PROMPT_TOKENS}}}"
        return [
            _line("model:", "none was found: a small Llama from nothing, with a tokenizer of these rows"),
            _line("  # path: FOLDER_OR_HUB_ID", "a model of yours instead"),
            "  tokenizer: {kind: bpe, vocab_size: 4096}",
            f"  architecture: {shape}",
        ]
    others = f"; also found: {', '.join(str(one.path) for one in models[1:])}" if models[1:] else ""
    return ["model:", _line(f"  path: {_quoted(model.path)}", f"{model.architecture}{others}")]


def _sft_line(model: FoundModel | None, shown: bool) -> str:
    if model is not None and model.chats and not shown:
        return _line("  sft: null", "it chats already, and no file of demonstrations was found")
    why = "the demonstrations" if shown else "the preferred completions, since no demonstrations were found"
    return _line("  sft: {}", f"fine-tuned on {why}")


def _reward_lines(scorers: list[FoundModel], preferences: bool) -> list[str]:
    if not scorers:
        return [_line("  reward: {}", "a reward model from the preferences; its card says what it is worth")]
    more = "; take services away to train one on the preferences" if preferences else ""
    return [_line("  reward: null", f"{', '.join(str(one.path) for one in scorers)} scores{more}")]


def _sources(scorers: list[FoundModel]) -> str:
    if not scorers:
        return ""
    lines = ["services:", "  reward:", "    sources:"]
    for number, one in enumerate(scorers, start=1):
        name = "score" if len(scorers) == 1 else f"score-{number}"
        lines.append(_line(f"      - {{name: {name}, paths: [{_quoted(one.path)}]}}", one.architecture))
    return "\n".join(lines) + "\n"


def _root(found: Finds) -> tuple[Path, list[str]]:
    """The folder of the rows that teach most, and which files of it are what."""
    teaching = found.of("feedback") or found.of("demonstrations") or found.rows
    root = Counter(one.path.parent for one in teaching).most_common(1)[0][0]
    lines = []
    here: dict[str, list[FoundRows]] = {}
    for one in found.rows:
        inside = one.path.parent == root
        here.setdefault(one.holds if inside else "elsewhere", []).append(one)
    feedback = here.get("feedback", [])
    left_out = any(path.parent == root for path, _ in found.refused)
    if feedback and (len(here) > 1 or left_out):
        names = ", ".join(_quoted(one.path.name) for one in feedback)
        lines.append(_line(f"    files: [{names}]", _what(feedback[0])))
    elif feedback:
        lines.append(f"    # {', '.join(f'{one.path.name}: {_what(one)}' for one in feedback)}")
    for holds in ("demonstrations", "prompts"):
        if shown := here.get(holds):
            others = f"; also there: {', '.join(one.path.name for one in shown[1:])}" if shown[1:] else ""
            lines.append(_line(f"    {holds}: {_quoted(shown[0].path.name)}", f"{_what(shown[0])}{others}"))
    lines += [f"    # also found, in another folder: {one.path} ({_what(one)})" for one in here.get("elsewhere", [])]
    return root, lines


def _what(one: FoundRows) -> str:
    return f"{one.holds}: {one.format}"


def _lengths(model: FoundModel | None) -> tuple[int, int]:
    """Prompt and response tokens that fit the model together."""
    context = model.context_tokens if model and model.context_tokens else PROMPT_TOKENS + RESPONSE_TOKENS
    if context >= PROMPT_TOKENS + RESPONSE_TOKENS:
        return PROMPT_TOKENS, RESPONSE_TOKENS
    return context - context // 4, context // 4


def _prompts(text: str, found: Finds, output: Path) -> int:
    """Prompts that PPO would have."""
    run = parse_config(yaml.safe_load(text), (), str(output))
    return inputs.prompts_left(run, plan(run))


def _name(folder: Path) -> str:
    """The folder's name as a run's."""
    return re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.lower()).strip("-")[:50] or "my-run"


def _quoted(value: Path | str) -> str:
    """As YAML: quoted where it must be."""
    return yaml.safe_dump(str(value), default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()
