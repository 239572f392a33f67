"""One SDK client's session: its models and samplers, and when it was heard."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from lodestar_services.gateway.errors import ApiError


@dataclass(eq=False)
class Session:
    """One SDK client's."""

    heard: float = field(default_factory=time.monotonic)
    models: dict[str, asyncio.Lock] = field(default_factory=dict)
    """By model_id: who holds the lock is doing a request of it."""
    spoiled: set[str] = field(default_factory=set)
    """Models of whose batch a part failed since the last step."""
    samplers: dict[str, str] = field(default_factory=dict)
    """By sampling_session_id: path of the weights; "" is the start model."""


class Sessions:
    """``sessions.of("session-5c")``; every look at one is a sign of life."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}

    def open(self, name: str) -> None:
        """A new one."""
        self._sessions[name] = Session()

    def of(self, name: str) -> Session:
        """
        Raises:
            ApiError: it is over, or never was.
        """
        session = self._sessions.get(name)
        if session is None:
            raise ApiError(404, f"session_id: {name} is not known here, or over", param="session_id")
        session.heard = time.monotonic()
        return session

    def __contains__(self, name: str) -> bool:
        return name in self._sessions

    def end(self, name: str) -> Session | None:
        """What it had, if it was there."""
        return self._sessions.pop(name, None)

    def silent(self, seconds: float) -> list[str]:
        """Those that were not heard for so long."""
        since = time.monotonic() - seconds
        return [name for name, session in self._sessions.items() if session.heard < since]

    def weights(self, sampler: str) -> str:
        """Path of the weights that a sampler samples from; "" is the start model.

        Raises:
            ApiError: there is no such sampler.
        """
        weights = self.of(session_of(sampler)).samplers.get(sampler)
        if weights is None:
            raise ApiError(404, f"sampling_session_id: {sampler} is not known here", param="sampling_session_id")
        return weights


def session_of(name: str) -> str:
    """Of a model or a sampler: what stands before its kind."""
    return name.partition(":")[0]
