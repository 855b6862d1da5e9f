"""What is asked of a store of blobs and what it answers: values that the engine, the wire and the frontend share.

They stand below all three, so that a request passes from the socket to the log without being rebuilt on the way.
"""

from enum import IntEnum
from typing import TypeAlias

from ambry.blob.state import BlobState
from ambry.blob.value import value

Buffer: TypeAlias = bytes | bytearray | memoryview


@value
class PutRequest:
    """Store one record. `blob_id` is binary (32 bytes), `properties` and `vector` are stored as they are.

    `root` is the root of `vector` for `len(body)`; the datanode checks both and every block before it appends.
    A put of an id that is stored with the same root is a success that changes nothing; with another it is
    BlobCollision. For an id whose life is odd (its delete came first) the body is not stored.
    """

    blob_id: bytes
    created_ms: int
    expires_at_ms: int
    properties: bytes
    body: Buffer
    vector: bytes
    root: int


@value
class GetRequest:
    """Read bytes start:stop of the stored body; `stop` beyond the end is cut. 0:0 asks for everything but the body.

    `include_deleted` answers for a deleted blob as long as its bytes are there; otherwise it is BlobDeleted.
    Expiry is judged by who serves, not here: an expired blob is answered, with its state.
    """

    blob_id: bytes
    start: int
    stop: int
    include_deleted: bool = False


@value
class GetAnswer:
    """Verified bytes `start : start + len(body)` of a stored body of `body_size` bytes, and what goes with them."""

    state: BlobState
    created_ms: int
    properties: bytes
    body_size: int
    root: int
    start: int
    body: Buffer


class Change(IntEnum):
    """What an update does to the state. Never renumber: on the wire. Zero is invalid."""

    DELETE = 1
    UNDELETE = 2
    EXTEND = 3
    JOIN = 4


@value
class UpdateRequest:
    """Change the state of a blob id. Each change is idempotent and never shrinks a state.

    DELETE, UNDELETE and EXTEND (to `state.expires_at_ms`) start from what the replica knows, and are BlobNotFound for
    an id that it has never seen. UNDELETE starts from the join with `state`, and is BlobNotFound also where a deleted
    blob's bytes are gone. JOIN joins `state` as it is, also for an id without a put: the tombstone waits.
    """

    blob_id: bytes
    change: Change
    state: BlobState
    time_ms: int


@value
class StateAnswer:
    """The state of the id after the request, durable here; whether the body is here too."""

    state: BlobState
    has_body: bool


@value
class ChangesRequest:
    """The newest change of each blob of a partition after an LSN, in LSN order, `limit` at most."""

    partition: int
    after_lsn: int
    limit: int


@value
class ChangeEntry:
    """One blob's newest change."""

    lsn: int
    blob_id: bytes
    state: BlobState
    has_body: bool
    body_size: int
    time_ms: int


@value
class ChangesAnswer:
    """A page of changes. `end_lsn` is the newest LSN of the replica: with it and the last entry, lag is known."""

    incarnation: bytes
    entries: tuple[ChangeEntry, ...]
    end_lsn: int


@value
class UsageRequest:
    """What containers use on a datanode, in order of (partition, account, container), after `after`; a page of rows."""

    after: tuple[int, int, int] | None
    limit: int


@value
class ContainerUsage:
    """Blobs and bytes of bodies of one container in one replica: live, and dead but not yet reclaimed.

    A composite blob counts with its manifest and each of its chunks.
    """

    partition: int
    account: int
    container: int
    live_count: int
    live_bytes: int
    dead_count: int
    dead_bytes: int


@value
class UsageAnswer:
    """A page; `is_last` says that nothing follows."""

    rows: tuple[ContainerUsage, ...]
    is_last: bool
