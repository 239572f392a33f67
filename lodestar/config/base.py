"""What every configuration section has in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen group of options; each field's docstring is its description in ``lodestar config schema``."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Options by dotted name: ``{"clip": 0.2, "kl.coefficient": 0.05, …}``."""
    if not isinstance(tree, Mapping) or not tree:
        return {prefix: tree}
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}.{key}" if prefix else key)
    return leaves
