"""Small checksummed documents of one file each: disk.meta and replica.meta. Normative text: docs/formats/segment.md.

    magic (4) | version (1) | zero (3) | payload size (4) | zero (4) | checksum (8) | msgpack map

The checksum is the xxh3-64 of the map, seeded with magic and version.

Written as a whole by `Disk.replace`, so a reader finds the former or the new one, never a mixture.
"""

import struct
from typing import Any, Final

import msgpack
from xxhash import xxh3_64_intdigest

from ambry.errors import DirectoryUnusable

LAYOUT: Final = (
    ("magic", 0, 4),
    ("version", 4, 1),
    ("zero", 5, 3),
    ("payload_size", 8, 4),
    ("zero", 12, 4),
    ("checksum", 16, 8),
)
_HEADER: Final = struct.Struct("<4sB3xI4xQ")
HEADER_SIZE: Final = _HEADER.size
assert HEADER_SIZE == 24


def encode_document(magic: bytes, version: int, document: dict[str, Any]) -> bytes:
    """The bytes of the file."""
    payload: bytes = msgpack.packb(document)
    return _HEADER.pack(magic, version, len(payload), _checksum(magic, version, payload)) + payload


def decode_document(data: bytes, magic: bytes, version_max: int, path: str) -> dict[str, Any]:
    """Check and read it. Raises DirectoryUnusable that names `path` and says what is wrong."""
    if len(data) < HEADER_SIZE:
        raise DirectoryUnusable(f"{path} has {len(data)} bytes, which is not even a header")
    its_magic, version, size, checksum = _HEADER.unpack_from(data)
    if its_magic != magic:
        raise DirectoryUnusable(f"{path} is not a file of this store")
    if version > version_max:
        raise DirectoryUnusable(
            f"{path} has format {version}, and this version of the program knows up to {version_max}: "
            "start the newer version that wrote it"
        )
    payload = data[HEADER_SIZE:]
    if len(payload) != size or _checksum(magic, version, payload) != checksum:
        raise DirectoryUnusable(f"{path} is damaged: it does not have its checksum")
    try:
        document = msgpack.unpackb(payload)
    except (ValueError, msgpack.UnpackException) as error:
        # The checksum is right, so someone meant to write this.
        raise DirectoryUnusable(f"{path} was not written by this store: {error!r}") from error
    if not isinstance(document, dict):
        raise DirectoryUnusable(f"{path} holds no map")
    return document


def _checksum(magic: bytes, version: int, payload: bytes) -> int:
    return xxh3_64_intdigest(payload, int.from_bytes(magic, "little") + version)
