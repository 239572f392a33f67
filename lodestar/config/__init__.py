"""One YAML per run: typed, frozen, every field documented, unknown keys refused with a suggestion."""

from lodestar.config.base import Section
from lodestar.config.data import ArchitectureConfig, DataConfig, LoraConfig, ModelConfig, TokenizerConfig
from lodestar.config.load import dump, load_config, parse_overrides
from lodestar.config.ppo import CriticConfig, KlConfig, PpoConfig, PtxConfig, ScoreConfig, WatchConfig
from lodestar.config.resume import deciding_options
from lodestar.config.rewards import SourceConfig
from lodestar.config.run import EvaluationConfig, RunConfig
from lodestar.config.serve import Endpoints, ServeOptions
from lodestar.config.services import (
    LearnerConfig,
    PolicyConfig,
    QueueConfig,
    ReferenceConfig,
    RewardConfig,
    RolloutConfig,
)
from lodestar.config.training import RewardTrainingConfig, TrainingConfig

__all__ = [
    "ArchitectureConfig",
    "CriticConfig",
    "DataConfig",
    "Endpoints",
    "EvaluationConfig",
    "KlConfig",
    "LearnerConfig",
    "LoraConfig",
    "ModelConfig",
    "PolicyConfig",
    "PpoConfig",
    "PtxConfig",
    "QueueConfig",
    "ReferenceConfig",
    "RewardConfig",
    "RewardTrainingConfig",
    "RolloutConfig",
    "RunConfig",
    "ScoreConfig",
    "Section",
    "ServeOptions",
    "SourceConfig",
    "TokenizerConfig",
    "TrainingConfig",
    "WatchConfig",
    "deciding_options",
    "dump",
    "load_config",
    "parse_overrides",
]
