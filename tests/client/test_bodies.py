"""What is sent is what was announced: sources that are longer or shorter than they said, and buffers of any kind."""

import io
import socket
import threading
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ambry.client import Client
from ambry.client.http import Chunks, Pool
from ambry.errors import AmbryError, BadRequest, FileChanged, NameNotFound
from ambry.limits import MIB
from tests.client.conftest import bytes_of

BASE = "default/default/bodies"


def pieces_of(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


@pytest.mark.parametrize("step", [10, 7, 1000])
@pytest.mark.parametrize("size", [10, 29, 31, 1000])
@pytest.mark.parametrize("kind", [io.BytesIO, pieces_of])
def test_a_source_of_another_size_than_was_told_is_an_error_and_nothing_is_stored(
    client: Client, kind: Callable[..., Any], size: int, step: int
) -> None:
    data = bytes_of(30)
    source = io.BytesIO(data) if kind is io.BytesIO else pieces_of(data, step)
    with pytest.raises(BadRequest) as caught:
        client.put(source, f"{BASE}/wrong", size=size)
    assert not caught.value.retryable
    assert str(size) in caught.value.message
    assert not client.exists(f"{BASE}/wrong")


def test_bytes_and_the_size_that_is_told_of_them_must_agree(client: Client) -> None:
    with pytest.raises(BadRequest, match=r"30 bytes.* 10"):
        client.put(bytes(30), f"{BASE}/wrong", size=10)
    assert client.put(bytes(30), size=30).size == 30


def test_what_is_too_much_is_never_taken_for_the_next_request(client: Client) -> None:
    client.put(b"precious", f"{BASE}/precious", upsert=True)
    smuggled = f"DELETE /named/{BASE}/precious HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    for source in (io.BytesIO(bytes(10) + smuggled), iter([bytes(10), smuggled]), iter([bytes(9), b"x" + smuggled])):
        with pytest.raises(BadRequest):
            client.put(source, f"{BASE}/cover", size=10)
        assert client.get(f"{BASE}/precious") == b"precious"
        with pytest.raises(NameNotFound):
            client.get(f"{BASE}/cover")


@pytest.mark.parametrize("size", [10, 3 * MIB])
def test_a_file_of_another_size_has_changed(client: Client, tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes_of(2 * MIB))
    with path.open("rb") as file, pytest.raises(FileChanged, match=rf"2097152 bytes.* {size}|1048576 bytes.* {size}"):
        client.put(file, f"{BASE}/file", size=size)
    assert not client.exists(f"{BASE}/file")


def test_buffers_of_numbers_are_sent_as_their_bytes(client: Client) -> None:
    numbers = array("q", range(1000))
    table = memoryview(numbers.tobytes()).cast("q", (10, 100))
    for buffer in (memoryview(numbers), table, memoryview(numbers)[::2], memoryview(b"").cast("q")):
        stored = client.put(buffer)
        assert stored.size == buffer.nbytes
        assert client.get(stored.id) == buffer.tobytes()
    assert client.get(client.put(iter([memoryview(numbers)])).id) == numbers.tobytes()  # type: ignore[arg-type] # buffers stand for bytes


def test_pieces_may_be_one_buffer_that_is_filled_again(client: Client) -> None:
    def pieces() -> Iterator[bytearray]:
        buffer = bytearray(1000)
        for value in range(5):
            buffer[:] = bytes([value]) * 1000
            yield buffer

    expected = b"".join(bytes([value]) * 1000 for value in range(5))
    for size in (None, 5000):
        assert client.get(client.put(pieces(), size=size).id) == expected  # type: ignore[arg-type] # buffers stand for bytes


@pytest.mark.parametrize("source", ["a text", io.StringIO("a text"), ["a", "text"], [1, 2], [None]])
def test_what_is_not_bytes_is_refused(client: Client, source: Any) -> None:
    with pytest.raises(BadRequest, match="made of bytes"):
        client.put(source, f"{BASE}/wrong", size=6)
    assert not client.exists(f"{BASE}/wrong")


def test_what_a_source_raises_is_raised_and_nothing_is_stored(client: Client) -> None:
    for error in (BrokenPipeError("mine"), TimeoutError("mine"), OSError("mine"), ValueError("mine")):

        def broken(error: Exception = error) -> Iterator[bytes]:
            yield bytes(1000)
            raise error

        with pytest.raises(type(error), match="mine"):
            client.put(broken(), f"{BASE}/broken")
        assert not client.exists(f"{BASE}/broken")


@pytest.mark.parametrize("pieces", [(b"12345", b"67890x"), (b"1234567890", b"x"), (b"12345",), ()])
def test_a_connection_sends_no_more_than_was_announced_and_is_not_kept_for_less(pieces: tuple[bytes, ...]) -> None:
    received = bytearray()
    is_over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with listener.accept()[0] as connection:
                while data := connection.recv(65_536):
                    received.extend(data)
            is_over.set()

        threading.Thread(target=serve, daemon=True).start()

        def body() -> Chunks:
            return pieces

        url = "http://{}:{}".format(*listener.getsockname())
        with pytest.raises(AmbryError, match="bytes"):
            Pool().exchange(url, "PUT", "/x", {"Content-Length": "10"}, body, 30, can_repeat=True)
        # The server sees the end at once: the connection is not kept.
        assert is_over.wait(30)
    assert len(received.partition(b"\r\n\r\n")[2]) <= 10
