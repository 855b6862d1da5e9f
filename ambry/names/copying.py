"""Copies a whole name store into a new one: SQLite to PostgreSQL and back, and the backup of a PostgreSQL store.

Everything is read on one snapshot, table by table in the order of the primary keys, and written in pages. Positions in
the feed are those of the new store, so its epoch is another one: whoever followed the old feed begins again.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ambry.errors import NotAllowed
from ambry.names.sql import Database, Row, Session


@dataclass(frozen=True, slots=True)
class Table:
    """A table, its columns, and those that its rows are ordered by."""

    name: str
    columns: tuple[str, ...]
    order: tuple[str, ...]


TABLES: Final = (
    Table("store", ("key", "value"), ("key",)),
    Table("numbers", ("kind", "next"), ("kind",)),
    Table("accounts", ("account", "name", "status", "snapshot", "created_ms", "changed_ms", "policy"), ("account",)),
    Table(
        "containers",
        ("account", "container", "name", "status", "snapshot", "created_ms", "changed_ms", "delete_ms", "policy"),
        ("account", "container"),
    ),
    Table(
        "access_keys",
        ("key_id", "account", "secret", "status", "created_ms", "changed_ms", "expires_at_ms", "rights"),
        ("key_id",),
    ),
    Table(
        "usage",
        ("account", "container", "source", "blobs", "bytes", "changed_ms"),
        ("account", "container", "source"),
    ),
    Table(
        "names",
        (
            "account",
            "container",
            "name",
            "version",
            "datacentre",
            "kind",
            "blob_id",
            "size",
            "created_ms",
            "expires_at_ms",
            "digest",
            "details",
            "passed_on",
            "source",
            "arrived_ms",
        ),
        ("position",),
    ),
    Table(
        "current_names",
        (
            "account",
            "container",
            "name",
            "version",
            "datacentre",
            "blob_id",
            "size",
            "created_ms",
            "expires_at_ms",
            "digest",
        ),
        ("account", "container", "name"),
    ),
    Table("passed_on", ("blob_id", "passed_ms"), ("blob_id",)),
    Table(
        "uploads",
        ("upload_id", "account", "container", "name", "status", "created_ms", "deadline_ms", "details"),
        ("upload_id",),
    ),
    Table(
        "parts",
        ("upload_id", "part", "blob_id", "size", "created_ms", "digest", "details"),
        ("upload_id", "part"),
    ),
)
"""All tables but `feeds`, whose positions mean nothing elsewhere; tests hold this to the schema."""

_PAGE: Final = 1000


async def copy_all(source: Database, target: Database, passed: Callable[[int], None]) -> dict[str, int]:
    """Copy every table; rows of each. `passed` hears of rows as they are written. Raises NotAllowed.

    The target must be new. A change of the source meanwhile is noticed at the end, and refused: stop the frontends.
    """
    await target.read(_check_empty)
    loop = asyncio.get_running_loop()

    def write(job: Callable[[Session], None]) -> None:
        # Called on the source's thread, while it holds its snapshot.
        asyncio.run_coroutine_threadsafe(target.write(job), loop).result()

    before = await source.read(_state)
    counts = await source.read(lambda session: _copy_tables(session, write, passed))
    if await source.read(_state) != before:
        raise NotAllowed("the name store was changed while it was copied; stop its frontends, and begin with a new one")
    return counts


def _check_empty(session: Session) -> None:
    for table in TABLES:
        if session.row(f"SELECT 1 FROM {table.name} LIMIT 1") is not None:
            raise NotAllowed(f"the target is not new: it has rows in {table.name}")


def _state(session: Session) -> tuple[Row | None, ...]:
    """What changes with every change of names or accounts."""
    return (
        session.row("SELECT MAX(position), COUNT(*) FROM names"),
        session.row("SELECT COUNT(*) FROM access_keys"),
        session.row("SELECT value FROM store WHERE key = 'access_version'"),
        session.row("SELECT COUNT(*) FROM parts"),
    )


def _copy_tables(
    session: Session, write: Callable[[Callable[[Session], None]], None], passed: Callable[[int], None]
) -> dict[str, int]:
    counts: dict[str, int] = {}
    for table in TABLES:
        counts[table.name] = 0
        insert = f"INSERT INTO {table.name} ({', '.join(table.columns)}) VALUES ({', '.join('?' * len(table.columns))})"
        after: Row = ()
        while rows := _page(session, table, after):
            after = rows[-1][: len(table.order)]
            values = [row[len(table.order) :] for row in rows]
            write(lambda target: target.execute_many(insert, values))  # noqa: B023 -- written before this turn ends
            counts[table.name] += len(rows)
            passed(len(rows))
    return counts


def _page(session: Session, table: Table, after: Row) -> list[Row]:
    """The next rows: the columns that they are ordered by, then all columns."""
    columns = ", ".join((*table.order, *table.columns))
    order = ", ".join(table.order)
    where = f" WHERE ({order}) > ({', '.join('?' * len(after))})" if after else ""
    return session.rows(f"SELECT {columns} FROM {table.name}{where} ORDER BY {order} LIMIT {_PAGE}", after)


def mark_restored(session: Session) -> None:
    """Whoever opens this copy next gives it an epoch of its own."""
    session.execute("DELETE FROM store WHERE key = 'restored'")
    session.execute("INSERT INTO store (key, value) VALUES ('restored', '')")
