"""A cluster of real processes among others of a newer version: what they add to frames, to the layout and to what
datanodes say of themselves is passed over. And old maps: of processes, which are told so, and of a ZooKeeper.
"""

import json
import signal
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import pytest

from ambry.cli.dev_cluster import Plan, Running, answers, running
from ambry.cli.operator import layout_at, registry_at
from ambry.cluster import changes
from ambry.cluster.layout import HEAD, decode_head, encode_head
from ambry.cluster.zookeeper import ROOT
from ambry.protocol.frame import FrameDecoder, encode_frame
from ambry.protocol.messages import MessageType
from bench.cluster_files import WIRE_HOST, operate, wires_of
from tests.cli.processes import ask, get, put
from tests.zookeeper_server import install

pytestmark = pytest.mark.timeout(200)

_SHAKING = (MessageType.HELLO, MessageType.PROOF)
"""Covered by the proof: nobody between two processes can add to them."""


MAP_FILES = {"datanode-1-1": "datanode-1-1/member/cluster-map", "frontend-1-1": "frontend-1-1/cluster-map"}
"""Who begins without ZooKeeper, and the last map that it has."""


class Newer:
    """Adds to every message what no version knows yet."""

    seen = 0

    def __init__(self) -> None:
        self._decoder = FrameDecoder()
        self._decoder.raise_limits()

    def __call__(self, piece: bytes) -> bytes:
        """The frames that are whole, as a newer version would have sent them."""
        self._decoder.feed(piece)
        return b"".join(self._newer(*frame) for frame in self._frames())

    def _frames(self) -> Iterator[tuple[int, int, bytes, bytes]]:
        while frames := self._decoder.frames(64):
            yield from ((one.type, one.request_id, one.header, bytes(one.body)) for one in frames)

    def _newer(self, type_: int, request_id: int, header: bytes, body: bytes) -> bytes:
        if type_ not in _SHAKING:
            Newer.seen += 1
            header = msgpack.packb([*msgpack.unpackb(header, strict_map_key=False), "new", {"more": [1]}])
        return encode_frame(type_, request_id, header, len(body)) + body


@pytest.fixture(scope="module")
def cluster(module_folder: Path) -> Iterator[Running]:
    install()
    plan = Plan(module_folder, datacentres=1, datanodes=3, frontends=2, partitions=2, replicas=3, node_host=WIRE_HOST)
    with wires_of(plan, through=Newer).running(), running(plan) as made:
        yield made


def within(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    give_up_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_at, "not in time"
        time.sleep(0.1)


def kill(cluster: Running, *names: str) -> None:
    for name in names:
        cluster.processes[name].send_signal(signal.SIGKILL)
        cluster.processes[name].wait(30)


def start(cluster: Running, *names: str) -> None:
    for name in names:
        cluster.start(name, name.partition("-")[0])
    for name in names:
        port = cluster.ports[name.replace("datanode", "admin")]
        within(partial(answers, f"http://127.0.0.1:{port}/healthCheck"))


def works(cluster: Running) -> None:
    """Every operation through every frontend, and the replicas are equal."""
    for url in cluster.urls.values():
        blobs = {put(url, body): body for body in (b"", b"small", b"large" * 300_000)}
        gone = put(url, b"gone")
        assert ask("DELETE", f"{url}/{gone}")[0] == 202
        for other in cluster.urls.values():
            # Of the replicas that a delete has not reached yet, a plain read may ask one.
            assert ask("GET", f"{other}/{gone}", headers={"x-ambry-read": "quorum"})[0] == 410
            assert {blob_id: get(other, blob_id) for blob_id in blobs} == blobs
    operate(cluster, "wait", "--healthy", "--converged", "--timeout", "60")
    assert json.loads(operate(cluster, "cluster", "verify", "--bytes", "--json"))["is_equal"]


def test_what_newer_processes_add_to_frames_is_passed_over(cluster: Running) -> None:
    # A replica that has to bring everything asks its peers in all the ways there are.
    node = operate(cluster, "partition", "list", "--json")
    works(cluster)
    name = json.loads(node)[0]["replicas"][0]["node"]
    operate(cluster, "replica", "repair", "1", name)
    operate(cluster, "partition", "check", "all")
    assert Newer.seen > 100


def newer_piece(data: bytes, version: int) -> bytes:
    """A piece of the layout as a newer version would write it: more keys, more elements."""
    line, _, packed = data.partition(b"\n")
    content: dict[str, Any] = json.loads(zlib.decompress(packed))
    content.update(version=version, newer={"more": 1})
    for name in ("datacentres", "disks"):
        content[name] = [[*row, "newer"] for row in content.get(name, [])]
    for node in content.get("nodes", []):
        node.update(newer="x", disks=[[*disk, {"kind": "fast"}] for disk in node["disks"]])
    content["partitions"] = [
        [*row[:4], [[*replica, "newer"] for replica in row[4]], *row[5:], {"class": 1}]
        for row in content.get("partitions", [])
    ]
    return line + b"\n" + zlib.compress(json.dumps(content).encode())


def test_what_a_newer_process_adds_to_the_layout_and_of_itself_is_passed_over(cluster: Running) -> None:
    before = layout_at(cluster.zookeeper.hosts)
    version = before.head.version + 1
    with registry_at(cluster.zookeeper.hosts) as registry:
        client = registry._client
        for name in before.head.pieces:
            client.set(f"{ROOT}/layout/{name}", newer_piece(before.pieces[name], version))
        head = decode_head(before.pieces[HEAD])
        first, _, said = encode_head(
            type(head)(head.fingerprint, version, dict.fromkeys(head.pieces, version))
        ).partition(b"\n")
        client.set(f"{ROOT}/layout", first + b"\n" + json.dumps({**json.loads(said), "newer": [1]}).encode())
        for name, record in registry.nodes().items():
            disks = [[*disk, {"kind": "fast"}] for disk in record["disks"]]
            client.set(f"{ROOT}/nodes/{name}", json.dumps({**record, "disks": disks, "newer": True}).encode())
        within(lambda: all(one["map_version"] >= version for one in registry.live().values()))
    found = layout_at(cluster.zookeeper.hosts).cluster_map
    assert found.version >= version
    assert {number: one.replicas for number, one in found.partitions.items()} == {
        number: one.replicas for number, one in before.cluster_map.partitions.items()
    }
    assert [row["state"] for row in json.loads(operate(cluster, "node", "list", "--json"))] == ["up"] * 3
    # The last map on the disk of a process has these pieces, too, and it begins with them.
    cluster.zookeeper.stop()
    try:
        kill(cluster, *MAP_FILES)
        start(cluster, *MAP_FILES)
        blob_id = put(cluster.urls["frontend-1-1"], b"under a newer map")
        assert get(cluster.urls["frontend-1-2"], blob_id) == b"under a newer map"
    finally:
        cluster.start_zookeeper()
    # And a change by this version is made on top of it.
    operate(cluster, "partition", "seal", "1")
    operate(cluster, "partition", "unseal", "1")
    works(cluster)


def test_processes_that_begin_with_an_old_map_serve_under_it_and_are_told_of_the_newer_one(cluster: Running) -> None:
    url, other = cluster.urls["frontend-1-1"], cluster.urls["frontend-1-2"]
    before = put(url, b"before")
    kept = {name: (cluster.plan.folder / path).read_bytes() for name, path in MAP_FILES.items()}
    kill(cluster, *MAP_FILES)
    # While they are away the membership of all partitions changes: replicas of one datanode are removed.
    with registry_at(cluster.zookeeper.hosts) as registry:
        for number in (1, 2):
            registry.apply(partial(changes.remove_replica, number=number, node="datanode-1-3"), "remove", "test")
        newest = registry.read().head.version
        within(lambda: registry.live().get("datanode-1-2", {}).get("map_version", 0) >= newest)
    assert ask("POST", f"{other}/", b"one of two is away")[0] == 503
    cluster.zookeeper.stop()
    try:
        for name, path in MAP_FILES.items():
            (cluster.plan.folder / path).write_bytes(kept[name])
        start(cluster, *MAP_FILES)
        # The old frontend still lists three replicas, of which two know better and refuse what it wants to change. It
        # can have no newer map, so nothing is acknowledged.
        assert ask("POST", f"{url}/", b"under an old map")[0] == 503
        assert get(url, before) == get(other, before) == b"before"
        # A newer frontend and a datanode with an old map get along: who chose the replicas knew more.
        young = put(other, b"young")
        assert get(other, young) == b"young"
    finally:
        cluster.start_zookeeper()
    within(lambda: ask("POST", f"{url}/", b"under the newest map")[0] == 201)
    assert ask("DELETE", f"{url}/{before}")[0] == 202
    assert ask("GET", f"{other}/{before}")[0] == 410
    works(cluster)


def test_an_old_copy_of_the_layout_is_adopted_by_nobody_changed_by_nobody_and_restored(cluster: Running) -> None:
    old = layout_at(cluster.zookeeper.hosts)
    for what in ("seal", "unseal", "seal"):
        operate(cluster, "partition", what, "2")
    newest = layout_at(cluster.zookeeper.hosts).head.version
    with registry_at(cluster.zookeeper.hosts) as registry:
        within(lambda: {one["map_version"] for one in registry.live().values()} == {newest})
        # What an ensemble has that was put back from a backup.
        for name, piece in old.pieces.items():
            registry._client.set(f"{ROOT}/layout{'' if name == HEAD else '/' + name}", piece)
    for command in (("partition", "seal", "1"), ("partition", "create", "--count", "1", "--capacity", "1GiB")):
        with pytest.raises(SystemExit, match="ambry cluster restore"):
            operate(cluster, *command)
    url = cluster.urls["frontend-1-1"]
    blob_id = put(url, b"goes on")
    assert layout_at(cluster.zookeeper.hosts).head == old.head
    operate(cluster, "cluster", "restore", "--dry-run")
    assert layout_at(cluster.zookeeper.hosts).head == old.head
    operate(cluster, "cluster", "restore")
    found = layout_at(cluster.zookeeper.hosts).cluster_map
    assert found.version > newest
    assert found.partitions[2].is_sealed
    with pytest.raises(SystemExit, match="nothing is to be restored"):
        operate(cluster, "cluster", "restore")
    operate(cluster, "partition", "unseal", "2")
    works(cluster)
    assert get(url, blob_id) == b"goes on"
