"""What a person answers, by form. Indices are the item's own, whatever order was shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from lodestar.config.base import Section
from lodestar.errors import InvalidArgument
from lodestar.feedback.campaign import MARKS, OVERALL, Campaign

MAX_TEXT = 32_768
"""Characters of anything that a person writes."""
PromptStyle = Literal["plain", "few_shot", "use_case"]


class PairVerdict(Section):
    """``PairVerdict(label=1.0, strength=2)``: the first is better."""

    form: Literal["pair"] = "pair"
    label: float
    """Whether the first is better: 1, 0, or 0.5 for a tie."""
    strength: int = Field(default=0, ge=0, le=3)
    """1 slightly better, 2 better, 3 much better; 0 of ties, and where it was not asked."""
    both_bad: bool = False
    """A tie of two that should not be given at all."""

    @model_validator(mode="after")
    def _ties_have_no_strength(self) -> Self:
        if self.label not in (0.0, 0.5, 1.0):
            raise ValueError(f"label: must be 1, 0 or 0.5, is {self.label}")
        if self.label == 0.5 and self.strength:
            raise ValueError("strength: a tie has none")
        if self.both_bad and self.label != 0.5:
            raise ValueError("both_bad: goes with a tie")
        return self


class RankingVerdict(Section):
    """``RankingVerdict(order=((2,), (0, 3), (1,)))``: best first, ties together."""

    form: Literal["ranking"] = "ranking"
    order: tuple[tuple[int, ...], ...]


class RatingVerdict(Section):
    """InstructGPT's form: ``RatingVerdict(overall=(6, 2), marks={"harmful_advice": (False, True)})``."""

    form: Literal["rating"] = "rating"
    overall: tuple[int, ...]
    """1 … 7 by completion."""
    marks: Mapping[str, tuple[bool, ...]] = Field(default_factory=dict)
    """What was answered with yes, by question (campaign.MARKS) and completion; a question that is absent got no."""
    ranking: RankingVerdict | None = None
    """Of all completions, where it was asked."""


class AspectVerdict(Section):
    """``AspectVerdict(aspect="honest", ratings=(4, 2))``."""

    form: Literal["aspects"] = "aspects"
    aspect: str
    ratings: tuple[int, ...]


class Demonstrated(Section):
    """The reply that somebody wrote."""

    form: Literal["demonstration"] = "demonstration"
    completion: str = Field(max_length=MAX_TEXT)


class Exchange(Section):
    """A query and its response, as an example of an instruction."""

    query: str = Field(max_length=MAX_TEXT)
    response: str = Field(max_length=MAX_TEXT)


class WrittenPrompt(Section):
    """A prompt of one of InstructGPT's three kinds (Ouyang et al. 2022, section 3.2)."""

    form: Literal["prompt"] = "prompt"
    style: PromptStyle
    text: str = Field(max_length=MAX_TEXT)
    """The prompt; of few_shot the instruction."""
    examples: tuple[Exchange, ...] = ()
    """few_shot: at least one."""
    use_case: str = ""
    """use_case: which."""

    @property
    def rendered(self) -> str:
        """The prompt as a model would get it: the instruction, then the examples."""
        shots = (f"Query: {one.query}\nResponse: {one.response}" for one in self.examples)
        return "\n\n".join([self.text, *shots])


Verdict = Annotated[
    PairVerdict | RatingVerdict | RankingVerdict | AspectVerdict | Demonstrated | WrittenPrompt,
    Field(discriminator="form"),
]
VERDICT: TypeAdapter[Verdict] = TypeAdapter(Verdict)


def check_verdict(verdict: Verdict, campaign: Campaign, count: int, field: str) -> None:
    """Refuses a verdict that does not answer what the campaign asks of an item with ``count`` completions.

    Raises:
        InvalidArgument: names ``field`` and what is wrong.
    """
    if verdict.form != campaign.form:
        raise InvalidArgument(field, f"is a verdict of the form {verdict.form}, the campaign asks {campaign.form}")
    match verdict:
        case RankingVerdict():
            _check_order(verdict, count, f"{field}.ranking")
        case RatingVerdict():
            _check_rating(verdict, campaign, count, field)
        case AspectVerdict():
            aspect = next((one for one in campaign.aspects if one.name == verdict.aspect), None)
            if aspect is None:
                names = ", ".join(one.name for one in campaign.aspects)
                raise InvalidArgument(f"{field}.aspect", f"{verdict.aspect!r} is none of the campaign's: {names}")
            _check_ratings(verdict.ratings, (aspect.low, aspect.high), count, f"{field}.ratings")
        case PairVerdict():
            if bool(verdict.strength) > campaign.strength:
                raise InvalidArgument(f"{field}.strength", "is not asked in this campaign")
        case Demonstrated():
            _check_text(verdict.completion, f"{field}.completion")
        case WrittenPrompt():
            _check_written(verdict, campaign, field)


def parse_verdict(value: object, field: str) -> Verdict:
    """A verdict from its JSON value.

    Raises:
        InvalidArgument: names ``field`` and what is wrong.
    """
    try:
        return VERDICT.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, (field, *first["loc"])))
        raise InvalidArgument(where, first["msg"]) from None


def _check_order(ranking: RankingVerdict, count: int, field: str) -> None:
    said = [index for tied in ranking.order for index in tied]
    if sorted(said) != list(range(count)) or not all(ranking.order):
        raise InvalidArgument(field, f"must hold each of the {count} completions once, holds {said}")


def _check_rating(verdict: RatingVerdict, campaign: Campaign, count: int, field: str) -> None:
    _check_ratings(verdict.overall, OVERALL, count, f"{field}.overall")
    for name, marks in verdict.marks.items():
        if name not in MARKS:
            raise InvalidArgument(f"{field}.marks", f"{name!r} is none of the form's questions: {', '.join(MARKS)}")
        if len(marks) != count:
            raise InvalidArgument(f"{field}.marks.{name}", f"must be {count} answers, are {len(marks)}")
    if (verdict.ranking is not None) != (campaign.rank_after and count > 1):
        raise InvalidArgument(f"{field}.ranking", "is asked for" if campaign.rank_after else "is not asked for")
    if verdict.ranking is not None:
        _check_order(verdict.ranking, count, f"{field}.ranking")


def _check_ratings(ratings: tuple[int, ...], scale: tuple[int, int], count: int, field: str) -> None:
    if len(ratings) != count:
        raise InvalidArgument(field, f"must be {count} ratings, one per completion, are {len(ratings)}")
    for i, rating in enumerate(ratings):
        if not scale[0] <= rating <= scale[1]:
            raise InvalidArgument(f"{field}[{i}]", f"must be {scale[0]} … {scale[1]}, is {rating}")


def _check_written(verdict: WrittenPrompt, campaign: Campaign, field: str) -> None:
    _check_text(verdict.text, f"{field}.text")
    if bool(verdict.examples) != (verdict.style == "few_shot"):
        raise InvalidArgument(
            f"{field}.examples",
            "a few-shot prompt needs at least one query with its response"
            if verdict.style == "few_shot"
            else "only a few-shot prompt has examples",
        )
    for i, example in enumerate(verdict.examples):
        _check_text(example.query, f"{field}.examples[{i}].query")
        _check_text(example.response, f"{field}.examples[{i}].response")
    if verdict.style == "use_case" and verdict.use_case not in campaign.use_cases:
        raise InvalidArgument(f"{field}.use_case", "must be one of the campaign's use cases")
    if verdict.style != "use_case" and verdict.use_case:
        raise InvalidArgument(f"{field}.use_case", f"a prompt of the kind {verdict.style} has none")


def _check_text(text: str, field: str) -> None:
    if not text.strip():
        raise InvalidArgument(field, "is empty")
