"""One YAML per run: typed, frozen, every field documented, unknown keys refused with a suggestion."""

from lodestar.config.base import Section, flat
from lodestar.config.data import ArchitectureConfig, DataConfig, LoraConfig, ModelConfig, TokenizerConfig
from lodestar.config.load import dump, load_config, parse_config, parse_overrides
from lodestar.config.ppo import CriticConfig, KlConfig, PpoConfig, PtxConfig, ScoreConfig, WatchConfig
from lodestar.config.rewards import SourceConfig
from lodestar.config.run import RunConfig, ServicesConfig
from lodestar.config.serve import (
    Endpoints,
    FeedbackTask,
    GatewayTask,
    LearnerTask,
    Listening,
    PolicyTask,
    ReferenceTask,
    RewardTask,
    RolloutTask,
    Task,
    TrainingTask,
)
from lodestar.config.services import (
    FeedbackConfig,
    GatewayConfig,
    LearnerConfig,
    PolicyConfig,
    QueueConfig,
    ReferenceConfig,
    RewardConfig,
    RolloutConfig,
    TrainingServiceConfig,
)
from lodestar.config.training import RewardTrainingConfig, TrainingConfig

__all__ = [
    "ArchitectureConfig",
    "CriticConfig",
    "DataConfig",
    "Endpoints",
    "FeedbackConfig",
    "FeedbackTask",
    "GatewayConfig",
    "GatewayTask",
    "KlConfig",
    "LearnerConfig",
    "LearnerTask",
    "Listening",
    "LoraConfig",
    "ModelConfig",
    "PolicyConfig",
    "PolicyTask",
    "PpoConfig",
    "PtxConfig",
    "QueueConfig",
    "ReferenceConfig",
    "ReferenceTask",
    "RewardConfig",
    "RewardTask",
    "RewardTrainingConfig",
    "RolloutConfig",
    "RolloutTask",
    "RunConfig",
    "ScoreConfig",
    "Section",
    "ServicesConfig",
    "SourceConfig",
    "Task",
    "TokenizerConfig",
    "TrainingConfig",
    "TrainingServiceConfig",
    "TrainingTask",
    "WatchConfig",
    "dump",
    "flat",
    "load_config",
    "parse_config",
    "parse_overrides",
]
