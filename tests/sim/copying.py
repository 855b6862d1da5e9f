"""The plainest replication there can be: read every peer's feed from a token on, join what it says, fetch what lacks.

It stands for the real one where only the operations of a frontend are to be looked at: slow, chatty and easy to be
sure of. Tokens are kept by the node's disk in the simulation's memory and only move past what is durable here.
"""

import asyncio

from ambry.blob.checksums import checksum_vector
from ambry.blob.requests import Change, ChangeEntry, ChangesRequest, GetRequest, PutRequest, UpdateRequest
from ambry.blob.state import BlobState
from ambry.cluster.quorum import told_state
from ambry.errors import AmbryError
from ambry.limits import BODY_BYTES_MAX
from tests.sim.network import Link
from tests.sim.node import SimNode

_PAUSE_S = 1.0
_ANSWER_S = 5.0
_PAGE = 50


class Copying:
    """Replication of one node from all others that hold its partitions."""

    def __init__(self, node: SimNode, peers: dict[str, Link], partitions: list[int]) -> None:
        self._node = node
        self._peers = peers
        self._partitions = partitions
        self._tokens: dict[tuple[str, int], tuple[bytes, int]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self.copied = 0

    def start(self) -> None:
        """Begin; the node has just been opened."""
        loop = asyncio.get_event_loop()
        self._tasks = [
            loop.create_task(self._follow(peer, link), name=f"{self._node.name} follows {peer}")
            for peer, link in self._peers.items()
        ]

    def stop(self) -> None:
        """The node is gone."""
        for task in self._tasks:
            task.cancel()
        self._tasks = []

    async def _follow(self, peer: str, link: Link) -> None:
        while True:
            await asyncio.sleep(_PAUSE_S)
            if self._node.is_stopped:
                continue
            try:
                for partition in self._partitions:
                    await self._read(peer, link, partition)
                await self._repair(link)
            except AmbryError:
                continue

    async def _read(self, peer: str, link: Link, partition: int) -> None:
        loop = asyncio.get_running_loop()
        incarnation, lsn = self._tokens.get((peer, partition), (b"", 0))
        page = await link.changes(ChangesRequest(partition, lsn, _PAGE), loop.time() + _ANSWER_S)
        if page.incarnation != incarnation:
            incarnation, lsn = page.incarnation, 0
            page = await link.changes(ChangesRequest(partition, 0, _PAGE), loop.time() + _ANSWER_S)
        for entry in page.entries:
            await self._take(link, entry)
            lsn = entry.lsn
        self._tokens[peer, partition] = (incarnation, lsn)

    async def _take(self, link: Link, entry: ChangeEntry) -> None:
        loop = asyncio.get_running_loop()
        known = self._known(entry.blob_id)
        if known is not None and known[0] == entry.state and (known[1] or not entry.has_body):
            return
        join = UpdateRequest(entry.blob_id, Change.JOIN, entry.state, entry.time_ms)
        state = await self._node.update(join, loop.time() + _ANSWER_S)
        if not state.has_body and entry.has_body and not state.state.is_deleted:
            await self._fetch(link, entry.blob_id)

    def _known(self, blob_id: bytes) -> tuple[BlobState, bool] | None:
        """State of a blob here, and whether its bytes are."""
        try:
            return self._node.store.get(GetRequest(blob_id, 0, 0, include_deleted=True)).state, True
        except AmbryError as error:
            told = told_state(error)
            return None if told is None else (told, False)

    async def _fetch(self, link: Link, blob_id: bytes) -> None:
        loop = asyncio.get_running_loop()
        found = await link.get(GetRequest(blob_id, 0, BODY_BYTES_MAX), loop.time() + _ANSWER_S)
        put = PutRequest(
            blob_id,
            found.created_ms,
            found.state.expires_at_ms,
            found.properties,
            found.body,
            checksum_vector(found.body),
            found.root,
        )
        await self._node.put(put, loop.time() + _ANSWER_S)
        self.copied += 1

    async def _repair(self, link: Link) -> None:
        for blob_id in self._node.store.repair_queue(_PAGE):
            try:
                await self._fetch(link, blob_id)
            except AmbryError:
                continue
