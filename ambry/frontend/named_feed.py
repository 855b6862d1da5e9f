"""Rows of the name store between datacentres: what a frontend hands out, and what it fetches from the others.

    GET /namesFeed?datacentre=N&epoch=E&after=XID.POSITION      rows in commit order that did not come from N

Each datacentre follows each other one. Rows are a set, and what a name stands for follows from the set, so datacentres
that have fetched each other's rows agree, whatever the order and however often. The position is written in the same
transaction as the rows behind it: a crash repeats a page, and never skips one. A store that was restored or rebuilt has
another epoch, and is read from its beginning.

The fetching side is one task for each other datacentre, in the one process that has the lease of this task; how far
behind it is shows in the metrics. This module knows the feed's JSON and aiohttp's client; rows are `ambry.names`.
"""

import asyncio
import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import ClientError, ClientSession

from ambry.blob.value import value
from ambry.clock import Clock
from ambry.errors import AmbryError, BadRequest
from ambry.frontend.feed_client import FeedSource, ask, session_to
from ambry.limits import NAME_FEED_POLL_MS, NAME_FEED_ROWS_MAX, NAME_LEASE_MS, NAME_UPKEEP_MS
from ambry.logs import get_logger
from ambry.metrics import Metrics
from ambry.names import collection
from ambry.names.changes import apply
from ambry.names.collection import FeedRow, Place, end_of_feed
from ambry.names.horizon import feed_of, is_noted, note_reader
from ambry.names.name import check_name
from ambry.names.open import Epoch, read_epoch
from ambry.names.rows import NameRow, RowKind, Versions
from ambry.names.sql import FOREVER, Database, Session

_log = get_logger(__name__)

PATH: Final = "/namesFeed"
_BYTES: Final = ("name", "blob_id", "passed_on")
_TEXTS: Final = ("digest", "details")
_COUNTS: Final = ("account", "container", "version", "datacentre", "kind", "size", "created_ms", "expires_at_ms")
_ANSWER_BYTES_MAX: Final = 16 * 1024 * 1024


# --- handing out -----------------------------------------------------------------------------------------------


@value
class FeedPage:
    """A page of the feed. `place` is behind its last row; `behind_ms` is how long ago that one was written."""

    epoch: str
    rows: tuple[NameRow, ...]
    place: Place
    behind_ms: int


def read_page(session: Session, reader: int, epoch: str, after: Place, now_ms: int) -> FeedPage:
    """The next rows for a datacentre; from the beginning if it knows another epoch."""
    own: Epoch = read_epoch(session)
    if own.number != epoch:
        after = Place()
    found: list[FeedRow] = collection.read_feed(session, after, NAME_FEED_ROWS_MAX, without_source=reader)
    if not found:
        return FeedPage(own.number, (), after, 0)
    # Full pages are in the past: what is behind the last row has waited at least as long.
    behind_ms = max(now_ms - found[-1].arrived_ms, 0) if len(found) == NAME_FEED_ROWS_MAX else 0
    return FeedPage(own.number, tuple(one.row for one in found), found[-1].place, behind_ms)


async def hand_out(database: Database, reader: int, epoch: str, after: Place, now_ms: int) -> FeedPage:
    """The next rows for a datacentre, and a note of what it has: that is all before them."""

    def read(session: Session) -> tuple[FeedPage, Place, bool]:
        page = read_page(session, reader, epoch, after, now_ms)
        has = after if page.epoch == epoch else Place()
        if not page.rows:
            # What is behind, it has sent itself.
            has = max(has, end_of_feed(session))
        return page, has, is_noted(session, reader, page.epoch, has)

    page, has, is_known = await database.read(read)
    if not is_known:
        await database.write(lambda session: note_reader(session, reader, page.epoch, has, now_ms))
    return page


def encode_page(page: FeedPage) -> bytes:
    """A page as JSON; bytes in base64."""
    rows = [
        {
            **{key: base64.b64encode(getattr(row, key)).decode() for key in _BYTES},
            **{key: getattr(row, key) for key in (*_TEXTS, *_COUNTS)},
        }
        for row in page.rows
    ]
    document = {
        "epoch": page.epoch,
        "after": format_place(page.place),
        "behindMs": page.behind_ms,
        "rows": rows,
    }
    return json.dumps(document).encode() + b"\n"


def decode_page(data: bytes) -> FeedPage:
    """Read a page. Raises BadRequest: the other side is of another make."""
    try:
        document = json.loads(data)
        rows = tuple(_row_of(one) for one in document["rows"])
        epoch, behind_ms = document["epoch"], document["behindMs"]
        if not isinstance(epoch, str) or not _is_count(behind_ms):
            raise BadRequest("not a page of the feed of names", field="epoch")
        return FeedPage(epoch, rows, parse_place(document["after"]), behind_ms)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadRequest("not a page of the feed of names", field="rows") from error


def _row_of(document: Mapping[str, Any]) -> NameRow:
    values: dict[str, Any] = {key: base64.b64decode(document[key], validate=True) for key in _BYTES}
    values |= {key: document[key] for key in (*_TEXTS, *_COUNTS)}
    if not all(_is_count(values[key]) for key in _COUNTS) or not all(isinstance(values[key], str) for key in _TEXTS):
        raise BadRequest("a row of the feed of names has a value of another type", field="rows")
    check_name(values["name"])
    RowKind(values["kind"])
    return NameRow(**values)


def _is_count(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number <= FOREVER


def format_place(place: Place) -> str:
    """A place as text."""
    return f"{place.xid}.{place.position}"


def parse_place(text: str) -> Place:
    """Raises BadRequest."""
    xid, dot, position = text.partition(".")
    digits = xid + position
    if not dot or not xid or not position or not (digits.isascii() and digits.isdigit()) or len(text) > 40:
        raise BadRequest("after is a place in the feed of names, such as 0.0", field="after")
    return Place(min(int(xid), FOREVER), min(int(position), FOREVER))


# --- fetching --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class FeedState:
    """How one feed is doing. `reached_ms` is the moment up to which everything is here; 0: never yet."""

    rows: int = 0
    behind_ms: int = 0
    reached_ms: int = 0


class FeedFollower:
    """Fetches the rows of one other datacentre."""

    def __init__(
        self,
        *,
        source: FeedSource,
        own_datacentre: int,
        database: Database,
        versions: Versions,
        clock: Clock,
        holder: str,
    ) -> None:
        self.source = source
        self._own = own_datacentre
        self._database = database
        self._versions = versions
        self._clock = clock
        self._holder = holder
        self._noted_ms = 0
        self.state = FeedState()

    def lag_s(self) -> float:
        """For how long there may be rows over there that are not here; 0 in a process that does not fetch."""
        reached_ms = self.state.reached_ms
        return max(self._clock.now_ms() - reached_ms, 0) / 1000 if reached_ms else 0.0

    async def run(self) -> None:
        """Fetch for ever. What fails is tried again."""
        async with session_to(self.source) as http:
            is_failing = False
            while True:
                try:
                    is_more = await self.fetch(http)
                    is_failing = False
                except (AmbryError, ClientError, TimeoutError) as error:
                    if not is_failing:
                        _log.warning("names of another datacentre cannot be fetched", source=self.source.name,
                                     error=str(error) or type(error).__name__)  # fmt: skip
                    is_failing, is_more = True, False
                if not is_more:
                    await asyncio.sleep(NAME_FEED_POLL_MS / 1000)

    async def fetch(self, http: ClientSession) -> bool:
        """Fetch one page, if it is this process's turn; whether there may be more at once."""
        database, source = self._database, self.source
        now_ms = self._clock.now_ms()
        lease = feed_of(source.datacentre)
        if not await database.write(
            lambda session: collection.take_lease(session, self._holder, now_ms, now_ms + NAME_LEASE_MS, lease)
        ):
            self.state.reached_ms = 0
            return False
        epoch, place = await database.read(lambda session: collection.read_source(session, lease))
        query = {"datacentre": str(self._own), "epoch": epoch, "after": format_place(place)}
        page = decode_page(await ask(http, source, PATH, query, _ANSWER_BYTES_MAX, "more than a page"))
        if page.rows or page.epoch != epoch or now_ms - self._noted_ms >= NAME_UPKEEP_MS // 2:
            # Now and then without a row: upkeep wants to know up to which moment everything is here.
            self._noted_ms = now_ms
            await database.write(lambda session: self._take(session, lease, page, now_ms))
            for row in page.rows:
                self._versions.observe(row.version)
        self.state.rows += len(page.rows)
        self.state.behind_ms = page.behind_ms
        self.state.reached_ms = now_ms - page.behind_ms
        return len(page.rows) == NAME_FEED_ROWS_MAX

    def _take(self, session: Session, lease: str, page: FeedPage, now_ms: int) -> None:
        """Rows and the position behind them, together."""
        apply(session, page.rows, self.source.datacentre, now_ms)
        collection.write_place(session, lease, page.epoch, page.place, page.behind_ms, now_ms)


def watch(metrics: Metrics, followers: list[FeedFollower]) -> None:
    """Show the slowest feed and what came in."""
    metrics.watch_gauge(
        "ambry_names_feed_lag_seconds",
        "For how long the slowest feed of names from another datacentre has not been at its end.",
        lambda: max((one.lag_s() for one in followers), default=0.0),
    )
    metrics.watch_counter(
        "ambry_names_feed_rows",
        "Rows of names from other datacentres.",
        lambda: sum(one.state.rows for one in followers),
    )
