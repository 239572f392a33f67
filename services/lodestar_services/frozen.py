"""What the reward and the reference server share: a model that never changes, and the checks of what it is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import device as Device
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lodestar import metrics
from lodestar.config import RunConfig
from lodestar.errors import InvalidArgument, TokenizerMismatch
from lodestar.model.loading import load_tokenizer, resolve_device, tensor_digests, tokenizer_hash, weights_digest
from lodestar.records import ModelInfo, Scored, WeightVersion

MAX_SEQUENCES = 4096
"""Of one call."""
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-3, 100.0


@dataclass(frozen=True, slots=True)
class FrozenModel:
    """A loaded model with its tokenizer and what replies say about it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    info: ModelInfo
    context_tokens: int
    """Prompt + completion at most."""
    vocab_size: int
    """Token ids are below it."""
    device: Device

    @classmethod
    def load(cls, loader: Callable[..., PreTrainedModel], path: str | Path, config: RunConfig) -> FrozenModel:
        """Loads with lodestar.model.loading's ``load_causal_lm`` or ``load_scalar_model``; what they raise passes."""
        device = resolve_device(config.model.device)
        model = loader(path, dtype=config.model.dtype, device=str(device))
        tokenizer = load_tokenizer(path)
        version = WeightVersion("", 0, weights_digest(tensor_digests(model)))
        info = ModelInfo(str(path), version, tokenizer_hash(tokenizer))
        metrics.MODEL_INFO.labels(info.name, info.tokenizer_hash, version.incarnation).set(1)
        shape: Any = model.config
        return cls(model, tokenizer, info, shape.max_position_embeddings, shape.vocab_size, device)

    def check_tokenizer(self, theirs: str) -> None:
        """Raises TokenizerMismatch when the caller names another tokenizer than this model's."""
        if theirs and theirs != self.info.tokenizer_hash:
            raise TokenizerMismatch(self.info.tokenizer_hash, theirs)

    def check_tokens(self, token_ids: Sequence[int], field: str) -> None:
        """Raises InvalidArgument when ``field`` is empty, longer than the context or holds an id that is no token."""
        if not token_ids:
            raise InvalidArgument(field, "is empty; give at least one token")
        if len(token_ids) > self.context_tokens:
            raise InvalidArgument(
                field, f"holds {len(token_ids)} tokens; this model's context holds {self.context_tokens}"
            )
        largest = max(token_ids)
        if largest >= self.vocab_size:
            raise InvalidArgument(field, f"holds id {largest}; this model's vocabulary ends at {self.vocab_size - 1}")

    def check_scored(self, sequences: Sequence[Scored], field: str) -> None:
        """Checks every sequence and its prompt length; a completion has at least one token."""
        check_count(sequences, field)
        for i, scored in enumerate(sequences):
            self.check_tokens(scored.token_ids, f"{field}[{i}].token_ids")
            if not 1 <= scored.prompt_tokens < len(scored.token_ids):
                raise InvalidArgument(
                    f"{field}[{i}].prompt_tokens",
                    f"must be 1 … {len(scored.token_ids) - 1} of these {len(scored.token_ids)} tokens, "
                    f"so that prompt and completion have one each; got {scored.prompt_tokens}",
                )


def check_count(items: Sequence[object], field: str) -> None:
    """Raises InvalidArgument when there is nothing to do or too much for one call."""
    if not items:
        raise InvalidArgument(field, "is empty; give at least one")
    if len(items) > MAX_SEQUENCES:
        raise InvalidArgument(field, f"holds {len(items)}; at most {MAX_SEQUENCES} per call")


def check_temperature(temperature: float) -> None:
    """Raises InvalidArgument for a temperature that policies do not sample at; below 0.001 logits overflow."""
    if not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
        raise InvalidArgument("temperature", f"must be {MIN_TEMPERATURE} … {MAX_TEMPERATURE:g}, got {temperature}")
