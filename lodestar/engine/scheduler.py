"""Decides what each step computes: who is admitted, whose prompt goes on, who gets a token, who must yield."""

from __future__ import annotations

import heapq
from bisect import insort
from itertools import count

from lodestar.engine.cache import KVCache
from lodestar.engine.sequence import Chunk, Plan, Request, Sequence
from lodestar.engine.slab_attention import DETERMINISTIC_CHUNK


class Scheduler:
    """Continuous batching in order of arrival, priority added; nobody overtakes the head of the line for ever.

    Samples of one prompt are admitted one by one; the first computes the prompt and the others are forked from it.
    When blocks run out, the last in line among the running yields its blocks and is recomputed later. A deterministic
    scheduler reserves each sequence's whole length at admission instead, and never preempts.
    """

    def __init__(self, cache: KVCache, *, max_sequences: int, prefill_tokens: int, deterministic: bool) -> None:
        self._cache = cache
        self._max_sequences = max_sequences
        self._prefill_tokens = max(prefill_tokens, DETERMINISTIC_CHUNK) if deterministic else prefill_tokens
        self._deterministic = deterministic
        self._waiting: list[tuple[tuple[float, int, int], int, Sequence]] = []
        self._pushes = count()
        self.running: list[Sequence] = []
        self.draining = False
        """While set, only samples of requests that have tokens already are admitted."""
        self.preemptions = 0
        self.prefix_hit_tokens = 0

    @property
    def waiting(self) -> int:
        """Sequences not admitted yet, or preempted."""
        return len(self._waiting)

    def __bool__(self) -> bool:
        return bool(self.running or self._waiting)

    def add(self, request: Request) -> None:
        """Queue a request's samples."""
        for sequence in request.sequences:
            self._push(sequence)

    def release(self, sequence: Sequence) -> None:
        """Free a running sequence's blocks now."""
        self.running.remove(sequence)
        sequence.running = False
        self._cache.close(sequence)

    def cancel(self, request: Request) -> None:
        """Forget a request's unfinished samples and free their blocks now."""
        for sequence in request.sequences:
            if sequence.running:
                self.release(sequence)
        self._waiting = [entry for entry in self._waiting if entry[2].request is not request]
        heapq.heapify(self._waiting)

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
        for sequence in list(self.running):
            if not sequence.running or not self._make_room(sequence):
                continue
            if sequence.computed < sequence.prefill_target:
                if sequence.computed == 0 and self._leader(sequence) is not None:
                    continue
                end = self._chunk_end(sequence, budget)
                if end == sequence.computed:
                    continue
                chunks.append(Chunk(sequence, sequence.computed, end))
                budget -= end - sequence.computed
                if end < sequence.prefill_target:
                    continue
            decode.append(sequence)
        return Plan(self._cache.order(decode), chunks)

    def _admit(self) -> None:
        passed = []
        while self._waiting and len(self.running) < self._max_sequences:
            entry = heapq.heappop(self._waiting)
            sequence = entry[2]
            if self.draining and not sequence.request.started:
                passed.append(entry)
                continue
            reserve = sequence.longest if self._deterministic else len(sequence.tokens)
            # A block of growth for each running sequence, or the newcomer would be the first to yield.
            spare = 0 if self._deterministic else len(self.running)
            if not self._cache.has_room(reserve, spare):
                passed.append(entry)
                break
            self._start(sequence, reserve)
        for entry in passed:
            heapq.heappush(self._waiting, entry)

    def _start(self, sequence: Sequence, reserve: int) -> None:
        leader = self._leader(sequence)
        sequence.computed = self._cache.open(sequence, reserve, () if leader else self._usable_prefixes(sequence))
        self.prefix_hit_tokens += sequence.computed
        sequence.running = True
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
            victim = self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, victim: Sequence) -> None:
        self.release(victim)
        victim.computed = 0
        victim.cached_version = None
        self.preemptions += 1
        self._push(victim)

    def _push(self, sequence: Sequence) -> None:
        heapq.heappush(self._waiting, (sequence.order, next(self._pushes), sequence))
