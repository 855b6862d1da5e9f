"""GETs while a datanode dies: what clients see in the second after it, request by request.

A few keep-alive connections read in turn what was put before. At a given moment something happens to the cluster, and
the requests that were open then or began within the next second are looked at by themselves. Small and plain: it runs
in the process that does the harm, so that the moment is known.
"""

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from bench.load import HOST

_ANSWER_SECONDS_MAX = 10.0


@dataclass(slots=True)
class Outcome:
    """What the readers saw. Times in seconds; `after` are those of requests open at the moment or begun soon after."""

    moment: float = 0.0
    before: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)
    later: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @staticmethod
    def p99(times: list[float]) -> float:
        """The 99th percentile; 0 of none."""
        ordered = sorted(times)
        return ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)] if ordered else 0.0


class _Reader:
    """One connection that reads one blob after the other."""

    def __init__(self, port: int, digests: Mapping[str, bytes]) -> None:
        self._port = port
        self._digests = digests

    async def run(self, first: int, until: float, done: Callable[[float, float, str], None]) -> None:
        loop = asyncio.get_running_loop()
        reader, writer = await asyncio.open_connection(HOST, self._port)
        paths = list(self._digests)
        place = first
        try:
            while loop.time() < until:
                place += 1
                path = paths[place % len(paths)]
                started = loop.time()
                try:
                    problem = await asyncio.wait_for(self._get(reader, writer, path), _ANSWER_SECONDS_MAX)
                except (TimeoutError, OSError, asyncio.IncompleteReadError) as error:
                    done(started, loop.time(), f"{path}: {error!r}")
                    return
                done(started, loop.time(), problem)
        finally:
            writer.close()

    async def _get(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> str:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        body = await reader.readexactly(size)
        if not head.startswith(b"HTTP/1.1 200 "):
            return f"{path}: {head[:80]!r} {body[:200]!r}"
        return "" if hashlib.sha256(body).digest() == self._digests[path] else f"{path}: wrong bytes"


async def read_while(
    port: int,
    digests: Mapping[str, bytes],
    harm: Callable[[], None],
    *,
    connections: int = 16,
    before_s: float = 1.0,
    after_s: float = 2.0,
) -> Outcome:
    """Read for `before_s`, do `harm`, read on for `after_s`. `digests` has the SHA-256 of what is behind each path."""
    loop = asyncio.get_running_loop()
    outcome = Outcome()
    moment = loop.time() + before_s

    def done(started: float, ended: float, problem: str) -> None:
        if problem:
            outcome.errors.append(problem)
        happened = outcome.moment or float("inf")
        if ended < happened:
            outcome.before.append(ended - started)
        elif started < happened + 1.0:
            outcome.after.append(ended - started)
        else:
            outcome.later.append(ended - started)

    readers = [
        asyncio.create_task(_Reader(port, digests).run(17 * number, moment + after_s, done), name="reader")
        for number in range(connections)
    ]
    await asyncio.sleep(max(moment - loop.time(), 0))
    outcome.moment = loop.time()
    harm()
    await asyncio.gather(*readers)
    return outcome
