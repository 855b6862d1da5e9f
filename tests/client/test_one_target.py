"""Several processes and threads that download to one path: each ends with the file, and nothing is left beside it."""

import fcntl
import os
import subprocess
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ambry.client import Client, transfer
from ambry.errors import DeadlineExceeded
from ambry.limits import MIB
from tests.client.conftest import bytes_of
from tests.client.test_part_transfers import names_in

BASE = "default/default/target"
SIZE = 20 * MIB + 5
PROGRAM = """
import sys
from ambry.client import Client
url, name, path = sys.argv[1:]
with Client(url) as client:
    client.stat(name)
    print("ready", flush=True)
    sys.stdin.readline()
    client.download_file(name, path, part_bytes=1 << 20)
"""


def of_processes(url: str, path: Path, names: list[str]) -> list[int]:
    """Statuses of processes that download to one path at the same time."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, url, name, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for name in names
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
    statuses = [process.wait(60) for process in processes]
    for process in processes:
        process.communicate()
    return statuses


@pytest.mark.parametrize("size", [0, 5, SIZE])
def test_processes_that_load_one_blob_all_have_it(client: Client, url: str, tmp_path: Path, size: int) -> None:
    name = f"{BASE}/one-{size}"
    client.put(bytes_of(size), name)
    for _ in range(3):
        assert of_processes(url, tmp_path / "target", [name] * 3) == [0, 0, 0]
        assert (tmp_path / "target").read_bytes() == bytes_of(size)
        assert names_in(tmp_path) == ["target"]
        (tmp_path / "target").unlink()


def test_processes_that_load_different_blobs_leave_one_of_them(client: Client, url: str, tmp_path: Path) -> None:
    names = [f"{BASE}/different-{seed}" for seed in range(3)]
    for seed, name in enumerate(names):
        client.put(bytes_of(SIZE, seed), name)
    assert of_processes(url, tmp_path / "target", names) == [0, 0, 0]
    assert (tmp_path / "target").read_bytes() in {bytes_of(SIZE, seed) for seed in range(3)}
    assert names_in(tmp_path) == ["target"]


def test_a_thread_that_waited_finds_the_file_and_loads_nothing(client: Client, tmp_path: Path) -> None:
    name = f"{BASE}/waited"
    client.put(bytes_of(SIZE), name)
    begun, may_end = threading.Event(), threading.Event()
    loaded: list[int] = []

    def hold(done: int, total: int) -> None:
        begun.set()
        assert may_end.wait(60)

    def follow(done: int, total: int) -> None:
        loaded.append(done)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(client.download_file, name, tmp_path / "target", progress=hold)
        assert begun.wait(60)
        second = pool.submit(client.download_file, name, tmp_path / "target", progress=follow)
        while not _is_waiting():
            pass
        may_end.set()
        assert first.result(60) == second.result(60)
    # All at once: it was found.
    assert loaded == [SIZE]
    assert names_in(tmp_path) == ["target"]


def test_waiting_for_another_process_ends_with_the_deadline(client: Client, tmp_path: Path) -> None:
    name = f"{BASE}/late"
    client.put(bytes_of(SIZE), name)
    held = os.open(tmp_path / ".target.ambry-part", os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(DeadlineExceeded, match="loads the same file"):
        client.download_file(name, tmp_path / "target", deadline_s=1)
    os.close(held)
    client.download_file(name, tmp_path / "target", deadline_s=60)
    assert (tmp_path / "target").read_bytes() == bytes_of(SIZE)


def _is_waiting() -> bool:
    """Whether a thread waits for the lock of another one."""
    waits = transfer._wait_for_lock.__code__
    frames = (frame for top in sys._current_frames().values() for frame, _ in traceback.walk_stack(top))
    return any(frame.f_code is waits for frame in frames)


def test_parts_that_somebody_holds_and_never_writes_to_are_left_alone(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{BASE}/held"
    client.put(bytes_of(SIZE), name)
    monkeypatch.setattr(transfer, "_PATIENCE_S", 0.2)
    held = os.open(tmp_path / ".target.ambry-part", os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)

    class Cut(Exception):
        """The user has had enough."""

    def cut(done: int, total: int) -> None:
        raise Cut

    with pytest.raises(Cut):
        client.download_file(name, tmp_path / "target", progress=cut)
    assert names_in(tmp_path) == [".target.ambry-part"]
    client.download_file(name, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == bytes_of(SIZE)
    assert names_in(tmp_path) == [".target.ambry-part", "target"]
    os.close(held)
    client.download_file(name, tmp_path / "target")
    assert names_in(tmp_path) == ["target"]
