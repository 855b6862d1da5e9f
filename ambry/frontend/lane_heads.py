"""What the fast lane recognises: heads of requests, byte for byte. Pure, and conservative without exception.

A head is the lane's only in the strictest form that HTTP/1.1 has, and with headers from two short lists. Where another
parser might see something else, the answer is None, and aiohttp's parser decides.
"""

import re
from collections.abc import Mapping
from typing import Final

from ambry.access.snapshot import Caller
from ambry.blob.properties import Properties, document_of, encode_document
from ambry.errors import AmbryError
from ambry.frontend.access import sent_owner
from ambry.frontend.headers import PutHeaders, parse_put_headers
from ambry.limits import LANE_BODY_BYTES_MAX, LANE_HEAD_BYTES_MAX

_HEAD: Final = re.compile(
    rb"(?:GET /[0-9A-Za-z_-]{43}|POST /|(?:GET|PUT) /named/[0-9A-Za-z._~/-]{1,1200}) HTTP/1\.1\r\n"
    rb"((?:[A-Za-z-]{1,64}: [!-~](?:[ -~]{0,1022}[!-~])?\r\n){1,32})\r\n"
)
"""Head of a request that may be the lane's: one space after each colon, values of printable ASCII without edges."""

_HARMLESS: Final = frozenset(
    (b"host", b"user-agent", b"accept", b"accept-encoding", b"accept-language", b"connection", b"referer", b"origin",
     b"cache-control", b"pragma", b"dnt", b"traceparent", b"tracestate", b"authorization")
)  # fmt: skip
"""Headers that change no answer, for someone whom the lane knows. Connection only if it says keep-alive, which HTTP/1.1
does anyway."""

_OF_POST: Final = frozenset(
    (b"content-length", b"content-type", b"x-ambry-service-id", b"x-ambry-owner-id", b"x-ambry-content-type",
     b"x-ambry-content-encoding", b"x-ambry-filename", b"x-ambry-ttl", b"x-ambry-target-account-name",
     b"x-ambry-target-container-name")
)  # fmt: skip
"""Headers that the lane hands to `parse_put_headers`, as aiohttp's way does. Digests and user metadata are not here."""

_OF_NAMED_PUT: Final = (_OF_POST | {b"x-ambry-named-upsert"}) - {
    b"x-ambry-target-account-name",
    b"x-ambry-target-container-name",
}
"""The same for a put under a name, whose path says whose it is."""

_UPSERTS: Final = {b"true": True, b"false": False}

_LENGTH: Final = re.compile(rb"0|[1-9][0-9]{0,9}")

_FOREIGN_HEAD: Final = re.compile(
    rb"(?:GET|HEAD|POST|PUT|DELETE|OPTIONS) [!-~]+ HTTP/1\.1\r\n((?:[A-Za-z0-9-]+:[ -~]*\r\n)*)\r\n"
)
"""Head of a request that is aiohttp's, but whose end is certain."""

_FOREIGN_LENGTH: Final = re.compile(rb"\ncontent-length: *([0-9]{1,15}) *\r\n")


def harmless_lines(head: bytes, extra: frozenset[bytes] = frozenset()) -> dict[bytes, bytes] | None:
    """Header lines by lower-case name, or None if one is not on the lists, or is there twice, or Host is missing."""
    lines: dict[bytes, bytes] = {}
    match = _HEAD.fullmatch(head)
    if match is None or len(head) > LANE_HEAD_BYTES_MAX:
        return None
    for line in match[1].splitlines():
        name, _, value = line.partition(b": ")
        lower = name.lower()
        if lower in lines or not (lower in _HARMLESS or lower in extra):
            return None
        lines[lower] = value
    if b"host" not in lines or lines.get(b"connection", b"keep-alive").lower() != b"keep-alive":
        return None
    return lines


def message_size(data: bytes) -> int | None:
    """Bytes of the message that begins at the front of `data`, head and body; None unless it is beyond doubt.

    Beyond doubt means that no parser could see it otherwise: a whole head in the strict form, at most one
    Content-Length, neither Transfer-Encoding nor Upgrade.
    """
    match = _FOREIGN_HEAD.match(data)
    if match is None:
        return None
    lines = b"\n" + match[1].lower()
    if b"\ntransfer-encoding" in lines or b"\nupgrade" in lines or b"\nconnection" in lines:
        return None
    count = lines.count(b"\ncontent-length")
    if count == 0:
        return match.end()
    length = _FOREIGN_LENGTH.search(lines)
    return match.end() + int(length[1]) if count == 1 and length is not None else None


class PostHead:
    """What the head of a POST says, read once and for all requests that begin with the same bytes.

    `caller` and `owner` are whose the blob will be, under one snapshot of accounts and keys.
    """

    __slots__ = (
        "authorization",
        "bytes",
        "caller",
        "document",
        "end",
        "headers",
        "length",
        "named",
        "owner",
        "properties",
        "upsert",
    )

    def __init__(
        self, head: bytes, length: int, headers: PutHeaders, authorization: str | None, named: tuple[str, str] | None
    ) -> None:
        """`head` of a put under a name is what follows the path: the part that clients repeat."""
        self.authorization = authorization
        self.named = named
        self.caller: Caller | None = None
        self.owner = b""
        self.bytes = head
        self.length = length
        self.end = len(head) + length
        self.upsert = False
        self.headers = headers
        plain = headers.properties
        sized = Properties(
            size=length,
            content_type=plain.content_type,
            content_encoding=plain.content_encoding,
            filename=plain.filename,
            service_id=plain.service_id,
            owner_id=plain.owner_id,
        )
        self.document = document_of(sized)
        self.properties = encode_document(self.document)


def post_head(head: bytes) -> PostHead | None:
    """Read the head of a POST that may be the lane's; None if it is not."""
    lines = harmless_lines(head, _OF_POST)
    return None if lines is None else _put_head(head, lines)


def named_put_head(head: bytes, path_end: int) -> PostHead | None:
    """The same for a put under a name, whose path ends at `path_end`."""
    lines = harmless_lines(head, _OF_NAMED_PUT)
    if lines is None:
        return None
    upsert = lines.pop(b"x-ambry-named-upsert", b"false")
    found = _put_head(head[path_end:], lines) if upsert in _UPSERTS else None
    if found is not None:
        found.upsert = _UPSERTS[upsert]
    return found


def _put_head(head: bytes, lines: dict[bytes, bytes]) -> PostHead | None:
    length = lines.pop(b"content-length", b"")
    if not _LENGTH.fullmatch(length) or int(length) > LANE_BODY_BYTES_MAX:
        return None
    if lines.get(b"content-type", b"").lower().startswith(b"multipart/"):
        return None
    texts = {name.decode("ascii"): value.decode("ascii") for name, value in lines.items()}
    try:
        named = sent_owner(lambda name: [texts[name]] if name in texts else [])
        headers = parse_put_headers(texts.items())
    except AmbryError:
        # aiohttp's way gives the same error; the lane need not know how to say it.
        return None
    return PostHead(head, int(length), headers, texts.get("authorization"), named)


def authorization_of(lines: Mapping[bytes, bytes]) -> str | None:
    """The credentials among header lines."""
    value = lines.get(b"authorization")
    return None if value is None else value.decode("ascii")
