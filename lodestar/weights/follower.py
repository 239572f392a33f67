"""Keeps a policy server on the version that the learner announces, and on its last verified one while there is none.

Consumes announcements of a WeightSource; produces calls of ``apply`` with verified tensors; waits for nothing but
the source. A newer announcement overtakes a fetch that has not finished. What cannot be fetched or verified is
reported and tried again; the server goes on with the version it holds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from torch import Tensor

from lodestar import metrics
from lodestar.errors import LodestarError, ModelError, Unavailable
from lodestar.files import remove_leftovers, replacing
from lodestar.records import WeightManifest, WeightVersion
from lodestar.weights.checks import check_manifest
from lodestar.weights.directory import read_manifest, write_manifest
from lodestar.weights.port import WeightSource
from lodestar.weights.tensors import load_verified

log = logging.getLogger(__name__)
_BACKOFF_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0)

Apply = Callable[[WeightManifest, Mapping[str, Tensor] | None], Awaitable[None]]
"""Serves the tensors under the manifest's version; None means that the held weights have this digest already."""


class WeightFollower:
    """Follows one run's announcements."""

    def __init__(self, source: WeightSource, cache: Path, run: str, held: WeightVersion, apply: Apply) -> None:
        self._source = source
        self._cache = cache
        self._run = run
        self._held = held
        self._apply = apply
        self._applying = False
        for reason in ("announcement", "fetch", "verify"):
            metrics.WEIGHTS_REFUSED.labels(reason)  # at 0 from the start: an increase from nothing would not be seen
        self.refusal = ""
        """Why the last announced version is not served; empty when it is."""

    async def restore(self) -> None:
        """Serves the last verified version of this run from the cache folder, when there is one."""
        try:
            manifest = read_manifest(self._cache / "manifest.json")
            if manifest.run != self._run:
                return
            await self._serve(manifest, await asyncio.to_thread(load_verified, self._cache, manifest))
        except FileNotFoundError:
            return
        except LodestarError as error:
            log.warning("the cached weights in %s are not used: %s", self._cache, error)

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
        """Fetches, verifies and serves one version, trying again until it is overtaken."""
        for attempt in range(1_000_000):
            try:
                if manifest.run != self._run:
                    raise LodestarError(f"announced by run {manifest.run!r}, but this server belongs to {self._run!r}")
                check_manifest(manifest)
                if manifest.version.digest == self._held.digest:
                    await self._serve(manifest, None)
                else:
                    await self._serve(manifest, await self._fetch(manifest))
                self.refusal = ""
                return
            except (LodestarError, OSError) as error:  # OSError: a full disk has room again some time
                self._refuse("verify" if isinstance(error, ModelError) else "fetch", error)
                await asyncio.sleep(_BACKOFF_SECONDS[min(attempt, len(_BACKOFF_SECONDS) - 1)])

    async def _fetch(self, manifest: WeightManifest) -> dict[str, Tensor]:
        began = time.perf_counter()
        await asyncio.to_thread(remove_leftovers, self._cache.parent, self._cache.name)
        with replacing(self._cache, durable=False) as partial:  # verified when it is read
            partial.mkdir()
            await self._source.fetch(manifest, partial)
            tensors = await asyncio.to_thread(load_verified, partial, manifest)
            write_manifest(partial / "manifest.json", manifest)
        metrics.WEIGHT_FETCH_SECONDS.observe(time.perf_counter() - began)
        return tensors

    async def _serve(self, manifest: WeightManifest, tensors: Mapping[str, Tensor] | None) -> None:
        self._applying = True
        try:
            await self._apply(manifest, tensors)
        finally:
            self._applying = False
        self._held = manifest.version
        metrics.WEIGHT_STEP.set(manifest.version.step)
        log.info("serving weights of step %d (incarnation %s)", manifest.version.step, manifest.version.incarnation)

    def _refuse(self, reason: str, error: Exception) -> None:
        self.refusal = str(error)
        metrics.WEIGHTS_REFUSED.labels(reason).inc()
        log.warning("weights refused (%s): %s", reason, error)
