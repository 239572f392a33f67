"""The unmodified tinker SDK against the gateway and a training server in processes of their own."""

from __future__ import annotations

import asyncio
import gc
import math
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what its dependencies say when they are imported
    import tinker
    from tinker import types
    from tinker.lib import internal_client_holder

from lodestar.config import ArchitectureConfig
from lodestar.local.tiny import tokenizer
from lodestar.model.loading import new_causal_lm, save_model

# The SDK asks for its configuration on a connection that it never closes.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
NAME = "tiny"
KINDS = pytest.mark.parametrize("rank", [8, 0], ids=["LoRA", "full weights"])


@pytest.fixture(autouse=True, scope="module")
def no_socket_is_left() -> Iterator[None]:
    """Closes what the SDK leaves open on its loop, before another test's collection finds it."""
    yield
    loop = internal_client_holder._internal_client_holder_thread_singleton.get_loop()

    async def close() -> None:
        for one in gc.get_objects():
            if type(one).__name__ == "_SelectorSocketTransport" and one._loop is loop:
                one.close()
        await asyncio.sleep(0.1)

    asyncio.run_coroutine_threadsafe(close(), loop).result(30)
    gc.collect()


@pytest.fixture(scope="module")
def tiny_start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start") / "model"
    words = tokenizer(32)
    shape = ArchitectureConfig(hidden_size=32, intermediate_size=64, layers=2, heads=4, kv_heads=2, context_tokens=64)
    save_model(new_causal_lm(shape, words, seed=1), words, folder)
    return folder


@pytest.fixture(scope="module")
def training_service(start_service: Any, tiny_start: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    section = {"weights": str(tmp_path_factory.mktemp("weights")), "kv_cache_tokens": 4096, "kept_samplers": 3}
    return start_service("training", model=str(tiny_start), section=section)


@pytest.fixture(scope="module")
def gateway(start_service: Any, training_service: Any) -> Any:
    return start_service("gateway", endpoints={"training": training_service.address}, section={"name": NAME})


@pytest.fixture
def service(gateway: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("TINKER_API_KEY", "tml-anybody")
    monkeypatch.setenv("TINKER_BASE_URL", f"http://127.0.0.1:{gateway.state.http_port}")
    with tinker.ServiceClient() as client:
        yield client


def datum(ids: tuple[int, ...], targets: tuple[int, ...], **inputs: Any) -> Any:
    return types.Datum(
        model_input=types.ModelInput.from_ints(list(ids)), loss_fn_inputs={"target_tokens": list(targets), **inputs}
    )


@KINDS
def test_a_supervised_loop_brings_the_loss_down_to_the_entropy_of_the_text(service: Any, rank: int) -> None:
    """As the SDK's own example: forward_backward and optim_step are sent together, then both are waited for."""
    client = service.create_lora_training_client(base_model=NAME, rank=rank, seed=3).result()
    assert client.get_info().model_data.model_name == NAME
    assert client.get_info().is_lora is bool(rank)
    assert client.get_tokenizer().encode("t5 t6") == [5, 6]
    data = [datum((4, 5, word), (5, word, 1), weights=[0.0, 1.0, 1.0]) for word in (6, 6, 6, 7)]
    for _ in range(40):
        done = client.forward_backward(data, "cross_entropy")
        stepped = client.optim_step(types.AdamParams(learning_rate=0.02))
        output = done.result()
        stepped.result()
    rows = [row["logprobs"].to_numpy() for row in output.loss_fn_outputs]
    by_hand = -sum(float(row[1] + row[2]) for row in rows)
    assert output.metrics["loss:sum"] == pytest.approx(by_hand, rel=1e-5)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert entropy - 1e-3 < by_hand / 4 < entropy + 0.03


@KINDS
@pytest.mark.parametrize("loss", ["importance_sampling", "ppo"])
def test_a_policy_gradient_loop_finds_the_best_arm_of_a_bandit(service: Any, rank: int, loss: str) -> None:
    """As the SDK's own example: new weights go to a sampler, its samples and log-probs come back as data."""
    client = service.create_lora_training_client(base_model=NAME, rank=rank, seed=3).result()
    pay, rng = {arm: (arm - 8) / 7 for arm in range(8, 16)}, random.Random(0)
    prompt, share = types.ModelInput.from_ints([4, 5]), 0.0
    config = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2} if loss == "ppo" else None
    for step in range(60):
        sampler = client.save_weights_and_get_sampling_client().result()
        params = types.SamplingParams(max_tokens=1, seed=step, temperature=1.0)
        draws = [
            (sequence.tokens[0], sequence.logprobs[0])
            for sequence in sampler.sample(prompt=prompt, num_samples=32, sampling_params=params).result().sequences
        ]
        share = math.exp(sampler.compute_logprobs(types.ModelInput.from_ints([4, 5, 15])).result()[-1])
        if share > 0.96:
            break
        rewards = [pay.get(token, 0.0) + rng.gauss(0.0, 0.05) for token, _ in draws]
        mean = sum(rewards) / len(rewards)
        data = [
            datum((4, 5), (5, token), logprobs=[0.0, logprob], advantages=[0.0, (reward - mean) / len(draws)])
            for (token, logprob), reward in zip(draws, rewards, strict=True)
        ]
        done = client.forward_backward(data, loss, config)
        client.optim_step(types.AdamParams(learning_rate=0.02)).result()
        assert done.result().metrics["ratio_max:max"] == pytest.approx(1.0, abs=1e-3)
    assert share > 0.95


def test_a_loss_of_the_callers_own_is_differentiated_on_their_side(service: Any) -> None:
    client = service.create_lora_training_client(base_model=NAME, rank=4, seed=1).result()
    data = [datum((4, 5, 6), (5, 6, 7))]

    def squared(data: Any, logprobs: Any) -> Any:
        total = sum(((row + 1.0) ** 2).sum() for row in logprobs)
        return total, {"mine": float(total.detach())}

    first = client.forward_backward_custom(data, squared).result()
    for _ in range(30):
        client.optim_step(types.AdamParams(learning_rate=0.02)).result()
        last = client.forward_backward_custom(data, squared).result()
    assert last.metrics["loss:sum"] < 0.05 * first.metrics["loss:sum"]


def test_a_saved_state_goes_on_bit_for_bit_in_a_new_client(service: Any) -> None:
    client = service.create_lora_training_client(base_model=NAME, rank=4, seed=1).result()
    data = [datum((4, 5, 6), (5, 6, 7), weights=[1.0, 1.0, 1.0])]

    def step(client: Any) -> float:
        done = client.forward_backward(data, "cross_entropy")
        client.optim_step(types.AdamParams(learning_rate=0.02)).result()
        return float(done.result().metrics["loss:sum"])

    step(client)
    path = client.save_state("one").result().path
    assert path.startswith("tinker://session-")
    assert path.endswith("/weights/one")
    expected = [step(client), step(client)]
    again = service.create_training_client_from_state_with_optimizer(path).result()
    assert again.get_info().lora_rank == 4
    assert [step(again), step(again)] == expected
    named = client.save_weights_for_sampler("mine").result().path
    sampler = service.create_sampling_client(model_path=named).result()
    assert sampler.get_base_model() == NAME
    result = sampler.sample(
        prompt=types.ModelInput.from_ints([4, 5]),
        num_samples=2,
        sampling_params=types.SamplingParams(max_tokens=3, seed=1, stop=[]),
        include_prompt_logprobs=True,
        topk_prompt_logprobs=2,
    ).result()
    assert [len(sequence.tokens) for sequence in result.sequences] == [3, 3]
    assert {sequence.stop_reason for sequence in result.sequences} == {"length"}
    assert len(result.prompt_logprobs) == 2


def test_refusals_come_as_the_sdks_errors_with_the_field(service: Any) -> None:
    with pytest.raises(tinker.NotFoundError, match="base_model: 'other' is not served here; this server has 'tiny'"):
        service.create_lora_training_client(base_model="other", rank=4).result()
    client = service.create_lora_training_client(base_model=NAME, rank=4, seed=1).result()
    for data, loss, message in (
        ([datum((4, 99), (5, 6))], "cross_entropy", r"data\[0\].token_ids: holds id 99"),
        ([datum((4, 5), (5, 6))], "cispo", "loss: 'cispo' is none of cross_entropy, importance_sampling, ppo, dpo"),
        ([datum((4, 5), (5, 6))], "ppo", r"data\[0\].logprobs: is missing; ppo needs one"),
        ([datum((4, 5), ((5, 6), (6, 7)))], "cross_entropy", r"loss_fn_inputs\[target_tokens\]: has several entries"),
    ):
        with pytest.raises(tinker.RequestFailedError, match=message):
            client.forward_backward(data, loss).result()
    done = client.forward_backward([datum((4, 5), (5, 6))], "cross_entropy")
    with pytest.raises(tinker.RequestFailedError, match="send the whole batch again"):
        client.optim_step(types.AdamParams(learning_rate=0.1)).result()
    done.result()
    with pytest.raises(tinker.BadRequestError, match="ttl_seconds: is not kept by this server"):
        client.save_state("x", ttl_seconds=3600).result()


def test_a_session_that_ends_frees_its_models(gateway: Any, training_service: Any, service: Any) -> None:
    from lodestar.client import TrainingClient
    from lodestar.errors import InvalidArgument

    with tinker.ServiceClient() as other:
        name = other.create_lora_training_client(base_model=NAME, rank=4).result().model_id
        with TrainingClient(training_service.address) as training:
            assert training.describe_model(name).lora is not None
    with (
        TrainingClient(training_service.address) as training,
        pytest.raises(InvalidArgument, match="there is no model"),
    ):
        training.describe_model(name)


def test_a_batch_that_the_sdk_cuts_for_the_bodys_bound_is_one_batch(
    start_service: Any, training_service: Any, service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = start_service(
        "gateway",
        endpoints={"training": training_service.address},
        section={"name": NAME, "max_body_bytes": 2048},
        replica=1,
    )
    data = [datum((4, 5, word), (5, word, 1), weights=[1.0, 1.0, 1.0]) for word in range(2, 32)]
    found = []
    for port in (service.holder._base_url, f"http://127.0.0.1:{small.state.http_port}"):
        monkeypatch.setenv("TINKER_BASE_URL", port)
        with tinker.ServiceClient() as one:
            client = one.create_lora_training_client(base_model=NAME, rank=4, seed=1).result()
            done = client.forward_backward(data, "cross_entropy")
            norm = client.optim_step(types.AdamParams()).result().metrics["gradient_norm"]
            found.append((done.result().metrics["loss:sum"], len(done.result().loss_fn_outputs), norm))
    assert found[0] == (pytest.approx(found[1][0], rel=1e-6), 30, pytest.approx(found[1][2], rel=1e-5))
