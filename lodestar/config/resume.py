"""Which options a resumed run may change: those that say where and how fast it happens, not what it computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAY_CHANGE = ("runs_dir", "policy", "reward", "reference", "learner", "rollout", "queue")
"""Keys and sections that move work, not the result."""
DECIDES = ("reward.sources",)
"""What decides the result all the same, though it stands in such a section."""


def deciding_options(tree: Mapping[str, Any], may_change: tuple[str, ...] = ()) -> dict[str, Any]:
    """The options by dotted name that must be as they were: ``{"ppo.clip": 0.2, …}``.

    Args:
        tree: a RunConfig as plain data (``model_dump(mode="json")``, or config.yaml).
        may_change: further keys or sections that do not matter to who asks.
    """
    free = (*MAY_CHANGE, *may_change)
    return {
        key: value
        for key, value in _flat(tree).items()
        if key in DECIDES or not any(f"{key}.".startswith(f"{section}.") for section in free)
    }


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping) or not tree:
        return {prefix: tree}
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= _flat(value, f"{prefix}.{key}" if prefix else key)
    return leaves
