"""Tinker's API: sessions, models in training, samplers, and results that are fetched later.

Consumes   the SDK's requests; those of one model are done in the order in which they come.
Produces   numbers of results at once, results when they are fetched, at most FETCH_SECONDS after the question.
Waits for  the training service.
Unblocked  by its answer; a session that is silent for ``session_seconds`` is over, and its models are freed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from lodestar.client import AsyncTrainingClient
from lodestar.config import GatewayConfig
from lodestar.errors import InvalidArgument, LodestarError
from lodestar.records import TrainingModel
from lodestar_services.gateway.endpoint import Outgoing
from lodestar_services.gateway.errors import ApiError
from lodestar_services.gateway.tinker import requests, wire
from lodestar_services.gateway.tinker.futures import Futures, Result
from lodestar_services.gateway.tinker.sessions import Sessions, session_of

log = logging.getLogger(__name__)
FETCH_SECONDS = 20.0
"""The SDK waits 45 s for an answer to where a result is."""
SWEEP_SECONDS = 10.0
SCHEME = "tinker://"
CHUNK_SHARE = 4
"""The SDK counts arrays alone when it cuts a batch to the body's bound; their names may be three times as long."""
Work = Callable[[], Coroutine[Any, Any, Result]]


class Tinker:
    """Made inside the event loop; every public coroutine but ``close`` answers a route."""

    def __init__(self, section: GatewayConfig, address: str, *, tls: Path | None) -> None:
        self._section = section
        self._training = AsyncTrainingClient(address, timeout=section.deadline_seconds, tls=tls)
        self._sessions = Sessions()
        self._futures = Futures()
        self._start: TrainingModel | None = None
        self._sweeper = asyncio.create_task(self._sweep())

    async def close(self) -> None:
        """Ends calls in flight; models stay until their server ends."""
        self._sweeper.cancel()
        await self._futures.end()
        await self._training.close()

    # --- sessions ----------------------------------------------------------------------------------------------
    async def client_config(self, body: Any, out: Outgoing) -> None:
        """POST client/config: how the SDK should behave."""
        most = self._section.max_body_bytes // CHUNK_SHARE
        await out.whole({"parallel_fwdbwd_chunks": False, "fwdbwd_max_chunk_bytes_count": most})

    async def dynamic_config(self, body: Any, out: Outgoing) -> None:
        """POST client/dynamic_config."""
        await out.whole({"sample_cancel_enabled": True})

    async def create_session(self, body: Any, out: Outgoing) -> None:
        """POST create_session."""
        request = requests.read(requests.Session, body)
        name = f"session-{secrets.token_hex(16)}"
        self._sessions.open(name)
        warning = f"{', '.join(request.not_kept)}: not kept by this server" if request.not_kept else None
        await out.whole({"type": "create_session", "session_id": name, "warning_message": warning})

    async def heartbeat(self, body: Any, out: Outgoing) -> None:
        """POST session_heartbeat."""
        name = requests.read(requests.Heartbeat, body).session_id
        if name not in self._sessions:
            raise ApiError(410, f"session_id: {name} is over")
        self._sessions.of(name)
        await out.whole({"type": "session_heartbeat"})

    async def finish(self, body: Any, out: Outgoing) -> None:
        """POST sessions/ID/finish."""
        await self._end(out.path["session"])
        await out.whole({})

    async def telemetry(self, body: Any, out: Outgoing) -> None:
        """POST telemetry: nobody here reads it."""
        await out.whole({"status": "accepted"})

    async def health(self, body: Any, out: Outgoing) -> None:
        """GET healthz."""
        await out.whole({"status": "ok"})

    # --- models ------------------------------------------------------------------------------------------------
    async def capabilities(self, body: Any, out: Outgoing) -> None:
        """GET get_server_capabilities."""
        start = await self._base()
        model = {"model_name": self._name(start), "max_context_length": start.context_tokens}
        await out.whole({"supported_models": [{**model, "trainable": True, "sampleable": True}]})

    async def create_model(self, body: Any, out: Outgoing) -> None:
        """POST create_model."""
        request = requests.read(requests.CreateModel, body)
        requests.refuse(user_metadata=request.user_metadata)
        session = self._sessions.of(request.session_id)
        await self._check_base(request.base_model)
        model_id = f"{request.session_id}:train:{request.model_seq_id}"
        adapters = request.lora_config
        lora = None if adapters is None else adapters.lora(secrets.randbits(32))

        async def work() -> Result:
            await self._training.create_model(model_id, lora=lora)
            return {"type": "create_model", "model_id": model_id}

        session.models.setdefault(model_id, asyncio.Lock())
        await self._ordered(model_id, 0, work, out)

    async def get_info(self, body: Any, out: Outgoing) -> None:
        """POST get_info."""
        model = await self._training.describe_model(requests.read(requests.GetInfo, body).model_id)
        lora = model.lora
        name = self._name(model)
        await out.whole(
            {
                "type": "get_info",
                "model_id": model.model.name,
                "model_name": name,
                "model_data": {"model_name": name, "tokenizer_id": model.base},
                "is_lora": lora is not None,
                "lora_rank": None if lora is None else lora.rank,
            }
        )

    async def forward_backward(self, body: Any, out: Outgoing) -> None:
        """POST forward_backward, in protobuf."""
        message = wire.read_forward_backward(body)

        async def work() -> Result:
            try:
                result = await self._training.forward_backward(
                    message.model_id,
                    wire.datums_of(message),
                    message.loss,
                    wire.options_of(message),
                    forward_only=message.forward_only,
                    timeout=self._section.deadline_seconds,
                )
            except (ApiError, LodestarError):
                if not message.forward_only:
                    self._sessions.of(session_of(message.model_id)).spoiled.add(message.model_id)
                raise
            return wire.losses_to(result)

        await self._ordered(message.model_id, message.seq_id, work, out)

    async def optim_step(self, body: Any, out: Outgoing) -> None:
        """POST optim_step."""
        request = requests.read(requests.OptimStep, body)

        async def work() -> Result:
            spoiled = self._sessions.of(session_of(request.model_id)).spoiled
            if request.model_id in spoiled:  # the service may not know of it: a call without data is one that fails
                with contextlib.suppress(InvalidArgument):
                    await self._training.forward_backward(request.model_id, [], "cross_entropy")
                spoiled.discard(request.model_id)
            _, norm = await self._training.optim_step(request.model_id, request.adam_params.params)
            return {"metrics": {"gradient_norm": norm}}

        await self._ordered(request.model_id, request.seq_id, work, out)

    # --- weights -----------------------------------------------------------------------------------------------
    async def save_weights(self, body: Any, out: Outgoing) -> None:
        """POST save_weights."""
        request = requests.read(requests.Save, body)
        requests.refuse(ttl_seconds=request.ttl_seconds, user_metadata=request.user_metadata)

        async def work() -> Result:
            path = await self._training.save_weights(
                request.model_id, request.path or "", kind="state", overwrite=request.overwrite
            )
            return {"type": "save_weights", "path": SCHEME + path}

        await self._ordered(request.model_id, request.seq_id, work, out)

    async def save_for_sampler(self, body: Any, out: Outgoing) -> None:
        """POST save_weights_for_sampler: under a name, or for a sampler that begins at once."""
        request = requests.read(requests.Save, body)
        requests.refuse(ttl_seconds=request.ttl_seconds, user_metadata=request.user_metadata)
        session_id = session_of(request.model_id)
        session = self._sessions.of(session_id)

        async def work() -> Result:
            path = await self._training.save_weights(
                request.model_id, request.path or "", kind="sampler", overwrite=request.overwrite
            )
            kind = {"type": "save_weights_for_sampler"}
            if request.path is not None:
                return {**kind, "path": SCHEME + path}
            name = f"{session_id}:sample:{request.sampling_session_seq_id}"
            session.samplers[name] = path
            return {**kind, "sampling_session_id": name}

        await self._ordered(request.model_id, request.seq_id, work, out)

    async def load_weights(self, body: Any, out: Outgoing) -> None:
        """POST load_weights: into a model, or as a new model."""
        request = requests.read(requests.Load, body)
        requests.refuse(user_metadata=request.user_metadata, weights_access_token=request.weights_access_token)
        path = _path_of(request.path)
        if request.base_model is not None:
            await self._check_base(request.base_model)
        if request.model_id is not None and request.seq_id is not None:
            model_id, sequence = request.model_id, request.seq_id
        else:
            model_id, sequence = f"{request.session_id}:train:{request.model_seq_id}", 0
            self._sessions.of(request.session_id or "").models.setdefault(model_id, asyncio.Lock())

        async def work() -> Result:
            if request.model_id is None:
                await self._training.create_model(model_id, path=path, optimizer=request.optimizer)
            else:
                await self._training.load_weights(model_id, path, optimizer=request.optimizer)
            return {"type": "load_weights", "path": request.path, "model_id": model_id}

        await self._ordered(model_id, sequence, work, out)

    # --- samples -----------------------------------------------------------------------------------------------
    async def create_sampler(self, body: Any, out: Outgoing) -> None:
        """POST create_sampling_session."""
        request = requests.read(requests.CreateSampler, body)
        session = self._sessions.of(request.session_id)
        if request.model_path is None:
            await self._check_base(request.base_model or "")
        name = f"{request.session_id}:sample:{request.sampling_session_seq_id}"
        session.samplers[name] = "" if request.model_path is None else _path_of(request.model_path)
        await out.whole({"type": "create_sampling_session", "sampling_session_id": name})

    async def sampler(self, body: Any, out: Outgoing) -> None:
        """GET samplers/ID."""
        name = out.path["sampler"]
        path = self._sessions.weights(name)
        base = self._name(await self._base())
        await out.whole({"sampler_id": name, "base_model": base, "model_path": SCHEME + path if path else None})

    async def sample(self, body: Any, out: Outgoing) -> None:
        """POST asample."""
        request = requests.read(requests.Sample, body)
        path = self._sessions.weights(request.sampling_session_id)
        start = await self._base()
        prompt, sampling = request.prompt.token_ids, request.sampling(start.context_tokens)
        if any(token < 0 for token in prompt):
            raise ApiError(400, "prompt: holds a negative token id", param="prompt")

        async def work() -> Result:
            sampled = await self._training.sample(
                prompt,
                sampling,
                path=path,
                prompt_logprobs=bool(request.prompt_logprobs or request.topk_prompt_logprobs),
                top_prompt_logprobs=request.topk_prompt_logprobs,
                timeout=self._section.deadline_seconds,
            )
            return wire.samples_to(
                sampled, top_samples=request.topk_sample_logprobs, top_prompt=request.topk_prompt_logprobs
            )

        request_id = f"{request.sampling_session_id}:{request.seq_id}"
        self._futures.start(request_id, session_of(request.sampling_session_id), work())
        ids = [f"{request_id}:{i}" for i in range(request.num_samples)]
        await out.whole({"request_id": request_id, "sample_sequence_ids": ids})

    async def retrieve(self, body: Any, out: Outgoing) -> None:
        """POST retrieve_future."""
        request = requests.read(requests.Retrieve, body)
        result = await self._futures.result(request.request_id, FETCH_SECONDS)
        if result is None:
            await out.whole({"type": "try_again", "request_id": request.request_id, "queue_state": "active"}, 408)
        elif isinstance(result, bytes):
            await out.data(result, b"application/x-protobuf")
        else:
            await out.whole(result)

    async def cancel(self, body: Any, out: Outgoing) -> None:
        """POST cancel_future."""
        self._futures.cancel(requests.read(requests.Cancel, body).request_id)
        await out.whole({})

    # --- pieces ------------------------------------------------------------------------------------------------
    async def _ordered(self, model_id: str, sequence: int, work: Work, out: Outgoing) -> None:
        """Begins a model's request, after those that came before it, and answers with its number."""
        session_id = session_of(model_id)
        lock = self._sessions.of(session_id).models.get(model_id)
        if lock is None:
            raise ApiError(404, f"model_id: there is no model {model_id} here", param="model_id")

        async def in_turn() -> Result:
            async with lock:
                return await work()

        request_id = f"{model_id}:{sequence}"
        self._futures.start(request_id, session_id, in_turn())
        await out.whole({"request_id": request_id, "model_id": model_id})

    async def _base(self) -> TrainingModel:
        self._start = self._start or await self._training.describe_model()
        return self._start

    def _name(self, model: TrainingModel) -> str:
        return self._section.name or model.base

    async def _check_base(self, asked: str) -> None:
        name = self._name(await self._base())
        if asked != name:
            raise ApiError(
                404, f"base_model: {asked!r} is not served here; this server has {name!r}", param="base_model"
            )

    async def _end(self, name: str) -> None:
        session = self._sessions.end(name)
        if session is None:
            return
        await self._futures.end(name)
        for model_id in session.models:
            with contextlib.suppress(InvalidArgument):  # it was never made
                await self._training.delete_model(model_id)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self._futures.sweep()
            for name in self._sessions.silent(self._section.session_seconds):
                log.info("%s was silent for %g s and is over", name, self._section.session_seconds)
                try:
                    await self._end(name)
                except LodestarError as error:
                    log.warning("the models of %s could not be freed: %s", name, error)


def _path_of(path: str) -> str:
    if not path.startswith(SCHEME):
        raise ApiError(400, f"path: {path!r} does not begin with {SCHEME}", param="path")
    return path.removeprefix(SCHEME)
