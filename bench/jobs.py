"""The jobs of the benchmark. Each starts what it measures, measures, and adds to Results.

The matrix runs put, get and mixed on the bare application, the embedded store and separate processes in turn, so that
whatever else the machine does meets all three. `dd` is the yardstick for large uploads. The other jobs are single
numbers: memory, start, start after a crash, many partitions.
"""

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Final, Self

from bench.bodies import KIB, MIB, bare_path, body, distinct_bodies, size_name
from bench.dying import read_while
from bench.load import OPERATIONS_MAX, Load, Report
from bench.results import Key, Results
from bench.servers import Server, ServerFailed, fresh_folder, start_embedded, started, started_replicas
from bench.streams import Transfers

GIB: Final = 1024 * MIB
LAYOUT_NAMES: Final = ("bare", "embedded", "separate")
_MIXED_PUT_PERCENT: Final = 20
_WARM_UP_SECONDS: Final = 0.5
_LOAD_SECONDS_MAX: Final = 900.0


@dataclass(slots=True)
class Plan:
    """How much to do. `say` shows progress."""

    seconds: float
    rounds: int
    connections: tuple[int, ...]
    layouts: tuple[str, ...]
    is_quick: bool
    say: Callable[[str], None]
    results: Results = field(default_factory=Results)


def run_load(load: Load) -> Report:
    """Run the generator in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.load"],
        input=json.dumps(asdict(load)),
        capture_output=True,
        text=True,
        timeout=_LOAD_SECONDS_MAX,
        check=False,
    )
    if done.returncode != 0:
        raise ServerFailed(f"the load generator ended with status {done.returncode}:\n{done.stderr[-4000:]}")
    return Report.from_json(json.loads(done.stdout))


# --- put, get, mixed ---------------------------------------------------------------------------------------------


def matrix(plan: Plan, size: int) -> None:
    """All of put, get and mixed for one size, in rounds; each round starts fresh stores and fills them.

    A store that grows takes memory for the page cache, and a virtual machine may get each page of it from its host,
    for more than a put costs otherwise. With stores of one age the rounds measure the same thing.
    """
    for number in range(1, plan.rounds + 1):
        with ExitStack() as stack:
            folder = stack.enter_context(fresh_folder())
            plan.say(f"{size_name(size)}, round {number}: starting {', '.join(plan.layouts)}")
            servers = {name: stack.enter_context(started(name, folder, size)) for name in plan.layouts}
            paths = {name: _fill(server, size) for name, server in servers.items()}
            for connections, jobs in _connections_and_jobs(plan, size):
                for job in jobs:
                    for name, server in servers.items():
                        key = Key(job, size, connections, name)
                        report = run_load(_load(plan, key, server, paths[name]))
                        plan.results.add(key, report)
                        plan.say(f"{key}: {_told(report, size)}")
                    if size == 64 * MIB and job == "put" and connections == _DD_CONNECTIONS:
                        _dd(plan, folder, size, connections)


_DD_CONNECTIONS: Final = 4
"""The connections of the large upload that is compared with dd."""


def _connections_and_jobs(plan: Plan, size: int) -> list[tuple[int, tuple[str, ...]]]:
    jobs: list[tuple[int, tuple[str, ...]]] = [(number, ("get", "put", "mixed")) for number in plan.connections]
    if size == 64 * MIB:
        jobs.append((_DD_CONNECTIONS, ("put",)))
    return jobs


def _fill(server: Server, size: int) -> list[tuple[str, int]]:
    """Put what the GETs will read: enough that no single blob is special, little enough to be in the page cache."""
    if server.name == "bare":
        return [(bare_path(size, number), number) for number in range(distinct_bodies(size))]
    count = min(4096, max(256 * MIB // size, 4))
    load = Load(server.port, min(count, 32), size, seconds=60, count=count, put_percent=100, collect_max=count)
    report = run_load(load)
    if report.errors or len(report.paths) < count:
        raise ServerFailed(f"{server.name}: {report.error_example}\n{server.log_end()}")
    return report.paths


def _load(plan: Plan, key: Key, server: Server, paths: list[tuple[str, int]]) -> Load:
    put_percent = {"get": 0, "put": 100, "mixed": _MIXED_PUT_PERCENT}[key.job]
    is_counted = key.size > MIB
    # Large transfers are few: count them, from the first byte to the last answer. Small ones run for a time.
    count = max(2 * key.connections, 16) if is_counted else OPERATIONS_MAX
    if put_percent and not is_counted:
        # Disks are finite: 2 GiB of new bytes in one run at most.
        count = 2 * GIB * 100 // (key.size * put_percent)
    if plan.is_quick and is_counted:
        count = max(key.connections, 8)
    return Load(
        port=server.port,
        connections=key.connections,
        size=key.size,
        seconds=120.0 if is_counted else plan.seconds,
        warm_up_seconds=0.0 if is_counted else _WARM_UP_SECONDS,
        count=count,
        put_percent=put_percent,
        paths=paths if put_percent < 100 else (),
        server_pids=server.pids,
    )


def _told(report: Report, size: int) -> str:
    rate = report.operations / report.seconds
    errors = f", {report.errors} ERRORS" if report.errors else ""
    return f"{rate:.0f}/s, {rate * size / MIB:.0f} MiB/s, load generator {report.own_cpu_share:.0%} CPU{errors}"


def _dd(plan: Plan, folder: Path, size: int, connections: int) -> None:
    """`dd conv=fdatasync` of as many bytes as the uploads had, file by file."""
    count = 8 if plan.is_quick else 16
    source = folder / "dd-source"
    source.write_bytes(body(size, 0))
    report = Report()
    start = time.perf_counter()
    for number in range(count):
        target = folder / f"dd-{number}"
        command = ["dd", f"if={source}", f"of={target}", "bs=4M", "conv=fdatasync"]
        begun_ns = time.perf_counter_ns()
        subprocess.run(command, check=True, capture_output=True)
        report.put_ns.add_all([time.perf_counter_ns() - begun_ns])
    report.seconds = time.perf_counter() - start
    report.operations = count
    for number in range(count):
        (folder / f"dd-{number}").unlink()
    key = Key("put", size, connections, "dd")
    plan.results.add(key, report)
    plan.say(f"{key}: {_told(report, size)}")


# --- single numbers ----------------------------------------------------------------------------------------------


def partitions(plan: Plan) -> None:
    """The same durable POST over 64 partitions of one disk, against one partition."""
    size = 4 * KIB
    with fresh_folder() as folder, ExitStack() as stack:
        stores: dict[int, Server] = {}
        for number in (1, 64):
            server = Server(f"embedded-{number}", 0, folder / str(number))
            stack.callback(server.stop)
            _start_again(server, partitions=number)
            stores[number] = server
        for _ in range(max(plan.rounds, 2)):
            for number, server in stores.items():
                key = Key("put", size, 128, f"{number} partition{'s' if number > 1 else ''}")
                report = run_load(_load(plan, key, server, []))
                plan.results.add(key, report)
                plan.say(f"{key}: {_told(report, size)}")
    ratio = plan.results.ratio(Key("put", size, 128, "64 partitions"), Key("put", size, 128, "1 partition"))
    if ratio is not None:
        plan.results.values["partitions_ratio"] = ratio


def _start_again(server: Server, partitions: int | None = None, path: str = "/healthCheck") -> float:
    """Start `ambry serve` on the server's folder. Returns the seconds until `path` was answered."""
    server.folder.mkdir(parents=True, exist_ok=True)
    server.take_port()
    begun = time.perf_counter()
    start_embedded(server, 0, partitions)
    return server.wait_ready(path) - begun


def memory(plan: Plan) -> None:
    """RSS when idle, and its peak under 16 large uploads beside 16 slow readers."""
    upload_size = 128 * MIB if plan.is_quick else GIB
    with fresh_folder() as folder, started("embedded", folder, 0) as server:
        time.sleep(1.0)
        plan.results.values["rss_idle_bytes"] = server.rss_bytes()
        plan.say(f"idle: {server.rss_bytes() / MIB:.0f} MiB; 16 uploads of {upload_size // MIB} MiB, 16 slow readers")
        transfers = Transfers(server.port, 16, upload_size, 16, reader_rate=1_000_000, reader_size=256 * MIB)
        with _Peak(server) as peak:
            done = subprocess.run(
                [sys.executable, "-m", "bench.streams"],
                input=json.dumps(asdict(transfers)),
                capture_output=True,
                text=True,
                timeout=_LOAD_SECONDS_MAX,
                check=False,
            )
        if done.returncode != 0:
            raise ServerFailed(f"the transfers failed:\n{done.stderr[-4000:]}\nserver: {server.log_end()}")
        outcome = json.loads(done.stdout)
        if not outcome["is_intact"]:
            plan.results.problems.append("memory: an upload did not come back as it was")
        plan.results.values["rss_peak_bytes"] = peak.bytes
        plan.results.values["upload_mib_per_second"] = 16 * upload_size / MIB / outcome["seconds"]
        plan.say(f"peak: {peak.bytes / MIB:.0f} MiB, uploads {16 * upload_size / MIB / outcome['seconds']:.0f} MiB/s")


def access(plan: Plan) -> None:
    """GETs with a bearer token against GETs of nobody, of one store."""
    size = 4 * KIB
    with fresh_folder() as folder, started("embedded", folder, size) as server:
        paths = _fill(server, size)
        request = urllib.request.Request(
            f"http://127.0.0.1:{server.port}/accounts/keys",
            data=json.dumps({"accountName": "default", "grants": [{"rights": ["read"]}]}).encode(),
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            token = json.loads(answer.read())["token"]
        for _ in range(max(plan.rounds, 2)):
            for layout, shown in (("anonymous", ""), ("with a token", token)):
                key = Key("get", size, 32, layout)
                report = run_load(replace(_load(plan, key, server, paths), token=shown))
                plan.results.add(key, report)
                plan.say(f"{key}: {_told(report, size)}")
    ratio = plan.results.ratio(Key("get", size, 32, "with a token"), Key("get", size, 32, "anonymous"))
    if ratio is not None:
        plan.results.values["access_ratio"] = ratio


class _Peak:
    """Watches the resident memory of a server from a thread, every 20 ms."""

    def __init__(self, server: Server) -> None:
        self.bytes = 0
        self._pids = server.pids
        self._server = server
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="rss", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_over.wait(0.02):
            self.bytes = max(self.bytes, self._server.rss_bytes())


def start_time(plan: Plan) -> None:
    """Seconds from the command to the first answer of an empty store; the median of several."""
    with fresh_folder() as folder:
        took = []
        for number in range(5):
            server = Server("embedded", 0, folder / str(number))
            try:
                took.append(_start_again(server))
            finally:
                server.stop()
        plan.results.values["start_seconds"] = sorted(took)[len(took) // 2]
        plan.say(f"start: {', '.join(f'{seconds:.2f} s' for seconds in sorted(took))}")


def reopen(plan: Plan) -> None:
    """Seconds from the command to the answer of a GET, with a million blobs and after kill -9 under load."""
    count = 50_000 if plan.is_quick else 1_000_000
    size = 256
    with fresh_folder() as folder, started("embedded", folder, size) as server:
        plan.say(f"putting {count} blobs of {size} B")
        load = Load(server.port, 128, size, seconds=590, count=count, put_percent=100, collect_max=1000)
        report = run_load(load)
        plan.say(f"put {report.operations}: {_told(report, size)}; kill -9")
        if report.errors or report.operations < count:
            plan.results.problems.append(f"reopen: {report.operations} of {count} put, {report.errors} errors")
        server.kill()
        seconds = _start_again(server, path=report.paths[-1][0])
        plan.say(f"answered after {seconds:.2f} s")
        if not plan.is_quick:
            plan.results.values["reopen_seconds"] = seconds
        check = Load(server.port, 8, size, seconds=30, count=1000, paths=report.paths, verify_every=1)
        checked = run_load(check)
        if checked.errors or checked.mismatches:
            plan.results.problems.append(
                f"reopen: {checked.errors} errors, {checked.mismatches} wrong bodies; {checked.error_example}"
            )


def replicas(plan: Plan) -> None:
    """Durable POSTs to three replicas, synced on two, against one replica; then GETs while a datanode dies."""
    size = 4 * KIB
    with fresh_folder() as folder, ExitStack() as stack:
        stores = {count: stack.enter_context(started_replicas(folder, count)) for count in (1, 3)}
        for _ in range(max(plan.rounds, 2)):
            for count, server in stores.items():
                key = Key("put", size, 128, f"{count} replica{'s' if count > 1 else ''}")
                report = run_load(_load(plan, key, server, []))
                plan.results.add(key, report)
                plan.say(f"{key}: {_told(report, size)}")
        ratio = plan.results.ratio(Key("put", size, 128, "3 replicas"), Key("put", size, 128, "1 replica"))
        if ratio is not None:
            plan.results.values["replicas_ratio"] = ratio
        server = stores[3]
        for name, number in (("stop", signal.SIGSTOP), ("kill", signal.SIGKILL)):
            digests = {path: sha256(body(size, kind)).digest() for path, kind in _fill(server, size)}
            process = server.processes[0]
            outcome = asyncio.run(read_while(server.port, digests, partial(process.send_signal, number)))
            process.send_signal(signal.SIGCONT)
            plan.results.problems += [f"GET while a datanode dies ({name}): {error}" for error in outcome.errors[:5]]
            plan.results.values[f"{name}_p99_ms"] = outcome.p99(outcome.after) * 1000
            plan.say(
                f"GET while SIG{name.upper()}: {len(outcome.before)} before, {len(outcome.after)} in the second after, "
                f"{len(outcome.errors)} errors; p99 {outcome.p99(outcome.before) * 1000:.1f} ms before, "
                f"{outcome.p99(outcome.after) * 1000:.1f} ms after, {outcome.p99(outcome.later) * 1000:.1f} ms later"
            )
            if process.poll() is None:
                server.wait_writable()


JOBS: Final[dict[str, Callable[[Plan], None]]] = {
    "4KiB": lambda plan: matrix(plan, 4 * KIB),
    "64KiB": lambda plan: matrix(plan, 64 * KIB),
    "1MiB": lambda plan: matrix(plan, MIB),
    "64MiB": lambda plan: matrix(plan, 64 * MIB),
    "access": access,
    "partitions": partitions,
    "memory": memory,
    "start": start_time,
    "reopen": reopen,
    "replicas": replicas,
}
"""Name for `--only` to job, in the order in which they run."""
