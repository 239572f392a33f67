"""PPO's backward passes: the gradient of one minibatch, computed in micro-batches of packed sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lodestar.config import PpoConfig
from lodestar.model.packed import head_divergence, head_loss, response_states, token_values
from lodestar.ppo import kl, losses
from lodestar_services.learner.batch import Batch
from lodestar_services.learner.figures import UpdateFigures
from lodestar_services.learner.pretraining import PretrainingText
from lodestar_services.learner.ranks import Ranks


class Gradients:
    """Adds gradients to policy and critic; who clears them and steps is the trainer."""

    def __init__(self, config: PpoConfig, policy: Any, critic: Any, reference: Any, ranks: Ranks) -> None:
        """``reference`` is needed by kl.loss_estimator exact alone."""
        self._config = config
        self._policy = policy
        self._critic = critic
        self._reference = reference
        self._ranks = ranks

    def add(self, batch: Batch, indexes: Sequence[int], figures: UpdateFigures) -> None:
        """Add the gradient of the minibatch ``indexes`` (sequences of the batch) to policy and critic.

        The loss is divided by the minibatch's global count of response tokens; this rank computes its share of it,
        at most ``micro_batch_tokens`` at a time.
        """
        tokens = int(batch.responses.lengths_B[list(indexes)].sum())
        mine = self._ranks.share(indexes)
        for micro in batch.responses.micro_batches(mine, self._config.micro_batch_tokens):
            packed, rows = batch.responses.pack(micro), batch.responses.rows(micro)
            logprobs_R, policy = self._policy_backward(batch, packed, rows, tokens)
            value = losses.value_loss(
                token_values(self._critic, packed),
                batch.values_R[rows],
                batch.returns_R[rows],
                clip=self._config.critic.clip,
                tokens=tokens,
            )
            (self._config.critic.coefficient * value.loss).backward()  # type: ignore[no-untyped-call]
            figures.add(policy, value, logprobs_R, batch.proximal_R[rows])

    def add_pretraining(self, text: PretrainingText) -> None:
        """Add the gradient of PPO-ptx's language-model loss on the next documents to the policy."""
        documents = text.draw()
        tokens = sum(len(document) - 1 for document in documents)
        mine = [documents[i] for i in self._ranks.share(range(len(documents)))]
        for packed in text.pack(mine, self._config.micro_batch_tokens, next(self._policy.parameters()).device):
            loss, _ = head_loss(
                self._policy,
                response_states(self._policy, packed),
                packed.targets_R,
                lambda _, logprobs_C, __: losses.language_model_loss(logprobs_C, tokens=tokens),
                temperature=1.0,
                whole=True,
            )
            (self._config.ptx.coefficient * loss).backward()  # type: ignore[no-untyped-call]

    def _policy_backward(self, batch: Batch, packed: Any, rows: Tensor, tokens: int) -> tuple[Tensor, losses.LossSums]:
        config, responses = self._config, batch.responses
        hidden_RH = response_states(self._policy, packed)
        policy: list[losses.LossSums] = []

        def share(chunk: slice, logprobs_C: Tensor, entropy_C: Tensor | None) -> Tensor:
            of = rows[chunk]
            sums = losses.policy_loss(
                logprobs_C,
                batch.proximal_R[of],
                batch.advantages_R[of],
                batch.weights_R[of],
                clip=config.clip,
                tokens=tokens,
            )
            policy.append(losses.LossSums(sums.loss.detach(), sums.clipped))
            loss = sums.loss
            if entropy_C is not None:
                loss = loss + config.entropy_coefficient * losses.entropy_loss(entropy_C, tokens=tokens)
            if config.kl.loss_estimator == "k2":
                kl_C = kl.k2(logprobs_C, responses.reference_R[of])
                loss = loss + config.kl.loss_coefficient * losses.kl_loss(kl_C, tokens=tokens)
            return loss

        loss, logprobs_R = head_loss(
            self._policy,
            hidden_RH,
            packed.targets_R,
            share,
            temperature=config.temperature,
            entropy=config.entropy_coefficient > 0,
        )
        if config.kl.loss_estimator == "exact":
            kl_R = self._exact_kl(packed, hidden_RH)
            loss = loss + config.kl.loss_coefficient * losses.kl_loss(kl_R, tokens=tokens)
        loss.backward()  # type: ignore[no-untyped-call]
        return logprobs_R, losses.total(policy)

    def _exact_kl(self, packed: Any, hidden_RH: Tensor) -> Tensor:
        with torch.no_grad():
            reference_RH = response_states(self._reference, packed)
        return head_divergence(
            self._policy, hidden_RH, self._reference, reference_RH, temperature=self._config.temperature
        )
