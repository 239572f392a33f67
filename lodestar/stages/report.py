"""The report: summary.json for programs and report.html for people, at the top of the run's folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from lodestar.recipe.stage import Bench, Kind, Stage


class Report(Stage):
    """Everything that the run's stages found out, in one page that needs no network."""

    takes: ClassVar[Mapping[str, Kind | tuple[Kind, ...]]] = {"figures": "figures", "reward": "reward_model"}
    optional: ClassVar[frozenset[str]] = frozenset({"figures", "reward"})

    def gathers(self) -> frozenset[str]:
        """All of them."""
        return frozenset({"figures", "reward"})

    def run(self, bench: Bench) -> None:
        """Writes summary.json, then report.html; neither is an artifact, so both can be written anew at any time."""
        from lodestar.report import write_report, write_summary

        write_summary(bench.root)
        write_report(bench.root)
