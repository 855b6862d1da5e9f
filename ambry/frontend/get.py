"""The life of a GET: what a blob is, and then its bytes in pieces, at most two of them in memory at a time.

A simple blob is one record. A composite blob is a manifest, or a tree of two levels of them; a reader holds the entries
of one leaf. Pieces come verified from the datanodes; that a chunk is the one the manifest means is checked here, by its
root. Expiry is judged here, with the clock of the process that serves.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from ambry.blob.blob_id import Kind, text_from_binary
from ambry.blob.manifest import Entry, Manifest, decode_manifest, entries_in_range
from ambry.blob.properties import Properties, decode_properties
from ambry.blob.requests import Buffer, GetAnswer, GetRequest
from ambry.blob.state import BOTTOM, BlobState, join
from ambry.errors import BlobDeleted, BlobExpired, BlobNotFound, CorruptRecord
from ambry.frontend import hedged, replicas
from ambry.frontend.budget import TransferBudget
from ambry.frontend.headers import GetOption
from ambry.frontend.placement import OWNER_AT, Placement, kind_of
from ambry.limits import BODY_BYTES_MAX, KIB, REQUEST_DEADLINE_MS

_DECODE_ON_LOOP_BYTES_MAX = 256 * KIB
"""Manifests above this (5000 chunks, 20 GiB) are decoded on a thread: 64 Ki entries take 60 ms."""


@dataclass(frozen=True, slots=True)
class OpenBlob:
    """A blob that a client may see. `head` are the first bytes of a simple one, as many as were asked for."""

    blob_id: bytes
    properties: Properties
    state: BlobState
    created_ms: int
    head: Buffer
    manifest: Manifest | None
    root: int

    @property
    def text_id(self) -> str:
        """The printable id."""
        return text_from_binary(self.blob_id)

    @property
    def size(self) -> int:
        """Plain bytes of the blob."""
        return self.properties.size


def check_state(state: BlobState, now_ms: int, option: GetOption) -> None:
    """Whether a client may see a blob in this state. Raises BlobDeleted or BlobExpired."""
    if state.is_deleted and not option.includes_deleted:
        raise BlobDeleted("the blob was deleted")
    if state.is_expired(now_ms) and not option.includes_expired:
        raise BlobExpired("the blob has expired")


async def open_blob(
    placement: Placement, blob_id: bytes, option: GetOption, *, now_ms: int, head_size: int, is_quorum: bool = False
) -> OpenBlob:
    """Find a blob to read from: the first `head_size` bytes of a simple one, the manifest of a composite one.

    `is_quorum`: its state is joined from a quorum first, so that no change is missed that was acknowledged here or in
    the originating datacentre.

    Raises BadBlobId, BlobNotFound (certain), BlobDeleted, BlobExpired, Unavailable, CorruptRecord.
    """
    stop = BODY_BYTES_MAX if kind_of(blob_id) is Kind.COMPOSITE else head_size
    return await _open(placement, blob_id, option, now_ms=now_ms, stop=stop, is_quorum=is_quorum)


async def stat_blob(
    placement: Placement, blob_id: bytes, option: GetOption, *, now_ms: int, is_quorum: bool = False
) -> OpenBlob:
    """Find out what is known of a blob, and nothing of its bytes. Raises as open_blob."""
    return await _open(placement, blob_id, option, now_ms=now_ms, stop=0, is_quorum=is_quorum)


async def _open(
    placement: Placement, blob_id: bytes, option: GetOption, *, now_ms: int, stop: int, is_quorum: bool
) -> OpenBlob:
    kind = kind_of(blob_id)
    known = BOTTOM
    includes_deleted = option.includes_deleted
    if is_quorum:
        known = await _quorum_state(placement, blob_id)
        check_state(known, now_ms, option)
        # Whoever gives the bytes may have missed an undelete.
        includes_deleted = True
    answer = await read_record(placement, GetRequest(blob_id, 0, stop, include_deleted=includes_deleted))
    state = join(known, answer.state) if is_quorum else answer.state
    check_state(state, now_ms, option)
    if kind is Kind.SIMPLE:
        return opened_simple(blob_id, answer, state)
    properties = _readable(answer)
    manifest = await _decode_manifest(answer, properties.size) if stop else None
    return OpenBlob(blob_id, properties, state, answer.created_ms, b"", manifest, answer.root)


def opened_simple(blob_id: bytes, answer: GetAnswer, state: BlobState) -> OpenBlob:
    """A simple blob with the first bytes that were read of it; the caller has judged its state.

    Raises CorruptRecord.
    """
    properties = _readable(answer)
    if properties.size != answer.body_size:
        raise CorruptRecord("the size of a blob is not the size of its body")
    return OpenBlob(blob_id, properties, state, answer.created_ms, answer.body, None, answer.root)


def _readable(answer: GetAnswer) -> Properties:
    properties = decode_properties(answer.properties)
    if properties.frames is not None:
        raise CorruptRecord("a body in frames that this version does not read")
    return properties


async def _quorum_state(placement: Placement, blob_id: bytes) -> BlobState:
    deadline = asyncio.get_running_loop().time() + REQUEST_DEADLINE_MS / 1000
    found = await replicas.survey(placement.route_of(blob_id), blob_id, deadline, with_origin=True)
    assert found.joined is not None
    return found.joined


async def read_record(placement: Placement, request: GetRequest) -> GetAnswer:
    """One record's bytes, at once if they are at hand. Raises as hedged.read."""
    route = placement.route_of(request.blob_id)
    answer = hedged.read_now(route, request)
    if answer is None:
        deadline = asyncio.get_running_loop().time() + REQUEST_DEADLINE_MS / 1000
        answer = await hedged.read(route, request, deadline)
    return answer


async def _decode_manifest(answer: GetAnswer, size: int) -> Manifest:
    if len(answer.body) != answer.body_size:
        raise CorruptRecord("a manifest is larger than any record")
    if len(answer.body) > _DECODE_ON_LOOP_BYTES_MAX:
        manifest = await asyncio.get_running_loop().run_in_executor(None, decode_manifest, answer.body)
    else:
        manifest = decode_manifest(answer.body)
    if manifest.size != size:
        raise CorruptRecord("the size of a blob is not the size of its chunks")
    return manifest


async def read_leaf(placement: Placement, entry: Entry) -> Manifest:
    """The manifest that an entry of a root manifest names. Raises CorruptRecord when it is not that."""
    answer = await _owned(placement, GetRequest(entry.blob_id, 0, BODY_BYTES_MAX), entry.root)
    leaf = await _decode_manifest(answer, entry.size)
    if leaf.level != 0:
        raise CorruptRecord("a manifest tree of more than two levels")
    return leaf


async def _owned(placement: Placement, request: GetRequest, root: int) -> GetAnswer:
    """Bytes of a chunk or a leaf. That it is missing is damage, not an answer to the client's question."""
    try:
        answer = await read_record(placement, request)
    except (BlobNotFound, BlobDeleted, BlobExpired) as error:
        raise CorruptRecord("a chunk of the blob is missing") from error
    if answer.root != root:
        raise CorruptRecord("a chunk of the blob is not the one that was put")
    return answer


@dataclass(frozen=True, slots=True)
class _Step:
    """Bytes start:stop of one record, whose body has this root."""

    blob_id: bytes
    root: int
    start: int
    stop: int


class PieceReader:
    """Bytes start:stop of an open blob, piece by piece. Close it, or its share of the budget is lost.

    `next` returns the bytes that follow, and nothing at the end. What it returned before is given up by the next call:
    at most one piece is with the caller and one on its way.
    """

    __slots__ = ("_at", "_blob", "_budget", "_coming", "_given", "_leaf", "_placement", "_steps", "_stop", "_top")

    def __init__(self, placement: Placement, budget: TransferBudget, blob: OpenBlob, start: int, stop: int) -> None:
        assert 0 <= start <= stop <= blob.size
        self._placement = placement
        self._budget = budget
        self._blob = blob
        self._at = start
        self._stop = stop
        self._given = 0
        self._coming: tuple[int, asyncio.Task[Buffer]] | None = None
        self._steps: Iterator[tuple[Entry, int, int]] = iter(())
        self._top: Iterator[tuple[Entry, int, int]] = iter(())
        self._leaf: _Step | None = None
        if blob.manifest is None:
            self._leaf = _Step(blob.blob_id, blob.root, start, stop)
        elif blob.manifest.level == 0:
            self._steps = entries_in_range(blob.manifest, start, stop)
        else:
            self._top = entries_in_range(blob.manifest, start, stop)

    async def next(self) -> Buffer:
        """The next piece, empty at the end. Raises Overloaded, Unavailable or CorruptRecord."""
        self._give_back()
        if self._coming is not None:
            share, task = self._coming
            piece = await task
            self._coming, self._given = None, share
        elif self._at == self._stop:
            return b""
        else:
            step = await self._next_step()
            share = step.stop - step.start
            await self._budget.take(share, self._blob.blob_id[OWNER_AT])
            self._given = share
            piece = await self._read(step)
        await self._prefetch()
        return piece

    async def close(self) -> None:
        """Give back what is held; no call may follow."""
        self._give_back()
        if self._coming is not None:
            share, task = self._coming
            self._coming = None
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self._budget.give(share)

    def _give_back(self) -> None:
        self._budget.give(self._given)
        self._given = 0

    async def _prefetch(self) -> None:
        """Begin the piece after this one while memory is plenty; nobody waits for memory with a piece in hand."""
        if self._at == self._stop or self._budget.is_scarce:
            return
        step = await self._next_step()
        share = step.stop - step.start
        if self._budget.try_take(share):
            self._coming = (share, asyncio.create_task(self._read(step), name="prefetch"))
        else:
            self._unread(step)

    async def _read(self, step: _Step) -> Buffer:
        answer = await _owned(self._placement, GetRequest(step.blob_id, step.start, step.stop, True), step.root)
        if len(answer.body) != step.stop - step.start:
            raise CorruptRecord("a chunk of the blob is shorter than it should be")
        return answer.body

    async def _next_step(self) -> _Step:
        """The next piece of one record, cut so that the following ones begin at multiples of the piece size."""
        record = self._leaf
        if record is None:
            entry, start, stop = await self._next_entry()
            record = _Step(entry.blob_id, entry.root, start, stop)
        size = self._budget.piece_bytes()
        stop = min(record.stop, record.start - record.start % size + size)
        self._leaf = _Step(record.blob_id, record.root, stop, record.stop) if stop < record.stop else None
        self._at += stop - record.start
        return _Step(record.blob_id, record.root, record.start, stop)

    def _unread(self, step: _Step) -> None:
        stop = self._leaf.stop if self._leaf is not None else step.stop
        self._leaf = _Step(step.blob_id, step.root, step.start, stop)
        self._at -= step.stop - step.start

    async def _next_entry(self) -> tuple[Entry, int, int]:
        found = next(self._steps, None)
        if found is None:
            entry, start, stop = next(self._top)
            self._steps = entries_in_range(await read_leaf(self._placement, entry), start, stop)
            found = next(self._steps)
        return found
