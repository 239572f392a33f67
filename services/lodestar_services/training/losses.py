"""The losses that callers name: what each needs per token, its options, and its share of some of the tokens.

The mathematics is lodestar.ppo's and lodestar.preference's. All losses are sums: lodestar.ppo's divisor is 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lodestar.errors import InvalidArgument
from lodestar.ppo.losses import language_model_loss, policy_loss, ratio_metrics
from lodestar.preference.losses import dpo, segment_sums
from lodestar.records import Datum


@dataclass(frozen=True, slots=True)
class Option:
    """A number that a loss takes: ``Option(0.2, low=0.0, high=1.0)``, bounds included."""

    default: float
    low: float = 0.0
    high: float = math.inf


@dataclass(frozen=True, slots=True)
class NamedLoss:
    """``LOSSES["ppo"]``."""

    needs: tuple[str, ...] = ()
    """Fields of a Datum that must be given."""
    takes: tuple[str, ...] = ("weights",)
    """Fields that may be given."""
    options: Mapping[str, Option] = field(default_factory=dict)
    paired: bool = False
    """Whether data come in pairs, the preferred one first; otherwise the loss is a sum over tokens."""


_SAMPLED = ("logprobs", "advantages")
LOSSES: Mapping[str, NamedLoss] = {
    "cross_entropy": NamedLoss(),
    "importance_sampling": NamedLoss(needs=_SAMPLED),
    "ppo": NamedLoss(needs=_SAMPLED, options={"clip_low": Option(0.2, 0.0, 1.0), "clip_high": Option(0.2)}),
    "dpo": NamedLoss(
        needs=("logprobs",),
        options={"beta": Option(0.1, 1e-6), "label_smoothing": Option(0.0, 0.0, 0.5)},
        paired=True,
    ),
}


def check(loss: str, options: Mapping[str, float], data: Sequence[Datum]) -> dict[str, float]:
    """Every option of the loss, defaults filled in.

    Raises:
        InvalidArgument: an unknown loss or option, a number out of range, or data that the loss cannot be taken of;
            names the field.
    """
    if loss not in LOSSES:
        raise InvalidArgument("loss", f"{loss!r} is none of {', '.join(LOSSES)}")
    named = LOSSES[loss]
    for name, value in options.items():
        if name not in named.options:
            known = ", ".join(named.options) or "none"
            raise InvalidArgument(f"options[{name}]", f"is no option of {loss}; it has {known}")
        option = named.options[name]
        if not option.low <= value <= option.high:
            raise InvalidArgument(f"options[{name}]", f"must be {option.low:g} … {option.high:g}, got {value}")
    if named.paired and len(data) % 2:
        raise InvalidArgument("data", f"{loss} wants pairs, the preferred one first; {len(data)} sequences are odd")
    for i, datum in enumerate(data):
        _check_lists(f"data[{i}]", loss, named, datum)
    return {name: float(options.get(name, option.default)) for name, option in named.options.items()}


def _check_lists(place: str, loss: str, named: NamedLoss, datum: Datum) -> None:
    tokens = len(datum.token_ids)
    if len(datum.targets) != tokens:
        raise InvalidArgument(f"{place}.targets", f"has {len(datum.targets)} entries for {tokens} token_ids")
    for name in ("weights", *_SAMPLED):
        values: tuple[float, ...] = getattr(datum, name)
        if name in named.needs and not values:
            raise InvalidArgument(f"{place}.{name}", f"is missing; {loss} needs one for each of the {tokens} targets")
        if values and name not in (*named.needs, *named.takes):
            raise InvalidArgument(f"{place}.{name}", f"means nothing to {loss}; leave it out")
        if values and len(values) != tokens:
            raise InvalidArgument(f"{place}.{name}", f"has {len(values)} entries for {tokens} token_ids")
        wrong = next((j for j, value in enumerate(values) if not math.isfinite(value)), None)
        if wrong is not None:
            raise InvalidArgument(f"{place}.{name}[{wrong}]", f"is {values[wrong]}; give a finite number")


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """Numbers per target of some sequences, [R] each."""

    weights_R: Tensor
    logprobs_R: Tensor
    advantages_R: Tensor

    @staticmethod
    def of(data: Sequence[Datum], device: torch.device) -> Inputs:
        """What is not given is 1 as a weight and 0 else."""

        def column(name: str, absent: float) -> Tensor:
            rows = [getattr(datum, name) or (absent,) * len(datum.targets) for datum in data]
            return torch.tensor([value for row in rows for value in row], dtype=torch.float32, device=device)

        return Inputs(column("weights", 1.0), column("logprobs", 0.0), column("advantages", 0.0))


def token_share(loss: str, options: Mapping[str, float], inputs: Inputs, chunk: slice, logprobs_C: Tensor) -> Tensor:
    """The share of some targets of a loss that is a sum over tokens."""
    weights_C = inputs.weights_R[chunk]
    if loss == "cross_entropy":
        return language_model_loss(weights_C * logprobs_C, tokens=1)
    return policy_loss(
        logprobs_C,
        inputs.logprobs_R[chunk],
        inputs.advantages_R[chunk],
        weights_C,
        clip=options.get("clip_low", math.inf),
        clip_high=options.get("clip_high", math.inf),
        tokens=1,
    ).loss


def pair_loss(
    options: Mapping[str, float], inputs: Inputs, logprobs_R: Tensor, lengths: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """DPO's loss, summed over pairs, and log(π/π_ref) of the preferred less that of the other, [P]."""
    ratios_B = segment_sums(inputs.weights_R * (logprobs_R - inputs.logprobs_R), lengths)
    gaps_P = ratios_B[0::2] - ratios_B[1::2]
    losses_P = dpo(gaps_P, torch.ones_like(gaps_P), beta=options["beta"], label_smoothing=options["label_smoothing"])
    return losses_P.sum(), gaps_P


def metrics_of(
    loss: str, options: Mapping[str, float], inputs: Inputs, logprobs_R: Tensor, lengths: tuple[int, ...]
) -> dict[str, float]:
    """Figures beside the loss, by their names in ForwardBackwardResponse.

    All losses: ``targets``, how many count. importance_sampling, ppo: ``ratio_max``, ``ratio_min`` of π/π_sampler and
    ``kl_update``, Σ of the k3 estimate of KL(π_sampler‖π), over those; ppo: ``clipped``, how many the clip holds back.
    dpo: ``pairs``, and ``preferred``, in how many the implied reward prefers the first.
    """
    if LOSSES[loss].paired:
        _, gaps_P = pair_loss(options, inputs, logprobs_R, lengths)
        return {"pairs": float(len(gaps_P)), "preferred": float((gaps_P > 0).sum())}
    if loss == "cross_entropy":
        return {"targets": float((inputs.weights_R != 0).sum())}
    count_R = (inputs.weights_R != 0) & (inputs.advantages_R != 0)
    figures = {"targets": float(count_R.sum())}
    if not bool(count_R.any()):
        return figures
    counted = [x[count_R] for x in (logprobs_R, inputs.logprobs_R, inputs.advantages_R, inputs.weights_R)]
    figures |= {name: float(value) for name, value in ratio_metrics(counted[0], counted[1]).items()}
    if loss == "ppo":
        sums = policy_loss(*counted, clip=options["clip_low"], clip_high=options["clip_high"], tokens=1)
        figures["clipped"] = float(sums.clipped)
    return figures


MERGED = {"ratio_max": max, "ratio_min": min}
"""How metrics of parts of a batch go together; the others add up."""


def merge(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The metrics of all parts."""
    merged: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            held = merged.get(name)
            merged[name] = value if held is None else MERGED.get(name, lambda a, b: a + b)(held, value)
    return merged
