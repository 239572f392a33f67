"""What a judge said: A, B, how sure it is of it, or neither."""

from __future__ import annotations

import math
import re
from typing import Literal

from lodestar.llm.port import Answer, Token

Letter = Literal["A", "B"]
_SPOKEN = re.compile(r"\((A|B)\)|(?<![\w'])(A|B)(?=\s*(?:$|[.,:;!*\"')\]\n])|\s+(?:is|because)\b)")
"""A letter by itself: "A", "(B)", "**A**", "B: it is kinder", "A is better"; not the article of "A good reply"."""
_AROUND = " \t\n\r()[]{}*_\"'.:#▁Ġ"
"""What a token may hold beside the letter."""


def letter_of(text: str) -> Letter | None:
    """The letter that a text names: with which it begins, else the only one; None for neither, or for both."""
    found = [(match.start(), match[1] or match[2]) for match in _SPOKEN.finditer(text)]
    if not found:
        return None
    begins = not text[: found[0][0]].strip(_AROUND)
    if begins or len({letter for _, letter in found}) == 1:
        return "A" if found[0][1] == "A" else "B"
    return None


def chance_of_a(answer: Answer) -> float | None:
    """P(A) / (P(A) + P(B)) at the place where the answer names its letter; 1 or 0 by the letter where no log-probs are
    known; None where it names neither.

    A letter that is not among the candidates told there counts as impossible.
    """
    letter = letter_of(answer.text)
    if letter is None:
        return None
    place = next((token for token in answer.tokens if token.text.strip(_AROUND) == letter), None)
    a, b = (_mass(place, "A"), _mass(place, "B")) if place is not None else (0.0, 0.0)
    return a / (a + b) if a + b > 0 else float(letter == "A")


def _mass(at: Token, letter: Letter) -> float:
    return math.fsum(math.exp(nats) for text, nats in at.candidates.items() if text.strip(_AROUND) == letter)
