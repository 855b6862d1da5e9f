"""`ambry node`: datanodes, those in the map and those that have registered and wait to be added."""

from functools import partial
from typing import Any

import click

from ambry.cli.operator import (
    change_layout,
    dry_run_option,
    json_option,
    registry_at,
    show,
    show_table,
    size_text,
    zookeeper_option,
)
from ambry.cluster import changes
from ambry.cluster.map import ClusterMap, Disk, Node
from ambry.errors import ChangeRefused


@click.group()
def node() -> None:
    """Datanodes: list, show, add, remove."""


@node.command("list")
@zookeeper_option
@json_option
def list_nodes(hosts: str, as_json: bool) -> None:
    """All datanodes, and whether they live."""
    with registry_at(hosts) as registry:
        cluster_map, registered, live = registry.read().cluster_map, registry.nodes(), registry.live()
    rows = rows_of(cluster_map, registered, live)
    columns = ("name", "datacentre", "rack", "address", "state", "disks", "capacity", "replicas", "map")

    def table() -> None:
        cells = [
            [*(row[key] for key in columns[:6]), size_text(row["capacity"]), row["replicas"], row["map"]]
            for row in rows
        ]
        show_table("datanodes", columns, cells)

    show(as_json, lambda: rows, table)


def rows_of(
    cluster_map: ClusterMap, registered: dict[str, dict[str, Any]], live: dict[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    """What is known of every datanode."""
    held: dict[str, int] = {}
    for partition in cluster_map.partitions.values():
        for replica in partition.replicas:
            held[replica.node] = held.get(replica.node, 0) + 1
    rows = []
    for name in sorted({*cluster_map.nodes, *registered}):
        found = cluster_map.nodes.get(name)
        record = registered.get(name, {})
        disks = [(disk.path, disk.capacity) for disk in found.disks] if found else record.get("disks", [])
        where = cluster_map.datacentres[found.datacentre].name if found else record.get("datacentre", "")
        host, port = (found.host, found.port) if found else (record.get("host", ""), record.get("port", 0))
        state = "up" if name in live else "down"
        rows.append(
            {
                "name": name,
                "datacentre": where,
                "rack": found.rack if found else record.get("rack", ""),
                "address": f"{host}:{port}",
                "state": state if found else f"waits to be added ({state})",
                "disks": len(disks),
                "capacity": sum(capacity for _, capacity, *_ in disks),
                "replicas": held.get(name, 0),
                "map": live.get(name, {}).get("map_version", ""),
                "admin": record.get("admin", ""),
            }
        )
    return rows


@node.command("show")
@click.argument("name")
@zookeeper_option
@json_option
def show_node(name: str, hosts: str, as_json: bool) -> None:
    """Everything that is known of one datanode."""
    with registry_at(hosts) as registry:
        cluster_map, registered, live = registry.read().cluster_map, registry.nodes(), registry.live()
    if name not in cluster_map.nodes and name not in registered:
        raise ChangeRefused(f"there is no datanode {name!r}")
    placed = [
        {"partition": partition.number, "disk": replica.disk_path, "state": replica.state.value}
        for partition in cluster_map.partitions.values()
        for replica in partition.replicas
        if replica.node == name
    ]
    document = {
        "in_map": name in cluster_map.nodes,
        "registered": registered.get(name),
        "live": live.get(name),
        "replicas": placed,
    }

    def table() -> None:
        (row,) = [one for one in rows_of(cluster_map, registered, live) if one["name"] == name]
        shown = {**row, "capacity": size_text(row["capacity"])}
        show_table(f"datanode {name}", ("what", "value"), list(shown.items()))
        show_table("replicas", ("partition", "disk", "state"), [tuple(one.values()) for one in placed])

    show(as_json, lambda: document, table)


@node.command("add")
@click.argument("names", nargs=-1, required=True)
@zookeeper_option
@dry_run_option
@json_option
def add_node(names: tuple[str, ...], hosts: str, is_dry: bool, as_json: bool) -> None:
    """Take registered datanodes into the map."""
    with registry_at(hosts) as registry:
        registered = registry.nodes()

    def add(old: ClusterMap) -> ClusterMap:
        for name in names:
            if name not in registered:
                raise ChangeRefused(f"no datanode {name!r} has registered: start it first")
            old = changes.put_node(old, node_from(name, registered[name], old))
        return old

    change_layout(hosts, add, f"add {', '.join(names)}", is_dry=is_dry, as_json=as_json)


def node_from(name: str, record: dict[str, Any], cluster_map: ClusterMap) -> Node:
    """A datanode as it has registered. Raises ChangeRefused for one of another cluster."""
    if record.get("fingerprint") != cluster_map.fingerprint:
        raise ChangeRefused(f"{name} belongs to cluster {record.get('fingerprint')}")
    number = next((one.number for one in cluster_map.datacentres.values() if one.name == record["datacentre"]), 0)
    disks = tuple(Disk(str(path), int(capacity)) for path, capacity, *_ in record["disks"])
    return Node(name, number, str(record["rack"]), str(record["host"]), int(record["port"]), disks)


@node.command("remove")
@click.argument("name")
@zookeeper_option
@dry_run_option
@json_option
def remove_node(name: str, hosts: str, is_dry: bool, as_json: bool) -> None:
    """Take a datanode that holds no replicas out of the map, and forget its registration."""
    change_layout(hosts, partial(changes.remove_node, name=name), f"remove {name}", is_dry=is_dry, as_json=as_json)
    if not is_dry:
        with registry_at(hosts) as registry:
            registry.forget(name)
