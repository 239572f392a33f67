"""The learner's side of the rollout queue on Redis; the keys are in lodestar.queue.schema."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lodestar.errors import FailedPrecondition
from lodestar.queue import wire
from lodestar.queue.address import RedisAddress
from lodestar.queue.connection import BLOCK_SECONDS, close, give_up_idle, milliseconds, run_script
from lodestar.queue.connection import connect as connect_to
from lodestar.queue.outage import CLOSING_SECONDS, OUTAGE_SECONDS, Patience, Waiting
from lodestar.queue.port import DeadLetter, Delivery, Depth
from lodestar.queue.redis.heart import BEAT_SECONDS, Heart
from lodestar.queue.schema import DEAD_FIELD, ID_FIELD, ROLLOUT_FIELD, Keys, RunKeys
from lodestar.queue.scripts import SCRIPTS
from lodestar.records import Rollout, Ticket

_EMPTY = Depth(0, 0, 0, 0, 0.0, 0)
TICKETS_PER_CALL = 500
DELIVERIES_PER_CALL = 256
TAKEOVER_SECONDS = 30.0
"""How long another run of our name must show no sign of life before its keys are ours; a learner that died is back by
then."""


class RedisLearnerQueue:
    """LearnerQueue on Redis: ``queue.open("demo", "9f31c2aa")``, issue, receive, settle.

    Reads the streams of finished work with a cursor of its own. No consumer group is needed there: one learner
    reads an incarnation, and another start of the learner begins another incarnation.
    """

    def __init__(
        self,
        url: str,
        outage_seconds: float = OUTAGE_SECONDS,
        *,
        password: str = "",
        tls: Path | None = None,
        waiting: Waiting = lambda _: True,
        takeover_seconds: float = TAKEOVER_SECONDS,
    ) -> None:
        """Connects on first use.

        Args:
            url: as lodestar.queue.address says.
            outage_seconds: how long Redis may be away before QueueUnavailable.
            password: of Redis, when the URL has none.
            tls: the folder of our certificate, for a URL with TLS.
            waiting: hears why Redis is waited for, and ends the waiting by returning False.
            takeover_seconds: how long another run of our name must show no sign of life before it is replaced.

        Raises:
            ConfigError: the URL cannot be one of Redis, or the TLS files cannot be used.
        """
        self._address = RedisAddress.parse(url).with_password(password)
        self._tls = tls
        self._patience = Patience(self._address, outage_seconds, waiting, self._reconnect)
        self._waiting = waiting
        self._takeover_seconds = takeover_seconds
        self._client: Any = None if self._address.kind == "cluster" else connect_to(self._address, tls)
        self._keys = Keys("", "")
        self._owner = self._where = ""
        self._server = b""
        self._heart: Heart | None = None
        self._lost = False
        self._cursors: dict[str, str] = {}
        self._depth = _EMPTY

    def open(self, run: str, incarnation: str, owner: str = "", where: str = "") -> None:
        """Makes the incarnation's streams, points workers at it and deletes those of dead incarnations.

        Raises:
            FailedPrecondition: a run of that name and another owner is alive on this Redis.
        """
        self._keys, self._owner, self._where = Keys(run, incarnation), owner, where
        foreign = self._open("")
        if foreign is not None:
            self._outlive(foreign)
        self._server, _ = self._script("LOOK", [RunKeys(run).pointer, self._keys.tickets], [incarnation])
        if owner:
            self._heart = Heart(self._address, self._tls, RunKeys(run).owner, owner)

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
        reply = self._patience.attempt(
            lambda: self._redis.xread(self._cursors, count=DELIVERIES_PER_CALL, block=block), timeout_seconds
        )
        deliveries = []
        for stream_name, entries in reply or []:
            stream = stream_name.decode()
            for entry, fields in entries:
                self._cursors[stream] = entry.decode()
                deliveries.append(_delivery(self._keys, stream, entry.decode(), fields))
        return deliveries

    def settle(self, receipts: Iterable[str]) -> None:
        """Forgets deliveries and their tickets. Unknown receipts are ignored."""
        by_stream: dict[str, list[str]] = defaultdict(list)
        for receipt in receipts:
            stream, entry, ticket_id = receipt.split(" ", 2)
            by_stream[stream] += [entry, ticket_id]
        for stream, words in by_stream.items():
            self._script("SETTLE", [stream, self._keys.held, self._keys.attempts], words)

    def withdraw(self, ticket_ids: Iterable[str]) -> None:
        """Takes tickets back that no longer matter; their rollouts will be refused."""
        words = list(ticket_ids)
        if words:
            keys = self._keys
            self._script("WITHDRAW", [keys.tickets, keys.held, keys.attempts, keys.seen], words, CLOSING_SECONDS)

    def lost_contents(self) -> bool:
        """True once after the server restarted or lost the incarnation's streams: re-issue what is unsettled."""
        keys = [RunKeys(self._keys.run).pointer, self._keys.tickets]
        seen = self._patience.attempt(lambda: self._run("LOOK", keys, [self._keys.incarnation]), 0.0)
        if seen is None:
            return False
        server, whole = seen
        if not whole:
            self._reopen()
        lost = self._lost or not whole or server != self._server
        if lost:
            self._server, self._lost = server, False
            self._rewind()
        return lost

    def depth(self) -> Depth:
        """How full the queue is now; as last seen while Redis is away."""
        keys = self._keys
        seen = self._patience.attempt(
            lambda: self._run("DEPTH", [keys.tickets, keys.rollouts, keys.dead, keys.duplicates], []), 0.0
        )
        if seen is None:
            return self._depth
        if not seen:
            return _EMPTY
        tickets, taken, finished, dead, age, duplicates = seen
        self._depth = Depth(tickets - taken, taken, finished, dead, age / 1000, duplicates)
        return self._depth

    def erase(self) -> None:
        """Deletes everything that the run has in the queue, its name included: the run is over."""
        self._stop_beating()
        run = RunKeys(self._keys.run)
        words = [run.prefix, self._keys.incarnation]
        self._script("ERASE", [run.pointer, run.known, run.owner], words, CLOSING_SECONDS)

    def close(self) -> None:
        """Ends the connection; the contents stay."""
        self._stop_beating()
        if self._client is not None:
            close(self._client)

    @property
    def _redis(self) -> Any:
        if self._client is None:
            self._client = connect_to(self._address, self._tls)
        return self._client

    def _reconnect(self) -> None:
        give_up_idle(self._client)

    def _stop_beating(self) -> None:
        if self._heart is not None:
            self._heart.stop()
            self._heart = None

    def _open(self, mode: str, beat: bytes = b"") -> tuple[str, str, bytes] | None:
        """None when the run is ours now; else its owner's id, where that is, and how often it beat."""
        run = RunKeys(self._keys.run)
        words = [run.prefix, self._keys.incarnation, mode, self._owner, self._where, beat]
        keys = [run.pointer, run.known, self._keys.tickets, run.owner]
        present, owner, where, beats = self._script("OPEN", keys, words)
        if owner.decode() != self._owner:
            return owner.decode(), where.decode(errors="replace"), beats
        if present.decode(errors="replace") != self._keys.incarnation:
            raise FailedPrecondition(
                f"another learner opened run {run.run} (incarnation {present.decode(errors='replace')}); one learner "
                "drives a run, and runs that share a Redis need different names"
            )
        self._rewind()
        return None

    def _outlive(self, foreign: tuple[str, str, bytes]) -> None:
        """Waits whether another run of our name is alive, and takes its place when it is not.

        Raises:
            FailedPrecondition: it is.
        """
        run, began, beat = self._keys.run, time.monotonic(), foreign[2]
        while foreign is not None:
            if foreign[2] != beat:
                raise FailedPrecondition(
                    f"another run named {run} is alive on Redis at {self._address}"
                    f"{f' ({foreign[1]})' if foreign[1] else ''}; give one of them another name, or another database"
                )
            left = self._takeover_seconds - (time.monotonic() - began)
            if not self._waiting(
                f"Redis holds another run named {run} ({foreign[1]}); {left:.0f} s to see if it lives"
            ):
                raise FailedPrecondition(f"told to stop while looking whether another run named {run} is alive")
            if left > 0:
                time.sleep(min(BEAT_SECONDS / 4, left))
            again = self._open("", beat if left <= 0 else b"")
            if again is None:
                break
            foreign = again
        self._waiting("")

    def _reopen(self) -> None:
        foreign = self._open("reopen")
        if foreign is not None:
            raise FailedPrecondition(f"another run named {self._keys.run} took our place on Redis ({foreign[1]})")

    def _rewind(self) -> None:
        self._cursors = {self._keys.rollouts: "0-0", self._keys.dead: "0-0"}

    def _issue(self, words: list[str | bytes]) -> int:
        keys = [RunKeys(self._keys.run).pointer, self._keys.tickets, self._keys.held]
        while (new := int(self._script("ISSUE", keys, words))) < 0:
            self._reopen()
            self._lost = True
        return new

    def _script(self, name: str, keys: list[str], words: Sequence[Any], seconds: float | None = None) -> Any:
        return self._patience.call(lambda: self._run(name, keys, words), seconds)

    def _run(self, name: str, keys: list[str], words: Sequence[Any]) -> Any:
        return run_script(self._redis, SCRIPTS[name], keys, words)


def _delivery(keys: Keys, stream: str, entry: str, fields: Mapping[bytes, bytes]) -> Delivery:
    """An entry of a stream of finished work, whatever stands in it."""
    ticket_id = fields.get(ID_FIELD, b"").decode(errors="replace")
    item: Rollout | DeadLetter
    try:
        if ROLLOUT_FIELD in fields:
            item = wire.rollout_from(fields[ROLLOUT_FIELD])
        elif DEAD_FIELD in fields:
            item = wire.dead_letter_from(fields[DEAD_FIELD])
        else:
            raise ValueError(f"has neither of the fields rollout and dead, but {wire.names(fields)}")
        if item.ticket is not None:
            wire.check_is(item.ticket, keys.run, keys.incarnation, ticket_id)
    except ValueError as error:
        item = DeadLetter(None, f"entry {entry} of {stream} {error}", 0, "")
    return Delivery(f"{stream} {entry} {ticket_id}", ticket_id, item)
