"""Compaction: nothing visible changes but what retention allows, garbage goes, and every step may be the last one."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from ambry.blob.requests import Change, GetRequest, UpdateRequest
from ambry.blob.state import NEVER, BlobState
from ambry.errors import BlobDeleted, BlobNotFound, NotHere
from ambry.storage.compaction_plan import SegmentFacts, choose
from ambry.storage.compactor import CompactionReport
from ambry.storage.expiry_class import CLASSES, UPPER_BOUNDS_MS, expiry_class_of
from ambry.storage.sim_disk import PowerCut
from tests.storage.engine import TINY, WHOLE, World, answer_of, blob_id, body_of, put, update

DAY_MS = 86_400_000
NOTHING_KEPT = replace(TINY, deleted_retention_ms=0, expired_retention_ms=0)


def _filled(settings: object = TINY, *, count: int = 24, size: int = 1500, seed: int = 0) -> World:
    """Partition 1 with several sealed segments, their lengths written down."""
    world = World(settings, seed=seed)  # type: ignore[arg-type]
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
    buried = [n for n in range(16) if answer_of(lambda n=n: _read(world, n)) is NotHere]  # type: ignore[misc]
    assert len(buried) >= 10
    assert size_before - world.store.replicas[0].log_size >= 0.9 * garbage - 200 * len(buried)
    _forget_bodies(world, *buried)
    _settle_feed(world)
    for _ in range(2):
        assert answer_of(lambda: world.store.get(GetRequest(blob_id(buried[0]), 0, WHOLE))) is BlobDeleted
        assert type(world.store.commit([update(blob_id(buried[0]), Change.UNDELETE)])[0]) is BlobNotFound
        world.check()
        world.crash()
        world.open()
    world.source.discard()
    world.open()
    assert world.report.index_rebuilt
    world.check()


def _read(world: World, number: int) -> object:
    return world.store.get(GetRequest(blob_id(number), 0, WHOLE, include_deleted=True))


def _settle_feed(world: World) -> None:
    """LSNs stay what they were; the test's memory of them needs nothing."""
    world.check()


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
    report = world.store.compact(
        1, tuple(one.number for one in facts), pace=lambda _: None, on_damage=lambda *_: None
    )
    assert report.records_copied == 0
    assert report.blobs_forgotten > 0
    assert report.compacted == tuple(one.number for one in facts)
    gone = [n for n in range(1, 24, 2) if answer_of(lambda n=n: _read(world, n)) is BlobNotFound]  # type: ignore[misc]
    assert len(gone) == report.blobs_forgotten
    (model,) = world.models
    for n in gone:
        del model.blobs[blob_id(n)[12:]]
    world.check()
    world.crash()
    world.open()
    world.check()


def test_a_blob_that_is_undeleted_while_it_is_compacted_keeps_its_bytes() -> None:
    world = _filled(NOTHING_KEPT)
    _delete(world, 0, 1)
    world.store.checkpoint()
    world.clock.advance(1)
    undone: list[int] = []

    def undelete_once(_: int) -> None:
        if not undone:
            undone.append(0)
            world.commit([update(blob_id(0), Change.UNDELETE)])

    numbers = tuple(one.number for one in world.store.segment_facts(1))
    report = world.store.compact(1, numbers, pace=_after_look(world, undelete_once), on_damage=lambda *_: None)
    assert report.kept_back == (1,)
    assert answer_of(lambda: _read(world, 1)) is NotHere
    _forget_bodies(world, 1)
    world.check()
    world.crash()
    world.open()
    world.check()


def _after_look(world: World, act: Callable[[int], None]) -> Callable[[int], None]:
    """Act when the second segment is being read: the fates of the first one's records are decided by then."""
    seen = 0

    def pace(size: int) -> None:
        nonlocal seen
        seen += 1
        if seen == 12:
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
    world.source.discard()
    world.open()
    world.check()


def _stopped_compaction(steps: int | None, seed: int) -> tuple[World, int]:
    """A world in which the power goes in a step of a compaction, and the steps that it has."""
    world = _filled(seed=seed)
    _delete(world, 0, 5, 9)
    world.commit([update(blob_id(5), Change.UNDELETE), update(blob_id(9), Change.EXTEND, BlobState(0, NEVER))])
    world.store.checkpoint()
    before = world.disk.steps
    if steps is not None:
        world.disk.stop_after(before + steps)
    try:
        _compact_all(world)
        world.hits["compacted"] += 1
        world.commit([put(blob_id(600), body_of(600, 900)), _deletion(world, 2)])
        world.store.checkpoint()
    except PowerCut:
        pass
    return world, world.disk.steps - before


@pytest.mark.parametrize("ending", [World.crash, World.kill], ids=["cut", "kill"])
@pytest.mark.parametrize("seed", range(3))
def test_a_stop_in_every_step_of_a_compaction_changes_nothing(ending: Callable[[World], None], seed: int) -> None:
    whole, count = _stopped_compaction(None, seed)
    assert whole.hits["compacted"]
    whole.check()
    for steps in range(1, count + 1):
        world, _ = _stopped_compaction(steps, seed)
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
            world.source.discard()
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
    assert choose(facts, now_ms=10, garbage_ratio_min=0.25, output_bytes_max=1000) == (2, 4)
    assert choose(facts[:1], now_ms=10, garbage_ratio_min=0.25, output_bytes_max=1000) == ()
    assert choose(facts, now_ms=10, garbage_ratio_min=0.0, output_bytes_max=350) == (2,)


def test_every_time_left_has_a_class_and_longer_lives_have_higher_ones() -> None:
    classes = [expiry_class_of(1000 + bound, 1000) for bound in UPPER_BOUNDS_MS]
    assert classes == list(range(1, CLASSES))
    assert expiry_class_of(NEVER, 1000) == 0
    assert expiry_class_of(1000 + UPPER_BOUNDS_MS[-1] + 1, 1000) == 0
    assert expiry_class_of(5, 1000) == 1
