"""A datanode as a member of a cluster: it holds exactly the replicas that the map lists for it.

With every new map: replicas that appeared are created, those that left stop answering at once (their files are set
aside at the next start, `set_aside.py`), the fence learns the new memberships. What the map does not know yet, the
incarnations of new replicas, is written down there. A replica whose incarnation is not the one that the map names has
lost what it had acknowledged: it joins again, and until the map says so it answers nothing. If it is the only one
that serves, the datanode refuses to start.

A replica that joins serves when it has caught up: `joining.py` decides, this module asks.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from ambry.cluster import changes
from ambry.cluster.map import ClusterMap, ReplicaState
from ambry.cluster.membership import Membership
from ambry.datanode.fence import Fence
from ambry.datanode.joining import Joining
from ambry.datanode.local import LocalDatanode
from ambry.errors import AmbryError, CannotStart, ChangeRefused, RegistryUnavailable
from ambry.limits import JOIN_LOOK_S
from ambry.logs import get_logger
from ambry.protocol.datanode import Datanode
from ambry.protocol.replication import Token
from ambry.tasks import end_task

_log = get_logger(__name__)

_STATUS_S: Final = 10.0


class Member:
    """Keeps a LocalDatanode, its fence and its place in the map in step. Made inside the loop."""

    def __init__(
        self,
        name: str,
        local: LocalDatanode,
        membership: Membership,
        fence: Fence,
        peers: Mapping[str, Datanode],
        has_caught_up: Callable[[int, Mapping[str, Token]], bool],
    ) -> None:
        self._name = name
        self._local = local
        self._membership = membership
        self._fence = fence
        self._peers = peers
        self._has_caught_up = has_caught_up
        self._joining: dict[int, Joining] = {}
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take the first map and follow. Raises CannotStart if the only replica of a partition was lost."""
        await self.adopt(self._membership.cluster_map)
        # First of all: what is told to the map now makes the next one.
        self._membership.on_map(self.adopt)
        await self._settle(is_start=True)
        self._task = asyncio.create_task(self._work(), name="member")

    async def stop(self) -> None:
        """Follow no more."""
        await end_task(self._task)

    async def adopt(self, cluster_map: ClusterMap) -> None:
        """Hold what this map lists."""
        wanted: dict[int, tuple[str, int]] = {}
        joining: set[int] = set()
        withheld: set[int] = set()
        found = self._local.incarnations
        for number, partition in cluster_map.partitions.items():
            for replica in partition.replicas:
                if replica.node != self._name:
                    continue
                wanted[number] = (replica.disk_path, partition.capacity)
                if replica.state is ReplicaState.JOINING:
                    joining.add(number)
                if replica.incarnation is not None and found.get(number, replica.incarnation) != replica.incarnation:
                    withheld.add(number)
        self._fence.adopt(cluster_map)
        await self._local.hold(wanted, withheld)
        await self._local.retire(cluster_map.retired)
        self._local.end([number for number in wanted if cluster_map.partitions[number].is_sealed])
        self._joining = {number: self._joining.get(number, Joining(number)) for number in joining}

    # --- in the background -------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while True:
            try:
                await self._settle(is_start=False)
                for number, joining in tuple(self._joining.items()):
                    await self._advance(number, joining)
            except AmbryError as error:
                _log.warning("the map cannot be told", why=str(error))
            await asyncio.sleep(JOIN_LOOK_S)

    async def _settle(self, *, is_start: bool) -> None:
        """Tell the map which incarnations there are; join again with those that are not what the map names."""
        unknown: dict[int, bytes] = {}
        lost: dict[int, bytes] = {}
        found = self._local.incarnations
        for number, partition in self._membership.cluster_map.partitions.items():
            for replica in partition.replicas:
                if replica.node == self._name and number in found and replica.incarnation != found[number]:
                    (unknown if replica.incarnation is None else lost)[number] = found[number]
        try:
            if lost:
                await self._rejoin(lost)
            if unknown:
                await self._membership.change(
                    lambda old: changes.vouch(old, self._name, unknown),
                    f"{len(unknown)} new replicas of {self._name}",
                    self._name,
                )
            await self._seal_closed()
        except RegistryUnavailable as error:
            if not is_start:
                raise
            _log.warning("the map cannot be told what is here", why=str(error))
        except ChangeRefused as error:
            if is_start:
                raise CannotStart(
                    f"a replica is missing or empty that nobody else has, {error.message}: put its disk back, or take "
                    "the partition's loss with ambry replica remove --force"
                ) from error
            raise

    async def _seal_closed(self) -> None:
        """What is sealed for good here is sealed in the map: no frontend has to try."""
        closed = self._local.closed()

        def unsealed(found: ClusterMap) -> list[int]:
            return [
                number for number in closed if number in found.partitions and not found.partitions[number].is_sealed
            ]

        if unsealed(self._membership.cluster_map):
            _log.warning("partitions are full of tombstones, and sealed in the map", partitions=sorted(closed)[:20])
            await self._membership.change(
                lambda old: changes.seal(old, unsealed(old), is_sealed=True),
                f"{self._name} has partitions that are full of tombstones",
                self._name,
            )

    async def _rejoin(self, lost: Mapping[int, bytes]) -> None:
        _log.warning("replicas have lost their data and join again", partitions=sorted(lost)[:20], count=len(lost))
        await self._membership.change(
            lambda old: changes.rejoin(old, self._name, lost), f"{self._name} lost {len(lost)} replicas", self._name
        )

    async def _advance(self, number: int, joining: Joining) -> None:
        cluster_map = self._membership.cluster_map
        partition = cluster_map.partitions.get(number)
        if partition is None:
            return
        live = await self._membership.live()
        confirmed = {name: int(record.get("map_version", 0)) for name, record in live.items()}
        for peer in joining.to_ask(cluster_map, self._name, confirmed):
            joining.told(peer, await self._mark_of(peer, number))
        marks = joining.marks(cluster_map, self._name)
        if marks is None or not self._has_caught_up(number, marks):
            return
        expected = partition.membership

        def serve(old: ClusterMap) -> ClusterMap:
            # Whoever changed the replicas meanwhile has raised what is to be caught up with.
            now = old.partitions.get(number)
            return changes.serve(old, number, self._name) if now and now.membership == expected else old

        await self._membership.change(serve, f"{self._name} has caught up with partition {number}", self._name)
        _log.info("replica serves", partition=number)

    async def _mark_of(self, peer: str, number: int) -> Token | None:
        datanode = self._peers.get(peer)
        if datanode is None:
            return None
        try:
            status = await datanode.status(asyncio.get_running_loop().time() + _STATUS_S)
        except AmbryError:
            return None
        return next((Token(one.incarnation, one.end_lsn) for one in status.replicas if one.partition == number), None)
