"""The five services and a Redis, as the launcher starts them, around a run folder whose models are already there.

    with Serving(config, folder) as serving:
        serving.start()
        serving.finish()

For benchmarks, tests and notebooks; a run from data to report is lodestar.local.launcher.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Self

from lodestar.config import RunConfig
from lodestar.layout import RunFolder
from lodestar.local.board import Board
from lodestar.local.fleet import Fleet, Role, Service
from lodestar.local.processes import Processes
from lodestar.local.redis_server import RedisServer

POLL_SECONDS = 0.05


class Serving:
    """Starts, watches and restarts the services of one run; a context manager that leaves none behind."""

    def __init__(self, config: RunConfig, folder: RunFolder) -> None:
        self._config = config
        self._folder = folder
        self._open = ExitStack()
        self.fleet: Fleet
        self.redis: RedisServer
        self.restarts: list[str] = []
        """Names of the services that were started again, in order."""

    def __enter__(self) -> Self:
        processes = self._open.enter_context(Processes(self._folder.logs))
        self.redis = self._open.enter_context(RedisServer(self._folder.root / "redis"))
        board = Board(self._config.name, [])
        self.fleet = Fleet(processes, self._config, self._folder, board, self.redis.url, self.restarts.append)
        self._open.callback(self.fleet.stop)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def start(self, *, resume: bool = False) -> None:
        """Model servers first; the learner and the workers once those are ready."""
        servers: tuple[Role, ...] = ("policy", "reward", "reference")
        for role in servers:
            self.fleet.start(role)
        self.fleet.wait_ready(servers)
        self.fleet.start("learner", resume=resume)
        self.fleet.start("rollout")

    def finish(self, each: Callable[[], object] = lambda: None) -> None:
        """Watches over the services until the learner has ended well; ``each`` is called twenty times a second.

        Raises:
            LodestarError: a service ended for a reason of its own.
        """
        while not self.fleet.learner_finished():
            self.fleet.check()
            each()
            time.sleep(POLL_SECONDS)

    def service(self, name: str) -> Service:
        """One service by its name, ``policy-0``."""
        return next(service for service in self.fleet.services if service.name == name)

    def pids(self) -> list[int]:
        """Of the services that live."""
        return [service.child.pid for service in self.fleet.services if service.child.alive]
