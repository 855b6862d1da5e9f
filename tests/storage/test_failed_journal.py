"""A journal that fails: its group is refused, nothing acknowledged is lost, and another journal takes its place.

Until the other one has the name for good, a crash leads back to the failed one, and the group that was refused may be
in it, whole. So it is absent or complete, and from the replacement on it is absent.
"""

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Final, cast

import pytest

from ambry.blob.requests import Change, PutRequest, StateAnswer
from ambry.errors import AmbryError, DirectoryUnusable, DiskFull, DiskUnavailable
from ambry.limits import JOURNAL_BODY_BYTES_MAX, JOURNAL_FAILURES_MAX, KIB, MIB
from ambry.storage.disk import File
from ambry.storage.journal import NEXT_PATH, PATH, RING_AT
from ambry.storage.sim_disk import PowerCut
from tests.storage.engine import TINY, World, blob_id, body_of, put, update

LARGE: Final = replace(TINY, segment_bytes=2 * MIB, journal_bytes=RING_AT + MIB)


def group_of(first: int, count: int = 5, size: int = 5000) -> list[PutRequest]:
    """A group over two partitions that lets segments of 16 KiB roll."""
    return [put(blob_id(n, partition=1 + n % 2), body_of(n, size)) for n in range(first, first + count)]


def used() -> World:
    """A store with a checkpoint behind it and acknowledged changes after it."""
    world = World()
    world.open()
    world.commit(group_of(0))
    world.store.checkpoint()
    world.commit([update(blob_id(0), Change.DELETE), update(blob_id(1, partition=2), Change.DELETE)])
    world.commit([update(blob_id(1, partition=2), Change.UNDELETE), *group_of(10, 2)])
    return world


def fail_a_group(world: World, operation: str = "sync", done: int = 0) -> None:
    """The journal fails at a group, which is refused; the store has not failed."""
    world.disk.fail(operation, 1, DiskUnavailable, path=PATH, done=done)
    assert world.commit([*group_of(20, 6), update(blob_id(11, partition=2), Change.DELETE)]) is None
    assert world.store.failure is None


def lefts(world: World) -> Iterator[World]:
    """What any power cut leaves."""
    for disk in world.disk.crash_states(random.Random(0)):
        states = world.source.index.crash_states()
        for index in (states[0], states[-1]):
            yield world.left_with(disk, index)


def survive(world: World) -> None:
    """Whatever a power cut leaves is right, is used on, and survives the next one."""
    for left in lefts(world):
        left.open()
        left.check()
        go_on(left)


def go_on(world: World) -> None:
    world.commit([*group_of(40, 3), update(blob_id(10), Change.DELETE)])
    world.check()
    world.crash()
    world.open()
    world.check()
    world.store.checkpoint()
    world.close()
    world.discard_index()
    world.open()
    world.check()


@pytest.mark.parametrize("operation", ["pwrite", "sync"])
@pytest.mark.parametrize("done", [0, 1, 9000])
def test_a_group_at_which_the_journal_fails_is_refused_and_the_next_is_taken_by_another_journal(
    operation: str, done: int
) -> None:
    world = used()
    fail_a_group(world, operation, done)
    before = world.models[0]
    survive(world)
    assert world.store.journal_fill_ratio == 1.0
    (answer,) = world.store.commit([put(blob_id(30), b"next")])
    assert isinstance(answer, StateAnswer)
    assert world.store.journals_replaced == 1
    # Settled by what the store shows: the group was refused, and it is not there.
    before.apply(put(blob_id(30), b"next"))
    world.models[1].apply(put(blob_id(30), b"next"))
    world.check()
    assert world.models[0] is before
    survive(world)
    go_on(world)


def test_a_refused_group_gives_all_its_room_back() -> None:
    world = used()
    sizes = [replica.log_size for replica in world.store.replicas]
    fail_a_group(world)
    rolled = [replica.last_number for replica in world.store.replicas]
    assert max(rolled) > 2
    # What a new segment has before its first record.
    empty = [64 * sum(one.end == 64 for one in replica.segments.values()) for replica in world.store.replicas]
    assert [replica.log_size for replica in world.store.replicas] == [
        size + more for size, more in zip(sizes, empty, strict=True)
    ]


def test_what_a_refused_group_left_in_memory_is_never_written_over_what_comes_after_it() -> None:
    """Small records wait for the logs; others, of other sizes, get their places."""
    world = World(replace(TINY, segment_bytes=256 * KIB, journal_bytes=RING_AT + MIB))
    world.open()
    world.commit(group_of(0, 2, 300))
    held = world.store._tails.size
    fail_a_group(world)
    assert world.store._tails.size == held
    world.check()
    world.commit([put(blob_id(50, partition=1 + n), body_of(n, 9000)) for n in range(2)])
    world.check()
    world.store.checkpoint()
    world.check()
    survive(world)


@pytest.mark.parametrize("operation", ["pwrite", "sync"])
def test_a_checkpoint_whose_slot_fails_replaces_the_journal_and_comes_to_its_end(operation: str) -> None:
    world = used()
    world.disk.fail(operation, 1, DiskUnavailable, path=PATH)
    world.store.checkpoint()
    assert (world.store.failure, world.store.journals_replaced) == (None, 1)
    assert not world.store._journal.used_bytes
    world.check()
    survive(world)
    go_on(world)


def test_a_journal_that_fails_while_it_grows_is_replaced_by_the_next_checkpoint() -> None:
    world = used()
    world.close()
    world.settings = replace(TINY, journal_bytes=TINY.journal_bytes + 100 * KIB)
    world.open()
    world.disk.fail("sync", 1, DiskUnavailable, path=PATH)
    assert not world.store.fill_journal()
    world.store.checkpoint()
    assert world.store.journals_replaced == 1
    while world.store.fill_journal():
        pass
    for number in range(50, 54):
        world.commit([put(blob_id(number), body_of(number, 30 * KIB))])
    assert not world.hits["journal wrapped"]
    survive(world)


def test_a_refused_group_with_a_large_body_leaves_nothing_behind() -> None:
    world = World(LARGE)
    world.open()
    world.commit(group_of(0))
    world.disk.fail("sync", 1, DiskUnavailable, path=PATH)
    assert world.commit([put(blob_id(9), body_of(9, JOURNAL_BODY_BYTES_MAX + 1)), put(blob_id(8), b"small")]) is None
    survive(world)
    world.store.checkpoint()
    world.check()
    assert isinstance(world.store.commit([put(blob_id(9), body_of(9, JOURNAL_BODY_BYTES_MAX + 9))])[0], StateAnswer)
    world.models[0].apply(put(blob_id(9), body_of(9, JOURNAL_BODY_BYTES_MAX + 9)))
    world.check()
    survive(world)


# --- the replacement -------------------------------------------------------------------------------------------


def failed_world(how: str) -> World:
    """A world whose next checkpoint has to replace the journal."""
    world = used()
    if how == "slot":
        world.disk.fail("sync", 1, DiskUnavailable, path=PATH)
    else:
        # The group is on the disk whole, or not at all: the error of the sync tells nothing of it.
        fail_a_group(world, "sync", 1 if how == "group on the disk" else 0)
    return world


def stopped_replacement(how: str, steps: int | None, seed: int) -> tuple[World, int]:
    """A world that stopped in a step of the checkpoint that replaces its journal, and the steps that this has."""
    world = failed_world(how)
    world.random.seed(seed)
    before = world.disk.steps
    world.disk.stop_after(steps)
    try:
        world.store.checkpoint()
    except PowerCut:
        assert steps is not None
    return world, world.disk.steps - before


WAYS: Final = ("slot", "group on the disk", "group not on the disk")


@pytest.mark.parametrize("how", WAYS)
def test_every_step_of_a_replacement_may_be_the_last(how: str) -> None:
    """The power goes, or the process is killed, in each step; and again in steps of the recovery from that."""
    steps = 0
    while True:
        steps += 1
        world = failed_world(how)
        world.disk.stop_after(steps)
        try:
            world.store.checkpoint()
        except PowerCut:
            pass
        else:
            break
        for left in lefts(world):
            left.open()
            left.check()
        for ending in (World.crash, World.kill):
            world = failed_world(how)
            world.disk.stop_after(steps)
            with pytest.raises(PowerCut):
                world.store.checkpoint()
            ending(world)
            world.disk.stop_after(1 + steps % 13)
            try:
                world.open()
            except PowerCut:
                ending(world)
            world.disk.stop_after(None)
            world.open()
            assert NEXT_PATH not in world.disk.names("")
            world.check()
            go_on(world)
    assert steps > 12
    world.disk.stop_after(None)
    world.check()
    survive(world)


@pytest.mark.parametrize("how", WAYS[1:])
def test_a_refused_group_that_comes_back_after_a_crash_in_the_replacement_stays(how: str) -> None:
    """It had sealed a segment and begun another; it comes back into both, and no later crash takes half of it."""
    kinds: set[bool] = set()
    steps = 0
    while steps < 40:
        steps += 1
        world = failed_world(how)
        world.disk.stop_after(steps)
        try:
            world.store.checkpoint()
        except PowerCut:
            pass
        else:
            break
        world.kill()
        world.open()
        world.check()
        kinds.add(bool(world.hits["cut group there"]))
        for ending in (World.crash, World.crash, World.kill):
            ending(world)
            world.open()
            world.check()
            world.commit([update(blob_id(10), Change.DELETE), update(blob_id(10), Change.UNDELETE)])
            world.store.checkpoint()
            world.check()
        # The logs alone know all of it.
        world.crash()
        world.discard_index()
        world.open()
        world.check()
    # After a kill the page cache has the group; once the other journal has the name, nobody has.
    assert kinds == {True, False}


@pytest.mark.parametrize("operation", ["create", "pwrite", "sync", "rename", "sync_folder", "open", "remove"])
@pytest.mark.parametrize("done", [0, 1])
@pytest.mark.parametrize("error", [DiskFull, DiskUnavailable])
def test_a_replacement_that_fails_loses_nothing(operation: str, done: int, error: type[AmbryError]) -> None:
    world = failed_world("group on the disk")
    path = {"sync_folder": "", "open": PATH}.get(operation, NEXT_PATH)
    nth = _root_sync_of_a_replacement() if operation == "sync_folder" else 1
    world.disk.fail(operation, nth, error, path=path, done=done)
    with pytest.raises(error):
        world.store.checkpoint()
    world.disk.clear_faults()
    assert (world.store.failure is None) == (error is DiskFull)
    survive(world)
    if world.store.failure is None:
        # There is room again.
        world.store.checkpoint()
        assert world.store.journals_replaced == 1
        world.check()
        survive(world)
        go_on(world)


def _root_sync_of_a_replacement() -> int:
    """Which call of sync_folder it is that makes the name durable."""
    calls: list[str] = []

    def note(operation: str, path: str) -> None:
        if operation == "sync_folder":
            calls.append(path)

    world = failed_world("group on the disk")
    world.disk.before = note
    world.store.checkpoint()
    assert calls[-1] == ""
    return len(calls)


def test_the_fourth_journal_that_fails_takes_the_disk_out_of_service_and_nothing_is_lost() -> None:
    world = used()
    for attempt in range(JOURNAL_FAILURES_MAX):
        world.disk.fail("sync", 1, DiskUnavailable, path=PATH)
        assert world.commit([put(blob_id(60 + attempt), b"x")]) is None
        world.store.checkpoint()
        world.check()
        assert world.store.journals_replaced == attempt + 1
    world.disk.fail("sync", 1, DiskUnavailable, path=PATH)
    assert world.commit([put(blob_id(70), b"x")]) is None
    with pytest.raises(DiskUnavailable, match="sync of journal"):
        world.store.checkpoint()
    assert world.store.failure is not None
    with pytest.raises(DiskUnavailable):
        world.store.commit([put(blob_id(71), b"too late")])
    survive(world)


def test_a_disk_that_takes_nothing_any_more_is_out_of_service_and_reads_go_on() -> None:
    world = used()
    for operation in ("pwrite", "create"):
        for nth in range(1, 40):
            world.disk.fail(operation, nth, DiskUnavailable)
    assert world.commit([put(blob_id(30), b"refused")]) is None
    with pytest.raises(DiskUnavailable):
        world.store.commit([put(blob_id(31), b"refused")])
    assert world.store.failure is not None
    world.disk.clear_faults()
    world.check()
    survive(world)


# --- logs that fail beside it ----------------------------------------------------------------------------------


@pytest.mark.parametrize("done", [0, 1])
def test_a_log_that_fails_while_the_journal_is_replaced_is_set_aside_with_what_was_acknowledged(done: int) -> None:
    world = failed_world("group on the disk")
    world.disk.fail("sync", 1, DiskUnavailable, path="partitions/2/", done=done)
    world.store.checkpoint()
    assert world.store.journals_replaced == 1
    world.check()
    survive(world)
    go_on(world)


def test_records_of_a_refused_group_are_not_fetched_from_its_journal() -> None:
    world = failed_world("group on the disk")
    journal, covered = world.store._journal, world.store._covered
    assert covered is not None
    there = {group.sequence for group in journal.read_groups(*covered)}
    assert journal.sequence + 1 in there
    for replica in world.store.replicas:
        for segment in replica.segments.values():
            for entry in journal.read_entries(*covered, replica.partition, segment.number):
                assert entry.offset + entry.record_size <= segment.end


class _Forgetful:
    """A journal's file that cannot be read back any more."""

    def __init__(self, file: File) -> None:
        self._file = file

    def pread(self, size: int, offset: int) -> bytes:
        return bytes(size) if offset >= RING_AT else self._file.pread(size, offset)

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)


def test_a_log_that_fails_is_not_given_up_when_the_journal_does_not_have_its_records_any_more() -> None:
    world = used()
    journal = world.store._journal
    file = journal._file
    journal._file = cast("File", _Forgetful(file))
    world.disk.fail("sync", 1, DiskUnavailable, path="partitions/2/")
    with pytest.raises(DiskUnavailable, match="cannot be read up to"):
        world.store.checkpoint()
    assert world.store.failure is not None
    survive(world)


def test_a_journal_of_which_only_the_next_is_there_is_missing() -> None:
    world = used()
    world.close()
    world.disk.rename(PATH, NEXT_PATH)
    with pytest.raises(DirectoryUnusable, match="journal is missing"):
        world.open()
