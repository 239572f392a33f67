"""Whether a loaded architecture is computed rightly: every mask, window, keyword, scale and cap, before it serves.

The probe runs a few dozen tokens, longer than the windows where these are short, once per model (see
lodestar.model.compared). It asks what every layer's mask lets a token see and compares that with the configuration,
packs two sequences and compares each with itself alone, and compares hidden states and log-probs with the same weights
under transformers' own attention.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from lodestar_kernels.logprob import logprobs_from_logits
from torch import Tensor, nn
from transformers import PreTrainedModel

from lodestar.errors import InvalidArgument, ModelError
from lodestar.model.attention import NAME, LayerRule, attending, examined_masks
from lodestar.model.compared import Compared
from lodestar.model.context import context_tokens
from lodestar.model.heads import scalar_head
from lodestar.model.logits import lm_head, logit_rule
from lodestar.model.packed import PackedAttention, PackedBatch, response_logprobs, trunk_states
from lodestar.model.tokenizers import ids_of

TOKENS = 24
"""Of the longer probe sequence, where the context allows."""
MOST_TOKENS = 160
"""A window beyond it is compared with the configuration alone."""
SHORT = 5
BOOSTED = 300.0
"""Size that logits are blown up to, so that a cap shows whatever the weights are."""

Window = int | None


class _NotingAttention(PackedAttention):
    """Packed attention that notes the layers that came to it and their windows."""

    def __init__(self, batch: PackedBatch) -> None:
        super().__init__(batch.layout)
        self.windows: list[tuple[int, Window]] = []

    def attend(self, layer: int, q_TND: Tensor, k_TMD: Tensor, v_TMD: Tensor, rule: LayerRule) -> Tensor:
        self.windows.append((layer, rule["window"]))
        return super().attend(layer, q_TND, k_TMD, v_TMD, rule)


def check_causal_lm(model: PreTrainedModel, path: str | Path) -> None:
    """Refuse what packed attention or log-probs from hidden states would compute wrongly.

    Raises:
        ModelError: naming the architecture and the reason.
    """
    compared = Compared.of(model, path)
    if compared.known:
        return
    sequences, _ = _check_trunk(model, path)
    _check_head(model, path, sequences[1])
    _compare_logprobs(model, path, sequences)
    compared.remember()


def check_scalar_model(model: PreTrainedModel, path: str | Path) -> None:
    """As check_causal_lm, for the trunk and head of a scalar model."""
    check_classifier(model, path)
    scalar_head(model)


def check_classifier(model: PreTrainedModel, path: str | Path) -> None:
    """As check_causal_lm, for the trunk of a model that scores; its head may have any number of labels."""
    compared = Compared.of(model, path)
    if compared.known:
        return
    sequences, ours_TH = _check_trunk(model, path)
    with torch.no_grad(), own_attention(model, path):
        theirs_TH = torch.cat([_plain_states(model, sequence) for sequence in sequences])
    if not _close(ours_TH, theirs_TH):
        raise ModelError(
            f"{path}: {type(model).__name__} computes something else on transformers' own attention; it is not served"
        )
    compared.remember()


# --- the trunk -----------------------------------------------------------------------------------------------------
def _check_trunk(model: PreTrainedModel, path: str | Path) -> tuple[tuple[list[int], list[int]], Tensor]:
    """The probe's two sequences, of which the trunk computes the same in any company, and their states [T, H]."""
    name = type(model).__name__
    if model.config.is_encoder_decoder or any(_sees_the_future(module) for module in model.modules()):
        raise ModelError(f"{path}: {name} is not a decoder-only model with causal attention")
    sequences = probe_sequences(model)
    try:
        with torch.no_grad():
            with examined_masks():
                first, noted = _alone(model, sequences[0])
                second, _ = _alone(model, sequences[1])
            _check_layers(model, noted.windows, path)
            packed = _pack(model, sequences)
            together_TH = trunk_states(model, packed, PackedAttention(packed.layout))
    except ModelError as error:
        prefix = f"{path}: "
        raise ModelError(str(error) if str(error).startswith(prefix) else f"{prefix}{name}: {error}") from error
    except InvalidArgument:
        raise
    except (TypeError, ValueError, AttributeError, IndexError, RuntimeError, NotImplementedError) as error:
        raise ModelError(f"{path}: {name} {_reason(model, error)}") from error
    if not _close(together_TH, torch.cat([first, second])):
        raise ModelError(f"{path}: {name} lets packed sequences see each other or ignores position_ids")
    return sequences, together_TH


def _reason(model: PreTrainedModel, error: Exception) -> str:
    """Why a forward call failed, for people who wonder about their model."""
    if "CausalMask" in str(error):
        shape = model.config.get_text_config()
        biased = getattr(shape, "alibi", False) or shape.model_type in ("bloom", "mpt")
        what = "adds ALiBi biases to its scores" if biased else "applies its attention mask"
        return f"{what} in code of its own; architectures with such attention are not served"
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"cannot run on Lodestar's attention ({type(error).__name__}: {first})"


def probe_sequences(model: PreTrainedModel) -> tuple[list[int], list[int]]:
    """Two sequences of ids that are not PAD, the first longer than the windows where these are short."""
    shape = model.config.get_text_config()
    wanted = [TOKENS]
    for name in ("sliding_window", "attention_chunk_size", "window_size"):
        window = getattr(shape, name, None)
        wanted += [window + 9 for window in (window if isinstance(window, (list, tuple)) else [window])
                   if isinstance(window, int) and window + 9 <= MOST_TOKENS]  # fmt: skip
    length = min(max(wanted), context_tokens(model.config) or MOST_TOKENS)
    named = ("pad_token_id", "bos_token_id", "eos_token_id")
    special = {token for name in named for token in ids_of(getattr(shape, name, None))}
    usual = [i for i in range(min(shape.vocab_size, 4096)) if i not in special] or [0]
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(usual), (length + SHORT,), generator=generator).tolist()
    ids = [usual[i] for i in drawn]
    return ids[:length], ids[length : length + min(SHORT, length)]


def _pack(model: PreTrainedModel, sequences: Sequence[list[int]]) -> PackedBatch:
    return PackedBatch.pack(sequences, [1] * len(sequences), device=next(model.parameters()).device)


def _alone(model: PreTrainedModel, sequence: list[int]) -> tuple[Tensor, _NotingAttention]:
    batch = _pack(model, [sequence])
    attention = _NotingAttention(batch)
    return trunk_states(model, batch, attention), attention


def _check_layers(model: PreTrainedModel, noted: list[tuple[int, Window]], path: str | Path) -> None:
    """Every layer once on our attention, with the window that the configuration gives it."""
    name, shape = type(model).__name__, model.config.get_text_config()
    layers = shape.num_hidden_layers
    if len(noted) != layers:
        kinds = sorted(set(getattr(shape, "layer_types", None) or ()) - {"full_attention", "sliding_attention"})
        other = f" (it has layers of kind {', '.join(kinds)})" if kinds else ""
        raise ModelError(
            f"{path}: {len(noted)} of {layers} layers of {name} run on Lodestar's attention{other}; "
            "architectures with other sequence mixers or their own attention code are not served"
        )
    planned: list[str] = getattr(shape, "layer_types", None) or []
    windows = {window for _, window in noted if window is not None}
    configured = getattr(shape, "sliding_window", None)
    if len(planned) == layers and isinstance(configured, int):
        for layer, window in noted:
            wanted = {"full_attention": None, "sliding_attention": configured}.get(planned[layer], window)
            if window != wanted:
                raise ModelError(
                    f"{path}: layer {layer} of {name} is {planned[layer]} with a window of {wanted or 'no'} tokens by "
                    f"its configuration, and attends with {window or 'no'} window"
                )
    elif windows and configured is None:
        raise ModelError(f"{path}: {name} attends with windows ({windows}) that its configuration does not name")


def _sees_the_future(module: nn.Module) -> bool:
    return getattr(module, "is_causal", True) is False


# --- the head ------------------------------------------------------------------------------------------------------
def _check_head(model: PreTrainedModel, path: str | Path, sequence: list[int]) -> None:
    """The model's own logits are those of the LM head under logit_rule, also where they are large."""
    name, rule, head = type(model).__name__, logit_rule(model.config), lm_head(model)
    batch = _pack(model, [sequence])
    with torch.no_grad():
        product = head(trunk_states(model, batch, PackedAttention(batch.layout))).float()
        most = BOOSTED / max(float(product.abs().max()), 1e-6)
        boosts = (1.0, 2.0 ** math.ceil(math.log2(most)))  # a power of two: 16 bits hold the product as exactly
        for boost in boosts:
            hook = head.register_forward_hook(lambda _, __, out, boost=boost: out * boost)
            try:
                theirs = _lm_logits(model, batch)
            finally:
                hook.remove()
            ours = rule(product * boost)
            size = max(1.0, float(ours.abs().max()))
            if not _close(ours / size, theirs / size):
                raise ModelError(
                    f"{path}: {name} makes more of its LM head's product than a scale and a soft cap that its "
                    "configuration names; such logits are not computed"
                )


def _lm_logits(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    with attending(PackedAttention(batch.layout)) as options:
        output = model(input_ids=batch.tokens_T[None], position_ids=batch.positions_T[None], **options)
    return output.logits[0].float()  # type: ignore[no-any-return]


# --- transformers' own attention -----------------------------------------------------------------------------------
@contextmanager
def own_attention(model: PreTrainedModel, path: str | Path) -> Iterator[None]:
    """The model as transformers runs it, on the attention that its own file defines."""
    try:
        model.set_attn_implementation("eager")
    except (ValueError, ImportError, AttributeError) as error:
        raise ModelError(f"{path}: {type(model).__name__} has no attention of its own to compare with") from error
    try:
        yield
    finally:
        model.set_attn_implementation(NAME)


def _plain_states(model: PreTrainedModel, sequence: list[int]) -> Tensor:
    ids = torch.tensor([sequence], device=next(model.parameters()).device)
    return model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]  # type: ignore[no-any-return]


def _compare_logprobs(model: PreTrainedModel, path: str | Path, sequences: Sequence[list[int]]) -> None:
    with torch.no_grad():
        ours_R, _ = response_logprobs(model, _pack(model, sequences), temperature=1.0, whole=True)
        with own_attention(model, path):
            theirs_R = torch.cat([_plain_logprobs(model, sequence) for sequence in sequences])
    if not _close(ours_R.to(model.dtype), theirs_R.to(model.dtype)):  # they are no finer than the states they come from
        raise ModelError(
            f"{path}: log-probs of {type(model).__name__} differ from transformers' own by up to "
            f"{float((ours_R - theirs_R).abs().max()):.3g} nats; it is not served"
        )


def _plain_logprobs(model: PreTrainedModel, sequence: list[int]) -> Tensor:
    ids = torch.tensor([sequence], device=next(model.parameters()).device)
    logits_SV = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    return logprobs_from_logits(logits_SV, ids[0, 1:]).logprobs_T


def _close(one: Tensor, other: Tensor) -> bool:
    """Equal to rounding; 16-bit states of deep models by their mean, since single numbers may differ much."""
    coarse = {one.dtype, other.dtype} & {torch.bfloat16, torch.float16}
    gap = (one.float() - other.float()).abs()
    size = 1 + other.float().abs()
    if coarse:
        return bool((gap / size).mean() < 3e-2) and bool(torch.isfinite(gap).all())
    return bool((gap / size).max() < 1e-3)
