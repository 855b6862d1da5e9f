"""Opens a name store by its URL: `sqlite:PATH` or `postgresql://USER@HOST/DATABASE`. The schema is brought up first.

The store has an *epoch*: a number that says that its rows have a history of their own, and the moment at which that
began. A restored or rebuilt store has a new one. Positions of the feed hold within an epoch, and blobs that are older
than it are never taken for orphans.
"""

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Final

from ambry.errors import AmbryError, CannotStart, NameStoreUnavailable
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


def is_current(url: str) -> bool:
    """Whether the tables are those that this code knows; also makes the file. Raises as `open_database`."""
    if url.startswith(POSTGRES):
        with _postgres().connect(url) as connection:
            return schema.check_version(_postgres().version(connection), "PostgreSQL")
    if not url.startswith(SQLITE):
        raise CannotStart("the URL of a name store begins with sqlite: or postgresql://")
    path = Path(url.removeprefix(SQLITE))
    if not path.parent.is_dir():
        raise CannotStart(f"{path.parent}: there is no such folder for the name store")
    try:
        with closing(sqlite3.connect(path)) as opened:
            return schema.check_version(_sqlite_version(opened), str(path))
    except sqlite3.DatabaseError as error:
        raise CannotStart(f"{path}: the name store cannot be opened: {error}") from error


def upgrade(url: str) -> None:
    """Bring the tables up. Raises as `open_database`."""
    if url.startswith(POSTGRES):
        schema.upgrade_postgres(_postgres().connect(url))
    else:
        schema.upgrade_sqlite(Path(url.removeprefix(SQLITE)))


def create_sqlite(path: Path) -> bool:
    """Make all tables in a SQLite file that has none; False for one that has some. Raises CannotStart."""
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("BEGIN IMMEDIATE")
            if connection.execute("SELECT 1 FROM sqlite_master").fetchone() is not None:
                return False
            for statement in schema.SQLITE_TABLES.read_text("utf-8").split(";\n"):
                connection.execute(statement)
            connection.execute("COMMIT")
            return True
    except sqlite3.DatabaseError as error:
        raise CannotStart(f"{path}: the name store cannot be opened: {error}") from error


def upgrade_apart(url: str) -> None:
    """`upgrade` in a process of its own: what it imports takes 38 MiB, and a store that stays up never needs it again.

    Raises CannotStart.
    """
    command = [sys.executable, "-m", __name__]
    done = subprocess.run(command, input=url, capture_output=True, text=True, check=False)  # noqa: S603 -- our own program
    if done.returncode != 0:
        raise CannotStart(done.stderr.strip() or f"bringing the name store up ended with status {done.returncode}")


def open_database(url: str, bring_up: Callable[[str], None] = upgrade) -> Database:
    """Open a name store, its tables upgraded by `bring_up`, which is `upgrade` or `upgrade_apart`. Blocks.

    Raises CannotStart, NameStoreUnavailable.
    """
    path = Path(url.removeprefix(SQLITE)) if url.startswith(SQLITE) else None
    if not is_current(url) and (path is None or not create_sqlite(path)):
        bring_up(url)
    if path is not None:
        return SqliteDatabase(path)
    database: Database = _postgres().PostgresDatabase(url)
    return database


def _sqlite_version(connection: sqlite3.Connection) -> str | None:
    tables = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone()
    row = connection.execute(schema.VERSION_QUERY).fetchone() if tables is not None else None
    return None if row is None else str(row[0])


def _postgres() -> ModuleType:
    # Only whoever uses PostgreSQL pays for its driver: an embedded store starts in half the time without it.
    return import_module("ambry.names.postgres")


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


if __name__ == "__main__":  # the other end of `upgrade_apart`
    try:
        upgrade(sys.stdin.read())
    except AmbryError as error:
        sys.exit(str(error))
