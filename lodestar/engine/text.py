"""Token ids to text while they arrive, and stop strings across token boundaries."""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from itertools import islice
from typing import Any

UNDECIDED = "\ufffd"
"""What a tokenizer decodes the first bytes of an unfinished character to."""
MOST_UNDECIDED = 3
"""Tokens that an unfinished character of UTF-8 may consist of: four bytes end it."""
CONTEXT_TOKENS = 4
"""Tokens decoded before those of interest, since a tokenizer may treat the first ones of a text specially."""


class StopChecker:
    """Looks for stop strings at the end of a growing response."""

    def __init__(self, tokenizer: Any, stops: Tokens[str]) -> None:
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._special = frozenset(tokenizer.all_special_ids)
        # Every token but special ones adds at least a byte.
        self._window = max(len(stop.encode()) for stop in stops) + CONTEXT_TOKENS

    def found(self, tokens: Tokens[int]) -> bool:
        """Whether the last token completed a stop string."""
        window = list(islice((token for token in reversed(tokens) if token not in self._special), self._window))[::-1]
        text = self._tokenizer.decode(window)
        if not any(stop in text for stop in self._stops):
            return False
        before = len(self._tokenizer.decode(window[:-1]).rstrip(UNDECIDED))
        return any(text.find(stop, max(0, before - len(stop) + 1)) >= 0 for stop in self._stops)


class TextStream:
    """What a growing response adds to its text.

    Text is held back while its last character is incomplete or while it may be the beginning of a stop string; the
    stop string itself is never given out. One that is complete before ``min_tokens`` tokens stops nothing.
    """

    def __init__(self, tokenizer: Any, stops: Tokens[str] = (), min_tokens: int = 0) -> None:
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._unstoppable = max(0, min_tokens - 1) if stops else 0
        """Tokens that no stop string may end with."""
        self._unstoppable_text = 0
        """Characters of their text."""
        self._tokens: list[int] = []
        self._start = 0
        """First token decoded anew each time."""
        self._decoded = 0
        """Tokens whose text is in ``_text``."""
        self._text = ""
        self._given = 0
        self._stopped = False

    def add(self, tokens: Tokens[int], *, last: bool = False) -> str:
        """The text that became certain; with ``last``, all that is left."""
        early = tokens[: max(0, self._unstoppable - len(self._tokens))]
        if early:
            self._tokens += early
            tokens = tokens[len(early) :]
            self._decode(last and not tokens)
            self._unstoppable_text = len(self._text)
        self._tokens += tokens
        self._decode(last)
        if not self._stopped:
            self._cut_at_stop()
        certain = len(self._text) if last or self._stopped else len(self._text) - self._undecided()
        new = self._text[self._given : certain]
        self._given = max(self._given, certain)
        return new

    def _decode(self, last: bool) -> None:
        if self._stopped:
            return
        before = self._spelled(self._decoded)
        after = self._spelled(len(self._tokens))
        if last or not after.endswith(UNDECIDED):
            self._take(before, after, len(self._tokens))
            return
        # Bytes that can still become a character are among the last few tokens; what precedes them is text for good.
        for end in range(len(self._tokens) - MOST_UNDECIDED, self._decoded, -1):
            settled = self._spelled(end)
            if after.startswith(settled):
                self._take(before, settled, end)
                return

    def _spelled(self, end: int) -> str:
        return str(self._tokenizer.decode(self._tokens[self._start : end], skip_special_tokens=True))

    def _take(self, before: str, after: str, end: int) -> None:
        """The text of tokens up to ``end`` is certain."""
        self._text += after[len(before) :]
        self._decoded = end
        start = max(self._start, end - CONTEXT_TOKENS)
        # With nothing visible before it, a word would be decoded as the first of a text, without its space.
        if self._tokenizer.decode(self._tokens[start:end], skip_special_tokens=True):
            self._start = start

    def _cut_at_stop(self) -> None:
        places = [place for stop in self._stops if (place := self._text.find(stop, self._earliest(stop))) >= 0]
        if places:
            self._text = self._text[: min(places)]
            self._stopped = True

    def _earliest(self, stop: str) -> int:
        return max(0, self._given - len(stop), self._unstoppable_text - len(stop) + 1)

    def _undecided(self) -> int:
        """Characters at the end that a stop string may begin with."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(self._text)), longest, -1):
                if self._text.endswith(stop[:length]):
                    longest = length
                    break
        return longest
