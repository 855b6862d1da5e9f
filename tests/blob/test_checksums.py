"""The checksum vector: built in pieces or as a whole it is the same, and every flipped bit is seen (guarantee G2)."""

import random
from itertools import pairwise

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from ambry.blob import checksums
from ambry.blob.checksums import VectorBuilder, blocks_match, checksum_vector, root_of, vector_matches, vector_size
from ambry.limits import CHECKSUM_BLOCK_BYTES, CHUNK_BYTES_MAX

EDGES = [
    0,
    1,
    7,
    CHECKSUM_BLOCK_BYTES - 1,
    CHECKSUM_BLOCK_BYTES,
    CHECKSUM_BLOCK_BYTES + 1,
    2 * CHECKSUM_BLOCK_BYTES,
    3 * CHECKSUM_BLOCK_BYTES + 12345,
]


def body_of(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.mark.parametrize("size", EDGES)
def test_the_vector_has_one_xxh3_64_for_every_started_block(size: int) -> None:
    body = body_of(size)
    blocks = [body[at : at + CHECKSUM_BLOCK_BYTES] for at in range(0, size, CHECKSUM_BLOCK_BYTES)]
    vector = checksum_vector(body)
    assert vector == b"".join(xxhash.xxh3_64_intdigest(block).to_bytes(8, "little") for block in blocks)
    assert len(vector) == vector_size(size)
    assert root_of(vector, size) == xxhash.xxh3_64_intdigest(vector, seed=size)
    assert checksum_vector(memoryview(body)) == checksum_vector(bytearray(body)) == vector


def test_known_values_stay_what_they_are() -> None:
    # These numbers are on disks.
    assert checksum_vector(b"") == b""
    assert root_of(b"", 0) == xxhash.xxh3_64_intdigest(b"") == 0x2D06800538D394C2
    assert checksum_vector(b"ambry").hex() == "4e898c27beddd474"


@given(
    st.integers(0, 3 * CHECKSUM_BLOCK_BYTES + 1000) | st.sampled_from(EDGES),
    st.lists(st.integers(0, 2 * CHECKSUM_BLOCK_BYTES), max_size=12),
)
@settings(max_examples=60)
def test_a_vector_built_in_pieces_is_that_of_the_whole(size: int, cuts: list[int]) -> None:
    body = body_of(size)
    builder = VectorBuilder()
    bounds = sorted({0, size, *(cut for cut in cuts if cut < size)})
    for start, stop in pairwise(bounds):
        builder.update(body[start:stop])
        assert builder.finish() == checksum_vector(body[:stop]), "finish may be called in between"
    assert builder.finish() == checksum_vector(body)
    assert builder.size == size


def test_a_vector_built_byte_by_byte_is_that_of_the_whole() -> None:
    body = body_of(CHECKSUM_BLOCK_BYTES + 3)
    builder = VectorBuilder()
    for at in range(len(body)):
        builder.update(memoryview(body)[at : at + 1])
    assert builder.finish() == checksum_vector(body)


def test_every_flipped_bit_of_a_body_is_seen() -> None:
    body = bytearray(body_of(257))
    vector = checksum_vector(body)
    assert blocks_match(body, vector)
    for bit in range(len(body) * 8):
        body[bit // 8] ^= 1 << bit % 8
        assert not blocks_match(body, vector)
        body[bit // 8] ^= 1 << bit % 8


def test_every_flipped_bit_of_a_vector_and_every_other_size_is_seen() -> None:
    size = 4 * CHECKSUM_BLOCK_BYTES - 5
    vector = bytearray(checksum_vector(body_of(size)))
    root = root_of(bytes(vector), size)
    assert vector_matches(bytes(vector), root, size)
    for bit in range(len(vector) * 8):
        vector[bit // 8] ^= 1 << bit % 8
        assert not vector_matches(bytes(vector), root, size)
        vector[bit // 8] ^= 1 << bit % 8
    for wrong_size in (size - 1, size + 1, size - CHECKSUM_BLOCK_BYTES, 0):
        assert not vector_matches(bytes(vector), root, wrong_size)
    assert not vector_matches(bytes(vector[:-8]), root, size - CHECKSUM_BLOCK_BYTES)


@given(st.integers(0, 4), st.integers(0, 5))
@settings(max_examples=40)
def test_blocks_in_the_middle_are_checked_against_their_own_place(first_block: int, count: int) -> None:
    size = 4 * CHECKSUM_BLOCK_BYTES + 777
    body = body_of(size)
    vector = checksum_vector(body)
    blocks = body[first_block * CHECKSUM_BLOCK_BYTES : (first_block + count) * CHECKSUM_BLOCK_BYTES]
    assert blocks_match(blocks, vector, first_block)
    assert blocks_match(memoryview(blocks), memoryview(vector), first_block)
    if blocks:
        other_place = (first_block + 1) % 5
        assert not blocks_match(blocks, vector, other_place)


def test_two_blocks_that_changed_places_are_seen() -> None:
    body = body_of(3 * CHECKSUM_BLOCK_BYTES)
    vector = checksum_vector(body)
    swapped = body[CHECKSUM_BLOCK_BYTES : 2 * CHECKSUM_BLOCK_BYTES] + body[:CHECKSUM_BLOCK_BYTES]
    assert not blocks_match(swapped, vector)


def test_the_size_of_a_vector_follows_from_that_of_its_body() -> None:
    assert [vector_size(size) for size in (0, 1, 65536, 65537, CHUNK_BYTES_MAX)] == [0, 8, 8, 16, 512]
    assert checksums.CHECKSUM_SIZE == 8
