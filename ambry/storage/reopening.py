"""The way back to an index that takes writes, in a store that runs.

RocksDB takes nothing more after a flush that failed (no descriptors, no space), until it is opened again; and then it
has lost its newest batches. The journal has what they said of blobs, as after a crash. What else they held, the store
that runs knows of and a crash would not have to: tokens of what was read from peers, the repair queue, surveys,
policies. The database that takes nothing more can still be read, so these rows are taken from it first:

    1. keep    the rows that no journal has
    2. open    give the old one up, without a flush; open it again
    3. redo    the groups that it lacks, from the journal; the totals are those of the index
    4. restore the rows that were kept. After 3, as ever: a token comes later than what it covers

All under the store's lock: nothing is written meanwhile. Reads ask the old one, which answers to the last and then is
closed, and the new one once it has everything. Any step may fail and be repeated. Moves of a compaction that were lost
are not redone: it has ended with an error, what it copied and what it copied from are both listed, and whichever the
index points to is there (decision 0023). Knows index and journal; when to try is the store's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ambry.errors import AmbryError, DiskUnavailable
from ambry.limits import INDEX_FAILURES_MAX
from ambry.storage.accounts import Accounts
from ambry.storage.disk import Disk
from ambry.storage.index import Index, IndexSource, pages
from ambry.storage.index_entry import STATE_APPLIED
from ambry.storage.index_updates import BATCH_RECORDS, IndexUpdates, load_accounts
from ambry.storage.journal import Journal
from ambry.storage.late_rows import LateRows, settle
from ambry.storage.replica import Replica

KEPT_ROWS_MAX: Final = 1_000_000
"""Rows that no journal has, held in memory for as long as the index is opened again: 200 MB. With more, which is a
million blobs in the repair queue, the disk waits for the next opening of the store."""

_KEPT_SPACES: Final = (b"q", b"v", b"t", b"e")
"""Repair queue, surveys, tokens, policies."""


@dataclass(frozen=True, slots=True)
class Reopened:
    """An index that has everything, and what goes with it."""

    index: Index
    late: LateRows
    accounts: Accounts


def index_error(reason: Exception | str) -> DiskUnavailable:
    """What somebody hears who needs an index that has to be opened again, or was meanwhile."""
    return DiskUnavailable(f"the index has to be opened again: {reason}", failed="index")


def is_of_index(error: BaseException) -> bool:
    """Whether that is the error: nothing is in doubt then but what the index has, and the journal has that."""
    return isinstance(error, DiskUnavailable) and error.facts.get("failed") == "index"


class Reopenings:
    """What becomes of the index of a store when it fails. Under the store's lock, but for what is read."""

    def __init__(self, source: IndexSource) -> None:
        self._source = source
        self._failures = 0
        self._under_way: Reopening | None = None
        self.count = 0
        """Times that it was opened again."""

    @property
    def reason(self) -> AmbryError | None:
        """Why the index has to be opened again; None while it is as it should be."""
        return self._under_way.reason if self._under_way is not None else None

    def begin(self, index: Index, error: BaseException) -> bool:
        """An index has not taken what it had to. False when that is no failure of a disk, or is one too many."""
        self._failures += 1
        if not isinstance(error, AmbryError) or self._failures > INDEX_FAILURES_MAX:
            return False
        self._under_way = self._under_way or Reopening(self._source, index, error.as_answer())
        return True

    def spare_to_open(self, disk: Disk) -> None:
        """Let idle files make room for an opening. Raises DiskUnavailable while there are too few descriptors."""
        self._source.spare_to_open(disk)

    def spare_to_flush(self, disk: Disk) -> None:
        """The same for a flush: one that finds none costs an opening."""
        self._source.spare_to_flush(disk)

    def run(self, journal: Journal, covered: tuple[int, int, int], replicas: Mapping[int, Replica]) -> Reopened:
        """Open it again; as `Reopening.run`. An attempt that fails is another failure, for `begin`."""
        assert self._under_way is not None
        reopened = self._under_way.run(journal, covered, replicas)
        self._under_way = None
        self.count += 1
        return reopened


class Reopening:
    """An index that failed, until another opening of it has everything. Under the store's lock."""

    def __init__(self, source: IndexSource, failed: Index, reason: AmbryError) -> None:
        self.reason: Final = reason
        self._source = source
        self._failed = failed
        self._kept: dict[bytes, bytes] | None = None

    def run(self, journal: Journal, covered: tuple[int, int, int], replicas: Mapping[int, Replica]) -> Reopened:
        """`covered` is what the last checkpoint has of the journal. Once it returns, the old one is done with.

        Raises DiskUnavailable or DirectoryInUse: then nothing is changed but that the old one may be closed.
        """
        if self._kept is None:
            self._kept = _rows_without_journal(self._failed)
        self._failed.abandon()
        index = self._source.open()
        try:
            return self._bring_up(index, journal, covered, replicas)
        except BaseException:
            index.abandon()
            raise

    def _bring_up(
        self, index: Index, journal: Journal, covered: tuple[int, int, int], replicas: Mapping[int, Replica]
    ) -> Reopened:
        applied = int.from_bytes(index.get(STATE_APPLIED) or b"", "little")
        if applied < covered[1]:
            raise DiskUnavailable(f"the index ends at group {applied}, and had flushed {covered[1]}")
        late = settle(index, applied)
        accounts = load_accounts(index)
        _redo(IndexUpdates(index, accounts), journal, covered, replicas, applied)
        assert self._kept is not None
        _restore(index, self._kept)
        index.throttled_s = self._failed.throttled_s
        return Reopened(index, late, accounts)


def _redo(
    updates: IndexUpdates,
    journal: Journal,
    covered: tuple[int, int, int],
    replicas: Mapping[int, Replica],
    applied: int,
) -> None:
    for group in journal.groups_after(*covered):
        if group.sequence <= applied:
            continue
        for entry in group.entries:
            replica = replicas.get(entry.partition)
            segment = replica.segments.get(entry.segment) if replica is not None else None
            # Gone later than this group, as in the redo of an opening.
            if segment is not None:
                updates.add_journaled(segment.seed_at(entry.offset), entry)
        # By whole groups, since that is what the index says it has.
        updates.write([(STATE_APPLIED, group.sequence.to_bytes(8, "little"))])


def _rows_without_journal(index: Index) -> dict[bytes, bytes]:
    kept: dict[bytes, bytes] = {}
    for prefix in _KEPT_SPACES:
        for page in pages(index, prefix, _end_of(prefix), BATCH_RECORDS):
            kept.update(page)
            if len(kept) > KEPT_ROWS_MAX:
                raise DiskUnavailable(f"more than {KEPT_ROWS_MAX} rows of the index are in no journal")
    return kept


def _restore(index: Index, kept: Mapping[bytes, bytes]) -> None:
    for prefix in _KEPT_SPACES:
        for page in pages(index, prefix, _end_of(prefix), BATCH_RECORDS):
            index.write([(key, None) for key, _ in page if key not in kept])
    rows = list(kept.items())
    for first in range(0, len(rows), BATCH_RECORDS):
        index.write(rows[first : first + BATCH_RECORDS])


def _end_of(prefix: bytes) -> bytes:
    return bytes([prefix[0] + 1])
