"""What the engine relies on, asked of every Disk: the simulated one must not be kinder than the real one."""

import os
import random
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from ambry.errors import DirectoryInUse, DirectoryUnusable, DiskFull, DiskUnavailable
from ambry.storage.disk import Disk, File
from ambry.storage.real_disk import IOV_MAX, TEMPORARY_SUFFIX, RealDisk, _write_rest
from ambry.storage.sim_disk import SimDisk

AnyDisk: TypeAlias = RealDisk | SimDisk


@pytest.fixture(params=["real", "simulated"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> AnyDisk:
    return RealDisk(tmp_path) if request.param == "real" else SimDisk()


@pytest.fixture
def file(disk: AnyDisk) -> Iterator[File]:
    opened = disk.create("file")
    yield opened
    opened.close()


def test_both_are_disks(disk: AnyDisk) -> None:
    seam: Disk = disk
    assert seam.free_bytes() > 0


def test_what_was_written_is_read(file: File) -> None:
    file.pwrite([b"abc", bytearray(b"def"), memoryview(b"ghi"), b""], 5)
    assert file.size() == 14
    assert file.pread(14, 0) == b"\0\0\0\0\0abcdefghi"
    assert file.pread(3, 8) == b"def"


def test_a_write_replaces_what_was_there_and_nothing_else(file: File) -> None:
    file.pwrite([b"0123456789"], 0)
    file.pwrite([b"XY"], 4)
    assert file.pread(100, 0) == b"0123XY6789"


def test_nothing_written_changes_nothing(file: File) -> None:
    file.pwrite([], 100)
    file.pwrite([b""], 100)
    assert file.size() == 0


def test_pread_is_short_only_at_the_end(file: File) -> None:
    file.pwrite([b"x" * 10], 0)
    assert file.pread(20, 4) == b"x" * 6
    assert file.pread(20, 10) == b""
    assert file.pread(20, 1000) == b""
    assert file.pread(0, 3) == b""


def test_pread_now_has_all_bytes_or_none(file: File) -> None:
    content = random.Random(1).randbytes(100_000)
    file.pwrite([content], 0)
    got = file.pread_now(4096, 50_000)
    # A system without RWF_NOWAIT, or a file system that does not know it, always declines.
    assert got is None or bytes(got) == content[50_000:54_096]
    assert file.pread_now(2, 99_999) is None
    assert file.pread_now(1, 200_000) is None


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="this system cannot read without waiting")
def test_pread_now_reads_what_was_just_written(tmp_path: Path) -> None:
    file = RealDisk(tmp_path).create("file")
    file.pwrite([b"a" * 4096, b"b" * 4096], 0)
    got = file.pread_now(4096, 4096)
    file.close()
    assert got is not None and bytes(got) == b"b" * 4096


def test_more_pieces_than_one_system_call_takes(file: File) -> None:
    pieces = [index.to_bytes(3, "big") for index in range(2 * IOV_MAX + 7)]
    file.pwrite(pieces, 11)
    assert file.pread(3 * len(pieces), 11) == b"".join(pieces)


def test_a_large_write_is_whole(file: File) -> None:
    content = random.Random(2).randbytes(5_000_000)
    file.pwrite([content[:1], content[1:4_000_000], content[4_000_000:]], 3)
    assert file.pread(len(content), 3) == content


def test_a_write_that_begins_early_writes_the_same_bytes(file: File) -> None:
    body = bytes(range(256)) * 10_000
    file.write_out([b"head", memoryview(body), b"", b"tail"], 9)
    file.sync()
    assert file.pread(len(body) + 100, 9) == b"head" + body + b"tail"


def test_truncation_cuts_and_extends_with_zeros(file: File) -> None:
    file.pwrite([b"0123456789"], 0)
    file.truncate(4)
    assert file.size() == 4
    file.truncate(8)
    assert file.pread(100, 0) == b"0123\0\0\0\0"


def test_a_reservation_does_not_change_the_size(file: File) -> None:
    file.pwrite([b"abc"], 0)
    file.reserve(0, 1_000_000)
    assert file.size() == 3
    assert file.pread(10, 0) == b"abc"
    file.pwrite([b"d"], 3)
    assert file.pread(10, 0) == b"abcd"


def test_sync_keeps_what_is_read(file: File) -> None:
    file.pwrite([b"abc"], 0)
    file.sync()
    file.sync()
    assert file.pread(10, 0) == b"abc"


def test_a_rename_takes_the_place_of_what_had_the_name(disk: AnyDisk) -> None:
    for name in ("old", "new"):
        file = disk.create(name)
        file.pwrite([name.encode()], 0)
        file.sync()
        file.close()
    disk.rename("new", "old")
    disk.sync_folder("")
    assert disk.names("") == ["old"]
    assert disk.read("old") == b"new"
    with pytest.raises(FileNotFoundError):
        disk.rename("new", "old")


def test_several_files_are_synced_at_once(disk: AnyDisk) -> None:
    files = [disk.create(f"file{number}") for number in range(5)]
    for file in files:
        file.pwrite([b"abc"], 0)
    disk.run_all([])
    disk.run_all([files[0].sync])
    disk.run_all([file.sync for file in files])
    files[2].close()
    with pytest.raises(DiskUnavailable):
        disk.run_all([file.sync for file in files])
    # One that fails does not keep the others from ending.
    done: list[int] = []
    with pytest.raises(DiskUnavailable):
        disk.run_all([lambda: done.append(1), files[2].sync, lambda: done.append(2)])
    assert sorted(done) == [1, 2]
    for file in files:
        file.close()


def test_closing_twice_is_harmless_and_using_a_closed_file_is_an_error(file: File) -> None:
    file.close()
    file.close()
    with pytest.raises(DiskUnavailable):
        file.pread(1, 0)
    with pytest.raises(DiskUnavailable):
        file.pread_now(1, 0)
    with pytest.raises(DiskUnavailable):
        file.pwrite([b"x"], 0)
    with pytest.raises(DiskUnavailable):
        file.sync()


def test_a_missing_file_is_python_s_own_error(disk: AnyDisk) -> None:
    for path in ("missing", "no/such/folder"):
        with pytest.raises(FileNotFoundError):
            disk.open(path)
        with pytest.raises(FileNotFoundError):
            disk.read(path)
    with pytest.raises(FileNotFoundError):
        disk.create("no/such/folder")


def test_create_never_takes_an_existing_file(disk: AnyDisk) -> None:
    disk.create("file").pwrite([b"abc"], 0)
    with pytest.raises(FileExistsError):
        disk.create("file")
    assert disk.read("file") == b"abc"


def test_two_openings_are_one_file(disk: AnyDisk) -> None:
    one = disk.create("file")
    two = disk.open("file")
    one.pwrite([b"abc"], 0)
    assert two.pread(3, 0) == b"abc"


def test_a_removed_file_is_gone_and_an_open_one_reads_on(disk: AnyDisk) -> None:
    file = disk.create("file")
    file.pwrite([b"abc"], 0)
    disk.remove("file")
    disk.remove("file")
    disk.sync_folder("")
    assert file.pread(3, 0) == b"abc"
    assert "file" not in disk.names("")
    with pytest.raises(FileNotFoundError):
        disk.open("file")


def test_replace_puts_the_new_content_in_place(disk: AnyDisk) -> None:
    disk.make_folder("folder")
    disk.replace("folder/file", b"one")
    before = disk.open("folder/file")
    disk.replace("folder/file", b"two, longer")
    assert disk.read("folder/file") == b"two, longer"
    assert before.pread(100, 0) == b"one"
    disk.replace("top", b"")
    assert disk.read("top") == b""


def test_names_are_sorted_and_show_folders_and_nothing_temporary(disk: AnyDisk) -> None:
    disk.make_folder("b/c")
    disk.create("z")
    disk.create("a")
    disk.create("b/file")
    disk.create("b/left" + TEMPORARY_SUFFIX)
    assert disk.names("") == ["a", "b", "z"]
    assert disk.names("b") == ["c", "file"]
    assert disk.names("b/c") == []
    assert disk.names("missing") == []


def test_folders_may_be_made_again(disk: AnyDisk) -> None:
    disk.make_folder("a/b/c")
    disk.make_folder("a/b/c")
    disk.make_folder("a")
    disk.make_folder("")
    disk.create("a/b/c/file")
    assert disk.names("a/b/c") == ["file"]


# --- the real one only -----------------------------------------------------------------------------------------


def test_a_full_real_disk_is_disk_full() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    file = RealDisk("/dev").open("full")
    with pytest.raises(DiskFull) as caught:
        file.pwrite([b"x"], 0)
    file.close()
    assert caught.value.facts["errno"] == "ENOSPC"


def test_a_short_write_goes_on_where_it_stopped(tmp_path: Path) -> None:
    file = RealDisk(tmp_path).create("file")
    file.pwrite([b"abc"], 5)
    with file._used("write to", changes=True) as number:
        _write_rest(number, b"abcdefgh", 3, 5)
    assert file.pread(100, 5) == b"abcdefgh"
    file.close()


def test_a_reservation_is_reserved(tmp_path: Path) -> None:
    file = RealDisk(tmp_path).create("file")
    file.reserve(0, 1_000_000)
    file.close()
    stat = (tmp_path / "file").stat()
    assert stat.st_size == 0
    # Nothing is promised on a file system without fallocate.
    assert stat.st_blocks * 512 in (0, *range(1_000_000, 2_000_000))


def test_a_left_over_temporary_file_does_not_disturb_replace(tmp_path: Path) -> None:
    (tmp_path / ("file" + TEMPORARY_SUFFIX)).write_bytes(b"longer than the new content")
    RealDisk(tmp_path).replace("file", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_missing_folder_or_a_file_cannot_be_a_disk(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for root in (tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(DirectoryUnusable, match=str(root)):
            RealDisk(root)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_cannot_be_a_disk(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(DirectoryUnusable, match="cannot be written"):
            RealDisk(tmp_path)
    finally:
        tmp_path.chmod(0o755)


def test_a_folder_belongs_to_one_at_a_time(tmp_path: Path) -> None:
    first, second = RealDisk(tmp_path), RealDisk(tmp_path)
    first.lock()
    first.lock()
    with pytest.raises(DirectoryInUse, match=str(tmp_path)) as caught:
        second.lock()
    assert caught.value.facts["pid"] == str(os.getpid())
    first.unlock()
    second.lock()
    second.unlock()
    second.unlock()


def test_a_killed_process_gives_its_folder_back(tmp_path: Path) -> None:
    script = """
        import sys
        from ambry.storage.real_disk import RealDisk
        RealDisk(sys.argv[1]).lock()
        print("locked", flush=True)
        sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        with pytest.raises(DirectoryInUse) as caught:
            RealDisk(tmp_path).lock()
        assert caught.value.facts["pid"] == str(process.pid)
        process.kill()
        process.wait()
    disk = RealDisk(tmp_path)
    disk.lock()
    disk.unlock()
