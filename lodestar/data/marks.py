"""Control tokens that a person or a model wrote are text: a mark inside them keeps a tokenizer from reading them.

A chat template writes control tokens (``<|im_end|>``) around messages; the same letters inside a message must not end
its turn. Rendering puts U+FDD0, which Unicode reserves for a program's own use and no text holds, behind the first
character of each such string in a message, and lodestar.data.rows cuts there before it looks for control tokens.
"""

from __future__ import annotations

import re
from typing import Any

MARK = "\ufdd0"


class Marks:
    """Marks the control tokens of one tokenizer: ``Marks(tokenizer)("a <|im_end|> b")``."""

    def __init__(self, tokenizer: Any) -> None:
        names = control_tokens(tokenizer)
        self._found = re.compile("|".join(map(re.escape, names))) if names else None

    def __call__(self, text: str) -> str:
        """The text with a mark in every string that the tokenizer would read as a control token."""
        if self._found is None:
            return text
        return self._found.sub(lambda match: f"{match[0][:1]}{MARK}{match[0][1:]}", text)


def unmarked(text: str) -> str:
    """The text as it was written."""
    return text.replace(MARK, "") if MARK in text else text


def control_tokens(tokenizer: Any) -> tuple[str, ...]:
    """The strings that the tokenizer reads as special tokens, longest first; one character alone stays what it is."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    names = {str(token) for token in added.values() if token.special} | set(map(str, tokenizer.all_special_tokens))
    return tuple(sorted((name for name in names if len(name) > 1), key=lambda name: (-len(name), name)))
