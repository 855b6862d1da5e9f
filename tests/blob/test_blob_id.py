"""Blob ids: bytes and text, both ways; one blob has one name; a wrong name is BadBlobId and nothing else."""

import base64
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambry.blob import blob_id
from ambry.blob.blob_id import BlobId, Kind
from ambry.errors import BadBlobId

IDS = st.builds(
    BlobId,
    kind=st.sampled_from(Kind),
    datacentre=st.integers(0, 2**16 - 1),
    account=st.integers(0, 2**32 - 1),
    container=st.integers(0, 2**32 - 1),
    partition=st.integers(0, 2**32 - 1),
    unique=st.binary(min_size=16, max_size=16),
)
ALPHABET = string.ascii_letters + string.digits + "-_"

GOOD = BlobId(Kind.SIMPLE, 1, 2, 3, 4, blob_id.new_unique(1_700_000_000_000, bytes(range(10))))


@given(IDS)
def test_an_id_survives_its_bytes_and_its_text(one: BlobId) -> None:
    assert blob_id.parse_binary(one.binary()) == one
    assert blob_id.parse_text(one.text()) == one
    assert blob_id.binary_from_text(one.text().encode()) == one.binary()
    assert blob_id.text_from_binary(one.binary()) == one.text() == str(one)


@given(IDS)
def test_the_text_is_base64url_without_padding(one: BlobId) -> None:
    assert one.text() == base64.urlsafe_b64encode(one.binary()).decode().rstrip("=")
    assert len(one.text()) == blob_id.TEXT_SIZE
    assert set(one.text()) <= set(ALPHABET)


@given(st.integers(0, 2**48 - 1), st.binary(min_size=10, max_size=10))
def test_the_time_of_the_put_can_be_read_from_the_id(now_ms: int, random_10: bytes) -> None:
    one = BlobId(Kind.CHUNK, 1, 1, 1, 1, blob_id.new_unique(now_ms, random_10))
    assert one.created_ms == now_ms
    assert one.unique[6:] == random_10


@given(st.lists(st.integers(0, 2**48 - 1), min_size=2, max_size=20))
def test_ids_of_one_partition_sort_by_time(times_ms: list[int]) -> None:
    ids = [BlobId(Kind.SIMPLE, 1, 2, 3, 4, blob_id.new_unique(now_ms, bytes(10))).binary() for now_ms in times_ms]
    assert sorted(ids) == [one for _, one in sorted(zip(times_ms, ids, strict=True))]


def test_only_one_text_of_the_four_that_base64_allows_is_a_name() -> None:
    text = GOOD.text()
    last = ALPHABET.replace("-_", "") + "-_"
    order = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"
    value = order.index(text[-1])
    assert value % 4 == 0, "two spare bits are zero"
    assert len(last) == 64
    for spare in (1, 2, 3):
        with pytest.raises(BadBlobId, match="canonical"):
            blob_id.parse_text(text[:-1] + order[value + spare])


def test_each_character_is_of_the_alphabet() -> None:
    text = GOOD.text()
    for at in range(blob_id.TEXT_SIZE):
        for wrong in [chr(code) for code in range(256) if chr(code) not in ALPHABET]:
            with pytest.raises(BadBlobId):
                blob_id.parse_text(text[:at] + wrong + text[at + 1 :])


def test_every_length_but_the_right_one_is_refused() -> None:
    for size in [*range(blob_id.TEXT_SIZE), *range(blob_id.TEXT_SIZE + 1, 100)]:
        with pytest.raises(BadBlobId, match="43 characters"):
            blob_id.parse_text((GOOD.text() * 3)[:size])
    for size in [*range(blob_id.BINARY_SIZE), *range(blob_id.BINARY_SIZE + 1, 70)]:
        with pytest.raises(BadBlobId, match="32 bytes"):
            blob_id.parse_binary((GOOD.binary() * 3)[:size])


def test_every_other_version_and_kind_is_refused() -> None:
    data = GOOD.binary()
    for value in range(256):
        if value != blob_id.VERSION:
            with pytest.raises(BadBlobId, match=f"version {value}"):
                blob_id.parse_binary(bytes([value]) + data[1:])
        if value not in list(Kind):
            with pytest.raises(BadBlobId, match=f"kind {value}"):
                blob_id.parse_binary(data[:1] + bytes([value]) + data[2:])


@given(st.text(max_size=60) | st.text(ALPHABET, min_size=43, max_size=43))
def test_any_text_is_an_id_or_bad_blob_id(text: str) -> None:
    try:
        one = blob_id.parse_text(text)
    except BadBlobId as error:
        assert error.facts["field"] == "blob id"
    else:
        assert one.text() == text


@given(st.binary(max_size=40) | st.binary(min_size=32, max_size=32))
def test_any_bytes_are_an_id_or_bad_blob_id(data: bytes) -> None:
    try:
        one = blob_id.parse_binary(data)
    except BadBlobId:
        assert len(data) != blob_id.BINARY_SIZE or data[0] != blob_id.VERSION or data[1] not in list(Kind)
    else:
        assert one.binary() == data
