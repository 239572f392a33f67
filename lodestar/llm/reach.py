"""The model that options name, and many questions at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

from lodestar.errors import LodestarError
from lodestar.llm.endpoint import Endpoint
from lodestar.llm.options import ReachOptions
from lodestar.llm.policy import PolicyModel
from lodestar.llm.port import LanguageModel

R = TypeVar("R")
T = TypeVar("T")


def language_model(options: ReachOptions, key: str, servers: Sequence[str], tls: Path | None) -> LanguageModel:
    """The model that options name; without an address or a url that of the run's own servers.

    Raises:
        ConfigError: its token or SDK cannot be used.
    """
    if options.url is not None:
        return Endpoint(options, key)
    if options.address is not None:
        return PolicyModel(
            [options.address], timeout=options.timeout_seconds, tls=options.tls, token=options.token(key)
        )
    return PolicyModel(servers, timeout=options.timeout_seconds, tls=tls)


async def each(work: Callable[[R], Awaitable[T]], rows: Sequence[R]) -> list[T]:
    """All at once, in order; the first of our own errors ends the rest and is raised as itself."""
    first: LodestarError | None = None
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_one(work, row)) for row in rows]
        return [task.result() for task in tasks]
    except* LodestarError as errors:
        first = next(error for error in errors.exceptions if isinstance(error, LodestarError))
    assert first is not None
    raise first


async def _one(work: Callable[[R], Awaitable[T]], row: R) -> T:
    return await work(row)
