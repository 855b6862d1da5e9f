"""Who reads from whom, and how fast."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from ambry.cluster.map import ClusterMap, ReplicaState
from ambry.replication.pace import Pace
from ambry.replication.plan import Reach, own_partitions, pulls
from tests.replication.cluster import make_map

NODES = {"a1": 1, "a2": 1, "a3": 1, "b1": 2, "b2": 2, "b3": 2}
MAP: ClusterMap = make_map(NODES, dict.fromkeys(NODES, 1), partitions=3)
ALL = frozenset({1, 2, 3})


def test_every_replica_reads_its_datacentre_and_only_the_first_reads_the_other() -> None:
    assert own_partitions(MAP, "a1") == ALL
    assert pulls(MAP, "a1", Reach()) == dict.fromkeys(("a2", "a3", "b1", "b2", "b3"), ALL)
    assert pulls(MAP, "a2", Reach()) == dict.fromkeys(("a1", "a3"), ALL)


def test_the_next_one_takes_over_from_who_is_down_or_cut_off() -> None:
    assert pulls(MAP, "a2", Reach(frozenset({"a1"})))["b1"] == ALL
    reach = Reach(out_of_reach={"a1": frozenset({"b2"})})
    assert pulls(MAP, "a2", reach) == dict.fromkeys(("a1", "a3", "b2"), ALL)
    assert "b2" not in pulls(MAP, "a3", reach)


def test_a_replica_that_joins_leads_only_where_nobody_else_is() -> None:
    partition = MAP.partitions[1]
    joining = replace(partition.replicas[0], state=ReplicaState.JOINING)
    joined = replace(MAP, partitions={1: replace(partition, replicas=(joining, *partition.replicas[1:]))})
    assert set(pulls(joined, "a1", Reach())) == {"a2", "a3"}
    assert set(pulls(joined, "a2", Reach())) == {"a1", "a3", "b1", "b2", "b3"}
    assert "b1" in pulls(joined, "a1", Reach(frozenset({"a2", "a3"})))
    assert "a1" not in pulls(joined, "b1", Reach()), "nobody reads far away from a replica that joins"


def test_what_is_paused_is_not_read() -> None:
    assert pulls(MAP, "a1", Reach(), lambda partition: partition == 2)["b3"] == {1, 3}


@given(st.sets(st.sampled_from(sorted(NODES))))
def test_as_long_as_a_replica_is_up_somebody_reads_every_remote_one(down: set[str]) -> None:
    reach = Reach(frozenset(down))
    up = [node for node in ("a1", "a2", "a3") if node not in down]
    for remote in ("b1", "b2", "b3"):
        readers = [node for node in up if remote in pulls(MAP, node, replace(reach, down=reach.down - {node}))]
        assert readers == up[:1]


def test_a_pace_lets_a_second_through_at_once_and_then_its_rate() -> None:
    pace = Pace(1000)
    assert pace.wait_s(1000, 100.0) == 0.0
    assert pace.wait_s(500, 100.0) == 0.5
    assert pace.wait_s(500, 101.0) == 0.0
    assert Pace(0).wait_s(10**12, 0.0) == 0.0
