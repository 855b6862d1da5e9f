"""Damage: it is found, set aside, never served, repaired from a peer, and dead blobs are left dead."""

from dataclasses import replace

import pytest

from ambry.blob.requests import Change, GetRequest, PutRequest
from ambry.blob.state import NEVER, BlobState
from ambry.datanode.upkeep import Upkeep
from ambry.errors import BlobCollision, CorruptRecord, DirectoryUnusable, NotHere
from ambry.storage.exchange import holes
from ambry.storage.journal import SLOT_BYTES, SLOTS_AT
from ambry.storage.segment import DATA_OFFSET, ScannedRecord, Segment, scan, segment_path
from tests.storage.engine import TINY, WHOLE, World, answer_of, blob_id, body_of, fill_holes, put, update

SETTINGS = replace(TINY, compaction_bytes_per_s=1 << 30, scrub_bytes_per_s=1 << 30)
DAY_MS = 86_400_000


class Peer:
    """A source of repair that has some blobs."""

    def __init__(self, *requests: PutRequest) -> None:
        self.blobs = {request.blob_id: request for request in requests}
        self.asked: list[bytes] = []

    def fetch(self, blob_id: bytes) -> PutRequest | None:
        self.asked.append(blob_id)
        return self.blobs.get(blob_id)


PUTS = [put(blob_id(n), body_of(n, 1500), properties=b"p") for n in range(24)]


def _filled() -> World:
    world = World(SETTINGS)
    world.open()
    for first in range(0, 24, 4):
        world.commit(PUTS[first : first + 4])
    world.store.checkpoint()
    return world


def _place(world: World, number: int) -> tuple[Segment, int]:
    entry = world._entry(blob_id(number)[12:])
    assert entry is not None
    return world.store.replicas[0].segments[entry.segment], entry.offset


def _flip(world: World, number: int, at: int) -> None:
    """Turn one bit of a blob's record, `at` bytes from its start."""
    segment, offset = _place(world, number)
    byte = segment.file.pread(1, offset + at)[0]
    segment.file.pwrite([bytes([byte ^ 4])], offset + at)


def _work(world: World) -> Upkeep:
    upkeep = Upkeep(world.store, "disk", SETTINGS, world.clock)
    for _ in range(100):
        if not upkeep.step():
            break
    return upkeep


def _repairs(world: World, peer: Peer) -> int:
    """Let upkeep work and a peer fill what it found; how many the store says were filled."""
    before = world.store.holes_filled
    _work(world)
    filled = fill_holes(world.store, peer.fetch)
    _work(world)
    assert world.store.holes_filled - before == filled
    return filled


def _lost(world: World, *numbers: int) -> None:
    (model,) = world.models
    for n in numbers:
        model.order += 1
        key = blob_id(n)[12:]
        model.blobs[key] = replace(model.blobs[key], put=None, order=model.order)


def _answer(world: World, number: int) -> object:
    return answer_of(lambda: world.store.get(GetRequest(blob_id(number), 0, WHOLE, include_deleted=True)))


@pytest.mark.parametrize("at", [0, 8, 70, 80, 104, 105, 500, 1604])
def test_damage_anywhere_in_a_record_is_found_set_aside_and_repaired(at: int) -> None:
    world = _filled()
    _flip(world, 5, at)
    assert _answer(world, 5) is CorruptRecord
    upkeep = _work(world)
    assert upkeep.figures.quarantined == 1
    assert _answer(world, 5) is NotHere
    assert holes(world.store, b"", 9) == [blob_id(5)]
    assert len(world.disk.names("quarantine")) == 1
    _lost(world, 5)
    world.check()
    # A crash forgets nothing of it.
    world.store.checkpoint()
    world.crash()
    world.open()
    world.check()
    assert holes(world.store, b"", 9) == [blob_id(5)]
    peer = Peer(*PUTS)
    assert _repairs(world, peer) == 1
    assert peer.asked == [blob_id(5)]
    (model,) = world.models
    model.apply(PUTS[5])
    world.check()
    assert holes(world.store, b"", 9) == []
    world.crash()
    world.open()
    world.check()


def test_a_blob_that_a_read_finds_damaged_does_not_wait_for_scrub() -> None:
    world = _filled()
    _work(world)
    _flip(world, 7, 300)
    upkeep = Upkeep(world.store, "disk", SETTINGS, world.clock)
    upkeep.suspect(blob_id(7))
    upkeep.suspect(blob_id(8))
    assert upkeep.step()
    assert upkeep.figures.repairs_waiting == 1
    assert fill_holes(world.store, Peer(*PUTS).fetch) == 1
    assert not upkeep.step()
    assert upkeep.figures.repairs_waiting == 0
    assert answer_of(lambda: world.store.get(GetRequest(blob_id(7), 0, WHOLE))) == world.models[0].get(
        GetRequest(blob_id(7), 0, WHOLE)
    )


def test_no_other_body_takes_the_place_of_a_lost_one() -> None:
    world = _filled()
    _flip(world, 5, 300)
    _work(world)
    (answer,) = world.store.commit([put(blob_id(5), b"another")])
    assert type(answer) is BlobCollision
    assert _repairs(world, Peer(put(blob_id(5), b"another"))) == 0
    assert _answer(world, 5) is NotHere


def test_dead_blobs_are_not_fetched() -> None:
    world = _filled()
    world.commit([update(blob_id(5), Change.DELETE, time_ms=world.clock.now_ms())])
    _flip(world, 5, 300)
    peer = Peer(*PUTS)
    assert _work(world).figures.quarantined == 1
    assert _repairs(world, peer) == 0
    assert peer.asked == []
    # Nor is one that dies while it waits.
    _flip(world, 6, 300)
    world.clock.advance(8 * DAY_MS)
    _work(world)
    assert holes(world.store, b"", 9) == [blob_id(6)]
    world.store.commit([update(blob_id(6), Change.DELETE)])
    assert holes(world.store, b"", 9) == []


def test_damaged_records_that_nothing_points_to_do_not_hold_their_segment() -> None:
    world = _filled()
    _flip(world, 0, 300)
    assert _repairs(world, Peer(*PUTS)) == 1
    world.store.checkpoint()
    facts = world.store.segment_facts(1)
    report = world.store.compact(1, tuple(one.number for one in facts), pace=lambda _: None, on_damage=lambda *_: None)
    assert report.kept_back == ()
    (model,) = world.models
    model.order += 1
    model.blobs[blob_id(0)[12:]] = replace(model.blobs[blob_id(0)[12:]], order=model.order)
    for n in range(24):
        assert _answer(world, n) == model.get(GetRequest(blob_id(n), 0, WHOLE))
    world.crash()
    world.open()
    world.discard_index()
    world.open()
    for n in range(24):
        assert _answer(world, n) == model.get(GetRequest(blob_id(n), 0, WHOLE))


def test_an_index_made_anew_never_leads_to_wrong_bytes() -> None:
    world = _filled()
    _flip(world, 5, 300)
    _work(world)
    world.crash()
    world.discard_index()
    world.open()
    # The hole is found again where it was.
    assert _answer(world, 5) in {CorruptRecord, NotHere}
    assert _repairs(world, Peer(*PUTS)) == 1
    assert _answer(world, 5) == world.models[0].get(GetRequest(blob_id(5), 0, WHOLE))


def test_an_index_made_anew_prefers_the_repaired_bytes_to_the_damaged_ones() -> None:
    world = _filled()
    _flip(world, 5, 300)
    assert _repairs(world, Peer(*PUTS)) == 1
    world.crash()
    world.discard_index()
    world.open()
    assert world.report.index_rebuilt
    assert _answer(world, 5) == world.models[0].get(GetRequest(blob_id(5), 0, WHOLE))
    world.check_accounts()


def test_a_repair_that_the_index_forgot_is_redone() -> None:
    """Whichever part of damage and repair the index knows of: the good bytes are found, and nobody waits for them."""
    world = _filled()
    _flip(world, 5, 300)
    segment, _ = _place(world, 5)
    segment.file.sync()
    assert _repairs(world, Peer(*PUTS)) == 1
    states = world.source.index.crash_states()
    assert len(states) >= 3
    for index in states:
        left = world.left_with(world.disk, index)
        left.open()
        assert _answer(left, 5) == world.models[0].get(GetRequest(blob_id(5), 0, WHOLE))
        assert holes(left.store, b"", 9) == []
        left.check_accounts()


def test_a_death_that_the_index_forgot_takes_the_blob_from_the_repair_queue() -> None:
    world = _filled()
    _flip(world, 5, 300)
    _work(world)
    world.store.commit([update(blob_id(5), Change.DELETE)])
    for index in world.source.index.crash_states():
        left = world.left_with(world.disk, index)
        left.open()
        assert holes(left.store, b"", 9) == []


@pytest.mark.parametrize("at", [1606, 1614])
def test_a_right_body_beside_a_damaged_vector_or_padding_is_written_anew(at: int) -> None:
    world = _filled()
    _flip(world, 5, at)
    upkeep = _work(world)
    assert upkeep.figures.damages == 1
    assert upkeep.figures.quarantined == 0
    assert holes(world.store, b"", 9) == []
    expected = world.models[0].get(GetRequest(blob_id(5), 0, WHOLE))
    assert _answer(world, 5) == expected
    world.clock.advance(8 * DAY_MS)
    world.crash()
    world.discard_index()
    world.open()
    _work(world)
    assert _answer(world, 5) == expected


def _change_record(world: World, number: int) -> tuple[Segment, int]:
    """Where the record of a blob's newest change is."""
    entry = world._entry(blob_id(number)[12:])
    assert entry is not None
    for segment in world.store.replicas[0].segments.values():
        for found in scan(segment):
            if isinstance(found, ScannedRecord) and found.header.lsn == entry.lsn:
                return segment, found.offset
    raise AssertionError("no record has the newest change")


@pytest.mark.parametrize("change", [Change.DELETE, Change.EXTEND])
def test_a_state_whose_record_is_damaged_is_written_again_before_the_index_is_lost(change: Change) -> None:
    world = World(SETTINGS)
    world.open()
    world.commit([put(blob_id(n), body_of(n, 1500), expires_at_ms=NEVER // 2) for n in range(3)])
    world.commit([update(blob_id(1), change, BlobState(0, NEVER), time_ms=world.clock.now_ms())])
    # And one that was deleted before its put came, of which nothing but the record of its death is there.
    world.commit([update(blob_id(2, partition=2), Change.JOIN, BlobState(1, 0), time_ms=world.clock.now_ms())])
    world.store.checkpoint()
    entry = world._entry(blob_id(1)[12:])
    assert entry is not None
    segment, offset = _change_record(world, 1)
    other = world.store.replicas[1].segments[1]
    for file, at in ((segment.file, offset), (other.file, DATA_OFFSET)):
        file.pwrite([bytes([file.pread(1, at)[0] ^ 4])], at)
        file.sync()
    upkeep = _work(world)
    assert upkeep.figures.damages == 2
    renewed = world._entry(blob_id(1)[12:])
    assert renewed is not None
    assert renewed.lsn > entry.lsn
    # The clock of retention is not wound back, and the next look does not write it all again.
    assert replace(renewed, lsn=entry.lsn) == entry
    world.clock.advance(SETTINGS.scrub_interval_ms)
    for _ in range(100):
        if not upkeep.step():
            break
    assert world._entry(blob_id(1)[12:]) == renewed
    assert upkeep.figures.damages == 4
    # What compaction does not take is not read at every look, either.
    assert not upkeep.step()
    assert upkeep.figures.damages == 4
    for loses in (False, True):
        world.crash()
        if loses:
            world.discard_index()
        world.open()
        assert world._entry(blob_id(1)[12:]) == renewed
        dead = world._entry(blob_id(2, partition=2)[12:])
        assert dead is not None
        assert dead.life == 1
        world.check_accounts()


def test_scrub_writes_damaged_headers_and_small_files_anew() -> None:
    world = _filled()
    assert _work(world).figures.damages == 0
    paths = ["disk.meta", "partitions/1/replica.meta", "partitions/2/replica.meta", "journal", segment_path(1, 2)]
    good = {path: world.disk.read(path) for path in paths}
    for path in paths:
        file = world.disk.open(path)
        file.pwrite([bytes([good[path][5] ^ 1])], 5)
        file.sync()
    world.clock.advance(SETTINGS.scrub_interval_ms)
    # The cuts of metadata are by name: disk.meta and journal are met with whichever segment is first.
    assert _work(world).figures.damages == len(paths)
    assert {path: world.disk.read(path) for path in paths} == good
    world.crash()
    world.open()
    world.check()


def test_scrub_finds_a_damaged_checkpoint_and_makes_another() -> None:
    world = _filled()
    _work(world)
    generation = world.store._generation
    file = world.disk.open("journal")
    file.pwrite([b"?"], SLOTS_AT + generation % 2 * SLOT_BYTES)
    file.sync()
    world.clock.advance(SETTINGS.scrub_interval_ms)
    assert _work(world).figures.damages == 1
    assert world.store._generation == generation + 1
    world.crash()
    world.open()
    world.check()


def test_damage_in_the_middle_of_the_journal_is_refused_and_not_taken_for_its_end() -> None:
    world = World(SETTINGS)
    world.open()
    start = world.store._journal.position
    world.commit(PUTS[:2])
    middle = world.store._journal.position
    world.commit(PUTS[2:4])
    world.commit(PUTS[4:6])
    for at in (start + 8, middle + 100):
        left = world.left_with(world.disk, world.source.index.crash_states()[0])
        file = left.disk.open("journal")
        file.pwrite([bytes([file.pread(1, at)[0] ^ 1])], at)
        file.sync()
        for _ in range(2):
            with pytest.raises(DirectoryUnusable, match="journal is damaged"):
                left.open()
