"""The rollout queue on Redis streams: both sides of the port. Keys, fields and scripts are in schema.py."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import redis

from lodestar.errors import FailedPrecondition
from lodestar.queue import schema, wire
from lodestar.queue.connection import RETRY_SECONDS, Outage, connect, connect_async
from lodestar.queue.port import Claim, DeadLetter, Delivery, Depth
from lodestar.queue.schema import DEAD_FIELD, GROUP, ROLLOUT_FIELD, TICKET_FIELD, Keys, RunKeys
from lodestar.records import Rollout, Ticket

T = TypeVar("T")

_EMPTY = Depth(0, 0, 0, 0, 0.0, 0)
TICKETS_PER_CALL = 500
DELIVERIES_PER_CALL = 256
BLOCK_SECONDS = 1.0
"""Longest blocking read; also how often, at least, a worker looks for abandoned claims and a new incarnation."""


class RedisLearnerQueue:
    """LearnerQueue on Redis: ``queue.open("demo", "9f31c2aa")``, issue, receive, settle.

    Reads the streams of finished work with a cursor of its own. No consumer group is needed there: one learner
    reads an incarnation, and another start of the learner begins another incarnation.
    """

    def __init__(self, url: str, retry_seconds: float = RETRY_SECONDS, *, tls: Path | None = None) -> None:
        """Connects on first use; ``tls`` is the folder of our certificate for a rediss:// URL.

        Raises:
            ConfigError: the URL cannot be one of Redis, or the TLS files cannot be used.
        """
        self._url = url
        self._retry_seconds = retry_seconds
        self._redis = connect(url, tls)
        self._scripts = {
            name: self._redis.register_script(getattr(schema, name)) for name in ("OPEN", "ISSUE", "WITHDRAW", "SETTLE")
        }
        self._outage = Outage(url, retry_seconds)
        self._keys = Keys("", "")
        self._server = ""
        self._lost = False
        self._cursors: dict[str, str] = {}
        self._depth = _EMPTY

    def open(self, run: str, incarnation: str) -> None:
        """Makes the incarnation's streams, points workers at it and deletes those of dead incarnations."""
        self._keys = Keys(run, incarnation)
        self._open(again=False)
        self._server = self._call(lambda: self._redis.info("server"))["run_id"]

    def issue(self, tickets: Sequence[Ticket]) -> int:
        """Offers tickets to the workers; one that the queue already holds is left alone. Returns how many were new."""
        new = 0
        for start in range(0, len(tickets), TICKETS_PER_CALL):
            words: list[str | bytes] = [self._keys.incarnation]
            for ticket in tickets[start : start + TICKETS_PER_CALL]:
                words += [ticket.id, wire.ticket_bytes(ticket)]
            new += self._issue(words)
        return new

    def receive(self, timeout_seconds: float) -> list[Delivery]:
        """Finished rollouts and dead letters not received before, waiting up to the timeout for the first."""
        block = _milliseconds(min(timeout_seconds, BLOCK_SECONDS))
        reply = self._try(
            lambda: self._redis.xread(self._cursors, count=DELIVERIES_PER_CALL, block=block), timeout_seconds
        )
        deliveries = []
        for stream_name, entries in reply or []:
            stream = stream_name.decode()
            for entry, fields in entries:
                self._cursors[stream] = entry.decode()
                item = (
                    wire.rollout_from(fields[ROLLOUT_FIELD])
                    if ROLLOUT_FIELD in fields
                    else wire.dead_letter_from(fields[DEAD_FIELD])
                )
                deliveries.append(Delivery(f"{stream} {entry.decode()} {item.ticket.id}", item))
        return deliveries

    def settle(self, receipts: Iterable[str]) -> None:
        """Forgets deliveries and their tickets. Unknown receipts are ignored."""
        by_stream: dict[str, list[str]] = defaultdict(list)
        for receipt in receipts:
            stream, entry, ticket_id = receipt.split(" ")
            by_stream[stream] += [entry, ticket_id]
        for stream, words in by_stream.items():
            self._script("SETTLE", [stream, self._keys.held, self._keys.attempts], words)

    def withdraw(self, ticket_ids: Iterable[str]) -> None:
        """Takes tickets back that no longer matter; their rollouts will be refused."""
        words = list(ticket_ids)
        if words:
            self._script("WITHDRAW", [self._keys.tickets, self._keys.held, self._keys.attempts], words)

    def lost_contents(self) -> bool:
        """True once after the server restarted or lost the incarnation's streams: re-issue what is unsettled."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.info("server").get(RunKeys(self._keys.run).pointer).xpending(self._keys.tickets, GROUP)
        seen = self._try(lambda: pipeline.execute(raise_on_error=False), 0.0)
        if seen is None:
            return False
        server, pointer, group = seen
        if isinstance(server, redis.RedisError) or isinstance(pointer, redis.RedisError):
            return False  # it starts or fails over; receive() waits and complains
        whole = pointer == self._keys.incarnation.encode() and not isinstance(group, redis.ResponseError)
        if not whole:
            self._open(again=True)
        lost = self._lost or not whole or server["run_id"] != self._server
        if lost:
            self._server, self._lost = server["run_id"], False
            self._rewind()
        return lost

    def depth(self) -> Depth:
        """How full the queue is now; as last seen while Redis is away."""
        keys = self._keys
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.xlen(keys.tickets).xpending(keys.tickets, GROUP).xlen(keys.rollouts).xlen(keys.dead)
        pipeline.xrange(keys.tickets, count=1).get(keys.duplicates).time()
        seen = self._try(lambda: pipeline.execute(raise_on_error=False), 0.0)
        if seen is None:
            return self._depth
        tickets, group, finished, dead, oldest, duplicates, now = seen
        if isinstance(group, redis.ResponseError) and _no_group(group):
            return _EMPTY
        if any(isinstance(reply, redis.RedisError) for reply in seen):
            return self._depth
        seconds, microseconds = now
        age = seconds + microseconds / 1e6 - int(oldest[0][0].split(b"-")[0]) / 1e3 if oldest else 0.0
        self._depth = Depth(
            waiting=tickets - group["pending"],
            taken=group["pending"],
            finished=finished,
            dead=dead,
            oldest_seconds=max(age, 0.0),
            duplicates_refused=int(duplicates or 0),
        )
        return self._depth

    def close(self) -> None:
        """Ends the connection; the contents stay."""
        self._redis.close()

    def _open(self, again: bool) -> None:
        run = RunKeys(self._keys.run)
        words = [run.prefix, self._keys.incarnation, "reopen" if again else ""]
        present = self._script("OPEN", [run.pointer, run.known, self._keys.tickets], words).decode()
        if present != self._keys.incarnation:
            raise FailedPrecondition(
                f"another learner opened run {run.run} (incarnation {present}); one learner drives a run, "
                "and runs that share a Redis need different names"
            )
        self._rewind()

    def _rewind(self) -> None:
        self._cursors = {self._keys.rollouts: "0-0", self._keys.dead: "0-0"}

    def _issue(self, words: list[str | bytes]) -> int:
        keys = [RunKeys(self._keys.run).pointer, self._keys.tickets, self._keys.held]
        while (new := int(self._script("ISSUE", keys, words))) < 0:
            self._open(again=True)
            self._lost = True
        return new

    def _script(self, name: str, keys: list[str], words: Sequence[str | bytes]) -> Any:
        return self._call(lambda: self._scripts[name](keys=keys, args=words))

    def _call(self, command: Callable[[], T]) -> T:
        """The command's result, tried again while Redis is away and the budget lasts."""
        outage = Outage(self._url, self._retry_seconds)
        while True:
            try:
                result = command()
            except redis.RedisError as error:
                time.sleep(outage.pause_after(error))
            else:
                outage.over()
                return result

    def _try(self, command: Callable[[], T], timeout_seconds: float) -> T | None:
        """The command's result, or None while Redis is away: the caller's loop is the one that tries again."""
        try:
            result = command()
        except redis.RedisError as error:
            time.sleep(min(self._outage.pause_after(error), timeout_seconds))
            return None
        self._outage.over()
        return result


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
        block = _milliseconds(wait)
        try:
            reply = await self._call(
                lambda: self._redis.xreadgroup(GROUP, self._worker, streams, count=count, block=block)
            )
        except redis.ResponseError as error:
            if not _no_group(error):
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
            if _no_group(error):
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


def _no_group(error: redis.ResponseError) -> bool:
    """The streams are gone; UNBLOCKED is what Redis 7 tells a reader that waits while they go."""
    return "NOGROUP" in str(error) or "UNBLOCKED" in str(error)


def _milliseconds(seconds: float) -> int | None:
    """BLOCK's argument; None does not block, where 0 would block for ever."""
    return round(1000 * seconds) or None
