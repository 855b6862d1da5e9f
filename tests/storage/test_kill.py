"""SIGKILL of a real process on a real disk with RocksDB: everything it acknowledged is there afterwards.

The child commits from one thread while others make checkpoints and read, as in a datanode, and says on a pipe what it
has acknowledged. It is killed at a moment that nobody chose, started again on what it left and killed again; every
other kill comes so early that it may hit the recovery.
"""

import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ambry.blob.requests import Change, GetRequest, StateAnswer
from ambry.clock import SystemClock
from ambry.errors import BlobNotFound
from ambry.limits import KIB, MIB
from ambry.storage.commit import Mutation
from ambry.storage.journal import RING_AT
from ambry.storage.real_disk import RealDisk
from ambry.storage.recovery import open_store
from ambry.storage.rocks_index import RocksIndexSource
from ambry.storage.store import DiskStore
from tests.storage.engine import PARTITIONS, TINY, WHOLE, blob_id, body_of, put, update

CYCLES = 12
CHECK_EVERY = 3
NUMBERS_PER_CYCLE = 1_000_000
SIZES = (0, 100, 4096, 4096, 4096, 4096, 70_000, 300_000)
SETTINGS = replace(TINY, segment_bytes=1 * MIB, journal_bytes=RING_AT + 2 * MIB, index_cache_bytes=1 * MIB)

ROOT = Path(__file__).parents[2]
CHILD = "import sys; from tests.storage.test_kill import child; child(sys.argv[1], int(sys.argv[2]))"


def id_of(number: int) -> bytes:
    return blob_id(number, partition=1 + number % len(PARTITIONS))


def content_of(number: int) -> bytes:
    return body_of(number, SIZES[number % len(SIZES)])


@contextmanager
def store_in(folder: str | Path) -> Iterator[DiskStore]:
    """The store of a folder, with segments, journal and memtables that are soon full."""
    disk = RealDisk(folder)
    disk.lock()
    store, _ = open_store(
        disk,
        RocksIndexSource(Path(folder) / "index", 1 * MIB, 64 * KIB),
        settings=SETTINGS,
        clock=SystemClock(),
        random_bytes=os.urandom,
        partitions=PARTITIONS,
    )
    try:
        yield store
    finally:
        store.close()
        disk.unlock()


def child(folder: str, first: int) -> None:
    """Put blobs from number `first` on and delete every seventh, until killed."""
    choice = random.Random(first)
    acknowledged = [first]
    with store_in(folder) as store:

        def make_checkpoints() -> None:
            while True:
                store.checkpoint()

        def read() -> None:
            while True:
                number = choice.choice(acknowledged)
                try:
                    answer = store.get(GetRequest(id_of(number), 0, WHOLE, include_deleted=True))
                except BlobNotFound:
                    assert number == first
                else:
                    assert bytes(answer.body) == content_of(number)

        for work in (make_checkpoints, read):
            threading.Thread(target=work, daemon=True).start()
        number = first + 1
        while True:
            group = range(number, number + choice.randrange(1, 20))
            doomed = [one - 20 for one in group if one % 7 == 0 and one - 20 > first]
            requests: list[Mutation] = [put(id_of(one), content_of(one)) for one in group]
            requests += [update(id_of(one), Change.DELETE) for one in doomed]
            assert all(isinstance(answer, StateAnswer) for answer in store.commit(requests))
            words = [f"+{one}" for one in group] + [f"-{one}" for one in doomed]
            os.write(1, " ".join([*words, "\n"]).encode())
            acknowledged += group
            number = group.stop


def run_and_kill(folder: Path, first: int, delay_s: float, *, counts_from_first_line: bool) -> list[str]:
    """What a child said before it was killed, in whole lines."""
    lines: list[bytes] = []
    has_line = threading.Event()
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder), str(first)], cwd=ROOT, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        stdout = process.stdout

        def listen() -> None:
            for line in stdout:
                lines.append(line)
                has_line.set()
            has_line.set()

        listener = threading.Thread(target=listen)
        listener.start()
        if counts_from_first_line:
            assert has_line.wait(60)
        try:
            # Nothing happens at this moment: that is the point.
            code = process.wait(delay_s)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        listener.join()
    assert code == -9
    return [line.decode() for line in lines if line.endswith(b"\n")]


def check(store: DiskStore, live: set[int], dead: set[int]) -> None:
    """Acknowledged blobs are there and equal, acknowledged deletes hold; one that nobody heard of may hold, too."""
    for number in live:
        answer = store.get(GetRequest(id_of(number), 0, WHOLE, include_deleted=True))
        assert bytes(answer.body) == content_of(number)
        assert answer.state.is_deleted or number not in dead


def test_a_killed_process_has_kept_everything_it_acknowledged(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    choice = random.Random(seed)
    put_numbers: set[int] = set()
    deleted: set[int] = set()
    talkative = 0
    for cycle in range(CYCLES):
        is_late = cycle % 2 == 0
        delay_s = choice.uniform(0.0, 0.3) if is_late else choice.uniform(0.1, 0.7)
        lines = run_and_kill(tmp_path, (cycle + 1) * NUMBERS_PER_CYCLE, delay_s, counts_from_first_line=is_late)
        talkative += bool(lines)
        for word in " ".join(lines).split():
            (put_numbers if word[0] == "+" else deleted).add(int(word[1:]))
        if cycle % CHECK_EVERY == CHECK_EVERY - 1:
            with store_in(tmp_path) as store:
                check(store, put_numbers, deleted)
    assert talkative >= CYCLES // 2
    assert len(put_numbers) > 100
    assert deleted
