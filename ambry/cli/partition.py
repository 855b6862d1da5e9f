"""`ambry partition`: partitions and where they are."""

import asyncio
import os
from functools import partial
from pathlib import Path
from typing import Any

import click

from ambry.cli.cluster import secret_option, show_comparisons, verify_all
from ambry.cli.operator import (
    change_layout,
    dry_run_option,
    force_option,
    json_option,
    layout_at,
    parse_numbers,
    replicas_text,
    shared_hosts_option,
    show,
    show_json,
    show_table,
    size_text,
    zookeeper_option,
)
from ambry.cli.replica_states import connected
from ambry.cluster import changes
from ambry.cluster.map import ClusterMap
from ambry.config import load_secret, parse_size
from ambry.errors import AmbryError, ChangeRefused


@click.group()
def partition() -> None:
    """Partitions: list, show, create, seal, unseal, move, check, compare."""


@partition.command("list")
@zookeeper_option
@json_option
def list_partitions(hosts: str, as_json: bool) -> None:
    """All partitions and their replicas."""
    found = layout_at(hosts).cluster_map
    rows = [_row(found, number) for number in sorted(found.partitions)]

    def table() -> None:
        cells = [
            (number, size_text(one.capacity), "yes" if one.is_sealed else "", one.membership, replicas_text(one))
            for number, one in sorted(found.partitions.items())
        ]
        show_table("partitions", ("number", "capacity", "sealed", "membership", "replicas"), cells)

    show(as_json, lambda: rows, table)


def _row(found: ClusterMap, number: int) -> dict[str, Any]:
    one = found.partitions.get(number)
    if one is None:
        raise ChangeRefused(f"there is no partition {number}")
    return {
        "number": number,
        "capacity": one.capacity,
        "is_sealed": one.is_sealed,
        "membership": one.membership,
        "replicas": [
            {
                "node": replica.node,
                "datacentre": found.datacentres[found.nodes[replica.node].datacentre].name,
                "disk": replica.disk_path,
                "state": replica.state.value,
                "incarnation": replica.incarnation.hex() if replica.incarnation else None,
            }
            for replica in one.replicas
        ],
    }


@partition.command("show")
@click.argument("number", type=int)
@zookeeper_option
def show_partition(number: int, hosts: str) -> None:
    """Everything that the map says of one partition, as JSON."""
    show_json(_row(layout_at(hosts).cluster_map, number))


@partition.command("create")
@click.option("--count", default=1, show_default=True, type=click.IntRange(1))
@click.option("--capacity", default="100 GiB", show_default=True, help="Bytes of each, such as 1GiB.")
@click.option("--replicas", default=3, show_default=True, type=click.IntRange(1, 16), help="In each datacentre.")
@click.option("--datacentre", "names", multiple=True, help="Where; several may be given.  [default: all]")
@shared_hosts_option
@zookeeper_option
@dry_run_option
@json_option
def create_partitions(
    count: int,
    capacity: str,
    replicas: int,
    names: tuple[str, ...],
    allow_shared_hosts: bool,
    hosts: str,
    is_dry: bool,
    as_json: bool,
) -> None:
    """New partitions, their replicas on the disks with the most room."""
    size = parse_size(capacity)
    if size is None:
        raise click.UsageError(f"{capacity!r} is not a size such as 1GiB")

    def create(old: ClusterMap) -> ClusterMap:
        numbers = {one.name: one.number for one in old.datacentres.values()}
        unknown = [name for name in names if name not in numbers]
        if unknown:
            raise ChangeRefused(f"there is no datacentre {unknown[0]!r}")
        where = tuple(numbers[name] for name in names or numbers)
        return changes.create_partitions(old, changes.Wanted(count, size, replicas, where, allow_shared_hosts))

    change_layout(hosts, create, f"create {count} partitions", is_dry=is_dry, as_json=as_json)


def _seal(numbers: str, hosts: str, *, is_sealed: bool, is_dry: bool, as_json: bool) -> None:
    def change(old: ClusterMap) -> ClusterMap:
        return changes.seal(old, parse_numbers(numbers, old.partitions), is_sealed=is_sealed)

    what = f"{'seal' if is_sealed else 'unseal'} {numbers}"
    change_layout(hosts, change, what, is_dry=is_dry, as_json=as_json)


@partition.command("seal")
@click.argument("numbers")
@zookeeper_option
@dry_run_option
@json_option
def seal_partitions(numbers: str, hosts: str, is_dry: bool, as_json: bool) -> None:
    """Let partitions (1-8,12 or all) take no more puts."""
    _seal(numbers, hosts, is_sealed=True, is_dry=is_dry, as_json=as_json)


@partition.command("unseal")
@click.argument("numbers")
@zookeeper_option
@dry_run_option
@json_option
def unseal_partitions(numbers: str, hosts: str, is_dry: bool, as_json: bool) -> None:
    """Let partitions take puts again."""
    _seal(numbers, hosts, is_sealed=False, is_dry=is_dry, as_json=as_json)


@partition.command("move")
@click.argument("number", type=int)
@click.option("--from", "source", required=True, metavar="NODE", help="Its replica leaves when the new one serves.")
@click.option("--to", "target", required=True, metavar="NODE", help="Its replica joins.")
@shared_hosts_option
@zookeeper_option
@dry_run_option
@json_option
def move_partition(
    number: int,
    source: str,
    target: str,
    allow_shared_hosts: bool,
    hosts: str,
    is_dry: bool,
    as_json: bool,
) -> None:
    """Begin to move a replica: the new one joins. When it serves, run it again, and the old one is taken off."""

    def move(old: ClusterMap) -> ClusterMap:
        listed = old.partitions.get(number)
        there = next((one for one in listed.replicas if one.node == target), None) if listed else None
        if there is None:
            return changes.add_replica(old, number, target, allow_shared_hosts=allow_shared_hosts)
        if there.state != "serving":
            raise ChangeRefused(f"the replica on {target} has not caught up yet (it is {there.state})")
        return changes.remove_replica(old, number, source)

    change_layout(hosts, move, f"move partition {number} from {source} to {target}", is_dry=is_dry, as_json=as_json)


@partition.command("compare")
@click.argument("numbers")
@zookeeper_option
@secret_option
@json_option
def compare_partitions(numbers: str, hosts: str, secret_file: Path | None, as_json: bool) -> None:
    """Compare the replicas of partitions (1-8,12 or all). Exit status 1 when they differ."""
    found = layout_at(hosts).cluster_map
    wanted = parse_numbers(numbers, found.partitions)
    for number in wanted:
        _row(found, number)
    show_comparisons(asyncio.run(verify_all(found, load_secret(secret_file), wanted)), as_json=as_json)


@partition.command("check")
@click.argument("numbers")
@zookeeper_option
@secret_option
@json_option
def check_partitions(numbers: str, hosts: str, secret_file: Path | None, as_json: bool) -> None:
    """What datanodes say of their replicas, against the map. Exit status 1 when something is wrong."""
    found = layout_at(hosts).cluster_map
    wanted = set(parse_numbers(numbers, found.partitions))
    rows = asyncio.run(_check(found, load_secret(secret_file), wanted))
    columns = ("partition", "node", "state", "verdict", "log_size", "end_lsn", "is_writable")
    show(
        as_json, lambda: rows, lambda: show_table("replicas", columns, [[row[key] for key in columns] for row in rows])
    )
    if any(row["verdict"] != "fine" for row in rows):
        raise SystemExit(1)


async def _check(found: ClusterMap, secret: bytes, wanted: set[int]) -> list[dict[str, Any]]:
    connections = await connected(found, secret, f"check-{os.getpid()}")
    statuses: dict[str, Any] = {}
    deadline = asyncio.get_running_loop().time() + 10
    try:
        for name, datanode in connections.datanodes.items():
            try:
                answer = await datanode.status(deadline)
                statuses[name] = {one.partition: one for one in answer.replicas}
            except AmbryError as error:
                statuses[name] = error
    finally:
        await connections.close()
    rows = []
    for number in sorted(wanted & found.partitions.keys()):
        for replica in found.partitions[number].replicas:
            known = statuses[replica.node]
            one = known.get(number) if isinstance(known, dict) else None
            if not isinstance(known, dict):
                verdict = f"out of reach: {known}"
            elif one is None:
                verdict = "missing on its datanode"
            elif replica.incarnation not in {None, one.incarnation}:
                verdict = "another incarnation than the map's"
            else:
                verdict = "fine"
            rows.append(
                {
                    "partition": number,
                    "node": replica.node,
                    "state": replica.state.value,
                    "verdict": verdict,
                    "log_size": one.log_size if one else None,
                    "end_lsn": one.end_lsn if one else None,
                    "is_writable": one.is_writable if one else None,
                }
            )
    return rows


@click.group()
def replica() -> None:
    """Replicas: list, add, remove."""


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
        for one in _row(found, number)["replicas"]
        if name in {None, one["node"]}
    ]
    columns = ("partition", "node", "datacentre", "disk", "state", "incarnation")
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
@zookeeper_option
@dry_run_option
@json_option
def remove_replica(number: int, node: str, is_forced: bool, hosts: str, is_dry: bool, as_json: bool) -> None:
    """Take a replica off the map; its files are set aside by its datanode. Never the last one that serves."""
    change = partial(changes.remove_replica, number=number, node=node, is_forced=is_forced)
    change_layout(hosts, change, f"remove the replica of {number} on {node}", is_dry=is_dry, as_json=as_json)
