"""What a frontend tells of the cluster: replicas of a blob, peers of a datanode, the map, what containers use.

JSON for operators and their tools. All of it but a blob's replicas needs a right over the whole store.
"""

import asyncio
import json
from typing import Any, Final

from aiohttp import web

from ambry.access.keys import Right
from ambry.blob.requests import ContainerUsage
from ambry.cluster.map import ClusterMap, Node, Partition
from ambry.errors import BadRequest, NoSuchPath, Unavailable
from ambry.frontend import answers
from ambry.frontend.call import Call
from ambry.frontend.connection import BodyResponse, Services
from ambry.frontend.usage import UsageReport, ask_usage, totals_of

_FRESH_MS: Final = 2_000
"""A report this young serves whoever asks next: many dashboards cost the datanodes what one does."""

STATS_TYPE: Final = "x-ambry-stats-type"
_STATS_TYPES: Final = ("ACCOUNT_REPORT", "PARTITION_REPORT")


class ClusterApi:
    """Answers about the cluster."""

    __slots__ = ("_asking", "_report", "_services")

    def __init__(self, services: Services) -> None:
        self._services = services
        self._report: UsageReport | None = None
        self._asking: asyncio.Task[UsageReport] | None = None

    async def replicas(self, call: Call) -> web.StreamResponse:
        """`GET /{id}/Replicas`: where the blob's partition is kept."""
        cluster_map = self._services.operations.cluster_map
        number = int.from_bytes(call.blob_id[12:16], "big")
        partition = cluster_map.partitions.get(number)
        if partition is None:
            raise Unavailable(f"partition {number} is not in version {cluster_map.version} of the cluster map")
        return self._json(call, {"partition": number, "replicas": _replicas(cluster_map, partition)})

    async def peers(self, call: Call) -> web.StreamResponse:
        """`GET /peers?name=&port=`: datanodes that hold a replica of a partition that this one holds, too."""
        call.caller.admit_over(None, Right.READ)
        cluster_map = self._services.operations.cluster_map
        query = call.request.rel_url.query
        name, port = query.get("name"), query.get("port")
        if not name:
            raise BadRequest("name is a datanode's name, or its host", field="name")
        if port is not None and not (port.isascii() and port.isdecimal() and len(port) <= 5):
            raise BadRequest("port is a number", field="port")
        asked = {
            node.name
            for node in cluster_map.nodes.values()
            if name in {node.name, node.host} and (port is None or int(port) == node.port)
        }
        if not asked:
            raise NoSuchPath("the cluster map has no such datanode")
        found: set[str] = set()
        for partition in cluster_map.partitions.values():
            holders = {replica.node for replica in partition.replicas}
            if holders & asked:
                found |= holders - asked
        peers = [_node(cluster_map, cluster_map.nodes[one]) for one in sorted(found)]
        return self._json(call, {"peers": peers})

    async def cluster_map(self, call: Call) -> web.StreamResponse:
        """`GET /getClusterMapSnapshot`: the map that this frontend works with."""
        call.caller.admit_over(None, Right.READ)
        cluster_map = self._services.operations.cluster_map
        # A hundred thousand partitions take a second: on a thread.
        body = await asyncio.get_running_loop().run_in_executor(None, render_map, cluster_map)
        return self._text(call, body)

    async def stats_report(self, call: Call) -> web.StreamResponse:
        """`GET /statsReport`: blobs and bytes of every container, by partition if asked."""
        call.caller.admit_over(None, Right.READ)
        kind = call.request.headers.get(STATS_TYPE, _STATS_TYPES[0]).upper()
        if kind not in _STATS_TYPES:
            raise BadRequest(f"{STATS_TYPE} is one of {', '.join(_STATS_TYPES)}", field=STATS_TYPE)
        report = await self._fresh_report()
        document: dict[str, Any] = {
            "taken_ms": report.taken_ms,
            "is_complete": report.is_complete,
            "unreached": list(report.unreached),
        }
        if kind == "PARTITION_REPORT":
            document["rows"] = [
                {"partition": row.partition, **self._use(call, row.account, row.container, _counts(row))}
                for row in report.rows
            ]
        else:
            document["rows"] = [
                self._use(call, account, container, counts)
                for (account, container), counts in sorted(totals_of(report).items())
            ]
        return self._json(call, document)

    def _use(
        self, call: Call, account: int, container: int, counts: tuple[int, int, int, int]
    ) -> dict[str, int | str | None]:
        known = call.caller.snapshot.container(account, container)
        live_count, live_bytes, dead_count, dead_bytes = counts
        return {
            "account": account,
            "container": container,
            "account_name": None if known is None else known.account_name,
            "container_name": None if known is None else known.name,
            "live_count": live_count,
            "live_bytes": live_bytes,
            "dead_count": dead_count,
            "dead_bytes": dead_bytes,
        }

    async def _fresh_report(self) -> UsageReport:
        """One question to the datanodes at a time, whoever waits for its answer."""
        report = self._report
        if report is not None and 0 <= self._services.clock.now_ms() - report.taken_ms < _FRESH_MS:
            return report
        if self._asking is None or self._asking.done():
            operations = self._services.operations
            self._asking = asyncio.create_task(
                ask_usage(operations.cluster_map, operations.datanodes, self._services.clock.now_ms()), name="usage"
            )
        self._report = await asyncio.shield(self._asking)
        return self._report

    def _json(self, call: Call, document: dict[str, Any]) -> web.StreamResponse:
        return self._text(call, json.dumps(document).encode() + b"\n")

    @staticmethod
    def _text(call: Call, body: bytes) -> web.StreamResponse:
        return BodyResponse(answers.text_answer(200, body, answers.JSON_TYPE, call.now_ms, call.request_id))


def _counts(row: ContainerUsage) -> tuple[int, int, int, int]:
    return row.live_count, row.live_bytes, row.dead_count, row.dead_bytes


def _node(cluster_map: ClusterMap, node: Node) -> dict[str, Any]:
    datacentre = cluster_map.datacentres[node.datacentre].name
    return {"name": node.name, "datacentre": datacentre, "rack": node.rack, "host": node.host, "port": node.port}


def _replicas(cluster_map: ClusterMap, partition: Partition) -> list[dict[str, Any]]:
    return [
        {**_node(cluster_map, cluster_map.nodes[replica.node]), "state": replica.state.value}
        for replica in partition.replicas
    ]


def render_map(cluster_map: ClusterMap) -> bytes:
    """The whole map as JSON."""
    document = {
        "fingerprint": cluster_map.fingerprint,
        "version": cluster_map.version,
        "datacentres": [{"number": one.number, "name": one.name} for _, one in sorted(cluster_map.datacentres.items())],
        "nodes": [
            {
                **_node(cluster_map, node),
                "disks": [{"path": disk.path, "capacity": disk.capacity} for disk in node.disks],
            }
            for _, node in sorted(cluster_map.nodes.items())
        ],
        "partitions": [
            {
                "partition": partition.number,
                "capacity": partition.capacity,
                "is_sealed": partition.is_sealed,
                "membership": partition.membership,
                "replicas": [
                    {"node": replica.node, "disk": replica.disk_path, "state": replica.state.value}
                    for replica in partition.replicas
                ],
            }
            for _, partition in sorted(cluster_map.partitions.items())
        ],
    }
    return json.dumps(document).encode() + b"\n"
