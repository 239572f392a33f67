"""Conversations in rows: roles, content in parts, HH's strings, and the family that a conversation belongs to."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from lodestar.data.hh import parse_dialogue
from lodestar.data.marks import MARK
from lodestar.records import ChatMessage

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
"""Role in a row → role in a template. Developer is OpenAI's later name for system."""
_HH_PROMPT = re.compile(r"\s*\n\nHuman:.*\n\nAssistant:\s*\Z", re.S)


def parse_messages(value: Any, name: str) -> list[ChatMessage]:
    """The messages of a list of ``{"role", "content"}``.

    Raises:
        ValueError: what is none, by its place.
    """
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name} must be a string or a list of messages, got {type(value).__name__}")
    return [_message(message, f"{name}[{i}]") for i, message in enumerate(value)]


def _message(message: Any, name: str) -> ChatMessage:
    if not isinstance(message, Mapping) or message.get("role") not in ROLES:
        raise ValueError(f"{name} must be a message with role {', '.join(ROLES)}")
    if message.get("tool_calls") or message.get("function_call"):
        raise ValueError(f"{name}.tool_calls: calls of tools are not written into prompts here; write them as content")
    return ChatMessage(ROLES[message["role"]], _content(message.get("content"), f"{name}.content"))


def _content(value: Any, name: str) -> str:
    """A string, or the text of content in parts (``[{"type": "text", "text": "…"}]``)."""
    if isinstance(value, list):
        for i, part in enumerate(value):
            if not isinstance(part, Mapping) or part.get("type") != "text":
                kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
                raise ValueError(f"{name}[{i}] is a part of type {kind}: only text can be read")
        value = "".join(_plain(part.get("text"), f"{name}[{i}].text") for i, part in enumerate(value))
    return without_mark(_plain(value, name), name)


def parse_string(value: Any, name: str) -> str:
    """A string that says something.

    Raises:
        ValueError: it is missing, no string, empty, or cannot be written as UTF-8.
    """
    if value is None:
        raise ValueError(f"{name} is missing")
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a string, got {type(value).__name__}")
    if not value.strip():
        raise ValueError(f"{name} is empty")
    return _plain(value, name)


def _plain(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a string, got {type(value).__name__}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{name} holds half of a surrogate pair at character {error.start}") from None
    return value


def without_mark(text: str, name: str) -> str:
    """The text, which must not hold the mark that this project puts into control tokens.

    Raises:
        ValueError: it does.
    """
    if MARK in text:
        raise ValueError(f"{name} holds U+{ord(MARK):04X}, which is no character")
    return text


def is_dialogue(text: str) -> bool:
    """Whether a prompt is an HH dialogue up to where the assistant speaks."""
    return _HH_PROMPT.match(text) is not None


def dialogue_messages(text: str) -> list[ChatMessage]:
    """The messages of such a prompt, without the assistant's turn that is to come."""
    return parse_dialogue(text if text.startswith("\n\n") else "\n\n" + text.lstrip())[:-1]


def family_of(question: str) -> str:
    """The family of prompts that begin with this question: its text without case, compatibility forms and white space
    beyond single spaces."""
    return " ".join(unicodedata.normalize("NFKC", question).casefold().split())
