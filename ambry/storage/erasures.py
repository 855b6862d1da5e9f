"""The erasure policies that a disk follows: the newest one of each datacentre's name store, kept as rows of its index.

The index is a cache, and so are these: after a rebuild frontends tell them again. One more row says by when the
journal has to be erased, because of bytes that left the logs. It is durable before they go, so none is forgotten.
Without it, or under other promises than it was written under, nobody knows, and the journal is erased at once.
Layout: docs/formats/index.md.
"""

import contextlib
import struct
import threading
from collections.abc import Iterable
from typing import Final

from ambry.blob.erasure_policy import ErasurePolicy, pack_rows, unpack_rows
from ambry.blob.state import NEVER
from ambry.config import ErasureSettings
from ambry.errors import CorruptRecord
from ambry.storage.compaction_plan import Erasure
from ambry.storage.index import Index, pages

_PREFIX: Final = b"e"
_HEAD: Final = struct.Struct("<QQ")
HEAD_LAYOUT: Final = (("since_ms", 0, 8), ("version", 8, 8))
_ROWS_PER_PAGE: Final = 16
JOURNAL_KEY: Final = b"serasure"
_JOURNAL: Final = struct.Struct("<QQ")
JOURNAL_LAYOUT: Final = (("erase_by_ms", 0, 8), ("erasure_digest", 8, 8))


def policy_key(datacentre: int) -> bytes:
    """Index key of the policy of a datacentre's name store."""
    return _PREFIX + datacentre.to_bytes(2, "big")


def encode_policy(policy: ErasurePolicy) -> bytes:
    """Value of the row."""
    return _HEAD.pack(policy.since_ms, policy.version) + pack_rows(policy.rows)


def decode_policy(datacentre: int, data: bytes) -> ErasurePolicy:
    """Read the value of a row. Raises CorruptRecord."""
    if len(data) < _HEAD.size:
        raise CorruptRecord(f"an erasure policy of {len(data)} bytes")
    since_ms, version = _HEAD.unpack_from(data)
    return ErasurePolicy(datacentre, since_ms, version, unpack_rows(data[_HEAD.size :]))


def load_policies(index: Index) -> dict[int, ErasurePolicy]:
    """The policies that an index holds, by datacentre. What cannot be read will be told again."""
    policies: dict[int, ErasurePolicy] = {}
    for page in pages(index, _PREFIX, bytes([_PREFIX[0] + 1]), _ROWS_PER_PAGE):
        for key, value in page:
            with contextlib.suppress(CorruptRecord):
                policy = decode_policy(int.from_bytes(key[1:], "big"), value)
                policies[policy.datacentre] = policy
    return policies


class Erasures:
    """What has to be erased from a disk: by its settings and by all policies, the shortest promise of each container.

    `now` is replaced as a whole and may be read from any thread.
    """

    def __init__(self, index: Index, settings: Iterable[ErasureSettings]) -> None:
        self._index = index
        self._settings = {(one.account, one.container): one.days for one in settings}
        self._policies = load_policies(index)
        self._lock = threading.Lock()
        self.now = self._joined()
        self._notes = 0
        self.journal_by_ms = 0
        """By when the freed part of the journal has to be erased: NEVER when nothing in it has to be, 0 when nobody
        knows what is in it. Means nothing without promises.
        """
        row = index.get(JOURNAL_KEY)
        if row is not None and len(row) == _JOURNAL.size:
            by_ms, digest = _JOURNAL.unpack(row)
            if digest == self.now.digest:
                self.journal_by_ms = by_ms
            else:
                # Under those nobody says what leaves the logs: they may come back.
                index.write([(JOURNAL_KEY, None)])

    @property
    def notes(self) -> int:
        """How often something was noted that may be in the journal."""
        return self._notes

    def note(self, by_ms: int) -> None:
        """Bytes leave the logs that have to be gone by then; they may be in the journal. From any thread; may block.

        As durable as the index, which has to be flushed before they go. Raises DiskUnavailable, DiskFull.
        """
        with self._lock:
            self._notes += 1
            if by_ms < self.journal_by_ms:
                self._index.write([(JOURNAL_KEY, _JOURNAL.pack(by_ms, self.now.digest))])
                self.journal_by_ms = by_ms

    def erased(self, notes: int) -> None:
        """The journal was erased, and has nothing of what had left the logs when that began; there were `notes` then.

        Raises DiskUnavailable, DiskFull.
        """
        with self._lock:
            if notes == self._notes:
                self._index.write([(JOURNAL_KEY, _JOURNAL.pack(NEVER, self.now.digest))])
                self.journal_by_ms = NEVER

    def follow(self, policy: ErasurePolicy) -> tuple[tuple[int, int], bool]:
        """Follow a policy, unless a newer one of its datacentre is known: the rank of the one in use, and whether
        what has to be erased is another thing now.

        From any thread; may block. The row is as durable as the index: what a crash takes is told again by the next
        frontend. Raises DiskUnavailable.
        """
        with self._lock:
            known = self._policies.get(policy.datacentre)
            if known is not None and known.rank >= policy.rank:
                return known.rank, False
            if known is None or (known.since_ms, known.rows) != (policy.since_ms, policy.rows):
                self._index.write([(policy_key(policy.datacentre), encode_policy(policy))])
            self._policies[policy.datacentre] = policy
            before, self.now = self.now, self._joined()
            is_other = self.now.digest != before.digest
            if is_other:
                # What left the logs before may have been promised now.
                self._notes += 1
                self._index.write([(JOURNAL_KEY, None)])
                self.journal_by_ms = 0
            return policy.rank, is_other

    def move_to(self, index: Index) -> None:
        """Keep the rows in this index from here on: it has those of the one before, as far as they were durable."""
        with self._lock:
            self._index = index
            if self.journal_by_ms:
                index.write([(JOURNAL_KEY, _JOURNAL.pack(self.journal_by_ms, self.now.digest))])

    def _joined(self) -> Erasure:
        days = dict(self._settings)
        for policy in self._policies.values():
            for account, container, promised in policy.rows:
                days[account, container] = min(promised, days.get((account, container), promised))
        return Erasure(days)
