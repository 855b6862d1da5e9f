"""The frontend of one process: constructs its parts in order, listens, and stops without cutting anyone off.

A frontend holds nothing (guarantee G8): datanodes, clock and metrics are given, and are their owner's to close.
"""

import asyncio
import ssl
from collections.abc import Mapping
from typing import Final

from aiohttp import web_server

from ambry.access.accounts import owner_key
from ambry.access.keys import Masters
from ambry.clock import Clock
from ambry.cluster.map import ClusterMap
from ambry.config import FrontendSettings, NameFeedSettings
from ambry.errors import BadConfiguration, CannotStart
from ambry.frontend.access import Access
from ambry.frontend.accounts_feed import AccountsFollower
from ambry.frontend.chance import Chance
from ambry.frontend.closing import Closing, closing_of
from ambry.frontend.connection import Connection, HttpServer, Services
from ambry.frontend.directory import Directory
from ambry.frontend.erasure import ErasureTeller
from ambry.frontend.fast_lane import FastConnection
from ambry.frontend.feed_client import FeedSource, token_from
from ambry.frontend.named_feed import FeedFollower
from ambry.frontend.named_feed import watch as watch_feeds
from ambry.frontend.named_operations import NamedOperations
from ambry.frontend.named_upkeep import NamedUpkeep
from ambry.frontend.native import NativeApi
from ambry.frontend.operations import Operations
from ambry.frontend.quota import StorageQuotas, Used
from ambry.frontend.request_id import RequestIds
from ambry.frontend.shares import Shares
from ambry.frontend.upload_operations import UploadOperations
from ambry.frontend.usage import ask_usage, totals_of
from ambry.limits import (
    HTTP_BACKLOG,
    HTTP_BODY_IDLE_MS,
    HTTP_FIELD_BYTES_MAX,
    HTTP_FIELDS_MAX,
    HTTP_KEEP_ALIVE_MS,
    HTTP_LINE_BYTES_MAX,
)
from ambry.logs import get_logger
from ambry.metrics import Metrics
from ambry.names.home import follow_home
from ambry.names.sql import Database
from ambry.protocol.datanode import Datanode
from ambry.tasks import end_task

_log = get_logger(__name__)

_POLL_S: Final = 0.02
"""While stopping, how often it is seen whether requests have finished."""


class Frontend:
    """One HTTP frontend. Make it, `start` it and `stop` it inside one running event loop."""

    def __init__(
        self,
        *,
        cluster_map: ClusterMap,
        datacentre: int,
        datanodes: Mapping[str, Datanode],
        clock: Clock,
        metrics: Metrics,
        settings: FrontendSettings,
        node: str,
        masters: Masters | None = None,
        access: Access | None = None,
        database: Database | None = None,
        connection_class: type[Connection] = FastConnection,
    ) -> None:
        """Without `access` nobody is asked who he is; without `database` there is the default account only.

        `masters` are what `access` checks signatures with.
        """
        chance = Chance()
        self.operations = Operations(
            cluster_map=cluster_map, datacentre=datacentre, datanodes=datanodes, clock=clock, chance=chance
        )
        access = access or Access(clock, masters=masters)
        directory = Directory(access, database, masters, clock, chance.token)
        self.upkeep: NamedUpkeep | None = None
        self.closing: Closing | None = None
        self.erasure: ErasureTeller | None = None
        self._followers: list[FeedFollower] = []
        self.accounts: AccountsFollower | None = None
        shares = Shares(processes=settings.workers)
        quotas = self._make_quotas(access, datanodes, clock)
        self.services = Services(
            self.operations, metrics, RequestIds(chance), clock, node, access, shares, quotas, directory, database
        )
        if database is not None:
            self.services.names = names = NamedOperations(database, self.operations, clock, datacentre)
            self.services.uploads = UploadOperations(database, self.operations, names.versions, clock, datacentre)
            self._followers = _followers(settings, self.services, datacentre)
            self.upkeep = self._make_upkeep(database, datacentre, datanodes, node)
            self.upkeep.watch(metrics)
            self.closing = self._make_closing(database, datanodes, node)
            self.erasure = ErasureTeller(
                database=database,
                snapshot=lambda: access.snapshot,
                cluster_map=lambda: self.operations.cluster_map,
                datacentre=datacentre,
                datanodes=datanodes,
            )
            self.erasure.watch(metrics)
            watch_feeds(metrics, self._followers)
            metrics.watch_gauge(
                "ambry_accounts_lag_seconds",
                "For how long the home datacentre may have had changes of accounts and keys that are not here.",
                lambda: 0.0 if self.accounts is None else self.accounts.lag_s(),
            )
            if settings.accounts_home is not None:
                self.accounts = AccountsFollower(
                    source=_source(settings.accounts_home, "accounts_home", self.operations, datacentre),
                    database=database,
                    clock=clock,
                    holder=chance.token(8).hex(),
                )
        elif settings.accounts_home is not None:
            raise BadConfiguration("accounts_home: where accounts come to is said by name_store")
        self._background: list[asyncio.Task[None]] = []
        self.tls = _tls_context(settings)
        self._connection_class = connection_class
        self._server: HttpServer | None = None
        self._listener: asyncio.Server | None = None
        self._watch: asyncio.Task[None] | None = None
        _watch_operations(metrics, self.operations)
        metrics.watch_counter(
            "ambry_requests_refused", "Requests beyond a rate or a fair share.", lambda: shares.refused
        )
        metrics.watch_counter(
            "ambry_requests_over_quota",
            "Requests beyond a quota that is only tracked.",
            lambda: shares.over + quotas.over,
        )

    def _make_quotas(self, access: Access, datanodes: Mapping[str, Datanode], clock: Clock) -> StorageQuotas:
        async def ask() -> dict[bytes, Used]:
            report = await ask_usage(self.operations.cluster_map, datanodes, clock.now_ms())
            return {owner_key(*key): (count, size) for key, (count, size, _, _) in totals_of(report).items()}

        def has_quotas() -> bool:
            return any(each.policy.has_space for each in access.snapshot.containers.values())

        return StorageQuotas(ask, has_quotas)

    def _make_closing(self, database: Database, datanodes: Mapping[str, Datanode], node: str) -> Closing:
        services, operations = self.services, self.operations
        return Closing(
            database=database,
            directory=services.directory,
            closing=lambda: closing_of(services.access.snapshot.containers),
            operations=operations,
            cluster_map=lambda: operations.cluster_map,
            datanodes=datanodes,
            clock=services.clock,
            holder=f"{node}-{operations.chance.token(8).hex()}",
        )

    def _make_upkeep(
        self, database: Database, datacentre: int, datanodes: Mapping[str, Datanode], node: str
    ) -> NamedUpkeep:
        services, operations = self.services, self.operations
        assert services.uploads is not None
        return NamedUpkeep(
            database=database,
            operations=operations,
            cluster_map=lambda: operations.cluster_map,
            datacentre=datacentre,
            datanodes=datanodes,
            clock=services.clock,
            # A process that comes back under the same name is another one.
            holder=f"{node}-{operations.chance.token(8).hex()}",
            collect_uploads=services.uploads.collect,
            versioned=lambda: [
                (one.account, one.number)
                for one in services.access.snapshot.containers.values()
                if one.policy.versioning
            ],
            followed=[one.source.datacentre for one in self._followers],
        )

    async def load(self) -> None:
        """Load accounts and keys, and follow them. Raises NameStoreUnavailable."""
        database = self.services.database
        if self.accounts is not None:
            await self.accounts.begin()
        elif database is not None:
            await database.write(lambda session: follow_home(session, None))
        await self.services.directory.start()

    async def start(self, host: str, port: int, *, reuse_port: bool = False) -> tuple[str, int]:
        """Listen; the address that was taken, where port 0 is replaced. Raises CannotStart for a port in use."""
        assert self._server is None
        loop = asyncio.get_running_loop()
        server = self.make_server()
        try:
            self._listener = await loop.create_server(
                server, host, port, backlog=HTTP_BACKLOG, reuse_port=reuse_port or None, ssl=self.tls
            )
        except OSError as error:
            raise CannotStart(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
        self._server = server
        self._watch = loop.create_task(self._watch_progress(), name="watch slow clients")
        if self.upkeep is not None:
            self._background.append(loop.create_task(self.upkeep.run(), name="upkeep of names"))
        if self.closing is not None:
            self._background.append(loop.create_task(self.closing.run(), name="closing containers"))
        if self.erasure is not None:
            self._background.append(loop.create_task(self.erasure.run(), name="erasure policies"))
        for follower in self._followers:
            self._background.append(loop.create_task(follower.run(), name=f"names of {follower.source.name}"))
        if self.accounts is not None:
            self._background.append(loop.create_task(self.accounts.run(), name="follow accounts of the home"))
        self.services.quotas.start()
        address = self._listener.sockets[0].getsockname()
        _log.info("listening", host=address[0], port=address[1])
        return str(address[0]), int(address[1])

    async def stop(self, grace_s: float) -> None:
        """Stop accepting, let requests finish for `grace_s` seconds at most, then close what is left."""
        self.services.is_stopping = True
        deadline = asyncio.get_running_loop().time() + grace_s
        if self._listener is not None:
            self._listener.close()
        if self._server is not None:
            await _finish_requests(self._server, deadline)
            # A last moment for what is being written; the grace was the time to finish.
            await self._server.shutdown(0.1)
        await end_task(self._watch)
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        self._background.clear()
        await self.services.quotas.stop()
        await self.services.directory.stop()
        await self.operations.close(max(deadline - asyncio.get_running_loop().time(), 0.1))
        self._server = self._listener = self._watch = None

    def make_server(self) -> HttpServer:
        """Makes the protocol of each connection. The one place that knows aiohttp's knobs."""
        return HttpServer(
            self.services,
            self._connection_class,
            NativeApi(self.services).handle,
            access_log=None,
            # Bodies are stored as they were sent; Content-Encoding describes them to whoever reads them.
            auto_decompress=False,
            keepalive_timeout=HTTP_KEEP_ALIVE_MS / 1000,
            lingering_time=1.0,
            max_line_size=HTTP_LINE_BYTES_MAX,
            max_field_size=HTTP_FIELD_BYTES_MAX,
            max_headers=HTTP_FIELDS_MAX,
        )

    async def _watch_progress(self) -> None:
        while True:
            await asyncio.sleep(HTTP_BODY_IDLE_MS / 1000 / 6)
            server = self._server
            now = self.services.clock.monotonic()
            for connection in server.connections if server is not None else ():
                assert isinstance(connection, Connection)
                connection.check_progress(now)


async def _finish_requests(server: web_server.Server, deadline: float) -> None:
    """Close connections as they become idle, until none is left or the time is over.

    A request that has begun to arrive is answered: its client cannot know that it came too late.
    """
    loop = asyncio.get_running_loop()
    while True:
        busy = 0
        for connection in server.connections:
            assert isinstance(connection, Connection)
            if connection.is_idle and not connection.has_begun:
                connection.force_close()
            else:
                busy += 1
        if not busy or loop.time() >= deadline:
            return
        await asyncio.sleep(_POLL_S)


def _followers(settings: FrontendSettings, services: Services, datacentre: int) -> list[FeedFollower]:
    """One for each datacentre whose names are fetched. Raises BadConfiguration."""
    operations = services.operations
    assert services.names is not None
    followers = []
    for feed in settings.name_feeds:
        source = _source(feed, "name_feeds", operations, datacentre)
        followers.append(
            FeedFollower(
                source=source,
                own_datacentre=datacentre,
                database=services.names.database,
                versions=services.names.versions,
                clock=services.clock,
                holder=operations.chance.token(8).hex(),
            )
        )
    return followers


def _source(feed: NameFeedSettings, key: str, operations: Operations, datacentre: int) -> FeedSource:
    """Where another datacentre is asked. Raises BadConfiguration."""
    numbers = {each.name: each.number for each in operations.cluster_map.datacentres.values()}
    if numbers.get(feed.datacentre, datacentre) == datacentre:
        raise BadConfiguration(f"{key}: {feed.datacentre!r} is no other datacentre of the cluster map")
    return FeedSource(numbers[feed.datacentre], feed.datacentre, feed.url, token_from(feed.token_file))


def _tls_context(settings: FrontendSettings) -> ssl.SSLContext | None:
    if settings.tls is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(settings.tls.certificate_file, settings.tls.key_file)
    except (OSError, ssl.SSLError) as error:
        raise CannotStart(f"cannot use {settings.tls.certificate_file}: {error}") from error
    return context


def _watch_operations(metrics: Metrics, operations: Operations) -> None:
    budget, reclaimer = operations.budget, operations.reclaimer
    metrics.watch_gauge("ambry_transfer_bytes", "Bytes of bodies in flight.", lambda: budget.size - budget.free)
    metrics.watch_gauge("ambry_transfers_waiting", "Transfers that wait for memory.", lambda: budget.waiting)
    metrics.watch_gauge("ambry_reclaim_waiting", "Records that wait for their tombstone.", lambda: reclaimer.waiting)
    metrics.watch_counter(
        "ambry_reclaimed", "Records of failed puts that were tombstoned.", lambda: reclaimer.tombstoned
    )
    hedges = operations.peers.hedges
    metrics.watch_counter("ambry_replica_reads", "Reads that several replicas could answer.", lambda: hedges.reads)
    metrics.watch_counter(
        "ambry_hedges", "Second replicas that were asked because the first was slow.", lambda: hedges.hedges
    )
    metrics.watch_counter("ambry_hedges_won", "Of these, those that answered first.", lambda: hedges.won)
    metrics.watch_counter("ambry_hedges_refused", "Hedges that the budget did not allow.", lambda: hedges.refused)
    metrics.watch_gauge("ambry_peers_suspect", "Datanodes that are asked last.", operations.count_suspects)
    metrics.watch_counter(
        "ambry_reclaim_dropped", "Records of failed puts left to the sweeper.", lambda: reclaimer.dropped
    )
