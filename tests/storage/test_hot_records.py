"""Hot records: good under the entry they were read under and no other, and never more than they may be."""

from hypothesis import given
from hypothesis import strategies as st

from ambry.blob.requests import Change, GetAnswer, GetRequest
from ambry.blob.state import LIVE_FOR_EVER, NEVER, BlobState
from ambry.errors import BlobDeleted
from ambry.limits import CHECKSUM_BLOCK_BYTES
from ambry.storage.hot_records import HotRecords
from tests.storage.engine import WHOLE, World, answer_of, blob_id, body_of, put, update


def _answer(size: int) -> GetAnswer:
    return GetAnswer(LIVE_FOR_EVER, 1, b"", size, 0, 0, bytes(size))


def test_a_record_is_good_only_under_its_entry() -> None:
    hot = HotRecords(1 << 20)
    answer = _answer(10)
    hot.add(b"id", b"entry", answer)
    assert hot.get(b"id", b"entry") is answer
    assert hot.get(b"id", b"other") is None
    assert hot.get(b"no", b"entry") is None


def test_bodies_of_more_than_a_block_are_not_kept() -> None:
    hot = HotRecords(1 << 30)
    hot.add(b"id", b"entry", _answer(CHECKSUM_BLOCK_BYTES + 1))
    assert hot.get(b"id", b"entry") is None


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 4000)), max_size=200))
def test_the_bytes_kept_are_bounded_and_what_is_used_stays(uses: list[tuple[int, int]]) -> None:
    bytes_max = 40_000
    hot = HotRecords(bytes_max)
    for number, size in uses:
        identity = number.to_bytes(2, "big")
        if hot.get(identity, b"entry") is None:
            hot.add(identity, b"entry", _answer(size))
        kept = [one for n in range(51) if (one := _peek(hot, n.to_bytes(2, "big"))) is not None]
        assert sum(one.body_size for one in kept) <= bytes_max + 2 * 4000
        assert kept


def _peek(hot: HotRecords, identity: bytes) -> GetAnswer | None:
    kept = hot._young.get(identity) or hot._old.get(identity)
    return kept[1] if kept is not None else None


def test_a_hot_blob_is_gone_as_soon_as_it_is_deleted_and_back_when_it_is_undeleted() -> None:
    world = World()
    world.open()
    world.commit([put(blob_id(1), body_of(1, 500))])
    request = GetRequest(blob_id(1), 0, WHOLE)
    for _ in range(3):
        world.check()
    hot = world.store.get_now(request)
    assert hot is not None
    assert world.store.get_now(request) is hot
    world.commit([update(blob_id(1), Change.DELETE)])
    assert answer_of(lambda: world.store.get_now(request)) is BlobDeleted
    world.check()
    world.commit([update(blob_id(1), Change.UNDELETE)])
    again = world.store.get_now(request)
    assert again is not None
    assert again.state == BlobState(2, NEVER)
    world.check()
