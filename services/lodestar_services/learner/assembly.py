"""Puts a trainer together from a run's configuration and folder: the same on every rank."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerBase

from lodestar.config import RunConfig, ServeOptions
from lodestar.data.files import DataFiles, read_text
from lodestar.data.rows import encode_documents
from lodestar.layout import RunFolder
from lodestar.model.loading import load_causal_lm, resolve_device
from lodestar_services.learner.critic import critic_from
from lodestar_services.learner.trainer import Trainer, make_deterministic


def set_threads(config: RunConfig) -> None:
    """How this process computes, before anything is loaded."""
    torch.set_num_threads(config.learner.threads)
    if config.deterministic:
        make_deterministic()


def make_trainer(
    options: ServeOptions, tokenizer: PreTrainedTokenizerBase, offset: float, kind: type[Trainer] = Trainer
) -> Trainer:
    """Policy and critic as they start, and what PPO-ptx and an exact KL need.

    Raises:
        ConfigError: the critic cannot start as configured.
        ModelError, DataError: a model or the pretraining text cannot be read.
    """
    config, ppo, path = options.config, options.config.ppo, options.start_model
    folder = RunFolder(options.run_dir)
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
    return kind(
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
