"""SummEval: a document's summaries by several systems, rated (Fabbri et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lodestar.data.formats.base import Converted, Format, need, user
from lodestar.data.verdicts import Row


def _convert(row: Row) -> Iterator[Converted]:
    systems = need(row, "sys_summs", dict)
    aspects: dict[str, list[Any]] = {}
    for name, system in systems.items():
        for aspect, value in need(system, "scores", dict, f"sys_summs.{name}").items():
            aspects.setdefault(aspect, []).append(value)
    yield {
        "prompt": user(row.get("src")),
        "completions": [system.get("sys_summ") for system in systems.values()],
        "ratings": aspects,
        "id": str(row.get("doc_id", "")),
    }


FORMATS = (Format("SummEval", "https://github.com/Yale-LILY/SummEval", frozenset({"src", "sys_summs"}), _convert),)
