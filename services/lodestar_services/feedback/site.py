"""What pages and calls share in one process: the database, the clock, the page's address, and who waits for news."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from lodestar_services.feedback.database import Database


class News:
    """Wakes those who watch judgements. Another process on the same database is noticed by looking now and then."""

    LOOK_SECONDS = 0.5

    def __init__(self) -> None:
        self._waiting: set[asyncio.Event] = set()

    def announce(self) -> None:
        """Something has changed; from the event loop's thread."""
        for event in self._waiting:
            event.set()

    async def wait(self) -> None:
        """Until something may have changed."""
        event = asyncio.Event()
        self._waiting.add(event)
        try:
            await asyncio.wait_for(event.wait(), self.LOOK_SECONDS)
        except TimeoutError:
            pass
        finally:
            self._waiting.discard(event)


@dataclass
class Site:
    """``Site(Database(folder), "http://127.0.0.1:8080")``."""

    database: Database
    link: str
    """Where people find the page: scheme, host and port, as they see them."""
    clock: Callable[[], float] = time.time
    rng: random.Random = field(default_factory=random.SystemRandom)
    news: News = field(default_factory=News)

    @property
    def secure(self) -> bool:
        """Whether people come over TLS, here or at a proxy: cookies are for TLS alone then."""
        return self.link.startswith("https://")

    def invitation(self, token: str) -> str:
        """The link that a person is sent."""
        return f"{self.link}/join/{token}"

    def campaign(self, name: str) -> str:
        """The link of a campaign's page."""
        return f"{self.link}/c/{name}"
