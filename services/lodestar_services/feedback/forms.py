"""What a form's fields say: the sent fields of one assignment, checked, as a verdict in the item's own order.

Fields are named by the place in which a completion was shown (``overall``, ``rating.0``, ``place.2``); ``shown`` turns
places into indices. A form of several pages (rating) is read page by page; ``draft`` holds the fields of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lodestar.errors import InvalidArgument
from lodestar.feedback.campaign import MARKS, OVERALL, Aspect, Campaign
from lodestar.feedback.verdicts import (
    MAX_TEXT,
    AspectVerdict,
    Demonstrated,
    Exchange,
    PairVerdict,
    RankingVerdict,
    RatingVerdict,
    Verdict,
    WrittenPrompt,
    check_verdict,
)
from lodestar_services.feedback.assignment import Form
from lodestar_services.feedback.errors import BadForm

Fields = Mapping[str, str]
MAX_NOTE = 4000
MAX_EXAMPLES = 6
PAIR = {
    "a3": (1.0, 3, "A is much better"),
    "a2": (1.0, 2, "A is better"),
    "a1": (1.0, 1, "A is slightly better"),
    "tie": (0.5, 0, "About the same"),
    "b1": (0.0, 1, "B is slightly better"),
    "b2": (0.0, 2, "B is better"),
    "b3": (0.0, 3, "B is much better"),
}
"""Choice → whether the first shown is better, strength, words. The keys 1 … 7 in this order."""
PLAIN_PAIR = {"a": (1.0, 0, "A is better"), "tie": (0.5, 0, "About the same"), "b": (0.0, 0, "B is better")}
LETTERS = "ABCDEFGHIJKLMNOPQRST"


def pages(campaign: Campaign, form: Form) -> int:
    """How many the form has."""
    count = len(form.item.completions)
    if campaign.form != "rating":
        return 1
    return count + (campaign.rank_after and count > 1)


def page_problems(campaign: Campaign, form: Form, page: int, fields: Fields) -> dict[str, str]:
    """What is wrong with one page, by field; the rest of the form is not looked at."""
    problems = _text_problems(fields)
    if campaign.form == "rating" and page < len(form.item.completions):
        _digit(fields, "overall", OVERALL, problems, "the overall quality")
        for name, words in MARKS.items():
            if fields.get(f"mark.{name}") not in ("yes", "no"):
                problems[f"mark.{name}"] = f"Answer yes or no: {words}."
    elif campaign.form in ("rating", "ranking"):
        count = len(form.item.completions)
        for i in range(count):
            _digit(fields, f"place.{i}", (1, count), problems, f"a place for reply {LETTERS[i]}")
    elif campaign.form == "pair":
        if fields.get("choice") not in {*(PAIR if campaign.strength else PLAIN_PAIR), "bad"}:
            problems["choice"] = "Choose one of the answers."
    elif campaign.form == "aspects":
        aspect = aspect_of(campaign, form)
        for i in range(len(form.item.completions)):
            _digit(fields, f"rating.{i}", (aspect.low, aspect.high), problems, f"reply {LETTERS[i]}")
    elif campaign.form == "demonstration":
        _written(fields, "completion", problems, "Write the reply.")
    else:
        _prompt_problems(campaign, form, fields, problems)
    return problems


def verdict_of(campaign: Campaign, form: Form, draft: Mapping[str, Fields]) -> Verdict:
    """The verdict of a form whose pages ("0", "1", …) were all sent.

    Raises:
        BadForm: a page is missing or wrong.
    """
    for page in range(pages(campaign, form)):
        problems = page_problems(campaign, form, page, draft.get(str(page), {}))
        if problems:
            raise BadForm(problems)
    verdict = _verdict(campaign, form, [draft[str(page)] for page in range(pages(campaign, form))])
    try:
        check_verdict(verdict, campaign, len(form.item.completions), "form")
    except InvalidArgument as error:
        raise BadForm({"form": str(error)}) from None
    return verdict


def aspect_of(campaign: Campaign, form: Form) -> Aspect:
    """That this form asks."""
    return next(aspect for aspect in campaign.aspects if aspect.name == form.aspect)


def in_item_order(form: Form, by_place: list[Any]) -> tuple[Any, ...]:
    """Values by the place shown, moved to the item's order of completions."""
    moved = [None] * len(by_place)
    for place, index in enumerate(form.shown):
        moved[index] = by_place[place]
    return tuple(moved)


def _verdict(campaign: Campaign, form: Form, sent: list[Fields]) -> Verdict:
    fields = sent[0]
    match campaign.form:
        case "pair":
            return _pair(campaign, form, fields["choice"])
        case "ranking":
            return RankingVerdict(order=_order(form, fields))
        case "aspects":
            ratings = [int(fields[f"rating.{place}"]) for place in range(len(form.shown))]
            return AspectVerdict(aspect=form.aspect, ratings=in_item_order(form, ratings))
        case "demonstration":
            return Demonstrated(completion=fields["completion"].strip("\n"))
        case "prompt":
            return _prompt(form, fields)
    rated = sent[: len(form.shown)]
    marks = {
        name: in_item_order(form, [page[f"mark.{name}"] == "yes" for page in rated])
        for name in MARKS
        if any(page[f"mark.{name}"] == "yes" for page in rated)
    }
    return RatingVerdict(
        overall=in_item_order(form, [int(page["overall"]) for page in rated]),
        marks=marks,
        ranking=RankingVerdict(order=_order(form, sent[-1])) if len(sent) > len(rated) else None,
    )


def _pair(campaign: Campaign, form: Form, choice: str) -> PairVerdict:
    if choice == "bad":
        return PairVerdict(label=0.5, both_bad=True)
    label, strength, _ = (PAIR if campaign.strength else PLAIN_PAIR)[choice]
    return PairVerdict.model_validate({"label": 1 - label if form.shown[0] == 1 else label, "strength": strength})


def _order(form: Form, fields: Fields) -> tuple[tuple[int, ...], ...]:
    """Equal places are ties; places may be left out (1, 3, 3 ranks as 1, 2, 2)."""
    by_place: dict[int, list[int]] = {}
    for shown, index in enumerate(form.shown):
        by_place.setdefault(int(fields[f"place.{shown}"]), []).append(index)
    return tuple(tuple(sorted(by_place[place])) for place in sorted(by_place))


def _prompt(form: Form, fields: Fields) -> WrittenPrompt:
    style = form.item.style
    examples = tuple(
        Exchange(query=fields[f"query.{i}"], response=fields[f"response.{i}"])
        for i in range(MAX_EXAMPLES)
        if style == "few_shot" and fields.get(f"query.{i}", "").strip()
    )
    use_case = fields.get("use_case", "") if style == "use_case" else ""
    return WrittenPrompt(style=style, text=fields["text"].strip("\n"), examples=examples, use_case=use_case)


def _prompt_problems(campaign: Campaign, form: Form, fields: Fields, problems: dict[str, str]) -> None:
    _written(fields, "text", problems, "Write the prompt.")
    if form.item.style == "use_case" and fields.get("use_case") not in campaign.use_cases:
        problems["use_case"] = "Choose the use case."
    if form.item.style != "few_shot":
        return
    halves = [tuple(bool(fields.get(f"{half}.{i}", "").strip()) for half in ("query", "response")) for i in range(6)]
    for i, (query, response) in enumerate(halves):
        if query != response:
            missing = "response" if query else "query"
            problems[f"{missing}.{i}"] = f"Example {i + 1} has no {missing}."
    if not any(query for query, _ in halves):
        problems.setdefault("query.0", "Write at least one example: a query and its response.")


def _digit(fields: Fields, name: str, scale: tuple[int, int], problems: dict[str, str], what: str) -> None:
    value = fields.get(name, "")
    if not (value.isascii() and value.isdigit() and len(value) < 3 and scale[0] <= int(value) <= scale[1]):
        problems[name] = f"Give {what} a number, {scale[0]} to {scale[1]}."


def _written(fields: Fields, name: str, problems: dict[str, str], what: str) -> None:
    if not fields.get(name, "").strip():
        problems[name] = what


def _text_problems(fields: Fields) -> dict[str, str]:
    problems = {}
    for name, value in fields.items():
        limit = MAX_NOTE if name == "note" else MAX_TEXT
        if len(value) > limit:
            problems[name] = f"This has {len(value)} characters; at most {limit} can be kept."
        elif "\0" in value:
            problems[name] = "This holds a NUL character, which cannot be kept; remove it."
    return problems
