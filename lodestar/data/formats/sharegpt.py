"""ShareGPT's conversations, and the pairs and likes that LLaMA-Factory keeps beside them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lodestar.data.formats.base import Converted, Format, need, pair
from lodestar.data.verdicts import Row

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "system": "system",
    "function_call": "assistant",
    "tool_call": "assistant",
    "observation": "tool",
    "tool": "tool",
    "tool_response": "tool",
}


def _convert(row: Row) -> Iterator[Converted]:
    messages = _messages(need(row, "conversations", list), "conversations")
    if row.get("system") not in (None, ""):
        messages.insert(0, {"role": "system", "content": row["system"]})
    if row.get("tools") not in (None, "", []):
        raise ValueError("tools: tools are not written into prompts here; put them into a system message")
    if "chosen" in row:
        chosen, rejected = ([_message(row[side], side)] for side in ("chosen", "rejected"))
        yield pair(messages, chosen, rejected, 1.0)
    elif row.get("kto_tag") is not None:
        yield {"prompt": messages[:-1], "completion": messages[-1:], "label": row["kto_tag"]}
    else:
        yield {"messages": messages, "id": row.get("id")}


def _strings(row: Row) -> Iterator[Converted]:
    """LIMA (Zhou et al. 2023): the turns alone, the user's first."""
    roles = ("user", "assistant")
    turns = [{"role": roles[i % 2], "content": text} for i, text in enumerate(row["conversations"])]
    yield {"messages": turns, "subset": row.get("source")}


def _messages(turns: list[Any], name: str) -> list[dict[str, Any]]:
    return [_message(turn, f"{name}[{i}]") for i, turn in enumerate(turns)]


def _message(turn: Any, name: str) -> dict[str, Any]:
    if not isinstance(turn, dict) or "value" not in turn:
        raise ValueError(f"{name} must be an object {{from, value}}")
    role = _ROLES.get(str(turn.get("from")).lower())
    if role is None:
        raise ValueError(f"{name}.from must be one of {', '.join(_ROLES)}, got {turn.get('from')!r}")
    return {"role": role, "content": turn["value"]}


def _of_objects(row: Row) -> bool:
    turns = row["conversations"]
    return isinstance(turns, list) and any(isinstance(turn, dict) and "from" in turn for turn in turns)


def _of_strings(row: Row) -> bool:
    turns = row["conversations"]
    return isinstance(turns, list) and bool(turns) and all(isinstance(turn, str) for turn in turns)


FORMATS = (
    Format(
        "ShareGPT",
        "https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md#sharegpt-format",
        frozenset({"conversations"}),
        _convert,
        told_by=_of_objects,
    ),
    Format(
        "LIMA", "https://huggingface.co/datasets/GAIR/lima", frozenset({"conversations"}), _strings, told_by=_of_strings
    ),
)
