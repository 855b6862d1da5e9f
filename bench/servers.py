"""The servers that are measured: started fresh on free ports of 127.0.0.1, and always ended.

Each has a folder of its own under `build/` of the working tree, because the disk under the tree is what is to be
measured: a folder for temporary files is often memory. Output of the processes goes to files in that folder.
"""

import contextlib
import http.client
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ambry.cli.ports import free_port
from bench.load import HOST
from bench.processes import rss_bytes, with_children

READY_SECONDS_MAX: Final = 120.0
STOP_SECONDS_MAX: Final = 60.0
_POLL_SECONDS: Final = 0.005

TREE: Final = Path(__file__).resolve().parent.parent


class ServerFailed(Exception):
    """A server ended or did not become ready. The message has the end of its output."""


@dataclass(slots=True)
class Server:
    """One measured server: one process or more, one HTTP port."""

    name: str
    port: int
    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def pids(self) -> list[int]:
        """All its processes, children included."""
        return [pid for process in self.processes for pid in with_children(process.pid)]

    def start(self, arguments: Sequence[str], environment: dict[str, str] | None = None) -> None:
        """Start one process of it. Its output is appended to a file in the folder."""
        with self._log_path().open("ab") as log:
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=TREE,
                    env=os.environ | (environment or {}),
                )
            )

    def take_port(self) -> None:
        """Take a port that is free now; before each start of a server that is started more than once."""
        self.port = free_port()

    def wait_writable(self) -> None:
        """Wait until a blob can be put: a frontend answers before it has found its datanode. Raises ServerFailed."""
        self._wait("POST", "/", b"x", http.client.CREATED)

    def wait_ready(self, path: str = "/healthCheck") -> float:
        """Wait until `path` answers 200. Returns the moment (time.perf_counter). Raises ServerFailed."""
        return self._wait("GET", path, None, http.client.OK)

    def wait_for_datanodes(self, admin_ports: Sequence[int]) -> None:
        """Wait until all of them are ready: a frontend that looks for them before would wait before it looks again."""
        for port in admin_ports:
            self._wait("GET", "/healthCheck", None, http.client.OK, port)

    def _wait(self, method: str, path: str, body: bytes | None, expected: int, port: int = 0) -> float:
        give_up_at = time.perf_counter() + READY_SECONDS_MAX
        while time.perf_counter() < give_up_at:
            for process in self.processes:
                if process.poll() is not None:
                    raise ServerFailed(f"{self.name} ended with status {process.returncode}:\n{self.log_end()}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection(HOST, port or self.port, timeout=5)
                connection.request(method, path, body)
                status = connection.getresponse().status
                connection.close()
                if status == expected:
                    return time.perf_counter()
            time.sleep(_POLL_SECONDS)
        raise ServerFailed(f"{self.name} is not ready after {READY_SECONDS_MAX} s:\n{self.log_end()}")

    def rss_bytes(self) -> int:
        """Resident memory of all its processes."""
        return rss_bytes(self.pids)

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        for process in self.processes:
            process.kill()
            process.wait()
        self.processes.clear()

    def stop(self) -> None:
        """SIGTERM, last started first; SIGKILL for what does not end in time."""
        for process in reversed(self.processes):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()

    def _log_path(self) -> Path:
        return self.folder / "output.log"

    def log_end(self) -> str:
        """The end of what its processes said."""
        return self._log_path().read_text(errors="replace")[-4000:]


@contextlib.contextmanager
def fresh_folder() -> Iterator[Path]:
    """A folder on the file system of the working tree, removed afterwards."""
    build = TREE / "build"
    build.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=build))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def started(name: str, folder: Path, size: int) -> Iterator[Server]:
    """A server of one of LAYOUTS, ready; stopped at the end. Its data are in `folder`/`name`, so twice is a restart."""
    server = Server(name, free_port(), folder / name)
    server.folder.mkdir(parents=True, exist_ok=True)
    try:
        LAYOUTS[name](server, size)
        server.wait_ready()
        server.wait_writable()
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def started_replicas(folder: Path, count: int, name_store: str | None = None) -> Iterator[Server]:
    """As `started`, with `count` replicas of everything, and with names if it is said where."""
    server = Server(f"replicas-{count}", free_port(), folder / f"replicas-{count}")
    server.folder.mkdir(parents=True, exist_ok=True)
    try:
        start_replicas(server, count, name_store)
        server.wait_ready()
        server.wait_writable()
        yield server
    finally:
        server.stop()


def start_bare(server: Server, size: int) -> None:
    """The yardstick."""
    server.start(["-m", "bench.bare", "--port", str(server.port), "--size", str(size)])


def start_embedded(server: Server, size: int, partitions: int | None = None) -> None:
    """`ambry serve`: frontend and datanode in one process."""
    del size
    extra = [] if partitions is None else ["--partitions", str(partitions)]
    data = str(server.folder / "data")
    server.start(["-m", "ambry.cli.main", "serve", "--data", data, "--port", str(server.port), *extra])


def start_separate(server: Server, size: int) -> None:
    """One `ambry frontend` and one `ambry datanode`, talking over loopback."""
    del size
    start_replicas(server, 1)


def start_replicas(server: Server, count: int, name_store: str | None = None, storage: str = "") -> list[int]:
    """One `ambry frontend` and `count` datanode processes, each with a replica of every partition.

    The datanodes come first in `processes`, the frontend last. `storage` is appended to the datanodes' settings.
    Returns the datanodes' admin ports.
    """
    folder = server.folder
    names = [f"node-{number}" for number in range(1, count + 1)]
    nodes = "".join(_NODE.format(name=name, port=free_port(), disk=folder / name) for name in names)
    replicas = "".join(_REPLICA.format(name=name) for name in names)
    (folder / "cluster.toml").write_text(_CLUSTER_HEAD + nodes + _PARTITIONS + replicas)
    secret = {"AMBRY_CLUSTER_SECRET": "a secret of the benchmark, for this machine only"}
    admin_ports = [free_port() for _ in names]
    for name, admin_port in zip(names, admin_ports, strict=True):
        settings = folder / f"{name}.toml"
        settings.write_text(_DATANODE.format(admin_port=admin_port).replace('"node"', f'"{name}"') + storage)
        (folder / name).mkdir(exist_ok=True)
        server.start(["-m", "ambry.cli.main", "datanode", "--config", str(settings)], secret)
    server.wait_for_datanodes(admin_ports)
    names_line = "" if name_store is None else f'name_store = "{name_store}"\n'
    (folder / "frontend.toml").write_text(_FRONTEND.format(port=server.port) + names_line)
    server.start(["-m", "ambry.cli.main", "frontend", "--config", str(folder / "frontend.toml")], secret)
    return admin_ports


LAYOUTS: Final = {"bare": start_bare, "embedded": start_embedded, "separate": start_separate}
"""Name of a layout to what starts it."""

_CLUSTER_HEAD: Final = """\
fingerprint = "bench"
version = 1
allow_shared_hosts = true

[[datacentre]]
number = 1
name = "here"
"""

_NODE: Final = """
[[node]]
name = "{name}"
datacentre = "here"
host = "127.0.0.1"
port = {port}

[[node.disk]]
path = "{disk}"
capacity_bytes = "1024 GiB"
"""

_PARTITIONS: Final = """
[[partitions]]
numbers = "1-4"
capacity_bytes = "100 GiB"
"""

_REPLICA: Final = """
[[partitions.replica]]
node = "{name}"
"""

_DATANODE: Final = """\
cluster_map = "cluster.toml"
node = "node"
admin_port = {admin_port}
"""

_FRONTEND: Final = """\
cluster_map = "cluster.toml"
datacentre = "here"
port = {port}
"""
