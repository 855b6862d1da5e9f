"""Manifest: the body of a composite blob, which lists its chunks. Normative text: docs/formats/manifest.md.

    offset  size  field
         0     4  magic "AMNF"
         4     1  version, 1
         5     1  level: 0 the entries are chunks, 1 they are manifests of level 0
         6     2  zero
         8     4  number of entries
        12     4  zero
        16     8  plain bytes of all entries together
        24     -  entries of 48 bytes: blob id (32), plain bytes (8), root of the entry's stored body (8)

Integers are little-endian. The record's checksum vector protects these bytes; the entry's root ties each chunk to
its place, so a chunk of another blob or another place never passes for this one.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ambry.errors import CorruptRecord
from ambry.limits import MANIFEST_ENTRIES_MAX

MAGIC: Final = b"AMNF"
VERSION: Final = 1
LEVEL_MAX: Final = 1
LAYOUT: Final = (
    ("magic", 0, 4),
    ("version", 4, 1),
    ("level", 5, 1),
    ("zero", 6, 2),
    ("entry_count", 8, 4),
    ("zero", 12, 4),
    ("size", 16, 8),
    ("entries", 24, None),
)
ENTRY_LAYOUT: Final = (("blob_id", 0, 32), ("size", 32, 8), ("root", 40, 8))
_HEADER: Final = struct.Struct("<4sBBHIIQ")
_ENTRY: Final = struct.Struct("<32sQQ")
HEADER_SIZE: Final = _HEADER.size
ENTRY_SIZE: Final = _ENTRY.size
assert (HEADER_SIZE, ENTRY_SIZE) == (24, 48)


@dataclass(frozen=True, slots=True)
class Entry:
    """One chunk (level 0) or one manifest (level 1): binary id, plain bytes, root of the stored body."""

    blob_id: bytes
    size: int
    root: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """The entries of a composite blob, in order."""

    level: int
    entries: tuple[Entry, ...]
    size: int


def encode_manifest(level: int, entries: Sequence[Entry]) -> bytes:
    """The body of a manifest record."""
    assert 0 <= level <= LEVEL_MAX
    assert 0 < len(entries) <= MANIFEST_ENTRIES_MAX
    size = sum(entry.size for entry in entries)
    header = _HEADER.pack(MAGIC, VERSION, level, 0, len(entries), 0, size)
    return header + b"".join(_ENTRY.pack(entry.blob_id, entry.size, entry.root) for entry in entries)


def decode_manifest(data: bytes | bytearray | memoryview) -> Manifest:
    """Read a manifest. Raises CorruptRecord."""
    if len(data) < HEADER_SIZE:
        raise CorruptRecord(f"manifest of {len(data)} bytes")
    magic, version, level, zero_16, count, zero_32, size = _HEADER.unpack_from(data)
    if magic != MAGIC or version != VERSION or level > LEVEL_MAX or zero_16 or zero_32:
        raise CorruptRecord(f"not a manifest of version {VERSION}")
    if not 0 < count <= MANIFEST_ENTRIES_MAX or len(data) != HEADER_SIZE + count * ENTRY_SIZE:
        raise CorruptRecord(f"manifest of {len(data)} bytes with {count} entries")
    entries = tuple(Entry(*fields) for fields in _ENTRY.iter_unpack(memoryview(data)[HEADER_SIZE:]))
    if sum(entry.size for entry in entries) != size or any(entry.size == 0 for entry in entries):
        raise CorruptRecord("the sizes of a manifest's entries do not add up")
    return Manifest(level, entries, size)


def entries_in_range(manifest: Manifest, start: int, stop: int) -> Iterator[tuple[Entry, int, int]]:
    """The entries that bytes start:stop of the blob touch, each with its own start:stop within the entry."""
    assert 0 <= start <= stop <= manifest.size
    at = 0
    for entry in manifest.entries:
        if at >= stop or start == stop:
            return
        if at + entry.size > start:
            yield entry, max(start - at, 0), min(stop - at, entry.size)
        at += entry.size
