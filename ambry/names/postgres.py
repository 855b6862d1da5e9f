"""PostgreSQL behind the door of sql.py: threads with one connection each, for many frontends on one name store.

Every job is a transaction of its own: PostgreSQL gathers commits by itself. READ COMMITTED is enough, since a job that
checks before it changes locks what it checks (`Session.lock`, an advisory lock that ends with the transaction). Jobs
that PostgreSQL sends back (deadlock, serialization) are run again.

This module knows PostgreSQL; it does not know what is in the tables.
"""

import asyncio
import contextlib
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, Final

import psycopg
from psycopg import errors as postgres_errors
from xxhash import xxh3_64_intdigest

from ambry.errors import NameStoreUnavailable, Overloaded
from ambry.limits import (
    NAME_CONNECT_S,
    NAME_CONNECTIONS_MAX,
    NAME_LOCK_WAIT_MS,
    NAME_QUEUE_JOBS_MAX,
    NAME_STATEMENT_MS_MAX,
)
from ambry.logs import get_logger
from ambry.names.schema import VERSION_QUERY
from ambry.names.sql import Answer, Dialect, Job, Row, Value

_log = get_logger(__name__)

_ATTEMPTS: Final = 5
"""A job that loses against others this often is given back to its caller."""

_OPTIONS: Final = (
    f"-c statement_timeout={NAME_STATEMENT_MS_MAX} -c lock_timeout={NAME_LOCK_WAIT_MS} -c synchronous_commit=on"
)
"""Synchronous commit is asked for in so many words: a server whose default is weaker is not to decide that."""


class PostgresSession:
    """A transaction on one connection."""

    __slots__ = ("_cursor",)

    dialect: Final = Dialect.POSTGRES

    def __init__(self, cursor: "psycopg.Cursor[Row]") -> None:
        self._cursor = cursor

    def rows(self, sql: str, parameters: Sequence[Value] = ()) -> list[Row]:
        """All rows of a query."""
        return self._cursor.execute(_translated(sql), parameters).fetchall()

    def row(self, sql: str, parameters: Sequence[Value] = ()) -> Row | None:
        """The first row of a query."""
        return self._cursor.execute(_translated(sql), parameters).fetchone()

    def execute(self, sql: str, parameters: Sequence[Value] = ()) -> int:
        """Change something; how many rows that were."""
        return self._cursor.execute(_translated(sql), parameters).rowcount

    def execute_many(self, sql: str, rows: Iterable[Sequence[Value]]) -> None:
        """The same change for many rows of parameters."""
        self._cursor.executemany(_translated(sql), rows)

    def lock(self, key: bytes) -> None:
        """Let no other transaction that locks this key go on before this one has ended."""
        number = xxh3_64_intdigest(key)
        self._cursor.execute("SELECT pg_advisory_xact_lock(%s)", (number - 2**63,))


@lru_cache(maxsize=512)
def _translated(sql: str) -> bytes:
    """Our SQL with psycopg's marks for parameters."""
    return sql.replace("%", "%%").replace("?", "%s").encode()


def connect(url: str) -> "psycopg.Connection[Row]":
    """A connection. Raises NameStoreUnavailable."""
    try:
        return psycopg.connect(url, autocommit=True, connect_timeout=NAME_CONNECT_S, options=_OPTIONS, **_KEEP_ALIVE)
    except psycopg.Error as error:
        raise NameStoreUnavailable(f"the name store is out of reach: {error}", is_certain=True) from error


def _unusable(error: psycopg.Error, *, is_certain: bool) -> NameStoreUnavailable:
    return NameStoreUnavailable(f"the name store cannot be used: {error}", is_certain=is_certain)


def version(connection: "psycopg.Connection[Row]") -> str | None:
    """The version of the tables, None where there are none."""
    found = connection.execute("SELECT to_regclass('alembic_version') IS NOT NULL").fetchone()
    row = connection.execute(VERSION_QUERY.encode()).fetchone() if found is not None and found[0] else None
    return None if row is None else str(row[0])


class PostgresDatabase:
    """A server's database with a current schema, opened. Make it with `open_database` of open.py."""

    dialect: Final = Dialect.POSTGRES

    def __init__(self, url: str, connections: int = NAME_CONNECTIONS_MAX) -> None:
        self._url = url
        self._connections: list[psycopg.Connection[Row]] = []
        self._lock = threading.Lock()
        self._local = threading.local()
        self._waiting = 0
        self._is_closing = False
        self._threads = ThreadPoolExecutor(connections, thread_name_prefix="names")

    async def read(self, job: Job[Answer]) -> Answer:
        """Run a job that changes nothing, on one snapshot."""
        return await self._run(job, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")

    async def write(self, job: Job[Answer]) -> Answer:
        """Run a job in a transaction of its own."""
        return await self._run(job, "BEGIN ISOLATION LEVEL READ COMMITTED")

    async def _run(self, job: Job[Answer], begin: str) -> Answer:
        if self._is_closing:
            raise NameStoreUnavailable("the name store is closed", is_certain=True)
        if self._waiting >= NAME_QUEUE_JOBS_MAX:
            raise Overloaded("too many requests wait for the name store", retry_after_s=1)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._attempt, job, begin)
        finally:
            self._waiting -= 1

    def _attempt(self, job: Job[Answer], begin: str) -> Answer:
        """Run a job until it goes through. Raises NameStoreUnavailable and what the job raises."""
        for _ in range(_ATTEMPTS):
            try:
                return self._transact(job, begin)
            except (postgres_errors.DeadlockDetected, postgres_errors.SerializationFailure) as error:
                _log.debug("a transaction is run again", error=str(error))
        raise NameStoreUnavailable("the name store is too busy for this change", is_certain=True)

    def _transact(self, job: Job[Answer], begin: str) -> Answer:
        connection = self._begin(begin.encode())
        is_committing = False
        try:
            with connection.cursor() as cursor:
                answer = job(PostgresSession(cursor))
                is_committing = True
                cursor.execute(b"COMMIT")
            return answer
        except (postgres_errors.DeadlockDetected, postgres_errors.SerializationFailure):
            self._roll_back(connection)
            raise
        except psycopg.Error as error:
            self._roll_back(connection)
            # A connection lost in the middle of a commit leaves it open whether that happened.
            is_certain = not (is_committing and connection.closed)
            raise _unusable(error, is_certain=is_certain) from error
        except BaseException:
            self._roll_back(connection)
            raise

    def _begin(self, begin: bytes) -> "psycopg.Connection[Row]":
        """This thread's connection with a transaction begun on it. Raises NameStoreUnavailable.

        A connection that was lost while nobody used it (a server that was started again) shows that only now, and
        nothing was done on it: it is made anew instead of giving each thread's next job an error.
        """
        kept: psycopg.Connection[Row] | None = getattr(self._local, "connection", None)
        if kept is not None and not kept.closed:
            try:
                kept.execute(begin)
                return kept
            except psycopg.Error as error:
                self._roll_back(kept)
                if not kept.closed:
                    raise _unusable(error, is_certain=True) from error
        made = connect(self._url)
        with self._lock:
            self._connections = [one for one in self._connections if not one.closed] + [made]
        self._local.connection = made
        try:
            made.execute(begin)
        except psycopg.Error as error:
            raise _unusable(error, is_certain=True) from error
        return made

    @staticmethod
    def _roll_back(connection: "psycopg.Connection[Row]") -> None:
        try:
            connection.execute(b"ROLLBACK")
        except psycopg.Error:
            # What is broken is not used again; the server rolls back what it lost sight of.
            with contextlib.suppress(psycopg.Error):
                connection.close()

    async def close(self) -> None:
        """Finish what was asked for, and close all connections."""
        self._is_closing = True
        await asyncio.get_running_loop().run_in_executor(None, self._close)

    def _close(self) -> None:
        self._threads.shutdown()
        for connection in self._connections:
            with contextlib.suppress(psycopg.Error):
                connection.close()


_KEEP_ALIVE: Final[dict[str, Any]] = {
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": NAME_STATEMENT_MS_MAX,
}
"""A server that has vanished without a word is noticed after this, and not when TCP gives up."""
