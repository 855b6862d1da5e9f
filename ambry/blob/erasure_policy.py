"""Which containers are promised that what is dead is erased, as a name store says it and datanodes keep it.

A name store counts the versions of its accounts; `since_ms` is when its present history began, so a store that was
restored from a backup is not taken for an older version of itself. Each datacentre may have a name store of its own:
datanodes keep the newest policy of each, and a container is erased by the shortest promise that anyone gave.
Rows are packed the same way on the wire and in the index. This module knows neither.
"""

import struct
from collections.abc import Iterable
from typing import Final

from ambry.blob.value import value
from ambry.errors import CorruptRecord
from ambry.limits import ERASURE_CONTAINERS_MAX, ERASURE_DAYS_MAX, FRAME_HEADER_BYTES_MAX

_ROW: Final = struct.Struct(">IIH")
ROW_LAYOUT: Final = (("account", 0, 4), ("container", 4, 4), ("days", 8, 2))

# A policy is one message header, and there is room for its other fields.
assert ERASURE_CONTAINERS_MAX * _ROW.size + 1024 <= FRAME_HEADER_BYTES_MAX
assert ERASURE_DAYS_MAX < 2**16


@value
class ErasurePolicy:
    """The policy of one name store; `rows` are (account, container, days), in order."""

    datacentre: int
    since_ms: int
    version: int
    rows: tuple[tuple[int, int, int], ...]

    @property
    def rank(self) -> tuple[int, int]:
        """Which of two policies of one datacentre is the newer one."""
        return self.since_ms, self.version


@value
class ErasureAnswer:
    """The policy that a datanode follows for that datacentre now: the one that was sent, or a newer one."""

    since_ms: int
    version: int


def pack_rows(rows: Iterable[tuple[int, int, int]]) -> bytes:
    """The rows of a policy, ten bytes each."""
    return b"".join(_ROW.pack(*row) for row in rows)


def unpack_rows(data: bytes) -> tuple[tuple[int, int, int], ...]:
    """Read rows. Raises CorruptRecord for what is none."""
    if len(data) % _ROW.size or len(data) > ERASURE_CONTAINERS_MAX * _ROW.size:
        raise CorruptRecord(f"an erasure policy of {len(data)} bytes")
    rows = tuple(_ROW.iter_unpack(data))
    if any(days > ERASURE_DAYS_MAX for _, _, days in rows):
        raise CorruptRecord(f"an erasure policy of more than {ERASURE_DAYS_MAX} days")
    return rows
