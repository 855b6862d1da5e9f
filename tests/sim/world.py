"""One run: a cluster, its clients, what goes wrong, and then a time without trouble after which all must be well."""

import asyncio
import hashlib
import os
import random
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from ambry.access.accounts import Durability
from ambry.blob.blob_id import binary_from_text
from ambry.blob.properties import Properties
from ambry.blob.requests import ChangesRequest
from ambry.blob.state import NEVER, BlobState
from ambry.cluster import changes
from ambry.cluster.layout import decode_file, with_version
from ambry.cluster.map import ClusterMap, Datacentre, Disk, Node, Partition, Replica, ReplicaState
from ambry.cluster.membership import MAP_FILE, Membership
from ambry.errors import AmbryError, BlobDeleted, BlobExpired, BlobNotFound, NotAllowed
from ambry.frontend.budget import TransferBudget
from ambry.frontend.chance import Chance
from ambry.frontend.get import OpenBlob
from ambry.frontend.headers import GetOption
from ambry.frontend.operations import Operations
from ambry.frontend.put import Cut, PutPlan
from ambry.limits import GIB, KIB, MAP_WAIT_S, MIB
from ambry.storage import exchange
from tests.sim.history import Attempt, Blob, History, Violation
from tests.sim.loop import VirtualLoop, run_virtually
from tests.sim.network import Link, Network, Weather
from tests.sim.node import Era, SimNode, SkewedClock
from tests.sim.operating import Operator
from tests.sim.registry import NAME, SESSION_S, Ensemble, cut_off
from tests.sim.replicating import Life, follow

DATACENTRES = (1, 2)
NODES_EACH = 3
SPARE = 4
"""A datanode of each datacentre with this number has registered, and waits to be added to the map."""

FRONTENDS_EACH = 2
PARTITIONS = (1, 2, 3)
MOVING = 3
"""This partition has two replicas in each datacentre, so that a third datanode can take one over."""

CLIENTS = 8
THINK_S = 1.5
SKEW_MS_MAX = 3_600_000
DAY_MS = 86_400_000
HEALING_S = 60.0

VERSIONS_BEYOND = 1000
"""A restored layout is this much newer than the newest that was found, as `ambry cluster restore` makes it."""

_CUT = Cut(chunk_bytes=1024, manifest_entries=4)


class SimChance(Chance):
    """Ids and choices from the seed."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self._chance = chance

    def unique_10(self) -> bytes:
        """Ten bytes."""
        return self._chance.randbytes(10)

    def token(self, size: int) -> bytes:
        """Some bytes."""
        return self._chance.randbytes(size)

    def below(self, limit: int) -> int:
        """A number below `limit`."""
        return self._chance.randrange(limit)


@dataclass(slots=True)
class Frontend:
    """One frontend process."""

    name: str
    datacentre: int
    clock: SkewedClock
    operations: Operations
    membership: Membership


def _node(name: str) -> Node:
    """A datanode as the map has it."""
    return Node(name, int(name[1]), "rack", name, 1, (Disk("disk", 8 * GIB),))


class Body:
    """A body that arrives in pieces."""

    def __init__(self, body: bytes, piece: int) -> None:
        self._body = body
        self._piece = piece
        self._at = 0

    async def read(self) -> bytes:
        """The next piece."""
        await asyncio.sleep(0)
        piece = self._body[self._at : self._at + self._piece]
        self._at += len(piece)
        return piece


@dataclass(slots=True)
class Outcome:
    """What a run did. `digest` is the same whenever the seed is run again."""

    seed: int
    operations: int
    counts: dict[str, int]
    digest: str
    violation: str = ""
    faults: dict[str, int] = field(default_factory=dict)


class World:
    """The cluster of one run."""

    def __init__(self, loop: VirtualLoop, seed: int, operations: int, folder: Path) -> None:
        self.loop = loop
        self._folder = folder
        self.seed = seed
        self.chance = random.Random(seed)
        self.era = Era()
        self.network = Network(loop, random.Random(seed + 1))
        self.history = History()
        self.faults: dict[str, int] = {}
        self.trace = hashlib.sha256()
        self._wanted = operations
        self._tasks: set[asyncio.Future[None]] = set()
        self._gate = asyncio.Event()
        self._gate.set()
        self._open_operations = 0
        self._has_leapt = False
        self._names = [f"d{place}n{number}" for place in DATACENTRES for number in range(1, SPARE + 1)]
        self.ensemble = Ensemble(self.network, self._make_map(), random.Random(seed + 3))
        self.network.places[NAME] = DATACENTRES[0]
        self.nodes = {name: self._make_node(name) for name in self._names}
        self.lives: dict[str, Life] = {}
        self.frontends = [
            self._make_frontend(f"d{place}f{number}", place)
            for place in DATACENTRES
            for number in range(1, FRONTENDS_EACH + 1)
        ]
        for node in self.nodes.values():
            self.lives[node.name] = self._add_life(node)
        self.operator = Operator(self.ensemble, self.nodes, self.lives)
        # One disk of all may rot: two at once could hit both copies that a write was acknowledged with.
        self.rotten = self.chance.choice(self._names)
        self._has_lost: set[int] = set()
        self._is_moving: set[int] = set()

    # --- building ----------------------------------------------------------------------------------------------

    def _make_map(self) -> ClusterMap:
        nodes = {name: _node(name) for name in self._names if not name.endswith(f"n{SPARE}")}
        placed = tuple(Replica(name, "disk", ReplicaState.SERVING) for name in nodes)
        return ClusterMap(
            "sim",
            1,
            {place: Datacentre(place, f"dc{place}") for place in DATACENTRES},
            nodes,
            {number: Partition(number, GIB, False, 1, self._places(placed, number)) for number in PARTITIONS},
        )

    def _places(self, placed: tuple[Replica, ...], partition: int) -> tuple[Replica, ...]:
        return tuple(one for one in placed if partition != MOVING or not one.node.endswith(f"n{NODES_EACH}"))

    def _clock(self) -> SkewedClock:
        return SkewedClock(self.loop, self.era, self.chance.randint(-SKEW_MS_MAX, SKEW_MS_MAX))

    def _make_node(self, name: str) -> SimNode:
        self.network.places[name] = int(name[1])
        chance = random.Random(self.chance.getrandbits(64))
        node = SimNode(name, int(name[1]), self._clock(), self.loop, chance)
        self.network.servers[name] = node
        return node

    def _make_frontend(self, name: str, place: int) -> Frontend:
        self.network.places[name] = place
        membership = follow(self.ensemble, name, self._folder / name)
        links = {
            node.name: Link(self.network, name, node, lambda: operations.cluster_map.version, membership.look_soon)
            for node in self.nodes.values()
        }
        clock = self._clock()
        operations = Operations(
            cluster_map=self.ensemble.layout.cluster_map,
            datacentre=place,
            datanodes=links,
            clock=clock,
            chance=SimChance(random.Random(self.chance.getrandbits(64))),
            budget=TransferBudget(64 * MIB, 100),
            cut=_CUT,
        )

        async def adopt(cluster_map: ClusterMap) -> None:
            operations.adopt(cluster_map)

        async def reload(version: int) -> bool:
            return await membership.newer_than(version, MAP_WAIT_S)

        membership.on_map(adopt)
        operations.reload = reload
        return Frontend(name, place, clock, operations, membership)

    def _add_life(self, node: SimNode) -> Life:
        def look_soon() -> None:
            life.look_soon()

        peers = {
            other.name: Link(self.network, node.name, other, lambda: life.version, look_soon)
            for other in self.nodes.values()
            if other is not node
        }
        chance = random.Random(self.chance.getrandbits(64))
        life = Life(node, self.ensemble, self._folder / node.name, peers, chance)
        node.on_start = life.start
        node.on_end = life.stop
        return life

    # --- the run -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Trouble first, then none, then the last look. Raises Violation."""
        for node in self.nodes.values():
            node.start()
        for frontend in self.frontends:
            await frontend.membership.open()
            frontend.membership.run()
        sessions = self.loop.create_task(self._watch_sessions(), name="sessions")
        upkeep = self.loop.create_task(self._look_after(), name="upkeep")
        trouble = self.loop.create_task(self._make_trouble(), name="trouble")
        clients = [self.loop.create_task(self._client(number), name=f"client {number}") for number in range(CLIENTS)]
        try:
            async with asyncio.timeout(3600):
                await asyncio.gather(*clients)
        finally:
            trouble.cancel()
            for client in clients:
                client.cancel()
        self._heal()
        await self._converge()
        await self._last_look()
        # Reading may have found damage that nobody had looked at; its repair is the last of it.
        await self._converge()
        self._read_replicas()
        upkeep.cancel()
        sessions.cancel()
        for frontend in self.frontends:
            await frontend.operations.close(5.0)
            await frontend.membership.close()
        for node in self.nodes.values():
            node.crash(is_power_cut=False)
        await asyncio.sleep(1)
        if self.loop.broken:
            raise Violation(f"something ended with an error that nobody expected: {self.loop.broken[0]}")

    async def _watch_sessions(self) -> None:
        while True:
            await asyncio.sleep(SESSION_S / 6)
            self.ensemble.tick(self.loop.now)

    async def _look_after(self) -> None:
        while True:
            await asyncio.sleep(0.5 + self.chance.random())
            for node in self.nodes.values():
                node.look_after()

    # --- clients -----------------------------------------------------------------------------------------------

    async def _client(self, number: int) -> None:
        chance = random.Random(self.seed * 1000 + number)
        while self.history.operations < self._wanted:
            self.history.operations += 1
            await asyncio.sleep(chance.random() * THINK_S)
            await self._gate.wait()
            frontend = chance.choice(self.frontends)
            operation = self._choose(chance)
            self._open_operations += 1
            try:
                async with asyncio.timeout(60):
                    await operation(frontend, chance)
                said = "done"
            except AmbryError as error:
                said = error.name
            except TimeoutError:
                said = "gave up"
            finally:
                self._open_operations -= 1
            self.history.counts[f"{operation.__name__}: {said}"] += 1
            self.trace.update(f"{self.loop.now:.6f} {number} {frontend.name} {operation.__name__} {said}\n".encode())

    def _choose(self, chance: random.Random) -> Callable[[Frontend, random.Random], Awaitable[None]]:
        operations = (
            (self.put_small, 30), (self.put_large, 8), (self.put_remote, 4), (self.put_mortal, 4), (self.read, 25),
            (self.read_quorum, 12), (self.read_unknown, 3), (self.delete, 8), (self.undelete, 3), (self.extend, 3),
        )  # fmt: skip
        return chance.choices([one for one, _ in operations], [weight for _, weight in operations])[0]

    async def _put(
        self,
        frontend: Frontend,
        body: bytes,
        chance: random.Random,
        *,
        ttl_ms: int | None = None,
        durability: Durability = Durability.SYNCED,
    ) -> None:
        now_ms = frontend.clock.now_ms()
        expires_at_ms = NEVER if ttl_ms is None else now_ms + ttl_ms
        plan = PutPlan(
            Properties(size=0), now_ms, expires_at_ms, len(body) if chance.random() < 0.5 else None, None, durability
        )
        text = await frontend.operations.put(Body(body, chance.randint(100, 2000)), plan)
        blob_id = binary_from_text(text.encode())
        expiry = None if ttl_ms is None else expires_at_ms
        self.history.acknowledged(Blob(blob_id, frontend.datacentre, body, self.loop.now, expiry))

    async def put_small(self, frontend: Frontend, chance: random.Random) -> None:
        """A simple blob."""
        await self._put(frontend, chance.randbytes(chance.randint(0, 800)), chance)

    async def put_large(self, frontend: Frontend, chance: random.Random) -> None:
        """Chunks and a manifest, sometimes a tree of them."""
        await self._put(frontend, chance.randbytes(chance.randint(1025, 9 * KIB)), chance)

    async def put_remote(self, frontend: Frontend, chance: random.Random) -> None:
        """In two datacentres before it is acknowledged."""
        await self._put(frontend, chance.randbytes(100), chance, durability=Durability.SYNCED_REMOTE)

    async def put_mortal(self, frontend: Frontend, chance: random.Random) -> None:
        """A blob with a TTL of days."""
        await self._put(frontend, chance.randbytes(chance.randint(1, 3000)), chance, ttl_ms=2 * DAY_MS)

    def _some_blob(self, chance: random.Random) -> Blob | None:
        blobs = self.history.blobs
        if not blobs:
            return None
        # Half of the time a young one: replication has not brought it everywhere.
        return blobs[-1 - chance.randrange(min(8, len(blobs)))] if chance.random() < 0.5 else chance.choice(blobs)

    async def read(self, frontend: Frontend, chance: random.Random) -> None:
        """All of a blob, or a range."""
        blob = self._some_blob(chance)
        if blob is not None:
            await self._read(frontend, blob, chance, is_quorum=False)

    async def read_quorum(self, frontend: Frontend, chance: random.Random) -> None:
        """The same, with the state of a quorum."""
        blob = self._some_blob(chance)
        if blob is not None:
            await self._read(frontend, blob, chance, is_quorum=True)

    async def _read(self, frontend: Frontend, blob: Blob, chance: random.Random, *, is_quorum: bool) -> None:
        begun = self.loop.now
        try:
            found = await frontend.operations.open(blob.blob_id, GetOption.NONE, head_size=0, is_quorum=is_quorum)
            start = chance.randint(0, found.size) if chance.random() < 0.5 else 0
            stop = chance.randint(start, found.size) if chance.random() < 0.5 else found.size
            body = await self._bytes(frontend, found, start, stop)
        except (BlobDeleted, BlobExpired):
            self.history.saw_gone(blob, now_ms=self._true_ms())
            raise
        except BlobNotFound:
            self.history.saw_not_found(blob, now_ms=self._true_ms())
            raise
        self.history.saw_bytes(
            blob,
            body,
            start=start,
            stop=stop,
            is_quorum=is_quorum,
            datacentre=frontend.datacentre,
            begun=begun,
            now_ms=self._true_ms(),
        )

    async def _bytes(self, frontend: Frontend, found: OpenBlob, start: int, stop: int) -> bytes:
        reader = frontend.operations.reader(found, start, stop)
        pieces: list[bytes] = []
        try:
            while piece := await reader.next():
                pieces.append(bytes(piece))
        finally:
            await reader.close()
        return b"".join(pieces)

    def _true_ms(self) -> int:
        return self.era.begin_ms + int(self.loop.time() * 1000)

    async def read_unknown(self, frontend: Frontend, chance: random.Random) -> None:
        """An id that nobody was ever given."""
        blob = self._some_blob(chance)
        if blob is None:
            return
        strange = blob.blob_id[:-4] + bytes(chance.randrange(256) for _ in range(4))
        if any(one.blob_id == strange for one in self.history.blobs):
            return
        await frontend.operations.stat(strange, GetOption.NONE)
        raise Violation("a blob that nobody put was found")

    async def _change(self, frontend: Frontend, blob: Blob, *, is_delete: bool) -> None:
        attempt = Attempt(is_delete, frontend.datacentre, self.loop.now)
        blob.attempts.append(attempt)
        try:
            if is_delete:
                await frontend.operations.delete(blob.blob_id)
            else:
                await frontend.operations.undelete(blob.blob_id)
        except NotAllowed:
            blob.attempts.remove(attempt)
            raise
        except BlobNotFound:
            self.history.saw_not_found(blob, now_ms=self._true_ms())
            raise
        attempt.ended = self.loop.now
        attempt.is_acknowledged = True

    async def delete(self, frontend: Frontend, chance: random.Random) -> None:
        """A blob that exists."""
        blob = self._some_blob(chance)
        if blob is not None:
            await self._change(frontend, blob, is_delete=True)

    async def undelete(self, frontend: Frontend, chance: random.Random) -> None:
        """A blob that somebody deleted."""
        deleted = [blob for blob in self.history.blobs if blob.deletes]
        if deleted:
            await self._change(frontend, chance.choice(deleted), is_delete=False)

    async def extend(self, frontend: Frontend, chance: random.Random) -> None:
        """A blob with a TTL lives for ever from now on, or for longer."""
        mortal = [blob for blob in self.history.blobs if blob.expires_at_ms is not None]
        if mortal:
            blob = chance.choice(mortal)
            blob.extensions += 1
            await frontend.operations.extend(blob.blob_id, NEVER)
            blob.is_permanent = True

    # --- trouble -----------------------------------------------------------------------------------------------

    def _count(self, fault: str) -> None:
        self.faults[fault] = self.faults.get(fault, 0) + 1
        self.trace.update(f"{self.loop.now:.6f} {fault}\n".encode())

    async def _make_trouble(self) -> None:
        chance = random.Random(self.seed + 2)
        faults: list[Callable[[random.Random], Awaitable[None]]] = [
            self._crash, self._crash, self._cut_in_a_write, self._stop, self._partition, self._one_way, self._isolate,
            self._storm, self._rot, self._leap, self._registry_away, self._old_map, self._lose_disk,
            self._lose_replica, self._move, self._resize, self._old_backup, self._sweep,
        ]  # fmt: skip
        mine = chance.sample(faults, chance.randint(2, len(faults)))
        while True:
            await asyncio.sleep(chance.expovariate(1 / 2.5))
            fault = chance.choice(mine)
            self._count(fault.__name__)
            await fault(chance)

    async def _restart_later(self, node: SimNode, chance: random.Random) -> None:
        await asyncio.sleep(chance.random() * 5)
        if not node.is_up and not node.is_starting:
            node.start()

    def _later(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Future[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.loop.broken.append(repr(task.exception()))

    async def _crash(self, chance: random.Random) -> None:
        node = self.nodes[chance.choice(self._names)]
        node.crash(is_power_cut=chance.random() < 0.5)
        self._later(self._restart_later(node, chance))

    async def _cut_in_a_write(self, chance: random.Random) -> None:
        node = self.nodes[chance.choice(self._names)]
        if node.is_up:
            node.cut_power_soon(chance.randint(1, 12))
            await asyncio.sleep(2)
            node.crash(is_power_cut=True)
            self._later(self._restart_later(node, chance))

    async def _stop(self, chance: random.Random) -> None:
        node = self.nodes[chance.choice(self._names)]
        node.stop()
        self.loop.call_later(chance.random() * 6, node.go_on)

    async def _partition(self, chance: random.Random) -> None:
        """Some processes cannot reach the others, both ways."""
        names = list(self.network.places)
        some = set(chance.sample(names, chance.randint(1, len(names) // 2)))
        pairs = {(a, b) for a in names for b in names if (a in some) != (b in some)}
        self._break(pairs, chance)

    async def _one_way(self, chance: random.Random) -> None:
        """What some processes send arrives nowhere; they hear everything."""
        names = list(self.network.places)
        some = set(chance.sample(names, chance.randint(1, 3)))
        self._break({(a, b) for a in some for b in names if b not in some}, chance)

    async def _isolate(self, chance: random.Random) -> None:
        """The datacentres do not reach each other."""
        places = self.network.places
        self._break({(a, b) for a in places for b in places if places[a] != places[b]}, chance)

    def _break(self, pairs: set[tuple[str, str]], chance: random.Random) -> None:
        self.network.cut |= pairs
        self.loop.call_later(chance.random() * 8, self.network.cut.difference_update, pairs)

    async def _storm(self, chance: random.Random) -> None:
        self.network.weather = Weather(
            loss=chance.random() * 0.2, double=chance.random() * 0.2, slow=chance.random() * 0.3
        )
        await asyncio.sleep(chance.random() * 5)
        self.network.weather = Weather()

    async def _rot(self, chance: random.Random) -> None:
        node = self.nodes[self.rotten]
        if node.is_up:
            for _ in range(chance.randint(1, 3)):
                node.flip_bit()

    async def _registry_away(self, chance: random.Random) -> None:
        """ZooKeeper is down; everybody goes on with the last map, and no change is made."""
        self.ensemble.is_up = False
        await asyncio.sleep(chance.random() * 8)
        self.ensemble.is_up = True

    async def _old_map(self, chance: random.Random) -> None:
        """Some processes do not reach ZooKeeper, so that others know newer maps than they do."""
        names = [*self._names, *(one.name for one in self.frontends)]
        for name in chance.sample(names, chance.randint(1, 3)):
            cut_off(self.network, name, self.loop, chance.random() * 12)

    async def _old_backup(self, chance: random.Random) -> None:
        """ZooKeeper comes back with an old copy of the layout; after a while an operator restores the newest that a
        datanode has kept. Nobody adopts the old one meanwhile, and nobody changes it.
        """
        ensemble = self.ensemble
        old = chance.choice(ensemble.former)
        if not ensemble.is_up or old.head.version == ensemble.layout.head.version:
            return
        ensemble.put_back(old)
        await asyncio.sleep(chance.random() * 8)
        if ensemble.layout.head != old.head:
            raise Violation(f"an old copy of the layout was changed: {ensemble.changes[-1]}")
        self._restore_layout()

    def _restore_layout(self) -> None:
        paths = [self._folder / name / MAP_FILE for name in self._names]
        kept = [path.read_bytes() for path in paths if path.exists()]
        newest = max((decode_file(data, "a node") for data in kept), key=lambda one: one.head.version)
        self.ensemble.restore(with_version(newest, newest.head.version + VERSIONS_BEYOND))
        # A change that no datanode had seen is lost: who restores the layout looks for what was under way, and ends it.
        leaving: dict[int, list[tuple[int, str]]] = {}
        for partition, listed in self.ensemble.layout.cluster_map.partitions.items():
            for replica in listed.replicas:
                if replica.state is ReplicaState.LEAVING and int(replica.node[1]) not in self._is_moving:
                    leaving.setdefault(int(replica.node[1]), []).append((partition, replica.node))
        for place, moves in leaving.items():
            self._is_moving.add(place)
            self._later(self._end_moves(place, moves))

    async def _end_moves(self, place: int, moves: list[tuple[int, str]]) -> None:
        for partition, source in moves:
            await self.operator.let_go(partition, source)
        self._is_moving.discard(place)

    async def _sweep(self, chance: random.Random) -> None:
        """A sweeper goes through what its node leads; what it takes must not be missed by anybody."""
        life = self.lives[chance.choice(self._names)]
        if life.replicator is not None:
            self._later(life.sweep())

    def _may_lose(self, name: str) -> bool:
        """One failure at a time is what three replicas are for: one disk of a datacentre, until all have converged."""
        place = int(name[1])
        return place not in self._has_lost | self._is_moving and (place != int(self.rotten[1]) or name == self.rotten)

    async def _lose_disk(self, chance: random.Random) -> None:
        """A disk fails for good, and its datanode comes back with an empty one."""
        node = self.nodes[chance.choice(self._names)]
        if self._may_lose(node.name):
            self._has_lost.add(node.datacentre)
            node.crash(is_power_cut=True)
            node.lose_disk()
            self._later(self._restart_later(node, chance))

    async def _lose_replica(self, chance: random.Random) -> None:
        """The folder of one replica is removed while its datanode is down."""
        node = self.nodes[chance.choice(self._names)]
        if self._may_lose(node.name):
            self._has_lost.add(node.datacentre)
            node.crash(is_power_cut=False)
            node.lose_replica(chance.choice(PARTITIONS))
            self._later(self._restart_later(node, chance))

    async def _move(self, chance: random.Random) -> None:
        """An operator moves a replica to another datanode, as docs/operations.md says it."""
        place = chance.choice(DATACENTRES)
        if place not in self._is_moving | self._has_lost:
            self._is_moving.add(place)
            self._later(self._move_in(place, chance))

    async def _move_in(self, place: int, chance: random.Random) -> None:
        cluster_map = self.ensemble.layout.cluster_map
        listed = sorted(one.node for one in cluster_map.replicas_in(MOVING, place))
        free = [name for name in self._names if name in cluster_map.nodes and int(name[1]) == place]
        target = chance.choice([name for name in free if name not in listed])
        await self.operator.move_replica(MOVING, chance.choice(listed), target)
        self._is_moving.discard(place)

    async def _resize(self, chance: random.Random) -> None:
        """An operator adds the datanode that waits; or empties one, replica by replica, and removes it."""
        place = chance.choice(DATACENTRES)
        if place not in self._is_moving | self._has_lost:
            self._is_moving.add(place)
            self._later(self._resize_in(place, chance))

    async def _resize_in(self, place: int, chance: random.Random) -> None:
        here = [name for name in self._names if int(name[1]) == place]
        spare = next((name for name in here if name not in self.ensemble.layout.cluster_map.nodes), None)
        if spare is not None:
            await self.operator.change_map(lambda old: changes.put_node(old, _node(spare)), f"{spare} is added")
            self._is_moving.discard(place)
            return
        goes = chance.choice(here)
        for partition in PARTITIONS:
            listed = {one.node for one in self.ensemble.layout.cluster_map.replicas_in(partition, place)}
            if goes in listed:
                await self.operator.move_replica(partition, goes, chance.choice(sorted(set(here) - listed)))
        await self.operator.change_map(lambda old: changes.remove_node(old, goes), f"{goes} is taken off the map")
        self._count("removed a node")
        self._is_moving.discard(place)

    async def _leap(self, chance: random.Random) -> None:
        """Days pass at once. Nothing is open then and nothing lags: requests and replication do not take days."""
        if self._has_leapt:
            return
        self._has_leapt = True
        self._gate.clear()
        while self._open_operations:
            await asyncio.sleep(0.5)
        self._heal()
        await self._converge()
        self._has_lost.clear()
        self.era.begin_ms += chance.randint(1, 18) * DAY_MS
        await asyncio.sleep(5)
        self._gate.set()
        # What uploads left behind is old enough now.
        for life in self.lives.values():
            if life.replicator is not None:
                self._later(life.sweep())

    def _heal(self) -> None:
        self.network.heal()
        self.ensemble.is_up = True
        if self.ensemble.is_old:
            self._restore_layout()
        for node in self.nodes.values():
            node.disk.stop_after(None) if node.is_up and not node.disk.is_off else None
            if node.is_up and node.disk.is_off:
                node.crash(is_power_cut=True)
            if not node.is_up and not node.is_starting:
                node.start()
            node.go_on()

    # --- the end -----------------------------------------------------------------------------------------------

    async def _last_look(self) -> None:
        """Everything that was acknowledged is there, and what was deleted is gone."""
        for blob in self.history.blobs:
            for frontend in self.frontends:
                await self._look_at(frontend, blob)

    async def _converge(self) -> None:
        """All replicas become equal in time. Raises Violation."""
        give_up_at = self.loop.now + HEALING_S
        while True:
            await asyncio.sleep(3)
            try:
                for partition in PARTITIONS:
                    self._compare(partition)
            except Violation:
                if self.loop.now > give_up_at:
                    raise
            else:
                return

    async def _look_at(self, frontend: Frontend, blob: Blob) -> None:
        name = blob.blob_id.hex()
        try:
            found = await frontend.operations.open(blob.blob_id, GetOption.NONE, head_size=0)
            body = await self._bytes(frontend, found, 0, found.size)
        except (BlobDeleted, BlobExpired):
            self.history.saw_gone(blob, now_ms=self._true_ms(), is_settled=True)
            return
        except BlobNotFound:
            self.history.saw_not_found(blob, now_ms=self._true_ms())
            return
        except AmbryError as error:
            raise Violation(f"{name}: {error} after everything healed") from error
        if body != blob.body:
            raise Violation(f"{name}: wrong bytes at the end")
        if blob.last_delete_is_final():
            raise Violation(f"{name}: deleted for good, and readable after everything healed")

    def _read_replicas(self) -> None:
        """Every replica has the bytes that it says it has, but for those whose disk rots. Raises Violation."""
        for name, node in self.nodes.items():
            for partition in PARTITIONS if name != self.rotten else ():
                if partition in node.services:
                    for blob_id, (_, has_body) in self._view(node, partition).items():
                        if has_body and exchange.read_record(node.store, blob_id).is_damaged:
                            raise Violation(f"{blob_id.hex()}: {name} says that it has its bytes, and has not")

    def _compare(self, partition: int) -> None:
        placed = self.ensemble.layout.cluster_map.partitions[partition].replicas
        for replica in placed:
            if replica.state is not ReplicaState.SERVING or not self.nodes[replica.node].is_up:
                raise Violation(f"partition {partition}: the replica on {replica.node} is {replica.state}, not serving")
        views = {replica.node: self._view(self.nodes[replica.node], partition) for replica in placed}
        first_name, first = next(iter(views.items()))
        for name, view in views.items():
            if view == first:
                continue
            different = sorted(one for one in first.keys() | view.keys() if first.get(one) != view.get(one))
            one = different[0]
            raise Violation(
                f"partition {partition}: {len(different)} blobs differ between {first_name} and {name}, as "
                f"{one.hex()}: {first.get(one)} and {view.get(one)}"
            )

    def _view(self, node: SimNode, partition: int) -> dict[bytes, tuple[BlobState, bool]]:
        """State of every blob, and whether the bytes of a live one are here. Those with a TTL may be forgotten."""
        view: dict[bytes, tuple[BlobState, bool]] = {}
        lsn = 0
        while True:
            page = node.store.changes(ChangesRequest(partition, lsn, 1000))
            for entry in page.entries:
                lsn = entry.lsn
                if entry.state.expires_at_ms == NEVER:
                    view[entry.blob_id] = (entry.state, entry.has_body and not entry.state.is_deleted)
            if not page.entries:
                return view


def simulate(seed: int, operations: int = 250) -> Outcome:
    """Run one seed."""
    assert os.environ.get("PYTHONHASHSEED") == "0", "sets of bytes have an order only with PYTHONHASHSEED=0"
    worlds: list[World] = []

    async def main(loop: VirtualLoop) -> None:
        world = World(loop, seed, operations, Path(folder))
        worlds.append(world)
        await world.run()

    violation = ""
    # The last map of each process is a real file; in memory, where that is possible.
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        try:
            run_virtually(main)
        except Violation as error:
            violation = str(error)
    (world,) = worlds
    for life in world.lives.values():
        world.history.counts["chunks swept"] += life.swept.tombstoned
    return Outcome(
        seed, world.history.operations, dict(sorted(world.history.counts.items())), world.trace.hexdigest(), violation,
        dict(sorted(world.faults.items())),
    )  # fmt: skip
