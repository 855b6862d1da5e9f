"""Accounts and keys of the home datacentre, followed from another one.

    GET /accountsFeed?epoch=E&version=V      all of the newest version, or nothing if it is V of E

One process of those that share a name store asks once a second, under a lease, and writes what came into the store of
this datacentre; from there it goes into every process as a change that was made here would. While the home is out of
reach the last version counts, and only changes wait: they are refused everywhere but at home.
"""

import asyncio
from typing import Final

from aiohttp import ClientError, ClientSession

from ambry.clock import Clock
from ambry.errors import AmbryError
from ambry.frontend.feed_client import FeedSource, ask, session_to
from ambry.limits import ACCOUNTS_COPY_BYTES_MAX, NAME_FEED_POLL_MS, NAME_LEASE_MS
from ambry.logs import get_logger
from ambry.names.collection import take_lease
from ambry.names.home import decode_copy, follow_home, read_taken, take_over
from ambry.names.sql import Database

_log = get_logger(__name__)

PATH: Final = "/accountsFeed"
_LEASE: Final = "accounts"


class AccountsFollower:
    """Fetches the accounts of the home datacentre."""

    __slots__ = ("_clock", "_database", "_holder", "reached_ms", "source", "taken")

    def __init__(self, *, source: FeedSource, database: Database, clock: Clock, holder: str) -> None:
        self.source = source
        self._database = database
        self._clock = clock
        self._holder = holder
        self.reached_ms = 0
        """The moment up to which all changes are here; 0 in a process that does not fetch."""
        self.taken = 0

    def lag_s(self) -> float:
        """For how long there may be changes at home that are not here."""
        return max(self._clock.now_ms() - self.reached_ms, 0) / 1000 if self.reached_ms else 0.0

    async def begin(self) -> None:
        """Say that accounts are changed elsewhere, and fetch them if the home can be reached. Raises the store's."""
        home = self.source.name
        await self._database.write(lambda session: follow_home(session, home))
        async with session_to(self.source) as http:
            try:
                await self.fetch(http)
            except (AmbryError, ClientError, TimeoutError) as error:
                self._warn(error)

    async def run(self) -> None:
        """Fetch for ever. What fails is tried again."""
        async with session_to(self.source) as http:
            is_failing = False
            while True:
                await asyncio.sleep(NAME_FEED_POLL_MS / 1000)
                try:
                    await self.fetch(http)
                    is_failing = False
                except (AmbryError, ClientError, TimeoutError) as error:
                    if not is_failing:
                        self._warn(error)
                    is_failing = True

    def _warn(self, error: Exception) -> None:
        text = str(error) or type(error).__name__
        _log.warning("accounts of the home datacentre cannot be fetched", home=self.source.name, error=text)

    async def fetch(self, http: ClientSession) -> bool:
        """Ask once, if it is this process's turn; whether something new came."""
        database = self._database
        now_ms = self._clock.now_ms()
        if not await database.write(
            lambda session: take_lease(session, self._holder, now_ms, now_ms + NAME_LEASE_MS, _LEASE)
        ):
            self.reached_ms = 0
            return False
        epoch, version = await database.read(read_taken)
        query = {"epoch": epoch, "version": str(version)}
        copy = decode_copy(await ask(http, self.source, PATH, query, ACCOUNTS_COPY_BYTES_MAX, "too much"))
        is_new = copy.tables is not None and await database.write(lambda session: take_over(session, copy))
        self.taken += is_new
        self.reached_ms = now_ms
        return is_new
