"""What a survey says of a segment is what its records and the index say, one by one, at any time."""

import dataclasses
import random

import pytest

from ambry.blob.blob_id import BINARY_SIZE
from ambry.blob.requests import Change
from ambry.blob.state import NEVER, BlobState
from ambry.storage.compaction_plan import Fate, fate_of
from ambry.storage.index_entry import HAS_BODY, Entry, Place, blob_key, decode_entry, encode_entry, lives_for_ever_at
from ambry.storage.record import RecordKind, record_size
from ambry.storage.segment import ScannedRecord, Segment, scan
from tests.storage.engine import World, blob_id, body_of, put, update

DAY_MS = 86_400_000


def _one_by_one(world: World, segment: Segment, now_ms: int) -> tuple[int, int, int]:
    """(bytes that compaction would keep, of these those of tombstones, when the first of it need not stay any more)."""
    kept = tombstones = 0
    next_ms = NEVER
    retention = world.store.retention
    for found in scan(segment):
        assert isinstance(found, ScannedRecord)
        value = world.store.index.get(blob_key(found.key))
        entry = decode_entry(value) if value is not None else None
        place = Place(segment.number, found.offset)
        fate = fate_of(found.header, place, entry, now_ms, retention)
        if fate is Fate.KEEP:
            assert entry is not None
            kept += found.header.record_size
            tombstones += found.header.record_size if found.header.kind is RecordKind.TOMBSTONE else 0
            for ends_ms in (entry.expires_at_ms + retention.expired_ms, entry.time_ms + retention.deleted_ms):
                if fate_of(found.header, place, entry, ends_ms, retention) is not Fate.KEEP:
                    next_ms = min(next_ms, ends_ms)
        elif fate is Fate.BURY:
            kept += record_size(BINARY_SIZE, 0, 0)
            tombstones += record_size(BINARY_SIZE, 0, 0)
    return kept, tombstones, next_ms


@pytest.mark.parametrize("seed", range(6))
def test_a_survey_finds_what_has_to_stay_and_when_that_will_be_less(seed: int) -> None:
    chance = random.Random(seed)
    world = World(seed=seed)
    world.open()
    for first in range(0, 120, 12):
        now_ms = world.clock.now_ms()
        numbers = range(first, first + 12)
        ends = [NEVER if chance.random() < 0.6 else now_ms + chance.randrange(1, 20) * DAY_MS for _ in numbers]
        world.commit(
            [
                put(blob_id(n), body_of(n, chance.choice((0, 40, 900, 3_000))), expires_at_ms=end)
                for n, end in zip(numbers, ends, strict=True)
            ]
        )
        known = range(first + 12)
        for change, count in ((Change.DELETE, 5), (Change.UNDELETE, 2)):
            some = [update(blob_id(n), change, time_ms=now_ms) for n in chance.sample(known, count)]
            for one in some:
                world.store.commit([one])
        never = BlobState(0, NEVER)
        world.store.commit([update(blob_id(n), Change.EXTEND, never, time_ms=now_ms) for n in chance.sample(known, 2)])
        world.clock.advance(DAY_MS // 2)
    world.store.checkpoint()
    replica = world.store.replica(1)
    exact = 0
    for _ in range(12):
        for number, segment in sorted(replica.segments.items()):
            survey = world.store.survey(1, number, pace=lambda _: None)
            kept, tombstones, next_ms = _one_by_one(world, segment, world.clock.now_ms())
            assert (survey.kept_bytes, survey.tombstone_bytes) == (kept, tombstones)
            assert survey.next_ms <= next_ms, "nothing becomes garbage unnoticed"
            exact += survey.next_ms == next_ms < NEVER
        world.clock.advance(3 * DAY_MS)
    assert exact > 20, "and nobody looks before there is a reason"


def test_the_short_look_at_an_entry_says_what_the_entry_says() -> None:
    entry = Entry(HAS_BODY, 7, 4096, 512, 104, 300, 0, NEVER, 9, 5, 3, bytes(12))
    assert lives_for_ever_at(encode_entry(entry), 7, 4096)
    assert not lives_for_ever_at(None, 7, 4096)
    assert not lives_for_ever_at(encode_entry(entry)[:-1], 7, 4096)
    assert not lives_for_ever_at(b"\x02" + encode_entry(entry)[1:], 7, 4096), "of another version"
    for other in (
        dataclasses.replace(entry, flags=0),
        dataclasses.replace(entry, segment=8),
        dataclasses.replace(entry, offset=4104),
        dataclasses.replace(entry, life=1),
        dataclasses.replace(entry, life=2),
        dataclasses.replace(entry, expires_at_ms=NEVER - 1),
        dataclasses.replace(entry, expires_at_ms=0),
    ):
        assert not lives_for_ever_at(encode_entry(other), 7, 4096), other
    chance = random.Random(3)
    for _ in range(2000):
        other = dataclasses.replace(
            entry,
            flags=chance.choice((0, HAS_BODY)),
            segment=chance.choice((7, 8)),
            offset=chance.choice((4096, 0)),
            life=chance.choice((0, 1, 2, 3)),
            expires_at_ms=chance.choice((NEVER, 0, 5)),
            lsn=chance.randrange(1, 1 << 60),
            root=chance.randrange(1 << 64),
        )
        expected = other.has_body and other.place == Place(7, 4096) and other.state == BlobState(0, NEVER)
        assert lives_for_ever_at(encode_entry(other), 7, 4096) == expected
