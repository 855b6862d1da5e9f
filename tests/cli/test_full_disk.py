"""A file system that somebody else has filled to the last byte: a datanode on it starts, answers, and comes back."""

import http.client
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from ambry.cli.ports import free_port
from ambry.limits import KIB, MIB
from tests.cli.processes import Ambry, ambry, ask, get, put, write_cluster

DISK_MIB: Final = 160
RESERVE_MIB: Final = 16
BLOBS: Final = 48
BLOB_BYTES: Final = MIB
BACK_SECONDS_MAX: Final = 120.0

STORAGE: Final = f"""
[storage]
segment_bytes = "16 MiB"
journal_bytes = "16 MiB"
reserve_bytes = "{RESERVE_MIB} MiB"
deleted_retention_ms = "0 ms"
compaction_garbage_percent = 20
scrub_bytes_per_s = "1 MiB"
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of DISK_MIB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"not shown on a real file system, only on the simulated one: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _fill(disk: Path, name: str) -> None:
    """Write until not a byte is left."""
    with (disk / name).open("wb", buffering=0) as file, suppress(OSError):
        for size in (MIB, 4 * KIB):
            with suppress(OSError):
                while file.write(bytes(size)):
                    pass
    assert os.statvfs(disk).f_bavail == 0


@contextmanager
def _datanode(folder: Path) -> Iterator[Ambry]:
    with ambry("datanode", "--config", str(folder / "datanode.toml")) as process:
        process.wait_for("ready")
        yield process


def _figure(process: Ambry, name: str) -> float:
    port = process.wait_for("ready")["admin_port"]
    text = ask("GET", f"http://127.0.0.1:{port}/metrics")[2].decode()
    (row,) = [line for line in text.splitlines() if line.startswith(name + "{")]
    return float(row.rsplit(" ", 1)[1])


def _wait_for_writer(url: str) -> None:
    """The frontend dials a datanode that is back within a moment."""
    give_up_at_s = time.monotonic() + 30
    while ask("POST", f"{url}/", b"x")[0] not in {http.client.CREATED, http.client.INSUFFICIENT_STORAGE}:
        assert time.monotonic() < give_up_at_s
        time.sleep(0.1)


def test_a_disk_filled_to_the_last_byte_starts_again_answers_and_takes_puts_once_compaction_has_freed_space(
    tmp_path: Path, disk: Path
) -> None:
    write_cluster(tmp_path, free_port(), str(disk / "data"))
    settings = f'cluster_map = "cluster.toml"\nnode = "node"\nadmin_port = 0\n{STORAGE}'
    (tmp_path / "datanode.toml").write_text(settings)
    (tmp_path / "frontend.toml").write_text('cluster_map = "cluster.toml"\ndatacentre = "here"\nport = 0\n')
    reserve = disk / "data" / "reserve"
    with ambry("frontend", "--config", str(tmp_path / "frontend.toml")) as frontend:
        with _datanode(tmp_path) as process:
            url = f"http://127.0.0.1:{frontend.wait_for('ready')['port']}"
            _wait_for_writer(url)
            blobs = [put(url, bytes([number]) * BLOB_BYTES) for number in range(BLOBS)]
            assert reserve.stat().st_blocks * 512 == RESERVE_MIB * MIB * 3 // 4
            _fill(disk, "others")
            process.end(signal.SIGKILL)
        _fill(disk, "others, again")
        with _datanode(tmp_path) as process:
            _wait_for_writer(url)
            assert ask("POST", f"{url}/", b"x")[0] == http.client.INSUFFICIENT_STORAGE
            for number, blob_id in enumerate(blobs):
                assert get(url, blob_id) == bytes([number]) * BLOB_BYTES
                if number % 4:
                    assert ask("DELETE", f"{url}/{blob_id}")[0] == http.client.ACCEPTED
            process.wait_for("compacted")
            give_up_at_s = time.monotonic() + BACK_SECONDS_MAX
            while (status := ask("POST", f"{url}/", b"x")[0]) != http.client.CREATED:
                assert status == http.client.INSUFFICIENT_STORAGE
                assert time.monotonic() < give_up_at_s, process.errors_so_far
                time.sleep(0.5)
            for number in range(0, BLOBS, 4):
                assert get(url, blobs[number]) == bytes([number]) * BLOB_BYTES
            while _figure(process, "ambry_disk_reserve_bytes") < RESERVE_MIB * MIB * 3 // 4:
                assert time.monotonic() < give_up_at_s
                time.sleep(0.5)
            assert process.end(signal.SIGTERM) == 0
