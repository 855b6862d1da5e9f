"""`ambry blob`: which replicas hold a blob, in which state, and whether they are equal."""

import asyncio
from typing import Any

import click

from ambry.blob.blob_id import parse_text
from ambry.blob.requests import GetRequest
from ambry.cli.connections import Identity
from ambry.cli.credentials import Credentials, asks_datanodes
from ambry.cli.operator import json_option, layout_at, show, show_table, zookeeper_option
from ambry.cli.replica_states import connected
from ambry.cluster.map import ClusterMap
from ambry.errors import AmbryError, ChangeRefused

_ASK_S = 30.0


@click.group()
def blob() -> None:
    """One blob by its id: locate, verify."""


@blob.command()
@click.argument("blob_id")
@zookeeper_option
@asks_datanodes
@json_option
def locate(blob_id: str, hosts: str, credentials: Credentials, as_json: bool) -> None:
    """Which replicas hold a blob, and in which state."""
    _show(_rows(blob_id, hosts, credentials, is_whole=False), as_json=as_json)


@blob.command()
@click.argument("blob_id")
@zookeeper_option
@asks_datanodes
@json_option
def verify(blob_id: str, hosts: str, credentials: Credentials, as_json: bool) -> None:
    """Read a blob from every replica, with its checksums. Exit status 1 unless all of them are good and equal."""
    rows = _rows(blob_id, hosts, credentials, is_whole=True)
    _show(rows, as_json=as_json)
    if len({(row["answer"], row["life"], row["expires_at_ms"], row["size"], row["root"]) for row in rows}) != 1:
        raise SystemExit(1)
    if rows[0]["answer"] != "here" and rows[0]["answer"] != "deleted":
        raise SystemExit(1)


def _show(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    columns = ("node", "datacentre", "replica", "answer", "life", "expires_at_ms", "size", "root")
    show(
        as_json, lambda: rows, lambda: show_table("replicas", columns, [[row[key] for key in columns] for row in rows])
    )


def _rows(blob_id: str, hosts: str, credentials: Credentials, *, is_whole: bool) -> list[dict[str, Any]]:
    parsed = parse_text(blob_id)
    found = layout_at(hosts).cluster_map
    if parsed.partition not in found.partitions:
        raise ChangeRefused(f"there is no partition {parsed.partition}")
    return asyncio.run(_ask(found, parsed.binary(), parsed.partition, credentials.identity("blob"), is_whole=is_whole))


async def _ask(
    found: ClusterMap, binary: bytes, partition: int, identity: Identity, *, is_whole: bool
) -> list[dict[str, Any]]:
    connections = await connected(found, identity)
    request = GetRequest(binary, 0, 2**40 if is_whole else 0, include_deleted=True)
    rows = []
    try:
        for replica in found.partitions[partition].replicas:
            row: dict[str, Any] = {
                "node": replica.node,
                "datacentre": found.datacentres[found.nodes[replica.node].datacentre].name,
                "replica": replica.state.value,
                "answer": "",
                **dict.fromkeys(("life", "expires_at_ms", "size", "root")),
            }
            deadline = asyncio.get_running_loop().time() + _ASK_S
            try:
                answer = await connections.datanodes[replica.node].get(request, deadline)
                row["answer"] = "deleted" if answer.state.is_deleted else "here"
                row["life"], row["expires_at_ms"] = answer.state.life, answer.state.expires_at_ms
                row["size"], row["root"] = answer.body_size, f"{answer.root:016x}"
            except AmbryError as error:
                row["answer"] = "deleted" if error.name == "blob_deleted" else error.name
            rows.append(row)
    finally:
        await connections.close()
    return rows
