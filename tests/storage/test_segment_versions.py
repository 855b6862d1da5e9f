"""A copy of a record in another place never parses. Segments of an older version are used on."""

import random
from collections.abc import Callable

import pytest

from ambry.blob.requests import GetAnswer, GetRequest
from ambry.errors import CorruptRecord
from ambry.storage.record import decode_header
from ambry.storage.restoring import damaged_files
from ambry.storage.segment import DATA_OFFSET, VERSION, Damage, ScannedRecord, Segment, check_segment_header, scan
from ambry.storage.store import DiskStore
from tests.golden import FOLDER
from tests.golden.disk import opened_disk
from tests.storage.engine import TINY, WHOLE, World, blob_id, body_of, put


def _filled() -> World:
    world = World(TINY)
    world.open()
    world.commit([put(blob_id(n), body_of(n, 700)) for n in range(6)])
    world.store.checkpoint()
    return world


def _records(segment: Segment) -> list[ScannedRecord]:
    found = list(scan(segment))
    assert all(isinstance(one, ScannedRecord) for one in found)
    return [one for one in found if isinstance(one, ScannedRecord)]


def test_a_record_that_the_disk_wrote_to_another_place_is_no_record_there() -> None:
    world = _filled()
    segment = world.store.replicas[0].segments[1]
    first, second, third, *_ = _records(segment)
    copy = segment.pread(first.header.record_size, first.offset)
    assert decode_header(copy, segment.seed_at(first.offset)) == first.header
    for place in (second.offset, second.offset + 8, third.offset):
        with pytest.raises(CorruptRecord, match="checksum"):
            decode_header(copy, segment.seed_at(place))
    segment.file.pwrite([copy], second.offset)
    found = list(scan(segment))
    assert [one.offset for one in found if isinstance(one, Damage)] == [second.offset]
    assert found[2] == third, "what follows the copy is found"


def test_records_of_an_older_segment_have_its_seed_wherever_they_are() -> None:
    segment = _filled().store.replicas[0].segments[1]
    assert segment.version == VERSION == 2
    assert segment.seed_at(DATA_OFFSET) != segment.seed_at(DATA_OFFSET + 8)
    segment.version = 1
    assert segment.seed_at(DATA_OFFSET) == segment.seed_at(DATA_OFFSET + 8) == segment.seed


def _compacted(store: DiskStore) -> None:
    store.checkpoint()
    partition = store.replicas[0].partition
    facts = store.segment_facts(partition)
    assert facts
    store.compact(partition, tuple(one.number for one in facts), pace=lambda _: None, on_damage=lambda *_: None)
    assert {one.version for one in store.replicas[0].segments.values()} == {VERSION}


@pytest.mark.parametrize("then", [DiskStore.checkpoint, _compacted], ids=["appended", "compacted"])
def test_a_disk_of_version_1_takes_more_and_is_read_after_a_power_cut(then: Callable[[DiskStore], None]) -> None:
    seed = 3
    store, reopened = opened_disk((FOLDER / "disk.v1.bin").read_bytes())
    replica = store.replicas[0]
    older = [number for number, one in replica.segments.items() if one.version == 1]
    assert older == sorted(replica.segments)
    more = {blob_id(n): body_of(n, 900) for n in range(100, 112)}
    for identity, body in more.items():
        store.commit([put(identity, body)])
    assert {one.version for one in replica.segments.values()} == {1, 2}, "the active one goes on"
    then(store)
    for again in (store, reopened(random.Random(seed))):
        for identity, body in more.items():
            answer = again.get(GetRequest(identity, 0, WHOLE))
            assert isinstance(answer, GetAnswer)
            assert answer.body == body
        for one in again.replicas[0].segments.values():
            assert not [found for found in scan(one) if isinstance(found, Damage)]


def test_the_header_of_an_older_segment_is_restored_as_it_was() -> None:
    store, _ = opened_disk((FOLDER / "disk.v1.bin").read_bytes())
    replica = store.replicas[0]
    segment = replica.segments[min(replica.segments)]
    former = segment.file.pread(DATA_OFFSET, 0)
    assert damaged_files(store._disk, store._journal, replica, segment) == {}, (
        "its replica.meta may be of version 1, too"
    )
    segment.file.pwrite([b"?"], 9)
    assert len(store.restore_files(replica.partition, segment.number)) == 1
    assert segment.file.pread(DATA_OFFSET, 0) == former
    version, _, _ = check_segment_header(
        bytes(former), partition=replica.partition, number=segment.number, incarnation=replica.incarnation
    )
    assert version == 1
