"""When a replica is writable, and when it is sealed: with hysteresis, so that it does not change its mind at every put.

A replica is sealed when the largest record does not fit any more; it takes puts again when compaction has brought it
down to a share of its capacity. Deletes and other changes of state are taken in either state. Tombstones never go; a
replica in which they pass a share of its capacity is sealed for good. Pure.
"""

from ambry.limits import BODY_BYTES_MAX, REPLICA_WRITABLE_PERCENT, TOMBSTONES_PERCENT_MAX


def is_sealed_now(*, was_sealed: bool, log_size: int, capacity: int) -> bool:
    """The next state of a replica of `log_size` bytes."""
    if log_size + BODY_BYTES_MAX > capacity:
        return True
    return was_sealed and log_size > capacity * REPLICA_WRITABLE_PERCENT // 100


def is_sealed_for_good(*, tombstone_bytes: int, capacity: int) -> bool:
    """Whether so much of a replica is tombstones that it takes no new blobs any more."""
    return tombstone_bytes > capacity * TOMBSTONES_PERCENT_MAX // 100
