"""An index that takes no more writes is opened again in the running store, and has everything then.

RocksDB takes nothing after a flush that failed, for good, and an opening of it loses what was not flushed. So does the
simulated one, which is stuck until it is opened again, and loses as much as chance says. What it lost of blobs is in
the journal; what is in no journal (tokens, the repair queue, surveys, policies) is carried over.
"""

import os
import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from ambry.blob.erasure_policy import ErasurePolicy
from ambry.blob.requests import Change, GetRequest, StateAnswer
from ambry.blob.state import BlobState
from ambry.clock import ManualClock
from ambry.config import StorageSettings
from ambry.errors import AmbryError, DiskFull, DiskUnavailable
from ambry.limits import GIB, INDEX_FAILURES_MAX, KIB, MIB
from ambry.storage.erasures import load_policies
from ambry.storage.exchange import Progress, forget_hole, holes, read_tokens, remember
from ambry.storage.index import pages
from ambry.storage.journal import PATH, RING_AT
from ambry.storage.real_disk import RealDisk
from ambry.storage.recovery import open_store
from ambry.storage.rocks_index import RocksIndexSource
from tests.storage.engine import TINY, WHOLE, World, answer_of, blob_id, body_of, put, update

PEER: Final = bytes(range(16))


def used(seed: int = 0, settings: StorageSettings = TINY) -> World:
    """A store with a checkpoint behind it and acknowledged changes after it, of which the index has flushed none."""
    world = World(settings, seed=seed)
    world.open()
    world.commit([put(blob_id(n, partition=1 + n % 2), body_of(n, 3000)) for n in range(8)])
    world.store.checkpoint()
    world.commit([update(blob_id(0), Change.DELETE), put(blob_id(10), body_of(10, 2000))])
    world.commit([update(blob_id(1, partition=2), Change.DELETE), put(blob_id(12), body_of(12, 500))])
    world.commit([update(blob_id(1, partition=2), Change.UNDELETE)])
    return world


def survive(world: World) -> None:
    """Whatever a power cut leaves is right, and is used on."""
    for _ in world.survivors():
        pass
    go_on(world)


def go_on(world: World) -> None:
    world.commit([put(blob_id(40), body_of(40, 900)), update(blob_id(10), Change.DELETE)])
    world.check()
    world.store.checkpoint()
    world.check()
    world.crash()
    world.open()
    world.check()


@pytest.mark.parametrize("seed", range(6))
def test_a_group_that_the_index_did_not_take_appears_when_it_is_opened_again(seed: int) -> None:
    world = used(seed)
    world.source.index.is_stuck = True
    assert world.commit([put(blob_id(20), body_of(20, 100)), update(blob_id(2), Change.DELETE)]) is None
    assert (world.store.failure, world.store.is_writable, world.store.journal_fill_ratio) == (None, False, 1.0)
    # It shows what it showed before, and a crash has all of the group.
    world.check()
    (answer,) = world.store.commit([put(blob_id(21), b"next")])
    assert isinstance(answer, StateAnswer)
    assert (world.store.is_writable, world.store.indexes_reopened) == (True, 1)
    for model in world.models:
        model.apply(put(blob_id(21), b"next"))
    world.check()
    assert world.hits["cut group there"] == 1
    survive(world)


@pytest.mark.parametrize("seed", range(6))
def test_a_checkpoint_whose_flush_fails_comes_to_its_end_with_the_next_opening_of_the_index(seed: int) -> None:
    world = used(seed)
    world.source.index.is_stuck = True
    with pytest.raises(DiskUnavailable, match="opened again"):
        world.store.checkpoint()
    world.check()
    world.store.checkpoint()
    assert (world.store.is_writable, world.store.indexes_reopened) == (True, 1)
    assert not world.store._journal.used_bytes
    world.check()
    survive(world)


def test_an_index_opened_again_is_to_the_byte_what_it_was() -> None:
    """Also what no journal has: none of it was flushed, and all of it is lost by the opening."""
    world = used()
    world.source.random = None
    store = world.store
    world.commit([update(blob_id(30), Change.JOIN, BlobState(0, 2**63))])
    remember(store, {1: Progress({"peer": (PEER, 77)}, [blob_id(30)]), 2: Progress({"other": (PEER, 5)})}, 1)
    store.survey(1, 1, pace=lambda _: None)
    assert store.erasures.follow(ErasurePolicy(1, 5, 1, ((1, 1, 30),)))[1]
    before = dict(_rows(world))
    assert {key[:1] for key in before} >= {b"q", b"v", b"t", b"e"}
    world.source.index.is_stuck = True
    with pytest.raises(DiskUnavailable):
        store.checkpoint()
    store.checkpoint()
    after = dict(_rows(world))
    assert read_tokens(store, 1) == {"peer": (PEER, 77)}
    assert holes(store, b"", 9) == [blob_id(30)]
    assert list(store.surveys(1)) == [1]
    assert load_policies(store.index)[1].version == 1
    assert after == before
    world.check()
    # What follows goes to the new one.
    assert store.erasures.follow(ErasurePolicy(1, 6, 2, ()))[1]
    assert load_policies(store.index)[1].version == 2
    survive(world)


def _rows(world: World) -> Iterator[tuple[bytes, bytes]]:
    """But for late rows and how far they are settled: totals as rows of their own are the same."""
    world.store.write_totals([])
    for page in pages(world.store.index, b"a", b"z", 100):
        yield from (row for row in page if row[0][:1] != b"d" and row[0] != b"ssettled")


@pytest.mark.parametrize("seed", range(4))
def test_journal_and_index_may_fail_one_behind_the_other(seed: int) -> None:
    """The group at which the journal failed is in its file, and is not redone into the index."""
    world = used(seed)
    world.disk.fail("sync", 1, DiskUnavailable, path=PATH, done=1)
    assert world.commit([put(blob_id(20), body_of(20, 100))]) is None
    world.source.index.is_stuck = True
    with pytest.raises(DiskUnavailable):
        world.store.checkpoint()
    world.store.checkpoint()
    assert (world.store.journals_replaced, world.store.indexes_reopened) == (1, 1)
    world.check()
    assert world.hits["cut group lost"] == 1
    survive(world)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("nth", range(1, 4))
def test_a_compaction_whose_moves_are_lost_keeps_what_it_copied_from(seed: int, nth: int) -> None:
    """The index fails at any of its writes and flushes, and forgets moves that it had taken."""
    world = used(seed)
    for first in range(100, 164, 16):
        world.commit([put(blob_id(n), body_of(n, 700)) for n in range(first, first + 16)])
        world.commit([update(blob_id(n), Change.DELETE) for n in range(first, first + 16, 3)])
    world.store.checkpoint()
    segments = {one.number for one in world.store.segment_facts(1)}
    calls = 0

    def stick(operation: str) -> None:
        nonlocal calls
        calls += operation in {"write", "flush"}
        world.source.index.is_stuck = calls >= nth

    index = world.source.index
    index.before = stick
    try:
        world.store.compact(1, tuple(segments), pace=lambda _: None, on_damage=lambda *_: None)
    except DiskUnavailable:
        index.before = lambda _: None
        assert world.store.failure is None
        assert not world.store.is_writable
        assert segments <= set(world.store.replicas[0].segments)
    else:
        assert calls < nth
    world.check()
    world.store.checkpoint()
    world.check()
    assert world.compact(everything=True) is not None
    world.check()
    survive(world)


@pytest.mark.parametrize("while_it", ["copies", "moves"])
def test_a_compaction_does_not_go_on_with_an_index_that_was_opened_again_meanwhile(while_it: str) -> None:
    world = used()
    world.source.random = None
    for first in range(100, 196, 16):
        world.commit([put(blob_id(n), body_of(n, 700)) for n in range(first, first + 16)])
    world.store.checkpoint()
    replica = world.store.replicas[0]
    segments = {one.number for one in world.store.segment_facts(1)}
    known = set(replica.segments)
    done = 0

    def pace(_: int) -> None:
        # With what it copied on the list, some of the moves are in the index, and not flushed.
        nonlocal done
        if not done and (while_it == "copies" or set(replica.segments) > known):
            done += 1
            world.source.index.is_stuck = True
            with pytest.raises(DiskUnavailable):
                world.store.flush_index()
            world.store.checkpoint()

    with pytest.raises(DiskUnavailable, match="moves that it had may be lost"):
        world.store.compact(1, tuple(segments), pace=pace, on_damage=lambda *_: None)
    assert (world.store.is_writable, world.store.indexes_reopened, done) == (True, 1, 1)
    assert set(replica.segments) == known if while_it == "copies" else set(replica.segments) > known
    world.check()
    assert world.compact(everything=True) is not None
    world.check()
    survive(world)


def test_nothing_is_done_by_an_index_that_lacks_a_group() -> None:
    """What would be, might forget a blob that the group has changed, or pass a hole."""
    world = used()
    world.store.checkpoint()
    world.source.index.fail("write", DiskUnavailable)
    world.commit([update(blob_id(10), Change.DELETE)])
    store = world.store
    for work in (
        lambda: remember(store, {1: Progress({"peer": (PEER, 77)})}, 1),
        lambda: forget_hole(store, blob_id(10), 0),
        lambda: store.compact(1, (1,), pace=lambda _: None, on_damage=lambda *_: None),
        lambda: store.survey(1, 1, pace=lambda _: None),
        lambda: store.seal_active(1, 1),
        lambda: store.add_replica(3, GIB),
        lambda: store.drop_replica(2),
    ):
        with pytest.raises(DiskUnavailable, match="has to be opened again"):
            work()
    store.checkpoint()
    world.check()
    survive(world)


def test_without_descriptors_the_index_stays_as_it_is_and_reads_go_on() -> None:
    world = used()
    world.source.index.is_stuck = True
    with pytest.raises(DiskUnavailable):
        world.store.checkpoint()
    world.source.descriptors_error = DiskUnavailable("no descriptors")
    for _ in range(2 * INDEX_FAILURES_MAX):
        with pytest.raises(DiskUnavailable, match="no descriptors"):
            world.store.commit([put(blob_id(50), b"refused")])
        world.check()
    assert world.store.failure is None
    world.source.descriptors_error = None
    world.store.checkpoint()
    assert world.store.indexes_reopened == 1
    world.check()
    survive(world)


def test_an_opening_that_fails_is_tried_again_with_what_was_kept() -> None:
    world = used()
    store, source = world.store, world.source
    remember(store, {1: Progress({"peer": (PEER, 77)})}, 1)
    source.index.is_stuck = True
    with pytest.raises(DiskUnavailable):
        store.checkpoint()
    source.open_error = DiskUnavailable("too many open files")
    for _ in range(2):
        with pytest.raises(DiskUnavailable, match="too many"):
            store.checkpoint()
        # The old one is closed, and the new one is not there.
        assert answer_of(lambda: store.get(GetRequest(blob_id(10), 0, WHOLE))) is DiskUnavailable
        assert answer_of(lambda: store.get_now(GetRequest(blob_id(10), 0, WHOLE))) is DiskUnavailable
    source.open_error = None
    store.checkpoint()
    world.check()
    assert read_tokens(store, 1) == {"peer": (PEER, 77)}
    survive(world)


def test_an_index_that_fails_too_often_takes_the_disk_out_of_service_and_nothing_is_lost() -> None:
    world = used()
    for times in range(1, INDEX_FAILURES_MAX + 1):
        world.source.index.is_stuck = True
        with pytest.raises(DiskUnavailable):
            world.store.checkpoint(always=True)
        world.store.checkpoint()
        assert world.store.indexes_reopened == times
    world.source.index.is_stuck = True
    with pytest.raises(DiskUnavailable):
        world.store.checkpoint(always=True)
    assert world.store.failure is not None
    with pytest.raises(DiskUnavailable, match="takes no more writes"):
        world.store.commit([put(blob_id(50), b"refused")])
    world.check()
    world.crash()
    world.open()
    world.check()


def test_a_store_is_closed_also_while_its_index_takes_nothing() -> None:
    world = used()
    world.source.index.is_stuck = True
    with pytest.raises(DiskUnavailable):
        world.store.checkpoint()
    world.source.descriptors_error = DiskUnavailable("no descriptors")
    with pytest.raises(DiskUnavailable, match="no descriptors"):
        world.store.close()
    world.source.descriptors_error = None
    world.kill()
    world.open()
    world.check()


def test_a_full_disk_is_waited_for_before_the_index_is_opened_again() -> None:
    world = used(settings=replace(TINY, reserve_bytes=64 * KIB))
    world.source.index.is_stuck = True
    with pytest.raises(DiskUnavailable):
        world.store.checkpoint()
    world.disk.capacity_bytes = world.disk._used() + 7 * KIB
    with pytest.raises(DiskFull):
        world.store.commit([update(blob_id(3, partition=2), Change.DELETE)])
    world.check()
    world.disk.capacity_bytes = None
    world.store.checkpoint()
    assert world.store.indexes_reopened == 1
    world.check()
    survive(world)


# --- RocksDB, and a process that has no descriptors left -------------------------------------------------------


@contextmanager
def no_descriptors() -> Iterator[None]:
    """The process may open nothing more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = [os.open(os.devnull, os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (held[0], hard))
    try:
        # What is free below the limit.
        with suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for number in held:
            os.close(number)


def test_rocksdb_that_had_no_descriptors_for_a_flush_takes_writes_again_when_there_are_some(tmp_path: Path) -> None:
    """It was one of its own, when a memtable was full: a checkpoint's waits for descriptors."""
    settings = replace(StorageSettings(), segment_bytes=MIB, journal_bytes=RING_AT + 8 * MIB, reserve_bytes=0)
    disk = RealDisk(tmp_path)
    source = RocksIndexSource(tmp_path / "index", 0, 64 * KIB)
    clock = ManualClock()
    store, _ = open_store(
        disk, source, settings=settings, clock=clock, random_bytes=random.Random(0).randbytes, partitions={1: GIB}
    )
    bodies = {n: body_of(n, 300) for n in range(1500)}
    done: list[int] = []
    unknown: set[int] = set()

    def put_some(numbers: range) -> None:
        try:
            answers = store.commit([put(blob_id(n), bodies[n]) for n in numbers])
        except AmbryError:
            unknown.update(numbers)
            raise
        assert all(isinstance(one, StateAnswer) for one in answers)
        done.extend(numbers)

    def write_until_it_fails() -> None:
        for first in range(100, 1500, 50):
            put_some(range(first, first + 50))

    put_some(range(50))
    store.checkpoint()
    remember(store, {1: Progress({"peer": (PEER, 77)})}, 1)
    put_some(range(50, 100))
    with no_descriptors():
        with pytest.raises(DiskUnavailable, match=r"opened again|did not take"):
            write_until_it_fails()
        assert store.failure is None
        assert not store.is_writable
        for _ in range(3):
            with pytest.raises(DiskUnavailable):
                store.commit([put(blob_id(5000), b"refused")])
        # Segments that are open, and what the index has in memory, are read on.
        assert answer_of(lambda: store.get(GetRequest(blob_id(99), 0, WHOLE))) is not DiskUnavailable
    put_some(range(1400, 1450))
    assert (store.failure, store.is_writable, store.indexes_reopened) == (None, True, 1)
    assert len(done) > 100
    for number in done:
        assert bytes(store.get(GetRequest(blob_id(number), 0, WHOLE)).body) == bodies[number]
    for number in unknown:
        # The journal had it, and so the index has it now.
        assert bytes(store.get(GetRequest(blob_id(number), 0, WHOLE)).body) == bodies[number]
    assert read_tokens(store, 1) == {"peer": (PEER, 77)}
    store.checkpoint()
    store.close()
    store, report = open_store(
        disk, source, settings=settings, clock=clock, random_bytes=random.Random(1).randbytes, partitions={1: GIB}
    )
    assert (report.index_rebuilt, report.groups_redone) == (False, 0)
    for number in (*done, *unknown):
        assert bytes(store.get(GetRequest(blob_id(number), 0, WHOLE)).body) == bodies[number]
    store.close()
