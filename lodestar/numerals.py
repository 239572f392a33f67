"""How figures are written for people: in the terminal, in the report and in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping

NOISE = 1e-9
"""Below this a figure is rounding error of float32 sums, and is written as 0."""
SHARES = ("_rate", "accuracy", "fraction")
"""Ends of names whose figures are shares of a whole."""
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float) -> str:
    """Three significant digits: ``0.125``, ``2,048``, ``1.5×10⁻⁷``; whole numbers whole, rounding error as 0."""
    if not math.isfinite(value):
        return str(value)
    if abs(value) < NOISE:
        return "0"
    if abs(value) >= 1000 or value == round(value):
        text = f"{value:,.0f}" if abs(value) < 1e9 else _power(value)
    else:
        text = f"{value:.3g}" if abs(value) >= 1e-4 else _power(value)
        text = f"{value:,.0f}" if "e" in text else text  # 999.7
    return text.replace("-", "−")


def fixed(value: float, digits: int = 2, *, plus: bool = False) -> str:
    """So many decimals with a real minus sign, and no minus before a zero."""
    rounded = round(value, digits) + 0.0
    return f"{rounded:{'+' if plus else ''}.{digits}f}".replace("-", "−")


def clock(seconds: float) -> str:
    """``1:05``; hours only when there are some."""
    whole = int(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def in_a_line(figures: Mapping[str, float]) -> str:
    """A stage's figures, those that are 0 last: ``loss 1.25 · prompts ppo 2,048 · bad rows 0``."""
    ordered = sorted(figures.items(), key=lambda item: item[1] == 0)
    return " · ".join(f"{name.replace('_', ' ').replace('.', ' ')} {_named(name, value)}" for name, value in ordered)


def _named(name: str, value: float) -> str:
    return f"{value:.1%}" if name.endswith(SHARES) else number(value)


def _power(value: float) -> str:
    digits, _, exponent = f"{value:.1e}".partition("e")
    return f"{digits.removesuffix('.0')}×10{str(int(exponent)).translate(_RAISED)}"
