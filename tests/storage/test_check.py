"""A check names exactly what is damaged, offline and beside a store in use; quick and thorough scans see the same."""

import random
from collections.abc import Iterable

import pytest

from ambry.blob.blob_id import text_from_binary
from ambry.blob.requests import Change
from ambry.errors import DiskUnavailable
from ambry.storage.index_entry import Place, blob_key, encode_entry, repair_key
from ambry.storage.plain_scan import PlainRecord, plain_pages, readable_pages
from ambry.storage.rebuild import CheckReport, check_store
from ambry.storage.record import decode_header, header_of
from ambry.storage.segment import DATA_OFFSET, Damage, ScannedRecord, Segment, scan
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
