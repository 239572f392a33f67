"""JSON that every parser reads, whatever the figures are."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lodestar import strict_json

rows = st.dictionaries(
    st.text(max_size=4).filter(lambda name: name != "not_finite"),
    st.recursive(
        st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)


@given(rows)
def test_it_is_read_back_by_a_parser_that_refuses_nan(row: dict[str, object]) -> None:
    read = json.loads(strict_json.dumps(row), parse_constant=pytest.fail)
    read.pop("not_finite", None)
    assert read.keys() == row.keys()


def test_what_was_no_number_is_null_and_named_by_its_place() -> None:
    row = {"step": 3, "score": 0.5, "kl_k3": math.inf, "sources": {"judge": math.nan}, "edges": [1.0, -math.inf]}
    assert json.loads(strict_json.dumps(row)) == {
        "step": 3,
        "score": 0.5,
        "kl_k3": None,
        "sources": {"judge": None},
        "edges": [1.0, None],
        "not_finite": {"kl_k3": "inf", "sources.judge": "nan", "edges[1]": "-inf"},
    }


def test_a_row_of_numbers_is_as_it_was() -> None:
    assert json.loads(strict_json.dumps({"a": 1.5, "b": [1, None]})) == {"a": 1.5, "b": [1, None]}
