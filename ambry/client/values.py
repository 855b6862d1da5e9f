"""What a client is given back, and how blobs are named in its calls. Pure.

A blob is named by its id (43 characters), or by `account/container/name`, also written `ambry://account/container/name`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote, unquote, urlencode

from ambry.blob.blob_id import TEXT_SIZE
from ambry.errors import BadRequest

SCHEME: Final = "ambry://"
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_SHA256_TEXT_SIZE: Final = 44
_ID: Final = re.compile(r"[\w-]+", re.ASCII)
_SAFE_IN_NAMES: Final = "/-._~!$&'()*+,;=:@"


@dataclass(frozen=True, slots=True)
class Stored:
    """A blob that was put; `size` in bytes."""

    id: str
    size: int
    name: str | None = None
    version: str | None = None
    """Of the name."""
    digests: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Algorithm (`xxh3`, `crc32`, `sha-256`, ...) to base64, of all bytes, as far as sending them has shown."""


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """What is known of a blob. Times are ms since 1970, sizes bytes; `ttl_s` None is for ever."""

    id: str
    size: int
    content_type: str
    created_ms: int
    ttl_s: int | None = None
    filename: str | None = None
    version: str | None = None
    """Of the name, if it was asked for by one."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    """Algorithm (`xxh3`, `crc32`, `sha-256`, ...) to base64, of all bytes, as far as the store keeps them."""


@dataclass(frozen=True, slots=True)
class ListedName:
    """One name of a list, or a directory, which has no blob; `size` in bytes."""

    name: str
    """Within the container; of a directory with the delimiter at its end."""
    is_directory: bool = False
    id: str | None = None
    size: int = 0
    modified_ms: int = 0
    """When the name got this blob, in ms since 1970."""
    version: str | None = None


@dataclass(frozen=True, slots=True)
class BatchEntry:
    """One blob of a batch: its bytes (none of a stat) and what goes with them, or the error it has instead.

    The body is the whole blob; it has the checksum that the answer gave for it.
    """

    id: str
    body: bytes
    info: BlobInfo | None
    error: Exception | None = None


def path_of(ref: str) -> str:
    """The path of a blob on a frontend. Raises BadRequest for what names none."""
    _check_utf8(ref)
    text = ref.removeprefix(SCHEME)
    if text == ref and "/" not in ref:
        if len(ref) != TEXT_SIZE or not ref.replace("-", "").replace("_", "").isalnum() or not ref.isascii():
            raise BadRequest("not the id of a blob, and not account/container/name", field="ref")
        return f"/{ref}"
    parts = text.split("/", 2)
    if len(parts) != 3 or not all(parts):
        raise BadRequest("a name is account/container/name", field="ref")
    return f"/named/{quote(parts[0], safe='')}/{quote(parts[1], safe='')}/{quote_name(parts[2])}"


def container_path(ref: str) -> tuple[str, str]:
    """The path of a container, and the beginning of names in it. Raises BadRequest."""
    _check_utf8(ref)
    parts = ref.removeprefix(SCHEME).split("/", 2)
    if len(parts) < 2 or not parts[0] or not parts[1]:
        raise BadRequest("a container is account/container", field="ref")
    path = f"/named/{quote(parts[0], safe='')}/{quote(parts[1], safe='')}"
    return path, parts[2] if len(parts) == 3 else ""


def _check_utf8(text: str) -> None:
    """Names of files that are not UTF-8 have half characters of Python's own. Raises BadRequest."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRequest(f"names and texts are UTF-8, and {text!r} is not", field="ref") from error


def quote_name(name: str) -> str:
    """A name as it stands in a path; dots alone between slashes are escaped, so that nobody resolves them."""
    _check_utf8(name)
    steps = quote(name, safe=_SAFE_IN_NAMES).split("/")
    return "/".join(step.replace(".", "%2E") if step in {".", ".."} else step for step in steps)


def range_of(start: int, stop: int | None) -> str:
    """A Range header for bytes `start:stop`. Raises BadRequest for positions before the first byte."""
    if start < 0 or (stop is not None and stop < 0):
        raise BadRequest("a range counts from the beginning", field="start")
    return f"bytes={start}-" if stop is None else f"bytes={start}-{stop - 1}"


def is_range(headers: Mapping[str, str], value: str) -> bool:
    """Whether a 206 has the bytes that `value`, of a Range header with a first byte, asks for: all of them, no others.

    There are proxies that answer with what they have kept of another request.
    """
    first, _, last = value.removeprefix("bytes=").partition("-")
    place, _, size = headers.get("content-range", "").removeprefix("bytes ").partition("/")
    if not (size.isascii() and size.isdecimal()):
        return False
    stop = int(size) if not last else min(int(last) + 1, int(size))
    return place == f"{first}-{stop - 1}" and headers.get("content-length") in {None, str(stop - int(first))}


def with_version(path: str, version: str | None) -> str:
    """The path of one version of a name; of the newest without one."""
    return path if version is None else f"{path}?{urlencode({'version': version})}"


def info_of(headers: Mapping[str, str], fallback_id: str) -> BlobInfo:
    """What headers of an answer say of a blob; `headers` has lower-case names.

    Raises ValueError for what no blob has.
    """
    ttl = headers.get("x-ambry-ttl", "-1")
    metadata = {}
    for name, value in headers.items():
        if name.startswith("x-ambry-um-"):
            metadata[name.removeprefix("x-ambry-um-")] = value
        elif name.startswith("x-ambry-enc-um-"):
            metadata[name.removeprefix("x-ambry-enc-um-")] = unquote(value)
    created = headers.get("x-ambry-creation-time")
    said_id = headers.get("etag", "").strip('"') or headers.get("x-ambry-blob-id")
    size = int(headers.get("x-ambry-blob-size", headers.get("content-length", "0")))
    if size < 0 or (said_id and not _ID.fullmatch(said_id)):
        raise ValueError(f"a blob {said_id!r} of {size} bytes")
    return BlobInfo(
        id=said_id or fallback_id,
        size=size,
        content_type=headers.get("x-ambry-content-type", headers.get("content-type", "")),
        created_ms=0 if created is None else _moment_of(created),
        ttl_s=None if ttl == "-1" else int(ttl),
        filename=headers.get("x-ambry-filename"),
        version=headers.get("x-ambry-named-version"),
        metadata=metadata,
        digests=_digests(headers.get("repr-digest", ""), metadata),
    )


def listed_of(entry: Mapping[str, object]) -> ListedName:
    """An entry of a list, from its JSON."""
    if entry["isDirectory"]:
        return ListedName(str(entry["blobName"]), is_directory=True)
    return ListedName(
        str(entry["blobName"]),
        id=str(entry["blobId"]),
        size=int(str(entry["blobSize"])),
        modified_ms=int(str(entry["modifiedTimeMs"])),
        version=str(entry["version"]),
    )


class Way:
    """From page to page of a list, which may not lead in a circle.

    The tokens of pages 1, 2, 4, 8 and so on are remembered, one at a time, so a circle is met soon after it was gone
    round (Brent, 1980).
    """

    def __init__(self) -> None:
        self._token: str | None = None
        self._left = self._steps = 1

    def go(self, token: str) -> None:
        """To the next page. Raises ValueError for one that was there."""
        if token == self._token:
            raise ValueError("pages that lead to themselves")
        self._left -= 1
        if not self._left:
            self._token = token
            self._left = self._steps = 2 * self._steps


def page_of(way: Way, document: Any) -> tuple[list[ListedName], str | None]:  # noqa: ANN401 -- JSON of the store
    """A page of a list from its JSON, and the next one.

    Raises KeyError, TypeError or ValueError for what is no page, or leads in a circle.
    """
    following = document["nextPageToken"]
    entries = [listed_of(entry) for entry in document["entries"]]
    if following is not None:
        if not isinstance(following, str):
            raise ValueError("a next page that is no text")
        way.go(following)
    return entries, following


def _moment_of(date: str) -> int:
    """Ms since 1970 of an HTTP date, 0 of anything else. `email.utils` could do it, and takes 20 ms to import."""
    parts = date.replace(":", " ").split(" ")
    if len(parts) != 8 or parts[2] not in _MONTHS or not all(part.isdecimal() for part in (parts[1], *parts[3:7])):
        return 0
    from calendar import timegm  # noqa: PLC0415 -- it imports locale

    day, year, hour, minute, second = (int(part) for part in (parts[1], *parts[3:7]))
    return 1000 * timegm((year, _MONTHS.index(parts[2]) + 1, day, hour, minute, second))


def _digests(value: str, metadata: Mapping[str, str]) -> dict[str, str]:
    """Those of the store, and the SHA-256 that whoever has sent a file in parts kept as metadata."""
    found = digests_of(value)
    sent = metadata.get("sha-256", "")
    if len(sent) == _SHA256_TEXT_SIZE and sent.endswith("="):
        found.setdefault("sha-256", sent)
    return found


def digests_of(value: str) -> dict[str, str]:
    """Algorithm to base64, from a Repr-Digest header."""
    found = {}
    for member in value.split(","):
        name, _, text = member.strip().partition("=:")
        if text.endswith(":"):
            found[name] = text[:-1]
    return found
