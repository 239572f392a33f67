"""What a row of preference data may look like, in JSONL files and on the Hugging Face hub.

Feedback, one of:
    {"prompt": P, "chosen": C, "rejected": C}           the first is better; "label": 0.5 makes it a tie
    {"chosen": D, "rejected": D}                        whole dialogues that share everything but the last reply
    {"prompt": P, "completions": [C, C], "label": L}    L is the probability that the first is better: 1, 0.5, 0
    {"prompt": P, "completions": [C, …], "ranking": [2, [0, 3], 1]}      indices, best first; ties in a list
    {"prompt": P, "completions": [C, …], "choices": [{"first": 0, "second": 2, "label": L, "strength": 1}, …]}
    {"prompt": P, "completions": [C, …], "ratings": {"helpful": [4, 5, null]}, "scales": {"helpful": [1, 5]}}
    {"prompt": P, "completion": C, "label": true}       liked or not, without a rival: a rating 0 or 1 of "approval"
Demonstrations, one of:
    {"prompt": P, "completion": C}
    {"messages": [message, …]}                          the last message is the assistant's

P is a string, taken as it stands, or a list of messages, rendered by the tokenizer's chat template. C is a string, or a
list of messages that ends with the assistant's reply. D is a list of messages or an Anthropic HH string
(``"\\n\\nHuman: …\\n\\nAssistant: …"``); "completions" may hold dialogues too. A message is {"role": system | user |
assistant, "content": string}. A pair may have a "strength" (≥ 0: how clear it was), or "score_chosen" and
"score_rejected", whose difference it is. Aspects without a scale of their own: SCALES.
Optional: "id", "annotator", "subset" (strings), "flags" (list of strings), "gold" (true rewards, where known) and,
where P is a string, "family" (rows of one family stay on one side of a split; by default the same first question).

Every function raises ValueError with what is wrong; the readers add ``file:line:``. lodestar.data.verdicts has what
stands beside the completions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from lodestar.data.hh import parse_dialogue
from lodestar.data.verdicts import Row, number, parse_verdict, verdict_row
from lodestar.records import ChatMessage, Demonstration, Feedback, Prompt, Ratings

Record = TypeVar("Record")


class Chat(Protocol):
    """Renders messages: lodestar.data.chat by a tokenizer's template, lodestar.data.hh without one."""

    def prompt(self, messages: list[ChatMessage]) -> str:
        """The text that a reply continues."""

    def completion(self, messages: list[ChatMessage], reply: str) -> str:
        """The reply as it stands after that text."""


@dataclass(frozen=True, slots=True)
class Example(Generic[Record]):
    """A record and its family: rows that began with the same question stay on one side of a split."""

    family: str
    record: Record


def form_of(row: Row) -> str:
    """The kind of row, by which a file of mixed schemas is told: one of the verdicts' names, or demonstration.

    Raises:
        ValueError: no kind has these keys.
    """
    if "completions" in row:
        present = [name for name in ("label", "ranking", "choices", "ratings") if row.get(name) is not None]
        if len(present) > 1:
            raise ValueError(f"has {' and '.join(present)}: a row holds one verdict")
        return present[0] if present else "label"
    if "chosen" in row and "rejected" in row:
        return "chosen and rejected"
    if "completion" in row and isinstance(row.get("label"), bool):
        return "completion and label"
    if ("completion" in row and "prompt" in row) or "messages" in row:
        return "demonstration"
    raise ValueError(f"needs chosen and rejected, or completions and label; it has {_keys(row)}")


def parse_feedback(row: Row, chat: Chat | None = None) -> Example[Feedback]:
    """Feedback in any of the forms above; without a chat format only those of strings."""
    form = form_of(row)
    if form == "demonstration":
        raise ValueError(f"needs chosen and rejected, or completions and label; it has {_keys(row)}")
    if form == "chosen and rejected":
        replies: Any = [row["chosen"], row["rejected"]]
    elif form == "completion and label":
        replies = [row["completion"]]
    else:
        replies = row["completions"]
    if not isinstance(replies, list) or not replies:
        raise ValueError(f"completions must be a list, got {type(replies).__name__}")
    if len(replies) < 2 and form not in ("ratings", "completion and label"):
        raise ValueError("completions has only one: a comparison needs at least two")
    verdict = parse_verdict(form, row, len(replies))
    if "prompt" not in row and all(isinstance(reply, str) for reply in replies):
        replies = [[_as_row(message) for message in parse_dialogue(reply)] for reply in replies]
    sides = [_side(row, reply, chat, f"completions[{i}]") for i, reply in enumerate(replies)]
    family, prompt, _ = sides[0]
    if any((family, prompt) != side[:2] for side in sides):
        raise ValueError("the dialogues differ before the last reply: completions of one prompt are needed")
    completions = tuple(side[2] for side in sides)
    if len(set(completions)) < len(completions) == 2 and not isinstance(verdict, Ratings):
        raise ValueError("the two completions are the same")
    feedback = Feedback(
        prompt=prompt,
        completions=completions,
        verdict=verdict,
        id=str(row.get("id", "")),
        annotator=str(row.get("annotator", "")),
        subset=str(row.get("subset", "")),
        flags=_flags(row),
        gold=_gold(row, len(completions)),
    )
    return Example(family, feedback)


def feedback_row(feedback: Feedback) -> dict[str, Any]:
    """The normal form on disk: what parse_feedback reads back as the same record."""
    row: dict[str, Any] = {"prompt": feedback.prompt, "completions": list(feedback.completions)}
    row |= verdict_row(feedback.verdict)
    row |= {"id": feedback.id, "annotator": feedback.annotator}
    optional = {"subset": feedback.subset, "flags": list(feedback.flags), "gold": feedback.gold and list(feedback.gold)}
    return row | {name: value for name, value in optional.items() if value}


def parse_demonstration(row: Row, chat: Chat | None = None) -> Example[Demonstration]:
    """A demonstration in any of the forms above."""
    if "completion" in row and "prompt" in row:
        family, prompt, completion = _side(row, row["completion"], chat, "completion")
    elif "messages" in row:
        family, prompt, completion = _side({}, row["messages"], chat, "messages")
    else:
        raise ValueError(f"needs prompt and completion, or messages; it has {_keys(row)}")
    return Example(family, Demonstration(prompt, completion, str(row.get("id", ""))))


def parse_prompt(row: Row) -> Prompt:
    """A prompt in normal form: {"id", "text"}."""
    return Prompt(_string(row.get("id"), "id"), _string(row.get("text"), "text"))


def parse_text(row: Row) -> str:
    """A document in normal form: {"text"}."""
    return _string(row.get("text"), "text")


def _side(row: Row, completion: Any, chat: Chat | None, name: str) -> tuple[str, str, str]:
    """Family, rendered prompt and rendered completion."""
    prompt = row.get("prompt")
    if isinstance(completion, str):
        reply = _string(completion, name)
        if isinstance(prompt, list):
            return _render(_messages(prompt, "prompt"), reply, chat)
        text = _string(prompt, "prompt")
        return str(row.get("family", text)), text, reply
    *before, last = _messages(completion, name)
    if last.role != "assistant":
        raise ValueError(f"the last message must be the assistant's, is the {last.role}'s")
    if not before:
        if isinstance(prompt, list):
            before = _messages(prompt, "prompt")
        elif prompt is not None:
            before = [ChatMessage("user", _string(prompt, "prompt"))]
    return _render(before, _string(last.content, "the assistant's reply"), chat)


def _render(messages: list[ChatMessage], reply: str, chat: Chat | None) -> tuple[str, str, str]:
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


def _flags(row: Row) -> tuple[str, ...]:
    flags = row.get("flags") or []
    if not isinstance(flags, list) or not all(isinstance(flag, str) for flag in flags):
        raise ValueError("flags must be a list of strings")
    return tuple(flags)


def _gold(row: Row, count: int) -> tuple[float, ...] | None:
    gold = row.get("gold")
    if gold is None:
        return None
    if not isinstance(gold, list) or len(gold) != count:
        raise ValueError(f"gold must be a list of {count} numbers, one per completion")
    values = tuple(number(value, f"gold[{i}]") for i, value in enumerate(gold))
    if not all(map(math.isfinite, values)):
        raise ValueError("gold must be finite")
    return values


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


def _keys(row: Row) -> str:
    return ", ".join(sorted(row)) or "nothing"
