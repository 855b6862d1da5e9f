"""`ambry replication`: how far every datanode has read its peers; pausing and resuming it."""

import asyncio
import os
from pathlib import Path
from typing import Any

import click

from ambry.cli.cluster import secret_option
from ambry.cli.operator import (
    json_option,
    layout_at,
    parse_numbers,
    show,
    show_json,
    show_table,
    size_text,
    zookeeper_option,
)
from ambry.cli.replica_states import connected
from ambry.cluster.map import ClusterMap
from ambry.config import load_secret
from ambry.errors import AmbryError, ChangeRefused
from ambry.protocol.replication import ReplicationAction, ReplicationRequest, ReplicationStatus

_ASK_S = 10.0


@click.group()
def replication() -> None:
    """Replication: status, lag, pause, resume."""


@replication.command()
@zookeeper_option
@secret_option
@json_option
def status(hosts: str, secret_file: Path | None, as_json: bool) -> None:
    """From whom every datanode reads, and how far behind it is. Exit status 1 when somebody is out of reach."""
    found, answers = _asked(hosts, secret_file)
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
@secret_option
@json_option
def lag(hosts: str, secret_file: Path | None, as_json: bool) -> None:
    """The largest lag between every two datacentres, in bytes and in seconds."""
    found, answers = _asked(hosts, secret_file)
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


@replication.command()
@click.argument("node")
@click.argument("numbers", default="all")
@zookeeper_option
@secret_option
def pause(node: str, numbers: str, hosts: str, secret_file: Path | None) -> None:
    """Let a datanode read nothing for some partitions (1-8,12 or all), until it is resumed or started again."""
    _act(ReplicationAction.PAUSE, node, numbers, hosts, secret_file)


@replication.command()
@click.argument("node")
@click.argument("numbers", default="all")
@zookeeper_option
@secret_option
def resume(node: str, numbers: str, hosts: str, secret_file: Path | None) -> None:
    """Let a datanode read again."""
    _act(ReplicationAction.RESUME, node, numbers, hosts, secret_file)


def _act(action: ReplicationAction, node: str, numbers: str, hosts: str, secret_file: Path | None) -> None:
    found = layout_at(hosts).cluster_map
    if node not in found.nodes:
        raise ChangeRefused(f"there is no datanode {node!r}")
    partitions = () if numbers == "all" else tuple(parse_numbers(numbers, found.partitions))
    request = ReplicationRequest(action, partitions)
    answer = asyncio.run(_ask(found, load_secret(secret_file), [node], request))[node]
    if isinstance(answer, AmbryError):
        raise answer
    show_json({"node": node, "action": action.name.lower(), "partitions": numbers})


def _asked(hosts: str, secret_file: Path | None) -> tuple[ClusterMap, dict[str, Any]]:
    found = layout_at(hosts).cluster_map
    request = ReplicationRequest(ReplicationAction.TELL, ())
    return found, asyncio.run(_ask(found, load_secret(secret_file), list(found.nodes), request))


async def _ask(
    found: ClusterMap, secret: bytes, names: list[str], request: ReplicationRequest
) -> dict[str, ReplicationStatus | AmbryError]:
    """What each datanode answers, or why it does not."""
    connections = await connected(found, secret, f"replication-{os.getpid()}")
    deadline = asyncio.get_running_loop().time() + _ASK_S
    answers: dict[str, ReplicationStatus | AmbryError] = {}
    try:
        for name in names:
            try:
                answers[name] = await connections.remote(name).replication(request, deadline)
            except AmbryError as error:
                answers[name] = error
    finally:
        await connections.close()
    return answers
