"""The five services and a Redis, as the launcher starts them, around a run folder whose models are already there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lodestar.config import RunConfig
from lodestar.layout import RunFolder
from lodestar.local.board import Board
from lodestar.local.fleet import Fleet
from lodestar.local.processes import Processes
from lodestar.local.redis_server import RedisServer


class BenchFleet(Fleet):
    """A fleet that tells its processes' ids."""

    def pids(self) -> list[int]:
        """Of the services that live."""
        return [service.child.pid for service in self.services if service.child.alive]


@contextmanager
def running_services(config: RunConfig, folder: RunFolder) -> Iterator[BenchFleet]:
    """Starts everything, the learner included; stops it all at the end."""
    with Processes(folder.logs) as processes, RedisServer(folder.root / "redis") as redis:
        fleet = BenchFleet(processes, config, folder, Board(config.name, []), redis.url, lambda name: None)
        try:
            fleet.start("policy")
            fleet.start("reward")
            fleet.start("reference")
            fleet.wait_ready(("policy", "reward", "reference"))
            fleet.start("learner")
            fleet.start("rollout")
            yield fleet
        finally:
            fleet.stop()
