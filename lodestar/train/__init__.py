"""The supervised stages: pretraining, SFT and the reward model."""

from lodestar.train.language import pretrain, train_sft
from lodestar.train.reward import train_reward

__all__ = ["pretrain", "train_reward", "train_sft"]
