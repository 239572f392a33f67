"""Reads the Prometheus metrics of the run's own services, for the live view and the summary."""

from __future__ import annotations

import contextlib
import http.client
import urllib.request
from collections import defaultdict

from prometheus_client.parser import text_string_to_metric_families


def scrape(port: int, timeout: float = 2.0) -> dict[str, float] | None:
    """Sample name → value summed over labels; None when nothing answers on the loopback port."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        # No proxy from the environment may stand between a process and its own machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{port}/metrics", timeout=timeout) as answer:
            text = answer.read().decode()
        sums: dict[str, float] = defaultdict(float)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                sums[sample.name] += sample.value
        return dict(sums)
    return None


class Counters:
    """Counters of one service, added up over its restarts."""

    def __init__(self) -> None:
        self._past: dict[str, float] = defaultdict(float)
        self._now: dict[str, float] = {}

    def update(self, samples: dict[str, float]) -> None:
        """The present process's samples."""
        self._now = samples

    def restarted(self) -> None:
        """The process ended: its counts are kept, the next one starts at zero."""
        for name, value in self._now.items():
            self._past[name] += value
        self._now = {}

    def total(self, *names: str) -> int:
        """Sum of counters over names and restarts."""
        return int(sum(self._past.get(name, 0.0) + self._now.get(name, 0.0) for name in names))

    def present(self, name: str) -> float | None:
        """A gauge of the present process."""
        return self._now.get(name)
