"""Who waits to be admitted, and who is here at all."""

from __future__ import annotations

import heapq
from collections import Counter
from itertools import count

from lodestar.engine.sequence import Request, Sequence
from lodestar.fair import Flow, Served


class Line:
    """A line per flow, each in order of arrival, priority added; among callers the one served least comes first."""

    def __init__(self) -> None:
        self.served = Served()
        self._heaps: dict[Flow, list[tuple[tuple[float, int, int], int, Sequence]]] = {}
        self._pushes = count()
        self._here: Counter[str] = Counter()
        """Unfinished sequences by caller, waiting or running."""
        self.waiting = {True: 0, False: 0}
        """Sequences, by whether they are training's."""

    def join(self, request: Request) -> None:
        """A request comes in: its samples wait."""
        caller = request.flow.caller
        if not request.flow.training:
            if not self._here[caller]:
                self.served.join(caller, set(self._here) - {caller})
            self._here[caller] += len(request.sequences)
        for sequence in request.sequences:
            self.push(sequence)

    def leave(self, sequence: Sequence) -> None:
        """A sequence is done with, finished or not."""
        flow = sequence.request.flow
        if not flow.training:
            self._here[flow.caller] -= 1
            if not self._here[flow.caller]:
                del self._here[flow.caller]

    def push(self, sequence: Sequence) -> None:
        """A sequence waits, again perhaps."""
        flow = sequence.request.flow
        heapq.heappush(self._heaps.setdefault(flow, []), (sequence.order, next(self._pushes), sequence))
        self.waiting[flow.training] += 1

    def head(self, training: bool) -> Sequence | None:
        """The side's next sequence, which stays in line."""
        heap = self._next(training)
        return heap[0][2] if heap else None

    def pop(self, training: bool) -> Sequence:
        """Takes the side's next sequence out."""
        heap = self._next(training)
        sequence = heapq.heappop(heap)[2]
        if not heap:
            del self._heaps[sequence.request.flow]
        self.waiting[training] -= 1
        return sequence

    def forget(self, request: Request) -> None:
        """A request's samples wait no more."""
        heap = self._heaps.pop(request.flow, [])
        kept = [entry for entry in heap if entry[2].request is not request]
        self.waiting[request.flow.training] -= len(heap) - len(kept)
        if kept:
            heapq.heapify(kept)
            self._heaps[request.flow] = kept

    def in_turn(self, sequences: list[Sequence]) -> list[Sequence]:
        """Callers' running sequences, those first whose caller was served least; of each caller in their order."""
        before: Counter[str] = Counter()
        keys = {}
        for sequence in sequences:
            caller = sequence.request.flow.caller
            keys[sequence.id] = self.served.of(caller) + before[caller]
            before[caller] += 1
        return sorted(sequences, key=lambda sequence: keys[sequence.id])

    def _next(self, training: bool) -> list[tuple[tuple[float, int, int], int, Sequence]]:
        flows = (flow for flow in self._heaps if flow.training is training)
        return min(
            (self._heaps[flow] for flow in flows),
            key=lambda heap: (self.served.of(heap[0][2].request.flow.caller), heap[0][0]),
            default=[],
        )
