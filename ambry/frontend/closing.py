"""Containers and accounts that were given up: their blobs are deleted, and when nothing is left of them they are gone.

A container that is DELETE_IN_PROGRESS gives and takes nothing. One process of all that share a name store, under a
lease, asks the datanodes in which partitions it still has live blobs, walks the changes of these, and deletes each blob
of the container as a client would. Chunks follow their manifests, compaction reclaims the bytes after their retention.
When every datanode has answered and none has a byte of the container left, its names are dropped and it is DELETED:
its name is free, its number is never used again. All of it can be broken off and repeated.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from ambry.access.accounts import Container, Status
from ambry.blob.blob_id import Kind
from ambry.blob.requests import ChangesRequest
from ambry.clock import Clock
from ambry.cluster.map import ClusterMap
from ambry.errors import AmbryError, BlobDeleted, BlobExpired, BlobNotFound
from ambry.frontend.directory import Directory
from ambry.frontend.operations import Operations
from ambry.frontend.placement import OWNER_AT
from ambry.frontend.usage import ask_usage
from ambry.limits import (
    CHANGES_PER_PAGE_MAX,
    CLOSING_DELETES_MAX,
    CLOSING_LEASE_MS,
    CLOSING_ROUND_MS,
    CLOSING_WAIT_MS,
    REQUEST_DEADLINE_MS,
)
from ambry.logs import get_logger
from ambry.names import accounts
from ambry.names.collection import take_lease
from ambry.names.sql import Database
from ambry.protocol.datanode import Datanode

_log = get_logger(__name__)
_audit = get_logger("audit")

_LEASE: Final = "closing"
_PAUSE_S: Final = 0.01
_KINDS: Final = frozenset({Kind.SIMPLE.value, Kind.COMPOSITE.value})


class Closing:
    """The background work of one frontend process on what was given up."""

    __slots__ = ("_clock", "_closing", "_cluster_map", "_database", "_datanodes", "_directory", "_done", "_holder",
                 "_operations", "deleted")  # fmt: skip

    def __init__(
        self,
        *,
        database: Database,
        directory: Directory,
        closing: Callable[[], list[Container]],
        operations: Operations,
        cluster_map: Callable[[], ClusterMap],
        datanodes: Mapping[str, Datanode],
        clock: Clock,
        holder: str,
    ) -> None:
        """`closing` says which containers are DELETE_IN_PROGRESS."""
        self._database = database
        self._directory = directory
        self._closing = closing
        self._operations = operations
        self._cluster_map = cluster_map
        self._datanodes = datanodes
        self._clock = clock
        self._holder = holder
        self._done: dict[tuple[int, bytes], int] = {}
        """Live records of a partition and container after a walk that found nothing to delete: chunks, and holes."""
        self.deleted = 0

    async def run(self) -> None:
        """Do it for ever. What fails is tried again in the next round."""
        while True:
            try:
                await self.round()
            except AmbryError as error:
                _log.warning("containers that were given up wait", error=str(error))
            await asyncio.sleep(CLOSING_ROUND_MS / 1000)

    async def round(self) -> None:
        """One round, if there is something to do and it is this process's turn."""
        now_ms = self._clock.now_ms()
        # Other processes may take puts until they know that it is closed.
        due = [each for each in self._closing() if each.delete_triggered_ms + CLOSING_WAIT_MS <= now_ms]
        accounts_closing = self._directory.closing_accounts()
        if not due and not accounts_closing:
            return
        is_ours = await self._database.write(
            lambda session: take_lease(session, self._holder, now_ms, now_ms + CLOSING_LEASE_MS, _LEASE)
        )
        if not is_ours:
            return
        if due:
            await self._close({each.owner: each for each in due}, now_ms)
        for number in accounts_closing:
            if await self._database.write(lambda session: accounts.finish_account(session, number, now_ms)):  # noqa: B023 -- awaited in this turn
                _audit.info("account gone", actor="store", account=number)
        await self._directory.refresh()

    async def _close(self, due: dict[bytes, Container], now_ms: int) -> None:
        report = await ask_usage(self._cluster_map(), self._datanodes, now_ms)
        left: dict[bytes, int] = dict.fromkeys(due, 0)
        live: dict[int, dict[bytes, int]] = {}
        for row in report.rows:
            owner = row.account.to_bytes(4, "big") + row.container.to_bytes(4, "big")
            if owner in due:
                left[owner] += row.live_count + row.dead_count
                if row.live_count:
                    live.setdefault(row.partition, {})[owner] = row.live_count
        for partition, counts in sorted(live.items()):
            owners = {owner for owner, count in counts.items() if self._done.get((partition, owner)) != count}
            if owners and not await self._delete_of(partition, owners):
                self._done.update({(partition, owner): counts[owner] for owner in owners})
        for owner, container in due.items():
            if report.is_complete and not left[owner]:
                await self._finish(container, now_ms)

    async def _delete_of(self, partition: int, owners: set[bytes]) -> int:
        """Delete the live blobs of these containers in a partition; how many there were."""
        datanode = self._reader(partition)
        if datanode is None:
            return 1
        found, after_lsn = 0, 0
        while True:
            deadline = asyncio.get_running_loop().time() + REQUEST_DEADLINE_MS / 1000
            answer = await datanode.changes(ChangesRequest(partition, after_lsn, CHANGES_PER_PAGE_MAX), deadline)
            ids = [
                entry.blob_id
                for entry in answer.entries
                if entry.blob_id[OWNER_AT] in owners and entry.blob_id[1] in _KINDS and not entry.state.is_deleted
            ]
            for first in range(0, len(ids), CLOSING_DELETES_MAX):
                await asyncio.gather(*(self._delete(one) for one in ids[first : first + CLOSING_DELETES_MAX]))
            found += len(ids)
            if not answer.entries:
                return found
            after_lsn = answer.entries[-1].lsn
            await asyncio.sleep(_PAUSE_S)

    async def _delete(self, blob_id: bytes) -> None:
        try:
            await self._operations.delete(blob_id)
        except (BlobNotFound, BlobDeleted, BlobExpired):
            return
        self.deleted += 1

    def _reader(self, partition: int) -> Datanode | None:
        """A datanode in reach that has the partition."""
        for replica in self._cluster_map().partitions[partition].replicas:
            datanode = self._datanodes.get(replica.node)
            if datanode is not None:
                return datanode
        return None

    async def _finish(self, container: Container, now_ms: int) -> None:
        account, number = container.account, container.number
        while await self._database.write(lambda session: accounts.drop_names(session, account, number)):
            # Many names are dropped in many small steps.
            continue
        if await self._database.write(lambda session: accounts.finish_container(session, account, number, now_ms)):
            _audit.info("container gone", actor="store", account=account, container=number, name=container.name)


def closing_of(containers: Mapping[bytes, Container]) -> list[Container]:
    """The containers that were given up and are not gone yet."""
    return [each for each in containers.values() if each.status is Status.DELETE_IN_PROGRESS]
