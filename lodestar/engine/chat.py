"""Chats to prompts by the model's own template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from lodestar.errors import InvalidArgument, ModelError
from lodestar.records import ChatMessage


def chat_ids(tokenizer: Any, messages: Sequence[ChatMessage], field: str = "messages") -> tuple[int, ...]:
    """Token ids of a chat, up to where the assistant's answer begins.

    Raises:
        InvalidArgument: no messages, or an order or roles that the template refuses.
        ModelError: the tokenizer has no chat template.
    """
    if not messages:
        raise InvalidArgument(field, "is empty; send at least one message")
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError("this model's tokenizer has no chat template; send text or token ids")
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        encoded = tokenizer.apply_chat_template(turns, tokenize=True, add_generation_prompt=True, return_dict=True)
    except (TemplateError, ValueError, KeyError) as error:
        raise InvalidArgument(field, f"the model's chat template refuses it: {error}") from error
    return tuple(encoded["input_ids"])
