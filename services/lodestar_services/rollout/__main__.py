"""Wires a rollout worker: the queue on one side, the three model services on the other."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import AsyncExitStack
from typing import Any

from lodestar.client import AsyncPolicyClient, AsyncReferenceClient, AsyncRewardClient
from lodestar.config import RolloutTask
from lodestar.errors import ConfigError, first_of
from lodestar.queue.redis import RedisWorkerQueue
from lodestar.rpc.flows import FOR_TRAINING
from lodestar.rpc.server import configure_logging, run
from lodestar.rpc.spec import ServerSpec
from lodestar_services.rollout.calls import ModelCalls
from lodestar_services.rollout.loop import RolloutWorker


def main(task: RolloutTask) -> int:
    """Works until SIGTERM; the exit code."""
    configure_logging(f"rollout-{task.listening.replica}")
    service = RolloutService(task)
    spec = ServerSpec.of(task, None, [], warm=service.connect, work=service.work)
    try:
        return run(spec)
    except BaseExceptionGroup as group:
        raise first_of(group) from group


class RolloutService:
    """One worker process: connects, works, closes."""

    def __init__(self, task: RolloutTask) -> None:
        """
        Raises:
            ConfigError: the queue's or the policy servers' address is missing.
        """
        self._task = task
        self._name = f"rollout-{task.listening.replica}-{uuid.uuid4().hex[:8]}"
        self._redis = task.endpoints.redis or task.queue.url or _missing("redis")
        self._policy = task.endpoints.policy or _missing("policy")
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
        task, section, ends = self._task, self._task.section, self._task.endpoints
        told: dict[str, Any] = {
            "timeout": section.deadline_seconds,
            "tls": task.listening.tls,
            "metadata": FOR_TRAINING,
        }
        enter = self._open.enter_async_context
        calls = ModelCalls(
            await enter(AsyncPolicyClient(self._policy, **told)),
            await enter(AsyncRewardClient(ends.reward, **told)) if ends.reward else None,
            await enter(AsyncReferenceClient(ends.reference, **told)) if ends.reference else None,
            version_wait_seconds=section.version_wait_seconds,
            call_tokens=task.call_tokens,
            follows=ends.weights is not None,
        )
        await calls.meet()
        queue = RedisWorkerQueue(
            self._redis,
            task.run,
            self._name,
            claim_seconds=task.queue.claim_seconds,
            outage_seconds=task.queue.outage_seconds,
            password=task.queue.password(),
            max_attempts=section.max_attempts,
            max_deliveries=section.max_deliveries,
            tls=task.listening.tls,
        )
        self._open.push_async_callback(queue.close)
        self._worker = RolloutWorker(
            queue,
            calls,
            name=self._name,
            in_flight=section.in_flight,
            heartbeat_seconds=task.queue.heartbeat_seconds,
        )


def _missing(role: str) -> str:
    raise ConfigError(f"endpoints.{role}", f"a rollout worker needs the address of {role}")
