"""The client in trouble: servers that die, answer nonsense, too little, or not now; and what is pure in its retries."""

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from aiohttp import web

from ambry.cli.ports import free_port
from ambry.client import Client
from ambry.client.retry import ATTEMPTS_MAX, Frontends, RetryBudget, wait_s
from ambry.errors import AmbryError, ConnectionLost, DeadlineExceeded, Overloaded, Unauthenticated, Unavailable
from ambry.limits import MIB
from tests.cli.fake_server import fake_server
from tests.client.conftest import ended, started

Answer = Callable[[int, socket.socket], None]
BODY = b"hello" * 100
HEAD = b"HTTP/1.1 200 OK\r\nx-ambry-request-id: r-1\r\nContent-Length: %d\r\n\r\n"
NOT_NOW = (
    b"HTTP/1.1 503 Not now\r\nRetry-After: 1\r\nContent-Type: application/json\r\nContent-Length: 69\r\n\r\n"
    b'{"code": "overloaded", "message": "not now", "request_id": "r-12345"}'
)
ID = "AQEAAQAAAAEAAAABAAAAAQ" + "A" * 21


@contextlib.contextmanager
def misbehaving(answer: Answer) -> Iterator[str]:
    """A server that reads one request of each connection, and does with it what the test says."""
    listener = socket.create_server(("127.0.0.1", 0))
    count = 0

    def serve() -> None:
        nonlocal count
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                data = b""
                while b"\r\n\r\n" not in data:
                    piece = connection.recv(65536)
                    if not piece:
                        break
                    data += piece
                answer(count, connection)
                count += 1

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield "http://{}:{}".format(*listener.getsockname())
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(10)


def says(data: bytes) -> Answer:
    return lambda _, connection: connection.sendall(data)


def test_a_connection_is_kept_after_an_answer_without_a_body() -> None:
    seen: list[object] = []

    async def gone(request: web.Request) -> web.Response:
        assert request.transport is not None
        seen.append(request.transport.get_extra_info("peername"))
        return web.Response(status=202, headers={"x-ambry-request-id": "r-1"})

    with fake_server(gone) as url, Client(url) as client:
        for _ in range(3):
            client.delete(ID)
    assert len(seen) == 3
    assert len(set(seen)) == 1


@pytest.mark.parametrize("bad", [b"", b"nonsense\r\n\r\n", HEAD % 900 + b"short", NOT_NOW])
def test_what_fails_once_is_asked_again(bad: bytes) -> None:
    def answer(count: int, connection: socket.socket) -> None:
        connection.sendall(bad if count == 0 else HEAD % len(BODY) + BODY)

    began = time.monotonic()
    with misbehaving(answer) as url, Client(url) as client:
        assert client.get(ID) == BODY
    if bad is NOT_NOW:
        assert time.monotonic() - began >= 1.0


def test_a_server_that_never_can_is_given_up_with_all_attempts_told() -> None:
    with misbehaving(says(NOT_NOW.replace(b"Retry-After: 1\r\n", b""))) as url, Client(url) as client:
        with pytest.raises(Overloaded) as caught:
            client.get(ID)
        attempts = caught.value.facts["attempts"]
        assert isinstance(attempts, list)
        assert len(attempts) == ATTEMPTS_MAX
        assert caught.value.facts["request_id"] is None or attempts


def test_a_body_that_is_always_short_is_an_error_and_no_file(tmp_path: Path) -> None:
    with misbehaving(says(HEAD % 900 + b"short")) as url, Client(url) as client, pytest.raises(ConnectionLost):
        client.get(ID)
    assert not list(tmp_path.iterdir())


def test_silence_ends_with_the_deadline() -> None:
    silent = threading.Event()

    def answer(count: int, connection: socket.socket) -> None:
        silent.wait(10)

    with misbehaving(answer) as url, Client(url) as client:
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            client.get(ID, deadline_s=0.5)
        assert time.monotonic() - began < 5
        silent.set()


def test_an_answer_that_is_no_stores_is_an_error_of_the_tree() -> None:
    page = b"HTTP/1.1 418 Tea\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>"
    with misbehaving(says(page)) as url, Client(url) as client, pytest.raises(Unavailable) as caught:
        client.get(ID)
    assert caught.value.facts["status"] == 418


@pytest.mark.parametrize("key", ["entries", "parts"])
@pytest.mark.parametrize("rest", ['[{}], "next": null', '5, "next": null', '[], "next": "x"', '[], "next": {}'])
def test_lists_that_say_nothing_or_never_end_are_no_answers_of_a_store(tmp_path: Path, key: str, rest: str) -> None:
    page = "nextPageToken" if key == "entries" else "nextAfter"
    text = f'{{"{key}": {rest}, "status": "OPEN", "uploadId": "u"}}'.replace("next", page, 1)
    if key == "parts":
        text = text.replace('"x"', "0")

    def answer(number: int, connection: socket.socket) -> None:
        head = HEAD.replace(b"200", b"201") if key == "parts" and not number else HEAD
        connection.sendall(head % len(text) + text.encode())

    path = tmp_path / "file"
    path.write_bytes(bytes(3000))
    with misbehaving(answer) as url, Client(url, deadline_s=20) as client:
        if key == "entries":
            with pytest.raises(Unavailable, match="no answer of a store"):
                list(client.list("a/b"))
            return
        # The first begins an upload, which the second goes on with.
        with pytest.raises(AmbryError):
            client.upload_file(path, part_bytes=1000)
        with pytest.raises(Unavailable, match="no answer of a store"):
            client.upload_file(path, part_bytes=1000)


@pytest.mark.parametrize("length", [2, 3, 5])
def test_a_list_whose_pages_lead_in_a_circle_ends(length: int) -> None:
    def answer(number: int, connection: socket.socket) -> None:
        text = f'{{"entries": [], "nextPageToken": "{number % length}"}}'
        connection.sendall(HEAD % len(text) + text.encode())

    with (
        misbehaving(answer) as url,
        Client(url, deadline_s=20) as client,
        pytest.raises(Unavailable, match="no answer of a store"),
    ):
        list(client.list("a/b"))


@pytest.mark.parametrize("said", ["x-ambry-blob-size: -5", 'x-ambry-blob-size: 5\r\nETag: "../../x"'])
def test_headers_that_no_blob_has_are_no_answer_of_a_store(said: str) -> None:
    def answer(_number: int, connection: socket.socket) -> None:
        connection.sendall(HEAD.replace(b"\r\n", f"\r\n{said}\r\n".encode(), 1) % 0)

    with (
        misbehaving(answer) as url,
        Client(url, deadline_s=20) as client,
        pytest.raises(Unavailable, match="no answer of a store"),
    ):
        client.stat("a/b/c")


def test_a_frontend_that_is_gone_is_replaced_by_another(url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        gone = "http://{}:{}".format(*listener.getsockname())
    for _ in range(4):
        with Client([gone, url]) as client:
            assert client.get(client.put(b"x").id) == b"x"


def test_wrong_credentials_are_told_at_once(url: str) -> None:
    with Client(url, token="wrong") as client, pytest.raises(Unauthenticated) as caught:
        client.put(b"x")
    attempts = caught.value.facts["attempts"]
    assert isinstance(attempts, list)
    assert len(attempts) == 1


def test_bytes_that_changed_on_their_way_are_noticed() -> None:
    wrong = HEAD.replace(b"Content", b"Repr-Digest: crc32=:AAAAAA==:\r\nContent") % 500 + BODY
    with misbehaving(says(wrong)) as url, Client(url) as client, pytest.raises(AmbryError) as caught:
        client.get(ID)
    assert caught.value.name == "bad_digest"


def test_a_store_that_is_killed_in_the_middle_costs_time_and_nothing_else(tmp_path: Path) -> None:
    data = random.Random(5).randbytes(24 * MIB)
    process, url = started(tmp_path / "data", free_port())
    port = int(url.rpartition(":")[2])
    target = tmp_path / "target"
    with Client(url) as client:
        blob_id = client.put(data).id
        is_killed = False
        revived = []

        def kill(done: int, total: int) -> None:
            nonlocal is_killed
            if done > total // 3 and not is_killed:
                is_killed = True
                process.kill()
                process.wait(10)
                assert process.stdout is not None
                process.stdout.close()
                revived.append(started(tmp_path / "data", port)[0])

        with contextlib.suppress(AmbryError):
            client.download_file(blob_id, target, part_bytes=MIB, progress=kill)
        client.download_file(blob_id, target, part_bytes=MIB)
        assert is_killed
        assert target.read_bytes() == data
        ended(revived[0])


# --- pure ------------------------------------------------------------------------------------------------------


def test_waits_grow_have_jitter_and_respect_retry_after() -> None:
    assert [wait_s(attempt, None, 1.0) for attempt in (1, 2, 3)] == [0.05, 0.1, 0.2]
    assert wait_s(1, None, 0.0) == 0.025
    assert wait_s(50, None, 1.0) == 5.0
    assert wait_s(1, 7.0, 0.0) == 7.0
    assert wait_s(1, 0.0, 1.0) == 0.05


def test_retries_have_a_budget_that_successes_fill() -> None:
    budget = RetryBudget()
    assert sum(budget.try_spend() for _ in range(100)) == 20
    for _ in range(11):
        budget.succeeded()
    assert budget.try_spend()
    assert not budget.try_spend()


def test_a_frontend_that_failed_rests_longer_each_time() -> None:
    frontends = Frontends(("a", "b"))
    assert frontends.pick(0.0) == "a"
    assert frontends.pick(0.0, avoid="a") == "b"
    frontends.failed("a", 0.0)
    assert frontends.pick(0.1) == "b"
    assert frontends.pick(0.6) == "a"
    frontends.failed("a", 1.0)
    frontends.failed("b", 1.0)
    assert frontends.pick(1.6) == "b"
    assert frontends.pick(1.1) == "b"
    frontends.answered("a")
    assert frontends.pick(1.1) == "a"
    assert Frontends(("only",)).pick(0.0, avoid="only") == "only"
