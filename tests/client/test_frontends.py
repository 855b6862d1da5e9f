"""Several frontends, some of them bad: the others are asked, soon, and what is raised at last says what was tried."""

import socket
import threading
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path

import pytest

from ambry.client import Client
from ambry.client.retry import Frontends, retry_after_s
from ambry.client.transfer import download_file
from ambry.errors import AmbryError, ConnectionLost, Overloaded, Unavailable
from ambry.limits import MIB
from tests.client.conftest import bytes_of
from tests.client.test_trouble import ID, misbehaving, says

BASE = "default/default/frontends"
SHORT = b"HTTP/1.1 200 OK\r\nx-ambry-request-id: r-1\r\nx-ambry-blob-size: 900\r\nContent-Length: 900\r\n\r\nshort"
PAGE = b"HTTP/1.1 %s\r\nContent-Type: text/html\r\nContent-Length: 19\r\nConnection: close\r\n\r\n<html>log in</html>"
NOT_NOW = (
    b"HTTP/1.1 503 Not now\r\nRetry-After: 30\r\nContent-Length: 69\r\n\r\n"
    b'{"code": "overloaded", "message": "not now", "request_id": "r-12345"}'
)


@pytest.mark.parametrize("bad", [SHORT, PAGE % b"500 Oops", PAGE % b"503 Not now", NOT_NOW, b"\0\xff\r\n\r\n"])
def test_a_healthy_frontend_beside_a_bad_one_is_enough(client: Client, url: str, bad: bytes) -> None:
    client.put(b"hello", f"{BASE}/a", upsert=True)
    with misbehaving(says(bad)) as wrong:
        for urls in ([wrong, url], [url, wrong]) * 4:
            with Client(urls, deadline_s=20) as both:
                assert both.get(f"{BASE}/a") == b"hello"
                assert [entry.name for entry in both.list(f"{BASE}/a")] == ["frontends/a"]
                assert both.put(b"hello", f"{BASE}/a", upsert=True).size == 5


def test_what_another_server_says_is_asked_of_a_store(client: Client, url: str) -> None:
    client.put(b"hello", f"{BASE}/b", upsert=True)
    with misbehaving(says(PAGE % b"200 OK")) as wrong:
        for urls in ([wrong, url], [url, wrong]) * 4:
            with Client(urls, deadline_s=20) as both:
                assert [entry.name for entry in both.list(f"{BASE}/b")] == ["frontends/b"]
                assert both.stat(f"{BASE}/b").size == 5
                assert both.get(f"{BASE}/b") == b"hello"
                assert [entry.body for entry in both.get_many([both.stat(f"{BASE}/b").id])] == [b"hello"]


def test_parts_of_a_file_come_from_the_frontend_that_has_them(client: Client, url: str, tmp_path: Path) -> None:
    data = bytes_of(3 * MIB)
    blob_id = client.put(data).id
    short = b"HTTP/1.1 206 Partial\r\nx-ambry-request-id: r-1\r\nContent-Length: 1048576\r\n\r\n"

    def answer(_: int, connection: socket.socket) -> None:
        connection.sendall(short)

    with misbehaving(answer) as wrong:
        for number in range(4):
            with Client([wrong, url]) as both:
                target = tmp_path / f"{number}"
                download_file(both._session, client.stat(blob_id), target, None, MIB, 4)
            assert target.read_bytes() == data


def test_a_short_body_is_an_error_that_says_who_and_what_was_tried() -> None:
    with misbehaving(says(SHORT)) as url, Client(url) as client, pytest.raises(ConnectionLost) as caught:
        client.get(ID)
    facts = caught.value.facts
    assert (facts["status"], facts["request_id"], facts["frontend"]) == (200, "r-1", url)
    assert facts["attempts"] == [f"{url}: the answer is 895 bytes short"] * 5


def test_bodies_that_break_off_are_asked_for_again_within_the_budget() -> None:
    count = 0

    def answer(_: int, connection: socket.socket) -> None:
        nonlocal count
        count += 1
        connection.sendall(SHORT)

    with misbehaving(answer) as url, Client(url) as client:
        for _ in range(12):
            with pytest.raises(ConnectionLost):
                client.get(ID)
    # Twelve, twenty more from the budget, and what the heads that were right have earned.
    assert count <= 12 + 20 + 5


ASKED: list[Callable[[Client], object]] = [
    lambda client: client.get(ID),
    lambda client: client.get("a/b/c", 0, 19),
    lambda client: client.exists("a/b/c"),
    lambda client: client.delete("a/b/c"),
    lambda client: client.extend(ID, 60),
    lambda client: client.undelete(ID),
    lambda client: client.put_stream([b"x"], "a/b/c"),
    lambda client: list(client.list("a/b")),
    lambda client: client.stat("a/b/c"),
    lambda client: client.put(b"x", "a/b/c"),
    lambda client: client.copy("a/b/c", "a/b/d"),
    lambda client: client.move("a/b/c", "a/b/d"),
    lambda client: client.signed_url("a/b/c"),
    lambda client: client.put_many([b"x"]),
    lambda client: list(client.get_many([ID])),
    lambda client: list(client.delete_many([ID])),
    lambda client: client.upload_file(__file__, "a/b/c"),
    lambda client: client.upload_file(__file__, "a/b/c", part_bytes=1000),
    lambda client: client.list_versions("a/b/c"),
]


@pytest.mark.parametrize(
    "status", [b"200 OK", b"201 Created", b"202 Accepted", b"206 Partial", b"404 Not here", b"500 Oops"]
)
@pytest.mark.parametrize("ask", ASKED)
def test_the_page_of_another_server_is_an_error_that_names_it(ask: Callable[[Client], object], status: bytes) -> None:
    with misbehaving(says(PAGE % status)) as url, Client(url) as client:
        with pytest.raises((Unavailable, ConnectionLost)) as caught:
            ask(client)
        assert caught.value.facts["frontend"] == url


def test_a_document_that_is_none_of_a_store_is_an_error() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"
    for document in (b"[]", b"3", b'{"error": 1}', b"\xff", b"[" * 5000):
        with (
            misbehaving(says(answer % (len(document), document))) as url,
            Client(url) as client,
            pytest.raises(Unavailable, match="no answer of a store"),
        ):
            list(client.list("a/b"))


def test_a_wait_that_is_longer_than_there_is_time_for_is_told_at_once() -> None:
    answer = NOT_NOW.replace(b"30", b"3600")
    for deadline_s in (20.0, 300.0):
        with misbehaving(says(answer)) as url, Client(url, deadline_s=deadline_s) as client:
            with pytest.raises(Overloaded) as caught:
                client.get(ID)
            assert caught.value.facts["retry_after_s"] == 3600.0
            assert len(caught.value.facts["attempts"]) == 1  # type: ignore[arg-type] # the list of attempts


def test_who_asks_too_much_waits_whoever_else_could_be_asked(url: str) -> None:
    answer = (
        b"HTTP/1.1 429 Slowly\r\nRetry-After: 3600\r\nContent-Length: 43\r\n\r\n"
        b'{"code": "quota_exceeded", "message": "no"}'
    )
    is_asked = threading.Event()

    def refuse(_: int, connection: socket.socket) -> None:
        is_asked.set()
        connection.sendall(answer)

    with misbehaving(refuse) as wrong:
        while not is_asked.is_set():
            with Client([wrong, url]) as both:
                try:
                    both.put(b"x")
                except AmbryError as error:
                    assert error.name == "quota_exceeded"
                    assert error.facts["retry_after_s"] == 3600.0


# --- pure ------------------------------------------------------------------------------------------------------


def test_retry_after_is_a_number_or_a_date_in_any_form_of_http() -> None:
    now_ms = 784_111_777_000
    for text in ("Sun, 06 Nov 1994 08:50:37 GMT", "Sunday, 06-Nov-94 08:50:37 GMT", "Sun Nov  6 08:50:37 1994"):
        assert retry_after_s({"retry-after": text}, now_ms) == 60.0
        # The clock of who answers counts, if it tells it.
        assert retry_after_s({"retry-after": text, "date": "Sun, 06 Nov 1994 08:50:30 GMT"}, 0) == 7.0
    assert retry_after_s({"retry-after": "86400"}, now_ms) == 86_400.0
    assert retry_after_s({"retry-after": formatdate(0, usegmt=True)}, now_ms) == 0.0
    for nonsense in ("", "soon", "-3", "1.5", "²", "Sun, 99 Nov 1994 99:99:99 GMT"):
        assert retry_after_s({"retry-after": nonsense}, now_ms) is None
    assert retry_after_s({}, now_ms) is None


def test_a_frontend_rests_for_as_long_as_it_asks_and_an_hour_at_most() -> None:
    frontends = Frontends(("a", "b"))
    frontends.failed("a", 0.0, 30.0)
    assert (frontends.well_in_s(0.0, besides="a"), frontends.well_in_s(10.0, besides="b")) == (0.0, 20.0)
    assert frontends.pick(29.0) == "b"
    assert frontends.pick(31.0) == "a"
    frontends.failed("a", 0.0, float("inf"))
    assert frontends.well_in_s(0.0, besides="b") == 3600.0
    assert Frontends(("only",)).well_in_s(0.0, besides="only") is None
