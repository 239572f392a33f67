"""Whether a loaded architecture runs on our attention and may be packed: asked once, with four tokens."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lodestar.errors import ModelError
from lodestar.model.heads import scalar_head
from lodestar.model.packed import PackedAttention, PackedBatch, hidden_states, trunk_states

TOKENS = ((0, 1), (1, 0))


class _CountingAttention(PackedAttention):
    """Packed attention that counts the layers that came to it."""

    def __init__(self, batch: PackedBatch) -> None:
        super().__init__(batch.layout)
        self.layers = 0

    def attend(
        self, layer: int, q_TND: Tensor, k_TMD: Tensor, v_TMD: Tensor, *, scale: float, window: int | None
    ) -> Tensor:
        self.layers += 1
        return super().attend(layer, q_TND, k_TMD, v_TMD, scale=scale, window=window)


def check_causal_lm(model: PreTrainedModel, path: str | Path) -> None:
    """Refuse what packed attention or log-probs from hidden states would compute wrongly.

    Raises:
        ModelError: layers without our attention, sequences that see each other when packed, or an LM head that is more
            than a linear map (soft-capped or scaled logits).
    """
    hidden_TH = _check_trunk(model, path)
    batch = PackedBatch.pack(TOKENS, (1, 1), device=hidden_TH.device)
    with torch.no_grad():
        logits_TV = model(
            input_ids=batch.tokens_T[None],
            position_ids=batch.positions_T[None],
            use_cache=False,
            attention_context=PackedAttention(batch.layout),
        ).logits[0]
        ours_TV = model.get_output_embeddings()(hidden_TH)  # type: ignore[no-untyped-call]
    if not _close(ours_TV, logits_TV):
        raise ModelError(f"{path}: {type(model).__name__} scales or caps its logits, which Lodestar does not compute")


def check_scalar_model(model: PreTrainedModel, path: str | Path) -> None:
    """As check_causal_lm, for the trunk and head of a scalar model."""
    _check_trunk(model, path)
    scalar_head(model)


def check_classifier(model: PreTrainedModel, path: str | Path) -> None:
    """As check_causal_lm, for the trunk of a model that scores; its head may have any number of labels."""
    _check_trunk(model, path)


def _check_trunk(model: PreTrainedModel, path: str | Path) -> Tensor:
    """Hidden states [4, H] of the probe's two packed sequences."""
    name = type(model).__name__
    if model.config.is_encoder_decoder or any(_sees_the_future(module) for module in model.modules()):
        raise ModelError(f"{path}: {name} is not a decoder-only model with causal attention")
    device = next(model.parameters()).device
    packed = PackedBatch.pack(TOKENS, (1, 1), device=device)
    alone = PackedBatch.pack(TOKENS[1:], (1,), device=device)
    attention = _CountingAttention(packed)
    try:
        with torch.no_grad():
            packed_TH = trunk_states(model, packed, attention)
            alone_TH = hidden_states(model, alone)
    except (ModelError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{path}: {name} cannot run on Lodestar's attention ({error})") from error
    layers = model.config.get_text_config().num_hidden_layers
    if attention.layers != layers:
        raise ModelError(
            f"{path}: {attention.layers} of {layers} layers of {name} run on Lodestar's attention; "
            "architectures with other sequence mixers or their own attention code are not served"
        )
    if not _close(packed_TH[2:], alone_TH):
        raise ModelError(f"{path}: {name} lets packed sequences see each other or ignores position_ids")
    return packed_TH


def _sees_the_future(module: nn.Module) -> bool:
    return getattr(module, "is_causal", True) is False


def _close(one: Tensor, other: Tensor) -> bool:
    coarse = one.dtype in (torch.bfloat16, torch.float16)
    return torch.allclose(one.float(), other.float(), rtol=2e-2 if coarse else 1e-4, atol=2e-2 if coarse else 1e-4)
