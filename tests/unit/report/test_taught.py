"""What people's answers taught, in figures and on a page."""

from __future__ import annotations

from pathlib import Path

from lodestar.report.taught import changed_words, sentence, write_taught

BEFORE = [f"hello my friend , it is {i}" for i in range(20)]
AFTER = [f"it is {i} , arr" for i in range(20)]


def test_words_that_changed_beyond_chance_are_named_with_their_shares() -> None:
    found = changed_words(BEFORE, AFTER)
    assert [row["word"] for row in found["more"]] == ["arr"]
    assert {row["word"] for row in found["fewer"]} == {"hello", "my", "friend"}
    (arr,) = found["more"]
    assert (arr["before"], arr["after"], arr["change"]["value"]) == (0.0, 1.0, 1.0)
    assert 0 < arr["change"]["low"] < 1.0 == arr["change"]["high"]


def test_nothing_is_named_where_nothing_changed_or_replies_are_too_few() -> None:
    assert changed_words(BEFORE, BEFORE) == {"fewer": [], "more": []}
    assert changed_words(BEFORE[:2], AFTER[:2]) == {"fewer": [], "more": []}


def test_the_sentence_says_how_many_and_what_guessing_gives() -> None:
    rate = {"value": 0.75, "low": 0.5, "high": 0.9, "n": 16}
    assert sentence(rate) == (
        "The reward model is right about 12 of 16 answers that it had not seen (75%, 95% interval 50% to 90%; guessing "
        "is 50%)."
    )
    assert "Every answer was a tie" in sentence({"value": 0.5, "low": 0.0, "high": 1.0, "n": 0})


def test_the_page_shows_text_of_models_and_obeys_none(tmp_path: Path) -> None:
    reply = {"text": "<script>alert(1)</script>", "score": 0.5}
    found = {
        "run": "people",
        "answers": 20,
        "folds": 5,
        "accuracy": {"value": 0.75, "low": 0.5, "high": 0.9, "n": 16},
        "prompts": 1,
        "score": {"before": 0.0, "after": 0.25},
        "words": {"before": 9.0, "after": 4.0},
        "changed": changed_words(BEFORE, AFTER),
        "judged": [{"prompt": "q", "preferred": "<b>", "over": "y", "says": "agrees"}],
    }
    write_taught(tmp_path / "page.html", found, [{"prompt": "q", "before": reply, "after": reply}])
    page = (tmp_path / "page.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script" not in page
    assert "<b>" not in page
    assert "12 of 16 answers" in page
    assert "+0.25 above" in page
