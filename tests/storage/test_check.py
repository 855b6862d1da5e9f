"""A check names exactly what is damaged, offline and beside a store in use; quick and thorough scans see the same."""

import random
from collections.abc import Iterable

import pytest

from ambry.blob.blob_id import text_from_binary
from ambry.blob.requests import Change
from ambry.errors import DiskUnavailable
from ambry.storage.accounts import USE_SIZE, segment_key
from ambry.storage.index_entry import (
    Entry,
    Place,
    blob_key,
    change_key,
    encode_entry,
    end_lsn_key,
    repair_key,
)
from ambry.storage.journal import SLOT_BYTES, SLOTS_AT
from ambry.storage.plain_scan import PlainRecord, plain_pages, readable_pages
from ambry.storage.rebuild import CheckReport, check_disk, check_store
from ambry.storage.record import decode_header, header_of
from ambry.storage.replica_meta import DISK_META_PATH, replica_meta_path
from ambry.storage.segment import DATA_OFFSET, Damage, ScannedRecord, Segment, scan, segment_path
from tests.storage.engine import World, blob_id, body_of, put, update


def _filled(count: int = 24) -> World:
    world = World()
    world.open()
    for first in range(0, count, 4):
        world.commit(
            [put(blob_id(n), body_of(n, 1500 + n), properties=b"p" * (n % 9)) for n in range(first, first + 4)]
        )
    world.commit([update(blob_id(n), Change.DELETE, time_ms=world.clock.now_ms()) for n in range(3)])
    world.store.checkpoint()
    return world


def _check(world: World, *, is_quiet: bool = True) -> CheckReport:
    return check_store(world.store, world.clock, is_quiet=is_quiet)


def _flip(segment: Segment, at: int, bit: int) -> None:
    byte = segment.file.pread(1, at)[0]
    segment.file.pwrite([bytes([byte ^ 1 << bit])], at)


Seen = list[tuple[int, bytes, int, int, int] | tuple[int, int]]


def _seen(segment: Segment, found: Damage | ScannedRecord) -> tuple[int, bytes, int, int, int] | tuple[int, int]:
    if isinstance(found, Damage):
        return found.offset, found.size
    header = found.header
    assert decode_header(segment.pread(72, found.offset), segment.seed_at(found.offset)) == header
    return found.offset, found.key, header.lsn, header.root, header.record_size


def _plainly(segment: Segment, pages: Iterable[list[PlainRecord] | ScannedRecord | Damage]) -> Seen:
    seen: Seen = []
    for found in pages:
        if isinstance(found, list):
            for offset, fields in found:
                header = header_of(fields)
                seen.append((offset, fields[9], header.lsn, header.root, header.record_size))
        else:
            seen.append(_seen(segment, found))
    return seen


def test_the_quick_scan_sees_what_the_thorough_one_sees_whatever_is_flipped() -> None:
    world, chance = _filled(), random.Random(5)
    segment = world.store.replicas[0].segments[1]
    assert [_seen(segment, found) for found in scan(segment)] == _plainly(segment, plain_pages(segment))
    for _ in range(300):
        at, bit = chance.randrange(64, segment.end), chance.randrange(8)
        _flip(segment, at, bit)
        seen = _plainly(segment, plain_pages(segment))
        assert seen == [_seen(segment, found) for found in scan(segment)], (at, bit)
        assert seen == _plainly(segment, plain_pages(segment, 3, 1024)), "as it is with small windows"
        assert any(len(one) == 2 for one in seen), f"bit {bit} of byte {at} was not noticed"
        _flip(segment, at, bit)


def test_where_the_disk_cannot_read_on_every_record_before_it_is_seen_and_the_rest_is_damage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    segment = _filled().store.replicas[0].segments[1]
    whole = _plainly(segment, readable_pages(segment, 64, 4096))
    pread = Segment.pread
    for bad in range(DATA_OFFSET, segment.end, 512):

        def fail(self: Segment, size: int, offset: int, bad: int = bad) -> bytes:
            # As a disk with one bad sector: what comes before it can be read, and nothing that touches it.
            if offset <= bad < offset + size:
                raise DiskUnavailable("read")
            return pread(self, size, offset)

        monkeypatch.setattr(Segment, "pread", fail)
        # Windows of one record: whatever lies before the bad place can be read.
        monkeypatch.setattr("ambry.storage.segment._SCAN_BYTES", 512)
        found = list(readable_pages(segment, 64, 4096))
        monkeypatch.undo()
        assert isinstance(found[-1], Damage)
        assert found[-1].offset + found[-1].size == segment.end
        seen = _plainly(segment, found[:-1])
        assert seen == whole[: len(seen)]
        assert found[-1].offset <= bad
    assert all(isinstance(one, list) for one in readable_pages(segment, 64, 4096)), "and read again, it is whole"


def test_a_store_without_damage_has_no_findings_also_after_compaction_and_expiry() -> None:
    world = _filled()
    expiry_ms = world.clock.now_ms() + 60_000
    world.commit([put(blob_id(n), body_of(n, 900), expires_at_ms=expiry_ms) for n in range(50, 58)])
    world.store.checkpoint()
    report = _check(world)
    assert not report.findings
    assert report.records == 24 + 3 + 8
    assert report.entries == 24 + 8
    world.clock.advance(30 * 86_400_000)
    for _ in range(4):
        world.compact(1, everything=True)
    assert not _check(world).findings
    assert not _check(world, is_quiet=False).findings


def test_each_kind_of_damage_is_named_with_its_place() -> None:
    world = _filled()
    replica = world.store.replicas[0]
    entries = [world._entry(blob_id(n)[12:]) for n in range(24)]
    fifth, sixth, seventh = entries[5], entries[6], entries[7]
    assert fifth is not None
    assert sixth is not None
    assert seventh is not None
    _flip(replica.segments[fifth.segment], fifth.offset + fifth.body_offset + 3, 2)
    index = world.store._index
    index.write([(blob_key(blob_id(6)), None)])
    index.write([(blob_key(blob_id(7)), b"no entry")])
    lost = update(blob_id(900), Change.DELETE)
    index.write([(blob_key(lost.blob_id), encode_entry(sixth))])
    findings = {(one.segment, one.offset): one.what for one in _check(world).findings}
    places = {Place(*place) for place in findings}
    assert "checksum" in findings[fifth.segment, fifth.offset]
    assert "damaged entry" in findings[seventh.segment, seventh.offset]
    assert places >= {fifth.place, sixth.place, seventh.place}
    assert any("totals" in one.what for one in _check(world).findings)
    others = {entry.place for entry in entries if entry is not None} - {fifth.place, sixth.place, seventh.place}
    assert not places & others


def test_damage_has_the_id_of_its_blob_as_clients_write_it_from_the_record_or_from_the_index() -> None:
    world = _filled()
    replica = world.store.replicas[0]
    body, header = world._entry(blob_id(5)[12:]), world._entry(blob_id(9)[12:])
    assert body is not None
    assert header is not None
    _flip(replica.segments[body.segment], body.offset + body.body_offset + 3, 2)
    _flip(replica.segments[header.segment], header.offset + 9, 2)
    found = {one.blob_id: one for one in _check(world).findings}
    assert found.keys() == {text_from_binary(blob_id(5)), text_from_binary(blob_id(9))}
    for entry, number, what in ((body, 5, "body"), (header, 9, "header")):
        one = found[text_from_binary(blob_id(number))]
        assert (one.partition, one.segment, one.offset) == (1, entry.segment, entry.offset)
        assert one.size == entry.record_size
        assert what in one.what


@pytest.mark.parametrize("is_quiet", [True, False])
def test_a_live_blob_whose_bytes_are_in_quarantine_is_a_finding_until_it_is_dead(*, is_quiet: bool) -> None:
    world = _filled()
    replica = world.store.replicas[0]
    for number in (5, 9):
        entry = world._entry(blob_id(number)[12:])
        assert entry is not None
        _flip(replica.segments[entry.segment], entry.offset + entry.body_offset + 3, 2)
        assert world.store.quarantine_blob(blob_id(number))
        _flip(replica.segments[entry.segment], entry.offset + entry.body_offset + 3, 2)
    world.store.index.write([(repair_key(blob_key(blob_id(9))), None)])
    found = {one.blob_id: one.what for one in _check(world, is_quiet=is_quiet).findings}
    assert found.keys() == {text_from_binary(blob_id(5)), text_from_binary(blob_id(9))}
    assert "waits for its repair" in found[text_from_binary(blob_id(5))]
    assert "not in the repair queue" in found[text_from_binary(blob_id(9))]
    world.store.commit([update(blob_id(n), Change.DELETE, time_ms=world.clock.now_ms()) for n in (5, 9)])
    assert _check(world, is_quiet=is_quiet).findings == ()


def _whats(world: World, *, is_quiet: bool = True) -> list[tuple[str, str]]:
    return [(one.blob_id, one.what) for one in _check(world, is_quiet=is_quiet).findings]


def _entry(world: World, number: int) -> Entry:
    entry = world._entry(blob_id(number)[12:])
    assert entry is not None
    return entry


def _write_stopped(world: World, key: bytes, value: bytes) -> None:
    """Change a row while the store is closed; behind an opening, which writes the late rows as themselves."""
    world.close()
    world.open()
    world.close()
    index = world.source.open()
    index.write([(key, value)])
    index.close()
    world.open()


BOTH = pytest.mark.parametrize("is_quiet", [True, False], ids=["quiet", "beside writes"])


@BOTH
def test_a_change_that_the_feed_lacks_or_has_of_another_blob_is_named(*, is_quiet: bool) -> None:
    world = _filled()
    index = world.store.index
    gone, other, dead = (change_key(1, _entry(world, number).lsn) for number in (5, 9, 1))
    index.write([(gone, None), (other, blob_id(7)[16:]), (change_key(1, 1 << 60), blob_id(8)[16:])])
    assert index.get(dead) == blob_id(1)[16:]
    found = _whats(world, is_quiet=is_quiet)
    assert [one for one, what in found if "has no row" in what] == [text_from_binary(blob_id(5))]
    assert [one for one, what in found if "another blob" in what] == [text_from_binary(blob_id(9))]
    assert len(found) == 2, "as many rows as entries: the stray one is one of them"
    index.write([(gone, blob_id(5)[16:]), (other, blob_id(9)[16:])])
    ((one, what),) = _whats(world, is_quiet=is_quiet)
    assert one == text_from_binary(blob_id(8))
    assert str(1 << 60) in what


@BOTH
def test_a_repair_row_of_a_blob_whose_bytes_are_here_is_named(*, is_quiet: bool) -> None:
    world = _filled()
    world.store.index.write([(repair_key(blob_key(blob_id(6))), blob_id(6)[:12] + bytes(8))])
    ((one, what),) = _whats(world, is_quiet=is_quiet)
    assert one == text_from_binary(blob_id(6))
    assert "repair queue" in what


@BOTH
def test_an_end_of_a_replica_before_its_newest_change_is_named(*, is_quiet: bool) -> None:
    world = _filled()
    _write_stopped(world, end_lsn_key(1), (7).to_bytes(8, "little"))
    ((one, what),) = _whats(world, is_quiet=is_quiet)
    assert one == ""
    assert "ends the replica at LSN 7" in what


@BOTH
def test_totals_that_are_not_those_of_the_entries_are_named_with_their_partition(*, is_quiet: bool) -> None:
    world = _filled()
    _write_stopped(world, segment_key(1, 1), bytes(USE_SIZE - 1) + b"\x01")
    report = _check(world, is_quiet=is_quiet)
    assert [(one.partition, one.what) for one in report.findings] == [
        (1, "the totals of the index are not those of its entries")
    ]


@BOTH
@pytest.mark.parametrize(
    ("path", "at"),
    [
        (DISK_META_PATH, 30),
        (replica_meta_path(1), 30),
        (replica_meta_path(2), 5),
        ("journal", 10),
        (segment_path(1, 1), 20),
        (segment_path(1, 2), 63),
    ],
)
def test_damaged_headers_and_small_files_of_an_open_store_are_named_once_and_left_alone(
    path: str, at: int, *, is_quiet: bool
) -> None:
    world = _filled()
    world.commit([put(blob_id(900, partition=2), b"in the other one")])
    file = world.disk.open(path)
    damaged = bytes([file.pread(1, at)[0] ^ 4])
    file.pwrite([damaged], at)
    ((_, what),) = _whats(world, is_quiet=is_quiet)
    assert what.startswith(path)
    assert file.pread(1, at) == damaged


@BOTH
@pytest.mark.parametrize("is_newest", [True, False])
def test_a_damaged_checkpoint_of_an_open_store_is_named(*, is_newest: bool, is_quiet: bool) -> None:
    world = _filled()
    world.store.checkpoint(always=True)
    slot = (world.store._generation + (not is_newest)) % 2
    file = world.disk.open("journal")
    at = SLOTS_AT + slot * SLOT_BYTES + 42
    file.pwrite([bytes([file.pread(1, at)[0] ^ 1])], at)
    ((_, what),) = _whats(world, is_quiet=is_quiet)
    assert what == f"checkpoint slot {slot} of the journal does not have its checksum"


def test_a_damaged_checkpoint_that_the_opening_did_without_is_named_by_the_check_of_a_stopped_disk() -> None:
    world = _filled()
    world.store.checkpoint(always=True)
    world.close()
    slot = world.store._generation % 2
    file = world.disk.open("journal")
    at = SLOTS_AT + slot * SLOT_BYTES + 42
    file.pwrite([bytes([file.pread(1, at)[0] ^ 1])], at)
    whats: list[list[str]] = []
    for _ in range(2):
        report = check_disk(
            world.disk,
            world.source,
            settings=world.settings,
            clock=world.clock,
            random_bytes=world.random.randbytes,
            rebuild=False,
        )
        whats.append([one.what for one in report.findings])
    assert [len(found) for found in whats] == [1, 0]
    assert f"checkpoint slot {slot} of the journal did not have its checksum" in whats[0][0]
