"""What is uploaded: how often its bytes can be read, their checksum, and the headers that say what a blob is."""

import base64
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any, Final

import xxhash

from ambry.client.values import quote_name
from ambry.limits import MIB

Buffer = bytes | bytearray | memoryview
Source = Buffer | IO[bytes] | Iterable[bytes]
"""Bytes, a file object, or an iterable of bytes."""

_PIECE_BYTES: Final = MIB


class Body:
    """The bytes of one upload. `size` and `digest`, base64 of the xxh3, hold when all were read."""

    def __init__(self, data: Source, size: int | None) -> None:
        self._data = data
        self.size = 0
        self.digest = ""
        self.can_repeat = True
        self.headers: dict[str, str] = {}
        self._rewind: Callable[[], object] | None = None
        if isinstance(data, bytes | bytearray | memoryview):
            self.size = len(data)
            self.digest = base64_of(xxhash.xxh3_64(data).digest())
            self.headers = {"Content-Length": str(self.size), "Repr-Digest": f"xxh3=:{self.digest}:"}
            return
        self.headers["Want-Repr-Digest"] = "xxh3=1"
        if size is None:
            self.headers["Transfer-Encoding"] = "chunked"
        else:
            self.headers["Content-Length"] = str(size)
        self.can_repeat = False
        file: Any = data
        if hasattr(file, "seekable") and file.seekable():
            start = file.tell()
            self._rewind = lambda: file.seek(start)
            self.can_repeat = True

    def chunks(self) -> Iterable[Buffer]:
        """The bytes, from the beginning."""
        data = self._data
        if isinstance(data, bytes | bytearray | memoryview):
            view = memoryview(data)
            for at in range(0, len(view), _PIECE_BYTES):
                yield view[at : at + _PIECE_BYTES]
            return
        if self._rewind is not None:
            self._rewind()
        checksum = xxhash.xxh3_64()
        self.size = 0
        read = getattr(data, "read", None)
        pieces = iter(lambda: read(_PIECE_BYTES), b"") if read is not None else iter(data)
        for piece in pieces:
            checksum.update(piece)
            self.size += len(piece)
            yield piece
        self.digest = base64_of(checksum.digest())


def base64_of(data: bytes) -> str:
    """A digest as headers have it."""
    return base64.b64encode(data).decode("ascii")


def upload_headers(
    content_type: str | None,
    filename: str | None,
    ttl_s: int | None,
    metadata: Mapping[str, str] | None,
    *,
    if_match: str | None,
    upsert: bool,
) -> dict[str, str]:
    """What the request of an upload says of the blob and its name. `if_match` is the id of a blob."""
    headers = {"x-ambry-service-id": "ambry-client"}
    named = {"x-ambry-content-type": content_type, "x-ambry-filename": filename}
    headers.update({name: value for name, value in named.items() if value is not None})
    if ttl_s is not None:
        headers["x-ambry-ttl"] = str(ttl_s)
    for key, text in (metadata or {}).items():
        headers[f"x-ambry-enc-um-{key}"] = quote_name(text).replace("/", "%2F").replace("+", "%2B")
    if if_match is not None:
        headers["If-Match"] = f'"{if_match}"'
    if upsert:
        headers["x-ambry-named-upsert"] = "true"
    return headers
