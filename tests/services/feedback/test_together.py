"""SQLite's group commit: work that waits shares a transaction, and nothing else."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from lodestar_services.feedback.database import TOGETHER, Database
from lodestar_services.feedback.errors import NotFound

from lodestar.errors import Unavailable


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(tmp_path)
    made.transact(lambda connection: connection.execute(sa.text("CREATE TABLE said (what INTEGER UNIQUE)")))
    yield made
    made.close()


def say(connection: sa.Connection, what: int) -> int:
    connection.execute(sa.text("INSERT INTO said VALUES (:what)"), {"what": what})
    if what == 13:
        raise NotFound("thirteen is not said")
    return what


def said(database: Database) -> list[int]:
    return database.transact(lambda c: list(c.execute(sa.text("SELECT what FROM said ORDER BY what")).scalars()))


async def all_at_once(database: Database, whats: list[int]) -> tuple[list[object], int]:
    """Results and errors of work that waits while the thread is held, and how often it went to disk."""
    free, commits = threading.Event(), 0

    def count(_: sa.Connection) -> None:
        nonlocal commits
        commits += 1

    sa.event.listen(database.engine, "commit", count)
    held = asyncio.create_task(database.run(lambda _: free.wait(20)))
    await asyncio.sleep(0.05)
    tasks = [asyncio.create_task(database.run(say, what)) for what in whats]
    await asyncio.sleep(0.05)
    free.set()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    await held
    sa.event.remove(database.engine, "commit", count)
    return list(found), commits - 1


def test_work_that_waits_goes_to_disk_at_once_and_one_that_fails_takes_nobody_along(database: Database) -> None:
    found, commits = asyncio.run(all_at_once(database, list(range(10, 10 + TOGETHER + 5))))
    assert commits == 2
    assert isinstance(found.pop(3), NotFound)
    assert found == [what for what in range(10, 10 + TOGETHER + 5) if what != 13] == said(database)


def test_one_that_the_database_refuses_is_refused_alone(database: Database) -> None:
    database.transact(say, 2)
    found, _ = asyncio.run(all_at_once(database, [1, 2, 3]))
    assert (found[0], found[2], said(database)) == (1, 3, [1, 2, 3])
    assert isinstance(found[1], sa.exc.IntegrityError)


def test_a_locked_database_is_away_for_all_who_wait_and_is_waited_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lodestar_services.feedback.database.BUSY_SECONDS", 0.5)
    database = Database(tmp_path)
    other = sqlite3.connect(tmp_path / "feedback.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    async def ask() -> list[object]:
        return list(await asyncio.gather(*(database.run(say, what) for what in range(20)), return_exceptions=True))

    began = time.monotonic()
    found = asyncio.run(ask())
    assert [type(one) for one in found] == [Unavailable] * 20
    assert time.monotonic() - began < 5, "not half a second for each"
    other.execute("ROLLBACK")
    other.close()
    database.close()
