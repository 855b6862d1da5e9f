"""What request headers mean: pure functions from header lines to checked values. Names and values as in Ambry.

Every value that cannot be used is a BadRequest that names its field. `Content-Type` and `Content-Encoding` serve where
the x-ambry header is absent. Header names are compared without regard to case; a field of ours that is sent twice is
refused, since a proxy and we might each believe another one.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final
from urllib.parse import unquote_to_bytes

from ambry.access.accounts import Durability
from ambry.blob.properties import DEFAULT_CONTENT_TYPE, Properties
from ambry.blob.state import NEVER
from ambry.errors import BadRequest, HeadersTooLarge, TooLarge
from ambry.frontend.digests import (
    CHECKSUM_HEADERS,
    CHECKSUM_PREFIX,
    parse_checksum,
    parse_content_md5,
    parse_digest_field,
    parse_wanted,
)
from ambry.limits import (
    BLOB_BYTES_MAX,
    HTTP_HEADER_BYTES_MAX,
    PROPERTY_BYTES_MAX,
    TTL_SECONDS_MAX,
    USER_METADATA_BYTES_MAX,
)

USER_METADATA: Final = "x-ambry-um-"
ENCODED_USER_METADATA: Final = "x-ambry-enc-um-"

_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_CONTENT_TYPE: Final = re.compile(rf"{_WORD}/{_WORD}(?:[ \t]*;.*)?")
_CONTENT_CODINGS: Final = re.compile(rf"{_WORD}(?:[ \t]*,[ \t]*{_WORD})*")
_INTEGER: Final = re.compile(r"-?[0-9]{1,18}")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")
_BAD_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")

_OURS: Final = frozenset({
    "x-ambry-service-id",
    "x-ambry-owner-id",
    "x-ambry-content-type",
    "x-ambry-content-encoding",
    "x-ambry-filename",
    "x-ambry-ttl",
    "x-ambry-blob-size",
    "x-ambry-get-option",
    "x-ambry-durability",
    "content-type",
    "content-encoding",
    "content-md5",
    "content-digest",
    "repr-digest",
    "want-repr-digest",
    *CHECKSUM_HEADERS,
})  # fmt: skip
"""Headers that are read here, beside user metadata."""

_ONCE: Final = frozenset({
    b"range",
    b"if-range",
    b"if-modified-since",
    b"if-unmodified-since",
    b"content-type",
    b"content-encoding",
    b"content-md5",
    b"expect",
})  # fmt: skip
"""Standard fields that have one value: of two, a proxy may have believed the other one."""


class GetOption(Enum):
    """Whether a read sees blobs that are gone: `x-ambry-get-option`."""

    NONE = "None"
    EXPIRED = "Include_Expired_Blobs"
    DELETED = "Include_Deleted_Blobs"
    ALL = "Include_All"

    @property
    def includes_expired(self) -> bool:
        """An expired blob is answered as if it lived."""
        return self in {GetOption.EXPIRED, GetOption.ALL}

    @property
    def includes_deleted(self) -> bool:
        """A deleted blob is answered as long as its bytes are there."""
        return self in {GetOption.DELETED, GetOption.ALL}


_DURABILITIES: Final = {durability.value: durability for durability in Durability}
_GET_OPTIONS: Final = {option.value.lower(): option for option in GetOption}


@dataclass(frozen=True, slots=True)
class PutHeaders:
    """The headers of an upload. `properties` has no size yet; `ttl_s` None is for ever."""

    properties: Properties
    ttl_s: int | None = None
    digests: Mapping[str, bytes] = field(default_factory=dict)
    durability: Durability = Durability.SYNCED
    wanted_digests: frozenset[str] = frozenset()

    def expires_at_ms(self, now_ms: int) -> int:
        """The moment of expiry of a blob that is put now."""
        return expiry(self.ttl_s, now_ms)


def check_lines(lines: Iterable[tuple[bytes, bytes]]) -> None:
    """What holds for the header lines of every request, whatever it is for.

    Raises HeadersTooLarge; BadRequest for a field of ours, or a standard one with one value, that is there twice, is
    not UTF-8 or has control characters.
    """
    size = 0
    seen: set[bytes] = set()
    for name, value in lines:
        size += len(name) + len(value) + 4
        lower = name.lower()
        if lower in _ONCE or lower.startswith((b"x-ambry-", CHECKSUM_PREFIX.encode())):
            field = lower.decode("ascii", "replace")
            if lower in seen:
                raise BadRequest(f"{field} was sent twice", field=field)
            seen.add(lower)
            _text(value.decode("utf-8", "surrogateescape"), field)
    if size > HTTP_HEADER_BYTES_MAX:
        raise HeadersTooLarge(f"headers have {HTTP_HEADER_BYTES_MAX} bytes at most")


def expiry(ttl_s: int | None, now_ms: int) -> int:
    """The moment at which a TTL that begins now has passed."""
    return NEVER if ttl_s is None else now_ms + ttl_s * 1000


def parse_put_headers(lines: Iterable[tuple[str, str]]) -> PutHeaders:
    """Read the headers of an upload. Raises BadRequest, HeadersTooLarge, TooLarge."""
    ours, metadata = _sort(lines)
    size_text = ours.get("x-ambry-blob-size")
    if size_text is not None and _integer(size_text, "x-ambry-blob-size", low=-1) > BLOB_BYTES_MAX:
        raise TooLarge(f"a blob has {BLOB_BYTES_MAX} bytes at most")
    content_type = ours.get("x-ambry-content-type") or ours.get("content-type") or DEFAULT_CONTENT_TYPE
    if not (content_type.isascii() and _CONTENT_TYPE.fullmatch(content_type)):
        which = "x-ambry-content-type" if ours.get("x-ambry-content-type") else "Content-Type"
        raise BadRequest(f"{which} is no media type", field=which)
    encoding = ours.get("x-ambry-content-encoding") or ours.get("content-encoding") or None
    if encoding is not None and not _CONTENT_CODINGS.fullmatch(encoding):
        which = "x-ambry-content-encoding" if ours.get("x-ambry-content-encoding") else "Content-Encoding"
        raise BadRequest(f"{which} is no list of codings", field=which)
    properties = Properties(
        size=0,
        content_type=_short(content_type, "x-ambry-content-type"),
        content_encoding=None if encoding is None else _short(encoding, "x-ambry-content-encoding"),
        filename=_optional(ours, "x-ambry-filename"),
        service_id=_optional(ours, "x-ambry-service-id"),
        owner_id=_optional(ours, "x-ambry-owner-id"),
        user_metadata=metadata,
    )
    ttl_text = ours.get("x-ambry-ttl")
    ttl_s = None if ttl_text is None else parse_ttl(ttl_text)
    wanted = frozenset[str]() if "want-repr-digest" not in ours else parse_wanted(ours["want-repr-digest"])
    durability = parse_durability(ours.get("x-ambry-durability"))
    return PutHeaders(properties, ttl_s, _digests(ours), durability, wanted)


def parse_property(value: str, name: str) -> str | None:
    """A text that one header holds, judged as in `parse_put_headers`; None if it is empty.

    Raises BadRequest, HeadersTooLarge.
    """
    return _short(_text(value, name), name) if value else None


def parse_durability(value: str | None) -> Durability:
    """The value of `x-ambry-durability`. Raises BadRequest."""
    if value is None:
        return Durability.SYNCED
    durability = _DURABILITIES.get(value.lower())
    if durability is None:
        known = " or ".join(_DURABILITIES)
        raise BadRequest(f"x-ambry-durability is {known}", field="x-ambry-durability")
    return durability


def parse_read(value: str | None) -> bool:
    """Whether `x-ambry-read` asks for a quorum. Raises BadRequest."""
    if value is None:
        return False
    if value.lower() != "quorum":
        raise BadRequest("x-ambry-read is quorum, or not there", field="x-ambry-read")
    return True


def parse_resolves_empty(value: str | None) -> bool:
    """Whether a range of an empty blob is all of it: `x-ambry-resolve-range-on-empty-blob`. Raises BadRequest."""
    if value is None or value.lower() == "false":
        return False
    if value.lower() != "true":
        raise BadRequest(
            "x-ambry-resolve-range-on-empty-blob is true or false", field="x-ambry-resolve-range-on-empty-blob"
        )
    return True


def parse_ttl(value: str) -> int | None:
    """Seconds of an `x-ambry-ttl` header, None for ever (-1). Raises BadRequest."""
    seconds = _integer(value, "x-ambry-ttl", low=-1)
    if seconds > TTL_SECONDS_MAX:
        raise BadRequest(f"x-ambry-ttl is in seconds, {TTL_SECONDS_MAX} at most, or -1 for ever", field="x-ambry-ttl")
    return None if seconds == -1 else seconds


def required_ttl(lines: Iterable[tuple[str, str]]) -> int | None:
    """The `x-ambry-ttl` of a TTL update, which must be there. Raises BadRequest."""
    ours, _ = _sort(lines)
    if "x-ambry-ttl" not in ours:
        raise BadRequest("x-ambry-ttl is missing", field="x-ambry-ttl")
    return parse_ttl(ours["x-ambry-ttl"])


def parse_get_option(value: str | None) -> GetOption:
    """The value of `x-ambry-get-option`. Raises BadRequest."""
    if value is None:
        return GetOption.NONE
    option = _GET_OPTIONS.get(value.lower())
    if option is None:
        known = ", ".join(option.value for option in GetOption)
        raise BadRequest(f"x-ambry-get-option is one of {known}", field="x-ambry-get-option")
    return option


def _sort(lines: Iterable[tuple[str, str]]) -> tuple[dict[str, str], dict[str, str]]:
    """Our headers by lower-case name, and the user metadata by its name as sent."""
    ours: dict[str, str] = {}
    metadata: dict[str, str] = {}
    seen: set[str] = set()
    metadata_bytes = 0
    for name, value in lines:
        lower = name.lower()
        if lower in _OURS:
            if lower in ours:
                raise BadRequest(f"{name} was sent twice", field=lower)
            ours[lower] = _text(value, lower)
        elif lower.startswith(CHECKSUM_PREFIX):
            # Not ignored: whoever sends a checksum counts on it.
            raise BadRequest(f"{lower} is not known here; known are {', '.join(CHECKSUM_HEADERS)}", field=lower)
        elif lower.startswith((USER_METADATA, ENCODED_USER_METADATA)):
            is_plain = lower.startswith(USER_METADATA)
            key = name[len(USER_METADATA if is_plain else ENCODED_USER_METADATA) :]
            if not key or key.lower() in seen:
                raise BadRequest(f"{name} has no name, or was sent twice", field=lower)
            seen.add(key.lower())
            metadata[key] = _text(value, lower) if is_plain else _decoded(value, lower)
            metadata_bytes += len(key) + len(metadata[key].encode())
            if metadata_bytes > USER_METADATA_BYTES_MAX:
                raise HeadersTooLarge(f"user metadata has {USER_METADATA_BYTES_MAX} bytes at most")
    return ours, metadata


def _text(value: str, name: str) -> str:
    """A value that is UTF-8 without control characters. Bytes that are not UTF-8 arrive as lone surrogates."""
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise BadRequest(f"{name} is not UTF-8", field=name) from error
    if _CONTROL.search(value):
        raise BadRequest(f"{name} has control characters", field=name)
    return value


def _decoded(value: str, name: str) -> str:
    """URL-encoded UTF-8; '+' is a space, as Java's encoder writes it."""
    if not value.isascii() or _BAD_PERCENT.search(value):
        raise BadRequest(f"{name} is not URL-encoded", field=name)
    try:
        return unquote_to_bytes(value.replace("+", " ")).decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRequest(f"{name} is not UTF-8", field=name) from error


def _optional(ours: Mapping[str, str], name: str) -> str | None:
    value = ours.get(name)
    return _short(value, name) if value else None


def _short(value: str, name: str) -> str:
    if len(value.encode()) > PROPERTY_BYTES_MAX:
        raise HeadersTooLarge(f"{name} has {PROPERTY_BYTES_MAX} bytes at most")
    return value


def _integer(value: str, name: str, *, low: int) -> int:
    if not _INTEGER.fullmatch(value) or int(value) < low:
        raise BadRequest(f"{name} is no integer from {low} on", field=name)
    return int(value)


def _digests(ours: Mapping[str, str]) -> dict[str, bytes]:
    """Digests of all fields together. Raises BadRequest when two of them contradict each other."""
    found: dict[str, bytes] = {}
    for name, value in ours.items():
        if name == "content-md5":
            sent = {"md5": parse_content_md5(value)}
        elif name in {"content-digest", "repr-digest"}:
            sent = parse_digest_field(value, name)
        elif name in CHECKSUM_HEADERS:
            sent = parse_checksum(name, value)
        else:
            continue
        for algorithm, digest in sent.items():
            if found.setdefault(algorithm, digest) != digest:
                raise BadRequest(f"two {algorithm} digests that differ", field=name)
    return found
