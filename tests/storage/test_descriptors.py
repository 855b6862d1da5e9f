"""A store with more logs than descriptors waits for them, and goes on: nothing of it counts as a failure.

Descriptors of idle logs go to whoever needs some, also to the index. A log with unsynced bytes keeps its own until it
is synced; and that may be needed before the index is opened again, for which every checkpoint waits.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from ambry.blob.requests import GetRequest, StateAnswer
from ambry.clock import ManualClock
from ambry.config import StorageSettings
from ambry.errors import DiskUnavailable
from ambry.limits import GIB, KIB, MIB
from ambry.storage.disk import lacks_descriptors
from ambry.storage.journal import PATH, RING_AT
from ambry.storage.real_disk import RealDisk
from ambry.storage.recovery import open_store
from ambry.storage.rocks_index import RocksIndexSource
from ambry.storage.store import DiskStore
from tests.storage.engine import TINY, WHOLE, World, blob_id, body_of, put
from tests.storage.test_failed_index import no_descriptors, survive, used

PARTITIONS: Final = 56
SETTINGS: Final = replace(
    StorageSettings(), segment_bytes=MIB, journal_bytes=RING_AT + 64 * MIB, reserve_bytes=0, index_cache_bytes=0
)
LARGE: Final = 140 * KIB
"""Two of them are more than a segment's tail may be: they are written to the log at once."""


class NoDescriptors(DiskUnavailable):
    """As a real disk says it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, errno="EMFILE")


@contextmanager
def starved(world: World, operation: str) -> Iterator[None]:
    """The logs of the first partition find no descriptor for an operation."""

    def refuse(name: str, path: str) -> None:
        if name == operation and path.startswith("partitions/1/"):
            raise NoDescriptors(f"{path} cannot be opened again")

    world.disk.before = refuse
    try:
        yield
    finally:
        world.disk.before = lambda *_: None


class Engine:
    """A store of many partitions on a real disk, and what was acknowledged."""

    def __init__(self, folder: Path) -> None:
        self.disk = RealDisk(folder)
        self._source = RocksIndexSource(folder / "index", 0, 4 * MIB)
        self.bodies: dict[bytes, bytes] = {}
        self.store = self._opened()

    def _opened(self) -> DiskStore:
        partitions = dict.fromkeys(range(1, PARTITIONS + 1), GIB)
        store, _ = open_store(
            self.disk,
            self._source,
            settings=SETTINGS,
            clock=ManualClock(),
            random_bytes=random.Random(0).randbytes,
            partitions=partitions,
        )
        return store

    def put(self, partitions: range, size: int, count: int = 1) -> None:
        """Put blobs of a size into every one of the partitions."""
        for partition in partitions:
            first = len(self.bodies)
            new = {blob_id(n, partition=partition): body_of(n, size) for n in range(first, first + count)}
            answers = self.store.commit([put(identity, body) for identity, body in new.items()])
            assert all(isinstance(answer, StateAnswer) for answer in answers)
            self.bodies |= new

    def make_idle(self) -> None:
        """Every log that may gives its descriptor up."""
        while self.disk._files.give_up(PARTITIONS):
            pass

    def check(self) -> None:
        """All that was acknowledged is there."""
        for identity, body in self.bodies.items():
            assert bytes(self.store.get(GetRequest(identity, 0, WHOLE)).body) == body

    def reopen(self) -> None:
        """Close and open."""
        self.store.close()
        self.store = self._opened()


@contextmanager
def engine_of(folder: Path) -> Iterator[Engine]:
    engine = Engine(folder)
    engine.put(range(1, PARTITIONS + 1), 100)
    engine.store.checkpoint()
    yield engine
    assert (engine.store.failure, engine.store.is_writable, engine.store._log_failures) == (None, True, 0)
    engine.check()
    engine.put(range(1, PARTITIONS + 1), 100)
    engine.reopen()
    engine.check()
    engine.store.close()


@pytest.mark.parametrize("dirty", [0, PARTITIONS])
def test_an_index_is_opened_again_with_descriptors_of_logs_that_are_idle_or_can_be_synced(
    tmp_path: Path, dirty: int
) -> None:
    with engine_of(tmp_path) as engine:
        store = engine.store
        engine.put(range(1, dirty + 1), LARGE, count=2)
        with store.locked():
            store._index_failed(DiskUnavailable("as told"))
        with no_descriptors():
            store.checkpoint()
            assert (store.is_writable, store.indexes_reopened) == (True, 1)
            engine.check()
            engine.put(range(1, PARTITIONS + 1), 100)
            store.checkpoint()
        assert store.indexes_reopened == 1


def test_a_checkpoint_of_more_logs_than_there_are_descriptors_comes_to_its_end(tmp_path: Path) -> None:
    """Some have unsynced bytes and keep theirs; the others, which come first, find none."""
    with engine_of(tmp_path) as engine:
        engine.make_idle()
        engine.put(range(1, 25), 100)
        engine.put(range(25, PARTITIONS + 1), LARGE, count=2)
        with no_descriptors():
            engine.store.checkpoint()
            assert not engine.store._journal.used_bytes
            engine.check()
        assert engine.store.indexes_reopened == 0


def test_a_flush_of_the_index_that_would_find_no_descriptors_is_not_asked_for(tmp_path: Path) -> None:
    with engine_of(tmp_path) as engine:
        store = engine.store
        engine.make_idle()
        with no_descriptors():
            for partition in range(1, 20):
                engine.put(range(partition, partition + 1), 100)
                with pytest.raises(DiskUnavailable, match="Too many open files") as caught:
                    store.checkpoint()
                assert lacks_descriptors(caught.value)
                # It takes writes on, as long as the journal has room.
                assert store.is_writable
        store.checkpoint()
        assert store.indexes_reopened == 0


@pytest.mark.parametrize("operation", ["pwrite", "sync"])
@pytest.mark.parametrize("seed", range(4))
def test_a_log_that_finds_no_descriptor_in_a_checkpoint_is_written_by_the_next_one(seed: int, operation: str) -> None:
    world = used(seed)
    with starved(world, operation):
        for _ in range(10):
            with pytest.raises(DiskUnavailable) as caught:
                world.store.checkpoint()
            assert lacks_descriptors(caught.value)
            world.check()
    assert (world.store.failure, world.store._log_failures, world.store.is_writable) == (None, 0, True)
    assert any(replica.dirty for replica in world.store.replicas)
    world.check()
    survive(world)


@pytest.mark.parametrize("when", ["group", "background"])
def test_a_full_tail_whose_log_finds_no_descriptor_is_held_on(when: str) -> None:
    world = World(TINY)
    world.open()
    wanted: list[None] = []
    for number in range(30):
        world.store.on_full_tails = (lambda: wanted.append(None)) if when == "background" else None
        world.disk.fail("pwrite", 1, NoDescriptors, path="partitions/1/00000001.log")
        world.commit([put(blob_id(number), body_of(number, 450))])
        if wanted:
            world.store.write_tails()
            wanted.clear()
        world.disk.clear_faults()
        if world.store.replicas[0].last_number > 1:
            break
    replica = world.store.replicas[0]
    assert replica.segments[1].tail_bytes > TINY.segment_bytes // 2
    assert (world.store.failure, world.store._log_failures, replica.set_aside) == (None, 0, set())
    world.check()
    survive(world)


def test_a_large_body_whose_log_finds_no_descriptor_is_refused_and_may_be_put_again() -> None:
    world = used()
    large = put(blob_id(70), body_of(70, 300 * KIB))
    for operation in ("create", "reserve", "pwrite", "sync", "pwrite", "sync"):
        with starved(world, operation):
            assert [type(answer) for answer in world.store.commit([large])] == [NoDescriptors]
    assert (world.store.failure, world.store._log_failures) == (None, 0)
    world.check()
    world.commit([large])
    survive(world)


def test_a_journal_that_failed_waits_for_the_descriptor_of_the_next_one() -> None:
    world = used()
    world.disk.fail("sync", 1, DiskUnavailable, path=PATH, done=1)
    assert world.commit([put(blob_id(20), body_of(20, 100))]) is None
    for operation in ("create", "sync_folder", "open"):
        world.disk.fail(operation, 1, NoDescriptors, path="journal" if operation != "sync_folder" else "")
        with pytest.raises(DiskUnavailable) as caught:
            world.store.checkpoint()
        assert lacks_descriptors(caught.value)
        assert world.store.failure is None
        world.disk.clear_faults()
        world.check()
    world.store.checkpoint()
    assert world.store.journals_replaced == 1
    survive(world)


@pytest.mark.parametrize("seed", range(4))
def test_records_of_a_log_that_failed_are_not_damaged_because_it_finds_no_descriptor(seed: int) -> None:
    """It is set aside, and what it may have lost is copied to another one: what cannot be opened is not left out."""
    world = used(seed)
    world.disk.fail("sync", 1, DiskUnavailable, path="partitions/1/")
    armed = False

    def starve(operation: str, path: str) -> None:
        nonlocal armed
        if (
            not armed
            and world.store.replicas[0].set_aside
            and operation == "pread"
            and path.startswith("partitions/1/")
        ):
            armed = True
            raise NoDescriptors(f"{path} cannot be opened again")

    world.disk.before = starve
    with pytest.raises(DiskUnavailable) as caught:
        world.store.checkpoint()
    world.disk.before = lambda *_: None
    assert armed
    assert lacks_descriptors(caught.value)
    assert (world.store.failure, world.store._log_failures) == (None, 1)
    world.check()
    world.store.checkpoint()
    assert not world.store.replicas[0].set_aside
    survive(world)
