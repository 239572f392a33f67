"""The policy server over a socket: streams, versions, refusals, cancellation."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from lodestar.client import PolicyClient, PolicyControlClient, ReferenceClient
from lodestar.data.rows import encode_prompts
from lodestar.errors import DeadlineExceeded, InvalidArgument, TokenizerMismatch, VersionUnavailable
from lodestar.model.loading import load_tokenizer
from lodestar.records import FinishReason, Scored, WeightVersion

PROMPT = (1, 5, 8, 9)


@pytest.fixture(scope="module")
def service(start_service: Any, tiny_models: Any) -> Iterator[Any]:
    service = start_service("policy", model=str(tiny_models.sft))
    yield service
    service.child.stop(20)
    assert service.child.wait(1) == 0, service.child.tail(20)


@pytest.fixture(scope="module")
def client(service: Any) -> Iterator[PolicyClient]:
    with PolicyClient(service.address) as client:
        yield client


@pytest.fixture(scope="module")
def control(service: Any) -> Iterator[PolicyControlClient]:
    with PolicyControlClient(service.address) as control:
        yield control


def wait_until_empty(control: PolicyControlClient) -> None:
    deadline = time.monotonic() + 5
    while (status := control.status()).running_sequences or status.waiting_sequences or status.kv_blocks_used:
        assert time.monotonic() < deadline, status
        time.sleep(0.01)


def test_samples_differ_and_a_seed_repeats_them(client: PolicyClient) -> None:
    one = client.generate(PROMPT, n=4, max_tokens=12, seed=7, ignore_eos=True)
    two = client.generate(PROMPT, n=4, max_tokens=12, seed=7, ignore_eos=True)
    assert [c.token_ids for c in one.completions] == [c.token_ids for c in two.completions]
    assert len({c.token_ids for c in one.completions}) == 4
    assert one.prompt_tokens == 4
    assert {c.finish_reason for c in one.completions} == {FinishReason.LENGTH}


def test_text_is_encoded_as_training_encodes_it(client: PolicyClient, tiny_models: Any) -> None:
    tokenizer = load_tokenizer(tiny_models.sft)
    plain, templated = "t5 t6", f"{tokenizer.bos_token}t5 t6"  # a chat template may write BOS itself
    assert encode_prompts(tokenizer, [plain]) == encode_prompts(tokenizer, [templated])
    answers = [client.generate(text, max_tokens=8, seed=3) for text in (plain, templated)]
    assert answers[0].prompt_tokens == len(encode_prompts(tokenizer, [plain])[0]) == answers[1].prompt_tokens
    assert answers[0].completions == answers[1].completions


def test_training_logprobs_are_those_of_the_logprobs_call_and_of_the_reference(
    client: PolicyClient, reference_service: Any
) -> None:
    answer = client.generate(PROMPT, n=3, max_tokens=16, temperature=0.7, seed=1, logprobs=True, purpose="training")
    scored = [Scored((*PROMPT, *c.token_ids), 4) for c in answer.completions]
    own = client.logprobs(scored, temperature=0.7, entropy=True)
    with ReferenceClient(reference_service.address) as reference:
        theirs = reference.logprobs(scored, temperature=0.7).sequences
    for completion, mine, other in zip(answer.completions, own.sequences, theirs, strict=True):
        assert completion.logprobs == pytest.approx(mine.logprobs, abs=1e-4)
        assert completion.logprobs == pytest.approx(other.logprobs, abs=1e-4)
        assert completion.processed_logprobs == completion.logprobs
        assert len(mine.entropy) == len(completion.token_ids)


def test_a_stream_brings_tokens_before_the_end(client: PolicyClient) -> None:
    chunks = list(client.stream("what color is the sky ?", max_tokens=40, seed=3, ignore_eos=True))
    assert len(chunks) > 1
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    whole = client.generate("what color is the sky ?", max_tokens=40, seed=3, ignore_eos=True)
    assert "".join(chunk.text for chunk in chunks) == whole.completions[0].text


def test_leaving_a_stream_early_frees_its_blocks(client: PolicyClient, control: PolicyControlClient) -> None:
    stream = client.stream(PROMPT, n=8, max_tokens=56, ignore_eos=True)
    next(iter(stream))
    stream.close()
    wait_until_empty(control)


def test_a_version_held_is_served_and_another_is_unavailable(client: PolicyClient) -> None:
    held = client.describe().model.version
    assert held.incarnation == ""
    assert held.step == 0
    assert client.generate(PROMPT, max_tokens=2, min_version=held).model.version == held
    renamed = WeightVersion("9f31c2aa", 0, held.digest)
    assert client.generate(PROMPT, max_tokens=2, min_version=renamed).completions
    started = time.monotonic()
    with pytest.raises(VersionUnavailable, match=r"step 3 of incarnation 9f31c2aa .* holds step 0"):
        client.generate(PROMPT, max_tokens=2, min_version=WeightVersion("9f31c2aa", 3, ""), wait_seconds=0.2)
    assert time.monotonic() - started >= 0.2


def test_a_paused_server_answers_when_it_is_resumed(client: PolicyClient, control: PolicyControlClient) -> None:
    control.pause()
    assert control.status().paused
    with pytest.raises(DeadlineExceeded):
        client.generate(PROMPT, max_tokens=2, timeout=0.3)
    control.resume()
    assert client.generate(PROMPT, max_tokens=2).completions
    wait_until_empty(control)


def test_a_foreign_tokenizer_is_refused(client: PolicyClient) -> None:
    with pytest.raises(TokenizerMismatch):
        client.generate(PROMPT, max_tokens=2, tokenizer_hash="e" * 64)


@pytest.mark.parametrize(
    ("prompt", "options", "field"),
    [
        ((), {}, "prompt"),
        ((1, 5000), {}, "prompt.tokens[1]"),
        (PROMPT, {"max_tokens": 0}, "sampling.max_tokens"),
        (PROMPT, {"max_tokens": 61}, "sampling.max_tokens"),
        (PROMPT, {"temperature": -1.0}, "sampling.temperature"),
        (PROMPT, {"temperature": float("nan")}, "sampling.temperature"),
        (PROMPT, {"top_p": 0.0}, "sampling.top_p"),
        (PROMPT, {"top_p": 1.5}, "sampling.top_p"),
        (PROMPT, {"min_p": 1.0}, "sampling.min_p"),
        (PROMPT, {"n": 100_000}, "sampling.n"),
        (PROMPT, {"min_tokens": 9}, "sampling.min_tokens"),
        (PROMPT, {"stop": ("",)}, "sampling.stop[0]"),
        (PROMPT, {"stop_token_ids": (9999,)}, "sampling.stop_token_ids[0]"),
        (PROMPT, {"logit_bias": {3: float("inf")}}, "sampling.logit_bias[3]"),
        (PROMPT, {"top_logprobs": 21}, "sampling.top_logprobs"),
        (PROMPT, {"wait_seconds": float("nan")}, "wait_seconds"),
        (PROMPT, {"purpose": "training", "top_p": 0.9}, "sampling.top_p"),
        (PROMPT, {"purpose": "training", "temperature": 0.0}, "sampling.temperature"),
        (PROMPT, {"purpose": "training", "logit_bias": {3: 1.0}}, "sampling.logit_bias"),
    ],
)
def test_bad_requests_are_refused_by_field(
    client: PolicyClient, prompt: tuple[int, ...], options: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        client.generate(prompt, **{"max_tokens": 4, **options})
    assert refusal.value.field == field
