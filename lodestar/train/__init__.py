"""The supervised stages: pretraining, SFT, the reward model, and DPO."""

from lodestar.train.dpo import train_dpo
from lodestar.train.language import pretrain, train_sft
from lodestar.train.reward import RewardTraining

__all__ = ["RewardTraining", "pretrain", "train_dpo", "train_sft"]
