"""What every rank of a learner makes for itself: the trainer with its policy and critic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lodestar.config import RunConfig
from lodestar.data.files import DataFiles, read_text
from lodestar.data.rows import encode_documents
from lodestar.layout import RunFolder
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


def make_trainer(
    config: RunConfig, folder: RunFolder, tokenizer: Any, path: str, offset: float, *, orders: Orders | None = None
) -> Trainer:
    """The trainer of a run around the start model at ``path``; with ``orders`` the first rank's."""
    ppo = config.ppo
    device = str(resolve_device(config.model.device))
    policy = load_causal_lm(path, dtype=config.model.dtype, device=device)
    source = config.critic_source
    own = config.reward_model.path or folder.reward_model
    critic = critic_from(
        ppo.critic,
        reward_model_path=None if source is None else source.paths[0] if source.paths else own,
        policy=policy,
        tokenizer=tokenizer,
        offset=offset,
        seed=config.seed,
    )
    wants_reference = ppo.kl.loss_estimator == "exact"
    text = read_text(DataFiles.of(folder).text("train")) if ppo.ptx.coefficient else []
    longest = min(config.data.max_tokens, tokenizer.model_max_length)
    kind = Trainer if orders is None else LeadingTrainer
    trainer = kind(
        ppo,
        policy,
        critic,
        seed=config.seed,
        offset=offset,
        reference=load_causal_lm(path, dtype=config.model.dtype, device=device) if wants_reference else None,
        pretraining=encode_documents(tokenizer, text, longest=longest),
        failures=folder.root / "failures",
        deterministic=config.deterministic,
    )
    if isinstance(trainer, LeadingTrainer) and orders is not None:
        trainer.orders = orders
    return trainer
