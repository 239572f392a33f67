"""URLs of the queue: taken apart, or refused with the reason; passwords never shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lodestar.config import Endpoints
from lodestar.config.services import QueueConfig
from lodestar.errors import ConfigError
from lodestar.queue.address import PASSWORD_VARIABLE, RedisAddress, password_from, redacted


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h", {"kind": "server", "hosts": (("h", 6379),), "database": 0}),
        ("redis://h:7000/3", {"hosts": (("h", 7000),), "database": 3}),
        ("redis://h?db=4&protocol=2", {"database": 4, "options": ()}),
        ("rediss://u@[::1]:7000/", {"tls": True, "hosts": (("::1", 7000),), "username": "u"}),
        ("redis://u%40x:p%40%2Fy@h", {"username": "u@x", "password": "p@/y"}),
        ("redis://h?password=a%26b", {"password": "a&b"}),
        ("rediss://h?ssl_cert_reqs=none", {"options": (("ssl_cert_reqs", "none"),)}),
        ("unix:///run/redis.sock?db=2", {"kind": "socket", "path": "/run/redis.sock", "database": 2}),
        (
            "redis+sentinel://a:1,b/mymaster/5",
            {"kind": "sentinel", "hosts": (("a", 1), ("b", 26379)), "service": "mymaster", "database": 5},
        ),
        ("rediss+cluster://a:1,b:2", {"kind": "cluster", "tls": True, "hosts": (("a", 1), ("b", 2))}),
    ],
)
def test_a_url_is_taken_apart(url: str, expected: dict[str, Any]) -> None:
    address = RedisAddress.parse(url)
    assert {name: getattr(address, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://h:6379", "begins with none of redis://"),
        ("localhost:6379", "begins with none of redis://"),
        ("redis://", "names no host"),
        ("redis://h:port", "no port between 1 and 65535"),
        ("redis://h:70000", "no port between 1 and 65535"),
        ("redis://h/abc", "abc is no number of a database"),
        ("redis://h/-1", "-1 is no number of a database"),
        ("redis://h/1/2", "/1/2 is no number of a database"),
        ("redis://h/1?db=2", "names its database twice"),
        ("redis://h?protocol=3", "the option protocol is not known"),
        ("redis://h?decode_responses=true", "the option decode_responses is not known"),
        ("redis://h?db=1&db=2", "twice"),
        ("redis://h?ssl_cert_reqs=maybe", "ssl_cert_reqs is one of"),
        ("redis://a,b", "names more than one server"),
        ("unix://relative.sock", "an absolute path"),
        ("redis+sentinel://h:26379", "the name of the service"),
        ("redis+cluster://h/1", "a Cluster has database 0 alone"),
        ("redis://u:p@ss@h", "percent form"),
    ],
)
def test_a_url_that_the_queue_cannot_use_is_refused_when_the_configuration_is_read(url: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=r"queue\.url: ") as caught:
        RedisAddress.parse(url)
    assert reason in str(caught.value)
    with pytest.raises(ValidationError, match="url") as invalid:
        QueueConfig(url=url)
    assert reason in str(invalid.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://u:hunter2@h:1/0",
        "redis://:hunter2@h:1/0",
        "redis://u:hun@ter2@h:1/0",
        "redis://u:hun/ter2@h:1/0",
        "redis://u:hun?ter2@h",
        "redis://h:1/0?password=hunter2",
        "redis://h:1/0?db=1&password=hunter2&protocol=2",
        "redis+sentinel://u:hunter2@a:1,b:2/m?sentinel_password=hunter2",
        "unix://u:hunter2@/run/redis.sock",
        "unix:///run/redis.sock?PASSWORD=hunter2",
    ],
)
def test_no_part_of_a_password_is_shown(url: str) -> None:
    shown = redacted(url)
    assert "hun" not in shown
    assert "ter2" not in shown
    assert "***" in shown
    assert shown.startswith(url.partition("://")[0])


@pytest.mark.parametrize("url", ["redis://u@h:6379/0", "unix:///run/a.sock?db=1", "redis+cluster://a:1,b:2"])
def test_a_url_without_a_password_is_shown_whole(url: str) -> None:
    assert redacted(url) == url


@pytest.mark.parametrize("url", ["redis://u:hunter2@h/0", "redis://h?password=hunter2"])
def test_configuration_carries_no_password(url: str) -> None:
    with pytest.raises(ValidationError, match=r"queue\.password_file") as caught:
        QueueConfig(url=url)
    assert PASSWORD_VARIABLE in str(caught.value.errors()[0]["msg"])
    assert "hunter2" not in str(caught.value.errors()[0]["msg"])
    with pytest.raises(ValidationError, match=r"queue\.password_file"):
        Endpoints(redis=url)


def test_the_password_comes_from_the_file_then_the_environment_then_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)
    assert password_from(None) == ""
    monkeypatch.setenv(PASSWORD_VARIABLE, "from the environment")
    assert QueueConfig().password() == "from the environment"
    file = tmp_path / "password"
    file.write_text("from the file\nnot this\n")
    file.chmod(0o600)
    assert QueueConfig(password_file=file).password() == "from the file"


def test_a_password_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    file = tmp_path / "password"
    with pytest.raises(ConfigError, match=r"queue\.password_file: .*No such file"):
        password_from(file)
    file.write_text("\n")
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="others may read or change it; chmod 600"):
        password_from(file)
    file.chmod(0o640)
    with pytest.raises(ConfigError, match=r"its first line.*is empty"):
        password_from(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        password_from(file)
