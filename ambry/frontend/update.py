"""DELETE, TTL update and UNDELETE: changes of a state that W replicas have to reach.

DELETE and UNDELETE of a composite blob write only its manifest, since chunks live while their manifest lives. A TTL
update changes the chunks first: if it breaks off, some chunks outlive the blob until the sweeper comes, and no blob
outlives a chunk.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from ambry.blob.blob_id import Kind
from ambry.blob.manifest import Entry, Manifest
from ambry.blob.requests import Change, GetRequest
from ambry.blob.state import BlobState, deleted, extended, join, undeleted
from ambry.clock import Clock
from ambry.errors import BlobDeleted, BlobExpired, BlobNotFound, CorruptRecord, NotAllowed, Unavailable
from ambry.frontend import replicas
from ambry.frontend.get import open_blob, read_leaf, read_record
from ambry.frontend.headers import GetOption
from ambry.frontend.placement import Placement, kind_of
from ambry.limits import REQUEST_DEADLINE_MS, UPDATE_CHUNKS_IN_FLIGHT_MAX


async def delete(placement: Placement, clock: Clock, blob_id: bytes) -> BlobState:
    """Delete a blob; deleting it again changes nothing. Raises BlobNotFound (certain), BlobExpired, Unavailable."""
    kind_of(blob_id)
    # What cannot be read, because it is damaged or only its tombstone is left, can be deleted all the same.
    floor = None
    with contextlib.suppress(Unavailable):
        state, _ = await _survey(placement, blob_id)
        if state.is_expired(clock.now_ms()):
            raise BlobExpired("the blob has expired")
        floor = deleted(state)
    # DELETE, not JOIN of the floor: a replica may know of an undelete that nobody else has seen.
    return await _converge(placement, clock, blob_id, Change.DELETE, None, floor)


async def extend(placement: Placement, clock: Clock, blob_id: bytes, expires_at_ms: int) -> BlobState:
    """Let a blob live until `expires_at_ms` or NEVER. Raises BlobNotFound, BlobDeleted, BlobExpired, NotAllowed.

    NotAllowed: it already lives longer, and a TTL is never shortened.
    """
    kind = kind_of(blob_id)
    state, _ = await _survey(placement, blob_id)
    if state.is_deleted:
        raise BlobDeleted("the blob was deleted")
    if state.is_expired(clock.now_ms()):
        raise BlobExpired("the blob has expired")
    if expires_at_ms < state.expires_at_ms:
        raise NotAllowed("a TTL is never shortened")
    if kind is Kind.COMPOSITE:
        await _extend_chunks(placement, clock, blob_id, expires_at_ms)
    return await _converge(placement, clock, blob_id, Change.JOIN, extended(state, expires_at_ms))


async def undelete(placement: Placement, clock: Clock, blob_id: bytes, tried: list[BlobState]) -> BlobState:
    """Bring a deleted blob back. Raises BlobDeleted when its bytes are gone, as a read does while there is a tombstone;
    BlobNotFound (certain), BlobExpired, Unavailable; NotAllowed if it lives.

    `tried`: what earlier attempts of the same request have aimed at, and this one too from now on. A blob that lives
    as one of them wanted it was brought back by this request, whatever that attempt heard of it.
    """
    kind = kind_of(blob_id)
    state, bytes_are_here = await _survey(placement, blob_id)
    if state.is_deleted and bytes_are_here is False:
        raise BlobDeleted(replicas.GONE_FOR_GOOD)
    if state.is_expired(clock.now_ms()):
        raise BlobExpired("the blob has expired")
    if state.is_deleted:
        target = undeleted(state)
        tried.append(target)
    elif state.life in {one.life for one in tried}:
        target = state
    else:
        raise NotAllowed("the blob is not deleted")
    if kind is Kind.COMPOSITE:
        if bytes_are_here is None:
            await _find_bytes(placement, blob_id)
        await _find_chunks(placement, clock, blob_id)
    # First where the bytes are, for compaction may take them everywhere between the look and here: a blob that others
    # were told lives, and whose bytes are gone, would be 503 for ever, and not 410.
    route = placement.route_of(blob_id)
    revived = await replicas.revive(route, blob_id, state, time_ms=clock.now_ms(), deadline=_deadline())
    return await _converge(placement, clock, blob_id, Change.JOIN, join(target, revived))


async def _find_bytes(placement: Placement, blob_id: bytes) -> None:
    """Raises Unavailable when no replica within reach has the bytes: a blob that lives and has none never heals."""
    try:
        await read_record(placement, GetRequest(blob_id, 0, 0, include_deleted=True))
    except (BlobNotFound, BlobDeleted, BlobExpired) as error:
        raise Unavailable("whether the bytes of the deleted blob are still there is not known") from error


async def _find_chunks(placement: Placement, clock: Clock, blob_id: bytes) -> None:
    """Raises BlobDeleted when a chunk is gone: its sweeper takes them some time after the retention of the manifest,
    whose own bytes may be there for longer.
    """
    try:
        await _each_chunk(placement, clock, blob_id, lambda one: read_record(placement, GetRequest(one, 0, 0)))
    except (BlobNotFound, BlobDeleted, CorruptRecord) as error:
        if isinstance(error, CorruptRecord) and not isinstance(error.__cause__, BlobNotFound | BlobDeleted):
            raise
        raise BlobDeleted(f"{replicas.GONE_FOR_GOOD}; chunks of it are gone") from error


async def _extend_chunks(placement: Placement, clock: Clock, blob_id: bytes, expires_at_ms: int) -> None:
    target = BlobState(0, expires_at_ms)
    await _each_chunk(placement, clock, blob_id, lambda one: _converge(placement, clock, one, Change.JOIN, target))


async def _each_chunk(
    placement: Placement, clock: Clock, blob_id: bytes, act: Callable[[bytes], Awaitable[object]]
) -> None:
    """Do something for the id of every chunk and leaf of a composite blob, some at a time. Raises what `act` raises."""
    blob = await open_blob(placement, blob_id, GetOption.ALL, now_ms=clock.now_ms(), head_size=0)
    assert blob.manifest is not None
    group: list[bytes] = []
    async for entry in _owned_entries(placement, blob.manifest):
        group.append(entry.blob_id)
        if len(group) == UPDATE_CHUNKS_IN_FLIGHT_MAX:
            await _all_of(group, act)
            group = []
    await _all_of(group, act)


async def _all_of(blob_ids: Sequence[bytes], act: Callable[[bytes], Awaitable[object]]) -> None:
    for result in await asyncio.gather(*map(act, blob_ids), return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


async def _owned_entries(placement: Placement, manifest: Manifest) -> AsyncIterator[Entry]:
    """Every chunk of a composite blob, and every leaf after its chunks."""
    for entry in manifest.entries:
        if manifest.level > 0:
            for chunk in (await read_leaf(placement, entry)).entries:
                yield chunk
        yield entry


async def _survey(placement: Placement, blob_id: bytes) -> tuple[BlobState, bool | None]:
    """The state of a blob, and whether a replica has its bytes: None when those that were asked cannot tell."""
    found = await replicas.survey(placement.route_of(blob_id), blob_id, _deadline())
    assert found.joined is not None
    return found.joined, True if found.has_body else False if found.is_complete else None


async def _converge(
    placement: Placement,
    clock: Clock,
    blob_id: bytes,
    change: Change,
    target: BlobState | None,
    floor: BlobState | None = None,
) -> BlobState:
    route = placement.route_of(blob_id)
    return await replicas.converge(
        route, blob_id, change, target, time_ms=clock.now_ms(), deadline=_deadline(), floor=floor
    )


def _deadline() -> float:
    return asyncio.get_running_loop().time() + REQUEST_DEADLINE_MS / 1000
