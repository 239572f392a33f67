"""JSON as its standard has it (RFC 8259): without NaN and Infinity, which most parsers refuse."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def dumps(row: Mapping[str, Any]) -> str:
    """One line of JSON. A number that is none stands as null, and what it was under ``not_finite``, by its place.

    ``{"score": 1.0, "kl_k3": inf}`` becomes ``{"score": 1.0, "kl_k3": null, "not_finite": {"kl_k3": "inf"}}``.
    """
    found: dict[str, str] = {}
    plain = _plain(row, "", found)
    return json.dumps(plain | {"not_finite": found} if found else plain, allow_nan=False)


def _plain(value: Any, place: str, found: dict[str, str]) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        found[place] = str(value)
        return None
    if isinstance(value, Mapping):
        return {key: _plain(inner, f"{place}.{key}" if place else str(key), found) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, f"{place}[{i}]", found) for i, inner in enumerate(value)]
    return value
