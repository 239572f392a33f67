"""OpenAssistant conversations (Köpf et al. 2023): trees whose replies carry a rank, or their messages one by one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from lodestar.data.formats.base import Converted, Format, Numbered, need
from lodestar.data.verdicts import Row

_ROLES = {"prompter": "user", "assistant": "assistant"}


def _tree(row: Row) -> Iterator[Converted]:
    root = need(row, "prompt", dict)
    stack: list[tuple[Row, list[Row]]] = [(root, [])]
    while stack:
        node, before = stack.pop()
        role = _ROLES.get(str(node.get("role")))
        if role is None:
            yield ValueError(f"message {node.get('message_id')}: role must be prompter or assistant")
            continue
        path = [*before, {"role": role, "content": node.get("text")}]
        replies = [reply for reply in node.get("replies") or [] if not reply.get("deleted")]
        stack += [(reply, path) for reply in reversed(replies)]
        if role == "user" and len(replies) > 1:
            yield _group(node, path, replies)


def _group(node: Row, path: list[Row], replies: list[Row]) -> Converted:
    """The ranked replies to one prompter message."""
    ranks = [reply.get("rank") for reply in replies]
    where = f"message {node.get('message_id')}"
    missing = [i for i, rank in enumerate(ranks) if rank is None]
    if missing:
        return ValueError(f"{where}: rank is missing for reply {', '.join(map(str, missing))} of {len(ranks)}")
    if len(set(ranks)) < len(ranks):
        return ValueError(f"{where}: rank is repeated: {ranks}")
    if not all(isinstance(rank, int | float) and rank == int(rank) for rank in ranks):
        return ValueError(f"{where}: ranks must be whole numbers, got {ranks}")
    order = [index for _, index in sorted((int(rank or 0), index) for index, rank in enumerate(ranks))]
    return {
        "prompt": path,
        "completions": [reply.get("text") for reply in replies],
        "ranking": order,
        "id": str(node.get("message_id")),
    }


def _messages(rows: Iterable[Numbered]) -> Iterator[Numbered]:
    """Trees of the messages of a file, in the order of their roots and with their lines."""
    nodes: dict[Any, tuple[int, dict[str, Any]]] = {}
    parent_of: dict[Any, Any] = {}
    for line, row in rows:
        parent_of[row["message_id"]] = row["parent_id"]
        names = ("message_id", "role", "text", "rank", "deleted")
        nodes[row["message_id"]] = line, {name: row.get(name) for name in names} | {"replies": []}
    for name, (_, node) in nodes.items():
        if parent_of[name] in nodes:
            nodes[parent_of[name]][1]["replies"].append(node)
    for name, (line, node) in nodes.items():
        parent = parent_of[name]
        if parent is None:
            yield line, {"prompt": node}
        elif parent not in nodes:
            yield line, {"prompt": {**node, "role": f"a reply to {parent}, which is not in this file"}}


FORMATS = (
    Format(
        "OASST trees",
        "https://huggingface.co/datasets/OpenAssistant/oasst1",
        frozenset({"message_tree_id", "prompt"}),
        _tree,
        leaves="labels, emojis and reviews of the messages",
    ),
    Format(
        "OASST messages",
        "https://huggingface.co/datasets/OpenAssistant/oasst1",
        frozenset({"message_id", "parent_id", "text", "role"}),
        _tree,
        gather=_messages,
    ),
)
