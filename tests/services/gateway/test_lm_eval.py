"""lm-evaluation-harness's own clients of an OpenAI API, unchanged: what its tasks call, on a real policy server."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from lodestar.client import PolicyClient
from lodestar.model.loading import load_tokenizer
from lodestar.records import Scored

pytestmark = [
    pytest.mark.slow,  # its imports take long
    pytest.mark.filterwarnings("ignore"),  # its own, and its dependencies'
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("lm_eval", "tenacity")),
        reason="lm-evaluation-harness is not installed: pip install 'lm_eval[api]'",
    ),
]
QUESTIONS = [("what color is the sky ?", " blue"), ("is it ?", " it is not red"), ("the grass is", " green")]


@pytest.fixture(scope="module")
def harness(door: Any, tiny_chat: Path) -> Any:
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    return LocalCompletionsAPI(
        base_url=f"{door.url}/v1/completions",
        model="tiny",
        tokenizer=str(tiny_chat),
        tokenizer_backend="huggingface",
        max_length=128,
        batch_size=2,
    )


def instances(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, one, number) for number, one in enumerate(arguments)]


def test_its_loglikelihoods_are_the_policys(harness: Any, policy_service: Any, tiny_chat: Path) -> None:
    tokenizer = load_tokenizer(tiny_chat)
    answers = harness.loglikelihood(instances("loglikelihood", *QUESTIONS), disable_tqdm=True)
    with PolicyClient(policy_service.address) as client:
        for (context, continuation), (logprob, greedy) in zip(QUESTIONS, answers, strict=True):
            head = tokenizer.encode(context, add_special_tokens=False)
            ids = tokenizer.encode(context + continuation, add_special_tokens=False)
            told = client.logprobs([Scored(tuple(ids), len(head))], top_logprobs=1).sequences[0]
            assert logprob == pytest.approx(sum(told.logprobs), abs=1e-3)
            best = [position[0].token_id for position in told.top_logprobs]
            assert greedy == (best == ids[len(head) :])


def test_its_generations_are_the_policys(harness: Any, policy_service: Any) -> None:
    asked = {"until": ["never so"], "max_gen_toks": 12, "temperature": 0}
    answers = harness.generate_until(
        instances("generate_until", *((context, dict(asked)) for context, _ in QUESTIONS)), disable_tqdm=True
    )
    with PolicyClient(policy_service.address) as client:
        for (context, _), answer in zip(QUESTIONS, answers, strict=True):
            ids = harness.tok_encode(context)
            own = client.generate(tuple(ids), max_tokens=12, temperature=0, stop=("never so",))
            assert answer == own.completions[0].text


def test_its_chat_client_is_answered(door: Any, policy_service: Any) -> None:
    from lm_eval.models.openai_completions import LocalChatCompletion

    client = LocalChatCompletion(base_url=f"{door.url}/v1/chat/completions", model="tiny", max_length=128)
    prompt = client.apply_chat_template([{"role": "user", "content": "what color is the sky ?"}])
    asked = {"until": ["never so"], "max_gen_toks": 8, "temperature": 0}
    (answer,) = client.generate_until(instances("generate_until", (prompt, asked)), disable_tqdm=True)
    from lodestar.records import ChatMessage

    with PolicyClient(policy_service.address) as own:
        told = own.generate(
            [ChatMessage("user", "what color is the sky ?")], max_tokens=8, temperature=0, stop=("never so",)
        )
    assert answer == told.completions[0].text
