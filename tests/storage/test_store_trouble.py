"""Trouble by name: each test is a way in which a blob could get lost, or the store could refuse without need."""

import gc
import random
import weakref
from dataclasses import replace

import pytest

from ambry.blob.requests import Change, GetRequest, StateAnswer
from ambry.blob.state import BlobState
from ambry.clock import ManualClock
from ambry.errors import (
    BadDigest,
    BlobNotFound,
    CorruptRecord,
    DirectoryInUse,
    DirectoryUnusable,
    DiskFull,
    DiskUnavailable,
    NoSuchReplica,
)
from ambry.limits import GIB, JOURNAL_BODY_BYTES_MAX, KIB, MIB, PROPERTIES_BYTES_MAX
from ambry.storage import exchange
from ambry.storage.exchange import Progress
from ambry.storage.index import Index
from ambry.storage.journal import RING_AT
from ambry.storage.recovery import open_store
from ambry.storage.segment import segment_path
from ambry.storage.sim_disk import PowerCut, SimDisk
from ambry.storage.sim_index import SimIndexSource
from tests.storage.engine import PARTITIONS, TINY, WHOLE, World, blob_id, body_of, put, update

RING = TINY.journal_bytes - RING_AT


def opened(*, journal_bytes: int = TINY.journal_bytes, reserve_bytes: int = TINY.reserve_bytes) -> World:
    world = World(replace(TINY, journal_bytes=journal_bytes, reserve_bytes=reserve_bytes))
    world.open()
    return world


def survive(world: World) -> None:
    """Whatever a power cut leaves, the model is right."""
    for _ in world.survivors():
        pass


# --- the journal -----------------------------------------------------------------------------------------------


def test_a_group_that_begins_the_ring_anew_is_not_overwritten_before_a_checkpoint() -> None:
    """In an empty ring a group may go to its start and reach beyond the place that the checkpoint points to."""
    world = opened()
    world.commit([put(blob_id(1), body_of(1, 44 * KIB))])
    world.store.checkpoint()
    world.commit([put(blob_id(2), body_of(2, 50 * KIB))])
    # It begins at the start of the ring, and its end is beyond that of the first.
    assert world.store._journal.position < RING_AT + 52 * KIB
    for number in range(3, 7):
        world.commit([put(blob_id(number), body_of(number, 20 * KIB))])
        survive(world)


@pytest.mark.parametrize("size", [1, 500, 3000, 9000, 17_000, 30_000])
def test_the_ring_wraps_at_any_size_of_groups(size: int) -> None:
    world = opened()
    for number in range(3 * RING // (size + 600) + 3):
        world.commit([put(blob_id(number), body_of(number, size))])
    assert world.hits["journal wrapped"]
    world.crash()
    world.open()
    world.check()


def test_a_journal_grows_when_the_settings_say_so_and_may_be_cut_off_meanwhile() -> None:
    world = opened()
    world.commit([put(blob_id(1), body_of(1, 30 * KIB))])
    world.close()
    world.settings = replace(TINY, journal_bytes=TINY.journal_bytes + 100 * KIB)
    for steps in (1, 2, None):
        world.open()
        world.check()
        world.disk.stop_after(steps)
        try:
            while world.store.fill_journal():
                pass
        except PowerCut:
            world.crash()
        world.disk.stop_after(None)
    for number in range(2, 6):
        world.commit([put(blob_id(number), body_of(number, 30 * KIB))])
    assert not world.hits["journal wrapped"]
    survive(world)


def test_a_journal_does_not_grow_on_a_full_disk_and_the_store_opens() -> None:
    world = opened()
    world.commit([put(blob_id(1), body_of(1, 3000))])
    world.close()
    world.disk.capacity_bytes = 0
    world.disk.capacity_bytes = 4 * KIB - world.disk.free_bytes() + world.disk._used()
    world.settings = replace(TINY, journal_bytes=TINY.journal_bytes + 100 * KIB)
    world.open()
    world.check()


def test_a_group_beyond_what_the_journal_can_be_read_back_with_is_never_written() -> None:
    world = opened(journal_bytes=RING_AT + 64 * 1024 * KIB)
    requests = [put(blob_id(number), b"", properties=bytes(PROPERTIES_BYTES_MAX)) for number in range(300)]
    with pytest.raises(AssertionError):
        world.store.commit(requests)
    assert world.store.failure is None
    world.check()


# --- rolls and names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("done", [0, 2])
def test_a_roll_whose_list_of_segments_is_not_synced_can_be_tried_again(done: int) -> None:
    """The list may name the segment already: its file must never be missing from then on."""
    world = opened()
    world.commit([put(blob_id(1), body_of(1, 12 * KIB))])
    world.disk.fail("replace", 1, DiskUnavailable, path="partitions", done=done)
    (answer,) = world.store.commit([put(blob_id(2), body_of(2, 12 * KIB))])
    assert isinstance(answer, DiskUnavailable)
    survive(world)
    steps = 0
    while True:
        steps += 1
        world.disk.stop_after(steps)
        if world.commit([put(blob_id(2), body_of(2, 12 * KIB))]) is not None:
            break
        survive(world)
        world.kill()
        world.open()
        world.check()
    survive(world)


def test_a_record_beyond_the_size_of_a_segment_gets_one_of_its_own() -> None:
    world = opened()
    for number in range(3):
        world.commit([put(blob_id(number), body_of(number, JOURNAL_BODY_BYTES_MAX + 1 + number))])
    world.check()
    survive(world)


def test_a_body_that_did_not_go_through_the_journal_is_durable_when_it_is_acknowledged() -> None:
    world = opened()
    world.commit([put(blob_id(1), body_of(1, JOURNAL_BODY_BYTES_MAX + 5000)), put(blob_id(2), b"small")])
    survive(world)
    world.check()


# --- full ------------------------------------------------------------------------------------------------------


def test_a_full_disk_refuses_puts_and_takes_deletes() -> None:
    world = opened(reserve_bytes=64 * KIB)
    world.commit([put(blob_id(1), body_of(1, 3000))])
    world.disk.capacity_bytes = world.disk._used() + 65 * KIB
    assert world.store.free_bytes() <= 1 * KIB
    (answer,) = world.store.commit([put(blob_id(2), body_of(2, 3000))])
    assert isinstance(answer, DiskFull)
    world.commit([update(blob_id(1), Change.DELETE), update(blob_id(3), Change.JOIN, BlobState(1, 0))])
    world.store.checkpoint()
    world.check()
    survive(world)


def test_the_index_is_not_flushed_without_room_and_goes_on_when_there_is_some() -> None:
    world = opened(reserve_bytes=64 * KIB)
    world.commit([put(blob_id(n), body_of(n, 3000)) for n in range(4)])
    world.disk.capacity_bytes = world.disk._used() + 7 * KIB
    # RocksDB fails for good in such a flush, so this fault must not be met.
    world.source.index.fail("flush", DiskUnavailable)
    with pytest.raises(DiskFull):
        world.store.checkpoint()
    with pytest.raises(DiskFull):
        world.store.compact(1, (1,), pace=lambda _: None, on_damage=lambda *_: None, needed_bytes=0)
    assert world.store.failure is None
    world.commit([update(blob_id(1), Change.DELETE)])
    world.check()
    world.source.index.clear_faults()
    world.disk.capacity_bytes = None
    world.store.checkpoint()
    world.commit([put(blob_id(9), body_of(9, 3000))])
    world.check()
    survive(world)


@pytest.mark.parametrize("where", ["index", "replica.meta", "journal"])
def test_a_checkpoint_without_space_is_tried_again_and_nothing_is_lost(where: str) -> None:
    world = World()
    world.open()
    world.commit([put(blob_id(n), body_of(n, 6000)) for n in range(4)])
    match where:
        case "index":
            world.source.index.fail("flush", DiskFull)
        case "replica.meta":
            world.disk.fail("replace", 1, DiskFull, path="partitions")
        case _:
            world.disk.fail("pwrite", 1, DiskFull, path="journal")
    with pytest.raises(DiskFull):
        world.store.checkpoint()
    assert world.store.failure is None
    world.commit([put(blob_id(10), body_of(10, 6000))])
    world.check()
    world.store.checkpoint()
    world.commit([put(blob_id(11), body_of(11, 500))])
    world.crash()
    world.open()
    world.check()


def test_a_full_partition_refuses_puts_and_takes_deletes() -> None:
    world = World(partitions={1: 8 * KIB, 2: GIB})
    world.open()
    world.commit([put(blob_id(1), body_of(1, 5000))])
    (answer,) = world.store.commit([put(blob_id(2), body_of(2, 5000))])
    assert isinstance(answer, DiskFull)
    world.commit([update(blob_id(1), Change.DELETE), put(blob_id(2, partition=2), body_of(2, 5000))])
    world.check()


# --- what is not stored ----------------------------------------------------------------------------------------


def test_a_body_that_does_not_match_its_checksums_is_refused_and_the_rest_of_the_group_stored() -> None:
    world = opened()
    good = put(blob_id(2), b"good")
    bad = replace(put(blob_id(1), b"body"), body=b"bodY")
    also_bad = replace(put(blob_id(3), b"body"), root=1)
    answers = world.store.commit([bad, good, also_bad])
    assert [type(answer) for answer in answers] == [BadDigest, StateAnswer, BadDigest]
    with pytest.raises(BlobNotFound):
        world.store.get(GetRequest(blob_id(1), 0, WHOLE))
    world.models[0].apply(good)
    world.check()


def test_a_partition_without_a_replica_here_is_said_to_be_so() -> None:
    world = opened()
    (answer,) = world.store.commit([put(blob_id(1, partition=9), b"x")])
    assert isinstance(answer, NoSuchReplica)
    with pytest.raises(NoSuchReplica):
        world.store.get(GetRequest(blob_id(1, partition=9), 0, WHOLE))
    with pytest.raises(NoSuchReplica):
        world.store.get_now(GetRequest(b"short", 0, WHOLE))


# --- damage ----------------------------------------------------------------------------------------------------


def damaged(world: World, number: int, at: int) -> None:
    """Change one byte of the first segment on the platter."""
    path = segment_path(1, number)
    file = world.disk.open(path)
    byte = file.pread(1, at)[0]
    file.pwrite([bytes([byte ^ 1])], at)
    file.sync()


def test_a_damaged_record_is_said_to_be_damaged_and_the_others_are_served() -> None:
    world = opened()
    world.commit([put(blob_id(number), body_of(number, 1000)) for number in range(5)])
    world.store.checkpoint()
    damaged(world, 1, 64 + 2 * 1200)
    outcomes = []
    for number in range(5):
        try:
            world.store.get(GetRequest(blob_id(number), 0, WHOLE))
            outcomes.append("good")
        except CorruptRecord as error:
            assert error.facts.keys() >= {"partition", "segment", "offset"}
            outcomes.append("damaged")
    assert sorted(outcomes) == ["damaged", "good", "good", "good", "good"]


def test_a_rebuild_reads_on_behind_damage_and_reports_it() -> None:
    world = opened()
    world.commit([put(blob_id(number), body_of(number, 1000)) for number in range(5)])
    world.close()
    damaged(world, 1, 64 + 10)
    world.discard_index()
    report = world.open()
    assert report.index_rebuilt
    assert report.records_indexed == 4
    ((partition, segment, damage),) = report.damages
    assert (partition, segment, damage.offset) == (1, 1, 64)
    with pytest.raises(BlobNotFound):
        world.store.get(GetRequest(blob_id(0), 0, WHOLE))
    for number in range(1, 5):
        assert bytes(world.store.get(GetRequest(blob_id(number), 0, WHOLE)).body) == body_of(number, 1000)


def test_a_rebuild_that_is_cut_off_starts_again() -> None:
    world = opened()
    for number in range(30):
        world.commit([put(blob_id(number), body_of(number, 1000)), update(blob_id(number // 2), Change.DELETE)])
    for steps in range(1, 100):
        world.discard_index()
        world.disk.stop_after(steps)
        try:
            world.open()
        except PowerCut:
            world.crash()
        else:
            break
    else:
        raise AssertionError("it never ended")
    world.disk.stop_after(None)
    world.check()


# --- what cannot be opened -------------------------------------------------------------------------------------


def test_a_missing_journal_or_identity_is_not_taken_for_a_new_disk() -> None:
    for path in ("journal", "disk.meta"):
        world = opened()
        world.commit([put(blob_id(1), b"x")])
        world.close()
        world.disk.remove(path)
        with pytest.raises(DirectoryUnusable, match=path):
            world.open()


@pytest.mark.parametrize("path", ["disk.meta", "partitions/1/replica.meta", "journal"])
def test_a_newer_format_is_refused_by_name(path: str) -> None:
    world = opened()
    world.close()
    file = world.disk.open(path)
    head = bytearray(file.pread(32, 0))
    head[4] = 77
    file.pwrite([head], 0)
    with pytest.raises(DirectoryUnusable, match=path):
        world.open()


def test_an_index_that_another_has_open_is_not_discarded() -> None:
    class Busy(SimIndexSource):
        def open(self) -> Index:  # type: ignore[override] # as wide as the interface
            raise DirectoryInUse("the index is in use")

    source = Busy()
    with pytest.raises(DirectoryInUse):
        open_store(
            SimDisk(),
            source,
            settings=TINY,
            clock=ManualClock(),
            random_bytes=random.Random(0).randbytes,
            partitions=PARTITIONS,
        )
    assert source.discards == 0


class _Body(bytearray):
    """Bytes of which one can tell that nobody has them any more."""


def test_a_refused_put_lets_go_of_its_body_at_once() -> None:
    """An error that keeps the frames it passed is a circle: gigabytes would wait for the search for garbage."""
    world = opened()
    world.disk.capacity_bytes = world.disk._used()
    request = replace(put(blob_id(1), b"x" * 9000), body=_Body(b"x" * 9000))
    assert isinstance(request.body, _Body)
    left = weakref.ref(request.body)
    gc.disable()
    try:
        (answer,) = world.store.commit([request])
        assert isinstance(answer, DiskFull)
        del request
        assert left() is None
    finally:
        gc.enable()


def test_the_last_space_is_not_reserved_for_logs_that_may_grow() -> None:
    """It is for tombstones and for compaction: 16 MiB ahead in each of a few partitions would be all of it."""
    world = World(replace(TINY, segment_bytes=4 * MIB, reserve_bytes=2 * MIB))
    world.open()
    used = world.disk._used()
    world.commit([put(blob_id(1, partition=1), b"first")])
    assert world.disk._used() - used >= 4 * MIB - KIB
    world.disk.capacity_bytes = world.disk._used() + 2 * MIB
    used = world.disk._used()
    world.commit([update(blob_id(2, partition=2), Change.JOIN, BlobState(1, 0))])
    assert 0 < world.disk._used() - used <= 300 * KIB


# --- a replica that somebody removed -----------------------------------------------------------------------------


@pytest.mark.parametrize("is_cut", [False, True])
def test_a_replica_whose_folder_was_removed_begins_anew_and_the_index_knows_nothing_of_it(is_cut: bool) -> None:
    """Otherwise the empty one would claim to have blobs that it lacks, and never ask its peers for them."""
    world = opened()
    bodies = {blob_id(number, partition=1 + number % 2): body_of(number, 900) for number in range(40)}
    world.commit([put(identity, body) for identity, body in bodies.items()])
    exchange.remember(world.store, {1: Progress({"peer": (b"i" * 16, 7)}), 2: Progress({"peer": (b"i" * 16, 7)})}, 1)
    world.store.checkpoint()
    world.commit([put(blob_id(number, partition=1), b"young") for number in range(50, 55)])
    incarnation = world.store.replica(1).incarnation
    world.kill()
    world.disk.lose_folder("partitions/1")
    if is_cut:
        world.disk.stop_after(4)
        with pytest.raises(PowerCut):
            world.open()
        world.crash()
    world.open()
    assert world.report.replicas_gone == (1,)
    assert world.store.replica(1).incarnation != incarnation
    assert exchange.read_tokens(world.store, 1) == {}
    assert exchange.read_tokens(world.store, 2) == {"peer": (b"i" * 16, 7)}
    for identity, body in bodies.items():
        if identity[15] == 1:
            assert exchange.look_up(world.store, [identity]) == [None]
            with pytest.raises(BlobNotFound):
                world.store.get(GetRequest(identity, 0, 2**40))
        else:
            assert bytes(world.store.get(GetRequest(identity, 0, 2**40)).body) == body
    assert {key[0] for key in world.store.accounts.snapshot() if key[1:5] == (1).to_bytes(4, "big")} == set()
    world.store.commit([put(blob_id(0, partition=1), b"again")])
    world.store.close()
    world.disk.restart()
    assert world.open().replicas_gone == ()
    assert bytes(world.store.get(GetRequest(blob_id(0, partition=1), 0, 2**40)).body) == b"again"
