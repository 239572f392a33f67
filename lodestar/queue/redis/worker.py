"""The workers' side of the rollout queue on Redis; the keys are in lodestar.queue.schema."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import redis

from lodestar.errors import QueueUnavailable
from lodestar.queue import wire
from lodestar.queue.address import RedisAddress
from lodestar.queue.connection import (
    BLOCK_SECONDS,
    WORKER_CONNECTIONS,
    close_async,
    connect_async,
    give_up_idle,
    milliseconds,
    run_script_async,
)
from lodestar.queue.outage import CLOSING_SECONDS, OUTAGE_SECONDS, Patience, error_code
from lodestar.queue.port import Claim, DeadLetter
from lodestar.queue.schema import GROUP, ID_FIELD, TICKET_FIELD, Keys, RunKeys
from lodestar.queue.scripts import SCRIPTS
from lodestar.records import Rollout, Ticket

T = TypeVar("T")

log = logging.getLogger(__name__)


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
        outage_seconds: float = OUTAGE_SECONDS,
        password: str = "",
        tls: Path | None = None,
    ) -> None:
        """Connects on first use. ``worker`` must be unique among the run's workers; the rest is as the learner's.

        Raises:
            ConfigError: the URL cannot be one of Redis, or the TLS files cannot be used.
        """
        address = RedisAddress.parse(url).with_password(password)
        self._run = RunKeys(run)
        self._worker = worker
        self._claim_ms = max(1, round(1000 * claim_seconds))
        self._look_seconds = min(BLOCK_SECONDS, claim_seconds / 4)
        self._max_attempts = max_attempts
        self._max_deliveries = max_deliveries
        self._redis = connect_async(address, tls)
        self._patience = Patience(address, outage_seconds, reconnect=lambda: give_up_idle(self._redis))
        self._room = asyncio.Semaphore(WORKER_CONNECTIONS)
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
            words = [self._worker, self._claim_ms, *held]
            gone = await self._script("HEARTBEAT", _claimed(Keys(self._run.run, incarnation)), words)
            lost += [held[entry.decode()] for entry in gone]
        return lost

    async def finish(self, claim: Claim, rollout: Rollout) -> bool:
        """Acks the ticket and appends the rollout, atomically. False when it was finished or withdrawn before."""
        keys = self._keys_of(claim)
        words = [claim.receipt, claim.ticket.id, wire.rollout_bytes(rollout)]
        return bool(
            await self._script("FINISH", [keys.tickets, keys.rollouts, keys.held, keys.duplicates, keys.seen], words)
        )

    async def fail(self, claim: Claim, error: str) -> None:
        """Counts an error of the ticket's own; the last allowed one makes it a dead letter, else it is re-offered."""
        letter = DeadLetter(claim.ticket, error, self._max_attempts, self._worker)
        await self._fail(self._keys_of(claim), claim.receipt, claim.ticket.id, letter, self._max_attempts)

    async def release(self, claim: Claim) -> None:
        """Hands a ticket back without counting an attempt: a service was unavailable, or the worker stops.

        Nobody waits long for it while Redis is away: a claim that stays is taken over like a dead worker's.
        """
        try:
            await self._script(
                "RELEASE", _claimed(self._keys_of(claim)), [self._worker, claim.receipt], CLOSING_SECONDS
            )
        except QueueUnavailable as error:
            log.warning("ticket %s could not be handed back: %s", claim.ticket.id, error)

    async def close(self) -> None:
        """Ends the connection."""
        await close_async(self._redis)

    async def _look(self, count: int) -> list[Claim]:
        """Now and then: follows the pointer and takes over claims that went silent."""
        if time.monotonic() < self._next_look:
            return []
        incarnation = await self._attempt(lambda: self._redis.get(self._run.pointer), self._look_seconds)
        self._next_look = time.monotonic() + self._look_seconds
        self._keys = Keys(self._run.run, incarnation.decode(errors="replace")) if incarnation else None
        if self._keys is None:
            return []
        words = [self._worker, self._claim_ms, count]
        keys = _claimed(self._keys)
        found = await self._attempt(lambda: run_script_async(self._redis, SCRIPTS["CLAIM"], keys, words), 0.0)
        claims = []
        for (entry, words), deliveries in found or []:
            fields = dict(zip(words[::2], words[1::2], strict=True))
            claim = await self._claim(self._keys, entry.decode(), fields, deliveries)
            claims += [claim] if claim else []
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
        keys, block = self._keys, milliseconds(wait)
        streams = {keys.tickets: ">"}
        try:
            reply = await self._attempt(
                lambda: self._redis.xreadgroup(GROUP, self._worker, streams, count=count, block=block), timeout_seconds
            )
        except redis.ResponseError as error:
            if error_code(error) != "NOGROUP":
                raise
            self._keys = None  # the incarnation died, or Redis lost it
            return []
        found = [await self._claim(keys, entry.decode(), fields, 1) for _, new in reply or [] for entry, fields in new]
        return [claim for claim in found if claim is not None]

    async def _claim(self, keys: Keys, entry: str, fields: Mapping[bytes, bytes], deliveries: int) -> Claim | None:
        """The claim of an entry; None when it became a dead letter, because of what it is or did."""
        ticket_id = fields.get(ID_FIELD, b"").decode(errors="replace")
        ticket: Ticket | None = None
        try:
            ticket = _ticket(keys, ticket_id, fields)
            if deliveries <= self._max_deliveries:
                return Claim(entry, ticket, deliveries)
            error = f"delivered {deliveries - 1} times without an end: the ticket may kill its workers"
        except ValueError as problem:
            error = f"entry {entry} of {keys.tickets} {problem}"
        log.warning("ticket %s: %s", ticket_id, error)
        await self._fail(keys, entry, ticket_id, DeadLetter(ticket, error, deliveries - 1, self._worker), 0)
        return None

    async def _fail(self, keys: Keys, entry: str, ticket_id: str, letter: DeadLetter, allowed: int) -> None:
        words = [self._worker, entry, ticket_id, allowed, wire.dead_letter_bytes(letter)]
        await self._script("FAIL", [*_claimed(keys), keys.dead, keys.held, keys.attempts], words)

    def _keys_of(self, claim: Claim) -> Keys:
        return Keys(self._run.run, claim.ticket.incarnation)

    async def _script(self, name: str, keys: list[str], words: Sequence[Any], seconds: float | None = None) -> Any:
        async def command() -> Any:
            async with self._room:
                return await run_script_async(self._redis, SCRIPTS[name], keys, words)

        return await self._patience.call_async(command, seconds)

    async def _attempt(self, command: Callable[[], Awaitable[T]], timeout_seconds: float) -> T | None:
        """The command's result, or None while Redis is away: ``take`` is called again and again anyhow."""

        async def in_its_turn() -> T:
            async with self._room:
                return await command()

        return await self._patience.attempt_async(in_its_turn, timeout_seconds)


def _claimed(keys: Keys) -> list[str]:
    """The keys of every script about claims."""
    return [keys.tickets, keys.seen, keys.clock]


def _ticket(keys: Keys, ticket_id: str, fields: Mapping[bytes, bytes]) -> Ticket:
    """The ticket in an entry.

    Raises:
        ValueError: there is none, or it is another's.
    """
    if TICKET_FIELD not in fields:
        raise ValueError(f"has no field ticket, but {wire.names(fields)}")
    ticket = wire.ticket_from(fields[TICKET_FIELD])
    wire.check_is(ticket, keys.run, keys.incarnation, ticket_id)
    return ticket
