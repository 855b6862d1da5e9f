"""`ambry names rebuild`: the name store from the logs of all partitions. Knows datanodes and the name store, no HTTP.

Each partition is read from one of its replicas, and from the next one too where that has something it cannot read.
What the store has stays; what it lacks is added; so a rebuild that was cut short is begun again. At the end the store
has a new epoch: no blob that is older is ever taken for one without a name.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ambry.blob.blob_id import BlobId, parse_binary
from ambry.blob.properties import decode_properties
from ambry.blob.requests import GetRequest
from ambry.clock import Clock
from ambry.cluster.map import ClusterMap
from ambry.errors import AmbryError, BadBlobId, CorruptRecord, Unavailable
from ambry.frontend.named_records import NamedRecord, read_page
from ambry.limits import REQUEST_DEADLINE_MS
from ambry.logs import get_logger
from ambry.names import accounts
from ambry.names.open import begin_epoch
from ambry.names.rebuild import FoundBlob, restore, rows_of
from ambry.names.rows import NameRow
from ambry.names.sql import Database
from ambry.protocol.datanode import Datanode

_log = get_logger(__name__)


@dataclass(slots=True)
class RebuildReport:
    """What a rebuild has seen and done. `unread` records could be read from no replica."""

    partitions: int = 0
    changes: int = 0
    named: int = 0
    rows_added: int = 0
    accounts_added: int = 0
    unread: int = 0


class Rebuild:
    """One rebuild. `passed` hears of changes as they are read."""

    def __init__(
        self,
        database: Database,
        cluster_map: ClusterMap,
        datanodes: Mapping[str, Datanode],
        clock: Clock,
        passed: Callable[[int], None],
    ) -> None:
        self._database = database
        self._map = cluster_map
        self._datanodes = datanodes
        self._clock = clock
        self._passed = passed
        self._owners: set[tuple[int, int]] = set()
        self.report = RebuildReport()

    async def run(self, epoch: str) -> RebuildReport:
        """Read every partition. Raises Unavailable for one that no replica answers for."""
        now_ms = self._clock.now_ms()
        await self._database.write(lambda session: accounts.ensure_defaults(session, now_ms))
        for partition in self._map.in_use:
            await self._read_partition(partition)
            self.report.partitions += 1
        now_ms = self._clock.now_ms()
        await self._database.write(lambda session: begin_epoch(session, epoch, now_ms))
        return self.report

    async def _read_partition(self, partition: int) -> None:
        reason: AmbryError | None = None
        unread: int | None = None
        for replica in self._map.partitions[partition].replicas:
            node = self._datanodes.get(replica.node)
            if node is None:
                continue
            try:
                unread = await self._read_replica(partition, node)
            except AmbryError as error:
                reason = error
                continue
            if not unread:
                return
        if unread is None:
            raise Unavailable(
                f"no replica of partition {partition} answers; nothing is complete without it"
            ) from reason
        self.report.unread += unread

    async def _read_replica(self, partition: int, node: Datanode) -> int:
        """Add what one replica knows; how many records it could not read."""
        lsn = 0
        unread = 0
        while True:
            page = await read_page(node, partition, lsn)
            lsn = page.lsn
            unread += page.unread
            rows: list[NameRow] = []
            for record in page.records:
                await self._add_owner(record)
                found = FoundBlob(record.blob_id, record.properties, record.created_ms, record.state.expires_at_ms)
                moved = None if found.moved_blob is None else await self._moved(found.moved_blob)
                rows += rows_of(found, moved)
            if rows:
                now_ms = self._clock.now_ms()
                self.report.rows_added += await self._database.write(
                    lambda session: restore(session, rows, now_ms)  # noqa: B023 -- awaited in this turn
                )
            self.report.named += len(page.records)
            self.report.changes += page.count
            self._passed(page.count)
            if page.is_last:
                return unread

    async def _add_owner(self, record: NamedRecord) -> None:
        """Accounts and containers come back with their numbers; keys and policies are in no log."""
        owner = (record.blob_id.account, record.blob_id.container)
        if owner in self._owners:
            return
        self._owners.add(owner)
        names = (record.properties.account_name or "", record.properties.container_name or "")
        now_ms = self._clock.now_ms()
        self.report.accounts_added += await self._database.write(
            lambda session: accounts.restore_owner(session, owner, names, now_ms)
        )

    async def _moved(self, blob_id: bytes) -> FoundBlob | None:
        """The blob of a move; None if it is deleted, or in no replica that answers."""
        try:
            parsed = parse_binary(blob_id)
        except BadBlobId:
            return None
        listed = self._map.partitions.get(parsed.partition)
        for replica in listed.replicas if listed is not None else ():
            node = self._datanodes.get(replica.node)
            found = None if node is None else await _find_blob(node, parsed)
            if found is not None:
                return found
        return None


async def _find_blob(node: Datanode, blob_id: BlobId) -> FoundBlob | None:
    deadline = asyncio.get_running_loop().time() + REQUEST_DEADLINE_MS / 1000
    try:
        answer = await node.get(GetRequest(blob_id.binary(), 0, 0), deadline)
        properties = decode_properties(answer.properties)
    except (AmbryError, CorruptRecord) as error:
        _log.info("the blob of a move was not found", error=str(error))
        return None
    return FoundBlob(blob_id, properties, answer.created_ms, answer.state.expires_at_ms)
