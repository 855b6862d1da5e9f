"""One commit group: from requests to records, log, journal, index and answers, in this order and no other.

    1. plan    look up every blob, decide what the request changes, give out LSNs and places, encode
    2. logs    write and sync what has large bodies; hold the other records in memory for their segments
    3. journal write the same bytes with their places, one sync: from here on the group is durable
    4. index   one batch: from here on the group is visible
    5. answers

A crash before 3 loses the group, and nobody was answered. A crash after 3 redoes it. A failure in 2 fails the requests
of that replica only and gives its place back: the bytes there were never acknowledged. If the disk itself failed, and
was not just full, the segment takes no more records (`troubled`). A failure in 3 undoes the whole group (`undo`): all
of it is refused, nothing more goes to that journal, and another takes its place before the next group. A failure in 4
fails the store: the journal has the group and the index does not. A sync that failed is never repeated into a success.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, TypeAlias

from ambry.blob.blob_id import BINARY_SIZE
from ambry.blob.checksums import blocks_match, vector_matches
from ambry.blob.requests import Change, PutRequest, StateAnswer, UpdateRequest
from ambry.blob.state import LIFE_MAX, BlobState, deleted, extended, join, undeleted
from ambry.errors import (
    AmbryError,
    BadDigest,
    BadRequest,
    BlobCollision,
    BlobDeleted,
    BlobNotFound,
    DiskFull,
    DiskUnavailable,
    NotAllowed,
)
from ambry.limits import JOURNAL_BODY_BYTES_MAX, SEGMENT_PREALLOCATE_BYTES, SEGMENT_TAIL_BYTES_MAX
from ambry.storage.accounts import Accounts
from ambry.storage.disk import Buffer, Disk, lacks_descriptors
from ambry.storage.expiry_class import expiry_class_of
from ambry.storage.index_entry import (
    HAS_BODY,
    ID_HEAD_SIZE,
    STATE_APPLIED,
    Entry,
    Place,
    change_key,
    decode_entry,
    encode_entry,
    encode_new_put,
    merge,
    repair_key,
)
from ambry.storage.journal import ALIGNMENT, BODY_ELSEWHERE, ENTRY_SIZE, GROUP_HEADER_SIZE
from ambry.storage.journal import encode_entry as encode_journal_entry
from ambry.storage.late_rows import LateRows
from ambry.storage.reading import told
from ambry.storage.record import RecordKind, decode_header, encode_meta, padding_after, record_size
from ambry.storage.replica import Replica, check_capacity, replica_of
from ambry.storage.segment import Segment
from ambry.storage.tail import Tails, reserve_ahead

Mutation: TypeAlias = PutRequest | UpdateRequest
Answer: TypeAlias = StateAnswer | AmbryError

LSN_SIZE: Final = 8


@dataclass(slots=True)
class _Run:
    """Records of one replica that go to one segment one after the other."""

    replica: Replica
    segment: Segment
    start: int
    batch: list[tuple[bytes, bytes | None]]
    """Shared by all runs of a replica: a blob's records may be in several, and its last entry has to win."""
    end_lsn: int = 0
    needs_sync: bool = False
    error: AmbryError | None = None
    pieces: list[Buffer] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    table: list[bytes] = field(default_factory=list)
    journal: list[bytes] = field(default_factory=list)
    requests: list[int] = field(default_factory=list)
    new_puts: dict[bytes, list[int]] = field(default_factory=dict)
    """Head of the ids to [blobs, bytes of records, bytes of bodies]."""
    changes: list[tuple[Entry | None, Entry]] = field(default_factory=list)


class CommitGroup:
    """The group while it is made. Everything happens under the store's lock, in the writer's thread."""

    def __init__(
        self,
        disk: Disk,
        replicas: Mapping[int, Replica],
        tails: Tails,
        *,
        segment_bytes: int,
        now_ms: int,
        next_lsn: int,
        takes_puts: Callable[[int], bool],
    ) -> None:
        self._disk = disk
        self._replicas = replicas
        self._tails = tails
        self._segment_bytes = segment_bytes
        self._now_ms = now_ms
        self._takes_puts = takes_puts
        self._runs: list[_Run] = []
        self._current: dict[tuple[int, int], _Run] = {}
        self._batches: dict[int, list[tuple[bytes, bytes | None]]] = {}
        self._overlay: dict[bytes, bytes] = {}
        self._dependent: list[tuple[bytes, int]] = []
        self._end_lsns: dict[Replica, int] = {}
        self.next_lsn = next_lsn
        self.answers: list[Answer] = []
        self.troubled: list[tuple[Replica, Segment, AmbryError]] = []
        """Segments whose files failed while they were written to."""

    # --- 1. plan -----------------------------------------------------------------------------------------------

    def plan(self, requests: Sequence[Mutation], keys: Sequence[bytes], values: Sequence[bytes | None]) -> None:
        """Decide and encode. `values` are the index's for `keys`; earlier requests of the group are seen too."""
        overlay = self._overlay
        for request, key, value in zip(requests, keys, values, strict=True):
            current = overlay.get(key)
            if current is None:
                current = value
            else:
                # The answer stands on a record of this group: if that cannot be written, neither holds the answer.
                self._dependent.append((request.blob_id, len(self.answers)))
            try:
                if type(request) is PutRequest:
                    answer: Answer = self._plan_put(request, key, current)
                else:
                    assert isinstance(request, UpdateRequest)
                    answer = self._plan_update(request, key, current)
            except AmbryError as error:
                answer = error.as_answer()
            self.answers.append(answer)

    def _plan_put(self, request: PutRequest, key: bytes, value: bytes | None) -> Answer:
        replica = replica_of(self._replicas, request.blob_id)
        body, vector, root = request.body, request.vector, request.root
        body_size = len(body)
        if not (vector_matches(vector, root, body_size) and blocks_match(body, vector)):
            raise BadDigest("the body does not have the checksums that came with it")
        entry = None
        if value is not None:
            entry = decode_entry(value)
            if entry.id_head != request.blob_id[:ID_HEAD_SIZE]:
                raise BlobCollision("another blob has this id's unique part")
            if entry.has_body:
                if entry.root != root or entry.body_size != body_size:
                    raise BlobCollision("another body is stored under this id")
                return StateAnswer(entry.state, has_body=True)
            if entry.life & 1:
                return self._join(request.blob_id, key, entry, BlobState(0, request.expires_at_ms), request.created_ms)
            if entry.root and entry.root != root:
                raise BlobCollision("another body was stored under this id, and waits for its repair")
        size = record_size(BINARY_SIZE, len(request.properties), body_size)
        if not self._takes_puts(size):
            raise DiskFull("the disk is full")
        check_capacity(replica, size)
        run = self._run_for(replica, size, expiry_class_of(request.expires_at_ms, self._now_ms))
        segment = run.segment
        lsn, offset = self._next_lsn(), segment.end
        state = BlobState(0, request.expires_at_ms)
        if entry is not None:
            state = join(state, entry.state)
        meta = encode_meta(
            seed=segment.seed_at(offset),
            kind=RecordKind.PUT,
            lsn=lsn,
            time_ms=request.created_ms,
            life=state.life,
            expires_at_ms=state.expires_at_ms,
            key=request.blob_id,
            properties=request.properties,
            body_size=body_size,
            root=root,
        )
        tail = vector + padding_after(len(meta) + body_size + len(vector))
        if body_size > JOURNAL_BODY_BYTES_MAX:
            run.pieces += (meta, body, tail)
            run.needs_sync = True
            data, flags = meta, BODY_ELSEWHERE
        else:
            data, flags = b"".join((meta, body, tail)), 0
            run.pieces.append(data)
        if entry is None:
            new_value = encode_new_put(
                segment=segment.number,
                offset=offset,
                record_size=size,
                body_offset=len(meta),
                body_size=body_size,
                expires_at_ms=request.expires_at_ms,
                lsn=lsn,
                time_ms=request.created_ms,
                root=root,
                id_head=request.blob_id[:ID_HEAD_SIZE],
            )
            new = run.new_puts.setdefault(request.blob_id[:ID_HEAD_SIZE], [0, 0, 0])
            new[0] += 1
            new[1] += size
            new[2] += body_size
        else:
            header = decode_header(meta, segment.seed_at(offset))
            merged = merge(entry, header, request.blob_id, Place(segment.number, offset))
            run.changes.append((entry, merged))
            run.batch.append((repair_key(key), None))
            new_value = encode_entry(merged)
        self._add(run, key, entry, new_value, lsn, offset, size, data, flags)
        return StateAnswer(state, has_body=True)

    def _plan_update(self, request: UpdateRequest, key: bytes, value: bytes | None) -> Answer:
        replica = replica_of(self._replicas, request.blob_id)
        entry = None if value is None else decode_entry(value)
        if entry is not None and entry.id_head != request.blob_id[:ID_HEAD_SIZE]:
            entry, known = None, False
        else:
            known = True
        if request.change is Change.JOIN:
            if not known:
                raise BlobCollision("another blob has this id's unique part")
            return self._join(request.blob_id, key, entry, request.state, request.time_ms)
        if entry is None:
            raise BlobNotFound("no such blob", incarnation=replica.incarnation)
        match request.change:
            case Change.DELETE:
                target = deleted(entry.state)
            case Change.UNDELETE:
                if entry.life & 1 and not entry.has_body:
                    # Compaction reclaimed it, or it never was here: alive again it would be a hole that nobody fills.
                    raise BlobDeleted("the replica has no bytes of the deleted blob", **told(entry))
                target = undeleted(join(entry.state, request.state))
            case Change.EXTEND:
                target = extended(entry.state, request.state.expires_at_ms)
            case _:
                raise BadRequest(f"unknown change {request.change}", field="change")
        return self._join(request.blob_id, key, entry, target, request.time_ms)

    def _join(self, blob_id: bytes, key: bytes, entry: Entry | None, target: BlobState, time_ms: int) -> Answer:
        """Bring the blob to the join of its state and `target`: one record, or none when it is there already."""
        before = entry.state if entry is not None else None
        state = target if before is None else join(before, target)
        if state.life > LIFE_MAX:
            raise NotAllowed("the blob was deleted and undeleted too often", field="life")
        has_body = entry is not None and entry.has_body
        if state == before:
            return StateAnswer(state, has_body)
        replica = replica_of(self._replicas, blob_id)
        size = record_size(BINARY_SIZE, 0, 0)
        run = self._run_for(replica, size)
        segment = run.segment
        lsn, offset = self._next_lsn(), segment.end
        data = _state_record(segment, offset, _kind_of_change(before, state), lsn, time_ms, blob_id, state)
        run.pieces.append(data)
        header = decode_header(data, segment.seed_at(offset))
        merged = merge(entry, header, blob_id, Place(segment.number, offset))
        run.changes.append((entry, merged))
        if not has_body:
            # Alive without its bytes is a hole, which is queued with the record that makes it one.
            queued = None if state.is_deleted else self._hole_row(blob_id)
            if entry is not None or queued is not None:
                run.batch.append((repair_key(key), queued))
        self._add(run, key, entry, encode_entry(merged), lsn, offset, size, data, 0)
        return StateAnswer(state, has_body)

    def plan_hole(self, blob_id: bytes, key: bytes, entry: Entry) -> None:
        """The bytes of a blob are damaged: its state, in a record of its own, is all that the index points to.

        A live blob is queued for repair in the same batch. The root stays, so that nothing else takes the place.
        """
        self._plan_state(blob_id, key, entry, keeps_body=False)

    def plan_renewal(self, blob_id: bytes, key: bytes, entry: Entry) -> None:
        """The record of a blob's newest state may be lost: the same state again, in a record of its own."""
        self._plan_state(blob_id, key, entry, keeps_body=entry.has_body)

    def _plan_state(self, blob_id: bytes, key: bytes, entry: Entry, *, keeps_body: bool) -> None:
        replica = replica_of(self._replicas, blob_id)
        size = record_size(BINARY_SIZE, 0, 0)
        try:
            run = self._run_for(replica, size)
        except (DiskFull, DiskUnavailable) as error:
            self.answers.append(error.as_answer())
            return
        segment = run.segment
        lsn, offset = self._next_lsn(), segment.end
        kind = RecordKind.TOMBSTONE if entry.life & 1 else RecordKind.TTL
        data = _state_record(segment, offset, kind, lsn, entry.time_ms, blob_id, entry.state)
        run.pieces.append(data)
        if keeps_body:
            after = replace(entry, lsn=lsn)
        else:
            after = replace(
                entry,
                flags=entry.flags & ~HAS_BODY,
                segment=segment.number,
                offset=offset,
                record_size=size,
                body_offset=size,
                body_size=0,
                lsn=lsn,
            )
            if not entry.life & 1:
                run.batch.append((repair_key(key), self._hole_row(blob_id)))
        run.changes.append((entry, after))
        self._add(run, key, entry, encode_entry(after), lsn, offset, size, data, 0)
        self.answers.append(StateAnswer(entry.state, has_body=keeps_body))

    def _hole_row(self, blob_id: bytes) -> bytes:
        """What the repair queue has of a blob that lives and has no bytes here."""
        return blob_id[:ID_HEAD_SIZE] + self._now_ms.to_bytes(8, "little")

    def _next_lsn(self) -> int:
        lsn = self.next_lsn
        self.next_lsn = lsn + 1
        return lsn

    def _run_for(self, replica: Replica, size: int, expiry_class: int = 0) -> _Run:
        """The run that takes the next record; a new one when the segment rolls."""
        segment = replica.place(self._disk, size, self._segment_bytes, self._now_ms, expiry_class)
        run = self._current.get((replica.partition, expiry_class))
        if run is None or run.segment is not segment:
            run = _Run(replica, segment, segment.end, self._batches.setdefault(replica.partition, []))
            self._current[replica.partition, expiry_class] = run
            self._runs.append(run)
        return run

    def _add(
        self,
        run: _Run,
        key: bytes,
        entry: Entry | None,
        new_value: bytes,
        lsn: int,
        offset: int,
        size: int,
        data: bytes,
        flags: int,
    ) -> None:
        partition = run.replica.partition
        run.segment.end = offset + size
        run.end_lsn = lsn
        run.requests.append(len(self.answers))
        run.offsets.append(offset)
        run.table.append(encode_journal_entry(partition, run.segment.number, offset, len(data), size, flags))
        run.journal.append(data)
        if entry is not None:
            run.batch.append((change_key(partition, entry.lsn), None))
        run.batch.append((key, new_value))
        run.batch.append((change_key(partition, lsn), key[5:]))
        self._overlay[key] = new_value

    # --- 2. logs -----------------------------------------------------------------------------------------------

    def write_logs(self) -> None:
        """Write and sync every run that has a large body, and hold the records of the others.

        A failure fails all requests of its replica: their records lean on each other.
        """
        for run in self._runs:
            if run.segment.end > run.segment.reserved_end:
                self._reserve(run)
        # Large bodies beside each other: while the disk takes one, the page cache takes the next.
        self._disk.run_all([partial(self._write_and_sync, run) for run in self._runs if run.needs_sync])
        failed: dict[int, AmbryError] = {}
        for run in self._runs:
            if run.error is not None:
                failed.setdefault(run.replica.partition, run.error)
                if isinstance(run.error, DiskUnavailable) and not lacks_descriptors(run.error):
                    self.troubled.append((run.replica, run.segment, run.error))
        for run in self._runs:
            error = failed.get(run.replica.partition) if failed else None
            if error is not None:
                self._give_back(run, error)
                continue
            run.replica.dirty.add(run.segment.number)
            if not run.needs_sync:
                size = run.segment.end - run.start
                self._tails.hold(run.replica, run.segment, zip(run.offsets, run.journal, strict=True), size)
        if failed:
            self._forget_failed(failed)

    def _forget_failed(self, failed: Mapping[int, AmbryError]) -> None:
        for partition in failed:
            self._batches[partition].clear()
        self._runs = [run for run in self._runs if run.replica.partition not in failed]
        for blob_id, index in self._dependent:
            cause = failed.get(int.from_bytes(blob_id[12:16], "big"))
            if cause is not None:
                self.answers[index] = cause

    def _reserve(self, run: _Run) -> None:
        """Space for what is held as well: it is acknowledged before it is written."""
        # A full disk's last space is for tombstones and for compaction: no partition may keep much of it for later.
        is_plenty = self._takes_puts(SEGMENT_PREALLOCATE_BYTES)
        try:
            reserve_ahead(
                run.segment, self._segment_bytes, SEGMENT_PREALLOCATE_BYTES if is_plenty else SEGMENT_TAIL_BYTES_MAX
            )
        except DiskUnavailable as error:
            run.error = error.as_answer()

    def _write_and_sync(self, run: _Run) -> None:
        if run.error is not None:
            return
        try:
            run.segment.file.write_out(run.pieces, run.start)
            run.segment.file.sync()
        except (DiskFull, DiskUnavailable) as error:
            run.error = error.as_answer()

    def undo(self) -> None:
        """The journal did not take the group: give all places back. LSNs are lost, and nobody may be answered."""
        for run in self._runs:
            if not run.needs_sync:
                self._tails.let_go(run.segment, tuple(zip(run.offsets, run.journal, strict=True)))
            self._take_back(run)

    def _take_back(self, run: _Run) -> None:
        if run.replica.active.get(run.segment.expiry_class) is not run.segment:
            # It was sealed in this group, with what is taken back.
            run.replica.sealed_size -= run.segment.end - run.start
        run.segment.end = run.start

    def _give_back(self, run: _Run, error: AmbryError) -> None:
        self._take_back(run)
        for request in run.requests:
            self.answers[request] = error

    # --- 3. and 4. journal and index ---------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """Records that were written."""
        return sum(len(run.table) for run in self._runs)

    @property
    def filled(self) -> int:
        """Blobs that were known here without their bytes, and have them by a put of this group."""
        changes = (change for run in self._runs for change in run.changes)
        return sum(before is not None and after.has_body and not before.has_body for before, after in changes)

    def journal_payload(self) -> list[bytes]:
        """Table and records, as the journal wants them."""
        table = [row for run in self._runs for row in run.table]
        return table + [data for run in self._runs for data in run.journal]

    def index_batch(self, accounts: Accounts, late: LateRows, sequence: int) -> list[tuple[bytes, bytes | None]]:
        """All changes of the index, with the newest LSN of each replica and the totals that change with them."""
        batch = [change for rows in self._batches.values() for change in rows]
        for run in self._runs:
            partition, segment = run.replica.partition, run.segment.number
            for id_head, (count, record_bytes, body_bytes) in run.new_puts.items():
                accounts.put(partition, segment, id_head, count, record_bytes, body_bytes)
        # After the puts: a group may hold the put of a blob and its delete, in runs of different segments.
        for run in self._runs:
            for before, after in run.changes:
                accounts.change(run.replica.partition, before, after)
        rows = accounts.batch()
        self._end_lsns = {}
        for run in self._runs:
            # A replica may have runs in several segments; the newest LSN of all of them counts.
            self._end_lsns[run.replica] = max(run.end_lsn, self._end_lsns.get(run.replica, 0))
        rows += [(replica.end_lsn_key, lsn.to_bytes(LSN_SIZE, "little")) for replica, lsn in self._end_lsns.items()]
        batch += late.of_group(sequence, rows)
        batch.append((STATE_APPLIED, sequence.to_bytes(8, "little")))
        return batch

    def publish(self) -> None:
        """After the index: the newest LSNs are what peers may ask for."""
        for replica, lsn in self._end_lsns.items():
            replica.end_lsn = lsn


def group_size_max(requests: Sequence[Mutation]) -> int:
    """An upper bound of the journal's bytes for a group; bodies above JOURNAL_BODY_BYTES_MAX go elsewhere."""
    size = GROUP_HEADER_SIZE + ALIGNMENT + len(requests) * (ENTRY_SIZE + 256)
    for request in requests:
        if isinstance(request, PutRequest):
            size += len(request.properties)
            if len(request.body) <= JOURNAL_BODY_BYTES_MAX:
                size += len(request.body) + len(request.vector)
    return size


def _state_record(
    segment: Segment, offset: int, kind: RecordKind, lsn: int, time_ms: int, blob_id: bytes, state: BlobState
) -> bytes:
    """A whole record without a body: all it says is the state of a blob."""
    data = encode_meta(
        seed=segment.seed_at(offset),
        kind=kind,
        lsn=lsn,
        time_ms=time_ms,
        life=state.life,
        expires_at_ms=state.expires_at_ms,
        key=blob_id,
        properties=b"",
        body_size=0,
        root=0,
    )
    return data + padding_after(len(data))


def _kind_of_change(before: BlobState | None, after: BlobState) -> RecordKind:
    if before is None or before.life != after.life:
        return RecordKind.TOMBSTONE if after.is_deleted else RecordKind.UNDELETE
    return RecordKind.TTL
