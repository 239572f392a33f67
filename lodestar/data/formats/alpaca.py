"""Alpaca's demonstrations (Taori et al. 2023) and what LLaMA-Factory adds to them: pairs, likes, system, history."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lodestar.data.formats.base import Converted, Format, asked, joined, kept
from lodestar.data.verdicts import Row


def _demonstrations(row: Row) -> Iterator[Converted]:
    verdict = {} if row.get("kto_tag") is None else {"label": row["kto_tag"]}
    yield {"prompt": _question(row), "completion": row.get("output"), "id": row.get("id")} | verdict


def _pairs(row: Row) -> Iterator[Converted]:
    yield {"prompt": _question(row), "chosen": row["chosen"], "rejected": row["rejected"], "id": row.get("id")}


def _history(row: Row) -> Iterator[Converted]:
    """Rows of the schema whose prompt is a question after a system prompt or earlier turns."""
    prompt = row["prompt"]
    if isinstance(prompt, list):
        before = [{"role": "system", "content": row["system"]}] if row.get("system") not in (None, "") else []
        if row.get("history"):
            raise ValueError("history stands beside a prompt of messages: put its turns into them")
        yield kept(row, "prompt") | {"prompt": [*before, *prompt]}
    else:
        yield kept(row, "prompt") | {"prompt": asked(row, prompt)}


def _question(row: Row) -> list[dict[str, Any]]:
    return asked(row, joined(row.get("instruction"), row.get("input")))


ADDRESS = "https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md"
FORMATS = (
    Format("Alpaca demonstrations", ADDRESS, frozenset({"instruction", "output"}), _demonstrations),
    Format("Alpaca pairs", ADDRESS, frozenset({"instruction", "chosen", "rejected"}), _pairs),
    Format(
        "rows with a system prompt or a history",
        ADDRESS,
        frozenset({"prompt"}),
        _history,
        told_by=lambda row: (
            ("system" in row or "history" in row) and bool({"chosen", "completion", "completions"} & row.keys())
        ),
    ),
)
