"""The control: whatever form feedback has, its shuffled labels say nothing of the completions."""

from __future__ import annotations

import random
from typing import Any

import pytest
from scipy.stats import binomtest, spearmanr

from lodestar.data.corpus import shuffle_labels
from lodestar.data.schema import parse_feedback
from lodestar.preference.pairs import comparisons
from lodestar.records import Feedback, Ratings

ROWS = 600


def _row(form: str, i: int, rng: random.Random) -> dict[str, Any]:
    """Completions say how good they are: ``3 of 17`` is the third best; verdicts are always right."""
    worth = rng.sample(range(9), 4)
    texts = [f"{value} of {i}" for value in worth]
    better, worse = sorted(zip(worth[:2], texts[:2], strict=True), reverse=True)
    ranked = sorted(range(4), key=lambda k: -worth[k])
    rows: dict[str, dict[str, Any]] = {
        "chosen and rejected": {"chosen": better[1], "rejected": worse[1]},
        "label": {"completions": texts[:2], "label": float(worth[0] > worth[1])},
        "choices": {
            "completions": texts,
            "choices": [{"first": 0, "second": k, "label": float(worth[0] > worth[k])} for k in (1, 2, 3)],
        },
        "ranking": {"completions": texts, "ranking": ranked},
        "ratings": {"completions": texts[:3], "ratings": {"x": worth[:3]}, "scales": {"x": [0, 8]}},
    }
    return {"prompt": f"p{i}", **rows[form]}


def _worth(text: str) -> int:
    return int(text.partition(" ")[0])


@pytest.mark.parametrize("form", ["chosen and rejected", "label", "choices", "ranking", "ratings"])
def test_shuffled_labels_agree_with_the_truth_no_more_than_a_coin(form: str) -> None:
    rng = random.Random(0)
    feedback = [parse_feedback(_row(form, i, rng)) for i in range(ROWS)]
    shuffled = shuffle_labels(feedback, seed=1)
    assert [row.record.completions for row in shuffled] == [row.record.completions for row in feedback]
    for rows, right in ((feedback, 1.0), (shuffled, 0.5)):
        pairs = comparisons(row.record for row in rows)
        found = [(_worth(one.completions[0]) > _worth(one.completions[1])) == (one.label > 0.5) for one in pairs]
        per_row = found[:: max(1, len(found) // ROWS)]  # a row's pairs do not vary on their own
        interval = binomtest(sum(per_row), len(per_row)).proportion_ci(0.999)
        assert interval.low <= right <= interval.high, (form, right)


def test_the_first_written_is_no_longer_the_better_either() -> None:
    rng = random.Random(2)
    feedback = [parse_feedback(_row("chosen and rejected", i, rng)) for i in range(ROWS)]
    first = sum(one.label for one in comparisons(row.record for row in shuffle_labels(feedback, seed=3)))
    assert binomtest(round(first), ROWS).pvalue > 1e-3


def test_a_completion_that_is_rated_alone_keeps_nothing_of_its_rating() -> None:
    rng = random.Random(4)
    worth = [rng.randrange(1, 6) for _ in range(ROWS)]
    feedback = [
        parse_feedback({"prompt": f"p{i}", "completions": [str(w)], "ratings": {"quality": [w]}})
        for i, w in enumerate(worth)
    ]
    after = [_rating(row.record) for row in shuffle_labels(feedback, seed=5)]
    assert set(after) <= {1.0, 2.0, 3.0, 4.0, 5.0}
    assert spearmanr(worth, [_rating(row.record) for row in feedback]).statistic == pytest.approx(1.0)
    assert spearmanr(worth, after).pvalue > 1e-3


def _rating(record: Feedback) -> float:
    assert isinstance(record.verdict, Ratings)
    (value,) = record.verdict.aspects["quality"]
    assert value is not None
    return value
