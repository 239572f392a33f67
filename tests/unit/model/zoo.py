"""Tiny random models of every causal language model that the installed transformers has, peculiar features on.

Sizes are set by the names that configurations use for them; what a type needs besides stands in ``OVERRIDES``. Weights
are drawn wide enough that attention, positions, windows and caps all move the log-probs by nats.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCAB = 199
CONTEXT = 64
WINDOW = 8
LAYERS = 4

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "n_embd": 64,
    "d_model": 64,
    "embedding_dim": 64,
    "intermediate_size": 96,
    "ffn_hidden_size": 96,
    "n_inner": 96,
    "ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "encoder_ffn_dim": 96,
    "dff": 96,
    "d_ff": 96,
    "d_inner": 96,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "expert_ffn_hidden_size": 32,
    "shared_intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "n_layer": LAYERS,
    "n_layers": LAYERS,
    "num_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_layers": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "kv_channels": 16,
    "n_positions": CONTEXT,
    "n_ctx": CONTEXT,
    "max_position_embeddings": CONTEXT,
    "max_sequence_length": CONTEXT,
    "max_seq_len": CONTEXT,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_k": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "sliding_window": WINDOW,
    "attention_window": WINDOW,
    "window_size": WINDOW,
    "attention_chunk_size": WINDOW,
    "mamba_d_state": 16,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
    "state_size": 16,
    "lru_width": 64,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "index_topk": 6,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "use_cache": False,
}

LATENT = {"head_dim": 8, "num_key_value_heads": 4}
"""Of multi-head latent attention: the rotary part has head_dim, and every head its own keys."""

OVERRIDES: dict[str, dict[str, Any]] = {
    "axk1": LATENT,
    "axk2": LATENT,
    "bailing_hybrid": LATENT,
    "codegen": {"rotary_dim": 8},
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "deepseek_v32": LATENT,
    "dots1": {"n_shared_experts": 1},
    "falcon_h1": {"mamba_d_ssm": 128},
    "gemma3n_text": {
        "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": VOCAB,
        "laurel_rank": 8,
        "hidden_size_per_layer_input": 16,
        "activation_sparsity_pattern": [0.0] * LAYERS,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "gemma4_text": {"vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 16},
    "glm4_moe_lite": LATENT,
    "glm_moe_dsa": LATENT,
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "gptj": {"rotary_dim": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "longcat_flash": LATENT,
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1},
    "minicpm3": {**LATENT, "dim_model_base": 16},
    "granite": {"logits_scaling": 4.0},
    "granitemoe": {"logits_scaling": 4.0},
    "granitemoeshared": {"logits_scaling": 4.0},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.25},
    "cohere2_moe": {"logit_scale": 0.25},
    "youtu": LATENT,
    "zaya": {"num_experts_per_tok": 1},
}
"""What a type needs, or has that is worth to be tried, besides the sizes."""


TOO_LARGE = frozenset(
    {
        "blt",
        "cohere_compass_text",
        "cpmant",
        "dbrx",
        "dots3_note",
        "dots3_note_text",
        "emu3",
        "fuyu",
        "gemma3",
        "gemma3n",
        "gemma4",
        "gemma4_assistant",
        "gemma4_unified",
        "gemma4_unified_assistant",
        "git",
        "got_ocr2",
        "kimi_linear",
        "llama4",
        "mllama",
        "moss_transcribe_diarize",
        "musicgen",
        "musicgen_melody",
        "phi4_multimodal",
        "prophetnet",
        "qwen3_5",
        "qwen3_5_moe",
        "qwen4_exp",
        "qwen4_exp_text",
        "reformer",
        "roc_bert",
        "xlnet",
        "xmod",
        "zamba",
        "zamba2",
    }
)
"""Types whose parts have no tiny sizes: images and sound beside text, several configurations in one, hashed embeddings.

Those with text beside other media are loaded by their text configuration's type, which is tried here.
"""


def types() -> list[str]:
    """Every model type with a class of its own among the causal language models."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(model_type: str, **more: Any) -> Any:
    """The type's configuration at tiny sizes; ``more`` goes over it."""
    kind = CONFIG_MAPPING[model_type]
    known = set(inspect.signature(kind.__init__).parameters) | set(getattr(kind, "__annotations__", {}))
    for parent in kind.__mro__:
        known |= set(getattr(parent, "__annotations__", {}))
    mapped = getattr(kind, "attribute_map", {})
    default = kind()
    options: dict[str, Any] = {
        name: value
        for name, value in SIZES.items()
        if (name in known or hasattr(default, name)) and not (name in mapped and mapped[name] in SIZES)
    }
    if "layer_types" in known:
        wanted = getattr(default, "layer_types", None) or []
        kinds = list(dict.fromkeys(wanted))
        if kinds:
            options["layer_types"] = [*(kinds * LAYERS)[: LAYERS - 1], wanted[-1]]
    for name in ("head_dim", "num_key_value_heads", "v_head_dim"):  # properties without a setter
        if isinstance(getattr(kind, name, None), property):
            options.pop(name, None)
    return kind(**{**options, **OVERRIDES.get(model_type, {}), **more})


def tiny_model(config: Any, seed: int = 0, attention: str = "eager") -> PreTrainedModel:
    """The type's causal language model with wide random weights, as transformers itself runs it."""
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > 4_000_000:
        raise ValueError(f"{config.model_type} has {size} parameters at its tiny sizes")
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
                else:
                    parameter.copy_(torch.randn_like(parameter) * 1.2 / parameter.shape[-1] ** 0.5)
    return model  # type: ignore[no-any-return]
