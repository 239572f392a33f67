"""What a row of preference data may look like, in JSONL files and on the Hugging Face hub.

Comparisons, one of:
    {"prompt": P, "chosen": C, "rejected": C}           the first is better; "label": 0.5 makes it a tie
    {"chosen": D, "rejected": D}                        whole dialogues that share everything but the last reply
    {"prompt": P, "completions": [C, C], "label": L}    L is the probability that the first is better: 1, 0.5, 0
Demonstrations, one of:
    {"prompt": P, "completion": C}
    {"messages": [message, …]}                          the last message is the assistant's

P is a string, taken as it stands, or a list of messages, rendered by the tokenizer's chat template. C is a string, or a
list of messages that ends with the assistant's reply. D is a list of messages or an Anthropic HH string
(``"\\n\\nHuman: …\\n\\nAssistant: …"``). A message is {"role": system | user | assistant, "content": string}.
Optional: "id", "annotator" (strings) and "gap" (the true difference of rewards, where known).

Every function raises ValueError with what is wrong; the readers add ``file:line:``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from lodestar.data.hh import parse_dialogue
from lodestar.records import ChatMessage, Comparison, Demonstration, Prompt

if TYPE_CHECKING:  # rows are read where transformers is not loaded
    from lodestar.data.chat import ChatFormat

if TYPE_CHECKING:
    from lodestar.data.chat import ChatFormat

Row = Mapping[str, Any]
Record = TypeVar("Record")


@dataclass(frozen=True, slots=True)
class Example(Generic[Record]):
    """A record and its family: rows that began with the same question stay on one side of a split."""

    family: str
    record: Record


def parse_comparison(row: Row, chat: ChatFormat | None = None) -> Example[Comparison]:
    """A comparison in any of the forms above; without a chat format only those of strings."""
    if "completions" in row:
        pair = row["completions"]
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError("completions must be a list of two")
        label = _number(row, "label")
    elif "chosen" in row and "rejected" in row:
        pair = [row["chosen"], row["rejected"]]
        label = _number(row, "label") if "label" in row else 1.0
    else:
        raise ValueError(f"needs chosen and rejected, or completions and label; it has {_keys(row)}")
    if not 0 <= label <= 1:
        raise ValueError(f"label must be between 0 and 1, got {label}")
    if "prompt" not in row and all(isinstance(side, str) for side in pair):
        pair = [[_as_row(message) for message in parse_dialogue(side)] for side in pair]
    (family, prompt, first), (other_family, other_prompt, second) = (_side(row, side, chat) for side in pair)
    if (family, prompt) != (other_family, other_prompt):
        raise ValueError("the two dialogues differ before the last reply")
    if first == second:
        raise ValueError("the two completions are the same")
    gap = _number(row, "gap") if row.get("gap") is not None else None
    comparison = Comparison(prompt, (first, second), label, str(row.get("id", "")), str(row.get("annotator", "")), gap)
    return Example(family, comparison)


def parse_demonstration(row: Row, chat: ChatFormat | None = None) -> Example[Demonstration]:
    """A demonstration in any of the forms above."""
    if "completion" in row and "prompt" in row:
        family, prompt, completion = _side(row, row["completion"], chat)
    elif "messages" in row:
        family, prompt, completion = _side({}, row["messages"], chat)
    else:
        raise ValueError(f"needs prompt and completion, or messages; it has {_keys(row)}")
    return Example(family, Demonstration(prompt, completion, str(row.get("id", ""))))


def parse_prompt(row: Row) -> Prompt:
    """A prompt in normal form: {"id", "text"}."""
    return Prompt(_string(row.get("id"), "id"), _string(row.get("text"), "text"))


def parse_text(row: Row) -> str:
    """A document in normal form: {"text"}."""
    return _string(row.get("text"), "text")


def _side(row: Row, completion: Any, chat: ChatFormat | None) -> tuple[str, str, str]:
    """Family, rendered prompt and rendered completion."""
    prompt = row.get("prompt")
    if isinstance(completion, str):
        reply = _string(completion, "completion")
        if isinstance(prompt, list):
            return _render(_messages(prompt, "prompt"), reply, chat)
        text = _string(prompt, "prompt")
        return text, text, reply
    *before, last = _messages(completion, "completion")
    if last.role != "assistant":
        raise ValueError(f"the last message must be the assistant's, is the {last.role}'s")
    if not before:
        if isinstance(prompt, list):
            before = _messages(prompt, "prompt")
        elif prompt is not None:
            before = [ChatMessage("user", _string(prompt, "prompt"))]
    return _render(before, _string(last.content, "the assistant's reply"), chat)


def _render(messages: list[ChatMessage], reply: str, chat: ChatFormat | None) -> tuple[str, str, str]:
    if chat is None:
        raise ValueError("prompts and completions must be strings here")
    questions = [message.content for message in messages if message.role == "user"]
    if not questions:
        raise ValueError("no user's message comes before the reply")
    return questions[0], chat.prompt(messages), chat.completion(messages, reply)


def _messages(value: Any, name: str) -> list[ChatMessage]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name} must be a string or a list of messages, got {type(value).__name__}")
    messages = []
    for i, message in enumerate(value):
        if not isinstance(message, Mapping) or message.get("role") not in ("system", "user", "assistant"):
            raise ValueError(f"{name}[{i}] must be a message with role system, user or assistant")
        if not isinstance(message.get("content"), str):
            raise ValueError(f"{name}[{i}].content must be a string")
        messages.append(ChatMessage(message["role"], message["content"]))
    return messages


def _as_row(message: ChatMessage) -> Row:
    return {"role": message.role, "content": message.content}


def _string(value: Any, name: str) -> str:
    if value is None:
        raise ValueError(f"{name} is missing")
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a string, got {type(value).__name__}")
    if not value.strip():
        raise ValueError(f"{name} is empty")
    return value


def _number(row: Row, name: str) -> float:
    value = row.get(name)
    if value is None:
        raise ValueError(f"{name} is missing")
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise ValueError(f"{name} must be a number, got {value!r}")
    return float(value)


def _keys(row: Row) -> str:
    return ", ".join(sorted(row)) or "nothing"
