"""Draws one token per row, with two log-probs: of softmax(logits / temperature), and of what was sampled from."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lodestar.engine.noise import exponential, row_keys, stream_key
from lodestar.engine.sequence import Sequence
from lodestar.records import SamplingParams, TokenCandidate


@dataclass(frozen=True, slots=True, eq=False)
class Sampled:
    """One entry per row."""

    tokens: list[int]
    logprobs: list[float]
    processed_logprobs: list[float]
    """Of a row with non-finite logits: NaN, and its token means nothing."""
    top: dict[int, tuple[TokenCandidate, ...]]
    """Rows that asked for the most likely tokens."""


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """What stays the same while the same sequences are decoded."""

    ids: list[int]
    streams: np.ndarray[tuple[int], np.dtype[np.uint64]]
    temperature_B1: Tensor | None
    """None when every temperature is 1."""
    greedy_B: Tensor | None
    """Rows with temperature 0; None without any."""
    processed: list[int]
    """Rows that top_p, top_k, min_p, min_tokens or logit_bias apply to."""
    top: list[int]
    """Rows that want the most likely tokens."""


def is_processed(sampling: SamplingParams) -> bool:
    """Whether tokens are drawn from something else than softmax(logits / temperature)."""
    return bool(sampling.top_p < 1 or sampling.top_k or sampling.min_p or sampling.min_tokens or sampling.logit_bias)


class Sampler:
    """Samples rows of logits on the device they are on."""

    def __init__(self, eos_ids: Collection[int], device: torch.device) -> None:
        self._eos_ids = tuple(eos_ids)
        self._device = device
        self._rows: _Rows | None = None

    def sample(self, logits_BV: Tensor, sequences: list[Sequence]) -> Sampled:
        """Draw the next token of every sequence; logits are float32, one row per sequence, further rows ignored.

        With temperature 0 the most likely token is taken; its first log-prob is that of softmax(logits), the second 0.
        """
        rows = self._rows
        ids = [sequence.id for sequence in sequences]
        if rows is None or rows.ids != ids:
            rows = self._rows = self._describe(ids, sequences)
        count = len(sequences)
        scaled_BV = logits_BV if rows.temperature_B1 is None else logits_BV / self._padded(rows, logits_BV.shape[0])
        peak_B1 = scaled_BV.amax(-1, keepdim=True)
        weights_BV = (scaled_BV - peak_B1).exp_()
        normaliser_B1 = peak_B1 + weights_BV.sum(-1, keepdim=True).log()
        processed = self._process(scaled_BV, sequences, rows) if rows.processed else None
        if processed is not None:
            weights_BV[rows.processed] = (processed - processed.amax(-1, keepdim=True)).exp_()
        noise_BV = exponential(self._keys(rows, sequences, logits_BV.shape[0]), logits_BV.shape[1])
        if rows.greedy_B is not None:
            noise_BV[rows.greedy_B] = 1
        token_B1 = weights_BV.div_(noise_BV).argmax(-1, keepdim=True)
        logprob_B1 = scaled_BV.gather(1, token_B1) - normaliser_B1
        outcome_B3 = torch.cat([token_B1.double(), logprob_B1.double(), logprob_B1.double()], 1)
        if processed is not None:
            kept_P1 = token_B1[rows.processed]
            outcome_B3[rows.processed, 2:] = (processed.gather(1, kept_P1) - processed.logsumexp(-1, True)).double()
        if rows.greedy_B is not None:
            outcome_B3[rows.greedy_B, 2] *= 0  # keeps NaN
        tokens, logprobs, processed_logprobs = outcome_B3[:count].T.tolist()  # the step's one synchronisation
        return Sampled(
            [int(token) for token in tokens],
            logprobs,
            processed_logprobs,
            self._candidates(scaled_BV, normaliser_B1, sequences, rows),
        )

    def _describe(self, ids: list[int], sequences: list[Sequence]) -> _Rows:
        params = [sequence.request.sampling for sequence in sequences]
        streams = [stream_key(sequence.request.seed, sequence.index) for sequence in sequences]
        temperatures = [sampling.temperature or 1.0 for sampling in params]
        greedy = [row for row, sampling in enumerate(params) if sampling.temperature == 0]
        plain = all(temperature == 1 for temperature in temperatures)
        return _Rows(
            ids=ids,
            streams=np.array(streams, dtype=np.uint64),
            temperature_B1=None if plain else torch.tensor(temperatures, device=self._device)[:, None],
            greedy_B=torch.tensor(greedy, device=self._device) if greedy else None,
            processed=[row for row, sampling in enumerate(params) if is_processed(sampling)],
            top=[row for row, sampling in enumerate(params) if sampling.top_logprobs],
        )

    def _padded(self, rows: _Rows, count: int) -> Tensor:
        assert rows.temperature_B1 is not None
        missing = count - rows.temperature_B1.shape[0]
        return torch.nn.functional.pad(rows.temperature_B1, (0, 0, 0, missing), value=1.0)

    def _keys(self, rows: _Rows, sequences: list[Sequence], count: int) -> Tensor:
        positions = np.array([len(sequence.logprobs) for sequence in sequences], dtype=np.uint64)
        keys = np.zeros((count, 2), dtype=np.int32)
        keys[: len(sequences)] = row_keys(rows.streams, positions)
        return torch.from_numpy(keys).to(self._device)

    def _process(self, scaled_BV: Tensor, sequences: list[Sequence], rows: _Rows) -> Tensor:
        """Rows ``rows.processed`` after logit_bias, min_tokens, top_k, top_p and min_p, in this order; [P, V]."""
        processed_PV = scaled_BV[rows.processed]
        for row_V, row in zip(processed_PV, rows.processed, strict=True):
            sequence = sequences[row]
            sampling = sequence.request.sampling
            if sampling.logit_bias:
                ids = torch.tensor(list(sampling.logit_bias), device=self._device)
                bias = torch.tensor(list(sampling.logit_bias.values()), device=self._device)
                row_V[ids] += bias / (sampling.temperature or 1.0)
            if len(sequence.logprobs) < sampling.min_tokens:
                row_V[[*self._eos_ids, *sampling.stop_token_ids]] = -torch.inf
            if sampling.top_k or sampling.top_p < 1:
                _keep_most_likely(row_V, sampling.top_k, sampling.top_p)
            if sampling.min_p:
                row_V[row_V < row_V.max() + float(np.log(sampling.min_p))] = -torch.inf
        return processed_PV

    def _candidates(
        self, scaled_BV: Tensor, normaliser_B1: Tensor, sequences: list[Sequence], rows: _Rows
    ) -> dict[int, tuple[TokenCandidate, ...]]:
        top = {}
        for row in rows.top:
            wanted = min(sequences[row].request.sampling.top_logprobs, scaled_BV.shape[1])
            best = scaled_BV[row].topk(wanted)
            logprobs = (best.values - normaliser_B1[row]).tolist()
            top[row] = tuple(map(TokenCandidate, best.indices.tolist(), logprobs))
        return top


def _keep_most_likely(row_V: Tensor, top_k: int, top_p: float) -> None:
    """−inf for all but the ``top_k`` best, and of those all but the fewest whose probabilities reach ``top_p``."""
    k = min(top_k, row_V.shape[0]) if top_k else row_V.shape[0]
    best = row_V.topk(k)
    before_K = best.values.softmax(-1).cumsum(-1, dtype=torch.float64).roll(1)
    before_K[0] = 0
    kept_K = before_K < top_p
    row_V.fill_(-torch.inf).scatter_(0, best.indices[kept_K], best.values[kept_K])
