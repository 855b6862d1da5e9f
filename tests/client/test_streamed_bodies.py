"""Long bodies that are read past http.client: all bytes, the connection kept, a silent server found out."""

import socket
import threading
from collections.abc import Callable

import pytest

from ambry.client.http import Exchange, Pool
from ambry.errors import ConnectionLost, DeadlineExceeded
from tests.client.conftest import bytes_of

_BODY = bytes_of(300_000)
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(_BODY)


def _serving(answer: Callable[[socket.socket], None]) -> str:
    """A server that takes one connection and answers on it; a second one would wait in vain."""
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        with listener, listener.accept()[0] as connection:
            answer(connection)

    threading.Thread(target=run, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


def _asked(pool: Pool, url: str, timeout_s: float = 30.0) -> Exchange:
    return pool.exchange(url, "GET", "/blob", {}, None, timeout_s, can_repeat=True)


def _read(exchange: Exchange, piece_bytes: int) -> bytes:
    exchange.stream()
    view, found = memoryview(bytearray(piece_bytes)), b""
    while count := exchange.readinto(view):
        found += view[:count]
    exchange.close()
    return found


@pytest.mark.parametrize("piece_bytes", [1000, 8192, 8193, 131_072, 400_000])
def test_a_streamed_body_is_whole_and_its_connection_is_used_again(piece_bytes: int) -> None:
    def answer(connection: socket.socket) -> None:
        for _ in range(2):
            request = b""
            while not request.endswith(b"\r\n\r\n"):
                request += connection.recv(65_536)
            # Some of the body comes with the head, and so into the buffer of http.client.
            connection.sendall(_HEAD + _BODY[:5000])
            connection.sendall(_BODY[5000:])

    pool = Pool()
    url = _serving(answer)
    for _ in range(2):
        assert _read(_asked(pool, url), piece_bytes) == _BODY
    pool.close()


# Behind the head, with what http.client has read, and in the middle; into small views and large ones.
@pytest.mark.parametrize("piece_bytes", [1000, 131_072])
@pytest.mark.parametrize("sent", [0, 500, 200_000])
def test_a_server_that_falls_silent_in_a_streamed_body_ends_with_the_deadline(sent: int, piece_bytes: int) -> None:
    done = threading.Event()

    def answer(connection: socket.socket) -> None:
        connection.recv(65_536)
        connection.sendall(_HEAD + _BODY[:sent])
        done.wait(30)

    exchange = _asked(Pool(), _serving(answer), timeout_s=0.5)
    with pytest.raises(DeadlineExceeded, match=f"{300_000 - sent} bytes short"):
        _read(exchange, piece_bytes)
    done.set()


def test_a_streamed_body_that_ends_early_is_a_lost_connection() -> None:
    def answer(connection: socket.socket) -> None:
        connection.recv(65_536)
        connection.sendall(_HEAD + _BODY[:200_000])

    with pytest.raises(ConnectionLost, match="100000 bytes short"):
        _read(_asked(Pool(), _serving(answer)), 131_072)
