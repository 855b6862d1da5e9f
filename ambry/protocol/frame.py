"""Frames: what a connection between processes carries. Normative text: docs/formats/wire.md.

    offset  size  field
         0     4  magic, "AMBW"
         4     8  check: xxh3-64 of everything from offset 12 to the end of the message header
        12     1  version of this layout, 1
        13     1  message type; zero is invalid
        14     2  flags: none are known yet, all must be zero
        16     8  request id: pairs an answer with its request; zero for what concerns the connection
        24     4  size of the message header
        28     4  size of the body
        32     -  message header (msgpack), then the body, raw

Integers are big-endian. The check covers the message header too, because a flipped bit in a life or an expiry would
be joined into a state for good; bodies have checksums of their own. Sizes are refused before anything is buffered for
them, and the check is made as soon as the header is whole, so that a flipped size does not make a receiver wait.

This module knows bytes; it does not know messages, connections or sockets.
"""

import struct
from dataclasses import dataclass
from typing import Final

from xxhash import xxh3_64_digest

from ambry import limits
from ambry.errors import ProtocolError
from ambry.protocol.datanode import Buffer

MAGIC: Final = b"AMBW"
VERSION: Final = 1
HEADER_SIZE: Final = 32

HEADER_LAYOUT: Final = (
    ("magic", 0, 4),
    ("check", 4, 8),
    ("version", 12, 1),
    ("type", 13, 1),
    ("flags", 14, 2),
    ("request id", 16, 8),
    ("header size", 24, 4),
    ("body size", 28, 4),
    ("message header", 32, None),
    ("body", None, None),
)
"""Name, offset and size of each field, in order; a test holds docs/formats/wire.md against it."""

_FIXED: Final = struct.Struct(">4s8sBBHQII")
_CHECKED: Final = struct.Struct(">BBHQII")
_CHECKED_OFFSET: Final = 12
assert _FIXED.size == HEADER_SIZE == sum(size or 0 for _, _, size in HEADER_LAYOUT)
assert _CHECKED.size == HEADER_SIZE - _CHECKED_OFFSET

_COPY_BYTES_MAX: Final = 16 * limits.KIB
"""A smaller body is copied out of what was received: a view costs as much, and would keep the whole piece alive."""


@dataclass(slots=True)
class Frame:
    """One frame as it arrived; the check of its header holds. `type` is any value from 1 to 255.

    Not frozen, like all that is made for every single request: a frozen one takes four times as long to make.
    """

    type: int
    request_id: int
    header: bytes
    body: Buffer


def encode_frame(type_: int, request_id: int, header: bytes, body_size: int = 0) -> bytes:
    """The bytes of a frame up to its body, which the caller sends behind them as it is."""
    assert 0 < type_ < 256
    assert len(header) <= limits.FRAME_HEADER_BYTES_MAX
    assert 0 <= body_size <= limits.FRAME_BODY_BYTES_MAX
    checked = _CHECKED.pack(VERSION, type_, 0, request_id, len(header), body_size) + header
    return MAGIC + xxh3_64_digest(checked) + checked


class FrameDecoder:
    """Bytes in, frames out. Holds the piece that was fed last and at most one frame that is not whole yet.

    Until `raise_limits` it takes only frames of the handshake: small headers without a body, so that a stranger
    cannot make it buffer more. After a ProtocolError it gives nothing any more but that error.
    """

    __slots__ = ("_at", "_body", "_body_max", "_data", "_error", "_filled", "_header", "_header_max", "_open")

    def __init__(self) -> None:
        self._header_max = limits.HANDSHAKE_HEADER_BYTES_MAX
        self._body_max = 0
        self._data: bytes = b""  # the piece fed last, of which bytes from _at on are not decoded
        self._at = 0
        self._header = bytearray()  # fixed and message header of a frame, as far as they have come
        self._open: Frame | None = None  # a frame whose header is good, and whose body has not come yet
        self._body = bytearray()  # that body, in its full size, of which the first _filled bytes have come
        self._filled = 0
        self._error: ProtocolError | None = None

    def raise_limits(self) -> None:
        """The peer has proved who it is: take frames up to FRAME_HEADER_BYTES_MAX and FRAME_BODY_BYTES_MAX."""
        self._header_max = limits.FRAME_HEADER_BYTES_MAX
        self._body_max = limits.FRAME_BODY_BYTES_MAX

    @property
    def buffered_size(self) -> int:
        """Bytes that are held: not decoded, or of a frame that is not whole."""
        return len(self._data) - self._at + len(self._header) + len(self._body)

    def feed(self, data: bytes) -> None:
        """Take bytes as they arrived, in pieces of any size."""
        if self._at == len(self._data):
            self._data = data
        else:
            self._data = self._data[self._at :] + data
        self._at = 0

    def frames(self, count_max: int) -> list[Frame]:
        """Up to `count_max` whole frames; fewer only when there are no more. Raises ProtocolError."""
        if self._error is not None:
            raise self._error
        try:
            return self._frames(count_max)
        except ProtocolError as error:
            self._error = error
            self._data, self._at = b"", 0
            self._header.clear()
            raise

    def _frames(self, count_max: int) -> list[Frame]:
        frames: list[Frame] = []
        if self._header or self._open is not None:
            self._complete(frames)
        data, at, size = self._data, self._at, len(self._data)
        while len(frames) < count_max and size - at >= HEADER_SIZE:
            magic, check, version, type_, flags, request_id, header_size, body_size = _FIXED.unpack_from(data, at)
            header_end = at + HEADER_SIZE + header_size
            end = header_end + body_size
            if (
                magic != MAGIC
                or version != VERSION
                or flags
                or not type_
                or header_size > self._header_max
                or body_size > self._body_max
                or end > size
                or xxh3_64_digest(data[at + _CHECKED_OFFSET : header_end]) != check
            ):
                # Not whole, or not sound: `_complete` finds out which.
                break
            body: Buffer = b""
            if body_size:
                is_small = body_size <= _COPY_BYTES_MAX
                body = data[header_end:end] if is_small else memoryview(data)[header_end:end]
            frames.append(Frame(type_, request_id, data[at + HEADER_SIZE : header_end], body))
            at = end
        self._at = at
        if not frames and at < size:
            # Not before the whole frames are out, so that trouble in what follows does not lose them.
            self._complete(frames)
        return frames

    def _complete(self, frames: list[Frame]) -> None:
        """Move bytes from the piece to the frame that is not whole; when it is, add it."""
        if self._open is None:
            self._open = self._take_header()
            if self._open is None:
                return
        filled = self._filled
        piece = memoryview(self._data)[self._at : self._at + len(self._body) - filled]
        self._body[filled : filled + len(piece)] = piece
        self._at += len(piece)
        self._filled += len(piece)
        if self._filled == len(self._body):
            frames.append(self._close())

    def _take_header(self) -> Frame | None:
        """The frame that begins here, without its body; None when its header is not whole. Raises ProtocolError."""
        header = self._header
        if not self._grow(header, HEADER_SIZE):
            return None
        self._check_fixed(bytes(header[:HEADER_SIZE]))
        _, check, _, type_, _, request_id, header_size, body_size = _FIXED.unpack_from(header)
        if not self._grow(header, HEADER_SIZE + header_size):
            return None
        if xxh3_64_digest(bytes(header[_CHECKED_OFFSET:])) != check:
            message = "a frame's header does not have its checksum"
            raise ProtocolError(message, field="check", request_id=request_id)
        frame = Frame(type_, request_id, bytes(header[HEADER_SIZE:]), b"")
        header.clear()
        # In its full size at once: growing it with what arrives would copy it several times over. Only a peer that
        # has proved who it is can ask for this, for one frame at a time.
        self._body = bytearray(body_size)
        self._filled = 0
        return frame

    def _grow(self, header: bytearray, size: int) -> bool:
        """Move bytes from the piece to `header` until it has `size`; whether it has."""
        missing = size - len(header)
        if missing > 0:
            piece = self._data[self._at : self._at + missing]
            header += piece
            self._at += len(piece)
        return len(header) >= size

    def _close(self) -> Frame:
        """The open frame, whole."""
        assert self._open is not None
        frame, body = self._open, self._body
        frame.body = bytes(body) if len(body) <= _COPY_BYTES_MAX else memoryview(body).toreadonly()
        self._open = None
        self._body = bytearray()
        return frame

    def _check_fixed(self, fixed: bytes) -> None:
        """Raises ProtocolError, naming the field."""
        magic, _, version, type_, flags, _, header_size, body_size = _FIXED.unpack(fixed)
        if magic != MAGIC:
            raise ProtocolError("not a frame: the magic is missing", field="magic")
        if version != VERSION:
            raise ProtocolError(f"frame of version {version}, known is {VERSION}", field="version")
        if not type_:
            raise ProtocolError("message type zero", field="type")
        if flags:
            raise ProtocolError(f"unknown flags {flags:#x}", field="flags")
        if header_size > self._header_max:
            message = f"header of {header_size} bytes, the limit is {self._header_max}"
            raise ProtocolError(message, field="header size")
        if body_size > self._body_max:
            message = f"body of {body_size} bytes, the limit is {self._body_max}"
            raise ProtocolError(message, field="body size")
