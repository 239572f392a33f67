"""Decides what each step computes: who is admitted, whose prompt goes on, who gets a token, who must yield."""

from __future__ import annotations

import time
from bisect import insort
from math import ceil, inf

from lodestar.engine.cache import KVCache
from lodestar.engine.line import Line
from lodestar.engine.sequence import Chunk, Plan, Request, Sequence
from lodestar.engine.slab_attention import DETERMINISTIC_CHUNK
from lodestar.fair import Shares

SMALLEST_CHUNK = 16
"""Prompt tokens computed at once at least, however little of a step is left."""


class Scheduler:
    """Continuous batching; nobody overtakes the head of the line for ever.

    Training and outside callers each have their share (lodestar.fair): of the sequences that run, of the cache, and of
    every step, in which some of the running sequences may get no token. What one side does not use, the other gets, and
    gives back: what runs beyond its share yields. Among callers the one served least is next, each one's own in order
    of arrival, priority added.

    Samples of one prompt are admitted one by one; the first computes the prompt and the others are forked from it.
    When blocks run out, the last in line among the running yields its blocks and is recomputed later. A deterministic
    scheduler reserves each sequence's whole length at admission instead, and never preempts.
    """

    def __init__(
        self,
        cache: KVCache,
        *,
        max_sequences: int,
        prefill_tokens: int,
        deterministic: bool,
        training_share: float = 0.5,
    ) -> None:
        self._cache = cache
        self._max_sequences = max_sequences
        self._prefill_tokens = max(prefill_tokens, DETERMINISTIC_CHUNK) if deterministic else prefill_tokens
        self._deterministic = deterministic
        self.shares = Shares(training_share)
        self._line = Line()
        self.running: list[Sequence] = []
        self._running = {True: 0, False: 0}
        self.draining = False
        """While set, only samples of requests that have tokens already are admitted."""
        self.preemptions = 0
        self.prefix_hit_tokens = 0

    @property
    def waiting(self) -> int:
        """Sequences not admitted yet, or preempted."""
        return sum(self._line.waiting.values())

    def waiting_of(self, training: bool) -> int:
        """Those of one side."""
        return self._line.waiting[training]

    def __bool__(self) -> bool:
        return bool(self.running or self.waiting)

    def add(self, request: Request) -> None:
        """Queue a request's samples."""
        self._line.join(request)

    def release(self, sequence: Sequence) -> None:
        """Free the blocks of a running sequence that is done with."""
        self._vacate(sequence)
        self._line.leave(sequence)

    def cancel(self, request: Request) -> None:
        """Forget a request's unfinished samples and free their blocks now."""
        self._line.forget(request)
        for sequence in request.sequences:
            if sequence.running:
                self.release(sequence)
            elif sequence.finish_reason is None:
                self._line.leave(sequence)

    def make_way(self, tokens: int) -> None:
        """Preempt the last in line until the cache has room for so many tokens beside the running sequences."""
        while self.running and not self._cache.has_room(tokens):
            self._preempt(self.running[-1])

    def share_prompt(self, leader: Sequence) -> None:
        """Give a prompt that was just computed to the samples that wait for it."""
        for sequence in leader.request.sequences:
            untouched = sequence.running and len(sequence.tokens) == sequence.prompt_tokens
            if untouched and sequence.computed < sequence.prefill_target:
                self._fork(leader, sequence)

    def plan(self) -> Plan:
        """The next step; empty when nothing can run."""
        self._admit()
        decode: list[Sequence] = []
        chunks: list[Chunk] = []
        budget = self._prefill_tokens
        for sequence in self._in_turn():
            side = sequence.request.flow.training
            if not (sequence.running and self.shares.may_take(side) and self._make_room(sequence)):
                continue
            if sequence.computed < sequence.prefill_target:
                if sequence.computed == 0 and self._leader(sequence) is not None:
                    continue
                end = self._chunk_end(sequence, min(budget, self._room_in_step(side)))
                if end == sequence.computed:
                    continue
                chunks.append(Chunk(sequence, sequence.computed, end))
                budget -= end - sequence.computed
                self._take(sequence, end - sequence.computed)
                if end < sequence.prefill_target:
                    continue
            decode.append(sequence)
            self._take(sequence, 1)
        return Plan(self._cache.order(decode), chunks)

    def _in_turn(self) -> list[Sequence]:
        """The running sequences in the order in which they take of this step; begins the sides' parts of it."""
        now = time.monotonic()
        wanted = {True: 0, False: 0}
        for sequence in self.running:
            prompt = sequence.prefill_target - sequence.computed
            wanted[sequence.request.flow.training] += 1 if prompt <= 0 else min(prompt, self._prefill_tokens)
        self.shares.begin(wanted, now)
        if self.shares.left(True) == self.shares.left(False) == inf or not wanted[False]:
            return list(self.running)
        training = [sequence for sequence in self.running if sequence.request.flow.training]
        callers = self._line.in_turn([s for s in self.running if not s.request.flow.training])
        return [*training, *callers] if wanted[True] <= wanted[False] else [*callers, *training]

    def _take(self, sequence: Sequence, tokens: int) -> None:
        flow = sequence.request.flow
        self.shares.take(flow.training, tokens)
        if not flow.training:
            self._line.served.charge(flow.caller, tokens)

    def _room_in_step(self, side: bool) -> int:
        """Prompt tokens that a side may take of this step."""
        left = self.shares.left(side)
        least = DETERMINISTIC_CHUNK if self._deterministic else SMALLEST_CHUNK
        return self._prefill_tokens if left == inf else max(least, ceil(left))

    def _admit(self) -> None:
        passed = []
        while (side := self._next_side()) is not None:
            sequence = self._line.pop(side)
            if self.draining and not sequence.request.started:
                passed.append(sequence)
                continue
            reserve = sequence.longest if self._deterministic else len(sequence.tokens)
            # A block of growth for each running sequence, or the newcomer would be the first to yield.
            spare = 0 if self._deterministic else len(self.running)
            if not self._has_place(side, reserve, spare):
                passed.append(sequence)
                break
            self._start(sequence, reserve)
        for sequence in passed:
            self._line.push(sequence)

    def _next_side(self) -> bool | None:
        """Whose sequence is admitted next, by whether it is training's: of the side that runs the fewest of its share;
        beyond that share only while the other side is not here. None when nobody may be."""
        now = time.monotonic()
        may = []
        for side in (True, False):
            entitled = self.shares.entitled(side, self._max_sequences)
            other_is_here = self._running[not side] or self._line.waiting[not side] or self.shares.here(not side, now)
            if (head := self._line.head(side)) and (self._running[side] < entitled or not other_is_here):
                may.append((self._running[side] / entitled, head.order, side))
        return min(may)[2] if may else None

    def _has_place(self, side: bool, reserve: int, spare: int) -> bool:
        """Whether a sequence may start; what the other side runs beyond its share yields to it."""
        while len(self.running) >= self._max_sequences or not self._cache.has_room(reserve, spare):
            if self._deterministic or self._load(side) >= self.shares.share(side) or not self._yields(not side):
                return False
        return True

    def _yields(self, side: bool) -> bool:
        """Preempts a side's last in line, if it runs more than its share."""
        if self._load(side) <= self.shares.share(side):
            return False
        self._preempt(next(s for s in reversed(self.running) if s.request.flow.training is side))
        return True

    def _load(self, side: bool) -> float:
        """The part of sequences or of the cache that a side holds, whichever is more."""
        own = [s for s in self.running if s.request.flow.training is side]
        blocks = sum(self._cache.blocks_for(len(s.tokens)) for s in own)
        return max(len(own) / self._max_sequences, blocks / self._cache.blocks.total)

    def _start(self, sequence: Sequence, reserve: int) -> None:
        leader = self._leader(sequence)
        sequence.computed = self._cache.open(sequence, reserve, () if leader else self._usable_prefixes(sequence))
        self.prefix_hit_tokens += sequence.computed
        sequence.running = True
        self._running[sequence.request.flow.training] += 1
        insort(self.running, sequence, key=lambda running: running.order)
        if leader is not None and leader.computed >= sequence.prefill_target:
            self._fork(leader, sequence)

    def _usable_prefixes(self, sequence: Sequence) -> tuple[bytes, ...]:
        """Hashes of the blocks before the last prompt token, which must be computed for its logits."""
        usable = (sequence.prompt_tokens - 1) // self._cache.block_tokens
        return tuple(sequence.request.hashes[:usable])

    def _leader(self, sequence: Sequence) -> Sequence | None:
        """The running sample whose prompt this one shall take; None when that is itself, or it has tokens already."""
        request = sequence.request
        if len(sequence.tokens) > sequence.prompt_tokens:
            return None
        if request.leader is None or not request.leader.running:
            ready = (
                other for other in request.sequences if other.running and other.computed >= sequence.prefill_target
            )
            request.leader = next(ready, sequence)
        return None if request.leader is sequence else request.leader

    def _fork(self, leader: Sequence, sequence: Sequence) -> None:
        target = sequence.prefill_target
        self._cache.fork(leader, sequence, target)
        sequence.computed = target
        sequence.cached_version = leader.cached_version
        self.prefix_hit_tokens += target

    def _chunk_end(self, sequence: Sequence, budget: int) -> int:
        """How far this step computes the sequence's known tokens; ``computed`` when not at all."""
        start, target = sequence.computed, sequence.prefill_target
        end = min(target, start + budget)
        if self._deterministic and end < target:
            end -= end % DETERMINISTIC_CHUNK
        return max(end, start)

    def _make_room(self, sequence: Sequence) -> bool:
        """Blocks for the sequence's tokens, taken from the last in line if need be; False when that was itself."""
        while not self._cache.grow(sequence, len(sequence.tokens)):
            side = sequence.request.flow.training
            if self._load(side) < self.shares.share(side) and self._yields(not side):
                continue
            victim = self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _vacate(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._running[sequence.request.flow.training] -= 1
        sequence.running = False
        self._cache.close(sequence)

    def _preempt(self, victim: Sequence) -> None:
        self._vacate(victim)
        victim.computed = 0
        victim.cached_version = None
        self.preemptions += 1
        self._line.push(victim)
