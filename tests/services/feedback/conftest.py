"""The page over real sockets on real databases: SQLite, and a PostgreSQL that the tests start."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import sqlalchemy as sa
from lodestar_services.feedback import campaigns, people
from lodestar_services.feedback.database import Database
from lodestar_services.feedback.site import Site
from lodestar_services.feedback.web.app import build

from lodestar.feedback import Campaign, Item, Judgement
from lodestar.rpc.http import server_of
from tests.services.feedback.processes import Join, Running


# --- PostgreSQL ----------------------------------------------------------------------------------------------------
@dataclass
class Postgres:
    """A cluster of the tests' own."""

    bin: Path
    data: Path
    port: int

    def run(self, *command: str) -> None:
        """One of PostgreSQL's programs, as a user that it accepts."""
        options: dict[str, Any] = {"user": "postgres"} if os.geteuid() == 0 else {}
        done = subprocess.run(
            [self.bin / command[0], *command[1:]], capture_output=True, text=True, cwd="/", check=False, **options
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> None:
        """Without fsync: what is killed here are processes, and the recovery of many databases would take a minute."""
        settings = ("listen_addresses=127.0.0.1", "unix_socket_directories=''", "shared_buffers=16MB", "fsync=off")
        options = " ".join([f"-p {self.port}", *(f"-c {setting}" for setting in settings)])
        self.run("pg_ctl", "-D", str(self.data), "-w", "-l", str(self.data / "log"), "-o", options, "start")

    def stop(self) -> None:
        self.run("pg_ctl", "-D", str(self.data), "-w", "-m", "immediate", "stop")

    def new_database(self) -> str:
        """URL of an empty one."""
        name = f"t{secrets.token_hex(6)}"
        url = f"postgresql+psycopg://postgres@127.0.0.1:{self.port}"
        engine = sa.create_engine(f"{url}/postgres", isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sa.text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return f"{url}/{name}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Debian's server, in a folder of its own."""
    found = shutil.which("initdb") or next(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")), None)
    if found is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # pytest's own folders are for its user alone
    if os.geteuid() == 0:
        try:
            owner = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        os.chown(folder, owner.pw_uid, owner.pw_gid)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    cluster = Postgres(Path(found).resolve().parent, folder / "data", port)
    cluster.run("initdb", "-D", str(cluster.data), "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8")
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str | Path:
    """Folder or URL of an empty database."""
    if request.param == "sqlite":
        return tmp_path / "feedback"
    cluster: Postgres = request.getfixturevalue("postgres")
    return cluster.new_database()


# --- the page ------------------------------------------------------------------------------------------------------
class Clock:
    """Unix time that a test moves."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class _Forms(HTMLParser):
    """Hidden fields, names of others, and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.hidden: dict[str, str] = {}
        self.names: set[str] = set()
        self.checked: dict[str, str] = {}
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        name = given.get("name", "")
        if tag == "input" and given.get("type") == "hidden":
            self.hidden.setdefault(name, given.get("value", ""))
        elif name:
            self.names.add(name)
            if "checked" in given:
                self.checked[name] = given.get("value", "")


@dataclass
class Browser:
    """One person's session over HTTP, without scripting."""

    client: httpx.Client
    hidden: dict[str, str] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    checked: dict[str, str] = field(default_factory=dict)

    def get(self, path: str) -> httpx.Response:
        return self._read(self.client.get(path))

    def open(self, campaign: str) -> httpx.Response:
        """The campaign's page; its form's fields are ``hidden`` and ``names`` then."""
        return self.get(f"/c/{campaign}")

    def send(self, campaign: str, *, follow: bool = True, **fields: str) -> httpx.Response:
        """The form of the page that was opened last. Fields with a dot in their name: ``mark__sexual_content``."""
        named = {name.replace("__", "."): value for name, value in fields.items()}
        data = self.hidden | {"do": "send"} | named
        response = self.client.post(f"/c/{campaign}", data=data, follow_redirects=follow)
        return self._read(response) if follow else response

    def post(self, path: str, **fields: str) -> httpx.Response:
        return self.client.post(path, data={"csrf": self.hidden.get("csrf", "")} | fields, follow_redirects=True)

    def undo(self, campaign: str) -> httpx.Response:
        return self._read(self.post(f"/c/{campaign}/undo"))

    def _read(self, response: httpx.Response) -> httpx.Response:
        found = _Forms(response.text)
        self.hidden, self.names, self.checked = found.hidden, found.names, found.checked
        return response


@dataclass
class Page:
    """A running site."""

    site: Site
    clock: Clock
    clients: contextlib.ExitStack

    def add(self, campaign: Campaign, items: list[Item]) -> None:
        self.site.database.transact(campaigns.add_items, campaign, items, now=self.clock())

    def close(self, campaign: str) -> None:
        self.site.database.transact(campaigns.close, campaign, now=self.clock())

    def judgements(self, campaign: str) -> list[Judgement]:
        return self.site.database.transact(lambda c: campaigns.judgements(c, campaigns.find(c, campaign)))

    def counted(self, campaign: str) -> list[Judgement]:
        return [one for one in self.judgements(campaign) if not one.set_aside]

    def invite(self, name: str, role: people.PersonRole = "annotator") -> str:
        return self.site.database.transact(people.invite, name, role, now=self.clock())

    def anonymous(self) -> Browser:
        client = httpx.Client(base_url=self.site.link, timeout=30)
        return Browser(self.clients.enter_context(client))

    def browser(self, name: str, role: people.PersonRole = "annotator", groups: str = "") -> Browser:
        """Somebody who came in by their link."""
        browser = self.anonymous()
        assert (
            browser.client.post("/join", data={"token": self.invite(name, role), "groups": groups}).status_code == 303
        )
        browser.get("/")
        return browser


@contextlib.contextmanager
def running(where: str | Path) -> Iterator[Page]:
    """The page in a thread with an event loop of its own."""
    clock = Clock()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        site = Site(Database(where), f"http://127.0.0.1:{listening.getsockname()[1]}", clock=clock)
        site.database.migrate()
        server = server_of(build(site), drain_seconds=5)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
        thread.start()
        try:
            with contextlib.ExitStack() as clients:
                while not server.started:
                    time.sleep(0.01)
                yield Page(site, clock, clients)
        finally:
            server.should_exit = True
            thread.join(30)
            site.database.close()


@pytest.fixture
def page(where: str | Path) -> Iterator[Page]:
    """On SQLite and on PostgreSQL."""
    with running(where) as page:
        yield page


@pytest.fixture
def lite(tmp_path: Path) -> Iterator[Page]:
    """On SQLite alone: for what no database has a part in."""
    with running(tmp_path / "feedback") as page:
        yield page


@pytest.fixture
def run_page() -> Callable[[str | Path], contextlib.AbstractContextManager[Page]]:
    """running, for test modules (which cannot import conftest.py)."""
    return running


def pairs(count: int, **options: Any) -> list[Item]:
    return [Item(str(i), f"question {i}", (f"good {i}", f"bad {i}"), **options) for i in range(count)]


@pytest.fixture
def some_pairs() -> Callable[..., list[Item]]:
    """``some_pairs(3)``: items whose first completion says that it is good."""
    return pairs


@pytest.fixture
def first_shown() -> Callable[[str], str]:
    """What stands in reply A of a page."""

    def find(html: str) -> str:
        return re.findall(r'aria-label="(?:Reply|Output) A".*?class="text" dir="auto">(.*?)</div>', html, re.S)[0]

    return find


# --- the process ---------------------------------------------------------------------------------------------------
@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def begin(**options: Any) -> Running:
        folder = tmp_path / f"feedback{len(started)}"
        folder.mkdir()
        started.append(Running(folder, **options))
        return started[-1]

    yield begin
    for one in started:
        one.process.kill()
        one.process.wait()


@pytest.fixture
def join() -> Iterator[Join]:
    """Comes in by a link."""
    with contextlib.ExitStack() as clients:

        def come_in(link: str) -> httpx.Client:
            base, _, token = link.rpartition("/join/")
            client = clients.enter_context(httpx.Client(base_url=base, timeout=20, follow_redirects=True))
            assert client.post("/join", data={"token": token}).status_code == 200
            return client

        yield come_in
