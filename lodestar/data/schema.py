"""What a row of preference data may look like, in files of every kind and on the Hugging Face hub.

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
Prompts:
    {"prompt": P}  or  {"messages": [message, …]}       the last message is the user's; other columns ride along

P is a string, taken as it stands, or a list of messages, rendered by the tokenizer's chat template; an Anthropic HH
prompt (``"\\n\\nHuman: …\\n\\nAssistant:"``) is read as messages. C is a string, or a list of messages that ends with
the assistant's reply. D is a list of messages or an HH string; "completions" may hold dialogues too, and may repeat the
prompt. A message is {"role": system | developer | user | assistant | tool, "content": a string, or parts of type text}.
A pair may have a "strength" (≥ 0: how clear it was), or "score_chosen" and "score_rejected", whose difference it is;
equal scores are a tie, and a chosen one below the rejected is refused. Aspects without a scale of their own: SCALES;
"compared_by" names those by which ratings are held against each other (all of them by default).
Optional: "id", "annotator", "subset" (strings), "flags" (list of strings), "gold" (true rewards, where known) and,
where P is a string, "family" (rows of one family stay on one side of a split; by default the same first question, but
for case and white space). Published formats are read too: lodestar.data.formats.

Every function raises ValueError with what is wrong; the readers add ``file:line:``. lodestar.data.verdicts has what
stands beside the completions, lodestar.data.messages what a conversation is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar

from lodestar.data.hh import parse_dialogue
from lodestar.data.messages import dialogue_messages, family_of, is_dialogue, parse_messages, parse_string, without_mark
from lodestar.data.verdicts import Row, number, parse_verdict, verdict_row
from lodestar.records import ChatMessage, Demonstration, Feedback, Prompt, Ratings

Record = TypeVar("Record", covariant=True)
Strings = Literal["text", "messages"]


class Chat(Protocol):
    """Renders messages: lodestar.data.chat by a tokenizer's template, lodestar.data.hh without one."""

    def prompt(self, messages: Sequence[ChatMessage]) -> str:
        """The text that a reply continues."""

    def reply(self, messages: Sequence[ChatMessage], reply: str) -> tuple[str, str]:
        """The text that the reply continues, and the reply as it stands after it."""


@dataclass(frozen=True, slots=True)
class Example(Generic[Record]):
    """A record and its family: rows that began with the same question stay on one side of a split."""

    family: str
    record: Record
    messages: tuple[ChatMessage, ...] = ()
    """What the record's prompt was rendered from; empty where it was a string."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Further columns of the row, for functions as rewards."""


@dataclass(frozen=True, slots=True)
class _Side:
    """One completion and what is before it, rendered."""

    family: str
    prompt: str
    completion: str
    messages: tuple[ChatMessage, ...] = ()


VERDICTS = ("label", "ranking", "choices", "ratings")


def form_of(row: Row) -> str:
    """The kind of row, by which a file of mixed schemas is told: a verdict's name, demonstration, or prompt.

    Raises:
        ValueError: no kind has these keys.
    """
    if "completions" in row:
        present = [name for name in VERDICTS if row.get(name) is not None]
        if len(present) > 1:
            raise ValueError(f"has {' and '.join(present)}: a row holds one verdict")
        return present[0] if present else "label"
    if "chosen" in row and "rejected" in row:
        return "chosen and rejected"
    if "completion" in row and row.get("label") is not None:
        return "completion and label"
    if "completion" in row and "prompt" in row:
        return "demonstration"
    if "messages" in row:
        last = row["messages"][-1] if isinstance(row["messages"], list) and row["messages"] else None
        return "prompt" if isinstance(last, Mapping) and last.get("role") in ("user", "tool") else "demonstration"
    if "prompt" in row and not {"chosen", "rejected", *VERDICTS} & row.keys():
        return "prompt"
    raise ValueError(f"needs chosen and rejected, or completions and label; it has {_keys(row)}")


def parse_feedback(
    row: Row, chat: Chat | None = None, defaults: Row | None = None, strings: Strings = "text"
) -> Example[Feedback]:
    """Feedback in any of the forms above; without a chat format only those of strings.

    ``defaults`` has id and subset for rows without; ``strings`` says what a prompt of one string is.
    """
    form = form_of(row)
    if form in ("demonstration", "prompt"):
        raise ValueError(f"needs chosen and rejected, or completions and label; it has {_keys(row)}")
    replies = _replies(row, form)
    verdict = parse_verdict(form, row, len(replies))
    sides = [_side(row, reply, chat, f"completions[{i}]", strings) for i, reply in enumerate(replies)]
    first = sides[0]
    if any((first.family, first.prompt) != (side.family, side.prompt) for side in sides):
        raise ValueError("the dialogues differ before the last reply: completions of one prompt are needed")
    completions = tuple(side.completion for side in sides)
    if len(set(completions)) < len(completions) == 2 and not isinstance(verdict, Ratings):
        raise ValueError("the two completions are the same")
    given = defaults or {}
    feedback = Feedback(
        prompt=first.prompt,
        completions=completions,
        verdict=verdict,
        id=_name(row, "id", given),
        annotator=_name(row, "annotator", given),
        subset=_name(row, "subset", given),
        flags=_flags(row),
        gold=_gold(row, len(completions)),
    )
    return Example(first.family, feedback, first.messages)


def _replies(row: Row, form: str) -> list[Any]:
    replies: Any = {
        "chosen and rejected": lambda: [row["chosen"], row["rejected"]],
        "completion and label": lambda: [row["completion"]],
    }.get(form, lambda: row["completions"])()
    if not isinstance(replies, list) or not replies:
        raise ValueError(f"completions must be a list, got {type(replies).__name__}")
    if len(replies) < 2 and form not in ("ratings", "completion and label"):
        raise ValueError("completions has only one: a comparison needs at least two")
    if all(isinstance(reply, str) for reply in replies) and _are_dialogues(row.get("prompt"), replies):
        return [[_as_row(message) for message in parse_dialogue(reply)] for reply in replies]
    return replies


def _are_dialogues(prompt: Any, replies: list[str]) -> bool:
    """Whether completions are whole HH dialogues: without a prompt, or with one that each of them repeats."""
    if prompt is None:
        return True
    return isinstance(prompt, str) and is_dialogue(prompt) and all(reply.startswith(prompt) for reply in replies)


def feedback_row(feedback: Feedback) -> dict[str, Any]:
    """The normal form on disk: what parse_feedback reads back as the same record."""
    row: dict[str, Any] = {"prompt": feedback.prompt, "completions": list(feedback.completions)}
    row |= verdict_row(feedback.verdict)
    row |= {"id": feedback.id, "annotator": feedback.annotator}
    optional = {"subset": feedback.subset, "flags": list(feedback.flags), "gold": feedback.gold and list(feedback.gold)}
    return row | {name: value for name, value in optional.items() if value}


def parse_demonstration(
    row: Row, chat: Chat | None = None, defaults: Row | None = None, strings: Strings = "text"
) -> Example[Demonstration]:
    """A demonstration in any of the forms above."""
    if "completion" in row and "prompt" in row:
        side = _side(row, row["completion"], chat, "completion", strings)
    elif "messages" in row:
        side = _side({}, row["messages"], chat, "messages", strings)
    else:
        raise ValueError(f"needs prompt and completion, or messages; it has {_keys(row)}")
    name = _name(row, "id", defaults or {})
    return Example(side.family, Demonstration(side.prompt, side.completion, name), side.messages)


def every_turn(row: Row) -> list[Row]:
    """A demonstration's dialogue as one demonstration for each answer in it, the last one last."""
    if "messages" not in row or "completion" in row:
        return [row]
    messages = row["messages"]
    answers = [i for i, one in enumerate(messages) if isinstance(one, Mapping) and one.get("role") == "assistant"]
    return [{"id": row.get("id"), "messages": messages[: i + 1]} for i in answers if i] or [row]


def parse_prompt_row(
    row: Row, chat: Chat | None = None, defaults: Row | None = None, strings: Strings = "text"
) -> Example[str]:
    """A prompt without any reply."""
    prompt = row.get("prompt") if row.get("prompt") is not None else row.get("messages")
    text, family, messages = _prompt(prompt, row, chat, strings)
    if messages:
        if chat is None:
            raise ValueError("prompts must be strings here")
        return Example(_question(messages), chat.prompt(messages), tuple(messages))
    return Example(family, text)


def parse_prompt(row: Row) -> Prompt:
    """A prompt in normal form: {"id", "text"}, and "messages" and "columns" where there are any."""
    messages = parse_messages(row["messages"], "messages") if "messages" in row else []
    columns = row.get("columns") or {}
    if not isinstance(columns, Mapping):
        raise ValueError(f"columns must be an object, got {type(columns).__name__}")
    name, text = parse_string(row.get("id"), "id"), parse_string(row.get("text"), "text")
    return Prompt(name, text, messages=tuple(messages), columns=columns)


def parse_text(row: Row) -> str:
    """A document in normal form: {"text"}."""
    return parse_string(row.get("text"), "text")


def _side(row: Row, completion: Any, chat: Chat | None, name: str, strings: Strings) -> _Side:
    """One completion after the row's prompt."""
    prompt = row.get("prompt")
    if isinstance(completion, str):
        reply = parse_string(completion, name)
        text, family, messages = _prompt(prompt, row, chat, strings)
        if messages:
            from_dialogue = isinstance(prompt, str) and strings == "text"
            return _render(messages, reply.strip() if from_dialogue else reply, chat)
        return _Side(family, text, without_mark(reply, name) if chat is not None else reply)
    *before, last = parse_messages(completion, name)
    if last.role != "assistant":
        raise ValueError(f"the last message must be the assistant's, is the {last.role}'s")
    if not before and prompt is not None:
        _, _, before = _prompt(prompt, row, chat, "messages")
    return _render(before, parse_string(last.content, "the assistant's reply"), chat)


def _prompt(prompt: Any, row: Row, chat: Chat | None, strings: Strings) -> tuple[str, str, list[ChatMessage]]:
    """Text and family of a prompt that is taken as it stands, or the messages of one that is to be rendered."""
    if isinstance(prompt, list):
        return "", "", parse_messages(prompt, "prompt")
    text = parse_string(prompt, "prompt")
    if chat is None:
        return text, str(row.get("family") or family_of(text)), []
    without_mark(text, "prompt")
    if is_dialogue(text):
        return "", "", dialogue_messages(text)
    if strings == "messages":
        return "", "", [ChatMessage("user", text)]
    return text, str(row.get("family") or family_of(text)), []


def _render(messages: list[ChatMessage], reply: str, chat: Chat | None) -> _Side:
    if chat is None:
        raise ValueError("prompts and completions must be strings here")
    family = _question(messages)
    return _Side(family, *chat.reply(messages, reply), tuple(messages))


def _question(messages: Sequence[ChatMessage]) -> str:
    """The family of a conversation: its first question."""
    questions = [message.content for message in messages if message.role == "user"]
    if not questions:
        raise ValueError("no user's message comes before the reply")
    return family_of(questions[0])


def _name(row: Row, name: str, defaults: Row) -> str:
    value = row.get(name)
    return str(defaults.get(name, "") if value in (None, "") else value)


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


def _keys(row: Row) -> str:
    return ", ".join(sorted(row)) or "nothing"
