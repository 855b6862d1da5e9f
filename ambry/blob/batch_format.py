"""Items of a batch over HTTP: many small blobs in one body. Normative text: docs/formats/batch.md.

    offset  size  field
         0     4  magic "ABAT"
         4     1  version, 1
         5     1  kind: 1 put, 2 answer, 3 end
         6     2  HTTP status of an answer, or of the end of a batch that broke off; else zero
         8     4  bytes of the head: JSON, or nothing
        12     4  life of an answer's blob, number of items of the end; else zero
        16     8  bytes of the body
        24     8  check: xxh3-64 of the body; 0 in a put: not checked
        32     8  an answer's moment of the put, ms since 1970; else zero
        40     8  an answer's moment of expiry, 2^64 - 1 for ever; else zero
        48     -  head, then body

Integers are little-endian. Imports nothing but the standard library, since clients use it too.
"""

import json
import struct
from collections.abc import Mapping
from enum import IntEnum
from typing import Final

from ambry.blob.value import value
from ambry.errors import BadRequest

CONTENT_TYPE: Final = "application/vnd.ambry.batch"
MAGIC: Final = b"ABAT"
VERSION: Final = 1
ITEM_LAYOUT: Final = (
    ("magic", 0, 4),
    ("version", 4, 1),
    ("kind", 5, 1),
    ("status", 6, 2),
    ("head_size", 8, 4),
    ("count", 12, 4),
    ("body_size", 16, 8),
    ("check", 24, 8),
    ("created_ms", 32, 8),
    ("expires_at_ms", 40, 8),
    ("head", 48, None),
    ("body", None, None),
)
_FIELDS: Final = struct.Struct("<4sBBHIIQQQQ")
ITEM_SIZE: Final = _FIELDS.size
assert ITEM_SIZE == 48

pack_item: Final = _FIELDS.pack
"""The fixed part from its fields, for those who make thousands a second."""


class ItemKind(IntEnum):
    """What an item is. Never renumber: clients have it. Zero is invalid."""

    PUT = 1
    ANSWER = 2
    END = 3


_KINDS: Final = {kind.value: kind for kind in ItemKind}


@value
class Item:
    """The fixed part of an item. `count` is the life of an answer's blob, or the number of items before the end."""

    kind: ItemKind
    status: int
    head_size: int
    count: int
    body_size: int
    check: int
    created_ms: int
    expires_at_ms: int

    @property
    def size(self) -> int:
        """Bytes of the whole item."""
        return ITEM_SIZE + self.head_size + self.body_size


def encode_put(head: bytes, body_size: int, check: int) -> bytes:
    """The fixed part and the head of a put; the body follows."""
    return pack_item(MAGIC, VERSION, ItemKind.PUT, 0, len(head), 0, body_size, check, 0, 0) + head


def encode_end(count: int, status: int = 0, head: bytes = b"") -> bytes:
    """What every batch ends with; a status and a head say why it broke off."""
    return pack_item(MAGIC, VERSION, ItemKind.END, status, len(head), count, 0, 0, 0, 0) + head


def encode_checks(checks: Mapping[int, int]) -> bytes:
    """The head of an end: the checks of bodies that were sent before their check was known, by number of the item."""
    return (
        json.dumps({"checks": {str(number): f"{check:016x}" for number, check in checks.items()}}).encode()
        if checks
        else b""
    )


def decode_checks(head: bytes) -> dict[int, int]:
    """The same read. Raises BadRequest."""
    try:
        document = json.loads(head) if head else {}
        return {int(number): int(check, 16) for number, check in document.get("checks", {}).items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise BadRequest("the end of a batch has a head of another make", field="body") from error


def decode_item(data: bytes | bytearray | memoryview, offset: int = 0) -> Item:
    """The fixed part of the item at `offset`. Raises BadRequest when it is none."""
    if len(data) - offset < ITEM_SIZE:
        raise BadRequest("the batch ends in the middle of an item", field="body")
    magic, version, kind, *rest = _FIELDS.unpack_from(data, offset)
    if magic != MAGIC or version != VERSION or kind not in _KINDS:
        raise BadRequest(f"no item of a batch of version {VERSION}", field="body")
    return Item(_KINDS[kind], *rest)
