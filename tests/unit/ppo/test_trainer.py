"""The trainer: invariance, resume, undoing, and the options of the design's section 5."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lodestar_services.learner.critic import critic_from
from lodestar_services.learner.figures import UpdateFigures
from lodestar_services.learner.trainer import Trainer
from lodestar_services.learner.watch import OverOptimisationWatch
from torch.utils._python_dispatch import TorchDispatchMode

from lodestar.config import CriticConfig
from lodestar.errors import ConfigError, FailedPrecondition, InvalidArgument, NonFinite
from lodestar.model.loading import save_model, scalar_from_causal_lm, tensor_digests, weights_digest
from lodestar.model.packed import PackedBatch, sequence_scores
from lodestar.ppo import losses
from lodestar.records import Rollout
from tests.unit.model.worlds import plain_model, word_tokenizer
from tests.unit.oracles.world import Responses, config, llama, sequences_of

RESPONSES = Responses([0, 2], sequences_of([0, 1, 2, 3], longest=3))
CPU = torch.device("cpu")


def rollouts(
    policy: torch.nn.Module, seed: int = 0, n: int = 8, reference: torch.nn.Module | None = None
) -> list[Rollout]:
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(len(RESPONSES.all), generator=generator)
    logprobs = RESPONSES.token_logprobs(reference or policy)
    return RESPONSES.rollouts(policy, logprobs, rewards, n, generator)


def trainer(
    seed: int = 0, *, failures: Path | None = None, more: dict[str, Any] | None = None, **changes: Any
) -> Trainer:
    ppo = config(**{"steps": 10, "batch": 8, "epochs": 2, "minibatches": 2, "learning_rate": 1e-2, **changes})
    return Trainer(ppo, llama(4, 1), llama(4, 2, scalar=True), seed=seed, failures=failures, **(more or {}))


def digest(one: Trainer) -> str:
    return weights_digest(tensor_digests(one.policy)) + weights_digest(tensor_digests(one.critic))


def gradients(one: Trainer) -> dict[str, torch.Tensor]:
    models = (("policy", one.policy), ("critic", one.critic))
    return {
        f"{name} {key}": p.grad for name, model in models for key, p in model.named_parameters() if p.grad is not None
    }


def test_loss_and_gradient_do_not_depend_on_micro_batches() -> None:
    found = []
    for tokens in (10_000, 9, 1):
        one = trainer(micro_batch_tokens=tokens)
        figures = UpdateFigures(CPU)
        one.forward_backward(one.prepare(rollouts(one.policy)), range(8), figures)
        found.append(({key: g.clone() for key, g in gradients(one).items()}, one.optim_step(0.0, 0.0)))
    for gradient, norms in found[1:]:
        assert norms == pytest.approx(found[0][1], rel=1e-5)
        for key, expected in found[0][0].items():
            assert torch.allclose(gradient[key], expected, atol=1e-6), key


def test_the_order_of_rollouts_does_not_matter() -> None:
    one, other = trainer(), trainer()
    batch = rollouts(one.policy)
    assert one.step(batch) == other.step(batch[::-1])
    assert digest(one) == digest(other)


def test_every_metric_of_the_design_is_there_and_finite() -> None:
    from lodestar.metrics import TRAINING

    one = trainer()
    figures = one.step(rollouts(one.policy))
    assert set(TRAINING) - {"tokens_per_second", *OverOptimisationWatch.FIGURES} <= set(figures)
    assert all(value == value and abs(value) < float("inf") for value in figures.values())
    assert figures["kl_behaviour"] == pytest.approx(0.0, abs=1e-6)
    assert figures["epochs_done"] == 2


def test_the_kl_to_the_reference_is_also_known_of_the_policy_that_the_step_left() -> None:
    """Against the enumeration of all responses; a run of one step would else report the SFT model's own KL, 0."""
    start = llama(4, 1)
    reference, log_reference = RESPONSES.token_logprobs(start), RESPONSES.log_distribution(start)
    one = trainer(batch=1500, learning_rate=2e-2, minibatches=1)
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(len(RESPONSES.all), generator=generator)
    before = 0.0
    for _ in range(3):
        figures = one.step(RESPONSES.rollouts(one.policy, reference, rewards, 1500, generator))
        log_policy = RESPONSES.log_distribution(one.policy)
        exact = float((log_policy.exp() * (log_policy - log_reference)).sum())
        assert figures["kl_after"] == pytest.approx(exact, rel=0.15)
        assert figures["kl_sequence"] == pytest.approx(before, abs=0.1)
        assert abs(exact - before) > 0.05
        before = exact


@pytest.mark.parametrize(("tokens", "warned"), [((3,), True), ((2, 3), False)])
def test_a_batch_that_teaches_nothing_says_so(
    tokens: tuple[int, ...], warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """One sequence of one token: its advantage less the mean advantage is 0."""
    one = trainer(batch=1, minibatches=1)
    responses = Responses([0, 2], [tokens])
    batch = responses.rollouts(
        one.policy, responses.token_logprobs(one.policy), torch.tensor([1.0]), 1, torch.Generator()
    )
    before = weights_digest(tensor_digests(one.policy))
    figures = one.step(batch)
    assert figures["nothing_to_learn"] == float(warned)
    assert (weights_digest(tensor_digests(one.policy)) == before) is warned
    assert ("response tokens have the same advantage" in caplog.text) is warned


def test_a_restored_trainer_goes_on_bit_for_bit() -> None:
    changes = {
        "ema": 0.9,
        "kl": {"controller": "adaptive", "coefficient": 0.1, "horizon": 100},
        "score": {"whiten": True},
        "ptx": {"coefficient": 0.1, "batch_tokens": 8},
    }
    more = {"pretraining": [[2, 3, 2], [3, 3], [2, 2, 2, 3]]}
    one, other = trainer(more=more, **changes), trainer(more=more, **changes)
    for step in range(2):
        one.step(rollouts(one.policy, step))
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    assert other.steps_done == 2
    for step in range(2, 4):
        batch = rollouts(one.policy, step)
        assert one.step(batch) == other.step(batch)
    assert digest(one) == digest(other)
    assert one.kl_coefficient == other.kl_coefficient != 0.1
    for name, tensor in one.average_weights().items():
        assert torch.equal(tensor, other.average_weights()[name])


@pytest.mark.parametrize("field", ["score", "behaviour_logprobs", "reference_logprobs"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_reward_or_logprob_that_is_no_number_undoes_the_step_and_saves_the_batch(
    field: str, bad: float, tmp_path: Path
) -> None:
    one = trainer(failures=tmp_path)
    one.step(rollouts(one.policy))
    before, batch = digest(one), rollouts(one.policy, 1)
    (sample,) = batch[3].samples
    value = bad if field == "score" else (bad,) * len(sample.token_ids)
    batch[3] = replace(batch[3], samples=(replace(sample, **{field: value}),))
    with pytest.raises(NonFinite, match=r"ticket 0\.3\.0, sample 0") as caught:
        one.step(batch)
    saved = tmp_path / "step-000001.json"
    assert str(saved) in str(caught.value)
    kept = json.loads(saved.read_text(), parse_constant=pytest.fail)
    assert len(kept["rollouts"]) == 8
    assert set(kept["not_finite"].values()) == {str(bad)}
    assert all(f"rollouts[3].samples[0].{field}" in place for place in kept["not_finite"])
    assert digest(one) == before
    assert one.steps_done == 1


def poisoned(one: Trainer, model: str, backward: int) -> Any:
    """Makes the n-th gradient of a model NaN; the handle takes the hook away again."""
    steps: list[int] = []

    def poison(gradient: torch.Tensor) -> torch.Tensor:
        steps.append(1)
        return gradient * float("nan") if len(steps) == backward else gradient

    head = one.policy.lm_head.weight if model == "policy" else one.critic.score.weight
    return head.register_hook(poison)


@pytest.mark.parametrize("model", ["policy", "critic"])
def test_a_gradient_that_is_no_number_is_applied_to_neither_model(model: str, tmp_path: Path) -> None:
    one, undisturbed = trainer(failures=tmp_path), trainer()
    for each in (one, undisturbed):
        each.step(rollouts(each.policy))
    before, batch = digest(one), rollouts(one.policy, 1)
    handle = poisoned(one, model, 1)
    with pytest.raises(NonFinite, match=f"step 1 was undone: the gradient of the {model}"):
        one.step(batch)
    handle.remove()
    assert one.intact
    assert digest(one) == before
    assert one.step(batch) == undisturbed.step(batch)
    assert digest(one) == digest(undisturbed)


@pytest.mark.parametrize("model", ["policy", "critic"])
def test_a_step_that_fails_half_way_leaves_nothing_to_save_and_is_done_again_from_the_last_state(
    model: str, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"ema": 0.9, "score": {"whiten": True}, "kl": {"controller": "adaptive"}}
    one, undisturbed = trainer(failures=tmp_path, **changes), trainer(**changes)
    for each in (one, undisturbed):
        each.step(rollouts(each.policy))
    kept, batch = copy.deepcopy(one.state_dict()), rollouts(one.policy, 1)
    handle = poisoned(one, model, 3)
    with pytest.raises(NonFinite, match=r"step 1 failed half-way: .*step-000001\.json; resuming goes back") as caught:
        one.step(batch)
    handle.remove()
    assert f"gradient of the {model}" in str(caught.value)
    assert (tmp_path / "step-000001.json").exists()
    assert all(torch.isfinite(p).all() for p in (*one.policy.parameters(), *one.critic.parameters()))
    assert not one.intact
    for ask in (one.state_dict, lambda: one.step(batch)):
        with pytest.raises(FailedPrecondition, match="step 1 failed half-way: load the last checkpoint"):
            ask()
    one.load_state_dict(kept)
    assert one.step(batch) == undisturbed.step(batch)
    assert digest(one) == digest(undisturbed)


def test_a_loss_that_is_no_number_is_seen_before_weights_move(monkeypatch: pytest.MonkeyPatch) -> None:
    one = trainer()
    before, batch = digest(one), rollouts(one.policy)
    right = losses.value_loss

    def broken(*arguments: Any, **options: Any) -> losses.LossSums:
        sums = right(*arguments, **options)
        return losses.LossSums(sums.loss + (float("inf") - sums.loss.detach()), sums.clipped)

    monkeypatch.setattr(losses, "value_loss", broken)
    with pytest.raises(NonFinite, match="a loss is not finite: value_loss"):
        one.step(batch)
    assert one.intact
    assert digest(one) == before


class Copies(TorchDispatchMode):
    """Notes which of the given tensors are cloned."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self._places = {tensor.data_ptr(): tensor.numel() for tensor in tensors}
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.clone.default:
            self.numbers += self._places.get(args[0].data_ptr(), 0)
        return func(*args, **(kwargs or {}))


def test_a_step_copies_neither_weights_nor_moments() -> None:
    one = trainer()
    one.step(rollouts(one.policy))
    batch = rollouts(one.policy, 1)
    state = one.state_dict()
    moments = [m[key] for n in ("policy", "critic") for m in state[f"{n}_optimizer"]["moments"].values() for key in m]
    with Copies([*one.policy.parameters(), *one.critic.parameters(), *moments]) as copies:
        one.step(batch)
        assert copies.numbers == 0
        moments[0].clone()
        assert copies.numbers > 0, "a copy would be seen"


def test_rollouts_that_do_not_fit_together_are_refused() -> None:
    one = trainer()
    (first, *rest) = rollouts(one.policy)
    (sample,) = first.samples
    short = replace(first, samples=(replace(sample, reference_logprobs=()),))
    with pytest.raises(InvalidArgument, match="reference_logprobs"):
        one.step([short, *rest])
    with pytest.raises(InvalidArgument, match="at least one sample"):
        one.step([])


def test_the_epochs_end_early_when_the_policy_moved_too_far() -> None:
    one = trainer(target_kl=1e-6, epochs=4, learning_rate=0.05)
    assert one.step(rollouts(one.policy))["epochs_done"] == 1


def test_the_learning_rate_falls_to_zero() -> None:
    one = trainer(steps=4)
    rates = [one.step(rollouts(one.policy, step))["learning_rate"] for step in range(4)]
    assert rates == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3])


def test_staleness_is_counted_and_importance_weights_are_capped() -> None:
    one = trainer()
    one.step(rollouts(one.policy))
    batch = []
    for rollout in rollouts(one.policy, 1):
        (sample,) = rollout.samples
        unlikely = tuple(value - 3.0 for value in sample.behaviour_logprobs)
        batch.append(replace(rollout, samples=(replace(sample, behaviour_logprobs=unlikely),)))
    assert one.prepare(batch).figures["staleness"] == 1.0
    assert one.prepare(batch).weights_R.tolist() == pytest.approx([2.0] * len(one.prepare(batch).weights_R))


def test_a_response_without_eos_gets_the_score_that_replaces_it() -> None:
    one = trainer(score={"missing_eos": -7.0})
    batch = one.prepare(rollouts(one.policy, n=40))
    truncated = batch.responses.truncated_B
    assert 0 < int(truncated.sum()) < 40
    plain = trainer().prepare(rollouts(one.policy, n=40))
    kept = float(plain.responses.scores_B[~truncated].sum())
    assert batch.figures["score"] == pytest.approx((kept - 7.0 * int(truncated.sum())) / 40, rel=1e-5)


def test_exact_kl_needs_the_reference_and_pulls_towards_it() -> None:
    loss = {"loss_estimator": "exact", "loss_coefficient": 50.0, "coefficient": 0.0}
    with pytest.raises(ConfigError, match="exact needs the reference"):
        trainer(kl=loss)
    start = llama(4, 7)
    for estimator in ("exact", "k2"):
        pulled = trainer(
            kl={**loss, "loss_estimator": estimator}, more={"reference": start}, epochs=12, learning_rate=0.03
        )
        before = _distance(pulled.policy, start)
        pulled.step(rollouts(pulled.policy, n=32, reference=start))
        assert _distance(pulled.policy, start) < 0.5 * before


def _distance(policy: torch.nn.Module, reference: torch.nn.Module) -> float:
    log_p, log_q = RESPONSES.log_distribution(policy), RESPONSES.log_distribution(reference)
    return float((log_p.exp() * (log_p - log_q)).sum())


def test_the_entropy_bonus_keeps_entropy_up() -> None:
    plain, curious = trainer(epochs=10), trainer(epochs=10, entropy_coefficient=5.0)
    for one in (plain, curious):
        one.step(rollouts(one.policy, n=64))
    entropies = [-float((p.exp() * p).sum()) for p in map(RESPONSES.log_distribution, (plain.policy, curious.policy))]
    assert entropies[1] > entropies[0]


def test_ptx_teaches_the_pretraining_text() -> None:
    document = [0, 2, 3, 3, 3]
    responses = Responses([0], [(2, 3, 3, 3)])
    gain = []
    for coefficient in (0.0, 5.0):
        one = trainer(ptx={"coefficient": coefficient, "batch_tokens": 8}, more={"pretraining": [document]}, epochs=10)
        before = float(responses.log_distribution(one.policy))
        one.step(rollouts(one.policy))
        gain.append(float(responses.log_distribution(one.policy)) - before)
    assert gain[1] > gain[0] + 0.1
    with pytest.raises(ConfigError, match="no pretraining text"):
        trainer(ptx={"coefficient": 1.0})


def test_a_bfloat16_model_learns_through_float32_masters() -> None:
    policy, critic = llama(4, 1).bfloat16(), llama(4, 2, scalar=True).bfloat16()
    one = Trainer(config(steps=20, batch=8, learning_rate=1e-5), policy, critic, seed=0)
    before = weights_digest(tensor_digests(policy))
    masters = one.state_dict()["policy_optimizer"]["masters"]
    start = {name: tensor.clone() for name, tensor in masters.items()}
    one.step(rollouts(policy))
    moved = [float((tensor - start[name]).abs().max()) for name, tensor in masters.items()]
    assert max(moved) > 0
    assert all(p.dtype == torch.bfloat16 for p in policy.parameters())
    for name, parameter in policy.named_parameters():
        assert torch.equal(parameter, masters[name].bfloat16())
    other = Trainer(config(steps=20, batch=8, learning_rate=1e-5), llama(4, 1).bfloat16(), critic, seed=0)
    assert weights_digest(tensor_digests(other.policy)) == before
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    again = other.state_dict()["policy_optimizer"]["masters"]
    assert all(torch.equal(tensor, again[name]) for name, tensor in masters.items())


# --- where the critic starts -----------------------------------------------------------------------------------------


def test_a_critic_from_the_reward_model_starts_at_score_minus_offset(tmp_path: Path) -> None:
    policy, tokenizer = plain_model("llama"), word_tokenizer()
    reward = scalar_from_causal_lm(plain_model("llama", 1), tokenizer, seed=0)
    save_model(reward, tokenizer, tmp_path)
    critic = critic_from(
        CriticConfig(), reward_model_path=tmp_path, policy=policy, tokenizer=tokenizer, offset=1.5, seed=0
    )
    batch = PackedBatch.pack([[4, 5, 6], [7, 8]], [1, 1], device="cpu")
    assert torch.allclose(sequence_scores(critic, batch), sequence_scores(reward, batch) - 1.5, atol=1e-5)


def test_a_critic_that_cannot_start_from_the_reward_model_is_refused_with_a_way_out(tmp_path: Path) -> None:
    policy, tokenizer = plain_model("llama"), word_tokenizer()
    other = word_tokenizer()
    other.add_tokens(["new"])
    wider = plain_model("llama")
    wider.resize_token_embeddings(len(other))
    save_model(scalar_from_causal_lm(wider, other, seed=0), other, tmp_path / "other")
    for path, said in ((None, "there is none"), (tmp_path / "other", "another tokenizer"), (tmp_path / "no", "no")):
        with pytest.raises(ConfigError, match=f"{said}.*set critic.init: policy"):
            critic_from(CriticConfig(), reward_model_path=path, policy=policy, tokenizer=tokenizer, offset=0.0, seed=0)


def test_a_critic_may_start_from_the_policy_or_a_folder(tmp_path: Path) -> None:
    policy, tokenizer = plain_model("llama"), word_tokenizer()
    mine = critic_from(
        CriticConfig(init="policy"), reward_model_path=None, policy=policy, tokenizer=tokenizer, offset=9.0, seed=0
    )
    assert mine.score.bias.tolist() == [0.0]
    save_model(mine, tokenizer, tmp_path)
    again = critic_from(
        CriticConfig(init="path", path=str(tmp_path)),
        reward_model_path=None,
        policy=policy,
        tokenizer=tokenizer,
        offset=9.0,
        seed=0,
    )
    assert tensor_digests(again) == tensor_digests(mine)
