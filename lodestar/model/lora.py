"""LoRA by PEFT: adapters while training, one plain model on disk and on the wire.

PEFT is imported when adapters are asked for: services that only run models start without it.
"""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any, cast

from transformers import PreTrainedModel

from lodestar.config.data import LoraConfig
from lodestar.errors import ModelError

if TYPE_CHECKING:
    from peft import PeftModel


def apply_lora(model: PreTrainedModel, lora: LoraConfig) -> PeftModel:
    """Freeze ``model`` and put trainable adapters into its linear layers; a scalar head stays trainable.

    Raises:
        ModelError: ``targets`` names no module of the model.
    """
    import peft

    scalar = getattr(model, "score", None) is not None
    config = peft.LoraConfig(
        task_type=peft.TaskType.SEQ_CLS if scalar else peft.TaskType.CAUSAL_LM,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers under an old name
            return cast("PeftModel", peft.get_peft_model(model, config).eval())
    except ValueError as error:
        raise ModelError(f"model.lora.targets: {str(error).splitlines()[0]}") from error


def plain(model: Any) -> PreTrainedModel:
    """The Hugging Face module itself; adapters, if any, stay injected in its layers."""
    return cast(PreTrainedModel, model.get_base_model() if hasattr(model, "get_base_model") else model)


def merged(model: Any) -> PreTrainedModel:
    """``model`` with the adapter that ``from_pretrained`` found beside its weights added to them, and no adapter left.

    transformers injects such an adapter into the layers by itself; without this it would be trained on as if it were
    no adapter at all.
    """
    if not getattr(model, "_hf_peft_config_loaded", False):
        return cast(PreTrainedModel, model)
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(model.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.get_base_layer())
    model._hf_peft_config_loaded = False
    del model.peft_config
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return cast(PreTrainedModel, model)


def merge_lora(model: Any) -> PreTrainedModel:
    """A plain model with the adapters' updates added to its weights; ``model`` goes on training unchanged."""
    if hasattr(model, "merge_and_unload"):
        model = copy.deepcopy(model).merge_and_unload()
    return cast(PreTrainedModel, model)
