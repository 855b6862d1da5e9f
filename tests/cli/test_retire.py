"""Partitions in which nothing lives go as a whole, over real processes: their bytes go, their ids lead nowhere."""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import click.testing
import pytest

from ambry.blob.blob_id import BlobId, Kind, binary_from_text, new_unique, parse_binary, text_from_binary
from ambry.blob.properties import Properties, encode_properties
from ambry.blob.requests import Change
from ambry.blob.state import BlobState
from ambry.cli.main import main
from ambry.cli.ports import free_port
from ambry.clock import SystemClock
from ambry.cluster.embedded import EmbeddedRegistry, decode_map, encode_map
from ambry.cluster.map import ClusterMap, Partition
from ambry.config import StorageSettings
from ambry.datanode.upkeep import Upkeep
from ambry.limits import KIB
from ambry.storage.real_disk import RealDisk
from ambry.storage.recovery import open_store
from ambry.storage.rocks_index import RocksIndexSource
from tests.cli.processes import SECRET, ambry, ask, get, put, serving
from tests.storage.engine import body_of, update
from tests.storage.engine import put as put_request
from tests.zookeeper_server import own_zookeeper

pytestmark = pytest.mark.timeout(300)

DAY_MS: Final = 86_400_000
SPENT: Final = 1
FULL: Final = 2
CAPACITY: Final = 64 * KIB


def until(holds: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    give_up_at = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < give_up_at, what
        time.sleep(0.05)


def new_id(partition: int, number: int) -> bytes:
    unique = new_unique(1_700_000_000_000 + number, number.to_bytes(10, "big"))
    return BlobId(Kind.SIMPLE, 1, 0, 0, partition, unique).binary()


def partition_of(blob_id: str) -> int:
    return parse_binary(binary_from_text(blob_id.encode())).partition


# --- ambry serve -----------------------------------------------------------------------------------------------


def shrink(data: Path, count: int) -> str:
    """Make a data directory whose partitions are so small that a hundred tombstones are too many; its disk's folder."""
    EmbeddedRegistry.open(data, count).close()
    path = data / "registry/cluster-map"
    made = decode_map(path.read_bytes(), path)
    small = {
        number: Partition(number, CAPACITY, False, 1, one.replicas) if number < count else one
        for number, one in made.partitions.items()
    }
    path.write_bytes(encode_map(ClusterMap(made.fingerprint, 1, made.datacentres, made.nodes, small)))
    return str(data / "disk0")


def fill(folder: str, live: bytes) -> None:
    """Partition SPENT gets blobs that were all deleted long ago; FULL the same, and one that lives."""
    settings = StorageSettings()
    disk = RealDisk(folder)
    disk.lock()
    index = RocksIndexSource(disk.root / "index", settings.index_cache_bytes, settings.index_memtable_bytes)
    clock = SystemClock()
    store, _ = open_store(
        disk,
        index,
        settings=settings,
        clock=clock,
        random_bytes=os.urandom,
        partitions={SPENT: CAPACITY, FULL: CAPACITY},
    )
    for partition in (SPENT, FULL):
        store.commit([put_request(new_id(partition, n), body_of(n, 300)) for n in range(40)])
        store.commit([update(new_id(partition, n), Change.JOIN, BlobState(1, 0), time_ms=5) for n in range(40, 110)])
        store.commit([update(new_id(partition, n), Change.DELETE, time_ms=5) for n in range(40)])
    store.commit([put_request(live, body_of(999, 300), properties=encode_properties(Properties(size=300)))])
    store.checkpoint()
    upkeep = Upkeep(store, "disk", settings, clock)
    while upkeep.step():
        store.checkpoint()
    upkeep.step()
    assert upkeep.sealed_for_good.keys() == {SPENT, FULL}
    assert upkeep.spent == {SPENT}
    store.close()
    disk.unlock()


def test_serve_retires_a_spent_partition_and_its_ids_lead_nowhere(tmp_path: Path) -> None:
    data = tmp_path / "data"
    live = new_id(FULL, 999)
    folder = shrink(data, 3)
    fill(folder, live)
    spent = text_from_binary(new_id(SPENT, 7))
    kept = text_from_binary(live)
    with serving(data, "--workers", "2") as (process, url):
        process.wait_for("the replica of a retired partition is gone")
        assert not (data / f"disk0/partitions/{SPENT}").exists()
        assert (data / f"disk0/partitions/{FULL}").exists()
        for _ in range(8):
            # By both workers: one of them has the datanode, and neither has the newest map.
            status, _, body = ask("GET", f"{url}/{spent}")
            assert (status, b"blob_not_found" in body) == (404, True)
            assert ask("DELETE", f"{url}/{spent}")[0] == 404
            assert get(url, kept) == body_of(999, 300)
            # Neither the retired partition nor the one that is full of tombstones takes it.
            assert get(url, put(url, b"goes elsewhere")) == b"goes elsewhere"
        assert process.end() == 0
    path = data / "registry/cluster-map"
    found = decode_map(path.read_bytes(), path)
    assert found.retired == {SPENT}
    with serving(data, "--partitions", "4") as (process, url):
        assert ask("GET", f"{url}/{spent}")[0] == 404
        assert ask("PUT", f"{url}/{spent}/undelete")[0] == 404
        assert get(url, kept) == body_of(999, 300)
        assert sorted(one.name for one in (data / "disk0/partitions").iterdir()) == ["2", "3", "4"]
        assert process.end() == 0


# --- a cluster -------------------------------------------------------------------------------------------------

DATANODE = """
zookeeper = "{hosts}"
state_folder = "state-{name}"
node = "{name}"
datacentre = "here"
host = "127.0.0.1"
port = {port}
admin_port = 0
[[disk]]
path = "disk-{name}"
capacity_bytes = "40 GiB"
[storage]
deleted_retention_ms = "1 ms"
compaction_garbage_percent = 90
scrub_interval_ms = "1 s"
[log]
format = "json"
"""
FRONTEND = """
zookeeper = "{hosts}"
state_folder = "state-frontend"
datacentre = "here"
port = 0
[log]
format = "json"
"""


@pytest.fixture
def zookeeper() -> Iterator[str]:
    with own_zookeeper() as server:
        yield server.hosts


def operate(hosts: str, *arguments: str, status: int = 0) -> str:
    environment = {"AMBRY_ZOOKEEPER": hosts, "AMBRY_CLUSTER_SECRET": SECRET}
    result = click.testing.CliRunner().invoke(main, arguments, env=environment)
    assert result.exit_code == status, f"{arguments}: {result.exit_code}: {result.output}"
    return result.output


def logs_have(folder: Path, partition: int, body: bytes) -> int:
    """On how many disks a log of the partition has these bytes."""
    found = 0
    for disk in folder.glob("disk-*"):
        for path in disk.rglob(f"partitions/{partition}/*.log"):
            try:
                found += body in path.read_bytes()
            except FileNotFoundError:
                continue
    return found


def is_sealed(hosts: str, number: int) -> bool:
    return bool(json.loads(operate(hosts, "partition", "show", str(number), "--json"))["is_sealed"])


def fill_with_tombstones(hosts: str, url: str, create: tuple[str, ...]) -> None:
    """A small partition is sealed in the map by its datanodes, and is retired when its blobs are reclaimed."""
    operate(hosts, "partition", "create", *("--count", "1", *create[2:4], "--capacity", "64KiB", create[-1]))
    operate(hosts, "partition", "seal", "2,3")

    def takes_puts() -> bool:
        status, headers, _ = ask("POST", f"{url}/", b"small")
        return status == 201 and partition_of(headers["location"].lstrip("/")) == 4

    until(takes_puts, "the small partition takes no puts")
    for blob_id in [put(url, b"small") for _ in range(90)]:
        assert ask("DELETE", f"{url}/{blob_id}")[0] == 202
    until(lambda: is_sealed(hosts, 4), "its datanodes do not seal it")
    assert ask("POST", f"{url}/", b"x")[0] in {503, 507}, "no partition takes puts"


def test_a_partition_of_a_cluster_is_retired_when_all_replicas_agree(tmp_path: Path, zookeeper: str) -> None:
    names = ("one", "two")
    operate(zookeeper, "cluster", "init", "--datacentre", "here")
    for name in names:
        text = DATANODE.format(hosts=zookeeper, name=name, port=free_port())
        (tmp_path / f"{name}.toml").write_text(text)
    (tmp_path / "frontend.toml").write_text(FRONTEND.format(hosts=zookeeper))
    with (
        ambry("datanode", "--config", str(tmp_path / "one.toml"), cwd=tmp_path) as one,
        ambry("datanode", "--config", str(tmp_path / "two.toml"), cwd=tmp_path) as two,
    ):
        for node in (one, two):
            node.wait_for("registered, and waiting to be added")
        for name in names:
            operate(zookeeper, "node", "add", name)
        for node in (one, two):
            node.wait_for("ready")
        create = ("--count", "2", "--replicas", "2", "--capacity", "8GiB", "--allow-shared-hosts")
        operate(zookeeper, "partition", "create", *create)
        with ambry("frontend", "--config", str(tmp_path / "frontend.toml"), cwd=tmp_path) as front:
            url = f"http://127.0.0.1:{front.wait_for('ready')['port']}"
            bodies = {put(url, body): body for body in (os.urandom(3000) for _ in range(24))}
            ids = [one for one in bodies if partition_of(one) == 1]
            others = [one for one in bodies if partition_of(one) == 2]
            assert ids and others
            until(lambda: logs_have(tmp_path, 1, bodies[ids[0]]) == 2, "the logs are not written")
            assert "blobs live in it" in operate(zookeeper, "partition", "retire", "1", status=1)
            assert all(get(url, one) == body for one, body in bodies.items()), "nothing was lost"
            assert partition_of(put(url, b"1 is sealed")) == 2
            for blob_id in ids:
                assert ask("DELETE", f"{url}/{blob_id}")[0] == 202
            assert ask("GET", f"{url}/{ids[0]}")[0] == 410
            until(lambda: not any(logs_have(tmp_path, 1, bodies[one]) for one in ids), "what is dead is not reclaimed")
            assert "retired" in operate(zookeeper, "partition", "retire", "1", "--dry-run")
            operate(zookeeper, "partition", "retire", "1")
            until(
                lambda: not any((tmp_path / f"disk-{name}/partitions/1").exists() for name in names),
                "the replicas are not gone",
            )
            assert ask("GET", f"{url}/{ids[0]}")[0] == 404
            assert ask("DELETE", f"{url}/{ids[0]}")[0] == 404
            assert all(get(url, one) == bodies[one] for one in others)
            assert partition_of(put(url, b"to the other one")) == 2
            assert "is retired" in operate(zookeeper, "partition", "unseal", "1", status=1)
            assert "is retired" in operate(zookeeper, "replica", "add", "1", "one", status=1)
            operate(zookeeper, "partition", "unseal", "all")
            operate(zookeeper, "cluster", "verify")
            listed = json.loads(operate(zookeeper, "partition", "list", "--json"))
            assert [row["is_retired"] for row in listed] == [True, False]
            operate(zookeeper, "partition", "create", *("--count", "1", *create[2:]))
            assert len(json.loads(operate(zookeeper, "partition", "list", "--json"))) == 3, (
                "its number is not given again"
            )
            fill_with_tombstones(zookeeper, url, create)
            assert front.end() == 0
        assert one.end() == 0
        assert two.end() == 0
