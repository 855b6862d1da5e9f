"""What is answered: THE table from error to HTTP status, error bodies, and response headers as ordered lists.

Both ways to a client, aiohttp's and the fast lane, render these very lists, so they cannot differ. Headers that change
from answer to answer stand first, those that depend only on a blob's stored properties last. Pure: the time and the
request id are arguments. Messages of errors that are not the client's fault are fixed texts: what went wrong inside
(paths, peers, offsets) is for the log.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from typing import Final, TypeAlias
from urllib.parse import quote

from ambry import errors
from ambry.blob.properties import Properties
from ambry.blob.state import NEVER, BlobState
from ambry.errors import AmbryError
from ambry.frontend.conditions import ByteRange
from ambry.frontend.digests import render_base64, render_repr_digest
from ambry.frontend.headers import ENCODED_USER_METADATA, USER_METADATA

Headers: TypeAlias = list[tuple[str, str]]

SERVER: Final = "ambry"
CHALLENGE: Final = 'Bearer realm="ambry"'
"""How to authenticate, for whoever sent nothing that is good; docs/security.md has the other ways."""

NAMED_VERSION: Final = "x-ambry-named-version"

CACHE_SECONDS_MAX: Final = 365 * 86_400
"""As in Ambry. A blob never changes; one that is deleted may live on in caches, which whoever needs it can forbid."""

JSON_TYPE: Final = "application/json"

STATUS: Final[dict[type[AmbryError], int]] = {
    errors.AmbryError: 500,
    errors.BadRequest: 400,
    errors.TooLarge: 413,
    errors.HeadersTooLarge: 431,
    errors.RangeNotSatisfiable: 416,
    errors.PreconditionFailed: 412,
    errors.NotAllowed: 409,
    errors.MethodNotAllowed: 405,
    errors.NoSuchPath: 404,
    errors.BlobNotFound: 404,
    errors.BlobDeleted: 410,
    errors.BlobExpired: 410,
    errors.BlobCollision: 500,
    errors.NotHere: 503,
    errors.CorruptRecord: 503,
    errors.DiskFull: 507,
    errors.DiskUnavailable: 503,
    errors.NoSuchReplica: 503,
    errors.Overloaded: 503,
    errors.DeadlineExceeded: 503,
    errors.Unavailable: 503,
    errors.ConnectionLost: 503,
    errors.ShuttingDown: 503,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.QuotaExceeded: 429,
    errors.VersionConflict: 409,
    errors.NoSuchAccount: 404,
    errors.ProtocolError: 500,
    errors.HandshakeRefused: 503,
    errors.CannotStart: 500,
    errors.NameExists: 409,
    errors.NoSuchUpload: 404,
    errors.NameNotFound: 404,
    errors.NameDeleted: 410,
    errors.NameExpired: 410,
    errors.NameStoreUnavailable: 503,
    errors.RegistryUnavailable: 503,
    errors.ChangeRefused: 409,
}
"""The one table. A class that is not in it has the status of its parent."""

PROOF: Final[dict[type[AmbryError], str]] = {
    errors.BlobNotFound: "quorum",
    errors.BlobDeleted: "replica",
    errors.BlobExpired: "replica",
    errors.NameNotFound: "name_store",
    errors.NameDeleted: "name_store",
    errors.NameExpired: "name_store",
    errors.CorruptRecord: "replica",
    errors.NotHere: "none",
    errors.Unavailable: "none",
    errors.DeadlineExceeded: "none",
    errors.NameStoreUnavailable: "none",
}
"""Who vouches for an answer about what is or is not there: so many replicas that a write would have met one of them,
at least one replica, or the name store. `none`: the question is open, and may be asked again."""

PUBLIC_MESSAGE: Final = {
    500: "the store made a mistake; the request id finds it in the log",
    503: "the store cannot do this now; try again",
    507: "no space for another blob; blobs that are stored can be read and deleted",
}
"""Said instead of an error's own message when the fault is not the client's."""

DAMAGED_MESSAGE: Final = "the bytes of the blob are damaged or missing on every replica; a repair may bring them back"
"""Said of CorruptRecord: trying again at once helps only where bytes were damaged on their way."""

REASONS: Final = {
    200: "OK", 201: "Created", 202: "Accepted", 206: "Partial Content", 304: "Not Modified", 400: "Bad Request",
    401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed", 408: "Request Timeout",
    409: "Conflict", 410: "Gone", 412: "Precondition Failed", 413: "Content Too Large", 416: "Range Not Satisfiable",
    429: "Too Many Requests", 431: "Request Header Fields Too Large", 500: "Internal Server Error",
    503: "Service Unavailable", 507: "Insufficient Storage",
}  # fmt: skip
"""Reason phrases of every status that is answered."""


_READABLE: Final = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
"""What a reason keeps as it is in a header: printable ASCII."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer with a short body."""

    status: int
    headers: Headers
    body: bytes = b""


def status_of(error: AmbryError) -> int:
    """The HTTP status of an error."""
    for cls in type(error).__mro__:
        status = STATUS.get(cls)
        if status is not None:
            return status
    raise AssertionError("the root of the tree is in the table")


def message_of(error: AmbryError) -> str:
    """What a client is told of an error: its own words when the fault is the client's, else a fixed text."""
    if isinstance(error, errors.CorruptRecord):
        return DAMAGED_MESSAGE
    return PUBLIC_MESSAGE.get(status_of(error), error.message)


@lru_cache(maxsize=256)
def http_date(seconds: int) -> str:
    """IMF-fixdate of a moment in seconds since 1970."""
    return formatdate(seconds, usegmt=True)


def common_headers(now_ms: int, request_id: str) -> Headers:
    """What every answer begins with."""
    return [("Date", http_date(now_ms // 1000)), ("Server", SERVER), ("x-ambry-request-id", request_id)]


def error_answer(error: AmbryError, now_ms: int, request_id: str) -> Answer:
    """The answer to a request that failed: JSON with code, message and request id."""
    status = status_of(error)
    message = message_of(error)
    document = {"code": error.name, "message": message, "request_id": request_id}
    field = error.facts.get("field")
    if isinstance(field, str):
        document["field"] = field
    proof = next((PROOF[cls] for cls in type(error).__mro__ if cls in PROOF), None)
    if proof is not None:
        document["proof"] = proof
    body = json.dumps(document).encode() + b"\n"
    headers = common_headers(now_ms, request_id)
    headers += [("Content-Length", str(len(body))), ("Content-Type", JSON_TYPE)]
    headers += [("X-Content-Type-Options", "nosniff"), ("Cache-Control", "no-store")]
    # For HEAD, whose answers have no body.
    headers += [("x-ambry-error-code", error.name), ("x-ambry-failure-reason", quote(message, safe=_READABLE))]
    if isinstance(error, errors.MethodNotAllowed):
        headers.append(("Allow", str(error.facts["allow"])))
    if isinstance(error, errors.RangeNotSatisfiable) and "size" in error.facts:
        headers.append(("Content-Range", f"bytes */{error.facts['size']}"))
    if status == 401:
        headers.append(("WWW-Authenticate", CHALLENGE))
    if status in {429, 503}:
        headers.append(("Retry-After", str(error.facts.get("retry_after_s", 1))))
    return Answer(status, headers, body)


def empty_answer(status: int, now_ms: int, request_id: str) -> Answer:
    """An answer that says all by its status."""
    headers = common_headers(now_ms, request_id)
    headers += [("Content-Length", "0"), ("X-Content-Type-Options", "nosniff")]
    return Answer(status, headers)


def created_answer(blob_id: str, created_ms: int, now_ms: int, request_id: str) -> Answer:
    """201 for a blob that is stored."""
    headers = common_headers(now_ms, request_id)
    headers += [
        ("Content-Length", "0"),
        ("Location", f"/{blob_id}"),
        ("x-ambry-blob-id", blob_id),
        ("x-ambry-creation-time", http_date(created_ms // 1000)),
        ("X-Content-Type-Options", "nosniff"),
    ]
    return Answer(201, headers)


def created_named_answer(
    path: str, blob_id: str, version: str, created_ms: int, now_ms: int, request_id: str
) -> Answer:
    """201 for a blob that is stored and has its name."""
    headers = created_answer(blob_id, created_ms, now_ms, request_id).headers
    headers = [("Location", path) if line[0] == "Location" else line for line in headers]
    headers += [("ETag", etag_of(blob_id)), (NAMED_VERSION, version)]
    return Answer(201, headers)


def text_answer(status: int, body: bytes, content_type: str, now_ms: int, request_id: str) -> Answer:
    """A short text: health, metrics."""
    headers = common_headers(now_ms, request_id)
    headers += [("Content-Length", str(len(body))), ("Content-Type", content_type)]
    headers += [("X-Content-Type-Options", "nosniff"), ("Cache-Control", "no-store")]
    return Answer(status, headers, body)


# --- blobs -----------------------------------------------------------------------------------------------------


def etag_of(blob_id: str) -> str:
    """The strong validator of a blob: its id, since the bytes behind an id never change."""
    return f'"{blob_id}"'


def blob_headers(
    blob_id: str, created_ms: int, state: BlobState, now_ms: int, request_id: str, content_length: int
) -> Headers:
    """The part of a blob's headers that is its own; `property_headers` follow. A pure function of its arguments."""
    return [
        ("Date", http_date(now_ms // 1000)),
        ("Server", SERVER),
        ("x-ambry-request-id", request_id),
        ("Content-Length", str(content_length)),
        ("Accept-Ranges", "bytes"),
        ("ETag", f'"{blob_id}"'),
        ("Last-Modified", http_date(created_ms // 1000)),
        ("Cache-Control", _cache_control(state, now_ms)),
        ("x-ambry-creation-time", http_date(created_ms // 1000)),
        ("x-ambry-ttl", _ttl(state, created_ms)),
        ("x-ambry-life-version", str(state.life // 2)),
    ]


def named_lines(blob_id: str, version: str) -> tuple[tuple[str, str], ...]:
    """What an answer says of the name beside the blob: which blob it is, and at which version."""
    return (("x-ambry-blob-id", blob_id), (NAMED_VERSION, version))


def named_headers(headers: Headers, lines: Iterable[tuple[str, str]]) -> Headers:
    """Headers of a blob that was asked for by its name, which may stand for another one soon: caches have to ask."""
    found = [
        (name, "no-cache") if name == "Cache-Control" and value != "no-store" else (name, value)
        for name, value in headers
    ]
    return [*found, *lines]


def _cache_control(state: BlobState, now_ms: int) -> str:
    if state.is_deleted or state.is_expired(now_ms):
        return "no-store"
    if state.expires_at_ms == NEVER:
        return f"max-age={CACHE_SECONDS_MAX}"
    return f"max-age={min(CACHE_SECONDS_MAX, (state.expires_at_ms - now_ms) // 1000)}"


def _ttl(state: BlobState, created_ms: int) -> str:
    return "-1" if state.expires_at_ms == NEVER else str(max(state.expires_at_ms - created_ms, 0) // 1000)


def property_headers(properties: Properties) -> Headers:
    """Headers of a whole blob that depend on its stored properties alone, so that they can be kept by these."""
    headers = [("Content-Type", properties.content_type), *described_headers(properties)]
    if "md5" in properties.digests:
        # RFC 1864 is of the body that is sent, so it is left out where that is a part.
        headers.append(("Content-MD5", render_base64(properties.digests["md5"])))
    return headers


def described_headers(properties: Properties) -> Headers:
    """What describes a blob, whether all, a part or none of its bytes follow."""
    headers = [("X-Content-Type-Options", "nosniff")]
    if properties.content_encoding is not None:
        headers.append(("Content-Encoding", properties.content_encoding))
    disposition = _disposition(properties)
    if disposition is not None:
        headers.append(("Content-Disposition", disposition))
    headers.append(("x-ambry-blob-size", str(properties.size)))
    headers.append(("x-ambry-content-type", properties.content_type))
    for name, value in (
        ("x-ambry-content-encoding", properties.content_encoding),
        ("x-ambry-service-id", properties.service_id),
        ("x-ambry-owner-id", properties.owner_id),
        ("x-ambry-filename", properties.filename),
    ):
        if value is not None:
            headers.append((name, value))
    repr_digest = render_repr_digest(properties.digests)
    if repr_digest:
        headers.append(("Repr-Digest", repr_digest))
    return headers + user_metadata_headers(properties)


def user_metadata_headers(properties: Properties) -> Headers:
    """User metadata; values that are not plain printable ASCII come back URL-encoded."""
    return [
        (f"{USER_METADATA}{key}", value)
        if value.isascii() and value.isprintable() and value == value.strip()
        else (f"{ENCODED_USER_METADATA}{key}", quote(value, safe=""))
        for key, value in properties.user_metadata.items()
    ]


def partial_headers(
    common: Headers, properties: Properties, ranges: tuple[ByteRange, ...], multipart_type: str | None
) -> Headers:
    """Headers of a 206: `common` from `blob_headers` with the size of what is sent."""
    headers = list(common)
    if multipart_type is None:
        headers.append(("Content-Range", ranges[0].content_range(properties.size)))
        headers.append(("Content-Type", properties.content_type))
    else:
        headers.append(("Content-Type", multipart_type))
    return headers + described_headers(properties)


_RUNS_IN_BROWSERS: Final = ("html", "svg", "xml", "javascript", "ecmascript", "mathml", "flash")
"""Parts of media types whose content could act in the name of the site that serves it."""


def _disposition(properties: Properties) -> str | None:
    media_type = properties.content_type.partition(";")[0].lower()
    is_active = any(part in media_type for part in _RUNS_IN_BROWSERS)
    if properties.filename is None:
        return "attachment" if is_active else None
    kind = "attachment" if is_active else "inline"
    return f"{kind}; filename*=UTF-8''{quote(properties.filename, safe='')}"
