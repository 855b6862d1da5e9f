"""`ambry replica`: one replica of a partition. Adding and removing change the map; repair, pause and resume are asked
of the datanode that has it, and change nothing but what it does next.
"""

import asyncio
import time
from functools import partial
from typing import Final

import click

from ambry.cli.connections import Identity
from ambry.cli.credentials import Credentials, asks_datanodes
from ambry.cli.operator import (
    change_layout,
    dry_run_option,
    force_option,
    json_option,
    layout_at,
    parse_numbers,
    shared_hosts_option,
    show,
    show_json,
    show_table,
    timeout_option,
    zookeeper_option,
)
from ambry.cli.partition import REPLICA_COLUMNS, row_of
from ambry.cli.replica_states import ASK_S, Comparison, connected
from ambry.cli.verifying import compared, let_be_equal
from ambry.cluster import changes
from ambry.cluster.map import ClusterMap, ReplicaState
from ambry.cluster.quorum import witness_quorum
from ambry.errors import ChangeRefused
from ambry.protocol.replication import ReplicationAction, ReplicationRequest

_LOOK_S: Final = 0.5


@click.group()
def replica() -> None:
    """Replicas: list, add, remove, repair, pause, resume."""


@replica.command("list")
@click.option("--node", "name", help="Only those of one datanode.")
@zookeeper_option
@json_option
def list_replicas(name: str | None, hosts: str, as_json: bool) -> None:
    """All replicas."""
    found = layout_at(hosts).cluster_map
    rows = [
        {"partition": number, **one}
        for number in sorted(found.partitions)
        for one in row_of(found, number)["replicas"]
        if name in {None, one["node"]}
    ]
    columns = ("partition", *REPLICA_COLUMNS)
    show(
        as_json, lambda: rows, lambda: show_table("replicas", columns, [[row[key] for key in columns] for row in rows])
    )


@replica.command("add")
@click.argument("number", type=int)
@click.argument("node")
@click.option("--disk", help="One of the datanode's disks.  [default: the one with the most room]")
@shared_hosts_option
@zookeeper_option
@dry_run_option
@json_option
def add_replica(
    number: int,
    node: str,
    disk: str | None,
    allow_shared_hosts: bool,
    hosts: str,
    is_dry: bool,
    as_json: bool,
) -> None:
    """One more replica of a partition: it joins, and serves when it has caught up."""
    change = partial(changes.add_replica, number=number, node=node, disk=disk, allow_shared_hosts=allow_shared_hosts)
    change_layout(hosts, change, f"add a replica of {number} on {node}", is_dry=is_dry, as_json=as_json)


@replica.command("remove")
@click.argument("number", type=int)
@click.argument("node")
@force_option
@timeout_option
@zookeeper_option
@asks_datanodes
@dry_run_option
@json_option
def remove_replica(
    number: int,
    node: str,
    is_forced: bool,
    timeout_s: float,
    hosts: str,
    credentials: Credentials,
    is_dry: bool,
    as_json: bool,
) -> None:
    """Take a replica off the map; its files are set aside by its datanode. Never the last one that serves.

    Where fewer of the others would then be enough to deny a blob, they have to be equal first: in time, or --force.
    """
    change = partial(changes.remove_replica, number=number, node=node, is_forced=is_forced)
    found = layout_at(hosts).cluster_map
    change(found)
    if not is_forced:
        _let_others_be_equal(found, credentials, number, node, timeout_s)
    change_layout(hosts, change, f"remove the replica of {number} on {node}", is_dry=is_dry, as_json=as_json)


def _let_others_be_equal(found: ClusterMap, credentials: Credentials, number: int, node: str, timeout_s: float) -> None:
    """Wait until the replicas that stay have all that any of them has. Raises ChangeRefused.

    Of N that are listed in a datacentre W have every acknowledged blob, and N - W + 1 may deny one. Without one of an
    odd N fewer may: a single one of the two that are left of three, and it may be the one that missed the blob.
    """
    listed = found.replicas_in(number, found.nodes[node].datacentre)
    left_over = [one for one in listed if one.node != node]
    if witness_quorum(len(left_over)) >= witness_quorum(len(listed)):
        return
    stay = [one.node for one in left_over if one.state is ReplicaState.SERVING]
    let_be_equal(found, credentials, number, stay, timeout_s, "or force it")


# --- asked of a datanode ---------------------------------------------------------------------------------------


@replica.command("repair")
@click.argument("number", type=int)
@click.argument("node")
@timeout_option
@zookeeper_option
@asks_datanodes
@dry_run_option
@json_option
def repair_replica(
    number: int,
    node: str,
    timeout_s: float,
    hosts: str,
    credentials: Credentials,
    is_dry: bool,
    as_json: bool,
) -> None:
    """Let a datanode compare its replica with all others, and bring what it lacks.

    Ends when what differed is equal. Exit status 1 when the time is over before, or another replica is out of reach.
    """
    found = layout_at(hosts).cluster_map
    if _listed(found, node, [number])[number] is ReplicaState.JOINING:
        raise ChangeRefused(f"the replica of {number} on {node} joins: it brings everything that it lacks already")
    before = _compared(found, credentials, number)
    after = before
    if not is_dry:
        request = ReplicationRequest(ReplicationAction.REPAIR, (number,))
        asyncio.run(_tell(found, credentials.identity("repair"), node, request))
        give_up_at = time.monotonic() + timeout_s
        while (set(after.differing) & set(before.differing) or after.unreachable) and time.monotonic() < give_up_at:
            time.sleep(_LOOK_S)
            after = _compared(found, credentials, number)
    left = len(set(after.differing) & set(before.differing))
    row = {
        "partition": number,
        "node": node,
        "dry_run": is_dry,
        "differed": len(before.differing),
        "differ": left,
        "out_of_reach": sorted(after.unreachable),
    }
    show(as_json, lambda: row, lambda: show_table("repair", ("what", "value"), list(row.items())))
    if not is_dry and (left or after.unreachable):
        raise SystemExit(1)


def _compared(found: ClusterMap, credentials: Credentials, number: int) -> Comparison:
    return compared(found, credentials, [number])[0]


@replica.command("pause")
@click.argument("numbers")
@click.argument("node")
@zookeeper_option
@asks_datanodes
@dry_run_option
@json_option
def pause_replicas(numbers: str, node: str, hosts: str, credentials: Credentials, is_dry: bool, as_json: bool) -> None:
    """Let a datanode read nothing from others for partitions (1-8,12 or all), until RESUME or its next start."""
    _act(ReplicationAction.PAUSE, numbers, node, hosts, credentials, is_dry=is_dry, as_json=as_json)


@replica.command("resume")
@click.argument("numbers")
@click.argument("node")
@zookeeper_option
@asks_datanodes
@dry_run_option
@json_option
def resume_replicas(numbers: str, node: str, hosts: str, credentials: Credentials, is_dry: bool, as_json: bool) -> None:
    """Let a datanode read from others again."""
    _act(ReplicationAction.RESUME, numbers, node, hosts, credentials, is_dry=is_dry, as_json=as_json)


def _act(
    action: ReplicationAction,
    numbers: str,
    node: str,
    hosts: str,
    credentials: Credentials,
    *,
    is_dry: bool,
    as_json: bool,
) -> None:
    found = layout_at(hosts).cluster_map
    held = [number for number, one in found.partitions.items() if any(each.node == node for each in one.replicas)]
    wanted = sorted(held) if numbers == "all" else parse_numbers(numbers, found.partitions)
    _listed(found, node, wanted)
    if not is_dry:
        request = ReplicationRequest(action, () if numbers == "all" else tuple(wanted))
        asyncio.run(_tell(found, credentials.identity("replica"), node, request))
    what = action.name.lower()
    if as_json:
        show_json({"node": node, "action": what, "partitions": wanted, "dry_run": is_dry})
        return
    click.echo(f"{'dry run: would ' if is_dry else ''}{what} {len(wanted)} partitions of {node}")


def _listed(found: ClusterMap, node: str, numbers: list[int]) -> dict[int, ReplicaState]:
    """The states of a datanode's replicas. Raises ChangeRefused for one that the map does not list."""
    if node not in found.nodes:
        raise ChangeRefused(f"there is no datanode {node!r}")
    states: dict[int, ReplicaState] = {}
    for number in numbers:
        row_of(found, number)
        for one in found.partitions[number].replicas:
            if one.node == node:
                states[number] = one.state
        if number not in states:
            raise ChangeRefused(f"partition {number} has no replica on {node}")
    return states


async def _tell(found: ClusterMap, identity: Identity, node: str, request: ReplicationRequest) -> None:
    """Raises what the datanode answers."""
    connections = await connected(found, identity)
    try:
        await connections.remote(node).replication(request, asyncio.get_running_loop().time() + ASK_S)
    finally:
        await connections.close()
