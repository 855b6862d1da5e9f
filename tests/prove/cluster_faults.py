"""What goes wrong with a cluster of real processes while clients use it: at most one fault in each
datacentre, one of what they share, and one way to ZooKeeper. Three replicas are for one failure: it may never cost an
acknowledged blob.

    a datanode      SIGKILL; SIGSTOP, also for longer than its session; cut off from all, or one way; its disk filled to
                    the last byte; the folder of a replica, or all of its disk, emptied; away for most of the run
    a frontend      SIGKILL, SIGSTOP
    shared          the datacentres parted, or one way; ZooKeeper killed, or stopped until all sessions have expired
    a way           a datanode, a frontend or a whole datacentre that cannot reach ZooKeeper for longer than a session,
                    while everybody else does, and all reach each other: it goes on with an old map

Whatever is begun is ended, also when the run ends. Knows processes, files and wires; not what clients see.
"""

import asyncio
import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Final

from ambry.cli.dev_cluster import Running, answers
from ambry.cli.operator import registry_at
from ambry.cluster.map import ClusterMap, Replica, ReplicaState
from ambry.errors import RegistryUnavailable
from ambry.limits import REGISTRY_SESSION_S
from bench.wires import Way, Wires

QUIET_S: Final = 2.0
HOLD_S: Final = 6.0
"""A fault lasts up to this long, and up to QUIET_S pass before the next one."""

BROKEN_S: Final = 25.0
"""Connections that are silent for this long are given up by both ends."""

APART_S: Final = (1.2 * REGISTRY_SESSION_S, 2.5 * REGISTRY_SESSION_S)
"""Who cannot reach ZooKeeper cannot for at least and at most this long."""

BACK_S: Final = 90.0
REJOINED_S: Final = 180.0

Fault = Callable[[], Awaitable[None]]


@contextlib.contextmanager
def small_disks(folders: Collection[Path], size_mib: int) -> Iterator[bool]:
    """A file system of its own at each of the folders, if that may be had; whether."""
    mounted: list[Path] = []
    try:
        for folder in folders:
            folder.mkdir(parents=True)
            command = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", str(folder)]
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                mounted.append(folder)
        yield len(mounted) == len(folders)
    finally:
        for folder in mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path: Path) -> None:
    """A file that leaves no room beside it."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(64 * 1024)):
            pass


def names_by_pid(cluster: Running, said: str) -> str:
    """The name of the process behind what a Hello says: frontends say their process id, others their name."""
    pid = said.rpartition("-")[2]
    found = (name for name, process in tuple(cluster.processes.items()) if str(process.pid) == pid)
    return next(found, said)


@dataclass(slots=True)
class Faults:
    """All that is done to one cluster. `small` are the datanodes whose disk may be filled."""

    cluster: Running
    wires: Wires
    chance: random.Random
    small: Collection[str]
    stopping: asyncio.Event
    made: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    """What did not come back."""
    away: set[str] = field(default_factory=set)
    losing: dict[int, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))
    """Of a datacentre: held while a replica there lacks what was acknowledged, so that no other one is lost or away."""

    async def run(self) -> None:
        """Until told to stop. Everything runs and is connected then, but for who is `away`."""
        async with asyncio.TaskGroup() as group:
            for datacentre in range(1, self.cluster.plan.datacentres + 1):
                group.create_task(self._loop(partial(self._in, datacentre)))
            group.create_task(self._loop(self._shared))
            group.create_task(self._loop(self._apart))

    async def _loop(self, choose: Callable[[], Fault]) -> None:
        while not self.stopping.is_set():
            await self._hold(QUIET_S * self.chance.random())
            if not self.stopping.is_set():
                await choose()()

    async def _hold(self, seconds: float) -> None:
        """Let it be so for a while, or until the run ends."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stopping.wait(), seconds)

    # --- choosing ----------------------------------------------------------------------------------------------

    def _in(self, datacentre: int) -> Fault:
        nodes = [name for name in self._names("datanode", datacentre) if name not in self.away]
        node = self.chance.choice(nodes)
        frontend = self.chance.choice(self._names("frontend", datacentre))
        choices: list[tuple[int, Fault]] = [
            (6, lambda: self.kill(node)),
            (2, lambda: self.kill(frontend)),
            (4, lambda: self.stop(node, HOLD_S)),
            (1, lambda: self.stop(node, 1.5 * REGISTRY_SESSION_S)),
            (1, lambda: self.stop(frontend, HOLD_S / 2)),
            (3, lambda: self.cut("cut off", [(node, "*"), ("*", node)], HOLD_S)),
            (1, lambda: self.cut("cut off until connections break", [(node, "*"), ("*", node)], BROKEN_S)),
            (3, lambda: self.cut("not heard", [(node, "*")], HOLD_S)),
            (3, lambda: self.cut("hears nothing", [("*", node)], HOLD_S)),
        ]
        if not self.losing[datacentre].locked():
            # Of two copies that a write was acknowledged with, one may be with somebody who is away.
            choices += [(2, lambda: self.empty(node, is_whole_disk=False)), (1, lambda: self.empty(node))]
        choices += [(2, partial(self.fill_disk, name)) for name in nodes if name in self.small]
        return self._one_of(choices)

    def _shared(self) -> Fault:
        east, west = ("*-1-*", "*-2-*"), ("*-2-*", "*-1-*")
        return self._one_of(
            [
                (3, lambda: self.cut("datacentres parted", [east, west], HOLD_S)),
                (2, lambda: self.cut("datacentres parted one way", [self.chance.choice((east, west))], HOLD_S)),
                (2, self.kill_zookeeper),
                (1, self.expire_sessions),
                (2, lambda: self._hold(2 * HOLD_S)),
            ]
        )

    def _apart(self) -> Fault:
        datacentre = self.chance.randint(1, self.cluster.plan.datacentres)
        node = self.chance.choice(self._names("datanode", datacentre))
        frontend = self.chance.choice(self._names("frontend", datacentre))
        return self._one_of(
            [
                (3, lambda: self.part_from_zookeeper("datanode", node)),
                (3, lambda: self.part_from_zookeeper("frontend", frontend)),
                (1, lambda: self.part_from_zookeeper("datacentre", f"*-{datacentre}-*")),
            ]
        )

    def _one_of(self, choices: list[tuple[int, Fault]]) -> Fault:
        return self.chance.choices([one for _, one in choices], [weight for weight, _ in choices])[0]

    def _names(self, kind: str, datacentre: int | str = "*") -> list[str]:
        return [name for name in self.cluster.processes if fnmatchcase(name, f"{kind}-{datacentre}-*")]

    # --- processes ---------------------------------------------------------------------------------------------

    async def kill(self, name: str) -> None:
        """SIGKILL, and a new start."""
        self.made[f"{name.partition('-')[0]} killed"] += 1
        await self._end(name)
        await self._hold(HOLD_S * self.chance.random())
        await self._back(name)

    async def stop(self, name: str, most_s: float) -> None:
        """SIGSTOP, and SIGCONT."""
        long = " for longer than its session" if most_s > HOLD_S else ""
        self.made[f"{name.partition('-')[0]} stopped{long}"] += 1
        process = self.cluster.processes[name]
        process.send_signal(signal.SIGSTOP)
        try:
            await self._hold(most_s if long else most_s * self.chance.random())
        finally:
            process.send_signal(signal.SIGCONT)

    async def leave(self, name: str) -> bool:
        """Be away until `come_back`, while the others go on. False when the run ended before it could be so."""
        lock = self.losing[_place(name)]
        while lock.locked():
            if self.stopping.is_set():
                return False
            await self._hold(0.2)
        await lock.acquire()
        self.away.add(name)
        await self._end(name)
        return True

    async def come_back(self, name: str) -> None:
        """After a long time."""
        self.made["datanode back after most of the run"] += 1
        await self._back(name)
        self.away.discard(name)
        self.losing[_place(name)].release()

    async def _end(self, name: str) -> None:
        process = self.cluster.processes[name]
        process.kill()
        await asyncio.to_thread(process.wait)

    async def _back(self, name: str) -> None:
        kind = name.partition("-")[0]
        port = self.cluster.ports[name.replace("datanode", "admin")]
        self.cluster.start(name, kind)
        give_up_at = time.monotonic() + BACK_S
        while not await asyncio.to_thread(answers, f"http://127.0.0.1:{port}/healthCheck"):
            status = self.cluster.processes[name].poll()
            if status is not None or time.monotonic() > give_up_at:
                self.broken.append(f"{name} did not get ready again (status {status})")
                return
            await asyncio.sleep(0.1)

    # --- the network -------------------------------------------------------------------------------------------

    async def cut(self, what: str, ways: list[Way], most_s: float) -> None:
        """Nothing passes some ways for a while."""
        self.made[what] += 1
        self.wires.cut(*ways)
        try:
            await self._hold(most_s if most_s > HOLD_S else most_s * self.chance.random())
        finally:
            self.wires.mend(*ways)

    async def part_from_zookeeper(self, what: str, who: str) -> None:
        """`who`, a name or a pattern, reaches everybody but ZooKeeper for longer than its session."""
        self.made[f"{what} cut off from ZooKeeper for longer than its session"] += 1
        ways = [(who, "zookeeper"), ("zookeeper", who)]
        self.wires.cut(*ways)
        try:
            await self._hold(self.chance.uniform(*APART_S))
            if not self.stopping.is_set():
                await self._count_ended(who)
        finally:
            self.wires.mend(*ways)

    async def _count_ended(self, who: str) -> None:
        """Sessions that ended because their datanode was not heard; none are seen while ZooKeeper is away itself."""
        nodes = [name for name in self._names("datanode") if fnmatchcase(name, who) and name not in self.away]
        with contextlib.suppress(RegistryUnavailable):
            live = await asyncio.to_thread(_read_live, self.cluster.zookeeper.hosts)
            self.made["session of one datanode ended"] += len(set(nodes) - live)

    # --- disks -------------------------------------------------------------------------------------------------

    def _disk(self, name: str) -> Path:
        return self.cluster.plan.folder / name / "disk0"

    async def fill_disk(self, name: str) -> None:
        """No byte is left on a disk; then there is room again."""
        self.made["disk full"] += 1
        ballast = self._disk(name) / "ballast"
        await asyncio.to_thread(fill, ballast)
        try:
            await self._hold(HOLD_S * self.chance.random())
        finally:
            ballast.unlink()

    async def empty(self, name: str, *, is_whole_disk: bool = True) -> None:
        """A datanode comes back with nothing of one replica, or of all; waits until they serve again."""
        lock = self.losing[_place(name)]
        await lock.acquire()
        disk = self._disk(name)
        replica = self.chance.choice(sorted((disk / "partitions").iterdir()))
        before = await self._placed(name)
        await self._end(name)
        emptied = sorted(disk.iterdir()) if is_whole_disk else [replica]
        self.made["disk emptied" if is_whole_disk else "replica emptied"] += 1
        for one in emptied:
            await asyncio.to_thread(shutil.rmtree if one.is_dir() else os.unlink, one)
        await self._back(name)
        lost = sorted(before) if is_whole_disk else [int(replica.name)]
        give_up_at = time.monotonic() + REJOINED_S
        while not _have_rejoined(before, await self._placed(name), lost):
            if time.monotonic() > give_up_at:
                # The lock stays: with this one incomplete, another loss would be one too many.
                self.broken.append(f"emptied replicas {lost} of {name} do not serve after {REJOINED_S:.0f} s")
                return
            await asyncio.sleep(0.5)
        lock.release()

    async def _placed(self, name: str) -> dict[int, Replica]:
        """The replicas of a datanode by partition, as the map has them."""
        while True:
            with contextlib.suppress(RegistryUnavailable):
                found = await asyncio.to_thread(_read_map, self.cluster.zookeeper.hosts)
                return {
                    number: one
                    for number, partition in found.partitions.items()
                    for one in partition.replicas
                    if one.node == name
                }
            await asyncio.sleep(0.5)

    # --- ZooKeeper ---------------------------------------------------------------------------------------------

    async def kill_zookeeper(self) -> None:
        """SIGKILL, and a new start on what it had on its disk."""
        self.made["ZooKeeper killed"] += 1
        zookeeper = self.cluster.zookeeper
        os.kill(zookeeper.pid, signal.SIGKILL)
        await asyncio.to_thread(zookeeper.stop)
        try:
            await self._hold(HOLD_S * self.chance.random())
        finally:
            await asyncio.to_thread(self.cluster.start_zookeeper)

    async def expire_sessions(self) -> None:
        """It is silent for longer than any session lives, and ends them all when it wakes."""
        self.made["all sessions expired"] += 1
        pid = self.cluster.zookeeper.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            await self._hold(1.5 * REGISTRY_SESSION_S)
        finally:
            os.kill(pid, signal.SIGCONT)


def _place(name: str) -> int:
    """The datacentre of a process."""
    return int(name.split("-")[1])


def _read_map(hosts: str) -> ClusterMap:
    with registry_at(hosts) as registry:
        return registry.read().cluster_map


def _read_live(hosts: str) -> set[str]:
    with registry_at(hosts) as registry:
        return set(registry.live())


def _have_rejoined(before: dict[int, Replica], after: dict[int, Replica], lost: Collection[int]) -> bool:
    """Whether replicas that were lost serve again, as others than they were."""
    return all(
        number in after
        and after[number].state is ReplicaState.SERVING
        and after[number].incarnation != before[number].incarnation
        for number in lost
    )
