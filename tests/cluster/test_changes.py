"""Changes of the map: each gives the next version, or says why not."""

import random
from dataclasses import replace

import pytest

from ambry.cluster import changes
from ambry.cluster.layout import changed, decode_file, decode_head, encode_file, lay_out, piece_of, put_together
from ambry.cluster.map import ClusterMap, Disk, Node, ReplicaState
from ambry.errors import AmbryError, ChangeRefused, DirectoryUnusable, RegistryUnavailable
from ambry.limits import GIB

WANTED = changes.Wanted(count=4, capacity=GIB, replicas=3, datacentres=(1, 2))


def node(name: str, datacentre: int = 1, *, host: str = "", rack: str = "rack", disks: int = 1) -> Node:
    port = 6000 + int(name.rpartition("-")[2])
    return Node(name, datacentre, rack, host or name, port, tuple(Disk(f"/d{n}", 64 * GIB) for n in range(disks)))


def two_by_three() -> ClusterMap:
    made = changes.empty_map("test", ["east", "west"])
    for number in range(6):
        made = changes.put_node(made, node(f"node-{number}", 1 + number // 3, rack=f"r{number % 3}"))
    return changes.create_partitions(made, WANTED)


def test_partitions_are_spread_over_hosts_racks_and_disks() -> None:
    made = two_by_three()
    assert sorted(made.partitions) == [1, 2, 3, 4]
    for partition in made.partitions.values():
        assert partition.membership == made.version
        for datacentre in (1, 2):
            replicas = made.replicas_in(partition.number, datacentre)
            assert len({made.nodes[one.node].host for one in replicas}) == 3
            assert len({made.nodes[one.node].rack for one in replicas}) == 3
    with pytest.raises(ChangeRefused, match="no disk is left"):
        changes.create_partitions(made, replace(WANTED, replicas=4))
    with pytest.raises(ChangeRefused, match="no disk is left"):
        changes.create_partitions(made, replace(WANTED, capacity=65 * GIB))


def test_two_replicas_on_one_host_only_when_asked_for() -> None:
    made = changes.empty_map("test", ["east"])
    for number in range(3):
        made = changes.put_node(made, node(f"node-{number}", host="one"))
    wanted = changes.Wanted(1, GIB, 3, (1,))
    with pytest.raises(ChangeRefused):
        changes.create_partitions(made, wanted)
    made = changes.create_partitions(made, replace(wanted, allow_shared_hosts=True))
    assert len(made.partitions[1].replicas) == 3


def test_the_last_serving_replica_never_goes() -> None:
    made = two_by_three()
    names = [one.node for one in made.replicas_in(1, 1)]
    for name in names[:2]:
        made = changes.remove_replica(made, 1, name)
    with pytest.raises(ChangeRefused, match="only serving replica of partition 1 in its datacentre"):
        changes.remove_replica(made, 1, names[2])
    with pytest.raises(ChangeRefused, match="datacentre"):
        changes.leave(made, 1, names[2])
    made = changes.remove_replica(made, 1, names[2], is_forced=True)
    for one in made.replicas_in(1, 2)[:2]:
        made = changes.remove_replica(made, 1, one.node)
    (last,) = made.partitions[1].replicas
    with pytest.raises(ChangeRefused, match="only serving replica"):
        changes.remove_replica(made, 1, last.node, is_forced=True)
    with pytest.raises(ChangeRefused, match="only serving replica"):
        changes.rejoin(made, last.node, {1: b"i" * 16})


def test_a_replica_joins_before_it_serves_and_each_step_raises_the_membership() -> None:
    made = changes.put_node(two_by_three(), node("node-9"))
    seen = [made.partitions[1].membership]
    new = []
    with pytest.raises(ChangeRefused, match="already"):
        changes.add_replica(made, 1, made.partitions[1].replicas[0].node)
    steps: list[changes.Change] = [
        lambda old: changes.add_replica(old, 1, "node-9"),
        lambda old: changes.serve(old, 1, "node-9"),
        lambda old: changes.leave(old, 1, "node-9"),
        lambda old: changes.remove_replica(old, 1, "node-9"),
    ]
    for step in steps:
        made = step(made)
        seen.append(made.partitions[1].membership)
        new.append([one.node for one in made.partitions[1].replicas if one.is_new])
    assert seen == sorted(set(seen))
    assert new == [["node-9"], [], [], []], "only before it serves for the first time"
    assert "node-9" not in [one.node for one in made.partitions[1].replicas]
    assert made.partitions[2].membership == seen[0]


def test_an_emptied_replica_joins_again_with_its_new_incarnation() -> None:
    made = two_by_three()
    name = made.partitions[1].replicas[0].node
    made = changes.vouch(made, name, {1: b"a" * 16})
    membership = made.partitions[1].membership
    assert changes.vouch(made, name, {1: b"b" * 16}) is made
    made = changes.rejoin(made, name, {1: b"b" * 16})
    fresh = made.partitions[1].replicas[0]
    assert (fresh.state, fresh.incarnation, fresh.is_new) == (ReplicaState.JOINING, b"b" * 16, False)
    assert made.partitions[1].membership > membership


def test_nodes_go_only_when_they_hold_nothing_and_never_change_the_datacentre() -> None:
    made = two_by_three()
    with pytest.raises(ChangeRefused, match="holds 4 replicas"):
        changes.remove_node(made, "node-0")
    with pytest.raises(ChangeRefused, match="datacentre"):
        changes.put_node(made, replace(made.nodes["node-0"], datacentre=2))
    with pytest.raises(ChangeRefused, match="address of node-1"):
        changes.put_node(made, replace(made.nodes["node-0"], host="node-1", port=6001))
    with pytest.raises(ChangeRefused, match="holds replicas"):
        changes.put_node(made, replace(made.nodes["node-0"], disks=(Disk("/other", GIB),)))
    moved = changes.put_node(made, replace(made.nodes["node-0"], host="elsewhere"))
    assert moved.nodes["node-0"].host == "elsewhere"
    assert changes.put_node(made, made.nodes["node-0"]) is made
    added = changes.put_node(made, node("node-9"))
    assert changes.remove_node(added, "node-9").nodes == made.nodes


def test_sealing_changes_no_membership() -> None:
    made = two_by_three()
    sealed = changes.seal(made, [1, 2], is_sealed=True)
    assert sealed.writable_partitions(1) == (3, 4)
    assert sealed.partitions[1].membership == made.partitions[1].membership
    assert changes.seal(sealed, [1], is_sealed=True) is sealed
    with pytest.raises(ChangeRefused, match="no partition 77"):
        changes.seal(made, [77], is_sealed=True)


def test_a_partition_is_retired_as_it_was_checked_and_nothing_brings_it_back() -> None:
    made = two_by_three()
    closed = changes.close(made, [1])
    assert closed.partitions[1].is_sealed
    membership = closed.partitions[1].membership
    assert membership == closed.version > made.version
    with pytest.raises(ChangeRefused, match="changed meanwhile"):
        changes.retire(made, {1: made.partitions[1].membership})
    with pytest.raises(ChangeRefused, match="changed meanwhile"):
        changes.retire(changes.close(closed, [1]), {1: membership})
    retired = changes.retire(closed, {1: membership})
    assert retired.retired == {1}
    assert 1 not in retired.in_use
    assert retired.partitions[1].replicas == ()
    assert 1 not in retired.writable_partitions(1)
    assert (
        changed(lay_out(closed), retired)[0].cluster_map == decode_file(encode_file(lay_out(retired)), "x").cluster_map
    )
    with pytest.raises(ChangeRefused, match="is retired"):
        changes.seal(retired, [1], is_sealed=False)
    with pytest.raises(ChangeRefused, match="is retired"):
        changes.add_replica(retired, 1, "node-0")
    with pytest.raises(ChangeRefused, match="is retired"):
        changes.close(retired, [1])
    last = max(retired.partitions)
    again = changes.retire(changes.close(retired, [last]), {last: retired.version + 1})
    grown = changes.create_partitions(again, changes.Wanted(1, GIB, 1, (1,)))
    assert max(grown.partitions) == last + 1, "a number is never given out again"
    assert changes.retire(made, {}) is made
    assert changes.close(made, []) is made


# --- pieces ----------------------------------------------------------------------------------------------------


def test_a_map_comes_back_from_its_pieces_and_from_a_file() -> None:
    made = changes.vouch(two_by_three(), "node-0", {1: bytes(range(16))})
    made = changes.add_replica(changes.put_node(made, node("node-9")), 1, "node-9")
    layout = lay_out(made)
    read = put_together(decode_head(layout.pieces["head"]), layout.pieces)
    assert read is not None
    assert read.cluster_map == made
    assert decode_file(encode_file(layout), "f").cluster_map == made


def test_any_flipped_byte_of_the_file_is_noticed() -> None:
    data = encode_file(lay_out(two_by_three()))
    seeded = random.Random(1)
    for _ in range(300):
        damaged = bytearray(data)
        damaged[seeded.randrange(len(data))] ^= 1 << seeded.randrange(8)
        with pytest.raises(DirectoryUnusable):
            decode_file(bytes(damaged), "f")


@pytest.mark.parametrize("data", [b"", b"x", b"ambry-layout 1\n{}", b"ambry-layout 2\n{}", b"ambry-layout 1\n[1]"])
def test_what_is_no_head_is_refused(data: bytes) -> None:
    with pytest.raises(RegistryUnavailable):
        decode_head(data)


def test_a_piece_of_another_version_is_not_mixed_in() -> None:
    first = lay_out(two_by_three())
    second, names = changed(first, changes.seal(first.cluster_map, [1], is_sealed=True))
    assert names == {piece_of(1)}
    assert put_together(first.head, second.pieces) is None
    assert put_together(second.head, second.pieces, first) is not None


def some_change(old: ClusterMap, seeded: random.Random, step: int) -> ClusterMap:
    number, name = seeded.randrange(1, 25), f"node-{seeded.randrange(8)}"
    match seeded.randrange(6):
        case 0:
            return changes.seal(old, [number], is_sealed=not old.partitions[number].is_sealed)
        case 1:
            return changes.add_replica(old, number, name)
        case 2:
            return changes.remove_replica(old, number, name)
        case 3:
            return changes.leave(old, number, name)
        case 4:
            return changes.serve(old, number, name)
        case _:
            return changes.put_node(old, node(f"node-{6 + step % 2}", host=f"h{step}"))


def test_any_walk_of_changes_read_piece_by_piece_is_the_same_map() -> None:
    """Readers that follow every change, and one that reads now and then, see what a whole reading shows."""
    seeded = random.Random(5)
    layout = lay_out(changes.create_partitions(two_by_three(), replace(WANTED, count=20)))
    follower = seldom = layout
    for step in range(300):
        try:
            new_map = some_change(layout.cluster_map, seeded, step)
        except AmbryError:
            continue
        if new_map is layout.cluster_map:
            continue
        layout, _ = changed(layout, new_map)
        followed = put_together(layout.head, layout.pieces, follower)
        assert followed is not None
        follower = followed
        assert follower.cluster_map == new_map
        if step % 17 == 0:
            read = put_together(layout.head, layout.pieces, seldom)
            assert read is not None
            seldom = read
            assert seldom.cluster_map == new_map
        for partition in new_map.partitions.values():
            assert any(one.state is ReplicaState.SERVING for one in partition.replicas)
            assert len({one.node for one in partition.replicas}) == len(partition.replicas)
    assert layout.head.version > 100
