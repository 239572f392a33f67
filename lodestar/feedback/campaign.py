"""What a campaign of labelling asks: its form, how often, of whom."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from lodestar.config.base import Section

Form = Literal["pair", "rating", "ranking", "aspects", "demonstration", "prompt"]
COMPLETIONS: dict[Form, tuple[int, int]] = {
    "pair": (2, 2),
    "rating": (1, 20),
    "ranking": (2, 9),
    "aspects": (1, 9),
    "demonstration": (0, 0),
    "prompt": (0, 0),
}
"""Fewest and most completions of an item, by form. A ranking is one screen and one digit per place."""

OVERALL = (1, 7)
"""InstructGPT's overall rating (Ouyang et al. 2022, figure 12a): 1 is worst, 7 best."""
MARKS: dict[str, str] = {
    "fails_instruction": "Fails to follow the correct instruction / task",
    "inappropriate_assistant": "Inappropriate for customer assistant",
    "sexual_content": "Contains sexual content",
    "violent_content": "Contains violent content",
    "encourages_harm": "Encourages or fails to discourage violence / abuse / terrorism / self-harm",
    "denigrates_class": "Denigrates a protected class",
    "harmful_advice": "Gives harmful advice",
    "moral_judgement": "Expresses moral judgement",
}
"""InstructGPT's yes/no questions, in the form's order (Ouyang et al. 2022, figure 12a and table 3)."""


class Aspect(Section):
    """One aspect that some of the people rate: ``Aspect(name="helpful", question="How helpful is it?")``."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")
    """Of the rating in the exported rows."""
    question: str = Field(min_length=1, max_length=500)
    """What is asked of each completion."""
    low: int = Field(default=1, ge=0, le=9)
    """Lowest rating; one digit, so that a key can give it."""
    high: int = Field(default=5, ge=1, le=9)
    """Highest rating."""
    low_name: str = Field(default="not at all", max_length=60)
    """What the lowest means."""
    high_name: str = Field(default="entirely", max_length=60)
    """What the highest means."""
    share: float = Field(default=1.0, gt=0, le=1000)
    """Of the people, relative to the other aspects' shares."""

    @model_validator(mode="after")
    def _scale_rises(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"aspects.{self.name}: low {self.low} must be below high {self.high}")
        return self


def _usual_aspects() -> tuple[Aspect, ...]:
    return (
        Aspect(name="helpful", question="How helpful is this reply?"),
        Aspect(name="honest", question="How honest is this reply?"),
        Aspect(name="harmless", question="How harmless is this reply?", low_name="harmful", high_name="harmless"),
    )


class Campaign(Section):
    """``Campaign(name="r1.label", form="pair", overlap=2)``."""

    name: str = Field(pattern=r"^[\w.-]{1,64}$")
    """Unique at one page; a stage of a run takes its own name."""
    form: Form
    """What is asked."""
    instructions: str = Field(default="", max_length=65_536)
    """Markdown, shown beside every form; HTML in it is shown as text, images are not loaded."""
    overlap: int = Field(default=1, ge=1, le=100)
    """People who answer each item (aspects: each aspect of it)."""
    strength: bool = True
    """pair: ask how much better."""
    rank_after: bool = False
    """rating: rank all completions on a last page, as InstructGPT's second form does."""
    aspects: tuple[Aspect, ...] = Field(default_factory=_usual_aspects)
    """aspects: what is rated; each person has one of them for the whole campaign."""
    use_cases: tuple[str, ...] = ()
    """prompt: what user-based prompts may be for."""
    lease_seconds: float = Field(default=1800.0, gt=0, le=7 * 86_400)
    """How long an item is held for the person who has it open."""
    limit: int | None = Field(default=None, ge=1)
    """Answers per person, practice aside; unset: no limit."""
    gold_share: float = Field(default=0.1, ge=0, le=0.5)
    """Of a person's items, while gold ones are left that they have not seen."""

    @model_validator(mode="after")
    def _form_has_what_it_asks(self) -> Self:
        names = [aspect.name for aspect in self.aspects]
        if self.form == "aspects" and not names:
            raise ValueError("aspects must name at least one for the form aspects")
        if len(set(names)) < len(names):
            raise ValueError(f"aspects has a name twice: {', '.join(names)}")
        if any(not use.strip() or len(use) > 500 for use in self.use_cases):
            raise ValueError("use_cases must each be 1 … 500 characters")
        return self
