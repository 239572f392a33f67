"""LoRA by PEFT: adapters while training, one plain model on disk and on the wire."""

from __future__ import annotations

import copy
from typing import Any, cast

from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, TaskType, get_peft_model
from transformers import PreTrainedModel

from lodestar.config.data import LoraConfig
from lodestar.errors import ModelError


def apply_lora(model: PreTrainedModel, lora: LoraConfig) -> PeftModel:
    """Freeze ``model`` and put trainable adapters into its linear layers; a scalar head stays trainable.

    Raises:
        ModelError: ``targets`` names no module of the model.
    """
    scalar = getattr(model, "score", None) is not None
    config = PeftLoraConfig(
        task_type=TaskType.SEQ_CLS if scalar else TaskType.CAUSAL_LM,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
    )
    try:
        return get_peft_model(model, config).eval()
    except ValueError as error:
        raise ModelError(f"model.lora.targets: {str(error).splitlines()[0]}") from error


def plain(model: Any) -> PreTrainedModel:
    """The Hugging Face module itself; adapters, if any, stay injected in its layers."""
    return cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)


def merge_lora(model: Any) -> PreTrainedModel:
    """A plain model with the adapters' updates added to its weights; ``model`` goes on training unchanged."""
    if isinstance(model, PeftModel):
        model = cast(Any, copy.deepcopy(model)).merge_and_unload()
    return cast(PreTrainedModel, model)
