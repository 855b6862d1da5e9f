"""`ambry replication`: how far every datanode has read its peers."""

import asyncio
from typing import Any

import click

from ambry.cli.credentials import Credentials, asks_datanodes
from ambry.cli.operator import (
    json_option,
    layout_at,
    show,
    show_table,
    size_text,
    zookeeper_option,
)
from ambry.cli.replica_states import ask_each
from ambry.cluster.map import ClusterMap
from ambry.errors import AmbryError
from ambry.protocol.replication import ReplicationAction, ReplicationRequest, ReplicationStatus


@click.group()
def replication() -> None:
    """Replication: status, lag."""


@replication.command()
@zookeeper_option
@asks_datanodes
@json_option
def status(hosts: str, credentials: Credentials, as_json: bool) -> None:
    """From whom every datanode reads, and how far behind it is. Exit status 1 when somebody is out of reach."""
    found, answers = _asked(hosts, credentials)
    rows: list[dict[str, Any]] = [
        {
            "node": name,
            "from": link.node,
            "datacentre": found.datacentres[link.datacentre].name,
            "is_reachable": link.is_reachable,
            "partitions": link.partitions,
            "partitions_behind": link.partitions_behind,
            "lag_bytes": link.lag_bytes,
            "lag_ms": link.lag_ms,
            "fetched_bytes": link.fetched_bytes,
        }
        for name, answer in sorted(answers.items())
        if isinstance(answer, ReplicationStatus)
        for link in answer.links
    ]
    holes = {name: one.holes for name, one in answers.items() if isinstance(one, ReplicationStatus)}
    silent = {name: str(one) for name, one in answers.items() if not isinstance(one, ReplicationStatus)}

    def table() -> None:
        columns = (
            "node",
            "from",
            "datacentre",
            "is_reachable",
            "partitions",
            "partitions_behind",
            "lag_bytes",
            "lag_ms",
        )
        show_table("replication", columns, [[row[key] for key in columns] for row in rows])
        show_table("blobs without their bytes", ("node", "blobs"), sorted(holes.items()))
        if silent:
            show_table("out of reach", ("node", "why"), sorted(silent.items()))

    show(as_json, lambda: {"links": rows, "holes": holes, "out_of_reach": silent}, table)
    if silent or not all(row["is_reachable"] for row in rows):
        raise SystemExit(1)


@replication.command()
@zookeeper_option
@asks_datanodes
@json_option
def lag(hosts: str, credentials: Credentials, as_json: bool) -> None:
    """The largest lag between every two datacentres, in bytes and in seconds."""
    found, answers = _asked(hosts, credentials)
    worst: dict[tuple[str, str], list[int]] = {}
    for name, answer in answers.items():
        if isinstance(answer, ReplicationStatus):
            here = found.datacentres[found.nodes[name].datacentre].name
            for link in answer.links:
                one = worst.setdefault((found.datacentres[link.datacentre].name, here), [0, 0])
                one[0], one[1] = max(one[0], link.lag_bytes), max(one[1], link.lag_ms)
    rows: list[dict[str, Any]] = [
        {"from": source, "to": to, "lag_bytes": size, "lag_ms": ms}
        for (source, to), (size, ms) in sorted(worst.items())
    ]
    cells = [(row["from"], row["to"], size_text(row["lag_bytes"]), row["lag_ms"] / 1000) for row in rows]
    show(as_json, lambda: rows, lambda: show_table("lag", ("from", "to", "bytes", "seconds"), cells))


def _asked(hosts: str, credentials: Credentials) -> tuple[ClusterMap, dict[str, ReplicationStatus | AmbryError]]:
    found = layout_at(hosts).cluster_map
    request = ReplicationRequest(ReplicationAction.TELL, ())
    asking = ask_each(found, credentials.identity("replication"), lambda node, until: node.replication(request, until))
    return found, asyncio.run(asking)
