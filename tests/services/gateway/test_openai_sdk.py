"""OpenAI's own SDK, unchanged, against a real policy server."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from lodestar.client import PolicyClient
from lodestar.model.loading import load_tokenizer
from lodestar.records import ChatMessage, Scored

ASKED = [{"role": "user", "content": "what color is the sky ?"}]
PROMPT = "the sky is"


@pytest.fixture(scope="module")
def sdk(door: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{door.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def policy(policy_service: Any) -> Iterator[PolicyClient]:
    with PolicyClient(policy_service.address) as client:
        yield client


def test_a_chat_is_answered_as_grpc_answers_it(sdk: openai.OpenAI, policy: PolicyClient) -> None:
    answer = sdk.chat.completions.create(model="tiny", messages=ASKED, max_completion_tokens=24, seed=5, n=2)
    turns = [ChatMessage("user", ASKED[0]["content"])]
    own = policy.generate(turns, max_tokens=24, seed=5, n=2)
    assert [choice.message.content for choice in answer.choices] == [one.text for one in own.completions]
    assert [choice.index for choice in answer.choices] == [0, 1]
    reasons = {"eos": "stop", "stop": "stop", "length": "length"}
    assert [c.finish_reason for c in answer.choices] == [reasons[one.finish_reason] for one in own.completions]
    tokens = sum(len(one.token_ids) for one in own.completions)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (own.prompt_tokens, tokens)
    assert answer.usage.total_tokens == own.prompt_tokens + tokens
    assert answer.object == "chat.completion"
    assert answer.system_fingerprint.startswith("start-0-")


def test_a_stream_brings_the_same_text_piece_by_piece(sdk: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "tiny", "messages": ASKED, "max_tokens": 24, "seed": 5, "n": 2}
    whole = sdk.chat.completions.create(**options)
    chunks = list(sdk.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    texts, ends = ["", ""], [None, None]
    for chunk in chunks[:-1]:
        assert chunk.usage is None
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        ends[choice.index] = choice.finish_reason or ends[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert ends == [choice.finish_reason for choice in whole.choices]
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert len(chunks) > 4
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_chat_without_a_length_may_fill_the_context(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(model="tiny", messages=ASKED, extra_body={"ignore_eos": True})
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.total_tokens == 128


def test_log_probs_are_the_engines_token_by_token(sdk: openai.OpenAI, policy: PolicyClient) -> None:
    answer = sdk.chat.completions.create(
        model="tiny", messages=ASKED, max_tokens=16, seed=1, logprobs=True, top_logprobs=3, temperature=0.7
    )
    turns = [ChatMessage("user", ASKED[0]["content"])]
    own = policy.generate(turns, max_tokens=16, seed=1, logprobs=True, top_logprobs=3, temperature=0.7).completions[0]
    content = answer.choices[0].logprobs.content
    assert [one.logprob for one in content] == pytest.approx(own.logprobs, abs=1e-6)
    assert all(len(one.top_logprobs) == 3 for one in content)
    spelled = b"".join(bytes(one.bytes) for one in content if one.bytes is not None)
    assert spelled.decode(errors="replace") == answer.choices[0].message.content


def test_a_text_completion_has_offsets_into_its_text(sdk: openai.OpenAI) -> None:
    answer = sdk.completions.create(model="tiny", prompt=PROMPT, max_tokens=20, seed=2, logprobs=2, echo=True)
    (choice,) = answer.choices
    assert choice.text.startswith(PROMPT)
    told = choice.logprobs
    assert len(told.tokens) == answer.usage.total_tokens == len(told.token_logprobs) == len(told.top_logprobs)
    assert told.token_logprobs[0] is None
    whole = [place for place, token in enumerate(told.tokens) if not token.startswith(("bytes:", "<"))]
    for place in whole:
        at = told.text_offset[place]
        assert choice.text[at : at + len(told.tokens[place])] == told.tokens[place]
    for token, logprob, top in zip(told.tokens[1:], told.token_logprobs[1:], told.top_logprobs[1:], strict=True):
        assert 2 <= len(top) <= 3
        assert top[token] == pytest.approx(logprob, abs=1e-4)


def test_an_echoed_prompts_log_probs_are_those_of_the_logprobs_call(
    sdk: openai.OpenAI, policy: PolicyClient, tiny_chat: Any
) -> None:
    ids = policy.tokenize(PROMPT, as_prompt=True)
    answer = sdk.completions.create(model="tiny", prompt=list(ids), max_tokens=0, logprobs=1, echo=True)
    own = policy.logprobs([Scored(ids, 1)]).sequences[0].logprobs
    assert answer.choices[0].logprobs.token_logprobs[1:] == pytest.approx(own, abs=1e-5)
    assert answer.choices[0].text == load_tokenizer(tiny_chat).decode(ids, skip_special_tokens=True)
    assert answer.usage.completion_tokens == 0


def test_several_prompts_are_numbered_in_order(sdk: openai.OpenAI) -> None:
    prompts = [PROMPT, "the grass is green", "is it ?"]
    together = sdk.completions.create(model="tiny", prompt=prompts, max_tokens=8, seed=3, n=2)
    assert [choice.index for choice in together.choices] == list(range(6))
    alone = [sdk.completions.create(model="tiny", prompt=p, max_tokens=8, seed=3, n=2) for p in prompts]
    assert [c.text for c in together.choices] == [c.text for one in alone for c in one.choices]
    assert together.usage.prompt_tokens == sum(one.usage.prompt_tokens for one in alone)


def test_a_streamed_completion_with_echo_begins_with_its_prompt(sdk: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "max_tokens": 8, "seed": 3, "echo": True}
    whole = sdk.completions.create(**options)
    chunks = list(sdk.completions.create(**options, stream=True))
    assert chunks[0].choices[0].text == PROMPT
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text


def test_a_stop_string_ends_a_completion_and_is_left_out(sdk: openai.OpenAI) -> None:
    free = sdk.completions.create(model="tiny", prompt=PROMPT, max_tokens=40, seed=4, extra_body={"ignore_eos": True})
    stop = free.choices[0].text[5:7]
    cut = sdk.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=40, seed=4, stop=[stop, "never so"], extra_body={"ignore_eos": True}
    )
    assert cut.choices[0].text == free.choices[0].text[: free.choices[0].text.find(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_greedy_top_p_and_biases_are_honoured(sdk: openai.OpenAI, policy: PolicyClient) -> None:
    greedy = [sdk.completions.create(model="tiny", prompt=PROMPT, max_tokens=8, temperature=0) for _ in range(2)]
    assert greedy[0].choices[0].text == greedy[1].choices[0].text
    nucleus = sdk.completions.create(model="tiny", prompt=PROMPT, max_tokens=8, top_p=1e-9, seed=1)
    assert nucleus.choices[0].text == greedy[0].choices[0].text
    (token,) = policy.tokenize("q")
    biased = sdk.completions.create(model="tiny", prompt=PROMPT, max_tokens=4, logit_bias={str(token): 1000.0})
    assert biased.choices[0].text == "qqqq"


def test_a_negative_seed_is_a_seed(sdk: openai.OpenAI) -> None:
    texts = {
        sdk.completions.create(model="tiny", prompt=PROMPT, max_tokens=8, seed=-7).choices[0].text for _ in range(2)
    }
    assert len(texts) == 1


def test_the_model_is_listed_and_can_be_asked_for(sdk: openai.OpenAI) -> None:
    assert [model.id for model in sdk.models.list()] == ["tiny"]
    assert sdk.models.retrieve("tiny").owned_by == "lodestar"


def test_parts_and_developer_messages_are_read_as_text(sdk: openai.OpenAI) -> None:
    parts = [
        {"role": "user", "content": [{"type": "text", "text": "what color is "}, {"type": "text", "text": "the sky ?"}]}
    ]
    plain = [{"role": "user", "content": "what color is the sky ?"}]
    answers = [
        sdk.chat.completions.create(model="tiny", messages=one, max_tokens=8, seed=1).choices[0].message.content
        for one in (parts, plain)
    ]
    assert answers[0] == answers[1]


async def test_the_asynchronous_sdk_streams_many_at_once(door: Any) -> None:
    import asyncio

    async with openai.AsyncOpenAI(base_url=f"{door.url}/v1", api_key="unused", max_retries=0) as client:

        async def one(seed: int) -> int:
            stream = await client.completions.create(
                model="tiny", prompt=PROMPT, max_tokens=16, seed=seed, stream=True, extra_body={"ignore_eos": True},
                stream_options={"include_usage": True},
            )  # fmt: skip
            return max([chunk.usage.completion_tokens async for chunk in stream if chunk.usage])

        assert await asyncio.gather(*map(one, range(16))) == [16] * 16


@pytest.mark.parametrize(
    ("options", "param", "code"),
    [
        ({"presence_penalty": 0.5}, "presence_penalty", "unsupported_parameter"),
        ({"frequency_penalty": -1}, "frequency_penalty", "unsupported_parameter"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "unsupported_parameter"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "unsupported_parameter"),
        ({"store": True}, "store", "unsupported_parameter"),
        ({"extra_body": {"tpo_p": 0.5}}, "tpo_p", "unknown_parameter"),
        ({"temperature": -1}, "temperature", None),
        ({"top_p": 0}, "top_p", None),
        ({"n": 0}, "n", "invalid_value"),
        ({"top_logprobs": 3}, "top_logprobs", None),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"max_tokens": 1000}, "max_tokens", "context_length_exceeded"),
        ({"max_completion_tokens": 1000}, "max_completion_tokens", "context_length_exceeded"),
        ({"stop": [""]}, "stop[0]", None),
        ({"seed": 1.5}, "seed", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", None),
        ({"logit_bias": {"9999": 1}}, "logit_bias[0]", None),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(
    sdk: openai.OpenAI, options: dict[str, Any], param: str, code: str | None
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.chat.completions.create(**{"model": "tiny", "messages": ASKED, **options})
    assert refused.value.param == param
    assert refused.value.code == code
    assert refused.value.type == "invalid_request_error"
    assert param in refused.value.message


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"suffix": "!"}, "suffix"),
        ({"best_of": 4}, "best_of"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [1, 5000]}, "prompt[1]"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": 50}, "logprobs"),
        ({"prompt": ["a"] * 200}, "prompt"),
    ],
)
def test_what_a_completion_cannot_have_is_refused_by_name(
    sdk: openai.OpenAI, options: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.completions.create(**{"model": "tiny", "prompt": PROMPT, **options})
    assert refused.value.param == param


def test_values_that_ask_for_nothing_are_taken(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(
        model="tiny", messages=ASKED, max_tokens=4, presence_penalty=0, frequency_penalty=0.0, tools=[],
        response_format={"type": "text"}, user="somebody", store=False, service_tier="auto",
    )  # fmt: skip
    assert answer.choices


def test_another_model_is_not_found_by_name(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="'gpt-4o' does not exist here; this server has 'tiny'") as refused:
        sdk.chat.completions.create(model="gpt-4o", messages=ASKED)
    assert refused.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        sdk.models.retrieve("gpt-4o")
    with pytest.raises(openai.NotFoundError, match="not served here"):
        sdk.embeddings.create(model="tiny", input="x")


def test_a_refused_stream_has_its_status(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="exceed the context"):
        sdk.chat.completions.create(model="tiny", messages=ASKED, max_tokens=1000, stream=True)


def test_log_probs_of_a_distribution_are_at_most_zero(sdk: openai.OpenAI) -> None:
    answer = sdk.completions.create(model="tiny", prompt=PROMPT, max_tokens=4, logprobs=20)
    for top in answer.choices[0].logprobs.top_logprobs:
        assert sum(math.exp(value) for value in top.values()) <= 1 + 1e-4
