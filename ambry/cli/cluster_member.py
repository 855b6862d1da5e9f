"""`ambry datanode` in a cluster with ZooKeeper: who this datanode is, and its parts put together.

At its first start a datanode makes up its name, unless the settings have one, and keeps it in its state folder with the
fingerprint of the cluster: neither changes afterwards. It registers with its address and disks, and waits until an
operator adds it to the map (`ambry node add`). Then it holds the replicas that the map lists for it.
"""

import asyncio
import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ambry.cli.admin import AdminServer
from ambry.cli.check_socket import serve_checks
from ambry.cli.connections import Connections, Identity
from ambry.cli.datanode_parts import open_datanode, partitions_on, replication_of, watch_connections
from ambry.cli.frontend import number_of, watch_membership
from ambry.cli.listen import bind, port_of
from ambry.cli.processes import Stop
from ambry.cli.tls import following, node_client_context, node_server_context
from ambry.clock import SystemClock
from ambry.cluster import changes
from ambry.cluster.files import replace_file
from ambry.cluster.layout import encode_file
from ambry.cluster.map import ClusterMap, Disk, Node
from ambry.cluster.membership import Membership
from ambry.config import DatanodeSettings, load_secret
from ambry.datanode.fence import Fence
from ambry.datanode.local import LocalDatanode
from ambry.datanode.member import Member
from ambry.datanode.set_aside import set_aside
from ambry.datanode.sweeper import Sweeper
from ambry.errors import AmbryError, BadConfiguration, CannotStart, RegistryUnavailable
from ambry.logs import get_logger
from ambry.metrics import Metrics
from ambry.tasks import end_task
from ambry.transport import chance
from ambry.transport.server import DatanodeServer

_log = get_logger(__name__)

IDENTITY_FILE: Final = "identity"


@dataclass(frozen=True, slots=True)
class MemberSettings:
    """What a datanode with ZooKeeper must have been told."""

    zookeeper: str
    state_folder: Path
    datacentre: str


def check(settings: DatanodeSettings) -> MemberSettings:
    """Raises BadConfiguration for what is missing."""
    missing = [
        key
        for key, value in (
            ("state_folder", settings.state_folder),
            ("datacentre", settings.datacentre),
            ("disk", settings.disk),
            ("port", settings.port),
        )
        if not value
    ]
    if missing:
        raise BadConfiguration(f"with zookeeper, a datanode needs {', '.join(missing)}")
    assert settings.zookeeper is not None
    assert settings.state_folder is not None
    assert settings.datacentre is not None
    return MemberSettings(settings.zookeeper, settings.state_folder, settings.datacentre)


def identity_of(folder: Path, wanted: str | None, fingerprint: str) -> str:
    """The name of the datanode that this folder belongs to; made at its first start. Raises CannotStart."""
    path = folder / IDENTITY_FILE
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        name = wanted or f"node-{chance.nonce(4).hex()}"
        replace_file(path, json.dumps({"node": name, "fingerprint": fingerprint}).encode() + b"\n")
        return name
    try:
        stored = json.loads(path.read_bytes())
        name, known = str(stored["node"]), str(stored["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CannotStart(f"{path} cannot be read: {error!r}; put it back from a copy") from error
    if known != fingerprint:
        raise CannotStart(f"{folder} belongs to cluster {known}, ZooKeeper has cluster {fingerprint}")
    if wanted is not None and wanted != name:
        raise CannotStart(f"{folder} belongs to datanode {name}, the settings say {wanted}")
    return name


async def serve_member(settings: DatanodeSettings) -> None:
    """Run a datanode of a cluster until it is asked to stop."""
    stop = Stop()
    member_settings = check(settings)
    secret = load_secret(settings.secret_file)
    admin_sockets = bind(settings.admin_host, settings.admin_port)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(following())
        membership = Membership(member_settings.zookeeper, member_settings.state_folder)
        stack.push_async_callback(membership.close)
        await membership.open()
        cluster_map = membership.cluster_map
        name = identity_of(member_settings.state_folder, settings.node, cluster_map.fingerprint)
        number = number_of(cluster_map, member_settings.datacentre, member_settings.zookeeper)
        node = _node_of(settings, name, number)
        admin_port = port_of(admin_sockets)
        membership.announce(name, _record_of(node, settings, cluster_map, admin_port))
        membership.run()
        if not await _is_added(membership, node, stop):
            return
        process = _Process(settings, membership, node, secret)
        host, port = await process.start(stack)
        admin = AdminServer(process.local, process.metrics, lambda: encode_file(membership.layout))
        stack.push_async_callback(admin.stop)
        await admin.start(admin_sockets)
        _log.info("ready", node=name, host=host, port=port, admin_port=admin_port)
        await stop.wait()
    _log.info("stopped", node=name)


def _node_of(settings: DatanodeSettings, name: str, datacentre: int) -> Node:
    disks = tuple(Disk(str(disk.path.absolute()), disk.capacity_bytes) for disk in settings.disk)
    return Node(name, datacentre, settings.rack, settings.host, settings.port, disks)


def _record_of(node: Node, settings: DatanodeSettings, cluster_map: ClusterMap, admin_port: int) -> dict[str, object]:
    admin_host = settings.admin_host if settings.admin_host not in {"0.0.0.0", "::"} else settings.host  # noqa: S104 -- compared, not bound
    return {
        "fingerprint": cluster_map.fingerprint,
        "datacentre": settings.datacentre,
        "rack": node.rack,
        "host": node.host,
        "port": node.port,
        "disks": [[disk.path, disk.capacity] for disk in node.disks],
        "admin": f"http://{admin_host}:{admin_port}",
    }


async def _is_added(membership: Membership, node: Node, stop: Stop) -> bool:
    """Wait until the map has this datanode; False when the process is to stop before. Tells the map a new address."""
    added = asyncio.Event()

    async def look(cluster_map: ClusterMap) -> None:
        if node.name in cluster_map.nodes:
            added.set()

    membership.on_map(look)
    await look(membership.cluster_map)
    if not added.is_set():
        saying = asyncio.ensure_future(_say_how_to_add(membership, node))
        waits = {asyncio.ensure_future(added.wait()), asyncio.ensure_future(stop.wait())}
        _, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for one in (*pending, saying):
            one.cancel()
        if not added.is_set():
            return False
    if membership.cluster_map.nodes[node.name] != node:
        try:
            await membership.change(
                lambda old: changes.put_node(old, node), f"{node.name} has a new address or other disks", node.name
            )
        except RegistryUnavailable as error:
            _log.warning("the map has another address of this datanode", why=str(error))
        except AmbryError as error:
            raise CannotStart(f"the map does not take these settings: {error}") from error
    return True


async def _say_how_to_add(membership: Membership, node: Node) -> None:
    """Once the command finds it: whoever reads this may type it at once."""
    await membership.registered()
    _log.info("registered, and waiting to be added", node=node.name, how=f"ambry node add {node.name}")


class _Process:
    """The parts of a running datanode."""

    def __init__(self, settings: DatanodeSettings, membership: Membership, node: Node, secret: bytes) -> None:
        self._settings = settings
        self._membership = membership
        self._node = node
        self._secret = secret
        self.metrics = Metrics(operations=())
        self.local: LocalDatanode

    async def start(self, stack: contextlib.AsyncExitStack) -> tuple[str, int]:
        """Open the disks, listen, follow the map; everything ends when `stack` unwinds. Returns the address."""
        settings, membership, node = self._settings, self._membership, self._node
        clock = SystemClock()
        local = self.local = await self._open_disks()
        stack.push_async_callback(local.close)
        await serve_checks(local, stack)
        client_ssl = node_client_context(settings.node_tls) if settings.node_tls else None
        identity = Identity(node.name, self._secret, client_ssl)
        connections = Connections(identity, on_stale=membership.look_soon, local={node.name: local})
        stack.push_async_callback(connections.close)
        await connections.adopt(membership.cluster_map)
        membership.on_map(connections.adopt)
        fence = Fence(node.name, membership.look_soon)
        replication = replication_of(
            node.name, membership.cluster_map.fingerprint, local, settings, self._secret, client_ssl, self.metrics
        )
        stack.push_async_callback(replication.close)
        member = Member(
            node.name, local, membership, fence, connections.datanodes, replication.replicator.has_caught_up
        )
        stack.push_async_callback(member.stop)
        await member.start()

        async def replicate(cluster_map: ClusterMap) -> None:
            replication.adopt(cluster_map)

        # After `member`, which opens the replicas that replication works on.
        membership.on_map(replicate)
        sweeper = Sweeper(
            node.name, local, connections.datanodes, lambda: membership.cluster_map, settings.storage, clock
        )
        sweeper.watch(self.metrics)
        stack.push_async_callback(end_task, asyncio.create_task(sweeper.run(), name="sweeper"))
        watch_membership(membership, self.metrics)
        ssl = node_server_context(settings.node_tls) if settings.node_tls else None
        fingerprint = membership.cluster_map.fingerprint
        server = DatanodeServer(
            local,
            node.name,
            fingerprint,
            self._secret,
            ssl,
            peer=replication.feed,
            refusal=fence.refusal,
            told=fence.told,
        )
        watch_connections(server, self.metrics)
        stack.push_async_callback(server.stop, settings.shutdown_grace_ms / 1000)
        stack.callback(replication.feed.release)
        address = await server.start(settings.listen_host or node.host, node.port)
        replication.adopt(membership.cluster_map)
        return address

    async def _open_disks(self) -> LocalDatanode:
        cluster_map, storage = self._membership.cluster_map, self._settings.storage
        for path, partitions in partitions_on(cluster_map, self._node).items():
            # Those of retired partitions are opened once more, and removed.
            known = partitions.keys() | cluster_map.retired
            try:
                await asyncio.to_thread(set_aside, Path(path), known, storage, SystemClock())
            except CannotStart:
                raise
            except AmbryError as error:
                raise CannotStart(f"a disk cannot be opened: {error}") from error
        return await open_datanode(cluster_map, self._node, storage, self.metrics)
