"""From chat messages to rendered text, through a tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lodestar.data.tokenizer import DIALOGUE_TEMPLATE
from lodestar.records import ChatMessage


class ChatFormat:
    """Renders with a tokenizer's template; one without a template gets HH's ``Human:``/``Assistant:`` dialogues."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._template = None if tokenizer.chat_template else DIALOGUE_TEMPLATE

    @staticmethod
    def of_template(template: str) -> ChatFormat:
        """A format for a tokenizer that is yet to be trained."""
        words = Tokenizer(models.WordLevel({}, unk_token="<unk>"))
        blank = PreTrainedTokenizerFast(tokenizer_object=words, chat_template=template)  # type: ignore[no-untyped-call]
        return ChatFormat(blank)

    def prompt(self, messages: Sequence[ChatMessage]) -> str:
        """The text that a reply continues."""
        return self._render(messages, reply_follows=True)

    def completion(self, messages: Sequence[ChatMessage], reply: str) -> str:
        """The reply as the template writes it after the prompt, without the end of turn (rows.py adds EOS).

        A template that rewrites its prompt once a reply follows (some hide earlier reasoning) leaves the bare reply.
        """
        whole = self._render([*messages, ChatMessage("assistant", reply)], reply_follows=False)
        prompt = self.prompt(messages)
        position = whole.rfind(reply)
        if not whole.startswith(prompt) or position < len(prompt):
            return reply
        return whole[len(prompt) : position + len(reply)]

    def _render(self, messages: Sequence[ChatMessage], *, reply_follows: bool) -> str:
        conversation = [{"role": message.role, "content": message.content} for message in messages]
        return cast(
            str,
            self._tokenizer.apply_chat_template(
                conversation, chat_template=self._template, tokenize=False, add_generation_prompt=reply_follows
            ),
        )
