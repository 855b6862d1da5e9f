"""What the answers of replicas amount to: pure, and small enough that tests go through every case.

With N replicas that count and W = N // 2 + 1: a write is done when W have it durably; "not found" is certain when
N - W + 1 witnesses say so, since any N - W + 1 replicas meet every acknowledged write (guarantee G3). Replicas that
are joining get every write and count for nothing. Whatever is not certain is Unavailable, never a guess.
"""

from collections.abc import Sequence
from enum import Enum, auto

from ambry.blob.state import BlobState, join
from ambry.errors import (
    AmbryError,
    BlobDeleted,
    BlobExpired,
    BlobNotFound,
    DiskFull,
    NotHere,
    Overloaded,
    Unavailable,
)


class Reply(Enum):
    """One replica's answer, as far as a quorum cares."""

    PENDING = auto()
    DONE = auto()
    DELETED = auto()
    NOT_FOUND = auto()
    NOT_HERE = auto()
    FULL = auto()
    BUSY = auto()
    FAILED = auto()


class Verdict(Enum):
    """What is known after some replies. WAIT: not enough yet."""

    WAIT = auto()
    DONE = auto()
    DELETED = auto()
    NOT_FOUND = auto()
    FULL = auto()
    BUSY = auto()
    UNAVAILABLE = auto()


def reply_of(error: AmbryError) -> Reply:
    """How a replica's error counts."""
    match error:
        case BlobNotFound():
            return Reply.NOT_FOUND
        case BlobDeleted() | BlobExpired():
            return Reply.DELETED
        case NotHere():
            return Reply.NOT_HERE
        case DiskFull():
            return Reply.FULL
        case Overloaded():
            return Reply.BUSY
        case _:
            return Reply.FAILED


def error_of(verdict: Verdict, what: str) -> AmbryError:
    """The error behind a verdict that is neither WAIT nor DONE. `what` says what was tried."""
    match verdict:
        case Verdict.DELETED:
            return BlobDeleted("the blob was deleted")
        case Verdict.NOT_FOUND:
            return BlobNotFound("no such blob")
        case Verdict.FULL:
            return DiskFull(f"{what}: no space")
        case Verdict.BUSY:
            return Overloaded(f"{what}: too much waits for the disk", retry_after_s=1)
        case _:
            assert verdict is Verdict.UNAVAILABLE
            return Unavailable(f"{what}: too few replicas answered")


def write_quorum(counted: int) -> int:
    """W: how many of `counted` replicas make a write certain."""
    return counted // 2 + 1


def witness_quorum(counted: int) -> int:
    """N - W + 1: how many witnesses make "not found" certain."""
    return counted - write_quorum(counted) + 1


def put_verdict(replies: Sequence[Reply]) -> Verdict:
    """Of the replicas that count, in any order: is the record durable, can it still be?"""
    required = write_quorum(len(replies))
    if not replies:
        return Verdict.UNAVAILABLE
    done = replies.count(Reply.DONE)
    if done >= required:
        return Verdict.DONE
    if done + replies.count(Reply.PENDING) >= required:
        return Verdict.WAIT
    refused = {reply for reply in replies if reply not in {Reply.DONE, Reply.PENDING}}
    # A precise reason only when it is the only one: it tells the client what would help.
    if refused == {Reply.FULL}:
        return Verdict.FULL
    return Verdict.BUSY if refused <= {Reply.FULL, Reply.BUSY} else Verdict.UNAVAILABLE


def read_verdict(replies: Sequence[Reply], *, is_witness: Sequence[bool], counted: int) -> Verdict:
    """Of every replica that may be asked, in the order of asking: which answer is certain?

    `counted` is N: replicas of the originating datacentre that serve, those out of reach included.
    """
    if Reply.DONE in replies:
        return Verdict.DONE
    if Reply.DELETED in replies:
        return Verdict.DELETED
    witnesses = sum(reply is Reply.NOT_FOUND and one for reply, one in zip(replies, is_witness, strict=True))
    # A replica that knows of the blob and lacks its bytes outweighs any number that do not know it.
    if counted and witnesses >= witness_quorum(counted) and Reply.NOT_HERE not in replies:
        return Verdict.NOT_FOUND
    return Verdict.WAIT if Reply.PENDING in replies else Verdict.UNAVAILABLE


class StateSurvey:
    """Reads the state of an id from enough replicas to have met every acknowledged change."""

    __slots__ = ("_counted", "_replies", "joined")

    def __init__(self, counted: Sequence[bool]) -> None:
        self._counted = tuple(counted)
        self._replies = [Reply.PENDING] * len(counted)
        self.joined: BlobState | None = None

    def answered(self, replica: int, state: BlobState) -> None:
        """A replica told its state."""
        self._replies[replica] = Reply.DONE
        self.joined = state if self.joined is None else join(self.joined, state)

    def failed(self, replica: int, reply: Reply) -> None:
        """A replica told no state. DELETED: it keeps the tombstone and no bytes."""
        self._replies[replica] = reply

    def verdict(self) -> Verdict:
        """DONE: `joined` is certain."""
        counts = [reply for reply, one in zip(self._replies, self._counted, strict=True) if one]
        if not counts:
            return Verdict.UNAVAILABLE
        if Reply.DELETED in self._replies:
            return Verdict.DELETED
        known = counts.count(Reply.DONE) + counts.count(Reply.NOT_FOUND)
        if known >= witness_quorum(len(counts)):
            if self.joined is not None:
                return Verdict.DONE
            if Reply.NOT_HERE not in self._replies:
                return Verdict.NOT_FOUND
        return Verdict.WAIT if Reply.PENDING in self._replies else Verdict.UNAVAILABLE


class Convergence:
    """Brings replicas to one state: joins what they answer, and says who is to be told the join.

    Done when W replicas that count are known to have reached it durably. An id that some replicas have never seen and
    another one has is not lost: they are told the state, and the tombstone waits for the put.
    """

    __slots__ = ("_counted", "_is_asked", "_replies", "_states", "_was_told", "joined")

    def __init__(self, counted: Sequence[bool], target: BlobState | None = None) -> None:
        self._counted = tuple(counted)
        self._replies = [Reply.PENDING] * len(counted)
        self._states: list[BlobState | None] = [None] * len(counted)
        self._is_asked = [True] * len(counted)
        # Being told a state needs no put, so whoever was told and still does not know the blob has failed.
        self._was_told = [target is not None] * len(counted)
        self.joined = target

    def answered(self, replica: int, state: BlobState) -> None:
        """A replica has durably reached `state`."""
        self._replies[replica] = Reply.DONE
        self._states[replica] = state
        self._is_asked[replica] = False
        self.joined = state if self.joined is None else join(self.joined, state)

    def failed(self, replica: int, reply: Reply) -> None:
        """A replica has not changed, or it is not known whether."""
        is_lost = self._was_told[replica] and reply in {Reply.NOT_FOUND, Reply.NOT_HERE}
        self._replies[replica] = Reply.FAILED if is_lost else reply
        self._is_asked[replica] = False

    def behind(self) -> list[int]:
        """Replicas to be told `joined` now. Whoever is named here must answer or fail again."""
        if self.joined is None:
            return []
        found = [
            replica
            for replica, reply in enumerate(self._replies)
            if not self._is_asked[replica]
            and (
                reply is Reply.NOT_FOUND
                or reply is Reply.NOT_HERE
                or (reply is Reply.DONE and self._states[replica] != self.joined)
            )
        ]
        for replica in found:
            self._is_asked[replica] = self._was_told[replica] = True
            self._replies[replica] = Reply.PENDING
        return found

    def verdict(self) -> Verdict:
        """DONE: W replicas that count have reached `joined`. Ask `behind` first."""
        counts = [replica for replica, one in enumerate(self._counted) if one]
        if not counts:
            return Verdict.UNAVAILABLE
        required = write_quorum(len(counts))
        replies = [self._replies[replica] for replica in counts]
        reached = sum(
            self._replies[replica] is Reply.DONE and self._states[replica] == self.joined for replica in counts
        )
        if reached >= required:
            return Verdict.DONE
        if (
            self.joined is None
            and replies.count(Reply.NOT_FOUND) >= witness_quorum(len(counts))
            and Reply.NOT_HERE not in self._replies
        ):
            return Verdict.NOT_FOUND
        if reached + replies.count(Reply.PENDING) >= required or (
            self.joined is None and Reply.PENDING in self._replies
        ):
            return Verdict.WAIT
        refused = {reply for reply in replies if reply not in {Reply.DONE, Reply.PENDING}}
        return Verdict.BUSY if refused == {Reply.BUSY} else Verdict.UNAVAILABLE
