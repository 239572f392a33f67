"""TrainingService over gRPC: models kept apart, weights saved, loaded and sampled from, refusals by field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lodestar.client import TrainingClient
from lodestar.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, TokenizerMismatch
from lodestar.model.loading import load_causal_lm
from lodestar.records import Datum, Lora

ROWS = [Datum((4, 5, word), (5, word, 1)) for word in (6, 7, 8)]


def step(training: TrainingClient, name: str, rows: list[Datum] = ROWS) -> tuple[float, float]:
    loss = training.forward_backward(name, rows, "cross_entropy").loss
    return loss, training.optim_step(name, 0.02)[1]


def test_two_models_at_once_know_nothing_of_each_other(training: TrainingClient) -> None:
    alone = training.create_model().model.name
    expected = [step(training, alone) for _ in range(3)]
    training.delete_model(alone)
    first, second = training.create_model("first").model.name, training.create_model("second", lora=Lora(4)).model.name
    found = []
    for _ in range(3):
        training.forward_backward(second, [Datum((9, 9), (9, 9))], "cross_entropy")
        loss = training.forward_backward(first, ROWS, "cross_entropy").loss
        training.optim_step(second, 0.5)
        found.append((loss, training.optim_step(first, 0.02)[1]))
    assert found == expected
    assert training.describe_model("first").model.version.step == 3
    with pytest.raises(FailedPrecondition, match="a model first is there already"):
        training.create_model("first")
    for name in (first, second):
        training.delete_model(name)
    with pytest.raises(InvalidArgument, match="model_id: there is no model 'first' here"):
        training.describe_model("first")


def test_a_saved_state_goes_on_bit_for_bit_in_its_model_and_in_a_new_one(training: TrainingClient) -> None:
    name = training.create_model("goes-on", lora={"rank": 4, "attention": True}).model.name
    assert training.describe_model(name).lora == Lora(4, attention=True)
    step(training, name)
    path = training.save_weights(name, "one")
    assert path == "goes-on/weights/one"
    expected = [step(training, name), step(training, name)]
    training.load_weights(name, path)
    assert [step(training, name), step(training, name)] == expected
    fresh = training.create_model(path=path, optimizer=True)
    assert fresh.lora == Lora(4, attention=True)
    assert fresh.model.version.step == 1
    assert [step(training, fresh.model.name), step(training, fresh.model.name)] == expected
    with pytest.raises(FailedPrecondition, match="choose another name, or set overwrite"):
        training.save_weights(name, "one")
    assert training.save_weights(name, "one", overwrite=True) == path
    whole = training.create_model().model.name
    with pytest.raises(FailedPrecondition, match="has other adapters"):
        training.load_weights(whole, path)
    for model in (name, fresh.model.name, whole):
        training.delete_model(model)


def test_samples_come_from_the_weights_that_are_asked_for(training: TrainingClient, training_service: Any) -> None:
    """A model is taught t6; the start model, what was saved before and what stands now say different things."""
    name = training.create_model("says", lora=Lora(8)).model.name
    rows = [Datum((4, 5), (5, 6))]
    for _ in range(25):
        step(training, name, rows)
    path = training.save_weights(name, "six", kind="sampler")
    for _ in range(40):
        step(training, name, [Datum((4, 5), (5, 9))])

    def probability(**whose: str) -> float:
        answer = training.sample((4, 5, 6), max_tokens=0, prompt_logprobs=True, top_prompt_logprobs=2, **whose)
        assert answer.samples == ()
        assert answer.prompt is not None
        assert len(answer.prompt.top_logprobs) == len(answer.prompt.logprobs) == 2
        return answer.prompt.logprobs[-1]

    assert probability(path=path) > -0.2
    assert probability() < -2.0
    assert probability(model_id=name) < -2.0
    assert {
        one.token_ids for one in training.sample((4, 5), path=path, max_tokens=1, n=4, temperature=0.0).samples
    } == {(6,)}
    assert training.sample((4, 5), model_id=name, max_tokens=1, temperature=0.0).samples[0].token_ids == (9,)
    folder = Path(training_service.task.section.weights) / path
    assert load_causal_lm(folder).config.vocab_size == 32
    training.delete_model(name)
    assert probability(path=path) > -0.2


def test_sampled_log_probs_are_the_trainers(training: TrainingClient) -> None:
    name = training.create_model(lora=Lora(4, head=True)).model.name
    step(training, name)
    (sample,) = training.sample((4, 5), model_id=name, max_tokens=6, seed=3, logprobs=True).samples
    ids = (4, 5, *sample.token_ids)
    row = training.forward_backward(name, [Datum(ids[:-1], ids[1:])], "cross_entropy", forward_only=True).sequences[0]
    assert sample.logprobs == pytest.approx(row[1:], abs=1e-4)
    training.delete_model(name)


def test_a_model_made_again_under_a_name_has_its_own_weights(training: TrainingClient) -> None:
    found = []
    for _ in range(2):
        name = training.create_model("again").model.name
        for _ in range(3):
            asked = training.sample((4, 5), model_id=name, max_tokens=0, prompt_logprobs=True)
            assert asked.prompt is not None
            found.append(asked.prompt.logprobs[0])
            step(training, name)
        training.delete_model(name)
    assert found[:3] == found[3:]
    assert len(set(found)) == 3


def test_nameless_weights_are_kept_for_a_while(training: TrainingClient) -> None:
    name = training.create_model("passing").model.name
    paths = [training.save_weights(name, kind="sampler") for _ in range(6)]
    assert len(set(paths)) == 6
    training.sample((4,), path=paths[-1], max_tokens=1)
    with pytest.raises(InvalidArgument, match="nothing is saved there; of nameless weights the newest 4 are kept"):
        training.sample((4,), path=paths[0], max_tokens=1)
    training.delete_model(name)
    with pytest.raises(InvalidArgument, match="nothing is saved there"):
        training.sample((4,), path=paths[-1], max_tokens=1)


def test_refusals_name_the_field_and_spoil_the_step(training: TrainingClient) -> None:
    name = training.create_model().model.name
    bad: list[tuple[list[Datum], str]] = [
        ([], "data: is empty"),
        ([Datum((), ())], r"data\[0\].token_ids: is empty"),
        ([Datum((4, 99), (5, 6))], r"data\[0\].token_ids: holds id 99; this model's vocabulary ends at 31"),
        ([Datum((4, 5), (5, 32))], r"data\[0\].targets: holds id 32"),
        (
            [ROWS[0], Datum((4,) * 65, (4,) * 65)],
            r"data\[1\].token_ids: holds 65 tokens; this model's context holds 64",
        ),
        ([Datum((4, 5), (5,))], r"data\[0\].targets: has 1 entries for 2 token_ids"),
    ]
    for data, message in bad:
        with pytest.raises(InvalidArgument, match=message):
            training.forward_backward(name, data, "cross_entropy")
    with pytest.raises(InvalidArgument, match="loss: 'mse' is none of cross_entropy, importance_sampling, ppo, dpo"):
        training.forward_backward(name, ROWS, "mse")
    training.forward_backward(name, ROWS, "cross_entropy")
    with pytest.raises(FailedPrecondition, match="send the whole batch again"):
        training.optim_step(name, 0.1)
    with pytest.raises(FailedPrecondition, match="no ForwardBackward since the last step"):
        training.optim_step(name, 0.1)
    with pytest.raises(TokenizerMismatch):
        training.forward_backward(name, ROWS, "cross_entropy", tokenizer_hash="f" * 64, forward_only=True)
    training.forward_backward(name, ROWS, "cross_entropy")
    for params, message in (
        ({"learning_rate": -1.0}, "learning_rate: must be 0 or more"),
        ({"learning_rate": 0.1, "beta2": 1.0}, r"beta2: must be in \[0, 1\), got 1.0"),
        ({"learning_rate": 0.1, "eps": 0.0}, "eps: must be above 0"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            training.optim_step(name, params)
    training.optim_step(name, 0.1)
    training.delete_model(name)


def test_other_refusals_name_theirs(training: TrainingClient) -> None:
    for call, message in (
        (lambda: training.create_model("../x"), "model_id: '../x': 1 … 200 letters"),
        (lambda: training.create_model(lora=Lora(0)), "lora.rank: must be at least 1, got 0"),
        (lambda: training.create_model(optimizer=True), "optimizer: belongs to a saved state"),
        (lambda: training.create_model(path="a/weights/b", lora=Lora(2)), "lora: is said by the saved state"),
        (lambda: training.create_model(path="a/../../b"), "path: 'a/../../b' is not of the form"),
        (lambda: training.create_model(path="a/weights/b"), "path: a/weights/b: nothing is saved there"),
        (lambda: training.save_weights("nobody", "x"), "model_id: there is no model 'nobody' here"),
        (lambda: training.sample((), max_tokens=1), "prompt: is empty"),
        (lambda: training.sample((99,), max_tokens=1), "prompt: holds id 99"),
        (
            lambda: training.sample((4,), max_tokens=64),
            "sampling.max_tokens: 1 prompt tokens \\+ 64 exceed the context",
        ),
        (lambda: training.sample((4,), max_tokens=0), "sampling.max_tokens: is 0: nothing is asked for"),
        (lambda: training.sample((4,), max_tokens=1, path="a/b", model_id="c"), "choose one"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            call()
    name = training.create_model().model.name
    for given in ("", "a/b", "passing-1", ".x"):
        with pytest.raises(InvalidArgument, match="name: "):
            training.save_weights(name, given)
    training.delete_model(name)


def test_there_is_room_for_so_many_models(start_service: Any, tiny_start: Path, tmp_path: Path) -> None:
    section = {"weights": str(tmp_path), "kv_cache_tokens": 1024, "max_models": 1}
    service = start_service("training", model=str(tiny_start), section=section, replica=1)
    with TrainingClient(service.address) as training:
        name = training.create_model().model.name
        with pytest.raises(ResourceExhausted, match="at most 1 may be: delete one"):
            training.create_model()
        path = training.save_weights(name, "kept")
        expected = step(training, name)
    service.child.stop(10)
    again = start_service("training", model=str(tiny_start), section=section, replica=2)
    with TrainingClient(again.address) as training:  # what was saved outlives the process
        name = training.create_model(path=path, optimizer=True).model.name
        assert step(training, name) == expected
