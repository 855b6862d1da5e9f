"""State of a blob id: two integers that only grow, and the one function that joins them (guarantee G4).

*Life* is even while the blob lives and odd while it is deleted: 0 put, 1 deleted, 2 undeleted, 3 deleted again.
*Expiry* is a moment in ms since 1970, or NEVER. The join is (max, max): commutative, associative, idempotent. So
replicas that saw the same records in any order, any number of times, agree. tests/blob exhausts the small cases.
"""

from typing import Final

from ambry.blob.value import value

NEVER: Final = 2**64 - 1
"""Expiry of a blob without a TTL. Greater than any moment, so that the join makes a blob permanent for good."""

LIFE_MAX: Final = 2**32 - 2
"""Two billion deletes and undeletes of one blob."""


@value
class BlobState:
    """Where a blob id is in its life."""

    life: int
    expires_at_ms: int

    @property
    def is_deleted(self) -> bool:
        """Odd lives are deleted."""
        return self.life % 2 == 1

    def is_expired(self, now_ms: int) -> bool:
        """Judged by whoever serves; a blob is gone from the millisecond of its expiry on."""
        return self.expires_at_ms <= now_ms


BOTTOM: Final = BlobState(0, 0)
"""Joins with anything to the other. Not a state that a blob is ever in by itself."""


LIVE_FOR_EVER: Final = BlobState(0, NEVER)
"""The state of nearly every blob: put once, without a TTL."""


def join(left: BlobState, right: BlobState) -> BlobState:
    """The state of a replica that has seen both."""
    return BlobState(max(left.life, right.life), max(left.expires_at_ms, right.expires_at_ms))


def deleted(state: BlobState) -> BlobState:
    """The state after a delete. Deleting what is deleted changes nothing."""
    return BlobState(state.life | 1, state.expires_at_ms)


def undeleted(state: BlobState) -> BlobState:
    """The state after an undelete: the next even life. Undeleting what lives changes nothing."""
    return BlobState(state.life + (state.life & 1), state.expires_at_ms)


def extended(state: BlobState, expires_at_ms: int) -> BlobState:
    """The state after a TTL update. Never shortens."""
    return BlobState(state.life, max(state.expires_at_ms, expires_at_ms))
