"""The reward's sources as they are served: models and their ensembles, and Python beside them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from lodestar import metrics
from lodestar.config import RewardTask, SourceConfig
from lodestar.data.marks import unmarked
from lodestar.data.world import gold_reward
from lodestar.errors import ConfigError, LodestarError, NonFinite, SourceFailed
from lodestar.files import read_json
from lodestar.rewards.combine import MEMBER, Judgement, member_labels, over_ensemble
from lodestar.rewards.functions import call, load_function
from lodestar.rewards.models import Encoded, ScoringModel
from lodestar.rewards.rules import Exchange, rule_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class ModelSource:
    """One model, or an ensemble of them, behind one name."""

    config: SourceConfig
    members: tuple[ScoringModel, ...]
    offset: float

    @staticmethod
    def load(config: SourceConfig, task: RewardTask) -> ModelSource:
        """Loads the source's models.

        Raises:
            ModelError: a folder holds no model that scores.
            ConfigError: the source's heads are not the model's labels, or the card lacks an offset.
        """
        paths = config.paths or _own(config, task.model)
        if not paths:
            raise ConfigError(
                f"reward.sources {config.name}.paths", "is empty, and the run has no reward model of its own to serve"
            )
        members = tuple(ScoringModel.load(path, dtype=task.dtype, device=task.device) for path in paths)
        for path, member in zip(paths, members, strict=True):
            _check_heads(config, path, member.labels, len(members))
        offset = _card_offset(config, paths[0]) if config.offset == "card" else float(config.offset)
        return ModelSource(config, members, offset)

    @property
    def ensemble_size(self) -> int:
        """Members whose mean and standard deviation are served."""
        return len(self.members) * (
            len(member_labels(self.members[0].labels)) if self.config.heads == "ensemble" else 1
        )

    @property
    def heads(self) -> tuple[str, ...]:
        """Labels worth naming in a reply, and the members of an ensemble of models."""
        labels, size = self.members[0].labels, self.ensemble_size
        members = [f"{MEMBER}{number}" for number in range(1, size + 1)] if len(self.members) > 1 else []
        return (*(labels if len(labels) > 1 else ()), *members)

    def judge(self, member_scores_BK: Sequence[Tensor]) -> list[Judgement | LodestarError]:
        """From the members' scores of B completions to this source's opinion of each."""
        rows = zip(*(scores_BK.tolist() for scores_BK in member_scores_BK), strict=True)
        return [self._judgement(row) for row in rows]

    def _judgement(self, members: Sequence[Sequence[float]]) -> Judgement | LodestarError:
        labels, heads = self.members[0].labels, self.config.heads
        if not all(abs(value) < float("inf") for row in members for value in row):
            value = next(value for row in members for value in row if not abs(value) < float("inf"))
            return NonFinite(
                f"the reward model gave the score {value}: its weights are broken (source {self.config.name})"
            )
        means = [sum(column) / len(members) for column in zip(*members, strict=True)]
        named = dict(zip(labels, means, strict=True)) if len(labels) > 1 else {}
        if heads == "ensemble":
            own = member_labels(labels)
            values = [value for row in members for label, value in zip(labels, row, strict=True) if label in own]
        else:
            weights = [1.0] if heads is None else [heads.get(label, 0.0) for label in labels]
            values = [sum(w * value for w, value in zip(weights, row, strict=True)) for row in members]
        if len(members) > 1:
            named |= {f"{MEMBER}{number}": value for number, value in enumerate(values, 1)}
        return over_ensemble(values, named, offset=self.offset)


@dataclass(frozen=True, slots=True, eq=False)
class PythonSource:
    """A rule, a function or the synthetic world's gold: reads text and is called in one thread."""

    config: SourceConfig
    function: Callable[[Sequence[Exchange]], Sequence[float | None]]
    offset: float

    @staticmethod
    def load(config: SourceConfig) -> PythonSource:
        """
        Raises:
            ConfigError: the function cannot be had or does not take what it will be given.
        """
        if config.kind == "gold":
            return PythonSource(config, _gold, float(config.offset))
        if config.kind == "rule":
            rule = rule_of(config)
            return PythonSource(config, lambda rows: [rule(one) for one in rows], float(config.offset))
        assert config.function is not None, "the configuration requires function"
        function = load_function(config.name, config.function)

        def called(rows: Sequence[Exchange]) -> list[float]:
            prompts = [unmarked(one.prompt) for one in rows]
            return call(config.name, function, prompts, [one.completion for one in rows], [one.columns for one in rows])

        return PythonSource(config, called, float(config.offset))

    def judge(self, exchanges: Sequence[Exchange]) -> list[Judgement | None]:
        """One judgement per completion; None where a watched source has none.

        Raises:
            SourceFailed: the function's own fault. A watched source's is logged and costs its judgements alone.
        """
        began = time.perf_counter()
        try:
            values = self.function(exchanges)
        except SourceFailed as error:
            metrics.REWARD_SOURCE_FAILURES.labels(self.config.name).inc()
            log.warning("%s", error, exc_info=error.__cause__)
            if not self.config.watched:
                raise
            values = [None] * len(exchanges)
        metrics.REWARD_SOURCE_SECONDS.labels(self.config.name).observe(time.perf_counter() - began)
        return [None if value is None else Judgement(value - self.offset) for value in values]


@dataclass(frozen=True, slots=True)
class Work:
    """One completion on its way through the models: what each member of each model source reads, in order."""

    encoded: tuple[Encoded, ...]

    @property
    def tokens(self) -> int:
        """Of the longest: what one forward pass of one model costs."""
        return max(len(one.token_ids) for one in self.encoded)


def _gold(exchanges: Sequence[Exchange]) -> list[float | None]:
    """None where the prompt is no request of the synthetic world."""
    values: list[float | None] = []
    for one in exchanges:
        try:
            values.append(gold_reward(one.prompt, one.completion))
        except ValueError:
            values.append(None)
    return values


def _own(config: SourceConfig, model: str | None) -> tuple[str, ...]:
    """The run's own reward model; as an ensemble, with the members that its training put beside it."""
    if not model:
        return ()
    others = sorted(Path(model).glob(f"{MEMBER}*"), key=lambda path: (len(path.name), path.name))
    return (model, *(str(path) for path in others if config.heads == "ensemble"))


def _check_heads(config: SourceConfig, path: str, labels: tuple[str, ...], models: int) -> None:
    field = f"reward.sources {config.name}.heads"
    if config.heads is None and len(labels) > 1:
        raise ConfigError(
            field, f"{path} has {len(labels)} labels ({', '.join(labels)}); give each wanted one a weight, or ensemble"
        )
    if config.heads == "ensemble" and len(labels) == models == 1:
        raise ConfigError(field, f"{path} has one label, which is no ensemble; leave heads out")
    if isinstance(config.heads, dict) and (unknown := sorted(set(config.heads) - set(labels))):
        raise ConfigError(field, f"{path} has no label {', '.join(unknown)}; it has {', '.join(labels)}")


def _card_offset(config: SourceConfig, path: str) -> float:
    card = Path(path) / "card.json"
    if not card.is_file():
        raise ConfigError(f"reward.sources {config.name}.offset", f"{card}: no such file; give a number")
    offset = read_json(card).get("offset")
    if not isinstance(offset, int | float):
        raise ConfigError(f"reward.sources {config.name}.offset", f"{card} holds no offset; give a number")
    return float(offset)
