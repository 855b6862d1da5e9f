"""An index in memory that forgets, as RocksDB without a log does: after a crash it is what a prefix of its batches
made, never shorter than what the last flush covered. The engine's tests run on it, and nothing else does.

`is_cold` makes `get_now` decline every key that is there, as if its block were not in the cache. `fail` makes one
call raise. `before` is told of every call before anything of it happens. Any thread may call any method.
"""

import bisect
import random as random_module
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ambry.errors import DiskUnavailable
from ambry.storage.disk import Disk

_Batch: TypeAlias = tuple[tuple[bytes, bytes | None], ...]


class SimIndexSource:
    """Where a simulated index is kept over crashes and restarts. `index` is the one that was opened last."""

    def __init__(self, index: "SimIndex | None" = None) -> None:
        self.index = index or SimIndex()
        self.discards = 0
        self.descriptors_error: DiskUnavailable | None = None
        """What looks for descriptors raise."""
        self.open_error: DiskUnavailable | None = None
        """What openings raise."""
        self.random: random_module.Random | None = None
        """Decides how much an index that was abandoned has lost; without it, all that it may have."""

    def open(self) -> "SimIndex":
        """The index as it is."""
        before = self.index
        if self.open_error is not None:
            raise self.open_error
        if before.is_abandoned:
            self.index = before.crash_states()[0] if self.random is None else before.crash(self.random)
            self.index.before, self.index.is_cold = before.before, before.is_cold
        else:
            self.index = before.crash_states()[-1]
        return self.index

    def spare_to_open(self, disk: Disk) -> None:
        """Raise what was told to be raised."""
        disk.spare_descriptors(1)
        if self.descriptors_error is not None:
            raise self.descriptors_error

    def spare_to_flush(self, disk: Disk) -> None:
        """Raise what the disk was told to raise."""
        disk.spare_descriptors(1)

    def discard(self) -> None:
        """Forget everything."""
        self.index = SimIndex()
        self.discards += 1

    def crash(self, random: random_module.Random) -> "SimIndexSource":
        """What is left when the process or the machine stops now."""
        source = SimIndexSource(self.index.crash(random))
        source.random = self.random
        return source


@dataclass(slots=True)
class _Fault:
    operation: str
    calls_left: int
    error: type[BaseException]


class SimIndex:
    """An Index in memory. `batches_unflushed` says how many batches a crash may take."""

    def __init__(self, entries: dict[bytes, bytes] | None = None) -> None:
        self.is_cold = False
        self.damage = ""
        self.is_abandoned = False
        self.is_stuck = False
        """It takes no write and no flush any more, as RocksDB after a flush that failed. What it has can be read."""
        self.throttled_s = 0.0
        self.before: Callable[[str], None] = _nothing
        self._lock = threading.Lock()
        self._flushed = dict(entries or {})
        self._unflushed: list[_Batch] = []
        self._entries = dict(self._flushed)
        self._keys = sorted(self._entries)
        self._faults: list[_Fault] = []
        self._is_closed = False

    @property
    def batches_unflushed(self) -> int:
        """Batches since the last flush."""
        return len(self._unflushed)

    def get(self, key: bytes) -> bytes | None:
        """The value of a key, or None."""
        self.before("get")
        with self._lock:
            self._begin("get")
            return self._entries.get(key)

    def get_now(self, key: bytes) -> tuple[bool, bytes | None]:
        """(True, value), (True, None) when it is absent, or (False, None) when the index is cold and it is not."""
        self.before("get_now")
        with self._lock:
            self._begin("get_now")
            value = self._entries.get(key)
            return (False, None) if self.is_cold and value is not None else (True, value)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values in the order of the keys."""
        self.before("get_many")
        with self._lock:
            self._begin("get_many")
            return [self._entries.get(key) for key in keys]

    def write(self, batch: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Put (key, value) and delete (key, None), in order, all or nothing."""
        self.before("write")
        with self._lock:
            self._begin("write")
            copy = tuple((bytes(key), None if value is None else bytes(value)) for key, value in batch)
            self._unflushed.append(copy)
            for key, value in copy:
                self._put(key, value)

    def scan(self, start: bytes, stop: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """Up to `limit` entries with start <= key < stop, ascending."""
        self.before("scan")
        with self._lock:
            self._begin("scan")
            first = bisect.bisect_left(self._keys, start)
            last = bisect.bisect_left(self._keys, stop, lo=first)
            return [(key, self._entries[key]) for key in self._keys[first : min(last, first + max(limit, 0))]]

    def flush(self) -> None:
        """Make every batch written so far durable."""
        self.before("flush")
        with self._lock:
            self._begin("flush")
            self._flush()

    def close(self) -> None:
        """Flush and close. Closing twice is harmless."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._flush()

    def abandon(self) -> None:
        """Close without a flush."""
        with self._lock:
            self.is_abandoned = self.is_abandoned or not self._is_closed
            self._is_closed = True

    def fail(self, operation: str, error: type[BaseException], nth: int = 1) -> None:
        """The `nth` call from now (1 is the next) of `operation` raises `error` and does nothing."""
        with self._lock:
            self._faults.append(_Fault(operation, nth, error))

    def clear_faults(self) -> None:
        """The index is healthy again."""
        with self._lock:
            self._faults.clear()

    def crash(self, random: random_module.Random) -> "SimIndex":
        """What a power cut at this moment might leave. This one is left as it is."""
        with self._lock:
            return self._prefix(random.randrange(len(self._unflushed) + 1))

    def crash_states(self) -> "list[SimIndex]":
        """Everything that a power cut at this moment might leave, the shortest first."""
        with self._lock:
            return [self._prefix(count) for count in range(len(self._unflushed) + 1)]

    def _put(self, key: bytes, value: bytes | None) -> None:
        if value is None:
            if self._entries.pop(key, None) is not None:
                del self._keys[bisect.bisect_left(self._keys, key)]
            return
        if key not in self._entries:
            bisect.insort(self._keys, key)
        self._entries[key] = value

    def _prefix(self, count: int) -> "SimIndex":
        entries = dict(self._flushed)
        for batch in self._unflushed[:count]:
            _apply(entries, batch)
        return SimIndex(entries)

    def _flush(self) -> None:
        for batch in self._unflushed:
            _apply(self._flushed, batch)
        self._unflushed.clear()

    def _begin(self, operation: str) -> None:
        if self._is_closed:
            raise DiskUnavailable("the index is closed")
        if self.is_stuck and operation in {"write", "flush"}:
            raise DiskUnavailable(f"{operation} of the index: an earlier flush failed")
        for fault in self._faults:
            if fault.operation == operation:
                fault.calls_left -= 1
                if not fault.calls_left:
                    self._faults.remove(fault)
                    raise fault.error(f"{operation} of the index: as told")


def _nothing(operation: str) -> None:
    pass


def _apply(entries: dict[bytes, bytes], batch: _Batch) -> None:
    for key, value in batch:
        if value is None:
            entries.pop(key, None)
        else:
            entries[key] = value
