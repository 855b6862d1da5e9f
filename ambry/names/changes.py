"""Changes of names, as jobs for `Database.write`: put, delete, purge, move, extend, and rows from elsewhere.

Each locks its names, reads what is there, decides, and writes rows; a table of current rows is kept with them in the
same transaction. So of several creates of one name exactly one goes through. Blobs are not touched here: whoever asks
for a change has stored the blob before, and deletes afterwards what a change has set free.

Most names have one row for ever, and names come in no order: each table or index that is sorted by names costs a page
for each of them. So the row of such a name is *alone*: it is in no index, and the current row says its position.
`begin_history` puts it into the index before the name gets another row; it never becomes alone again.
Invariant: a row that is alone is a PUT, the only row of its name, and the current row of the name has its position.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from ambry.blob.blob_id import text_from_binary
from ambry.errors import AmbryError, NameDeleted, NameExists, NameNotFound, NotAllowed, PreconditionFailed
from ambry.names.rows import (
    COLUMNS,
    CURRENT_COLUMNS,
    Current,
    Key,
    NameRow,
    RowKind,
    current_of,
    effective,
    owns_its_blob,
    row_of,
)
from ambry.names.sql import FOREVER, Dialect, Session

_Item = TypeVar("_Item")

_TOGETHER_MAX: Final = 64
"""Rows of one statement; a power of two."""

HERE: Final = 0
"""Source of rows that were made here; rows from elsewhere have the number of the datacentre that they came from."""

ANY: Final = "*"

_INSERT: Final = f"INSERT INTO names ({COLUMNS}, source, arrived_ms) VALUES ({', '.join('?' * 15)})"
_INSERT_IF_NEW: Final = f"{_INSERT} ON CONFLICT DO NOTHING"
_ALONE: Final = f"({', '.join('?' * 15)}, 1)"
_INSERT_ALONE: Final = f"INSERT INTO names ({COLUMNS}, source, arrived_ms, is_alone) VALUES {_ALONE}"
_OF_NAME: Final = "account = ? AND container = ? AND name = ?"
OF_INDEX: Final = f"is_alone = 0 AND {_OF_NAME}"
"""Rows of a name with a history. Only a query that says so can use the index."""

_COPIED: Final = f"account, container, name, {CURRENT_COLUMNS}, position"
_INSERT_CURRENT: Final = f"INSERT INTO current_names ({_COPIED})"
_LAST_ROWS: Final = f"{_INSERT_CURRENT} SELECT {_COPIED} FROM names WHERE position > last_insert_rowid() - ?"
"""SQLite: one writer at a time, so the rows of one INSERT have positions that follow each other."""

_SET_CURRENT: Final = f"""INSERT INTO current_names (account, container, name, {CURRENT_COLUMNS})
VALUES ({", ".join("?" * 10)}) ON CONFLICT (account, container, name) DO UPDATE
SET version = excluded.version, datacentre = excluded.datacentre, blob_id = excluded.blob_id, size = excluded.size,
created_ms = excluded.created_ms, expires_at_ms = excluded.expires_at_ms, digest = excluded.digest, position = 0"""
_DROP_CURRENT: Final = f"DELETE FROM current_names WHERE {_OF_NAME}"
_NEWEST: Final = f"""SELECT version, kind FROM names WHERE {OF_INDEX}
ORDER BY version DESC, datacentre DESC, kind DESC LIMIT 1"""
_CURRENT: Final = f"SELECT {CURRENT_COLUMNS}, position FROM current_names WHERE {_OF_NAME}"
_ALL: Final = f"SELECT {COLUMNS} FROM names WHERE {OF_INDEX}"
_POSITION: Final = f"position = (SELECT position FROM current_names WHERE {_OF_NAME})"
_ONLY: Final = f"SELECT {COLUMNS} FROM names WHERE {_POSITION}"


@dataclass(frozen=True, slots=True)
class Condition:
    """What must hold for a change. ETags are in quotes, as HTTP has them; `ANY` is whatever there is.

    Without any, a put over a name that exists is NameExists unless `upsert` says that it may be replaced.
    """

    upsert: bool = False
    if_match: frozenset[str] | None = None
    if_none_match: frozenset[str] | None = None

    def check(self, etags: frozenset[str]) -> None:
        """Whether a change may be made of a name whose live blob has these ETags. Raises PreconditionFailed."""
        if self.if_match is not None and not (self.if_match & etags or (ANY in self.if_match and etags)):
            raise PreconditionFailed("the name does not stand for what If-Match says")
        if self.if_none_match is not None and (self.if_none_match & etags or (ANY in self.if_none_match and etags)):
            raise PreconditionFailed("the name stands for what If-None-Match says")

    def check_put(self, etags: frozenset[str]) -> None:
        """The same for a put, which also may not replace anything unasked. Raises NameExists, PreconditionFailed."""
        self.check(etags)
        is_conditional = self.if_match is not None or self.if_none_match is not None
        if etags and not (self.upsert or is_conditional):
            raise NameExists("the name exists; x-ambry-named-upsert: true replaces what it stands for")


_NO_ETAGS: Final[frozenset[str]] = frozenset()

UNCONDITIONAL: Final = Condition(upsert=True)


@dataclass(frozen=True, slots=True)
class Moved:
    """Both rows of a move, and what the target stood for before."""

    source: NameRow
    target: NameRow


def etags_of(current: Current | None, now_ms: int) -> frozenset[str]:
    """What conditions may call the live blob of a name: its id, and its digest where it has one. Empty: none is."""
    if current is None or current.is_expired(now_ms):
        return frozenset()
    found = {f'"{text_from_binary(current.blob_id)}"'}
    if current.digest:
        found.add(f'"{current.digest}"')
    return frozenset(found)


# --- changes ---------------------------------------------------------------------------------------------------


def put(session: Session, row: NameRow, condition: Condition, now_ms: int) -> NameRow:
    """Let a name stand for a blob. The row that was written has a version above all that are known.

    Raises NameExists, PreconditionFailed.
    """
    key = row.key
    session.lock(key.lock())
    current, position = _current_and_position(session, key)
    condition.check_put(etags_of(current, now_ms))
    newest = (current.version, RowKind.PUT) if current is not None and position else _newest_of_history(session, key)
    if newest is None:
        _insert_alone(session, [row], HERE, now_ms)
        return row
    row = row.at_version(max(row.version, newest[0] + 1))
    begin_history(session, key)
    _insert(session, row, now_ms)
    _set_current(session, row)
    return row


def put_each(session: Session, puts: Sequence[tuple[NameRow, Condition]], now_ms: int) -> list[NameRow | AmbryError]:
    """Put names that have nothing to do with each other in few statements. Each goes through, or fails, by itself.

    Each statement gives up the interpreter's lock, and gets it back only when the loop lets go of it: that, not SQL, is
    what a put costs. So names that are new, which is most of them, are looked up and written many at a time.
    """
    outcomes: dict[int, NameRow | AmbryError] = {}
    # Plain tuples, since they are compared and hashed several times for each put.
    keys = [(row.account, row.container, row.name) for row, _ in puts]
    if session.dialect is not Dialect.SQLITE:
        # SQLite has one writer at a time, and it has the lock already.
        for lock in sorted({row.key.lock() for row, _ in puts}):
            session.lock(lock)
    known = _known(session, keys)
    new: list[NameRow] = []
    for number, (key, (row, condition)) in enumerate(zip(keys, puts, strict=True)):
        if key not in known:
            try:
                condition.check_put(_NO_ETAGS)
            except AmbryError as error:
                outcomes[number] = error
            else:
                known.add(key)
                new.append(row)
                outcomes[number] = row
    _insert_alone(session, new, HERE, now_ms)
    for number, (row, condition) in enumerate(puts):
        if number not in outcomes:
            try:
                outcomes[number] = put(session, row, condition, now_ms)
            except AmbryError as error:
                # Raised before anything was changed.
                outcomes[number] = error
    return [outcomes[number] for number in range(len(puts))]


def put_many(session: Session, rows: Iterable[NameRow], condition: Condition, now_ms: int) -> list[NameRow]:
    """Put several names in one transaction: all of them, or none. Raises as `put`."""
    ordered = sorted(rows, key=lambda row: (row.key.lock(), row.version))
    return [put(session, row, condition, now_ms) for row in ordered]


def delete(session: Session, marker: NameRow, condition: Condition, now_ms: int) -> NameRow | None:
    """Write a delete marker. None: the name was deleted before, and nothing was to do.

    Raises NameNotFound, PreconditionFailed.
    """
    assert marker.kind == RowKind.MARKER
    key = marker.key
    session.lock(key.lock())
    newest = _newest(session, key)
    if newest is None:
        condition.check(frozenset())
        raise NameNotFound("there is nothing under this name")
    current = read_current(session, key)
    condition.check(etags_of(current, now_ms))
    if current is None:
        return None
    marker = marker.at_version(max(marker.version, newest[0] + 1))
    begin_history(session, key)
    _insert(session, marker, now_ms)
    session.execute(_DROP_CURRENT, _of(key))
    return marker


def purge(session: Session, key: Key, version: tuple[int, int], record: bytes, now_ms: int) -> bytes | None:
    """Take one version away for good. Returns the blob that has no owner any more, if any.

    `record` is the zero-byte record that says the same in the logs. Purging a marker lets the version below it appear
    again; purging it once more changes nothing. Raises NameNotFound.
    """
    session.lock(key.lock())
    rows = read_all(session, key)
    found = next((row for row in rows if (row.version, row.datacentre) == version and row.kind <= RowKind.MARKER), None)
    if found is None:
        raise NameNotFound("the name has no such version")
    if found.kind == RowKind.MARKER and found.passed_on:
        raise NotAllowed("this version says where the blob went; it is no delete that could be undone")
    mark = NameRow(key.account, key.container, key.name, *version, RowKind.PURGE, record, 0, now_ms, FOREVER)
    begin_history(session, key)
    session.execute(_INSERT_IF_NEW, (*mark.values(), HERE, now_ms))
    _settle(session, key, [*rows, mark])
    return found.blob_id if found.kind == RowKind.MARKER or owns_its_blob(found, rows) else None


def move(session: Session, source: NameRow, target: Key, blob_id: bytes, condition: Condition, now_ms: int) -> Moved:
    """Give a name's blob another name: in one transaction the new name has it and the old one is gone.

    `source` is the marker that is left, its version a proposal; `blob_id` is what the marker's record says that the
    name stands for. Raises NameNotFound, NameExists, PreconditionFailed also when that is no longer so.
    """
    assert source.kind == RowKind.MARKER
    assert (source.account, source.container) == (target.account, target.container)
    if source.name == target.name:
        raise NotAllowed("a name cannot be moved to itself")
    for lock in sorted((source.key.lock(), target.lock())):
        session.lock(lock)
    current = read_current(session, source.key)
    if current is None or current.is_expired(now_ms):
        raise NameNotFound("there is nothing under the name that is to be moved")
    if current.blob_id != blob_id:
        raise PreconditionFailed("the name stands for another blob since it was looked up")
    condition.check_put(etags_of(read_current(session, target), now_ms))
    newest = [_newest(session, key) for key in (source.key, target)]
    version = max([source.version, *(one[0] + 1 for one in newest if one is not None)])
    marker = NameRow(
        source.account,
        source.container,
        source.name,
        version,
        source.datacentre,
        RowKind.MARKER,
        source.blob_id,
        0,
        source.created_ms,
        passed_on=current.blob_id,
    )
    moved = NameRow(
        target.account,
        target.container,
        target.name,
        version,
        source.datacentre,
        RowKind.PUT,
        current.blob_id,
        current.size,
        current.created_ms,
        current.expires_at_ms,
        current.digest,
    )
    begin_history(session, source.key)
    begin_history(session, target)
    _insert(session, marker, now_ms)
    _insert(session, moved, now_ms)
    session.execute(_DROP_CURRENT, _of(source.key))
    _set_current(session, moved)
    # Its put record still names the old name, whose row may be collected before the blob is gone.
    session.execute("INSERT INTO passed_on VALUES (?, ?) ON CONFLICT DO NOTHING", (current.blob_id, now_ms))
    return Moved(marker, moved)


def extend(session: Session, key: Key, version: tuple[int, int], expires_at_ms: int, now_ms: int) -> None:
    """Let a version of a name live longer; its blob was extended before. Never shortens. Raises NameNotFound."""
    session.lock(key.lock())
    rows = read_all(session, key)
    found = next(
        (row for row in effective(rows) if (row.version, row.datacentre) == version and row.kind == RowKind.PUT), None
    )
    if found is None:
        raise NameNotFound("the name has no such version")
    if expires_at_ms <= found.expires_at_ms:
        return
    begin_history(session, key)
    _write_extension(session, found, expires_at_ms, HERE, now_ms)
    _settle(session, key, read_all(session, key))


def apply(session: Session, rows: Iterable[NameRow], source: int, now_ms: int) -> int:
    """Take over rows that were made elsewhere. In any order, any number of times; how many of them were new."""
    count = 0
    by_key: dict[Key, list[NameRow]] = {}
    for row in rows:
        by_key.setdefault(row.key, []).append(row)
    for key in sorted(by_key, key=Key.lock):
        session.lock(key.lock())
        count += _apply_to(session, key, by_key[key], source, now_ms)
    return count


def _apply_to(session: Session, key: Key, rows: list[NameRow], source: int, now_ms: int) -> int:
    """Take over rows of one name."""
    for row in rows:
        if row.passed_on:
            session.execute("INSERT INTO passed_on VALUES (?, ?) ON CONFLICT DO NOTHING", (row.passed_on, now_ms))
    known = {(row.version, row.datacentre, row.kind) for row in read_all(session, key)}
    # An extension that is known may be a later one: `_write_extension` looks.
    new = [row for row in rows if row.kind == RowKind.EXTEND or (row.version, row.datacentre, row.kind) not in known]
    if not known and len(new) == 1 and new[0].kind == RowKind.PUT:
        _insert_alone(session, new, source, now_ms)
        return 1
    if not new:
        return 0
    begin_history(session, key)
    count = 0
    for row in new:
        if row.kind == RowKind.EXTEND:
            count += _write_extension(session, row, row.expires_at_ms, source, now_ms)
        else:
            count += max(session.execute(_INSERT_IF_NEW, (*row.values(), source, now_ms)), 0)
    if count:
        _settle(session, key, read_all(session, key))
    return count


def begin_history(session: Session, key: Key) -> None:
    """Before a name gets another row than its only one: from here on its rows are found in the index."""
    if session.execute(f"UPDATE names SET is_alone = 0 WHERE {_POSITION}", _of(key)) == 1:
        session.execute(f"UPDATE current_names SET position = 0 WHERE {_OF_NAME}", _of(key))


# --- what there is ---------------------------------------------------------------------------------------------


def read_current(session: Session, key: Key) -> Current | None:
    """What a name stands for; None if it does not exist. It may have expired."""
    return _current_and_position(session, key)[0]


def read_all(session: Session, key: Key) -> list[NameRow]:
    """Every row of a name."""
    return [row_of(found) for found in session.rows(_ALL, _of(key)) or session.rows(_ONLY, _of(key))]


def is_known(session: Session, key: Key) -> bool:
    """Whether there is any row of this name."""
    return _newest(session, key) is not None


def find(session: Session, key: Key) -> Current:
    """What a name stands for. Raises NameNotFound, and NameDeleted while its marker is known."""
    current = read_current(session, key)
    if current is None:
        if _newest(session, key) is None:
            raise NameNotFound("there is nothing under this name")
        raise NameDeleted("the name was deleted")
    return current


def find_version(session: Session, key: Key, version: tuple[int, int]) -> NameRow:
    """One version of a name that still has its blob. Raises NameNotFound, NameDeleted."""
    rows = read_all(session, key)
    for row in effective(rows):
        if (row.version, row.datacentre) == version:
            if not owns_its_blob(row, rows):
                raise NameDeleted("this version is a delete marker, or its blob has another name now")
            return row
    if any((row.version, row.datacentre) == version for row in rows):
        raise NameDeleted("this version was removed")
    raise NameNotFound("the name has no such version")


# --- steps -----------------------------------------------------------------------------------------------------


def _of(key: Key) -> tuple[int, int, bytes]:
    return key.account, key.container, key.name


def _current_and_position(session: Session, key: Key) -> tuple[Current | None, int]:
    """What a name stands for, and where its row is if that is alone; else 0."""
    found = session.row(_CURRENT, _of(key))
    return (None, 0) if found is None else (Current(*found[:-1]), found[-1])


def _newest(session: Session, key: Key) -> tuple[int, int] | None:
    """Highest version that was ever used for this name, and the kind of its row."""
    current, position = _current_and_position(session, key)
    if current is not None and position:
        return current.version, RowKind.PUT
    return _newest_of_history(session, key)


def _newest_of_history(session: Session, key: Key) -> tuple[int, int] | None:
    """The same of a name whose row is not alone."""
    found = session.row(_NEWEST, _of(key))
    return None if found is None else (found[0], found[1])


def _insert(session: Session, row: NameRow, now_ms: int) -> None:
    session.execute(_INSERT, (*row.values(), HERE, now_ms))


def _known(session: Session, keys: list[tuple[int, int, bytes]]) -> set[tuple[int, int, bytes]]:
    """Those names that have any row, as account, container and name."""
    found: set[tuple[int, int, bytes]] = set()
    for part in _in_powers_of_two(keys):
        asked = ", ".join(["(?, ?, ?)"] * len(part))
        sql = f"""WITH asked (account, container, name) AS (VALUES {asked}) SELECT account, container, name FROM asked
WHERE EXISTS (SELECT 1 FROM current_names AS known WHERE known.account = asked.account
AND known.container = asked.container AND known.name = asked.name)
OR EXISTS (SELECT 1 FROM names AS known WHERE known.is_alone = 0 AND known.account = asked.account
AND known.container = asked.container AND known.name = asked.name)"""
        found.update(session.rows(sql, [value for key in part for value in key]))
    return found


def _insert_alone(session: Session, rows: list[NameRow], source: int, now_ms: int) -> None:
    """Rows of names that have none, and what these names stand for from now on."""
    for part in _in_powers_of_two(rows):
        insert = _INSERT_ALONE + f", {_ALONE}" * (len(part) - 1)
        values = [value for row in part for value in (*row.values(), source, now_ms)]
        if session.dialect is Dialect.SQLITE:
            session.execute(insert, values)
            session.execute(_LAST_ROWS, (len(part),))
        else:
            made = f"WITH made AS ({insert} RETURNING {_COPIED})"
            session.execute(f"{made} {_INSERT_CURRENT} SELECT {_COPIED} FROM made", values)


def _in_powers_of_two(items: Sequence[_Item]) -> Iterator[Sequence[_Item]]:
    """Parts of few sizes, so that few statements have to be compiled and kept."""
    at, size = 0, _TOGETHER_MAX
    while at < len(items):
        while size > len(items) - at:
            size //= 2
        yield items[at : at + size]
        at += size


def _set_current(session: Session, row: NameRow) -> None:
    """What a name with a history stands for."""
    session.execute(
        _SET_CURRENT,
        (
            row.account,
            row.container,
            row.name,
            row.version,
            row.datacentre,
            row.blob_id,
            row.size,
            row.created_ms,
            row.expires_at_ms,
            row.digest,
        ),
    )


def _settle(session: Session, key: Key, rows: list[NameRow]) -> None:
    """Make the table of current rows agree with all rows of a name."""
    versions = effective(rows)
    if current_of(versions) is None:
        session.execute(_DROP_CURRENT, _of(key))
    else:
        _set_current(session, versions[0])


def _write_extension(session: Session, row: NameRow, expires_at_ms: int, source: int, now_ms: int) -> int:
    """One row for the latest expiry of a version; the maximum wins, so its order does not matter. 1 if it is new."""
    of_version = (row.account, row.container, row.name, row.version, row.datacentre, RowKind.EXTEND)
    where = f"{OF_INDEX} AND version = ? AND datacentre = ? AND kind = ?"
    known = session.row(f"SELECT expires_at_ms FROM names WHERE {where}", of_version)
    if known is not None and known[0] >= expires_at_ms:
        return 0
    # Not changed in place: whoever follows the feed finds it at a new position.
    session.execute(f"DELETE FROM names WHERE {where}", of_version)
    extension = NameRow(*of_version, row.blob_id, 0, now_ms, expires_at_ms)
    session.execute(_INSERT, (*extension.values(), source, now_ms))
    return 1
