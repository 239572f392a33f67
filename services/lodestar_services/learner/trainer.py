"""PPO's optimisation: rollouts in, new weights and metrics out. The design's section 5, step by step.

An iteration is: prepare (proximal log-probs, values, rewards, advantages) → epochs × minibatches of
(forward_backward, optim_step) → KL controller, moving average. The mathematics is in lodestar.ppo and the backward
passes are in gradients.py; this class holds what changes from step to step, and knows how to save, restore and undo it.

It is written for any number of ranks (see ranks.py): every rank calls ``step`` with the same rollouts.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lodestar.config import PpoConfig
from lodestar.cores import compute_threads
from lodestar.errors import ConfigError, FailedPrecondition, NonFinite
from lodestar.model.fused import fuse
from lodestar.model.packed import response_logprobs, token_values
from lodestar.model.prompt_once import shares_prompts
from lodestar.model.warm_up import warm_up_kernels
from lodestar.ppo import kl, losses
from lodestar.ppo.ema import update_average
from lodestar.ppo.gae import packed_gae
from lodestar.ppo.moments import RunningMoments, whiten
from lodestar.ppo.rewards import shape_scores, token_rewards
from lodestar.ppo.schedules import linear_decay
from lodestar.records import Rollout
from lodestar_services.learner.batch import Batch, Responses, save_rollouts
from lodestar_services.learner.figures import UpdateFigures, batch_figures
from lodestar_services.learner.gradients import Gradients
from lodestar_services.learner.optimizer import MasterAdamW
from lodestar_services.learner.pretraining import PretrainingText
from lodestar_services.learner.ranks import Ranks

log = logging.getLogger(__name__)


class Trainer:
    """Policy, critic and everything their next update depends on."""

    def __init__(
        self,
        config: PpoConfig,
        policy: Any,
        critic: Any,
        *,
        seed: int,
        offset: float = 0.0,
        reference: Any = None,
        pretraining: Sequence[Sequence[int]] = (),
        failures: Path | None = None,
        deterministic: bool = False,
    ) -> None:
        """Take over ``policy`` and ``critic``.

        offset: calibration offset of the scores. reference: the reference model, needed by kl.loss_estimator exact
        alone. pretraining: token ids of documents for PPO-ptx. failures: folder where a batch is saved whose step had
        to be undone. deterministic: one thread and deterministic kernels, for bit-equal runs.

        Raises:
            ConfigError: an option needs something that was not given.
        """
        if config.kl.loss_estimator == "exact" and reference is None:
            raise ConfigError("ppo.kl.loss_estimator", "exact needs the reference model in the learner; use k2")
        if deterministic:
            make_deterministic()
        self.config = config
        self.policy = policy
        self.critic = critic
        self.steps_done = 0
        """Finished iterations."""
        self.offset = offset
        self._seed = seed
        self._failures = failures
        self._device = next(policy.parameters()).device
        self._ranks = Ranks()
        for model in (policy, critic):
            model.eval()  # dropout off everywhere
            fuse(model)
            self._ranks.copy_from_first(model.parameters())
        self._share = all(shares_prompts(model) for model in (policy, critic, reference) if model is not None)
        warm_up_kernels(policy, train=True)
        self._gradients = Gradients(config, policy, critic, reference, self._ranks)
        self._policy_optimizer = self._optimizer("policy", policy, config.max_grad_norm)
        self._critic_optimizer = self._optimizer("critic", critic, config.critic.max_grad_norm)
        self._kl: kl.KlController = (
            kl.FixedKl(config.kl.coefficient)
            if config.kl.controller == "fixed"
            else kl.AdaptiveKl(config.kl.coefficient, config.kl.target, config.kl.horizon)
        )
        self._scores = RunningMoments()
        self._moved = False
        """Whether the step in progress has changed weights."""
        self.intact = True
        """False after a step that failed when it had changed weights, until a state is loaded."""
        self._early_stops = 0
        self._average = [p.detach().float().clone() for p in policy.parameters()] if config.ema else []
        self._pretraining = (
            PretrainingText(pretraining, seed, config.ptx.batch_tokens) if config.ptx.coefficient else None
        )

    @property
    def kl_coefficient(self) -> float:
        """β in force."""
        return self._kl.coefficient

    # --- one iteration ---------------------------------------------------------------------------------------------

    def step(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """One PPO iteration on a batch of rollouts, in whatever order; returns the metrics of metrics.jsonl.

        Raises:
            NonFinite: a reward, log-prob, loss or gradient is not a number; it was applied to nothing. The rollouts are
                saved, and the message names the file. ``intact`` says whether all is as it was before the call.
            InvalidArgument: a rollout does not fit together.
            FailedPrecondition: a step before failed half-way, and no checkpoint was loaded since.
        """
        self._refuse_half_steps()
        with self._undone_on_failure(rollouts):
            batch = self.prepare(rollouts)
            decay = linear_decay(self.steps_done, self.config.steps)
            figures = self._optimise(batch, decay)
            figures |= batch.figures
            figures["kl_after"] = self._kl_after(batch.responses)
            figures["kl_coefficient"] = self._kl.coefficient
            figures["learning_rate"] = self.config.learning_rate * decay
            self._kl = self._kl.update(figures["kl_sequence"], len(batch.responses.sequences))
            if self.config.ema:
                update_average(self._average, self.policy.parameters(), decay=self.config.ema)
            self.steps_done += 1
        return figures

    @torch.no_grad()
    def prepare(self, rollouts: Sequence[Rollout]) -> Batch:
        """Recompute log-probs and values, then rewards and advantages over the whole batch.

        Raises:
            NonFinite, InvalidArgument: as step(), naming ticket and sample.
        """
        config = self.config
        responses = Responses.from_rollouts(rollouts, self._device, share=self._share)
        proximal_R, entropy_R, values_R = self._look(responses)
        rewards_R, shaped_B = self._rewards(responses, proximal_R)
        advantages_R, returns_R = packed_gae(
            rewards_R, values_R, responses.lengths_B, gamma=config.gamma, lam=config.lam
        )
        figures = batch_figures(
            responses,
            shaped_B=shaped_B,
            rewards_R=rewards_R,
            proximal_R=proximal_R,
            entropy_R=entropy_R,
            values_R=values_R,
            returns_R=returns_R,
            advantages_R=advantages_R,
            step=self.steps_done,
        )
        if figures["nothing_to_learn"] and config.whiten_advantages:
            log.warning(
                "step %d teaches the policy nothing of its rewards: all %d response tokens have the same advantage, "
                "and whitening leaves 0; give larger batches (ppo.batch), or set ppo.whiten_advantages: false",
                self.steps_done + 1,
                len(advantages_R),
            )
        return Batch(
            responses=responses,
            proximal_R=proximal_R,
            values_R=values_R,
            advantages_R=whiten(advantages_R) if config.whiten_advantages else advantages_R,
            returns_R=returns_R,
            weights_R=losses.importance_weights(proximal_R, responses.behaviour_R, cap=config.importance_cap),
            figures=figures,
        )

    def forward_backward(self, batch: Batch, indexes: Sequence[int], figures: UpdateFigures) -> None:
        """Add the gradient of the minibatch ``indexes`` (sequences of the batch) to policy and critic."""
        self._gradients.add(batch, indexes, figures)
        if self._pretraining is not None:
            self._gradients.add_pretraining(self._pretraining)

    def optim_step(self, learning_rate: float, critic_learning_rate: float) -> tuple[float, float]:
        """Clip, update and clear both gradients; returns their norms before clipping.

        Raises:
            NonFinite: a gradient is NaN or infinite; neither model was updated.
        """
        norms = self._policy_optimizer.norm(), self._critic_optimizer.norm()
        self._moved = True
        self._policy_optimizer.step(learning_rate, norms[0])
        self._critic_optimizer.step(critic_learning_rate, norms[1])
        return norms

    def _optimise(self, batch: Batch, decay: float) -> dict[str, float]:
        config = self.config
        collected: dict[str, float] = {}
        for epoch in range(config.epochs):
            figures = UpdateFigures(self._device)
            for indexes in self._minibatches(batch.responses, epoch):
                self.forward_backward(batch, indexes, figures)
                figures.check(self._ranks)
                norms = self.optim_step(config.learning_rate * decay, config.critic.learning_rate * decay)
                figures.add_norms(*norms)
            collected = figures.collect(self._ranks)
            collected["epochs_done"] = float(epoch + 1)
            if not all(map(_finite, collected.values())):
                raise NonFinite(f"a loss is not finite: {collected}")
            if config.target_kl is not None and collected["kl_update"] > config.target_kl:
                self._early_stops += epoch + 1 < config.epochs
                break
        return collected

    def _minibatches(self, responses: Responses, epoch: int) -> Iterator[list[int]]:
        """A shuffle that is a pure function of (seed, step, epoch), cut into nearly equal parts.

        The samples of a prompt stand together, so that it is computed once; a cut may go through them.
        """
        digest = hashlib.sha256(f"{self._seed}/{self.steps_done}/{epoch}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]))
        shuffled = torch.randperm(len(responses.sequences), generator=generator).tolist()
        order = torch.tensor(responses.by_prompt(shuffled))
        for part in order.tensor_split(min(self.config.minibatches, len(order))):
            yield part.tolist()

    # --- the pieces ------------------------------------------------------------------------------------------------

    def _look(self, responses: Responses) -> tuple[Tensor, Tensor, Tensor]:
        """Proximal log-probs, entropies and values of all response tokens, each rank computing its share."""
        looked = torch.zeros(3, len(responses.behaviour_R), device=self._device)
        mine = self._ranks.share(range(len(responses.sequences)))
        for micro in responses.micro_batches(mine, self.config.micro_batch_tokens):
            packed = responses.pack(micro)
            logprobs_R, entropy_R = response_logprobs(
                self.policy, packed, temperature=self.config.temperature, entropy=True
            )
            assert entropy_R is not None
            looked[:, responses.rows(micro)] = torch.stack((logprobs_R, entropy_R, token_values(self.critic, packed)))
        proximal_R, entropy_R, values_R = self._ranks.total(looked)
        if not bool(torch.isfinite(looked).all()):
            raise NonFinite("the policy's log-probs or the critic's values are not finite")
        return proximal_R, entropy_R, values_R

    @torch.no_grad()
    def _kl_after(self, responses: Responses) -> float:
        """KL to the reference, nats per sequence, of the policy as the step leaves it."""
        logprobs_R = torch.zeros_like(responses.behaviour_R)
        mine = self._ranks.share(range(len(responses.sequences)))
        for micro in responses.micro_batches(mine, self.config.micro_batch_tokens):
            packed = responses.pack(micro)
            logprobs_R[responses.rows(micro)] = response_logprobs(
                self.policy, packed, temperature=self.config.temperature
            )[0]
        (logprobs_R,) = self._ranks.total(logprobs_R[None])
        return float(kl.sequence_kl(logprobs_R, responses.behaviour_R, responses.reference_R, responses.lengths_B))

    def _rewards(self, responses: Responses, proximal_R: Tensor) -> tuple[Tensor, Tensor]:
        """Rewards per token, and the scores after offset and clip (before whitening)."""
        score = self.config.score
        clipped_B = shape_scores(
            responses.scores_B,
            responses.truncated_B,
            offset=self.offset,
            clip=score.clip,
            missing_eos=score.missing_eos,
        )
        shaped_B = clipped_B
        if score.whiten:
            judged = clipped_B if score.missing_eos is None else clipped_B[~responses.truncated_B]
            self._scores = self._scores.update(judged)
            shaped_B = shape_scores(
                responses.scores_B,
                responses.truncated_B,
                offset=self.offset,
                clip=score.clip,
                scale=self._scores.standard_deviation,
                missing_eos=score.missing_eos,
            )
        rewards_R = token_rewards(
            proximal_R, responses.reference_R, shaped_B, responses.lengths_B, kl_coefficient=self._kl.coefficient
        )
        return rewards_R, clipped_B

    def _optimizer(self, name: str, model: Any, max_norm: float) -> MasterAdamW:
        return MasterAdamW(
            name,
            model,
            self._ranks,
            betas=self.config.adam_betas,
            eps=self.config.adam_eps,
            weight_decay=self.config.weight_decay,
            max_norm=max_norm,
        )

    # --- state -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on: nested dicts of tensors (live, not copies), numbers and text.

        A trainer that loads it goes on bit for bit as this one does.

        Raises:
            FailedPrecondition: a step failed half-way.
        """
        self._refuse_half_steps()
        return {
            "policy": {name: p.detach() for name, p in self.policy.named_parameters()},
            "critic": {name: p.detach() for name, p in self.critic.named_parameters()},
            "average": {str(i): tensor for i, tensor in enumerate(self._average)},
            "policy_optimizer": self._policy_optimizer.state_dict(),
            "critic_optimizer": self._critic_optimizer.state_dict(),
            **self._counters(),
        }

    def _counters(self) -> dict[str, Any]:
        """What a step changes besides weights and moments."""
        cuda = self._device.type == "cuda"
        return {
            "steps_done": self.steps_done,
            "offset": self.offset,
            "kl_coefficient": self._kl.coefficient,
            "scores": {"count": self._scores.count, "mean": self._scores.mean, "squares": self._scores.squares},
            "early_stops": self._early_stops,
            "pretraining_cursor": 0 if self._pretraining is None else self._pretraining.cursor,
            "rng": {"cpu": torch.get_rng_state()} | ({"cuda": torch.cuda.get_rng_state()} if cuda else {}),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where ``state`` was taken; weights are copied in place."""
        for name, model in (("policy", self.policy), ("critic", self.critic)):
            for key, parameter in model.named_parameters():
                parameter.copy_(state[name][key])
        for i, average in enumerate(self._average):
            average.copy_(state["average"][str(i)])
        self._policy_optimizer.load_state_dict(state["policy_optimizer"])
        self._critic_optimizer.load_state_dict(state["critic_optimizer"])
        self._set_counters(state)
        self.intact = True

    def _set_counters(self, state: Mapping[str, Any]) -> None:
        self.steps_done = int(state["steps_done"])
        self.offset = float(state["offset"])
        self._kl = replace(self._kl, coefficient=float(state["kl_coefficient"]))
        self._scores = RunningMoments(**state["scores"])
        self._early_stops = int(state["early_stops"])
        if self._pretraining is not None:
            self._pretraining.cursor = int(state["pretraining_cursor"])
        torch.set_rng_state(state["rng"]["cpu"].cpu())
        if "cuda" in state["rng"]:
            torch.cuda.set_rng_state(state["rng"]["cuda"].cpu())

    def average_weights(self) -> dict[str, Tensor]:
        """The moving average of the policy's weights by name, float32; empty when ema is off."""
        names = [name for name, _ in self.policy.named_parameters()]
        return dict(zip(names, self._average, strict=False))

    @contextmanager
    def _undone_on_failure(self, rollouts: Sequence[Rollout]) -> Iterator[None]:
        """Save the rollouts of a step that meets a number that is none, and undo it where no weight has moved yet.

        What is not a number is never applied; but the minibatches before it were, and going back there takes the last
        checkpoint: a copy of weights and moments for every step would cost their memory again.
        """
        before = self._counters()
        self._moved = False
        try:
            yield
        except BaseException as error:
            self._policy_optimizer.clear()
            self._critic_optimizer.clear()
            self.intact = not self._moved
            step = before["steps_done"]
            if self.intact:
                self._set_counters(before)
            if self._failures is None or not isinstance(error, NonFinite):
                raise
            path = self._failures / f"step-{step:06d}.json"
            if self._ranks.rank == 0:
                save_rollouts(rollouts, path)
            how = "was undone" if self.intact else "failed half-way"
            after = "" if self.intact else "; resuming goes back to the last checkpoint and does the steps since again"
            raise NonFinite(f"step {step} {how}: {error}. Its rollouts are in {path}{after}") from error

    def _refuse_half_steps(self) -> None:
        if not self.intact:
            raise FailedPrecondition(f"step {self.steps_done} failed half-way: load the last checkpoint")


def make_deterministic() -> None:
    """One thread and deterministic kernels for this process."""
    torch.use_deterministic_algorithms(True)
    compute_threads(1)


def _finite(value: float) -> bool:
    return abs(value) < float("inf")
