"""What the replicas of a partition hold, asked over the wire and compared: the heart of `cluster verify`.

Two replicas are equal when they have the same state for every blob id they have seen, and agree on which live blobs
have bytes and how many. States are read in the order of the ids, a page of each replica at a time, so memory is bounded
whatever a partition holds. With `bytes` every live blob is read from every replica as well, which verifies its
checksums, and their roots and properties are compared. A replica that joins is not compared: it is known to lack
something. Nor is what expired a day ago: compaction forgets it, on each replica at its own time.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias, TypeVar

from ambry.blob.blob_id import UNIQUE_SIZE
from ambry.blob.requests import ChangeEntry
from ambry.cli.connections import Connections, Identity
from ambry.cluster.map import ClusterMap, ReplicaState
from ambry.errors import AmbryError, ConnectionLost
from ambry.limits import FETCH_BLOBS_MAX, FETCH_BYTES_MAX, LISTING_ROWS_MAX
from ambry.protocol.replication import FetchOutcome, FetchRequest, Peer, RangeRequest
from ambry.replication.session import EXPIRED_KEPT_MS
from ambry.transport.client import RemoteDatanode

ASK_S: Final = 10.0
"""An operator waits this long for the answer of a datanode."""

_PAGE_S: Final = 30.0
_AT_ONCE: Final = 8
"""Partitions that are compared at a time."""

_LAST: Final = b"\xff" * UNIQUE_SIZE

_State: TypeAlias = tuple[int, int, bool, int]
"""Life, expiry, whether a live blob has its bytes, and how many."""

_Answer = TypeVar("_Answer")
_Page: TypeAlias = dict[bytes, _State]


@dataclass(slots=True)
class Comparison:
    """What the replicas of one partition have."""

    partition: int
    counts: dict[str, int] = field(default_factory=dict)
    live: int = 0
    deleted: int = 0
    bytes_read: int = 0
    differing: list[bytes] = field(default_factory=list)
    lost: list[bytes] = field(default_factory=list)
    """They live, all replicas agree, and nobody has their bytes."""
    unreachable: dict[str, str] = field(default_factory=dict)
    joining: list[str] = field(default_factory=list)

    @property
    def is_equal(self) -> bool:
        """Whether all replicas answered, and agree."""
        return not self.differing and not self.unreachable and not self.joining


async def connected(cluster_map: ClusterMap, identity: Identity) -> Connections:
    """Connections to all datanodes of a map, for an operator's command."""
    connections = Connections(identity)
    await connections.adopt(cluster_map)
    return connections


async def ask_each(
    cluster_map: ClusterMap, identity: Identity, ask: Callable[[RemoteDatanode, float], Awaitable[_Answer]]
) -> dict[str, _Answer | AmbryError]:
    """What each datanode of a map answers, or why it does not. `ask` gets a datanode and the deadline."""
    connections = await connected(cluster_map, identity)
    deadline = asyncio.get_running_loop().time() + ASK_S

    async def one(name: str) -> _Answer | AmbryError:
        try:
            return await ask(connections.remote(name), deadline)
        except AmbryError as error:
            return error

    try:
        answers = await asyncio.gather(*(one(name) for name in cluster_map.nodes))
    finally:
        await connections.close()
    return dict(zip(cluster_map.nodes, answers, strict=True))


async def compare_all(
    cluster_map: ClusterMap,
    identity: Identity,
    numbers: Sequence[int],
    now_ms: int,
    advance: Callable[[int], None] = lambda _: None,
    *,
    is_bytes: bool = False,
) -> list[Comparison]:
    """Compare partitions, a few at a time; `advance` is told of each that is done."""
    connections = await connected(cluster_map, identity)
    peers = {name: connections.remote(name) for name in cluster_map.nodes}
    free = asyncio.Semaphore(_AT_ONCE)

    async def one(number: int) -> Comparison:
        async with free:
            found = await compare(cluster_map, number, peers, now_ms, is_bytes=is_bytes)
        advance(1)
        return found

    try:
        return list(await asyncio.gather(*(one(number) for number in numbers)))
    finally:
        await connections.close()


async def compare(
    cluster_map: ClusterMap, number: int, peers: Mapping[str, Peer], now_ms: int, *, is_bytes: bool = False
) -> Comparison:
    """Compare all replicas of a partition."""
    result = Comparison(number)
    names: list[str] = []
    for replica in cluster_map.partitions[number].replicas:
        (result.joining if replica.state is ReplicaState.JOINING else names).append(replica.node)
    result.counts = dict.fromkeys(names, 0)
    start = bytes(UNIQUE_SIZE)
    while start < _LAST:
        answers = await asyncio.gather(*(_page_of(peers, name, number, start) for name in names))
        pages: dict[str, Sequence[ChangeEntry]] = {}
        for name, answer in zip(tuple(names), answers, strict=True):
            if isinstance(answer, AmbryError):
                result.unreachable[name] = str(answer)
                names.remove(name)
                del result.counts[name]
            else:
                pages[name] = answer
        full = [page[-1].blob_id[UNIQUE_SIZE:] for page in pages.values() if len(page) >= LISTING_ROWS_MAX]
        stop = min(full, default=_LAST)
        oldest_ms = now_ms - EXPIRED_KEPT_MS
        held = {name: _states(page, stop, oldest_ms) for name, page in pages.items()}
        good = _compare_pages(result, held)
        if is_bytes and good:
            await _compare_bytes(result, good, {name: peers[name] for name in held})
        start = (int.from_bytes(stop, "big") + 1).to_bytes(UNIQUE_SIZE, "big") if stop < _LAST else _LAST
    return result


async def _page_of(
    peers: Mapping[str, Peer], name: str, number: int, start: bytes
) -> Sequence[ChangeEntry] | AmbryError:
    peer = peers.get(name)
    if peer is None:
        return ConnectionLost("the map does not have this datanode", node=name)
    deadline = asyncio.get_running_loop().time() + _PAGE_S
    try:
        return (await peer.states(RangeRequest(number, start, _LAST, LISTING_ROWS_MAX), deadline)).entries
    except AmbryError as error:
        return error


def _states(page: Sequence[ChangeEntry], stop: bytes, oldest_ms: int) -> _Page:
    found: _Page = {}
    for entry in page:
        if entry.blob_id[UNIQUE_SIZE:] <= stop and entry.state.expires_at_ms > oldest_ms:
            has_body = entry.has_body and not entry.state.is_deleted
            size = entry.body_size if has_body else 0
            found[entry.blob_id] = (entry.state.life, entry.state.expires_at_ms, has_body, size)
    return found


def _compare_pages(result: Comparison, held: Mapping[str, _Page]) -> list[bytes]:
    """Count and compare one range of ids; the ids of live blobs with bytes on which all agree."""
    good: list[bytes] = []
    for name, page in held.items():
        result.counts[name] += len(page)
    for blob_id in sorted(set().union(*held.values())):
        states = {page.get(blob_id) for page in held.values()}
        (life, _, has_body, _) = next(one for one in states if one is not None)
        if len(states) != 1:
            result.differing.append(blob_id)
        elif has_body:
            good.append(blob_id)
        elif not life % 2:
            result.lost.append(blob_id)
        if life % 2:
            result.deleted += 1
        else:
            result.live += 1
    return good


async def _compare_bytes(result: Comparison, blob_ids: Sequence[bytes], peers: Mapping[str, Peer]) -> None:
    """Read blobs from all replicas, and compare what is known of each by its verified bytes."""
    for start in range(0, len(blob_ids), FETCH_BLOBS_MAX):
        some = blob_ids[start : start + FETCH_BLOBS_MAX]
        answers = await asyncio.gather(*(_records(peer, some) for peer in peers.values()))
        held: list[Mapping[bytes, object]] = []
        for name, (records, size, error) in zip(peers, answers, strict=True):
            result.bytes_read += size
            if error is not None:
                result.unreachable[name] = str(error)
            else:
                held.append(records)
        for blob_id in some:
            found = {one.get(blob_id) for one in held}
            if len(found) != 1 or None in found:
                result.differing.append(blob_id)


async def _records(peer: Peer, blob_ids: Sequence[bytes]) -> tuple[Mapping[bytes, object], int, AmbryError | None]:
    """Root, size and properties of the good ones among some blobs; bytes that were read."""
    loop = asyncio.get_running_loop()
    found: dict[bytes, object] = {}
    size, done = 0, 0
    try:
        while done < len(blob_ids):
            request = FetchRequest(tuple(blob_ids[done:]), FETCH_BYTES_MAX)
            records = (await peer.fetch(request, loop.time() + _PAGE_S)).records
            for record in records:
                if record.outcome is FetchOutcome.RECORD and record.put is not None:
                    put = record.put
                    size += len(put.body)
                    found[record.blob_id] = (put.root, len(put.body), put.created_ms, bytes(put.properties))
            done += len(records)
    except AmbryError as error:
        return found, size, error
    return found, size, None
