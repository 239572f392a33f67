"""Wires a rollout worker: the queue on one side, the three model services on the other."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

from lodestar.client import AsyncPolicyClient, AsyncReferenceClient, AsyncRewardClient
from lodestar.config import ServeOptions
from lodestar.errors import ConfigError, LodestarError
from lodestar.queue.redis import RedisWorkerQueue
from lodestar.rpc.server import configure_logging, run
from lodestar.rpc.spec import ServerSpec
from lodestar_services.rollout.calls import ModelCalls
from lodestar_services.rollout.loop import RolloutWorker


def main(options: ServeOptions) -> int:
    """Works until SIGTERM; the exit code."""
    configure_logging(f"rollout-{options.replica}")
    service = RolloutService(options)
    spec = ServerSpec.of("rollout", options, None, [], warm=service.connect, work=service.work)
    try:
        return run(spec)
    except BaseExceptionGroup as group:
        raise _first(group) from group


class RolloutService:
    """One worker process: connects, works, closes."""

    def __init__(self, options: ServeOptions) -> None:
        """
        Raises:
            ConfigError: an endpoint is missing.
        """
        self._config = options.config
        self._name = f"rollout-{options.replica}-{uuid.uuid4().hex[:8]}"
        self._tls = options.tls
        ends = options.endpoints
        self._redis = ends.redis or options.config.queue.url or _missing("redis")
        self._policy = _given("policy", ends.policy)
        self._reward = _given("reward", ends.reward)
        self._reference = _given("reference", ends.reference)
        self._open = AsyncExitStack()
        self._worker: RolloutWorker

    async def connect(self) -> None:
        """Waits for the model services."""
        try:
            await self._connect()
        except BaseException:
            await self._open.aclose()
            raise

    async def work(self, stopping: asyncio.Event) -> None:
        """Rolls tickets out until told to stop."""
        async with self._open:
            await self._worker.work(stopping)

    async def _connect(self) -> None:
        section, queue_section = self._config.rollout, self._config.queue
        told: dict[str, Any] = {"timeout": section.deadline_seconds, "tls": self._tls}
        calls = ModelCalls(
            await self._open.enter_async_context(AsyncPolicyClient(self._policy, **told)),
            await self._open.enter_async_context(AsyncRewardClient(self._reward, **told)),
            await self._open.enter_async_context(AsyncReferenceClient(self._reference, **told)),
            version_wait_seconds=section.version_wait_seconds,
            call_tokens=min(self._config.reward.batch_tokens, self._config.reference.batch_tokens),
        )
        await calls.meet()
        queue = RedisWorkerQueue(
            self._redis,
            self._config.name,
            self._name,
            claim_seconds=queue_section.claim_seconds,
            max_attempts=section.max_attempts,
            max_deliveries=section.max_deliveries,
            outage_seconds=queue_section.outage_seconds,
            password=queue_section.password(),
            tls=self._tls,
        )
        self._open.push_async_callback(queue.close)
        self._worker = RolloutWorker(
            queue,
            calls,
            name=self._name,
            in_flight=section.in_flight,
            heartbeat_seconds=queue_section.heartbeat_seconds,
        )


def _given(role: str, addresses: Sequence[str]) -> Sequence[str]:
    return addresses or _missing(role)


def _missing(role: str) -> str:
    raise ConfigError(f"endpoints.{role}", f"a rollout worker needs the address of {role}")


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that a person can act on: a LodestarError when there is one."""
    known = group.subgroup(LodestarError)
    error: BaseException = known or group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
