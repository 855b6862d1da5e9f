"""Upkeep: it compacts what is worth it, verifies everything, does not look twice for nothing, and stops when told."""

import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest

from ambry.blob.requests import Change, GetRequest
from ambry.blob.state import NEVER, BlobState
from ambry.datanode.pace import (
    READERS_SLOWDOWN,
    REST_S_MAX,
    STEP_BYTES,
    Pace,
    wait_s,
)
from ambry.datanode.upkeep import FIRST_RETRY_MS, IDLE_S, LOOK_S, OVERDUE, Upkeep
from ambry.errors import DiskFull, NotHere, ShuttingDown
from ambry.limits import GIB, KIB, MIB
from ambry.storage.compaction_plan import ROOMY_SEGMENTS, room_of
from ambry.storage.compactor import CompactionReport, OnDamage
from ambry.storage.index_entry import blob_key, decode_entry
from ambry.storage.survey import Survey
from tests.storage.engine import TINY, WHOLE, World, answer_of, blob_id, body_of, put, update

DAY_MS = 86_400_000
SETTINGS = replace(TINY, compaction_bytes_per_s=1 << 30, scrub_bytes_per_s=1 << 30)


def _filled(count: int = 24) -> World:
    world = World(SETTINGS)
    world.open()
    for first in range(0, count, 4):
        world.commit([put(blob_id(n), body_of(n, 1500)) for n in range(first, first + 4)])
    world.store.checkpoint()
    return world


def _upkeep(world: World) -> Upkeep:
    return Upkeep(world.store, "disk", SETTINGS, world.clock)


def _work(upkeep: Upkeep) -> int:
    count = 0
    while upkeep.step():
        count += 1
        assert count < 100
    return count


def _delete(world: World, count: int) -> None:
    world.commit([update(blob_id(n), Change.DELETE, time_ms=world.clock.now_ms()) for n in range(count)])
    world.store.checkpoint()


def test_garbage_goes_once_its_retention_is_over_and_not_before() -> None:
    world = _filled()
    _delete(world, 16)
    upkeep = _upkeep(world)
    _work(upkeep)
    assert upkeep.figures.compactions == 0
    world.check()
    world.clock.advance(6 * DAY_MS)
    _work(upkeep)
    assert upkeep.figures.compactions == 0
    world.clock.advance(2 * DAY_MS)
    size_before = world.store.replicas[0].log_size
    _work(upkeep)
    assert upkeep.figures.compactions >= 1
    assert upkeep.figures.bytes_freed >= 16 * 1500 * 0.8
    assert world.store.replicas[0].log_size < size_before - 16 * 1500 * 0.8
    world.check()
    assert world.hits["buried"] >= 14
    world.crash()
    world.open()
    world.check()


def test_expired_segments_are_found_although_their_blobs_count_as_live() -> None:
    world = World(SETTINGS)
    world.open()
    expiry_ms = world.clock.now_ms() + 30 * 60_000
    for first in range(0, 24, 4):
        world.commit([put(blob_id(n), body_of(n, 1500), expires_at_ms=expiry_ms) for n in range(first, first + 4)])
    world.commit([put(blob_id(99), b"stays", expires_at_ms=NEVER)])
    world.store.checkpoint()
    upkeep = _upkeep(world)
    _work(upkeep)
    assert upkeep.figures.compactions == 0
    world.clock.advance(2 * DAY_MS)
    _work(upkeep)
    assert upkeep.figures.bytes_freed > 10 * 1500
    assert upkeep.figures.bytes_copied == 0
    world.check()


def test_a_segment_that_compaction_found_damaged_is_freed_at_once_when_its_blob_is_in_quarantine() -> None:
    """Nothing points to the record any more, and on a full disk the segment would be the space that is missing."""
    world = _filled()
    _delete(world, 16)
    world.clock.advance(8 * DAY_MS)
    store = world.store
    for one in store.segment_facts(1):
        store.survey(1, one.number, pace=lambda _: None)
    entry = decode_entry(store.index.get(blob_key(blob_id(16))) or b"")
    segments = store.replicas[0].segments
    # Since its survey: compaction is the first to read it.
    segments[entry.segment].file.pwrite([b"damage"], entry.offset + entry.body_offset)
    upkeep = _upkeep(world)
    _work(upkeep)
    assert (upkeep.figures.quarantined, upkeep.figures.compactions) == (1, 1)
    assert entry.segment not in segments
    assert answer_of(lambda: store.get(GetRequest(blob_id(16), 0, WHOLE))) is NotHere
    for number in range(17, 24):
        assert bytes(store.get(GetRequest(blob_id(number), 0, WHOLE)).body) == body_of(number, 1500)


def test_nobody_looks_again_before_something_can_have_become_garbage() -> None:
    world = _filled()
    _delete(world, 16)
    upkeep = _upkeep(world)
    _work(upkeep)
    verified = upkeep.figures.bytes_verified
    assert verified > 0
    world.clock.advance(DAY_MS)
    assert _work(upkeep) == 0
    assert upkeep.figures.bytes_verified == verified


def test_scrub_verifies_everything_finds_damage_and_goes_on_where_it_was() -> None:
    world = _filled()
    upkeep = _upkeep(world)
    segments = sum(len(replica.segments) for replica in world.store.replicas)
    assert upkeep.step()
    world.close()
    world.open()
    # A new process knows what the former one had verified.
    upkeep = _upkeep(world)
    assert _work(upkeep) == segments - 1
    assert upkeep.figures.verified_ratio == 1.0
    world.clock.advance(8 * DAY_MS)
    segment = world.store.replicas[0].segments[1]
    segment.file.pwrite([b"\xff"], 900)
    assert _work(upkeep) >= segments
    assert upkeep.figures.damages == 1


def test_what_was_not_verified_yet_is_told_in_bytes_and_by_its_age() -> None:
    world = World(SETTINGS)
    world.open()
    world.commit([put(blob_id(0), body_of(0, 1500))])
    made_ms = world.store.replicas[0].segments[1].created_ms
    world.store.checkpoint()
    world.clock.advance(1000)
    upkeep = _upkeep(world)
    assert upkeep.step()
    assert (upkeep.figures.verified_ratio, upkeep.figures.oldest_ms) == (0.0, made_ms)
    _work(upkeep)
    seen = world.store.replicas[0].log_size
    verified_ms = world.clock.now_ms()
    assert upkeep.figures.verified_ratio == 1.0
    world.clock.advance(1000)
    world.commit([put(blob_id(1), body_of(1, 9000))])
    _work(upkeep)
    assert upkeep.figures.verified_ratio == pytest.approx(seen / world.store.replicas[0].log_size, abs=0.05)
    assert upkeep.figures.oldest_ms == verified_ms


def test_blobs_that_wait_for_their_bytes_are_counted_after_a_restart_whoever_repairs_them() -> None:
    world = _filled()
    upkeep = _upkeep(world)
    world.store.replicas[0].segments[1].file.pwrite([b"\xff"], 900)
    _work(upkeep)
    assert upkeep.figures.quarantined == 1
    world.close()
    world.open()
    upkeep = _upkeep(world)
    upkeep.step()
    assert upkeep.figures.repairs_waiting == 1


def test_a_compaction_that_met_a_full_disk_is_tried_again_soon_however_long_it_had_worked() -> None:
    world = _filled(60)
    _delete(world, 50)
    world.clock.advance(8 * DAY_MS)
    upkeep = _upkeep(world)
    compact = world.store.compact
    waits: list[float | None] = []

    def too_full(*args: object, **others: object) -> CompactionReport:
        world.clock.advance(30_000)
        raise DiskFull("others have filled the disk")

    class Wanted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout)
            world.store.compact = compact  # type: ignore[method-assign] # there is room again
            if len(waits) > 1:
                upkeep.stop()
            return False

    upkeep._wanted = Wanted()
    world.store.compact = too_full  # type: ignore[method-assign] # a disk that others fill is not simulated
    upkeep.run()
    assert waits[0] == IDLE_S
    assert upkeep.figures.compactions > 0
    world.check()


def test_upkeep_stops_in_the_middle_of_a_segment() -> None:
    world = _filled()
    slow = replace(SETTINGS, scrub_bytes_per_s=1)
    upkeep = Upkeep(world.store, "disk", slow, world.clock)
    # A step of 256 KiB at one byte a second would take three days.
    world.commit([put(blob_id(500), body_of(500, 300 * KIB))])
    thread = threading.Thread(target=upkeep.run)
    thread.start()
    upkeep.stop()
    thread.join(timeout=10)
    assert not thread.is_alive()
    world.check()


class _Rests(threading.Event):
    """Time that passes by being waited for, and by `work`."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.rests: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.now_s += timeout
        self.rests.append(timeout)
        return self.is_set()


def _pace(rests: _Rests, rate: int, commit_s: float = 0.0, *, has_readers: bool = False) -> Pace:
    return Pace(rate, rests, lambda: commit_s, lambda: rests.now_s, lambda: has_readers)


def test_the_pace_makes_no_pause_that_is_shorter_than_waking_up_from_it_and_ends_all_the_same() -> None:
    rests = _Rests()
    pace = _pace(rests, 1 << 40)
    for _ in range(16):
        pace(MIB)
    assert rests.rests == []
    rests.set()
    with pytest.raises(ShuttingDown):
        pace(MIB)


def test_the_pace_keeps_to_its_rate_and_gives_way_to_commits() -> None:
    rests = _Rests()
    pace = _pace(rests, 10 * MIB)
    for _ in range(16):
        pace(64 * KIB)
    assert rests.rests == pytest.approx([0.025] * 4)
    rests = _Rests()
    pace = _pace(rests, 10 * MIB, commit_s=0.02)
    for _ in range(16):
        pace(64 * KIB)
    assert rests.rests == pytest.approx([0.025 + 4 * 0.02] * 4)
    rests.set()
    with pytest.raises(ShuttingDown):
        pace(MIB)


def test_the_pace_rests_several_times_as_long_as_a_step_took() -> None:
    rests = _Rests()
    pace = _pace(rests, 1 << 40)
    for _ in range(64):
        rests.now_s += 0.000_1
        pace(4 * KIB)
    # A step is half a millisecond, whatever it read; work that reads nothing is counted as well.
    assert len(rests.rests) in {10, 11, 12}
    assert all(0.002 <= rest <= 0.0025 for rest in rests.rests)
    for took_s, rest_s in ((0.003, 0.012), (0.02, 0.08), (30.0, REST_S_MAX)):
        rests.now_s += took_s
        pace(0)
        assert rests.rests[-1] == pytest.approx(rest_s, rel=0.2)


def test_compaction_rests_less_the_less_room_there_is_and_as_ever_while_there_is_room() -> None:
    segment = 256 * MIB
    plenty = wait_s(STEP_BYTES, 32 * MIB, 0.001, 0.002)
    assert plenty == wait_s(
        STEP_BYTES, 32 * MIB, 0.001, 0.002, room=room_of(ROOMY_SEGMENTS * segment, 1 << 42, segment)
    )
    waits = [
        wait_s(STEP_BYTES, 32 * MIB, 0.001, 0.002, room=room_of(free * segment, 1 << 42, segment))
        for free in range(ROOMY_SEGMENTS, -1, -1)
    ]
    assert all(before > after for before, after in pairwise(waits))
    assert waits[-1] == 0.0
    # A small disk has room with a quarter of it free, though that is four segments.
    assert room_of(1024 * MIB, 3072 * MIB, segment) == 1.0
    assert room_of(512 * MIB, 3584 * MIB, segment) == 0.5
    assert room_of(0, 0, segment) == 0.0


def test_the_pace_leaves_the_disk_to_those_who_read_from_it_and_goes_on_at_a_sixteenth_of_its_rate_at_least() -> None:
    rests = _Rests()
    pace = _pace(rests, 8 * MIB, has_readers=True)
    for _ in range(8):
        rests.now_s += 0.000_6
        pace(256 * KIB)
    # 200 times as long as the step took, not the 0.03 s of the rate.
    assert rests.rests == pytest.approx([0.12] * 8)
    rests = _Rests()
    pace = _pace(rests, 8 * MIB, has_readers=True)
    for _ in range(8):
        rests.now_s += 0.1
        pace(256 * KIB)
    assert rests.now_s == pytest.approx(8 * READERS_SLOWDOWN / 32)


def test_scrub_gives_way_to_readers_until_it_is_overdue_and_compaction_does_not() -> None:
    world = _filled()
    asked: list[str] = []

    def has_readers() -> bool:
        asked.append(what)
        return True

    upkeep = Upkeep(world.store, "disk", SETTINGS, world.clock, has_readers=has_readers)
    what = "the first time"
    world.clock.advance(1)
    assert _work(upkeep)
    what = "in time"
    world.clock.advance(SETTINGS.scrub_interval_ms + 1)
    assert _work(upkeep)
    what = "overdue"
    world.clock.advance(OVERDUE * SETTINGS.scrub_interval_ms)
    assert _work(upkeep)
    what = "compaction"
    _delete(world, 16)
    world.clock.advance(world.store.retention.deleted_ms + 1)
    while not upkeep.figures.compactions:
        assert upkeep.step()
    assert set(asked) == {"the first time", "in time"}
    world.check()


def test_without_retention_what_is_deleted_goes_soon_and_not_with_the_next_scrub() -> None:
    world = World(replace(SETTINGS, deleted_retention_ms=0))
    world.open()
    for first in range(0, 24, 4):
        world.commit([put(blob_id(n), body_of(n, 1500)) for n in range(first, first + 4)])
    world.store.checkpoint()
    upkeep = Upkeep(world.store, "disk", world.settings, world.clock)
    _work(upkeep)
    _delete(world, 16)
    world.clock.advance(FIRST_RETRY_MS)
    _work(upkeep)
    assert upkeep.figures.compactions > 0
    assert upkeep.figures.bytes_freed > 8 * 1500
    world.check()


def _without_retention(blobs: int = 24) -> World:
    world = World(replace(SETTINGS, deleted_retention_ms=0))
    world.open()
    for first in range(0, blobs, 4):
        world.commit([put(blob_id(n), body_of(n, 1500)) for n in range(first, first + 4)])
    world.store.checkpoint()
    return world


def test_without_retention_the_totals_are_trusted_and_nothing_is_read_before_it_is_compacted() -> None:
    world = _without_retention()
    upkeep = Upkeep(world.store, "disk", replace(world.settings, scrub_bytes_per_s=0), world.clock)
    _delete(world, 16)
    _work(upkeep)
    assert upkeep.figures.bytes_freed > 12 * 1500
    assert upkeep.figures.bytes_verified == 0
    world.reconcile()
    world.check()


def test_totals_of_a_segment_that_compaction_has_just_written_are_not_trusted_so_a_clock_ahead_makes_no_circles() -> (
    None
):
    world = _without_retention()
    ahead_ms = world.clock.now_ms() + DAY_MS
    world.commit([update(blob_id(n), Change.DELETE, time_ms=ahead_ms) for n in range(16)])
    world.store.checkpoint()
    upkeep = Upkeep(world.store, "disk", replace(world.settings, scrub_bytes_per_s=0), world.clock)
    assert 0 < _work(upkeep) < 4
    world.check()


def _fill_up(world: World, room_bytes: int) -> None:
    world.disk.capacity_bytes = world.disk._used() + world.settings.reserve_bytes + room_bytes


def test_scrub_never_keeps_compaction_waiting_on_a_disk_that_is_short_of_room() -> None:
    """It would be at a segment for two minutes, and on a disk that fills up within one."""
    world = _without_retention(60)
    upkeep = Upkeep(world.store, "disk", world.settings, world.clock)
    compacted_during_scrub = steps = 0
    survey = world.store.survey
    scrubbed: list[int] = []

    def scrub(
        partition: int, number: int, *, pace: Callable[[int], None], on_damage: OnDamage = lambda *_: None
    ) -> Survey:
        def slowly(size: int) -> None:
            nonlocal steps, compacted_during_scrub
            steps += 1
            if steps == 1:
                _delete(world, 50)
                _fill_up(world, 8 * KIB)
            world.clock.advance(round(LOOK_S * 1000))
            before = upkeep.figures.compactions
            pace(size)
            if upkeep.figures.compactions > before:
                compacted_during_scrub += 1
                assert number in world.store.replicas[0].segments, "what scrub is reading stays"

        scrubbed.append(number)
        return survey(partition, number, pace=slowly, on_damage=on_damage)

    world.store.survey = scrub  # type: ignore[method-assign] # a slow scrub, during which the disk fills up
    assert upkeep.step()
    assert scrubbed
    assert compacted_during_scrub == 1
    assert world.store.surveys(1)[scrubbed[0]].verified_at_ms, "and scrub went on to the end of its segment"
    assert upkeep.figures.damages == 0
    _work(upkeep)
    assert upkeep.figures.bytes_freed > 40 * 1500
    world.reconcile()
    world.check()


def test_scrub_goes_on_beside_compaction_that_never_comes_to_an_end() -> None:
    world = _without_retention(8)
    upkeep = Upkeep(world.store, "disk", world.settings, world.clock)
    upkeep.step()
    _fill_up(world, KIB)
    compactions = 0

    def compact(*_: object) -> bool:
        nonlocal compactions
        compactions += 1
        world.clock.advance(10_000)
        return True

    upkeep._compact = compact  # type: ignore[method-assign, assignment] # there is always one more
    look = upkeep._between()
    world.clock.advance(round(LOOK_S * 1000))
    steps = 1000
    for _ in range(steps):
        look()
        world.clock.advance(100)
    # A second for scrub after ten of compaction.
    assert compactions == pytest.approx(steps / 10, abs=2)


def test_a_disk_nearly_full_of_garbage_has_room_again_before_a_put_is_refused() -> None:
    world = _without_retention(60)
    _delete(world, 56)
    _fill_up(world, 6 * KIB)
    upkeep = Upkeep(world.store, "disk", world.settings, world.clock)
    assert upkeep.step(), "one step, and no look or scrub before it"
    assert upkeep.figures.compactions == 1
    for first in range(100, 112, 4):
        answers = world.commit([put(blob_id(n), body_of(n, 1500)) for n in range(first, first + 4)])
        assert not any(isinstance(answer, DiskFull) for answer in answers or ())
        upkeep.step()
    world.reconcile()
    world.check()


def test_a_disk_that_fills_up_during_a_rest_is_looked_at_soon() -> None:
    world = _filled()
    upkeep = _upkeep(world)
    waits: list[float | None] = []

    class Wanted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout)
            world.clock.advance(round((timeout or 0) * 1000))
            if len(waits) == 2:
                _fill_up(world, 0)
            return False

    upkeep._wanted = Wanted()
    _work(upkeep)
    upkeep._idle(60)
    assert waits == [IDLE_S, IDLE_S, LOOK_S]


def test_scrub_does_not_give_way_where_a_full_disk_or_other_work_waits_for_it() -> None:
    world = _filled()

    def scrub() -> None:
        world.clock.advance(SETTINGS.scrub_interval_ms + 1)
        _work(upkeep)

    upkeep = Upkeep(world.store, "disk", SETTINGS, world.clock, has_readers=lambda: True)
    gives_way = upkeep._patient_pace._has_readers
    rests: list[bool] = []

    def note() -> bool:
        rests.append(gives_way())
        return rests[-1]

    upkeep._patient_pace._has_readers = note
    scrub()
    assert rests
    assert all(rests)
    rests.clear()
    upkeep.look_soon()
    scrub()
    assert rests
    assert not any(rests)
    upkeep._wanted.clear()
    rests.clear()
    world.disk.capacity_bytes = world.disk._used() + SETTINGS.segment_bytes // 2 + SETTINGS.reserve_bytes
    scrub()
    assert rests
    assert not any(rests)


def test_what_was_appended_after_a_look_is_not_taken_for_garbage() -> None:
    """Scrub looks at segments that are still being written to; compaction would copy each of them as a whole."""
    world = World(SETTINGS)
    world.open()
    world.commit([put(blob_id(0), body_of(0, 1500))])
    world.store.checkpoint()
    upkeep = _upkeep(world)
    _work(upkeep)
    first = world.store.replicas[0].segments[1]
    seen_bytes = first.end
    while len(world.store.replicas[0].segments) < 2:
        number = len(world.models[0].blobs)
        world.commit([put(blob_id(number), body_of(number, 1500))])
    world.store.checkpoint()
    assert first.end > 2 * seen_bytes
    _work(upkeep)
    assert upkeep.figures.compactions == 0
    assert upkeep.figures.garbage_bytes == 0
    # What is garbage in it later is found all the same.
    _delete(world, len(world.models[0].blobs) - 1)
    world.clock.advance(SETTINGS.deleted_retention_ms + 1)
    _work(upkeep)
    assert upkeep.figures.compactions > 0
    assert 1 not in world.store.replicas[0].segments
    world.check()


def test_what_a_step_took_counts_towards_its_rate() -> None:
    rests = _Rests()
    pace = _pace(rests, MIB)
    for _ in range(40):
        rests.now_s += 0.005
        pace(64 * KIB)
    assert rests.now_s == pytest.approx(40 / 16)


def test_a_full_disk_is_freed_by_compaction() -> None:
    world = _filled(60)
    _delete(world, 50)
    world.clock.advance(8 * DAY_MS)
    world.disk.capacity_bytes = world.disk._used() + 8 * KIB
    upkeep = _upkeep(world)
    _work(upkeep)
    assert world.store.free_bytes() > 40 * 1500
    world.check()
    assert world.store.get(GetRequest(blob_id(55), 0, WHOLE)).body_size == 1500


def test_garbage_in_the_segments_that_are_written_to_is_reclaimed_when_the_disk_takes_no_puts() -> None:
    """They would never become full, and a disk with many partitions has most of its bytes in them."""
    world = _filled(8)
    assert not world.store.segment_facts(1)
    upkeep = _upkeep(world)
    _work(upkeep)
    _delete(world, 6)
    world.clock.advance(8 * DAY_MS)
    _work(upkeep)
    assert upkeep.figures.compactions == 0
    world.disk.capacity_bytes = world.disk._used() + 16 * KIB
    _work(upkeep)
    assert upkeep.figures.bytes_freed > 6 * 1500
    world.check()
    compactions = upkeep.figures.compactions
    _work(upkeep)
    assert upkeep.figures.compactions == compactions


def test_a_partition_full_of_tombstones_is_sealed_for_good_and_spent_when_nothing_lives() -> None:
    world = World(SETTINGS, partitions={1: 48 * KIB, 2: GIB})
    world.open()
    for first in range(0, 24, 4):
        world.commit([put(blob_id(n), body_of(n, 1000)) for n in range(first, first + 4)])
    upkeep = _upkeep(world)
    _work(upkeep)
    assert upkeep.sealed_for_good == {}
    # About 110 bytes each, and a tenth of 48 KiB is enough.
    world.commit(
        [update(blob_id(100 + n), Change.JOIN, BlobState(1, 0), time_ms=world.clock.now_ms()) for n in range(60)]
    )
    world.store.checkpoint()
    world.clock.advance(8 * DAY_MS)
    _work(upkeep)
    upkeep.step()
    assert upkeep.sealed_for_good.keys() == {1}
    assert (upkeep.figures.sealed_for_good, upkeep.figures.spent) == (1, 0)
    _delete(world, 24)
    upkeep.step()
    assert upkeep.figures.spent == 0, "all of it can be undeleted"
    # Nothing more comes, so what is dead is reclaimed from the segment that was written last, too.
    world.clock.advance(8 * DAY_MS)
    _work(upkeep)
    upkeep.step()
    assert upkeep.sealed_for_good.keys() == {1}
    assert upkeep.figures.sealed_for_good == 1
    assert upkeep.spent == {1}
    world.check()
    # What compaction wrote has no survey in an index that is made anew; and the process may be killed.
    world.kill()
    world.discard_index()
    world.open()
    upkeep = _upkeep(world)
    assert upkeep.sealed_for_good.keys() == upkeep.sealed_at_start == {1}
    _work(upkeep)
    upkeep.step()
    assert upkeep.sealed_for_good.keys() == {1}
    assert upkeep.spent == {1}
    # Its end: the replica goes, with the next step.
    gone: list[int] = []
    upkeep.drop(1, lambda: gone.append(1))
    assert upkeep.step()
    assert gone == [1]
    assert [replica.partition for replica in world.store.replicas] == [2]
    _work(upkeep)
    assert not upkeep.sealed_for_good
    assert not upkeep.spent
