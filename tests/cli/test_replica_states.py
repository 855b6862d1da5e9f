"""What `cluster verify` compares: states in pages, bytes when asked for, and everything that is not equal."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from ambry.blob.blob_id import UNIQUE_SIZE
from ambry.blob.requests import ChangeEntry, PutRequest
from ambry.blob.state import NEVER, BlobState
from ambry.cli.replica_states import Comparison, compare
from ambry.cluster import changes
from ambry.cluster.map import ClusterMap, Disk, Node, ReplicaState
from ambry.errors import AmbryError, ConnectionLost
from ambry.limits import GIB, LISTING_ROWS_MAX
from ambry.protocol.replication import (
    FetchAnswer,
    Fetched,
    FetchOutcome,
    FetchRequest,
    RangeAnswer,
    RangeRequest,
)
from tests.replication.cluster import record

NOW_MS = 1_700_000_000_000
DAY_MS = 86_400_000
NODES = ("a", "b", "c")


def cluster_map() -> ClusterMap:
    made = changes.empty_map("test", ["here"])
    for number, name in enumerate(NODES):
        made = changes.put_node(made, Node(name, 1, f"rack-{number}", name, 1, (Disk("disk", 10 * GIB),)))
    return changes.create_partitions(made, changes.Wanted(1, GIB, 3, (1,)))


@dataclass
class MemoryPeer:
    """Answers over a list of states and a few records. Has the two methods that a comparison uses."""

    entries: list[ChangeEntry] = field(default_factory=list)
    puts: dict[bytes, PutRequest] = field(default_factory=dict)
    failure: AmbryError | None = None
    pages: int = 0

    async def states(self, request: RangeRequest, _deadline: float) -> RangeAnswer:
        if self.failure is not None:
            raise self.failure
        self.pages += 1
        inside = [one for one in self.entries if request.start <= one.blob_id[UNIQUE_SIZE:] < request.stop]
        return RangeAnswer(b"i", tuple(inside[: request.limit]))

    async def fetch(self, request: FetchRequest, _deadline: float) -> FetchAnswer:
        some = request.blob_ids[:7]
        return FetchAnswer(tuple(self._fetched(blob_id) for blob_id in some))

    def _fetched(self, blob_id: bytes) -> Fetched:
        put = self.puts.get(blob_id)
        outcome = FetchOutcome.RECORD if put is not None else FetchOutcome.DAMAGED
        return Fetched(blob_id, outcome, BlobState(0, NEVER), put)


def entry(number: int, *, life: int = 0, expires_at_ms: int = NEVER, has_body: bool = True) -> ChangeEntry:
    blob_id = bytes(12) + (1).to_bytes(4, "big") + number.to_bytes(UNIQUE_SIZE, "big")
    return ChangeEntry(number + 1, blob_id, BlobState(life, expires_at_ms), has_body, 10, 1)


def compared(peers: dict[str, MemoryPeer], found: ClusterMap | None = None, **options: Any) -> Comparison:
    # A comparison uses two methods of a peer.
    return asyncio.run(compare(found or cluster_map(), 1, peers, NOW_MS, **options))  # type: ignore[arg-type]


def three(entries: Sequence[ChangeEntry]) -> dict[str, MemoryPeer]:
    return {name: MemoryPeer(list(entries)) for name in NODES}


def test_equal_replicas_of_many_pages_are_equal_and_counted() -> None:
    count = 2 * LISTING_ROWS_MAX + 5
    peers = three([entry(number, life=number % 2) for number in range(count)])
    result = compared(peers)
    assert result.is_equal
    assert result.counts == dict.fromkeys(NODES, count)
    assert (result.live, result.deleted) == (count // 2 + 1, count // 2)
    assert peers["a"].pages == 3


@pytest.mark.parametrize("at", [0, LISTING_ROWS_MAX - 1, LISTING_ROWS_MAX, 2 * LISTING_ROWS_MAX + 4])
def test_one_blob_that_one_replica_lacks_is_found_wherever_it_is(at: int) -> None:
    everything = [entry(number) for number in range(2 * LISTING_ROWS_MAX + 5)]
    peers = three(everything)
    del peers["b"].entries[at]
    result = compared(peers)
    assert not result.is_equal
    assert result.differing == [everything[at].blob_id]
    assert result.counts["b"] == len(everything) - 1


@pytest.mark.parametrize(
    "other",
    [
        entry(3, life=1),
        entry(3, expires_at_ms=NOW_MS + 5),
        entry(3, has_body=False),
        replace(entry(3), body_size=11),
    ],
)
def test_any_difference_of_a_state_is_a_difference(other: ChangeEntry) -> None:
    peers = three([entry(number) for number in range(10)])
    peers["c"].entries[3] = other
    assert compared(peers).differing == [entry(3).blob_id]


def test_bytes_of_the_dead_and_what_expired_a_day_ago_are_not_compared() -> None:
    peers = three([entry(1, life=1), entry(2, expires_at_ms=NOW_MS - DAY_MS - 1)])
    peers["a"].entries[0] = entry(1, life=1, has_body=False)
    del peers["b"].entries[1]
    result = compared(peers)
    assert result.is_equal
    assert result.deleted == 1


def test_a_blob_whose_bytes_nobody_has_is_lost_though_all_agree() -> None:
    result = compared(three([entry(1, has_body=False)]))
    assert result.lost == [entry(1).blob_id]
    assert result.is_equal


def test_who_is_out_of_reach_or_joins_makes_the_answer_no() -> None:
    peers = three([entry(1)])
    peers["b"].failure = ConnectionLost("gone", node="b")
    result = compared(peers)
    assert list(result.unreachable) == ["b"]
    assert not result.is_equal
    found = cluster_map()
    joining = changes.rejoin(found, "c", {1: bytes(16)})
    assert joining.partitions[1].replicas[2].state is ReplicaState.JOINING
    result = compared(three([entry(1)]), joining)
    assert result.joining == ["c"]
    assert not result.is_equal
    del peers["b"]
    assert list(compared(peers).unreachable) == ["b"]


def test_with_bytes_another_root_and_a_damaged_record_are_found() -> None:
    puts = [record(bytes([number]) * 50) for number in range(20)]
    entries = sorted(
        (ChangeEntry(1, put.blob_id, BlobState(0, NEVER), True, 50, 1) for put in puts),
        key=lambda one: one.blob_id[UNIQUE_SIZE:],
    )
    peers = three(entries)
    for peer in peers.values():
        peer.puts = {put.blob_id: put for put in puts}
    result = compared(peers, is_bytes=True)
    assert result.is_equal
    assert result.bytes_read == 3 * 20 * 50
    other = record(b"x" * 50)
    peers["b"].puts[puts[4].blob_id] = replace(other, blob_id=puts[4].blob_id)
    del peers["c"].puts[puts[9].blob_id]
    assert compared(peers).is_equal
    assert set(compared(peers, is_bytes=True).differing) == {puts[4].blob_id, puts[9].blob_id}
