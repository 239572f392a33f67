"""The two decisions of labelling, each behind a port: which replies to ask about, and who answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from lodestar.records import ChatMessage, Feedback

if TYPE_CHECKING:
    from lodestar.labelling.options import JudgeOptions, PeopleOptions
    from lodestar.recipe.stage import Bench

NONE: Mapping[str, Any] = MappingProxyType({})
"""Figures of a labeller that has none."""


@dataclass(frozen=True, slots=True)
class Question:
    """Replies of one prompt that somebody is asked about: ``Question("q-7.0", "what color …", ("blue", "red"))``."""

    id: str
    prompt: str
    replies: tuple[str, ...]
    """Different ones, two or more, in the order in which they are shown."""
    scores: tuple[float | None, ...] = ()
    """The reward's, where the samples were scored."""
    messages: tuple[ChatMessage, ...] = ()
    """See Prompt.messages."""


class Labeller(Protocol):
    """Answers questions: a panel, a person, a judge, a file."""

    @property
    def figures(self) -> Mapping[str, Any]:
        """What is worth knowing of how it went, for label.json; ``unread`` rows go to a file of their own."""

    def label(self, questions: Sequence[Question], progress: Callable[[int], object]) -> list[Feedback]:
        """A feedback per question, in any order; a question may stay unanswered, which the caller counts.

        Args:
            progress: hears how many more answers there are.

        Raises:
            LodestarError: nobody can answer; says what to do.
        """


class Chooser(Protocol):
    """Chooses what to ask."""

    def choose(self, samples: Sequence[dict[str, Any]], budget: int, seed: int) -> list[Question]:
        """At most ``budget`` questions about the rows of a samples artifact."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a labeller is made from."""

    seed: int
    file: Path | None
    """Where answers are found, for one that reads them."""
    unfinished: Path
    """Folder that survives a kill: answers that cost something are kept there."""
    people: PeopleOptions | None = None
    """Where and how people are asked, for one that asks them."""
    judge: JudgeOptions | None = None
    """Who judges and how it is asked, for a judge."""
    servers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Of the run: the feedback service, the judge's own."""
    tls: Path | None = None
    """The run's TLS folder, for these."""
    cache: Path = Path("cache")
    """Folder of what a judge has answered, which outlives the stage."""
    of: str = "label"
    """Who asks: the run and its stage."""
    say: Callable[[str], object] = lambda _text: None
    """Tells the person at the terminal."""

    @staticmethod
    def by(
        bench: Bench, *, people: PeopleOptions | None, file: str | None = None, judge: JudgeOptions | None = None
    ) -> Asked:
        """By a stage, of its options."""
        return Asked(
            bench.seed_of(bench.step.name),
            None if file is None else Path(file),
            bench.unfinished,
            people=people,
            judge=judge,
            servers=bench.servers,
            tls=bench.listening.tls,
            cache=bench.root / "cache" / "judge",
            of=f"{bench.config.name}.{bench.step.name}",
            say=bench.progress.say,
        )
