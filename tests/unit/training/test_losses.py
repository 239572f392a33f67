"""Every named loss against a slow float64 formula over the plain Hugging Face model: value, log-probs, gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lodestar_services.training import losses
from lodestar_services.training.model import ModelInTraining
from torch import Tensor
from transformers import AutoModelForCausalLM

from lodestar.config import ArchitectureConfig
from lodestar.errors import FailedPrecondition, InvalidArgument, NonFinite
from lodestar.local.tiny import tokenizer
from lodestar.model.loading import load_causal_lm, new_causal_lm, save_model
from lodestar.records import Datum, Lora, OptimParams

VOCAB = 24
ALL = ["cross_entropy", "importance_sampling", "ppo", "dpo"]


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def start(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("start") / "model"
    words = tokenizer(VOCAB)
    shape = ArchitectureConfig(
        hidden_size=16, intermediate_size=24, layers=2, heads=4, kv_heads=2, context_tokens=32, tied=request.param
    )
    save_model(new_causal_lm(shape, words, seed=1), words, folder)
    model = load_causal_lm(folder)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def made(start: Any, lora: Lora | None = None, *, micro_batch_tokens: int = 7) -> ModelInTraining:
    return ModelInTraining("m", start, lora, micro_batch_tokens=micro_batch_tokens)


def batch(loss: str) -> list[Datum]:
    """Sequences of several lengths whose targets are not all the next token, with a number for everything."""
    noise = torch.Generator().manual_seed(5)

    def numbers(count: int, low: float, high: float) -> tuple[float, ...]:
        return tuple((torch.rand(count, generator=noise) * (high - low) + low).tolist())

    data = []
    for length in (3, 1, 5, 4):
        ids = tuple(torch.randint(3, VOCAB, (length,), generator=noise).tolist())
        targets = (*ids[1:], int(torch.randint(1, VOCAB, (1,), generator=noise)))
        needs = losses.LOSSES[loss].needs
        data.append(
            Datum(
                ids,
                targets,
                weights=numbers(length, 0.0, 2.0),
                logprobs=numbers(length, -3.6, -2.8) if "logprobs" in needs else (),
                advantages=numbers(length, -1.0, 1.0) if "advantages" in needs else (),
            )
        )
    return data


def slow_logprobs(model: Any, datum: Datum) -> Tensor:
    logits = model(torch.tensor([datum.token_ids])).logits[0]
    return torch.stack([logits[i].log_softmax(-1)[target] for i, target in enumerate(datum.targets)])


def slow_loss(loss: str, options: dict[str, float], data: Sequence[Datum], rows: Sequence[Tensor]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    if loss == "dpo":
        ratios = [
            sum(w * (lp - ref) for w, lp, ref in zip(datum.weights, row, datum.logprobs, strict=True))
            for datum, row in zip(data, rows, strict=True)
        ]
        for better, worse in zip(ratios[0::2], ratios[1::2], strict=True):
            gap, smooth = torch.as_tensor(options["beta"] * (better - worse)), options["label_smoothing"]
            total = total - (1 - smooth) * torch.log(torch.sigmoid(gap)) - smooth * torch.log(torch.sigmoid(-gap))
        return total
    for datum, row in zip(data, rows, strict=True):
        for i, logprob in enumerate(row):
            weight = datum.weights[i] if datum.weights else 1.0
            if loss == "cross_entropy":
                total = total - weight * logprob
                continue
            ratio, advantage = torch.exp(logprob - datum.logprobs[i]), datum.advantages[i]
            if loss == "ppo":
                clipped = min(max(float(ratio.detach()), 1 - options["clip_low"]), 1 + options["clip_high"])
                plain = ratio * advantage
                total = total - weight * (
                    plain if float(plain.detach()) <= clipped * advantage else clipped * advantage
                )
            else:
                total = total - weight * ratio * advantage
    return total


def slow(model: ModelInTraining, folder: Path) -> Any:
    """The model as it stands, adapters merged, in float64 with transformers' own attention."""
    save_model(model.module, tokenizer(VOCAB), folder)
    plain: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    return plain.eval()


def gradients(model: ModelInTraining) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.module.named_parameters() if p.grad is not None}


OPTIONS: dict[str, dict[str, float]] = {
    "cross_entropy": {},
    "importance_sampling": {},
    "ppo": {"clip_low": 0.1, "clip_high": 0.3},
    "dpo": {"beta": 0.7, "label_smoothing": 0.1},
}


@pytest.mark.parametrize("loss", ALL)
def test_value_log_probs_and_gradient_are_those_of_the_slow_formula(start: Any, loss: str, tmp_path: Path) -> None:
    data, model = batch(loss), made(start)
    options = losses.check(loss, OPTIONS[loss], data)
    value, rows, _ = model.forward_backward(data, loss, options)
    plain = slow(model, tmp_path / "plain")
    expected = [slow_logprobs(plain, datum) for datum in data]
    wanted = slow_loss(loss, options, data, expected)
    wanted.backward()
    assert value == pytest.approx(float(wanted.detach()), rel=1e-5)
    for row, slow_row in zip(rows, expected, strict=True):
        assert row == pytest.approx(slow_row.tolist(), abs=2e-5)
    found = gradients(model)
    for name, parameter in plain.named_parameters():
        assert torch.allclose(found[name].double(), parameter.grad, atol=2e-5, rtol=1e-4), name


@pytest.mark.parametrize("loss", ALL)
def test_adapters_get_the_gradient_of_the_weights_that_they_update(start: Any, loss: str, tmp_path: Path) -> None:
    """With W = W₀ + s·BA: ∂L/∂B = s·∂L/∂W·Aᵀ and ∂L/∂A = s·Bᵀ·∂L/∂W; the head's own among them."""
    data, model = batch(loss), made(start, Lora(rank=2, alpha=4, seed=1))
    options = losses.check(loss, OPTIONS[loss], data)
    model.forward_backward(batch("cross_entropy"), "cross_entropy", {})
    model.optim_step(OptimParams(0.05))  # B is 0 at first
    plain = slow(model, tmp_path / "plain")
    wanted = slow_loss(loss, options, data, [slow_logprobs(plain, datum) for datum in data])
    wanted.backward()
    value, _, _ = model.forward_backward(data, loss, options)
    assert value == pytest.approx(float(wanted.detach()), rel=1e-5)
    weights, found = dict(plain.named_parameters()), gradients(model)
    parameters = dict(model.module.named_parameters())
    factors = [name for name in found if ".lora_A." in name]
    assert len(factors) == 2 * 7 + 1
    for name in factors:
        other = name.replace(".lora_A.", ".lora_B.")
        whole = weights[name.removeprefix("base_model.model.").partition(".lora_A")[0] + ".weight"].grad
        a, b = parameters[name].detach().double(), parameters[other].detach().double()
        assert torch.allclose(found[name].double(), 2 * b.T @ whole, atol=2e-5, rtol=1e-4), name
        assert torch.allclose(found[other].double(), 2 * whole @ a.T, atol=2e-5, rtol=1e-4), other


@pytest.mark.parametrize("loss", ALL)
def test_several_calls_add_up_to_one_call_of_the_whole_batch(start: Any, loss: str) -> None:
    data, once, apart = batch(loss), made(start, micro_batch_tokens=4096), made(start, micro_batch_tokens=4096)
    options = losses.check(loss, OPTIONS[loss], data)
    value, rows, figures = once.forward_backward(data, loss, options)
    parts = [apart.forward_backward(data[i : i + 2], loss, options) for i in (0, 2)]
    assert sum(part[0] for part in parts) == pytest.approx(value, rel=1e-6)
    assert [row for part in parts for row in part[1]] == [pytest.approx(row, abs=1e-5) for row in rows]
    assert losses.merge([part[2] for part in parts]) == pytest.approx(figures, rel=1e-5)
    whole = gradients(once)
    for name, gradient in gradients(apart).items():
        assert torch.allclose(gradient, whole[name], atol=1e-5), name
    assert once.optim_step(OptimParams(0.01)) == pytest.approx(apart.optim_step(OptimParams(0.01)), rel=1e-5)


@pytest.mark.parametrize("lora", [None, Lora(rank=2, seed=1)], ids=["full weights", "LoRA"])
def test_a_loaded_state_makes_the_same_next_step_bit_for_bit(start: Any, lora: Lora | None, tmp_path: Path) -> None:
    from lodestar_services.learner.checkpoint import load_checkpoint, write_checkpoint

    data, params = batch("cross_entropy"), OptimParams(0.01, weight_decay=0.1, max_grad_norm=0.5)

    def step(model: ModelInTraining) -> None:
        model.forward_backward(data, "cross_entropy", {})
        model.optim_step(params)

    model = made(start, lora)
    step(model)
    write_checkpoint(tmp_path / "state", model.state_dict("base"))
    step(model)
    again = made(start, lora)
    step(again)  # what it did before is forgotten
    step(again)
    again.load_state_dict(load_checkpoint(tmp_path / "state"), optimizer=True)
    step(again)
    assert again.steps == model.steps == 2
    for name, tensor in model.tensors().items():
        assert torch.equal(tensor, again.tensors()[name]), name
    anew = made(start, lora)
    anew.load_state_dict(load_checkpoint(tmp_path / "state"), optimizer=False)
    step(anew)
    assert any(not torch.equal(tensor, anew.tensors()[name]) for name, tensor in model.tensors().items())


def test_models_share_the_start_model_and_change_nothing_of_it(start: Any) -> None:
    before = {name: p.clone() for name, p in start.named_parameters()}
    models = [made(start), made(start, Lora(rank=2)), made(start, Lora(rank=2))]
    for model in models:
        model.forward_backward(batch("cross_entropy"), "cross_entropy", {})
        model.optim_step(OptimParams(0.1))
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in start.named_parameters())
    held = {p.data_ptr() for p in start.parameters()}
    for adapted in models[1:]:
        own = [p for p in adapted.module.parameters() if not p.requires_grad and p.data_ptr() not in held]
        assert len(own) <= 1  # a head that was tied has weights of its own


def test_the_clip_holds_the_gradients_norm(start: Any) -> None:
    model = made(start)
    model.forward_backward(batch("cross_entropy"), "cross_entropy", {})
    found = math.sqrt(sum(float(g.double().square().sum()) for g in gradients(model).values()))
    assert model.optim_step(OptimParams(0.0, max_grad_norm=0.5)) == pytest.approx(found, rel=1e-5)
    with pytest.raises(FailedPrecondition, match="no ForwardBackward since the last step"):
        model.optim_step(OptimParams(0.0))


def test_no_step_is_made_of_a_part_of_a_batch(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = made(start, micro_batch_tokens=1), batch("cross_entropy")
    before = model.tensors()
    model.forward_backward(data, "cross_entropy", {})
    broken = [Datum((5,), (6,), weights=(1.0,)), Datum((7,), (6,), weights=(1.0,)), Datum((8,), (6,), weights=(1.0,))]
    whole: Callable[..., Any] = ModelInTraining._part
    calls: list[int] = []

    def third_fails(self: Any, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise NonFinite("m: the loss is inf")
        return whole(self, *args)

    monkeypatch.setattr(ModelInTraining, "_part", third_fails)
    with pytest.raises(NonFinite):
        model.forward_backward(broken, "cross_entropy", {})
    model.forward_backward(data, "cross_entropy", {})
    with pytest.raises(FailedPrecondition, match="the loss is inf"):
        model.optim_step(OptimParams(0.1))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.tensors().items())
    model.forward_backward(data, "cross_entropy", {})
    model.optim_step(OptimParams(0.1))


def test_a_loss_that_is_no_number_is_refused(start: Any) -> None:
    model = made(start)
    with pytest.raises(NonFinite, match="the loss is"):
        model.forward_backward([Datum((5, 6), (6, 7), weights=(3e38, 3e38))], "cross_entropy", {})
    assert not gradients(model)


FINE = Datum((5, 6), (6, 7))


@pytest.mark.parametrize(
    ("loss", "options", "data", "field", "why"),
    [
        ("mse", {}, [FINE], "loss", "'mse' is none of cross_entropy, importance_sampling, ppo, dpo"),
        ("ppo", {"clip": 0.2}, [FINE], "options[clip]", "is no option of ppo; it has clip_low, clip_high"),
        ("cross_entropy", {"beta": 1.0}, [FINE], "options[beta]", "it has none"),
        ("ppo", {"clip_low": 1.5}, [FINE], "options[clip_low]", "must be 0 … 1, got 1.5"),
        ("dpo", {"beta": math.nan}, [FINE, FINE], "options[beta]", "got nan"),
        ("dpo", {}, [FINE], "data", "wants pairs"),
        ("cross_entropy", {}, [FINE, Datum((5, 6), (6,))], "data[1].targets", "has 1 entries for 2 token_ids"),
        ("cross_entropy", {}, [Datum((5, 6), (6, 7), (1.0,))], "data[0].weights", "has 1 entries for 2 token_ids"),
        ("cross_entropy", {}, [Datum((5,), (6,), logprobs=(0.0,))], "data[0].logprobs", "means nothing to cross_entr"),
        ("ppo", {}, [FINE], "data[0].logprobs", "is missing; ppo needs one for each of the 2 targets"),
        ("ppo", {}, [Datum((5,), (6,), logprobs=(-1.0,))], "data[0].advantages", "is missing"),
        ("dpo", {}, [FINE, FINE], "data[0].logprobs", "is missing"),
        ("ppo", {}, [Datum((5,), (6,), (), (-1.0,), (math.inf,))], "data[0].advantages[0]", "is inf; give a finite"),
    ],
)
def test_refusals_name_the_field(loss: str, options: dict[str, float], data: list[Datum], field: str, why: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        losses.check(loss, options, data)
    assert refused.value.field == field
    assert why in str(refused.value)
