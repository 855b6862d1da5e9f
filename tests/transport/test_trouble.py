"""Everything that goes wrong between two processes: each ends in one clear error, and the next request may work."""

import asyncio
import contextlib
import shutil
from pathlib import Path
from typing import Any, cast

import pytest

from ambry import limits
from ambry.blob.state import NEVER, BlobState
from ambry.cli.ports import free_port
from ambry.errors import AmbryError, CannotStart, ConnectionLost, DeadlineExceeded, ShuttingDown
from ambry.protocol.connection import ClientConnection, Closed, Ready
from ambry.protocol.datanode import GetRequest, StateAnswer
from ambry.protocol.frame import encode_frame
from ambry.protocol.handshake import Hello, Role
from ambry.protocol.messages import MessageType, encode_request
from ambry.transport.client import RemoteDatanode
from ambry.transport.patience import Patience
from ambry.transport.server import DatanodeServer
from tests.memory_datanode import MemoryDatanode, put_request
from tests.transport import certificates
from tests.transport.ends import CLUSTER, HOST, NODE, SECRET, Impostor, blob_id, both, far, remote, run, served, soon

LIVE = StateAnswer(BlobState(0, NEVER), True)
GET = GetRequest(blob_id(), 0, 9)


async def until(is_true: Any) -> None:
    """Let the loop turn until something is so."""
    while not is_true():
        await asyncio.sleep(0.001)


# --- handshake -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"secret": b"another secret"}, "secret"),
        ({"fingerprint": "other"}, "cluster"),
        ({"node": "datanode-2"}, "another node"),
    ],
)
def test_who_does_not_belong_here_is_refused_with_the_reason(options: dict[str, Any], word: str) -> None:
    async def scenario() -> None:
        near = MemoryDatanode(NODE)
        async with served(near) as (server, port), remote(port, **options) as far_away:
            with pytest.raises(ConnectionLost) as caught:
                await far_away.get(GET, far())
            assert word in str(caught.value)
            assert not near.calls
            await until(lambda: server.connections == 0)

    run(scenario())


async def raw_exchange(port: int, data: bytes) -> bytes:
    """What a server answers to some bytes before it hangs up."""
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(data)
    received = await reader.read()
    writer.close()
    return received


def test_another_protocol_version_is_told_which_one_is_spoken_here() -> None:
    async def scenario() -> None:
        async with served(MemoryDatanode(NODE)) as (_, port):
            hello = Hello(7, 9, Role.CLIENT, "frontend-1", CLUSTER, bytes(32), 0)
            core: ClientConnection[None] = ClientConnection(hello, SECRET)
            core.feed(await raw_exchange(port, b"".join(core.take_output())))
            (closed,) = core.events(9)
            assert isinstance(closed, Closed)
            assert "version" in str(closed.error)

    run(scenario())


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: datanode\r\nAccept: */*\r\n\r\n",
        bytes(100),
        encode_frame(MessageType.PUT, 1, b"\x90", limits.FRAME_BODY_BYTES_MAX),
        encode_frame(MessageType.HELLO, 0, bytes(limits.HANDSHAKE_HEADER_BYTES_MAX + 1)),
        encode_frame(MessageType.HELLO, 0, b"\xc1"),
    ],
)
def test_garbage_is_answered_with_an_error_and_the_end(garbage: bytes) -> None:
    async def scenario() -> None:
        async with served(MemoryDatanode(NODE)) as (server, port):
            received = await raw_exchange(port, garbage)
            assert received[13] in (MessageType.ERROR, MessageType.HELLO)
            await until(lambda: server.connections == 0)

    run(scenario())


def test_who_says_nothing_is_cut_off() -> None:
    async def scenario() -> None:
        async with served(MemoryDatanode(NODE), patience=Patience(handshake_ms=50)) as (server, port):
            received = await asyncio.wait_for(raw_exchange(port, b"AMBW"), 5)
            assert received[13] == MessageType.ERROR
            await until(lambda: server.connections == 0)

    run(scenario())


def test_a_server_that_says_nothing_is_given_up() -> None:
    async def scenario() -> None:
        silent = Impostor(shakes_hands=False)
        port = await silent.start()
        async with remote(port, patience=Patience(handshake_ms=50)) as far_away:
            with pytest.raises(ConnectionLost, match="handshake took too long"):
                await far_away.get(GET, far())
        await silent.stop()

    run(scenario())


def test_a_deadline_counts_while_connecting_too() -> None:
    async def scenario() -> None:
        silent = Impostor(shakes_hands=False)
        port = await silent.start()
        async with remote(port) as far_away:
            with pytest.raises(DeadlineExceeded, match="not sent"):
                await far_away.get(GET, soon())
        await silent.stop()

    run(scenario())


# --- connecting again ------------------------------------------------------------------------------------------


def test_after_a_failed_attempt_requests_fail_at_once_until_the_pause_is_over() -> None:
    async def scenario() -> None:
        port = free_port()
        patience = Patience(reconnect_ms_min=500, reconnect_ms_max=500)
        async with remote(port, patience=patience) as far_away:
            first = [far_away.get(GET, far()) for _ in range(3)]
            results = await asyncio.gather(*first, return_exceptions=True)
            assert all(isinstance(result, ConnectionLost) for result in results)
            with pytest.raises(ConnectionLost, match="not connected"):
                await far_away.get(GET, far())
            server = DatanodeServer(MemoryDatanode(NODE), NODE, CLUSTER, SECRET)
            await server.start(HOST, port)
            answer: StateAnswer | None = None
            async with asyncio.timeout(30):
                while answer is None:
                    with contextlib.suppress(ConnectionLost):
                        answer = await far_away.put(put_request(blob_id(), b"body"), far())
                    await asyncio.sleep(0.02)
            assert answer == LIVE
            await server.stop(0)

    run(scenario())


def test_a_lost_connection_fails_what_is_open_and_the_next_request_connects_again() -> None:
    async def scenario() -> None:
        near = MemoryDatanode(NODE)
        async with served(near) as (server, port), remote(port) as far_away:
            near.hold("put")
            held = far_away.put(put_request(blob_id(), b"body"), far())
            await until(lambda: near.waiting)
            for session in tuple(server._sessions):
                session.abort()
            with pytest.raises(ConnectionLost):
                await held
            assert not far_away.is_connected
            assert await far_away.put(put_request(blob_id(2), b"body"), far()) == LIVE

    run(scenario())


def test_a_peer_that_does_not_answer_a_ping_is_lost() -> None:
    async def scenario() -> None:
        impostor = Impostor()
        port = await impostor.start()
        patience = Patience(ping_after_ms=20, ping_answer_ms=40)
        async with remote(port, patience=patience) as far_away:
            future = far_away.get(GET, far())
            await impostor.received.wait()
            impostor.shakes_hands = False  # half open: it takes bytes and answers nothing any more
            with pytest.raises(ConnectionLost, match="ping"):
                await future
        await impostor.stop()

    run(scenario())


def test_a_quiet_connection_stays_up_by_pings() -> None:
    async def scenario() -> None:
        patience = Patience(ping_after_ms=20, ping_answer_ms=5000, peer_silent_ms=500)
        async with both(patience=patience) as (_, far_away, server):
            await far_away.status(far())
            await asyncio.sleep(1.1)
            assert far_away.is_connected
            assert server.connections == 1

    run(scenario())


def test_a_client_that_falls_silent_is_hung_up_on() -> None:
    async def scenario() -> None:
        async with served(MemoryDatanode(NODE), patience=Patience(peer_silent_ms=50)) as (server, port):
            _, writer, core = await shaken(port)
            assert core.has_room
            await until(lambda: server.connections == 0)
            writer.close()

    run(scenario())


async def shaken(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, "ClientConnection[int]"]:
    """A raw connection after its handshake."""
    reader, writer = await asyncio.open_connection(HOST, port)
    core: ClientConnection[int] = ClientConnection(Hello(1, 1, Role.CLIENT, "raw", CLUSTER, bytes(32), 0), SECRET, NODE)
    while True:
        writer.writelines([bytes(piece) for piece in core.take_output()])
        core.feed(await reader.read(65536))
        if any(isinstance(event, Ready) for event in core.events(9)):
            writer.writelines([bytes(piece) for piece in core.take_output()])
            return reader, writer, core


# --- slow and hostile peers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_warm", [True, False])
def test_a_peer_that_does_not_read_stops_its_requests_and_costs_bounded_memory(is_warm: bool) -> None:
    async def scenario() -> None:
        near = MemoryDatanode(NODE, is_warm=is_warm)
        body = bytes(limits.CHUNK_BYTES_MAX)
        await near.put(put_request(blob_id(), body), far())
        near.calls.clear()
        async with served(near) as (server, port):
            reader, writer, core = await shaken(port)
            request = GetRequest(blob_id(), 0, len(body))
            for number in range(200):
                core.ask(number, request, encode_request(request, 30_000))
            writer.writelines([bytes(piece) for piece in core.take_output()])
            await writer.drain()
            before = -1
            while before != len(near.calls):  # the server goes on until it has no more room
                before = len(near.calls)
                await asyncio.sleep(0.05)
            in_room = limits.CONNECTION_WRITE_BUFFER_BYTES // len(body) + limits.CONNECTION_ANSWER_BYTES_MAX // len(
                body
            )
            assert 0 < before <= in_room + 16
            answered = 0
            while answered < 200:
                core.feed(await reader.read(1 << 20))
                while events := core.events(9):
                    answered += len(events)
            assert server.connections == 1
            writer.close()

    run(scenario())


def test_a_peer_that_never_reads_is_hung_up_on() -> None:
    async def scenario() -> None:
        near = MemoryDatanode(NODE)
        await near.put(put_request(blob_id(), bytes(limits.CHUNK_BYTES_MAX)), far())
        async with served(near, patience=Patience(peer_silent_ms=100)) as (server, port):
            reader, writer, core = await shaken(port)
            cast("asyncio.Transport", writer.transport).pause_reading()
            request = GetRequest(blob_id(), 0, limits.CHUNK_BYTES_MAX)
            for number in range(20):
                core.ask(number, request, encode_request(request, 30_000))
            writer.writelines([bytes(piece) for piece in core.take_output()])
            await until(lambda: server.connections == 0)
            assert not reader.at_eof()
            writer.close()

    run(scenario())


def test_a_request_with_a_wrong_field_ends_the_connection_with_the_name_of_the_field() -> None:
    async def scenario() -> None:
        async with served(MemoryDatanode(NODE)) as (_, port):
            reader, writer, core = await shaken(port)
            writer.write(encode_frame(MessageType.STATUS, 1, b"\x92\xa1x\x00"))
            core.feed(await reader.read())
            (closed,) = core.events(9)
            assert isinstance(closed, Closed)
            assert closed.error.facts["field"] == "remaining_ms"
            writer.close()

    run(scenario())


def test_a_batch_whose_answer_may_not_fit_is_refused_before_it_is_read() -> None:
    async def scenario() -> None:
        near = MemoryDatanode(NODE)
        async with served(near) as (_, port):
            reader, writer, core = await shaken(port)
            batch = (GetRequest(blob_id(), 0, 2**63),) * 5
            core.ask(1, batch, encode_request(batch, 1000))
            writer.writelines([bytes(piece) for piece in core.take_output()])
            core.feed(await reader.read(65536))
            (answered,) = core.events(9)
            assert "may not fit" in str(answered)
            assert not near.calls
            writer.close()

    run(scenario())


def test_a_server_that_sends_garbage_is_left() -> None:
    async def scenario() -> None:
        impostor = Impostor()
        port = await impostor.start()
        async with remote(port) as far_away:
            future = far_away.get(GET, far())
            await impostor.received.wait()
            impostor.writers[0].write(bytes(64))
            with pytest.raises(ConnectionLost, match="magic"):
                await future
            again = far_away.get(GET, far())
            await until(lambda: impostor.accepted == 2)
            again.cancel()
        await impostor.stop()

    run(scenario())


def test_deadlines_need_no_help_from_the_datanode() -> None:
    async def scenario() -> None:
        impostor = Impostor()
        port = await impostor.start()
        async with remote(port) as far_away:
            loop = asyncio.get_running_loop()
            started = loop.time()
            futures = [far_away.get(GET, started + wait_s) for wait_s in (0.12, 0.04, 0.08)]
            results = await asyncio.gather(*futures, return_exceptions=True)
            assert all(isinstance(result, DeadlineExceeded) for result in results)
            assert 0.11 < loop.time() - started < 10
        await impostor.stop()

    run(scenario())


# --- stopping --------------------------------------------------------------------------------------------------


def test_a_stopping_server_answers_what_it_has_and_takes_nothing_new() -> None:
    async def scenario() -> None:
        near = MemoryDatanode(NODE)
        async with served(near) as (server, port), remote(port) as far_away:
            gate = near.hold("put")
            held = far_away.put(put_request(blob_id(), b"body"), far())
            await until(lambda: near.waiting)
            stopping = asyncio.create_task(server.stop(10), name="stop")
            await until(lambda: not far_away.is_connected)
            with pytest.raises(ConnectionLost):
                await far_away.get(GET, far())
            assert not stopping.done()
            gate.set()
            assert await held == LIVE
            await stopping
            assert server.connections == 0

    run(scenario())


def test_a_request_that_crosses_the_goodbye_is_refused_as_shutting_down() -> None:
    async def scenario() -> None:
        near = MemoryDatanode(NODE)
        async with served(near) as (server, port), remote(port) as far_away:
            await far_away.status(far())
            near.hold("put")
            held = far_away.put(put_request(blob_id(), b"body"), far())
            await until(lambda: near.waiting)
            stopping = asyncio.create_task(server.stop(0.6), name="stop")
            crossing = far_away.get(GET, far())
            with pytest.raises(ShuttingDown):
                await crossing
            with pytest.raises(AmbryError):
                await held
            await stopping

    run(scenario())


def test_closing_the_client_ends_what_is_open_and_what_comes_after() -> None:
    async def scenario() -> None:
        async with both() as (near, far_away, server):
            near.hold("put")
            held = far_away.put(put_request(blob_id(), b"body"), far())
            await until(lambda: near.waiting)
            await far_away.close()
            for future in (held, far_away.get(GET, far())):
                with pytest.raises(ShuttingDown):
                    await future
            await until(lambda: server.connections == 0)
            await far_away.close()

    run(scenario())


def test_closing_while_connecting_leaves_nothing_behind() -> None:
    async def scenario() -> None:
        silent = Impostor(shakes_hands=False)
        port = await silent.start()
        far_away = RemoteDatanode(HOST, port, NODE, CLUSTER, SECRET, "frontend-1")
        future = far_away.get(GET, far())
        await until(lambda: silent.accepted)
        await far_away.close()
        with pytest.raises(ShuttingDown):
            await future
        await silent.hung_up.wait()
        assert [task.get_name() for task in asyncio.all_tasks() if "connect" in task.get_name()] == []
        await silent.stop()

    run(scenario())


def test_a_port_in_use_is_a_reason_not_to_start() -> None:
    async def scenario() -> None:
        async with served(MemoryDatanode(NODE)) as (_, port):
            with pytest.raises(CannotStart, match=str(port)):
                await DatanodeServer(MemoryDatanode(NODE), NODE, CLUSTER, SECRET).start(HOST, port)

    run(scenario())


# --- TLS -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificates with the openssl command")
def test_both_ends_prove_themselves_by_certificates(tmp_path: Path) -> None:
    certificates.make(tmp_path)

    async def scenario() -> None:
        near = MemoryDatanode(NODE)
        async with served(near, ssl=certificates.server_context(tmp_path)) as (_, port):
            async with remote(port, ssl=certificates.client_context(tmp_path)) as far_away:
                body = bytes(limits.CHUNK_BYTES_MAX)
                assert await far_away.put(put_request(blob_id(), body), far()) == LIVE
                assert (await far_away.get(GetRequest(blob_id(), 0, 2**60), far())).body == body
            near.calls.clear()
            for stranger in (
                certificates.client_context(tmp_path, None),
                certificates.client_context(tmp_path, "stranger"),
            ):
                async with remote(port, ssl=stranger) as far_away:
                    with pytest.raises(ConnectionLost):
                        await far_away.get(GET, far())
            async with remote(port) as plain:
                with pytest.raises(ConnectionLost):
                    await plain.get(GET, far())
            assert not near.calls

    run(scenario())
