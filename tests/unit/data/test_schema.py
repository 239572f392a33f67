"""Rows of every conventional form, and what a person reads about a bad one."""

from typing import Any

import pytest

from lodestar.data.chat import ChatFormat
from lodestar.data.schema import feedback_row, parse_demonstration, parse_feedback
from lodestar.data.tokenizer import DIALOGUE_TEMPLATE
from lodestar.preference.pairs import comparisons
from lodestar.records import ChatMessage, Choice, Ranking, Ratings

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
    (comparison,) = comparisons([parse_feedback(row, CHAT).record])
    assert (comparison.prompt, comparison.completions, comparison.label) == (ASKED, (" Well.", " Ill."), 1.0)


def test_strings_are_taken_as_they_stand() -> None:
    row = {"prompt": "2 + 2 =", "chosen": "4", "rejected": "5", "label": 0.5}
    (comparison,) = comparisons([parse_feedback(row).record])
    assert (comparison.prompt, comparison.completions, comparison.label) == ("2 + 2 =", ("4", "5"), 0.5)


def test_a_dialogue_belongs_to_the_family_of_its_first_question() -> None:
    longer = f"{ASKED} Well.\n\nHuman: And now?\n\nAssistant:"
    first = parse_feedback({"chosen": f"{ASKED} Well.", "rejected": f"{ASKED} Ill."}, CHAT)
    later = parse_feedback({"chosen": f"{longer} Fine.", "rejected": f"{longer} Bad."}, CHAT)
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
        (
            {"prompt": "x", "chosen": "a", "rejected": 3},
            r"completions\[1\] must be a string or a list of messages, got int",
        ),
        ({"prompt": "x", "chosen": "", "rejected": "b"}, r"completions\[0\] is empty"),
        ({"prompt": 5, "chosen": "a", "rejected": "b"}, "prompt must be a string, got int"),
        (
            {"prompt": "x", "completions": ["a"], "label": 1},
            "completions has only one: a comparison needs at least two",
        ),
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
        parse_feedback(row, CHAT)


TWO, FOUR = ["a", "b"], ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("verdict", "message"),
    [
        ({"ranking": [0, 1, 3]}, "ranking misses completion 2"),
        ({"ranking": [0, 1, 1, 2, 3]}, "ranking repeats completion 1"),
        ({"ranking": [0, [1, 2], 4]}, r"ranking\[2\] must be 0 … 3, the index of a completion, got 4"),
        ({"ranking": [0, []]}, r"ranking\[1\] is empty"),
        ({"ranking": [0, 1.5]}, r"ranking\[1\] must be the index of a completion, got 1.5"),
        ({"ranking": "best"}, "ranking must be a list of indices, best first"),
        ({"label": 1}, "label is for two completions, there are 4"),
        ({"label": 1, "ranking": [0, 1, 2, 3]}, "has label and ranking: a row holds one verdict"),
        ({"choices": []}, r"choices must be a list of \{first, second, label\}"),
        ({"choices": [3]}, r"choices\[0\] must be an object"),
        ({"choices": [{"first": 0, "second": 0, "label": 1}]}, r"choices\[0\] compares completion 0 with itself"),
        (
            {"choices": [{"first": 0, "second": 1, "label": 1.2}]},
            r"choices\[0\].label must be between 0 and 1, got 1.2",
        ),
        (
            {"choices": [{"first": 0, "second": 1, "label": float("nan")}]},
            r"choices\[0\].label must be a number, got nan",
        ),
        ({"choices": [{"first": a, "second": 1 - a, "label": 1} for a in (0, 1)]}, "choices has a pair twice"),
        ({"choices": [{"first": 0, "second": 1, "label": 1, "strength": -1}]}, "strength must be 0 or more, got -1"),
        ({"ratings": {"helpful": [1, 2, 3]}}, "ratings.helpful must be a list of 4, one rating per completion"),
        ({"ratings": {"helpful": [1, 2, 3, float("nan")]}}, r"ratings.helpful\[3\] must be a number, got nan"),
        ({"ratings": {"helpful": [1, 2, 3, 6]}}, r"ratings.helpful\[3\] must be between 1 and 5, got 6"),
        ({"ratings": {"helpfull": [1, 2, 3, 4]}}, "ratings.helpfull: unknown aspect, .* did you mean helpful?"),
        ({"ratings": {"wit": [1, 2, 3, 4]}, "scales": {"wit": [3, 3]}}, r"scales.wit must be \[lowest, highest\], got"),
        ({"ratings": {"helpful": [None] * 4}}, "ratings holds no rating"),
        ({"ratings": {"helpful": [1, 2, 3, 4]}, "gold": [1]}, "gold must be a list of 4 numbers"),
        ({"ratings": {"helpful": [1, 2, 3, 4]}, "flags": "odd"}, "flags must be a list of strings"),
    ],
)
def test_a_bad_verdict_says_which_field(verdict: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_feedback({"prompt": "x", "completions": FOUR, **verdict})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"completions": ["a"], "ranking": [0]}, "completions has only one"),
        ({"completions": [], "label": 1}, "completions must be a list"),
        ({"completions": ["a", "", "c"], "ranking": [0, 1, 2]}, r"completions\[1\] is empty"),
        ({"completions": ["a", "a"], "label": 1}, "the two completions are the same"),
    ],
)
def test_bad_completions_are_named(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_feedback({"prompt": "x", **row})


def test_dialogues_of_one_row_must_share_their_beginning() -> None:
    dialogues = [f"{ASKED} Well.", f"{ASKED} Ill.", "\n\nHuman: Why?\n\nAssistant: So."]
    with pytest.raises(ValueError, match="the dialogues differ before the last reply"):
        parse_feedback({"completions": dialogues, "ranking": [0, 1, 2]}, CHAT)


@pytest.mark.parametrize(
    "row",
    [
        {"completions": TWO, "label": 0.25, "strength": 2.0},
        {"completions": FOUR, "ranking": [2, [0, 3], 1], "gold": [1.0, 0.0, 2.0, -1.0]},
        {"completions": FOUR, "choices": [{"first": 3, "second": 1, "label": 0.5, "strength": 0.0}], "flags": ["odd"]},
        {"completions": TWO, "ratings": {"wit": [1, None], "helpful": [3, 4.5]}, "scales": {"wit": [0, 1]}},
        {"completions": ["a"], "ratings": {"approval": [1]}},
    ],
)
def test_the_normal_form_reads_back_as_the_same_record(row: dict[str, Any]) -> None:
    names = {"id": "7", "annotator": "ada", "subset": "s"}
    record = parse_feedback({"prompt": "x", **row, **names}).record
    assert parse_feedback(feedback_row(record)).record == record


def test_every_kind_of_verdict_becomes_its_record() -> None:
    def verdict(**row: Any) -> Any:
        return parse_feedback({"prompt": "x", **row}).record.verdict

    assert verdict(completions=FOUR, ranking=[2, [0, 3], 1]) == Ranking(((2,), (0, 3), (1,)))
    assert verdict(completions=FOUR, ranking=[2, [0, 3], 1]).places == (1, 2, 0, 1)
    assert verdict(chosen="a", rejected="b", score_chosen=8, score_rejected=5) == (Choice(0, 1, 1.0, 3.0),)
    assert verdict(completion="a", label=False) == Ratings({"approval": (0.0,)}, {"approval": (0.0, 1.0)})


def test_a_template_writes_around_the_reply_what_it_wants() -> None:
    marked = ChatFormat.of_template(
        "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    messages = [ChatMessage("user", "hi")]
    assert marked.prompt(messages) == "<|user|>\nhi<|end|>\n<|assistant|>\n"
    assert marked.completion(messages, "hello") == "hello"
    assert CHAT.completion(messages, "hello") == " hello"
