"""Where puts go, who is asked, and who is a witness."""

from collections import Counter
from dataclasses import replace

import pytest

from ambry.blob.blob_id import Kind, parse_binary
from ambry.cluster.map import ClusterMap, Datacentre, Disk, Node, Partition, Replica, ReplicaState
from ambry.cluster.quorum import UNCOUNTED
from ambry.errors import BadBlobId, BlobNotFound, Unavailable
from ambry.frontend.chance import Chance
from ambry.frontend.health import Peer
from ambry.frontend.placement import Peers, Placement, kind_of
from ambry.frontend.request_id import RequestIds
from ambry.limits import FULL_PARTITION_S, GIB, PUT_BURST_MAX, PUT_BURST_S
from tests.frontend.serving import DATACENTRE, OTHER_DATACENTRE, FixedChance, make_map, make_nodes
from tests.memory_datanode import MemoryDatanode

JOINING, SERVING, LEAVING = ReplicaState.JOINING, ReplicaState.SERVING, ReplicaState.LEAVING


def two_datacentres(**states: ReplicaState) -> ClusterMap:
    """Nodes a1, a2, a3 here and b1, b2 elsewhere; the replicas of partition 1 are on those that have a state."""
    nodes = {
        name: Node(name, DATACENTRE if name[0] == "a" else OTHER_DATACENTRE, "r", "h", 1, (Disk("d", GIB),))
        for name in ("a1", "a2", "a3", "b1", "b2")
    }
    placed = tuple(Replica(name, "d", state) for name, state in states.items())
    return ClusterMap(
        "f",
        1,
        {DATACENTRE: Datacentre(DATACENTRE, "here"), OTHER_DATACENTRE: Datacentre(OTHER_DATACENTRE, "there")},
        nodes,
        {1: Partition(1, GIB, False, 1, placed)},
    )


def placement_of(cluster_map: ClusterMap, missing: str = "") -> tuple[Placement, dict[str, MemoryDatanode]]:
    nodes = {name: MemoryDatanode(name) for name in cluster_map.nodes if name != missing}
    return Placement(cluster_map, DATACENTRE, Peers(nodes), FixedChance()), nodes


def names(peers: tuple[Peer, ...]) -> list[str | None]:
    return [peer.name if peer.datanode is not None else None for peer in peers]


def test_a_put_goes_to_local_replicas_and_only_the_serving_ones_know_what_was_before() -> None:
    placement, _ = placement_of(two_datacentres(b1=SERVING, a1=SERVING, a2=JOINING, a3=LEAVING))
    route = placement.route(1, DATACENTRE)
    assert names(route.writers) == ["a1", "a2"]
    assert route.serve == (True, False)
    assert route.listed == {DATACENTRE: 3, OTHER_DATACENTRE: 1}
    assert route.only_writer is None and route.only_reader is None


def test_an_id_of_a_retired_partition_leads_to_no_blob_and_of_an_unknown_one_to_no_answer() -> None:
    cluster_map = two_datacentres(a1=SERVING)
    retired = replace(cluster_map, partitions={**cluster_map.partitions, 2: Partition(2, 0, True, 1, ())})
    placement, _ = placement_of(retired)
    for origin in (DATACENTRE, OTHER_DATACENTRE, 77):
        with pytest.raises(BlobNotFound):
            placement.route(2, origin)
    with pytest.raises(Unavailable):
        placement.route(3, DATACENTRE)
    assert placement.writable == (1,)


def test_reads_ask_here_first_then_the_origin_and_only_its_serving_replicas_are_witnesses() -> None:
    cluster_map = two_datacentres(b1=SERVING, b2=JOINING, a1=LEAVING, a2=SERVING)
    placement, _ = placement_of(cluster_map)
    here = placement.route(1, DATACENTRE)
    assert names(here.readers) == ["a2", "a1", "b1", "b2"]
    assert here.groups == (DATACENTRE, UNCOUNTED, OTHER_DATACENTRE, UNCOUNTED)
    assert here.witnesses == (DATACENTRE,) and here.is_origin_here
    there = placement.route(1, OTHER_DATACENTRE)
    assert names(there.readers) == ["a2", "a1", "b1", "b2"]
    assert there.witnesses == (OTHER_DATACENTRE,) and not there.is_origin_here


def test_an_origin_that_left_the_map_makes_every_datacentre_a_witness() -> None:
    placement, _ = placement_of(two_datacentres(b1=SERVING, a1=SERVING))
    route = placement.route(1, 99)
    assert route.groups == (DATACENTRE, OTHER_DATACENTRE)
    assert route.witnesses == (DATACENTRE, OTHER_DATACENTRE) and not route.is_origin_here


def test_a_node_out_of_reach_keeps_its_place() -> None:
    placement, _ = placement_of(two_datacentres(a1=SERVING, a2=SERVING, a3=SERVING), missing="a2")
    route = placement.route(1, DATACENTRE)
    assert names(route.writers) == ["a1", None, "a3"]
    assert route.serve == (True, True, True)
    assert route.groups == (DATACENTRE,) * 3


def test_one_replica_is_one_answer() -> None:
    placement, nodes = placement_of(two_datacentres(a1=SERVING))
    route = placement.route(1, DATACENTRE)
    assert route.only_writer is nodes["a1"] and route.only_reader is nodes["a1"]


def test_a_partition_that_the_map_does_not_list_is_not_a_proof_of_anything() -> None:
    placement, _ = placement_of(make_map())
    with pytest.raises(Unavailable):
        placement.route(77, DATACENTRE)


def test_picks_are_spread_and_avoid_what_failed() -> None:
    placement = Placement(make_map(partitions=4), DATACENTRE, Peers(make_nodes()), FixedChance())
    counts = Counter(placement.pick() for _ in range(4000))
    assert set(counts) == {1, 2, 3, 4} and min(counts.values()) > 800
    assert {placement.pick([1, 2, 3]) for _ in range(50)} == {4}
    assert placement.pick([1, 2, 3, 4]) in {1, 2, 3, 4}
    for size in (1, 3, 10):
        group = placement.pick_group(size)
        assert len(set(group)) == len(group) == min(size, 4)


def test_small_puts_of_a_moment_share_a_partition_and_all_of_them_are_spread() -> None:
    placement = Placement(make_map(partitions=4), DATACENTRE, Peers(make_nodes()), FixedChance())
    bursts: list[int] = []
    for burst in range(2000):
        began = burst * 1.0
        picks = {placement.pick_in_burst((), began + place * PUT_BURST_S / 20) for place in range(PUT_BURST_MAX)}
        assert len(picks) == 1
        bursts += picks
    counts = Counter(bursts)
    assert set(counts) == {1, 2, 3, 4} and min(counts.values()) > 400


def test_a_burst_of_puts_ends_with_its_number_its_time_and_with_a_refusal() -> None:
    placement = Placement(make_map(partitions=64), DATACENTRE, Peers(make_nodes()), FixedChance())
    many = [placement.pick_in_burst((), 1.0) for _ in range(50 * PUT_BURST_MAX)]
    assert len(set(many)) > 10
    late = [placement.pick_in_burst((), 2.0 + number * PUT_BURST_S) for number in range(200)]
    assert len(set(late)) > 30
    first = placement.pick_in_burst((), 9.0)
    placement.refused(first, 9.0)
    assert placement.pick_in_burst((), 9.0) != first
    # Another try of a put goes elsewhere, and does not draw the others with it.
    burst = placement.pick_in_burst((), 9.0)
    assert placement.pick_in_burst((burst,), 9.0) != burst
    assert placement.pick_in_burst((), 9.0) == burst


def test_sealed_partitions_take_no_puts() -> None:
    cluster_map = make_map(partitions=2)
    sealed = {number: replace(one, is_sealed=number == 1) for number, one in cluster_map.partitions.items()}
    placement = Placement(replace(cluster_map, partitions=sealed), DATACENTRE, Peers(make_nodes()), FixedChance())
    assert {placement.pick() for _ in range(20)} == {2}
    none = {number: replace(one, is_sealed=True) for number, one in cluster_map.partitions.items()}
    placement = Placement(replace(cluster_map, partitions=none), DATACENTRE, Peers(make_nodes()), FixedChance())
    with pytest.raises(Unavailable):
        placement.pick()
    with pytest.raises(Unavailable):
        placement.pick_group(3)


def test_ids_say_where_they_are() -> None:
    placement = Placement(make_map(), DATACENTRE, Peers(make_nodes()), FixedChance())
    for kind in Kind:
        parsed = parse_binary(placement.mint(kind, 3, 1_700_000_000_000))
        assert (parsed.kind, parsed.datacentre, parsed.partition) == (kind, DATACENTRE, 3)
        assert (parsed.account, parsed.container, parsed.created_ms) == (0, 0, 1_700_000_000_000)
    assert placement.route_of(placement.mint(Kind.SIMPLE, 2, 5)).partition == 2


def test_chunks_cannot_be_asked_for() -> None:
    placement = Placement(make_map(), DATACENTRE, Peers(make_nodes()), FixedChance())
    assert kind_of(placement.mint(Kind.SIMPLE, 1, 1)) is Kind.SIMPLE
    assert kind_of(placement.mint(Kind.COMPOSITE, 1, 1)) is Kind.COMPOSITE
    with pytest.raises(BadBlobId):
        kind_of(placement.mint(Kind.CHUNK, 1, 1))


def test_chance_repeats_nothing() -> None:
    chance = Chance()
    uniques = {chance.unique_10() for _ in range(2000)}
    assert len(uniques) == 2000 and all(len(one) == 10 for one in uniques)
    assert {chance.below(3) for _ in range(200)} == {0, 1, 2}
    ids = [RequestIds(chance), RequestIds(chance)]
    made = {source.new() for source in ids for _ in range(1000)}
    assert len(made) == 2000 and all(len(one) == 24 and one.isalnum() for one in made)


def test_a_partition_that_was_found_full_has_no_room_for_a_while() -> None:
    placement = Placement(make_map(partitions=2), DATACENTRE, Peers({}), FixedChance())
    for partition in (1, 2):
        assert placement.has_room(100.0)
        placement.refused(partition, 100.0)
    assert not placement.has_room(100.0)
    assert placement.has_room(100.0 + FULL_PARTITION_S)
