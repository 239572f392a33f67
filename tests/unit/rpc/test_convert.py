"""Records survive the wire: record → message → bytes → message → record."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lodestar.errors import InvalidArgument
from lodestar.records import (
    ChatMessage,
    Datum,
    Detokenized,
    FinishReason,
    GenerationChunk,
    Lora,
    LossResult,
    ModelInfo,
    OptimParams,
    Probe,
    RunState,
    RunStatus,
    SamplingParams,
    Score,
    Scored,
    ScoreItem,
    TensorFile,
    TokenCandidate,
    TokenLogProbs,
    TokenPiece,
    TrainingModel,
    WeightFiles,
    WeightManifest,
    WeightVersion,
)
from lodestar.rpc import convert
from lodestar.v1 import common_pb2, policy_pb2, reward_pb2

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ids = st.integers(0, 2**32 - 1)
counts = st.integers(0, 2**31)
steps = st.integers(0, 2**64 - 1)
floats = st.floats(width=32, allow_nan=False)
tokens = st.lists(ids, max_size=5).map(tuple)
values = st.lists(floats, max_size=5).map(tuple)
versions = st.builds(WeightVersion, texts, steps, texts)
models = st.builds(ModelInfo, texts, versions, texts)
scored = st.builds(Scored, tokens, counts)
candidates = st.lists(st.lists(st.builds(TokenCandidate, ids, floats), max_size=2).map(tuple), max_size=2).map(tuple)
doubles = st.floats(allow_nan=False)
loras = st.builds(Lora, counts, counts, *[st.booleans()] * 3, steps)
pieces = st.builds(TokenPiece, st.binary(max_size=4), st.binary(max_size=4), texts)

RECORDS: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], Any], Callable[[Any], Any]]] = {
    "weight version": (versions, convert.weight_version_to_proto, convert.weight_version_from_proto),
    "model info": (models, convert.model_info_to_proto, convert.model_info_from_proto),
    "datum": (
        st.builds(Datum, tokens, tokens, values, values, values),
        convert.datum_to_proto,
        convert.datum_from_proto,
    ),
    "training model": (
        st.builds(TrainingModel, models, texts, counts, counts, steps, counts, st.none() | loras),
        convert.training_model_to_proto,
        convert.training_model_from_proto,
    ),
    "optim params": (
        st.builds(OptimParams, *[doubles] * 6),
        convert.optim_params_to_proto,
        convert.optim_params_from_proto,
    ),
    "loss result": (
        st.builds(
            LossResult,
            models,
            doubles,
            st.lists(values, max_size=2).map(tuple),
            st.dictionaries(texts, doubles, max_size=2),
        ),
        convert.loss_result_to_proto,
        convert.loss_result_from_proto,
    ),
    "chat": (
        st.lists(st.builds(ChatMessage, texts, texts), max_size=3).map(tuple),
        convert.chat_to_proto,
        convert.chat_from_proto,
    ),
    "sampling": (
        st.builds(
            SamplingParams,
            max_tokens=counts,
            n=st.integers(1, 9),
            min_tokens=counts,
            temperature=floats,
            top_p=floats,
            top_k=counts,
            min_p=floats,
            seed=st.none() | steps,
            stop=st.lists(texts, max_size=3).map(tuple),
            stop_token_ids=tokens,
            logit_bias=st.dictionaries(ids, floats, max_size=3),
            logprobs=st.booleans(),
            top_logprobs=counts,
            ignore_eos=st.booleans(),
        ),
        convert.sampling_to_proto,
        convert.sampling_from_proto,
    ),
    "chunk": (
        st.builds(
            GenerationChunk,
            model=models,
            sample_index=counts,
            token_ids=tokens,
            text=texts,
            prompt_tokens=counts,
            finish_reason=st.none() | st.sampled_from(FinishReason),
            logprobs=values,
            processed_logprobs=values,
            top_logprobs=candidates,
            token_steps=st.lists(steps, max_size=3).map(tuple),
            error=texts,
        ),
        convert.chunk_to_proto,
        convert.chunk_from_proto,
    ),
    "scored": (scored, convert.scored_to_proto, convert.scored_from_proto),
    "token log-probs": (
        st.builds(TokenLogProbs, values, values, candidates),
        convert.token_logprobs_to_proto,
        convert.token_logprobs_from_proto,
    ),
    "detokenized": (
        st.builds(Detokenized, texts, st.lists(pieces, max_size=3).map(tuple)),
        convert.detokenized_to_proto,
        convert.detokenized_from_proto,
    ),
    "score item": (
        st.builds(ScoreItem, texts, texts, st.booleans()) | st.builds(ScoreItem, tokens, tokens),
        convert.score_item_to_proto,
        lambda message: convert.score_item_from_proto(message, "items[0]"),
    ),
    "score": (
        st.builds(Score, floats, floats, floats, st.dictionaries(texts, floats, max_size=3)),
        convert.score_to_proto,
        convert.score_from_proto,
    ),
    "run status": (
        st.builds(
            RunStatus,
            run=texts,
            model=models,
            state=st.sampled_from(RunState),
            step=steps,
            total_steps=steps,
            settled=counts,
            batch=counts,
            reason=texts,
            metrics=st.dictionaries(texts, st.floats(allow_nan=False), max_size=3),
            eta_seconds=st.floats(allow_nan=False),
        ),
        convert.run_status_to_proto,
        convert.run_status_from_proto,
    ),
    "weight manifest": (
        st.builds(
            WeightManifest,
            run=texts,
            version=versions,
            chain=st.lists(
                st.builds(
                    WeightFiles,
                    versions,
                    st.lists(st.builds(TensorFile, texts, steps), max_size=1).map(tuple),
                    st.none() | versions,
                ),
                max_size=2,
            ).map(tuple),
            tensors=st.dictionaries(texts, texts, max_size=3),
            tokenizer_hash=texts,
            probes=st.lists(st.builds(Probe, scored, values, floats), max_size=1).map(tuple),
        ),
        convert.weight_manifest_to_proto,
        convert.weight_manifest_from_proto,
    ),
}


@pytest.mark.parametrize("name", RECORDS)
def test_records_survive_the_wire(name: str) -> None:
    strategy, to_proto, from_proto = RECORDS[name]

    @given(strategy)
    def survives(record: Any) -> None:
        message = to_proto(record)
        assert from_proto(type(message).FromString(message.SerializeToString())) == record

    survives()


ONE_SIDED = {
    "DetokenizeResponse": {"model"},
    "OptimStepRequest": {"model_id"},
    "PolicyServiceGetModelResponse": {"heads", "ensemble_size"},
    "RewardServiceGetModelResponse": {"vocab_size", "parameters", "dtype"},
    "ReferenceServiceGetModelResponse": {"vocab_size", "parameters", "dtype", "heads", "ensemble_size"},
}
"""Fields that a message or its record has alone: a delta shows from its parent; services describe what they have;
the servicer says whose the tokens are, and the caller whose step it is."""


@pytest.mark.parametrize(("record", "message"), convert.PAIRS, ids=lambda side: side.__name__)
def test_a_record_and_its_message_have_the_same_fields(record: type, message: Any) -> None:
    names = {field.name for field in dataclasses.fields(record)} ^ set(message.DESCRIPTOR.fields_by_name)
    assert names == ONE_SIDED.get(message.DESCRIPTOR.name, set())


def test_unset_sampling_options_take_the_documented_defaults() -> None:
    assert convert.sampling_from_proto(policy_pb2.SamplingParams(max_tokens=5)) == SamplingParams(max_tokens=5)


def test_a_finish_reason_newer_than_this_client_is_an_error() -> None:
    assert convert.finish_reason_from_proto(77) is FinishReason.ERROR  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (reward_pb2.ScoreItem(), "items[4].prompt"),
        (reward_pb2.ScoreItem(prompt_text="a"), "items[4].completion"),
        (reward_pb2.ScoreItem(prompt_text="a", completion_tokens=common_pb2.Tokens(ids=[1])), "items[4]"),
        (reward_pb2.ScoreItem(prompt_tokens=common_pb2.Tokens(ids=[1]), completion_text="a"), "items[4]"),
    ],
)
def test_score_items_with_a_missing_or_mixed_half_are_refused_by_name(message: Any, field: str) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        convert.score_item_from_proto(message, "items[4]")
    assert refusal.value.field == field
