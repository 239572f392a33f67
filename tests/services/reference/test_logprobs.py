"""The reference server's log-probs and refusals, over a socket, from a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lodestar.client import ReferenceClient
from lodestar.errors import InvalidArgument, ResourceExhausted, TokenizerMismatch
from lodestar.records import Scored

SEQUENCES = [Scored((1, 5, 8, 9, 2), 2), Scored((1, 4, 4), 1), Scored(tuple(range(1, 13)), 11)]


@pytest.fixture(scope="module")
def client(reference_service: Any) -> Iterator[ReferenceClient]:
    with ReferenceClient(reference_service.address) as client:
        yield client


def plain_hugging_face(folder: Path, scored: Scored, temperature: float) -> tuple[list[float], list[float]]:
    model = AutoModelForCausalLM.from_pretrained(str(folder)).eval()
    ids_S = torch.tensor(scored.token_ids)
    with torch.no_grad():
        logprobs_SV = (model(input_ids=ids_S[None]).logits[0].float() / temperature).log_softmax(-1)
    own_S = logprobs_SV[:-1].gather(1, ids_S[1:, None])[:, 0]
    entropy_S = -(logprobs_SV.exp() * logprobs_SV).sum(-1)[:-1]
    start = scored.prompt_tokens - 1
    return own_S[start:].tolist(), entropy_S[start:].tolist()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_and_entropy_equal_those_of_plain_hugging_face(
    client: ReferenceClient, tiny_models: Any, temperature: float
) -> None:
    reply = client.logprobs(SEQUENCES, temperature=temperature, entropy=True)
    assert len(reply.sequences) == len(SEQUENCES)
    for scored, answer in zip(SEQUENCES, reply.sequences, strict=True):
        logprobs, entropy = plain_hugging_face(tiny_models.sft, scored, temperature)
        assert answer.logprobs == pytest.approx(logprobs, rel=3e-6, abs=1e-5)
        assert answer.entropy == pytest.approx(entropy, rel=3e-6, abs=1e-5)
    assert reply.sequences[0].logprobs[0] != pytest.approx(reply.sequences[0].logprobs[1], abs=0.01)


def test_entropy_comes_only_when_asked_for(client: ReferenceClient) -> None:
    assert [answer.entropy for answer in client.logprobs(SEQUENCES).sequences] == [(), (), ()]


def test_calls_of_different_temperatures_share_a_batch_and_keep_their_own_answers(
    start_service: Any, tiny_models: Any
) -> None:
    service = start_service("reference", model=str(tiny_models.sft), section={"batch_wait_ms": 200})
    with ReferenceClient(service.address) as client, ThreadPoolExecutor(4) as threads:
        temperatures = [0.5, 1.0, 2.0, 1.0]
        replies = list(threads.map(lambda t: client.logprobs(SEQUENCES, temperature=t), temperatures))
        for temperature, reply in zip(temperatures, replies, strict=True):
            for scored, answer in zip(SEQUENCES, reply.sequences, strict=True):
                expected, _ = plain_hugging_face(tiny_models.sft, scored, temperature)
                assert answer.logprobs == pytest.approx(expected, rel=3e-6, abs=1e-5)
    service.child.stop(5)


def test_deterministic_logprobs_do_not_depend_on_the_company(start_service: Any, tiny_models: Any) -> None:
    service = start_service("reference", model=str(tiny_models.sft), deterministic=True)
    generator = torch.Generator().manual_seed(0)
    many = [
        Scored(tuple(torch.randint(0, 15, (length,), generator=generator).tolist()), 1) for length in range(2, 50, 3)
    ]
    with ReferenceClient(service.address) as client:
        together = client.logprobs(many).sequences
        backwards = client.logprobs(many[::-1]).sequences[::-1]
        alone = [client.logprobs([scored]).sequences[0] for scored in many]
    assert list(together) == list(backwards) == alone
    service.child.stop(5)


@pytest.mark.parametrize(
    ("sequences", "options", "field", "words"),
    [
        ([], {}, "sequences", "at least one"),
        ([Scored((), 1)], {}, "sequences[0].token_ids", "empty"),
        (
            [SEQUENCES[0], Scored((1,) * 65, 3)],
            {},
            "sequences[1].token_ids",
            "65 tokens; .* context holds 64",
        ),
        ([Scored((1, 5000), 1)], {}, "sequences[0].token_ids", "holds id 5000"),
        ([Scored((1, 5), 0)], {}, "sequences[0].prompt_tokens", "must be 1 … 1"),
        ([Scored((1, 5), 2)], {}, "sequences[0].prompt_tokens", "got 2"),
        (SEQUENCES, {"temperature": 0.0}, "temperature", "must be 0.001 … 100, got 0.0"),
        (SEQUENCES, {"temperature": float("nan")}, "temperature", "got nan"),
        (SEQUENCES, {"temperature": float("inf")}, "temperature", "got inf"),
        ([Scored((1, -5), 1)], {}, "request", "cannot be sent"),
    ],
)
def test_bad_sequences_are_refused_by_name(
    client: ReferenceClient, sequences: list[Scored], options: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(InvalidArgument, match=words) as refusal:
        client.logprobs(sequences, **options)
    assert refusal.value.field == field


def test_a_foreign_tokenizer_is_refused(client: ReferenceClient) -> None:
    own = client.describe().model.tokenizer_hash
    assert client.logprobs(SEQUENCES, tokenizer_hash=own).model.tokenizer_hash == own
    with pytest.raises(TokenizerMismatch, match=f"the caller's tokenizer eeeeeeeeeeee is not this server's {own[:12]}"):
        client.logprobs(SEQUENCES, tokenizer_hash="e" * 64)


def test_more_than_the_queue_holds_is_refused(start_service: Any, tiny_models: Any) -> None:
    service = start_service("reference", model=str(tiny_models.sft), section={"max_queued_tokens": 100})
    with ReferenceClient(service.address) as client:
        assert client.logprobs([Scored((1,) * 50, 1)] * 2).sequences
        with pytest.raises(ResourceExhausted, match=r"the call holds 150 tokens.*split it"):
            client.logprobs([Scored((1,) * 50, 1)] * 3)
    service.child.stop(5)
