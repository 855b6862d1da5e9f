"""The plan that `ambry datanode compaction --plan` prints is what upkeep does next, and says why."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from ambry.blob.requests import Change
from ambry.blob.state import BlobState
from ambry.config import ErasureSettings, StorageSettings
from ambry.datanode.upkeep import Upkeep
from ambry.limits import GIB, KIB
from ambry.storage.compaction_plan import SegmentFacts, choose
from ambry.storage.inspection import PlanRow, compaction_plan
from tests.storage.engine import TINY, World, blob_id, body_of, put, update

DAY_MS = 86_400_000
SETTINGS = replace(TINY, compaction_bytes_per_s=1 << 30, scrub_bytes_per_s=1 << 30)
ERASING = replace(SETTINGS, erasure=(ErasureSettings(1, 1, 20),))


def _opened(settings: StorageSettings, capacity: int = GIB) -> World:
    world = World(settings, partitions={1: capacity, 2: GIB})
    world.open()
    return world


def _put(world: World, count: int, size: int = 1500) -> None:
    for n in range(count):
        world.commit([put(blob_id(n), body_of(n, size))])


def _delete(world: World, numbers: Sequence[int]) -> None:
    world.commit([update(blob_id(n), Change.DELETE, time_ms=world.clock.now_ms()) for n in numbers])


def _with_garbage() -> World:
    world = _opened(SETTINGS)
    _put(world, 24)
    _delete(world, range(8))
    world.clock.advance(8 * DAY_MS)
    return world


def _with_an_erasure_that_is_due(number: int) -> Callable[[], World]:
    def made() -> World:
        world = _opened(ERASING)
        _put(world, 24)
        _delete(world, [number])
        world.clock.advance(20 * DAY_MS)
        return world

    return made


def _with_a_partition_that_ends() -> World:
    world = _opened(SETTINGS, 32 * KIB)
    _put(world, 12, 300)
    for n in range(40, 100):
        world.commit([update(blob_id(n), Change.JOIN, BlobState(1, 0), time_ms=5)])
    _delete(world, range(12))
    world.clock.advance(8 * DAY_MS)
    return world


def _short_of_room(number: int) -> Callable[[], World]:
    """One blob of two hundred is deleted, a tenth of its segment: with room for a few segments that is enough."""

    def made() -> World:
        world = _opened(SETTINGS)
        _put(world, 200)
        _delete(world, [number])
        world.clock.advance(8 * DAY_MS)
        world.store.checkpoint()
        world.disk.capacity_bytes = world.disk._used() + world.settings.reserve_bytes + 24 * KIB
        return world

    return made


def _plan(world: World) -> list[PlanRow]:
    return compaction_plan(world.store, world.settings, world.clock.now_ms())


@pytest.mark.parametrize(
    ("made", "has_active", "why"),
    [
        (_with_garbage, False, "garbage"),
        (_with_an_erasure_that_is_due(5), False, "has to be erased"),
        (_with_an_erasure_that_is_due(23), True, "has to be erased"),
        (_with_a_partition_that_ends, True, "nothing in its partition lives"),
        (_short_of_room(0), False, "% are enough"),
        (_short_of_room(199), True, "% are enough"),
    ],
)
def test_the_plan_is_what_upkeep_does_next(made: Callable[[], World], *, has_active: bool, why: str) -> None:
    world = made()
    world.store.checkpoint()
    rows = _plan(world)
    numbers = {row.segment for row in rows if row.is_chosen}
    assert numbers
    assert any(row.is_active for row in rows if row.is_chosen) == has_active
    assert any(why in row.reason for row in rows if row.is_chosen)
    replicas = {replica.partition: replica for replica in world.store.replicas}
    assert {(row.partition, row.segment) for row in rows} == {
        (partition, number) for partition, replica in replicas.items() for number in replica.segments
    }
    upkeep = Upkeep(world.store, "disk", world.settings, world.clock)
    before = set(replicas[1].segments)
    while not upkeep.figures.compactions:
        assert upkeep.step()
    assert before - set(replicas[1].segments) == numbers


def test_the_plan_says_why_a_segment_is_left() -> None:
    world = _opened(SETTINGS)
    _put(world, 24)
    _delete(world, [0])
    world.clock.advance(8 * DAY_MS)
    world.store.checkpoint()
    rows = _plan(world)
    assert not any(row.is_chosen for row in rows)
    first, *others, last = (row for row in rows if row.partition == 1)
    assert "of it is garbage, of 25% that are needed" in first.reason
    assert {row.reason for row in others} == {"nothing in it is garbage"}
    assert (last.is_active, last.reason) == (True, "it is still appended to")
    off = replace(SETTINGS, compaction_bytes_per_s=0)
    assert {row.reason for row in compaction_plan(world.store, off, 0)} == {"compaction is turned off"}


def test_short_of_room_what_is_due_and_does_not_fit_keeps_nothing_else_from_being_freed() -> None:
    due = SegmentFacts(1, 1000, 500, 500, 0, 0, is_due=True)
    fits = SegmentFacts(2, 1000, 300, 700, 0, 0)
    for room, first in ((1.0, 1), (0.9, 2), (0.0, 2)):
        numbers = choose([due, fits], now_ms=0, garbage_ratio_min=0.25, output_bytes_max=400, room=room)
        assert numbers[0] == first, room
    # Alone it is tried: there may be room by now.
    assert choose([due], now_ms=0, garbage_ratio_min=0.25, output_bytes_max=400, room=0.0) == (1,)
