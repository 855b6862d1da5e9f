"""Names that were asked for lately, kept in memory, and never stale: an embedded store only.

Before names are looked up, the store is asked whether anything was committed since, by this process or another
(`PRAGMA data_version`, 2 us, once for each turn of the loop). If so, the names of the rows behind the last known
position are forgotten; the feed of names is in commit order, so nothing is missed. A name comes in with the position of
the snapshot that it was read from, and only if nothing was forgotten since.

A PostgreSQL store is asked for each name: there is no way to know cheaply that nothing has changed.
"""

import contextlib

from ambry.errors import NameStoreUnavailable
from ambry.limits import NAMES_KEPT_MAX, NAMES_KEPT_ROWS_MAX
from ambry.names.changes import read_current
from ambry.names.rows import Current, Key
from ambry.names.sql import Session
from ambry.names.sqlite import LoopReader


class RecentNames:
    """A cache for one event loop. Its own connection reads what the page cache has: the end of the feed."""

    __slots__ = ("_is_fresh", "_kept", "_position", "_reader", "_version")

    def __init__(self, reader: LoopReader) -> None:
        self._reader = reader
        self._kept: dict[tuple[int, int, bytes], Current] = {}
        self._version = -1
        self._position = 0
        self._is_fresh = False

    def begin_turn(self) -> None:
        """What is asked from here on must know of everything that was committed before."""
        self._is_fresh = False

    def get(self, key: tuple[int, int, bytes]) -> Current | None:
        """What the name stands for, if it is at hand. Raises NameStoreUnavailable."""
        if not self._is_fresh:
            self._refresh()
        return self._kept.get(key)

    def note(self, key: Key, current: Current, position: int) -> None:
        """Keep what was read from a snapshot that had the feed up to this position."""
        if position < self._position:
            return
        if len(self._kept) >= NAMES_KEPT_MAX:
            self._kept.clear()
        self._kept[key.account, key.container, key.name] = current

    def follow(self) -> None:
        """Forget what was changed until now, while that is little: after a long row of puts it would be everything."""
        if self._kept:
            self._is_fresh = False
            # Whoever asks next meets the same error.
            with contextlib.suppress(NameStoreUnavailable):
                self._refresh()

    def _refresh(self) -> None:
        version = self._reader.data_version()
        if version != self._version:
            rows = self._reader.rows(
                "SELECT position, account, container, name FROM names WHERE position > ? ORDER BY position LIMIT ?",
                (self._position, NAMES_KEPT_ROWS_MAX),
            )
            if len(rows) == NAMES_KEPT_ROWS_MAX:
                self._kept.clear()
                self._position = self._reader.rows(_LAST_POSITION)[0][0]
            else:
                for position, account, container, name in rows:
                    self._kept.pop((account, container, name), None)
                    self._position = position
            self._version = version
        self._is_fresh = True


_LAST_POSITION = "SELECT COALESCE(MAX(seq), 0) FROM sqlite_sequence WHERE name = 'names'"


def read_with_position(session: Session, key: Key) -> tuple[Current | None, int]:
    """What a name stands for, and how far the feed had got in the same snapshot."""
    found = session.row(_LAST_POSITION)
    assert found is not None
    return read_current(session, key), found[0]
