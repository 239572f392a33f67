"""Chats to prompts by the model's own template: the tokens that training gave the same messages."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from lodestar.data.chat import ChatFormat
from lodestar.data.rows import encode_prompts
from lodestar.errors import InvalidArgument, ModelError
from lodestar.records import ChatMessage


def chat_ids(tokenizer: Any, messages: Sequence[ChatMessage], field: str = "messages") -> tuple[int, ...]:
    """Token ids of a chat, up to where the assistant's answer begins; BOS as training has it. Raises as chat_text."""
    return encode_prompts(tokenizer, [chat_text(tokenizer, messages, field)])[0]


def chat_text(tokenizer: Any, messages: Sequence[ChatMessage], field: str = "messages") -> str:
    """A chat as its prompt's text, in which control tokens of a message are marked (lodestar.data.marks).

    Raises:
        InvalidArgument: no messages, or an order or roles that the template refuses.
        ModelError: the tokenizer has no chat template.
    """
    if not messages:
        raise InvalidArgument(field, "is empty; send at least one message")
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError("this model's tokenizer has no chat template; send text or token ids")
    try:
        return _format(tokenizer, tokenizer.chat_template).prompt(messages)
    except ValueError as error:
        raise InvalidArgument(field, str(error)) from error


@lru_cache(maxsize=8)
def _format(tokenizer: Any, template: Any) -> ChatFormat:
    return ChatFormat(tokenizer)
