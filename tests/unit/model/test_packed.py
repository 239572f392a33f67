"""Packing, and independence of a sequence's results from its company."""

from __future__ import annotations

import pytest
import torch

from lodestar.errors import InvalidArgument
from lodestar.model.attention import NAME
from lodestar.model.loading import scalar_from_causal_lm
from lodestar.model.packed import PackedBatch, hidden_states, response_logprobs, sequence_scores, token_values
from tests.unit.model.worlds import PROMPTS, SEQUENCES, plain_model, word_tokenizer


def test_a_pack_says_where_responses_lie() -> None:
    batch = PackedBatch.pack([(5, 8, 13, 1), (7, 2)], [2, 1], device="cpu")
    assert batch.tokens_T.tolist() == [5, 8, 13, 1, 7, 2]
    assert batch.positions_T.tolist() == [0, 1, 2, 3, 0, 1]
    assert batch.states_R.tolist() == [1, 2, 4]
    assert batch.targets_R.tolist() == [13, 1, 2]
    assert batch.last_B.tolist() == [3, 5]
    assert batch.response_lengths == (2, 1)


@pytest.mark.parametrize(("sequences", "prompts"), [([], []), ([(1, 2)], [0]), ([(1, 2)], [3]), ([()], [1])])
def test_what_cannot_be_packed_is_refused(sequences: list[tuple[int, ...]], prompts: list[int]) -> None:
    with pytest.raises(InvalidArgument):
        PackedBatch.pack(sequences, prompts, device="cpu")


@torch.no_grad()
def test_alone_at_its_exact_length_a_sequences_bits_do_not_depend_on_the_batch() -> None:
    model = plain_model("llama")
    model.set_attn_implementation(NAME)
    scalar = scalar_from_causal_lm(model, word_tokenizer(), seed=0)
    company = PackedBatch.pack(SEQUENCES, PROMPTS, device="cpu", per_sequence=True)
    alone = PackedBatch.pack(SEQUENCES[:1], PROMPTS[:1], device="cpu", per_sequence=True)
    response = company.response_lengths[0]
    for mine, theirs in zip(
        response_logprobs(model, alone, temperature=0.7, entropy=True),
        response_logprobs(model, company, temperature=0.7, entropy=True),
        strict=True,
    ):
        assert mine is not None
        assert theirs is not None
        assert torch.equal(mine, theirs[:response])
    assert torch.equal(token_values(scalar, alone), token_values(scalar, company)[:response])
    assert torch.equal(sequence_scores(scalar, alone), sequence_scores(scalar, company)[:1])


@torch.no_grad()
def test_a_value_is_read_before_its_token_and_a_score_at_the_last_token() -> None:
    model = plain_model("llama")
    model.set_attn_implementation(NAME)
    scalar = scalar_from_causal_lm(model, word_tokenizer(), seed=0)
    batch = PackedBatch.pack([(5, 8, 13, 1)], [2], device="cpu")
    everywhere = scalar.score(hidden_states(scalar, batch))[:, 0]
    assert torch.allclose(token_values(scalar, batch), everywhere[[1, 2]])
    assert torch.allclose(sequence_scores(scalar, batch), everywhere[[3]])
