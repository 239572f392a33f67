"""Messages of proto/lodestar/v1/feedback.proto to and from lodestar.feedback's records."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import ValidationError

from lodestar.errors import InvalidArgument
from lodestar.feedback.campaign import Aspect, Campaign, Form
from lodestar.feedback.records import Item, ItemRole, Judgement, Progress
from lodestar.feedback.verdicts import (
    AspectVerdict,
    Demonstrated,
    Exchange,
    PairVerdict,
    PromptStyle,
    RankingVerdict,
    RatingVerdict,
    Verdict,
    WrittenPrompt,
)
from lodestar.v1 import feedback_pb2 as pb

_FORM: dict[Form, Any] = {
    "pair": pb.FEEDBACK_FORM_PAIR,
    "rating": pb.FEEDBACK_FORM_RATING,
    "ranking": pb.FEEDBACK_FORM_RANKING,
    "aspects": pb.FEEDBACK_FORM_ASPECTS,
    "demonstration": pb.FEEDBACK_FORM_DEMONSTRATION,
    "prompt": pb.FEEDBACK_FORM_PROMPT,
}
_FORM_BACK = {number: name for name, number in _FORM.items()}
_ROLE: dict[ItemRole, Any] = {
    "ordinary": pb.ITEM_ROLE_UNSPECIFIED,
    "gold": pb.ITEM_ROLE_GOLD,
    "practice": pb.ITEM_ROLE_PRACTICE,
}
_ROLE_BACK = {number: name for name, number in _ROLE.items()}
_STYLE: dict[PromptStyle, Any] = {
    "plain": pb.PROMPT_STYLE_PLAIN,
    "few_shot": pb.PROMPT_STYLE_FEW_SHOT,
    "use_case": pb.PROMPT_STYLE_USE_CASE,
}
Made = TypeVar("Made")
_STYLE_BACK: dict[Any, PromptStyle] = {number: name for name, number in _STYLE.items()}


def campaign_to_proto(campaign: Campaign) -> pb.Campaign:
    """lodestar.v1.Campaign."""
    aspects = [pb.FeedbackAspect(**aspect.model_dump()) for aspect in campaign.aspects]
    plain = campaign.model_dump(exclude={"form", "aspects", "limit", "use_cases"})
    return pb.Campaign(
        **plain,
        form=_FORM[campaign.form],
        aspects=aspects,
        use_cases=campaign.use_cases,
        limit=campaign.limit or 0,
    )


def campaign_from_proto(message: pb.Campaign) -> Campaign:
    """The other way; fields left at proto's zero take their defaults, as a client in another language sends them.

    Raises:
        InvalidArgument: a field is out of range; it is named.
    """
    if message.form not in _FORM_BACK:
        raise InvalidArgument("campaign.form", f"is not set; one of {', '.join(_FORM)}")
    given: dict[str, Any] = {
        "name": message.name,
        "form": _FORM_BACK[message.form],
        "instructions": message.instructions,
        "strength": message.strength,
        "rank_after": message.rank_after,
        "use_cases": tuple(message.use_cases),
        "limit": message.limit or None,
        "gold_share": message.gold_share,
    }
    given |= {name: getattr(message, name) for name in ("overlap", "lease_seconds") if getattr(message, name)}
    if message.aspects:
        given["aspects"] = [
            {name: getattr(aspect, name) for name in Aspect.model_fields if getattr(aspect, name) not in ("", 0.0)}
            | {"low": aspect.low}
            for aspect in message.aspects
        ]
    return _validated(lambda: Campaign.model_validate(given), "campaign")


def item_to_proto(item: Item) -> pb.FeedbackItem:
    """lodestar.v1.FeedbackItem."""
    return pb.FeedbackItem(
        id=item.id,
        prompt=item.prompt,
        completions=item.completions,
        models=item.models,
        priority=item.priority,
        role=_ROLE[item.role],
        expected=None if item.expected is None else verdict_to_proto(item.expected),
        explanation=item.explanation,
        style=_STYLE[item.style],
    )


def item_from_proto(message: pb.FeedbackItem, where: str) -> Item:
    """The other way.

    Raises:
        InvalidArgument: the verdict that it brings is none.
    """
    return Item(
        id=message.id,
        prompt=message.prompt,
        completions=tuple(message.completions),
        models=tuple(message.models),
        priority=message.priority,
        role=_ROLE_BACK[message.role],
        expected=verdict_from_proto(message.expected, f"{where}.expected") if message.HasField("expected") else None,
        explanation=message.explanation,
        style=_STYLE_BACK.get(message.style, "plain"),
    )


def verdict_to_proto(verdict: Verdict) -> pb.Verdict:
    """lodestar.v1.Verdict."""
    match verdict:
        case PairVerdict(label=label, strength=strength, both_bad=both_bad):
            return pb.Verdict(pair=pb.PairVerdict(label=label, strength=strength, both_bad=both_bad))
        case RankingVerdict():
            return pb.Verdict(ranking=_ranking_to_proto(verdict))
        case RatingVerdict(overall=overall, marks=marks, ranking=ranking):
            rated = pb.RatingVerdict(overall=overall, ranking=None if ranking is None else _ranking_to_proto(ranking))
            for name, yes in marks.items():
                rated.marks[name].completions.extend(yes)
            return pb.Verdict(rating=rated)
        case AspectVerdict(aspect=aspect, ratings=ratings):
            return pb.Verdict(aspect=pb.AspectVerdict(aspect=aspect, ratings=ratings))
        case Demonstrated(completion=completion):
            return pb.Verdict(demonstration=completion)
        case WrittenPrompt(style=style, text=text, examples=examples, use_case=use_case):
            shots = [pb.Exchange(query=one.query, response=one.response) for one in examples]
            return pb.Verdict(
                prompt=pb.WrittenPrompt(style=_STYLE[style], text=text, examples=shots, use_case=use_case)
            )


def verdict_from_proto(message: pb.Verdict, where: str) -> Verdict:
    """The other way.

    Raises:
        InvalidArgument: no form is set, or a value is out of range.
    """
    match message.WhichOneof("form"):
        case "pair":
            pair = message.pair
            return _validated(
                lambda: PairVerdict.model_validate(
                    {"label": pair.label, "strength": pair.strength, "both_bad": pair.both_bad}
                ),
                where,
            )
        case "ranking":
            return _ranking_from_proto(message.ranking)
        case "rating":
            rating = message.rating
            return RatingVerdict(
                overall=tuple(rating.overall),
                marks={name: tuple(yes.completions) for name, yes in rating.marks.items()},
                ranking=_ranking_from_proto(rating.ranking) if rating.HasField("ranking") else None,
            )
        case "aspect":
            return AspectVerdict(aspect=message.aspect.aspect, ratings=tuple(message.aspect.ratings))
        case "demonstration":
            return _validated(lambda: Demonstrated(completion=message.demonstration), where)
        case "prompt":
            written = message.prompt
            shots = tuple(Exchange(query=one.query, response=one.response) for one in written.examples)
            style = _STYLE_BACK.get(written.style, "plain")
            return _validated(
                lambda: WrittenPrompt(style=style, text=written.text, examples=shots, use_case=written.use_case), where
            )
        case _:
            raise InvalidArgument(where, "holds no verdict: pair, rating, ranking, aspect, demonstration or prompt")


def judgement_to_proto(one: Judgement) -> pb.Judgement:
    """lodestar.v1.Judgement."""
    return pb.Judgement(
        id=one.id,
        position=one.position,
        item_id=one.item_id,
        annotator=one.annotator,
        verdict=verdict_to_proto(one.verdict),
        shown=one.shown,
        unsafe=one.unsafe,
        note=one.note,
        seconds=one.seconds,
        judged_at=one.judged_at,
        set_aside=one.set_aside,
        role=_ROLE[one.role],
        groups=one.groups,
    )


def judgement_from_proto(message: pb.Judgement) -> Judgement:
    """The other way."""
    return Judgement(
        id=message.id,
        position=message.position,
        item_id=message.item_id,
        annotator=message.annotator,
        verdict=verdict_from_proto(message.verdict, "judgement.verdict"),
        shown=tuple(message.shown),
        unsafe=message.unsafe,
        note=message.note,
        seconds=message.seconds,
        judged_at=message.judged_at,
        set_aside=message.set_aside,
        role=_ROLE_BACK[message.role],
        groups=tuple(message.groups),
    )


def progress_to_proto(progress: Progress) -> pb.FeedbackProgress:
    """lodestar.v1.FeedbackProgress."""
    return pb.FeedbackProgress(**{name: getattr(progress, name) for name in Progress.__slots__})


def progress_from_proto(message: pb.FeedbackProgress) -> Progress:
    """The other way."""
    optional = ("alpha", "alpha_low", "alpha_high")
    values: dict[str, Any] = {
        name: None if name in optional and not message.HasField(name) else getattr(message, name)
        for name in Progress.__slots__
    }
    return Progress(**values)


def _ranking_to_proto(ranking: RankingVerdict) -> pb.RankingVerdict:
    return pb.RankingVerdict(order=[pb.Tied(completions=tied) for tied in ranking.order])


def _ranking_from_proto(message: pb.RankingVerdict) -> RankingVerdict:
    return RankingVerdict(order=tuple(tuple(tied.completions) for tied in message.order))


def _validated(make: Callable[[], Made], where: str) -> Made:
    try:
        return make()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InvalidArgument(".".join(map(str, (where, *first["loc"]))), first["msg"]) from None
