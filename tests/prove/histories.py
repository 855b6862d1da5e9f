"""What clients of a cluster in trouble were told, checked against what may never happen: `histories --operations N`.

Two datacentres of three datanodes and two frontends, a real ZooKeeper, every process a real one behind a proxy that can
cut each way between two of them, and between one of them and ZooKeeper. Clients of all frontends put, read (plainly, by
ranges, by quorum), delete, undelete and make permanent, while everything in `tests.prove.cluster_faults` happens; the
judge is that of the simulation, `tests.sim.history`: an acknowledged blob is never "not found", its bytes never others,
nothing is gone that nobody deleted, and a quorum read finds nothing whose delete was acknowledged. 503 is an answer
while there is trouble, and never after it. In the end all are read through both datacentres, and
`ambry cluster verify --bytes` has to say equal.
"""

import asyncio
import io
import json
import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import aiohttp

from ambry.blob.blob_id import binary_from_text, text_from_binary
from ambry.cli.dev_cluster import Plan, Running, running
from bench.cluster_files import SETTLE_S, WIRE_HOST, host_of_wire_to_zookeeper, operate, wires_of
from tests.prove.cluster_faults import Faults, names_by_pid, small_disks
from tests.sim.history import Attempt, Blob, History, Violation
from tests.zookeeper_server import install

CLIENTS: Final = 24
READERS: Final = 24
SIZES: Final = (0, 100, 1000, 1000, 4096, 4096, 16_000)
LARGE_SIZES: Final = (70_000, 300_000)
LARGE_SHARE: Final = 0.01
TTL_S: Final = 86_400
TIMEOUT_S: Final = 20.0
UNDELETE_S: Final = 20.0
RETENTION_S: Final = 90
"""Bytes of the deleted are kept for longer than an undelete is tried, and for much less than somebody is away."""

DISK_MIB: Final = 1024
AWAY: Final = "datanode-2-3"
AWAY_FROM: Final = 0.15
AWAY_TO: Final = 0.6
"""One datanode misses this part of the run; meanwhile the others reclaim what was deleted."""

NOT_NOW: Final = frozenset({429, 503, 507})
STORAGE: Final = f"""segment_bytes = "16 MiB"
deleted_retention_ms = "{RETENTION_S} s"
compaction_garbage_percent = 5"""


@dataclass(slots=True)
class Clients:
    """HTTP clients of every frontend, and what they were told."""

    urls: dict[int, list[str]]
    seed: int
    wanted: int
    history: History = field(default_factory=History)
    problems: list[str] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    refused: dict[bytes, list[Attempt]] = field(default_factory=dict)
    """Undeletes of blobs that lived: they have changed nothing, and a violation names them all the same."""

    async def run(self) -> None:
        """All operations."""
        async with self._session() as session, asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(self._client(session, random.Random(f"{self.seed} {number}")), name="client")

    def _session(self) -> aiohttp.ClientSession:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        session = aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0))
        # An undelete that the library sent twice would be refused, though it has happened.
        session._retry_connection = False
        return session

    async def _client(self, session: aiohttp.ClientSession, chance: random.Random) -> None:
        steps = (
            (self._put, 25), (self._read, 40), (self._read_quorum, 15), (self._read_unknown, 2), (self._delete, 10),
            (self._undelete, 4), (self._make_permanent, 4),
        )  # fmt: skip
        while self.history.operations < self.wanted:
            self.history.operations += 1
            (step,) = chance.choices([one for one, _ in steps], [weight for _, weight in steps])
            place = chance.choice(list(self.urls))
            try:
                await step(_Call(session, chance.choice(self.urls[place]), place, chance))
            except Violation as violation:
                self.problems.append(str(violation))
            except (aiohttp.ClientError, TimeoutError, ConnectionError):
                self.answers[f"{step.__name__.strip('_')}: no answer"] += 1
                await asyncio.sleep(0.05)

    def _told(self, what: str, status: int, *fine: int) -> None:
        """Count an answer. Raises Violation for a status that this request may never be answered with."""
        self.answers[f"{what}: {status}"] += 1
        if status not in {*fine, *NOT_NOW}:
            raise Violation(f"{what} was answered {status}")

    # --- operations --------------------------------------------------------------------------------------------

    async def _put(self, call: "_Call") -> None:
        chance = call.chance
        body = chance.randbytes(chance.choice(LARGE_SIZES if chance.random() < LARGE_SHARE else SIZES))
        headers = {"Content-Type": "application/octet-stream"}
        is_mortal = chance.random() < 0.2
        if is_mortal:
            headers["x-ambry-ttl"] = str(TTL_S)
        expires_at_ms = _now_ms() + TTL_S * 1000 if is_mortal else None
        async with call.session.post(f"{call.url}/", data=io.BytesIO(body), headers=headers) as answer:
            self._told("put", answer.status, 201)
            if answer.status == 201:
                blob_id = binary_from_text(answer.headers["Location"].lstrip("/").encode())
                self.history.acknowledged(Blob(blob_id, call.place, body, time.monotonic(), expires_at_ms))

    def _some(self, chance: random.Random) -> Blob | None:
        """Half of the time a young one: replication has not brought it everywhere."""
        blobs = self.history.blobs
        if not blobs:
            return None
        return blobs[-1 - chance.randrange(min(64, len(blobs)))] if chance.random() < 0.5 else chance.choice(blobs)

    async def _read(self, call: "_Call") -> None:
        blob = self._some(call.chance)
        if blob is not None:
            await self.look(call, blob)

    async def _read_quorum(self, call: "_Call") -> None:
        blob = self._some(call.chance)
        if blob is not None:
            await self.look(call, blob, is_quorum=True)

    async def look(self, call: "_Call", blob: Blob, *, is_quorum: bool = False, is_settled: bool = False) -> bool:
        """Read a blob, or a part of it, and judge the answer; False when there was none. Raises Violation."""
        size, start, stop = len(blob.body), 0, len(blob.body)
        headers = {"x-ambry-read": "quorum"} if is_quorum else {}
        if size and not is_settled and call.chance.random() < 0.3:
            start = call.chance.randrange(size)
            stop = call.chance.randint(start + 1, size)
            headers["Range"] = f"bytes={start}-{stop - 1}"
        begun = time.monotonic()
        async with call.session.get(f"{call.url}/{text_from_binary(blob.blob_id)}", headers=headers) as answer:
            body = await answer.read()
        self._told("quorum read" if is_quorum else "read", answer.status, 200, 206, 404, 410)
        try:
            self._judge(blob, answer.status, body, (start, stop), call.place, begun, is_quorum, is_settled)
        except Violation as violation:
            known = [*blob.attempts, *self.refused.get(blob.blob_id, [])]
            told = [f"{one} refused" if one not in blob.attempts else str(one) for one in known]
            when = f"read in {call.place} at {begun:.3f}, put at {blob.acknowledged:.3f}"
            raise Violation(f"{violation}; {when}; {told}") from violation
        return answer.status not in NOT_NOW

    def _judge(
        self,
        blob: Blob,
        status: int,
        body: bytes,
        part: tuple[int, int],
        place: int,
        begun: float,
        is_quorum: bool,
        is_settled: bool,
    ) -> None:
        now_ms = _now_ms()
        if status in {200, 206}:
            self.history.saw_bytes(
                blob, body, start=part[0], stop=part[1], is_quorum=is_quorum, datacentre=place, begun=begun,
                now_ms=now_ms,
            )  # fmt: skip
            if is_settled and blob.last_delete_is_final():
                raise Violation(f"{blob.blob_id.hex()}: deleted for good, and readable after everything healed")
        elif status == 410:
            self.history.saw_gone(blob, now_ms=now_ms, is_settled=is_settled)
        elif status == 404:
            self.history.saw_not_found(blob, now_ms=now_ms)

    async def _read_unknown(self, call: "_Call") -> None:
        """An id that nobody was given."""
        blob = self._some(call.chance)
        if blob is not None:
            strange = text_from_binary(blob.blob_id[:-6] + call.chance.randbytes(6))
            async with call.session.get(f"{call.url}/{strange}") as answer:
                self._told("read of nothing", answer.status, 404)

    async def _delete(self, call: "_Call") -> None:
        blob = self._some(call.chance)
        if blob is None:
            return
        attempt = Attempt(True, call.place, time.monotonic())
        blob.attempts.append(attempt)
        async with call.session.delete(f"{call.url}/{text_from_binary(blob.blob_id)}") as answer:
            self._told("delete", answer.status, 202, 404)
        if answer.status == 404:
            self.history.saw_not_found(blob, now_ms=_now_ms())
        attempt.is_acknowledged = answer.status == 202
        attempt.ended = time.monotonic()

    async def _undelete(self, call: "_Call") -> None:
        """A blob that was deleted lately: its bytes are kept for some time, and this is shorter."""
        since = time.monotonic() - UNDELETE_S
        lately = [blob for blob in self.history.blobs[-2000:] if blob.deletes and blob.deletes[0].begun > since]
        if not lately:
            return
        blob = call.chance.choice(lately)
        attempt = Attempt(False, call.place, time.monotonic())
        blob.attempts.append(attempt)
        async with call.session.put(f"{call.url}/{text_from_binary(blob.blob_id)}/undelete") as answer:
            code = "" if answer.status == 200 else json.loads(await answer.read())["code"]
            self._told("undelete", answer.status, 200, 404, 409, 410)
        if answer.status == 404:
            self.history.saw_not_found(blob, now_ms=_now_ms())
        if code == "not_allowed":
            blob.attempts.remove(attempt)
            self.refused.setdefault(blob.blob_id, []).append(attempt)
        attempt.is_acknowledged = answer.status == 200
        attempt.ended = time.monotonic()

    async def _make_permanent(self, call: "_Call") -> None:
        mortal = [blob for blob in self.history.blobs[-2000:] if blob.expires_at_ms is not None]
        if not mortal:
            return
        blob = call.chance.choice(mortal)
        blob.extensions += 1
        path, headers = f"{call.url}/{text_from_binary(blob.blob_id)}/ttl", {"x-ambry-ttl": "-1"}
        async with call.session.put(path, headers=headers) as answer:
            self._told("make permanent", answer.status, 200, 404, 410)
        now_ms = _now_ms()
        if answer.status == 404:
            self.history.saw_not_found(blob, now_ms=now_ms)
        elif answer.status == 410:
            self.history.saw_gone(blob, now_ms=now_ms)
        blob.is_permanent |= answer.status == 200

    # --- the end -----------------------------------------------------------------------------------------------

    async def last_look(self) -> None:
        """Every blob through every datacentre, once all is well: no answer is no excuse any more."""
        rest = iter([(blob, place) for blob in self.history.blobs for place in self.urls])
        async with self._session() as session, asyncio.TaskGroup() as group:

            async def some() -> None:
                chance = random.Random(self.seed)
                for blob, place in rest:
                    call = _Call(session, chance.choice(self.urls[place]), place, chance)
                    try:
                        if not await self.look(call, blob, is_settled=True):
                            raise Violation(f"{blob.blob_id.hex()}: no answer after everything healed")
                    except Violation as violation:
                        self.problems.append(str(violation))

            for _ in range(READERS):
                group.create_task(some(), name="reader")


@dataclass(frozen=True, slots=True)
class _Call:
    """One operation of one client: through which frontend, in which datacentre."""

    session: aiohttp.ClientSession
    url: str
    place: int
    chance: random.Random


def _now_ms() -> int:
    return int(time.time() * 1000)


async def _under_faults(clients: Clients, faults: Faults) -> None:
    """All operations, while everything goes wrong; everything is back when it returns."""
    working = asyncio.create_task(clients.run(), name="clients")
    failing = asyncio.create_task(faults.run(), name="faults")
    away = asyncio.create_task(_be_away(clients, faults), name="away")
    try:
        await working
    finally:
        faults.stopping.set()
        await asyncio.gather(failing, away)


async def _be_away(clients: Clients, faults: Faults) -> None:
    """One datanode misses most of what happens."""

    async def reached(share: float) -> None:
        while clients.history.operations < share * clients.wanted and not faults.stopping.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(faults.stopping.wait(), 0.2)

    await reached(AWAY_FROM)
    if not await faults.leave(AWAY):
        return
    await reached(AWAY_TO)
    await faults.come_back(AWAY)


def _operate(cluster: Running, clients: Clients, *arguments: str) -> str:
    """An operator's command; that it says no is a problem."""
    try:
        return operate(cluster, *arguments)
    except SystemExit as refused:
        clients.problems.append(str(refused))
        return ""


def _verified(cluster: Running, clients: Clients) -> dict[str, object]:
    """What comparing all bytes of all replicas finds; with what each replica says of the first blob that differs."""
    try:
        found: dict[str, object] = json.loads(operate(cluster, "cluster", "verify", "--bytes", "--json"))
    except SystemExit as refused:
        clients.problems.append(str(refused))
        different = re.search(r'"differing": \[\s*"([\w-]+)"', str(refused))
        if different:
            with suppress(SystemExit):
                clients.problems.append(operate(cluster, "blob", "locate", different[1], "--json"))
            try:
                clients.problems.append(operate(cluster, "blob", "verify", different[1], "--json"))
            except SystemExit as answered:
                clients.problems.append(str(answered))
        return {}
    return {key: value for key, value in found.items() if key != "differences"}


def histories_of(
    cluster: Running, faults: Callable[[asyncio.Event], Faults], seed: int, count: int
) -> dict[str, object]:
    """`count` operations on a cluster that runs, and the last look. `escaped` has what may never happen."""
    urls: dict[int, list[str]] = {}
    for name, url in cluster.urls.items():
        urls.setdefault(int(name.split("-")[1]), []).append(url)
    clients = Clients(urls, seed, count)
    began_s = time.monotonic()

    async def run() -> Faults:
        made = faults(asyncio.Event())
        await _under_faults(clients, made)
        return made

    done = asyncio.run(run())
    load_s = time.monotonic() - began_s
    began_s = time.monotonic()
    _operate(cluster, clients, "wait", "--healthy", "--converged", "--timeout", str(SETTLE_S))
    settled_s = time.monotonic() - began_s
    in_trouble = dict(sorted(clients.answers.items()))
    clients.answers.clear()
    asyncio.run(clients.last_look())
    verified = _verified(cluster, clients)
    return {
        "operations": clients.history.operations,
        "load_s": round(load_s, 1),
        "blobs": len(clients.history.blobs),
        "deleted_for_good": sum(blob.last_delete_is_final() for blob in clients.history.blobs),
        "faults": dict(sorted(done.made.items())),
        "answers": in_trouble,
        "equal_after_s": round(settled_s, 1),
        "last_look": dict(sorted(clients.answers.items())),
        "verified": verified,
        "escaped": [*clients.problems[:20], *done.broken],
    }


def prove_histories(chosen: int, seconds: float, count: int = 0) -> dict[str, object]:
    """`count` operations, or as many as a cluster in trouble does in so many seconds, roughly."""
    install()
    with tempfile.TemporaryDirectory(prefix="ambry-histories-") as name:
        folder = Path(name)
        plan = Plan(
            folder, datacentres=2, datanodes=3, frontends=2, partitions=3, replicas=3, node_host=WIRE_HOST,
            storage=STORAGE, zookeeper_host=host_of_wire_to_zookeeper,
        )  # fmt: skip
        small = ("datanode-1-3", "datanode-2-2")
        running_now: list[Running] = []
        wires = wires_of(plan, lambda said: names_by_pid(running_now[0], said) if running_now else said)
        disks = [folder / one / "disk0" for one in small]
        with small_disks(disks, DISK_MIB) as can_fill, wires.running(), running(plan) as cluster:
            running_now.append(cluster)
            fillable = small if can_fill else ()
            return histories_of(
                cluster,
                lambda stopping: Faults(cluster, wires, random.Random(chosen), fillable, stopping),
                chosen,
                count or max(200, int(100 * seconds)),
            )
