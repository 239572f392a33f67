"""The learner's side of the rollout queue on Redis. Keys, fields and scripts are in lodestar.queue.schema."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import redis

from lodestar.errors import FailedPrecondition
from lodestar.queue import schema, wire
from lodestar.queue.connection import BLOCK_SECONDS, RETRY_SECONDS, Outage, connect, milliseconds, no_group
from lodestar.queue.port import Delivery, Depth
from lodestar.queue.schema import DEAD_FIELD, GROUP, ROLLOUT_FIELD, Keys, RunKeys
from lodestar.records import Ticket

T = TypeVar("T")

_EMPTY = Depth(0, 0, 0, 0, 0.0, 0)
TICKETS_PER_CALL = 500
DELIVERIES_PER_CALL = 256


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
        block = milliseconds(min(timeout_seconds, BLOCK_SECONDS))
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
        if isinstance(group, redis.ResponseError) and no_group(group):
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
