"""The soak: mixed HTTP load on a datanode and a frontend, with everything that may happen to them at once.

SIGKILL of either at random moments, bits turned in the files of blobs that nobody repairs here (they have to be
refused, never served wrong), compaction without retention, scrub, and a disk that is filled to the last byte and freed
again. Every answer is recorded and checked. The disk is a tmpfs of its own where the user may mount one; where not, it
is a folder, and the disk is not filled, which the figures say.
"""

import asyncio
import contextlib
import mmap
import os
import random
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ambry.limits import MIB
from tests.cli.processes import Ambry, ask, write_cluster
from tests.cli.test_datanode import free_port
from tests.prove.recorded import RecordedLoad

CLIENTS: Final = 8
DISK_MIB: Final = 1024
LIVE_MIB: Final = 200
"""So much lives at a time: what is dead, or damaged and held for whoever repairs it, needs room, too."""

SAMPLE_S: Final = 5.0
WARM_S: Final = 20.0
"""A process is younger than this for as long as its caches fill."""

STORAGE: Final = """
[storage]
segment_bytes = "16 MiB"
journal_bytes = "64 MiB"
reserve_bytes = "16 MiB"
deleted_retention_ms = "0 ms"
expired_retention_ms = "0 ms"
compaction_garbage_percent = 20
scrub_bytes_per_s = "32 MiB"
scrub_interval_ms = "20 s"
"""


@contextmanager
def _disk(folder: Path) -> Iterator[bool]:
    """A file system of its own at `folder`, if that may be had; says whether."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)]
    is_mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


@dataclass(slots=True)
class Soak:
    """The processes, and what was done to them."""

    folder: Path
    load: RecordedLoad
    chance: random.Random
    can_fill: bool
    datanode: Ambry | None = None
    frontend: Ambry | None = None
    counts: Counter[str] = field(default_factory=Counter)
    logged: Counter[str] = field(default_factory=Counter)
    samples: dict[str, list[tuple[float, int, int]]] = field(default_factory=dict)
    started_s: dict[str, float] = field(default_factory=dict)

    def start(self, name: str) -> None:
        process = Ambry(name, "--config", str(self.folder / f"{name}.toml"))
        setattr(self, name, process)
        self.started_s[name] = time.monotonic()
        port = process.wait_for("ready").get("port")
        if name == "frontend":
            self.load.url = f"http://127.0.0.1:{port}"

    def stop(self, name: str, number: signal.Signals) -> None:
        process: Ambry = getattr(self, name)
        process.process.send_signal(number)
        process.status()
        process.close()
        for line in process.lines:
            if line["level"] in {"warning", "error"}:
                key = f"{line['event']}: {str(line.get('reason', ''))[:60]}"
                self.logged[key] += 1

    def sample(self) -> None:
        """Resident memory and open descriptors of what has been up for a while."""
        for name in ("datanode", "frontend"):
            process: Ambry = getattr(self, name)
            if time.monotonic() - self.started_s[name] < WARM_S:
                continue
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                pages = int(Path(f"/proc/{process.process.pid}/statm").read_text().split()[1])
                descriptors = sum(1 for _ in Path(f"/proc/{process.process.pid}/fd").iterdir())
                rows = self.samples.setdefault(name, [])
                rows.append((time.monotonic(), pages * mmap.PAGESIZE // MIB, descriptors))

    async def kill(self) -> None:
        name = self.chance.choice(("datanode", "datanode", "datanode", "frontend"))
        self.counts[f"kills of the {name}"] += 1
        await asyncio.to_thread(self.stop, name, signal.SIGKILL)
        await asyncio.to_thread(self.start, name)

    async def turn_a_bit(self) -> None:
        """In the body of some blob, wherever its bytes are now. Bytes that are still only in the journal are left."""
        candidates = [blob for blob in self.load.blobs if blob.size >= 4096 and blob.may_live and not blob.is_damaged]
        if not candidates:
            return
        blob = self.chance.choice(candidates)
        blob.is_damaged = True
        body = blob.body
        if not await asyncio.to_thread(self._turn, body[:48], self.chance.randrange(len(body))):
            blob.is_damaged = False

    def _turn(self, start: bytes, at: int) -> bool:
        found = False
        for path in sorted((self.folder / "disk").glob("partitions/*/*.log")):
            with contextlib.suppress(FileNotFoundError, ValueError), path.open("r+b") as file:
                view = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
                place = view.find(start)
                view.close()
                if place >= 0:
                    (byte,) = os.pread(file.fileno(), 1, place + at)
                    os.pwrite(file.fileno(), bytes([byte ^ 1 << self.chance.randrange(8)]), place + at)
                    self.counts["bits turned"] += 1
                    found = True
        return found

    async def fill(self) -> None:
        """Leave no room; puts have to be refused, and reads and deletes go on. Then give the room back."""
        ballast = self.folder / "disk" / "ballast-of-the-soak"
        before = Counter(self.load.findings.answers)
        await asyncio.to_thread(_write_until_full, ballast)
        give_up_at_s = time.monotonic() + 30
        while self.load.findings.answers["put 507"] == before["put 507"] and time.monotonic() < give_up_at_s:
            await asyncio.sleep(0.2)
        await asyncio.sleep(3)
        after = self.load.findings.answers
        for what in ("put 507", "get 200", "delete 202"):
            if after[what] == before[what]:
                self.load.findings.lost.append(f"no {what!r} while the disk was full")
        ballast.unlink()
        self.counts["disk filled"] += 1
        before = Counter(after)
        while after["put 201"] == before["put 201"]:
            if time.monotonic() > give_up_at_s + 30:
                self.load.findings.lost.append("no put after the disk was freed")
                return
            await asyncio.sleep(0.2)

    async def run(self, seconds: float) -> None:
        stopping = asyncio.Event()
        running = asyncio.create_task(self.load.run(CLIENTS, stopping), name="load")
        end_s = time.monotonic() + seconds
        next_kill_s = time.monotonic() + self.chance.uniform(5, 60)
        next_fill_s = time.monotonic() + seconds / 6
        while time.monotonic() < end_s and self.load.findings.is_clean:
            await asyncio.sleep(SAMPLE_S)
            self.sample()
            await self.turn_a_bit()
            if time.monotonic() >= next_kill_s:
                await self.kill()
                next_kill_s = time.monotonic() + self.chance.uniform(5, 75)
            elif self.can_fill and time.monotonic() >= next_fill_s:
                await self.fill()
                next_fill_s = time.monotonic() + seconds / 5
        stopping.set()
        await running

    def flat(self) -> dict[str, object]:
        """Medians of the first and the last third of the samples: MiB and descriptors."""
        figures: dict[str, object] = {}
        for name, rows in self.samples.items():
            third = max(1, len(rows) // 3)
            for column, what in ((1, "rss_mib"), (2, "fds")):
                first = statistics.median(row[column] for row in rows[:third])
                last = statistics.median(row[column] for row in rows[-third:])
                figures[f"{name}_{what}"] = [first, last, max(row[column] for row in rows)]
        return figures


def _write_until_full(path: Path) -> None:
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(64 * 1024)):
            pass


def _metrics(soak: Soak) -> dict[str, float]:
    """What upkeep of the last process did."""
    assert soak.datanode is not None
    port = soak.datanode.wait_for("ready").get("admin_port")
    if port is None:
        return {}
    text = ask("GET", f"http://127.0.0.1:{port}/metrics")[2].decode()
    wanted = ("ambry_disk_compactions", "ambry_disk_damages", "ambry_disk_quarantined", "ambry_disk_verified_bytes")
    rows = [line for line in text.splitlines() if line.startswith(wanted)]
    return {line.split("{")[0]: float(line.rsplit(" ", 1)[1]) for line in rows}


def prove_soak(chosen: int, seconds: float) -> dict[str, object]:
    """`escaped` has what was lost, wrong or resurrected."""
    load = RecordedLoad(chosen, LIVE_MIB * MIB)
    with tempfile.TemporaryDirectory(prefix="ambry-soak-") as name:
        folder = Path(name)
        write_cluster(folder, free_port(), "disk")
        (folder / "datanode.toml").write_text(f'cluster_map = "cluster.toml"\nnode = "node"\nadmin_port = 0\n{STORAGE}')
        (folder / "frontend.toml").write_text('cluster_map = "cluster.toml"\ndatacentre = "here"\nport = 0\n')
        with _disk(folder / "disk") as can_fill:
            soak = Soak(folder, load, random.Random(chosen), can_fill)
            soak.start("datanode")
            soak.start("frontend")
            try:
                asyncio.run(soak.run(seconds))
                asyncio.run(load.check_all(list(range(len(load.blobs)))))
                upkeep = _metrics(soak)
            finally:
                for each in ("frontend", "datanode"):
                    soak.stop(each, signal.SIGKILL)
        shutil.rmtree(folder / "disk", ignore_errors=True)
    return {
        "on_a_disk_of_its_own": can_fill,
        "done": dict(soak.counts),
        "logged": dict(soak.logged.most_common(12)),
        "upkeep_of_the_last_process": upkeep,
        **soak.flat(),
        **load.figures(),
    }
