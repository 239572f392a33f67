"""Did PPO learn or sharpen: on contestants whose KL, entropy and win rates can be worked out by hand."""

import asyncio
import math
import random
from collections.abc import Sequence

import pytest

from lodestar.errors import InvalidArgument
from lodestar.evaluation import best_of_n_kl
from lodestar.rivals import (
    Sampler,
    Side,
    Take,
    best_demonstrations,
    figures,
    play_once,
    play_policy,
    play_start,
    sharpening,
)

REPLIES = 16
PROMPTS = 400


def softened(logits: Sequence[float], temperature: float) -> list[float]:
    """Probabilities at a temperature; 0 is greedy."""
    if not temperature:
        return [float(i == max(range(len(logits)), key=logits.__getitem__)) for i in range(len(logits))]
    odds = [math.exp(logit / temperature) for logit in logits]
    return [one / sum(odds) for one in odds]


def sampler(logits: Sequence[float], start: Sequence[float], golds: Sequence[float], seed: int) -> Sampler:
    """A model with one distribution over REPLIES one-token replies, the same for every prompt."""
    rng, plain = random.Random(seed), softened(start, 1.0)

    async def sample(temperature: float, n: int) -> list[list[Take]]:
        shares = softened(logits, temperature)

        def take() -> Take:
            (reply,) = rng.choices(range(REPLIES), shares)
            jitter = rng.random() * 1e-6  # no two scores are equal
            return Take(golds[reply], golds[reply] + jitter, math.log(shares[reply]), math.log(plain[reply]), 1)

        return [[take() for _ in range(n)] for _ in range(PROMPTS)]

    return sample


def world(seed: int) -> tuple[list[float], list[float]]:
    """A start model's logits and the replies' gold, which have nothing to do with each other."""
    rng = random.Random(seed)
    return [rng.gauss(0, 1) for _ in range(REPLIES)], [rng.gauss(0, 1) for _ in range(REPLIES)]


def played(policy: Sampler, start: Sampler, on_best: Sampler | None = None) -> dict[str, object]:
    async def play() -> dict[str, object]:
        began = await play_start(start)
        rival = None if on_best is None else await play_once(on_best)
        return figures(await play_policy(policy), began, rival)

    return asyncio.run(play())


def test_kl_and_entropy_are_those_of_the_distributions() -> None:
    logits, golds = world(0)
    tilted = [logit + gold for logit, gold in zip(logits, golds, strict=True)]
    for temperature in (1.0, 0.5):
        takes = asyncio.run(sampler(tilted, logits, golds, 1)(temperature, 50))
        side = Side.of([take for several in takes for take in several], temperature)
        p, q = softened(tilted, temperature), softened(logits, 1.0)
        assert side.kl == pytest.approx(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)), abs=0.03)
        assert side.entropy == pytest.approx(-sum(a * math.log(a) for a in p), abs=0.03)


def test_greedy_has_no_entropy_and_the_likeliest_replys_surprise_for_kl() -> None:
    logits, golds = world(0)
    takes = asyncio.run(sampler(logits, logits, golds, 1)(0.0, 1))
    side = Side.of([take for (take,) in takes], 0.0)
    assert side.entropy == 0
    assert side.kl == pytest.approx(-math.log(max(softened(logits, 1.0))))


def test_best_of_n_has_the_kl_and_entropy_of_the_picked_distribution() -> None:
    """Of replies with scores of their own, n draws and the best: P(reply) = F(reply)ⁿ − F(next worse)ⁿ."""
    rng, n, replies = random.Random(3), 4, 2000
    takes = [
        [Take(x := rng.randrange(replies), x, -math.log(replies), -math.log(replies), 1) for _ in range(n)]
        for _ in range(20_000)
    ]
    side = Side.best_of(takes)
    q = [((i + 1) ** n - i**n) / replies**n for i in range(replies)]
    assert (
        side.kl
        == pytest.approx(sum(p * math.log(p * replies) for p in q), abs=2e-3)
        == pytest.approx(best_of_n_kl(n), abs=2e-3)
    )
    assert side.entropy == pytest.approx(-sum(p * math.log(p) for p in q), abs=2e-3)
    with pytest.raises(InvalidArgument, match="as many of every prompt"):
        Side.best_of([takes[0], takes[1][:2]])


def test_a_policy_that_moved_to_what_is_good_has_learned() -> None:
    logits, golds = world(4)
    tilted = [logit + 2 * gold for logit, gold in zip(logits, golds, strict=True)]
    found = played(
        sampler(tilted, logits, golds, 1), sampler(logits, logits, golds, 2), sampler(logits, logits, golds, 3)
    )
    assert set(found["rivals"]) == {"sft_temperature", "sft_greedy", "sft_on_best", "best_of_8"}  # type: ignore[call-overload]
    for rival in found["rivals"].values():  # type: ignore[attr-defined]
        assert {"win_rate", "kl", "entropy", "against_policy"} <= set(rival)
        assert set(rival["against_policy"]) == {"value", "low", "high"}
    assert set(found["greedy"]) == {"value", "low", "high", "n"}  # type: ignore[call-overload]
    assert found["learned"]["verdict"] == "learned"  # type: ignore[index]
    assert found["learned"]["sentence"].startswith("PPO learned what no sharpening gives")  # type: ignore[index]


def test_a_policy_that_is_its_start_model_at_half_the_temperature_has_sharpened() -> None:
    """Where the likeliest replies are the best ones it wins against the start model; that is not learning."""
    logits, _ = world(5)
    cold = [2 * logit for logit in logits]
    found = played(sampler(cold, logits, logits, 1), sampler(logits, logits, logits, 2))
    assert found["policy"]["win_rate"] > 0.65  # type: ignore[index]
    assert "sft_on_best" not in found["rivals"]  # type: ignore[operator]
    assert found["learned"]["verdict"] != "learned"  # type: ignore[index]
    matched = found["learned"]["entropy"]  # type: ignore[index]
    assert matched["temperature"] == pytest.approx(0.5, abs=0.1)
    assert matched["rate"]["low"] < 0.5 < matched["rate"]["high"]


def test_a_policy_that_is_worse_than_a_sharper_start_model_has_sharpened() -> None:
    ladder = [Side([1 - t] * 50, kl=1 - t, entropy=t, temperature=t) for t in (1.0, 0.5, 0.0)]
    worse_than_cool = sharpening(Side([0.4] * 50, kl=0.5, entropy=0.5), ladder)
    assert worse_than_cool.verdict == "sharpened"
    assert worse_than_cool.sentence().startswith("PPO did no more than sharpen")
    assert worse_than_cool.entropy.temperature == 0.5
    assert (worse_than_cool.kl.at, worse_than_cool.kl.beyond) == (0.5, False)


def test_a_policy_that_loses_to_its_start_model_is_praised_for_nothing() -> None:
    ladder = [Side([t] * 50, kl=1 - t, entropy=t, temperature=t) for t in (1.0, 0.5, 0.0)]
    found = sharpening(Side([0.1] * 50, kl=0.5, entropy=0.5), ladder)
    assert found.verdict == "lost"
    assert found.sentence().startswith("PPO made the SFT model worse")


def test_a_kl_that_no_temperature_reaches_is_said_and_greedy_stands_for_it() -> None:
    ladder = [Side([0.0] * 50, kl=1 - t, entropy=t, temperature=t) for t in (1.0, 0.5, 0.0)]
    found = sharpening(Side([1.0] * 50, kl=7.0, entropy=0.25), ladder)
    assert (found.verdict, found.kl.beyond, found.kl.temperature) == ("learned", True, 0.0)
    assert found.entropy.temperature == pytest.approx(0.25)
    assert "which no temperature reaches" in found.sentence()


def test_between_two_temperatures_the_win_rate_is_theirs_in_proportion() -> None:
    warm, cool = Side([0.0] * 100, 0.0, 1.0, 1.0), Side([2.0] * 100, 1.0, 0.0, 0.0)
    found = sharpening(Side([1.0] * 100, kl=0.75, entropy=0.75), [warm, cool])
    assert found.entropy.rate.value == pytest.approx(0.75)
    assert found.kl.rate.value == pytest.approx(0.25)


def test_the_best_demonstrations_keep_their_order() -> None:
    assert best_demonstrations("abcdefghij", [0, 9, 1, 2, 8, 0, 0, 0, 0, 0]) == ["b", "e"]
    assert best_demonstrations("ab", [1.0, 2.0], share=0.1) == ["b"]
    for bad in ({"scores": [1.0]}, {"scores": [1.0, math.nan]}, {"scores": [1.0, 2.0], "share": 0.0}):
        with pytest.raises(InvalidArgument):
            best_demonstrations("ab", **bad)  # type: ignore[arg-type]


def test_takes_that_are_no_numbers_and_temperatures_that_do_not_sharpen_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="takes"):
        Side.of([Take(math.nan, 0.0, 0.0, 0.0, 1)])
    logits, golds = world(0)
    with pytest.raises(InvalidArgument, match="temperatures"):
        asyncio.run(play_start(sampler(logits, logits, golds, 0), temperatures=(1.5,)))
