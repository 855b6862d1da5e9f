"""The crash model's own properties: what is synced is never lost, what is not may be, and every legal state is met."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ambry.errors import DiskFull, DiskUnavailable
from ambry.storage.sim_disk import PAGE_BYTES, SECTOR_BYTES, PowerCut, SimDisk

SEEDS = 200


def content(disk: SimDisk, path: str) -> bytes | None:
    try:
        return disk.read(path)
    except FileNotFoundError:
        return None


def after_crashes(disk: SimDisk, path: str) -> set[bytes | None]:
    """What `path` may hold after a power cut, over many seeds and the extreme states."""
    states = [disk.crash(random.Random(seed)) for seed in range(SEEDS)]
    states += disk.crash_states(random.Random(0))
    return {content(state, path) for state in states}


def durable_file(disk: SimDisk, path: str, data: bytes) -> None:
    file = disk.create(path)
    file.pwrite([data], 0)
    file.sync()
    disk.sync_folder(path.rpartition("/")[0])


def test_what_is_synced_is_never_lost() -> None:
    disk = SimDisk()
    durable_file(disk, "file", b"abc" * 1000)
    disk.open("file").pwrite([], 0)
    assert after_crashes(disk, "file") == {b"abc" * 1000}


def test_an_unsynced_write_may_be_there_or_not_or_in_part() -> None:
    disk = SimDisk()
    old, new = b"o" * 4 * SECTOR_BYTES, b"n" * 4 * SECTOR_BYTES
    durable_file(disk, "file", old)
    disk.open("file").pwrite([new], 0)
    states = after_crashes(disk, "file")
    assert {old, new, new[:-1] + b"o"} <= states
    torn = states - {old, new}
    assert len(torn) > 5
    for state in torn - {new[:-1] + b"o"}:
        assert state is not None
        sectors = {state[start : start + SECTOR_BYTES] for start in range(0, len(state), SECTOR_BYTES)}
        assert sectors <= {old[:SECTOR_BYTES], new[:SECTOR_BYTES]}


def test_a_torn_page_is_torn_at_the_boundaries_of_the_disk_not_of_the_write() -> None:
    disk = SimDisk()
    durable_file(disk, "file", b"o" * 2 * PAGE_BYTES)
    disk.open("file").pwrite([b"n" * PAGE_BYTES], PAGE_BYTES // 2 + 100)
    for state in after_crashes(disk, "file"):
        assert state is not None
        changes = [at for at in range(1, len(state)) if state[at] != state[at - 1]]
        ends = {PAGE_BYTES // 2 + 100, PAGE_BYTES // 2 + 100 + PAGE_BYTES, PAGE_BYTES // 2 + 99 + PAGE_BYTES}
        assert all(at % SECTOR_BYTES == 0 or at in ends for at in changes)


def test_writes_may_arrive_in_any_order() -> None:
    disk = SimDisk()
    durable_file(disk, "file", b"____")
    file = disk.open("file")
    file.pwrite([b"a"], 0)
    file.pwrite([b"b"], 2)
    assert {b"____", b"a___", b"__b_", b"a_b_"} <= after_crashes(disk, "file")


def test_a_file_may_be_longer_than_what_arrived_with_zeros_between() -> None:
    disk = SimDisk()
    durable_file(disk, "file", b"")
    file = disk.open("file")
    file.pwrite([b"a" * SECTOR_BYTES], 0)
    file.pwrite([b"b" * SECTOR_BYTES], SECTOR_BYTES)
    states = after_crashes(disk, "file")
    assert bytes(SECTOR_BYTES) + b"b" * SECTOR_BYTES in states
    assert bytes(SECTOR_BYTES) in states
    assert b"" in states


def test_an_unsynced_truncation_may_have_happened_or_not() -> None:
    disk = SimDisk()
    durable_file(disk, "file", b"abc")
    disk.open("file").truncate(1)
    assert after_crashes(disk, "file") == {b"abc", b"a"}
    file = disk.open("file")
    file.truncate(2)
    file.sync()
    assert after_crashes(disk, "file") == {b"a\0"}


def test_a_sync_makes_the_bytes_durable_but_not_the_name() -> None:
    disk = SimDisk()
    file = disk.create("file")
    file.pwrite([b"abc"], 0)
    file.sync()
    assert after_crashes(disk, "file") == {None, b"abc"}
    disk.sync_folder("")
    assert after_crashes(disk, "file") == {b"abc"}


def test_a_durable_name_does_not_make_the_bytes_durable() -> None:
    disk = SimDisk()
    disk.create("file").pwrite([b"abc"], 0)
    disk.sync_folder("")
    assert {b"", b"abc"} <= after_crashes(disk, "file")
    assert None not in after_crashes(disk, "file")


def test_a_removed_file_may_come_back_until_its_folder_is_synced() -> None:
    disk = SimDisk()
    durable_file(disk, "file", b"abc")
    disk.remove("file")
    assert after_crashes(disk, "file") == {None, b"abc"}
    disk.sync_folder("")
    assert after_crashes(disk, "file") == {None}


def test_a_name_used_again_has_the_old_file_or_the_new_one() -> None:
    disk = SimDisk()
    durable_file(disk, "file", b"old")
    disk.remove("file")
    file = disk.create("file")
    file.pwrite([b"new"], 0)
    file.sync()
    assert after_crashes(disk, "file") == {None, b"old", b"new"}


def test_replace_is_durable_and_at_every_step_whole() -> None:
    steps = 0
    seen = set()
    while True:
        disk = SimDisk()
        disk.replace("file", b"old" * 500)
        steps += 1
        disk.stop_after(steps)
        try:
            disk.replace("file", b"new" * 500)
        except PowerCut:
            states = after_crashes(disk, "file")
            assert states <= {b"old" * 500, b"new" * 500}
            seen |= states
            continue
        break
    assert steps == 6
    assert len(seen) == 2
    assert after_crashes(disk, "file") == {b"new" * 500}


def test_a_folder_is_durable_with_its_parents() -> None:
    disk = SimDisk()
    disk.make_folder("a/b")
    assert all(disk.crash(random.Random(seed)).names("a") == ["b"] for seed in range(SEEDS))
    disk.stop_after(1)
    with pytest.raises(PowerCut):
        disk.make_folder("a/c")
    assert {tuple(disk.crash(random.Random(seed)).names("a")) for seed in range(SEEDS)} == {("b",), ("b", "c")}


def test_a_crash_is_decided_by_its_seed_and_leaves_the_disk_alone() -> None:
    disk = SimDisk()
    durable_file(disk, "file", b"o" * 5000)
    disk.open("file").pwrite([b"n" * 5000], 100)
    for seed in range(20):
        assert disk.crash(random.Random(seed)).read("file") == disk.crash(random.Random(seed)).read("file")
    assert disk.read("file") == b"o" * 100 + b"n" * 5000


def test_after_a_crash_everything_left_is_durable() -> None:
    disk = SimDisk()
    disk.create("file").pwrite([b"abc"], 0)
    for seed in range(SEEDS):
        left = disk.crash(random.Random(seed))
        assert after_crashes(left, "file") == {content(left, "file")}


def test_a_file_that_lives_only_in_an_unsynced_name_keeps_its_own_fate() -> None:
    disk = SimDisk()
    durable_file(disk, "file", b"abc")
    held = disk.open("file")
    disk.remove("file")
    held.pwrite([b"xyz"], 0)
    held.sync()
    assert after_crashes(disk, "file") == {None, b"xyz"}


_operation = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 3000), st.integers(1, 3000), st.integers(1, 255)),
    st.tuples(st.just("truncate"), st.integers(0, 3000)),
    st.tuples(st.just("sync")),
)


@settings(max_examples=60, deadline=None)
@given(operations=st.lists(_operation, max_size=12), seed=st.integers(0, 2**32))
def test_every_byte_after_a_crash_was_there_at_the_last_sync_or_later(
    operations: list[tuple[object, ...]], seed: int
) -> None:
    disk = SimDisk()
    durable_file(disk, "file", b"")
    file = disk.open("file")
    possible: list[set[int]] = []
    size = largest = smallest = 0

    def note() -> None:
        possible.extend({0} for _ in range(size - len(possible)))
        for at, byte in enumerate(file.pread(size, 0)):
            possible[at].add(byte)

    for operation in operations:
        match operation:
            case ("write", int(offset), int(count), int(byte)):
                file.pwrite([bytes([byte]) * count], offset)
            case ("truncate", int(length)):
                file.truncate(length)
            case _:
                file.sync()
                size = largest = smallest = file.size()
                possible = [{byte} for byte in file.pread(size, 0)]
        size = file.size()
        largest, smallest = max(largest, size), min(smallest, size)
        note()
    left = disk.crash(random.Random(seed)).read("file")
    assert smallest <= len(left) <= largest
    for at, byte in enumerate(left):
        assert byte in possible[at] or byte == 0


# --- trouble on demand -----------------------------------------------------------------------------------------


def test_the_power_goes_at_the_step_that_was_named() -> None:
    disk = SimDisk()
    file = disk.create("file")
    disk.stop_after(3)
    file.pwrite([b"a"], 0)
    file.sync()
    with pytest.raises(PowerCut):
        file.pwrite([b"b"], 1)
    assert disk.is_off
    calls: list[Callable[[], object]] = [
        lambda: file.pread(1, 0),
        file.sync,
        lambda: disk.open("file"),
        lambda: disk.names(""),
    ]
    for call in calls:
        with pytest.raises(PowerCut):
            call()
    left = disk.crash(random.Random(1))
    assert left.names("") in ([], ["file"])
    assert [step.operation for step in disk.trace] == ["create", "pwrite", "sync", "pwrite"]


def test_a_killed_process_leaves_what_it_wrote_no_more_durable_than_before() -> None:
    disk = SimDisk()
    durable_file(disk, "file", b"old")
    disk.stop_after(1)
    with pytest.raises(PowerCut):
        disk.open("file").pwrite([b"new"], 0)
    disk.restart()
    assert disk.read("file") == b"new"
    assert {b"old", b"new"} <= after_crashes(disk, "file")
    disk.open("file").sync()
    assert after_crashes(disk, "file") == {b"new"}


def test_a_sync_in_which_the_power_goes_has_not_happened() -> None:
    disk = SimDisk()
    durable_file(disk, "file", b"o")
    file = disk.open("file")
    file.pwrite([b"n"], 0)
    disk.stop_after(1)
    with pytest.raises(PowerCut):
        file.sync()
    assert after_crashes(disk, "file") == {b"o", b"n"}


def test_the_nth_call_fails_and_the_next_does_not() -> None:
    disk = SimDisk()
    file = disk.create("file")
    disk.fail("pwrite", 2, DiskUnavailable, done=1)
    file.pwrite([b"abc"], 0)
    with pytest.raises(DiskUnavailable):
        file.pwrite([b"xyz"], 0)
    assert disk.read("file") == b"xbc"
    file.pwrite([b"def"], 0)
    assert disk.read("file") == b"def"


def test_a_fault_waits_for_its_path() -> None:
    disk = SimDisk()
    one, two = disk.create("one"), disk.create("two")
    disk.fail("pwrite", 1, DiskFull, path="two")
    one.pwrite([b"a"], 0)
    with pytest.raises(DiskFull):
        two.pwrite([b"a"], 0)
    disk.fail("pwrite", 1, DiskFull)
    disk.clear_faults()
    one.pwrite([b"a"], 0)


def test_a_sync_that_failed_never_succeeds_again() -> None:
    disk = SimDisk()
    durable_file(disk, "file", b"old")
    file = disk.open("file")
    file.pwrite([b"new"], 0)
    disk.fail("sync", 1, DiskUnavailable)
    for _ in range(3):
        with pytest.raises(DiskUnavailable):
            file.sync()
    assert {b"old", b"new"} <= after_crashes(disk, "file")


def test_what_a_failed_sync_covered_is_durable_only_when_it_is_written_again() -> None:
    disk = SimDisk()
    durable_file(disk, "file", b"___")
    file = disk.open("file")
    file.pwrite([b"aa"], 0)
    disk.fail("sync", 1, DiskUnavailable)
    with pytest.raises(DiskUnavailable):
        file.sync()
    disk.restart()
    file = disk.open("file")
    file.pwrite([b"b"], 2)
    file.sync()
    assert disk.read("file") == b"aab"
    assert {b"__b", b"aab"} <= after_crashes(disk, "file")
    file.pwrite([b"aa"], 0)
    file.sync()
    assert after_crashes(disk, "file") == {b"aab"}


def test_a_full_disk_takes_what_fits_and_frees_what_is_removed() -> None:
    disk = SimDisk(capacity_bytes=10)
    file = disk.create("file")
    file.pwrite([b"x" * 6], 0)
    assert disk.free_bytes() == 4
    with pytest.raises(DiskFull):
        file.pwrite([b"y" * 6], 6)
    assert disk.read("file") == b"x" * 6 + b"y" * 4
    file.pwrite([b"z" * 10], 0)
    calls: list[Callable[[], object]] = [
        lambda: file.truncate(11),
        lambda: file.reserve(0, 11),
        lambda: disk.replace("meta", b"1"),
    ]
    for full in calls:
        with pytest.raises(DiskFull):
            full()
    disk.remove("file")
    assert disk.free_bytes() == 10
    other = disk.create("other")
    other.reserve(0, 8)
    assert disk.free_bytes() == 2
    other.pwrite([b"x" * 8], 0)
    assert disk.free_bytes() == 2


def test_a_cold_disk_declines_to_read_without_waiting() -> None:
    disk = SimDisk()
    file = disk.create("file")
    file.pwrite([b"abc"], 0)
    assert file.pread_now(3, 0) == b"abc"
    disk.is_cold = True
    assert file.pread_now(3, 0) is None
    assert file.pread(3, 0) == b"abc"
