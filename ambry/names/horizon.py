"""How far datacentres have read each other's rows, and so which rows may be forgotten. Jobs on the name store.

A marker or a purge that is dropped before another datacentre has read it leaves that one with a name that is gone here;
one that is dropped before all older rows of that datacentre have come here lets the name return with the first of
them. So a row is dropped only if both are over: every reader has asked for rows behind it, and then, later than that,
everything that the others had written has been read. Who asks for rows behind a place has everything before it on disk.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from ambry.names.collection import Place, write_place
from ambry.names.sql import Session

_READER: Final = "reader/"
_FEED: Final = "feed/"


def feed_of(datacentre: int) -> str:
    """What the place in the feed of another datacentre is called."""
    return f"{_FEED}{datacentre}"


def is_noted(session: Session, datacentre: int, epoch: str, place: Place) -> bool:
    """Whether it is written down that a datacentre has read up to this place."""
    sql = "SELECT 1 FROM feeds WHERE source = ? AND epoch = ? AND xid = ? AND position = ?"
    return session.row(sql, (f"{_READER}{datacentre}", epoch, place.xid, place.position)) is not None


def note_reader(session: Session, datacentre: int, epoch: str, place: Place, now_ms: int) -> None:
    """Write down that a datacentre has read up to a place. It may go back: its store may have been restored."""
    write_place(session, f"{_READER}{datacentre}", epoch, place, 0, now_ms)


@dataclass(frozen=True, slots=True)
class Reading:
    """How far everybody has read at a moment. `reached_ms`: all that others wrote before is here; None for nobody."""

    place: Place | None
    reached_ms: int | None


def read_reading(session: Session, epoch: str, others: Collection[int], followed: Collection[int]) -> Reading:
    """Look it up. `others` are the other datacentres of the map, of which these are `followed` from here.

    Who is followed has to read, too: as long as it never has, the place is the beginning.
    """
    places: dict[int, Place] = {one: Place() for one in followed if one in others}
    reached: dict[int, int] = {one: 0 for one in followed if one in others}
    for source, of_epoch, xid, position, behind_ms, read_ms in session.rows(
        "SELECT source, epoch, xid, position, behind_ms, read_ms FROM feeds"
    ):
        kind, _, number = source.partition("/")
        if not number.isdigit() or int(number) not in others:
            continue
        if kind + "/" == _READER:
            places[int(number)] = Place(xid, position) if of_epoch == epoch else Place()
        elif kind + "/" == _FEED and int(number) in reached:
            reached[int(number)] = read_ms - behind_ms
    return Reading(min(places.values(), default=None), min(reached.values(), default=None))


class Horizon:
    """Up to which place rows may be forgotten; it moves on in two steps, as the head of this module says."""

    __slots__ = ("_epoch", "_passed", "_waiting")

    def __init__(self) -> None:
        self._epoch = ""
        self._passed = Place()
        self._waiting: tuple[Place, int] | None = None

    def look(self, epoch: str, reading: Reading, now_ms: int) -> Place | None:
        """The place, after a look at how far everybody is now; None: there is nobody to wait for."""
        if epoch != self._epoch:
            self._epoch, self._passed, self._waiting = epoch, Place(), None
        if reading.place is None:
            return None
        if self._waiting is not None and (reading.reached_ms is None or reading.reached_ms > self._waiting[1]):
            self._passed, self._waiting = self._waiting[0], None
        if self._waiting is None:
            self._waiting = (reading.place, now_ms)
        return self._passed
