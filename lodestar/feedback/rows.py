"""People's judgements as rows of Lodestar's data files: feedback, demonstrations or prompts (lodestar.data.schema)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from lodestar.data.schema import feedback_row
from lodestar.feedback.campaign import MARKS, OVERALL, Campaign
from lodestar.feedback.records import Item, Judgement
from lodestar.feedback.verdicts import (
    AspectVerdict,
    Demonstrated,
    PairVerdict,
    RankingVerdict,
    RatingVerdict,
    WrittenPrompt,
)
from lodestar.records import Choice, Feedback, Ranking, Ratings

Row = dict[str, Any]
BOTH_BAD = "both bad"
UNSAFE = "unsafe"
GROUP = "group "
"""Begins a flag that names a group to which the annotator counts themselves."""


def rows_of(campaign: Campaign, items: Mapping[str, Item], judgements: Iterable[Judgement]) -> list[Row]:
    """One row per judgement that counts, of ordinary items; one person's aspects of an item share a row."""
    counted = [one for one in judgements if one.role == "ordinary" and not one.set_aside]
    if campaign.form == "demonstration":
        return [
            {"prompt": items[one.item_id].prompt, "completion": one.verdict.completion, "id": one.id}
            for one in counted
            if isinstance(one.verdict, Demonstrated)
        ]
    if campaign.form == "prompt":
        return [_prompt_row(one, one.verdict) for one in counted if isinstance(one.verdict, WrittenPrompt)]
    return [feedback_row(record) for record in feedback_of(campaign, items, counted)]


def feedback_of(campaign: Campaign, items: Mapping[str, Item], judgements: Iterable[Judgement]) -> list[Feedback]:
    """Feedback records of judgements of completions, whatever their role and whether they count or not."""
    found: list[Feedback] = []
    aspects: dict[tuple[str, str], list[Judgement]] = defaultdict(list)
    for one in judgements:
        if isinstance(one.verdict, AspectVerdict):
            aspects[one.item_id, one.annotator].append(one)
        else:
            found.extend(_records(campaign, items[one.item_id], one))
    for (item_id, _), said in aspects.items():
        found.append(_aspects_record(campaign, items[item_id], said))
    return found


def _records(campaign: Campaign, item: Item, one: Judgement) -> list[Feedback]:
    flags = [UNSAFE] if one.unsafe else []
    verdict: tuple[Choice, ...] | Ranking | Ratings
    match one.verdict:
        case PairVerdict(label=label, strength=strength, both_bad=both_bad):
            verdict = (Choice(0, 1, label, float(strength)),)
            flags += [BOTH_BAD] if both_bad else []
        case RankingVerdict(order=order):
            verdict = Ranking(order)
        case RatingVerdict(overall=overall, marks=marks, ranking=ranking):
            verdict = Ratings({"overall": tuple(map(float, overall))}, {"overall": tuple(map(float, OVERALL))})  # type: ignore[dict-item]
            flags += [f"completion {i} {name}" for name in MARKS for i, yes in enumerate(marks.get(name, ())) if yes]
            rated = _feedback(campaign, item, one, verdict, flags)
            if ranking is None:
                return [rated]
            return [rated, _feedback(campaign, item, one, Ranking(ranking.order), flags, part="ranking")]
        case _:
            raise ValueError(f"a verdict of the form {one.verdict.form} is not about completions")
    return [_feedback(campaign, item, one, verdict, flags)]


def _aspects_record(campaign: Campaign, item: Item, said: list[Judgement]) -> Feedback:
    by_name = {one.verdict.aspect: one.verdict.ratings for one in said if isinstance(one.verdict, AspectVerdict)}
    scales = {aspect.name: (float(aspect.low), float(aspect.high)) for aspect in campaign.aspects}
    verdict = Ratings(
        {name: tuple(map(float, ratings)) for name, ratings in by_name.items()},
        {name: scales[name] for name in by_name},
    )
    flags = [UNSAFE] if any(one.unsafe for one in said) else []
    return _feedback(campaign, item, said[0], verdict, flags)


def _feedback(
    campaign: Campaign,
    item: Item,
    one: Judgement,
    verdict: tuple[Choice, ...] | Ranking | Ratings,
    flags: list[str],
    part: str = "",
) -> Feedback:
    return Feedback(
        prompt=item.prompt,
        completions=item.completions,
        verdict=verdict,
        id=f"{one.id}/{part}" if part else one.id,
        annotator=one.annotator,
        subset=campaign.name,
        flags=(*flags, *(GROUP + group for group in one.groups)),
    )


def _prompt_row(one: Judgement, written: WrittenPrompt) -> Row:
    """{"id", "text"} as prompt files have it, and beside them what the text was made of."""
    row: Row = {"id": one.id, "text": written.rendered, "style": written.style, "annotator": one.annotator}
    if written.examples:
        row["instruction"] = written.text
        row["examples"] = [{"query": shot.query, "response": shot.response} for shot in written.examples]
    return row | ({"use_case": written.use_case} if written.use_case else {})
