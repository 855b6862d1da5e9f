"""CRC-32, by whichever library computes it here: that of zlib."""

import random
import subprocess
import sys
import zlib

import pytest

from ambry.blob.crc32 import crc32

SIZES = (0, 1, 7, 16, 255, 256, 4096, 5 * 1024 + 1, 1 << 20)


def test_it_is_that_of_zlib_for_sizes_offsets_and_kinds_of_buffers() -> None:
    data = random.Random(1).randbytes((1 << 20) + 64)
    for size in SIZES:
        for offset in (0, 1, 3, 16):
            piece = memoryview(data)[offset : offset + size]
            assert crc32(piece) == crc32(bytes(piece)) == crc32(bytearray(piece)) == zlib.crc32(piece)


def test_it_goes_on_from_what_came_before() -> None:
    data = random.Random(2).randbytes(100_000)
    for cut in (0, 1, 63, 64, 4096, 99_999, 100_000):
        assert crc32(data[cut:], crc32(data[:cut])) == zlib.crc32(data)
    assert crc32(b"", 7) == 7


@pytest.mark.parametrize("blocked", ["isal", "nothing"])
def test_whoever_has_not_the_faster_one_has_the_same(blocked: str) -> None:
    program = (
        f"import sys; sys.modules['{blocked}'] = None; from ambry.blob.crc32 import crc32; print(crc32(b'123456789'))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) == 0xCBF43926
