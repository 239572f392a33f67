"""Anthropic HH dialogues (Bai et al. 2022, arXiv:2204.05862) as chat messages.

The files hold {"chosen", "rejected"} rows of whole dialogues that share everything but the last reply; the JSONL reader
reads them, schema.py tells them by their missing prompt, and the tokenizer's chat template writes them again, so that
a chat model sees them in its own format and a tokenizer of ours in theirs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from lodestar.records import ChatMessage

_TURN = re.compile(r"\n\n(Human|Assistant): ?")


def parse_dialogue(text: str) -> list[ChatMessage]:
    """The messages of an HH dialogue, ``"\\n\\nHuman: …\\n\\nAssistant: …"``.

    Raises:
        ValueError: it does not begin with a turn.
    """
    pieces = _TURN.split(text)
    if pieces[0].strip() or len(pieces) < 3:
        raise ValueError("is no dialogue: it must begin with '\\n\\nHuman:'")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [ChatMessage(roles[role], content.strip()) for role, content in zip(pieces[1::2], pieces[2::2], strict=True)]


class Dialogues:
    """Renders messages as HH's dialogues without a tokenizer: what DIALOGUE_TEMPLATE says (lodestar.data.tokenizer)."""

    def prompt(self, messages: Sequence[ChatMessage]) -> str:
        """The text that a reply continues."""
        names = {"assistant": "Assistant"}
        turns = (f"\n\n{names.get(message.role, 'Human')}: {message.content}" for message in messages)
        return "".join(turns) + "\n\nAssistant:"

    def reply(self, messages: Sequence[ChatMessage], reply: str) -> tuple[str, str]:
        """That text, and the reply as it stands after it."""
        return self.prompt(messages), f" {reply}"
