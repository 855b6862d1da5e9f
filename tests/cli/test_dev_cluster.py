"""A whole cluster of real processes and a real ZooKeeper: the operator's walk, while the data path goes on."""

import asyncio
import hashlib
import json
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click.testing
import pytest

from ambry.blob.blob_id import parse_text, text_from_binary
from ambry.blob.state import NEVER, BlobState
from ambry.cli.connections import Identity
from ambry.cli.dev_cluster import Plan, Running, running
from ambry.cli.main import main
from ambry.cli.operator import layout_at
from ambry.cli.replica_states import connected
from ambry.errors import NoSuchReplica, StaleMap
from ambry.protocol.datanode import Change, GetRequest, UpdateRequest
from bench.cluster_files import WIRE_HOST, host_of_wire_to_zookeeper, wires_of
from bench.wires import Wires
from tests.cli.processes import ask, get, put
from tests.prove.cluster_faults import Faults, names_by_pid
from tests.prove.histories import histories_of
from tests.replication.cluster import record
from tests.zookeeper_server import install

pytestmark = pytest.mark.timeout(280)


@pytest.fixture(scope="module")
def cluster(module_folder: Path) -> Iterator[Running]:
    install()
    plan = Plan(
        module_folder, datacentres=2, datanodes=4, frontends=1, partitions=3, replicas=3, node_host=WIRE_HOST,
        zookeeper_host=host_of_wire_to_zookeeper,
    )  # fmt: skip
    found: list[Running] = []
    between = wires_of(plan, lambda said: names_by_pid(found[0], said) if found else said)
    with between.running(), running(plan) as made:
        found.append(made)
        WIRES.append(between)
        yield made


WIRES: list[Wires] = []
"""Those before the datanodes of the cluster."""


def operate(cluster: Running, *arguments: str, status: int = 0) -> str:
    """Run an operator's command in this process; its output."""
    environment = {
        "AMBRY_ZOOKEEPER": cluster.zookeeper.hosts,
        "AMBRY_CLUSTER_SECRET": cluster.secret_file.read_text().strip(),
    }
    result = click.testing.CliRunner().invoke(main, arguments, env=environment, catch_exceptions=False)
    assert result.exit_code == status, f"{arguments}: {result.exit_code}: {result.output}"
    return result.stdout


def near(cluster: Running) -> str:
    return cluster.urls["frontend-1-1"]


def far(cluster: Running) -> str:
    return cluster.urls["frontend-2-1"]


def within(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    give_up_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_at, "not in time"
        time.sleep(0.1)


def put_some(cluster: Running, count: int, seed: int) -> dict[str, str]:
    seeded = random.Random(seed)
    bodies = [seeded.randbytes(seeded.choice([10, 5_000, 300_000])) for _ in range(count)]
    return {put(near(cluster), body): hashlib.sha256(body).hexdigest() for body in bodies}


def all_there(url: str, digests: dict[str, str]) -> bool:
    return all(hashlib.sha256(get(url, blob_id)).hexdigest() == digest for blob_id, digest in digests.items())


def settled(cluster: Running) -> None:
    operate(cluster, "wait", "--healthy", "--converged", "--timeout", "90")


def end(cluster: Running, name: str, number: signal.Signals) -> None:
    cluster.processes[name].send_signal(number)
    cluster.processes[name].wait(30)


def test_what_was_put_in_one_datacentre_is_read_in_the_other_and_verify_proves_it(cluster: Running) -> None:
    digests = put_some(cluster, 20, seed=1)
    assert ask("DELETE", f"{near(cluster)}/{put(near(cluster), b'gone')}")[0] in {200, 202}
    settled(cluster)
    assert all_there(far(cluster), digests)
    found = json.loads(operate(cluster, "cluster", "verify", "--json"))
    assert found["is_equal"]
    assert found["blobs_live"] == len(digests)
    assert found["blobs_deleted"] == 1
    blob_id = next(iter(digests))
    rows = json.loads(operate(cluster, "blob", "locate", blob_id, "--json"))
    assert len(rows) == 6
    assert {row["answer"] for row in rows} == {"here"}
    assert len({row["root"] for row in json.loads(operate(cluster, "blob", "verify", blob_id, "--json"))}) == 1
    operate(cluster, "partition", "compare", "all")
    operate(cluster, "partition", "check", "all")


def test_a_datanode_that_was_killed_comes_back_and_has_what_it_missed(cluster: Running) -> None:
    end(cluster, "datanode-1-2", signal.SIGKILL)
    digests = put_some(cluster, 10, seed=2)
    assert all_there(near(cluster), digests)
    within(lambda: json.loads(operate_any(cluster, "cluster", "status", "--json"))["datanodes_down"] == 1)
    cluster.start("datanode-1-2", "datanode")
    settled(cluster)
    assert all_there(far(cluster), digests)


def operate_any(cluster: Running, *arguments: str) -> str:
    environment = {"AMBRY_ZOOKEEPER": cluster.zookeeper.hosts}
    return click.testing.CliRunner().invoke(main, arguments, env=environment, catch_exceptions=False).stdout


def test_clients_of_a_cluster_in_trouble_are_told_nothing_that_may_never_happen(cluster: Running) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    figures = histories_of(
        cluster, lambda stopping: Faults(cluster, WIRES[0], random.Random(seed), (), stopping), seed, 600
    )
    assert figures["escaped"] == []
    assert figures["faults"]


def test_zookeeper_is_away_and_nobody_notices_but_changes_wait(cluster: Running) -> None:
    cluster.zookeeper.stop()
    try:
        digests = put_some(cluster, 10, seed=3)
        assert all_there(near(cluster), digests)
        # A process that starts meanwhile begins with the last map that it knows.
        end(cluster, "datanode-2-1", signal.SIGTERM)
        cluster.start("datanode-2-1", "datanode")
    finally:
        cluster.zookeeper.start()
    settled(cluster)
    assert all_there(far(cluster), digests)


def test_who_cannot_reach_zookeeper_for_longer_than_its_session_goes_on_with_the_last_map(cluster: Running) -> None:
    apart = ("datanode-1-1", "frontend-1-1")
    ways = [way for name in apart for way in ((name, "zookeeper"), ("zookeeper", name))]
    before = layout_at(cluster.zookeeper.hosts).head.version
    WIRES[0].cut(*ways)
    try:
        # ZooKeeper ends the session of the datanode, and both of them know that their map may be an old one.
        within(lambda: down(cluster) == ["datanode-1-1"])
        within(lambda: all(map_metrics(cluster, name)["ambry_map_is_current"] == 0 for name in apart))
        operate(cluster, "partition", "seal", "3")
        operate(cluster, "partition", "unseal", "3")
        within(lambda: map_metrics(cluster, "datanode-2-1")["ambry_map_version"] == before + 2)
        assert {map_metrics(cluster, name)["ambry_map_version"] for name in apart} == {before}
        digests = put_some(cluster, 10, seed=7)
        assert all_there(near(cluster), digests)
        within(lambda: all_there(far(cluster), digests))
    finally:
        WIRES[0].mend(*ways)
    settled(cluster)
    assert down(cluster) == []
    within(lambda: all(map_metrics(cluster, name)["ambry_map_version"] == before + 2 for name in apart))
    assert all_there(far(cluster), digests)


def down(cluster: Running) -> list[str]:
    rows = json.loads(operate(cluster, "node", "list", "--json"))
    return [row["name"] for row in rows if row["state"] == "down"]


def map_metrics(cluster: Running, name: str) -> dict[str, float]:
    """What a process says of its map."""
    port = cluster.ports[name.replace("datanode", "admin")]
    text = ask("GET", f"http://127.0.0.1:{port}/metrics")[2].decode()
    return {line.split()[0]: float(line.split()[1]) for line in text.splitlines() if line.startswith("ambry_map_")}


def test_a_partition_moves_and_requests_under_the_old_map_are_refused(cluster: Running) -> None:
    digests = put_some(cluster, 10, seed=5)
    settled(cluster)
    before = layout_at(cluster.zookeeper.hosts).cluster_map
    here = [one.node for one in before.replicas_in(1, 1)]
    (target,) = [name for name in before.nodes if name.startswith("datanode-1-") and name not in here]
    source, stays = here[:2]
    move = ("partition", "move", "1", "--from", source, "--to", target, "--allow-shared-hosts")
    assert "dry run" in operate(cluster, *move, "--dry-run")
    assert layout_at(cluster.zookeeper.hosts).head.version == before.version
    operate(cluster, *move)
    settled(cluster)
    operate(cluster, *move)
    after = layout_at(cluster.zookeeper.hosts).cluster_map
    assert {one.node for one in after.replicas_in(1, 1)} == {*here, target} - {source}
    settled(cluster)
    assert all_there(near(cluster), digests)
    blob_id = next((each for each in digests if parse_text(each).partition == 1), None) or ""
    asyncio.run(_is_fenced(cluster, source, stays, before.version, after.version, blob_id))


async def _is_fenced(cluster: Running, source: str, stays: str, old: int, new: int, blob_id: str) -> None:
    connections = await connected(layout_at(cluster.zookeeper.hosts).cluster_map, identity(cluster))
    deadline = asyncio.get_running_loop().time() + 30
    binary = parse_text(blob_id).binary() if blob_id else bytes(12) + (1).to_bytes(4, "big") + bytes(16)
    join = UpdateRequest(binary, Change.JOIN, BlobState(0, NEVER), 1)
    try:
        remote = connections.remote(stays)
        with pytest.raises(StaleMap):
            await remote.under(old).update(join, deadline)
        if blob_id:
            await remote.under(new).update(join, deadline)
        with pytest.raises(NoSuchReplica):
            await connections.datanodes[source].get(GetRequest(binary, 0, 1), deadline)
    finally:
        await connections.close()


def put_at(cluster: Running, partition: int, nodes: list[str]) -> str:
    """A new blob on some datanodes of the first datacentre only."""

    async def scenario() -> str:
        connections = await connected(layout_at(cluster.zookeeper.hosts).cluster_map, identity(cluster))
        deadline = asyncio.get_running_loop().time() + 30
        made = record(b"not everywhere", partition)
        try:
            for name in nodes:
                await connections.remote(name).put(made, deadline)
        finally:
            await connections.close()
        return text_from_binary(made.blob_id)

    return asyncio.run(scenario())


def identity(cluster: Running) -> Identity:
    return Identity("test", cluster.secret_file.read_text().strip().encode(), None)


def test_a_replica_moves_only_when_the_others_have_all_that_it_acknowledged(cluster: Running) -> None:
    settled(cluster)
    before = layout_at(cluster.zookeeper.hosts).cluster_map
    here = [one.node for one in before.replicas_in(2, 1)]
    (target,) = [name for name in before.nodes if name.startswith("datanode-1-") and name not in here]
    source, *stay = here
    move = ("partition", "move", "2", "--from", source, "--to", target, "--allow-shared-hosts")
    operate(cluster, *move)
    settled(cluster)
    for name in (*stay, target):
        operate(cluster, "replica", "pause", "2", name)
    blob_id = put_at(cluster, 2, [source])
    assert "1 blobs differ; run it again" in failing(cluster, *move, "--timeout", "3")
    states = {one.node: one.state for one in layout_at(cluster.zookeeper.hosts).cluster_map.replicas_in(2, 1)}
    assert states == {source: "leaving", **dict.fromkeys([*stay, target], "serving")}
    assert all_there(near(cluster), put_some(cluster, 10, seed=6))
    for name in (*stay, target):
        operate(cluster, "replica", "resume", "2", name)
    operate(cluster, *move)
    rows = json.loads(operate(cluster, "blob", "locate", blob_id, "--json"))
    assert {row["node"] for row in rows if row["node"].startswith("datanode-1-")} == {*stay, target}
    assert {row["answer"] for row in rows if row["node"] in {*stay, target}} == {"here"}


def test_a_replica_is_not_removed_while_those_that_stay_differ(cluster: Running) -> None:
    settled(cluster)
    goes, has, lacks = (one.node for one in layout_at(cluster.zookeeper.hosts).cluster_map.replicas_in(3, 1))
    operate(cluster, "replica", "pause", "3", lacks)
    blob_id = put_at(cluster, 3, [goes, has])
    remove = ("replica", "remove", "3", goes)
    assert "1 blobs differ; or force it" in failing(cluster, *remove, "--timeout", "1")
    assert goes in {one.node for one in layout_at(cluster.zookeeper.hosts).cluster_map.replicas_in(3, 1)}
    operate(cluster, "replica", "resume", "3", lacks)
    operate(cluster, *remove)
    rows = json.loads(operate(cluster, "blob", "locate", blob_id, "--json"))
    assert {row["node"]: row["answer"] for row in rows if row["node"] in {goes, has, lacks}} == {
        has: "here",
        lacks: "here",
    }


def failing(cluster: Running, *arguments: str) -> str:
    environment = {
        "AMBRY_ZOOKEEPER": cluster.zookeeper.hosts,
        "AMBRY_CLUSTER_SECRET": cluster.secret_file.read_text().strip(),
    }
    result = click.testing.CliRunner().invoke(main, arguments, env=environment)
    assert result.exit_code == 1
    return result.output


def test_nodes_partitions_and_replicas_are_listed_and_changed_by_command(cluster: Running) -> None:
    assert len(json.loads(operate(cluster, "node", "list", "--json"))) == 8
    assert json.loads(operate(cluster, "node", "show", "datanode-1-1", "--json"))["in_map"]
    assert "datanode-2-3" in operate(cluster, "node", "list")
    assert "holds" in failing(cluster, "node", "remove", "datanode-1-1")
    operate(
        cluster, "partition", "create", "--count", "2", "--capacity", "1GiB", "--replicas", "2", "--allow-shared-hosts"
    )
    operate(cluster, "partition", "seal", "1-2")
    rows = json.loads(operate(cluster, "partition", "list", "--json"))
    assert [row["is_sealed"] for row in rows] == [True, True, False, False, False]
    operate(cluster, "partition", "unseal", "all")
    assert json.loads(operate(cluster, "partition", "show", "5", "--json"))["number"] == 5
    settled(cluster)
    listed = len(json.loads(operate(cluster, "replica", "list", "--json")))
    node = json.loads(operate(cluster, "partition", "show", "5", "--json"))["replicas"][0]["node"]
    operate(cluster, "replica", "remove", "5", node)
    assert len(json.loads(operate(cluster, "replica", "list", "--json"))) == listed - 1
    operate(cluster, "replica", "add", "5", node, "--allow-shared-hosts")
    settled(cluster)
    assert "add a replica of 5" in operate(cluster, "cluster", "history")
    assert "partition 5" in operate(cluster, "replica", "remove", "5", node, "--dry-run")


def test_replication_can_be_paused_and_resumed(cluster: Running) -> None:
    operate(cluster, "replica", "pause", "all", "datanode-2-1")
    operate(cluster, "replica", "resume", "all", "datanode-2-1")
    assert "no datanode" in failing_with(cluster, "replica", "pause", "all", "nobody")


def failing_with(cluster: Running, *arguments: str) -> str:
    environment = {"AMBRY_ZOOKEEPER": cluster.zookeeper.hosts, "AMBRY_CLUSTER_SECRET": "x" * 32}
    result = click.testing.CliRunner().invoke(main, arguments, env=environment)
    assert result.exit_code == 1
    return result.output


def test_a_stranger_with_another_secret_gets_no_answer(cluster: Running) -> None:
    async def scenario() -> None:
        found = layout_at(cluster.zookeeper.hosts).cluster_map
        connections = await connected(found, Identity("stranger", b"another secret of some length", None))
        try:
            with pytest.raises(Exception, match=r"refused|secret|connect"):
                await connections.datanodes["datanode-1-1"].status(asyncio.get_running_loop().time() + 10)
        finally:
            await connections.close()

    asyncio.run(scenario())
