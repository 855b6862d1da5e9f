"""TCP in front of servers, with a switch for each way between two processes: a partition of the network on one machine.

A wire listens where a server says that it is reached, and passes bytes on to where it listens. Who dialled is in the
first frame, the Hello of the wire protocol; a name that nobody knows better stays as it is. Where another protocol is
spoken, each client has a wire for itself. While a way is cut, what
its sender says is held and nobody is told, as when packets are lost; when it is mended what was held arrives, as TCP
would send it again. A way is (sender, receiver), each a name or a pattern of names: ("datanode-1-2", "*") is one
process that hears and is not heard, with ("*", "datanode-1-2") it is alone, and ("*-1-*", "*-2-*") with its reverse
parts two datacentres. Knows Hellos, and nothing else of what the bytes mean.
"""

import asyncio
import contextlib
import fnmatch
import threading
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Final, TypeAlias

from ambry.errors import ProtocolError
from ambry.protocol.frame import FrameDecoder
from ambry.protocol.handshake import decode_hello

Address: TypeAlias = tuple[str, int]
Ends: TypeAlias = tuple[Address, Address]
Way: TypeAlias = tuple[str, str]

_PIECE_BYTES: Final = 1 << 16


class Wires:
    """Wires by name, on a thread of their own."""

    def __init__(
        self,
        ends: Mapping[str, Ends],
        known_as: Callable[[str], str] = str,
        through: Callable[[], Callable[[bytes], bytes]] = lambda: bytes,
        private: Mapping[Way, Ends] = MappingProxyType({}),
    ) -> None:
        """`ends` of each: where it listens, and where it leads. `known_as` is a better name for what a Hello says.

        `through` makes, for each way of each connection, what the pieces that pass are changed by. `private` are the
        wires of one client, by its name and the server's, which say no Hello.
        """
        self._ends = dict(ends)
        self._private = dict(private)
        self._known_as = known_as
        self._through = through
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[self._serve()], name="wires")
        self._stop = asyncio.Event()
        self._cut: list[Way] = []
        self._mended = asyncio.Event()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """All of them are whole, until the block ends."""
        self._thread.start()
        assert self._ready.wait(30), "the wires do not listen"
        try:
            yield
        finally:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(30)
            self._loop.close()

    def cut(self, *ways: Way) -> None:
        """Nothing passes these ways any more."""
        self._loop.call_soon_threadsafe(self._cut.extend, ways)

    def mend(self, *ways: Way) -> None:
        """All passes again, what was held first. What somebody else has cut stays so."""
        self._loop.call_soon_threadsafe(self._mend, ways)

    def _mend(self, ways: tuple[Way, ...]) -> None:
        for way in ways:
            self._cut.remove(way)
        self._mended.set()
        self._mended = asyncio.Event()

    async def _whole(self, sender: str, receiver: str) -> None:
        """Wait until a way is not cut."""
        while any(fnmatch.fnmatchcase(sender, one) and fnmatch.fnmatchcase(receiver, two) for one, two in self._cut):
            await self._mended.wait()

    async def _serve(self) -> None:
        wires: list[tuple[str | None, str, Ends]] = [(None, name, ends) for name, ends in self._ends.items()]
        wires += [(client, server, ends) for (client, server), ends in self._private.items()]
        servers = [await self._listen(*one) for one in wires]
        self._ready.set()
        await self._stop.wait()
        for server in servers:
            server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _listen(self, client: str | None, server: str, ends: Ends) -> asyncio.Server:
        listens, leads = ends

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> asyncio.Task[None]:
            return asyncio.ensure_future(self._carry(reader, writer, client, server, leads))

        return await asyncio.start_server(connected, *listens)

    async def _carry(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        owner: str | None,
        server: str,
        leads: Address,
    ) -> None:
        """One connection, both ways. `owner` is who alone has this wire."""
        with contextlib.suppress(OSError):
            client, begin = (owner, b"") if owner is not None else await self._who(reader)
            await self._whole(client, server)
            far_reader, far_writer = await asyncio.open_connection(*leads)
            there, back = self._through(), self._through()
            far_writer.write(there(begin))
            try:
                ways = [
                    self._pass_on(reader, far_writer, there, client, server),
                    self._pass_on(far_reader, writer, back, server, client),
                ]
                await asyncio.gather(*ways, return_exceptions=True)
            finally:
                far_writer.close()
        writer.close()

    async def _who(self, reader: asyncio.StreamReader) -> tuple[str, bytes]:
        """Who dialled, and what it has said so far; "" for somebody who says no Hello."""
        decoder, said = FrameDecoder(), b""
        with contextlib.suppress(ProtocolError):
            while piece := await reader.read(_PIECE_BYTES):
                said += piece
                decoder.feed(piece)
                for frame in decoder.frames(1):
                    return self._known_as(decode_hello(frame.header).node), said
        return "", said

    async def _pass_on(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        through: Callable[[bytes], bytes],
        sender: str,
        receiver: str,
    ) -> None:
        try:
            while piece := await reader.read(_PIECE_BYTES):
                await self._whole(sender, receiver)
                writer.write(through(piece))
                await writer.drain()
        finally:
            # One end is gone: the other end is to know.
            writer.close()
