"""`python -m bench.scale --blobs N`: what becomes of one disk as it fills up with small blobs.

    python -m bench.scale --blobs 1000000            a few minutes
    python -m bench.scale --blobs 10000000           20 minutes, and 16 GB of disk
    python -m bench.scale --blobs 1000000 --index-cache 8388608    the index ten times its block cache

A child process puts N blobs of 200 B to 4 KiB (sizes evenly spread on a logarithmic scale, mean 1.3 KB) through a
LocalDatanode with its threads, upkeep and checkpoints, many at a time; HTTP is not in it. On the way it says how fast
it is for every twentieth of N; at 10^5 blobs and at N it reads blobs drawn at random one after the other, the disk at
rest, again while puts go on, which flush the index as they go, and at rest with nothing in the page cache. At N it is
killed in the middle of more puts. Another child opens the directory, and reads 2000 acknowledged blobs back and
compares them.

One JSON line for each, and at the end one with what the bars ask for. Ends with status 1 if a blob is missing or wrong.
`--seed` gives other blobs.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import uvloop

from ambry.blob.blob_id import BlobId, Kind, new_unique
from ambry.blob.checksums import checksum_vector, root_of
from ambry.blob.requests import GetRequest, PutRequest
from ambry.blob.state import NEVER
from ambry.cli.processes import configure_logs
from ambry.clock import SystemClock
from ambry.config import LogLevel, LogSettings, StorageSettings
from ambry.datanode.local import LocalDatanode, Placement
from ambry.limits import GIB, MIB
from ambry.metrics import Metrics
from ambry.storage.rocks_index import RocksIndex

PARTITIONS: Final = 16
POOL_BYTES: Final = 4 * MIB
SMALLEST, LARGEST = 200, 4096
EARLY_BLOBS: Final = 100_000
READS: Final = 4000
CHECKED_READS: Final = 2000
PUTS_AT_ONCE: Final = 1024
STEPS: Final = 20
DEADLINE_S: Final = 60.0
REST_S: Final = 180.0
"""Longest wait for rest; the dirty pages of other programs may never end."""
REST_DIRTY_BYTES: Final = 16 * MIB


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure."""

    folder: Path
    blobs: int
    seed: int
    index_cache: int


class Blobs:
    """Blob `number` of a seed: its id and its bytes, the same in every process."""

    def __init__(self, seed: int) -> None:
        self._pool = random.Random(seed).randbytes(POOL_BYTES + LARGEST)
        self._seed = seed

    def blob_id(self, number: int) -> bytes:
        """20 ids a millisecond, as a busy frontend gives them out, in the order of their numbers."""
        mixed = (number * 0x9E3779B97F4A7C15 + self._seed) & (1 << 64) - 1
        unique = new_unique(1_700_000_000_000 + number // 20, (mixed << 16 | number & 0xFFFF).to_bytes(10, "big"))
        return BlobId(Kind.SIMPLE, 1, 1, 1, 1 + number // 64 % PARTITIONS, unique).binary()

    def body(self, number: int) -> bytes:
        """A piece of the pool that begins with the blob's number."""
        mixed = (number * 0xD1B54A32D192ED03 + self._seed) & (1 << 64) - 1
        size = int(SMALLEST * (LARGEST / SMALLEST) ** ((mixed >> 32) / (1 << 32)))
        at = mixed % POOL_BYTES
        return number.to_bytes(8, "big") + self._pool[at : at + size - 8]

    def put(self, number: int) -> PutRequest:
        """The put of a blob."""
        body = self.body(number)
        vector = checksum_vector(body)
        return PutRequest(self.blob_id(number), 1_700_000_000_000, NEVER, b"", body, vector, root_of(vector, len(body)))


class Filler:
    """Puts blobs in the order of their numbers, PUTS_AT_ONCE at a time."""

    def __init__(self, datanode: LocalDatanode, blobs: Blobs) -> None:
        self._datanode = datanode
        self._blobs = blobs
        self.next = 0
        """All blobs below this number were acknowledged, or are being put."""

    async def fill(self, until: int) -> None:
        """Put all blobs below `until`; returns when they are acknowledged."""

        async def put_some() -> None:
            while self.next < until:
                first, self.next = self.next, min(self.next + 16, until)
                deadline = asyncio.get_running_loop().time() + DEADLINE_S
                puts = [self._datanode.put(self._blobs.put(number), deadline) for number in range(first, self.next)]
                await asyncio.gather(*puts)

        await asyncio.gather(*(put_some() for _ in range(PUTS_AT_ONCE // 16)))


def _say(what: str, **figures: object) -> None:
    print(json.dumps({"what": what, **figures}), flush=True)


def _settings(options: Options) -> StorageSettings:
    settings = replace(StorageSettings(), reserve_bytes=GIB)
    return replace(settings, index_cache_bytes=options.index_cache) if options.index_cache else settings


async def _open(options: Options) -> LocalDatanode:
    placement = Placement(str(options.folder), dict.fromkeys(range(1, PARTITIONS + 1), 1024 * GIB))
    return await LocalDatanode.open("scale", [placement], _settings(options), SystemClock(), Metrics())


def _read_from_disk() -> int:
    """Bytes that this process has made the kernel fetch from disks; proc_pid_io(5)."""
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


async def _read(datanode: LocalDatanode, blobs: Blobs, below: int, chance: random.Random) -> dict[str, object]:
    """Latencies of reads drawn at random, one after the other; also how many had to go to a thread, and how much came
    from the disk: the rest was in memory, the page cache included.
    """
    loop = asyncio.get_running_loop()
    from_disk = _read_from_disk()
    seconds: list[float] = []
    cold = 0
    for _ in range(READS):
        request = GetRequest(blobs.blob_id(chance.randrange(below)), 0, 1 << 40)
        began_s = time.perf_counter()
        future = datanode.get(request, loop.time() + DEADLINE_S)
        cold += not future.done()
        await future
        seconds.append(time.perf_counter() - began_s)
    seconds.sort()
    shares = {"p50": 0.5, "p99": 0.99, "p999": 0.999}
    return {
        "blobs": below,
        **{f"{name}_us": round(1e6 * seconds[int(share * len(seconds))]) for name, share in shares.items()},
        "max_us": round(1e6 * seconds[-1]),
        "cold_ratio": cold / READS,
        "disk_kib_per_read": round((_read_from_disk() - from_disk) / READS / 1024, 2),
    }


def _rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _index_figures(datanode: LocalDatanode) -> dict[str, object]:
    index = next(iter(datanode.stores)).index
    assert isinstance(index, RocksIndex)
    return {f"index_{name}": round(value) for name, value in index.figures().items()}


async def _rest(datanode: LocalDatanode) -> float:
    """Wait until neither the index's compaction nor the kernel writes any more; how long that took, in seconds."""
    index = next(iter(datanode.stores)).index
    assert isinstance(index, RocksIndex)
    began_s = time.monotonic()
    await asyncio.sleep(3)  # two checkpoints are through
    while time.monotonic() - began_s < REST_S and (index.is_compacting() or _dirty_bytes() > REST_DIRTY_BYTES):
        await asyncio.sleep(0.1)
    return time.monotonic() - began_s


def _dirty_bytes() -> int:
    """What the kernel has not written yet; proc_meminfo(5)."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(("Dirty:", "Writeback:")))


def _forget_files(folder: Path) -> None:
    """Have the kernel give up what it keeps of files that are on the disk; posix_fadvise(2)."""
    for path in folder.rglob("*"):
        # Files of the index may be deleted meanwhile.
        with contextlib.suppress(FileNotFoundError):
            if path.is_file():
                descriptor = os.open(path, os.O_RDONLY)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)


async def _read_thrice(datanode: LocalDatanode, filler: Filler, blobs: Blobs, options: Options, seed: int) -> None:
    """At rest, while puts go on, and at rest with nothing in the page cache.

    How much of a large store the page cache still has is up to the kernel and to other programs; with nothing in it,
    10^5 blobs and N are read alike.
    """
    chance = random.Random(seed)
    below = filler.next
    _say("get at rest", rest_s=round(await _rest(datanode), 1), **await _read(datanode, blobs, below, chance))
    is_over = asyncio.Event()

    async def put_on() -> None:
        while not is_over.is_set():
            await filler.fill(filler.next + 256)

    putting = asyncio.create_task(put_on(), name="puts")
    _say("get during puts", **await _read(datanode, blobs, below, chance))
    is_over.set()
    await putting
    await _rest(datanode)
    _forget_files(options.folder)
    _say("get from the disk", **await _read(datanode, blobs, below, chance))


async def _fill(options: Options) -> None:
    datanode = await _open(options)
    blobs = Blobs(options.seed)
    filler = Filler(datanode, blobs)
    has_read_early = False
    for step in range(1, STEPS + 1):
        until = max(options.blobs * step // STEPS, filler.next)
        if not has_read_early and until >= EARLY_BLOBS:
            await filler.fill(min(EARLY_BLOBS, options.blobs))
            await _read_thrice(datanode, filler, blobs, options, options.seed)
            has_read_early = True
        first, began_s = filler.next, time.monotonic()
        if until <= first:
            continue
        await filler.fill(until)
        rate = (until - first) / (time.monotonic() - began_s)
        _say("put", blobs=until, puts_per_s=round(rate), rss_bytes=_rss_bytes(), **_index_figures(datanode))
    await _read_thrice(datanode, filler, blobs, options, options.seed + 1)
    _say("full", blobs=filler.next, rss_bytes=_rss_bytes(), **_index_figures(datanode))
    # The parent kills this process somewhere in here.
    await filler.fill(filler.next + 10_000_000)


async def _reopen(options: Options) -> None:
    began_s = time.monotonic()
    datanode = await _open(options)
    blobs, chance, loop = Blobs(options.seed), random.Random(options.seed + 2), asyncio.get_running_loop()
    request = GetRequest(blobs.blob_id(options.blobs - 1), 0, 1 << 40)
    await datanode.get(request, loop.time() + DEADLINE_S)
    seconds = time.monotonic() - began_s
    wrong = 0
    for _ in range(CHECKED_READS):
        number = chance.randrange(options.blobs)
        answer = await datanode.get(GetRequest(blobs.blob_id(number), 0, 1 << 40), loop.time() + DEADLINE_S)
        wrong += bytes(answer.body) != blobs.body(number)
    _say("reopened", seconds=round(seconds, 2), checked=CHECKED_READS, wrong=wrong, rss_bytes=_rss_bytes())
    await datanode.close()


def _child(options: Options, role: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bench.scale", "--role", role, "--directory", str(options.folder)]
    command += ["--blobs", str(options.blobs), "--seed", str(options.seed), "--index-cache", str(options.index_cache)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _follow(child: subprocess.Popen[str], rows: list[dict[str, Any]], until: str) -> None:
    """Print what a child says until it says `until`. Exits when it ends before."""
    assert child.stdout is not None
    for line in child.stdout:
        print(line, end="", flush=True)
        rows.append(json.loads(line))
        if rows[-1]["what"] == until:
            return
    sys.exit(f"bench.scale: the process ended with status {child.wait()} before it said {until!r}")


def _summary(rows: list[dict[str, Any]], options: Options) -> dict[str, object]:
    puts = [row for row in rows if row["what"] == "put"]
    reads = [row for row in rows if row["what"] == "get at rest"]
    cold = [row for row in rows if row["what"] == "get from the disk"]
    busy = [row for row in rows if row["what"] == "get during puts"]
    full, reopened = rows[-2], rows[-1]
    edge = max(len(puts) // 10, 1)
    first, last = (sum(row["puts_per_s"] for row in some) / edge for some in (puts[:edge], puts[-edge:]))
    return {
        "blobs": options.blobs,
        "seed": options.seed,
        "puts_per_s_first_tenth": round(first),
        "puts_per_s_last_tenth": round(last),
        "put_rate_end_to_begin": round(last / first, 2),
        "get_p99_us": [row["p99_us"] for row in reads],
        "get_p99_end_to_begin": round(reads[-1]["p99_us"] / reads[0]["p99_us"], 2),
        "get_p99_from_the_disk_us": [row["p99_us"] for row in cold],
        "get_p99_from_the_disk_end_to_begin": round(cold[-1]["p99_us"] / cold[0]["p99_us"], 2),
        "get_p99_during_puts_us": [row["p99_us"] for row in busy],
        "rss_mib_max": round(max(row["rss_bytes"] for row in [*puts, full]) / MIB),
        "reopen_s": reopened["seconds"],
        "index_bytes_per_blob": round(full["index_file_bytes"] / options.blobs, 1),
        "index_write_amplification": round(full["index_written_bytes"] / max(full["index_flushed_bytes"], 1), 2),
        "wrong": reopened["wrong"],
    }


def _measure(options: Options) -> int:
    rows: list[dict[str, Any]] = []
    filling = _child(options, "fill")
    try:
        _follow(filling, rows, "full")
        # While it puts on: a second's groups are in the journal and in memory.
        time.sleep(1.0)
    finally:
        filling.kill()
        filling.wait()
    reopening = _child(options, "reopen")
    try:
        _follow(reopening, rows, "reopened")
        status = reopening.wait(120)
    finally:
        reopening.kill()
    summary = _summary(rows, options)
    _say("summary", **summary)
    return 1 if status or summary["wrong"] else 0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__.partition("\n")[0])
    parser.add_argument("--blobs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--directory", type=Path, help="where to keep the store while it runs; a temporary folder")
    parser.add_argument("--index-cache", type=int, default=0, help="block cache of the index in bytes; 0: the default")
    parser.add_argument("--role", choices=("measure", "fill", "reopen"), default="measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role == "measure":
        folder = Path(tempfile.mkdtemp(prefix="ambry-scale-", dir=arguments.directory))
        try:
            status = _measure(Options(folder, arguments.blobs, arguments.seed, arguments.index_cache))
        finally:
            shutil.rmtree(folder)
        sys.exit(status)
    options = Options(arguments.directory, arguments.blobs, arguments.seed, arguments.index_cache)
    configure_logs(LogSettings(LogLevel.WARNING))
    uvloop.run(_fill(options) if arguments.role == "fill" else _reopen(options))


if __name__ == "__main__":
    main()
