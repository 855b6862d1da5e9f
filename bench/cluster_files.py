"""`python -m bench.cluster_files`: real files through one datacentre and back from the other, in a cluster in trouble.

    python -m bench.cluster_files                       3000 files of the standard library and the packages
    python -m bench.cluster_files --files 500 --seed 7  as many; files and trouble are drawn from the seed

A whole cluster of `ambry dev-cluster` (2 datacentres of 3 datanodes and 2 frontends, a real ZooKeeper) with wires
before its datanodes. Files are put, in rounds, through the frontends of the first datacentre, by Content-Length and
chunked in turn, and read back through those of the second one at the same time, while datanodes are killed and started
again, stopped and continued, and cut off from the network, one in each datacentre at a time. A put that was not
acknowledged is tried again. Always an error: other bytes than were put, and "not found" or "deleted" for what was
acknowledged. 503 is an answer while the datanodes that know are away. At the end everything runs again: `ambry wait`,
every acknowledged file read back whole and by ranges from the second datacentre and compared by SHA-256 with what is on
the disk now, and `ambry cluster verify --bytes`. Ends with status 1 at the first difference.
"""

import argparse
import contextlib
import hashlib
import http.client
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ambry.cli.dev_cluster import Plan, Running, ports_of, running
from bench.files import Progress, check, files_below, put_all
from bench.wires import Wires

LOOPBACK: Final = "127.0.0.1"
WIRE_HOST: Final = "127.0.0.2"
"""Where datanodes say that they are reached: loopback is a whole network."""

TROUBLES: Final = ("kill", "stop", "cut")
LASTS_S: Final = 2.0
"""Trouble lasts up to this much longer than its share of the files takes."""

FILE_BYTES_MAX: Final = 32 * 2**20
SETTLE_S: Final = 240
_NEVER_RIGHT: Final = (http.client.NOT_FOUND, http.client.GONE, http.client.BAD_REQUEST, http.client.FORBIDDEN)


class AnyFrontend:
    """One of several ports, drawn anew for each request."""

    def __init__(self, cluster: Running, datacentre: int, chance: random.Random) -> None:
        prefix = f"frontend-{datacentre}-"
        self._ports = [port for name, port in cluster.ports.items() if name.startswith(prefix)]
        self._chance = chance

    @property
    def port(self) -> int:
        """The one to ask now."""
        return self._chance.choice(self._ports)


def wires_of(
    plan: Plan,
    known_as: Callable[[str], str] = str,
    through: Callable[[], Callable[[bytes], bytes]] = lambda: bytes,
) -> Wires:
    """A wire before each datanode of a cluster that is to be started; `known_as` and `through` as there.

    Where the plan says that a process finds ZooKeeper elsewhere than where it listens, a wire of its own is there.
    """
    ports = ports_of(plan)
    nodes = [name for name in ports if name.startswith("datanode-")]
    ends = {name: ((plan.node_host, ports[name]), (LOOPBACK, ports[name])) for name in nodes}
    zookeeper = ports["zookeeper"]
    private = {
        (name, "zookeeper"): ((plan.zookeeper_host(name), zookeeper), (LOOPBACK, zookeeper))
        for name in ports
        if name.startswith(("datanode-", "frontend-")) and plan.zookeeper_host(name) != LOOPBACK
    }
    return Wires(ends, known_as, through, private)


def host_of_wire_to_zookeeper(name: str) -> str:
    """A host on loopback for each process of a cluster: its own way to ZooKeeper can be cut."""
    kind, datacentre, number = name.split("-")
    return f"127.{1 if kind == 'datanode' else 2}.{datacentre}.{number}"


@dataclass(slots=True)
class Trouble:
    """Makes trouble for at most one datanode of each datacentre at a time."""

    cluster: Running
    wires: Wires
    chance: random.Random
    made: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TROUBLES, 0))

    @contextlib.contextmanager
    def some(self) -> Iterator[None]:
        """Trouble while the block runs, and for a moment longer; afterwards everything runs and is connected."""
        chosen: list[tuple[str, str]] = []
        for datacentre in range(1, self.cluster.plan.datacentres + 1):
            if self.chance.random() < 0.8:
                number = self.chance.randint(1, self.cluster.plan.datanodes)
                chosen.append((f"datanode-{datacentre}-{number}", self.chance.choice(TROUBLES)))
        for name, what in chosen:
            self._begin(name, what)
        try:
            yield
            time.sleep(LASTS_S * self.chance.random())
        finally:
            for name, what in chosen:
                self._end(name, what)

    def _begin(self, name: str, what: str) -> None:
        self.made[what] += 1
        process = self.cluster.processes[name]
        if what == "cut":
            self.wires.cut((name, "*"), ("*", name))
        elif what == "stop":
            process.send_signal(signal.SIGSTOP)
        else:
            process.kill()
            process.wait()

    def _end(self, name: str, what: str) -> None:
        if what == "cut":
            self.wires.mend((name, "*"), ("*", name))
        elif what == "stop":
            self.cluster.processes[name].send_signal(signal.SIGCONT)
        else:
            self.cluster.start(name, "datanode")


@dataclass(slots=True)
class Reading:
    """Reads what was acknowledged from the other datacentre, while there is trouble."""

    frontend: AnyFrontend
    progress: Progress
    chance: random.Random
    ending: threading.Event = field(default_factory=threading.Event)
    good: int = 0
    unsure: int = 0

    def run(self) -> None:
        """Until it is told to end."""
        while not self.ending.is_set():
            if not self.progress.stored:
                time.sleep(0.05)
                continue
            path, location, digest = self.chance.choice(self.progress.stored)
            try:
                status, found = self._read(location)
            except (OSError, http.client.HTTPException):
                self.unsure += 1
                continue
            if status == http.client.OK and found == digest:
                self.good += 1
            elif status == http.client.OK or status in _NEVER_RIGHT:
                self.progress.problems.append(
                    f"{path}: GET {location} answered {status} during trouble, SHA-256 {found}"
                )
            else:
                self.unsure += 1

    def _read(self, location: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.frontend.port, timeout=60)
        with contextlib.closing(connection):
            connection.request("GET", location)
            answer = connection.getresponse()
            body = answer.read()
            return answer.status, hashlib.sha256(body).hexdigest()

    @contextlib.contextmanager
    def going_on(self) -> Iterator[None]:
        """On a thread, until the block ends."""
        thread = threading.Thread(target=self.run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.ending.set()
            thread.join(120)


def through_trouble(
    cluster: Running, wires: Wires, paths: Sequence[Path], *, seed: int, rounds: int, threads: int = 4
) -> dict[str, Any]:
    """All of it, on a cluster that runs. What happened; `problems` is empty if nothing was wrong."""
    chance = random.Random(seed)
    progress = Progress()
    near, far = (AnyFrontend(cluster, number, random.Random(chance.random())) for number in (1, 2))
    trouble = Trouble(cluster, wires, random.Random(chance.random()))
    reading = Reading(far, progress, random.Random(chance.random()))
    with reading.going_on():
        for number in range(rounds):
            with trouble.some():
                for _ in put_all(near, paths[number::rounds], threads, progress):
                    pass
    operate(cluster, "wait", "--healthy", "--converged", "--timeout", str(SETTLE_S))
    for entry in progress.stored:
        check(far.port, entry, chance, progress)
    verified = operate(cluster, "cluster", "verify", "--bytes", "--json")
    if len(progress.stored) != len(paths):
        progress.problems.append(f"{len(paths) - len(progress.stored)} files were never put")
    return {
        "files": len(progress.stored),
        "bytes_put": progress.put_bytes,
        "puts_tried_again": progress.retries,
        "read_in_trouble": reading.good,
        "unsure_in_trouble": reading.unsure,
        "bytes_read_back": progress.read_bytes,
        "ranges": progress.ranges,
        "trouble": trouble.made,
        "verified": {key: value for key, value in json.loads(verified).items() if key != "differences"},
        "problems": progress.problems,
    }


def operate(cluster: Running, *arguments: str) -> str:
    """An operator's command; what it prints. Raises SystemExit when it says no."""
    environment = {
        **os.environ,
        "AMBRY_ZOOKEEPER": cluster.zookeeper.hosts,
        "AMBRY_CLUSTER_SECRET": cluster.secret_file.read_text().strip(),
    }
    command = [sys.executable, "-m", "ambry.cli.main", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"ambry {' '.join(arguments)}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> None:
    """Run the proof as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    library = [Path(sysconfig.get_paths()["stdlib"]), Path(sysconfig.get_paths()["purelib"])]
    parser.add_argument("folders", nargs="*", type=Path, default=library)
    parser.add_argument("--files", type=int, default=3000, help="as many files, drawn at random")
    parser.add_argument("--rounds", type=int, default=30, help="of trouble; each with its share of the files")
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    found = [path for path in files_below(options.folders) if path.stat().st_size <= FILE_BYTES_MAX]
    paths = random.Random(options.seed).sample(found, min(options.files, len(found)))
    print(f"{len(paths)} files, {sum(path.stat().st_size for path in paths) / 2**20:.0f} MiB", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="ambry-cluster-files-"))
    plan = Plan(folder, datacentres=2, datanodes=3, frontends=2, partitions=8, replicas=3, node_host=WIRE_HOST)
    try:
        wires = wires_of(plan)
        with wires.running(), running(plan) as cluster:
            outcome = through_trouble(
                cluster, wires, paths, seed=options.seed, rounds=options.rounds, threads=options.threads
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(outcome, indent=1))
    if outcome["problems"]:
        raise SystemExit(1)
    print("all equal")


if __name__ == "__main__":
    main()
