"""Lists of names and of versions, page by page, as jobs for `Database.read`.

A list walks the table of current rows in the order of names, and answers from that table alone. With a delimiter it
skips: what begins with a common prefix is left out by one seek behind it, so a folder of a million names costs as much
as one of two. A page never looks at more than a bounded number of rows; it may be short and have a token all the same.

The database does the walk and hands over a page as one value, a JSON array of rows: each row that is fetched by itself
gives up the interpreter's lock and has to get it back from a busy loop, a thousand times for a page.

A token says where the next page begins: bytes of a name that it is behind, or of a prefix that it is past. It holds for
any list of the same container, prefix and delimiter.
"""

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from ambry.errors import BadRequest
from ambry.limits import NAME_BYTES_MAX, NAME_LIST_ROWS_MAX
from ambry.names.changes import read_all
from ambry.names.name import after_prefix
from ambry.names.rows import Current, Key, NameRow, effective
from ambry.names.sql import Dialect, Session

_FIRST: Final = b"\x00"
"""Sorts before every name."""

_LAST: Final = b"\xff"
"""Sorts behind every name, which is UTF-8."""

_FETCH_MIN: Final = 16
_FETCH_MAX: Final = 1001
"""Rows of one statement."""

_COLUMNS: Final = {
    Dialect.SQLITE: "json_array(CAST(row.name AS TEXT), hex(row.blob_id), row.version, row.datacentre, row.size,"
    " row.created_ms, row.expires_at_ms, row.digest)",
    Dialect.POSTGRES: "json_build_array(convert_from(row.name, 'UTF8'), upper(encode(row.blob_id, 'hex')), row.version,"
    " row.datacentre, row.size, row.created_ms, row.expires_at_ms, row.digest)",
}
"""A row of a page; see `ListRow`."""

_RANGE: Final = """SELECT * FROM current_names
WHERE account = ? AND container = ? AND name < ? AND name >= ? ORDER BY name LIMIT ?"""
_ALL: Final = {
    Dialect.SQLITE: f"SELECT json_group_array({_COLUMNS[Dialect.SQLITE]}) FROM ({_RANGE}) AS row",
    Dialect.POSTGRES: f"SELECT json_agg({_COLUMNS[Dialect.POSTGRES]} ORDER BY row.name)::text FROM ({_RANGE}) AS row",
}
"""The names between two bounds."""

_CUT: Final = {
    Dialect.SQLITE: "CASE WHEN row.expires_at_ms <= now_ms THEN 0 ELSE instr(substr(row.name, rest_at), delimiter) END",
    Dialect.POSTGRES: "CASE WHEN row.expires_at_ms <= now_ms THEN 0"
    " ELSE position(delimiter IN substr(row.name, rest_at)) END",
}
"""Where the delimiter is, in the rest of a name behind the prefix, counted from 1. 0: nowhere, or the name is gone."""

_SKIPPING_OF: Final = {
    Dialect.SQLITE: """WITH RECURSIVE
asked (in_account, in_container, stop, now_ms, rest_at, delimiter, behind) AS (VALUES (?, ?, ?, ?, ?, ?, ?)),
walk (following, told) AS (
SELECT ?, NULL
UNION ALL
SELECT CASE {cut} WHEN 0 THEN CAST(row.name || x'00' AS BLOB)
ELSE CAST(substr(row.name, 1, rest_at - 2 + {cut}) || behind AS BLOB) END,
CASE {cut} WHEN 0 THEN {columns}
ELSE json_array(CAST(substr(row.name, 1, rest_at - 2 + {cut} + length(delimiter)) AS TEXT)) END
FROM walk CROSS JOIN asked CROSS JOIN current_names AS row
ON row.account = in_account AND row.container = in_container AND row.name = (
SELECT name FROM current_names WHERE account = in_account AND container = in_container
AND name < stop AND name >= following ORDER BY name LIMIT 1)
LIMIT 1 + ?)
SELECT json_group_array(json(told)) FROM walk WHERE told IS NOT NULL""",
    Dialect.POSTGRES: """WITH RECURSIVE
asked (in_account, in_container, stop, now_ms, rest_at, delimiter, behind) AS (
SELECT ?::bigint, ?::bigint, ?::bytea, ?::bigint, ?::int, ?::bytea, ?::bytea),
walk (number, following, told) AS (
SELECT 0, ?::bytea, NULL::json
UNION ALL
SELECT number + 1, CASE {cut} WHEN 0 THEN row.name || '\\x00'::bytea
ELSE substr(row.name, 1, rest_at - 2 + {cut}) || behind END,
CASE {cut} WHEN 0 THEN {columns}
ELSE json_build_array(convert_from(substr(row.name, 1, rest_at - 2 + {cut} + length(delimiter)), 'UTF8')) END
FROM walk CROSS JOIN asked CROSS JOIN LATERAL (
SELECT * FROM current_names WHERE account = in_account AND container = in_container
AND name < stop AND name >= following ORDER BY name LIMIT 1) AS row
WHERE number < ?)
SELECT json_agg(told ORDER BY number)::text FROM walk WHERE number > 0""",
}
"""The same, and of names that go on behind a delimiter only the common prefix: every row is found by a seek behind the
one before. (SQLite joins twice, since a subquery has one column; PostgreSQL would look at the whole table for that.)"""

_SKIPPING: Final = {
    dialect: text.format(cut=_CUT[dialect], columns=_COLUMNS[dialect]) for dialect, text in _SKIPPING_OF.items()
}

ListRow: TypeAlias = list[Any]
"""A row of a page, as the databases make it: name, blob id in hexadecimal, version, datacentre, size, created_ms,
expires_at_ms, digest. Or one element: a common prefix that stands for all names below it."""


@dataclass(frozen=True, slots=True)
class Query:
    """Which names of a container. `start_after` and a token's place are bounds; the later one counts."""

    account: int
    container: int
    prefix: bytes = b""
    delimiter: bytes = b""
    start_after: bytes = b""
    token: str | None = None
    count_max: int = 1000


@dataclass(frozen=True, slots=True)
class Entry:
    """A name and what it stands for, or a common prefix that stands for all names below it."""

    name: bytes
    current: Current | None


@dataclass(frozen=True, slots=True)
class Page:
    """Names and common prefixes in the order of their bytes. `token` is None on the last page."""

    rows: list[ListRow]
    token: str | None

    @property
    def entries(self) -> list[Entry]:
        """The rows as values."""
        return [_entry_of(row) for row in self.rows]


@dataclass(frozen=True, slots=True)
class VersionPage:
    """Versions in the order of names, newest first; only what counts, as `rows.effective` has it."""

    versions: list[NameRow]
    token: str | None


def list_names(session: Session, query: Query, now_ms: int) -> Page:
    """A page of names that exist. Raises BadRequest for a token that is none."""
    start = max(_start_of(query), query.prefix, _FIRST)
    stop = after_prefix(query.prefix) or _LAST
    # One more than was asked for: the next page begins with it. Of few, enough to pass some names that have expired.
    size = min(max(query.count_max + 1, _FETCH_MIN), _FETCH_MAX)
    rows: list[ListRow] = []
    read = 0
    while start < stop:
        found = _fetch(session, query, start, stop, now_ms, size)
        rows += [row for row in found if len(row) == 1 or row[_EXPIRY_AT] > now_ms]
        if len(rows) > query.count_max:
            return Page(rows[: query.count_max], _token(_name_of(rows[query.count_max])))
        if len(found) < size:
            break
        read += len(found)
        last = found[-1]
        if read > NAME_LIST_ROWS_MAX:
            if rows and rows[-1] is last:
                rows.pop()
            return Page(rows, _token(_name_of(last)))
        size = min(4 * size, _FETCH_MAX)
        start = _name_of(last) + _FIRST if len(last) > 1 else after_prefix(_name_of(last)) or stop
    return Page(rows, None)


def _fetch(session: Session, query: Query, start: bytes, stop: bytes, now_ms: int, count: int) -> list[ListRow]:
    """The next rows, some of which may have expired; fewer than `count` only at the end."""
    container, delimiter = (query.account, query.container), query.delimiter
    if delimiter:
        behind = after_prefix(delimiter)
        assert behind is not None, "it is UTF-8"
        asked = (*container, stop, now_ms, len(query.prefix) + 1, delimiter, behind, start, count)
        found = session.row(_SKIPPING[session.dialect], asked)
    else:
        found = session.row(_ALL[session.dialect], (*container, stop, start, count))
    assert found is not None
    # PostgreSQL makes NULL of no rows.
    rows: list[ListRow] = json.loads(found[0]) if found[0] is not None else []
    return rows


_EXPIRY_AT: Final = 6


def _name_of(row: ListRow) -> bytes:
    name: str = row[0]
    return name.encode("utf-8")


def _entry_of(row: ListRow) -> Entry:
    if len(row) == 1:
        return Entry(_name_of(row), None)
    _, blob_id, version, datacentre, size, created_ms, expires_at_ms, digest = row
    current = Current(version, datacentre, bytes.fromhex(blob_id), size, created_ms, expires_at_ms, digest)
    return Entry(_name_of(row), current)


def list_versions(session: Session, query: Query) -> VersionPage:
    """A page of versions, whole names at a time: a name is not cut, so a page may be somewhat longer than asked for."""
    start = max(_start_of(query), query.prefix, _FIRST)
    versions: list[NameRow] = []
    read = 0
    while True:
        # The names first, then each one's rows: a name with many versions does not hide the next one.
        name = _first_name(session, query, start)
        if name is None or not name.startswith(query.prefix):
            return VersionPage(versions, None)
        if len(versions) >= query.count_max or read > NAME_LIST_ROWS_MAX:
            return VersionPage(versions, _token(name))
        rows = read_all(session, Key(query.account, query.container, name))
        read += len(rows)
        versions += effective(rows)
        start = name + _FIRST


def _first_name(session: Session, query: Query, start: bytes) -> bytes | None:
    """The first name from `start` on that has any row: one with a history, or one that exists."""
    found = [
        session.row(
            f"SELECT name FROM {table} account = ? AND container = ? AND name >= ? ORDER BY name LIMIT 1",
            (query.account, query.container, start),
        )
        for table in ("names WHERE is_alone = 0 AND", "current_names WHERE")
    ]
    return min((row[0] for row in found if row is not None), default=None)


# --- where a page begins ---------------------------------------------------------------------------------------


def _start_of(query: Query) -> bytes:
    """The least name of the page."""
    after = query.start_after + _FIRST if query.start_after else b""
    if query.start_after and query.delimiter:
        # As in S3: a common prefix that is not behind `start_after` is left out as a whole.
        cut = query.start_after.find(query.delimiter, len(query.prefix))
        if cut >= 0 and cut + len(query.delimiter) == len(query.start_after):
            after = after_prefix(query.start_after) or after
    return max(after, _place_of(query.token)) if query.token is not None else after


def _token(name: bytes) -> str:
    """A page that begins with this name."""
    return base64.urlsafe_b64encode(name).decode().rstrip("=")


def _place_of(token: str) -> bytes:
    """The name in a token. Raises BadRequest."""
    try:
        name = binascii.a2b_base64(
            token.encode("ascii").translate(_FROM_URL) + b"=" * (-len(token) % 4), strict_mode=True
        )
    except (binascii.Error, UnicodeEncodeError) as error:
        raise BadRequest("page is no token of a list", field="page") from error
    # One token for one place: what was changed on its way is noticed where that can be seen.
    if not 1 <= len(name) <= NAME_BYTES_MAX or _token(name) != token:
        raise BadRequest("page is no token of a list", field="page")
    return name


_FROM_URL: Final = bytes.maketrans(b"-_", b"+/")
