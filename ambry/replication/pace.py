"""How fast: a rate of bytes for each lane of a link. Pure: told the time, it says how long to wait.

Lanes, the more urgent first: FRESH is what was just written, CATCH_UP a long way through a peer's feed (a replica that
joins, or was away). Each has a poll, a fetch and a rate of its own, so that a terabyte of catching up does not stand
before a put of this moment. Repair of what was lost or missed asks for single blobs: it has a rate, and no lane.
"""

from enum import StrEnum


class Lane(StrEnum):
    """What a transfer is for."""

    FRESH = "fresh"
    CATCH_UP = "catch_up"


class Pace:
    """At most `bytes_per_s` on average, 0 for no limit; up to a second's worth may be gone at once after a rest."""

    __slots__ = ("_free_at_s", "bytes_per_s")

    def __init__(self, bytes_per_s: int) -> None:
        self.bytes_per_s = bytes_per_s
        self._free_at_s = 0.0

    def wait_s(self, size: int, now_s: float) -> float:
        """Account for `size` bytes; how long to wait before the next ones."""
        if not self.bytes_per_s:
            return 0.0
        self._free_at_s = max(self._free_at_s, now_s - 1.0) + size / self.bytes_per_s
        return max(self._free_at_s - now_s, 0.0)
