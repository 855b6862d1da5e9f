"""What happens to names in the background: versions whose retention is over, names that expired, blobs without a row,
uploads in parts that ended.

One process of all that share a name store does it at a time, under a lease. Everything is done in small steps that can
be repeated: a blob is deleted before its row is dropped, and where the walk has got to is noted afterwards. A blob that
was put under a name is an orphan if a day later no row has it; that is never said of blobs older than the epoch of the
name store, since a store that was restored or rebuilt may not know them, nor of those of another datacentre.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

from ambry.blob.blob_id import Kind, parse_binary
from ambry.clock import Clock
from ambry.cluster.map import ClusterMap
from ambry.errors import AmbryError, BadBlobId, BlobDeleted, BlobExpired, BlobNotFound
from ambry.frontend.named_records import NamedRecord, read_page
from ambry.frontend.operations import Operations
from ambry.limits import (
    CLOCK_SKEW_MS_MAX,
    NAME_COLLECT_ROWS,
    NAME_LEASE_MS,
    NAME_ORPHAN_AGE_MS,
    NAME_RETENTION_MS,
    NAME_UPKEEP_MS,
    UPLOAD_DEADLINE_MS,
)
from ambry.logs import get_logger
from ambry.metrics import Metrics
from ambry.names import collection
from ambry.names.collection import Place
from ambry.names.horizon import Horizon, Reading, read_reading
from ambry.names.open import read_epoch
from ambry.names.rows import Key
from ambry.names.sql import Database
from ambry.protocol.datanode import Datanode

_log = get_logger(__name__)

ORPHAN_AGE_MS: Final = {Kind.SIMPLE: NAME_ORPHAN_AGE_MS, Kind.COMPOSITE: UPLOAD_DEADLINE_MS + NAME_ORPHAN_AGE_MS}
"""Time from the beginning of an upload after which its blob has a row or never gets one. `NamedOperations.put` writes
no row later than half a day before that."""

_PAUSE_S: Final = 0.01
"""Between two steps, so that requests never wait for more than one."""


@dataclass(slots=True)
class UpkeepCounts:
    """What was done since the process began."""

    rows_dropped: int = 0
    blobs_deleted: int = 0
    names_expired: int = 0
    orphans: int = 0
    unread: int = 0


class NamedUpkeep:
    """The background work of one frontend process on names."""

    def __init__(
        self,
        *,
        database: Database,
        operations: Operations,
        cluster_map: Callable[[], ClusterMap],
        datacentre: int,
        datanodes: Mapping[str, Datanode],
        clock: Clock,
        holder: str,
        collect_uploads: Callable[[], Awaitable[None]],
        versioned: Callable[[], Collection[tuple[int, int]]],
        followed: Collection[int] = (),
    ) -> None:
        """`versioned` says which containers keep all versions; `followed` are the datacentres whose rows come here;
        uploads in parts are collected by who knows them.
        """
        self._database = database
        self._operations = operations
        self._cluster_map = cluster_map
        self._datacentre = datacentre
        self._datanodes = datanodes
        self._clock = clock
        self._holder = holder
        self._collect_uploads = collect_uploads
        self._versioned = versioned
        self._followed = frozenset(followed)
        self._horizon = Horizon()
        self.held_ms = 0
        """How long rows have been waiting for another datacentre alone."""
        self.counts = UpkeepCounts()

    def watch(self, metrics: Metrics) -> None:
        """Show what was done."""
        counts = self.counts
        metrics.watch_counter("ambry_names_rows_dropped", "Rows of names dropped.", lambda: counts.rows_dropped)
        metrics.watch_counter(
            "ambry_names_blobs_deleted", "Blobs of old versions deleted.", lambda: counts.blobs_deleted
        )
        metrics.watch_counter("ambry_names_expired", "Names dropped after their expiry.", lambda: counts.names_expired)
        metrics.watch_gauge(
            "ambry_names_held_seconds",
            "For how long rows of names that are of no use any more have waited for another datacentre to read them.",
            lambda: self.held_ms / 1000,
        )
        metrics.watch_counter("ambry_names_orphans", "Named blobs without a row deleted.", lambda: counts.orphans)

    async def run(self) -> None:
        """Do it for ever. What fails is tried again in the next round."""
        while True:
            try:
                await self.round()
            except AmbryError as error:
                _log.warning("upkeep of names was cut short", error=str(error))
            await asyncio.sleep(NAME_UPKEEP_MS / 1000)

    async def round(self) -> bool:
        """One round, if it is this process's turn; whether it was."""
        now_ms = self._clock.now_ms()
        is_ours = await self._database.write(
            lambda session: collection.take_lease(session, self._holder, now_ms, now_ms + NAME_LEASE_MS)
        )
        if not is_ours:
            return False
        await self.collect_versions()
        await self.collect_expired()
        await self.collect_orphans()
        await self._collect_uploads()
        return True

    # --- versions ----------------------------------------------------------------------------------------------

    async def collect_versions(self) -> None:
        """Drop versions that were superseded, deleted or purged long enough ago, after their blobs."""
        database = self._database
        epoch = (await database.read(read_epoch)).number
        reading = await self._reading(epoch)
        horizon = self._horizon.look(epoch, reading, self._clock.now_ms())
        while True:
            now_ms = self._clock.now_ms()
            before_ms = now_ms - NAME_RETENTION_MS
            versioned = frozenset(self._versioned())
            step = await database.read(
                lambda session: collection.find_superseded(
                    session,
                    epoch,
                    before_ms,  # noqa: B023 -- awaited in this turn
                    versioned,  # noqa: B023 -- awaited in this turn
                    NAME_COLLECT_ROWS,
                    horizon,
                )
            )
            found, place = step.found, step.place
            self.held_ms = step.held_ms
            if place is None:
                return
            for one in found:
                for blob_id in one.blob_ids:
                    await self._delete_blob(blob_id)
            await database.write(lambda session: collection.drop_rows(session, found))  # noqa: B023 -- awaited in this turn
            await database.write(
                lambda session: collection.finish_superseded(session, epoch, place, now_ms)  # noqa: B023 -- awaited in this turn
            )
            self.counts.rows_dropped += sum(len(one.rows) for one in found)
            await asyncio.sleep(_PAUSE_S)

    async def _reading(self, epoch: str) -> Reading:
        """How far datacentres have read each other's rows by now."""
        others = frozenset(self._cluster_map().datacentres) - {self._datacentre}
        return await self._database.read(lambda session: read_reading(session, epoch, others, self._followed))

    async def _delete_blob(self, blob_id: bytes) -> None:
        with contextlib.suppress(BlobNotFound, BlobDeleted, BlobExpired, BadBlobId):
            parse_binary(blob_id)
            await self._operations.delete(blob_id)
            self.counts.blobs_deleted += 1

    # --- names that expired ------------------------------------------------------------------------------------

    async def collect_expired(self) -> None:
        """Drop names that expired more than the assumed skew of clocks, and a day, ago."""
        before_ms = self._clock.now_ms() - NAME_ORPHAN_AGE_MS - CLOCK_SKEW_MS_MAX
        epoch = (await self._database.read(read_epoch)).number
        reached_ms = (await self._reading(epoch)).reached_ms
        if reached_ms is not None:
            # A longer life that was given elsewhere may still be on its way.
            before_ms = min(before_ms, reached_ms - CLOCK_SKEW_MS_MAX)
        while True:
            keys = await self._database.read(
                lambda session: collection.find_expired(session, before_ms, NAME_COLLECT_ROWS)
            )
            dropped = 0
            for key in keys:
                dropped += await self._database.write(
                    lambda session: collection.drop_expired(session, key, before_ms)  # noqa: B023 -- awaited in this turn
                )
            self.counts.names_expired += dropped
            # Those that are left have older versions that live; retention takes these first.
            if len(keys) < NAME_COLLECT_ROWS or not dropped:
                return
            await asyncio.sleep(_PAUSE_S)

    # --- orphans -----------------------------------------------------------------------------------------------

    async def collect_orphans(self) -> None:
        """Delete named blobs that have no row, partition by partition, from where the last round stopped."""
        for partition in self._cluster_map().in_use:
            node = self._reader(partition)
            if node is not None:
                for kind, age_ms in ORPHAN_AGE_MS.items():
                    await self._collect_orphans_of(partition, node, kind, age_ms)

    def _reader(self, partition: int) -> Datanode | None:
        """A datanode here that has the partition."""
        cluster_map = self._cluster_map()
        for replica in cluster_map.partitions[partition].replicas:
            if cluster_map.nodes[replica.node].datacentre == self._datacentre:
                node = self._datanodes.get(replica.node)
                if node is not None:
                    return node
        return None

    async def _collect_orphans_of(self, partition: int, node: Datanode, kind: Kind, age_ms: int) -> None:
        database = self._database
        epoch = await database.read(read_epoch)
        source = f"orphans/{partition}/{kind.name.lower()}"
        before_ms = self._clock.now_ms() - age_ms
        kinds = frozenset({kind})
        incarnation = ""
        place = Place()
        while True:
            page = await read_page(node, partition, place.position, before_ms=before_ms, kinds=kinds)
            if page.incarnation.hex() != incarnation:
                # Another log than the one whose place was noted, or the first page: begin where that one was left.
                incarnation = page.incarnation.hex()
                known = await database.read(lambda session: collection.read_place(session, source, incarnation))  # noqa: B023 -- awaited in this turn
                if known.position > place.position:
                    place = known
                    continue
            for record in page.records:
                if record.created_ms > epoch.started_ms + CLOCK_SKEW_MS_MAX and await self._is_orphan(record):
                    self.counts.orphans += 1
                    _log.info("a named blob without a row is deleted", blob_id=record.blob_id.text())
                    await self._delete_blob(record.blob_id.binary())
            self.counts.unread += page.unread
            if page.count:
                place = Place(0, page.lsn)
                now_ms = self._clock.now_ms()
                await database.write(
                    lambda session: collection.write_place(session, source, incarnation, place, 0, now_ms)  # noqa: B023 -- awaited in this turn
                )
            if page.is_last:
                return
            await asyncio.sleep(_PAUSE_S)

    async def _is_orphan(self, record: NamedRecord) -> bool:
        """Whether a blob was put under a name here and no row has it. Zero-byte records belong to rows, too."""
        if record.blob_id.datacentre != self._datacentre:
            return False
        name = record.properties.name
        assert name is not None
        key = Key(record.blob_id.account, record.blob_id.container, name.encode("utf-8"))
        blob_id = record.blob_id.binary()
        return not await self._database.read(lambda session: collection.is_owned(session, key, blob_id))
