"""HTTP as strangers speak it: pieces, pipelines, broken framing, early ends. Over real sockets, byte by byte."""

import asyncio
import random
import re
import socket
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ambry import limits
from ambry.frontend.answers import SERVER
from ambry.limits import KIB, MIB
from tests.frontend.serving import RawClient, Serving, chunked, request_bytes, serving

pytestmark = pytest.mark.usefixtures("both_ways")


def live_blobs(run: Serving) -> int:
    """Records with bytes that are not deleted."""
    return sum(stored.has_body and not stored.state.is_deleted for stored in run.node.blobs.values())


async def expect(condition: object, what: str) -> None:
    """Wait for a condition that nothing signals, for at most 30 s."""
    assert callable(condition)
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(what)


def test_a_body_in_chunks_is_stored_as_it_is() -> None:
    async def main() -> None:
        async with serving() as run:
            pieces = [b"a", b"b" * 70_000, b"", b"c" * 10]
            body = b"".join(pieces)
            answer = await run.ask("POST", "/", {"Transfer-Encoding": "chunked"}, chunked(*[p for p in pieces if p]))
            assert answer.status == 201
            assert (await run.ask("GET", answer.headers["location"])).body == body

    asyncio.run(main())


@pytest.mark.parametrize("kib", range(496, 832, 16))
def test_the_end_of_a_body_that_came_behind_a_full_buffer_is_seen(kib: int) -> None:
    """The parser stops in the middle of what it was given when nobody reads; its rest holds the end of the body."""
    body = random.Random(kib).randbytes(3 * limits.CHUNK_BYTES_MAX + kib * KIB + 17)
    pieces = [body[at : at + 64 * KIB] for at in range(0, len(body), 64 * KIB)]

    async def scene() -> None:
        async with serving() as run:
            client = await run.connect()
            gate = run.node.hold("put", times=None)
            sending = asyncio.create_task(
                client.send(request_bytes("POST", "/", {"Transfer-Encoding": "chunked"}) + chunked(*pieces))
            )
            await expect(lambda: run.node.waiting >= limits.UPLOAD_CHUNKS_IN_FLIGHT_MAX, "chunks wait")
            gate.set()
            await sending
            answer = await client.answer()
            assert answer.status == 201
            got = await run.ask("GET", answer.headers["location"])
            assert got.body == body

    asyncio.run(scene())


def test_a_request_that_arrives_byte_by_byte_is_the_same_request() -> None:
    async def main() -> None:
        async with serving() as run:
            client = await run.connect()
            for byte in request_bytes("POST", "/", {"x-ambry-um-a": "b"}, b"hello"):
                await client.send(bytes([byte]))
            answer = await client.answer()
            assert answer.status == 201
            path = answer.headers["location"]
            for byte in request_bytes("GET", path):
                await client.send(bytes([byte]))
            answer = await client.answer()
            assert (answer.status, answer.body, answer.headers["x-ambry-um-a"]) == (200, b"hello", "b")

    asyncio.run(main())


def test_pipelined_requests_are_answered_in_order() -> None:
    async def main() -> None:
        async with serving() as run:
            paths = [await run.put(b"%d" % number) for number in range(20)]
            client = await run.connect()
            await client.send(b"".join(request_bytes("GET", path) for path in paths))
            assert [(await client.answer()).body for _ in paths] == [b"%d" % number for number in range(20)]

    asyncio.run(main())


def test_pipelined_uploads_keep_their_bodies_apart() -> None:
    async def main() -> None:
        async with serving() as run:
            client = await run.connect()
            bodies = [b"x" * number for number in (5, 0, 100_000, 1)]
            await client.send(b"".join(request_bytes("POST", "/", None, body) for body in bodies))
            for body in bodies:
                answer = await client.answer()
                assert (await run.ask("GET", answer.headers["location"])).body == body

    asyncio.run(main())


def test_continue_is_said_only_after_good_headers() -> None:
    async def main() -> None:
        async with serving() as run:
            client = await run.connect()
            await client.send(request_bytes("POST", "/", {"Expect": "100-continue", "Content-Length": "3"}))
            assert (await client.answer()).status == 100
            await client.send(b"abc")
            assert (await client.answer()).status == 201

            client = await run.connect()
            bad = {"Expect": "100-continue", "Content-Length": "3", "x-ambry-ttl": "soon"}
            await client.send(request_bytes("POST", "/", bad))
            answer = await client.answer()
            assert answer.status == 400
            assert answer.error["field"] == "x-ambry-ttl"
            assert answer.headers["connection"] == "close"

    asyncio.run(main())


def test_other_expectations_are_refused() -> None:
    async def main() -> None:
        async with serving() as run:
            answer = await run.ask("POST", "/", {"Expect": "the-moon"}, b"abc")
            assert (answer.status, answer.error["field"]) == (400, "Expect")

    asyncio.run(main())


def test_too_large_a_blob_is_refused_before_its_first_byte() -> None:
    async def main() -> None:
        async with serving() as run:
            client = await run.connect()
            size = str(limits.BLOB_BYTES_MAX + 1)
            await client.send(request_bytes("POST", "/", {"Content-Length": size, "Expect": "100-continue"}))
            answer = await client.answer()
            assert (answer.status, answer.error["code"]) == (413, "too_large")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET\r\n\r\n", 400),
        (b"FETCH / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/3.9\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA\x00B: c\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: b\x01c\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\n folded: y\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: abc\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\nabc", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\nabc", 400),
        (b"GET /" + b"a" * limits.HTTP_LINE_BYTES_MAX + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"b" * (limits.HTTP_FIELD_BYTES_MAX + 1) + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * (limits.HTTP_FIELDS_MAX + 1) + b"\r\n", 431),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a client of TLS\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    ],
)
def test_malformed_http_is_refused_in_json(sent: bytes, status: int) -> None:
    async def main() -> None:
        async with serving() as run:
            client = await run.connect()
            await client.send(sent)
            answer = await client.answer()
            assert answer.status == status
            assert answer.error["code"] in {"bad_request", "headers_too_large"}
            assert (answer.headers["server"], answer.headers["connection"]) == (SERVER, "close")
            assert b"raceback" not in answer.body and b"/" not in answer.body
            await client.ended()
            assert not run.node.blobs

    asyncio.run(main())


@pytest.mark.parametrize("line", [b"GET /healthCheck\r\n\r\n", b"GET /healthCheck HTTP/0.9\r\nHost: x\r\n\r\n"])
def test_a_request_of_http_before_heads_is_refused(line: bytes) -> None:
    async def main() -> None:
        async with serving() as run:
            client = await run.connect()
            await client.send(line)
            answer = await client.answer()
            assert (answer.status, answer.error["code"]) == (400, "bad_request")
            assert await client.ended() == b""

    asyncio.run(main())


def test_headers_that_are_too_much_together_are_refused() -> None:
    async def main() -> None:
        async with serving() as run:
            path = await run.put(b"hello")
            answer = await run.ask("GET", path, {"A": "b" * 40_000, "B": "c" * 40_000})
            assert (answer.status, answer.error["code"]) == (431, "headers_too_large")

    asyncio.run(main())


@pytest.mark.parametrize(
    "framing",
    [
        b"zz\r\nabc\r\n",
        b"3\r\nabcd\r\n0\r\n\r\n",
        b"-1\r\n",
        b"3 \r\nabc",
        b"ffffffffffffffffff\r\n",
        b"3;\x00=1\r\nabc",
    ],
)
def test_broken_chunks_end_the_upload_at_once(framing: bytes) -> None:
    async def main() -> None:
        async with serving() as run:
            client = await run.connect()
            head = request_bytes("POST", "/", {"Transfer-Encoding": "chunked"})
            await client.send(head + b"5\r\nhello\r\n")
            await asyncio.sleep(0.02)
            await client.send(framing)
            answer = await client.answer()
            assert answer.status == 400
            assert answer.error["code"] == "bad_request"
            await client.ended()
            assert not run.node.blobs

    asyncio.run(main())


@pytest.mark.parametrize("sent", [0, 10, 100_000, 9 * MIB])
@pytest.mark.parametrize("way", ["abort", "close", "half"])
def test_a_client_that_goes_in_mid_upload_leaves_nothing_readable(sent: int, way: str) -> None:
    async def main() -> None:
        async with serving() as run:
            client = await run.connect()
            await client.send(request_bytes("POST", "/", {"Content-Length": str(20 * MIB)}) + b"x" * sent)
            await expect(lambda: run.metrics.requests.bytes_in >= sent, "the bytes arrive")
            if way == "half":
                client.writer.write_eof()
            elif way == "abort":
                client.abort()
            else:
                client.close()
            await expect(lambda: run.metrics.requests.in_flight == 0, "the request ends")
            await expect(lambda: run.operations.reclaimer.waiting == 0, "tombstones are written")
            await expect(lambda: live_blobs(run) == 0, "nothing is left")

    asyncio.run(main())


def test_a_half_closed_client_still_gets_its_answers() -> None:
    async def main() -> None:
        async with serving() as run:
            path = await run.put(b"hello")
            large = await run.put(b"x" * 9 * MIB)
            client = await run.connect()
            gate = run.node.hold("put", times=2)
            await client.send(request_bytes("GET", path) + request_bytes("POST", "/", None, b"world"))
            client.writer.write_eof()
            assert (await client.answer()).body == b"hello"
            await expect(lambda: run.node.waiting == 1, "the put waits for its disk")
            gate.set()
            assert (await client.answer()).status == 201
            assert await client.ended() == b""
            client = await run.connect()
            await client.send(request_bytes("GET", path) + request_bytes("GET", large))
            client.writer.write_eof()
            assert [len((await client.answer()).body) for _ in range(2)] == [5, 9 * MIB]
            assert await client.ended() == b""

    asyncio.run(main())


def test_too_many_connections_are_refused_politely() -> None:
    async def main() -> None:
        async with serving() as run:
            run.metrics.requests.connections += limits.HTTP_CONNECTIONS_MAX
            client = await run.connect()
            answer = await client.answer()
            assert (answer.status, answer.error["code"]) == (503, "overloaded")
            assert (answer.headers["connection"], answer.headers["retry-after"]) == ("close", "1")
            assert await client.ended() == b""
            run.metrics.requests.connections -= limits.HTTP_CONNECTIONS_MAX
            assert (await run.ask("GET", "/healthCheck")).body == b"GOOD"

    asyncio.run(main())


GOOD_REQUESTS = (
    request_bytes("GET", "/" + "A" * 43),
    request_bytes("POST", "/", {"x-ambry-ttl": "5"}, b"hello"),
    request_bytes("POST", "/", {"Transfer-Encoding": "chunked", "Content-MD5": "x"}, chunked(b"abc", b"defg")),
    request_bytes("HEAD", "/x/BlobInfo", {"Range": "bytes=0-1", "If-Match": '"a"'}),
    request_bytes("PUT", "/x/ttl", {"x-ambry-ttl": "-1", "Connection": "close"}),
)
"""What the mutations below begin from."""


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    st.lists(st.sampled_from(GOOD_REQUESTS), min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 600), st.binary(max_size=4), st.integers(0, 5)), max_size=4),
    st.lists(st.integers(1, 400), max_size=3),
)
def test_any_bytes_are_answered_or_refused_and_the_process_goes_on(
    requests: list[bytes], mutations: list[tuple[int, bytes, int]], cuts: list[int]
) -> None:
    sent = b"".join(requests)
    for at, put, removed in mutations:
        sent = sent[:at] + put + sent[at + removed :]

    async def main() -> None:
        async with serving() as run:
            client = await run.connect()
            for start, stop in pairwise(sorted({0, len(sent), *(cut for cut in cuts if cut < len(sent))})):
                await client.send(sent[start:stop])
                await asyncio.sleep(0)
            client.writer.write_eof()
            try:
                answered = await client.ended()
            except ConnectionError:
                answered = b""
            for status in re.findall(rb"HTTP/1\.[01] (\d+) ", answered):
                assert int(status) < 500 or status == b"503"
            assert b"raceback" not in answered
            assert (await run.ask("GET", "/healthCheck")).body == b"GOOD"

    asyncio.run(main())


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_client_that_ends_in_the_middle_of_a_body_at_once_is_not_waited_for(count: int) -> None:
    async def main() -> None:
        async with serving() as run:
            client = await run.connect()
            # The end arrives before the last request is begun.
            await client.send((request_bytes("POST", "/", {"x-ambry-ttl": "5"}, b"hello") * count)[:-1])
            client.writer.write_eof()
            try:
                answered = await client.ended()
            except ConnectionError:
                answered = b""
            assert answered.count(b" 201 ") < count
            assert (await run.ask("GET", "/healthCheck")).body == b"GOOD"

    asyncio.run(main())


def test_http_1_0_is_answered_and_closed() -> None:
    async def main() -> None:
        async with serving() as run:
            path = await run.put(b"hello")
            client = await run.connect()
            await client.send(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            answer = await client.answer()
            assert (answer.status, answer.body) == (200, b"hello")
            assert await client.ended() == b""

    asyncio.run(main())


def test_requests_after_an_error_go_on_where_the_body_was_read() -> None:
    async def main() -> None:
        async with serving() as run:
            client = await run.connect()
            await client.send(request_bytes("GET", "/nonsense") + request_bytes("GET", "/healthCheck"))
            assert (await client.answer()).status == 400
            assert (await client.answer()).body == b"GOOD"

    asyncio.run(main())


def test_a_refused_body_is_not_taken_for_the_next_request() -> None:
    async def main() -> None:
        async with serving() as run:
            client = await run.connect()
            smuggled = request_bytes("DELETE", "/healthCheck")
            await client.send(request_bytes("POST", "/", {"x-ambry-ttl": "x"}, smuggled))
            answer = await client.answer()
            assert answer.status == 400
            rest = await asyncio.wait_for(client.reader.read(), 60) if "connection" in answer.headers else b""
            assert b"HTTP/1.1 405" not in rest

    asyncio.run(main())


def test_silence_in_mid_body_ends_the_connection() -> None:
    async def main() -> None:
        async with serving() as run:
            client = await run.connect()
            await client.send(request_bytes("POST", "/", {"Content-Length": "10"}) + b"abc")
            await expect(lambda: run.metrics.requests.bytes_in == 3, "the bytes arrive")
            assert run.frontend._server is not None
            (connection,) = run.frontend._server.connections
            check = connection.check_progress  # type: ignore[attr-defined] # the server's class is ours
            check(100.0)
            check(100.0 + limits.HTTP_BODY_IDLE_MS / 1000 - 1)
            assert not client.reader.at_eof()
            check(100.0 + limits.HTTP_BODY_IDLE_MS / 1000)
            with pytest.raises((ConnectionError, AssertionError, asyncio.IncompleteReadError)):
                await client.answer()
            await expect(lambda: run.metrics.requests.in_flight == 0, "the request ends")
            assert live_blobs(run) == 0

    asyncio.run(main())


def test_a_reader_that_stands_still_is_disconnected_and_one_that_is_slow_is_not() -> None:
    async def main() -> None:
        async with serving() as run:
            path = await run.put(b"x" * 30 * MIB)
            plain = socket.create_connection((run.host, run.port))
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * KIB)
            plain.setblocking(False)
            reader, writer = await asyncio.open_connection(sock=plain, limit=16 * KIB)
            client = RawClient(reader, writer)
            await client.send(request_bytes("GET", path))
            assert run.frontend._server is not None
            await expect(lambda: any(one.writing_paused for one in run.frontend._server.connections), "it stands still")
            (connection,) = [one for one in run.frontend._server.connections if one.writing_paused]
            check = connection.check_progress  # type: ignore[attr-defined] # the server's class is ours
            check(0.0)
            got = 0
            for round_ in range(1, 4):
                while got < round_ * 6 * MIB:
                    got += len(await reader.read(256 * KIB))
                check(round_ * limits.HTTP_BODY_IDLE_MS / 1000)
            assert connection.transport is not None
            await asyncio.sleep(0.1)
            check(9 * limits.HTTP_BODY_IDLE_MS / 1000)
            check(10 * limits.HTTP_BODY_IDLE_MS / 1000)
            await expect(lambda: run.metrics.requests.in_flight == 0, "it is disconnected")
            writer.close()

    asyncio.run(main())


def test_stopping_lets_requests_finish_and_closes_idle_connections() -> None:
    async def main() -> None:
        async with serving() as run:
            idle = await run.connect()
            await idle.send(request_bytes("GET", "/healthCheck"))
            assert (await idle.answer()).body == b"GOOD"
            busy = await run.connect()
            await busy.send(request_bytes("POST", "/", {"Content-Length": "6"}) + b"abc")
            await expect(lambda: run.metrics.requests.bytes_in == 3, "the bytes arrive")
            stopping = asyncio.create_task(run.frontend.stop(10.0))
            assert await idle.ended() == b""
            with pytest.raises(ConnectionRefusedError):
                await run.connect()
            await busy.send(b"def")
            answer = await busy.answer()
            assert (answer.status, answer.headers["connection"]) == (201, "close")
            await stopping
            assert live_blobs(run) == 1

    asyncio.run(main())


def test_stopping_answers_what_has_begun_to_arrive_and_waits_for_no_silent_connection() -> None:
    async def main() -> None:
        async with serving() as run:
            path = await run.put(b"some bytes")
            for head in (f"GET {path} HTTP/1.1\r\nHost: x\r\n", "GET /healthCheck HTTP/1.1\r\nHost: x\r\n"):
                silent, used, begun = await run.connect(), await run.connect(), await run.connect()
                for client in (used, begun):
                    await client.send(request_bytes("GET", path))
                    assert (await client.answer()).body == b"some bytes"
                await begun.send(head.encode())
                server = run.frontend._server
                assert server is not None
                await expect(lambda: any(each.has_begun for each in server.connections), "the bytes arrive")  # type: ignore[attr-defined] # noqa: B023 -- awaited in this turn
                stopping = asyncio.create_task(run.frontend.stop(10.0))
                assert (await silent.ended(), await used.ended()) == (b"", b"")
                await begun.send(b"\r\n")
                answer = await begun.answer()
                assert (answer.status, answer.body, answer.headers["connection"]) in {
                    (200, b"some bytes", "close"),
                    (503, b"BAD", "close"),
                }
                await stopping
                run.frontend.services.is_stopping = False
                run.host, run.port = await run.frontend.start("127.0.0.1", 0)

    asyncio.run(main())


def test_stopping_does_not_wait_for_ever() -> None:
    async def main() -> None:
        async with serving() as run:
            busy = await run.connect()
            await busy.send(request_bytes("POST", "/", {"Content-Length": "6"}) + b"abc")
            await expect(lambda: run.metrics.requests.bytes_in == 3, "the bytes arrive")
            await asyncio.wait_for(run.frontend.stop(0.1), 30)
            await busy.ended()
            assert live_blobs(run) == 0

    asyncio.run(main())
