"""The two decisions of labelling, each behind a port: which replies to ask about, and who answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lodestar.records import Feedback

if TYPE_CHECKING:
    from lodestar.labelling.options import PeopleOptions
    from lodestar.recipe.stage import Bench


@dataclass(frozen=True, slots=True)
class Question:
    """Replies of one prompt that somebody is asked about: ``Question("q-7.0", "what color …", ("blue", "red"))``."""

    id: str
    prompt: str
    replies: tuple[str, ...]
    """Different ones, two or more, in the order in which they are shown."""
    scores: tuple[float | None, ...] = ()
    """The reward's, where the samples were scored."""


class Labeller(Protocol):
    """Answers questions: a panel, a person, a judge, a file."""

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
    address: str = ""
    """Of the run's own feedback service, where people has none."""
    tls: Path | None = None
    """The run's TLS folder, for that service."""
    of: str = "label"
    """Who asks: the run and its stage."""
    say: Callable[[str], object] = lambda _text: None
    """Tells the person at the terminal."""

    @staticmethod
    def by(bench: Bench, people: PeopleOptions | None, file: Path | None = None) -> Asked:
        """By a stage, of its options."""
        return Asked(
            bench.seed_of(bench.step.name),
            file,
            bench.unfinished,
            people=people,
            of=f"{bench.config.name}.{bench.step.name}",
            address=next(iter(bench.servers.get("feedback", ())), ""),
            tls=bench.listening.tls,
            say=bench.progress.say,
        )
