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

from ambry.cli.ports import free_port
from ambry.limits import MIB
from tests.cli.processes import Ambry, ask, write_cluster
from tests.prove.recorded import RecordedLoad, Refusal

CLIENTS: Final = 8
DISK_MIB: Final = 1024
LIVE_MIB: Final = 200
"""So much lives at a time: what is dead, or damaged and held for whoever repairs it, needs room, too."""

CHUNKED_MIB: Final = 150
"""Of blobs of several chunks so much is put in the whole run. What is deleted of them stays for a day."""

SAMPLE_S: Final = 5.0
BACK_S: Final = 3.0
"""After this a process that is ready again, or a disk that has room again, has to be in use: clients dial it within a
second, and the machine is busy."""

STEADY_SHARE: Final = 0.45
"""The last part of the time, in which nothing is killed: only a process that is let live shows whether it grows."""

WARM_S: Final = 180.0
"""A process is younger than this for as long as its caches fill: hot records, the block cache, the disk itself."""

GROWTH_MAX: Final = 1.1
GROWTH_RSS_MIB: Final = 8
GROWTH_DESCRIPTORS: Final = 8
"""The median of the second half of what is left may be this much above that of the first half, and no more."""

SMALL_MIB: Final = 1
"""A segment of less than this, a sixteenth of a full one, is small: many of a class are worth a compaction."""

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
    segments: list[tuple[float, int, int]] = field(default_factory=list)
    """The datanode's age, how many segments there are, and how many of them are small."""
    started_s: dict[str, float] = field(default_factory=dict)
    began_s: float = 0.0
    outages: list[tuple[str, float, float]] = field(default_factory=list)
    """What was out of order, from when to when (monotonic)."""

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
        """Resident memory and open descriptors, with the age of the process in seconds."""
        for name in ("datanode", "frontend"):
            process: Ambry = getattr(self, name)
            age_s = time.monotonic() - self.started_s[name]
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                pages = int(Path(f"/proc/{process.process.pid}/statm").read_text().split()[1])
                descriptors = sum(1 for _ in Path(f"/proc/{process.process.pid}/fd").iterdir())
                rows = self.samples.setdefault(name, [])
                if rows and age_s < rows[-1][0]:
                    # Killed: what counts is the process that is left at the end.
                    rows.clear()
                rows.append((age_s, pages * mmap.PAGESIZE // MIB, descriptors))
                if name == "datanode":
                    self._count_segments(age_s)

    def _count_segments(self, age_s: float) -> None:
        sizes: list[int] = []
        for path in (self.folder / "disk").glob("partitions/*/*.log"):
            with contextlib.suppress(FileNotFoundError):
                sizes.append(path.stat().st_size)
        if self.segments and age_s < self.segments[-1][0]:
            self.segments.clear()
        self.segments.append((age_s, len(sizes), sum(size < SMALL_MIB * MIB for size in sizes)))

    async def kill(self) -> None:
        name = self.chance.choice(("datanode", "datanode", "datanode", "frontend"))
        self.counts[f"kills of the {name}"] += 1
        since_s = time.monotonic()
        await asyncio.to_thread(self.stop, name, signal.SIGKILL)
        await asyncio.to_thread(self.start, name)
        self.outages.append((f"{name} killed", since_s, time.monotonic() + BACK_S))

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
        since_s = time.monotonic()
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
        self.outages.append(("disk full", since_s, time.monotonic() + BACK_S))
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
        self.began_s = time.monotonic()
        end_s = self.began_s + seconds
        next_kill_s = time.monotonic() + self.chance.uniform(5, 60)
        next_fill_s = time.monotonic() + seconds / 6
        while time.monotonic() < end_s and self.load.findings.is_clean:
            await asyncio.sleep(SAMPLE_S)
            self.sample()
            await self.turn_a_bit()
            if time.monotonic() >= next_kill_s and time.monotonic() < end_s - STEADY_SHARE * seconds:
                await self.kill()
                next_kill_s = time.monotonic() + self.chance.uniform(5, 75)
            elif self.can_fill and time.monotonic() >= next_fill_s:
                await self.fill()
                next_fill_s = time.monotonic() + seconds / 5
        stopping.set()
        await running

    def flat(self) -> tuple[dict[str, object], list[str]]:
        """Figures of the processes that are left, and what grows: medians of both halves once warm, and the most."""
        figures: dict[str, object] = {}
        growing: list[str] = []
        for name, rows in self.samples.items():
            for column, what, slack in ((1, "rss_mib", GROWTH_RSS_MIB), (2, "fds", GROWTH_DESCRIPTORS)):
                halves = _halves(rows, column)
                if halves is None:
                    continue
                figures[f"{name}_{what}"] = halves
                if halves["second half"] > GROWTH_MAX * halves["first half"] + slack:
                    growing.append(f"{name}: {what} grow from {halves['first half']} to {halves['second half']}")
            figures[f"{name}_age_s"] = round(rows[-1][0])
        figures["segments"] = _halves(self.segments, 1)
        figures["small_segments"] = _halves(self.segments, 2)
        return figures, growing

    def refusals(self) -> tuple[dict[str, int], list[str]]:
        """What was refused for which reason, and lines about what there is no good reason for."""
        reasons: Counter[str] = Counter()
        unjustified: list[str] = []
        for one in self.load.findings.refusals:
            why = self._reason(one)
            reasons[f"{why or 'no reason'}: {one.what} {one.status} {one.code}"] += 1
            if why is None:
                unjustified.append(f"{one.what} {one.status} {one.code} at {one.at_s - self.began_s:.1f} s")
        return dict(reasons.most_common()), unjustified

    def _reason(self, one: Refusal) -> str | None:
        if one.is_damaged:
            return "damaged, and no peer to repair it"
        for what, since_s, until_s in self.outages:
            if one.sent_at_s <= until_s and one.at_s >= since_s:
                return what
        return "undeleted while its bytes were reclaimed" if one.may_be_bare else None


def _halves(rows: list[tuple[float, int, int]], column: int) -> dict[str, float] | None:
    """Medians of both halves once warm, and the most; None of what did not get so old."""
    warm = [row[column] for row in rows if row[0] >= WARM_S]
    half = len(warm) // 2
    if not half:
        return None
    return {
        "first half": statistics.median(warm[:half]),
        "second half": statistics.median(warm[half:]),
        "most": max(row[column] for row in rows),
    }


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
    """`escaped` has what was lost, wrong, resurrected, refused without a good reason, or grows."""
    load = RecordedLoad(chosen, LIVE_MIB * MIB, CHUNKED_MIB * MIB)
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
    flat, growing = soak.flat()
    refused, unjustified = soak.refusals()
    figures = load.figures()
    escaped = figures.pop("escaped")
    assert isinstance(escaped, list)
    return {
        "on_a_disk_of_its_own": can_fill,
        "done": dict(soak.counts),
        "logged": dict(soak.logged.most_common(12)),
        "upkeep_of_the_last_process": upkeep,
        **flat,
        "refused": refused,
        **figures,
        "escaped": [*escaped, *growing, *unjustified[:20]],
    }
