"""One schedule of a compaction and what goes on beside it: a small store, actors, an order of turns, trouble, an end.

The store has one blob of every fate: alive, deleted within its retention and before it, expired, extended, undeleted,
known without its bytes, known as deleted only; and garbage; for some schedules also small segments of one blob each.
It is made once and copied for every schedule. After the schedule: everything is looked at, the store ends as it was
told to, is opened, looked at, compacted to the end, and what is left is held against what has to stay.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

from ambry.blob.requests import Change, ChangeEntry, ChangesRequest, GetAnswer, GetRequest, PutRequest
from ambry.blob.state import NEVER, BlobState
from ambry.config import StorageSettings
from ambry.errors import AmbryError, BlobDeleted, BlobNotFound, DiskFull, DiskUnavailable
from ambry.limits import GIB, KIB
from ambry.storage.commit import Mutation
from ambry.storage.compaction_plan import SMALL_SHARE
from ambry.storage.inspection import choose_for
from ambry.storage.journal import RING_AT
from ambry.storage.record import record_size
from ambry.storage.segment import DATA_OFFSET, Segment
from ambry.storage.sim_disk import PowerCut, SimDisk
from ambry.storage.sim_index import SimIndex, SimIndexSource
from tests.prove.turns import Choose, Turns
from tests.storage.engine import WHOLE, Blob, Model, World, answer_of, blob_id, body_of, put, update

DAY_MS: Final = 86_400_000

SETTINGS: Final = replace(
    StorageSettings(),
    segment_bytes=4 * KIB,
    journal_bytes=RING_AT + 80 * KIB,
    reserve_bytes=0,
    index_cache_bytes=0,
    deleted_retention_ms=DAY_MS,
    expired_retention_ms=DAY_MS,
)

BODY_BYTES: Final = 900
CRUMB_BYTES: Final = 10
RECLAIMED_MIN: Final = 0.95
COMPACTIONS_TO_THE_END: Final = 2
CHOSEN_TO_THE_END_MAX: Final = 20

LIVE, DELETED, LONG_DELETED, EXPIRED, EXTENDED, UNDELETED, HOLE, TOMBSTONE = range(8)
BLOBS: Final = range(8)
NEW: Final = 90
FILLERS: Final = range(10, 14)
MANY: Final = range(100, 400)
"""More than one page of entries to move: only in schedules that ask for it."""

CRUMBS: Final = range(500, 508)
"""Small blobs, each in a segment of its own that goes along with others: only in schedules that ask for them."""

BRIEF_CRUMBS: Final = range(510, 510 + SMALL_SHARE + 2)
"""The same of an expiry class that has nothing else, and enough of them to be merged."""

CHOSEN: Final = -1
"""A compaction of what upkeep would choose."""

Answers: TypeAlias = GetAnswer | type[AmbryError] | None


class CrowdedWorld(World):
    """A world with actors. It remembers every model that was true, so that a read may be held against its time."""

    turns: Turns | None = None
    is_troubled = False
    """The disk failed to read something: what is damaged cannot be told from that."""

    def __init__(self, seed: int = 0) -> None:
        self.past: list[Model] = []
        super().__init__(SETTINGS, {1: GIB}, seed)

    @property
    def models(self) -> list[Model]:
        return self._models

    @models.setter
    def models(self, models: list[Model]) -> None:
        self._models = models
        self.past += [Model(dict(one.blobs), one.order) for one in models]

    def reconcile(self) -> None:
        if self.turns is not None:
            with self.turns.quietly():
                super().reconcile()
            return
        if self.report.index_rebuilt:
            # Of what expired long ago, an index made anew knows what is left of its records: any of them, or none.
            for model in reversed(self.models):
                for key, blob in model.blobs.items():
                    if self._is_expired(blob):
                        self.reclaimed.setdefault(key, blob)
        super().reconcile()

    def _differs(self, key: bytes) -> bool:
        is_any = self.report.index_rebuilt and self._is_expired(self.models[1].blobs[key])
        return not is_any and super()._differs(key)

    def check(self) -> None:
        """As ever, with one way of reading each blob instead of four: a schedule has to be cheap."""
        if not self.store.is_writable and len(self.models) == 1:
            self.reconcile()
        model = self.settle() if self.store.is_writable else self.models[0]
        for blob in model.blobs.values():
            request = GetRequest(blob.identity, 0, WHOLE, include_deleted=True)
            expected = model.get(request)
            answer = answer_of(functools.partial(self.store.get, request))
            assert answer == expected, (blob, answer, expected)
        self.check_changes(1)
        if self.store.is_writable:
            self.check_accounts()

    def is_in_doubt(self, reopened: int) -> bool:
        """Whether a crash may bring back what was refused: the journal may have it, or the index lacks something."""
        return self.lacks_index(reopened) or self.store._journal.failure is not None

    def lacks_index(self, reopened: int) -> bool:
        """Whether the store has failed, or its index has, since it had been opened again so often."""
        return not self.store.is_writable or self.store.indexes_reopened != reopened

    def is_reclaimable(self, blob: Blob) -> bool:
        """Whether compaction may take the bytes of a blob in this state."""
        is_over = blob.time_ms + self.store.retention.deleted_ms <= self.clock.now_ms()
        return self._is_expired(blob) or (blob.state.is_deleted and is_over)

    def _is_expired(self, blob: Blob) -> bool:
        has_expiry = blob.put is not None or blob.state.expires_at_ms > 0
        return has_expiry and blob.state.expires_at_ms + self.store.retention.expired_ms <= self.clock.now_ms()

    def needed_bytes(self) -> int:
        """What has to be left of all records when nothing more can be reclaimed."""
        (model,) = self.models
        state_bytes = record_size(32, 0, 0)
        needed = 0
        for blob in model.blobs.values():
            if blob.put is None:
                needed += state_bytes
                continue
            needed += record_size(32, len(blob.put.properties), len(blob.put.body))
            if blob.state != BlobState(0, blob.put.expires_at_ms):
                needed += state_bytes
        return needed


class Ways(dict[int, Segment]):
    """The segments of a replica; between a look into the index and one for the segment, another actor may go on."""

    before: Callable[[str, str], None]

    def get(self, number: int, default: Segment | None = None) -> Segment | None:  # type: ignore[override]  # nobody here gives another default
        self.before("look up", "segments")
        return super().get(number, default)


@dataclass(frozen=True, slots=True)
class Beginning:
    """A store at rest, to be copied."""

    disk: SimDisk
    index: SimIndex
    model: Model
    lsns: dict[tuple[bytes, int], int]

    def copy(self, seed: int) -> CrowdedWorld:
        """An open world that begins here."""
        world = CrowdedWorld(seed)
        # Everything on it is durable: what a power cut leaves is all of it.
        world.disk = self.disk.crash(world.random)
        world.source = SimIndexSource(self.index)
        world.models = [self.model.copy()]
        world.lsns = dict(self.lsns)
        world.index_is_whole = True
        world.open()
        return world


def _seal_all(world: CrowdedWorld) -> None:
    for segment in list(world.store.replicas[0].active.values()):
        if segment.end > DATA_OFFSET:
            world.store.seal_active(1, segment.number)


@functools.cache
def beginning(*, is_large: bool, has_crumbs: bool = False) -> Beginning:
    """The store that every schedule begins with; `is_large` has more entries than are moved in one step."""
    world = CrowdedWorld()
    world.open()
    now_ms, forever = world.clock.now_ms(), NEVER
    expiries = {EXPIRED: now_ms - 3 * DAY_MS, EXTENDED: now_ms + 60_000}
    expiries |= dict.fromkeys(BRIEF_CRUMBS, now_ms + 60 * DAY_MS)

    def puts(numbers: Sequence[int], size: int = BODY_BYTES) -> list[Mutation]:
        return [put(blob_id(n), body_of(n, size), expires_at_ms=expiries.get(n, forever)) for n in numbers]

    def delete(number: int, ago_ms: int) -> Mutation:
        return update(blob_id(number), Change.DELETE, time_ms=now_ms - ago_ms)

    groups: list[list[Mutation]] = [
        puts([LIVE, FILLERS[0], DELETED, LONG_DELETED]),
        puts([EXPIRED, EXTENDED, UNDELETED, FILLERS[1]]),
        [
            update(blob_id(HOLE), Change.JOIN, BlobState(0, NEVER), time_ms=now_ms),
            update(blob_id(TOMBSTONE), Change.JOIN, BlobState(1, NEVER), time_ms=now_ms - 9 * DAY_MS),
            delete(DELETED, 0),
            delete(LONG_DELETED, 8 * DAY_MS),
            update(blob_id(EXTENDED), Change.EXTEND, BlobState(0, NEVER), time_ms=now_ms),
            delete(UNDELETED, 8 * DAY_MS),
            *(delete(n, 8 * DAY_MS) for n in FILLERS[:2]),
        ],
        [update(blob_id(UNDELETED), Change.UNDELETE, time_ms=now_ms), *puts(FILLERS[2:])],
        [delete(n, 8 * DAY_MS) for n in FILLERS[2:3]],
    ]
    if is_large:
        groups += [puts(MANY[first : first + 50], 10) for first in range(0, len(MANY), 50)]
        groups += [[delete(n, 8 * DAY_MS) for n in MANY[::9]]]
    for group in groups:
        assert world.commit(group) is not None
        world.store.checkpoint()
    _seal_all(world)
    for number in (*CRUMBS, *BRIEF_CRUMBS) if has_crumbs else ():
        assert world.commit(puts([number], CRUMB_BYTES)) is not None
        _seal_all(world)
    world.store.checkpoint()
    world.check()
    model = world.settle()
    world.close()
    return Beginning(world.disk, world.source.index, model, world.lsns)


# --- what goes on beside a compaction ------------------------------------------------------------------------------

Act: TypeAlias = Callable[[CrowdedWorld, int], None]


def _commits(make: Callable[[CrowdedWorld, int], Mutation]) -> Act:
    def act(world: CrowdedWorld, number: int) -> None:
        assert world.turns is not None
        world.turns.next_to_lock()
        if world.store.is_writable and len(world.models) == 1 and not world.disk.is_off:
            reopened = world.store.indexes_reopened
            answers = world.commit([make(world, number)], DiskFull, DiskUnavailable)
            if answers is None and not world.is_in_doubt(reopened) and not world.disk.is_off:
                # Refused as a whole, before anything of it was tried.
                world.models = world.models[:1]

    return act


def _changes(change: Change, state: BlobState = BlobState(0, 0)) -> Act:
    return _commits(lambda world, number: update(blob_id(number), change, state, time_ms=world.clock.now_ms()))


def _put_again(world: CrowdedWorld, number: int) -> PutRequest:
    blob = world.past[0].blobs.get(blob_id(number)[12:])
    if blob is not None and blob.put is not None:
        return blob.put
    return put(blob_id(number), body_of(number, BODY_BYTES))


def _read(request: GetRequest, *, at_once: bool = False) -> Callable[[CrowdedWorld], None]:
    def act(world: CrowdedWorld) -> None:
        first, reopened = len(world.past) - len(world.models), world.store.indexes_reopened
        answer = answer_of(lambda: world.store.get_now(request) if at_once else world.store.get(request))
        if answer is None:
            assert at_once
            return
        if answer is DiskUnavailable and world.lacks_index(reopened):
            world.hits["read while the index is opened again"] += 1
            return
        key = request.blob_id[12:]
        known = [blob for model in [*world.past[first:], world.past[0]] if (blob := model.blobs.get(key)) is not None]
        allowed: list[Answers] = [model.get(request) for model in [*world.past[first:], *world.models]]
        if any(world.is_reclaimable(blob) for blob in known):
            allowed += [world.past[0].get(request), BlobDeleted, BlobNotFound]
        assert answer in allowed, (answer, allowed)
        world.hits["read beside compaction"] += isinstance(answer, GetAnswer)

    return act


def _get(world: CrowdedWorld, number: int) -> None:
    _read(GetRequest(blob_id(number), 0, WHOLE, include_deleted=True))(world)


def _get_range(world: CrowdedWorld, number: int) -> None:
    _read(GetRequest(blob_id(number), 100, 300))(world)


def _get_now(world: CrowdedWorld, number: int) -> None:
    _read(GetRequest(blob_id(number), 0, WHOLE), at_once=True)(world)


def _checkpoint(world: CrowdedWorld, _: int) -> None:
    try:
        world.store.checkpoint(always=True)
    except (DiskFull, DiskUnavailable):
        world.hits["checkpoint failed"] += 1


def _survey(world: CrowdedWorld, number: int) -> None:
    """Scrub beside a compaction: it finds no damage where there is none."""
    damages: list[object] = []
    segments = sorted(world.store.replicas[0].segments)
    try:
        world.store.survey(
            1,
            segments[number % len(segments)],
            pace=lambda _: None,
            on_damage=lambda *damage: damages.append(damage),
        )
    except KeyError:
        world.hits["segment gone before its survey"] += 1
    except (DiskFull, DiskUnavailable):
        world.hits["survey failed"] += 1
    assert not damages


def _suspect(world: CrowdedWorld, number: int) -> None:
    """A blob that a read took for damaged is looked at again: it is not."""
    try:
        assert world.turns is not None
        world.turns.next_to_lock()
        assert not world.store.quarantine_blob(blob_id(number))
    except (DiskFull, DiskUnavailable):
        world.hits["look at a suspect failed"] += 1


def _feed(world: CrowdedWorld, _: int) -> None:
    """A peer reads the feed: what did not change meanwhile is in it, with its LSN."""
    first, reopened = len(world.past) - len(world.models), world.store.indexes_reopened
    seen: dict[bytes, ChangeEntry] = {}
    after = 0
    try:
        while entries := world.store.changes(ChangesRequest(1, after, 3)).entries:
            seen |= {entry.blob_id: entry for entry in entries}
            after = entries[-1].lsn
    except DiskUnavailable:
        assert world.lacks_index(reopened)
        world.hits["feed while the index is opened again"] += 1
        return
    later = [*world.past[first:], *world.models]
    for key, blob in later[0].blobs.items():
        if world.is_reclaimable(blob) or any(model.blobs.get(key) != blob for model in later):
            continue
        assert seen[blob.identity].state == blob.state
        lsn = world.lsns.get((blob.identity, blob.order))
        assert lsn is None or seen[blob.identity].lsn == lsn


def _seal(world: CrowdedWorld, _: int) -> None:
    try:
        for segment in list(world.store.replicas[0].active.values()):
            world.store.seal_active(1, segment.number)
    except (DiskFull, DiskUnavailable):
        world.hits["roll failed"] += 1


def _tomorrow(world: CrowdedWorld, _: int) -> None:
    world.clock.advance(DAY_MS + 1)


ACTS: Final[dict[str, Act]] = {
    "delete": _changes(Change.DELETE),
    "undelete": _changes(Change.UNDELETE),
    "extend": _changes(Change.EXTEND, BlobState(0, NEVER)),
    "join a delete": _changes(Change.JOIN, BlobState(3, 5)),
    "put": _commits(_put_again),
    "get": _get,
    "get a range": _get_range,
    "get now": _get_now,
    "suspect": _suspect,
    "survey": _survey,
    "checkpoint": _checkpoint,
    "feed": _feed,
    "seal": _seal,
    "tomorrow": _tomorrow,
}
"""What may go on beside a compaction, to one blob or to the store."""

CHANGES_OF_A_BLOB: Final = ("delete", "undelete", "extend", "join a delete", "put")

_OF_WRITERS: Final = frozenset({"pwrite", "sync", "create", "replace", "sync_folder", "write", "flush"})

Program: TypeAlias = tuple[tuple[str, int], ...]
"""What one actor does, one after the other: acts and blobs."""


# --- one schedule --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Trouble:
    """What goes wrong: a call of an actor fails, or the power goes in a step, or the disk has this much room."""

    actor: int = 0
    call: int = 0
    error: type[AmbryError] | None = None
    done: int = 0
    stop_after: int | None = None
    room_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Ending:
    """How the store ends, and how often its recovery is cut off."""

    how: str = "crash"
    loses_index: bool = False
    cuts: tuple[int, ...] = ()


@dataclass(slots=True)
class Schedule:
    """A compaction, programs beside it, who goes on when, what goes wrong, and the end."""

    programs: tuple[Program, ...]
    choose: Callable[[Turns], Choose]
    trouble: Trouble = Trouble()
    ending: Ending | None = Ending()
    seed: int = 0
    is_large: bool = False
    rounds: tuple[int, ...] = (0,)
    """Compactions one after the other: each takes all segments, or of every three all but one, or what is CHOSEN."""
    has_crumbs: bool = False
    trail: list[tuple[str, str, bool]] = field(default_factory=list)
    """Filled in: where the compaction gave way, and whether it had the store's lock there."""
    steps: int = 0
    """Filled in: steps of the disk."""
    quiet_steps: int = 0
    """Filled in: those before anything but the compaction began."""
    reclaimed: float = 1.0
    """Filled in: the share of the garbage that was reclaimed in the end."""

    def play(self) -> CrowdedWorld:
        """Play it and look at everything. Raises AssertionError, or what the store should not have raised."""
        world = beginning(is_large=self.is_large, has_crumbs=self.has_crumbs).copy(self.seed)
        turns = Turns(world.disk, world.source.index, world.store)
        world.turns = turns
        replica = world.store.replicas[0]
        replica.segments = ways = Ways(replica.segments)
        ways.before = turns.before
        self.steps = world.disk.steps
        self._plant(world, turns)
        actors: list[Callable[[], object]] = [
            lambda: self._compact(world),
            *(functools.partial(self._follow, world, one) for one in self.programs),
        ]
        turns.run(actors, self.choose(turns))
        self.trail = turns.trail
        self.steps = world.disk.steps - self.steps
        world.disk.capacity_bytes = None
        world.disk.clear_faults()
        world.source.index.clear_faults()
        world.disk.stop_after(None)
        world.turns = None
        world.is_troubled = False
        if not world.disk.is_off:
            if world.store.failure is None and world.is_in_doubt(world.store.indexes_reopened):
                # Another journal takes the place of one that failed: what was refused with it does not come back.
                world.store.checkpoint()
            world.hits["index opened again"] += world.store.indexes_reopened
            world.check()
        self._end(world)
        self.reclaimed = compact_to_the_end(world, by_choice=self.has_crumbs)
        return world

    def _plant(self, world: CrowdedWorld, turns: Turns) -> None:
        trouble = self.trouble
        if trouble.room_bytes is not None:
            world.disk.capacity_bytes = world.disk._used() + trouble.room_bytes
        if trouble.stop_after is not None:
            world.disk.stop_after(trouble.stop_after)

        def on_call(actor: int, call: int, operation: str, path: str) -> None:
            if trouble.error is None or (actor, call) != (trouble.actor, trouble.call):
                return
            if actor and operation not in _OF_WRITERS:
                # A read whose own call fails says so; that is no matter of compaction.
                return
            world.hits["call failed"] += 1
            world.is_troubled |= operation == "pread"
            if path == "index":
                world.source.index.fail(operation, trouble.error)
            else:
                # The fault is for the call that is about to be counted.
                world.disk.fail(operation, 1, trouble.error, done=trouble.done)

        turns.on_call = on_call

    def _compact(self, world: CrowdedWorld) -> None:
        for left_out in self.rounds:
            numbers = tuple(one.number for one in world.store.segment_facts(1))
            if left_out > 0:
                numbers = tuple(number for number in numbers if number % 3 != left_out - 1)
            try:
                if left_out == CHOSEN:
                    numbers = chosen(world)
                    if not numbers:
                        break
                report = world.store.compact(
                    1, numbers, pace=lambda _: None, on_damage=functools.partial(_no_damage, world)
                )
            except (DiskFull, DiskUnavailable):
                world.hits["compaction failed"] += 1
            else:
                world.hits["kept back"] += len(report.kept_back)
                world.hits["compacted"] += len(report.compacted)
            if len(world.models) == 1:
                world.reconcile()

    def _follow(self, world: CrowdedWorld, program: Program) -> None:
        self.quiet_steps = self.quiet_steps or world.disk.steps - self.steps
        for name, number in program:
            ACTS[name](world, number)
            world.hits[name] += 1

    def _end(self, world: CrowdedWorld) -> None:
        ending = self.ending
        if ending is None and not world.disk.is_off and world.store.failure is None:
            return
        ending = ending or Ending()
        for cut in (*ending.cuts, None):
            world.kill() if ending.how == "kill" else world.crash()
            if ending.loses_index:
                world.discard_index()
            world.disk.stop_after(cut)
            try:
                world.open()
            except PowerCut:
                world.hits["cut in a recovery"] += 1
                continue
            world.disk.stop_after(None)
            world.check()


def _no_damage(world: CrowdedWorld, *damage: object) -> None:
    assert world.is_troubled, damage


def chosen(world: CrowdedWorld) -> tuple[int, ...]:
    """What upkeep would compact now: it looks through what seems to have garbage, and takes all of the rest for needed.

    Raises DiskFull, DiskUnavailable.
    """
    facts = [
        replace(
            one,
            kept_bytes=world.store.survey(1, one.number, pace=lambda _: None).kept_bytes
            if one.garbage_bytes or one.dead_bytes
            else one.size,
        )
        for one in world.store.segment_facts(1)
    ]
    numbers = choose_for(world.store, SETTINGS, facts, world.clock.now_ms())
    taken = [one for one in facts if one.number in numbers]
    assert len({one.expiry_class for one in taken}) <= 1, taken
    assert len(taken) <= 1 or sum(one.kept for one in taken) <= SETTINGS.segment_bytes, taken
    ratio = SETTINGS.compaction_garbage_percent / 100
    if world.turns is not None:
        small = [one for one in taken if one.garbage_bytes < max(ratio * one.size, 1)]
        world.hits["small ones merged" if len(small) == len(numbers) else "small ones along"] += len(small)
    return numbers


def compact_to_the_end(world: CrowdedWorld, *, by_choice: bool) -> float:
    """Compact until nothing is freed; the share of the garbage that went. Nothing else is left behind.

    First `by_choice`, which has to come to an end by itself.
    """
    world.reconcile()
    _seal_all(world)
    world.store.checkpoint(always=True)
    size_before = size = _sealed_bytes(world)
    choices = 0
    while by_choice and (numbers := chosen(world)):
        choices += 1
        assert choices <= CHOSEN_TO_THE_END_MAX, "what is chosen does not come to an end"
        report = world.store.compact(1, numbers, pace=lambda _: None, on_damage=functools.partial(_no_damage, world))
        assert not report.kept_back
        world.reconcile()
    # A blob that is buried leaves a tombstone where it was and one where it was deleted; the next compaction takes one.
    for _ in range(COMPACTIONS_TO_THE_END):
        numbers = tuple(one.number for one in world.store.segment_facts(1))
        report = world.store.compact(1, numbers, pace=lambda _: None, on_damage=functools.partial(_no_damage, world))
        assert not report.kept_back
        size = _sealed_bytes(world)
        world.reconcile()
        if size <= world.needed_bytes():
            break
    world.check()
    for name in world.disk.names("partitions/1"):
        if name.endswith(".log") and int(name[:8]) not in world.store.replicas[0].segments:
            # A segment that could not be begun leaves its header until the next opening, and nothing more.
            assert len(world.disk.read(f"partitions/1/{name}")) <= DATA_OFFSET
    garbage = size_before - world.needed_bytes()
    reclaimed = (size_before - size) / garbage if garbage > 0 else 1.0
    assert reclaimed >= RECLAIMED_MIN, (size_before, size, world.needed_bytes())
    return reclaimed


def _sealed_bytes(world: CrowdedWorld) -> int:
    return sum(one.size for one in world.store.segment_facts(1))
