"""What people answer: checked, translated, and turned into rows of data files."""

from __future__ import annotations

import pytest

from lodestar.data.schema import parse_feedback
from lodestar.errors import InvalidArgument
from lodestar.feedback import (
    Aspect,
    AspectVerdict,
    Campaign,
    Demonstrated,
    Exchange,
    Item,
    Judgement,
    PairVerdict,
    Progress,
    RankingVerdict,
    RatingVerdict,
    Verdict,
    WrittenPrompt,
    wire,
)
from lodestar.feedback.rows import rows_of
from lodestar.feedback.verdicts import check_verdict, parse_verdict
from lodestar.records import Ratings

VERDICTS: list[Verdict] = [
    PairVerdict(label=0.0, strength=3),
    PairVerdict(label=0.5, both_bad=True),
    RankingVerdict(order=((2,), (0, 3), (1,))),
    RatingVerdict(overall=(6, 2), marks={"harmful_advice": (False, True)}, ranking=RankingVerdict(order=((0,), (1,)))),
    AspectVerdict(aspect="honest", ratings=(4, 2)),
    Demonstrated(completion="hello\n"),
    WrittenPrompt(style="few_shot", text="translate", examples=(Exchange(query="cat", response="chat"),)),
    WrittenPrompt(style="use_case", text="a poem", use_case="poem"),
]


@pytest.mark.parametrize("verdict", VERDICTS, ids=lambda one: one.form)
def test_verdicts_travel_by_message_and_by_json(verdict: Verdict) -> None:
    assert wire.verdict_from_proto(wire.verdict_to_proto(verdict), "verdict") == verdict
    assert parse_verdict(verdict.model_dump(mode="json"), "verdict") == verdict


@pytest.mark.parametrize("form", ["pair", "rating", "ranking", "aspects", "demonstration", "prompt"])
def test_campaigns_travel(form: str) -> None:
    campaign = Campaign(
        name="r1.label",
        form=form,  # type: ignore[arg-type]
        instructions="# Guide",
        overlap=3,
        strength=False,
        rank_after=True,
        aspects=(Aspect(name="kind", question="?", low=0, high=9, share=2.5),),
        use_cases=("mail",),
        limit=7,
        gold_share=0.25,
    )
    assert wire.campaign_from_proto(wire.campaign_to_proto(campaign)) == campaign


def test_progress_travels_and_says_itself() -> None:
    known = Progress("p", "http://x/c/p", 40, 12, 3, 2, 1, 0.614, 0.4, 0.79, False, 13)
    assert wire.progress_from_proto(wire.progress_to_proto(known)) == known
    assert str(known) == "p: 12 of 40 judgements by 2 people, agreement 0.61 [0.40, 0.79]; judge at http://x/c/p"
    new = Progress("p", "http://x/c/p", 40, 0, 0, 0, 0, None, None, None, True, 0)
    assert wire.progress_from_proto(wire.progress_to_proto(new)) == new
    assert new.finished


@pytest.mark.parametrize(
    ("campaign", "verdict", "field"),
    [
        ({"form": "pair"}, RankingVerdict(order=((0,), (1,))), "x"),
        ({"form": "pair", "strength": False}, PairVerdict(label=1.0, strength=2), "x.strength"),
        ({"form": "ranking"}, RankingVerdict(order=((0,),)), "x.ranking"),
        ({"form": "ranking"}, RankingVerdict(order=((0, 0), (1,))), "x.ranking"),
        ({"form": "rating"}, RatingVerdict(overall=(8, 1)), "x.overall[0]"),
        ({"form": "rating"}, RatingVerdict(overall=(7,)), "x.overall"),
        ({"form": "rating"}, RatingVerdict(overall=(7, 1), marks={"rude": (True, False)}), "x.marks"),
        ({"form": "rating", "rank_after": True}, RatingVerdict(overall=(7, 1)), "x.ranking"),
        ({"form": "aspects"}, AspectVerdict(aspect="funny", ratings=(1, 2)), "x.aspect"),
        ({"form": "aspects"}, AspectVerdict(aspect="honest", ratings=(0, 2)), "x.ratings[0]"),
        ({"form": "demonstration"}, Demonstrated(completion=" "), "x.completion"),
        ({"form": "prompt"}, WrittenPrompt(style="few_shot", text="t"), "x.examples"),
        ({"form": "prompt"}, WrittenPrompt(style="use_case", text="t", use_case="?"), "x.use_case"),
    ],
)
def test_a_verdict_that_does_not_answer_is_refused_by_field(
    campaign: dict[str, object], verdict: Verdict, field: str
) -> None:
    with pytest.raises(InvalidArgument) as raised:
        check_verdict(verdict, Campaign(**{"name": "p", **campaign}), 2, "x")  # type: ignore[arg-type]
    assert raised.value.field == field


@pytest.mark.parametrize(
    "value", [{"form": "pair", "label": 0.3}, {"form": "pair", "label": 0.5, "strength": 1}, {"form": "magic"}, None]
)
def test_a_value_that_is_no_verdict_is_refused(value: object) -> None:
    with pytest.raises(InvalidArgument, match="x"):
        parse_verdict(value, "x")


def judgement(item: str, annotator: str, verdict: Verdict, **more: object) -> Judgement:
    return Judgement(f"{annotator}-{item}-{verdict.form}", 1, item, annotator, verdict, **more)  # type: ignore[arg-type]


def test_aspects_of_one_person_share_a_row_and_what_does_not_count_has_none() -> None:
    campaign = Campaign(name="p", form="aspects")
    items = {"1": Item("1", "q", ("x", "y"))}
    said = [
        judgement("1", "ada", AspectVerdict(aspect="honest", ratings=(4, 2))),
        judgement("1", "bob", AspectVerdict(aspect="helpful", ratings=(1, 5)), unsafe=True, groups=("cooks",)),
        judgement("1", "eve", AspectVerdict(aspect="helpful", ratings=(1, 5)), set_aside="tired"),
        judgement("1", "zoe", AspectVerdict(aspect="helpful", ratings=(1, 5)), role="gold"),
    ]
    records = [parse_feedback(row).record for row in rows_of(campaign, items, said)]
    assert [(one.annotator, one.flags) for one in records] == [("ada", ()), ("bob", ("unsafe", "group cooks"))]
    assert records[0].verdict == Ratings({"honest": (4.0, 2.0)}, {"honest": (1.0, 5.0)})


def test_an_aspect_whose_scale_does_not_rise_is_refused() -> None:
    with pytest.raises(ValueError, match="low 5 must be below high 5"):
        Aspect(name="kind", question="?", low=5, high=5)
    with pytest.raises(ValueError, match="a name twice"):
        Campaign(name="p", form="aspects", aspects=(Aspect(name="a", question="?"), Aspect(name="a", question="?")))
