"""Keeps a policy server on the version that the learner announces, and on its last verified one while there is none.

Consumes announcements of a WeightSource; produces calls of ``apply`` with verified tensors, and reports; waits for
nothing but the source. A newer announcement overtakes a fetch that has not finished. What cannot be fetched or verified
is reported and tried again; the server goes on with the version it holds. What does not compute as it does at the
learner is refused, reported, and not tried again until something is announced.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from pathlib import Path

from torch import Tensor

from lodestar import metrics
from lodestar.errors import LodestarError, ModelError, ProbeFailed, Unavailable
from lodestar.files import remove_leftovers, replacing
from lodestar.records import TensorFile, WeightFiles, WeightManifest, WeightVersion
from lodestar.weights.cache import WeightCache
from lodestar.weights.checks import check_manifest, route
from lodestar.weights.full import FullReader
from lodestar.weights.port import WeightSource
from lodestar.weights.tensors import Loading

log = logging.getLogger(__name__)
_BACKOFF_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0)

Apply = Callable[[WeightManifest, Mapping[str, Tensor] | None], Awaitable[None]]
"""Serves the tensors under the manifest's version; None means that the held weights have this digest already."""
Held = Callable[[], Mapping[str, Tensor]]
"""The weights held now, as CPU tensors that nobody writes while they are held."""


class WeightFollower:
    """Follows one run's announcements."""

    def __init__(
        self, source: WeightSource, cache: Path, run: str, held: WeightVersion, apply: Apply, tensors: Held
    ) -> None:
        self._source = source
        self._cache = WeightCache(cache, held)
        self._run = run
        self._held = held
        self._apply = apply
        self._tensors = tensors
        self._applying = False
        for reason in ("announcement", "fetch", "verify", "probe"):
            metrics.WEIGHTS_REFUSED.labels(reason)  # at 0 from the start: an increase from nothing would not be seen
        self.refusal = ""
        """Why the last announced version is not served; empty when it is."""
        self.refuses: Callable[[bool], None] = lambda refuses: None
        """Called when the version announced turns out to be wrong, with True, and when one is served, with False."""

    async def restore(self) -> None:
        """Serves the last verified version of this run from the cache folder, when there is one."""
        try:
            found = await asyncio.to_thread(self._cache.load, self._run, self._tensors)
            if found is not None:
                await self._serve(*found)
        except LodestarError as error:
            log.warning("the cached weights in %s are not used: %s", self._cache.root, error)

    async def run(self) -> None:
        """Follows until cancelled."""
        failures = 0
        while True:
            pending: asyncio.Task[None] | None = None
            try:
                async for manifest in self._source.watch():
                    failures = 0
                    await self._overtake(pending)
                    pending = asyncio.create_task(self._take(manifest))
            except Unavailable as error:
                log.info("waiting for the learner's weights: %s", error)
            except LodestarError as error:
                self._refuse("announcement", error)
            finally:
                await self._overtake(pending)
            await asyncio.sleep(_BACKOFF_SECONDS[min(failures, len(_BACKOFF_SECONDS) - 1)])
            failures += 1

    async def close(self) -> None:
        """Closes the source."""
        await self._source.close()

    async def _overtake(self, pending: asyncio.Task[None] | None) -> None:
        """Abandons a fetch, but lets a swap that began end: half of one would leave no version at all."""
        if pending is None:
            return
        if not self._applying:
            pending.cancel()
        await asyncio.wait([pending])  # which, unlike awaiting the task, does not cancel it when we are cancelled
        if not pending.cancelled():
            pending.result()

    async def _take(self, manifest: WeightManifest) -> None:
        """Fetches, verifies and serves one version, trying again until it is overtaken or found wrong."""
        for attempt in range(1_000_000):
            try:
                await self._follow(manifest)
                self._accept()
                await self._report(manifest.version, "")
                return
            except ProbeFailed as error:
                self._refuse("probe", error)
                await self._report(manifest.version, str(error))
                return
            except (LodestarError, OSError) as error:  # OSError: a full disk has room again some time
                self._refuse("verify" if isinstance(error, ModelError) else "fetch", error)
                if isinstance(error, ModelError):
                    await self._report(manifest.version, str(error))
                await asyncio.sleep(_BACKOFF_SECONDS[min(attempt, len(_BACKOFF_SECONDS) - 1)])

    async def _follow(self, manifest: WeightManifest) -> None:
        if manifest.run != self._run:
            raise LodestarError(f"announced by run {manifest.run!r}, but this server belongs to {self._run!r}")
        check_manifest(manifest)
        if manifest.version == self._held:
            return
        if manifest.version.digest == self._held.digest:
            await self._serve(manifest, None)
            return
        began = time.perf_counter()
        try:
            way = route(manifest, self._held.digest)
            tensors = await self._fetch(manifest, way)
        except ModelError as error:  # the deltas, or the weights held, are damaged: once more, from nothing
            if (way := route(manifest, "")) == route(manifest, self._held.digest):
                raise
            log.warning("weights of step %d: %s; fetching all of them", manifest.version.step, error)
            tensors = await self._fetch(manifest, way)
        metrics.WEIGHT_FETCH_SECONDS.observe(time.perf_counter() - began)
        await self._serve(manifest, tensors)
        await self._keep(manifest, way, tensors)

    async def _fetch(self, manifest: WeightManifest, way: tuple[WeightFiles, ...]) -> dict[str, Tensor]:
        """Fetches the files of a route into the cache, reading them while they arrive."""
        await asyncio.to_thread(remove_leftovers, self._cache.root, below=True)
        loading = Loading(manifest, await asyncio.to_thread(self._tensors) if way[0].parent is not None else {})
        for part in way:
            readers = []
            for file in part.files:
                reader = FullReader(file.name, file.bytes) if part.parent is None else None
                await self._receive(part.version, file, reader)
                if reader is not None:
                    readers.append(reader)
            if part.parent is None:
                loading.take_full(readers)
            else:
                path = self._cache.folder(part.version) / part.files[0].name
                await asyncio.to_thread(loading.take_changes, path)
        return loading.verified()

    async def _receive(self, version: WeightVersion, file: TensorFile, reader: FullReader | None) -> None:
        def take(data: bytes) -> None:
            out.write(data)
            if reader is not None:
                reader.feed(data)

        with replacing(self._cache.folder(version) / file.name, durable=False) as partial, partial.open("xb") as out:
            async with aclosing(self._source.fetch(version, file)) as pieces:
                async for data in pieces:
                    await asyncio.to_thread(take, data)

    async def _keep(
        self, manifest: WeightManifest, way: tuple[WeightFiles, ...], tensors: Mapping[str, Tensor]
    ) -> None:
        """Makes the version the one to restore; a restart in the midst of it finds the one before."""
        self._applying = True
        try:
            await asyncio.to_thread(self._cache.keep, manifest, way, tensors)
        finally:
            self._applying = False

    async def _serve(self, manifest: WeightManifest, tensors: Mapping[str, Tensor] | None) -> None:
        self._applying = True
        try:
            await self._apply(manifest, tensors)
        finally:
            self._applying = False
        self._held = manifest.version
        self._accept()
        metrics.WEIGHT_STEP.set(manifest.version.step)
        log.info("serving weights of step %d (incarnation %s)", manifest.version.step, manifest.version.incarnation)

    async def _report(self, version: WeightVersion, refusal: str) -> None:
        try:
            await self._source.report(version, refusal)
        except LodestarError as error:  # the stream of announcements ends, too, and with the next one we report again
            log.warning("the learner was not told about step %d: %s", version.step, error)

    def _accept(self) -> None:
        self.refusal = ""
        self.refuses(False)

    def _refuse(self, reason: str, error: Exception) -> None:
        self.refusal = str(error)
        if reason in ("verify", "probe"):
            self.refuses(True)
        metrics.WEIGHTS_REFUSED.labels(reason).inc()
        log.warning("weights refused (%s): %s", reason, error)
