"""Loads, makes and saves Hugging Face models; the front door of the package.

Policies are ``AutoModelForCausalLM``, reward models and critics ``AutoModelForSequenceClassification`` with one label.
All run on our attention, in eval mode with every dropout at 0, from safetensors, without remote code.

A scalar model's head is given a bias (``model.score.bias``), which the Hugging Face classes do not have. It is an
ordinary parameter while the model lives and the number ``score_bias`` of config.json on disk, so that
``from_pretrained`` loads the folder without complaint; a plain load gives scores that lack this constant.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lodestar.config.data import ArchitectureConfig
from lodestar.errors import ModelError
from lodestar.model.attention import NAME as ATTENTION
from lodestar.model.classifiers import ensure_classifier
from lodestar.model.context import context_tokens as context_of
from lodestar.model.folders import check_folder, read_config
from lodestar.model.heads import restore_bias, restore_biases, scalar_from_causal_lm
from lodestar.model.logits import set_vocabulary
from lodestar.model.lora import apply_lora, merge_lora, merged
from lodestar.model.probe import check_causal_lm, check_classifier, check_scalar_model
from lodestar.model.quiet import quiet_transformers
from lodestar.model.rows import make_room
from lodestar.model.tokenizers import (
    Vocabulary,
    check_ids_of,
    check_special_ids,
    find_vocabulary,
    load_tokenizer,
    tokenizer_hash,
)
from lodestar.model.weights import named_tensors, save_model, tensor_digests, weights_digest

logger = logging.getLogger(__name__)

__all__ = [
    "apply_lora",
    "context_tokens",
    "load_causal_lm",
    "load_classifier",
    "load_scalar_model",
    "load_tokenizer",
    "merge_lora",
    "named_tensors",
    "new_causal_lm",
    "resolve_device",
    "save_model",
    "scalar_from_causal_lm",
    "tensor_digests",
    "tokenizer_hash",
    "weights_digest",
]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(device: str) -> torch.device:
    """``auto`` is cuda where there is one, else cpu; anything else is a torch device name."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def load_causal_lm(path: str | Path, *, dtype: str = "float32", device: str = "cpu") -> PreTrainedModel:
    """Load a policy or reference model from a local folder or a hub id.

    Raises:
        ModelError: no config or safetensors there, weights missing, or an architecture our attention does not serve.
    """
    model, vocabulary = _load(AutoModelForCausalLM, path, dtype=dtype, device=device)
    check_causal_lm(model, path)
    set_vocabulary(model, vocabulary)
    return model


def load_scalar_model(path: str | Path, *, dtype: str = "float32", device: str = "cpu") -> PreTrainedModel:
    """Load a reward model or critic: one label, its bias restored (see the module's docstring).

    Raises:
        ModelError: as load_causal_lm; also when the folder holds no scalar head.
    """
    model, _ = _load(AutoModelForSequenceClassification, path, dtype=dtype, device=device, num_labels=1)
    restore_bias(model, path)
    check_scalar_model(model, path)
    return model


def load_classifier(
    path: str | Path, *, dtype: str = "float32", device: str = "cpu"
) -> tuple[PreTrainedModel, bool, bool]:
    """Load any AutoModelForSequenceClassification: the model, whether it may be packed, and whether it is an encoder.

    Decoders with a linear head named score run packed, on our attention, with their head's bias restored; what our
    attention does not serve keeps its own. Encoders have another head.

    Raises:
        ModelError: as load_causal_lm; also when the folder holds no classification head.
    """
    check_folder(Path(path))
    if _is_encoder(path):
        encoder, _ = _load(
            AutoModelForSequenceClassification, path, dtype=dtype, device=device, attention=None, encoder=True
        )
        return encoder, False, True
    model, _ = _load(AutoModelForSequenceClassification, path, dtype=dtype, device=device)
    restore_biases(model, path)
    try:
        check_classifier(model, path)
    except ModelError as error:
        logger.warning("%s; it is served padded, on its own attention", error)
        model, _ = _load(AutoModelForSequenceClassification, path, dtype=dtype, device=device, attention=None)
        restore_biases(model, path)
        return model, False, False
    return model, True, False


def context_tokens(path: str | Path) -> int | None:
    """The longest sequence that a model takes, by its config.json (see lodestar.model.context); None: it says nothing.

    Raises:
        ModelError: there is no configuration that can be read.
    """
    return context_of(read_config(path))


def vocabulary_size(path: str | Path) -> int:
    """How many token ids the model at the path knows.

    Raises:
        ModelError: there is no configuration that can be read.
    """
    return int(read_config(path).get_text_config().vocab_size)


def _is_encoder(path: str | Path) -> bool:
    """Whether the architecture's classifier keeps its head elsewhere than in a linear map named score."""
    shape = read_config(path)
    ensure_classifier(shape)
    with quiet_transformers():
        try:
            with torch.device("meta"):
                model = AutoModelForSequenceClassification.from_config(shape)  # type: ignore[no-untyped-call]
        except (OSError, ValueError, ImportError, KeyError) as error:
            raise ModelError(f"{path}: cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    return not isinstance(getattr(model, "score", None), nn.Linear)


def new_causal_lm(architecture: ArchitectureConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """A Llama with random weights drawn from ``seed``; the global random state is left as it was.

    Their standard deviation is √(2 / 5d) for hidden size d (SmallInit; Nguyen & Salazar 2019, "Transformers without
    Tears", 3.2). The customary 0.02 is for d near 1,000: a model of hidden size 96 that starts there takes far longer
    to learn to copy a word of its prompt.

    Raises:
        ModelError: the sizes do not divide.
    """
    if architecture.hidden_size % (2 * architecture.heads) or architecture.heads % architecture.kv_heads:
        raise ModelError(
            f"model.architecture: hidden_size {architecture.hidden_size} must be an even multiple of heads "
            f"{architecture.heads}, and kv_heads {architecture.kv_heads} must divide heads"
        )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=architecture.hidden_size,
        intermediate_size=architecture.intermediate_size,
        num_hidden_layers=architecture.layers,
        num_attention_heads=architecture.heads,
        num_key_value_heads=architecture.kv_heads,
        max_position_embeddings=architecture.context_tokens,
        tie_word_embeddings=architecture.tied,
        initializer_range=math.sqrt(2 / (5 * architecture.hidden_size)),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config._attn_implementation = ATTENTION
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    return cast(PreTrainedModel, model.eval())  # type: ignore[no-untyped-call]


def _load(
    factory: Any,
    path: str | Path,
    *,
    dtype: str,
    device: str,
    attention: str | None = ATTENTION,
    encoder: bool = False,
    **options: Any,
) -> tuple[PreTrainedModel, Vocabulary | None]:
    """The model with a row for every id of the tokenizer beside it, and what ids those are."""
    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    check_folder(Path(path))
    config = read_config(path)
    if factory is AutoModelForSequenceClassification:
        ensure_classifier(config)
    shape = config.get_text_config()
    if isinstance(getattr(shape, "vocab_size", None), int):
        check_ids_of(shape, shape.vocab_size, f"{path}: config.json")
    vocabulary = None if encoder else find_vocabulary(path)
    with quiet_transformers():
        try:
            model, report = factory.from_pretrained(
                str(path),
                dtype=DTYPES[dtype],
                attn_implementation=attention,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **options,
            )
        except KeyError as error:
            if error.args == (ATTENTION,):
                name = factory._model_mapping[type(read_config(path))].__name__
                raise ModelError(
                    f"{path}: {name} keeps its own attention code beside transformers' interface, and Lodestar's "
                    "cannot take its place; it is not served"
                ) from error
            raise ModelError(f"{path}: cannot be loaded: {error}") from error
        except SafetensorError as error:
            raise ModelError(
                f"{path}: a safetensors file is cut off or damaged ({error}); copy or download it again"
            ) from error
        except (OSError, ValueError, ImportError, RuntimeError, AssertionError, TypeError, AttributeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(f"{path}: cannot be loaded: {reason}") from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        head = missing == ["score.weight"]
        raise ModelError(
            f"{path}: its safetensors lack {', '.join(missing[:4])}"
            + ("; it has no scalar head: it is not a reward model or critic" if head else "")
        )
    model = merged(model)
    _disable_dropout(model)
    if vocabulary is not None:
        make_room(model, vocabulary, path)
    check_special_ids(model, path)
    placed: Any = model
    return cast(PreTrainedModel, placed.to(resolve_device(device)).eval()), vocabulary


def _disable_dropout(model: nn.Module) -> None:
    """PPO's ratios need log-probs without noise, also when somebody calls model.train()."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
