"""Rows of the index that change with nearly every commit group: totals, and the newest LSN of each replica.

A group over 50 partitions changes 150 of them, and each costs the index as much as a blob's entry. So a group writes
all of them into one row, next to its other changes and in the same batch; that row says what the rows are after the
group, not by how much they changed. When LATE_GROUPS_MAX groups have done so, and whenever somebody else writes such
rows, they are written as themselves (`settled`), with a mark up to which group that holds. Opening does the same. So
the rows are exact after any crash, as if every group had written them (docs/decisions/0012 has the figures).

Knows keys and values, not what they mean.
"""

import struct
from collections.abc import Iterable, Iterator
from typing import Final, TypeAlias

from ambry.errors import CorruptRecord
from ambry.storage.index import Index

Row: TypeAlias = tuple[bytes, bytes | None]

LATE_GROUPS_MAX: Final = 1024
"""As many rows there are; a group's row takes the place of that of the 1024th group before it."""

LATE_PREFIX: Final = b"d"
STATE_SETTLED: Final = b"ssettled"
"""Value: sequence of the last group whose rows are written as themselves (8 bytes, little-endian)."""

ROW_LAYOUT: Final = (("key_size", 0, 1), ("value_size", 1, 1))
_ROW: Final = struct.Struct("<BB")
_DELETED: Final = 255
_SEQUENCE_SIZE: Final = 8


class LateRows:
    """What the groups since the last settling have changed. `sequence` is that of the last settled group."""

    __slots__ = ("_rows", "_settled")

    def __init__(self, sequence: int) -> None:
        self._rows: dict[bytes, bytes | None] = {}
        self._settled = sequence

    def of_group(self, sequence: int, rows: list[Row]) -> list[Row]:
        """What the batch of a group has to hold for its `rows`; they are told as they are after it."""
        if sequence - self._settled >= LATE_GROUPS_MAX:
            return self.settled(sequence, rows)
        self._rows.update(rows)
        return [(_late_key(sequence), sequence.to_bytes(_SEQUENCE_SIZE, "little") + encode_rows(rows))]

    def settled(self, sequence: int, rows: list[Row]) -> list[Row]:
        """The same rows as themselves, with all that groups up to `sequence` have left; for a batch that must succeed,
        or after which nothing is written any more.
        """
        self._rows.update(rows)
        batch: list[Row] = [*self._rows.items(), (STATE_SETTLED, sequence.to_bytes(_SEQUENCE_SIZE, "little"))]
        self._rows = {}
        self._settled = sequence
        return batch


def settle(index: Index, sequence: int) -> LateRows:
    """Write an index's late rows as themselves; `sequence` is that of the last group in it. Raises CorruptRecord."""
    settled = int.from_bytes(index.get(STATE_SETTLED) or b"", "little")
    found = []
    for _, value in index.scan(LATE_PREFIX, LATE_PREFIX + b"\xff\xff\xff", LATE_GROUPS_MAX):
        written = int.from_bytes(value[:_SEQUENCE_SIZE], "little")
        if settled < written <= sequence:
            found.append((written, value[_SEQUENCE_SIZE:]))
    late = LateRows(settled)
    rows: dict[bytes, bytes | None] = {}
    for _, data in sorted(found):
        rows.update(decode_rows(data))
    index.write(late.settled(sequence, list(rows.items())))
    return late


def encode_rows(rows: Iterable[Row]) -> bytes:
    """Rows one after the other, each with the sizes of its key and its value."""
    pack = _ROW.pack
    return b"".join(
        [
            pack(len(key), _DELETED) + key if value is None else pack(len(key), len(value)) + key + value
            for key, value in rows
        ]
    )


def decode_rows(data: bytes) -> Iterator[Row]:
    """Read them again. Raises CorruptRecord."""
    at = 0
    while at < len(data):
        if at + _ROW.size > len(data):
            raise CorruptRecord("a late row is cut short")
        key_size, value_size = _ROW.unpack_from(data, at)
        key_end = at + _ROW.size + key_size
        end = key_end if value_size == _DELETED else key_end + value_size
        if end > len(data):
            raise CorruptRecord("a late row is cut short")
        yield data[at + _ROW.size : key_end], None if value_size == _DELETED else data[key_end:end]
        at = end


def _late_key(sequence: int) -> bytes:
    return LATE_PREFIX + (sequence % LATE_GROUPS_MAX).to_bytes(2, "big")
