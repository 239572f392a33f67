"""Draws one token per row, with two log-probs: of softmax(logits / temperature), and of what was sampled from."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lodestar.engine.draw import block_mass, draw
from lodestar.engine.memory import to_device
from lodestar.engine.noise import row_keys, stream_key
from lodestar.engine.processing import Processing, is_processed
from lodestar.engine.sequence import Sequence
from lodestar.records import TokenCandidate


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
    greedy_G: Tensor | None
    """Rows with temperature 0; None without any."""
    processing: Processing | None
    """For rows that top_p, top_k, min_p, min_tokens or logit_bias apply to; None without any."""
    top: dict[int, int]
    """Rows that want the most likely tokens, and how many."""
    top_U: Tensor | None
    """Those rows; None without any."""


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
            rows = self._rows = self._describe(ids, sequences, logits_BV.shape[1])
        count = len(sequences)
        generated_B = np.array([len(sequence.logprobs) for sequence in sequences])
        scaled_BV = logits_BV if rows.temperature_B1 is None else logits_BV / self._padded(rows, logits_BV.shape[0])
        peak_B1 = scaled_BV.amax(-1, keepdim=True)
        weights_BV = (scaled_BV - peak_B1).exp_()
        mass_BK = block_mass(weights_BV)
        normaliser_B1 = peak_B1 + mass_BK.sum(-1, keepdim=True).log()
        processing = rows.processing
        if processing is not None:
            processed_PV = processing.apply(scaled_BV, to_device(torch.from_numpy(generated_B), self._device))
            drawn_PV = (processed_PV - processed_PV.amax(-1, keepdim=True)).exp_()
            weights_BV.index_copy_(0, processing.rows_P, drawn_PV)
            mass_BK.index_copy_(0, processing.rows_P, block_mass(drawn_PV))
        token_B1 = draw(weights_BV, mass_BK, self._keys(rows, generated_B, logits_BV.shape[0]))
        if rows.greedy_G is not None:
            best_G1 = weights_BV.index_select(0, rows.greedy_G).argmax(-1, keepdim=True)
            token_B1.index_copy_(0, rows.greedy_G, best_G1)
        logprob_B1 = scaled_BV.gather(1, token_B1) - normaliser_B1
        outcome_B3 = torch.cat([token_B1.double(), logprob_B1.double(), logprob_B1.double()], 1)
        if processing is not None:
            kept_P1 = token_B1.index_select(0, processing.rows_P)
            kept_logprob_P1 = processed_PV.gather(1, kept_P1) - processed_PV.logsumexp(-1, True)
            outcome_B3[:, 2:].index_copy_(0, processing.rows_P, kept_logprob_P1.double())
        if rows.greedy_G is not None:
            outcome_B3[rows.greedy_G, 2] *= 0  # keeps NaN
        best = self._best(scaled_BV, normaliser_B1, rows)
        figures = torch.cat([outcome_B3[:count].flatten(), *best]).tolist()  # the step's one synchronisation
        return Sampled(
            [int(token) for token in figures[: 3 * count : 3]],
            figures[1 : 3 * count : 3],
            figures[2 : 3 * count : 3],
            _candidates(rows, figures[3 * count :]),
        )

    def _describe(self, ids: list[int], sequences: list[Sequence], vocab: int) -> _Rows:
        params = [sequence.request.sampling for sequence in sequences]
        streams = [stream_key(sequence.request.seed, sequence.index) for sequence in sequences]
        temperatures = [sampling.temperature or 1.0 for sampling in params]
        greedy = [row for row, sampling in enumerate(params) if sampling.temperature == 0]
        plain = all(temperature == 1 for temperature in temperatures)
        processed = [row for row, sampling in enumerate(params) if is_processed(sampling)]
        top = {row: min(sampling.top_logprobs, vocab) for row, sampling in enumerate(params) if sampling.top_logprobs}
        eos_ids = [token for token in self._eos_ids if token < vocab]
        return _Rows(
            ids=ids,
            streams=np.array(streams, dtype=np.uint64),
            temperature_B1=None if plain else torch.tensor(temperatures, device=self._device)[:, None],
            greedy_G=torch.tensor(greedy, device=self._device) if greedy else None,
            processing=Processing(processed, [params[row] for row in processed], eos_ids, vocab, self._device)
            if processed
            else None,
            top=top,
            top_U=torch.tensor(list(top), device=self._device) if top else None,
        )

    def _padded(self, rows: _Rows, count: int) -> Tensor:
        assert rows.temperature_B1 is not None
        missing = count - rows.temperature_B1.shape[0]
        return torch.nn.functional.pad(rows.temperature_B1, (0, 0, 0, missing), value=1.0)

    def _keys(self, rows: _Rows, generated_B: NDArray[np.int64], count: int) -> Tensor:
        keys = np.zeros((count, 2), dtype=np.int32)
        keys[: len(generated_B)] = row_keys(rows.streams, generated_B.astype(np.uint64))
        return to_device(torch.from_numpy(keys), self._device)

    def _best(self, scaled_BV: Tensor, normaliser_B1: Tensor, rows: _Rows) -> list[Tensor]:
        """Log-probs and ids of the rows' most likely tokens, as many for each as the greediest row wants."""
        if rows.top_U is None:
            return []
        best = scaled_BV.index_select(0, rows.top_U).topk(max(rows.top.values()))
        logprobs_UK = best.values - normaliser_B1.index_select(0, rows.top_U)
        return [logprobs_UK.double().flatten(), best.indices.double().flatten()]


def _candidates(rows: _Rows, figures: list[float]) -> dict[int, tuple[TokenCandidate, ...]]:
    """From the figures of :meth:`Sampler._best`."""
    each = max(rows.top.values(), default=0)
    ids = figures[len(figures) // 2 :]
    top = {}
    for place, (row, wanted) in enumerate(rows.top.items()):
        span = slice(place * each, place * each + wanted)
        top[row] = tuple(map(TokenCandidate, map(int, ids[span]), figures[span]))
    return top
