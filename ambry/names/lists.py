"""Lists of names and of versions, page by page, as jobs for `Database.read`.

A list walks the table of current rows in the order of names, and answers from that table alone. With a delimiter it
skips: what begins with a common prefix is left out by one seek behind it, so a folder of a million names costs as much
as one of two. A page never looks at more than a bounded number of rows; it may be short and have a token all the same.

A token says where the next page begins: bytes of a name that it is behind, or of a prefix that it is past. It holds for
any list of the same container, prefix and delimiter.
"""

import base64
import binascii
from dataclasses import dataclass
from typing import Final

from ambry.errors import BadRequest
from ambry.limits import NAME_BYTES_MAX, NAME_LIST_ROWS_MAX
from ambry.names.changes import read_all
from ambry.names.name import after_prefix
from ambry.names.rows import CURRENT_COLUMNS, Current, Key, NameRow, effective
from ambry.names.sql import Row, Session

_ROWS_AHEAD: Final = 4
"""Rows that are read after a jump: enough for small folders, little enough to be thrown away at the next jump."""

_FIRST: Final = b"\x00"
"""Sorts before every name."""

_PAGE: Final = f"""SELECT name, {CURRENT_COLUMNS} FROM current_names
WHERE account = ? AND container = ? AND name >= ? ORDER BY name LIMIT ?"""


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
    """Entries in the order of their bytes. `token` is None on the last page."""

    entries: list[Entry]
    token: str | None


@dataclass(frozen=True, slots=True)
class VersionPage:
    """Versions in the order of names, newest first; only what counts, as `rows.effective` has it."""

    versions: list[NameRow]
    token: str | None


def list_names(session: Session, query: Query, now_ms: int) -> Page:
    """A page of names that exist. Raises BadRequest for a token that is none."""
    walk = _Walk(session, query)
    entries: list[Entry] = []
    prefix, delimiter = query.prefix, query.delimiter
    while (row := walk.next()) is not None:
        name = row[0]
        if not name.startswith(prefix):
            break
        if len(entries) >= query.count_max or walk.is_tired:
            return Page(entries, _token(name))
        if row[6] <= now_ms:
            continue
        cut = name.find(delimiter, len(prefix)) if delimiter else -1
        if cut < 0:
            entries.append(Entry(name, Current(*row[1:])))
            continue
        common = name[: cut + len(delimiter)]
        entries.append(Entry(common, None))
        behind = after_prefix(common)
        if behind is None:
            break
        walk.jump(behind)
    return Page(entries, None)


class _Walk:
    """Rows in the order of names, fetched in pages that grow while they are used up and are short after a jump."""

    __slots__ = ("_at", "_buffer", "_container", "_is_end", "_read", "_session", "_size", "_start")

    def __init__(self, session: Session, query: Query) -> None:
        self._session = session
        self._container = (query.account, query.container)
        self._start = max(_start_of(query), query.prefix, _FIRST)
        self._size = _ROWS_AHEAD if query.delimiter else min(query.count_max + 1, 1001)
        self._buffer: list[Row] = []
        self._at = 0
        self._read = 0
        self._is_end = False

    @property
    def is_tired(self) -> bool:
        """Whether this page has looked at enough: names that have expired, folders that were jumped over."""
        return self._read > NAME_LIST_ROWS_MAX

    def next(self) -> Row | None:
        """The next row of the container."""
        if self._at == len(self._buffer):
            if self._is_end:
                return None
            self._fetch()
            if not self._buffer:
                return None
        row = self._buffer[self._at]
        self._at += 1
        return row

    def jump(self, name: bytes) -> None:
        """Go on with the first name that is not before this one."""
        while self._at < len(self._buffer) and self._buffer[self._at][0] < name:
            self._at += 1
        if self._at == len(self._buffer) and not self._is_end:
            self._start = name
            self._size = _ROWS_AHEAD
            self._buffer = []
            self._at = 0

    def _fetch(self) -> None:
        self._buffer = self._session.rows(_PAGE, (*self._container, self._start, self._size))
        self._at = 0
        self._read += len(self._buffer)
        self._is_end = len(self._buffer) < self._size
        if self._buffer:
            self._start = self._buffer[-1][0] + _FIRST
        self._size = min(self._size * 4, 1001)


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
