"""What a reward is made of: models, functions of one's own, rules, and a judge that is only watched."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lodestar.config.base import Section

SourceKind = Literal["model", "function", "rule", "gold"]
RuleName = Literal["ended", "length", "pattern", "repetition"]
_FIELDS: dict[str, tuple[str, ...]] = {
    "model": ("paths", "heads"),
    "function": ("function",),
    "rule": ("rule", "pattern", "words"),
    "gold": (),
}


class SourceConfig(Section):
    """One reward among several. The score that PPO gets is the sum over sources of weight × (score − offset)."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,40}$")
    """Names the source in errors, metrics and the heads of a reply."""
    kind: SourceKind = "model"
    """model: sequence classifiers; function: Python of one's own; rule: a built-in one; gold: the synthetic world's."""
    weight: float = 1.0
    """Of this source in the sum."""
    offset: float | Literal["card"] = 0.0
    """Subtracted from this source's score; card: the mean score of demonstrations, from the model's card.json."""
    watched: bool = False
    """Judge beside the others and stay out of the score: the held-out judge of the over-optimisation watch."""
    paths: tuple[str, ...] = ()
    """model: folders or hub ids; several are an ensemble; empty is the run's own reward model."""
    heads: dict[str, float] | Literal["ensemble"] | None = None
    """model with several labels: the weight of each label by its name, or ensemble: labels are members of one; of the
    run's own ensemble_of models, the models are."""
    function: str | None = None
    """function: module:name or file.py:name, called as name(prompts, completions) and returning one number each."""
    rule: RuleName | None = None
    """rule: ended (1 or 0), length (− words beyond `words`), pattern (1 or 0), repetition (− share of repeats)."""
    pattern: str | None = None
    """rule: pattern — a regular expression searched for in the completion."""
    words: int | None = Field(default=None, ge=1)
    """rule: length — words that cost nothing."""

    @model_validator(mode="after")
    def _fields_belong_to_the_kind(self) -> SourceConfig:
        said = f"source {self.name}"
        for kind, fields in _FIELDS.items():
            for field in fields:
                if kind != self.kind and getattr(self, field) not in (None, ()):
                    raise ValueError(f"{said}: {field} belongs to kind {kind}, and this is a {self.kind}")
        if self.kind == "function" and self.function is None:
            raise ValueError(f"{said}: function must be set, as module:name or file.py:name")
        if self.kind == "rule" and self.rule is None:
            raise ValueError(f"{said}: rule must name one of ended, length, pattern, repetition")
        if (self.rule == "pattern") != (self.pattern is not None):
            raise ValueError(f"{said}: pattern goes with rule: pattern, and only with it")
        if (self.rule == "length") != (self.words is not None):
            raise ValueError(f"{said}: words goes with rule: length, and only with it")
        if self.offset == "card" and self.kind != "model":
            raise ValueError(f"{said}: offset: card is for models; a {self.kind} has no card")
        if self.kind == "gold" and not self.watched:
            raise ValueError(f"{said}: the gold reward is for watching alone, never for training; set watched: true")
        if self.watched and self.weight != 1.0:
            raise ValueError(f"{said}: a watched source has no weight in the score; leave weight out")
        return self


def check_sources(sources: tuple[SourceConfig, ...]) -> None:
    """Raises ValueError when names repeat, several sources are watched, or none makes the score."""
    names = [source.name for source in sources]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"sources: {', '.join(sorted(repeated))}: each source needs a name of its own")
    if sum(source.watched for source in sources) > 1:
        raise ValueError("sources: at most one source may be watched")
    if sources and all(source.watched for source in sources):
        raise ValueError("sources: every source is watched, so none makes the score; add one that is not")


def served_sources(sources: tuple[SourceConfig, ...], *, synthetic: bool) -> tuple[SourceConfig, ...]:
    """The sources as they are served: without any, the run's own reward model; the synthetic world's gold is watched in
    every run on it that does not watch something else."""
    served = sources or (SourceConfig(name="reward"),)
    if synthetic and not any(source.watched for source in served):
        gold = "gold" if all(source.name != "gold" for source in served) else "world-gold"
        served = (*served, SourceConfig(name=gold, kind="gold", watched=True))
    return served


def aspects_of(sources: tuple[SourceConfig, ...]) -> dict[str, str]:
    """What a score of several parts is made of (helpful, harmless …): name → head of a Score. A part of weight 0
    counts: it is measured. Empty where the score has one part."""
    parts: list[tuple[str, str]] = []
    for source in (one for one in sources if not one.watched):
        if isinstance(source.heads, dict):
            parts += [(label, f"{source.name}.{label}") for label in source.heads]
        else:
            parts.append((source.name, source.name))
    names = [name for name, _ in parts]
    return {head if names.count(name) > 1 else name: head for name, head in parts} if len(parts) > 1 else {}


def watched_source(sources: tuple[SourceConfig, ...]) -> str | None:
    """Name of the source that is watched."""
    return next((source.name for source in sources if source.watched), None)


def critic_source(sources: tuple[SourceConfig, ...]) -> SourceConfig | None:
    """The one model that the score is, which a critic can start from; None where there is none."""
    scoring = [source for source in sources if not source.watched]
    if len(scoring) != 1 or scoring[0].kind != "model" or len(scoring[0].paths) > 1:
        return None
    (source,) = scoring
    return source if source.weight == 1 and source.offset == 0 and source.heads is None else None


def ensemble_source(sources: tuple[SourceConfig, ...]) -> SourceConfig | None:
    """The one source of the score that has members; None where no source has, or several have."""
    found = [one for one in sources if not one.watched and (one.heads == "ensemble" or len(one.paths) > 1)]
    return found[0] if len(found) == 1 else None
