"""Compaction: nothing visible changes but what retention allows, garbage goes, and every step may be the last one."""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest

from ambry.blob.blob_id import KIND_AT, Kind
from ambry.blob.requests import Change, GetAnswer, GetRequest, StateAnswer, UpdateRequest
from ambry.blob.state import NEVER, BlobState
from ambry.config import StorageSettings
from ambry.errors import (
    AmbryError,
    BlobDeleted,
    BlobNotFound,
    DiskFull,
    DiskUnavailable,
    ShuttingDown,
)
from ambry.limits import JOURNAL_BODY_BYTES_MAX, KIB, MIB, UNDELETE_MARGIN_MS
from ambry.storage.commit import Mutation
from ambry.storage.compaction_plan import SMALL_SHARE, SegmentFacts, choose
from ambry.storage.compactor import CompactionReport
from ambry.storage.disk import Buffer
from ambry.storage.exchange import read_record
from ambry.storage.expiry_class import CLASSES, UPPER_BOUNDS_MS, expiry_class_of
from ambry.storage.index_entry import blob_key, decode_entry
from ambry.storage.journal import RING_AT
from ambry.storage.rebuild import check_store
from ambry.storage.segment import Damage, Segment, scan, segment_path
from ambry.storage.sim_disk import PowerCut
from tests.storage.engine import TINY, WHOLE, World, answer_of, blob_id, body_of, put, update

DAY_MS = 86_400_000
NOTHING_KEPT = replace(TINY, deleted_retention_ms=0, expired_retention_ms=0)


def _filled(settings: StorageSettings = TINY, *, count: int = 24, size: int = 1500, seed: int = 0) -> World:
    """Partition 1 with several sealed segments, their lengths written down."""
    world = World(settings, seed=seed)
    world.open()
    for first in range(0, count, 4):
        world.commit([put(blob_id(n), body_of(n, size)) for n in range(first, first + 4)])
    world.store.checkpoint()
    assert len(world.store.segment_facts(1)) >= 2
    return world


def _compact_all(world: World) -> CompactionReport:
    """Compact every segment that may be, worth it or not."""
    numbers = tuple(one.number for one in world.store.segment_facts(1))
    return world.store.compact(1, numbers, pace=lambda _: None, on_damage=lambda *_: None)


def _delete(world: World, *numbers: int) -> None:
    world.commit([_deletion(world, n) for n in numbers])


def _deletion(world: World, number: int) -> UpdateRequest:
    return update(blob_id(number), Change.DELETE, time_ms=world.clock.now_ms())


def _forget_bodies(world: World, *numbers: int) -> None:
    """What the model has to say when the bytes of deleted blobs are reclaimed."""
    (model,) = world.models
    for n in numbers:
        key = blob_id(n)[12:]
        model.blobs[key] = replace(model.blobs[key], put=None)


def test_deleted_blobs_within_their_retention_stay_and_can_be_undeleted() -> None:
    world = _filled()
    _delete(world, *range(8))
    world.store.checkpoint()
    report = _compact_all(world)
    assert report.records_copied >= 8
    assert report.blobs_buried == 0
    world.check()
    world.commit([update(blob_id(0), Change.UNDELETE)])
    world.check()
    world.crash()
    world.open()
    world.check()


def test_the_bytes_of_deleted_blobs_go_after_their_retention_and_their_tombstones_stay() -> None:
    world = _filled()
    _delete(world, *range(16))
    world.store.checkpoint()
    world.clock.advance(8 * DAY_MS)
    size_before = world.store.replicas[0].log_size
    garbage = sum(one.garbage_bytes for one in world.store.segment_facts(1))
    buried_count = 0
    while (report := world.compact()) is not None:
        buried_count += report.blobs_buried
    assert buried_count > 0
    assert len([one for one in world.store.segment_facts(1) if one.dead_bytes]) == 0
    buried = [n for n in range(16) if _is(world, n, BlobDeleted)]
    assert len(buried) >= 10
    assert size_before - world.store.replicas[0].log_size >= 0.9 * garbage - 200 * len(buried)
    _forget_bodies(world, *buried)
    _settle_feed(world)
    for _ in range(2):
        assert answer_of(lambda: world.store.get(GetRequest(blob_id(buried[0]), 0, WHOLE))) is BlobDeleted
        assert type(world.store.commit([update(blob_id(buried[0]), Change.UNDELETE)])[0]) is BlobDeleted
        world.check()
        world.crash()
        world.open()
    world.discard_index()
    world.open()
    assert world.report.index_rebuilt
    world.check()


def _read(world: World, number: int) -> GetAnswer:
    return world.store.get(GetRequest(blob_id(number), 0, WHOLE, include_deleted=True))


def _is(world: World, number: int, error: type[AmbryError]) -> bool:
    return answer_of(lambda: _read(world, number)) is error


def _settle_feed(world: World) -> None:
    """LSNs stay what they were; the test's memory of them needs nothing."""
    world.check()


def _of_kind(identity: bytes, kind: Kind) -> bytes:
    """The same id for a blob of another kind."""
    return identity[:KIND_AT] + bytes([kind]) + identity[KIND_AT + 1 :]


def test_a_deleted_blob_of_several_chunks_is_gone_before_its_chunks_may_be() -> None:
    # 12 h after its retention at the latest: sweepers take the chunks 24 h after it (`ambry/datanode/sweep_plan.py`).
    world = World(TINY)
    world.open()
    blobs = {kind: _of_kind(blob_id(int(kind)), kind) for kind in Kind}
    world.commit([put(one, body_of(1, 300)) for one in blobs.values()])
    deleted_ms = world.clock.now_ms()
    world.commit([update(one, Change.DELETE, time_ms=deleted_ms) for one in blobs.values()])
    limit_ms = deleted_ms + TINY.deleted_retention_ms + UNDELETE_MARGIN_MS
    for time_ms, gone in ((deleted_ms, None), (limit_ms, None), (limit_ms + 1, Kind.COMPOSITE)):
        world.clock.advance(time_ms - world.clock.now_ms())
        for kind, one in blobs.items():
            for get in (world.store.get, world.store.get_now):
                answer = answer_of(partial(get, GetRequest(one, 0, WHOLE, include_deleted=True)))
                assert (answer is BlobDeleted) == (kind is gone), (kind, time_ms)
                assert answer_of(partial(get, GetRequest(one, 0, WHOLE))) is BlobDeleted


def test_expired_blobs_die_with_their_segments_and_nothing_is_copied() -> None:
    world = World(TINY)
    world.open()
    expiry_ms = world.clock.now_ms() + 30 * 60_000
    for first in range(0, 24, 4):
        world.commit(
            [
                put(blob_id(n), body_of(n, 1500), expires_at_ms=expiry_ms if n % 2 else NEVER)
                for n in range(first, first + 4)
            ]
        )
    world.store.checkpoint()
    classes = {facts.expiry_class for facts in world.store.segment_facts(1)}
    assert 1 in classes
    world.clock.advance(2 * DAY_MS)
    facts = [one for one in world.store.segment_facts(1) if one.expiry_class == 1]
    report = world.store.compact(1, tuple(one.number for one in facts), pace=lambda _: None, on_damage=lambda *_: None)
    assert report.records_copied == 0
    assert report.blobs_forgotten > 0
    assert report.compacted == tuple(one.number for one in facts)
    gone = [n for n in range(1, 24, 2) if _is(world, n, BlobNotFound)]
    assert len(gone) == report.blobs_forgotten
    (model,) = world.models
    for n in gone:
        del model.blobs[blob_id(n)[12:]]
    world.check()
    world.crash()
    world.open()
    world.check()


def _compact_with_an_undelete(world: World, then: Callable[[], None] = lambda: None) -> CompactionReport:
    """Blob 0, which is dead, lives again once it was decided that only its tombstone stays."""

    def undelete(_: int) -> None:
        world.commit([update(blob_id(0), Change.UNDELETE)])
        then()

    numbers = tuple(one.number for one in world.store.segment_facts(1))
    return world.store.compact(1, numbers, pace=_after_look(world, undelete), on_damage=lambda *_: None)


def _with_two_dead() -> World:
    world = _filled(NOTHING_KEPT)
    _delete(world, 0, 1)
    world.store.checkpoint()
    world.clock.advance(1)
    return world


def test_a_blob_that_is_undeleted_while_it_is_compacted_keeps_its_bytes_and_its_segment_goes_all_the_same() -> None:
    """A segment that stayed for it was there twice, for a day: on a busy disk without retention most of them were."""
    world = _with_two_dead()
    report = _compact_with_an_undelete(world)
    assert (report.kept_back, report.damaged) == ((), ())
    assert 1 in report.compacted
    assert 1 not in world.store.replicas[0].segments
    assert answer_of(lambda: _read(world, 1)) is BlobDeleted
    assert bytes(_read(world, 0).body) == body_of(0, 1500)
    _forget_bodies(world, 1)
    world.check()
    world.crash()
    world.open()
    world.check()
    world.discard_index()
    world.open()
    world.check()


def test_a_stop_in_every_step_of_a_compaction_with_an_undelete_loses_nothing() -> None:
    world = _with_two_dead()
    before = world.disk.steps
    _compact_with_an_undelete(world)
    count = world.disk.steps - before
    for steps in range(1, count + 1):
        for ending in (World.crash, World.kill):
            world = _with_two_dead()
            world.disk.stop_after(steps)
            with contextlib.suppress(PowerCut):
                _compact_with_an_undelete(world)
            ending(world)
            world.open()
            world.reconcile()
            world.check()
            world.discard_index()
            world.open()
            world.reconcile()
            world.check()
            assert bytes(_read(world, 0).body) == body_of(0, 1500)


def test_a_compaction_that_finds_no_room_for_what_was_undeleted_meanwhile_keeps_its_segment() -> None:
    world = _with_two_dead()
    report = _compact_with_an_undelete(world, lambda: world.disk.fail("create", 2, DiskFull))
    assert (report.kept_back, report.damaged) == ((1,), ())
    assert world.store.failure is None
    assert bytes(_read(world, 0).body) == body_of(0, 1500)
    _forget_bodies(world, 1)
    world.check()
    listed = {segment_path(1, number) for number in world.store.replicas[0].segments}
    names = {f"partitions/1/{name}" for name in world.disk.names("partitions/1") if name.endswith(".log")}
    assert names == listed
    _compact_all(world)
    assert 1 not in world.store.replicas[0].segments
    world.check()


def _after_look(world: World, act: Callable[[int], None]) -> Callable[[int], None]:
    """Act when the second segment is being read: the fates of the first one's records are decided by then."""
    seen = 0

    def pace(size: int) -> None:
        nonlocal seen
        seen += size > 0
        if size and seen == 12:
            act(size)

    return pace


def test_changes_during_a_compaction_are_neither_lost_nor_undone() -> None:
    world = _filled()
    _delete(world, 3)
    world.store.checkpoint()
    calls = 0

    def change(_: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            world.commit([_deletion(world, 0), update(blob_id(3), Change.UNDELETE)])
        if calls == 14:
            world.commit([update(blob_id(1), Change.EXTEND, BlobState(0, NEVER)), put(blob_id(900), b"new")])

    numbers = tuple(one.number for one in world.store.segment_facts(1))
    report = world.store.compact(1, numbers, pace=change, on_damage=lambda *_: None)
    assert report.compacted == numbers
    assert calls >= 14
    world.check()
    world.crash()
    world.open()
    world.check()
    world.discard_index()
    world.open()
    world.check()


def stopped_compaction(steps: int | None, seed: int) -> tuple[World, int]:
    """A world in which the power goes in a step of a compaction, and the steps that it has."""
    world = _filled(seed=seed)
    _delete(world, 0, 5, 9)
    world.commit([update(blob_id(5), Change.UNDELETE), update(blob_id(9), Change.EXTEND, BlobState(0, NEVER))])
    world.store.checkpoint()
    before = world.disk.steps
    if steps is not None:
        world.disk.stop_after(steps)
    try:
        _compact_all(world)
        world.hits["compacted"] += 1
        world.commit([put(blob_id(600), body_of(600, 900)), _deletion(world, 2)])
        if not world.disk.is_off:
            world.store.checkpoint()
    except PowerCut:
        pass
    return world, world.disk.steps - before


@pytest.mark.parametrize("ending", [World.crash, World.kill], ids=["cut", "kill"])
@pytest.mark.parametrize("seed", range(3))
def test_a_stop_in_every_step_of_a_compaction_changes_nothing(ending: Callable[[World], None], seed: int) -> None:
    whole, count = stopped_compaction(None, seed)
    assert whole.hits["compacted"]
    whole.check()
    for steps in range(1, count + 1):
        world, _ = stopped_compaction(steps, seed)
        assert world.disk.is_off
        ending(world)
        world.open()
        world.check()
        _compact_all(world)
        world.commit([put(blob_id(601), body_of(601, 900))])
        world.check()
        world.crash()
        world.open()
        world.check()
        if steps % 5 == 0:
            world.discard_index()
            world.open()
            world.check()


def test_segments_that_keep_much_wait_and_classes_stay_apart() -> None:
    facts = [
        SegmentFacts(1, 1000, 900, 0, 0, 0),
        SegmentFacts(2, 1000, 100, 0, 0, 0),
        SegmentFacts(3, 1000, 200, 0, 0, 1),
        SegmentFacts(4, 1000, 300, 0, 0, 0),
        SegmentFacts(5, 0, 0, 0, 0, 0),
    ]
    assert choose(facts, now_ms=10, garbage_ratio_min=0.25, output_bytes_max=1000) == (2, 4, 5)
    assert choose(facts[:1], now_ms=10, garbage_ratio_min=0.25, output_bytes_max=1000) == ()
    assert choose(facts, now_ms=10, garbage_ratio_min=0.0, output_bytes_max=350) == (2, 5)


def test_small_segments_go_along_and_many_of_them_are_merged_without_any_garbage() -> None:
    def full(number: int, size: int, expiry_class: int = 0) -> SegmentFacts:
        return SegmentFacts(number, size, size, 0, 0, expiry_class)

    many = [full(number, 100) for number in range(10, 10 + SMALL_SHARE)]
    assert choose(many[1:], now_ms=10, garbage_ratio_min=0.25, output_bytes_max=10_000) == ()
    chosen = choose([full(1, 9000), *many], now_ms=10, garbage_ratio_min=0.25, output_bytes_max=10_000)
    assert chosen == tuple(one.number for one in many)
    others = [replace(one, expiry_class=1) for one in many[1:]]
    assert choose([many[0], *others], now_ms=10, garbage_ratio_min=0.25, output_bytes_max=10_000) == ()
    wasteful = SegmentFacts(2, 5000, 3600, 0, 0, 1)
    facts = [wasteful, many[0], *others, full(99, 700, 1), full(98, 3000, 1)]
    chosen = choose(facts, now_ms=10, garbage_ratio_min=0.25, output_bytes_max=10_000)
    assert chosen == (2, *(one.number for one in others[:14])), "not more than it frees"
    chosen = choose(facts, now_ms=10, garbage_ratio_min=0.25, output_bytes_max=4200)
    assert chosen == (2, *(one.number for one in others[:6])), "not more than there is room for"
    free = SegmentFacts(2, 5000, 0, 0, 0, 1)
    chosen = choose([free, *facts[1:]], now_ms=10, garbage_ratio_min=0.25, output_bytes_max=10_000)
    assert chosen == (2, *(one.number for one in others), 99), "and none that is not small"


def test_what_compactions_leave_does_not_end_in_ever_more_small_segments() -> None:
    world = World(replace(TINY, deleted_retention_ms=0))
    world.open()
    most = 0
    for cycle in range(24):
        large = [10 * cycle + one for one in range(4)]
        world.commit([put(blob_id(number), body_of(number, 5000)) for number in large])
        world.commit([put(blob_id(10 * cycle + 9), body_of(cycle, 10))])
        world.store.checkpoint()
        _delete(world, *large)
        world.store.checkpoint()
        while world.compact(garbage_ratio_min=0.25) is not None:
            pass
        most = max(most, len(world.store.segment_facts(1)))
    assert world.hits["compacted"] > 20
    assert most <= 4
    world.check()
    world.crash()
    world.open()
    world.check()


def test_every_time_left_has_a_class_and_longer_lives_have_higher_ones() -> None:
    classes = [expiry_class_of(1000 + bound, 1000) for bound in UPPER_BOUNDS_MS]
    assert classes == list(range(1, CLASSES))
    assert expiry_class_of(NEVER, 1000) == 0
    assert expiry_class_of(1000 + UPPER_BOUNDS_MS[-1] + 1, 1000) == 0
    assert expiry_class_of(5, 1000) == 1


@pytest.mark.parametrize("operation", ["write", "flush"])
def test_a_stop_before_the_index_is_flushed_leaves_old_or_new_segments(operation: str) -> None:
    for nth in range(1, 3):
        world = _filled()
        _delete(world, 0, 5, 9)
        world.store.checkpoint()
        world.source.index.fail(operation, PowerCut, nth)
        try:
            _compact_all(world)
        except PowerCut:
            world.hits["stopped"] += 1
        for index in world.source.index.crash_states():
            for disk in world.disk.crash_states(world.random):
                left = world.left_with(disk, index)
                left.open()
                left.check()
                _compact_all(left)
                left.check()
                left.discard_index()
                left.open()
                left.check()
        assert world.hits["stopped"] or nth > 1


@pytest.mark.parametrize("operation", ["pwrite", "sync", "create", "replace", "pread", "flush", "write"])
@pytest.mark.parametrize("error", [DiskFull, DiskUnavailable])
def test_trouble_in_a_compaction_loses_nothing(operation: str, error: type[AmbryError]) -> None:
    stopped = 0
    for nth in range(1, 60, 4 if operation == "pread" else 1):
        world = _filled()
        _delete(world, 0, 5, 9)
        world.store.checkpoint()
        if operation in {"flush", "write"}:
            world.source.index.fail(operation, error, nth)
        else:
            world.disk.fail(operation, nth, error, path="partitions")
        try:
            _compact_all(world)
        except (DiskFull, DiskUnavailable):
            stopped += 1
            world.disk.clear_faults()
            world.check()
        else:
            world.disk.clear_faults()
            if operation != "pread":
                break
        if world.store.failure is None:
            world.commit([put(blob_id(700), body_of(700, 900))])
            world.check()
            world.disk.clear_faults()
            _compact_all(world)
        world.check()
        world.crash()
        world.open()
        world.check()
    assert stopped or operation == "pread"


def test_a_disk_that_fills_up_while_compaction_moves_entries_is_no_failure_of_the_store() -> None:
    """The index cannot be flushed then; old and new segments are both listed, and what is garbage goes later."""
    for is_stuck in (False, True):
        world = _filled()
        _delete(world, *range(0, 24, 2))
        world.clock.advance(8 * DAY_MS)
        world.store.checkpoint()
        index = world.source.index
        index.fail("flush", DiskFull)
        with pytest.raises(DiskFull):
            _compact_all(world)
        # As RocksDB may be after that, until it is opened again.
        index.is_stuck = is_stuck
        assert world.store.failure is None
        world.check()
        if is_stuck:
            with pytest.raises(DiskUnavailable):
                world.store.checkpoint(always=True)
            world.store.checkpoint()
            assert world.store.indexes_reopened == 1
        world.commit([put(blob_id(700), body_of(700, 900))])
        world.check()
        size_before = world.store.replicas[0].log_size
        _compact_all(world)
        assert world.store.replicas[0].log_size < size_before
        world.check()
        world.crash()
        world.open()
        world.check()


def test_a_disk_that_others_fill_during_a_compaction_ends_it_before_anything_is_listed() -> None:
    world = _filled(replace(TINY, reserve_bytes=64 * KIB))
    _delete(world, *range(0, 24, 2))
    world.clock.advance(8 * DAY_MS)
    world.store.checkpoint()
    listed = set(world.store.replicas[0].segments)
    numbers = tuple(one.number for one in world.store.segment_facts(1))

    def fill(_: int) -> None:
        world.disk.free_bytes = lambda: 0  # type: ignore[method-assign] # a disk that others fill is not simulated

    with pytest.raises(DiskFull):
        world.store.compact(1, numbers, pace=fill, on_damage=lambda *_: None)
    del world.disk.free_bytes
    assert world.store.failure is None
    assert set(world.store.replicas[0].segments) == listed
    _compact_all(world)
    world.check()


def test_a_segment_that_cannot_be_read_stays_and_the_others_go() -> None:
    world = _filled()
    _delete(world, *range(0, 24, 2))
    world.store.checkpoint()
    facts = world.store.segment_facts(1)
    broken = facts[1].number
    world.disk.fail("pread", 1, DiskUnavailable, path=segment_path(1, broken))
    damages: list[int] = []
    report = world.store.compact(
        1,
        tuple(one.number for one in facts),
        pace=lambda _: None,
        on_damage=lambda _partition, segment, _damage: damages.append(segment),
    )
    assert damages == [broken]
    assert report.kept_back == (broken,)
    assert len(report.compacted) == len(facts) - 1
    assert world.store.failure is None
    world.check()
    world.crash()
    world.open()
    world.check()


def test_a_compaction_that_is_told_to_stop_gives_everything_back() -> None:
    world = _filled()
    _delete(world, *range(8))
    world.store.checkpoint()
    names = world.disk.names("partitions/1")

    def stop(_: int) -> None:
        if world.disk.names("partitions/1") != names:
            raise ShuttingDown("as told, with a new segment begun")

    numbers = tuple(one.number for one in world.store.segment_facts(1))
    with pytest.raises(ShuttingDown):
        world.store.compact(1, numbers, pace=stop, on_damage=lambda *_: None)
    assert world.disk.names("partitions/1") == names
    assert world.store.failure is None
    world.check()


def test_a_wish_to_stop_after_the_copies_are_listed_is_too_late_and_no_failure() -> None:
    world = _filled(count=120, size=300)
    listed = set(world.store.replica(1).segments)
    asked = 0

    def stop(_: int) -> None:
        nonlocal asked
        if set(world.store.replica(1).segments) - listed:
            asked += 1
            raise ShuttingDown("as told, between two moves")

    numbers = tuple(one.number for one in world.store.segment_facts(1))
    report = world.store.compact(1, numbers, pace=stop, on_damage=lambda *_: None)
    assert asked == 1
    assert report.compacted == numbers
    assert world.store.failure is None
    world.check()
    world.crash()
    world.open()
    world.check()


def test_a_checkpoint_in_every_step_of_a_compaction_changes_nothing() -> None:
    for step in range(1, 30, 3):
        world = _filled(seed=step)
        _delete(world, 0, 5, 9)
        world.store.checkpoint()
        calls = 0

        def checkpoint_once(_: int, world: World = world, step: int = step) -> None:
            nonlocal calls
            calls += 1
            if calls == step:
                world.commit([put(blob_id(800 + n), body_of(n, 1500)) for n in range(12)])
                world.store.checkpoint()

        numbers = tuple(one.number for one in world.store.segment_facts(1))
        world.store.compact(1, numbers, pace=checkpoint_once, on_damage=lambda *_: None)
        world.check()
        world.crash()
        world.open()
        world.check()


class _TakenMeanwhile:
    """The file of a segment that compaction takes between a reader's look into the index and its read."""

    def __init__(self, world: World, segment: Segment) -> None:
        self._world = world
        self._number = segment.number
        self._file = segment.file
        segment.file = self  # type: ignore[assignment] # reads and the close are all that comes

    def pread(self, size: int, offset: int) -> bytes:
        self._compact()
        return self._file.pread(size, offset)

    def pread_now(self, size: int, offset: int) -> Buffer | None:
        self._compact()
        return self._file.pread_now(size, offset)

    def close(self) -> None:
        self._file.close()

    def _compact(self) -> None:
        number, self._number = self._number, 0
        if number:
            self._world.store.compact(1, (number,), pace=lambda _: None, on_damage=lambda *_: None)


def test_space_of_what_was_compacted_is_free_at_once_and_reads_that_come_too_late_look_again() -> None:
    """To keep it for a minute took a quarter of a disk that was compacted as fast as it was filled."""
    world = _filled()
    replica = world.store.replicas[0]
    segment = replica.segments[1]
    body = body_of(1, 1500)
    request = GetRequest(blob_id(1), 0, WHOLE)

    def meanwhile() -> Segment:
        old = replica.segments[decode_entry(world.store.index.get(blob_key(blob_id(1))) or b"").segment]
        _TakenMeanwhile(world, old)
        return old

    old = meanwhile()
    assert world.store.get_now(request) is None
    with pytest.raises(DiskUnavailable, match="closed"):
        old.file.pread(64, 0)
    assert segment is old
    old = meanwhile()
    assert bytes(world.store.get(request).body) == body
    assert old.number not in replica.segments
    old = meanwhile()
    record = read_record(world.store, blob_id(1))
    assert old.number not in replica.segments
    assert record.put is not None
    assert bytes(record.put.body) == body
    old = meanwhile()
    assert check_store(world.store, world.clock).findings == ()
    assert old.number not in replica.segments
    world.check()


def test_compaction_wants_room_for_what_it_keeps() -> None:
    world = _filled()
    world.disk.capacity_bytes = world.disk._used() + 3000
    numbers = tuple(one.number for one in world.store.segment_facts(1))
    with pytest.raises(DiskFull):
        world.store.compact(1, numbers, pace=lambda _: None, on_damage=lambda *_: None)
    assert world.store.failure is None
    world.check()


def test_the_last_of_several_changes_in_one_group_wins_whichever_segments_they_go_to() -> None:
    world = World(TINY)
    world.open()
    soon_ms = world.clock.now_ms() + 60_000
    later_ms = soon_ms + 1
    world.commit(
        [
            # The tombstone opens the run of the segment without expiry before the others.
            update(blob_id(90), Change.JOIN, BlobState(1, NEVER)),
            put(blob_id(1), b"a", expires_at_ms=soon_ms),
            update(blob_id(1), Change.EXTEND, BlobState(0, later_ms)),
            put(blob_id(2), b"b", expires_at_ms=soon_ms),
            update(blob_id(2), Change.DELETE),
        ]
    )
    world.check()
    assert world.store.index.scan(b"c", b"d", 99) == world.store.index.scan(b"c", b"d", 3)
    world.crash()
    world.open()
    world.check()


def test_a_write_that_fails_takes_no_half_of_a_blob_with_it() -> None:
    world = World(replace(TINY, segment_bytes=2 * MIB, journal_bytes=RING_AT + MIB))
    world.open()
    soon_ms = world.clock.now_ms() + 60_000
    requests: list[Mutation] = [
        update(blob_id(90), Change.JOIN, BlobState(1, NEVER)),
        put(blob_id(1), body_of(1, JOURNAL_BODY_BYTES_MAX + 1), expires_at_ms=soon_ms),
        put(blob_id(1), body_of(1, JOURNAL_BODY_BYTES_MAX + 1), expires_at_ms=soon_ms),
        update(blob_id(1), Change.DELETE),
        put(blob_id(3, partition=2), b"c"),
    ]
    # The first write is that of the header of a new segment, the second the body, which is too large for the journal.
    world.disk.fail("pwrite", 2, DiskFull, path="partitions/1")
    answers = world.commit(requests, DiskFull)
    assert answers is not None
    assert [type(answer) for answer in answers] == [DiskFull] * 4 + [StateAnswer]
    world.check()
    world.commit(requests[:3])
    world.store.checkpoint()
    world.check()
    # The place of what failed was given back: there is nothing in the log that is no record.
    segments = [segment for replica in world.store.replicas for segment in replica.segments.values()]
    assert not [found for segment in segments for found in scan(segment) if isinstance(found, Damage)]
    world.crash()
    world.open()
    world.check()


def test_a_blob_that_is_forgotten_with_its_change_in_one_compaction_is_counted_once() -> None:
    world = _filled(NOTHING_KEPT)
    soon_ms = world.clock.now_ms() + 1000
    world.commit([put(blob_id(50), body_of(50, 700), expires_at_ms=soon_ms)])
    world.commit([update(blob_id(50), Change.EXTEND, BlobState(0, soon_ms + 1)), _deletion(world, 0)])
    for first in range(100, 124, 4):
        world.commit([put(blob_id(n), body_of(n, 1500), expires_at_ms=soon_ms) for n in range(first, first + 4)])
        world.commit([put(blob_id(n + 100), body_of(n, 1500)) for n in range(first, first + 4)])
    world.store.checkpoint()
    world.clock.advance(5000)
    report = _compact_all(world)
    assert report.blobs_forgotten >= 2
    world.check()
    world.crash()
    world.open()
    world.check()
    _compact_all(world)
    world.check()


def _facts(number: int, garbage: int, age_ms: int = 0, size: int = 1000) -> SegmentFacts:
    return SegmentFacts(number, size, size - garbage, 0, DAY_MS - age_ms, 0)


def test_without_room_less_garbage_is_worth_a_compaction_and_the_most_of_it_goes_first() -> None:
    old, young, little = _facts(1, 400, DAY_MS), _facts(2, 900), _facts(3, 100, DAY_MS)

    def first(room: float, *facts: SegmentFacts, output_bytes_max: int = 1000) -> tuple[int, ...]:
        ratio = 0.25
        return choose(facts, now_ms=DAY_MS, garbage_ratio_min=ratio, output_bytes_max=output_bytes_max, room=room)[:1]

    assert first(1.0, old, young) == (1,)
    assert first(0.9, old, young) == (2,)
    assert first(1.0, little) == ()
    assert first(0.5, little) == ()
    assert first(0.3, little) == (3,)
    assert first(0.0, _facts(4, 60)) == ()
    # What does not fit into the room there is waits for what does.
    assert first(0.0, _facts(1, 400), _facts(2, 500), _facts(3, 450, size=500), output_bytes_max=100) == (3,)
