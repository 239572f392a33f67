"""Rows of every conventional form, and what a person reads about a bad one."""

from typing import Any

import pytest

from lodestar.data.chat import ChatFormat
from lodestar.data.schema import parse_comparison, parse_demonstration
from lodestar.data.tokenizer import DIALOGUE_TEMPLATE
from lodestar.records import ChatMessage

CHAT = ChatFormat.of_template(DIALOGUE_TEMPLATE)
ASKED = "\n\nHuman: How are you?\n\nAssistant:"
USER = {"role": "user", "content": "How are you?"}


def _said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": f"{ASKED} Well.", "rejected": f"{ASKED} Ill."},
        {"chosen": [USER, _said("Well.")], "rejected": [USER, _said("Ill.")]},
        {"prompt": [USER], "chosen": "Well.", "rejected": "Ill."},
        {"prompt": [USER], "chosen": [_said("Well.")], "rejected": [_said("Ill.")]},
        {"prompt": "How are you?", "chosen": [USER, _said("Well.")], "rejected": [USER, _said("Ill.")]},
        {"prompt": "How are you?", "chosen": [_said("Well.")], "rejected": [_said("Ill.")]},
        {"prompt": ASKED, "completions": [" Well.", " Ill."], "label": 1},
    ],
)
def test_every_form_of_a_comparison_says_the_same(row: dict[str, Any]) -> None:
    comparison = parse_comparison(row, CHAT).record
    assert (comparison.prompt, comparison.completions, comparison.label) == (ASKED, (" Well.", " Ill."), 1.0)


def test_strings_are_taken_as_they_stand() -> None:
    comparison = parse_comparison({"prompt": "2 + 2 =", "chosen": "4", "rejected": "5", "label": 0.5}).record
    assert (comparison.prompt, comparison.completions, comparison.label) == ("2 + 2 =", ("4", "5"), 0.5)


def test_a_dialogue_belongs_to_the_family_of_its_first_question() -> None:
    longer = f"{ASKED} Well.\n\nHuman: And now?\n\nAssistant:"
    first = parse_comparison({"chosen": f"{ASKED} Well.", "rejected": f"{ASKED} Ill."}, CHAT)
    later = parse_comparison({"chosen": f"{longer} Fine.", "rejected": f"{longer} Bad."}, CHAT)
    assert first.family == later.family
    assert later.record.prompt == longer


@pytest.mark.parametrize("row", [{"messages": [USER, _said("Well.")]}, {"prompt": [USER], "completion": "Well."}])
def test_every_form_of_a_demonstration_says_the_same(row: dict[str, Any]) -> None:
    demonstration = parse_demonstration(row, CHAT).record
    assert (demonstration.prompt, demonstration.completion) == (ASKED, " Well.")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x"}, "needs chosen and rejected, or completions and label; it has prompt"),
        ({"chosen": "a", "rejected": "b"}, "is no dialogue: it must begin with"),
        ({"chosen": f"{ASKED} a", "rejected": "\n\nHuman: Other\n\nAssistant: b"}, "differ before the last reply"),
        ({"chosen": f"{ASKED} a", "rejected": f"{ASKED} a"}, "the two completions are the same"),
        ({"chosen": f"{ASKED} ", "rejected": f"{ASKED} a"}, "the assistant's reply is empty"),
        ({"chosen": f"{ASKED} a\n\nHuman: b", "rejected": f"{ASKED} a"}, "must be the assistant's, is the user's"),
        ({"prompt": "x", "chosen": "a", "rejected": 3}, "completion must be a string or a list of messages, got int"),
        ({"prompt": "x", "chosen": "", "rejected": "b"}, "completion is empty"),
        ({"prompt": 5, "chosen": "a", "rejected": "b"}, "prompt must be a string, got int"),
        ({"prompt": "x", "completions": ["a"], "label": 1}, "completions must be a list of two"),
        ({"prompt": "x", "completions": ["a", "b"]}, "label is missing"),
        ({"prompt": "x", "completions": ["a", "b"], "label": 2}, "label must be between 0 and 1, got 2"),
        ({"prompt": "x", "completions": ["a", "b"], "label": True}, "label must be a number, got True"),
        ({"prompt": "x", "completions": ["a", "b"], "label": float("nan")}, "label must be a number, got nan"),
        ({"prompt": [{"role": "king"}], "chosen": "a", "rejected": "b"}, r"prompt\[0\] must be a message with role"),
        ({"prompt": [{"role": "user"}], "chosen": "a", "rejected": "b"}, r"prompt\[0\].content must be a string"),
        ({"chosen": [_said("a")], "rejected": [_said("b")]}, "no user's message comes before the reply"),
    ],
)
def test_a_bad_comparison_says_what_is_wrong(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_comparison(row, CHAT)


def test_a_template_writes_around_the_reply_what_it_wants() -> None:
    marked = ChatFormat.of_template(
        "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    messages = [ChatMessage("user", "hi")]
    assert marked.prompt(messages) == "<|user|>\nhi<|end|>\n<|assistant|>\n"
    assert marked.completion(messages, "hello") == "hello"
    assert CHAT.completion(messages, "hello") == " hello"
