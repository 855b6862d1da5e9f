"""Seal states: a full replica stays sealed until there is real room again."""

import random
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ambry.limits import BODY_BYTES_MAX, GIB, MIB, REPLICA_WRITABLE_PERCENT
from ambry.storage.replica import create_replica, new_segment, open_replica, settle_ends
from ambry.storage.replica_meta import ReplicaMeta, replica_meta_path
from ambry.storage.seal_state import is_sealed_now
from ambry.storage.segment import DATA_OFFSET
from ambry.storage.sim_disk import SimDisk

CAPACITY = GIB


def test_a_replica_is_sealed_when_the_largest_record_does_not_fit() -> None:
    full = CAPACITY - BODY_BYTES_MAX
    assert not is_sealed_now(was_sealed=False, log_size=full, capacity=CAPACITY)
    assert is_sealed_now(was_sealed=False, log_size=full + 1, capacity=CAPACITY)


def test_a_sealed_replica_takes_puts_again_only_when_there_is_real_room() -> None:
    enough = CAPACITY * REPLICA_WRITABLE_PERCENT // 100
    assert is_sealed_now(was_sealed=True, log_size=enough + 1, capacity=CAPACITY)
    assert not is_sealed_now(was_sealed=True, log_size=enough, capacity=CAPACITY)
    # One that never was full is writable up to the last record.
    assert not is_sealed_now(was_sealed=False, log_size=enough + 1, capacity=CAPACITY)


# --- over restarts ---------------------------------------------------------------------------------------------------

PARTITION = 7


class _Log:
    """A replica whose segments have ends and no records, beside what `is_sealed_now` says after every change."""

    def __init__(self) -> None:
        self.disk = SimDisk()
        self.replica = create_replica(self.disk, PARTITION, 128 * MIB, bytes(16), 5)
        self.is_sealed = False

    def grow(self, size: int) -> None:
        segment = self.replica.place(self.disk, 1, 16 * MIB, 5)
        segment.end += size
        self.look()

    def compact(self, count: int, kept_percent: int) -> None:
        """Copy a share of some sealed segments and retire them; beside it the log is as large as it is for puts."""
        # A checkpoint writes the lengths of what compaction may take.
        self.replica.close_ends(self.disk, self.replica.open_ended & self.replica.sealed)
        numbers = set(sorted(self.replica.sealed)[:count])
        size = sum(self.replica.segments[number].end for number in numbers)
        output = new_segment(self.disk, PARTITION, self.replica.take_number(), bytes(16), 5, 0)
        output.end = max(size * kept_percent // 100, DATA_OFFSET)
        self.replica.adopt(self.disk, [output])
        assert self.replica.is_sealed == self.is_sealed
        self.replica.retire(self.disk, numbers)
        self.look()

    def look(self) -> None:
        self.is_sealed = is_sealed_now(
            was_sealed=self.is_sealed, log_size=self.replica.log_size, capacity=self.replica.capacity
        )

    def restart(self, *, is_cut: bool, seed: int) -> None:
        """The journal has the ends of what replica.meta has no length of."""
        ends = {(PARTITION, number): self.replica.segments[number].end for number in self.replica.open_ended}
        if is_cut:
            # The journal has what is unsynced here.
            self.disk = self.disk.crash(random.Random(seed))
        opened = open_replica(self.disk, PARTITION, ends)
        assert opened is not None
        settle_ends(opened)
        self.replica = opened


_ACTS = st.one_of(
    st.tuples(st.just("grow"), st.integers(1, 15 * MIB)),
    st.tuples(st.just("compact"), st.integers(1, 8), st.integers(0, 100)),
    st.tuples(st.just("restart"), st.booleans(), st.integers(0, 2**32)),
)


@given(st.lists(_ACTS, max_size=60))
def test_a_replica_that_is_opened_again_is_sealed_when_it_was(acts: list[tuple[Any, ...]]) -> None:
    log = _Log()
    for _ in range(9):
        log.grow(14 * MIB)
    for act in acts:
        match act:
            case ("grow", size):
                log.grow(min(size, max(log.replica.capacity - log.replica.log_size, 0)))
            case ("compact", count, kept_percent):
                log.compact(count, kept_percent)
            case _:
                log.restart(is_cut=act[1], seed=act[2])
        assert log.replica.is_sealed == log.is_sealed


def test_what_replica_meta_says_of_seals_is_what_was_written_and_absent_when_there_is_none() -> None:
    disk = SimDisk()
    replica = create_replica(disk, PARTITION, GIB, bytes(16), 5)
    without = disk.read(replica_meta_path(PARTITION))
    assert b"seal" not in without
    replica.seal_for_good(disk, 1_700_000_000_000)
    opened = open_replica(disk, PARTITION, {})
    assert opened is not None
    assert (opened.sealed_for_good_ms, opened.was_sealed) == (1_700_000_000_000, False)
    assert replace(replica.meta(), sealed_for_good_ms=0) == ReplicaMeta(PARTITION, bytes(16), GIB, ((1, 0),))
