"""Where the value network starts from."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lodestar.config import CriticConfig
from lodestar.errors import ConfigError, ModelError
from lodestar.model.heads import scalar_head
from lodestar.model.loading import load_scalar_model, load_tokenizer, scalar_from_causal_lm, tokenizer_hash


def critic_from(
    config: CriticConfig,
    *,
    reward_model_path: Path | str | None,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    offset: float,
    seed: int,
) -> PreTrainedModel:
    """Make the critic that ``critic.init`` asks for, on the policy's device and in its dtype.

    reward: the reward model itself, its head's bias lowered by the calibration ``offset``, so that values start at the
    scale of the rewards they predict. ``reward_model_path`` is None where there is no single reward model on disk
    (a callable reward, an ensemble). policy: the policy's trunk under a new head. path: a scalar model from disk.

    Raises:
        ConfigError: the critic cannot start from the reward model; the message suggests critic.init: policy.
        ModelError: the folder of critic.path cannot be used.
    """
    if config.init == "policy":
        return scalar_from_causal_lm(policy, tokenizer, seed)
    if config.init == "path":
        assert config.path is not None  # the configuration's validator saw to it
        return _load(config.path, policy)
    remedy = "set critic.init: policy"
    if reward_model_path is None:
        raise ConfigError("ppo.critic.init", f"reward needs one reward model on disk, and there is none; {remedy}")
    try:
        theirs = tokenizer_hash(load_tokenizer(reward_model_path))
        critic = _load(reward_model_path, policy)
    except ModelError as error:
        raise ConfigError("ppo.critic.init", f"reward: {error}; {remedy}") from error
    if theirs != tokenizer_hash(tokenizer):
        raise ConfigError(
            "ppo.critic.init", f"reward: {reward_model_path} has another tokenizer than the policy; {remedy}"
        )
    with torch.no_grad():
        scalar_head(critic).bias.sub_(offset)
    return critic


def _load(path: Path | str, policy: PreTrainedModel) -> PreTrainedModel:
    dtype = str(policy.dtype).removeprefix("torch.")
    return load_scalar_model(path, dtype=dtype, device=str(policy.device))
