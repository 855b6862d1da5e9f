"""More files than descriptors: every byte is read and written all the same, and nothing that matters is given up."""

import errno
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ambry.errors import DiskUnavailable
from ambry.storage.open_files import Descriptor, OpenFiles
from ambry.storage.real_disk import RealDisk


def disk_of(path: Path, files_max: int) -> RealDisk:
    disk = RealDisk(path)
    disk._files = OpenFiles(files_max)
    return disk


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_hundred_files_share_ten_descriptors(tmp_path: Path) -> None:
    disk = disk_of(tmp_path, 10)
    before = open_descriptors()
    files = []
    for number in range(100):
        file = disk.create(f"{number}.log")
        file.pwrite([b"file %d" % number], 0)
        file.sync()
        files.append(file)
        assert disk._files.count <= 10
    assert open_descriptors() <= before + 11
    chance = random.Random(1)
    for _ in range(500):
        number = chance.randrange(100)
        assert files[number].pread(100, 0) == b"file %d" % number
        assert files[number].pread_now(6, 0) == (b"file %d" % number)[:6]
    for file in files:
        file.close()
    assert open_descriptors() == before


def test_a_file_that_is_not_open_declines_a_read_that_may_not_block(tmp_path: Path) -> None:
    disk = disk_of(tmp_path, 1)
    first, second = disk.create("1.log"), disk.create("2.log")
    for file in (first, second):
        file.pwrite([b"bytes"], 0)
        file.sync()
    # Each use of one takes the only descriptor from the other.
    assert second.pread(5, 0) == b"bytes"
    assert first.pread_now(5, 0) is None
    assert first.pread(5, 0) == b"bytes"
    assert first.pread_now(5, 0) == b"bytes"
    assert second.pread_now(5, 0) is None


def test_a_file_with_unsynced_bytes_keeps_its_descriptor(tmp_path: Path) -> None:
    """Only the descriptor that wrote is sure to hear of a failed write."""
    disk = disk_of(tmp_path, 2)
    written = disk.create("written.log")
    written.pwrite([b"not synced"], 0)
    others = [disk.create(f"{number}.log") for number in range(20)]
    assert written.pread_now(10, 0) == b"not synced"
    written.sync()
    for file in others:
        file.pread(1, 0)
    assert written.pread_now(10, 0) is None
    assert written.pread(10, 0) == b"not synced"


def test_a_file_that_is_kept_open_never_gives_its_descriptor_up(tmp_path: Path) -> None:
    disk = disk_of(tmp_path, 2)
    kept = disk.create("kept")
    kept.keep_open()
    kept.pwrite([b"synced"], 0)
    kept.sync()
    others = [disk.create(f"{number}.log") for number in range(20)]
    for file in others:
        file.pread(1, 0)
    while disk._files.give_up(16):
        pass
    assert kept.pread_now(6, 0) == b"synced"
    assert others[-1].pread_now(1, 0) is None


def test_a_closed_file_is_not_opened_again(tmp_path: Path) -> None:
    file = disk_of(tmp_path, 2).create("1.log")
    file.close()
    file.close()
    with pytest.raises(DiskUnavailable, match="closed"):
        file.pread(1, 0)
    with pytest.raises(DiskUnavailable):
        file.sync()


def test_a_file_that_is_closed_beside_a_read_is_read_to_its_end_and_then_gives_its_space_back(tmp_path: Path) -> None:
    pool = OpenFiles(2)
    path = tmp_path / "1.log"
    path.write_bytes(b"bytes")
    before = open_descriptors()
    file = Descriptor(pool, str(path), os.open(path, os.O_RDWR))
    number = file.take()
    with file.used() as same:
        assert same == number
        file.close()
        path.unlink()
        other = os.open("/dev/null", os.O_RDONLY)
        assert other != number, "the number must not be another file's while it is read"
        os.close(other)
        assert os.pread(number, 5, 0) == b"bytes"
        for take in (file.take, file.take_now):
            with pytest.raises(DiskUnavailable, match="closed"):
                take()
        assert not file.give_up()
    assert open_descriptors() == before + 1
    file.leave()
    assert open_descriptors() == before
    assert pool.count == 0
    file.close()


def test_a_file_that_was_removed_says_that_it_cannot_be_opened(tmp_path: Path) -> None:
    disk = disk_of(tmp_path, 1)
    file = disk.create("1.log")
    disk.create("2.log").size()
    disk.create("3.log").size()
    disk.remove("1.log")
    with pytest.raises(DiskUnavailable, match="cannot be opened again"):
        file.pread(1, 0)


def test_threads_that_share_too_few_descriptors_read_what_they_asked_for(tmp_path: Path) -> None:
    disk = disk_of(tmp_path, 3)
    files = []
    for number in range(12):
        file = disk.create(f"{number}.log")
        file.pwrite([bytes([number]) * 4096], 0)
        file.sync()
        files.append(file)
    wrong: list[int] = []

    def read(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(400):
            number = chance.randrange(12)
            data = files[number].pread_now(4096, 0) or files[number].pread(4096, 0)
            if data != bytes([number]) * 4096:
                wrong.append(number)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


_STARVED = """
import os, resource, sys
from ambry.storage.real_disk import RealDisk
disk = RealDisk(sys.argv[1])
files = []
for number in range(40):
    file = disk.create(f"{number}.log")
    file.pwrite([b"%d" % number], 0)
    file.sync()
    files.append(file)
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 2, hard))
# Somebody else takes the rest.
others = []
try:
    while True:
        others.append(os.open("/dev/null", os.O_RDONLY))
except OSError as error:
    print(error.errno)
for number in range(40, 80):
    file = disk.create(f"{number}.log")
    file.pwrite([b"%d" % number], 0)
    file.sync()
    files.append(file)
disk.replace("small", b"whole")
assert disk.read("small") == b"whole"
for number, file in enumerate(files):
    assert file.pread(9, 0) == b"%d" % number
print("fine")
"""


def test_a_process_without_descriptors_gives_some_of_its_own_up(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _STARVED, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split() == [str(errno.EMFILE), "fine"], done.stderr


_STARVED_BY_ANOTHER_DISK = """
import os, resource, sys
from ambry.storage.real_disk import RealDisk
from ambry.errors import DiskUnavailable
first, second = RealDisk(sys.argv[1] + "/a"), RealDisk(sys.argv[1] + "/b")
second.replace("small", b"whole")
files = [first.create(f"{number}.log") for number in range(40)]
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

def starve():
    try:
        while True:
            others.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass

others = []
resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 2, hard))
starve()
assert second.read("small") == b"whole"
starve()
assert second.names("") == ["small"]
starve()
mine = [second.create(f"{number}.log") for number in range(20)]
for file in (*files, *mine):
    file.size()
# Nothing can be given up any more: what is there is not taken for gone.
while True:
    starve()
    if not first._files.give_up(40) and not second._files.give_up(40):
        break
for look in (lambda: second.read("small"), lambda: second.names("")):
    try:
        look()
    except DiskUnavailable as error:
        assert error.facts["errno"] == "EMFILE"
    else:
        raise AssertionError("it found a descriptor")
print("fine")
"""


def test_a_disk_takes_descriptors_of_another_one_and_says_when_there_are_none(
    tmp_path: Path,
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    done = subprocess.run(
        [sys.executable, "-c", _STARVED_BY_ANOTHER_DISK, str(tmp_path)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["fine"], done.stderr


_NOTHING_LEFT = """
import errno, os, resource, sys
from ambry.storage.open_files import Descriptor, OpenFiles
path = sys.argv[1]
pool = OpenFiles(4)
busy = Descriptor(pool, path, pool.open(path, os.O_RDWR))
with busy.used():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 2, hard))
    others = []
    try:
        while True:
            others.append(os.open(path, os.O_RDONLY))
    except OSError:
        pass
    try:
        pool.open(path, os.O_RDONLY)
    except OSError as error:
        print(errno.errorcode[error.errno])
"""


def test_without_anything_to_give_up_the_error_says_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    done = subprocess.run(
        [sys.executable, "-c", _NOTHING_LEFT, str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split() == ["EMFILE"], done.stderr
