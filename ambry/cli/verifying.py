"""Comparing the replicas of partitions for an operator: progress on a terminal, what was found, the exit status."""

import asyncio
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, Final

import click

from ambry.blob.blob_id import text_from_binary
from ambry.cli.credentials import Credentials
from ambry.cli.operator import show, show_table
from ambry.cli.progress import progress_of
from ambry.cli.replica_states import Comparison, compare_all
from ambry.clock import SystemClock
from ambry.cluster.map import ClusterMap
from ambry.errors import ChangeRefused

_LOOK_S: Final = 0.5
_IDS_SHOWN_MAX: Final = 20
_PARTITIONS_SHOWN_MAX: Final = 50

bytes_option: Final = click.option(
    "--bytes", "is_bytes", is_flag=True, help="Also read every blob from every replica, and compare what was verified."
)


def compared(
    found: ClusterMap,
    credentials: Credentials,
    numbers: Sequence[int],
    *,
    is_bytes: bool = False,
    as_json: bool = True,
) -> list[Comparison]:
    """Compare partitions; with a bar for people, unless `as_json`."""
    with progress_of("comparing partitions", as_json=as_json, is_bytes=False) as progress:
        progress.begin(len(numbers))
        now_ms = SystemClock().now_ms()
        identity = credentials.identity("verify")
        return asyncio.run(compare_all(found, identity, numbers, now_ms, progress.advance, is_bytes=is_bytes))


def let_be_equal(
    found: ClusterMap,
    credentials: Credentials,
    number: int,
    nodes: Collection[str],
    timeout_s: float,
    otherwise: str,
) -> None:
    """Wait until the replicas of a partition on some datanodes have all that any of them has now; what comes meanwhile
    does not count. Raises ChangeRefused after `timeout_s`, or when one is out of reach; `otherwise` is what to do then.
    """
    partition = found.partitions[number]
    some = replace(partition, replicas=tuple(one for one in partition.replicas if one.node in nodes))
    only = replace(found, partitions={**found.partitions, number: some})
    before = after = compared(only, credentials, [number])[0]
    give_up_at = time.monotonic() + timeout_s
    while (left := set(after.differing) & set(before.differing)) and time.monotonic() < give_up_at:
        time.sleep(_LOOK_S)
        after = compared(only, credentials, [number])[0]
    if after.unreachable or left:
        why = f"{', '.join(after.unreachable)} is out of reach" if after.unreachable else f"{len(left)} blobs differ"
        who = ", ".join(sorted(nodes))
        raise ChangeRefused(
            f"the replicas of partition {number} on {who} are to be equal first, and {why}; {otherwise}"
        )


def verify_partitions(
    found: ClusterMap, credentials: Credentials, numbers: Sequence[int], *, is_bytes: bool, as_json: bool
) -> None:
    """Compare partitions and show what was found. Ends the command with status 1 when something is not equal, when
    somebody is out of reach, joins or is not in the map, and when nobody has the bytes of a blob that lives.
    """
    results = compared(found, credentials, numbers, is_bytes=is_bytes, as_json=as_json)
    document = document_of(results, is_bytes=is_bytes)

    def table() -> None:
        rows = [(key.replace("_", " "), value) for key, value in document.items() if key != "differences"]
        show_table("replicas compared", ("what", "value"), rows)
        if document["differences"]:
            show_table(
                "not equal",
                ("partition", "blobs by replica", "differing", "lost", "out of reach", "joining"),
                [_cells_of(one) for one in results if not _is_fine(one)][:_PARTITIONS_SHOWN_MAX],
            )

    show(as_json, lambda: document, table)
    if document["differences"]:
        raise SystemExit(1)


def document_of(results: Sequence[Comparison], *, is_bytes: bool) -> dict[str, Any]:
    """What was found, for programs."""
    document: dict[str, Any] = {
        "is_equal": all(one.is_equal for one in results),
        "partitions": len(results),
        "replicas": sum(len(one.counts) for one in results),
        "blobs_live": sum(one.live for one in results),
        "blobs_deleted": sum(one.deleted for one in results),
        "blobs_differing": sum(len(one.differing) for one in results),
        "blobs_lost": sum(len(one.lost) for one in results),
        "replicas_out_of_reach": sum(len(one.unreachable) for one in results),
        "replicas_joining": sum(len(one.joining) for one in results),
    }
    if is_bytes:
        document["bytes_verified"] = sum(one.bytes_read for one in results)
    document["differences"] = [
        {
            "partition": one.partition,
            "counts": one.counts,
            "differing": [text_from_binary(blob_id) for blob_id in one.differing[:_IDS_SHOWN_MAX]],
            "lost": [text_from_binary(blob_id) for blob_id in one.lost[:_IDS_SHOWN_MAX]],
            "out_of_reach": one.unreachable,
            "joining": one.joining,
        }
        for one in results
        if not _is_fine(one)
    ]
    return document


def _is_fine(one: Comparison) -> bool:
    return one.is_equal and not one.lost


def _cells_of(one: Comparison) -> tuple[object, ...]:
    counts = ", ".join(f"{name}: {count}" for name, count in one.counts.items())
    away = ", ".join(one.unreachable)
    return one.partition, counts, len(one.differing), len(one.lost), away, ", ".join(one.joining)
