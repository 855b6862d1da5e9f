"""The feeds of a datanode's replicas for other datanodes: what they subscribe to, fetch and compare.

A subscription is a table of partitions and positions that a peer sends once; afterwards each poll carries only what
changed in it, and waits here until a commit group has come. One look over the replicas for each group, every 20 ms at
most, finds which partitions have something new, for all subscribers together: nothing costs a step for every put and
every peer, and an idle datanode does nothing at all between two polls. What has to be read is read on threads.

Invariants: only what is synced is told, because only that is in the index; the tokens of a page are those that were
durable before its changes were read, so whoever has taken the page has what they cover.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol, TypeVar

from ambry import limits
from ambry.blob.state import BlobState
from ambry.datanode.disk_service import DiskService
from ambry.errors import BadRequest, DeadlineExceeded, NoSuchReplica, Overloaded
from ambry.protocol.replication import (
    NOTHING_READ,
    DigestsAnswer,
    DigestsRequest,
    FetchAnswer,
    Fetched,
    FetchOutcome,
    FetchRequest,
    Page,
    PeerToken,
    PollAnswer,
    PollRequest,
    RangeAnswer,
    RangeDigest,
    RangeRequest,
    ReplicationRequest,
    ReplicationStatus,
    Token,
)
from ambry.storage import exchange
from ambry.storage.store import DiskStore

FEED_THREADS: Final = 3
"""Threads that read for peers: one cold fetch does not hold up the polls."""

_MARGIN_S: Final = 0.25
"""A poll is answered this long before its deadline: an answer that comes too late is no answer."""

_NEVER_SEEN: Final = BlobState(0, 0)

_Result = TypeVar("_Result")


class Teller(Protocol):
    """What replication of this datanode has to tell its peers."""

    def tokens_of(self, partition: int) -> tuple[PeerToken, ...]:
        """Durable tokens for replicas in other datacentres."""
        ...

    def out_of_reach(self) -> tuple[str, ...]:
        """Nodes whose feeds cannot be read at the moment."""
        ...

    def status(self, request: ReplicationRequest) -> ReplicationStatus:
        """How replication stands, once it was paused, resumed or asked to repair."""
        ...


@dataclass(slots=True)
class _Subscription:
    positions: dict[int, Token] = field(default_factory=dict)
    dirty: dict[int, None] = field(default_factory=dict)
    """Partitions that may have something new, in the order in which their turn comes."""
    told: dict[int, tuple[PeerToken, ...]] = field(default_factory=dict)
    missing: set[int] = field(default_factory=set)
    sequence: int = 0
    turn: int = 0
    """Number of the poll that may move it: the newest one."""
    answered_at_s: float = 0.0
    heard_at_s: float = 0.0
    woken: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One page to be read on a thread."""

    store: DiskStore
    partition: int
    token: Token
    tokens: tuple[PeerToken, ...]


_UNKNOWN: Final = PollAnswer(0, is_known=False, pages=(), missing=(), out_of_reach=())


class Feed:
    """Answers what other datanodes ask (`protocol.replication.Peer`). Made inside the loop; `close` ends it."""

    def __init__(self, services: Callable[[], Mapping[int, DiskService]], teller: Teller) -> None:
        """`services` gives the disks' services by partition, as they are now."""
        self._services = services
        self._teller = teller
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(FEED_THREADS, thread_name_prefix="feed")
        self._subscriptions: dict[int, _Subscription] = {}
        self._ends: dict[int, int] = {}
        self._look_timer: asyncio.TimerHandle | None = None
        self._looked_at_s = 0.0
        self._is_released = False
        self._heard: set[DiskService] = set()
        self._listen()

    # --- Peer --------------------------------------------------------------------------------------------------

    def poll(self, request: PollRequest, deadline: float) -> "asyncio.Future[PollAnswer]":
        """Held open until there is something new."""
        try:
            # At once: what a poll says about the subscription counts even if it is cancelled before it is held.
            subscription = self._accepted(request)
        except Overloaded as error:
            return self._failed(error)
        turn = subscription.turn if subscription is not None else 0
        return self._loop.create_task(self._poll(subscription, turn, request, deadline), name="poll of a peer")

    def fetch(self, request: FetchRequest, deadline: float) -> "asyncio.Future[FetchAnswer]":
        """Whole records, verified."""
        services = self._services()
        wanted: list[tuple[DiskStore | None, bytes]] = []
        for blob_id in request.blob_ids[: limits.FETCH_BLOBS_MAX]:
            service = services.get(int.from_bytes(blob_id[12:16], "big"))
            wanted.append((service.store if service is not None else None, blob_id))
        if not wanted:
            return self._failed(BadRequest("a fetch of nothing", field="blob_ids"))
        bytes_max = min(request.bytes_max, limits.FETCH_BYTES_MAX)
        return self._on_thread(lambda: FetchAnswer(tuple(_fetched(wanted, bytes_max))), deadline)

    def digests(self, request: DigestsRequest, deadline: float) -> "asyncio.Future[DigestsAnswer]":
        """Digests of the states in ranges of ids."""
        service = self._services().get(request.partition)
        if service is None:
            return self._failed(NoSuchReplica("no replica of this partition here", partition=request.partition))
        if len(request.bounds) > limits.DIGEST_BOUNDS_MAX:
            return self._failed(BadRequest("too many bounds", field="bounds", limit=limits.DIGEST_BOUNDS_MAX))
        store = service.store

        def read() -> DigestsAnswer:
            incarnation, found = exchange.digests(store, request.partition, request.bounds, request.expired_before_ms)
            return DigestsAnswer(incarnation, tuple(RangeDigest(count, digest) for count, digest in found))

        return self._on_thread(read, deadline)

    def states(self, request: RangeRequest, deadline: float) -> "asyncio.Future[RangeAnswer]":
        """The states in a range of ids."""
        service = self._services().get(request.partition)
        if service is None:
            return self._failed(NoSuchReplica("no replica of this partition here", partition=request.partition))
        store = service.store
        return self._on_thread(
            lambda: RangeAnswer(*exchange.states(store, request.partition, request.start, request.stop, request.limit)),
            deadline,
        )

    def replication(self, request: ReplicationRequest, deadline: float) -> "asyncio.Future[ReplicationStatus]":
        """How replication stands here, once it was paused, resumed or asked to repair."""
        del deadline  # nothing here waits
        future: asyncio.Future[ReplicationStatus] = self._loop.create_future()
        future.set_result(self._teller.status(request))
        return future

    def release(self) -> None:
        """Answer all polls that are held, and hold none any more: the datanode stops."""
        self._is_released = True
        for subscription in self._subscriptions.values():
            subscription.woken.set()

    async def close(self) -> None:
        """End the threads; what is being read is finished."""
        if self._look_timer is not None:
            self._look_timer.cancel()
        await asyncio.to_thread(self._threads.shutdown)

    # --- what is new -------------------------------------------------------------------------------------------

    def changed(self) -> None:
        """A group was committed: look soon which partitions it concerns. On the loop."""
        if self._look_timer is None and self._subscriptions:
            due_s = self._looked_at_s + limits.POLL_PACE_MS / 1000
            self._look_timer = self._loop.call_at(max(due_s, self._loop.time()), self._look)

    def _listen(self) -> None:
        """Hear of commits on every disk that has a replica by now: a new datanode begins without any."""
        for service in set(self._services().values()) - self._heard:
            self._heard.add(service)
            service.on_commit(self.changed)

    def _look(self) -> None:
        self._listen()
        self._look_timer = None
        self._looked_at_s = self._loop.time()
        changed: list[int] = []
        ends = self._ends
        for service in set(self._services().values()):
            for replica in service.store.replicas:
                if ends.get(replica.partition) != replica.end_lsn:
                    ends[replica.partition] = replica.end_lsn
                    changed.append(replica.partition)
        for subscription in self._subscriptions.values():
            concerned = [partition for partition in changed if partition in subscription.positions]
            if concerned:
                subscription.dirty.update(dict.fromkeys(concerned))
                subscription.woken.set()

    # --- polls -------------------------------------------------------------------------------------------------

    async def _poll(
        self, subscription: _Subscription | None, turn: int, request: PollRequest, deadline: float
    ) -> PollAnswer:
        if subscription is None:
            return _UNKNOWN
        until = min(self._loop.time() + min(request.hold_ms, limits.POLL_HOLD_MS_MAX) / 1000, deadline - _MARGIN_S)
        pause_s = max(request.pace_ms, limits.POLL_PACE_MS) / 1000
        pages: list[Page] = []
        while not pages and not subscription.missing and not self._is_released:
            if not subscription.dirty and not await self._is_woken(subscription, until):
                break
            # What comes while the pace is kept comes into the same answer.
            wait_s = min(subscription.answered_at_s + pause_s, until) - self._loop.time()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            pages = await self._pages(subscription, request, deadline)
        if subscription.turn != turn:
            # The client gave this poll up and sent another one: what this one read is for that one to tell.
            subscription.dirty.update(dict.fromkeys(page.partition for page in pages))
            subscription.woken.set()
            return _UNKNOWN
        # From here on nothing waits: what the subscription says and what the client gets stay in step.
        for page in pages:
            subscription.positions[page.partition] = Token(page.incarnation, page.through_lsn)
            if page.tokens:
                subscription.told[page.partition] = page.tokens
        missing, subscription.missing = tuple(sorted(subscription.missing)), set()
        subscription.sequence += 1
        subscription.answered_at_s = subscription.heard_at_s = self._loop.time()
        return PollAnswer(
            subscription.sequence,
            is_known=True,
            pages=tuple(pages),
            missing=missing,
            out_of_reach=self._teller.out_of_reach(),
        )

    async def _is_woken(self, subscription: _Subscription, until: float) -> bool:
        """Wait for something new; a last look at all of them when nothing woke us."""
        subscription.woken.clear()
        try:
            async with asyncio.timeout_at(until):
                await subscription.woken.wait()
        except TimeoutError:
            self._look()
        return bool(subscription.dirty)

    def _accepted(self, request: PollRequest) -> _Subscription | None:
        """The subscription as the client has it now; None when it is not known, or not in step."""
        now = self._loop.time()
        subscription = self._subscriptions.get(request.subscription)
        if request.sequence == 0:
            self._forget_silent(now)
            if subscription is None and len(self._subscriptions) >= limits.SUBSCRIPTIONS_MAX:
                raise Overloaded("too many subscriptions", retry_after_s=limits.SUBSCRIPTION_SILENT_MS // 1000)
            subscription = self._subscriptions[request.subscription] = _Subscription()
            self._look()
        elif subscription is None or subscription.sequence != request.sequence:
            return None
        subscription.heard_at_s = now
        # Whoever still waits for the poll before this one ends at once.
        subscription.turn += 1
        subscription.woken.set()
        for partition in request.dropped:
            for table in (subscription.positions, subscription.dirty, subscription.told):
                table.pop(partition, None)
        services = self._services()
        for position in request.positions:
            partition = position.partition
            if partition not in services:
                subscription.missing.add(partition)
                continue
            subscription.positions[partition] = position.token
            subscription.told.pop(partition, None)
            replica = services[partition].store.replica(partition)
            if position.token.incarnation != replica.incarnation or position.token.lsn < replica.end_lsn:
                subscription.dirty[partition] = None
        return subscription

    def _forget_silent(self, now: float) -> None:
        silent_since = now - limits.SUBSCRIPTION_SILENT_MS / 1000
        for number, one in list(self._subscriptions.items()):
            if one.heard_at_s < silent_since:
                del self._subscriptions[number]

    async def _pages(self, subscription: _Subscription, request: PollRequest, deadline: float) -> list[Page]:
        """Read what is new in partitions that may have something, as far as one answer reaches."""
        services = self._services()
        wanted: list[_Wanted] = []
        for partition in list(subscription.dirty)[: limits.LISTING_ROWS_MAX]:
            service = services.get(partition)
            if service is None:
                subscription.positions.pop(partition, None)
                subscription.dirty.pop(partition)
                subscription.missing.add(partition)
                continue
            token = subscription.positions.get(partition, NOTHING_READ)
            # Tokens first, changes afterwards: see above.
            wanted.append(_Wanted(service.store, partition, token, self._teller.tokens_of(partition)))
        for one in wanted:
            subscription.dirty.pop(one.partition)
        try:
            pages = await self._on_thread(lambda: _read_pages(wanted, request), deadline)
        except BaseException:
            subscription.dirty.update(dict.fromkeys(one.partition for one in wanted))
            raise
        read = {page.partition for page in pages}
        for one in wanted[len(pages) :]:
            subscription.dirty[one.partition] = None
        for page in pages:
            if not page.is_last:
                subscription.dirty[page.partition] = None
        assert len(read) == len(pages)
        return [
            page
            for page in (_without_told(page, subscription.told.get(page.partition)) for page in pages)
            if page.entries
            or page.tokens
            or page.through_lsn > page.after_lsn
            or page.incarnation != subscription.positions.get(page.partition, NOTHING_READ).incarnation
        ]

    # --- threads -----------------------------------------------------------------------------------------------

    def _on_thread(self, read: Callable[[], _Result], deadline: float) -> "asyncio.Future[_Result]":
        return self._loop.create_task(self._read(read, deadline), name="read for a peer")

    async def _read(self, read: Callable[[], _Result], deadline: float) -> _Result:
        try:
            async with asyncio.timeout_at(deadline):
                return await self._loop.run_in_executor(self._threads, read)
        except TimeoutError as error:
            raise DeadlineExceeded("the disk did not answer in time") from error

    def _failed(self, error: Exception) -> "asyncio.Future[Any]":
        future: asyncio.Future[Any] = self._loop.create_future()
        future.set_exception(error)
        return future


def _without_told(page: Page, told: tuple[PeerToken, ...] | None) -> Page:
    """The page without tokens that the peer has already, or that are none of a last page."""
    if page.tokens and (not page.is_last or page.tokens == told):
        return replace(page, tokens=())
    return page


def _read_pages(wanted: Iterable[_Wanted], request: PollRequest) -> list[Page]:
    """Pages in the order of `wanted` until the answer is full; the rest waits for the next one."""
    rows_left = max(1, min(request.entries_max, limits.LISTING_ROWS_MAX))
    bytes_left = max(1, request.bytes_max)
    pages: list[Page] = []
    for one in wanted:
        if rows_left <= 0 or bytes_left <= 0:
            break
        page = exchange.feed_page(
            one.store,
            one.partition,
            one.token.incarnation,
            one.token.lsn,
            rows_max=min(rows_left, limits.LISTING_PAGE_ROWS_MAX),
            bytes_max=bytes_left,
        )
        rows_left -= len(page.entries)
        bytes_left -= sum(entry.body_size for entry in page.entries)
        pages.append(
            Page(
                page.partition,
                page.incarnation,
                page.after_lsn,
                page.through_lsn,
                page.end_lsn,
                page.behind_bytes,
                page.entries,
                one.tokens,
            )
        )
    return pages


def _fetched(wanted: Iterable[tuple[DiskStore | None, bytes]], bytes_max: int) -> Iterable[Fetched]:
    """Records until the answer is full; at least one."""
    size = header_size = 0
    for store, blob_id in wanted:
        if size >= bytes_max or header_size >= limits.FETCH_HEADER_BYTES_MAX:
            return
        found = exchange.StoredRecord(None, None) if store is None else exchange.read_record(store, blob_id)
        put = found.put
        if put is not None:
            assert found.state is not None
            size += len(put.body)
            header_size += len(put.properties) + len(put.vector)
            yield Fetched(blob_id, FetchOutcome.RECORD, found.state, put)
        elif found.is_damaged:
            yield Fetched(blob_id, FetchOutcome.DAMAGED, found.state or _NEVER_SEEN, None)
        elif found.state is not None and found.state.is_deleted:
            yield Fetched(blob_id, FetchOutcome.DEAD, found.state, None)
        else:
            yield Fetched(blob_id, FetchOutcome.ABSENT, found.state or _NEVER_SEEN, None)
