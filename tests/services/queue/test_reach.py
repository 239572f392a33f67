"""The queue is asked for before anything long is done."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from lodestar.errors import QueueUnavailable
from lodestar.queue.redis.reach import reach
from tests.services.queue.servers import PROGRAMS, Server, program


@pytest.fixture(params=list(PROGRAMS))
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    with Server(program(request.param), tmp_path / "server").running() as running:
        yield running


def test_a_server_that_can_hold_the_queue_says_what_it_is(server: Server) -> None:
    assert reach(server.url, "demo").startswith(("Redis ", "Valkey 9"))
    assert server.client.dbsize() == 0


def test_one_that_evicts_is_warned_of(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.client.config_set("maxmemory-policy", "allkeys-lru")
    with caplog.at_level(logging.WARNING):
        reach(server.url, "demo")
    assert "maxmemory-policy allkeys-lru: set noeviction" in caplog.text


def test_a_replica_a_wrong_password_and_nobody_are_told_apart(server: Server) -> None:
    with pytest.raises(QueueUnavailable, match=r"refuses us: .*the password in queue.password_file"):
        reach(server.url, "demo", password="wrong")
    server.client.replicaof("127.0.0.1", 1)
    with pytest.raises(QueueUnavailable, match="is a replica; name its master"):
        reach(server.url, "demo")
    server.kill()
    with pytest.raises(QueueUnavailable, match=r"did not serve us for 0 s .*is it running"):
        reach(server.url, "demo", seconds=0.2)
