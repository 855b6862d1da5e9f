"""A mixed HTTP load whose client writes every answer down, and holds each later one against what it was told.

An acknowledged put must be readable and equal from then on; an acknowledged delete final until an undelete; an answer
that never came leaves both outcomes possible, until a later one decides. 503 says nothing about a blob, and is
counted. Knows HTTP; who serves, and who kills it, is another module's.
"""

import asyncio
import contextlib
import io
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import aiohttp

from ambry.limits import CHUNK_BYTES_MAX

SIZES: Final = (0, 100, 1000, 4096, 4096, 4096, 16_000, 70_000)
LARGE_SIZES: Final = (300_000, 1_000_000, 5_000_000)
LARGE_SHARE: Final = 0.01
TIMEOUT_S: Final = 20.0
TTL_SLACK_S: Final = 2.0
"""Expiry has a resolution of seconds, and the client's clock is read after the fact."""

_UNDECIDED: Final = frozenset({503, 507, 429})


@dataclass(slots=True)
class Stored:
    """One acknowledged blob. `may_live` and `may_be_dead`: what a read is allowed to find."""

    identity: str
    seed: int
    size: int
    may_live: bool = True
    may_be_dead: bool = False
    expires_at_s: float = float("inf")
    is_busy: bool = False
    is_damaged: bool = False
    may_be_bare: bool = False
    """Its undelete was refused, and may have met the reclaim of its bytes: without retention nothing keeps them."""

    @property
    def body(self) -> bytes:
        return content(self.seed, self.size)


def content(seed: int, size: int) -> bytes:
    """A body that is like no other."""
    return random.Random(seed).randbytes(size)


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that says nothing of the blob: what was asked, the status and code, and when (monotonic)."""

    what: str
    status: int
    code: str
    sent_at_s: float
    at_s: float
    is_damaged: bool
    may_be_bare: bool


@dataclass(slots=True)
class Findings:
    """What must stay empty, with a line about each, and counts of everything that was answered."""

    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    resurrected: list[str] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    refusals: list[Refusal] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.wrong or self.resurrected)


class RecordedLoad:
    """Clients of one store, and what they were told. `url` may change when the store is started again."""

    def __init__(self, seed: int, live_bytes_max: int = 1 << 40, chunked_bytes_max: int = 1 << 40) -> None:
        self.url = ""
        self.live_bytes = 0
        self.live_bytes_max = live_bytes_max
        self._chunked_bytes_left = chunked_bytes_max
        """Of blobs of several chunks: when such a one is deleted, its chunks stay for a day, until they are swept."""
        self.chance = random.Random(seed)
        self.blobs: list[Stored] = []
        self.touched: set[int] = set()
        self.findings = Findings()
        self._next_seed = seed * 1_000_000

    # --- load --------------------------------------------------------------------------------------------------

    async def run(self, clients: int, stopping: asyncio.Event) -> None:
        """`clients` of them, until told to stop."""
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        connector = aiohttp.TCPConnector(limit=0)
        async with (
            aiohttp.ClientSession(timeout=timeout, connector=connector) as session,
            asyncio.TaskGroup() as group,
        ):
            for number in range(clients):
                group.create_task(self._work(session, stopping), name=f"client {number}")

    async def _work(self, session: aiohttp.ClientSession, stopping: asyncio.Event) -> None:
        steps: tuple[Callable[[aiohttp.ClientSession], Awaitable[None]], ...] = (self._put, self._read, self._change)
        while not stopping.is_set():
            # With as much stored as there may be, deletes take the place of puts.
            is_full = self.live_bytes > self.live_bytes_max
            (step,) = self.chance.choices(steps, (5, 40, 55) if is_full else (40, 45, 15))
            try:
                await step(session)
            except (aiohttp.ClientError, TimeoutError, ConnectionError):
                # Nobody is there, or he died with the answer in his hands.
                self.findings.answers["no answer"] += 1
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stopping.wait(), 0.05)

    async def _put(self, session: aiohttp.ClientSession) -> None:
        self._next_seed += 1
        seed = self._next_seed
        size = self._size()
        headers = {"Content-Type": "application/octet-stream"}
        ttl_s = self.chance.choice((0, 0, 0, 0, 0, 3, 3600))
        if ttl_s:
            headers["x-ambry-ttl"] = str(ttl_s)
        sent_at_s = time.time()
        asked_at_s = time.monotonic()
        async with session.post(f"{self.url}/", data=io.BytesIO(content(seed, size)), headers=headers) as answer:
            self._count("put", answer.status, await answer.read(), asked_at_s)
            if answer.status == 201:
                blob = Stored(answer.headers["Location"].lstrip("/"), seed, size)
                if ttl_s:
                    blob.expires_at_s = sent_at_s + ttl_s
                self.live_bytes += size
                self.touched.add(len(self.blobs))
                self.blobs.append(blob)
            elif answer.status not in _UNDECIDED:
                self.findings.lost.append(f"a put was answered {answer.status}")

    def _size(self) -> int:
        size = self.chance.choice(LARGE_SIZES if self.chance.random() < LARGE_SHARE else SIZES)
        if size > CHUNK_BYTES_MAX:
            if size > self._chunked_bytes_left:
                return LARGE_SIZES[0]
            self._chunked_bytes_left -= size
        return size

    async def _read(self, session: aiohttp.ClientSession) -> None:
        if not self.blobs:
            return
        # Half of the reads are of what is new.
        newest = max(0, len(self.blobs) - 200)
        blob = self.blobs[self.chance.randrange(newest if self.chance.random() < 0.5 else 0, len(self.blobs))]
        part = None
        if blob.size and self.chance.random() < 0.3:
            start = self.chance.randrange(blob.size)
            part = (start, min(blob.size, start + self.chance.choice((1, 100, 5000, 100_000))))
        await self.check(session, blob, part)

    async def _change(self, session: aiohttp.ClientSession) -> None:
        if not self.blobs:
            return
        number = self.chance.randrange(len(self.blobs))
        blob = self.blobs[number]
        if blob.is_busy or blob.expires_at_s < time.time() + TIMEOUT_S + TTL_SLACK_S:
            return
        blob.is_busy = True
        self.touched.add(number)
        try:
            if not blob.may_live and self.chance.random() < 0.5:
                await self._undelete(session, blob)
            elif blob.expires_at_s < float("inf"):
                await self._make_permanent(session, blob)
            else:
                await self._delete(session, blob)
        finally:
            blob.is_busy = False

    async def _delete(self, session: aiohttp.ClientSession, blob: Stored) -> None:
        blob.may_be_dead = True
        asked_at_s = time.monotonic()
        async with session.delete(f"{self.url}/{blob.identity}") as answer:
            self._count("delete", answer.status, await answer.read(), asked_at_s, blob)
        if answer.status == 202:
            self.live_bytes -= blob.size if blob.may_live else 0
            blob.may_live = False
        elif answer.status == 404:
            self.findings.lost.append(f"{blob.identity}: its delete was answered 404")

    async def _undelete(self, session: aiohttp.ClientSession, blob: Stored) -> None:
        blob.may_live = True
        asked_at_s = time.monotonic()
        async with session.put(f"{self.url}/{blob.identity}/undelete") as answer:
            self._count("undelete", answer.status, await answer.read(), asked_at_s, blob)
        if answer.status == 200:
            self.live_bytes += blob.size
            blob.may_be_dead = False
        elif answer.status not in _UNDECIDED:
            # Its bytes are reclaimed already, if it was dead at all.
            blob.may_live = not blob.may_be_dead

    async def _make_permanent(self, session: aiohttp.ClientSession, blob: Stored) -> None:
        former_s, blob.expires_at_s = blob.expires_at_s, float("inf")
        asked_at_s = time.monotonic()
        async with session.put(f"{self.url}/{blob.identity}/ttl", headers={"x-ambry-ttl": "-1"}) as answer:
            self._count("ttl", answer.status, await answer.read(), asked_at_s, blob)
        if answer.status != 200:
            # Whether it was made so is not known, so it is not asked about after the hour that it had.
            blob.expires_at_s = former_s

    def _count(self, what: str, status: int, data: bytes, asked_at_s: float, blob: Stored | None = None) -> None:
        self.findings.answers[f"{what} {status}"] += 1
        if status in _UNDECIDED:
            code = str(json.loads(data)["code"]) if data else ""
            if blob is not None and what == "undelete":
                blob.may_be_bare = True
            is_damaged, may_be_bare = (blob.is_damaged, blob.may_be_bare) if blob is not None else (False, False)
            now_s = time.monotonic()
            self.findings.refusals.append(Refusal(what, status, code, asked_at_s, now_s, is_damaged, may_be_bare))

    # --- looking -----------------------------------------------------------------------------------------------

    async def check(self, session: aiohttp.ClientSession, blob: Stored, part: tuple[int, int] | None = None) -> bool:
        """Read a blob, or a part of it, and hold the answer against the record; False when it is not available."""
        headers = {} if part is None else {"Range": f"bytes={part[0]}-{part[1] - 1}"}
        was_busy, could_live, could_be_dead = blob.is_busy, blob.may_live, blob.may_be_dead
        asked_at_s, asked_monotonic_s = time.time(), time.monotonic()
        async with session.get(f"{self.url}/{blob.identity}", headers=headers) as answer:
            data = await answer.read()
        self._count("get", answer.status, data, asked_monotonic_s, blob)
        if answer.status in _UNDECIDED:
            return False
        is_settled = not (was_busy or blob.is_busy) and (could_live, could_be_dead) == (blob.may_live, blob.may_be_dead)
        may_be_expired = time.time() > blob.expires_at_s - TTL_SLACK_S
        must_be_expired = asked_at_s > blob.expires_at_s + TTL_SLACK_S
        if answer.status in {200, 206}:
            body = blob.body
            if data != (body if part is None else body[part[0] : part[1]]):
                self.findings.wrong.append(f"{blob.identity}: {len(data)} bytes that are not its own")
            if is_settled and (not could_live or must_be_expired):
                self.findings.resurrected.append(f"{blob.identity}: deleted or expired, and read")
        elif answer.status in {404, 410}:
            # Of an expired blob, nothing needs to be left to tell that it was there.
            may_be_gone = could_be_dead and answer.status == 410
            if is_settled and not (may_be_gone or may_be_expired):
                self.findings.lost.append(f"{blob.identity}: {answer.status} {data[:80]!r}")
        else:
            self.findings.lost.append(f"{blob.identity}: {answer.status} {data[:80]!r}")
        return True

    async def check_all(self, numbers: list[int], give_up_s: float = 30.0) -> None:
        """Read these blobs whole; what stays unavailable is lost, unless it was damaged on purpose."""
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        rest = iter(numbers)
        async with aiohttp.ClientSession(timeout=timeout) as session, asyncio.TaskGroup() as group:

            async def look() -> None:
                for number in rest:
                    await self._check_until(session, self.blobs[number], time.monotonic() + give_up_s)

            for _ in range(16):
                group.create_task(look())

    async def _check_until(self, session: aiohttp.ClientSession, blob: Stored, give_up_at_s: float) -> None:
        while True:
            try:
                if await self.check(session, blob):
                    return
            except (aiohttp.ClientError, TimeoutError, ConnectionError):
                self.findings.answers["no answer"] += 1
            if blob.is_damaged or blob.may_be_bare:
                what = "damaged" if blob.is_damaged else "undeleted too late"
                self.findings.answers[f"{what}, not served"] += 1
                return
            if time.monotonic() >= give_up_at_s:
                self.findings.lost.append(f"{blob.identity}: not available")
                return
            await asyncio.sleep(0.1)

    def figures(self) -> dict[str, object]:
        """What a proof prints."""
        found = self.findings
        return {
            "blobs": len(self.blobs),
            "answers": dict(sorted(found.answers.items())),
            "lost": len(found.lost),
            "wrong": len(found.wrong),
            "resurrected": len(found.resurrected),
            "escaped": [*found.lost, *found.wrong, *found.resurrected][:20],
        }
