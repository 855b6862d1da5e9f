"""`ambry partition`: partitions and where they are."""

import asyncio
import time
from functools import partial
from typing import Any, Final

import click

from ambry.cli.credentials import Credentials, asks_datanodes
from ambry.cli.operator import (
    change_layout,
    dry_run_option,
    json_option,
    layout_at,
    parse_numbers,
    registry_at,
    replicas_text,
    say_change,
    shared_hosts_option,
    show,
    show_table,
    size_text,
    timeout_option,
    who,
    zookeeper_option,
)
from ambry.cli.replica_states import ask_each
from ambry.cli.retiring import reasons_against, wait_until_used
from ambry.cli.verifying import bytes_option, let_be_equal, verify_partitions
from ambry.cluster import changes
from ambry.cluster.map import ClusterMap, Replica, ReplicaState
from ambry.errors import AmbryError, ChangeRefused
from ambry.protocol.datanode import ReplicaStatus
from ambry.quantities import parse_size

_LOOK_S: Final = 0.2

REPLICA_COLUMNS: Final = ("node", "datacentre", "disk", "state", "incarnation")


@click.group()
def partition() -> None:
    """Partitions: list, show, create, seal, unseal, retire, move, check, compare."""


@partition.command("list")
@zookeeper_option
@json_option
def list_partitions(hosts: str, as_json: bool) -> None:
    """All partitions and their replicas."""
    found = layout_at(hosts).cluster_map
    rows = [row_of(found, number) for number in sorted(found.partitions)]

    def table() -> None:
        cells = [
            (
                number,
                size_text(one.capacity),
                "retired" if one.is_retired else "yes" if one.is_sealed else "",
                one.membership,
                replicas_text(one),
            )
            for number, one in sorted(found.partitions.items())
        ]
        show_table("partitions", ("number", "capacity", "sealed", "membership", "replicas"), cells)

    show(as_json, lambda: rows, table)


def row_of(found: ClusterMap, number: int) -> dict[str, Any]:
    """What the map says of a partition. Raises ChangeRefused for one that is not there."""
    one = found.partitions.get(number)
    if one is None:
        raise ChangeRefused(f"there is no partition {number}")
    return {
        "number": number,
        "capacity": one.capacity,
        "is_sealed": one.is_sealed,
        "is_retired": one.is_retired,
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
@json_option
def show_partition(number: int, hosts: str, as_json: bool) -> None:
    """Everything that the map says of one partition."""
    row = row_of(layout_at(hosts).cluster_map, number)

    def table() -> None:
        shown = {**row, "capacity": size_text(row["capacity"])}
        show_table(f"partition {number}", ("what", "value"), [one for one in shown.items() if one[0] != "replicas"])
        show_table("replicas", REPLICA_COLUMNS, [[one[key] for key in REPLICA_COLUMNS] for one in row["replicas"]])

    show(as_json, lambda: row, table)


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


def numbers_in(found: ClusterMap, text: str) -> list[int]:
    """Partitions of "1-8,12", or with "all" those that are not retired. Raises UsageError."""
    return found.in_use if text == "all" else parse_numbers(text, found.partitions)


def _seal(numbers: str, hosts: str, *, is_sealed: bool, is_dry: bool, as_json: bool) -> None:
    def change(old: ClusterMap) -> ClusterMap:
        return changes.seal(old, numbers_in(old, numbers), is_sealed=is_sealed)

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


@partition.command("retire")
@click.argument("numbers")
@timeout_option
@zookeeper_option
@asks_datanodes
@dry_run_option
@json_option
def retire_partitions(
    numbers: str, timeout_s: float, hosts: str, credentials: Credentials, is_dry: bool, as_json: bool
) -> None:
    """Take partitions (1-8,12 or all) in which nothing lives out of use for good, with all their replicas.

    They are sealed first; what is dead in them is reclaimed when its retention is over. Try it again then.
    """
    with registry_at(hosts) as registry:
        before = registry.read()
        wanted = numbers_in(before.cluster_map, numbers)
        what = f"retire {numbers}"
        identity = credentials.identity("retire")
        if is_dry:
            closed = changes.close(before.cluster_map, wanted)
            against = reasons_against(before.cluster_map, identity, wanted, is_closed=False)
            ready = {number: closed.partitions[number].membership for number in wanted if number not in against}
            for number, reason in against.items():
                click.echo(f"partition {number}: {reason}", err=True)
            after = changes.retire(closed, ready)
        else:
            closed = registry.apply(
                lambda old: changes.close(old, wanted), f"close {numbers}", who(), before
            ).cluster_map
            wait_until_used(registry, closed, wanted, timeout_s)
            against = reasons_against(closed, identity, wanted, is_closed=True)
            if against:
                number, reason = next(iter(against.items()))
                raise ChangeRefused(f"partition {number} is sealed, and cannot be retired: {reason}")
            memberships = {number: closed.partitions[number].membership for number in wanted}
            after = registry.apply(lambda old: changes.retire(old, memberships), what, who()).cluster_map
    say_change(before.cluster_map, after, what, is_dry=is_dry, as_json=as_json)


@partition.command("move")
@click.argument("number", type=int)
@click.option("--from", "source", required=True, metavar="NODE", help="Its replica leaves when the new one serves.")
@click.option("--to", "target", required=True, metavar="NODE", help="Its replica joins.")
@shared_hosts_option
@timeout_option
@zookeeper_option
@asks_datanodes
@dry_run_option
@json_option
def move_partition(
    number: int,
    source: str,
    target: str,
    allow_shared_hosts: bool,
    timeout_s: float,
    hosts: str,
    credentials: Credentials,
    is_dry: bool,
    as_json: bool,
) -> None:
    """Begin to move a replica: the new one joins. When it serves, run it again, and the old one is taken off.

    First the old one takes no more puts, and the others of its datacentre get all that it has acknowledged: in time.
    """
    what = f"move partition {number} from {source} to {target}"
    found = layout_at(hosts).cluster_map
    states = {one["node"]: one["state"] for one in row_of(found, number)["replicas"]}
    if target not in states:
        add = partial(changes.add_replica, number=number, node=target, allow_shared_hosts=allow_shared_hosts)
        change_layout(hosts, add, what, is_dry=is_dry, as_json=as_json)
        return
    for name, state in ((target, states[target]), (source, states.get(source))):
        if state == ReplicaState.JOINING:
            raise ChangeRefused(f"the replica on {name} has not caught up yet: it is {state}")
    remove = partial(changes.remove_replica, number=number, node=source)
    remove(found)
    if not is_dry:
        _let_leave(hosts, credentials, number, source, what, timeout_s)
    change_layout(hosts, remove, what, is_dry=is_dry, as_json=as_json)


def _let_leave(hosts: str, credentials: Credentials, number: int, node: str, what: str, timeout_s: float) -> None:
    """Let a replica take no more puts, and the others of its datacentre have all that it took. Raises ChangeRefused.

    Once its datanode has the map in which it leaves, it refuses puts under older ones: what it has then is all.
    """
    give_up_at = time.monotonic() + timeout_s
    with registry_at(hosts) as registry:
        leaves = registry.apply(partial(changes.leave, number=number, node=node), f"{what}: {node} leaves", who())
        found = leaves.cluster_map
        while not registry.live().get(node, {}).get("map_version", 0) >= found.partitions[number].membership:
            if time.monotonic() > give_up_at:
                raise ChangeRefused(
                    f"{node} does not say that it knows that its replica of {number} leaves: run this again, or remove "
                    "the replica if the datanode does not come back"
                )
            time.sleep(_LOOK_S)
    listed = found.replicas_in(number, found.nodes[node].datacentre)
    nodes = [one.node for one in listed if one.state is not ReplicaState.JOINING]
    let_be_equal(found, credentials, number, nodes, give_up_at - time.monotonic(), "run it again")


@partition.command("compare")
@click.argument("numbers")
@bytes_option
@zookeeper_option
@asks_datanodes
@json_option
def compare_partitions(numbers: str, is_bytes: bool, hosts: str, credentials: Credentials, as_json: bool) -> None:
    """Compare the replicas of partitions (1-8,12 or all). Exit status 1 when they differ."""
    found = layout_at(hosts).cluster_map
    wanted = parse_numbers(numbers, found.partitions)
    for number in wanted:
        row_of(found, number)
    verify_partitions(found, credentials, wanted, is_bytes=is_bytes, as_json=as_json)


@partition.command("check")
@click.argument("numbers")
@zookeeper_option
@asks_datanodes
@json_option
def check_partitions(numbers: str, hosts: str, credentials: Credentials, as_json: bool) -> None:
    """What datanodes say of their replicas, against the map. Exit status 1 when something is wrong."""
    found = layout_at(hosts).cluster_map
    wanted = parse_numbers(numbers, found.partitions)
    for number in wanted:
        row_of(found, number)
    answers = asyncio.run(ask_each(found, credentials.identity("check"), lambda node, until: node.status(until)))
    statuses = {
        name: answer if isinstance(answer, AmbryError) else {one.partition: one for one in answer.replicas}
        for name, answer in answers.items()
    }
    rows = [
        _verdict(number, replica, statuses[replica.node])
        for number in wanted
        for replica in found.partitions[number].replicas
    ]
    columns = ("partition", "node", "state", "verdict", "log_size", "end_lsn", "is_writable")
    show(
        as_json, lambda: rows, lambda: show_table("replicas", columns, [[row[key] for key in columns] for row in rows])
    )
    if any(row["verdict"] != "fine" for row in rows):
        raise SystemExit(1)


def _verdict(number: int, replica: Replica, known: dict[int, ReplicaStatus] | AmbryError) -> dict[str, Any]:
    one = known.get(number) if isinstance(known, dict) else None
    if isinstance(known, AmbryError):
        verdict = f"out of reach: {known}"
    elif one is None:
        verdict = "missing on its datanode"
    elif replica.incarnation not in {None, one.incarnation}:
        verdict = "another incarnation than the map's"
    else:
        verdict = "fine"
    return {
        "partition": number,
        "node": replica.node,
        "state": replica.state.value,
        "verdict": verdict,
        "log_size": one.log_size if one else None,
        "end_lsn": one.end_lsn if one else None,
        "is_writable": one.is_writable if one else None,
    }
