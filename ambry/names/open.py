"""Opens a name store by its URL: `sqlite:PATH` or `postgresql://USER@HOST/DATABASE`. The schema is brought up first.

The store has an *epoch*: a number that says that its rows have a history of their own, and the moment at which that
began. A restored or rebuilt store has a new one. Positions of the feed hold within an epoch, and blobs that are older
than it are never taken for orphans.
"""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ambry.errors import CannotStart, NameStoreUnavailable
from ambry.names import schema
from ambry.names.sql import Database, Session
from ambry.names.sqlite import SqliteDatabase

SQLITE: Final = "sqlite:"
POSTGRES: Final = ("postgresql://", "postgres://")

FILE_NAME: Final = "names.sqlite"
"""The name store in the data directory of an embedded store."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """The history that the store's rows belong to."""

    number: str
    started_ms: int


def sqlite_url(folder: Path) -> str:
    """URL of the name store in a data directory."""
    return f"{SQLITE}{folder / FILE_NAME}"


def open_database(url: str) -> Database:
    """Open a name store, making or upgrading its tables. Blocks. Raises CannotStart, NameStoreUnavailable."""
    if url.startswith(SQLITE):
        return _open_sqlite(Path(url.removeprefix(SQLITE)))
    if url.startswith(POSTGRES):
        return _open_postgres(url)
    raise CannotStart("the URL of a name store begins with sqlite: or postgresql://")


def _open_sqlite(path: Path) -> Database:
    if not path.parent.is_dir():
        raise CannotStart(f"{path.parent}: there is no such folder for the name store")
    try:
        with closing(sqlite3.connect(path)) as connection:
            found = _sqlite_version(connection)
        if not schema.check_version(found, str(path)):
            schema.upgrade_sqlite(path)
    except sqlite3.DatabaseError as error:
        raise CannotStart(f"{path}: the name store cannot be opened: {error}") from error
    return SqliteDatabase(path)


def _sqlite_version(connection: sqlite3.Connection) -> str | None:
    tables = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone()
    row = connection.execute(schema.VERSION_QUERY).fetchone() if tables is not None else None
    return None if row is None else str(row[0])


def _open_postgres(url: str) -> Database:
    # Only whoever uses PostgreSQL pays for its driver.
    from ambry.names import postgres  # noqa: PLC0415 -- an embedded store starts in half the time without it

    with postgres.connect(url) as connection:
        found = postgres.version(connection)
    if not schema.check_version(found, "PostgreSQL"):
        schema.upgrade_postgres(postgres.connect(url))
    return postgres.PostgresDatabase(url)


async def ensure_epoch(database: Database, new_number: Callable[[], str], now_ms: int) -> Epoch:
    """The epoch of the store; a new one for a store that is new or was restored from a backup."""

    def ensure(session: Session) -> Epoch:
        session.lock(b"epoch")
        known: dict[str, str] = dict(session.rows("SELECT key, value FROM store"))
        if "epoch" in known and "restored" not in known:
            return Epoch(known["epoch"], int(known["epoch_started_ms"]))
        return begin_epoch(session, new_number(), now_ms)

    return await database.write(ensure)


def begin_epoch(session: Session, number: str, now_ms: int) -> Epoch:
    """Give the store a new history."""
    session.execute("DELETE FROM store WHERE key IN ('epoch', 'epoch_started_ms', 'restored')")
    session.execute_many(
        "INSERT INTO store (key, value) VALUES (?, ?)", [("epoch", number), ("epoch_started_ms", str(now_ms))]
    )
    return Epoch(number, now_ms)


def read_epoch(session: Session) -> Epoch:
    """The epoch of a store that has one. Raises NameStoreUnavailable for one that has not."""
    known: dict[str, str] = dict(session.rows("SELECT key, value FROM store"))
    if "epoch" not in known:
        raise NameStoreUnavailable("the name store has no epoch", is_certain=True)
    return Epoch(known["epoch"], int(known["epoch_started_ms"]))
