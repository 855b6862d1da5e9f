"""Real processes for tests: started, waited for by what they say, and always ended by their own id."""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

SECRET = "a secret of the tests, for this machine only"
READY_SECONDS_MAX = 60.0


def write_cluster(folder: Path, node_port: int, *disks: str) -> None:
    """`cluster.toml` with one datanode, its disks of 8 GiB, and partitions 1 to 8."""
    disk_tables = "".join(
        f"""
[[node.disk]]
path = "{disk}"
capacity_bytes = "8 GiB"
"""
        for disk in disks
    )
    (folder / "cluster.toml").write_text(f"""
fingerprint = "test"
version = 1
[[datacentre]]
number = 1
name = "here"
[[node]]
name = "node"
datacentre = "here"
host = "127.0.0.1"
port = {node_port}
{disk_tables}
[[partitions]]
numbers = "1-8"
capacity_bytes = "1 GiB"
[[partitions.replica]]
node = "node"
""")


class Ambry:
    """One `ambry` process. Log lines are JSON on standard error; `lines` has those that came so far."""

    def __init__(self, *arguments: str, cwd: Path | None = None, environment: Mapping[str, str] | None = None) -> None:
        tree = str(Path(__file__).parents[2])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ambry.cli.main", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": tree, "AMBRY_CLUSTER_SECRET": SECRET, **(environment or {})},
        )
        self.lines: list[dict[str, object]] = []
        self.text: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, name="log of ambry", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.text.append(line)
                if line.startswith("{"):
                    self.lines.append(json.loads(line))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, event: str, count: int = 1) -> dict[str, object]:
        """The `count`-th log line of an event; fails when the process ends before, or takes too long."""
        give_up_at = time.monotonic() + READY_SECONDS_MAX
        with self._changed:
            while True:
                found = [line for line in self.lines if line["event"] == event]
                if len(found) >= count:
                    return found[count - 1]
                left = give_up_at - time.monotonic()
                assert left > 0, f"no {event!r} in time:\n{''.join(self.text)}"
                assert self.process.poll() is None, f"ended before {event!r}:\n{''.join(self.text)}"
                self._changed.wait(min(left, 0.2))

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        return self.status()

    def status(self) -> int:
        """Wait for the end and return the exit status."""
        status = self.process.wait(READY_SECONDS_MAX)
        self._reader.join(READY_SECONDS_MAX)
        return status

    @property
    def output(self) -> str:
        """What is left on the standard output of a process that has ended."""
        assert self.process.stdout is not None
        return self.process.stdout.read()

    @property
    def errors(self) -> str:
        """Standard error of a process that has ended."""
        self._reader.join(READY_SECONDS_MAX)
        return "".join(self.text)

    @property
    def errors_so_far(self) -> str:
        """What came on standard error until now."""
        return "".join(self.text)

    def close(self) -> None:
        """Let go of its output."""
        self._reader.join(READY_SECONDS_MAX)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdout.close()
        self.process.stderr.close()


@contextmanager
def ambry(*arguments: str, cwd: Path | None = None, environment: Mapping[str, str] | None = None) -> Iterator[Ambry]:
    """A process that is gone when the block ends."""
    started = Ambry(*arguments, cwd=cwd, environment=environment)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.process.kill()
        started.process.wait(READY_SECONDS_MAX)
        started.close()


@contextmanager
def serving(data: Path, *arguments: str) -> Iterator[tuple[Ambry, str]]:
    """`ambry serve` on a free port, ready, and its URL."""
    with ambry("serve", str(data), "--port", "0", *arguments) as process:
        yield process, str(process.wait_for("ready")["url"])


def ask(
    method: str, url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers (names in lower case) and body of an HTTP request."""
    sent = {"Content-Type": "text/plain", **(headers or {})}
    request = urllib.request.Request(url, data=body, method=method, headers=sent)
    try:
        with urllib.request.urlopen(request, timeout=READY_SECONDS_MAX) as answer:
            return answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, {name.lower(): value for name, value in error.headers.items()}, error.read()


def put(url: str, body: bytes) -> str:
    """Store a blob; its id."""
    status, headers, answer = ask("POST", f"{url}/", body)
    assert status == http.HTTPStatus.CREATED, answer
    return headers["location"].lstrip("/")


def get(url: str, blob_id: str) -> bytes:
    """The bytes of a blob."""
    status, _, body = ask("GET", f"{url}/{blob_id}")
    assert status == http.HTTPStatus.OK, body
    return body


def children_of(pid: int) -> list[int]:
    """The processes that a process has started."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(each) for each in text.split()]


def is_gone(pid: int) -> bool:
    """Whether a process is gone, or goes within a moment; a zombie that its new parent has not seen yet is gone."""
    give_up_at = time.monotonic() + READY_SECONDS_MAX
    while time.monotonic() < give_up_at:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state in "ZX":
            return True
        time.sleep(0.01)
    return False
