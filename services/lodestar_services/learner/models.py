"""What every rank of a learner makes for itself: the trainer with its policy and critic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lodestar.config import LearnerTask
from lodestar.data.files import read_text
from lodestar.data.rows import encode_documents
from lodestar.model.loading import load_causal_lm, resolve_device
from lodestar.records import Rollout
from lodestar_services.learner.critic import critic_from
from lodestar_services.learner.ranks import Orders
from lodestar_services.learner.trainer import Trainer


@dataclass(frozen=True, slots=True)
class Start:
    """What the first rank tells the others first: ``Start(offset=0.12, checkpoint="step-000020")``."""

    offset: float
    """Calibration offset of the scores."""
    checkpoint: str | None
    """Name of the checkpoint that the run goes on from."""


class LeadingTrainer(Trainer):
    """The first rank's: a step begins with telling the others its rollouts."""

    orders: Orders

    def step(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """See Trainer."""
        self.orders.give(list(rollouts))
        return super().step(rollouts)


def make_trainer(task: LearnerTask, tokenizer: Any, offset: float, *, orders: Orders | None = None) -> Trainer:
    """The trainer of a run around its start model; with ``orders`` the first rank's."""
    ppo, device = task.ppo, str(resolve_device(task.device))
    policy = load_causal_lm(task.policy, dtype=task.dtype, device=device)
    critic = critic_from(
        ppo.critic,
        reward_model_path=task.critic,
        policy=policy,
        tokenizer=tokenizer,
        offset=offset,
        seed=task.seed,
    )
    wants_reference = ppo.kl.loss_estimator == "exact"
    text = read_text(task.text) if task.text is not None and ppo.ptx.coefficient else []
    longest = min(ppo.ptx.document_tokens, tokenizer.model_max_length)
    kind = Trainer if orders is None else LeadingTrainer
    trainer = kind(
        ppo,
        policy,
        critic,
        seed=task.seed,
        offset=offset,
        reference=load_causal_lm(task.reference, dtype=task.dtype, device=device) if wants_reference else None,
        pretraining=encode_documents(tokenizer, text, longest=longest),
        failures=task.state / "failures",
        deterministic=task.deterministic,
    )
    if isinstance(trainer, LeadingTrainer) and orders is not None:
        trainer.orders = orders
    return trainer
