"""What the answers of replicas amount to: pure, and small enough that tests go through every case.

With N replicas listed in a datacentre and W = N // 2 + 1: a write is done when W of those that take writes have it
durably; "not found" is certain when N - W + 1 witnesses say so, since any N - W + 1 replicas meet every acknowledged
write (guarantee G3). Whatever is not certain is Unavailable, never a guess.

A replica that joins takes writes and its durable answer counts: so what is acknowledged while it joins still meets
every quorum when it serves. What it does not know proves nothing, and neither does what it knows of the past: no
witness, and a change of state must reach N - W + 1 that serve as well. It stays in N, and so does one that leaves: a
write may have been acknowledged by a replica that lost its disk since and by one other. A replica that is new, or
leaves, changes what W is: writes meet the old W and the new one (`WriteQuorum`).

Replicas are witnesses in groups, one for each datacentre: `groups[i]` is that of replica i, or UNCOUNTED. `listed` has
N for each group; a group that is not there lists exactly its witnesses.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from types import MappingProxyType
from typing import Final

from ambry.blob.state import BlobState, join
from ambry.errors import (
    AmbryError,
    BlobCollision,
    BlobDeleted,
    BlobExpired,
    BlobNotFound,
    CorruptRecord,
    DiskFull,
    NotHere,
    Overloaded,
    Unavailable,
)

UNCOUNTED: Final = -1
"""The group of replicas whose word is welcome and proves nothing."""


ALL_SERVE: Final[Mapping[int, int]] = MappingProxyType({})
"""No replica joins or leaves."""


class Reply(Enum):
    """One replica's answer, as far as a quorum cares."""

    PENDING = auto()
    DONE = auto()
    DELETED = auto()
    NOT_FOUND = auto()
    NOT_HERE = auto()
    FULL = auto()
    BUSY = auto()
    COLLISION = auto()
    FAILED = auto()


class Verdict(Enum):
    """What is known after some replies. WAIT: not enough yet. BYTES_LOST: all have answered, and none can give them."""

    WAIT = auto()
    DONE = auto()
    DELETED = auto()
    NOT_FOUND = auto()
    FULL = auto()
    BUSY = auto()
    COLLISION = auto()
    BYTES_LOST = auto()
    UNAVAILABLE = auto()


def reply_of(error: AmbryError, incarnation: bytes | None = None) -> Reply:
    """How a replica's error counts. `incarnation` is what the map names: another one has not seen what this one had."""
    match error:
        case BlobNotFound():
            told = error.facts.get("incarnation")
            return Reply.FAILED if incarnation is not None and told not in {None, incarnation} else Reply.NOT_FOUND
        case BlobDeleted() | BlobExpired():
            return Reply.DELETED
        case NotHere() | CorruptRecord():
            # Damaged bytes are as good as none: the replica knows the blob, and its record will be a hole soon.
            return Reply.NOT_HERE
        case DiskFull():
            return Reply.FULL
        case Overloaded():
            return Reply.BUSY
        case BlobCollision():
            return Reply.COLLISION
        case _:
            return Reply.FAILED


def told_state(error: AmbryError) -> BlobState | None:
    """The state that a replica told with a refusal to give bytes, if it did."""
    life, expires_at_ms = error.facts.get("life"), error.facts.get("expires_at_ms")
    if isinstance(error, BlobDeleted | NotHere) and isinstance(life, int) and isinstance(expires_at_ms, int):
        return BlobState(life, expires_at_ms)
    return None


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
        case Verdict.COLLISION:
            return BlobCollision("another blob is stored under this id")
        case Verdict.BYTES_LOST:
            return CorruptRecord(f"{what}: the bytes of the blob are damaged or missing on every replica")
        case _:
            assert verdict is Verdict.UNAVAILABLE
            return Unavailable(f"{what}: too few replicas answered")


def write_quorum(counted: int) -> int:
    """W: how many of `counted` replicas make a write certain."""
    return counted // 2 + 1


def witness_quorum(counted: int) -> int:
    """N - W + 1: how many witnesses make "not found" certain."""
    return counted - write_quorum(counted) + 1


@dataclass(frozen=True, slots=True)
class WriteQuorum:
    """Which of the replicas that take writes have to have one before it is done: W of them all, and W as those count
    who use an older map.

    While replicas change, some frontends and datanodes know it and others do not, for as long as ZooKeeper is out of
    their reach. A reader among the others counts neither a replica that is new nor that another one leaves, and what a
    quorum of the old set denies is "not found" to it. So a write meets both sets, as in the joint consensus of Raft
    (Ongaro, Ousterhout: In search of an understandable consensus algorithm, 2014, section 6).
    """

    required: int
    elders: tuple[int, ...] = ()
    """Writers that an older map counts; empty when these are all."""
    elders_required: int = 0

    @classmethod
    def of(cls, is_new: Sequence[bool], leaving: int = 0) -> "WriteQuorum":
        """`is_new`: of each writer, whether it has never served; `leaving`: how many replicas take no more writes.

        Where the writers that an older map counts are fewer than its W, all of them have to do: of two, one leaves.
        """
        elders = tuple(replica for replica, new in enumerate(is_new) if not new)
        required, older = write_quorum(len(is_new)), min(write_quorum(len(elders) + leaving), len(elders))
        if len(elders) == len(is_new):
            return cls(max(required, older))
        return cls(required, elders, older)

    def met_by(self, holders: Collection[int]) -> bool:
        """Whether a write that exactly these writers have is done."""
        if len(holders) < self.required:
            return False
        return not self.elders or sum(replica in holders for replica in self.elders) >= self.elders_required


def put_verdict(replies: Sequence[Reply], quorum: WriteQuorum | None = None) -> Verdict:
    """Of the replicas that take writes: is the record durable, can it still be? In any order if none of them is new."""
    if not replies:
        return Verdict.UNAVAILABLE
    if Reply.COLLISION in replies:
        return Verdict.COLLISION
    quorum = quorum or WriteQuorum(write_quorum(len(replies)))
    if quorum.met_by(_which(replies, Reply.DONE)):
        return Verdict.DONE
    if quorum.met_by(_which(replies, Reply.DONE, Reply.PENDING)):
        return Verdict.WAIT
    refused = {reply for reply in replies if reply not in {Reply.DONE, Reply.PENDING}}
    # A precise reason only when it is the only one: it tells the client what would help.
    if refused == {Reply.FULL}:
        return Verdict.FULL
    return Verdict.BUSY if refused <= {Reply.FULL, Reply.BUSY} else Verdict.UNAVAILABLE


def _which(replies: Sequence[Reply], *wanted: Reply) -> list[int]:
    return [replica for replica, reply in enumerate(replies) if reply in wanted]


def read_verdict(
    replies: Sequence[Reply],
    *,
    groups: Sequence[int],
    witnesses: Collection[int],
    listed: Mapping[int, int] = ALL_SERVE,
    wants_deleted: bool = False,
) -> Verdict:
    """Of every replica that may be asked, in the order of asking: which answer is certain?

    `witnesses` are the groups that must prove "not found", each with its own quorum: the originating datacentre, or
    every remaining one when that has left the map. Replicas of a group count in its N whether they answer or not.
    `wants_deleted`: the bytes of a deleted blob are welcome, so a tombstone without them is only one voice.
    """
    if Reply.DONE in replies:
        return Verdict.DONE
    if Reply.DELETED in replies:
        return Verdict.WAIT if wants_deleted and Reply.PENDING in replies else Verdict.DELETED
    # A replica that knows of the blob and lacks its bytes outweighs any number that do not know it.
    if Reply.NOT_HERE not in replies and _all_deny(replies, groups, witnesses, listed):
        return Verdict.NOT_FOUND
    if Reply.PENDING in replies:
        return Verdict.WAIT
    if Reply.BUSY in replies:
        return Verdict.BUSY
    is_lost = Reply.NOT_HERE in replies and all(one in {Reply.NOT_HERE, Reply.NOT_FOUND} for one in replies)
    return Verdict.BYTES_LOST if is_lost else Verdict.UNAVAILABLE


def _all_deny(
    replies: Sequence[Reply], groups: Sequence[int], witnesses: Collection[int], listed: Mapping[int, int]
) -> bool:
    """Whether in each of the groups a witness quorum says "not found"; a group without replicas proves nothing."""
    for group in witnesses:
        members = [reply for reply, one in zip(replies, groups, strict=True) if one == group]
        if not members or members.count(Reply.NOT_FOUND) < witness_quorum(listed.get(group, len(members))):
            return False
    return bool(witnesses)


class StateSurvey:
    """Reads the state of an id from enough replicas to have met every acknowledged change of some datacentres.

    `required` are the groups whose acknowledged changes must be seen. An id that these do not know may still exist
    elsewhere: then `witnesses`, the groups of `read_verdict`, decide. `to_ask` says who is to be asked, in two rounds:
    the required groups first, everybody else only if these know nothing.
    """

    __slots__ = ("_asked", "_groups", "_listed", "_replies", "_required", "_witnesses", "has_body", "joined")

    def __init__(
        self,
        groups: Sequence[int],
        required: Collection[int],
        witnesses: Collection[int],
        listed: Mapping[int, int] = ALL_SERVE,
    ) -> None:
        self._groups = tuple(groups)
        self._listed = listed
        self._required = frozenset(required) & frozenset(groups)
        self._witnesses = frozenset(witnesses)
        self._replies = [Reply.PENDING] * len(groups)
        self._asked: set[int] = set()
        self.joined: BlobState | None = None
        self.has_body = False

    def to_ask(self) -> list[int]:
        """Replicas to be asked now; whoever is named here must answer or fail. Empty while answers are to come."""
        if self.verdict() is not Verdict.WAIT or any(self._replies[one] is Reply.PENDING for one in self._asked):
            return []
        everybody = set(range(len(self._groups))) - self._asked
        first = {one for one in everybody if self._groups[one] in self._required}
        found = sorted(first or everybody)
        self._asked.update(found)
        return found

    def answered(self, replica: int, state: BlobState, *, has_body: bool = True) -> None:
        """A replica told its state."""
        self._replies[replica] = Reply.DONE
        self.has_body |= has_body
        self.joined = state if self.joined is None else join(self.joined, state)

    def failed(self, replica: int, reply: Reply) -> None:
        """A replica told no state."""
        self._replies[replica] = Reply.FAILED if reply is Reply.DELETED else reply

    @property
    def is_complete(self) -> bool:
        """Whether every replica that counts anywhere has told what it knows."""
        told = {Reply.DONE, Reply.NOT_FOUND}
        return all(
            reply in told for reply, group in zip(self._replies, self._groups, strict=True) if group != UNCOUNTED
        )

    def verdict(self) -> Verdict:
        """DONE: `joined` holds every change that the required groups acknowledged. NOT_FOUND: certain as for a read."""
        if self.joined is not None and all(self._is_known(group) for group in self._required):
            return Verdict.DONE
        if (
            self.joined is None
            and Reply.NOT_HERE not in self._replies
            and all(self._is_known(group) for group in self._required)
            and _all_deny(self._replies, self._groups, self._witnesses, self._listed)
        ):
            return Verdict.NOT_FOUND
        is_open = Reply.PENDING in self._replies and all(self._is_known(one, or_pending=True) for one in self._required)
        return Verdict.WAIT if is_open else Verdict.UNAVAILABLE

    def _is_known(self, group: int, *, or_pending: bool = False) -> bool:
        members = [reply for reply, one in zip(self._replies, self._groups, strict=True) if one == group]
        known = members.count(Reply.DONE) + members.count(Reply.NOT_FOUND)
        if or_pending:
            known += members.count(Reply.PENDING)
        return known >= witness_quorum(self._listed.get(group, len(members)))


class Convergence:
    """Brings replicas to one state: joins what they answer, and says who is to be told the join.

    Done when W replicas are known to have reached it durably, and among them as many that serve as meet every change
    before. An id that some replicas have never seen and another one has is not lost: they are told the state, and the
    tombstone waits for the put.
    """

    __slots__ = ("_has_body", "_is_asked", "_listed", "_quorum", "_replies", "_serve", "_states", "_was_told", "joined")

    def __init__(
        self,
        serve: Sequence[bool],
        target: BlobState | None = None,
        floor: BlobState | None = None,
        *,
        listed: int = 0,
        quorum: WriteQuorum | None = None,
    ) -> None:
        """`serve`: which of those that are told serve; `listed` is N, where there are others, and `quorum` where some
        are new or leave. `target`: what everybody is told first. `floor`: what is known already, and nobody here may
        know.
        """
        self._quorum = quorum or WriteQuorum(write_quorum(len(serve)))
        self._serve = tuple(serve)
        self._listed = max(listed, len(serve))
        self._replies = [Reply.PENDING] * len(serve)
        self._states: list[BlobState | None] = [None] * len(serve)
        self._has_body = [False] * len(serve)
        self._is_asked = [True] * len(serve)
        # Being told a state needs no put, so whoever was told and still does not know the blob has failed.
        self._was_told = [target is not None] * len(serve)
        self.joined = target or floor

    def answered(self, replica: int, state: BlobState, *, has_body: bool = True) -> None:
        """A replica has durably reached `state`."""
        self._replies[replica] = Reply.DONE
        self._states[replica] = state
        self._has_body[replica] = has_body
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

    def without_body(self) -> list[int]:
        """Replicas that have to get the bytes before W hold them; none when W do, or it is dead."""
        if self.joined is None or self.joined.is_deleted:
            return []
        reached = [replica for replica, reply in enumerate(self._replies) if reply is Reply.DONE]
        with_body = sum(self._has_body[replica] for replica in reached)
        if with_body >= write_quorum(len(self._serve)):
            return []
        return [replica for replica in reached if not self._has_body[replica]]

    def verdict(self) -> Verdict:
        """DONE: W replicas have reached `joined`, with enough that serve. Ask `behind` first."""
        if not any(self._serve):
            return Verdict.UNAVAILABLE
        quorum, serving_required = self._quorum, witness_quorum(self._listed)
        replies = self._replies
        reached = [
            reply is Reply.DONE and state == self.joined for reply, state in zip(replies, self._states, strict=True)
        ]
        serving = [replica for replica, serves in enumerate(self._serve) if serves]
        serving_reached = sum(reached[replica] for replica in serving)
        holders = [replica for replica, has_it in enumerate(reached) if has_it]
        if quorum.met_by(holders) and serving_reached >= serving_required:
            return Verdict.DONE
        denials = sum(replies[replica] is Reply.NOT_FOUND for replica in serving)
        if self.joined is None and denials >= serving_required and Reply.NOT_HERE not in replies:
            return Verdict.NOT_FOUND
        serving_open = sum(replies[replica] is Reply.PENDING for replica in serving)
        can_be = (
            quorum.met_by([*holders, *_which(replies, Reply.PENDING)])
            and serving_reached + serving_open >= serving_required
        )
        if can_be or (self.joined is None and Reply.PENDING in replies):
            return Verdict.WAIT
        refused = {reply for reply in replies if reply not in {Reply.DONE, Reply.PENDING}}
        return Verdict.BUSY if refused == {Reply.BUSY} else Verdict.UNAVAILABLE
