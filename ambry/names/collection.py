"""What the name store no longer needs, as jobs: versions whose retention is over, names that expired, and the question
whether a blob has an owner.

Rows are walked in the order of the feed: a version is collected when a later row of its name has been there for the
retention, so nothing has to be looked at twice. A row goes after its blob; a crash in between repeats the delete.
Where the collector has got to is kept in the store itself, as is who collects at present: one process at a time.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from ambry.names.changes import OF_INDEX, begin_history, read_all
from ambry.names.rows import COLUMNS, Key, NameRow, RowKind, effective, moment_of, owns_its_blob, row_of
from ambry.names.sql import FOREVER, Dialect, Session

COLLECTOR: Final = "collector"
"""What the lease of upkeep is called."""

_FEED: Final = "collected"
_OF_NAME: Final = "account = ? AND container = ? AND name = ?"


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where in a feed: behind this row. Positions are compared within one epoch only."""

    xid: int = 0
    position: int = 0


@dataclass(frozen=True, slots=True)
class Superseded:
    """Rows of one name that are to go, and the blobs that have to be deleted before."""

    key: Key
    rows: tuple[NameRow, ...]
    blob_ids: tuple[bytes, ...]


# --- one at a time ---------------------------------------------------------------------------------------------


def take_lease(session: Session, holder: str, now_ms: int, until_ms: int, what: str = COLLECTOR) -> bool:
    """Whether this process does something until then. It may ask again before that moment."""
    session.lock(what.encode())
    lease = f"lease {what}"
    found = session.row("SELECT value FROM store WHERE key = ?", (lease,))
    if found is not None:
        other, _, moment = found[0].rpartition(" ")
        if other != holder and int(moment) > now_ms:
            return False
        if other == holder:
            # A request that was held up on its way must not cut short what a later one was given.
            until_ms = max(until_ms, int(moment))
    session.execute("DELETE FROM store WHERE key = ?", (lease,))
    session.execute("INSERT INTO store (key, value) VALUES (?, ?)", (lease, f"{holder} {until_ms}"))
    return True


def read_place(session: Session, source: str, epoch: str) -> Place:
    """How far something has been read; the beginning for another epoch."""
    found = session.row("SELECT xid, position FROM feeds WHERE source = ? AND epoch = ?", (source, epoch))
    return Place() if found is None else Place(*found)


def read_source(session: Session, source: str) -> tuple[str, Place]:
    """The epoch of a feed as it was read last, and how far."""
    found = session.row("SELECT epoch, xid, position FROM feeds WHERE source = ?", (source,))
    return ("", Place()) if found is None else (found[0], Place(found[1], found[2]))


def write_place(session: Session, source: str, epoch: str, place: Place, behind_ms: int, now_ms: int) -> None:
    """Remember how far something has been read, and by how much it is behind."""
    # One statement: a process whose lease has just ended may be writing the same row.
    session.execute(
        "INSERT INTO feeds (source, epoch, xid, position, behind_ms, read_ms) VALUES (?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (source) DO UPDATE SET epoch = excluded.epoch, xid = excluded.xid, position = excluded.position, "
        "behind_ms = excluded.behind_ms, read_ms = excluded.read_ms",
        (source, epoch, place.xid, place.position, behind_ms, now_ms),
    )


# --- the feed --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FeedRow:
    """A row with its place in the order of commits, and when it was written here."""

    place: Place
    arrived_ms: int
    row: NameRow


def read_feed(session: Session, after: Place, count_max: int, *, without_source: int | None = None) -> list[FeedRow]:
    """The rows behind a place in the order of their commits; no row appears before one of these afterwards.

    `without_source` leaves out what came from that datacentre.
    """
    where, parameters = "", []
    if without_source is not None:
        where, parameters = " AND source <> ?", [without_source]
    if session.dialect is Dialect.SQLITE:
        found = session.rows(
            f"SELECT 0, position, arrived_ms, {COLUMNS} FROM names WHERE position > ?{where} ORDER BY position LIMIT ?",
            (after.position, *parameters, count_max),
        )
    else:
        # A transaction below the oldest that is still open has ended: nothing can appear there any more.
        found = session.rows(
            f"SELECT xid, position, arrived_ms, {COLUMNS} FROM names WHERE (xid, position) > (?, ?)"
            f" AND xid < pg_snapshot_xmin(pg_current_snapshot())::text::bigint{where}"
            " ORDER BY xid, position LIMIT ?",
            (after.xid, after.position, *parameters, count_max),
        )
    return [FeedRow(Place(one[0], one[1]), one[2], row_of(one[3:])) for one in found]


def end_of_feed(session: Session) -> Place:
    """The place behind every row that a feed can have by now, wherever it came from."""
    if session.dialect is Dialect.SQLITE:
        found = session.row("SELECT 0, position FROM names ORDER BY position DESC LIMIT 1")
    else:
        found = session.row(
            "SELECT xid, position FROM names WHERE xid < pg_snapshot_xmin(pg_current_snapshot())::text::bigint"
            " ORDER BY xid DESC, position DESC LIMIT 1"
        )
    return Place() if found is None else Place(*found)


# --- versions whose time is over -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Step:
    """A step of the walk: what it found, and the place behind it; None: there is no row whose time is over.

    `held_ms` is how old the first row is that waits for another datacentre alone, 0 if there is none.
    """

    found: tuple[Superseded, ...]
    place: Place | None
    held_ms: int = 0


def find_superseded(
    session: Session,
    epoch: str,
    before_ms: int,
    versioned: Collection[tuple[int, int]],
    count_max: int,
    horizon: Place | None = None,
) -> Step:
    """What the next rows of the feed that are older than `before_ms` have superseded.

    Containers of `versioned` keep every version but those that were purged. Nothing behind `horizon` is looked at,
    and no name with a marker or a purge there: another datacentre may not know of it.
    """
    found: dict[Key, Superseded] = {}
    place = None
    held_ms = 0
    for one in read_feed(session, read_place(session, _FEED, epoch), count_max):
        if one.arrived_ms > before_ms:
            break
        if horizon is not None and one.place > horizon:
            held_ms = before_ms - one.arrived_ms
            break
        place = one.place
        key = one.row.key
        if key not in found:
            is_versioned = (key.account, key.container) in versioned
            found[key] = _superseded(key, read_all(session, key), before_ms, is_versioned=is_versioned)
            takes_away = any(row.kind in _TAKE_AWAY for row in found[key].rows)
            if horizon is not None and takes_away and _newest_taking_away(session, key) > horizon:
                # The walk comes to the row that waits, and then to this name again.
                found[key] = Superseded(key, (), ())
    return Step(tuple(one for one in found.values() if one.rows), place, held_ms)


_TAKE_AWAY: Final = frozenset({RowKind.MARKER, RowKind.PURGE})
"""Rows that take something away."""


def _newest_taking_away(session: Session, key: Key) -> Place:
    """Where the newest row of a name lies that takes something away."""
    xid = "0" if session.dialect is Dialect.SQLITE else "xid"
    found = session.rows(
        f"SELECT {xid}, position FROM names WHERE {_OF_NAME} AND kind IN (?, ?)",
        (key.account, key.container, key.name, *sorted(_TAKE_AWAY)),
    )
    return max((Place(*one) for one in found), default=Place())


def _superseded(key: Key, rows: list[NameRow], before_ms: int, *, is_versioned: bool) -> Superseded:
    """The rows of a name that nobody can ask for any more."""
    versions = effective(rows)
    kept: list[NameRow] = []
    if is_versioned:
        kept = versions
    else:
        # A version lives until the one above it is old enough.
        for at, row in enumerate(versions):
            if at == 0 or moment_of(versions[at - 1].version) > before_ms:
                kept.append(row)
        if len(kept) == 1 and kept[0].kind == RowKind.MARKER and moment_of(kept[0].version) <= before_ms:
            kept = []
    kept_versions = {(row.version, row.datacentre) for row in kept}
    gone = tuple(row for row in rows if (row.version, row.datacentre) not in kept_versions)
    blob_ids = tuple(
        row.blob_id for row in gone if row.kind in {RowKind.MARKER, RowKind.PURGE} or owns_its_blob(row, rows)
    )
    return Superseded(key, gone, blob_ids)


def drop_rows(session: Session, superseded: Collection[Superseded]) -> int:
    """Take rows away whose blobs are gone; how many."""
    count = 0
    for one in sorted(superseded, key=lambda each: each.key.lock()):
        session.lock(one.key.lock())
        for row in one.rows:
            count += session.execute(
                f"DELETE FROM names WHERE {OF_INDEX} AND version = ? AND datacentre = ? AND kind = ?",
                (row.account, row.container, row.name, row.version, row.datacentre, row.kind),
            )
        for blob_id in one.blob_ids:
            session.execute("DELETE FROM passed_on WHERE blob_id = ?", (blob_id,))
    return count


def finish_superseded(session: Session, epoch: str, place: Place, now_ms: int) -> None:
    """The rows up to this place have been dealt with."""
    write_place(session, _FEED, epoch, place, 0, now_ms)


# --- names that expired ----------------------------------------------------------------------------------------


def find_expired(session: Session, before_ms: int, count_max: int) -> list[Key]:
    """Names that expired before a moment."""
    found = session.rows(
        "SELECT account, container, name FROM current_names"
        f" WHERE expires_at_ms < ? AND expires_at_ms < {FOREVER} ORDER BY expires_at_ms LIMIT ?",
        (before_ms, count_max),
    )
    return [Key(*one) for one in found]


def drop_expired(session: Session, key: Key, before_ms: int) -> bool:
    """Take away a name all of whose versions have expired; datanodes drop the blobs. False: some have not."""
    session.lock(key.lock())
    versions = effective(read_all(session, key))
    if any(row.kind != RowKind.PUT or row.expires_at_ms >= before_ms for row in versions):
        return False
    of_key = (key.account, key.container, key.name)
    begin_history(session, key)
    session.execute(f"DELETE FROM current_names WHERE {_OF_NAME}", of_key)
    session.execute(f"DELETE FROM names WHERE {OF_INDEX}", of_key)
    return True


# --- owners ----------------------------------------------------------------------------------------------------


def is_owned(session: Session, key: Key, blob_id: bytes) -> bool:
    """Whether any row has this blob, which was put under this name."""
    if any(row.blob_id == blob_id for row in read_all(session, key)):
        return True
    return session.row("SELECT 1 FROM passed_on WHERE blob_id = ?", (blob_id,)) is not None
