"""What the training service does: models come and go, calls for them are done one after another on one thread.

Consumes   checked calls, in the order in which they arrive.
Produces   losses, steps, saved weights; samples, by engines of their own (sampling.py).
Waits for  the compute thread; a sampler for the weights that it is to hold.
Unblocked  by the end of the call before.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from lodestar import metrics
from lodestar.config import TrainingTask
from lodestar.data.control import Control
from lodestar.engine.limits import MAX_TOP_LOGPROBS
from lodestar.errors import FailedPrecondition, InvalidArgument, ModelError, ResourceExhausted
from lodestar.model.loading import (
    context_tokens,
    load_causal_lm,
    load_tokenizer,
    named_tensors,
    resolve_device,
    save_model,
    tensor_digests,
    tokenizer_hash,
    weights_digest,
)
from lodestar.model.logits import ids_without_text, sampled_ids
from lodestar.model.warm_up import warm_up_kernels
from lodestar.records import (
    Datum,
    Lora,
    LossResult,
    ModelInfo,
    OptimParams,
    Sampled,
    SamplingParams,
    TrainingModel,
    WeightVersion,
)
from lodestar.rpc.batching import ComputeThread
from lodestar.rpc.checks import check_count, check_tokenizer_hash, check_tokens
from lodestar_services.learner.checkpoint import load_checkpoint, write_checkpoint
from lodestar_services.training import losses
from lodestar_services.training.model import STATE_FORMAT, ModelInTraining
from lodestar_services.training.sampling import Sampling, Source
from lodestar_services.training.store import SAMPLER, STATE, Store, check_model_id

Result = TypeVar("Result")


class Training:
    """``await load()``, then the rest, from one event loop."""

    def __init__(self, task: TrainingTask) -> None:
        self._task = task
        self._section = task.section
        self._store = Store(task.section.weights, task.section.kept_samplers)
        self._compute = ComputeThread("training", 1 if task.deterministic else task.section.threads)
        self._incarnation = secrets.token_hex(4)
        self._models: dict[str, ModelInTraining] = {}
        """Of the compute thread."""
        self._queued = 0
        self._turned_away: dict[str, str] = {}
        """Why a part of a model's batch never came to the compute thread, until the step that must not be made."""
        self._sampling: Sampling

    async def load(self) -> None:
        """Loads the start model and samples one token.

        Raises:
            ModelError: the folder holds no model that can be trained and sampled from.
        """
        await self._compute.run(self._load)
        self._sampling = Sampling(self._task, self._compute, self._start, self._tokenizer)
        once = SamplingParams(max_tokens=1, seed=0)
        await self._sampling.sample(self._start_source(), [int(self._tokenizer.eos_token_id)], once, top_prompt=None)

    def stop(self) -> None:
        """Ends the threads; nothing is answered afterwards."""
        if hasattr(self, "_sampling"):
            self._sampling.stop()
        self._compute.close()

    def _load(self) -> None:
        path = self._task.model
        self._tokenizer = load_tokenizer(path)
        if Control.of(self._tokenizer).tokens:
            raise ModelError(f"{path}: is conditioned on control tokens, which callers' own algorithms know nothing of")
        self._tokenizer_hash = tokenizer_hash(self._tokenizer)
        self._start = load_causal_lm(path, dtype=self._task.dtype, device=str(resolve_device(self._task.device)))
        for parameter in self._start.parameters():
            parameter.requires_grad_(False)
        warm_up_kernels(self._start, train=True)
        self._base = weights_digest(tensor_digests(self._start))
        self._vocab_size = sampled_ids(self._start)
        self._without_text = frozenset(ids_without_text(self._start))
        self._context_tokens = context_tokens(path) or self._section.kv_cache_tokens
        self._ours = ModelInfo(path, WeightVersion(self._incarnation, 0, self._base), self._tokenizer_hash)
        metrics.MODEL_INFO.labels(path, self._tokenizer_hash, self._incarnation).set(1)

    # --- models ------------------------------------------------------------------------------------------------
    async def create(self, model_id: str, lora: Lora | None, path: str, *, optimizer: bool) -> TrainingModel:
        """A new model, as the start model or as a saved state.

        Raises:
            InvalidArgument: a field means nothing, or nothing is saved at the path.
            FailedPrecondition: a model has this name.
            ResourceExhausted: no room for another one.
        """
        if model_id:
            check_model_id(model_id)
        if path and lora is not None:
            raise InvalidArgument("lora", "is said by the saved state; leave it out")
        if optimizer and not path:
            raise InvalidArgument("optimizer", "belongs to a saved state; set path, too")
        return await self._run(self._create, model_id or f"model-{secrets.token_hex(8)}", lora, path, optimizer)

    def _create(self, model_id: str, lora: Lora | None, path: str, optimizer: bool) -> TrainingModel:
        if model_id in self._models:
            raise FailedPrecondition(f"model_id: a model {model_id} is there already")
        if len(self._models) >= self._section.max_models:
            raise ResourceExhausted(
                f"{len(self._models)} models are in memory, and at most {self._section.max_models} may be: delete one"
            )
        state = self._state(path) if path else None
        if state is not None and state["lora"] is not None:
            lora = Lora(**state["lora"])
        model = ModelInTraining(model_id, self._start, lora, micro_batch_tokens=self._section.micro_batch_tokens)
        if state is not None:
            model.load_state_dict(state, optimizer=optimizer)
        self._models[model_id] = model
        metrics.TRAINING_MODELS.set(len(self._models))
        return self._described(model)

    async def describe(self, model_id: str) -> TrainingModel:
        """A model, or with "" the start model.

        Raises:
            InvalidArgument: there is no such model.
        """
        if not model_id:
            return TrainingModel(self._ours, self._task.model, self._context_tokens, self._vocab_size, 0)
        return await self._run(lambda: self._described(self._model(model_id)))

    async def delete(self, model_id: str) -> None:
        """Frees a model; what it saved under a name stays.

        Raises:
            InvalidArgument: there is no such model.
        """
        await self._run(self._delete, model_id)

    def _delete(self, model_id: str) -> None:
        self._model(model_id)
        del self._models[model_id]
        self._turned_away.pop(model_id, None)
        self._store.sweep(model_id, keep=0)
        metrics.TRAINING_MODELS.set(len(self._models))

    # --- the two calls -----------------------------------------------------------------------------------------
    async def forward_backward(
        self,
        model_id: str,
        data: Sequence[Datum],
        loss: str,
        options: Mapping[str, float],
        *,
        forward_only: bool,
        tokenizer: str = "",
    ) -> LossResult:
        """Adds the gradient of a loss; see ModelInTraining.forward_backward.

        Raises:
            InvalidArgument: no such model, or data that cannot be trained on; names the field.
            NonFinite: the loss is NaN or infinite.
        """

        def work() -> LossResult:
            model = self._model(model_id)
            try:
                check_tokenizer_hash(self._tokenizer_hash, tokenizer)
                self._check_tokens(data)
                complete = losses.check(loss, options, data)
            except Exception as error:
                if not forward_only:
                    model.spoil(str(error))
                raise
            value, rows, figures = model.forward_backward(data, loss, complete, forward_only=forward_only)
            metrics.TRAINING_TOKENS.labels(loss).inc(sum(map(len, rows)))
            return LossResult(self._info(model), value, tuple(map(tuple, rows)), figures)

        try:
            return await self._run(work)
        except ResourceExhausted as error:
            if not forward_only:
                self._turned_away[model_id] = str(error)
            raise

    async def optim_step(self, model_id: str, params: OptimParams) -> tuple[ModelInfo, float]:
        """One step; the model after it, and the gradient's norm.

        Raises:
            InvalidArgument: no such model, or a number out of range.
            FailedPrecondition: there is no gradient of a whole batch.
            NonFinite: the gradient is NaN or infinite.
        """
        _check_params(params)
        turned_away = self._turned_away.pop(model_id, "")

        def work() -> tuple[ModelInfo, float]:
            model = self._model(model_id)
            if turned_away:
                model.spoil(turned_away)
            norm = model.optim_step(params)
            metrics.TRAINING_STEPS.inc()
            return self._info(model), norm

        return await self._run(work)

    # --- weights -----------------------------------------------------------------------------------------------
    async def save(self, model_id: str, kind: str, name: str, *, overwrite: bool) -> tuple[ModelInfo, str]:
        """Writes a model's weights; the path by which callers name them.

        Raises:
            InvalidArgument: no such model, or a name that cannot be one.
            FailedPrecondition: something has this name.
        """

        def work() -> tuple[ModelInfo, str]:
            model = self._model(model_id)
            path, place = self._store.new(model_id, kind, name, overwrite=overwrite)
            if kind == STATE:
                write_checkpoint(place, model.state_dict(self._base))
            else:
                save_model(model.module, self._tokenizer, place)
                self._store.sweep(model_id)
            return self._info(model), path

        return await self._run(work)

    async def load_weights(self, model_id: str, path: str, *, optimizer: bool) -> ModelInfo:
        """Puts a saved state into a model.

        Raises:
            InvalidArgument: no such model, or nothing is saved there.
            FailedPrecondition: the state is of another start model or of other adapters, or damaged.
        """

        def work() -> ModelInfo:
            model, state = self._model(model_id), self._state(path)
            saved = None if state["lora"] is None else Lora(**state["lora"])
            if saved != model.lora:
                raise FailedPrecondition(f"{path} has other adapters than {model_id}: {saved}, and not {model.lora}")
            model.load_state_dict(state, optimizer=optimizer)
            return self._info(model)

        return await self._run(work)

    def _state(self, path: str) -> dict[str, Any]:
        state = load_checkpoint(self._store.place(path, STATE))
        if state.get("format") != STATE_FORMAT:
            raise FailedPrecondition(f"{path}: is {state.get('format')!r}, and this server reads {STATE_FORMAT!r}")
        if state["base"] != self._base:
            raise FailedPrecondition(
                f"{path}: began as the model {state['base'][:12]}, and this server has {self._base[:12]}"
            )
        return state

    # --- samples -----------------------------------------------------------------------------------------------
    async def sample(
        self,
        model_id: str,
        path: str,
        prompt: Sequence[int],
        sampling: SamplingParams,
        *,
        prompt_logprobs: bool,
        top_prompt_logprobs: int,
        tokenizer: str = "",
    ) -> Sampled:
        """Whole samples of a prompt. With ``max_tokens`` 0 none, for the prompt's log-probs alone.

        Raises:
            InvalidArgument: a field is out of range, or there are no such weights.
            ResourceExhausted: too many wait.
        """
        check_tokenizer_hash(self._tokenizer_hash, tokenizer)
        check_tokens(prompt, "prompt", vocab_size=self._vocab_size, context_tokens=self._context_tokens)
        if not 0 <= top_prompt_logprobs <= MAX_TOP_LOGPROBS:
            raise InvalidArgument("top_prompt_logprobs", f"must be 0 … {MAX_TOP_LOGPROBS}, got {top_prompt_logprobs}")
        if not sampling.max_tokens and not prompt_logprobs:
            raise InvalidArgument("sampling.max_tokens", "is 0: nothing is asked for")
        source = await self._source(model_id, path)
        top = top_prompt_logprobs if prompt_logprobs else None
        return await self._sampling.sample(source, prompt, sampling, top_prompt=top)

    async def _source(self, model_id: str, path: str) -> Source:
        if model_id and path:
            raise InvalidArgument("path", "and model_id are both given; choose one")
        if path:
            place = self._store.place(path, SAMPLER)
            info = ModelInfo(path, WeightVersion(self._incarnation, 0, ""), self._tokenizer_hash)
            return Source(f"{path}@{(place / 'config.json').stat().st_mtime_ns}", info, partial(_saved, place))
        if model_id:
            return await self._run(self._present, model_id)
        return self._start_source()

    def _present(self, model_id: str) -> Source:
        """A model's weights as they stand now, copied before the next call changes them, unless a sampler has them."""
        model = self._model(model_id)
        key = f"{model_id}#{model.version}"
        tensors = None if self._sampling.holds(key) else model.tensors()
        return Source(key, self._info(model), lambda: model.tensors() if tensors is None else tensors)

    def _start_source(self) -> Source:
        return Source("start", self._ours, lambda: named_tensors(self._start))

    # --- the compute thread ------------------------------------------------------------------------------------
    async def _run(self, function: Callable[..., Result], *args: Any) -> Result:
        """What was taken is done, though its caller leave: others may count on it, a step on its gradient, say."""
        if self._queued >= self._section.max_queued:
            raise ResourceExhausted(f"{self._queued} calls wait, and at most {self._section.max_queued} may: ask later")
        self._count(1)
        task = asyncio.ensure_future(self._compute.run(function, *args))
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    def _done(self, task: asyncio.Future[Any]) -> None:
        self._count(-1)
        if not task.cancelled():
            task.exception()  # somebody looked at it, though its caller may have left

    def _count(self, calls: int) -> None:
        self._queued += calls
        metrics.TRAINING_QUEUED.set(self._queued)

    def _model(self, model_id: str) -> ModelInTraining:
        if model_id not in self._models:
            raise InvalidArgument("model_id", f"there is no model {model_id!r} here; CreateModel makes one")
        return self._models[model_id]

    def _info(self, model: ModelInTraining) -> ModelInfo:
        return ModelInfo(model.name, WeightVersion(self._incarnation, model.steps, ""), self._tokenizer_hash)

    def _described(self, model: ModelInTraining) -> TrainingModel:
        return TrainingModel(
            self._info(model),
            self._task.model,
            self._context_tokens,
            self._vocab_size,
            model.trainable_parameters,
            model.accumulated,
            model.lora,
        )

    def _check_tokens(self, data: Sequence[Datum]) -> None:
        check_count(data, "data")
        bounds = {"vocab_size": self._vocab_size, "context_tokens": self._context_tokens}
        for i, datum in enumerate(data):
            check_tokens(datum.token_ids, f"data[{i}].token_ids", **bounds)
            check_tokens(datum.targets, f"data[{i}].targets", **bounds)
            if self._without_text and (wrong := self._without_text.intersection(datum.targets)):
                raise InvalidArgument(f"data[{i}].targets", f"holds id {min(wrong)}, which has no text")


def _saved(place: Path) -> Mapping[str, Tensor]:
    return named_tensors(load_causal_lm(place))


def _check_params(params: OptimParams) -> None:
    """Raises InvalidArgument for what AdamW cannot step with."""
    for name, low, high in (
        ("learning_rate", 0.0, None),
        ("beta1", 0.0, 1.0),
        ("beta2", 0.0, 1.0),
        ("weight_decay", 0.0, None),
        ("max_grad_norm", 0.0, None),
    ):
        value = getattr(params, name)
        if not low <= value < (high or float("inf")):
            bounds = f"in [{low:g}, {high:g})" if high else "0 or more, and finite"
            raise InvalidArgument(name, f"must be {bounds}, got {value}")
    if not 0 < params.eps < float("inf"):
        raise InvalidArgument("eps", f"must be above 0, got {params.eps}")
