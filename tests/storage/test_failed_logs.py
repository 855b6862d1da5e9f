"""A log whose file fails: nothing acknowledged is lost, nothing is acknowledged falsely, and the disk goes on.

Records wait in memory and in the journal until they are written to their log; so a write or a sync that fails later
concerns blobs that were acknowledged long before.
"""

import random
from dataclasses import replace
from typing import Any, cast

import pytest

from ambry.blob.requests import Change, GetRequest, StateAnswer
from ambry.blob.state import BlobState
from ambry.config import StorageSettings
from ambry.errors import AmbryError, CorruptRecord, DiskFull, DiskUnavailable
from ambry.limits import JOURNAL_BODY_BYTES_MAX, KIB, LOG_FAILURES_MAX, MIB
from ambry.storage.disk import File
from ambry.storage.index import Index
from ambry.storage.index_entry import blob_key
from ambry.storage.journal import RING_AT
from ambry.storage.late_rows import LATE_GROUPS_MAX, decode_rows, encode_rows
from ambry.storage.sim_disk import PowerCut
from tests.storage.engine import TINY, World, blob_id, body_of, put, update

LARGE = replace(TINY, segment_bytes=2 * MIB, journal_bytes=RING_AT + MIB)
NARROW = replace(TINY, segment_bytes=64 * KIB, journal_bytes=RING_AT + MIB)
ROOMY = replace(TINY, segment_bytes=256 * KIB, journal_bytes=RING_AT + MIB)


def opened(settings: StorageSettings = TINY) -> World:
    world = World(settings)
    world.open()
    return world


def survive(world: World) -> None:
    """Whatever a power cut leaves, the model is right, and so is an index made anew."""
    for left in world.survivors():
        left.close()
        left.discard_index()
        left.open()
        left.check()


def fill(world: World, first: int, count: int, size: int = 700) -> None:
    for number in range(first, first + count):
        world.commit([put(blob_id(number, partition=1 + number % 2), body_of(number, size))])


def change_some(world: World, first: int) -> None:
    """A delete of something old, a delete of something new, and an undelete."""
    world.commit([update(blob_id(first, partition=1 + first % 2), Change.DELETE)])
    world.commit([update(blob_id(1, partition=2), Change.DELETE)])
    world.commit([update(blob_id(1, partition=2), Change.UNDELETE)])


# --- records that are held -------------------------------------------------------------------------------------


def test_records_that_are_only_in_memory_and_journal_are_read_as_any_other() -> None:
    world = opened(ROOMY)
    world.commit([put(blob_id(1), body_of(1, 9000)), put(blob_id(2), body_of(2, 100))])
    (segment,) = (one.segments[1] for one in world.store.replicas if one.partition == 1)
    assert len(segment.tail) == 2
    assert segment.file.size() == 64
    world.check()
    for start, stop in ((0, 1), (4095, 4097), (8999, 9000), (0, 9000), (9000, 9001), (100, 99_999)):
        world.check_read(GetRequest(blob_id(1), start, stop))
    survive(world)


def test_a_large_body_between_held_records_leaves_no_gap_after_a_crash() -> None:
    world = opened(LARGE)
    world.commit([put(blob_id(1), body_of(1, 500))])
    world.commit([put(blob_id(2), body_of(2, JOURNAL_BODY_BYTES_MAX + 1))])
    world.commit([put(blob_id(3), body_of(3, 500))])
    world.check()
    survive(world)
    world.store.checkpoint()
    world.check()
    survive(world)


def test_logs_are_written_many_records_at_a_time() -> None:
    world = opened(ROOMY)
    world.disk.trace.clear()
    fill(world, 1, 200)
    writes = [step for step in world.disk.trace if step.operation == "pwrite" and step.path.startswith("partitions/1")]
    assert 1 <= len(writes) <= 4


def _survive_one(world: World) -> None:
    """One of the disks that a power cut may leave: there are too many of that many records to open all of them."""
    left = world.left_with(world.disk, world.source.index.crash_states()[0])
    left.open()
    left.check()


def _with_a_thread(world: World) -> list[int]:
    """As beside a thread that writes the logs: the sizes of what was held whenever it was called."""
    called: list[int] = []
    world.store.on_full_tails = lambda: called.append(world.store._tails.size)
    return called


def _log_writes(world: World) -> int:
    return sum(step.operation == "pwrite" and step.path.startswith("partitions/") for step in world.disk.trace)


def test_logs_are_written_beside_commits_where_there_is_a_thread_for_it() -> None:
    world = opened(NARROW)
    called = _with_a_thread(world)
    world.store.write_tails()
    world.disk.trace.clear()
    fill(world, 1, 48)
    assert called
    assert _log_writes(world) == 0, "commits leave it to the thread"
    world.check()
    _survive_one(world)
    world.store.write_tails()
    assert 1 <= _log_writes(world) <= 2, "once for each log"
    assert world.store._tails.size < called[0]
    world.check()
    _survive_one(world)
    world.store.checkpoint()
    _survive_one(world)


def test_commits_write_logs_themselves_when_the_thread_for_it_is_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ambry.storage.tail.TAILS_BYTES_MAX", 12 * KIB)
    world = opened(NARROW)
    _with_a_thread(world)
    world.disk.trace.clear()
    fill(world, 1, 80)
    assert _log_writes(world) > 0
    assert world.store._tails.size < 2 * 12 * KIB
    world.check()
    _survive_one(world)


@pytest.mark.parametrize("done", [0, 1000])
def test_a_log_that_fails_beside_commits_is_replaced_and_loses_nothing(done: int) -> None:
    world = opened(NARROW)
    fill(world, 1, 4)
    world.store.checkpoint()
    called = _with_a_thread(world)
    fill(world, 5, 44)
    assert called
    world.disk.fail("pwrite", 1, DiskUnavailable, path="partitions/1/", done=done)
    world.store.write_tails()
    (replica,) = (one for one in world.store.replicas if one.partition == 1)
    assert replica.set_aside
    assert world.store.failure is None
    world.check()
    _survive_one(world)
    change_some(world, 6)
    world.store.checkpoint()
    assert not replica.set_aside
    world.check()
    _survive_one(world)


def test_a_full_disk_beside_commits_keeps_what_is_held_for_the_next_checkpoint() -> None:
    world = opened(NARROW)
    _with_a_thread(world)
    fill(world, 1, 48)
    held = world.store._tails.size
    world.disk.fail("pwrite", 1, DiskFull, path="partitions/")
    world.store.write_tails()
    assert world.store._tails.size == held
    world.check()
    world.store.checkpoint()
    assert world.store._tails.size == 0
    world.check()
    _survive_one(world)


def test_logs_are_written_while_the_index_waits_to_be_opened_again() -> None:
    world = opened(NARROW)
    _with_a_thread(world)
    fill(world, 1, 48)
    held = world.store._tails.size
    world.source.index.fail("write", DiskUnavailable)
    assert world.commit([put(blob_id(100), body_of(100, 700))]) is None
    world.store.write_tails()
    assert world.store._tails.size < held
    world.store.checkpoint()
    world.settle()
    world.check()


def test_a_log_that_fails_too_often_beside_commits_fails_the_store() -> None:
    world = opened(NARROW)
    _with_a_thread(world)
    fill(world, 1, 48)
    # Before the first checkpoint nothing says from where on the journal has everything.
    world.store._covered = None
    world.disk.fail("pwrite", 1, DiskUnavailable, path="partitions/1/")
    with pytest.raises(DiskUnavailable):
        world.store.write_tails()
    assert world.store.failure is not None
    with pytest.raises(DiskUnavailable):
        world.store.write_tails()
    world.kill()
    world.open()
    world.check()


def test_a_disk_that_others_filled_keeps_held_records_until_there_is_room() -> None:
    world = opened(ROOMY)
    world.disk.capacity_bytes = world.disk._used() + 40 * KIB
    fill(world, 1, 20)
    world.disk.capacity_bytes = world.disk._used()
    with pytest.raises(DiskFull):
        world.store.checkpoint()
    world.check()
    # Deletes still go through: the journal's space is its own.
    answers = world.commit([update(blob_id(2), Change.DELETE)])
    assert answers is not None
    assert isinstance(answers[0], StateAnswer)
    world.check()
    world.disk.capacity_bytes = None
    survive(world)
    world.store.checkpoint()
    world.check()
    survive(world)


def test_what_is_held_counts_as_used_when_puts_are_let_in() -> None:
    world = opened(ROOMY)
    free = world.store.free_bytes()
    world.commit([put(blob_id(1), body_of(1, 9000))])
    assert world.store.free_bytes() <= free - 9000


def test_a_segment_that_is_set_aside_while_a_checkpoint_writes_it_keeps_its_records_and_the_sum_is_right() -> None:
    world = opened(ROOMY)
    fill(world, 1, 8)
    (replica,) = (one for one in world.store.replicas if one.partition == 1)
    segment, tails = replica.active[0], world.store._tails
    held = tails.held()
    others = tails.size - segment.tail_bytes
    tails.keep(segment, ())
    assert tails.size == others
    # The checkpoint has written what it began with.
    tails.let_go(segment, held[segment])
    assert tails.size == others
    assert tuple(segment.tail.items()) == held[segment]


# --- files that fail -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["pwrite", "sync"])
@pytest.mark.parametrize("done", [0, 1000])
def test_a_log_that_fails_in_a_checkpoint_loses_nothing_and_the_disk_goes_on(operation: str, done: int) -> None:
    world = opened(ROOMY)
    fill(world, 1, 30)
    world.store.checkpoint()
    fill(world, 31, 30)
    change_some(world, 32)
    world.disk.fail(operation, 1, DiskUnavailable, path="partitions/1/", done=done)
    world.store.checkpoint()
    assert world.store.failure is None
    world.check()
    survive(world)
    fill(world, 61, 30)
    world.store.checkpoint()
    world.check()
    survive(world)
    world.close()
    world.open()
    world.check()


def test_a_log_that_fails_between_checkpoints_is_replaced_and_nothing_more_is_written_to_it() -> None:
    world = opened()
    fill(world, 1, 4)
    world.store.checkpoint()
    (replica,) = (one for one in world.store.replicas if one.partition == 1)
    failed = replica.active[0].number
    end = replica.active[0].end
    world.disk.fail("pwrite", 1, DiskUnavailable, path="partitions/1/", done=100)
    fill(world, 5, 16)
    assert failed in replica.set_aside
    world.check()
    survive(world)
    world.store.checkpoint()
    assert not replica.set_aside
    # Sealed where it was synced last: what came later is elsewhere.
    assert replica.segments[failed].end == end
    assert failed in replica.sealed
    world.check()
    survive(world)


class Forgetful:
    """A file whose sync fails and whose page cache has forgotten by then what it was to sync."""

    def __init__(self, file: File, synced_end: int) -> None:
        self._file = file
        self._synced_end = synced_end

    def sync(self) -> None:
        self._file.pwrite([bytes(self._file.size() - self._synced_end)], self._synced_end)
        raise DiskUnavailable("as told")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def test_a_partition_is_left_without_a_segment_when_its_log_failed_and_nothing_in_it_had_to_stay() -> None:
    world = opened(replace(TINY, deleted_retention_ms=0, expired_retention_ms=0))
    world.commit([put(blob_id(1), body_of(1, 3000), expires_at_ms=1000)])
    world.store.checkpoint()
    # The log of changes fails with nothing in it but a change of what expired long ago; so does that of the put.
    world.commit([update(blob_id(1), Change.EXTEND, BlobState(0, 2000))])
    world.commit([put(blob_id(2), body_of(2, 3000), expires_at_ms=1000)])
    world.disk.fail("sync", 1, DiskUnavailable, path="partitions/1", done=0)
    world.disk.fail("sync", 2, DiskUnavailable, path="partitions/1", done=0)
    world.store.checkpoint(always=True)
    world.store.checkpoint(always=True)
    # The puts go first, and what changed them with the next compaction.
    for _ in range(2):
        numbers = tuple(one.number for one in world.store.segment_facts(1))
        world.store.compact(1, numbers, pace=lambda _: None, on_damage=lambda *_: None)
    world.reconcile()
    assert world.store.replica(1).segments == {}
    for end in (world.crash, world.kill):
        end()
        world.open()
        world.check()
        world.commit([put(blob_id(9), b"and it goes on")])
        world.check()


def test_bytes_that_a_failed_sync_dropped_from_the_page_cache_come_from_the_journal() -> None:
    world = opened(ROOMY)
    fill(world, 1, 6)
    world.store.checkpoint()
    fill(world, 7, 200)
    (replica,) = (one for one in world.store.replicas if one.partition == 1)
    segment = replica.active[0]
    assert segment.file.size() > segment.synced_end
    segment.file = cast("File", Forgetful(segment.file, segment.synced_end))
    world.store.checkpoint()
    assert world.store.failure is None
    world.check()
    survive(world)


class Stale:
    """An index whose first answers are older than the others: the reader was slow."""

    def __init__(self, index: Index, values: list[bytes | None]) -> None:
        self._index = index
        self._values = values

    def get(self, key: bytes) -> bytes | None:
        return self._values.pop() if self._values else self._index.get(key)

    def get_now(self, key: bytes) -> tuple[bool, bytes | None]:
        return True, self.get(key)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._index, name)


def test_a_read_that_began_before_its_blob_was_moved_ends_well() -> None:
    world = opened(ROOMY)
    fill(world, 1, 6)
    world.disk.fail("sync", 1, DiskUnavailable, path="partitions/1/")
    before = world.store.index.get(blob_key(blob_id(4)))
    world.store.checkpoint()
    world.check()
    index = world.store._index
    assert index.get(blob_key(blob_id(4))) != before
    # Its old place holds nothing now.
    world.store.replicas[0].segments[1].file.truncate(64)
    world.store._index = cast("Index", Stale(index, [before]))
    assert world.store.get_now(GetRequest(blob_id(4), 0, 5000)) is None
    world.store._index = cast("Index", Stale(index, [before]))
    assert bytes(world.store.get(GetRequest(blob_id(4), 0, 5000)).body) == body_of(4, 700)
    world.store._index = index
    world.check()


@pytest.mark.parametrize("operation", ["pwrite", "sync"])
def test_a_large_body_whose_log_fails_is_refused_and_its_neighbours_are_kept(operation: str) -> None:
    world = opened(LARGE)
    fill(world, 1, 10)
    world.disk.fail(operation, 1, DiskUnavailable, path="partitions/1/")
    answers = world.commit(
        [
            put(blob_id(50), body_of(50, JOURNAL_BODY_BYTES_MAX + 1)),
            put(blob_id(51, partition=2), body_of(51, 300)),
        ],
        DiskUnavailable,
    )
    assert answers is not None
    assert isinstance(answers[0], DiskUnavailable)
    assert isinstance(answers[1], StateAnswer)
    world.check()
    survive(world)
    again = world.commit([put(blob_id(50), body_of(50, JOURNAL_BODY_BYTES_MAX + 1))])
    assert again is not None
    assert isinstance(again[0], StateAnswer)
    world.store.checkpoint()
    world.check()
    survive(world)


def test_a_disk_whose_logs_fail_again_and_again_takes_no_more_writes_and_loses_nothing() -> None:
    world = opened(ROOMY)
    for attempt in range(LOG_FAILURES_MAX + 1):
        assert world.store.failure is None
        fill(world, 1 + 10 * attempt, 10)
        world.disk.fail("sync", 1, DiskUnavailable, path="partitions/1/")
        if attempt < LOG_FAILURES_MAX:
            world.store.checkpoint()
        else:
            with pytest.raises(DiskUnavailable):
                world.store.checkpoint()
    assert world.store.failure is not None
    with pytest.raises(DiskUnavailable):
        world.store.commit([put(blob_id(99), b"too late")])
    world.check()
    survive(world)


def test_a_new_log_that_fails_as_well_fails_the_disk_and_loses_nothing() -> None:
    world = opened(ROOMY)
    fill(world, 1, 10)
    world.disk.fail("sync", 1, DiskUnavailable, path="partitions/1/00000001")
    world.disk.fail("sync", 1, DiskUnavailable, path="partitions/1/00000002")
    with pytest.raises(DiskUnavailable):
        world.store.checkpoint()
    world.disk.clear_faults()
    world.check()
    survive(world)


@pytest.mark.parametrize("error", [DiskFull, DiskUnavailable])
def test_every_step_of_setting_a_log_aside_may_be_the_last(error: type[AmbryError]) -> None:
    """The power goes at each step of the checkpoint that moves what a failed log lost; or that step fails."""

    def prepared() -> World:
        world = opened(ROOMY)
        fill(world, 1, 6)
        world.store.checkpoint()
        fill(world, 7, 6)
        change_some(world, 8)
        world.disk.fail("sync", 1, DiskUnavailable, path="partitions/1/")
        return world

    steps = 0
    while True:
        steps += 1
        world = prepared()
        world.disk.stop_after(steps)
        if _checkpoint(world):
            break
        for left in (world.left_with(world.disk.crash(random.Random(steps)), world.source.index),):
            left.open()
            left.check()
            left.close()
            left.discard_index()
            left.open()
            left.check()
    assert steps > 8
    for nth in range(1, steps):
        for operation in ("pwrite", "replace", "create", "sync_folder"):
            world = prepared()
            world.disk.fail(operation, nth, error)
            _checkpoint(world)
            world.disk.clear_faults()
            world.check()
            if world.store.failure is None:
                world.store.checkpoint()
                world.check()
            survive_once(world)


def survive_once(world: World) -> None:
    world.crash()
    world.open()
    world.check()


def _checkpoint(world: World) -> bool:
    """Whether it came to its end."""
    try:
        world.store.checkpoint()
    except AmbryError:
        return False
    except PowerCut:
        return False
    return True


# --- rows that wait --------------------------------------------------------------------------------------------


def test_totals_are_exact_after_a_crash_at_any_number_of_groups() -> None:
    world = opened(replace(ROOMY, journal_bytes=RING_AT + 4 * MIB))
    for number in range(1, LATE_GROUPS_MAX + 40):
        world.commit([put(blob_id(number % 97 + 1, partition=1 + number % 2), body_of(number % 97 + 1, 40))])
        world.commit([update(blob_id(number % 97 + 1, partition=1 + number % 2), _flip(number))])
        if number % 201 == 0 or number > LATE_GROUPS_MAX + 36:
            left = world.left_with(world.disk, world.source.index)
            left.open()
            left.check_accounts()
            assert left.store.replicas[0].end_lsn == world.store.replicas[0].end_lsn


def _flip(number: int) -> Change:
    return Change.DELETE if number // 97 % 2 == 0 else Change.UNDELETE


@pytest.mark.parametrize("rows", [[], [(b"k", None)], [(b"key", b""), (b"k", b"v" * 254), (b"x" * 255, None)]])
def test_late_rows_come_back_as_they_were(rows: list[tuple[bytes, bytes | None]]) -> None:
    assert list(decode_rows(encode_rows(rows))) == rows


@pytest.mark.parametrize("cut", range(1, 12))
def test_late_rows_that_are_cut_short_are_said_to_be(cut: int) -> None:
    data = encode_rows([(b"key", b"value"), (b"k", None)])
    if len(data) - cut in {0, 10}:
        list(decode_rows(data[:-cut]))
    else:
        with pytest.raises(CorruptRecord):
            list(decode_rows(data[:-cut]))
