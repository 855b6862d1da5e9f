"""SQLite behind the door of sql.py: one thread that writes, a few that read. The default name store.

The writer takes what has gathered in its queue, runs it job by job in one transaction, and commits once: with
`synchronous=FULL` that is one sync of the write-ahead log for the whole group, and while it runs the next group
gathers. Only after it is anyone answered. Several processes (`ambry serve --workers`) share the
file: `BEGIN IMMEDIATE` lets one write at a time, and readers are never in the way.

The write-ahead log is folded into the file by a thread of its own and seldom: names come in no order, so a page that
was changed a hundred times is then written once, and nobody waits for it. The log begins again at its front only when
all of it is folded, which never happens while writes go on: so when nearly all is, the writer folds the rest between
two groups. Two cannot fold at once, so it waits for a pass that is under way if the log has grown far too much.

This module knows SQLite; it does not know what is in the tables.
"""

import asyncio
import contextlib
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, cast

from ambry.errors import NameStoreUnavailable, Overloaded
from ambry.limits import (
    NAME_CACHE_BYTES,
    NAME_FOLD_ROWS,
    NAME_GROUP_JOBS_MAX,
    NAME_LOCK_WAIT_MS,
    NAME_LOG_ROWS_MAX,
    NAME_MAPPED_BYTES,
    NAME_QUEUE_JOBS_MAX,
    NAME_READERS,
)
from ambry.logs import get_logger
from ambry.names.sql import Answer, Dialect, Job, Row, Value

_log = get_logger(__name__)

_FOLD_PASSES_MAX: Final = 4
_REST_PAGES_MAX: Final = 512
"""Pages that the writer may fold itself, between two groups: a few milliseconds and one sync."""

_REST_WAIT_MS: Final = 50
"""Longer than a list takes to read its page."""

_BUSY: Final = ("SQLITE_BUSY", "SQLITE_LOCKED")


class SqliteSession:
    """A transaction on one connection."""

    __slots__ = ("_connection",)

    dialect: Final = Dialect.SQLITE

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def rows(self, sql: str, parameters: Sequence[Value] = ()) -> list[Row]:
        """All rows of a query."""
        return self._connection.execute(sql, parameters).fetchall()

    def row(self, sql: str, parameters: Sequence[Value] = ()) -> Row | None:
        """The first row of a query."""
        found: Row | None = self._connection.execute(sql, parameters).fetchone()
        return found

    def execute(self, sql: str, parameters: Sequence[Value] = ()) -> int:
        """Change something; how many rows that were."""
        return self._connection.execute(sql, parameters).rowcount

    def execute_many(self, sql: str, rows: Iterable[Sequence[Value]]) -> None:
        """The same change for many rows of parameters."""
        self._connection.executemany(sql, rows)

    def lock(self, key: bytes) -> None:
        """There is one writer at a time, and it has the lock already."""


class _Request:
    """A job that waits for the writer, and the future of whoever waits for it."""

    __slots__ = ("future", "job", "loop", "outcome")

    def __init__(self, job: Job[Any], loop: asyncio.AbstractEventLoop) -> None:
        self.job = job
        self.loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()
        self.outcome: tuple[Any, BaseException | None] = (None, None)

    def resolve(self) -> None:
        """Answer; on the loop. Whoever has gone is not waiting any more."""
        if self.future.done():
            return
        value, error = self.outcome
        if error is None:
            self.future.set_result(value)
        else:
            self.future.set_exception(error)


class LoopReader:
    """A connection for the loop's own thread, for what is certainly in the page cache."""

    __slots__ = ("_connection",)

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def data_version(self) -> int:
        """Another number after every commit of another connection. Raises NameStoreUnavailable."""
        return int(self.rows("PRAGMA data_version")[0][0])

    def rows(self, sql: str, parameters: Sequence[Value] = ()) -> list[Row]:
        """All rows of a query. Raises NameStoreUnavailable."""
        try:
            return self._connection.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise _unavailable(error) from error


class SqliteDatabase:
    """A file with a current schema, opened. Make it with `open_database` of open.py."""

    dialect: Final = Dialect.SQLITE

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connections: list[sqlite3.Connection] = []
        self._local = threading.local()
        self._wake = threading.Condition()
        self._queue: deque[_Request] = deque()
        self._is_closing = False
        self._writer_connection = self._connect()
        self._readers = ThreadPoolExecutor(NAME_READERS, thread_name_prefix="names-read")
        self._fold = threading.Event()
        self._folding = threading.Lock()
        self._is_rest_small = threading.Event()
        self._fold_at, self._fold_here_at = NAME_FOLD_ROWS, NAME_LOG_ROWS_MAX
        self._writer = threading.Thread(target=self._write_loop, name="names-write", daemon=True)
        self._folder = threading.Thread(target=self._fold_loop, name="names-fold", daemon=True)
        self._writer.start()
        self._folder.start()

    # --- reading -----------------------------------------------------------------------------------------------

    async def read(self, job: Job[Answer]) -> Answer:
        """Run a job that changes nothing, on one snapshot, on a thread for reading."""
        if self._is_closing:
            raise NameStoreUnavailable("the name store is closed", is_certain=True)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, self._read, job)

    def _read(self, job: Job[Answer]) -> Answer:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        try:
            if connection is None:
                connection = self._local.connection = self._connect()
                connection.execute("PRAGMA query_only=ON")
            connection.execute("BEGIN")
            try:
                return job(SqliteSession(connection))
            finally:
                # Nothing was changed; this gives up the snapshot.
                connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise _unavailable(error) from error

    def loop_reader(self) -> LoopReader:
        """A reader for the thread that asks for it. Raises NameStoreUnavailable."""
        connection = self._connect()
        connection.execute("PRAGMA query_only=ON")
        return LoopReader(connection)

    # --- writing -----------------------------------------------------------------------------------------------

    async def write(self, job: Job[Answer]) -> Answer:
        """Run a job in the next group."""
        request = _Request(job, asyncio.get_running_loop())
        with self._wake:
            if self._is_closing:
                raise NameStoreUnavailable("the name store is closed", is_certain=True)
            if len(self._queue) >= NAME_QUEUE_JOBS_MAX:
                raise Overloaded("too many changes wait for the name store", retry_after_s=1)
            self._queue.append(request)
            self._wake.notify()
        return cast("Answer", await request.future)

    def _write_loop(self) -> None:
        while True:
            with self._wake:
                while not self._queue and not self._is_closing:
                    self._wake.wait()
                if not self._queue:
                    return
                group = [self._queue.popleft() for _ in range(min(len(self._queue), NAME_GROUP_JOBS_MAX))]
            # A caller that has gone meanwhile wants nothing done.
            group = [request for request in group if not request.future.cancelled()]
            if group:
                self._write_group(group)
                _answer(group)
                self._watch_log()

    def _write_group(self, group: list[_Request]) -> None:
        """Run and commit a group. Afterwards every request has its outcome, and nothing half-done is left.

        Without savepoints first: each statement gives up the interpreter's lock and has to get it back from the loop.
        A job that fails before it has changed anything needs none; for one that fails later the group is run again.
        """
        connection = self._writer_connection
        try:
            if not self._run_group(group):
                connection.execute("ROLLBACK")
                self._run_group_with_savepoints(group)
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            # A commit that failed has not happened: the log's last frame is what makes it one.
            _log.warning("changes of names failed", count=len(group), error=str(error))
            refusal = _unavailable(error)
            for request in group:
                request.outcome = (None, refusal)
            if connection.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")

    def _run_group(self, group: list[_Request]) -> bool:
        """Run all jobs; False if one failed after it had changed something. Raises sqlite3.Error: all is lost."""
        connection = self._writer_connection
        connection.execute("BEGIN IMMEDIATE")
        session = SqliteSession(connection)
        for request in group:
            before = connection.total_changes
            self._run(session, request)
            if request.outcome[1] is not None and connection.total_changes != before:
                return False
        return True

    def _run_group_with_savepoints(self, group: list[_Request]) -> None:
        """Run all jobs, each to be undone by itself. Raises sqlite3.Error: all is lost."""
        connection = self._writer_connection
        connection.execute("BEGIN IMMEDIATE")
        session = SqliteSession(connection)
        for request in group:
            connection.execute("SAVEPOINT job")
            self._run(session, request)
            if request.outcome[1] is not None:
                connection.execute("ROLLBACK TO job")
            connection.execute("RELEASE job")

    def _run(self, session: SqliteSession, request: _Request) -> None:
        """Run one job; what it raises is its caller's. Raises sqlite3.Error when the whole group is lost."""
        try:
            request.outcome = (request.job(session), None)
        except sqlite3.Error as error:
            if not self._writer_connection.in_transaction:
                # Disk full, I/O error: SQLite has rolled the transaction back by itself.
                raise
            request.outcome = (None, _unavailable(error))
        except Exception as error:  # noqa: BLE001 -- the caller of this job gets it; the others of the group go on
            request.outcome = (None, error)

    # --- folding the log into the file ---------------------------------------------------------------------------

    def _watch_log(self) -> None:
        """After a group: have the log folded when it has grown; fold the rest here when little is left of it."""
        changed = self._writer_connection.total_changes
        if self._is_rest_small.is_set() or changed >= self._fold_here_at:
            self._fold_rest(changed)
        elif changed >= self._fold_at:
            self._fold_at = changed + NAME_FOLD_ROWS
            self._fold.set()

    def _fold_rest(self, changed: int) -> None:
        """Fold what is left, so that the next group begins the log at its front.

        Readers of what is in it are waited for, but not long: a backup reads on one snapshot for minutes.
        """
        self._is_rest_small.clear()
        is_busy = 1
        connection = self._writer_connection
        with contextlib.suppress(sqlite3.Error), self._folding:
            try:
                connection.execute(f"PRAGMA busy_timeout={_REST_WAIT_MS}").fetchone()
                is_busy, _, _ = connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
            finally:
                connection.execute(f"PRAGMA busy_timeout={NAME_LOCK_WAIT_MS}").fetchone()
        self._fold_at = changed + NAME_FOLD_ROWS
        # Another process folds, or a reader keeps an old snapshot: soon again.
        self._fold_here_at = changed + (2 * NAME_FOLD_ROWS if is_busy else NAME_LOG_ROWS_MAX)

    def _fold_loop(self) -> None:
        connection = self._connect()
        while True:
            self._fold.wait()
            if self._is_closing:
                return
            self._fold.clear()
            # What is written during a pass is for the next one, each shorter than the one before.
            for _ in range(_FOLD_PASSES_MAX):
                try:
                    with self._folding:
                        _, in_log, folded = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                except sqlite3.Error as error:
                    _log.warning("the log of the name store was not folded", error=str(error))
                    break
                if in_log - folded <= _REST_PAGES_MAX:
                    break
            self._is_rest_small.set()

    # --- connections -------------------------------------------------------------------------------------------

    def _connect(self) -> sqlite3.Connection:
        """A connection for one thread. Raises NameStoreUnavailable."""
        try:
            connection = sqlite3.connect(
                self.path, timeout=NAME_LOCK_WAIT_MS / 1000, isolation_level=None, check_same_thread=False
            )
            # A commit is durable when it returns; the log is folded into the file in the writer's pauses.
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA wal_autocheckpoint=0")
            connection.execute(f"PRAGMA cache_size=-{NAME_CACHE_BYTES // 1024}")
            connection.execute(f"PRAGMA mmap_size={NAME_MAPPED_BYTES}")
            connection.execute("PRAGMA temp_store=MEMORY")
        except sqlite3.Error as error:
            raise _unavailable(error) from error
        with self._wake:
            self._connections.append(connection)
        return connection

    async def close(self) -> None:
        """Finish the writes that were asked for, and close all connections."""
        with self._wake:
            self._is_closing = True
            self._wake.notify()
        await asyncio.get_running_loop().run_in_executor(None, self._close)

    def _close(self) -> None:
        self._writer.join()
        self._fold.set()
        self._folder.join()
        self._readers.shutdown()
        for connection in self._connections:
            with contextlib.suppress(sqlite3.Error):
                connection.close()


def backup_file(path: Path, target: Path, passed: Callable[[int, int], None]) -> None:
    """Copy a store that may be in use into a new file, complete and of one moment. Blocks.

    `passed` hears of the pages that are copied and of all there are. Raises NameStoreUnavailable.
    """
    try:
        with (
            contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as source,
            contextlib.closing(sqlite3.connect(target)) as copy,
        ):
            # One transaction reads all of it, so that writers do not make it begin again and again.
            source.backup(copy, pages=-1, progress=lambda _, left, total: passed(total - left, total))
            copy.execute("PRAGMA journal_mode=DELETE")
            copy.execute("DELETE FROM store WHERE key = 'restored'")
            copy.execute("INSERT INTO store (key, value) VALUES ('restored', '')")
            copy.commit()
    except sqlite3.Error as error:
        raise _unavailable(error) from error


def _answer(group: list[_Request]) -> None:
    """Wake whoever waits, once for each loop."""
    for loop in {request.loop for request in group}:
        mine = [request for request in group if request.loop is loop]
        # A loop that was closed has nobody waiting.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_resolve, mine)


def _resolve(group: list[_Request]) -> None:
    for request in group:
        request.resolve()


def _unavailable(error: sqlite3.Error) -> NameStoreUnavailable:
    """What an error of SQLite means to a caller: try again, nothing was changed. The cause is for the log."""
    name = getattr(error, "sqlite_errorname", "")
    what = "is locked by another process" if name.startswith(_BUSY) else "cannot be used"
    return NameStoreUnavailable(f"the name store {what}: {error}", is_certain=True)
