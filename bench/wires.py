"""TCP in front of servers that can be cut and mended: a partition of the network on one machine.

A wire listens where a server says that it is reached, and passes bytes on to where it listens. While it is cut nothing
passes either way and nobody is told, as when packets are lost; what was sent meanwhile arrives when it is mended. It
carries what others send to this server, not what it sends to others: so a cut is one-way, the meaner kind.
Knows addresses and bytes, nothing of what they mean.
"""

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import Final, TypeAlias

Address: TypeAlias = tuple[str, int]

_PIECE_BYTES: Final = 1 << 16


class Wires:
    """Wires by name, on a thread of their own."""

    def __init__(self, ends: Mapping[str, tuple[Address, Address]]) -> None:
        """`ends` of each: where it listens, and where it leads."""
        self._ends = dict(ends)
        self._loop = asyncio.new_event_loop()
        self._whole: dict[str, asyncio.Event] = {}
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[self._serve()], name="wires")
        self._stop = asyncio.Event()

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

    def cut(self, name: str) -> None:
        """Nothing passes any more."""
        self._loop.call_soon_threadsafe(self._whole[name].clear)

    def mend(self, name: str) -> None:
        """All passes again, what waited first."""
        self._loop.call_soon_threadsafe(self._whole[name].set)

    async def _serve(self) -> None:
        servers = []
        for name, (listens, leads) in self._ends.items():
            whole = self._whole[name] = asyncio.Event()
            whole.set()

            def connected(
                reader: asyncio.StreamReader,
                writer: asyncio.StreamWriter,
                leads: Address = leads,
                whole: asyncio.Event = whole,
            ) -> asyncio.Task[None]:
                return asyncio.ensure_future(_carry(reader, writer, leads, whole))

            servers.append(await asyncio.start_server(connected, *listens))
        self._ready.set()
        await self._stop.wait()
        for server in servers:
            server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


async def _carry(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, leads: Address, whole: asyncio.Event
) -> None:
    """One connection, both ways."""
    with contextlib.suppress(OSError):
        await whole.wait()
        far_reader, far_writer = await asyncio.open_connection(*leads)
        try:
            ways = [_pass_on(reader, far_writer, whole), _pass_on(far_reader, writer, whole)]
            await asyncio.gather(*ways, return_exceptions=True)
        finally:
            far_writer.close()
    writer.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, whole: asyncio.Event) -> None:
    try:
        while piece := await reader.read(_PIECE_BYTES):
            await whole.wait()
            writer.write(piece)
            await writer.drain()
    finally:
        # One end is gone: the other end is to know.
        writer.close()
