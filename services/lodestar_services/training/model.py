"""One model in training: its weights or adapters, its optimizer, and the two calls of which every algorithm is made.

The model begins as a copy of the start model; with adapters it shares the start model's weights, which nobody changes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor, nn

from lodestar.config import LoraConfig
from lodestar.errors import FailedPrecondition, InvalidArgument, NonFinite
from lodestar.model.fused import fuse
from lodestar.model.loading import apply_lora, named_tensors
from lodestar.model.logits import lm_head
from lodestar.model.packed import PackedBatch, head_logprobs, head_loss, response_states
from lodestar.packing import batches_of
from lodestar.records import Datum, Lora, OptimParams
from lodestar_services.learner.optimizer import MasterAdamW
from lodestar_services.learner.ranks import Ranks
from lodestar_services.training import losses

STATE_FORMAT = "lodestar training state 1"
_VERSIONS = count(1)


class ModelInTraining:
    """``model.forward_backward(data, "cross_entropy", {})`` as often as wanted, then ``model.optim_step(params)``.

    Not thread-safe: the service's compute thread owns it.
    """

    def __init__(self, name: str, start: Any, lora: Lora | None, *, micro_batch_tokens: int) -> None:
        """
        Raises:
            InvalidArgument: the adapters' numbers make no adapters.
        """
        self.name = name
        self.lora = lora
        self.steps = 0
        """Optimizer steps that made the present weights."""
        self.version = next(_VERSIONS)
        """Of the weights: no other weights in this process have it."""
        self.accumulated = 0
        """Sequences whose gradients wait for a step."""
        self._failed = ""
        """Why no step may be made of the gradients."""
        self._micro_batch_tokens = micro_batch_tokens
        self._model = _copy_of(start) if lora is None else _adapted(start, lora)
        self._device = next(self._model.parameters()).device
        self._optimizer = self._new_optimizer()

    @property
    def trainable_parameters(self) -> int:
        """Numbers that training changes."""
        return sum(parameter.numel() for parameter in self._optimizer.parameters)

    # --- the two calls -----------------------------------------------------------------------------------------
    def forward_backward(
        self, data: Sequence[Datum], loss: str, options: Mapping[str, float], *, forward_only: bool = False
    ) -> tuple[float, list[list[float]], dict[str, float]]:
        """The loss, summed, the log-probs of each sequence's targets, and metrics; adds the gradient.

        ``data`` and ``options`` are checked (losses.check). A failure drops every gradient, and the next optim_step
        says so.

        Raises:
            NonFinite: the loss or a log-prob is NaN or infinite.
        """
        try:
            with torch.set_grad_enabled(not forward_only):
                parts = [self._part(part, loss, options) for part in self._cut(data, losses.LOSSES[loss].paired)]
        except BaseException as error:
            if not forward_only:
                self.spoil(f"{type(error).__name__}: {error}")
            raise
        if not forward_only:
            self.accumulated += len(data)
        total = math.fsum(part[0] for part in parts)
        logprobs = [row for part in parts for row in part[1]]
        return total, logprobs, losses.merge([part[2] for part in parts])

    def optim_step(self, params: OptimParams) -> float:
        """One step of AdamW; returns the gradient's norm before the clip. The gradient is cleared.

        Raises:
            FailedPrecondition: nothing was accumulated, or a part of it failed.
            NonFinite: the gradient is NaN or infinite; it is dropped, and the weights are as they were.
        """
        if self._failed:
            why, self._failed = self._failed, ""
            self._drop()
            raise FailedPrecondition(
                f"a ForwardBackward since the last step failed ({why}), and all gradients were dropped: send the whole "
                "batch again"
            )
        if not self.accumulated:
            raise FailedPrecondition(f"{self.name}: no ForwardBackward since the last step, so there is no gradient")
        self._optimizer.configure(
            betas=(params.beta1, params.beta2),
            eps=params.eps,
            weight_decay=params.weight_decay,
            max_norm=params.max_grad_norm or math.inf,
        )
        try:
            norm = self._optimizer.norm()
        except NonFinite:
            self._drop()
            raise
        self._optimizer.step(params.learning_rate, norm)
        self.accumulated = 0
        self.steps += 1
        self.version = next(_VERSIONS)
        return norm

    def spoil(self, why: str) -> None:
        """A part of the batch failed: no step may be made of the rest."""
        self._drop()
        self._failed = why

    def _drop(self) -> None:
        self._optimizer.clear()
        self.accumulated = 0

    # --- forward and backward ----------------------------------------------------------------------------------
    def _cut(self, data: Sequence[Datum], paired: bool) -> list[list[Datum]]:
        """Micro-batches; pairs stay together."""
        width = 2 if paired else 1
        units = [data[i : i + width] for i in range(0, len(data), width)]
        cut = batches_of(units, self._micro_batch_tokens, lambda unit: sum(len(datum.token_ids) for datum in unit))
        return [[datum for unit in batch for datum in unit] for batch in cut]

    def _part(
        self, data: Sequence[Datum], loss: str, options: Mapping[str, float]
    ) -> tuple[float, list[list[float]], dict[str, float]]:
        lengths = tuple(len(datum.token_ids) for datum in data)
        read = PackedBatch.pack([datum.token_ids for datum in data], lengths, device=self._device)
        targets_R = torch.tensor([target for datum in data for target in datum.targets], device=self._device)
        states_R = torch.arange(len(targets_R), device=self._device)
        packed = replace(read, states_R=states_R, targets_R=targets_R)
        inputs = losses.Inputs.of(data, self._device)
        hidden_RH = response_states(self._model, packed)
        if losses.LOSSES[loss].paired:
            found_R, _ = head_logprobs(self._model, hidden_RH, targets_R, temperature=1.0)
            total, _ = losses.pair_loss(options, inputs, found_R, lengths)
        else:
            total, found_R = head_loss(
                self._model,
                hidden_RH,
                targets_R,
                lambda chunk, logprobs_C, _: losses.token_share(loss, options, inputs, chunk, logprobs_C),
                temperature=1.0,
            )
        logprobs_R = found_R.detach()
        value = float(total.detach())
        if not (math.isfinite(value) and bool(torch.isfinite(logprobs_R).all())):
            raise NonFinite(f"{self.name}: the loss is {value}, or a log-prob is not finite")
        if total.requires_grad:
            total.backward()  # type: ignore[no-untyped-call]
        values = iter(logprobs_R.tolist())
        rows = [list(islice(values, length)) for length in lengths]
        return value, rows, losses.metrics_of(loss, options, inputs, logprobs_R, lengths)

    # --- state -------------------------------------------------------------------------------------------------
    def tensors(self) -> dict[str, Tensor]:
        """Copies of the weights by name, adapters merged."""
        return {name: tensor.clone() for name, tensor in named_tensors(self._model).items()}

    @property
    def module(self) -> Any:
        """For saving."""
        return self._model

    def state_dict(self, base: str) -> dict[str, Any]:
        """All that the next step depends on but gradients; ``base`` is the start model's digest."""
        return {
            "format": STATE_FORMAT,
            "base": base,
            "lora": None if self.lora is None else asdict(self.lora),
            "steps": self.steps,
            "weights": {name: p.detach() for name, p in self._model.named_parameters() if p.requires_grad},
            "optimizer": self._optimizer.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any], *, optimizer: bool) -> None:
        """Goes on from a state of a model with the same adapters; without ``optimizer`` its moments begin anew."""
        self._drop()
        self._failed = ""
        for name, parameter in self._model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(state["weights"][name])
        self._optimizer = self._new_optimizer()
        if optimizer:
            self._optimizer.load_state_dict(state["optimizer"])
        self.steps = int(state["steps"]) if optimizer else 0
        self.version = next(_VERSIONS)

    def _new_optimizer(self) -> MasterAdamW:
        plain = OptimParams(0.0)
        return MasterAdamW(
            self.name,
            self._model,
            Ranks(),
            betas=(plain.beta1, plain.beta2),
            eps=plain.eps,
            weight_decay=plain.weight_decay,
            max_norm=math.inf,
        )


def _copy_of(start: Any) -> Any:
    model = copy.deepcopy(start)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    fuse(model)
    return model


def _adapted(start: Any, lora: Lora) -> Any:
    """Adapters on a model of its own whose weights are the start model's tensors themselves."""
    if lora.rank < 1:
        raise InvalidArgument("lora.rank", f"must be at least 1, got {lora.rank}")
    if lora.alpha < 1:
        raise InvalidArgument("lora.alpha", f"must be at least 1, got {lora.alpha}")
    model = copy.deepcopy(start, {id(parameter): parameter for parameter in start.parameters()})
    wanted = {part for part in ("attention", "mlp", "head") if getattr(lora, part)}
    targets = _linear_maps(model, wanted or {"attention", "mlp", "head"})
    if not targets:
        raise InvalidArgument("lora", f"this model has no linear maps of {', '.join(sorted(wanted))}")
    if lm_head_name(model) in targets:
        untie(model)
    with torch.random.fork_rng():
        torch.manual_seed(lora.seed)
        return apply_lora(model, LoraConfig(rank=lora.rank, alpha=lora.alpha, targets=targets))


def _linear_maps(model: Any, parts: set[str]) -> tuple[str, ...]:
    """Names of the linear maps of these parts; what is neither in an attention module nor the head counts as mlp."""
    head = lm_head(model)
    found = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        part = "head" if module is head else "attention" if "attn" in name or "attention" in name else "mlp"
        if part in parts:
            found.append(name)
    return tuple(found)


def lm_head_name(model: Any) -> str:
    """The head's name among the model's modules."""
    head = lm_head(model)
    return next(str(name) for name, module in model.named_modules() if module is head)


def untie(model: Any) -> None:
    """Gives the head weights of its own where it shares those of the embedding, which an update must not reach."""
    head, embedding = lm_head(model), model.get_input_embeddings()
    if head.weight is embedding.weight:
        head.weight = nn.Parameter(embedding.weight.detach().clone(), requires_grad=embedding.weight.requires_grad)
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}
