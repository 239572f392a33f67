"""Where the rollout queue's Redis is: one URL for a server, a socket, Sentinels or a Cluster.

    redis://[USER[:PASSWORD]@]HOST[:6379][/DATABASE]           rediss:// is the same over TLS
    unix://[USER[:PASSWORD]@]/PATH[?db=DATABASE]
    redis+sentinel://[USER[:PASSWORD]@]HOST[:26379],…/SERVICE[/DATABASE]
    redis+cluster://[USER[:PASSWORD]@]HOST[:6379],…

The two with a plus have rediss+… forms too. Nothing here imports redis-py: configuration is checked with it.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from lodestar.errors import ConfigError

PASSWORD_VARIABLE = "LODESTAR_REDIS_PASSWORD"
"""Environment variable that holds Redis's password when no file does."""
OPTIONS = {
    "db": "number of the database",
    "ssl_ca_certs": "file of the authority that signed Redis's certificate",
    "ssl_cert_reqs": "required, optional or none",
    "ssl_check_hostname": "true or false",
}
"""What may follow the question mark."""
_SCHEMES = {
    "redis": "server",
    "rediss": "server",
    "unix": "socket",
    "redis+sentinel": "sentinel",
    "rediss+sentinel": "sentinel",
    "redis+cluster": "cluster",
    "rediss+cluster": "cluster",
}
_PORTS = {"server": 6379, "sentinel": 26379, "cluster": 6379}


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """A URL, taken apart. ``RedisAddress.parse("redis://localhost/1").database`` is 1."""

    url: str = field(repr=False)
    kind: Literal["server", "socket", "sentinel", "cluster"]
    tls: bool = False
    hosts: tuple[tuple[str, int], ...] = ()
    """Name and port of the server, of the Sentinels, or of some of the Cluster's nodes."""
    path: str = ""
    """Of the socket."""
    service: str = ""
    """What the Sentinels call the master."""
    database: int = 0
    username: str = ""
    password: str = field(default="", repr=False)
    options: tuple[tuple[str, str], ...] = ()
    """Other options, as OPTIONS has them."""

    @classmethod
    def parse(cls, url: str) -> RedisAddress:
        """Takes a URL apart.

        Raises:
            ConfigError: it cannot be one of Redis, or asks for what the queue cannot do.
        """
        try:
            return _parse(url)
        except ValueError as error:
            raise ConfigError("queue.url", str(error)) from None

    def with_password(self, password: str) -> RedisAddress:
        """The same with a password, unless the URL brought one."""
        return self if self.password or not password else replace(self, password=password)

    def __str__(self) -> str:
        """The URL without its password."""
        return redacted(self.url)


def redacted(url: str) -> str:
    """The URL without its passwords: ``redis://user:***@host:6379/0``, wherever they stand and whatever is in them."""
    url = re.sub(r"(?i)([?&][^=&#]*password=)[^&#]*", r"\1***", url)
    # To the last @, since a password that was not percent-encoded may hold any of @ / ? # : itself.
    return re.sub(r"(?s)(://[^:@/?#]*):.*@", r"\1:***@", url)


def checked_url(url: str) -> str:
    """The URL, for configuration, which is written to files that others read; command lines are seen by all, too.

    Raises:
        ValueError: it carries a password, or cannot be one of Redis.
    """
    if _parse(url).password:
        raise ValueError(
            f"{redacted(url)}: a password does not belong here, because what is configured is written down; put it "
            f"into a file that queue.password_file names, or into the environment variable {PASSWORD_VARIABLE}"
        )
    return url


def password_from(file: Path | None) -> str:
    """Redis's password: the file's first line, else the environment variable's value, else none ("").

    Raises:
        ConfigError: the file cannot be read, is empty, or others than its owner and group may read it.
    """
    if file is None:
        return os.environ.get(PASSWORD_VARIABLE, "")
    field_name = "queue.password_file"
    try:
        mode = file.stat().st_mode
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(field_name, f"{file}: {getattr(error, 'strerror', None) or 'is not UTF-8 text'}") from error
    if mode & (stat.S_IRWXO | stat.S_IWGRP):
        raise ConfigError(field_name, f"{file}: others may read or change it; chmod 600 {file}")
    if not lines or not lines[0].strip():
        raise ConfigError(field_name, f"{file}: its first line, which is to be the password, is empty")
    return lines[0].strip()


def _parse(url: str) -> RedisAddress:
    try:
        return _taken_apart(url)
    except ValueError as error:
        raise ValueError(f"{redacted(url)}: {error}") from None


def _taken_apart(url: str) -> RedisAddress:
    scheme, separator, _ = url.partition("://")
    kind = _SCHEMES.get(scheme)
    if not separator or kind is None:
        raise ValueError(f"begins with none of {', '.join(f'{name}://' for name in _SCHEMES)}")
    parts = urlsplit(url)
    if parts.fragment or (parts.netloc.rpartition("@")[0].count("@")):
        raise ValueError("characters such as @ # / in a user or password are written in percent form, %40 %23 %2F")
    options = _options(parts.query)
    user, _, hosts = parts.netloc.rpartition("@")
    username, _, password = (unquote(word) for word in user.partition(":"))
    password = options.pop("password", password)
    common = {"url": url, "tls": scheme.startswith("rediss"), "username": username, "password": password}
    database = options.pop("db", None)
    if kind == "socket":
        if hosts or not parts.path.strip("/"):
            raise ValueError("a socket's URL is unix:// and an absolute path, such as unix:///run/redis.sock")
        common |= {"path": unquote(parts.path)}
    else:
        common |= {"hosts": _hosts(hosts, _PORTS[kind])}
        path = [unquote(word) for word in parts.path.strip("/").split("/")] if parts.path.strip("/") else []
        if kind == "sentinel":
            if not path:
                raise ValueError(
                    "after the Sentinels comes the name of the service: redis+sentinel://HOST:26379/mymaster"
                )
            common |= {"service": path.pop(0)}
        if path and database is not None:
            raise ValueError("names its database twice")
        if len(path) > 1:
            raise ValueError(f"/{'/'.join(path)} is no number of a database")
        database = path[0] if path else database
    number = _database(database)
    if kind == "cluster" and number:
        raise ValueError("a Cluster has database 0 alone")
    if kind == "server" and len(common["hosts"]) > 1:  # type: ignore[arg-type]
        raise ValueError("names more than one server; redis+sentinel:// and redis+cluster:// are the URLs that may")
    return RedisAddress(kind=kind, database=number, options=tuple(sorted(options.items())), **common)  # type: ignore[arg-type]


def _hosts(text: str, port: int) -> tuple[tuple[str, int], ...]:
    """``a:1,[::1]:2,c`` as names and ports."""
    found = []
    for word in text.split(","):
        name = urlsplit(f"//{word}")
        try:
            number = name.port
        except ValueError:
            raise ValueError(f"{word} has no port between 1 and 65535") from None
        if not name.hostname or number == 0:
            raise ValueError("names no host" if not word else f"{word} is no host and port")
        found.append((name.hostname, number or port))
    return tuple(found)


def _options(query: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name == "protocol" and value == "2":
            continue  # what is spoken anyway
        if name not in (*OPTIONS, "password"):
            raise ValueError(f"the option {name} is not known here; there are {', '.join(OPTIONS)}")
        if name in found:
            raise ValueError(f"the option {name} is there twice")
        found[name] = value
    if found.get("ssl_cert_reqs", "none") not in ("required", "optional", "none"):
        raise ValueError("ssl_cert_reqs is one of required, optional, none")
    if found.get("ssl_check_hostname", "true") not in ("true", "false"):
        raise ValueError("ssl_check_hostname is true or false")
    return found


def _database(text: str | None) -> int:
    if text is None:
        return 0
    if not re.fullmatch(r"\d{1,9}", text):
        raise ValueError(f"{text or 'nothing'} is no number of a database")
    return int(text)
