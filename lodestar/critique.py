"""A prompt's reply, criticised and written anew by principles of a constitution (Bai et al. 2022, section 3.1).

A round is two questions in one conversation: what is wrong with the reply by a principle, and then the reply without
it. The revision takes the reply's place, and the next round draws another principle. Answers are kept
(lodestar.llm.answers), so a stage that is killed asks for the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lodestar.asking import CALL_SECONDS, prompt_seed, together
from lodestar.constitution import Principle, drawn, principles
from lodestar.data.marks import unmarked
from lodestar.errors import InvalidArgument
from lodestar.llm.answers import Answers, Row
from lodestar.llm.options import ReachOptions
from lodestar.llm.policy import PolicyModel
from lodestar.llm.port import Ask
from lodestar.llm.reach import language_model
from lodestar.records import ChatMessage, Prompt

if TYPE_CHECKING:
    from lodestar.stages.critique import Critique

IN_FLIGHT = 64


@dataclass(frozen=True, slots=True)
class Round:
    """One critique and revision."""

    principle: str
    reply: str
    """That is criticised."""
    critique: str
    revision: str


@dataclass(frozen=True, slots=True)
class Revised:
    """What became of one prompt."""

    id: str
    prompt: str
    reply: str
    """The policy's own."""
    revision: str
    """The last one."""
    rounds: tuple[Round, ...]
    why: str = ""
    """Why it is no demonstration; empty for one that is."""


class Critic:
    """``await Critic(options, servers, folder, seed, tls).revise(prompts, progress)``, then ``costs``."""

    def __init__(
        self,
        options: Critique,
        servers: Sequence[str],
        cache: Path,
        seed: int,
        tls: Path | None,
        *,
        in_flight: int = IN_FLIGHT,
    ) -> None:
        """
        Args:
            servers: the policy's.
            cache: folder of kept answers.
            in_flight: requests to the policy at once, for replies, and as many for revisions where it is the critic.
        """
        self._own = ReachOptions(form=options.form, in_flight=in_flight, timeout_seconds=CALL_SECONDS)
        self._options = options
        self._principles = principles(options.constitution, options.aspect, "critique")
        self._servers, self._cache, self._seed, self._tls = servers, cache, seed, tls
        self._reached = options.critic or self._own
        self.costs: Mapping[str, float] = {}
        """Of critiques and revisions; see Answers.figures."""

    async def revise(self, prompts: Sequence[Prompt], progress: Callable[[int], object]) -> list[Revised]:
        """Every prompt's replies, in order.

        Raises:
            LodestarError: policy or critic cannot be asked; says what to do.
        """
        policy = PolicyModel(self._servers, timeout=CALL_SECONDS, tls=self._tls)
        async with AsyncExitStack() as open_:
            replies = await open_.enter_async_context(Answers(policy, self._own, self._cache))
            critic = language_model(self._reached, "critique.critic", self._servers, self._tls)
            answers = await open_.enter_async_context(Answers(critic, self._reached, self._cache))

            async def one(prompt: Prompt) -> Revised:
                found = await self._revised(prompt, replies, answers)
                progress(1)
                return found

            revised = await together(one(prompt) for prompt in prompts)
            self.costs = answers.figures()
        return revised

    async def _revised(self, prompt: Prompt, replies: Answers, answers: Answers) -> Revised:
        rounds: list[Round] = []
        first = await replies.of(self._asks(prompt.text, prompt, "reply"))
        now, why = first, ""
        try:
            for number in range(self._options.rounds):
                principle = drawn(self._principles, self._seed, f"{prompt.id}/{number}")
                said = await answers.of(self._asks(self._critique(prompt, now, principle), prompt, f"c{number}"))
                asks = self._revision(prompt, now, principle, said)
                new = await answers.of(self._asks(asks, prompt, f"r{number}"))
                rounds.append(Round(principle.name, now["text"], said["text"], new["text"]))
                now = new
        except InvalidArgument as error:
            why = f"round {len(rounds) + 1} cannot be asked: {error}"
        if not why and not now["ended"]:
            why = f"the last revision was cut off at {self._options.max_tokens} tokens"
        if not why and not now["text"].strip():
            why = "the last revision is blank"
        return Revised(prompt.id, prompt.text, first["text"], now["text"], tuple(rounds), why)

    def _asks(self, what: str | tuple[ChatMessage, ...], prompt: Prompt, purpose: str) -> Ask:
        seed = prompt_seed(self._seed, purpose, prompt.id)
        return Ask(what, self._options.max_tokens, self._options.temperature, seed)

    def _critique(self, prompt: Prompt, reply: Row, principle: Principle) -> str | tuple[ChatMessage, ...]:
        if self._reached.form == "text":
            return f"{prompt.text}{_apart(prompt.text)}{reply['text']}\n\n{principle.critique}\n\n"
        return (*_asked(prompt), ChatMessage("assistant", reply["text"]), ChatMessage("user", principle.critique))

    def _revision(
        self, prompt: Prompt, reply: Row, principle: Principle, critique: Row
    ) -> str | tuple[ChatMessage, ...]:
        asked = self._critique(prompt, reply, principle)
        if isinstance(asked, str):
            return f"{asked}{critique['text']}\n\n{principle.revision}\n\n"
        return (*asked, ChatMessage("assistant", critique["text"]), ChatMessage("user", principle.revision))


def _asked(prompt: Prompt) -> tuple[ChatMessage, ...]:
    """The conversation so far."""
    return prompt.messages or (ChatMessage("user", unmarked(prompt.text)),)


def _apart(prompt: str) -> str:
    return "" if prompt[-1:].isspace() else " "
