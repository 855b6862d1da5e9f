"""A file that threads write a download into: its space first, its bytes where they belong."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ambry.client.landing import Landing, reserve
from ambry.limits import KIB, MIB


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    """A new file."""
    number = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield number
    os.close(number)


def test_reserved_space_is_the_files_and_reads_as_zeros(descriptor: int) -> None:
    reserve(descriptor, 4 * MIB)
    found = os.fstat(descriptor)
    if not found.st_size:
        pytest.skip("this file system reserves nothing")
    assert found.st_size == 4 * MIB
    assert found.st_blocks * 512 >= 4 * MIB
    assert os.pread(descriptor, 4 * MIB, 0) == bytes(4 * MIB)


def test_nothing_is_reserved_for_an_empty_file(descriptor: int) -> None:
    reserve(descriptor, 0)
    assert os.fstat(descriptor).st_size == 0


def test_pieces_of_several_threads_land_where_they_belong(descriptor: int) -> None:
    landing = Landing(descriptor, Path("file"))
    reserve(descriptor, 8 * MIB)

    def work(first: int) -> None:
        for at in range(first * 64 * KIB, 8 * MIB, 4 * 64 * KIB):
            landing.write(memoryview(bytes([at >> 16]) * 64 * KIB), at)
        landing.push(0, 8 * MIB)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert os.pread(descriptor, 8 * MIB, 0) == b"".join(bytes([number]) * 64 * KIB for number in range(128))
    assert os.fstat(descriptor).st_size == 8 * MIB


def test_a_push_of_a_file_that_is_gone_is_left_to_the_sync_to_tell(tmp_path: Path) -> None:
    number = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.close(number)
    Landing(number, tmp_path / "file").push(0, MIB)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fsync(number)


def test_a_disk_that_becomes_full_is_told_with_the_name_of_the_file(tmp_path: Path) -> None:
    number = os.open("/dev/full", os.O_RDWR)
    try:
        with pytest.raises(OSError, match="No space left on device") as caught:
            Landing(number, tmp_path / "file").write(memoryview(b"x"), 0)
        assert caught.value.filename == str(tmp_path / "file")
    finally:
        os.close(number)


def test_nothing_is_written_after_the_end(descriptor: int) -> None:
    landing = Landing(descriptor, Path("file"))
    landing.end()
    with pytest.raises(OSError, match="Bad file descriptor"):
        landing.write(memoryview(b"x"), 0)
    assert os.fstat(descriptor).st_size == 0
