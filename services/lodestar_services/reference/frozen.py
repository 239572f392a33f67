"""The reference server's model, which never changes, and what replies say about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import device as Device
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lodestar import metrics
from lodestar.config import ReferenceTask
from lodestar.data.control import Control
from lodestar.model.context import UNLIMITED, context_tokens
from lodestar.model.loading import load_tokenizer, resolve_device, tensor_digests, tokenizer_hash, weights_digest
from lodestar.model.logits import sampled_ids
from lodestar.records import ModelInfo, WeightVersion
from lodestar.rpc.checks import check_tokenizer_hash


@dataclass(frozen=True, slots=True)
class FrozenModel:
    """A loaded model with its tokenizer and what replies say about it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    info: ModelInfo
    context_tokens: int
    """Prompt + completion at most, as callers send them: without a conditioned model's control token."""
    vocab_size: int
    """Token ids that have text are below it."""
    device: Device
    control: Control
    """Its control tokens; none for most."""

    @classmethod
    def load(cls, loader: Callable[..., PreTrainedModel], task: ReferenceTask) -> FrozenModel:
        """Loads with lodestar.model.loading's ``load_causal_lm``; what they raise passes."""
        device = resolve_device(task.device)
        model = loader(task.model, dtype=task.dtype, device=str(device))
        tokenizer = load_tokenizer(task.tokenizer or task.model)
        version = WeightVersion("", 0, weights_digest(tensor_digests(model)))
        info = ModelInfo(task.model, version, tokenizer_hash(tokenizer))
        metrics.MODEL_INFO.labels(info.name, info.tokenizer_hash, version.incarnation).set(1)
        context = context_tokens(model.config) or UNLIMITED
        control = Control.of(tokenizer)
        return cls(model, tokenizer, info, context - control.tokens, sampled_ids(model), device, control)

    def check_tokenizer(self, theirs: str) -> None:
        """Raises TokenizerMismatch when the caller names another tokenizer than this model's."""
        check_tokenizer_hash(self.info.tokenizer_hash, theirs)
