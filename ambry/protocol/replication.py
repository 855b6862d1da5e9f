"""What datanodes ask each other so that their replicas agree: the Peer interface and its values.

A datanode that replicates from another is the client: it polls the feeds of many partitions at once, fetches bodies
that it lacks, and compares digests. `datanode.Feed` answers over the stores of its process, `transport.RemoteDatanode`
over the wire; both verify what they hand out.

Methods return futures, as those of `protocol.datanode` do: errors of `ambry.errors` are in the future, `deadline` is
a moment of the event loop's clock.
"""

import asyncio
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from ambry.blob.requests import ChangeEntry, PutRequest
from ambry.blob.state import BlobState
from ambry.blob.value import value


@value
class Token:
    """How far a replica has read in a peer's feed: everything up to `lsn` of that incarnation."""

    incarnation: bytes
    lsn: int


NOTHING_READ = Token(b"", 0)
"""The token of a feed that was never read. No replica has an empty incarnation."""


@value
class Position:
    """Where a subscription goes on in one partition. Another incarnation than the replica's means: from the start."""

    partition: int
    token: Token


@value
class PollRequest:
    """What is new in the feeds of many partitions.

    `subscription` is a number of the client's choice. `positions` are those partitions whose position the server
    does not know: all at first, then only what the client changed by itself, for the server moves a position with
    every page that it gives out. `dropped` are partitions that the client does not want any more. `sequence` is that
    of the last answer that the client has got, 0 for none.

    The server answers when there is something new, `pace_ms` after its last answer at the earliest and after
    `hold_ms` at the latest, with at most `entries_max` changes whose bodies have about `bytes_max` together.
    """

    subscription: int
    sequence: int
    positions: tuple[Position, ...]
    dropped: tuple[int, ...]
    pace_ms: int
    hold_ms: int
    entries_max: int
    bytes_max: int


@value
class PeerToken:
    """Token of the replica that answers for the feed of `node`: whoever has read its own feed as far inherits it."""

    node: str
    token: Token


@value
class Page:
    """The newest change of each blob of one partition with `after_lsn` < LSN <= `through_lsn`, in LSN order.

    `end_lsn` is the newest LSN of the replica when the page was made; the page is the last one if `through_lsn` has
    reached it. `behind_bytes` is about how much of the log lies after the page. `tokens` come with last pages only.
    """

    partition: int
    incarnation: bytes
    after_lsn: int
    through_lsn: int
    end_lsn: int
    behind_bytes: int
    entries: tuple[ChangeEntry, ...]
    tokens: tuple[PeerToken, ...]

    @property
    def is_last(self) -> bool:
        """Whether there was nothing behind the page when it was made."""
        return self.through_lsn >= self.end_lsn


@value
class PollAnswer:
    """Pages of the partitions that have changes.

    With `is_known` false the server does not know the subscription, or not as the client does: everything has to be
    sent again, under another number. `missing` are partitions without a replica there. `out_of_reach` are the nodes
    whose feeds the server itself cannot read at the moment, so that its peers know when to do it in its place.
    """

    sequence: int
    is_known: bool
    pages: tuple[Page, ...]
    missing: tuple[int, ...]
    out_of_reach: tuple[str, ...]


class FetchOutcome(IntEnum):
    """What a peer has of a blob. Never renumber: on the wire. Zero is invalid."""

    RECORD = 1
    DEAD = 2
    ABSENT = 3
    DAMAGED = 4


@value
class FetchRequest:
    """Whole records, as they are stored. The answer is about the first of them, as far as `bytes_max` reaches."""

    blob_ids: tuple[bytes, ...]
    bytes_max: int


@value
class Fetched:
    """What the peer has of one blob: its state, and the record if its bytes are there and it lives.

    The record's `expires_at_ms` is that of the state. ABSENT without a state (life and expiry 0): never seen.
    """

    blob_id: bytes
    outcome: FetchOutcome
    state: BlobState
    put: PutRequest | None


@value
class FetchAnswer:
    """One element for each of the first blobs that were asked for, at least one."""

    records: tuple[Fetched, ...]


@value
class DigestsRequest:
    """Digests of states, for anti-entropy: one for the ids between every two neighbours of `bounds`, the lower one
    included. A bound is the unique part of an id (16 bytes). What expired before `expired_before_ms` is left out:
    compaction forgets it, on each replica at its own time.
    """

    partition: int
    bounds: tuple[bytes, ...]
    expired_before_ms: int


@value
class RangeDigest:
    """How many ids are in a range, and the sum of the checksums of their states."""

    count: int
    digest: int


@value
class DigestsAnswer:
    """The digests, one less than there were bounds."""

    incarnation: bytes
    digests: tuple[RangeDigest, ...]


@value
class RangeRequest:
    """The states of the ids from `start` up to `stop` (unique parts, 16 bytes), `limit` at most."""

    partition: int
    start: bytes
    stop: bytes
    limit: int


@value
class RangeAnswer:
    """States in the order of the ids; all of the range if there are fewer than were asked for."""

    incarnation: bytes
    entries: tuple[ChangeEntry, ...]


class ReplicationAction(IntEnum):
    """What to do before the status is told. Never renumber: on the wire. Zero is invalid."""

    TELL = 1
    PAUSE = 2
    RESUME = 3
    REPAIR = 4


@value
class ReplicationRequest:
    """How replication of this datanode stands: in total, and for each of `partitions`.

    PAUSE and RESUME concern these partitions, or all when none is named, until the process ends. REPAIR compares these
    partitions (all when none is named) with every peer that can be reached, soon, and works through the repair queue.
    """

    action: ReplicationAction
    partitions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """Replication from one other datanode. Lag is what is not here yet, in bytes and in milliseconds."""

    node: str
    datacentre: int
    is_reachable: bool
    partitions: int
    partitions_behind: int
    lag_bytes: int
    lag_ms: int
    fetched_bytes: int
    listed_bytes: int


@dataclass(frozen=True, slots=True)
class FeedStatus:
    """Replication of one partition from one other datanode."""

    partition: int
    node: str
    token: Token
    end_lsn: int
    open_count: int
    lag_bytes: int
    lag_ms: int
    is_pulled: bool
    is_paused: bool


@dataclass(frozen=True, slots=True)
class ReplicationStatus:
    """How replication of a datanode stands. `holes` are blobs whose bytes it knows to be missing here."""

    node: str
    holes: int
    links: tuple[LinkStatus, ...]
    feeds: tuple[FeedStatus, ...]


class Peer(Protocol):
    """What a datanode may ask of another one in order to have what that one has."""

    def poll(self, request: PollRequest, deadline: float) -> asyncio.Future[PollAnswer]:
        """Held open until there is something new."""
        ...

    def fetch(self, request: FetchRequest, deadline: float) -> asyncio.Future[FetchAnswer]:
        """Whole records, verified."""
        ...

    def digests(self, request: DigestsRequest, deadline: float) -> asyncio.Future[DigestsAnswer]:
        """Digests of the states in ranges of ids."""
        ...

    def states(self, request: RangeRequest, deadline: float) -> asyncio.Future[RangeAnswer]:
        """The states in a range of ids."""
        ...

    def replication(self, request: ReplicationRequest, deadline: float) -> asyncio.Future[ReplicationStatus]:
        """How replication stands there, once it was paused, resumed or asked to repair."""
        ...
