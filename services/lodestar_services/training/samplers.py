"""A few generation engines that sample from many sets of weights of one architecture.

Consumes   leases for named weights.
Produces   engines that hold them: one that does already, else an idle one into which they are copied.
Waits for  an engine that nobody uses, when all hold other weights.
Unblocked  by the end of a lease.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count

from torch import Tensor

from lodestar.engine.engine import Engine
from lodestar.engine.front import AsyncEngine
from lodestar.records import WeightVersion

Load = Callable[[], Awaitable[Mapping[str, Tensor]]]


@dataclass(eq=False)
class _Slot:
    engine: AsyncEngine
    key: str = ""
    users: int = 0
    used: int = 0
    """When it was taken last, in leases."""
    loaded: asyncio.Task[None] | None = None
    started: bool = False


class Samplers:
    """``async with samplers.lease("mine#3", load) as engine: …``."""

    def __init__(self, make_engine: Callable[[], Engine], most: int, *, threads: int) -> None:
        self._make_engine = make_engine
        self._most = most
        self._threads = threads
        self._slots: list[_Slot] = []
        self._changed = asyncio.Condition()
        self._clock = count(1)

    @asynccontextmanager
    async def lease(self, key: str, load: Load) -> AsyncIterator[AsyncEngine]:
        """An engine that holds the weights named ``key``; ``load`` gives them where no engine does yet.

        Raises:
            LodestarError: what ``load`` raises, or weights that are not this architecture's.
        """
        slot = await self._take(key, load)
        try:
            assert slot.loaded is not None
            await asyncio.shield(slot.loaded)
            yield slot.engine
        finally:
            slot.users -= 1
            async with self._changed:
                self._changed.notify_all()

    def hold(self, key: str) -> bool:
        """Whether an engine holds these weights now."""
        return any(slot.key == key for slot in self._slots)

    def stop(self) -> None:
        """For after the event loop's end."""
        for slot in self._slots:
            slot.engine.stop()

    async def _take(self, key: str, load: Load) -> _Slot:
        async with self._changed:
            while True:
                slot = next((slot for slot in self._slots if slot.key == key), None)
                if slot is None and (slot := self._free()) is not None:
                    slot.key = key
                    slot.loaded = asyncio.create_task(self._load(slot, load))
                if slot is not None:
                    slot.users += 1
                    slot.used = next(self._clock)
                    return slot
                await self._changed.wait()

    def _free(self) -> _Slot | None:
        idle = [slot for slot in self._slots if not slot.users and (slot.loaded is None or slot.loaded.done())]
        empty = [slot for slot in idle if not slot.key]
        if not empty and len(self._slots) < self._most:
            name = f"sampler-{len(self._slots)}"
            self._slots.append(_Slot(AsyncEngine(self._make_engine, name=name, threads=self._threads)))
            return self._slots[-1]
        return min(empty or idle, key=lambda slot: slot.used, default=None)

    async def _load(self, slot: _Slot, load: Load) -> None:
        try:
            if not slot.started:
                await slot.engine.start()
                slot.started = True
            await slot.engine.swap(await load(), WeightVersion(slot.key, 0, ""))
        except BaseException:
            slot.key = ""
            raise
