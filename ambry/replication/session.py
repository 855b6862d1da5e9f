"""What one replica makes of one peer's feed: pure, without time, chance or waiting of its own.

    pages of the feed  ->  take  ->  what has to be done  ->  settled  ->  the token moves

Invariant (guarantee G5): `token` covers only changes that are settled: applied here and durable, present already, of no
concern, or queued for repair. What is not settled yet is *open*, and the token stands before the first of it. So a
crash, a lost answer, a page that comes twice or too late cost repeated work and never a blob; `rewind` forgets what is
open and reads again from the token.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from ambry.blob.requests import ChangeEntry, StateAnswer
from ambry.blob.state import join
from ambry.limits import CLOCK_SKEW_MS_MAX, REPLICATION_OPEN_MAX
from ambry.protocol.replication import NOTHING_READ, Page, PeerToken, Token

EXPIRED_KEPT_MS: Final = 86_400_000
"""A blob that expired this long ago is of no concern: nobody serves it, nobody can extend it, compaction forgets it."""

assert EXPIRED_KEPT_MS > 2 * CLOCK_SKEW_MS_MAX

_INHERITANCES_MAX: Final = 8
"""Tokens of a peer that wait until this replica has read the peer as far; newer ones replace older ones."""


class Need(Enum):
    """What a replica lacks of a change."""

    NOTHING = auto()
    STATE = auto()
    BODY = auto()
    """And perhaps the state, which comes with it."""


def need_of(entry: ChangeEntry, known: StateAnswer | None, now_ms: int) -> Need:
    """What is missing here of a peer's change. Never the body of a blob that is dead, there or here."""
    state = entry.state if known is None else join(known.state, entry.state)
    if state.expires_at_ms + EXPIRED_KEPT_MS <= now_ms:
        return Need.NOTHING
    if not state.is_deleted and (known is None or not known.has_body):
        return Need.BODY
    return Need.NOTHING if known is not None and state == known.state else Need.STATE


@dataclass(slots=True)
class _Open:
    entry: ChangeEntry
    due_ms: int


@dataclass(frozen=True, slots=True)
class Work:
    """What has to be done for changes: states to join, and bodies to fetch."""

    joins: tuple[ChangeEntry, ...] = ()
    bodies: tuple[ChangeEntry, ...] = ()


NO_WORK: Final = Work()


class FeedSession:
    """One replica, one peer's feed."""

    __slots__ = (
        "_delay_ms",
        "_inheritances",
        "_open",
        "_own_datacentre",
        "_waiting",
        "behind_bytes",
        "behind_since_ms",
        "end_lsn",
        "has_read_all",
        "holes",
        "partition",
        "peer",
        "position",
    )

    def __init__(
        self, partition: int, peer: str, token: Token = NOTHING_READ, *, own_datacentre: int, delay_ms: int
    ) -> None:
        """`delay_ms`: how long a body is waited for that frontends of `own_datacentre` write to every replica there.

        0 for a peer in another datacentre.
        """
        self.partition = partition
        self.peer = peer
        self.position = token
        """Read up to here; what is open lies before it."""
        self.end_lsn = 0
        self.behind_bytes = 0
        self.behind_since_ms = 0
        """Time of the oldest change that is known not to be here; 0 when none is."""
        self.has_read_all = False
        self.holes: set[bytes] = set()
        """Blobs that were settled as holes, to be remembered with the next token."""
        self._own_datacentre = own_datacentre
        self._delay_ms = delay_ms
        self._open: dict[bytes, _Open] = {}  # in the order of LSNs
        self._waiting: dict[bytes, int] = {}
        self._inheritances: deque[tuple[Token, tuple[PeerToken, ...]]] = deque(maxlen=_INHERITANCES_MAX)

    @property
    def token(self) -> Token:
        """Everything up to here is settled."""
        for first in self._open.values():
            return Token(self.position.incarnation, first.entry.lsn - 1)
        return self.position

    @property
    def open_count(self) -> int:
        """Changes that were read and are not settled."""
        return len(self._open)

    @property
    def open_bytes(self) -> int:
        """Bodies among them; those that are here already count until that is known."""
        return sum(one.entry.body_size for one in self._open.values())

    @property
    def is_caught_up(self) -> bool:
        """Whether all that the peer is known to have is settled."""
        return self.has_read_all and not self._open

    @property
    def next_due_ms(self) -> int | None:
        """When `due` has something again."""
        return min(self._waiting.values()) if self._waiting else None

    def take(self, page: Page, known: Sequence[StateAnswer | None], now_ms: int) -> Work:
        """A page, and what is known here of each of its changes. Returns what has to be done at once.

        What frontends are bringing just now, as they bring it to every replica of their datacentre, waits until `due`.
        """
        assert page.partition == self.partition
        if page.incarnation != self.position.incarnation:
            if page.after_lsn:
                return NO_WORK  # of a life that we have not begun to read, and not its beginning
            self._start(page.incarnation)
        if page.after_lsn > self.position.lsn:
            return NO_WORK  # something between was lost: it is read again
        joins: list[ChangeEntry] = []
        bodies: list[ChangeEntry] = []
        for entry, one in zip(page.entries, known, strict=True):
            if entry.lsn > self.position.lsn:
                need = need_of(entry, one, now_ms)
                self._forget(entry.blob_id)
                if need is not Need.NOTHING:
                    self._begin(entry, need, now_ms, joins, bodies)
        self.position = Token(page.incarnation, max(page.through_lsn, self.position.lsn))
        self.end_lsn = max(self.end_lsn, page.end_lsn)
        self.behind_bytes = page.behind_bytes
        self.has_read_all = page.is_last
        if page.tokens and page.is_last:
            self._inheritances.append((self.position, page.tokens))
        self._note_lag(page, now_ms)
        return Work(tuple(joins), tuple(bodies))

    def due(self, now_ms: int) -> list[ChangeEntry]:
        """Changes that have waited long enough. They stay open; who takes them settles or postpones them."""
        if not self._waiting:
            return []
        ready = [blob_id for blob_id, due_ms in self._waiting.items() if due_ms <= now_ms]
        for blob_id in ready:
            del self._waiting[blob_id]
        return [self._open[blob_id].entry for blob_id in ready]

    def settled(self, entry: ChangeEntry) -> None:
        """This change is applied here, durably, or needs nothing, or is queued for repair."""
        found = self._open.get(entry.blob_id)
        if found is not None and found.entry.lsn == entry.lsn:
            self._forget(entry.blob_id)
            if not self._open and self.has_read_all:
                self.behind_since_ms = 0

    def postpone(self, entry: ChangeEntry, due_ms: int) -> None:
        """This change could not be dealt with: try again then."""
        found = self._open.get(entry.blob_id)
        if found is not None and found.entry.lsn == entry.lsn:
            found.due_ms = due_ms
            self._waiting[entry.blob_id] = due_ms

    def rewind(self) -> None:
        """Forget what is open and read again from the token: the peer was lost, or something went wrong here."""
        self.position = self.token
        self._open.clear()
        self._waiting.clear()
        self.has_read_all = False

    def inherited(self, durable: Token) -> tuple[PeerToken, ...]:
        """Tokens of the peer that hold here too, once this replica's durable token has reached where they were told."""
        found: tuple[PeerToken, ...] = ()
        while self._inheritances:
            at, tokens = self._inheritances[0]
            if at.incarnation == durable.incarnation and at.lsn > durable.lsn:
                break
            self._inheritances.popleft()
            if at.incarnation == durable.incarnation:
                found = tokens
        return found

    def _start(self, incarnation: bytes) -> None:
        self.position = Token(incarnation, 0)
        self.end_lsn = 0
        self._open.clear()
        self._waiting.clear()
        self._inheritances.clear()

    def _begin(
        self, entry: ChangeEntry, need: Need, now_ms: int, joins: list[ChangeEntry], bodies: list[ChangeEntry]
    ) -> None:
        one = self._open[entry.blob_id] = _Open(entry, now_ms)
        if need is Need.STATE:
            joins.append(entry)
            return
        age_ms = now_ms - entry.time_ms
        is_near = self._delay_ms and int.from_bytes(entry.blob_id[2:4], "big") == self._own_datacentre
        if is_near and age_ms < self._delay_ms and len(self._open) <= REPLICATION_OPEN_MAX:
            # A clock that is ahead makes an age negative: nobody waits longer than the delay for it.
            one.due_ms = now_ms + min(self._delay_ms - age_ms, self._delay_ms)
            self._waiting[entry.blob_id] = one.due_ms
        else:
            bodies.append(entry)

    def _forget(self, blob_id: bytes) -> None:
        self._open.pop(blob_id, None)
        self._waiting.pop(blob_id, None)

    def _note_lag(self, page: Page, now_ms: int) -> None:
        if not self._open and page.is_last:
            self.behind_since_ms = 0
        elif not self.behind_since_ms:
            times = [one.entry.time_ms for one in self._open.values()] or [one.time_ms for one in page.entries]
            self.behind_since_ms = max(min([now_ms, *times[:1]]), 1)
