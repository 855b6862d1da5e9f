"""When a replica that joins may serve, and which requests a datanode refuses because of the map. Pure."""

from dataclasses import replace

from ambry.blob.requests import Change, ChangesRequest, GetRequest, PutRequest, UpdateRequest
from ambry.blob.state import NEVER, BlobState
from ambry.cluster import changes
from ambry.cluster.map import ClusterMap, Disk, Node, ReplicaState
from ambry.datanode.fence import Fence
from ambry.datanode.joining import Joining
from ambry.errors import BlobDeleted, BlobNotFound, NoSuchReplica, StaleMap
from ambry.limits import GIB
from ambry.protocol.replication import Token


def cluster_of(replicas: int = 2) -> ClusterMap:
    """Two datacentres; node-0 to node-2 in the first, node-3 to node-5 in the second; partition 1."""
    made = changes.empty_map("test", ["east", "west"])
    for number in range(6):
        disks = (Disk("/d", 8 * GIB),)
        node = Node(f"node-{number}", 1 + number // 3, "rack", f"host-{number}", 6667, disks)
        made = changes.put_node(made, node)
    return changes.create_partitions(made, changes.Wanted(1, GIB, replicas, (1, 2)))


def token(lsn: int) -> Token:
    return Token(b"i" * 16, lsn)


def test_no_lsn_is_read_before_every_peer_uses_the_map_with_the_replica() -> None:
    made = changes.add_replica(cluster_of(), 1, "node-2")
    joining = Joining(1)
    membership = made.partitions[1].membership
    assert joining.to_ask(made, "node-2", {}) == []
    assert joining.to_ask(made, "node-2", {"node-0": membership, "node-1": membership - 1}) == []
    assert joining.marks(made, "node-2") is None
    confirmed = {"node-0": membership, "node-1": membership + 3}
    assert joining.to_ask(made, "node-2", confirmed) == ["node-0", "node-1"]
    joining.told("node-0", token(5))
    joining.told("node-1", None)
    assert joining.marks(made, "node-2") is None
    assert joining.to_ask(made, "node-2", confirmed) == ["node-1"]
    joining.told("node-1", token(7))
    assert joining.marks(made, "node-2") == {"node-0": token(5), "node-1": token(7)}


def test_a_change_of_the_replicas_begins_it_again() -> None:
    made = changes.add_replica(cluster_of(), 1, "node-2")
    joining = Joining(1)
    confirmed = dict.fromkeys(("node-0", "node-1"), made.version)
    for peer in joining.to_ask(made, "node-2", confirmed):
        joining.told(peer, token(1))
    assert joining.marks(made, "node-2") is not None
    newer = changes.leave(made, 1, "node-0")
    assert joining.marks(newer, "node-2") is None
    assert joining.to_ask(newer, "node-2", confirmed) == []
    assert joining.to_ask(newer, "node-2", {"node-1": newer.version}) == ["node-1"]


def test_without_a_serving_peer_here_one_of_every_other_datacentre_is_enough() -> None:
    made = cluster_of(replicas=1)
    here = made.replicas_in(1, 1)[0].node
    made = changes.rejoin(made, here, {1: b"n" * 16})
    joining = Joining(1)
    (there,) = [one.node for one in made.replicas_in(1, 2)]
    assert joining.to_ask(made, here, {there: made.version}) == [there]
    joining.told(there, token(9))
    assert joining.marks(made, here) == {there: token(9)}


def test_when_nobody_serves_nobody_can_say_that_it_has_caught_up() -> None:
    made = cluster_of(replicas=1)
    partition = made.partitions[1]
    joining_all = tuple(replace(one, state=ReplicaState.JOINING) for one in partition.replicas)
    made = replace(made, partitions={1: replace(partition, replicas=joining_all)})
    joining = Joining(1)
    assert joining.to_ask(made, partition.replicas[0].node, {}) == []
    assert joining.marks(made, partition.replicas[0].node) is None


# --- the fence -------------------------------------------------------------------------------------------------


def blob(partition: int) -> bytes:
    return bytes(12) + partition.to_bytes(4, "big") + bytes(16)


def test_changes_under_an_older_map_are_refused_and_reads_are_not() -> None:
    made = changes.add_replica(cluster_of(), 1, "node-2")
    newer: list[int] = []
    fence = Fence("node-2", lambda: newer.append(1))
    fence.adopt(made)
    membership = made.partitions[1].membership
    put = PutRequest(blob(1), 0, NEVER, b"", b"", b"", 0)
    join = UpdateRequest(blob(1), Change.JOIN, BlobState(0, NEVER), 0)
    for request in (put, join, (GetRequest(blob(1), 0, 1), join)):
        assert isinstance(fence.refusal(request, membership - 1), StaleMap)
        assert isinstance(fence.refusal(request, 0), StaleMap)
        assert fence.refusal(request, membership) is None
    assert fence.refusal(GetRequest(blob(1), 0, 1), 0) is None
    assert not newer
    assert fence.refusal(join, made.version + 1) is None
    assert newer


def test_not_found_is_told_only_to_senders_who_know_the_replicas() -> None:
    made = changes.add_replica(cluster_of(), 1, "node-2")
    fence = Fence("node-2")
    fence.adopt(made)
    membership = made.partitions[1].membership
    get, denial, found = GetRequest(blob(1), 0, 1), BlobNotFound("no such blob"), BlobDeleted("the blob was deleted")
    assert isinstance(fence.told(get, membership - 1, denial), StaleMap)
    assert fence.told(get, membership, denial) is denial
    assert fence.told(get, 0, found) is found, "what is known here is told to everybody"
    told = fence.told((get, get), membership - 1, [found, denial])
    assert isinstance(told, list)
    assert told[0] is found
    assert isinstance(told[1], StaleMap)


def test_partitions_that_the_map_does_not_list_here_are_refused_altogether() -> None:
    fence = Fence("node-2")
    fence.adopt(cluster_of())
    requests = (
        GetRequest(blob(1), 0, 1),
        ChangesRequest(1, 0, 1),
        UpdateRequest(blob(1), Change.DELETE, BlobState(0, 0), 0),
    )
    for request in requests:
        assert isinstance(fence.refusal(request, 10**6), NoSuchReplica)
    assert fence.refusal(None, 0) is None
