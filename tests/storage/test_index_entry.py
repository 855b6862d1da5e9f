"""What an index entry makes of a blob's records, in whatever order they are read; and what compaction makes of them."""

from itertools import permutations

import pytest

from ambry.blob.state import NEVER
from ambry.storage.compaction_plan import Fate, Retention, fate_of
from ambry.storage.index_entry import Entry, Place, merge
from ambry.storage.record import Header, RecordKind

Record = tuple[Header, Place]

KEY = bytes(range(32))
CHANGE = next(kind for kind in RecordKind if kind is not RecordKind.PUT)
KEPT = Retention(deleted_ms=1000, expired_ms=1000)


def header(kind: RecordKind, lsn: int, life: int, expires_at_ms: int) -> Header:
    """A record of a blob of 100 bytes."""
    size = 100 if kind is RecordKind.PUT else 0
    return Header(kind, 0, lsn, 10 * lsn, expires_at_ms, life, size, 0, len(KEY), 7, 0)


RECORDS = (
    (header(RecordKind.PUT, 1, 0, 5_000), Place(1, 64)),
    # Told by a datacentre that knew of an undelete, before the delete of another one that did not came.
    (header(CHANGE, 2, 2, 5_000), Place(1, 512)),
    (header(CHANGE, 3, 1, 9_000), Place(2, 64)),
)


@pytest.mark.parametrize("order", list(permutations(RECORDS)))
def test_life_and_expiry_are_the_greatest_of_all_records_in_every_order(
    order: tuple[tuple[Header, Place], ...],
) -> None:
    entry: Entry | None = None
    for one, place in order:
        entry = merge(entry, one, KEY, place)
    assert entry is not None
    assert (entry.life, entry.expires_at_ms, entry.lsn) == (2, 9_000, 3)
    assert entry.has_body
    assert entry.place == Place(1, 64), "the body is where it was put"


def test_compaction_keeps_the_record_of_a_blobs_newest_change_beside_its_put() -> None:
    entry: Entry | None = None
    for one, place in RECORDS:
        entry = merge(entry, one, KEY, place)
    fates = [fate_of(one, place, entry, 100, KEPT) for one, place in RECORDS]
    assert fates == [Fate.KEEP, Fate.DROP, Fate.KEEP], "its time is when retention begins"
    assert fate_of(header(CHANGE, 9, 0, NEVER), Place(3, 64), None, 100, KEPT) is Fate.DROP
