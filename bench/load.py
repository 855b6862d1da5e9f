"""The load generator: a process of its own that keeps N keep-alive connections to 127.0.0.1 busy, one request each.

    echo '{"port": 8080, "connections": 32, "seconds": 3, "size": 4096, ...}' | python -m bench.load
    python -m bench.load --self-test

Everything that can be done beforehand is: requests are finished bytes, answers land in one buffer and are parsed for
status and length only. Plain sockets under epoll, because that costs less than any framework: the generator shares
the machine with what it measures. It reports the share of a core that it took. A share of the bodies it reads is
compared with what was put. It knows HTTP/1.1 answers with a Content-Length and nothing else.
"""

import argparse
import json
import os
import select
import socket
import sys
import time
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import xxhash

from bench.bodies import body, distinct_bodies
from bench.histogram import Histogram
from bench.processes import cpu_seconds

HOST: Final = "127.0.0.1"
"""The only address this process ever connects to."""

SECONDS_MAX: Final = 600.0
OPERATIONS_MAX: Final = 10_000_000
CONNECTIONS_MAX: Final = 4096
ERRORS_MAX: Final = 100
"""Then the run is stopped: a rate of errors is not a rate of operations."""

_BUFFER_BYTES: Final = 512 * 1024
_HEAD_BYTES_MAX: Final = 16 * 1024
_JOINED_BYTES_MAX: Final = 128 * 1024
"""Up to here head and body are one buffer and one `send`; above, copying would cost more than the call."""

_IDLE_SECONDS_MAX: Final = 60.0


@dataclass(frozen=True, slots=True)
class Load:
    """What to do. Time or `count`, whichever comes first, ends the run; the warm-up is not counted."""

    port: int
    connections: int
    size: int
    seconds: float
    warm_up_seconds: float = 0.0
    count: int = OPERATIONS_MAX
    put_percent: int = 0
    paths: Sequence[tuple[str, int]] = ()
    """Paths to GET, each with the number of the body that it holds."""
    verify_every: int = 8
    collect_max: int = 0
    """How many paths of stored blobs to report."""
    server_pids: Sequence[int] = ()
    put_prefix: str = ""
    """Puts are PUT of names below this path, each another one in no order; without it POST /."""
    first_name: int = 0
    """Number of the first of these names, so that a second run has others."""
    token: str = ""
    """A bearer token to send with every GET."""

    def check(self) -> None:
        """Raises ValueError for a load that would not end."""
        if not 0 < self.seconds + self.warm_up_seconds <= SECONDS_MAX:
            raise ValueError(f"seconds beyond {SECONDS_MAX}")
        if not 0 < self.count <= OPERATIONS_MAX:
            raise ValueError(f"count beyond {OPERATIONS_MAX}")
        if not 0 < self.connections <= CONNECTIONS_MAX:
            raise ValueError(f"connections beyond {CONNECTIONS_MAX}")
        if self.put_percent < 100 and not self.paths:
            raise ValueError("nothing to get")


@dataclass(slots=True)
class Report:
    """What happened in the measured window. CPU in seconds; `own_cpu_share` of one core."""

    seconds: float = 0.0
    operations: int = 0
    body_bytes: int = 0
    errors: int = 0
    error_example: str = ""
    verified: int = 0
    mismatches: int = 0
    own_cpu_share: float = 0.0
    server_cpu_seconds: float = 0.0
    get_ns: Histogram = field(default_factory=Histogram)
    put_ns: Histogram = field(default_factory=Histogram)
    paths: list[tuple[str, int]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """For the process that asked."""
        return asdict(self) | {"get_ns": self.get_ns.to_json(), "put_ns": self.put_ns.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Report":
        """What `to_json` gave."""
        values = dict(data)
        values["get_ns"] = Histogram.from_json(data["get_ns"])
        values["put_ns"] = Histogram.from_json(data["put_ns"])
        values["paths"] = [(path, number) for path, number in data["paths"]]
        return cls(**values)


def parse_head(buffer: bytearray, size: int) -> tuple[int, int, int] | None:
    """Status, Content-Length and size of the head at the front of `buffer[:size]`; None while it is incomplete.

    Raises ValueError for what is no answer, or has no length.
    """
    head_end = buffer.find(b"\r\n\r\n", 0, size)
    if head_end < 0:
        if size > _HEAD_BYTES_MAX:
            raise ValueError(f"no end of the answer's head within {_HEAD_BYTES_MAX} bytes")
        return None
    if not buffer.startswith(b"HTTP/1.1 "):
        raise ValueError(f"not an answer: {bytes(buffer[: min(size, 40)])!r}")
    at = buffer.find(b"\r\nContent-Length: ", 0, head_end)
    if at < 0:
        raise ValueError(f"an answer without Content-Length: {bytes(buffer[:head_end])!r}")
    at += 18
    end = buffer.find(b"\r\n", at, head_end + 2)
    return int(buffer[9:12]), int(buffer[at:end]), head_end + 4


@dataclass(frozen=True, slots=True)
class Operation:
    """One request, ready to send: `head` (with a small body joined to it), then `body`."""

    is_put: bool
    number: int
    head: bytes
    head_size: int
    body: memoryview | None
    status: int
    digest: int


def operations_of(load: Load) -> list[Operation]:
    """The requests that the run goes round in."""
    bodies = [body(load.size, number) for number in range(distinct_bodies(load.size))]
    puts = [_put(number, data, load.put_prefix) for number, data in enumerate(bodies)] if load.put_percent else []
    digests = [xxhash.xxh3_64_intdigest(data) for data in bodies]
    gets = (
        [_get(path, number, digests[number], load.token) for path, number in load.paths]
        if load.put_percent < 100
        else []
    )
    if not gets or not puts:
        return gets or puts
    # Spread the puts evenly: operation i is a put when the running share passes the next whole number.
    mixed: list[Operation] = []
    for i in range(max(len(gets), 100)):
        is_put = (i + 1) * load.put_percent // 100 > i * load.put_percent // 100
        mixed.append(puts[i % len(puts)] if is_put else gets[i % len(gets)])
    return mixed


def _get(path: str, number: int, digest: int, token: str) -> Operation:
    credentials = f"Authorization: Bearer {token}\r\n" if token else ""
    head = (
        f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nUser-Agent: ambry-bench\r\nAccept: */*\r\n{credentials}\r\n"
    ).encode()
    return Operation(False, number, head, len(head), body=None, status=200, digest=digest)


_NAME_MARK: Final = b"#" * 16
"""Stands in a prepared request for the name that it gets when it is sent."""


def name_of(number: int) -> bytes:
    """The name with a number: 16 hexadecimal digits, in no order, each once."""
    return b"%016x" % (number * 0x9E3779B97F4A7C15 % 2**64)


def _put(number: int, data: bytes, prefix: str) -> Operation:
    what = f"PUT {prefix}{_NAME_MARK.decode()}" if prefix else "POST /"
    head = (
        f"{what} HTTP/1.1\r\nHost: {HOST}\r\nUser-Agent: ambry-bench\r\nAccept: */*\r\n"
        f"Content-Type: application/octet-stream\r\nContent-Length: {len(data)}\r\n\r\n"
    ).encode()
    if len(data) > _JOINED_BYTES_MAX:
        return Operation(True, number, head, len(head), body=memoryview(data), status=201, digest=0)
    return Operation(True, number, head + data, len(head) + len(data), body=None, status=201, digest=0)


class _Connection:
    """One keep-alive connection and the request that it waits for."""

    __slots__ = ("digest", "fd", "head", "missing", "operation", "recv_into", "send", "sent_at_ns", "socket", "unsent")

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection((HOST, port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.fd = self.socket.fileno()
        self.recv_into = self.socket.recv_into
        self.send = self.socket.send
        self.operation: Operation | None = None
        self.sent_at_ns = 0
        self.unsent: list[memoryview] = []
        self.missing = -1
        """Bytes of the answer's body still to come; -1 before its head is complete."""
        self.head = b""
        self.digest: xxhash.xxh3_64 | None = None


class Generator:
    """The loop. One instance makes one run."""

    def __init__(self, load: Load) -> None:
        load.check()
        self.load = load
        self.report = Report()
        self._operations = operations_of(load)
        self._next = 0
        self._started = 0
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._epoll = select.epoll()
        self._connections: dict[int, _Connection] = {}
        self._get_ns = array("Q")
        self._put_ns = array("Q")
        self._is_measuring = load.warm_up_seconds == 0
        self._count = load.count
        self._in_flight = 0
        self._completed = 0

    def run(self) -> Report:
        """Warm up, measure, wait for what is in flight, report."""
        load = self.load
        for _ in range(load.connections):
            self._connect()
        start = time.perf_counter()
        measure_at = start + load.warm_up_seconds
        end_at = measure_at + load.seconds
        begun = self._begin() if self._is_measuring else (start, 0.0, 0.0)
        for connection in list(self._connections.values()):
            self._send_next(connection, time.perf_counter_ns())
        idle_since = time.perf_counter()
        is_finished = False
        readable = select.EPOLLIN
        while self._in_flight:
            events = self._epoll.poll(1.0)
            now = time.perf_counter()
            if not self._is_measuring and now >= measure_at:
                self._is_measuring = True
                begun = self._begin()
            if not is_finished and (now >= end_at or self.report.errors > ERRORS_MAX):
                # What is in flight is still waited for, but no longer counted: an answer that the window cut off
                # would count with its whole latency and only a part of its time.
                self._finish(begun)
                is_finished = True
                self._count = 0
                self._is_measuring = False
            if events:
                idle_since = now
            elif now - idle_since > _IDLE_SECONDS_MAX:
                raise TimeoutError(f"no answer for {_IDLE_SECONDS_MAX} s, {self._in_flight} requests in flight")
            for fd, mask in events:
                connection = self._connections[fd]
                try:
                    if mask == readable:
                        self._receive(connection)
                    else:
                        self._on_other_event(connection, mask)
                except (OSError, ValueError) as error:
                    self._fail(connection, f"{type(error).__name__}: {error}")
        if not is_finished:
            self._finish(begun)
        self._close()
        return self.report

    def _begin(self) -> tuple[float, float, float]:
        return time.perf_counter(), time.process_time(), cpu_seconds(self.load.server_pids)

    def _finish(self, begun: tuple[float, float, float]) -> None:
        ended = self._begin()
        report = self.report
        report.seconds = ended[0] - begun[0]
        report.own_cpu_share = (ended[1] - begun[1]) / report.seconds
        report.server_cpu_seconds = ended[2] - begun[2]
        report.operations = len(self._get_ns) + len(self._put_ns)
        report.body_bytes = report.operations * self.load.size
        report.get_ns.add_all(self._get_ns)
        report.put_ns.add_all(self._put_ns)

    def _connect(self) -> _Connection:
        connection = _Connection(self.load.port)
        self._connections[connection.fd] = connection
        self._epoll.register(connection.fd, select.EPOLLIN)
        return connection

    def _close(self) -> None:
        for connection in self._connections.values():
            connection.socket.close()
        self._epoll.close()

    def _on_other_event(self, connection: _Connection, mask: int) -> None:
        if mask & select.EPOLLOUT:
            self._send_rest(connection)
        if mask & ~select.EPOLLOUT:
            self._receive(connection)

    def _fail(self, connection: _Connection, reason: str) -> None:
        self.report.errors += 1
        self.report.error_example = self.report.error_example or reason
        self._in_flight -= 1
        self._epoll.unregister(connection.fd)
        del self._connections[connection.fd]
        connection.socket.close()
        if self._started < self._count and self.report.errors <= ERRORS_MAX:
            self._send_next(self._connect(), time.perf_counter_ns())

    def _send_next(self, connection: _Connection, now_ns: int) -> None:
        if self._started >= self._count:
            return
        self._started += 1
        at = self._next
        operation = self._operations[at]
        at += 1
        self._next = at if at < len(self._operations) else 0
        connection.operation = operation
        connection.missing = -1
        connection.head = b""
        self._in_flight += 1
        connection.sent_at_ns = now_ns
        head = operation.head
        if operation.is_put and self.load.put_prefix:
            head = head.replace(_NAME_MARK, name_of(self.load.first_name + self._started), 1)
        try:
            sent = connection.send(head)
        except BlockingIOError:
            sent = 0
        if sent < operation.head_size or operation.body is not None:
            connection.unsent = [memoryview(head)[sent:]]
            if operation.body is not None:
                connection.unsent.append(operation.body)
            self._epoll.modify(connection.fd, select.EPOLLIN | select.EPOLLOUT)

    def _send_rest(self, connection: _Connection) -> None:
        unsent = connection.unsent
        while unsent:
            try:
                sent = connection.send(unsent[0])
            except BlockingIOError:
                return
            if sent < len(unsent[0]):
                unsent[0] = unsent[0][sent:]
                return
            del unsent[0]
        self._epoll.modify(connection.fd, select.EPOLLIN)

    def _receive(self, connection: _Connection) -> None:
        kept = connection.head
        try:
            if kept:
                self._buffer[: len(kept)] = kept
                size = connection.recv_into(self._view[len(kept) :])
            else:
                size = connection.recv_into(self._buffer)
        except BlockingIOError:
            return
        if size == 0:
            raise ConnectionError("the server closed the connection")
        start = 0
        if connection.missing < 0:
            operation = connection.operation
            if (
                not kept
                and self._completed % self.load.verify_every
                and operation is not None
                and not operation.is_put
                and self._buffer.startswith(b"HTTP/1.1 200 OK\r\n")
                and self._buffer.find(b"\r\n\r\n", 0, size) == size - 4 - self.load.size
            ):
                # The usual whole answer to a GET: its length is right if the body's is. One in `verify_every` takes
                # the long way, with its Content-Length and its bytes checked.
                self._complete(connection)
                return
            size += len(kept)
            parsed = parse_head(self._buffer, size)
            if parsed is None:
                connection.head = bytes(self._view[:size])
                return
            connection.head = b""
            start = self._on_head(connection, parsed, size)
        missing = connection.missing - (size - start)
        if missing < 0:
            raise ValueError(f"{-missing} bytes after the answer")
        connection.missing = missing
        if connection.digest is not None:
            connection.digest.update(self._view[start:size])
        if missing == 0:
            self._complete(connection)

    def _on_head(self, connection: _Connection, parsed: tuple[int, int, int], size: int) -> int:
        status, length, head_size = parsed
        operation = connection.operation
        if operation is None:
            raise ValueError("an answer that nobody asked for")
        if status != operation.status:
            raise ValueError(f"status {status}: {bytes(self._view[: min(size, 600)])!r}")
        connection.missing = length
        if operation.is_put:
            if len(self.report.paths) < self.load.collect_max:
                self.report.paths.append((_location(self._buffer, head_size), operation.number))
        elif length != self.load.size:
            raise ValueError(f"{length} bytes, expected {self.load.size}")
        elif self._completed % self.load.verify_every == 0:
            connection.digest = xxhash.xxh3_64()
        return head_size

    def _complete(self, connection: _Connection) -> None:
        operation = connection.operation
        assert operation is not None
        now_ns = time.perf_counter_ns()
        self._completed += 1
        self._in_flight -= 1
        if self._is_measuring:
            (self._put_ns if operation.is_put else self._get_ns).append(now_ns - connection.sent_at_ns)
        if connection.digest is not None:
            self.report.verified += 1
            self.report.mismatches += connection.digest.intdigest() != operation.digest
            connection.digest = None
        connection.operation = None
        self._send_next(connection, now_ns)


def _location(buffer: bytearray, head_size: int) -> str:
    at = buffer.find(b"\r\nLocation: ", 0, head_size)
    if at < 0:
        raise ValueError("an answer to POST without Location")
    at += 12
    return buffer[at : buffer.find(b"\r\n", at, head_size)].decode("ascii")


# --- how fast the generator itself is ----------------------------------------------------------------------------


def _serve_trivially(listener: socket.socket, size: int) -> None:
    """Answer every request with the same bytes, whatever it says: the cheapest server that Python allows."""
    answer = f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode() + body(size, 0)
    buffer = bytearray(64 * 1024)
    epoll = select.epoll()
    epoll.register(listener.fileno(), select.EPOLLIN)
    connections: dict[int, socket.socket] = {}
    while True:
        for fd, _ in epoll.poll():
            if fd == listener.fileno():
                connection = listener.accept()[0]
                connections[connection.fileno()] = connection
                epoll.register(connection.fileno(), select.EPOLLIN)
            elif connections[fd].recv_into(buffer):
                connections[fd].send(answer)
            else:
                epoll.unregister(fd)
                connections.pop(fd).close()


def self_test(size: int, connections: int, seconds: float) -> Report:
    """Operations/s against a trivial server in another process."""
    listener = socket.create_server((HOST, 0), backlog=CONNECTIONS_MAX)
    port = listener.getsockname()[1]
    child = os.fork()
    if child == 0:
        try:
            _serve_trivially(listener, size)
        finally:
            os._exit(1)
    listener.close()
    try:
        load = Load(port, connections, size, seconds, warm_up_seconds=0.5, paths=(("/" + "x" * 43, 0),))
        return Generator(load).run()
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def main() -> None:
    """One load as JSON on standard input, its report as JSON on standard output."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--self-test", action="store_true", help="measure the generator against a trivial server")
    if parser.parse_args().self_test:
        for size in (128, 4096):
            report = self_test(size, connections=32, seconds=3.0)
            rate = report.operations / report.seconds
            share = report.own_cpu_share
            print(f"{size} B: {rate:.0f} operations/s with {share:.0%} of a core, so {rate / share:.0f} on one core")
        return
    print(json.dumps(Generator(Load(**json.load(sys.stdin))).run().to_json()))


if __name__ == "__main__":
    main()
