"""Blob ids: 32 bytes that are a location, and their printable form. Normative text: docs/formats/blob-id.md.

    offset  size  field
         0     1  version, 1
         1     1  kind: 1 simple, 2 composite, 3 chunk
         2     2  datacentre in which the blob was put
         4     4  account
         8     4  container
        12     4  partition
        16     6  time of the put, ms since 1970: a sorting hint that decides nothing
        22    10  random

Integers are big-endian, so that ids of one partition sort by time. The printable form is base64url without padding,
43 characters; only the canonical one is accepted (the two spare bits are zero), so one blob has one name.
"""

import binascii
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from ambry.errors import BadBlobId

VERSION: Final = 1
BINARY_SIZE: Final = 32
TEXT_SIZE: Final = 43
UNIQUE_SIZE: Final = 16

LAYOUT: Final = (
    ("version", 0, 1),
    ("kind", 1, 1),
    ("datacentre", 2, 2),
    ("account", 4, 4),
    ("container", 8, 4),
    ("partition", 12, 4),
    ("time_ms", 16, 6),
    ("random", 22, 10),
)
_FIELDS: Final = struct.Struct(">BBHIII16s")
assert _FIELDS.size == BINARY_SIZE
KIND_AT: Final = 1
"""Place of the kind in the binary form."""

_FROM_TEXT: Final = bytes.maketrans(b"-_+/", b"+/!!")
_TO_TEXT: Final = bytes.maketrans(b"+/", b"-_")
_LAST: Final = frozenset(b"AEIMQUYcgkosw048")
"""What the last character can be: four bits of the id, then two zeros."""


class Kind(IntEnum):
    """What the record holds. Never renumber: these values are on disk. Zero is invalid."""

    SIMPLE = 1
    COMPOSITE = 2
    CHUNK = 3


_KINDS: Final = {kind.value: kind for kind in Kind}


@dataclass(frozen=True, slots=True)
class BlobId:
    """The parts of an id. `unique` is 16 bytes, time first."""

    kind: Kind
    datacentre: int
    account: int
    container: int
    partition: int
    unique: bytes

    def binary(self) -> bytes:
        """The 32 bytes that records hold."""
        return _FIELDS.pack(
            VERSION, self.kind, self.datacentre, self.account, self.container, self.partition, self.unique
        )

    def text(self) -> str:
        """The 43 characters that clients see."""
        return text_from_binary(self.binary())

    def __str__(self) -> str:
        return self.text()

    @property
    def created_ms(self) -> int:
        """The time in the id, ms since 1970. A hint."""
        return int.from_bytes(self.unique[:6], "big")


def new_unique(now_ms: int, random_10: bytes) -> bytes:
    """The unique part of a new id: 48 bits of time and 80 random bits."""
    assert len(random_10) == 10
    return now_ms.to_bytes(6, "big") + random_10


def parse_binary(data: bytes) -> BlobId:
    """Decode 32 bytes. Raises BadBlobId."""
    if len(data) != BINARY_SIZE:
        raise BadBlobId(f"a blob id has {BINARY_SIZE} bytes, not {len(data)}", field="blob id")
    version, kind, datacentre, account, container, partition, unique = _FIELDS.unpack(data)
    if version != VERSION:
        raise BadBlobId(f"blob id of version {version}, known is {VERSION}", field="blob id")
    if kind not in _KINDS:
        raise BadBlobId(f"blob id of unknown kind {kind}", field="blob id")
    return BlobId(_KINDS[kind], datacentre, account, container, partition, unique)


def text_from_binary(data: bytes) -> str:
    """Printable form of 32 bytes."""
    return binascii.b2a_base64(data, newline=False)[:TEXT_SIZE].translate(_TO_TEXT).decode("ascii")


def binary_from_text(text: bytes) -> bytes:
    """The 32 bytes behind 43 ASCII characters. Raises BadBlobId; checks the form, not the fields."""
    if len(text) != TEXT_SIZE:
        raise BadBlobId(f"a blob id has {TEXT_SIZE} characters, not {len(text)}", field="blob id")
    # Not a padding of the sender's own, and no spare bits: each blob has one name.
    if text[-1] not in _LAST:
        raise BadBlobId("not the canonical form of a blob id", field="blob id")
    try:
        # strict_mode refuses what is outside the alphabet; so '+' and '/', which are not in ours, become that.
        return binascii.a2b_base64(text.translate(_FROM_TEXT) + b"=", strict_mode=True)
    except binascii.Error as error:
        raise BadBlobId("a blob id has only letters, digits, '-' and '_'", field="blob id") from error


def parse_text(text: str) -> BlobId:
    """Decode the printable form. Raises BadBlobId."""
    try:
        ascii_text = text.encode("ascii")
    except UnicodeEncodeError as error:
        raise BadBlobId("a blob id has only letters, digits, '-' and '_'", field="blob id") from error
    return parse_binary(binary_from_text(ascii_text))
