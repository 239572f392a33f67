"""Processing of logits against plain softmax arithmetic, and noise that depends on its key alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from lodestar.engine.draw import block_mass
from lodestar.engine.draw import draw as draw_tokens
from lodestar.engine.noise import exponential, row_keys, stream_key
from lodestar.engine.sampler import Sampler
from lodestar.engine.sequence import Request, Sequence
from lodestar.records import SamplingParams

VOCAB = 50


def sequence_of(sampling: SamplingParams, seed: int = 0, index: int = 0) -> Sequence:
    request = Request(seed * 1000 + index, (3,), sampling, seed)
    return Sequence(request.id, request, index, [3])


def draw(logits_V: torch.Tensor, sampling: SamplingParams, samples: int = 3000) -> tuple[torch.Tensor, Any, Any]:
    """Frequencies of the tokens, and log-probs by token."""
    sequences = [sequence_of(sampling, seed) for seed in range(samples)]
    sampled = Sampler([1], torch.device("cpu")).sample(logits_V.repeat(samples, 1), sequences)
    frequencies = torch.bincount(torch.tensor(sampled.tokens), minlength=VOCAB) / samples
    return (
        frequencies,
        dict(zip(sampled.tokens, sampled.logprobs, strict=True)),
        dict(zip(sampled.tokens, sampled.processed_logprobs, strict=True)),
    )


def kept(p: torch.Tensor, sampling: SamplingParams) -> torch.Tensor:
    """The processed distribution, the slow and obvious way."""
    order = p.argsort(descending=True).tolist()
    if sampling.top_k:
        order = order[: sampling.top_k]
    total, nucleus, reached = sum(float(p[i]) for i in order), [], 0.0
    for i in order:
        if reached < sampling.top_p:
            nucleus.append(i)
        reached += float(p[i]) / total
    nucleus = [i for i in nucleus if p[i] >= sampling.min_p * p.max()]
    result = torch.zeros(VOCAB)
    result[nucleus] = p[nucleus]
    return result / result.sum()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.6},
        {"top_p": 0.7},
        {"top_k": 5},
        {"min_p": 0.2},
        {"top_k": 12, "top_p": 0.8, "min_p": 0.05, "temperature": 1.4},
    ],
)
def test_both_logprobs_and_the_frequencies_are_those_of_the_distributions(options: dict[str, Any]) -> None:
    sampling = SamplingParams(4, **options)
    logits_V = torch.randn(VOCAB, generator=torch.Generator().manual_seed(3)) * 2
    plain = (logits_V / sampling.temperature).softmax(0)
    processed = kept(plain, sampling)
    frequencies, logprobs, processed_logprobs = draw(logits_V, sampling)
    assert frequencies == pytest.approx(processed, abs=0.035)
    assert float(frequencies[processed == 0].sum()) == 0
    for token in logprobs:
        assert logprobs[token] == pytest.approx(math.log(plain[token]), abs=1e-4)
        assert processed_logprobs[token] == pytest.approx(math.log(processed[token]), abs=1e-4)


def test_bias_shifts_the_processed_distribution_only() -> None:
    logits_V = torch.zeros(VOCAB)
    frequencies, logprobs, processed = draw(logits_V, SamplingParams(4, logit_bias={7: 3.0, 8: -50.0}))
    assert frequencies[7] == pytest.approx(math.exp(3) / (math.exp(3) + VOCAB - 2), abs=0.04)
    assert frequencies[8] == 0
    assert logprobs[7] == pytest.approx(-math.log(VOCAB), abs=1e-5)
    assert processed[7] == pytest.approx(3 - math.log(math.exp(3) + VOCAB - 2), abs=1e-4)


def test_greedy_takes_the_likeliest_with_the_log_prob_of_temperature_1() -> None:
    logits_V = torch.randn(VOCAB, generator=torch.Generator().manual_seed(4))
    frequencies, logprobs, processed = draw(logits_V, SamplingParams(4, temperature=0), samples=20)
    best = int(logits_V.argmax())
    assert frequencies[best] == 1
    assert logprobs[best] == pytest.approx(float(logits_V.log_softmax(0)[best]), abs=1e-5)
    assert processed[best] == 0


def test_top_logprobs_are_the_likeliest_in_order() -> None:
    logits_V = torch.randn(VOCAB, generator=torch.Generator().manual_seed(4))
    rows = [sequence_of(SamplingParams(4, top_logprobs=3)), sequence_of(SamplingParams(4), seed=1)]
    sampled = Sampler([1], torch.device("cpu")).sample(logits_V.repeat(2, 1), rows)
    best = logits_V.log_softmax(0).topk(3)
    assert [c.token_id for c in sampled.top[0]] == best.indices.tolist()
    assert [c.logprob for c in sampled.top[0]] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert list(sampled.top) == [0]


def test_logits_that_are_not_finite_give_nan_to_their_row_alone() -> None:
    logits_BV = torch.zeros(4, VOCAB)
    logits_BV[0, 5], logits_BV[1, 5], logits_BV[2] = torch.nan, torch.inf, -torch.inf
    sequences = [sequence_of(SamplingParams(4, temperature=i % 2), seed=i) for i in range(4)]
    logprobs = Sampler([1], torch.device("cpu")).sample(logits_BV, sequences).logprobs
    assert [math.isnan(value) for value in logprobs] == [True, True, True, False]


def test_noise_is_a_function_of_its_key_and_exponential() -> None:
    streams = np.array([stream_key(seed, 0) for seed in range(400)], dtype=np.uint64)
    keys = torch.from_numpy(row_keys(streams, np.full(400, 5, dtype=np.uint64)))
    noise = exponential(keys, 500)
    assert torch.equal(noise[3:9], exponential(keys[3:9], 500))
    assert float(noise.min()) > 0
    assert float(noise.mean()) == pytest.approx(1, abs=0.01)
    assert float((noise > 1).float().mean()) == pytest.approx(math.exp(-1), abs=0.005)
    rows = noise.log()
    centred = rows - rows.mean()
    assert abs(float((centred[1:] * centred[:-1]).mean() / centred.var())) < 0.01
    assert abs(float((centred[:, 1:] * centred[:, :-1]).mean() / centred.var())) < 0.01
    assert len({stream_key(seed, sample) for seed in range(50) for sample in range(50)}) == 2500


# --- drawing in two steps ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("vocab", [1, 50, 64, 65, 1000])
def test_tokens_are_drawn_in_proportion_to_their_weights_whatever_their_block(vocab: int) -> None:
    weights_V = torch.rand(vocab, generator=torch.Generator().manual_seed(vocab)) ** 8
    weights_V[: vocab // 3] = 0
    draws = 20_000
    streams = np.array([stream_key(seed, 0) for seed in range(draws)], dtype=np.uint64)
    keys_B2 = torch.from_numpy(row_keys(streams, np.zeros(draws, dtype=np.uint64)))
    weights_BV = weights_V.repeat(draws, 1)
    tokens = draw_tokens(weights_BV, block_mass(weights_BV), keys_B2)[:, 0]
    observed, expected = torch.bincount(tokens, minlength=vocab), draws * weights_V / weights_V.sum()
    assert int(observed[: vocab // 3].sum()) == 0
    large = expected >= 5
    if int(large.sum()) > 1:
        chi2 = float(((observed - expected)[large] ** 2 / expected[large]).sum())
        degrees = int(large.sum()) - 1
        assert chi2 < degrees + 5 * (2 * degrees) ** 0.5


def test_a_row_is_processed_alike_beside_any_other() -> None:
    rows = [
        SamplingParams(4, top_p=0.7),
        SamplingParams(4, top_k=5, top_p=0.9),
        SamplingParams(4, min_p=0.2, logit_bias={3: 2.0}),
        SamplingParams(4, min_tokens=3, stop_token_ids=(9, 10)),
        SamplingParams(4, temperature=0, logit_bias={8: 40.0}),
        SamplingParams(4, top_k=5, top_logprobs=2),
        SamplingParams(4, top_logprobs=5),
    ]
    logits_BV = torch.randn(len(rows), VOCAB, generator=torch.Generator().manual_seed(3)) * 2
    sampler = Sampler([1], torch.device("cpu"))
    together = sampler.sample(logits_BV, [sequence_of(sampling, seed) for seed, sampling in enumerate(rows)])
    for row, sampling in enumerate(rows):
        alone = sampler.sample(logits_BV[row : row + 1], [sequence_of(sampling, row)])
        assert alone.tokens == together.tokens[row : row + 1]
        assert alone.processed_logprobs == together.processed_logprobs[row : row + 1]
        assert alone.top.get(0) == together.top.get(row)
    assert together.tokens[4] == 8
    assert [len(together.top[row]) for row in (5, 6)] == [2, 5]


def test_stops_are_forbidden_up_to_the_least_number_of_tokens() -> None:
    sampler = Sampler([1], torch.device("cpu"))
    logits_BV = torch.zeros(1, VOCAB)
    logits_BV[0, [1, 9]] = 50.0
    sequence = sequence_of(SamplingParams(6, min_tokens=2, stop_token_ids=(9,)))
    drawn = []
    for _ in range(4):
        drawn += sampler.sample(logits_BV, [sequence]).tokens
        sequence.logprobs.append(0.0)
    assert not {1, 9} & set(drawn[:2])
    assert set(drawn[2:]) <= {1, 9}
