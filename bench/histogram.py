"""Latencies in logarithmic buckets: small enough to send between processes, and two of them can be added.

A bucket is 1/64 of a power of two wide, so a percentile is off by less than 1.6 %; the maximum is exact.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

_SUB_BITS: Final = 6
_SUB_BUCKETS: Final = 1 << _SUB_BITS


def bucket_of(value: int) -> int:
    """Number of the bucket that holds a value >= 0. Values below 64 have a bucket each."""
    assert value >= 0
    shift = max(value.bit_length() - 1 - _SUB_BITS, 0)
    return (shift << _SUB_BITS) + (value >> shift)


def lowest_of(bucket: int) -> int:
    """The smallest value of a bucket."""
    if bucket < 2 * _SUB_BUCKETS:
        return bucket
    shift = (bucket >> _SUB_BITS) - 1
    return (bucket - (shift << _SUB_BITS)) << shift


@dataclass(slots=True)
class Histogram:
    """Counts by bucket, and the exact maximum. Values are integers (nanoseconds here)."""

    counts: Counter[int] = field(default_factory=Counter)
    value_max: int = 0

    def add_all(self, values: Iterable[int]) -> None:
        """Count values."""
        for value in values:
            self.counts[bucket_of(value)] += 1
            self.value_max = max(self.value_max, value)

    def add(self, other: "Histogram") -> None:
        """Count what another histogram has counted."""
        self.counts.update(other.counts)
        self.value_max = max(self.value_max, other.value_max)

    @property
    def total(self) -> int:
        """Number of values."""
        return sum(self.counts.values())

    def percentile(self, percent: float) -> int:
        """The smallest value of the bucket in which the percentile lies; 0 when nothing was counted."""
        assert 0 < percent <= 100
        rank = self.total * percent / 100
        seen = 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            if seen >= rank:
                return lowest_of(bucket)
        return 0

    def to_json(self) -> dict[str, object]:
        """For the other process."""
        return {"max": self.value_max, "counts": sorted(self.counts.items())}

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> "Histogram":
        """What `to_json` gave."""
        pairs = data["counts"]
        value_max = data["max"]
        assert isinstance(pairs, list)
        assert isinstance(value_max, int)
        return cls(Counter({int(bucket): int(count) for bucket, count in pairs}), value_max)
