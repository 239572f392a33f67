"""Did PPO learn, or only sharpen? What it must beat: everything that needs no PPO, on the same prompts.

A policy with less entropy than its start model wins against it even if it has learned nothing, where the start model's
likeliest replies are its best ones. So PPO is held against rivals that sharpen, filter or pick:

    sft_temperature   the SFT model at the lower temperature at which it does best
    sft_greedy        the SFT model's likeliest token, always
    sft_on_best       the SFT model trained further on the demonstrations that the reward model likes best
    best_of_8         of eight samples of the SFT model the one that the reward model likes best

and at equal entropy and at equal KL with SFT at whatever temperature that takes. All of it is arithmetic on judged
replies; whoever calls brings the replies (``Sampler``), from services or from one process.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from lodestar.errors import InvalidArgument

if TYPE_CHECKING:  # it brings numpy and scipy, and a plan needs the names below alone
    from lodestar.evaluation import WinRate

TEMPERATURES = (0.8, 0.6, 0.4, 0.2)
"""At which the SFT model is sampled, beside 1 and greedy."""
BEST_OF = 8
BEST_SHARE = 0.2
"""Of demonstrations, by the reward model's score, that make ``sft_on_best``."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Take:
    """One judged reply: ``Take(judgement=3.2, score=1.4, logprob=-9.1, start_logprob=-12.3, tokens=17)``."""

    judgement: float
    """The judge's, larger is better: gold, or what stands for it."""
    score: float
    """The reward model's."""
    logprob: float
    """Nats: of the whole reply under what it was sampled from, at that temperature; 0 where that is greedy."""
    start_logprob: float
    """Nats: of the whole reply under the SFT model at temperature 1."""
    tokens: int
    """EOS included."""


Sampler = Callable[[float, int], Awaitable[list[list[Take]]]]
"""(temperature, n) → n independent takes of every prompt, prompts in one order always. Temperature 0 is greedy."""


@dataclass(frozen=True, slots=True)
class Side:
    """How one contestant plays: a take per prompt, and how far it is from the SFT model."""

    judgements: list[float]
    kl: float
    """Nats per reply to the SFT model at temperature 1, from the takes: mean of log π(y) − log π_SFT(y)."""
    entropy: float
    """Nats per token, from the takes: −Σ log π(y) / Σ tokens."""
    temperature: float | None = None
    score: float = 0.0
    """Mean of the reward model's."""

    @classmethod
    def of(cls, takes: Sequence[Take], temperature: float | None = None, *, picked_of: int = 1) -> Side:
        """The side that these takes are samples of, one per prompt.

        Args:
            picked_of: each take was picked of so many samples. ``logprob`` is of the model sampled from, and picking
                adds its own KL (see ``best_of``) to that of the model and takes it from its entropy.

        Raises:
            InvalidArgument: no takes, or a number among them that is not finite.
        """
        figures = [x for take in takes for x in (take.judgement, take.logprob, take.start_logprob)]
        if not takes or not all(map(math.isfinite, figures)):
            raise InvalidArgument("takes", "none, or one that is not finite")
        picking = math.log(picked_of) - (picked_of - 1) / picked_of
        kl = math.fsum(take.logprob - take.start_logprob for take in takes) / len(takes) + picking
        surprise = -math.fsum(take.logprob for take in takes) - picking * len(takes)
        entropy = surprise / sum(take.tokens for take in takes)
        score = math.fsum(take.score for take in takes) / len(takes)
        return cls([take.judgement for take in takes], kl, max(0.0, entropy), temperature, score)

    @classmethod
    def best_of(cls, takes: Sequence[Sequence[Take]]) -> Side:
        """The take of each prompt that scores best of all n.

        KL is log n − (n − 1)/n, exact where no two scores are equal (Beirami et al. 2024 bound it by that), and with
        q the picked takes' distribution the entropy is E_q[−log π_SFT] − KL(q ‖ π_SFT).

        Raises:
            InvalidArgument: as ``of``, or prompts of unlike n.
        """
        from lodestar.evaluation import best_of_n, best_of_n_kl

        if len({len(several) for several in takes}) != 1:
            raise InvalidArgument("takes", "as many of every prompt are needed")
        n = len(takes[0])
        chosen = best_of_n([[take.score for take in several] for several in takes], takes, n)
        kl = best_of_n_kl(n)
        plain = Side.of(chosen)
        surprise = -math.fsum(take.start_logprob for take in chosen) / len(chosen)
        tokens = sum(take.tokens for take in chosen) / len(chosen)
        return cls(plain.judgements, kl, max(0.0, (surprise - kl) / tokens), score=plain.score)


@dataclass(frozen=True, slots=True)
class Start:
    """What the SFT model does without PPO."""

    plain: Side
    """At temperature 1: the baseline of every win rate."""
    cooler: list[Side]
    """At lower temperatures, greedy last."""
    best_of: dict[str, Side]
    """By n, as text."""


async def play_start(
    sample: Sampler, *, temperatures: Sequence[float] = TEMPERATURES, best_of: Sequence[int] = (BEST_OF,)
) -> Start:
    """Samples the SFT model: once at temperature 1, once at each lower one, once greedily, and n times for best-of-n if
    that is asked for.

    Raises:
        InvalidArgument: a temperature that is not between 0 and 1; see Side.of.
    """
    if not all(0 < temperature < 1 for temperature in temperatures):
        raise InvalidArgument("temperatures", f"{list(temperatures)}: above 0 and below 1; greedy is always played")
    plain = Side.of(only(await sample(1.0, 1)), 1.0)
    cooler = []
    for temperature in (*sorted(temperatures, reverse=True), 0.0):
        cooler.append(Side.of(only(await sample(temperature, 1)), temperature))
    several = await sample(1.0, max(best_of)) if best_of else []
    return Start(plain, cooler, {str(n): Side.best_of([takes[:n] for takes in several]) for n in best_of})


@dataclass(frozen=True, slots=True)
class Contender:
    """What the trained policy does."""

    plain: Side
    greedy: Side


async def play_policy(sample: Sampler, *, picked_of: int = 1) -> Contender:
    """Samples the policy, once at temperature 1, where each reply is picked of so many, and once greedily."""
    plain = Side.of(only(await sample(1.0, 1)), 1.0, picked_of=picked_of)
    return Contender(plain, Side.of(only(await sample(0.0, 1)), 0.0))


async def play_once(sample: Sampler) -> Side:
    """Samples a rival at temperature 1, for one: ``sft_on_best``."""
    return Side.of(only(await sample(1.0, 1)), 1.0)


def figures(policy: Contender, start: Start, on_best: Side | None = None, *, method: str = "PPO") -> dict[str, Any]:
    """evaluation.json's part: ``rivals``, ``greedy``, the ``policy``'s own figures, ``learned`` with the sentence, and
    ``sft``: the SFT model at every temperature, from 1 down to greedy.

    ``on_best`` is None where no such model was trained; it is then missing from ``rivals``. ``method`` is how the
    sentence calls what made the policy.
    """
    warm = [side for side in start.cooler if side.temperature]
    greedy = start.cooler[-1]
    best = min(warm or [start.plain], key=lambda side: _rate(policy.plain, side).value)
    sides = {"sft_temperature": best, "sft_greedy": greedy, "sft_on_best": on_best}
    sides |= {f"best_of_{n}": side for n, side in start.best_of.items()}
    found = sharpening(policy.plain, [start.plain, *start.cooler])

    def held_against(side: Side) -> dict[str, Any]:
        return _described(side, start.plain) | {"against_policy": _interval(_rate(policy.plain, side))}

    return {
        "rivals": {name: held_against(side) for name, side in sides.items() if side is not None},
        "sft": [held_against(side) for side in (start.plain, *start.cooler)],
        "greedy": asdict(_rate(policy.greedy, greedy)),
        "policy": _described(policy.plain, start.plain),
        "learned": asdict(found) | {"sentence": found.sentence(method)},
    }


@dataclass(frozen=True, slots=True)
class Matched:
    """The policy against the SFT model sharpened until a figure of both is the same."""

    at: float
    """The policy's figure, nats."""
    temperature: float
    """The SFT model's, at which it has that figure."""
    rate: WinRate
    beyond: bool
    """No temperature reaches the figure: greedy SFT, the farthest, stands for it."""


@dataclass(frozen=True, slots=True)
class Sharpening:
    """Whether PPO did more than sharpen."""

    verdict: Literal["learned", "sharpened", "lost", "undecided"]
    """learned: it beats equal entropy and equal KL, both intervals above ½; lost: it loses to the SFT model as it is;
    sharpened: one of the two intervals lies below or at ½; undecided: none of these."""
    entropy: Matched
    kl: Matched

    def sentence(self, method: str = "PPO") -> str:
        """For the report, with its figures."""
        said = {
            "learned": "learned what no sharpening gives",
            "sharpened": "did no more than sharpen",
            "lost": "made the SFT model worse",
            "undecided": "cannot be told from sharpening on these prompts",
        }[self.verdict]
        parts = (
            _match_in_words(self.entropy, f"the entropy is the same ({self.entropy.at:.2f} nats per token)"),
            _match_in_words(self.kl, f"the KL is the same ({self.kl.at:.1f} nats per reply)"),
        )
        name = f"{method[:1].upper()}{method[1:]}"
        return f"{name} {said}: against the SFT model at the temperature where {parts[0]}; where {parts[1]}."


def sharpening(policy: Side, ladder: Sequence[Side]) -> Sharpening:
    """Holds the policy against the SFT model at equal entropy and equal KL.

    ``ladder`` is the SFT model from temperature 1 down to 0. Between two of its rungs temperature and win rate are
    linear in the figure that is matched.
    """
    entropy = _matched(policy, ladder, lambda side: side.entropy)
    kl = _matched(policy, ladder, lambda side: side.kl)
    rates = (entropy.rate, kl.rate)
    verdict: Literal["learned", "sharpened", "lost", "undecided"] = "undecided"
    if all(rate.low > 0.5 for rate in rates):
        verdict = "learned"
    elif _rate(policy, ladder[0]).high < 0.5:
        verdict = "lost"
    elif any(rate.high <= 0.5 for rate in rates):
        verdict = "sharpened"
    return Sharpening(verdict, entropy, kl)


def best_demonstrations(rows: Sequence[T], scores: Sequence[float], *, share: float = BEST_SHARE) -> list[T]:
    """The share of demonstrations that the reward model scores best, in their order: what ``sft_on_best`` learns from.

    Raises:
        InvalidArgument: as many scores as rows are needed; a share outside 0 … 1; a score that is not finite.
    """
    if len(rows) != len(scores) or not rows:
        raise InvalidArgument("scores", f"{len(scores)} of {len(rows)} demonstrations")
    if not 0 < share <= 1 or not all(map(math.isfinite, scores)):
        raise InvalidArgument("share", f"{share} is not in 0 … 1, or a score is not finite")
    kept = sorted(range(len(rows)), key=lambda row: -scores[row])[: max(1, round(share * len(rows)))]
    return [rows[row] for row in sorted(kept)]


def only(takes: Sequence[Sequence[Take]]) -> list[Take]:
    """The one take of each prompt."""
    return [take for (take,) in takes]


def _matched(policy: Side, ladder: Sequence[Side], figure: Callable[[Side], float]) -> Matched:
    wanted = figure(policy)
    for warmer, cooler in itertools.pairwise(ladder):
        here, there = figure(warmer), figure(cooler)
        if min(here, there) <= wanted <= max(here, there):
            part = 0.0 if here == there else (wanted - here) / (there - here)
            return Matched(wanted, _between(warmer, cooler, part), _mixed(policy, warmer, cooler, part), beyond=False)
    nearest = min(ladder, key=lambda side: abs(figure(side) - wanted))
    return Matched(wanted, nearest.temperature or 0.0, _rate(policy, nearest), beyond=True)


def _between(warmer: Side, cooler: Side, part: float) -> float:
    first, second = warmer.temperature or 0.0, cooler.temperature or 0.0
    return first + part * (second - first)


def _mixed(policy: Side, warmer: Side, cooler: Side, part: float) -> WinRate:
    from lodestar.evaluation import WinRate

    first, second = asdict(_rate(policy, warmer)), asdict(_rate(policy, cooler))
    value, low, high = (first[name] + part * (second[name] - first[name]) for name in ("value", "low", "high"))
    return WinRate(value, low, high, first["n"])


def _match_in_words(match: Matched, where: str) -> str:
    rate = f"{match.rate.value:.0%} [{match.rate.low:.0%}, {match.rate.high:.0%}]"
    if match.beyond:
        return f"{where}, which no temperature reaches, so at {match.temperature:.2f}, it wins {rate}"
    return f"{where}, {match.temperature:.2f}, it wins {rate}"


def _rate(ours: Side, theirs: Side) -> WinRate:
    from lodestar.evaluation import win_rate

    return win_rate(ours.judgements, theirs.judgements)


def _interval(rate: WinRate) -> dict[str, float]:
    return {"value": rate.value, "low": rate.low, "high": rate.high}


def _described(side: Side, baseline: Side) -> dict[str, Any]:
    rate = _rate(side, baseline)
    described: Mapping[str, Any] = {
        "win_rate": rate.value,
        "low": rate.low,
        "high": rate.high,
        "kl": side.kl,
        "entropy": side.entropy,
        "judgement": math.fsum(side.judgements) / len(side.judgements),
        "score": side.score,
    }
    return dict(described) | ({} if side.temperature is None else {"temperature": side.temperature})
