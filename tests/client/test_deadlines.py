"""`deadline_s` bounds a whole call: heads and bodies, in both directions, however little of them comes at a time."""

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ambry.client import Client
from ambry.client.http import Pool
from ambry.errors import AmbryError, DeadlineExceeded
from ambry.limits import MIB
from tests.client.conftest import bytes_of
from tests.client.test_trouble import ID

BASE = "default/default/deadlines"


@pytest.fixture
def trickling() -> Iterator[Callable[[bytes], str]]:
    """Servers that say the beginning of an answer, and then a byte every tenth of a second, for a minute."""
    is_over = threading.Event()
    listeners: list[socket.socket] = []

    def answer(connection: socket.socket, beginning: bytes) -> None:
        with connection:
            try:
                connection.recv(65_536)
                connection.sendall(beginning)
                for _ in range(600):
                    if is_over.wait(0.1):
                        return
                    connection.sendall(b"x")
            except OSError:
                return

    def accept(listener: socket.socket, beginning: bytes) -> None:
        while not is_over.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection, beginning), daemon=True).start()

    def start(beginning: bytes) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        threading.Thread(target=accept, args=(listener, beginning), daemon=True).start()
        return "http://{}:{}".format(*listener.getsockname())

    yield start
    is_over.set()
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


# A minute of bytes would be the whole answer, and the call would succeed.
@pytest.mark.parametrize(
    "beginning",
    [
        b"HTTP/1.1 200 OK\r\nx-ambry-request-id: r-1\r\nContent-Length: 600\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx-ambry-request-id: r-1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx-trickling: ",
        b"HTTP/1.1 503 Not now\r\nContent-Length: 600\r\n\r\n",
    ],
)
def test_an_answer_that_trickles_ends_with_the_deadline(trickling: Callable[[bytes], str], beginning: bytes) -> None:
    with Client(trickling(beginning)) as client, pytest.raises(AmbryError) as caught:
        client.get(ID, deadline_s=1)
    assert caught.value.name in {"deadline_exceeded", "unavailable"}
    assert caught.value.facts["frontend"] == client._settings.urls[0]
    assert len(caught.value.facts["attempts"]) == 1  # type: ignore[arg-type] # the list of attempts


def test_a_long_body_that_trickles_ends_with_the_deadline(trickling: Callable[[bytes], str]) -> None:
    url = trickling(b"HTTP/1.1 200 OK\r\nContent-Length: 600\r\n\r\n")
    exchange = Pool().exchange(url, "GET", "/blob", {}, None, 1.0, can_repeat=True)
    exchange.stream()
    with pytest.raises(DeadlineExceeded, match="bytes short"):
        exchange.gather(MIB)


def test_a_server_that_takes_a_body_slowly_ends_with_the_deadline(tmp_path: Path) -> None:
    is_over = threading.Event()
    path = tmp_path / "file"
    path.write_bytes(bytes(40 * MIB))
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            kept = []
            while not is_over.is_set():
                try:
                    connection, _ = listener.accept()
                except OSError:
                    break
                # What fits into the buffers of the kernel goes, and no more.
                kept.append(connection)
            for connection in kept:
                connection.close()

        threading.Thread(target=serve, daemon=True).start()
        sources: list[Callable[[Client], Any]] = [
            lambda client: client.put(bytes(40 * MIB), deadline_s=1),
            lambda client: client.put_stream((bytes(MIB) for _ in range(40)), deadline_s=1),
            lambda client: client.upload_file(path, deadline_s=1),
            lambda client: client.upload_file(path, deadline_s=1, part_bytes=100 * MIB),
        ]
        for call in sources:
            with Client("http://{}:{}".format(*listener.getsockname())) as client, pytest.raises(DeadlineExceeded):
                call(client)
        is_over.set()
        listener.shutdown(socket.SHUT_RDWR)


def test_a_source_that_takes_its_time_ends_with_the_deadline(client: Client) -> None:
    waits = threading.Event()

    def pieces() -> Iterator[bytes]:
        for _ in range(600):
            waits.wait(0.1)
            yield b"x"

    with pytest.raises(DeadlineExceeded):
        client.put(pieces(), f"{BASE}/slow", deadline_s=1)
    assert not client.exists(f"{BASE}/slow")


def test_files_are_transferred_within_their_time(client: Client, tmp_path: Path) -> None:
    path, target = tmp_path / "file", tmp_path / "target"
    path.write_bytes(bytes_of(3 * MIB))
    stored = client.upload_file(path, deadline_s=60, part_bytes=MIB)
    client.download_file(stored.id, target, deadline_s=60, part_bytes=MIB)
    assert target.read_bytes() == path.read_bytes()
    with pytest.raises(DeadlineExceeded):
        client.download_file(stored.id, tmp_path / "late", deadline_s=0, part_bytes=MIB)
    with pytest.raises(DeadlineExceeded):
        client.upload_file(path, deadline_s=0, part_bytes=MIB)
    assert not (tmp_path / "late").exists()
