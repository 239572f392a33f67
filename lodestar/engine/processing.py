"""What a request makes of the model's distribution before its token is drawn, for all rows of a batch that want it.

In this order: logit_bias, min_tokens, top_k, top_p, min_p. A row's outcome does not depend on the other rows, and
nothing here waits for the device.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection
from collections.abc import Sequence as Tokens
from dataclasses import dataclass

import torch
from torch import Tensor

from lodestar.records import SamplingParams


def is_processed(sampling: SamplingParams) -> bool:
    """Whether tokens are drawn from something else than softmax(logits / temperature)."""
    return bool(sampling.top_p < 1 or sampling.top_k or sampling.min_p or sampling.min_tokens or sampling.logit_bias)


@dataclass(frozen=True, slots=True, eq=False)
class _Nucleus:
    """Rows that look at as many tokens: a sum over the same number of terms has the same bits in any batch."""

    rows_G: Tensor
    top_k: int
    top_p_G1: Tensor


class Processing:
    """For P rows of a batch; made anew when its sequences change."""

    def __init__(
        self,
        rows: list[int],
        params: Tokens[SamplingParams],
        eos_ids: Collection[int],
        vocab: int,
        device: torch.device,
    ) -> None:
        """``rows`` are places in the batch, ``params`` what their requests ask for."""
        self.rows_P = torch.tensor(rows, device=device)
        biased = [
            (row, token, bias / (sampling.temperature or 1.0))
            for row, sampling in enumerate(params)
            for token, bias in sampling.logit_bias.items()
        ]
        held = [
            (row, token, sampling.min_tokens)
            for row, sampling in enumerate(params)
            if sampling.min_tokens
            for token in {*eos_ids, *sampling.stop_token_ids}
        ]
        by_size: defaultdict[int, list[int]] = defaultdict(list)
        for row, sampling in enumerate(params):
            if sampling.top_k or sampling.top_p < 1:
                by_size[min(sampling.top_k or vocab, vocab)].append(row)
        floors = [(row, math.log(sampling.min_p)) for row, sampling in enumerate(params) if sampling.min_p]
        self._biased = _columns(biased, device)
        self._held = _columns(held, device)
        self._nuclei = [
            _Nucleus(
                torch.tensor(members, device=device),
                size,
                torch.tensor([params[row].top_p for row in members], dtype=torch.float64, device=device)[:, None],
            )
            for size, members in by_size.items()
        ]
        self._floors = _columns(floors, device)

    def apply(self, scaled_BV: Tensor, generated_B: Tensor) -> Tensor:
        """The rows' processed logits [P, V]; generated_B counts the tokens that each row of the batch has already."""
        processed_PV = scaled_BV.index_select(0, self.rows_P)
        if self._biased:
            rows, tokens, bias = self._biased
            processed_PV.index_put_((rows, tokens), bias.to(processed_PV.dtype), accumulate=True)
        if self._held:
            rows, tokens, least = self._held
            early = generated_B.index_select(0, self.rows_P.index_select(0, rows)) < least
            forbidden = torch.zeros_like(early, dtype=processed_PV.dtype).masked_fill_(early, -torch.inf)
            processed_PV.index_put_((rows, tokens), forbidden, accumulate=True)
        for nucleus in self._nuclei:
            kept_GV = _most_likely(processed_PV.index_select(0, nucleus.rows_G), nucleus.top_k, nucleus.top_p_G1)
            processed_PV.index_copy_(0, nucleus.rows_G, kept_GV)
        if self._floors:
            rows, floor_log = self._floors
            logits_GV = processed_PV.index_select(0, rows)
            floor_G1 = logits_GV.amax(-1, keepdim=True) + floor_log.to(logits_GV.dtype)[:, None]
            processed_PV.index_copy_(0, rows, logits_GV.masked_fill_(logits_GV < floor_G1, -torch.inf))
        return processed_PV


def _most_likely(logits_GV: Tensor, top_k: int, top_p_G1: Tensor) -> Tensor:
    """−inf for all but the ``top_k`` best, and of those all but the fewest whose probabilities reach top_p."""
    best = logits_GV.topk(top_k)
    before_GK = best.values.softmax(-1).cumsum(-1, dtype=torch.float64).roll(1, -1)
    before_GK[:, 0] = 0
    values_GK = best.values.masked_fill(before_GK >= top_p_G1, -torch.inf)
    return torch.full_like(logits_GV, -torch.inf).scatter_(1, best.indices, values_GK)


def _columns(entries: Tokens[tuple[float, ...]], device: torch.device) -> tuple[Tensor, ...]:
    """A tensor per column; nothing for no entries."""
    return tuple(torch.tensor(column, device=device) for column in zip(*entries, strict=True))
