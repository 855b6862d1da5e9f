"""Large transfers that only memory is measured under: many uploads at full speed beside many slow readers.

    echo '{"port": 8080, "uploads": 16, ...}' | python -m bench.streams

The uploads end the run; the readers take what comes, each at its rate, and are then disconnected. Afterwards one of
the uploads is read back and compared. What the server did with its memory meanwhile is watched by whoever started it.
"""

import asyncio
import contextlib
import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import Final

import uvloop
import xxhash

from bench.bodies import MIB, body
from bench.load import HOST

_PIECE_BYTES: Final = 1 * MIB
_TICK_SECONDS: Final = 0.05
_STREAMS_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class Transfers:
    """What to do. Sizes in bytes, `reader_rate` in bytes/s each."""

    port: int
    uploads: int
    upload_size: int
    readers: int
    reader_rate: int
    reader_size: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happened: seconds of all uploads, bytes that the readers got, whether the bytes came back."""

    seconds: float
    read_bytes: int
    is_intact: bool


async def upload(port: int, size: int) -> str:
    """POST `size` bytes and return the path of the blob."""
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        writer.write(f"POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {size}\r\n\r\n".encode())
        pieces = _pieces()
        with contextlib.suppress(ConnectionError):
            # A server that refuses may close before it has all; what it said is read below.
            for at in range(0, size, _PIECE_BYTES):
                writer.write(pieces[at // _PIECE_BYTES % len(pieces)][: size - at])
                await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        if not head.startswith("HTTP/1.1 201"):
            raise ConnectionError(head + (await reader.read(1000)).decode("latin-1"))
        return next(line[10:] for line in head.split("\r\n") if line.startswith("Location: "))
    finally:
        writer.close()


def _pieces() -> list[memoryview]:
    whole = memoryview(body(4 * MIB, 0))
    return [whole[start : start + _PIECE_BYTES] for start in range(0, len(whole), _PIECE_BYTES)]


async def read_slowly(port: int, path: str, rate: int, taken: list[int]) -> None:
    """GET `path` over and over, `rate` bytes/s, until cancelled. Adds what it read to `taken`."""
    while True:
        reader, writer = await asyncio.open_connection(HOST, port, limit=64 * 1024)
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
            while piece := await reader.read(int(rate * _TICK_SECONDS)):
                taken.append(len(piece))
                await asyncio.sleep(len(piece) / rate)
        finally:
            writer.close()


async def is_intact(port: int, path: str, size: int) -> bool:
    """Whether a GET answers the bytes that `upload` sent."""
    expected = xxhash.xxh3_64()
    pieces = _pieces()
    for at in range(0, size, _PIECE_BYTES):
        expected.update(pieces[at // _PIECE_BYTES % len(pieces)][: size - at])
    found = xxhash.xxh3_64()
    reader, writer = await asyncio.open_connection(HOST, port, limit=_PIECE_BYTES)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        while piece := await reader.read(_PIECE_BYTES):
            found.update(piece)
    finally:
        writer.close()
    return head.startswith(b"HTTP/1.1 200") and found.digest() == expected.digest()


async def run(transfers: Transfers) -> Outcome:
    """All of it. An upload that fails ends the run with its error."""
    assert 0 < transfers.uploads <= _STREAMS_MAX
    assert 0 <= transfers.readers <= _STREAMS_MAX
    port = transfers.port
    taken: list[int] = []
    path = await upload(port, transfers.reader_size)
    readers = [
        asyncio.create_task(read_slowly(port, path, transfers.reader_rate, taken), name=f"reader {number}")
        for number in range(transfers.readers)
    ]
    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        uploads = [group.create_task(upload(port, transfers.upload_size)) for _ in range(transfers.uploads)]
    seconds = time.perf_counter() - start
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    intact = await is_intact(port, uploads[0].result(), transfers.upload_size)
    return Outcome(seconds, sum(taken), intact)


def main() -> None:
    """Transfers as JSON on standard input, the outcome as JSON on standard output."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(asdict(runner.run(run(Transfers(**json.load(sys.stdin)))))))


if __name__ == "__main__":
    main()
