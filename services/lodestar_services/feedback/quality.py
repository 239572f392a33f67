"""What leads and waiting stages are told of a campaign: agreement, each person, disagreements; from its judgements."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lodestar.feedback.campaign import OVERALL, Campaign
from lodestar.feedback.records import Item, Judgement
from lodestar.feedback.verdicts import (
    AspectVerdict,
    PairVerdict,
    RankingVerdict,
    RatingVerdict,
    Verdict,
)
from lodestar.preference.agreement import Level, alpha_interval, krippendorff_alpha
from lodestar.preference.annotators import Assessment, Mark, assess


@dataclass(frozen=True, slots=True)
class Agreement:
    """Krippendorff's alpha with its 95% interval: ``Agreement("all", 0.61, 0.40, 0.79, units=40)``."""

    name: str
    """``all``, an aspect, or a declared group."""
    alpha: float
    low: float
    high: float
    units: int
    """What several judged."""


@dataclass(frozen=True, slots=True)
class Disagreement:
    """An item whose judges differ."""

    item_id: str
    spread: float
    """Largest difference between two answers about the same thing, 0 … 1."""
    judges: int


def values_of(verdict: Verdict, campaign: Campaign, item_id: str) -> dict[str, float]:
    """What was judged → its value, 0 … 1; nothing for what was written."""
    match verdict:
        case PairVerdict(label=label):
            return {item_id: label}
        case RankingVerdict(order=order):
            return _order_values(order, item_id)
        case RatingVerdict(overall=overall):
            low, high = OVERALL
            return {f"{item_id}/{i}": (rating - low) / (high - low) for i, rating in enumerate(overall)}
        case AspectVerdict(aspect=name, ratings=ratings):
            aspect = next(one for one in campaign.aspects if one.name == name)
            return {
                f"{item_id}/{name}/{i}": (rating - aspect.low) / (aspect.high - aspect.low)
                for i, rating in enumerate(ratings)
            }
    return {}


def counted(judgements: Iterable[Judgement]) -> list[Judgement]:
    """Those that count, practice aside."""
    return [one for one in judgements if not one.set_aside and one.role != "practice"]


def agreement(campaign: Campaign, judgements: Sequence[Judgement], name: str = "all") -> Agreement | None:
    """Alpha over all that several judged: pairs and rankings ordinal, ratings interval. None where it is undefined."""
    units: dict[str, list[float]] = defaultdict(list)
    for one in counted(judgements):
        for unit, value in values_of(one.verdict, campaign, one.item_id).items():
            units[unit].append(1 - value if campaign.form in ("pair", "ranking") and _turned(unit) else value)
    return _agreement(campaign, units, name)


def by_group(campaign: Campaign, judgements: Sequence[Judgement]) -> list[Agreement]:
    """Alpha among the members of each declared group, groups of one person left out."""
    groups: dict[str, list[Judgement]] = defaultdict(list)
    for one in judgements:
        for group in one.groups:
            groups[group].append(one)
    found = [agreement(campaign, said, group) for group, said in sorted(groups.items())]
    return [one for one in found if one is not None]


def by_aspect(campaign: Campaign, judgements: Sequence[Judgement]) -> list[Agreement]:
    """Alpha of each aspect, in the form aspects."""
    found = []
    for aspect in campaign.aspects if campaign.form == "aspects" else ():
        said = [
            one for one in judgements if isinstance(one.verdict, AspectVerdict) and one.verdict.aspect == aspect.name
        ]
        found.append(agreement(campaign, said, aspect.name))
    return [one for one in found if one is not None]


def assessments(campaign: Campaign, items: Mapping[str, Item], judgements: Sequence[Judgement]) -> list[Assessment]:
    """Each person against the others and on gold. Judgements that were set aside do not speak, of anybody."""
    return assess([_mark(campaign, items[one.item_id], one) for one in counted(judgements)])


def disagreements(campaign: Campaign, judgements: Sequence[Judgement]) -> list[Disagreement]:
    """Items whose judges differ, the widest first."""
    units: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    judges: dict[str, set[str]] = defaultdict(set)
    for one in counted(judgements):
        judges[one.item_id].add(one.annotator)
        for unit, value in values_of(one.verdict, campaign, one.item_id).items():
            units[one.item_id][unit].append(value)
    found = [
        Disagreement(item_id, spread, len(judges[item_id]))
        for item_id, parts in units.items()
        if (spread := max(max(values) - min(values) for values in parts.values())) > 0
    ]
    return sorted(found, key=lambda one: (-one.spread, one.item_id))


def _turned(unit: str) -> bool:
    """Half of all pairs: which completion is the first is nobody's judgement, and where callers put the better one
    first all answers would be alike, and alpha could not tell agreement from chance."""
    return hashlib.sha256(unit.encode()).digest()[0] % 2 == 1


def _agreement(campaign: Campaign, units: Mapping[str, Sequence[float]], name: str) -> Agreement | None:
    level: Level = "ordinal" if campaign.form in ("pair", "ranking") else "interval"
    several = [values for values in units.values() if len(values) > 1]
    alpha = krippendorff_alpha(several, level)
    interval = alpha_interval(several, level)
    if alpha is None or interval is None:
        return None
    return Agreement(name, alpha, *interval, len(several))


def _mark(campaign: Campaign, item: Item, one: Judgement) -> Mark:
    expected = {} if item.expected is None else values_of(item.expected, campaign, item.id)
    return Mark(
        one.annotator,
        one.item_id,
        values_of(one.verdict, campaign, one.item_id),
        _side(one),
        _as_shown(one),
        one.seconds,
        expected if one.role == "gold" else {},
    )


def _side(one: Judgement) -> int:
    """Whether the reply shown first was put above the one shown last (1), below it (−1), or neither."""
    if len(one.shown) < 2:
        return 0
    first, last = one.shown[0], one.shown[-1]
    above: float
    match one.verdict:
        case PairVerdict(label=label):
            above = (label - 0.5) if first == 0 else (0.5 - label)
        case RankingVerdict(order=order):
            places = {index: place for place, tied in enumerate(order) for index in tied}
            above = places[last] - places[first]
        case RatingVerdict(overall=ratings) | AspectVerdict(ratings=ratings):
            above = ratings[first] - ratings[last]
        case _:
            above = 0
    return int(above > 0) - int(above < 0)


def _as_shown(one: Judgement) -> str:
    """The answer as it was clicked: by places, not by completions."""
    match one.verdict:
        case PairVerdict(label=label, strength=strength, both_bad=both_bad):
            side = label if not one.shown or one.shown[0] == 0 else 1 - label
            return f"pair {side} {strength} {both_bad}"
        case RankingVerdict(order=order):
            places = {index: place for place, tied in enumerate(order) for index in tied}
            return f"ranking {[places[index] for index in one.shown]}"
        case RatingVerdict(overall=ratings) | AspectVerdict(ratings=ratings):
            return f"ratings {[ratings[index] for index in one.shown]}"
    return one.verdict.model_dump_json()


def _order_values(order: Sequence[Sequence[int]], item_id: str) -> dict[str, float]:
    places = {index: place for place, tied in enumerate(order) for index in tied}
    return {
        f"{item_id}/{i}>{j}": 0.5 if places[i] == places[j] else float(places[i] < places[j])
        for i in sorted(places)
        for j in sorted(places)
        if i < j
    }
