"""Forward passes over packed sequences: log-probs, values and scores without a padding token computed.

A batch's sequences lie one after another. The state that predicts token t is the hidden state of token t − 1: both its
log-prob and its value V_t are read there. Logits exist for response tokens only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lodestar_kernels.attention import PackedLayout, PrefixLayout, attention, prefixed_attention
from lodestar_kernels.logprob import TokenLoss, kl_divergence, logprobs, token_loss
from torch import Tensor

from lodestar.errors import InvalidArgument
from lodestar.model.attention import AttentionContext, LayerRule, attending
from lodestar.model.context import context_tokens, ends_hard
from lodestar.model.fused import selects_rows
from lodestar.model.heads import scalar_head, score_head
from lodestar.model.logits import head_parameters, lm_head, logit_rule
from lodestar.model.lora import plain
from lodestar.preference.losses import segment_sums
from lodestar.records import Scored

__all__ = [
    "PackedAttention",
    "PackedBatch",
    "head_divergence",
    "head_logprobs",
    "head_loss",
    "hidden_states",
    "label_scores",
    "lm_head",
    "response_logprobs",
    "response_states",
    "scores_from",
    "sequence_scores",
    "sums_tokens",
    "token_values",
    "trunk_states",
]


WORTH_SHARING = 1 / 8
"""Part of a batch's tokens that shared prompts must save: below it, laying rows out for attention costs as much."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedBatch:
    """Sequences end to end, and where their responses lie.

    ``PackedBatch.pack([(5, 8, 13, 1)], [2], device="cpu")`` has T = 4 tokens and R = 2 response tokens, 13 and 1, that
    are predicted by the states of rows 1 and 2. Sequences that share a prompt lie behind it in one row of tokens, and
    whatever is computed per token is computed for the prompt once; results stand in the order of the sequences.
    """

    tokens_T: Tensor
    """int64 [T]."""
    positions_T: Tensor
    """int64 [T], from 0 in every sequence; a response goes on from its prompt's last position."""
    layout: PackedLayout
    """Boundaries of the B whole sequences, in the order in which they lie."""
    prefixes: PrefixLayout | None
    """Where prompts and responses lie where prompts are shared; None where every sequence brings its own."""
    states_R: Tensor
    """int64 [R]: row of the token before each response token."""
    responses_R: Tensor
    """int64 [R]: row of each response token."""
    targets_R: Tensor
    """int64 [R]: the response tokens."""
    last_B: Tensor
    """int64 [B]: row of each sequence's last token."""
    response_lengths: tuple[int, ...]
    """Response tokens of each sequence."""
    per_sequence: bool
    """Compute every sequence in a forward call of its own, so that its bits do not depend on the batch."""

    @staticmethod
    def pack(
        sequences: Sequence[Sequence[int]],
        prompt_tokens: Sequence[int],
        *,
        device: torch.device | str,
        per_sequence: bool = False,
        share: bool = False,
    ) -> PackedBatch:
        """Pack sequences (prompt + response) of which the first ``prompt_tokens`` tokens are the prompt.

        ``share`` computes equal prompts once, wherever they stand and where that saves an eighth of the tokens; not
        with ``per_sequence``.

        Raises:
            InvalidArgument: no sequences, an empty one, or a prompt length outside 1 … length.
        """
        if not sequences or len(sequences) != len(prompt_tokens):
            raise InvalidArgument("sequences", f"{len(sequences)} sequences and {len(prompt_tokens)} prompt lengths")
        for i, (sequence, prompt) in enumerate(zip(sequences, prompt_tokens, strict=True)):
            if not 1 <= prompt <= len(sequence):
                raise InvalidArgument(
                    f"prompt_tokens[{i}]", f"must be 1 … {len(sequence)} (the sequence's length), got {prompt}"
                )
        groups = _groups(sequences, prompt_tokens, share=share and not per_sequence)
        tokens, positions, rows = _lay_out(sequences, prompt_tokens, groups)
        lengths = [len(sequence) - prompt for sequence, prompt in zip(sequences, prompt_tokens, strict=True)]
        prefixes, layout = None, PackedLayout.from_lengths([len(sequence) for sequence in sequences], device)
        if len(groups) < len(sequences):
            prefixes = PrefixLayout.of([(prompt_tokens[g[0]], [lengths[i] for i in g]) for g in groups], device)
            layout = prefixes.whole
        tokens_T, responses_R = torch.tensor(tokens), torch.tensor([row for one in rows for row in one[1:]])
        return PackedBatch(
            tokens_T=tokens_T.to(device),
            positions_T=torch.tensor(positions, device=device),
            layout=layout,
            prefixes=prefixes,
            states_R=torch.tensor([row for one in rows for row in one[:-1]], dtype=torch.int64, device=device),
            responses_R=responses_R.long().to(device),
            targets_R=tokens_T[responses_R.long()].to(device),
            last_B=torch.tensor([one[-1] for one in rows], device=device),
            response_lengths=tuple(lengths),
            per_sequence=per_sequence,
        )

    @staticmethod
    def of(rows: Sequence[Scored], *, device: torch.device | str, share: bool = False) -> PackedBatch:
        """Pack rows that know where their prompts end; see :meth:`pack`."""
        return PackedBatch.pack(
            [row.token_ids for row in rows], [row.prompt_tokens for row in rows], device=device, share=share
        )

    def alone(self) -> list[PackedBatch]:
        """The same sequences as batches of one."""
        lengths = self.layout.lengths
        prompts = [length - response for length, response in zip(lengths, self.response_lengths, strict=True)]
        tokens = self.tokens_T.tolist()
        starts = self.layout.starts
        sequences = [tokens[start : start + length] for start, length in zip(starts, lengths, strict=True)]
        device = self.tokens_T.device
        return [PackedBatch.pack([s], [p], device=device) for s, p in zip(sequences, prompts, strict=True)]


def _groups(sequences: Sequence[Sequence[int]], prompt_tokens: Sequence[int], *, share: bool) -> list[list[int]]:
    """Numbers of the sequences that lie behind one prompt; each alone where sharing would save too little."""
    alone = [[i] for i in range(len(sequences))]
    if not share or any(len(s) == prompt for s, prompt in zip(sequences, prompt_tokens, strict=True)):
        return alone
    found: dict[tuple[int, ...], list[int]] = {}
    for i, (sequence, prompt) in enumerate(zip(sequences, prompt_tokens, strict=True)):
        found.setdefault(tuple(sequence[:prompt]), []).append(i)
    saved = sum(len(prompt) * (len(members) - 1) for prompt, members in found.items())
    return list(found.values()) if saved >= WORTH_SHARING * sum(map(len, sequences)) else alone


def _lay_out(
    sequences: Sequence[Sequence[int]], prompt_tokens: Sequence[int], groups: Sequence[Sequence[int]]
) -> tuple[list[int], list[int], list[list[int]]]:
    """Tokens and positions, group by group, and each sequence's rows from its prompt's last token on."""
    tokens: list[int] = []
    positions: list[int] = []
    rows: list[list[int]] = [[] for _ in sequences]
    for members in groups:
        prompt = prompt_tokens[members[0]]
        tokens += sequences[members[0]][:prompt]
        positions += range(prompt)
        last = len(tokens) - 1
        for i in members:
            rows[i] = [last, *range(len(tokens), len(tokens) + len(sequences[i]) - prompt)]
            tokens += sequences[i][prompt:]
            positions += range(prompt, len(sequences[i]))
    return tokens, positions, rows


class PackedAttention:
    """The attention context of a packed forward call."""

    def __init__(
        self,
        layout: PackedLayout,
        *,
        prefixes: PrefixLayout | None = None,
        per_sequence: bool = False,
        rows: Tensor | None = None,
    ) -> None:
        """``rows`` are those whose final hidden states the caller needs; a fused model computes no others."""
        self._layout = layout
        self._prefixes = prefixes
        self._per_sequence = per_sequence
        self.rows = rows

    def attend(self, layer: int, q_TND: Tensor, k_TMD: Tensor, v_TMD: Tensor, rule: LayerRule) -> Tensor:
        """Attention within each sequence; see lodestar.model.attention.AttentionContext."""
        if self._prefixes is not None:
            return prefixed_attention(q_TND, k_TMD, v_TMD, self._prefixes, **rule)
        return attention(q_TND, k_TMD, v_TMD, layout=self._layout, per_sequence=self._per_sequence, **rule)


def hidden_states(model: Any, batch: PackedBatch) -> Tensor:
    """The trunk's final hidden states, hidden_TH."""
    if batch.per_sequence:
        return torch.cat([hidden_states(model, one) for one in batch.alone()])
    return trunk_states(model, batch, PackedAttention(batch.layout, prefixes=batch.prefixes))


def trunk_states(model: Any, batch: PackedBatch, context: AttentionContext) -> Tensor:
    """One forward call of the trunk over the whole batch, with the attention given.

    Raises:
        InvalidArgument: a sequence beyond the context of a model that cannot go on there.
    """
    config = plain(model).config
    context_limit = context_tokens(config)
    if context_limit is not None and batch.layout.max_seqlen > context_limit and ends_hard(config):
        raise InvalidArgument(
            "sequences",
            f"one holds {batch.layout.max_seqlen} tokens, and this model's context ends at {context_limit}: beyond it "
            "there are no positions, or they would depend on the rest of the batch",
        )
    with attending(context) as options:
        output = plain(model).base_model(
            input_ids=batch.tokens_T[None], position_ids=batch.positions_T[None], **options
        )
    return output.last_hidden_state[0]  # type: ignore[no-any-return]


def _states_of(model: Any, batch: PackedBatch, rows: Tensor) -> Tensor:
    """Hidden states of ``rows`` alone."""
    if selects_rows(model):
        return trunk_states(model, batch, PackedAttention(batch.layout, prefixes=batch.prefixes, rows=rows))
    return hidden_states(model, batch).index_select(0, rows)


def response_states(model: Any, batch: PackedBatch) -> Tensor:
    """The hidden state before each response token, hidden_RH."""
    return _states_of(model, batch, batch.states_R)


def head_logprobs(
    model: Any, hidden_RH: Tensor, targets_R: Tensor, *, temperature: float, entropy: bool = False, whole: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Log-probs of ``targets_R`` and, on request, entropies (nats) under softmax(logits / temperature).

    Over the ids that may be sampled (lodestar.model.logits), or over the ``whole`` vocabulary.
    """
    rule = logit_rule(plain(model).config)
    hidden_RH, weight_VH, bias_V = _head_inputs(model, hidden_RH, whole)
    output = logprobs(
        hidden_RH, weight_VH, targets_R, bias=bias_V, temperature=rule.temperature(temperature),
        softcap=rule.kernel_softcap, entropy=entropy,
    )  # fmt: skip
    return output.logprobs_T, output.entropy_T


def head_loss(
    model: Any,
    hidden_RH: Tensor,
    targets_R: Tensor,
    loss: TokenLoss,
    *,
    temperature: float,
    entropy: bool = False,
    whole: bool = False,
) -> tuple[Tensor, Tensor]:
    """A loss that is a sum over tokens, and the log-probs it saw, detached; cheaper than head_logprobs and a backward.

    ``loss(chunk, logprobs, entropies)`` gives the share of some of the tokens: see lodestar_kernels.logprob.token_loss.
    """
    rule = logit_rule(plain(model).config)
    hidden_RH, weight_VH, bias_V = _head_inputs(model, hidden_RH, whole)
    total, output = token_loss(
        hidden_RH, weight_VH, targets_R, loss, bias=bias_V, temperature=rule.temperature(temperature),
        softcap=rule.kernel_softcap, entropy=entropy,
    )  # fmt: skip
    return total, output.logprobs_T


def head_divergence(
    model: Any, hidden_RH: Tensor, reference: Any, reference_RH: Tensor, *, temperature: float, forward: bool = False
) -> Tensor:
    """KL(π‖π_ref) over all ids that may be sampled, at every token, kl_R; its gradient goes to ``model`` and states.

    With ``forward`` KL(π_ref‖π).
    """
    rule, reference_rule = logit_rule(plain(model).config), logit_rule(plain(reference).config)
    hidden_RH, weight_VH, bias_V = _head_inputs(model, hidden_RH, False)
    reference_RH, reference_VH, reference_bias_V = _head_inputs(reference, reference_RH, False)
    return kl_divergence(
        hidden_RH, weight_VH, reference_RH, reference_VH, bias=bias_V, reference_bias=reference_bias_V,
        temperature=rule.temperature(temperature), reference_temperature=reference_rule.temperature(temperature),
        softcap=rule.kernel_softcap, reference_softcap=reference_rule.kernel_softcap, forward=forward,
    )  # fmt: skip


def _head_inputs(model: Any, hidden_RH: Tensor, whole: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Hidden states, weight and bias of the head; on a GPU under autocast in its dtype, as the head itself would be.

    The products' sums and the logits are float32 all the same.
    """
    weight_VH, bias_V = head_parameters(model, whole=whole)
    if not (hidden_RH.is_cuda and torch.is_autocast_enabled("cuda")):
        return hidden_RH, weight_VH, bias_V
    dtype = torch.get_autocast_dtype("cuda")
    return hidden_RH.to(dtype), weight_VH.to(dtype), None if bias_V is None else bias_V.to(dtype)


def response_logprobs(
    model: Any, batch: PackedBatch, *, temperature: float, entropy: bool = False, whole: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Log-probs of the response tokens: logprobs_R, and entropy_R if asked; see :func:`head_logprobs`."""
    if batch.per_sequence:
        parts = [
            response_logprobs(model, one, temperature=temperature, entropy=entropy, whole=whole)
            for one in batch.alone()
        ]
        entropies = [part for _, part in parts if part is not None]
        return torch.cat([part for part, _ in parts]), torch.cat(entropies) if entropy else None
    return head_logprobs(
        model, response_states(model, batch), batch.targets_R, temperature=temperature, entropy=entropy, whole=whole
    )


def token_values(model: Any, batch: PackedBatch) -> Tensor:
    """V_t of every response token, read at the state before it: values_R in float32."""
    if batch.per_sequence:
        return torch.cat([token_values(model, one) for one in batch.alone()])
    scalar_head(plain(model))
    return _readings(model, response_states(model, batch))[:, 0]


def sequence_scores(model: Any, batch: PackedBatch) -> Tensor:
    """The score of every sequence by a model of one label: scores_B, as :func:`label_scores`."""
    scalar_head(plain(model))
    return label_scores(model, batch)[:, 0]


def label_scores(model: Any, batch: PackedBatch) -> Tensor:
    """scores_BA in float32: every sequence's score by every label of the model (see :func:`scores_from`)."""
    if batch.per_sequence:
        return torch.cat([label_scores(model, one) for one in batch.alone()])
    rows = batch.responses_R if sums_tokens(model) else batch.last_B
    return scores_from(model, _states_of(model, batch, rows), batch.response_lengths)


def sums_tokens(model: Any) -> bool:
    """Whether the model was trained to sum its readings over a response (``score_tokens: all`` in its config)."""
    return getattr(plain(model).config, "score_tokens", "last") == "all"


def scores_from(model: Any, hidden: Tensor, response_lengths: tuple[int, ...]) -> Tensor:
    """scores_BA in float32 from the states of the B last tokens, or of all response tokens where these are summed."""
    readings = _readings(model, hidden)
    return segment_sums(readings, response_lengths) if sums_tokens(model) else readings


def _readings(model: Any, hidden: Tensor) -> Tensor:
    readings: Tensor = score_head(plain(model))(hidden)
    return readings.to(torch.promote_types(readings.dtype, torch.float32))
