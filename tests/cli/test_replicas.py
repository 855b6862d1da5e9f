"""Three datanode processes and a frontend, and one of the datanodes dies: what clients notice."""

import asyncio
import hashlib
import http.client
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from ambry.limits import MIB
from bench.bodies import body
from bench.dying import read_while
from bench.load import HOST
from bench.servers import Server, started_replicas

P99_S = {signal.SIGKILL: 0.3, signal.SIGSTOP: 0.5}
"""Beside what this machine takes for a read while nothing dies, times three: five processes may share one processor."""
UPLOAD_BYTES = 64 * MIB
PIECE_BYTES = 256 * 1024


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A frontend over three datanodes, each with a replica of every partition."""
    with started_replicas(tmp_path, 3) as started:
        yield started
        for process in started.processes:
            process.send_signal(signal.SIGCONT)


def put(server: Server, data: bytes) -> str:
    connection = http.client.HTTPConnection(HOST, server.port, timeout=60)
    connection.request("POST", "/", data)
    answer = connection.getresponse()
    said = answer.read()
    assert answer.status == http.client.CREATED, said
    connection.close()
    return str(answer.headers["Location"])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_reads_go_on_while_one_of_three_datanodes_dies(server: Server, number: signal.Signals) -> None:
    bodies = [body(4096, kind) for kind in range(64)]
    digests = {put(server, one): hashlib.sha256(one).digest() for one in bodies}
    harm = partial(server.processes[0].send_signal, number)
    outcome = asyncio.run(read_while(server.port, digests, harm, connections=8, before_s=1.0, after_s=1.5))
    assert outcome.errors == []
    assert len(outcome.before) > 100 and len(outcome.after) > 100
    assert outcome.p99(outcome.after) < P99_S[number] + 3 * outcome.p99(outcome.before)
    assert put(server, b"two of three are a quorum")


class Pieces:
    """A body that comes in pieces, and does harm on the way."""

    def __init__(self, data: bytes, *, harm_at: int, server: Server, number: signal.Signals) -> None:
        self._data = data
        self._harm_at = harm_at
        self._harm = partial(server.processes[1].send_signal, number)

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self._data), PIECE_BYTES):
            if start == self._harm_at:
                self._harm()
            yield self._data[start : start + PIECE_BYTES]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_large_upload_and_its_stream_survive_a_datanode(server: Server, number: signal.Signals) -> None:
    data = body(UPLOAD_BYTES, 1)
    connection = http.client.HTTPConnection(HOST, server.port, timeout=60)
    pieces = Pieces(data, harm_at=UPLOAD_BYTES // 4, server=server, number=number)
    connection.request("POST", "/", iter(pieces), {"Content-Length": str(len(data))})
    answer = connection.getresponse()
    assert answer.status == http.client.CREATED, answer.read()
    path = answer.headers["Location"]
    answer.read()
    connection.close()
    assert whole(server, path) == hashlib.sha256(data).digest()
    # The one that died is back, and another one dies in the middle of a stream.
    if number is signal.SIGSTOP:
        server.processes[1].send_signal(signal.SIGCONT)
        assert whole(server, path, harm=partial(server.processes[2].send_signal, number)) == (
            hashlib.sha256(data).digest()
        )
    part = ranged(server, path, UPLOAD_BYTES // 2 - 3, UPLOAD_BYTES // 2 + 5 * MIB)
    assert part == data[UPLOAD_BYTES // 2 - 3 : UPLOAD_BYTES // 2 + 5 * MIB]


def whole(server: Server, path: str, harm: partial[None] | None = None) -> bytes:
    """SHA-256 of a blob, read piece by piece."""
    connection = http.client.HTTPConnection(HOST, server.port, timeout=60)
    connection.request("GET", path)
    answer = connection.getresponse()
    assert answer.status == http.client.OK
    digest = hashlib.sha256()
    size = 0
    while piece := answer.read(PIECE_BYTES):
        digest.update(piece)
        size += len(piece)
        if harm is not None and size >= UPLOAD_BYTES // 4:
            harm()
            harm = None
    connection.close()
    assert size == int(answer.headers["Content-Length"])
    return digest.digest()


def ranged(server: Server, path: str, start: int, stop: int) -> bytes:
    connection = http.client.HTTPConnection(HOST, server.port, timeout=60)
    connection.request("GET", path, headers={"Range": f"bytes={start}-{stop - 1}"})
    answer = connection.getresponse()
    assert answer.status == http.client.PARTIAL_CONTENT
    data = answer.read()
    connection.close()
    return data
