"""Rows of the name store as values, their versions, and which of a name's rows is the current one. Pure.

A row is written once. Kinds of row:

    PUT     the name has this blob from this version on
    MARKER  the name is gone from this version on; it may have passed its blob on to another name
    PURGE   the PUT or MARKER of exactly this version is taken away
    EXTEND  the PUT of exactly this version lives until a later moment

Which row is current follows from the set of rows alone, so datacentres that have the same rows agree, whatever the
order in which these came: the highest version that is not purged; if that is a marker, the name does not exist.

A version is (hybrid logical clock, datacentre). The clock is 48 bits of ms since 1970 and 16 bits of a count, so that
versions grow with time and two of one moment differ. A change gets one above every version of its name that is known
here, inside the transaction that writes it: whoever came later wins, also against clocks that are ahead.
"""

from collections.abc import Iterable
from dataclasses import replace
from enum import IntEnum
from typing import Final

from ambry.blob.value import value
from ambry.errors import BadRequest
from ambry.names.sql import FOREVER, Row, Value

VERSION_COUNT_BITS: Final = 16
"""The low bits of a version; above them is its moment."""

_VERSION_DIGITS: Final = 16
_DATACENTRE_DIGITS: Final = 4


class RowKind(IntEnum):
    """Never renumber: these values are in databases and between datacentres. Zero is invalid."""

    PUT = 1
    MARKER = 2
    PURGE = 3
    EXTEND = 4


@value
class Key:
    """A name in its container."""

    account: int
    container: int
    name: bytes

    def lock(self) -> bytes:
        """What a change of this name locks."""
        return b"%d/%d/%s" % (self.account, self.container, self.name)


@value
class NameRow:
    """One row. `passed_on` of a marker is the blob that it passed on to another name, else empty.

    `blob_id` of a marker is the zero-byte record that says the same in the logs. `digest` and `details` are what lists
    of objects want to say without reading the blob: an ETag, a checksum.
    """

    account: int
    container: int
    name: bytes
    version: int
    datacentre: int
    kind: int
    blob_id: bytes
    size: int
    created_ms: int
    expires_at_ms: int = FOREVER
    digest: str = ""
    details: str = ""
    passed_on: bytes = b""

    @property
    def key(self) -> Key:
        """Which name it is a row of."""
        return Key(self.account, self.container, self.name)

    @property
    def version_text(self) -> str:
        """The version as clients see it."""
        return format_version(self.version, self.datacentre)

    def at_version(self, version: int) -> "NameRow":
        """The same, at another version."""
        return replace(self, version=version)

    def living_until(self, expires_at_ms: int) -> "NameRow":
        """The same, with another expiry."""
        return replace(self, expires_at_ms=expires_at_ms)

    def values(self) -> tuple[Value, ...]:
        """In the order of COLUMNS."""
        return (
            self.account,
            self.container,
            self.name,
            self.version,
            self.datacentre,
            self.kind,
            self.blob_id,
            self.size,
            self.created_ms,
            self.expires_at_ms,
            self.digest,
            self.details,
            self.passed_on,
        )


COLUMNS: Final = (
    "account, container, name, version, datacentre, kind, blob_id, size, created_ms, expires_at_ms, digest, details, "
    "passed_on"
)


def row_of(found: Row) -> NameRow:
    """A row of a query for COLUMNS."""
    return NameRow(*found)


@value
class Current:
    """What a name stands for at present."""

    version: int
    datacentre: int
    blob_id: bytes
    size: int
    created_ms: int
    expires_at_ms: int
    digest: str

    @property
    def version_text(self) -> str:
        """The version as clients see it."""
        return format_version(self.version, self.datacentre)

    def is_expired(self, now_ms: int) -> bool:
        """A name is gone from the millisecond of its expiry on."""
        return self.expires_at_ms <= now_ms


CURRENT_COLUMNS: Final = "version, datacentre, blob_id, size, created_ms, expires_at_ms, digest"


def effective(rows: Iterable[NameRow]) -> list[NameRow]:
    """The versions of one name that count, newest first: without what was purged, with what was extended."""
    purged: set[tuple[int, int]] = set()
    extended: dict[tuple[int, int], int] = {}
    told: list[NameRow] = []
    for row in rows:
        version = (row.version, row.datacentre)
        if row.kind == RowKind.PURGE:
            purged.add(version)
        elif row.kind == RowKind.EXTEND:
            extended[version] = max(extended.get(version, 0), row.expires_at_ms)
        else:
            told.append(row)
    told.sort(key=lambda row: (row.version, row.datacentre, row.kind), reverse=True)
    return [
        _extended(row, extended.get((row.version, row.datacentre), 0))
        for row in told
        if (row.version, row.datacentre) not in purged
    ]


def current_of(versions: list[NameRow]) -> Current | None:
    """What the name stands for, of its `effective` versions; None if it does not exist."""
    if not versions or versions[0].kind == RowKind.MARKER:
        return None
    top = versions[0]
    return Current(top.version, top.datacentre, top.blob_id, top.size, top.created_ms, top.expires_at_ms, top.digest)


def owns_its_blob(row: NameRow, rows: Iterable[NameRow]) -> bool:
    """Whether this PUT, of a name with these rows, still owns its blob, or has passed it on to another name."""
    return row.kind == RowKind.PUT and not any(
        other.kind == RowKind.MARKER and other.passed_on == row.blob_id for other in rows
    )


def _extended(row: NameRow, expires_at_ms: int) -> NameRow:
    if expires_at_ms <= row.expires_at_ms or row.kind != RowKind.PUT:
        return row
    return row.living_until(expires_at_ms)


# --- versions --------------------------------------------------------------------------------------------------


def version_at(now_ms: int) -> int:
    """The least version of a moment."""
    return now_ms << VERSION_COUNT_BITS


def moment_of(version: int) -> int:
    """The moment of a version, ms since 1970."""
    return version >> VERSION_COUNT_BITS


class Versions:
    """The hybrid logical clock of one process: every version is above the last, and above what it was shown."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last = 0

    def next(self, now_ms: int) -> int:
        """A version for a change that is made now."""
        self._last = max(self._last + 1, version_at(now_ms))
        return self._last

    def observe(self, version: int) -> None:
        """Another process, or another datacentre, has used this version."""
        self._last = max(self._last, version)


def format_version(version: int, datacentre: int) -> str:
    """20 hexadecimal digits; they sort as versions do."""
    return f"{version:016x}{datacentre:04x}"


def parse_version(text: str) -> tuple[int, int]:
    """Version and datacentre of what `format_version` wrote. Raises BadRequest."""
    is_ours = len(text) == _VERSION_DIGITS + _DATACENTRE_DIGITS and set(text) <= set("0123456789abcdef")
    if not is_ours or int(text[:_VERSION_DIGITS], 16) > FOREVER:
        raise BadRequest("a version has 20 hexadecimal digits in lower case", field="version")
    return int(text[:_VERSION_DIGITS], 16), int(text[_VERSION_DIGITS:], 16)
