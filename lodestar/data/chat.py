"""From chat messages to rendered text, through a tokenizer's chat template.

No place in a text is found by searching for a reply in it. The template is asked: rendered with and without a reply,
what follows the common beginning is the reply as the template writes it; rendered with two replies that differ in their
first and last character, what they share at the end is how the template ends a turn.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lodestar.data.marks import Marks
from lodestar.data.tokenizer import DIALOGUE_TEMPLATE
from lodestar.records import ChatMessage

PROBES = ("Aa", "Zz")
"""Replies that share neither their first nor their last character, and that no template rewrites."""


@dataclass(frozen=True, slots=True)
class _Frame:
    """What a template writes around any reply to some messages."""

    prompt: str
    """Up to where generation begins."""
    before: str
    """Up to where the reply's own text begins."""
    ending: str
    """After the reply's text: the end of its turn and white space."""


class ChatFormat:
    """Renders with a tokenizer's template; one without a template gets HH's ``Human:``/``Assistant:`` dialogues.

    Control tokens that stand in a message are marked (lodestar.data.marks) and stay text.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, merge_turns: bool = False, fold_system: bool = False
    ) -> None:
        """
        Args:
            merge_turns: join consecutive messages of one role, an empty line between them.
            fold_system: put a system message in front of the next user's message.
        """
        self._tokenizer = tokenizer
        self._template = None if tokenizer.chat_template else DIALOGUE_TEMPLATE
        self._merge_turns, self._fold_system = merge_turns, fold_system
        self._marks = Marks(tokenizer)
        self._frame = lru_cache(maxsize=8)(self._framed)
        self.cut_back = 0
        """Replies whose prompt was cut back, because the template writes another one once a reply follows."""
        self.merged = 0
        """Conversations with turns that were joined."""
        self.folded = 0
        """Conversations whose system message was folded into a user's."""

    @staticmethod
    def of_template(template: str) -> ChatFormat:
        """A format for a tokenizer that is yet to be trained."""
        words = Tokenizer(models.WordLevel({}, unk_token="<unk>"))
        blank = PreTrainedTokenizerFast(tokenizer_object=words, chat_template=template)  # type: ignore[no-untyped-call]
        return ChatFormat(blank)

    def prompt(self, messages: Sequence[ChatMessage]) -> str:
        """The text that generation continues.

        Raises:
            ValueError: the template refuses the messages; in its own words.
        """
        return self._render(self._arranged(messages), reply_follows=True)

    def reply(self, messages: Sequence[ChatMessage], reply: str) -> tuple[str, str]:
        """The text that a reply continues, and the reply as the template writes it, up to the end of its turn.

        That text is the prompt, or where a reasoning template opens a thought that a finished turn has not, what both
        share (as TRL's ``maybe_apply_chat_template`` cuts it).

        Raises:
            ValueError: the template refuses the messages, or leaves nothing of the reply.
        """
        asked = self._arranged(messages)
        frame = self._frame(asked)
        whole = self._render((*asked, ChatMessage("assistant", reply)), reply_follows=False)
        start = _shared(frame.prompt, frame.before)
        if not whole.startswith(frame.before):  # a template that reads the reply, such as one that parts off a thought
            start = min(start, _shared(frame.prompt, whole))
        end = len(whole) - (len(frame.ending) if whole.endswith(frame.ending) else 0)
        text = whole[start:end]
        if not text.strip():
            raise ValueError("the chat template leaves nothing of the reply")
        self.cut_back += start < len(frame.prompt)
        return frame.prompt[:start], text

    def completion(self, messages: Sequence[ChatMessage], reply: str) -> str:
        """The reply as the template writes it; raises as reply."""
        return self.reply(messages, reply)[1]

    def ending(self) -> str:
        """How the template ends the assistant's turn, white space after it included; raises as reply."""
        return self._frame((ChatMessage("user", PROBES[0]),)).ending

    def _framed(self, messages: tuple[ChatMessage, ...]) -> _Frame:
        first, second = (
            self._render((*messages, ChatMessage("assistant", probe)), reply_follows=False) for probe in PROBES
        )
        before = first[: _shared(first, second)]
        ending = first[len(first) - _shared(first[len(before) :][::-1], second[len(before) :][::-1]) :]
        if before + PROBES[0] + ending != first:
            raise ValueError("the chat template does not write the assistant's reply as it is")
        return _Frame(self._render(messages, reply_follows=True), before, ending)

    def _arranged(self, messages: Sequence[ChatMessage]) -> tuple[ChatMessage, ...]:
        found = tuple(messages)
        if self._fold_system:
            folded = _folded(found)
            self.folded += folded != found
            found = folded
        if self._merge_turns:
            merged = _merged(found)
            self.merged += merged != found
            found = merged
        return found

    def _render(self, messages: Sequence[ChatMessage], *, reply_follows: bool) -> str:
        conversation = [{"role": message.role, "content": self._marks(message.content)} for message in messages]
        try:
            rendered = self._tokenizer.apply_chat_template(
                conversation, chat_template=self._template, tokenize=False, add_generation_prompt=reply_follows
            )
        except Exception as error:  # a template is a program of the model's maker: it raises what it likes
            raise ValueError(f"the chat template refuses it: {error}{self._advice(messages)}") from error
        return cast(str, rendered)

    def _advice(self, messages: Sequence[ChatMessage]) -> str:
        said = ""
        if not self._merge_turns and any(a.role == b.role for a, b in itertools.pairwise(messages)):
            said += "; data.merge_turns joins consecutive turns of one speaker"
        if not self._fold_system and any(message.role == "system" for message in messages):
            said += "; data.fold_system puts a system message into the user's turn"
        return said


def _shared(one: str, other: str) -> int:
    """Characters that both begin with."""
    differing = (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differing, min(len(one), len(other)))


def _folded(messages: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...]:
    found: list[ChatMessage] = []
    waiting: list[str] = []
    for message in messages:
        if message.role == "system":
            waiting.append(message.content)
        elif message.role == "user" and waiting:
            found.append(ChatMessage("user", "\n\n".join([*waiting, message.content])))
            waiting = []
        else:
            found.append(message)
    return (*found, *(ChatMessage("system", text) for text in waiting))


def _merged(messages: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...]:
    found: list[ChatMessage] = []
    for message in messages:
        if found and found[-1].role == message.role:
            found[-1] = ChatMessage(message.role, f"{found[-1].content}\n\n{message.content}")
        else:
            found.append(message)
    return tuple(found)
