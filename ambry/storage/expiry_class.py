"""Expiry classes: blobs that die at about the same time lie in the same segments. Pure.

A blob with a TTL goes to the active segment of its class, by the time it has left when it is written; so expired data
dies with whole segments, which are dropped without copying a byte. Class 0 is for blobs without a TTL, and for all
other records: tombstones and changes of state have no time of their own.
"""

from typing import Final

from ambry.blob.state import NEVER

_HOUR_MS: Final = 3_600_000
_DAY_MS: Final = 24 * _HOUR_MS

UPPER_BOUNDS_MS: Final = (_HOUR_MS, 6 * _HOUR_MS, _DAY_MS, 7 * _DAY_MS, 30 * _DAY_MS, 90 * _DAY_MS, 366 * _DAY_MS)
"""Time left of classes 1 to 7. What lives longer is in class 0: it would hold its segments open for years."""

CLASSES: Final = len(UPPER_BOUNDS_MS) + 1


def expiry_class_of(expires_at_ms: int, now_ms: int) -> int:
    """The class of a blob written now: 0 without a TTL, else by the time it has left."""
    if expires_at_ms == NEVER:
        return 0
    left_ms = expires_at_ms - now_ms
    for number, bound_ms in enumerate(UPPER_BOUNDS_MS, 1):
        if left_ms <= bound_ms:
            return number
    return 0
