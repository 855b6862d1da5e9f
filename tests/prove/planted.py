"""R18: faults planted in the files of a datanode that is running, beside a healthy peer, while its scrub is on.

Two datanodes and a frontend, all processes. One bit is turned in each of `count` records of one of the datanodes:
headers, keys, properties, bodies, vectors, of puts and of deletes; and in the small files and the headers of segments.
Nobody reads these blobs meanwhile: scrub has to find every fault within one cycle, by the place that its log names, and
the datanode has to have every blob again from its peer. A cycle is over when every segment was verified after the
planting, as the datanode's own metric says. In the end the peer is killed, and the one that was damaged is asked for
all of them by itself.
"""

import asyncio
import os
import random
import signal
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ambry.errors import BlobDeleted
from ambry.protocol.replication import ReplicationAction, ReplicationRequest
from ambry.storage.real_disk import RealDisk
from ambry.storage.record import HEADER_SIZE
from ambry.storage.replica_meta import DISK_META_PATH, listed_partitions, read_replica_meta, replica_meta_path
from ambry.storage.segment import DATA_OFFSET, ScannedRecord, Segment, scan, seed_of, segment_path
from ambry.transport.client import RemoteDatanode
from tests.cli.processes import SECRET, Ambry, ambry, ask, put
from tests.replication.cluster import write_settings
from tests.replication.test_processes import answer_of

INTERVAL_S: Final = 20
SCRUB_MIB_PER_S: Final = 64
SPARE: Final = 40
"""Blobs more than faults in records, some of which are deleted."""

WAIT_S_MAX: Final = 180.0
SIZES: Final = (0, 10, 300, 2000, 5000, 9000, 20_000)
NODES: Final = ("damaged", "healthy")

STORAGE: Final = f"""
[storage]
segment_bytes = "16 MiB"
scrub_bytes_per_s = "{SCRUB_MIB_PER_S} MiB"
scrub_interval_ms = "{INTERVAL_S} s"
"""


@dataclass(frozen=True, slots=True)
class Planted:
    """A bit that is turned: in a record at (partition, segment, offset), or in a file beside them."""

    kind: str
    path: Path
    at: int
    bit: int
    partition: int = 0
    segment: int = 0
    is_in_record: bool = True


def _put_some(url: str, count: int, chance: random.Random) -> dict[str, bytes]:
    bodies = [chance.randbytes(chance.choice(SIZES)) for _ in range(count)]
    with ThreadPoolExecutor(8) as pool:
        return dict(zip(pool.map(lambda body: put(url, body), bodies), bodies, strict=True))


def _choose(folder: Path, count: int, chance: random.Random) -> list[Planted]:
    """Where to turn bits: in `count` different records, and one in each header of a segment and each small file."""
    disk = RealDisk(str(folder))
    records: list[Planted] = []
    others = [Planted("disk.meta", folder / DISK_META_PATH, 0, 1, is_in_record=False)]
    for partition in listed_partitions(disk):
        meta = read_replica_meta(disk, partition)
        assert meta is not None
        path = folder / replica_meta_path(partition)
        others.append(Planted("replica.meta", path, chance.randrange(path.stat().st_size), 2, is_in_record=False))
        for number, _ in meta.segments:
            path = folder / segment_path(partition, number)
            file = disk.open(segment_path(partition, number))
            segment = Segment(number, file, seed_of(meta.incarnation, number), file.size())
            others.append(Planted("segment header", path, chance.randrange(DATA_OFFSET), 3, is_in_record=False))
            for found in scan(segment):
                if not isinstance(found, ScannedRecord):
                    continue
                at = chance.choice((chance.randrange(HEADER_SIZE), chance.randrange(found.header.record_size)))
                kind = f"{found.header.kind.name.lower()} record"
                records.append(Planted(kind, path, found.offset + at, chance.randrange(8), partition, number))
            file.close()
    assert len(records) >= count, f"{len(records)} records"
    changes = [one for one in records if not one.kind.startswith("put")]
    puts = [one for one in records if one.kind.startswith("put")]
    some = chance.sample(changes, min(len(changes), count // 10))
    return [*some, *chance.sample(puts, count - len(some)), *others]


def _plant(faults: list[Planted]) -> None:
    for fault in faults:
        descriptor = os.open(fault.path, os.O_RDWR)
        try:
            (before,) = os.pread(descriptor, 1, fault.at)
            os.pwrite(descriptor, bytes([before ^ 1 << fault.bit]), fault.at)
        finally:
            os.close(descriptor)


def _found(process: Ambry, faults: list[Planted], folder: Path) -> list[bool]:
    """Which faults the log of the process names by now."""
    damages: set[tuple[object, object, int]] = set()
    files = set()
    for line in list(process.lines):
        if line["event"] == "damaged record":
            offset, size = line["offset"], line["size"]
            assert isinstance(offset, int)
            assert isinstance(size, int)
            damages |= {(line["partition"], line["segment"], at // 8) for at in range(offset, offset + size, 8)}
        elif line["event"] == "a damaged file was written anew":
            files.add(str(folder / str(line["path"])))
    return [
        (fault.partition, fault.segment, fault.at // 8) in damages if fault.is_in_record else str(fault.path) in files
        for fault in faults
    ]


def _oldest_verification(metrics: str) -> float:
    """When the segment that waits longest was verified, in seconds since 1970."""
    text = ask("GET", metrics)[2].decode()
    (line,) = (line for line in text.splitlines() if line.startswith("ambry_disk_oldest_verification_seconds{"))
    return float(line.rsplit(" ", 1)[1])


async def _is_whole(port: int, alive: dict[str, bytes], dead: set[str]) -> None:
    """Wait until the datanode has every blob by itself."""
    node = RemoteDatanode("127.0.0.1", port, NODES[0], "test", SECRET.encode(), "tests")
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(WAIT_S_MAX):
            while True:
                status = await node.replication(ReplicationRequest(ReplicationAction.TELL, (1,)), loop.time() + 10)
                if not status.holes:
                    break
                await asyncio.sleep(0.2)
            for identity, body in alive.items():
                while await answer_of(node, identity) != body:
                    await asyncio.sleep(0.05)
            for identity in dead:
                while not isinstance(await answer_of(node, identity), BlobDeleted):
                    await asyncio.sleep(0.05)
    finally:
        await node.close()


def prove_planted(chosen: int, seconds: float, count: int = 0) -> dict[str, object]:
    """`count` faults in records, or as many as there is time for; `escaped` has what was not found, or is not right."""
    count = count or max(20, int(seconds * 5))
    chance = random.Random(chosen)
    with tempfile.TemporaryDirectory(prefix="ambry-planted-") as name, ExitStack() as stack:
        folder = Path(name)
        ports = write_settings(folder, dict.fromkeys(NODES, "here"), STORAGE)
        arguments = {node: ("datanode", "--config", str(folder / f"{node}.toml")) for node in NODES}
        first, peer = (stack.enter_context(ambry(*arguments[node])) for node in NODES)
        first.wait_for("ready")
        peer.wait_for("ready")
        with ambry("frontend", "--config", str(folder / "frontend.toml")) as front:
            url = f"http://127.0.0.1:{front.wait_for('ready')['port']}"
            alive = _put_some(url, count + SPARE, chance)
            dead = set(chance.sample(sorted(alive), max(SPARE // 2, count // 8)))
            for identity in dead:
                assert ask("DELETE", f"{url}/{identity}")[0] == 202
                del alive[identity]
            front.end()
        asyncio.run(_is_whole(ports["damaged"], alive, dead))
        # Everything is in the logs after an orderly end, and the next process reads nothing but what scrub reads.
        assert first.end() == 0
        faults = _choose(folder / "damaged", count, chance)
        process = stack.enter_context(ambry(*arguments["damaged"]))
        admin_port = process.wait_for("ready")["admin_port"]
        metrics = f"http://127.0.0.1:{admin_port}/metrics"
        _plant(faults)
        planted_s, planted_at = time.monotonic(), time.time()
        found_s = None
        while _oldest_verification(metrics) <= planted_at and time.monotonic() < planted_s + WAIT_S_MAX:
            if found_s is None and all(_found(process, faults, folder / "damaged")):
                found_s = time.monotonic() - planted_s
            time.sleep(0.2)
        cycle_s = time.monotonic() - planted_s
        is_found = _found(process, faults, folder / "damaged")
        missed = [fault for fault, is_it in zip(faults, is_found, strict=True) if not is_it]
        escaped = [f"{fault.kind} at {fault.path.name}:{fault.at}" for fault in missed]
        if not escaped:
            asyncio.run(_is_whole(ports["damaged"], alive, dead))
        repaired_s = time.monotonic() - planted_s
        # By itself it has everything.
        peer.end(signal.SIGKILL)
        try:
            asyncio.run(_is_whole(ports["damaged"], alive, dead))
        except (TimeoutError, AssertionError) as error:
            escaped.append(f"not whole without its peer: {error!r}")
        assert process.end() == 0
    return {
        "planted": dict(sorted(Counter(fault.kind for fault in faults).items())),
        "faults": len(faults),
        "found": sum(is_found),
        "found_s": round(cycle_s if found_s is None else found_s, 1),
        "cycle_s": round(cycle_s, 1),
        "repaired_s": round(repaired_s, 1),
        "escaped": escaped,
    }
