"""The database behind the page: SQLite in a folder or PostgreSQL by URL, its migrations, and its one way in.

    database = Database(Path("runs/demo/feedback"))      # or Database("postgresql://user@host/name")
    database.migrate()
    found = await database.run(work, argument)           # work(connection, argument), one transaction

Work runs in threads, beside the event loop: one thread for SQLite, which has one writer anyway, several for PostgreSQL.
A transaction whose end was reported is on disk (SQLite: WAL with synchronous=FULL), so that whoever saw "thank you" has
been counted, whatever happens next. Waiting for the disk is most of what a page costs on SQLite, so work that waits
meanwhile goes into one transaction, each in a savepoint of its own (group commit, as PostgreSQL's).
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Concatenate, NoReturn, ParamSpec, TypeVar

import alembic.command
import alembic.config
import alembic.script
import sqlalchemy as sa
from alembic.runtime.migration import MigrationContext
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from lodestar import metrics
from lodestar.errors import ConfigError, FailedPrecondition, Unavailable

log = logging.getLogger(__name__)
logging.getLogger("alembic").setLevel(logging.WARNING)

P = ParamSpec("P")
Result = TypeVar("Result")

TOGETHER = 32
"""Pieces of work at most in one of SQLite's transactions."""
THREADS = 8
"""Transactions at once on PostgreSQL."""
BUSY_SECONDS = 5.0
"""How long SQLite waits for another process (a backup, a second server) that holds the file."""
_MIGRATION_LOCK = 0x6C6F6465
"""PostgreSQL advisory lock: two replicas that start together migrate one after the other."""
_MIGRATING = threading.Lock()
"""Alembic's context belongs to the process."""
_RETRIES = 5
"""Of a transaction that another one of ours crossed (PostgreSQL deadlock or serialization failure, unique index)."""


class Database:
    """One database, from URL or folder."""

    def __init__(self, where: str | Path) -> None:
        """
        Raises:
            ConfigError: the URL is no SQLite or PostgreSQL URL, or the folder cannot be made.
        """
        url = _url(where)
        self.sqlite = url.get_backend_name() == "sqlite"
        self.name = url.render_as_string(hide_password=True)
        options: dict[str, Any] = {"pool_pre_ping": True, "hide_parameters": True}
        if self.sqlite:
            options |= {"connect_args": {"timeout": BUSY_SECONDS, "check_same_thread": False}}
        else:
            options |= {"pool_size": THREADS, "max_overflow": 0, "connect_args": {"connect_timeout": 5}}
        self.engine = sa.create_engine(url, **options)
        if self.sqlite:
            sa.event.listen(self.engine, "connect", _prepare_sqlite)
            sa.event.listen(self.engine, "begin", _begin_immediate)
        self._reading = self.engine.execution_options(reading=True)
        self._threads = ThreadPoolExecutor(1 if self.sqlite else THREADS, thread_name_prefix="database")
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="database-reader")
        self._waiting: SimpleQueue[tuple[Callable[[sa.Connection], Any], Future[Any]]] = SimpleQueue()

    def migrate(self) -> None:
        """Brings the tables to this code's revision, data kept.

        Raises:
            FailedPrecondition: a newer Lodestar has migrated the database.
            Unavailable: it cannot be reached.
        """
        config = alembic.config.Config()
        config.set_main_option("script_location", "lodestar_services.feedback:migrations")
        ours = {script.revision for script in alembic.script.ScriptDirectory.from_config(config).walk_revisions()}
        try:
            with _MIGRATING, self.engine.connect() as connection:
                if not self.sqlite:
                    connection.execute(sa.select(sa.func.pg_advisory_lock(_MIGRATION_LOCK)))
                    connection.commit()
                try:
                    found = MigrationContext.configure(connection).get_current_revision()
                    if found is not None and found not in ours:
                        raise FailedPrecondition(
                            f"{self.name} was migrated to {found} by a newer Lodestar than this one: upgrade, or "
                            "restore a backup of before"
                        )
                    connection.commit()
                    log.info("migrating %s from %s", self.name, found or "nothing")
                    config.attributes["connection"] = connection
                    alembic.command.upgrade(config, "head")
                    connection.commit()
                finally:
                    if not self.sqlite:
                        connection.rollback()
                        connection.execute(sa.select(sa.func.pg_advisory_unlock(_MIGRATION_LOCK)))
        except OperationalError as error:
            raise self._away(error) from error

    async def run(
        self,
        work: Callable[Concatenate[sa.Connection, P], Result],
        *arguments: P.args,
        **options: P.kwargs,
    ) -> Result:
        """``work(connection, …)`` in one transaction, committed when it returns and undone when it raises.

        Raises:
            Unavailable: the database is away, locked or full; nothing was written.
        """
        future: Future[Result] = Future()
        self._waiting.put((lambda connection: work(connection, *arguments, **options), future))
        self._threads.submit(self._work)
        return await asyncio.wrap_future(future)

    def _work(self) -> None:
        """What waits: one piece, or on SQLite all that there is. Nothing where an earlier call has taken it along."""
        taken: list[tuple[Callable[[sa.Connection], Any], Future[Any]]] = []
        while len(taken) < (TOGETHER if self.sqlite else 1):
            try:
                work, future = self._waiting.get_nowait()
            except Empty:
                break
            if future.set_running_or_notify_cancel():
                taken.append((work, future))
        works = [work for work, _ in taken]
        outcomes: list[Callable[[], Any]] = [partial(self.transact, work) for work in works]
        if len(works) > 1:
            outcomes = self._together(works)
        for (_, future), outcome in zip(taken, outcomes, strict=True):
            try:
                future.set_result(outcome())
            except Exception as error:  # whatever it is, it is for who waits
                future.set_exception(error)

    def _together(self, works: Sequence[Callable[[sa.Connection], Any]]) -> list[Callable[[], Any]]:
        """What became of each, to be called: its result, or the error that it raises."""
        try:
            with self.engine.begin() as connection:
                return [_in_savepoint(connection, work) for work in works]
        except OperationalError as error:  # locked, full, away: for all alike
            return [partial(_raise, self._away(error))] * len(works)
        except DBAPIError:  # one's own: nothing was written, and each by itself says whose
            return [partial(self.transact, work) for work in works]

    async def read(
        self,
        work: Callable[Concatenate[sa.Connection, P], Result],
        *arguments: P.args,
        **options: P.kwargs,
    ) -> Result:
        """:meth:`run` for work that only reads, and may read much: it holds nobody up."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, lambda: self.snapshot(work, *arguments, **options))

    def snapshot(
        self,
        work: Callable[Concatenate[sa.Connection, P], Result],
        *arguments: P.args,
        **options: P.kwargs,
    ) -> Result:
        """:meth:`read` in the caller's thread."""
        return self._attempt(self._reading, work, *arguments, **options)

    def transact(
        self,
        work: Callable[Concatenate[sa.Connection, P], Result],
        *arguments: P.args,
        **options: P.kwargs,
    ) -> Result:
        """:meth:`run` in the caller's thread."""
        return self._attempt(self.engine, work, *arguments, **options)

    def _attempt(
        self,
        engine: sa.Engine,
        work: Callable[Concatenate[sa.Connection, P], Result],
        *arguments: P.args,
        **options: P.kwargs,
    ) -> Result:
        for attempt in range(_RETRIES):
            try:
                with engine.begin() as connection:
                    return work(connection, *arguments, **options)
            except DBAPIError as error:
                if attempt + 1 < _RETRIES and _crossed(error):
                    continue
                if isinstance(error, OperationalError) or error.connection_invalidated:
                    raise self._away(error) from error
                raise
            except PoolTimeout as error:
                raise self._away(error) from error
        raise AssertionError("the last attempt returns or raises")

    def close(self) -> None:
        """Lets running work end and closes connections."""
        self._threads.shutdown()
        self._readers.shutdown()
        self.engine.dispose()

    def _away(self, error: Exception) -> Unavailable:
        metrics.FEEDBACK_DATABASE_ERRORS.inc()
        reason = str(getattr(error, "orig", error)).strip().splitlines()[0]
        log.error("the database %s does not work: %s", self.name, reason)
        return Unavailable(f"the database cannot be used now ({reason}); nothing was written, try again")


def _in_savepoint(connection: sa.Connection, work: Callable[[sa.Connection], Any]) -> Callable[[], Any]:
    """Raises DBAPIError, which ends the transaction of all."""
    try:
        with connection.begin_nested():
            result = work(connection)
    except DBAPIError:
        raise
    except Exception as error:  # whatever it is, it is for who waits
        return partial(_raise, error)
    return lambda: result


def _raise(error: Exception) -> NoReturn:
    raise error


def _url(where: str | Path) -> sa.URL:
    if isinstance(where, str) and "://" in where:
        try:
            url = sa.make_url(where)
        except sa.exc.ArgumentError:
            raise ConfigError("database", "is no URL: write postgresql://user:password@host/name") from None
        if url.drivername in ("postgresql", "postgres"):
            return url.set(drivername="postgresql+psycopg")
        if url.get_backend_name() in ("sqlite", "postgresql"):
            return url
        raise ConfigError("database", f"{url.get_backend_name()} is not known here: SQLite or postgresql://")
    folder = Path(where)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "feedback.sqlite"
        if not path.exists():
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))  # answers of people: for their owner's eyes
    except OSError as error:
        raise ConfigError("database", f"{folder} cannot be used as a folder: {error.strerror}") from error
    return sa.URL.create("sqlite", database=str(path))


def _prepare_sqlite(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # we begin our transactions ourselves
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_immediate(connection: sa.Connection) -> None:
    """Takes the write lock at once: a reader that becomes a writer later may find that it cannot."""
    reading = connection.get_execution_options().get("reading", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def _crossed(error: DBAPIError) -> bool:
    """Whether the same work, done again, would see what the other transaction did."""
    state = getattr(error.orig, "sqlstate", None)
    return isinstance(error, IntegrityError) or state in ("40001", "40P01")
