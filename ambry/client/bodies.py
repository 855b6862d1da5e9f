"""What is uploaded: how often its bytes can be read, their checksum, and the headers that say what a blob is."""

import base64
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Any, Final

import xxhash

from ambry.client.values import quote_name
from ambry.errors import AmbryError, BadRequest, FileChanged
from ambry.limits import MIB

Buffer = bytes | bytearray | memoryview
Source = Buffer | IO[bytes] | Iterable[bytes]
"""Bytes, a file object, or an iterable of bytes."""

_PIECE_BYTES: Final = MIB


class Body:
    """The bytes of one upload. `size` and `digest`, base64 of the xxh3, hold when all were read."""

    def __init__(self, data: Source, size: int | None, *, wants_sha256: bool = False) -> None:
        """`size` is what the caller says of the source. Raises BadRequest for bytes that are more or fewer."""
        self._wants_sha256 = wants_sha256
        self.sha256: bytes | None = None
        """Its SHA-256, if that is wanted."""
        self._data: IO[bytes] | Iterable[bytes] = ()
        self._view: memoryview | None = None
        self._told = size
        self.size = 0
        self.digest = ""
        self.can_repeat = True
        self.headers: dict[str, str] = {}
        self._rewind: Callable[[], object] | None = None
        if isinstance(data, bytes | bytearray | memoryview):
            self._view = bytes_of(data)
            self.size = len(self._view)
            if size is not None and size != self.size:
                raise BadRequest(f"a body of {self.size} bytes, and `size` says {size}", field="size")
            self.digest = base64_of(xxhash.xxh3_64(self._view).digest())
            self.headers = {"Content-Length": str(self.size), "Repr-Digest": f"xxh3=:{self.digest}:"}
            if wants_sha256:
                self.sha256 = _sha256(self._view).digest()
            return
        file: Any = data
        if isinstance(file, str):
            raise BadRequest("a body is made of bytes, and this is a text", field="data")
        if size is not None and size < 0:
            raise BadRequest(f"a body of {size} bytes", field="size")
        self._data = data
        self.headers["Want-Repr-Digest"] = "xxh3=1, sha-256=1" if wants_sha256 else "xxh3=1"
        if size is None:
            self.headers["Transfer-Encoding"] = "chunked"
        else:
            self.headers["Content-Length"] = str(size)
        self.can_repeat = False
        if hasattr(file, "seekable") and file.seekable():
            start = file.tell()
            self._rewind = lambda: file.seek(start)
            self.can_repeat = True

    def chunks(self) -> Iterator[memoryview]:
        """The bytes, from the beginning; never more than were told, and not the last of these before the end is seen.

        So no server takes for a whole what is not. Raises BadRequest for a source that has more or fewer bytes than
        were told, FileChanged if it is a file.
        """
        if self._view is not None:
            for at in range(0, len(self._view), _PIECE_BYTES):
                yield self._view[at : at + _PIECE_BYTES]
            return
        if self._rewind is not None:
            self._rewind()
        checksum = xxhash.xxh3_64()
        sha256 = _sha256() if self._wants_sha256 else None
        size = 0
        held: memoryview | None = None
        for piece in self._pieces():
            view = bytes_of(piece)
            if not view:
                continue
            checksum.update(view)
            if sha256 is not None:
                sha256.update(view)
            size += len(view)
            if self._told is not None and size > self._told:
                raise self._differs(f"{size} bytes or more")
            if size == self._told:
                # A copy of what the source may write to while it is asked for more.
                held = view if view.readonly else memoryview(bytes(view))
            else:
                yield view
        if self._told is not None and size < self._told:
            raise self._differs(f"{size} bytes")
        # Before the last bytes go out: an answer that is lost behind them leaves both known.
        self.size, self.digest = size, base64_of(checksum.digest())
        if sha256 is not None:
            self.sha256 = sha256.digest()
        if held is not None:
            yield held

    def _pieces(self) -> Iterable[bytes]:
        read = getattr(self._data, "read", None)
        if read is None:
            yield from self._data
            return
        # What has no length is no piece either, and says so itself.
        while (piece := read(_PIECE_BYTES)) is None or len(piece):
            yield piece

    def _differs(self, has: str) -> AmbryError:
        message = f"the source has {has}, and {self._told} were to be sent"
        return FileChanged(message) if _is_file(self._data) else BadRequest(message, field="size")


def _sha256(data: Buffer = b"") -> Any:  # noqa: ANN401 -- hashlib has no name for it
    import hashlib  # noqa: PLC0415 -- a tenth of the library's import, for who wants it

    return hashlib.sha256(data)


def bytes_of(data: object) -> memoryview:
    """Any buffer as bytes: of numbers, in several dimensions, in pieces. Raises BadRequest for what is none."""
    try:
        view = memoryview(data)  # type: ignore[arg-type] # whatever a stranger has handed over
    except TypeError as error:
        raise BadRequest(f"a body is made of bytes, and this is {type(data).__name__}", field="data") from error
    if view.format == "B" and view.ndim == 1 and view.contiguous:
        return view
    # What is not in one piece is copied into one.
    return view.cast("B") if view.c_contiguous and view.nbytes else memoryview(view.tobytes())


def _is_file(source: Any) -> bool:  # noqa: ANN401 -- whatever has bytes
    """Whether it is a file of the file system, which somebody may have changed."""
    try:
        return stat.S_ISREG(os.fstat(source.fileno()).st_mode)
    except (AttributeError, OSError, ValueError):
        return False


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
