"""An engine on a simulated disk, beside a dictionary that says what it must hold.

`World` owns the disk, the index and the open store; `Model` is the dictionary. A commit that is cut off leaves two
models that are both right, before and after; the next look at the store decides which, and never again the other one.
"""

import random as random_module
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from ambry.blob.blob_id import BlobId, Kind, new_unique
from ambry.blob.checksums import checksum_vector, root_of
from ambry.blob.requests import Change, ChangesRequest, GetAnswer, GetRequest, PutRequest, StateAnswer, UpdateRequest
from ambry.blob.state import NEVER, BlobState, deleted, extended, join, undeleted
from ambry.clock import ManualClock
from ambry.config import StorageSettings
from ambry.errors import (
    AmbryError,
    BlobCollision,
    BlobDeleted,
    BlobNotFound,
    CorruptRecord,
    DiskFull,
    DiskUnavailable,
    NotHere,
)
from ambry.limits import GIB, KIB
from ambry.storage.accounts import recount
from ambry.storage.commit import Answer, Mutation
from ambry.storage.compaction_plan import choose
from ambry.storage.compactor import CompactionReport
from ambry.storage.exchange import holes
from ambry.storage.index import pages
from ambry.storage.index_entry import Entry, decode_entry
from ambry.storage.journal import RING_AT
from ambry.storage.recovery import RecoveryReport, open_store
from ambry.storage.sim_disk import PowerCut, SimDisk
from ambry.storage.sim_index import SimIndex, SimIndexSource
from ambry.storage.store import DiskStore

WHOLE: Final = 1 << 40

TINY: Final = replace(
    StorageSettings(), segment_bytes=16 * KIB, journal_bytes=RING_AT + 80 * KIB, reserve_bytes=0, index_cache_bytes=0
)
"""Segments roll and the journal wraps after a few dozen small blobs."""


PARTITIONS: Final[Mapping[int, int]] = MappingProxyType({1: GIB, 2: GIB})


def blob_id(number: int, *, partition: int = 1, container: int = 1) -> bytes:
    """Id number `number`; ids that differ in their container only share the unique part."""
    unique = new_unique(1_700_000_000_000 + number, number.to_bytes(10, "big"))
    return BlobId(Kind.SIMPLE, 1, 1, container, partition, unique).binary()


def body_of(seed: int, size: int) -> bytes:
    """A body that is like no other."""
    return random_module.Random(seed).randbytes(size)


def put(identity: bytes, body: bytes, *, expires_at_ms: int = NEVER, properties: bytes = b"") -> PutRequest:
    """A put with the right checksums."""
    vector = checksum_vector(body)
    return PutRequest(identity, 1_700_000_000_000, expires_at_ms, properties, body, vector, root_of(vector, len(body)))


def update(identity: bytes, change: Change, state: BlobState = BlobState(0, 0), *, time_ms: int = 5) -> UpdateRequest:
    """A change of state."""
    return UpdateRequest(identity, change, state, time_ms)


@dataclass(frozen=True, slots=True)
class Blob:
    """What the model knows of one id. `order` counts the changes of the whole store."""

    identity: bytes
    state: BlobState
    put: PutRequest | None
    time_ms: int
    order: int


def fill_holes(store: DiskStore, fetch: Callable[[bytes], PutRequest | None]) -> int:
    """What replication does with the repair queue: commit what a peer has of it. How many puts brought bytes."""
    found = [put for one in holes(store, b"", 1000) if (put := fetch(one)) is not None]
    return sum(isinstance(answer, StateAnswer) and answer.has_body for put in found for answer in store.commit([put]))


@dataclass(slots=True)
class Model:
    """The dictionary: unique part and partition -> blob."""

    blobs: dict[bytes, Blob] = field(default_factory=dict)
    order: int = 0

    def copy(self) -> "Model":
        return Model(dict(self.blobs), self.order)

    def apply(self, request: Mutation) -> StateAnswer | type[AmbryError]:
        """Change the model as the request should change the store; returns the answer."""
        key = request.blob_id[12:]
        blob = self.blobs.get(key)
        if isinstance(request, PutRequest):
            return self._put(key, blob, request)
        is_other = blob is not None and blob.identity != request.blob_id
        if request.change is Change.JOIN:
            return BlobCollision if is_other else self._join(key, blob, request.blob_id, request.state, request.time_ms)
        if blob is None or is_other:
            return BlobNotFound
        match request.change:
            case Change.DELETE:
                target = deleted(blob.state)
            case Change.UNDELETE:
                if blob.state.is_deleted and blob.put is None:
                    return BlobDeleted
                target = undeleted(join(blob.state, request.state))
            case _:
                target = extended(blob.state, request.state.expires_at_ms)
        return self._join(key, blob, request.blob_id, target, request.time_ms)

    def _put(self, key: bytes, blob: Blob | None, request: PutRequest) -> StateAnswer | type[AmbryError]:
        state = BlobState(0, request.expires_at_ms)
        if blob is not None:
            if blob.identity != request.blob_id:
                return BlobCollision
            if blob.put is not None:
                return StateAnswer(blob.state, has_body=True) if blob.put.root == request.root else BlobCollision
            if blob.state.is_deleted:
                return self._join(key, blob, request.blob_id, state, request.created_ms)
            state = join(state, blob.state)
        self._set(key, Blob(request.blob_id, state, request, request.created_ms, 0))
        return StateAnswer(state, has_body=True)

    def _join(self, key: bytes, blob: Blob | None, identity: bytes, target: BlobState, time_ms: int) -> StateAnswer:
        state = target if blob is None else join(blob.state, target)
        has_body = blob is not None and blob.put is not None
        if blob is None or blob.state != state:
            self._set(key, Blob(identity, state, blob.put if blob is not None else None, time_ms, 0))
        return StateAnswer(state, has_body)

    def _set(self, key: bytes, blob: Blob) -> None:
        self.order += 1
        self.blobs[key] = replace(blob, order=self.order)

    def get(self, request: GetRequest) -> GetAnswer | type[AmbryError]:
        """What the store has to answer."""
        blob = self.blobs.get(request.blob_id[12:])
        if blob is None or blob.identity != request.blob_id:
            return BlobNotFound
        if blob.state.is_deleted and not (request.include_deleted and blob.put is not None):
            return BlobDeleted
        if blob.put is None:
            return NotHere
        body = bytes(blob.put.body)
        start, stop = min(request.start, len(body)), min(request.stop, len(body))
        return GetAnswer(
            blob.state, blob.put.created_ms, blob.put.properties, len(body), blob.put.root, start, body[start:stop]
        )


def answer_of(call: Callable[[], GetAnswer | None]) -> GetAnswer | type[AmbryError] | None:
    """The answer, or the class of the error. Its body is in bytes: a view is compared a hundred times slower."""
    try:
        answer = call()
    except AmbryError as error:
        return type(error)
    return answer if answer is None or type(answer.body) is bytes else replace(answer, body=bytes(answer.body))


class World:
    """A disk, an index, a store that is opened, killed and opened again, and the models that may be true."""

    def __init__(
        self, settings: StorageSettings = TINY, partitions: Mapping[int, int] = PARTITIONS, seed: int = 0
    ) -> None:
        self.settings = settings
        self.partitions = partitions
        self.random = random_module.Random(seed)
        self.disk = SimDisk()
        self.source = SimIndexSource()
        self.source.random = self.random
        self.clock = ManualClock()
        self.models = [Model()]
        self.lsns: dict[tuple[bytes, int], int] = {}
        self.hits: Counter[str] = Counter()
        self.reclaimed: dict[bytes, Blob] = {}
        self.damaged: set[bytes] = set()
        self.index_is_whole = False
        self.store: DiskStore
        self.report: RecoveryReport

    # --- the store's life --------------------------------------------------------------------------------------

    def open(self) -> RecoveryReport:
        """Open the store. Raises PowerCut."""
        self.store, self.report = open_store(
            self.disk,
            self.source,
            settings=self.settings,
            clock=self.clock,
            random_bytes=self.random.randbytes,
            partitions=self.partitions,
        )
        # An index that was whole once needs no rebuild: whatever a crash takes from it is in the journal.
        assert not (self.index_is_whole and self.report.index_rebuilt)
        self.index_is_whole = True
        self.hits["index behind"] += self.report.records_redone > 0
        self.hits["index rebuilt"] += self.report.index_rebuilt
        return self.report

    def crash(self) -> None:
        """The power goes; what is left is on a new disk."""
        self.disk = self.disk.crash(self.random)
        self.source = self.source.crash(self.random)
        self.hits["power cut"] += 1

    def kill(self) -> None:
        """SIGKILL: the page cache stays; RocksDB loses what it had in memory."""
        self.disk.restart()
        self.source = self.source.crash(self.random)
        self.hits["killed"] += 1

    def left_with(self, disk: SimDisk, index: SimIndex) -> "World":
        """Another world with the same past, on a disk and an index that a power cut may have left."""
        world = World(self.settings, self.partitions)
        # A copy of the disk: everything on it is durable, and the same one goes with several indexes.
        world.disk, world.source = disk.crash(self.random), SimIndexSource(index)
        world.source.random = world.random
        world.models = self.models
        world.lsns = dict(self.lsns)
        world.reclaimed = dict(self.reclaimed)
        world.damaged = set(self.damaged)
        world.index_is_whole = self.index_is_whole
        return world

    def survivors(self) -> Iterator["World"]:
        """A world for each disk and index that a power cut may leave, opened and checked."""
        for disk in self.disk.crash_states(random_module.Random(0)):
            for index in self.source.index.crash_states():
                left = self.left_with(disk, index)
                left.open()
                left.check()
                yield left

    def discard_index(self) -> None:
        """The index is lost; the store must not be open."""
        self.source.discard()
        self.index_is_whole = False

    def close(self) -> None:
        """An orderly end."""
        self.store.close()
        self.hits["closed"] += 1

    # --- doing -------------------------------------------------------------------------------------------------

    def commit(self, requests: Sequence[Mutation], *trouble: type[AmbryError]) -> list[Answer] | None:
        """Commit a group and hold its answers against the model. None when the power went or the disk failed.

        A request that is answered with one of `trouble` has changed nothing. Blobs that compaction reclaimed are left
        alone: until the old segments are gone, an index made anew may bring back what they were.
        """
        self.reconcile()
        requests = [request for request in requests if request.blob_id[12:] not in self.reclaimed]
        (model,) = self.models
        after = model.copy()
        for request in requests:
            after.apply(request)
        position, segments = self.store._journal.position, self._segment_count()
        self.models = [model, after]
        try:
            answers = self.store.commit(requests)
        except (PowerCut, DiskUnavailable, DiskFull):
            return None
        after = model.copy()
        for request, answer in zip(requests, answers, strict=True):
            if type(answer) in trouble:
                self.hits["request in trouble"] += 1
                continue
            expected = after.apply(request)
            assert expected == (answer if isinstance(answer, StateAnswer) else type(answer))
        self.models = [after]
        self.hits["journal wrapped"] += self.store._journal.position < position
        self.hits["segment rolled"] += self._segment_count() > segments
        return answers

    def _segment_count(self) -> int:
        return sum(len(replica.segments) for replica in self.store.replicas)

    def compact(
        self,
        partition: int = 1,
        garbage_ratio_min: float = 0.0,
        pace: Callable[[int], None] = lambda _: None,
        *,
        everything: bool = False,
    ) -> CompactionReport | None:
        """Compact what is worth it, or all that may be; None when nothing is, the power went or the disk failed."""
        try:
            facts = [
                replace(one, kept_bytes=self.store.survey(partition, one.number, pace=lambda _: None).kept_bytes)
                for one in self.store.segment_facts(partition)
            ]
        except (PowerCut, DiskUnavailable, DiskFull):
            return None
        numbers = choose(
            facts,
            now_ms=self.clock.now_ms(),
            garbage_ratio_min=garbage_ratio_min,
            output_bytes_max=self.settings.segment_bytes,
        )
        if everything:
            numbers = tuple(one.number for one in facts)
        if not numbers:
            return None
        try:
            report = self.store.compact(partition, numbers, pace=pace, on_damage=lambda *_: None)
        except (PowerCut, DiskUnavailable, DiskFull):
            return None
        finally:
            if len(self.models) == 1:
                self.reconcile()
        self.hits["compacted"] += bool(report.compacted)
        self.hits["records copied"] += report.records_copied
        return report

    def reconcile(self) -> None:
        """Let the models know what compaction reclaimed, if it was allowed to.

        Whether it did is not theirs to say: a stopped compaction may have moved some of the index or nothing.
        """
        now_ms, retention = self.clock.now_ms(), self.store.retention
        for model in self.models:
            for key, blob in list(model.blobs.items()):
                has_expiry = blob.put is not None or blob.state.expires_at_ms > 0
                is_expired = has_expiry and blob.state.expires_at_ms + retention.expired_ms <= now_ms
                is_dead = blob.state.is_deleted and blob.time_ms + retention.deleted_ms <= now_ms
                if not (is_expired or is_dead):
                    continue
                entry = self._entry(key)
                if entry is None and is_expired:
                    self.reclaimed.setdefault(key, blob)
                    self.hits["forgotten"] += 1
                    del model.blobs[key]
                elif entry is not None and not entry.has_body and blob.put is not None and is_dead:
                    self.reclaimed.setdefault(key, blob)
                    self.hits["buried"] += 1
                    model.blobs[key] = replace(blob, put=None)
            for key, blob in self.reclaimed.items():
                entry = self._entry(key)
                if entry is None:
                    continue
                # Of what expired, an older record may be left, and an index made anew knows no more: no less expired.
                assert join(entry.state, blob.state) == blob.state
                assert entry.state == blob.state or blob.state.expires_at_ms + retention.expired_ms <= now_ms
                put = blob.put if entry.has_body else None
                model.blobs[key] = replace(blob, put=put, state=entry.state, time_ms=entry.time_ms)

    def _entry(self, key: bytes) -> Entry | None:
        value = self.store.index.get(b"b" + key)
        return decode_entry(value) if value is not None else None

    # --- looking -----------------------------------------------------------------------------------------------

    def settle(self) -> Model:
        """Which of the models is true? After a recovery it is decided for good."""
        if len(self.models) > 1:
            differing = [key for key in self.models[1].blobs if self._differs(key)]
            matching = [model for model in self.models if all(self._shows(model, key) for key in differing)]
            assert matching, "the group is there in part"
            self.hits["cut group there" if matching[-1] is self.models[1] else "cut group lost"] += 1
            self.models = [matching[-1]]
        self.reconcile()
        return self.models[0]

    def _differs(self, key: bytes) -> bool:
        return self.models[0].blobs.get(key) != self.models[1].blobs.get(key)

    def _shows(self, model: Model, key: bytes) -> bool:
        blob = self.models[1].blobs[key]
        request = GetRequest(blob.identity, 0, WHOLE, include_deleted=True)
        if answer_of(lambda: self.store.get(request)) != model.get(request):
            return False
        # A state without bytes shows only in the feed.
        mine = model.blobs.get(key)
        states = {entry.blob_id: entry.state for entry in self.feed(int.from_bytes(key[:4], "big"))}
        return states.get(blob.identity) == (mine.state if mine is not None else None)

    def check(self) -> None:
        """Every blob of the model is what it should be, by every way of reading it, and nothing else is there.

        A store that has failed shows what it showed before; what the next opening finds is another matter. So does one
        whose index has failed, until it is opened again.
        """
        if not self.store.is_writable and len(self.models) == 1:
            self.reconcile()
        model = self.settle() if self.store.is_writable else self.models[0]
        identities = [blob.identity for blob in model.blobs.values()]
        identities += [blob_id(999_999), blob_id(0, container=77), *identities[:3]]
        for identity in identities:
            self.check_read(GetRequest(identity, 0, WHOLE))
            self.check_read(GetRequest(identity, 0, WHOLE, include_deleted=True))
        for partition in self.partitions:
            self.check_changes(partition)
        if self.store.is_writable:
            self.check_accounts()

    def check_accounts(self) -> None:
        """The totals that the store keeps are those that a count of all entries gives."""
        entries: list[tuple[int, Entry]] = []
        for page in pages(self.store.index, b"b", b"c", 50):
            entries += [(int.from_bytes(key[1:5], "big"), decode_entry(value)) for key, value in page]
        assert self.store.accounts.snapshot() == recount(entries).snapshot()

    def check_read(self, request: GetRequest) -> None:
        """One read, blocking and not."""
        expected = self.models[0].get(request)
        at_once = answer_of(lambda: self.store.get_now(request))
        answer = answer_of(lambda: self.store.get(request))
        if answer is CorruptRecord and request.blob_id[12:] in self.damaged & self.reclaimed.keys():
            # Repaired once, and the repaired copy reclaimed: an index made anew knows the damaged one.
            return
        assert answer == expected
        assert at_once is None or at_once == expected

    def feed(self, partition: int, page: int = 7) -> list["FeedEntry"]:
        """The whole feed of a partition, by pages."""
        entries: list[FeedEntry] = []
        after = 0
        while True:
            answer = self.store.changes(ChangesRequest(partition, after, page))
            if not answer.entries:
                # Nothing else is running: the last record is the newest of some blob, or of a reclaimed one.
                assert answer.end_lsn == after or self.reclaimed
                return entries
            for entry in answer.entries:
                assert after < entry.lsn <= answer.end_lsn
                after = entry.lsn
                entries.append(
                    FeedEntry(entry.lsn, entry.blob_id, entry.state, entry.has_body, entry.body_size, entry.time_ms)
                )

    def check_changes(self, partition: int) -> None:
        """The feed has each blob once, in the order of its newest change, with the LSN that it always had.

        A reclaimed blob that an index made anew brought back may be what an older record of it says.
        """
        mine = [blob for blob in self.models[0].blobs.values() if blob.identity[12:16] == partition.to_bytes(4, "big")]
        feed = self.feed(partition)
        mine.sort(key=lambda blob: (blob.identity[12:] in self.reclaimed, blob.order))
        feed.sort(key=lambda entry: self._feed_order(entry.blob_id[12:]))
        assert [(entry.blob_id, entry.state, entry.has_body, entry.body_size, entry.time_ms) for entry in feed] == [
            (
                blob.identity,
                blob.state,
                blob.put is not None,
                len(blob.put.body) if blob.put is not None else 0,
                blob.time_ms,
            )
            for blob in mine
        ]
        for blob, entry in zip(mine, feed, strict=True):
            if blob.identity[12:] not in self.reclaimed:
                assert self.lsns.setdefault((blob.identity, blob.order), entry.lsn) == entry.lsn

    def _feed_order(self, key: bytes) -> tuple[bool, int]:
        """Sorting by it leaves the feed in its order but for reclaimed blobs, which go to the end."""
        is_reclaimed = key in self.reclaimed
        return is_reclaimed, self.models[0].blobs[key].order if is_reclaimed and key in self.models[0].blobs else 0


@dataclass(frozen=True, slots=True)
class FeedEntry:
    """A change as the feed shows it."""

    lsn: int
    blob_id: bytes
    state: BlobState
    has_body: bool
    body_size: int
    time_ms: int
