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

    __slots__ = ("_at", "_body_max", "_data", "_error", "_header_checked", "_header_max", "_partial", "_wanted")

    def __init__(self) -> None:
        self._header_max = limits.HANDSHAKE_HEADER_BYTES_MAX
        self._body_max = 0
        self._data: bytes = b""  # the piece fed last, of which bytes from _at on are not decoded
        self._at = 0
        self._partial = bytearray()  # the beginning of a frame whose rest has not come
        self._wanted = HEADER_SIZE  # size that _partial needs for the next step
        self._header_checked = False
        self._error: ProtocolError | None = None

    def raise_limits(self) -> None:
        """The peer has proved who it is: take frames up to FRAME_HEADER_BYTES_MAX and FRAME_BODY_BYTES_MAX."""
        self._header_max = limits.FRAME_HEADER_BYTES_MAX
        self._body_max = limits.FRAME_BODY_BYTES_MAX

    @property
    def buffered_size(self) -> int:
        """Bytes that are held: not decoded, or of a frame that is not whole."""
        return len(self._data) - self._at + len(self._partial)

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
            self._partial = bytearray()
            raise

    def _frames(self, count_max: int) -> list[Frame]:
        frames: list[Frame] = []
        if self._partial:
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
        """Move bytes from the piece to the frame that is not whole: fixed header, message header, body."""
        partial = self._partial
        while True:
            missing = self._wanted - len(partial)
            if missing:
                partial += memoryview(self._data)[self._at : self._at + missing]
                self._at = min(self._at + missing, len(self._data))
                if len(partial) < self._wanted:
                    return
            _, check, _, type_, _, request_id, header_size, body_size = _FIXED.unpack_from(partial)
            header_end = HEADER_SIZE + header_size
            if not self._header_checked:
                self._check_fixed(bytes(partial[:HEADER_SIZE]))
                self._wanted = header_end
                if len(partial) < header_end:
                    continue
                if xxh3_64_digest(bytes(partial[_CHECKED_OFFSET:header_end])) != check:
                    message = "a frame's header does not have its checksum"
                    raise ProtocolError(message, field="check", request_id=request_id)
                self._header_checked = True
                self._wanted = header_end + body_size
                continue
            body: Buffer = memoryview(partial)[header_end:].toreadonly()
            if body_size <= _COPY_BYTES_MAX:
                body = bytes(body)
            frames.append(Frame(type_, request_id, bytes(partial[HEADER_SIZE:header_end]), body))
            self._partial = bytearray()
            self._wanted = HEADER_SIZE
            self._header_checked = False
            return

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
