"""Which of K is best, with few judgements: dueling bandits (Yue et al. 2012) over whatever judges a pair.

    duels = Duels(("sft", "ppo-20", "ppo-40"), method="double_thompson", error=0.05, seed=1)
    while not duels.settled:
        first, second = duels.propose()
        duels.tell(first, second, label)      # 1 the first won, 0 the second, 0.5 a tie

w_KK[i, j] is how often i beat j (a tie is half a win each). Methods propose pairs and may propose (i, i): "i is best as
far as I can tell". That costs no regret in the theory, and asks nothing in practice: Duels then asks what the stopping
rule still lacks.

The stopping rule: a pair is decided when its confidence sequence excludes ½ (mixture of likelihood ratios by Beta(½,
½), Robbins 1970) at level error ÷ number of pairs; so all decisions together, at all times, are wrong with probability
``error`` at most, whatever the method proposes and whenever one looks. Stop when some item's Copeland score under the
decided pairs is at least any other's, undecided ones counted against it and for the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from lodestar.errors import FailedPrecondition, InvalidArgument
from lodestar.preference.ranking.table import Floats, Table

Pair = tuple[int, int]
Chooser = Callable[[Floats, int, np.random.Generator], Pair]
Method = Literal["uniform", "rucb", "double_thompson", "copeland"]
RUCB_ALPHA = 0.51
"""Above ½, as its regret bound asks; the value that its authors use."""
THOMPSON_ALPHA = 0.51


def uniform(w_KK: Floats, t: int, rng: np.random.Generator) -> Pair:
    """Two different items at random: what every method must beat."""
    first, second = rng.choice(len(w_KK), size=2, replace=False)
    return int(first), int(second)


def rucb(w_KK: Floats, t: int, rng: np.random.Generator) -> Pair:
    """Relative upper confidence bound (Zoghi et al. 2014, algorithm 1), for tables with a Condorcet winner.

    The champion is one that may beat all others, the most played of these here (the paper keeps a set B that serves the
    same end); its opponent the one whose upper bound against it is largest.
    """
    upper_KK, _ = _bounds(w_KK, t, RUCB_ALPHA)
    able = np.flatnonzero((upper_KK >= 0.5).all(axis=1))
    if not len(able):
        champion = int(rng.integers(len(w_KK)))
    else:
        played = w_KK[able].sum(axis=1)
        champion = int(rng.choice(able[played == played.max()]))
    against = upper_KK[:, champion].copy()
    against[champion] = 0.5
    rivals = np.flatnonzero(against == against.max())
    others = rivals[rivals != champion]
    return champion, int(rng.choice(others if len(others) else rivals))


def double_thompson(w_KK: Floats, t: int, rng: np.random.Generator) -> Pair:
    """D-TS (Wu & Liu 2016, algorithm 1): Thompson sampling for both of the pair, among possible Copeland winners.

    Works with and without a Condorcet winner.
    """
    count = len(w_KK)
    upper_KK, lower_KK = _bounds(w_KK, t, THOMPSON_ALPHA)
    off_KK = ~np.eye(count, dtype=bool)
    reach_K = ((upper_KK > 0.5) & off_KK).sum(axis=1)
    theta_KK = np.triu(rng.beta(w_KK + 1, w_KK.T + 1), 1)
    theta_KK += np.tril(1 - theta_KK.T, -1)
    score_K = np.where(reach_K == reach_K.max(), ((theta_KK > 0.5) & off_KK).sum(axis=1), -1)
    first = int(rng.choice(np.flatnonzero(score_K == score_K.max())))
    theta_K = rng.beta(w_KK[:, first] + 1, w_KK[first] + 1)
    theta_K[first] = 0.5
    theta_K[lower_KK[:, first] > 0.5] = -1.0
    return first, int(theta_K.argmax())


def copeland(w_KK: Floats, t: int, rng: np.random.Generator, error: float = 0.05) -> Pair:
    """For cycles: SAVAGE with Copeland scores (Urvoy et al. 2013, algorithm 1), with this module's confidence sequence.

    A random one of the least asked pairs that are undecided and have an item that may still have the highest Copeland
    score; a pair whose outcome cannot matter any more is never asked.
    """
    decided_KK = decisions(w_KK, error)
    low_K, high_K = copeland_bounds(decided_KK)
    able_K = high_K >= low_K.max()
    undecided_KK = np.isnan(decided_KK) & (able_K[:, None] | able_K[None, :])
    firsts, seconds = np.nonzero(np.triu(undecided_KK, 1))
    if not len(firsts):
        winner = int(low_K.argmax())
        return winner, winner
    asked = w_KK[firsts, seconds] + w_KK[seconds, firsts]
    one = int(rng.choice(np.flatnonzero(asked == asked.min())))
    return int(firsts[one]), int(seconds[one])


METHODS: dict[Method, Chooser] = {
    "uniform": uniform,
    "rucb": rucb,
    "double_thompson": double_thompson,
    "copeland": copeland,
}


def decisions(w_KK: Floats, error: float, tolerance: float = 0.0) -> Floats:
    """1 where i is better than j, 0 where worse, ½ where the two differ by less than ``tolerance`` (both |p − ½| bounds
    are excluded), NaN where it is not decided; at ``error`` over all pairs and times."""
    n_KK = w_KK + w_KK.T
    level = math.log(len(w_KK) * (len(w_KK) - 1) / 2 / error)
    decided_KK = np.full(w_KK.shape, np.nan)
    apart_KK = _evidence(w_KK, n_KK, 0.5) >= level
    decided_KK[apart_KK] = (w_KK > w_KK.T)[apart_KK]
    if tolerance:
        share_KK = np.divide(w_KK, n_KK, out=np.full(w_KK.shape, 0.5), where=n_KK > 0)
        near_KK = np.abs(share_KK - 0.5) < tolerance
        for bound in (0.5 - tolerance, 0.5 + tolerance):
            near_KK &= _evidence(w_KK, n_KK, bound) >= level
        decided_KK[near_KK] = 0.5
    np.fill_diagonal(decided_KK, 0.5)
    return decided_KK


def copeland_bounds(decided_KK: Floats) -> tuple[Floats, Floats]:
    """Lowest and highest number of others that each item may beat, [K]; a tie is half of one."""
    off_KK = ~np.eye(len(decided_KK), dtype=bool)
    low_KK, high_KK = (np.where(np.isnan(decided_KK), guess, decided_KK) * off_KK for guess in (0.0, 1.0))
    return low_KK.sum(axis=1), high_KK.sum(axis=1)


def condorcet_regret(p_KK: Floats, pairs: Sequence[Pair]) -> Floats:
    """Regret after each duel, [T]: the sum of (Δ_i + Δ_j)/2 with Δ_i = p(winner, i) − ½ (Zoghi et al. 2014, section 2).

    Raises:
        FailedPrecondition: there is no Condorcet winner.
    """
    wins = np.flatnonzero(((p_KK > 0.5) | np.eye(len(p_KK), dtype=bool)).all(axis=1))
    if not len(wins):
        raise FailedPrecondition("no item beats all others: use copeland_regret")
    gap_K = p_KK[wins[0]] - 0.5
    return _cumulated(gap_K, pairs)


def copeland_regret(p_KK: Floats, pairs: Sequence[Pair]) -> Floats:
    """Regret after each duel, [T], by normalised Copeland scores (Zoghi et al. 2015, equation 1)."""
    score_K = ((p_KK > 0.5).sum(axis=1)) / (len(p_KK) - 1)
    return _cumulated(score_K.max() - score_K, pairs)


class Duels:
    """The state of one contest."""

    def __init__(
        self,
        names: Sequence[str],
        *,
        method: Method = "double_thompson",
        error: float = 0.05,
        tolerance: float = 0.0,
        seed: int = 0,
    ) -> None:
        """
        Args:
            error: probability that a wrong winner is named.
            tolerance: items whose probability of winning is within ½ ± this are as good as each other; 0 asks until
                they are told apart, which for equals is for ever.

        Raises:
            InvalidArgument: fewer than two names, one twice, or a number out of range.
        """
        if len(names) < 2 or len(set(names)) < len(names):
            raise InvalidArgument("names", "needs two or more that differ")
        if method not in METHODS:
            raise InvalidArgument("method", f"{method!r} is none of {', '.join(METHODS)}")
        if not 0 < error < 0.5:
            raise InvalidArgument("error", f"must be between 0 and 0.5, is {error}")
        if not 0 <= tolerance < 0.5:
            raise InvalidArgument("tolerance", f"must be from 0 to below 0.5, is {tolerance}")
        self.names = tuple(names)
        self.method, self.error, self.tolerance = method, error, tolerance
        self.w_KK = np.zeros((len(names), len(names)))
        self.told = 0
        self._rng = np.random.default_rng(seed)

    def propose(self) -> Pair:
        """Two different items to compare next."""
        first, second = METHODS[self.method](self.w_KK, self.told + 1, self._rng)
        if first != second:
            return first, second
        return self._open_pair(first)

    def tell(self, first: int, second: int, label: float) -> None:
        """What was judged: 1 the first won, 0 the second, ½ a tie.

        Raises:
            InvalidArgument: no such item, an item against itself, or a label outside 0 … 1.
        """
        if first == second or not all(0 <= one < len(self.names) for one in (first, second)):
            raise InvalidArgument("first, second", f"must be two of the {len(self.names)} items")
        if not 0 <= label <= 1:
            raise InvalidArgument("label", f"must be 0 … 1, is {label}")
        self.w_KK[first, second] += label
        self.w_KK[second, first] += 1 - label
        self.told += 1

    @property
    def winners(self) -> tuple[str, ...]:
        """Who is best at the stated error; several where they are tied for good. Empty while it is not settled."""
        low_K, high_K = copeland_bounds(decisions(self.w_KK, self.error, self.tolerance))
        rivals_KK = np.where(np.eye(len(low_K), dtype=bool), -np.inf, high_K)
        return tuple(name for name, sure in zip(self.names, low_K >= rivals_KK.max(axis=1), strict=True) if sure)

    @property
    def settled(self) -> bool:
        """Whether to stop."""
        return bool(self.winners)

    @property
    def leader(self) -> str:
        """Who would be named now, without any promise: most majorities, then the larger share of the votes."""
        n_KK = self.w_KK + self.w_KK.T
        share_KK = np.divide(self.w_KK, n_KK, out=np.full(n_KK.shape, 0.5), where=n_KK > 0)
        wins_K = (share_KK > 0.5).sum(axis=1) + share_KK.mean(axis=1)
        return self.names[int(wins_K.argmax())]

    def table(self) -> Table:
        """For lodestar.preference.ranking: strengths, Condorcet, Copeland and Borda winners."""
        rows = [
            (self.names[i], self.names[j], 1.0, float(self.w_KK[i, j]))
            for i, j in zip(*np.nonzero(self.w_KK), strict=True)
        ]
        return Table.of(rows)

    def _open_pair(self, best: int) -> Pair:
        """What the stopping rule lacks: the least asked undecided pair of the leader's, else of anybody's."""
        undecided_KK = np.isnan(decisions(self.w_KK, self.error, self.tolerance))
        n_KK = self.w_KK + self.w_KK.T
        mine = np.flatnonzero(undecided_KK[best])
        if len(mine):
            return best, int(mine[n_KK[best, mine].argmin()])
        firsts, seconds = np.nonzero(np.triu(undecided_KK, 1))
        if len(firsts):
            one = n_KK[firsts, seconds].argmin()
            return int(firsts[one]), int(seconds[one])
        return uniform(self.w_KK, self.told, self._rng)


def _bounds(w_KK: Floats, t: int, alpha: float) -> tuple[Floats, Floats]:
    """Upper and lower confidence bounds of p, ½ ± on the diagonal; 1 and 0 where nothing was asked."""
    n_KK = w_KK + w_KK.T
    asked_KK = n_KK > 0
    share_KK = np.divide(w_KK, n_KK, out=np.full(w_KK.shape, 0.5), where=asked_KK)
    half_KK = np.sqrt(np.divide(alpha * math.log(max(t, 2)), n_KK, out=np.full(w_KK.shape, np.inf), where=asked_KK))
    upper_KK, lower_KK = share_KK + half_KK, share_KK - half_KK
    upper_KK[~asked_KK], lower_KK[~asked_KK] = 1.0, 0.0
    for bound_KK in (upper_KK, lower_KK):
        np.fill_diagonal(bound_KK, 0.5)
    return upper_KK, lower_KK


def _evidence(w_KK: Floats, n_KK: Floats, p: float) -> Floats:
    """log of the mixture's likelihood ratio against p, [K, K]; of pairs that were never asked too, where it is 0."""
    log_beta_KK = _log_gamma(w_KK + 0.5) + _log_gamma(n_KK - w_KK + 0.5) - _log_gamma(n_KK + 1.0)
    evidence_KK: Floats = log_beta_KK - math.log(math.pi) - w_KK * math.log(p) - (n_KK - w_KK) * math.log1p(-p)
    return evidence_KK


def _log_gamma(x: Floats) -> Floats:
    """log Γ for x ≥ ½ to 1e-10: Stirling's series at x + 8, and Γ(x + 1) = x·Γ(x) for the way back."""
    far = x + 8.0
    product = x * (x + 1) * (x + 2) * (x + 3) * (x + 4) * (x + 5) * (x + 6) * (x + 7)
    square = far * far
    series = (1 / 12 - (1 / 360 - (1 / 1260 - 1 / (1680 * square)) / square) / square) / far
    value: Floats = (far - 0.5) * np.log(far) - far + 0.5 * math.log(2 * math.pi) + series - np.log(product)
    return value


def _cumulated(gap_K: Floats, pairs: Sequence[Pair]) -> Floats:
    pairs_T2 = np.asarray(pairs, dtype=np.int64)
    regret_T: Floats = np.cumsum(gap_K[pairs_T2].mean(axis=1))
    return regret_T
