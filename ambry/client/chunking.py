"""Content-defined chunks of a large file, and which of them another file has already. The one door to pyfastcdc.

Chunks are cut where the bytes say so (FastCDC, the version of 2020), so bytes that are inserted move boundaries only
near by. Without pyfastcdc nothing is cut, and what changed is sent as a whole. docs/formats/model.md has the table.
"""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import IO, Any, Final

from ambry.client.model_manifest import Extent, slices
from ambry.errors import ModelDamaged
from ambry.limits import KIB, MODEL_CHUNK_BYTES, MODEL_EXTENTS_MAX, MODEL_TABLE_BYTES_MAX

TABLE_MAGIC: Final = b"ACHT"
TABLE_VERSION: Final = 1
TABLE_LAYOUT: Final = (
    ("magic", 0, 4),
    ("version", 4, 1),
    ("reserved", 5, 3),
    ("entries", 8, None),
)
ENTRY_LAYOUT: Final = (
    ("sha256", 0, 32),
    ("size", 32, 4),
)
_HEADER_SIZE: Final = 8
_ENTRY_SIZE: Final = 36
_SMALLEST: Final = MODEL_CHUNK_BYTES // 4
_LARGEST: Final = 4 * MODEL_CHUNK_BYTES
_EXTENT_BYTES_MIN: Final = 128 * KIB
_NEW_PART_MAX: Final = 0.5
"""A file of which more than this is new is stored as one content: it is read faster, and frees the old one."""

_READ_BYTES: Final = 4 * 1024 * KIB


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a file."""

    sha256: bytes
    size: int


@dataclass(frozen=True, slots=True)
class Reuse:
    """A file put together from content that is there (`extents`), and what is not: `offset, size` in the file.

    Extents with an empty content stand for what is new, in order.
    """

    extents: tuple[Extent, ...]
    new: tuple[tuple[int, int], ...]

    def with_new(self, content: str) -> tuple[Extent, ...]:
        """The extents, once what is new is stored as one content."""
        return tuple(
            extent if extent.content else Extent(content, extent.offset, extent.size) for extent in self.extents
        )


class _Hashed:
    """A file that is read once: the SHA-256 of everything that was read."""

    def __init__(self, file: IO[bytes], tell: Callable[[memoryview], object]) -> None:
        self._file: Any = file
        self._tell = tell
        self.whole = sha256()

    def readinto(self, buffer: memoryview) -> int:
        """Fill a buffer."""
        count: int = self._file.readinto(buffer)
        self.whole.update(buffer[:count])
        self._tell(buffer[:count])
        return count


def scan(
    file: IO[bytes], *, wants_chunks: bool, tell: Callable[[memoryview], object] = lambda _: None
) -> tuple[str, list[Chunk]]:
    """SHA-256 of a file from its position on, and its chunks, none if they are not wanted or cannot be made.

    `tell` sees each piece that was read.
    """
    hashed = _Hashed(file, tell)
    chunker = _chunker() if wants_chunks else None
    if chunker is None:
        view = memoryview(bytearray(_READ_BYTES))
        while hashed.readinto(view):
            pass
        return hashed.whole.hexdigest(), []
    chunks = [Chunk(sha256(chunk.data).digest(), chunk.length) for chunk in chunker.cut_stream(hashed)]
    return hashed.whole.hexdigest(), chunks


def _chunker() -> Any:  # noqa: ANN401 -- there may be none
    try:
        from pyfastcdc import FastCDC  # noqa: PLC0415 -- an extra: ambry[models]
    except ImportError:
        return None
    return FastCDC(avg_size=MODEL_CHUNK_BYTES, min_size=_SMALLEST, max_size=_LARGEST, normalized_chunking=1, seed=0)


def encode_table(chunks: list[Chunk]) -> bytes:
    """The table of a file's chunks."""
    head = TABLE_MAGIC + bytes((TABLE_VERSION, 0, 0, 0))
    return head + b"".join(chunk.sha256 + chunk.size.to_bytes(4, "little") for chunk in chunks)


def decode_table(data: bytes) -> list[Chunk]:
    """Chunks of a table. Raises ModelDamaged."""
    if len(data) > MODEL_TABLE_BYTES_MAX or len(data) % _ENTRY_SIZE != _HEADER_SIZE or data[:4] != TABLE_MAGIC:
        raise ModelDamaged("not a table of chunks")
    if data[4:_HEADER_SIZE] != bytes((TABLE_VERSION, 0, 0, 0)):
        raise ModelDamaged("a table of chunks of another version")
    chunks = []
    for at in range(_HEADER_SIZE, len(data), _ENTRY_SIZE):
        size = int.from_bytes(data[at + 32 : at + 36], "little")
        if not 0 < size <= _LARGEST:
            raise ModelDamaged("a table of chunks with a chunk of no size")
        chunks.append(Chunk(data[at : at + 32], size))
    return chunks


def find_reuse(chunks: list[Chunk], old_chunks: list[Chunk], old_pieces: tuple[Extent, ...]) -> Reuse | None:
    """How a file can be put together from another one's content; None where storing it whole is better."""
    places = _places(old_chunks)
    extents: list[Extent] = []
    new: list[tuple[int, int]] = []
    at = new_size = 0
    for chunk in chunks:
        place = places.get(chunk.sha256)
        if place is None:
            if new and sum(new[-1]) == at:
                new[-1] = (new[-1][0], new[-1][1] + chunk.size)
            else:
                new.append((at, chunk.size))
            _append(extents, Extent("", new_size, chunk.size))
            new_size += chunk.size
        else:
            for extent in slices(old_pieces, place, chunk.size):
                _append(extents, extent)
        at += chunk.size
    few = min(MODEL_EXTENTS_MAX, at // _EXTENT_BYTES_MIN + 8)
    if (
        not places
        or sum(chunk.size for chunk in old_chunks) != sum(piece.size for piece in old_pieces)
        or new_size > at * _NEW_PART_MAX
        or len(extents) > few
    ):
        return None
    return Reuse(tuple(extents), tuple(new))


def _places(chunks: list[Chunk]) -> dict[bytes, int]:
    places: dict[bytes, int] = {}
    at = 0
    for chunk in chunks:
        places.setdefault(chunk.sha256, at)
        at += chunk.size
    return places


def _append(extents: list[Extent], extent: Extent) -> None:
    """Add an extent, as part of the one before where it goes on there."""
    if extents:
        last = extents[-1]
        if last.content == extent.content and last.offset + last.size == extent.offset:
            extents[-1] = Extent(last.content, last.offset, last.size + extent.size)
            return
    extents.append(extent)
