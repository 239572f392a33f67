"""What goes to people and comes back from them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from lodestar.errors import InvalidArgument
from lodestar.feedback.campaign import COMPLETIONS, Campaign
from lodestar.feedback.verdicts import PromptStyle, Verdict, check_verdict

ItemRole = Literal["ordinary", "gold", "practice"]
MAX_CHARACTERS = 2**18
"""Of a prompt or completion: what a person can be asked to read."""
MAX_ID = 200


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to judge: ``Item("17", "what color is the sky ?", ("blue", "green"), models=("sft", "ppo-40"))``."""

    id: str
    """The caller's, unique in the campaign."""
    prompt: str
    """Prompts: a brief for the writer, may be empty."""
    completions: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    """Who wrote each completion; never shown to annotators."""
    priority: float = 0.0
    """Larger is asked sooner (lodestar.preference.active gives such numbers)."""
    role: ItemRole = "ordinary"
    expected: Verdict | None = None
    """Of gold and practice items."""
    explanation: str = ""
    """Practice: Markdown that is shown after the answer."""
    style: PromptStyle = "plain"
    """Of the form that asks for prompts."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """One person's answer about one item."""

    id: str
    """Of the form that was sent: the same answer has the same id, however often it arrives."""
    position: int
    """Grows with every change in the campaign."""
    item_id: str
    annotator: str
    verdict: Verdict
    shown: tuple[int, ...] = ()
    """The item's indices in the order in which this person saw them."""
    unsafe: bool = False
    """"I know that one of these replies is unsafe"."""
    note: str = ""
    seconds: float = 0.0
    """From showing to answering; negative where the clock went back in between."""
    judged_at: float = 0.0
    """Unix time."""
    set_aside: str = ""
    """Why it does not count; empty where it does."""
    role: ItemRole = "ordinary"
    groups: tuple[str, ...] = field(default=())
    """That the annotator declares."""


@dataclass(frozen=True, slots=True)
class Added:
    """What came of add_items."""

    added: int
    known: int
    """Were there already with the same content."""
    link: str
    """Of the page."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a campaign is: what a waiting stage says."""

    campaign: str
    link: str
    wanted: int
    """Judgements of ordinary items, overlap and aspects counted."""
    done: int
    open: int
    """Forms that people have before them."""
    people: int
    """Who have answered."""
    set_aside: int
    alpha: float | None
    """Krippendorff's, of what was judged by several."""
    alpha_low: float | None
    """95% interval, bootstrap over what was judged."""
    alpha_high: float | None
    closed: bool
    position: int
    """Of the last change."""

    @property
    def finished(self) -> bool:
        """Nothing more will come."""
        return self.closed or self.done >= self.wanted

    def __str__(self) -> str:
        """``r1.label: 12 of 40 judgements by 2 people, agreement 0.61 [0.40, 0.79]; judge at http://…``."""
        agreed = "not known yet"
        if self.alpha is not None:
            agreed = f"{self.alpha:.2f} [{self.alpha_low:.2f}, {self.alpha_high:.2f}]"
        who = "1 person" if self.people == 1 else f"{self.people} people"
        state = "closed" if self.closed else f"judge at {self.link}"
        return f"{self.campaign}: {self.done} of {self.wanted} judgements by {who}, agreement {agreed}; {state}"


def check_item(item: Item, campaign: Campaign, where: str) -> None:
    """Refuses what cannot be shown or stored.

    Raises:
        InvalidArgument: names the field (``items[3].completions[1]``) and what to do.
    """
    if not item.id.strip() or len(item.id) > MAX_ID:
        raise InvalidArgument(f"{where}.id", f"must be 1 … {MAX_ID} characters")
    fewest, most = COMPLETIONS[campaign.form]
    if not fewest <= len(item.completions) <= most:
        wanted = str(most) if fewest == most else f"{fewest} … {most}"
        raise InvalidArgument(
            f"{where}.completions", f"the form {campaign.form} takes {wanted}, there are {len(item.completions)}"
        )
    if item.models and len(item.models) != len(item.completions):
        raise InvalidArgument(f"{where}.models", "must name a model for each completion, or none at all")
    if not math.isfinite(item.priority):
        raise InvalidArgument(f"{where}.priority", f"must be finite, is {item.priority}")
    if campaign.form != "prompt" and not item.prompt.strip():
        raise InvalidArgument(f"{where}.prompt", "is empty")
    texts = [("id", item.id), ("prompt", item.prompt), ("explanation", item.explanation)]
    texts += [(f"completions[{i}]", text) for i, text in enumerate(item.completions)]
    texts += [(f"models[{i}]", text) for i, text in enumerate(item.models)]
    for name, text in texts:
        if "\0" in text:
            raise InvalidArgument(f"{where}.{name}", "holds a NUL character, which a database cannot store; remove it")
        if len(text) > MAX_CHARACTERS:
            raise InvalidArgument(f"{where}.{name}", f"has {len(text)} characters, at most {MAX_CHARACTERS} are shown")
    if len(set(item.completions)) < len(item.completions):
        raise InvalidArgument(f"{where}.completions", "two are the same: nobody can tell them apart")
    if item.role == "ordinary" and item.expected is not None:
        raise InvalidArgument(f"{where}.expected", "is for gold and practice items")
    if item.role == "gold" and item.expected is None:
        raise InvalidArgument(f"{where}.expected", "a gold item needs its answer")
    if item.expected is not None:
        check_verdict(item.expected, campaign, len(item.completions), f"{where}.expected")
    if item.style == "use_case" and campaign.form == "prompt" and not campaign.use_cases:
        raise InvalidArgument(f"{where}.style", "use_case needs the campaign's use_cases")
