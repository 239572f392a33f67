"""The supervised stages: pretraining, SFT and the reward model."""

from lodestar.train.language import pretrain, train_sft
from lodestar.train.reward import RewardTraining

__all__ = ["RewardTraining", "pretrain", "train_sft"]
