"""The rollout workers' side of the queue on Redis. Keys, fields and scripts are in lodestar.queue.schema."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import redis

from lodestar.queue import schema, wire
from lodestar.queue.connection import BLOCK_SECONDS, RETRY_SECONDS, Outage, connect_async, milliseconds, no_group
from lodestar.queue.port import Claim, DeadLetter
from lodestar.queue.schema import GROUP, TICKET_FIELD, Keys, RunKeys
from lodestar.records import Rollout

T = TypeVar("T")


class RedisWorkerQueue:
    """WorkerQueue on Redis, for one worker process and one event loop."""

    def __init__(
        self,
        url: str,
        run: str,
        worker: str,
        *,
        claim_seconds: float = 10.0,
        max_attempts: int = 3,
        max_deliveries: int = 20,
        retry_seconds: float = RETRY_SECONDS,
        tls: Path | None = None,
    ) -> None:
        """Connects on first use. ``worker`` must be unique among the run's workers; ``tls`` as the learner's.

        Raises:
            ConfigError: the URL cannot be one of Redis, or the TLS files cannot be used.
        """
        self._url = url
        self._run = RunKeys(run)
        self._worker = worker
        self._claim_ms = max(1, round(1000 * claim_seconds))
        self._look_seconds = min(BLOCK_SECONDS, claim_seconds / 4)
        self._max_attempts = max_attempts
        self._max_deliveries = max_deliveries
        self._retry_seconds = retry_seconds
        self._redis = connect_async(url, tls)
        self._scripts = {
            name: self._redis.register_script(getattr(schema, name))
            for name in ("CLAIM", "HEARTBEAT", "FINISH", "FAIL", "RELEASE")
        }
        self._keys: Keys | None = None
        self._next_look = 0.0

    async def take(self, count: int, timeout_seconds: float) -> list[Claim]:
        """Up to count tickets of the present incarnation: abandoned ones first, then new ones; waits for the first."""
        give_up = time.monotonic() + timeout_seconds
        while True:
            claims = await self._look(count) or await self._read(count, give_up - time.monotonic())
            if claims or time.monotonic() >= give_up:
                return claims

    async def heartbeat(self, claims: Iterable[Claim]) -> list[Claim]:
        """Keeps claims from being taken over. Returns those that are not this worker's any more: stop their work."""
        by_incarnation: dict[str, dict[str, Claim]] = defaultdict(dict)
        for claim in claims:
            by_incarnation[claim.ticket.incarnation][claim.receipt] = claim
        lost: list[Claim] = []
        for incarnation, held in by_incarnation.items():
            tickets = Keys(self._run.run, incarnation).tickets
            gone = await self._script("HEARTBEAT", [tickets], [self._worker, *held], without_group=None)
            lost += held.values() if gone is None else [held[entry.decode()] for entry in gone]
        return lost

    async def finish(self, claim: Claim, rollout: Rollout) -> bool:
        """Acks the ticket and appends the rollout, atomically. False when it was finished or withdrawn before."""
        keys = self._keys_of(claim)
        words = [claim.receipt, claim.ticket.id, wire.rollout_bytes(rollout)]
        return bool(await self._script("FINISH", [keys.tickets, keys.rollouts, keys.held, keys.duplicates], words))

    async def fail(self, claim: Claim, error: str) -> None:
        """Counts an error of the ticket's own; the last allowed one makes it a dead letter, else it is re-offered."""
        await self._fail(claim, DeadLetter(claim.ticket, error, self._max_attempts, self._worker), self._max_attempts)

    async def release(self, claim: Claim) -> None:
        """Hands a ticket back without counting an attempt: a service was unavailable, or the worker stops."""
        await self._script("RELEASE", [self._keys_of(claim).tickets], [self._worker, claim.receipt])

    async def close(self) -> None:
        """Ends the connection."""
        await self._redis.aclose()
        await self._redis.connection_pool.disconnect()

    async def _look(self, count: int) -> list[Claim]:
        """Now and then: follows the pointer and takes over claims that went silent."""
        if time.monotonic() < self._next_look:
            return []
        self._next_look = time.monotonic() + self._look_seconds
        incarnation = await self._call(lambda: self._redis.get(self._run.pointer))
        self._keys = Keys(self._run.run, incarnation.decode()) if incarnation else None
        if self._keys is None:
            return []
        words = [self._worker, self._claim_ms, count]
        claims = []
        for (entry, fields), deliveries in await self._script("CLAIM", [self._keys.tickets], words, without_group=[]):
            ticket = wire.ticket_from(fields[fields.index(TICKET_FIELD) + 1])
            claim = Claim(entry.decode(), ticket, deliveries)
            if deliveries <= self._max_deliveries:
                claims.append(claim)
                continue
            error = f"delivered {deliveries - 1} times without an end: the ticket may kill its workers"
            await self._fail(claim, DeadLetter(ticket, error, deliveries - 1, self._worker), 0)
        if claims:
            self._next_look = 0.0  # there may be more
        return claims

    async def _read(self, count: int, timeout_seconds: float) -> list[Claim]:
        """New tickets, waiting for the first until the timeout or the next look."""
        wait = max(0.0, min(timeout_seconds, self._next_look - time.monotonic()))
        if self._keys is None:
            await asyncio.sleep(min(wait, 0.1))
            self._next_look = 0.0
            return []
        streams = {self._keys.tickets: ">"}
        block = milliseconds(wait)
        try:
            reply = await self._call(
                lambda: self._redis.xreadgroup(GROUP, self._worker, streams, count=count, block=block)
            )
        except redis.ResponseError as error:
            if not no_group(error):
                raise
            self._keys = None  # the incarnation died, or Redis lost it
            return []
        return [
            Claim(entry.decode(), wire.ticket_from(fields[TICKET_FIELD]), 1)
            for _, entries in reply
            for entry, fields in entries
        ]

    async def _fail(self, claim: Claim, letter: DeadLetter, allowed: int) -> None:
        keys = self._keys_of(claim)
        words = [self._worker, claim.receipt, claim.ticket.id, allowed, wire.dead_letter_bytes(letter)]
        await self._script("FAIL", [keys.tickets, keys.dead, keys.held, keys.attempts], words)

    def _keys_of(self, claim: Claim) -> Keys:
        return Keys(self._run.run, claim.ticket.incarnation)

    async def _script(self, name: str, keys: list[str], words: Sequence[Any], without_group: Any = None) -> Any:
        """The script's reply; ``without_group`` when the streams are gone, because then there is nothing to do."""
        try:
            return await self._call(lambda: self._scripts[name](keys=keys, args=words))
        except redis.ResponseError as error:
            if no_group(error):
                return without_group
            raise

    async def _call(self, command: Callable[[], Awaitable[T]]) -> T:
        outage = Outage(self._url, self._retry_seconds)
        while True:
            try:
                result = await command()
            except redis.RedisError as error:
                await asyncio.sleep(outage.pause_after(error))
            else:
                outage.over()
                return result
