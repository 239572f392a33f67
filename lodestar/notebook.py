"""What a notebook needs, in five calls; ``import lodestar`` has them. Models and figures are named as on the command
line: a run's folder, a model's folder, a hub id, or HOST:PORT of a server."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lodestar.config.load import load_config, parse_config
from lodestar.config.run import RunConfig
from lodestar.errors import InvalidArgument, LodestarError, ModelError
from lodestar.recipe import plan as planning
from lodestar.recipe.conduct import Wanted
from lodestar.recipe.folder import CONFIG, RunFolder
from lodestar.recipe.plan import Plan
from lodestar.records import ChatMessage, SamplingParams

if TYPE_CHECKING:
    import pandas

Config = str | Path | Mapping[str, Any] | RunConfig
"""A YAML file, or the options that one would hold."""
Turns = Sequence[ChatMessage | Mapping[str, str]]
"""A chat: ``[{"role": "user", "content": "hello"}]``."""
_ADDRESS = re.compile(r"([\w.-]+|\[[0-9a-f:]+\]):\d+|(dns|ipv4|ipv6):.+")
DEFAULT_TOKENS = 64


def plan(config: Config, *overrides: str) -> Plan:
    """The stages of a run, tied together: ``plan("mine.yaml", "ppo.steps=20").steps``.

    Raises:
        ConfigError: an option that cannot be, or a port that nothing feeds.
    """
    return planning.plan(_config(config, overrides))


def run(
    config: Config,
    *overrides: str,
    only: str | None = None,
    begin: str | None = None,
    until: str | None = None,
) -> RunFolder:
    """Conducts a run in this process and returns its folder; what is done already is not done again.

    Args:
        only: this stage alone. begin: this stage and all after it, anew. until: nothing after this stage.

    Raises:
        ConfigError: the run has no sound plan.
        LodestarError: a stage's own; what is done stays.
    """
    from lodestar.crew.inline import run_inline

    return run_inline(_config(config, overrides), wanted=Wanted(only=only, begin=begin, until=until))


def figures(run: str | Path | RunFolder, stage: str | None = None) -> pandas.DataFrame:
    """What a run's stages wrote, a row per step: columns ``stage``, ``step``, ``time`` and the names of metrics.jsonl.

    Args:
        stage: of one stage alone, such as ``"ppo"`` or ``"r2.ppo"``.

    Raises:
        FailedPrecondition: no run's folder. DataError: no figures yet. ConfigError: no such stage.
        LodestarError: pandas is not installed.
    """
    from lodestar.recipe.figures import run_figures

    try:
        import pandas
    except ImportError:
        raise LodestarError("a data frame needs pandas: pip install 'lodestar-rlhf[frames]'") from None
    folder = run if isinstance(run, RunFolder) else RunFolder.open(Path(run))
    return pandas.DataFrame(run_figures(folder, stage))


def generate(
    model: str | Path | RunFolder, prompt: str | Turns, *, max_tokens: int = DEFAULT_TOKENS, **options: Any
) -> list[str]:
    """Texts of a model: ``generate("runs/mine", "what color is the sky ?", n=4, temperature=0.7, seed=1)``.

    Args:
        model: loaded in this process, and kept for the next call; or asked of a policy server.
        prompt: text to go on from, or a chat for the model's template.
        max_tokens: new tokens per sample at most; less where the context ends before.
        options: further fields of lodestar.records.SamplingParams.

    Raises:
        InvalidArgument: an option is unknown or out of range.
        ModelError: the model cannot be loaded, or the run has none yet.
    """
    unknown = sorted(options.keys() - set(SamplingParams.__dataclass_fields__))
    if unknown:
        raise InvalidArgument(unknown[0], "is no option of sampling; see lodestar.records.SamplingParams")
    sampling = SamplingParams(max_tokens, **options)
    asked = prompt if isinstance(prompt, str) else _turns(prompt)
    if _is_address(model):
        from lodestar.client import PolicyClient

        with PolicyClient(str(model), timeout=600.0) as client:
            return [one.text for one in client.generate(asked, sampling).completions]
    from lodestar.engine.alone import Alone

    return _kept(Alone, *_stamped(model, "model")).texts(asked, sampling)


def score(model: str | Path | RunFolder, items: Iterable[tuple[str, str]]) -> list[float]:
    """Scores of (prompt, completion) pairs by a reward model, in order.

    Args:
        model: of one label; loaded in this process, and kept for the next call; or asked of a reward server.

    Raises:
        InvalidArgument: an item is no pair of texts.
        ModelError: the model cannot be loaded, has several labels, or the run has none yet.
    """
    pairs = [_pair(number, item) for number, item in enumerate(items)]
    if _is_address(model):
        from lodestar.client import RewardClient

        with RewardClient(str(model), timeout=600.0) as client:
            return [float(one.value) for one in client.score(pairs).scores]
    from lodestar.rewards.models import ScoringModel
    from lodestar.rewards.rules import Exchange

    path, stamp = _stamped(model, "reward_model")
    judge = _kept(ScoringModel.load, path, stamp)
    if len(judge.labels) != 1:
        raise ModelError(f"{path}: has {len(judge.labels)} labels, {', '.join(judge.labels)}; score takes one of one")
    if not pairs:
        return []
    return [float(value) for value in judge.scores(judge.encode([Exchange(*pair) for pair in pairs]))[:, 0]]


def _config(config: Config, overrides: Sequence[str]) -> RunConfig:
    if isinstance(config, RunConfig):
        return parse_config(config.model_dump(mode="json"), overrides, config.name) if overrides else config
    if isinstance(config, Mapping):
        return parse_config(config, overrides, str(config.get("name", "")))
    return load_config(config, overrides)


def _stamped(model: str | Path | RunFolder, kind: str) -> tuple[str, int]:
    """The model's place, and when it was last changed: a run's newest one may be another by the next call.

    Raises:
        ModelError: the run has none yet.
    """
    root = model.root if isinstance(model, RunFolder) else Path(model)
    place = str(root if isinstance(model, RunFolder) else model)
    if (root / CONFIG).exists() and not (root / "config.json").exists():
        found = RunFolder.open(root).newest(kind)
        if found is None:
            raise ModelError(f"{root}: this run has no {kind.replace('_', ' ')} yet; lodestar.run goes on with it")
        place = str(found)
    path = Path(place)
    return place, path.stat().st_mtime_ns if path.exists() else 0


@lru_cache(maxsize=2)
def _kept(load: Any, path: str, stamp: int) -> Any:
    return load(path)


def _is_address(model: str | Path | RunFolder) -> bool:
    return isinstance(model, str) and _ADDRESS.fullmatch(model) is not None


def _turns(prompt: Turns) -> tuple[ChatMessage, ...]:
    return tuple(one if isinstance(one, ChatMessage) else ChatMessage(**one) for one in prompt)


def _pair(number: int, item: Any) -> tuple[str, str]:
    if isinstance(item, str) or len(item) != 2 or not all(isinstance(half, str) for half in item):
        raise InvalidArgument(f"items[{number}]", "must be a pair of texts: (prompt, completion)")
    return item[0], item[1]
