"""Summaries of Reddit posts and news, compared or rated by people (Stiennon et al. 2020)."""

from __future__ import annotations

from collections.abc import Iterator

from lodestar.data.formats.base import Converted, Format, need, one_of, pair, user
from lodestar.data.verdicts import Row


def _compared(row: Row) -> Iterator[Converted]:
    first, second = _two(row)
    label = one_of(row.get("choice"), "choice", {0: 1.0, 1: 0.0})
    yield pair(_prompt(row), first, second, label, annotator=row.get("worker"), subset=row.get("batch"), id=_name(row))


def _rated(row: Row) -> Iterator[Converted]:
    summary = need(row, "summary", dict)
    axes = {name: [value] for name, value in need(summary, "axes", dict, "summary").items() if value is not None}
    yield {
        "prompt": _prompt(row),
        "completions": [summary.get("text")],
        "ratings": axes,
        "scales": {name: [1, 7] for name in axes},
        "annotator": str(row.get("worker") or ""),
        "subset": str(row.get("batch") or ""),
        "id": _name(row),
    }


def _two(row: Row) -> tuple[object, object]:
    summaries = need(row, "summaries", list)
    if len(summaries) != 2:
        raise ValueError(f"summaries must be two, there are {len(summaries)}")
    return summaries[0].get("text"), summaries[1].get("text")


def _prompt(row: Row) -> list[dict[str, object]]:
    """The paper's own form of a post (its table 3); an article stands alone."""
    info = need(row, "info", dict)
    if info.get("article"):
        return user(f"{info['article']}\n\nTL;DR:")
    parts = [(word, info.get(name)) for word, name in (("SUBREDDIT: r/", "subreddit"), ("TITLE: ", "title"))]
    head = [word + str(value) for word, value in parts if value]
    return user("\n\n".join([*head, f"POST: {need(info, 'post', str, 'info')}", "TL;DR:"]))


def _name(row: Row) -> str:
    return str(need(row, "info", dict).get("id") or "")


ADDRESS = "https://huggingface.co/datasets/openai/summarize_from_feedback"
FORMATS = (
    Format(
        "summarize from feedback",
        ADDRESS,
        frozenset({"info", "summaries", "choice"}),
        _compared,
        leaves="notes, policies and the annotator's confidence",
    ),
    Format("summaries on axes", ADDRESS, frozenset({"info", "summary", "worker"}), _rated, leaves="notes and policies"),
)
