"""The reserve of a disk: what others fill the disk with, the store opens, deletes, compacts and takes puts again."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from ambry.blob.requests import Change
from ambry.errors import DiskFull, DiskUnavailable
from ambry.limits import KIB
from ambry.storage.disk import File
from ambry.storage.real_disk import RealDisk
from ambry.storage.reserve import PATH, ReservedDisk
from ambry.storage.sim_disk import PowerCut, SimDisk
from tests.storage.engine import TINY, World, blob_id, body_of, put, update

DAY_MS: Final = 86_400_000
RESERVE: Final = 64 * KIB
HELD: Final = RESERVE - RESERVE // 4
SETTINGS: Final = replace(TINY, reserve_bytes=RESERVE)


def filled_by_others(world: World) -> None:
    """Somebody else writes until not a byte is left."""
    world.disk.capacity_bytes = world.disk._used()
    assert world.disk.free_bytes() == 0


def fill_again(world: World) -> None:
    """What is free after a crash, somebody else takes at once, if the disk was full before."""
    if world.disk.capacity_bytes is not None:
        filled_by_others(world)


def used(seed: int = 0) -> World:
    """A disk with 40 blobs, half of them deleted so long ago that compaction may have them, and a whole reserve."""
    world = World(SETTINGS, seed=seed)
    world.open()
    world.store.reserve.keep()
    for first in range(0, 40, 4):
        world.commit([put(blob_id(n), body_of(n, 1500)) for n in range(first, first + 4)])
    world.commit([update(blob_id(n), Change.DELETE, time_ms=world.clock.now_ms()) for n in range(0, 40, 2)])
    world.store.checkpoint()
    world.clock.advance(8 * DAY_MS)
    return world


def compact_all(world: World) -> int:
    """Compact while there is anything to reclaim, as upkeep does; bytes that were freed."""
    freed = 0
    while (report := world.compact(garbage_ratio_min=0.1)) is not None and report.compacted:
        freed += report.bytes_freed
    return freed


def test_a_disk_in_use_has_three_quarters_of_its_reserve_in_a_file_and_counts_them_as_free() -> None:
    world = World(SETTINGS)
    world.disk.capacity_bytes = 4096 * KIB
    world.open()
    free, room = world.store.reserve.free_bytes(), world.store.free_bytes()
    assert PATH not in world.disk.names("")
    world.store.reserve.keep()
    assert len(world.disk.read(PATH)) == HELD
    assert world.store.reserve.free_bytes() == free == world.disk.free_bytes() + HELD
    assert world.store.free_bytes() == room


def test_a_reserve_is_made_of_what_is_plenty_and_taken_back_of_what_is_free() -> None:
    """Whoever shares the file system has a use for its last space, until the store had it before."""
    world = World(SETTINGS)
    world.open()
    world.disk.capacity_bytes = world.disk._used() + RESERVE // 4 + 10 * KIB
    world.store.reserve.keep()
    assert world.store.reserve.held_bytes == 10 * KIB
    world.disk.capacity_bytes += RESERVE
    world.store.checkpoint()
    assert world.store.reserve.held_bytes == HELD
    assert world.store.reserve.make_room(world.disk.free_bytes() + 20 * KIB)
    world.disk.capacity_bytes = world.disk._used() + 20 * KIB
    world.store.checkpoint()
    assert world.store.reserve.held_bytes == HELD - RESERVE // 64


def test_puts_end_while_a_quarter_of_the_reserve_is_free_beside_the_file() -> None:
    world = used()
    world.disk.capacity_bytes = world.disk._used() + RESERVE // 4 + 1000
    (answer,) = world.store.commit([put(blob_id(100), body_of(100, 5000))])
    assert isinstance(answer, DiskFull)
    assert world.store.reserve.held_bytes == HELD


def test_a_disk_that_others_filled_to_the_last_byte_opens_and_comes_back_by_itself() -> None:
    world = used()
    filled_by_others(world)
    world.kill()
    world.open()
    world.store.reserve.keep()
    world.check()
    (refused,) = world.store.commit([put(blob_id(100), b"not now")])
    assert isinstance(refused, DiskFull)
    assert world.commit([update(blob_id(1), Change.DELETE, time_ms=5)]) is not None
    world.store.checkpoint()
    world.check()
    assert compact_all(world) > 20_000
    world.store.checkpoint()
    assert world.store.reserve.held_bytes == HELD
    assert world.commit([put(blob_id(101), body_of(101, 500))]) is not None
    world.check()
    world.crash()
    world.open()
    world.check()


def test_a_disk_that_is_filled_again_and_again_opens_every_time() -> None:
    """What an opening does not use goes back into the file before anybody else can have it."""
    world = used()
    for number in range(1, 39, 2):
        filled_by_others(world)
        world.kill()
        world.open()
        world.store.reserve.keep()
        assert world.commit([update(blob_id(number), Change.DELETE, time_ms=5)]) is not None
        world.store.checkpoint()
        world.check()
    assert world.store.reserve.held_bytes > HELD // 2


def test_checkpoints_and_journals_that_are_replaced_have_the_reserve() -> None:
    world = used()
    world.commit([put(blob_id(n), body_of(n, 3000)) for n in range(100, 104)])
    filled_by_others(world)
    world.store.checkpoint()
    assert world.store.failure is None
    settings = replace(SETTINGS, reserve_bytes=4096 * KIB)
    world = World(settings)
    world.open()
    world.store.reserve.keep()
    world.commit([put(blob_id(1), b"first")])
    filled_by_others(world)
    world.disk.fail("sync", 1, DiskUnavailable, path="journal")
    world.commit([update(blob_id(1), Change.DELETE)])
    world.store.checkpoint()
    assert world.store.journals_replaced == 1
    world.disk.capacity_bytes = None
    world.check()
    assert world.commit([put(blob_id(3), b"third")]) is not None


def test_quarantine_does_not_take_the_reserve() -> None:
    world = used()
    replica = world.store.replicas[0]
    segment = replica.segments[1]
    segment.file.pwrite([b"damage"], 64 + 1700 + 300)
    filled_by_others(world)
    world.store.quarantine_blob(blob_id(1))
    assert world.disk.names("quarantine") == []
    assert world.store.reserve.held_bytes > HELD - 4 * KIB


def test_a_call_that_fails_for_another_reason_than_space_does_not_give_the_reserve_away() -> None:
    """A file system may lack inodes, or allow no more files, with all its space free."""
    world = used()
    world.disk.capacity_bytes = world.disk._used() + 1024 * KIB
    for nth in range(1, 6):
        world.disk.fail("create", nth, DiskFull, path="partitions")
    with pytest.raises(DiskFull):
        world.store.reserve.create("partitions/1/another")
    assert world.store.reserve.held_bytes == HELD


@pytest.mark.parametrize("error", [DiskFull, DiskUnavailable])
def test_a_reserve_that_cannot_be_made_or_given_back_is_no_reason_to_fail(error: type[DiskFull]) -> None:
    world = World(SETTINGS)
    world.disk.fail("allocate", 1, error, path=PATH)
    world.open()
    world.store.reserve.keep()
    assert world.store.reserve.held_bytes == 0
    world.commit([put(blob_id(1), b"x")])
    world.store.checkpoint()
    assert world.store.reserve.held_bytes == HELD
    filled_by_others(world)
    world.disk.fail("allocate", 1, error, path=PATH)
    with pytest.raises(DiskFull):
        world.store.checkpoint(always=True)
    world.store.checkpoint(always=True)
    world.check()


@pytest.mark.parametrize("size", [None, 0, 100, HELD - 1, HELD + 1, 4 * HELD])
def test_a_reserve_that_is_missing_short_or_too_long_is_mended(size: int | None) -> None:
    world = used()
    world.close()
    if size is None:
        world.disk.remove(PATH)
    else:
        world.disk.open(PATH).allocate(size)
    world.kill()
    world.open()
    assert world.store.reserve.held_bytes == (size or 0)
    world.store.reserve.keep()
    assert world.store.reserve.held_bytes == len(world.disk.read(PATH)) == HELD
    world.check()


# --- stops in each step ------------------------------------------------------------------------------------------


def _deletes(world: World) -> None:
    world.commit([update(blob_id(n), Change.DELETE, time_ms=5) for n in (1, 3)])


def _puts(number: int) -> Callable[[World], object]:
    return lambda world: world.commit([put(blob_id(number), body_of(number, 500))], DiskFull)


def _empty(world: World) -> None:
    world.disk.capacity_bytes = None


SCRIPT: Final[tuple[Callable[[World], object], ...]] = (
    World.open,
    lambda world: world.store.reserve.keep(),
    _deletes,
    lambda world: world.store.checkpoint(),
    compact_all,
    lambda world: world.store.checkpoint(),
    _puts(101),
    _empty,
    lambda world: world.store.checkpoint(always=True),
    _puts(102),
    World.close,
)
"""Opened on a full disk: what gives the reserve back, frees space, and takes it again."""


def stopped_on_a_full_disk(steps: int | None, seed: int) -> tuple[World, int]:
    """A world that stopped in a step of what gives the reserve back and takes it again, and how many steps there are.

    `steps` None: it did not stop.
    """
    world = used(seed)
    filled_by_others(world)
    world.kill()
    before = world.disk.steps
    world.disk.stop_after(steps)
    with contextlib.suppress(PowerCut):
        for action in SCRIPT:
            action(world)
            if world.disk.is_off:
                break
    return world, world.disk.steps - before


STRIDE: Final = 4
"""Of the steps, every fourth is a stop here, another one in each test; `make prove` has all."""


def _stops(phase: int) -> Iterator[World]:
    _, count = stopped_on_a_full_disk(None, phase)
    assert count > 60
    for steps in range(1 + phase, count + 1, STRIDE):
        world, _ = stopped_on_a_full_disk(steps, phase)
        assert world.disk.is_off
        yield world


@pytest.mark.parametrize("ending", [World.crash, World.kill], ids=["cut", "kill"])
@pytest.mark.parametrize("phase", [0, 2])
def test_a_stop_in_a_step_of_giving_back_and_taking_again_loses_nothing_and_opens(
    phase: int, ending: Callable[[World], None]
) -> None:
    for world in _stops(phase + (ending is World.kill)):
        ending(world)
        fill_again(world)
        world.open()
        world.store.reserve.keep()
        world.check()
        world.disk.capacity_bytes = None
        world.store.checkpoint(always=True)
        assert world.store.reserve.held_bytes == HELD
        world.commit([put(blob_id(500), body_of(500, 4000))])
        world.check()


def test_the_disks_that_a_stop_with_a_reserve_under_way_may_leave_open_without_a_byte_free() -> None:
    _, count = stopped_on_a_full_disk(None, 0)
    for steps in range(1, count + 1):
        world, _ = stopped_on_a_full_disk(steps, 0)
        if world.disk.trace[-1].path not in (PATH, "") and steps % 24:
            continue
        for disk in world.disk.crash_states(world.random):
            left = world.left_with(disk, world.source.index.crash_states()[-1])
            fill_again(left)
            left.open()
            left.check()


# --- the file, on both kinds of disk -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["real", "simulated"])
def test_allocated_space_is_there_and_goes(kind: str, tmp_path: Path) -> None:
    disk = RealDisk(tmp_path) if kind == "real" else SimDisk()
    file: File = disk.create("file")
    assert file.allocated() == 0
    file.allocate(300_000)
    assert file.size() == file.allocated() == 300_000
    file.allocate(100_000)
    assert file.size() == file.allocated() == 100_000
    file.allocate(0)
    assert file.size() == file.allocated() == 0
    file.close()


def test_a_sparse_file_holds_nothing_and_is_filled(tmp_path: Path) -> None:
    disk = RealDisk(tmp_path)
    file = disk.create(PATH)
    file.truncate(96 * KIB)
    assert file.allocated() == 0
    file.close()
    reserved = ReservedDisk(disk, RESERVE)
    assert reserved.held_bytes == 0
    reserved.keep()
    assert reserved.held_bytes == HELD == (tmp_path / PATH).stat().st_blocks * 512


def test_something_else_in_the_place_of_the_reserve_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / PATH).mkdir()
    reserved = ReservedDisk(RealDisk(tmp_path), RESERVE)
    reserved.keep()
    assert reserved.held_bytes == 0
    assert reserved.fault is not None
    reserved.replace("file", b"x")
    assert reserved.read("file") == b"x"
