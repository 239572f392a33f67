"""Databricks' Dolly demonstrations (Conover et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterator

from lodestar.data.formats.base import Converted, Format, joined, user
from lodestar.data.verdicts import Row


def _convert(row: Row) -> Iterator[Converted]:
    yield {"prompt": user(joined(row.get("instruction"), row.get("context"))), "completion": row["response"]}


FORMATS = (
    Format(
        "Dolly",
        "https://huggingface.co/datasets/databricks/databricks-dolly-15k",
        frozenset({"instruction", "context", "response"}),
        _convert,
    ),
)
