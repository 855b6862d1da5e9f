"""Ranges and conditions of RFC 9110: pure functions from header values to what a GET has to do.

Order of conditions as in section 13.2.2. A blob never changes, so its ETag is strong and made of its id. A malformed
Range of bytes is refused (400) rather than ignored, so that no client takes a whole blob for a part; units that are
not bytes are ignored, and so are dates that cannot be read, as the RFC asks.
"""

import calendar
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate
from enum import Enum, auto
from typing import Final

from ambry.errors import BadRequest, RangeNotSatisfiable
from ambry.limits import RANGES_PER_REQUEST_MAX

_RANGE_UNIT: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+)=(.*)")
_RANGE_SPEC: Final = re.compile(r"([0-9]*)-([0-9]*)")
_ETAG_MEMBER: Final = re.compile(r'[ \t,]*(W/)?("[\x21\x23-\x7e\x80-\U0010ffff]*")[ \t]*(?:,[ \t,]*|$)')
_DIGITS_MAX: Final = 18
"""More digits than any size has; a longer number is beyond every end."""


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes start:stop of a blob, not empty."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        """Bytes in the range."""
        return self.stop - self.start

    def content_range(self, blob_size: int) -> str:
        """The value of Content-Range."""
        return f"bytes {self.start}-{self.stop - 1}/{blob_size}"


@dataclass(frozen=True, slots=True)
class RangeSpec:
    """One range as asked for. `first` None asks for the last `last` bytes; `last` None asks up to the end."""

    first: int | None
    last: int | None

    def resolve(self, size: int) -> ByteRange | None:
        """The range within a blob of `size` bytes, None if no byte lies in it."""
        if self.first is None:
            assert self.last is not None
            start, stop = max(size - self.last, 0), size
        else:
            start, stop = self.first, size if self.last is None else min(self.last + 1, size)
        return ByteRange(start, stop) if start < stop else None


def parse_range(value: str | None) -> tuple[RangeSpec, ...]:
    """The ranges of a Range header; empty for none, and for a unit that is not bytes. Raises BadRequest."""
    if value is None:
        return ()
    matched = _RANGE_UNIT.fullmatch(value.strip())
    if matched is None:
        raise BadRequest("Range is not unit=ranges", field="Range")
    if matched[1].lower() != "bytes":
        return ()
    specs = tuple(_parse_spec(text.strip(" \t")) for text in matched[2].split(",") if text.strip(" \t"))
    if not specs:
        raise BadRequest("Range names no range", field="Range")
    if len(specs) > RANGES_PER_REQUEST_MAX:
        raise RangeNotSatisfiable(f"{RANGES_PER_REQUEST_MAX} ranges at most", field="Range")
    return specs


def _parse_spec(text: str) -> RangeSpec:
    matched = _RANGE_SPEC.fullmatch(text)
    if matched is None or not (matched[1] or matched[2]):
        raise BadRequest("a range is a-b, a- or -n", field="Range")
    first = _number(matched[1]) if matched[1] else None
    last = _number(matched[2]) if matched[2] else None
    if first is not None and last is not None and first > last:
        raise BadRequest("a range ends before it begins", field="Range")
    return RangeSpec(first, last)


def _number(text: str) -> int:
    digits = text.lstrip("0")
    return int(digits or "0") if len(digits) <= _DIGITS_MAX else 10**_DIGITS_MAX


def resolve_ranges(specs: Sequence[RangeSpec], size: int) -> tuple[ByteRange, ...]:
    """What to send: no byte twice, in the order asked for unless ranges overlap. Raises RangeNotSatisfiable."""
    ranges = [found for spec in specs if (found := spec.resolve(size)) is not None]
    if not ranges:
        raise RangeNotSatisfiable("no byte of the blob lies in the range", size=size)
    ordered = sorted(ranges, key=lambda one: one.start)
    merged = [ordered[0]]
    for one in ordered[1:]:
        if one.start < merged[-1].stop:
            merged[-1] = ByteRange(merged[-1].start, max(merged[-1].stop, one.stop))
        else:
            merged.append(one)
    return tuple(ranges if len(merged) == len(ranges) else merged)


class Multipart:
    """The frame of a multipart/byteranges body: what stands before each part and at the end, so its size is known."""

    __slots__ = ("closing", "content_type", "heads", "size")

    def __init__(self, ranges: Sequence[ByteRange], blob_size: int, content_type: str, boundary: str) -> None:
        self.content_type = f"multipart/byteranges; boundary={boundary}"
        self.heads = tuple(
            f"\r\n--{boundary}\r\nContent-Type: {content_type}\r\n"
            f"Content-Range: {one.content_range(blob_size)}\r\n\r\n".encode()
            for one in ranges
        )
        self.closing = f"\r\n--{boundary}--\r\n".encode()
        self.size = sum(map(len, self.heads)) + sum(one.size for one in ranges) + len(self.closing)


class Outcome(Enum):
    """What the conditions of a request amount to."""

    PROCEED = auto()
    NOT_MODIFIED = auto()
    FAILED = auto()


def evaluate(headers: Mapping[str, str], etag: str, modified_s: int) -> Outcome:
    """The conditions of a GET or HEAD, in the order of the RFC. Raises BadRequest for a malformed list of ETags.

    `headers` has lower-case names. `etag` is the blob's with its quotes, `modified_s` its creation in whole seconds.
    """
    if (wanted := headers.get("if-match")) is not None:
        if not _matches(wanted, etag, "If-Match", is_strong=True):
            return Outcome.FAILED
    elif (since := _date(headers.get("if-unmodified-since"))) is not None and modified_s > since:
        return Outcome.FAILED
    if (known := headers.get("if-none-match")) is not None:
        if _matches(known, etag, "If-None-Match", is_strong=False):
            return Outcome.NOT_MODIFIED
    elif (since := _date(headers.get("if-modified-since"))) is not None and modified_s <= since:
        return Outcome.NOT_MODIFIED
    return Outcome.PROCEED


def parse_etags(value: str | None, field: str, *, is_strong: bool) -> frozenset[str] | None:
    """The entity tags of If-Match (strong) or If-None-Match, `*` as itself; None where there is no such header.

    Raises BadRequest. A weak tag is never equal in the strong comparison, so it is left out there.
    """
    if value is None:
        return None
    if value.strip(" \t") == "*":
        return frozenset({"*"})
    found: set[str] = set()
    at = 0
    while at < len(value):
        member = _ETAG_MEMBER.match(value, at)
        if member is None:
            raise BadRequest(f"{field} is no list of entity tags", field=field)
        if not (is_strong and member[1]):
            found.add(member[2])
        at = member.end()
    return frozenset(found)


def range_applies(if_range: str | None, etag: str, modified_s: int) -> bool:
    """Whether a Range counts under this If-Range: only if it names this very blob. What cannot be read does not."""
    if if_range is None:
        return True
    value = if_range.strip(" \t")
    return value == etag if value.startswith(('"', "W/")) else _date(value) == modified_s


def _matches(value: str, etag: str, field: str, *, is_strong: bool) -> bool:
    if value.strip(" \t") == "*":
        return True
    at = 0
    is_found = False
    while at < len(value):
        member = _ETAG_MEMBER.match(value, at)
        if member is None:
            raise BadRequest(f"{field} is no list of entity tags", field=field)
        is_found = is_found or (member[2] == etag and not (is_strong and member[1]))
        at = member.end()
    return is_found


def _date(value: str | None) -> int | None:
    """Seconds since 1970 of an HTTP date, None if there is none or it cannot be read."""
    if value is None or not value.isascii():
        return None
    try:
        parts = parsedate(value)
        return None if parts is None else calendar.timegm(parts)
    except (ValueError, OverflowError, IndexError, TypeError):
        return None
