"""What a frontend does with blobs, without HTTP: put, get, delete, extend, undelete. The one door of native.py and the
fast lane.

The small paths (`put_small`, `get_small_now`, `get_small`) make no task where a partition has one replica. Everything
else is in put.py, get.py and update.py; this module binds them to one cluster map, one clock and one budget.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final

from ambry.access.accounts import Durability
from ambry.blob.blob_id import VERSION, Kind
from ambry.blob.manifest import Entry
from ambry.blob.requests import Buffer, GetAnswer, GetRequest
from ambry.blob.state import BlobState
from ambry.clock import Clock
from ambry.cluster.map import ClusterMap
from ambry.errors import AmbryError, CorruptRecord, NoSuchReplica, Unavailable
from ambry.frontend import chunks, get, hedged, update
from ambry.frontend.budget import TransferBudget
from ambry.frontend.buffers import BufferPool
from ambry.frontend.chance import Chance
from ambry.frontend.get import OpenBlob, PieceReader
from ambry.frontend.headers import GetOption
from ambry.frontend.placement import DEFAULT_OWNER, OWNER_AT, Peers, Placement, Route
from ambry.frontend.put import (
    NOTHING,
    Cut,
    Means,
    PutPlan,
    Reserved,
    SmallPut,
    Source,
    StoredPart,
    Upload,
    reserve,
)
from ambry.frontend.reclaim import Reclaimer
from ambry.limits import (
    BODY_BYTES_MAX,
    CHUNK_BYTES_MAX,
    READ_PIECE_BYTES,
    REQUEST_DEADLINE_MS,
    TRANSFER_BYTES_MAX,
    TRANSFER_QUEUE_MAX,
)
from ambry.protocol.datanode import Datanode

_SIMPLE: Final = bytes([VERSION, Kind.SIMPLE])
"""How ids of simple blobs begin."""


class Operations:
    """The operations of one frontend process. Make it inside a running event loop."""

    __slots__ = (
        "_datacentre",
        "_means",
        "_placement",
        "budget",
        "chance",
        "clock",
        "datanodes",
        "peers",
        "reclaimer",
        "reload",
    )

    def __init__(
        self,
        *,
        cluster_map: ClusterMap,
        datacentre: int,
        datanodes: Mapping[str, Datanode],
        clock: Clock,
        chance: Chance,
        budget: TransferBudget | None = None,
        cut: Cut | None = None,
    ) -> None:
        self._datacentre = datacentre
        self.datanodes = datanodes
        """By name; those of the map that are missing here are out of reach."""
        self.peers = Peers(datanodes)
        self.reload: Callable[[int], Awaitable[bool]] = _no_reload
        """Whether there is a newer map than of this version, or comes soon; asked after a request has failed."""
        self.clock = clock
        self.chance = chance
        self.budget = budget or TransferBudget(TRANSFER_BYTES_MAX, TRANSFER_QUEUE_MAX)
        self._placement = Placement(cluster_map, datacentre, self.peers, chance)
        self.reclaimer = Reclaimer(self._placement, clock)
        self._means = Means(
            self._placement, self.budget, self.reclaimer, clock, chance, cut or Cut(), BufferPool(CHUNK_BYTES_MAX)
        )

    def adopt(self, cluster_map: ClusterMap) -> None:
        """Use a newer cluster map for what begins from here on. Never an older one."""
        assert cluster_map.version >= self._placement.map_version
        self._placement = Placement(cluster_map, self._datacentre, self.peers, self.chance)
        self.reclaimer.adopt(self._placement)
        self._means = replace(self._means, placement=self._placement)

    @property
    def cluster_map(self) -> ClusterMap:
        """The cluster map that is used at present."""
        return self._placement.cluster_map

    @property
    def is_writable(self) -> bool:
        """Whether the map has a partition that takes puts."""
        return bool(self._placement.writable)

    def count_suspects(self) -> int:
        """Datanodes that are asked last, since they failed or fell silent."""
        now = asyncio.get_running_loop().time()
        return sum(peer.is_suspect(now) for peer in self.peers.all)

    async def close(self, grace_s: float) -> None:
        """Finish what runs in the background, for `grace_s` at most. Datanodes are their owner's to close."""
        await self.reclaimer.close(grace_s)

    # --- small blobs, without a task ---------------------------------------------------------------------------

    def put_small(
        self,
        body: Buffer,
        properties: bytes,
        created_ms: int,
        expires_at_ms: int,
        owner: bytes = DEFAULT_OWNER,
        *,
        durability: Durability = Durability.SYNCED,
        check: int = 0,
    ) -> "asyncio.Future[str]":
        """Store a simple blob of at most CHUNK_BYTES_MAX, with its encoded properties. The future has its text id.

        `properties` says the body's size; `check` is its xxh3-64 where somebody has computed it, else 0. Errors
        in the future: DiskFull, Overloaded, Unavailable. Cancelling it means that the client is gone.
        """
        assert len(body) <= CHUNK_BYTES_MAX
        put = SmallPut(
            self._means, body, properties, created_ms, expires_at_ms, owner, durability=durability, check=check
        )
        return put.outcome

    def get_small_now(self, blob_id: bytes, size_max: int = BODY_BYTES_MAX) -> GetAnswer | None:
        """A simple blob's first `size_max` bytes if they can be had without waiting, else None.

        The caller judges expiry, and whether the body is whole. Raises BlobNotFound or BlobDeleted when that is
        certain; None also for ids that are not of a simple blob.
        """
        route = self._route_of_simple(blob_id)
        return hedged.read_now(route, GetRequest(blob_id, 0, size_max)) if route is not None else None

    def get_small(self, blob_id: bytes, size_max: int = BODY_BYTES_MAX) -> "asyncio.Future[GetAnswer] | None":
        """As `get_small_now`, for a caller that waits. None for ids that are not of a simple blob.

        An error in the future may be that of a single replica, and proves nothing: ask again through `open`.
        """
        route = self._route_of_simple(blob_id)
        if route is None:
            return None
        deadline = asyncio.get_running_loop().time() + REQUEST_DEADLINE_MS / 1000
        return hedged.read_soon(route, GetRequest(blob_id, 0, size_max), deadline)

    def _route_of_simple(self, blob_id: bytes) -> Route | None:
        """None for ids of other kinds, and of partitions that the map does not have: aiohttp's way answers those."""
        if blob_id[:2] != _SIMPLE:
            return None
        try:
            return self._placement.route_of(blob_id)
        except AmbryError:
            return None

    # --- everything --------------------------------------------------------------------------------------------

    async def put(self, source: Source, plan: PutPlan) -> str:
        """Store a body of any size and return its text id. Nothing is readable unless this returns."""
        return await Upload(self._means, source, plan).run()

    def reserve(self, created_ms: int, owner: bytes) -> Reserved:
        """What a blob that is put in parts has from its beginning on. Raises Unavailable."""
        return reserve(self._means, created_ms, owner)

    async def put_part(self, source: Source, plan: PutPlan, reserved: Reserved) -> StoredPart:
        """Store a part of such a blob. Nothing is readable, and nothing stays unless this returns."""
        return await Upload(self._means, source, plan, reserved).run_part()

    async def put_leaf(self, entries: Sequence[Entry], plan: PutPlan, reserved: Reserved) -> Entry:
        """Store a leaf of the manifest of such a blob: `leaf_entries` chunks, fewer of the last."""
        return await Upload(self._means, NOTHING, plan, reserved).run_leaf(entries)

    async def put_manifest(
        self, entries: Sequence[Entry], level: int, plan: PutPlan, reserved: Reserved, attempt: int
    ) -> bytes:
        """Make such a blob of its chunks, or leaves; its binary id. See Upload.run_manifest."""
        return await Upload(self._means, NOTHING, plan, reserved).run_manifest(entries, level, attempt)

    @property
    def leaf_entries(self) -> int:
        """Chunks of a full leaf; a manifest of more has leaves."""
        return self._means.cut.manifest_entries

    async def open(self, blob_id: bytes, option: GetOption, *, head_size: int, is_quorum: bool = False) -> OpenBlob:
        """Find a blob; see get.open_blob."""
        now_ms = self.clock.now_ms()
        return await get.open_blob(
            self._placement, blob_id, option, now_ms=now_ms, head_size=head_size, is_quorum=is_quorum
        )

    async def stat(self, blob_id: bytes, option: GetOption, *, is_quorum: bool = False) -> OpenBlob:
        """What is known of a blob, without bytes; see get.stat_blob."""
        now_ms = self.clock.now_ms()
        return await get.stat_blob(self._placement, blob_id, option, now_ms=now_ms, is_quorum=is_quorum)

    def reader(self, blob: OpenBlob, start: int, stop: int) -> PieceReader:
        """A reader of bytes start:stop of an open blob."""
        return PieceReader(self._placement, self.budget, blob, start, stop)

    @asynccontextmanager
    async def held(self, blob: OpenBlob, start: int, stop: int) -> AsyncIterator[bytearray]:
        """Bytes start:stop of an open blob, all of them in memory and taken from the budget while the block runs."""
        # With what the reader needs: nobody waits for a share while holding one.
        share = stop - start + 2 * READ_PIECE_BYTES
        await self.budget.enter(share, blob.blob_id[OWNER_AT])
        try:
            data = bytearray()
            own = TransferBudget(2 * READ_PIECE_BYTES, 1)
            reader = PieceReader(self._placement, own, blob, start, stop)
            try:
                while piece := await reader.next():
                    data += piece
            finally:
                await reader.close()
            yield data
        finally:
            self.budget.give(share)

    def chunks(self, blob: OpenBlob) -> AsyncIterator[tuple[Entry, ...]]:
        """The chunks of an open composite blob, a leaf at a time; see chunks.chunks_of."""
        return chunks.chunks_of(self._placement, blob)

    async def segment(self, blob: OpenBlob, number: int) -> tuple[int, int]:
        """Where a chunk of an open blob lies; see chunks.segment_range."""
        return await chunks.segment_range(self._placement, blob, number)

    async def delete(self, blob_id: bytes) -> BlobState:
        """Delete a blob; see update.delete."""
        return await self._under_newest_map(lambda: update.delete(self._placement, self.clock, blob_id))

    async def extend(self, blob_id: bytes, expires_at_ms: int) -> BlobState:
        """Let a blob live longer; see update.extend."""
        return await self._under_newest_map(lambda: update.extend(self._placement, self.clock, blob_id, expires_at_ms))

    async def undelete(self, blob_id: bytes) -> BlobState:
        """Bring a deleted blob back; see update.undelete."""
        tried: list[BlobState] = []
        return await self._under_newest_map(lambda: update.undelete(self._placement, self.clock, blob_id, tried))

    async def _under_newest_map(self, attempt: Callable[[], Awaitable[BlobState]]) -> BlobState:
        """Once more, when a datanode has refused it under an old map and a newer one is there or comes at once.

        Changes are idempotent; a put that is refused slips to another partition anyway.
        """
        version = self._placement.map_version
        try:
            return await attempt()
        except (Unavailable, CorruptRecord, NoSuchReplica):
            if not await self.reload(version):
                raise
            return await attempt()


async def _no_reload(_version: int) -> bool:
    """A static map never changes."""
    return False
