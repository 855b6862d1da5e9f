"""A map from a TOML file: what is written is what is placed, and a map with a mistake never starts anything."""

from pathlib import Path

import pytest

from ambry.cluster.map import ClusterMap, Datacentre, Disk, Replica, ReplicaState
from ambry.cluster.static_map import load_static_map
from ambry.errors import BadConfiguration
from ambry.limits import GIB

EXAMPLE = Path(__file__).parents[2] / "config" / "cluster.toml"

TWO_NODES = """\
fingerprint = "test"
version = 3

[[datacentre]]
number = 1
name = "here"

[[node]]
name = "a"
datacentre = "here"
rack = "r1"
host = "10.0.0.1"
port = 6667
[[node.disk]]
path = "/disks/0"
capacity_bytes = "10 GiB"
[[node.disk]]
path = "/disks/1"
capacity_bytes = "10 GiB"

[[node]]
name = "b"
datacentre = "here"
rack = "r2"
host = "10.0.0.2"
port = 6667
[[node.disk]]
path = "/disks/0"
capacity_bytes = "20 GiB"

[[partitions]]
numbers = "1-4, 9"
capacity_bytes = "1 GiB"
[[partitions.replica]]
node = "a"
[[partitions.replica]]
node = "b"

[[partitions]]
numbers = "20"
capacity_bytes = "1 GiB"
is_sealed = true
membership = 7
[[partitions.replica]]
node = "a"
disk = "/disks/1"
state = "joining"
"""


def load(folder: Path, text: str) -> ClusterMap:
    path = folder / "cluster.toml"
    path.write_text(text)
    return load_static_map(path)


def test_a_file_becomes_a_map(tmp_path: Path) -> None:
    cluster_map = load(tmp_path, TWO_NODES)
    assert (cluster_map.fingerprint, cluster_map.version) == ("test", 3)
    assert cluster_map.datacentres == {1: Datacentre(1, "here")}
    assert cluster_map.nodes["a"].disks == (Disk("/disks/0", 10 * GIB), Disk("/disks/1", 10 * GIB))
    assert (cluster_map.nodes["b"].rack, cluster_map.nodes["b"].host) == ("r2", "10.0.0.2")
    assert sorted(cluster_map.partitions) == [1, 2, 3, 4, 9, 20]
    assert cluster_map.writable_partitions(1) == (1, 2, 3, 4, 9)
    assert cluster_map.partitions[20].membership == 7
    assert cluster_map.partitions[20].replicas == (Replica("a", "/disks/1", ReplicaState.JOINING),)


def test_partitions_are_dealt_out_over_the_disks_of_a_node(tmp_path: Path) -> None:
    cluster_map = load(tmp_path, TWO_NODES)
    disks = {number: cluster_map.partitions[number].replicas[0].disk_path for number in (1, 2, 3, 4, 9)}
    assert disks == {1: "/disks/1", 2: "/disks/0", 3: "/disks/1", 4: "/disks/0", 9: "/disks/1"}


def test_adding_partitions_moves_none(tmp_path: Path) -> None:
    before = load(tmp_path, TWO_NODES)
    after = load(tmp_path, TWO_NODES.replace('"1-4, 9"', '"0-9"'))
    for number, partition in before.partitions.items():
        assert after.partitions[number] == partition


@pytest.mark.parametrize(
    ("change", "line", "problem"),
    [
        (('fingerprint = "test"', 'fingerprint = "a b"'), 1, "fingerprint: must be 1 to 64 letters"),
        (("version = 3", "version = 0"), 2, "version: must be from 1"),
        (("number = 1", "number = 70000"), 5, "datacentre[0].number: must be from 1 to 65535"),
        (('datacentre = "here"', 'datacentre = "there"'), 10, "node[0].datacentre: no datacentre 'there'"),
        (('name = "b"', 'name = "a"'), 22, "node[1].name: node 'a' is there already"),
        (("10.0.0.2", "10.0.0.1"), 26, "node[1].port: 10.0.0.1:6667 is the address of another node"),
        (("port = 6667", "port = 0"), 13, "node[0].port: others must know the port"),
        (("/disks/1", "/disks/0"), 18, "node[0].disk[1].path: /disks/0 is there already"),
        (('"1-4, 9"', '"1-4, 4"'), 32, "partitions[0].numbers: partition 4 is there already"),
        (('"1-4, 9"', '"4-1"'), 32, "numbers go up"),
        (('"1-4, 9"', '"1..4"'), 32, "'1..4' is not a range"),
        (('"1-4, 9"', '"0-100000"'), 32, "more than 100000 partitions"),
        (('"1-4, 9"', '"4294967295-4294967296"'), 32, "to 4294967295 at most"),
        (('numbers = "20"', 'numbers = "9"'), 40, "partitions[1].numbers: partition 9 is there already"),
        (('node = "b"', 'node = "c"'), 37, "partitions[0].replica[1].node: no node 'c'"),
        (('node = "b"', 'node = "a"'), 37, "two replicas on node 'a'"),
        (('disk = "/disks/1"', 'disk = "/disks/2"'), 46, "node 'a' has no disk /disks/2"),
        (('state = "joining"', 'state = "away"'), 47, "must be one of joining, serving, leaving"),
        (('capacity_bytes = "10 GiB"', 'capacity_bytes = "1 GiB"'), 16, "are placed on a disk of 1073741824"),
        (('rack = "r1"', 'shelf = "r1"'), 11, "node[0].shelf: unknown key"),
    ],
)
def test_a_mistake_is_named_with_file_line_and_key(
    tmp_path: Path, change: tuple[str, str], line: int, problem: str
) -> None:
    assert change[0] in TWO_NODES
    with pytest.raises(BadConfiguration) as caught:
        load(tmp_path, TWO_NODES.replace(*change, 1))
    assert str(caught.value).startswith(f"{tmp_path}/cluster.toml:{line}: ")
    assert problem in str(caught.value)


def test_two_replicas_on_one_host_must_be_asked_for(tmp_path: Path) -> None:
    shared = TWO_NODES.replace("10.0.0.2", "10.0.0.1").replace('rack = "r2"', 'rack = "r1"')
    shared = shared.replace(
        'port = 6667\n[[node.disk]]\npath = "/disks/0"\ncapacity_bytes = "20',
        'port = 6668\n[[node.disk]]\npath = "/disks/2"\ncapacity_bytes = "20',
    )
    with pytest.raises(BadConfiguration, match="fail together"):
        load(tmp_path, shared)
    cluster_map = load(tmp_path, shared.replace("version = 3", "version = 3\nallow_shared_hosts = true"))
    assert len(cluster_map.replicas_in(1, 1)) == 2


def test_the_example_in_config_is_a_map() -> None:
    cluster_map = load_static_map(EXAMPLE)
    assert cluster_map.writable_partitions(1)
