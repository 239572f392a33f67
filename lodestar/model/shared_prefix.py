"""Scores and log-probs of several completions of one prompt with the prompt computed once.

The shared batch holds a group as [prompt, completion 1, …, completion K]: T tokens instead of the U of K whole
sequences. Norms, projections and MLPs run over T. For attention, queries, keys and values are laid out as the U tokens
of whole sequences, attended to as ever (any backend, any window) and the T outputs taken back: exact, at the price of
copies and of attention for the prompt's queries K times, which for prompts of hundreds of tokens is little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lodestar_kernels.attention import PackedLayout, attention
from torch import Tensor

from lodestar.errors import InvalidArgument
from lodestar.model.fused import selects_rows
from lodestar.model.packed import head_logprobs, scores_from, sums_tokens, trunk_states
from lodestar.preference.losses import segment_sums
from lodestar.records import Scored


@dataclass(frozen=True, slots=True, eq=False)
class SharedBatch:
    """Groups of sequences that begin with the same prompt.

    ``SharedBatch.pack([[Scored((5, 8, 1), 1), Scored((5, 9, 1), 1)]], device="cpu")``: T = 5 tokens for U = 6.
    """

    tokens_T: Tensor
    """int64 [T]."""
    positions_T: Tensor
    """int64 [T]: every completion goes on from its prompt's last position."""
    layout: PackedLayout
    """The B whole sequences, U tokens."""
    source_U: Tensor
    """int64 [U]: the shared row of each token of the whole sequences."""
    back_T: Tensor
    """int64 [T]: a place among the U of each shared row."""
    completion_R: Tensor
    """int64 [R]: shared rows of all completions' tokens."""
    last_B: Tensor
    """int64 [B]: shared row of each sequence's last token."""
    completion_lengths: tuple[int, ...]

    @staticmethod
    def pack(groups: Sequence[Sequence[Scored]], *, device: torch.device | str, share: bool = True) -> SharedBatch:
        """Pack the groups one after another; without ``share`` every sequence brings its own prompt.

        Raises:
            InvalidArgument: no groups, or sequences of a group with different prompts.
        """
        if not groups or not all(groups):
            raise InvalidArgument("groups", "none, or one without a sequence")
        tokens: list[int] = []
        positions: list[int] = []
        source: list[int] = []
        completion: list[int] = []
        lengths, completion_lengths = [], []
        for g, group in enumerate(groups):
            head = group[0].token_ids[: group[0].prompt_tokens]
            start = len(tokens)
            for i, row in enumerate(group):
                if row.token_ids[: row.prompt_tokens] != head:
                    raise InvalidArgument(f"groups[{g}][{i}]", "its prompt differs from that of the group's first")
                if i == 0 or not share:
                    start = len(tokens)
                    tokens += head
                    positions += range(len(head))
                tail = row.token_ids[len(head) :]
                rows = range(len(tokens), len(tokens) + len(tail))
                source += range(start, start + len(head))
                source += rows
                completion += rows
                tokens += tail
                positions += range(len(head), len(head) + len(tail))
                lengths.append(len(row.token_ids))
                completion_lengths.append(len(tail))
        source_U = torch.tensor(source)
        back_T = torch.empty(len(tokens), dtype=torch.int64)
        back_T[source_U] = torch.arange(len(source))
        last = torch.tensor(lengths).cumsum(0) - 1
        return SharedBatch(
            tokens_T=torch.tensor(tokens, device=device),
            positions_T=torch.tensor(positions, device=device),
            layout=PackedLayout.from_lengths(lengths, device),
            source_U=source_U.to(device),
            back_T=back_T.to(device),
            completion_R=torch.tensor(completion, device=device),
            last_B=source_U[last].to(device),
            completion_lengths=tuple(completion_lengths),
        )


class SharedPrefixAttention:
    """The attention context of a shared batch."""

    def __init__(self, batch: SharedBatch, rows: Tensor | None = None) -> None:
        """``rows``: see lodestar.model.packed.PackedAttention."""
        self._batch = batch
        self._shared = len(batch.source_U) > len(batch.tokens_T)
        self.rows = rows

    def attend(
        self,
        layer: int,
        q_TND: Tensor,
        k_TMD: Tensor,
        v_TMD: Tensor,
        *,
        scale: float,
        window: int | None,
        softcap: float | None = None,
        sinks_N: Tensor | None = None,
    ) -> Tensor:
        """Attention within each whole sequence; see lodestar.model.attention.AttentionContext."""
        batch = self._batch
        options: dict[str, Any] = {"scale": scale, "window": window, "softcap": softcap, "sinks_N": sinks_N}
        if not self._shared:
            return attention(q_TND, k_TMD, v_TMD, layout=batch.layout, **options)
        q_UND, k_UMD, v_UMD = (x.index_select(0, batch.source_U) for x in (q_TND, k_TMD, v_TMD))
        out_UND = attention(q_UND, k_UMD, v_UMD, layout=batch.layout, **options)
        return out_UND.index_select(0, batch.back_T)


def completion_scores(model: Any, batch: SharedBatch) -> Tensor:
    """scores_BA in float32: every completion's score by every label of the model, in the order packed.

    Read at the last token or summed over the completion's tokens: see lodestar.model.packed.scores_from.
    """
    rows = batch.completion_R if sums_tokens(model) else batch.last_B
    return scores_from(model, _states_of(model, batch, rows), batch.completion_lengths)


def completion_logprobs(model: Any, batch: SharedBatch) -> Tensor:
    """logprobs_B in float32: Σ_t log π(token t) of every completion, in nats, in the order packed.

    A completion's first token is predicted by the last state of its prompt, which all completions of a group share.
    """
    lengths, tails = batch.layout.lengths, batch.completion_lengths
    places = zip(batch.layout.starts, lengths, tails, strict=True)
    before = [torch.arange(start + length - tail - 1, start + length - 1) for start, length, tail in places]
    states_R = batch.source_U.index_select(0, torch.cat(before).to(batch.source_U.device))
    targets_R = batch.tokens_T.index_select(0, batch.completion_R)
    logprobs_R, _ = head_logprobs(model, _states_of(model, batch, states_R), targets_R, temperature=1.0)
    return segment_sums(logprobs_R, tails)


def _states_of(model: Any, batch: SharedBatch, rows: Tensor) -> Tensor:
    """Hidden states of ``rows`` alone."""
    if selects_rows(model):
        return trunk_states(model, batch, SharedPrefixAttention(batch, rows))
    return trunk_states(model, batch, SharedPrefixAttention(batch)).index_select(0, rows)
