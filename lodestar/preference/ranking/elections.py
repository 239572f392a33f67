"""Winners that assume no model of how preferences arise: Condorcet, Copeland, Borda.

They look at pairwise majorities. With a cycle (a beats b, b beats c, c beats a) there is no Condorcet winner, and
Bradley–Terry strengths describe the table badly; Copeland's and Borda's rules always name somebody.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lodestar.preference.ranking.table import Floats


@dataclass(frozen=True, slots=True)
class Standing:
    """What the rules say of one item: ``Standing(copeland=3.5, borda=0.71, opponents=5)``."""

    copeland: float
    """Opponents beaten by majority, plus half of those tied with (Copeland 1951)."""
    borda: float
    """Mean share of the vote, each opponent weighing the same, 0 … 1: Borda's count from pairwise votes."""
    opponents: int
    """Items it was compared with; the two counts are over these."""


def standings(votes_KK: Floats) -> list[Standing]:
    """Every item's; ``votes_KK[i, j]`` is how many votes i got against j."""
    met_KK = (votes_KK + votes_KK.T) > 0
    share_KK = np.divide(votes_KK, votes_KK + votes_KK.T, out=np.zeros_like(votes_KK), where=met_KK)
    opponents_K = met_KK.sum(axis=1)
    won_KK = np.where(met_KK, (votes_KK > votes_KK.T) + 0.5 * (votes_KK == votes_KK.T), 0.0)
    return [
        Standing(float(won), float(share / max(1, opponents)), int(opponents))
        for won, share, opponents in zip(won_KK.sum(axis=1), share_KK.sum(axis=1), opponents_K, strict=True)
    ]


def condorcet_winner(votes_KK: Floats) -> int | None:
    """The item that wins a majority against every other, all of whom it must have met; None without one."""
    beaten_K = (votes_KK > votes_KK.T).sum(axis=1)
    winners = np.flatnonzero(beaten_K == len(votes_KK) - 1)
    return int(winners[0]) if len(winners) else None
