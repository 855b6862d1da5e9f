"""Buffers for full chunks, used again. Fresh memory costs a page fault every 4 KiB, most of an upload's CPU.

A buffer that comes back may still be referred to: a replica beyond the quorum, or a disk's thread that has not let go.
So it is handed out again only when nobody else holds it, which CPython's reference counts tell exactly.
"""

import sys

from ambry.limits import CHUNK_BUFFERS_KEPT_MAX

_ONLY_OURS = 3
"""References to a kept buffer that nobody else holds: the list's, the local name's, and the count's own argument."""


class BufferPool:
    """Buffers of one size. Keeps few when none is out, so that an idle process is small."""

    __slots__ = ("_kept", "_out", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self._kept: list[bytearray] = []
        self._out = 0

    def take(self) -> bytearray:
        """A buffer of `size` bytes, whatever they are."""
        self._out += 1
        for place in range(len(self._kept)):
            buffer = self._kept[place]
            if sys.getrefcount(buffer) == _ONLY_OURS:
                del self._kept[place]
                return buffer
        return bytearray(self.size)

    def give(self, buffer: bytearray) -> None:
        """Take a buffer back, at once even if others still look at it."""
        assert len(buffer) == self.size
        self._out -= 1
        self._kept.append(buffer)
        del self._kept[CHUNK_BUFFERS_KEPT_MAX if self._out else 1 :]
