"""From records to an index: what records change in it, gathered in any order of theirs and written in batches.

Whoever has records that an index lacks comes here: the redo of the journal by an opening and by a running store, and
the index that is made anew from the segments. Knows entries and totals; not where the records come from.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from ambry.storage.accounts import CONTAINER_PREFIX, SEGMENT_PREFIX, Accounts
from ambry.storage.index import Index, pages
from ambry.storage.index_entry import (
    HAS_BODY,
    ID_HEAD_SIZE,
    Entry,
    Place,
    blob_key,
    change_key,
    decode_entry,
    encode_entry,
    encode_new_put,
    end_lsn_key,
    merge,
    repair_key,
)
from ambry.storage.journal import JournalEntry
from ambry.storage.plain_scan import PlainRecord
from ambry.storage.record import Header, RecordKind, decode_header, decode_meta, header_of

BATCH_RECORDS: Final = 1000
"""Records that are gathered before they are written."""


class IndexUpdates:
    """Gathers what records change in an index, in any order of the records, and writes it in batches."""

    def __init__(self, index: Index, accounts: Accounts) -> None:
        self._index = index
        self._accounts = accounts
        self._entries: dict[bytes, Entry] = {}
        self._fresh: dict[bytes, bytes] = {}
        self._changes: dict[bytes, bytes | None] = {}
        self._end_lsns: dict[int, int] = {}
        self._damaged: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._entries) + len(self._fresh)

    def add(self, partition: int, header: Header, blob_id: bytes, place: Place, *, is_damaged: bool = False) -> None:
        """One record. A put whose body is damaged gives way to another put of its blob: the bytes came back later."""
        key = blob_key(blob_id)
        entry = self._entries.get(key)
        if entry is None:
            value = self._fresh.pop(key, None) or self._index.get(key)
            entry = decode_entry(value) if value is not None else None
        before = entry
        if header.kind is RecordKind.PUT:
            if is_damaged and (entry is None or not entry.has_body):
                self._damaged.add(key)
            elif key in self._damaged and not is_damaged and entry is not None:
                self._damaged.remove(key)
                before = replace(entry, flags=entry.flags & ~HAS_BODY)
        merged = merge(before, header, blob_id, place)
        self._entries[key] = merged
        self._accounts.change(partition, entry, merged)
        if entry is not None and entry.lsn != merged.lsn:
            self._changes[change_key(partition, entry.lsn)] = None
        self._changes[change_key(partition, merged.lsn)] = key[5:]
        if entry is not None and (merged.life & 1 or (merged.has_body and not entry.has_body)):
            # The index may know of the hole, and not of its end.
            self._changes[repair_key(key)] = None
        self._raise_end_lsn(partition, header.lsn)

    def add_journaled(self, seed: int, entry: JournalEntry) -> None:
        """The record of a row of a journal group; `seed` is that of its place. Raises CorruptRecord."""
        header = decode_header(entry.data, seed)
        key, _ = decode_meta(header, entry.data, seed)
        self.add(entry.partition, header, key, Place(entry.segment, entry.offset))

    def add_plain(self, partition: int, number: int, page: Sequence[PlainRecord]) -> None:
        """A page of whole records of one segment. First puts, nearly all of them, become entries without objects."""
        keys = [b"b" + fields[9][ID_HEAD_SIZE:] for _, fields in page]
        known = self._index.get_many(keys)
        entries, fresh, changes = self._entries, self._fresh, self._changes
        sums: dict[bytes, list[int]] = {}
        change_head, newest, put_kind = change_key(partition, 0)[:5], 0, RecordKind.PUT.value
        for key, value, (offset, fields) in zip(keys, known, page, strict=True):
            kind, lsn, time_ms, expires_at_ms, life, body_size, body_offset, record_size, root, blob_id = fields
            newest = max(newest, lsn)
            if value is not None or kind != put_kind or life or key in fresh or key in entries:
                self.add(partition, header_of(fields), blob_id, Place(number, offset))
                continue
            id_head = blob_id[:ID_HEAD_SIZE]
            fresh[key] = encode_new_put(
                segment=number,
                offset=offset,
                record_size=record_size,
                body_offset=body_offset,
                body_size=body_size,
                expires_at_ms=expires_at_ms,
                lsn=lsn,
                time_ms=time_ms,
                root=root,
                id_head=id_head,
            )
            changes[change_head + lsn.to_bytes(8, "big")] = key[5:]
            sum_of = sums.setdefault(id_head, [0, 0, 0])
            sum_of[0] += 1
            sum_of[1] += record_size
            sum_of[2] += body_size
        for id_head, (count, record_bytes, body_bytes) in sums.items():
            self._accounts.put(partition, number, id_head, count, record_bytes, body_bytes)
        self._raise_end_lsn(partition, newest)

    def _raise_end_lsn(self, partition: int, lsn: int) -> None:
        if partition not in self._end_lsns:
            stored = self._index.get(end_lsn_key(partition))
            self._end_lsns[partition] = int.from_bytes(stored or b"", "little")
        self._end_lsns[partition] = max(self._end_lsns[partition], lsn)

    def write(self, state: list[tuple[bytes, bytes | None]]) -> None:
        """Write everything gathered, and `state`, in one batch."""
        batch: list[tuple[bytes, bytes | None]] = [(key, encode_entry(entry)) for key, entry in self._entries.items()]
        batch += self._fresh.items()
        batch += self._changes.items()
        batch += [(end_lsn_key(partition), lsn.to_bytes(8, "little")) for partition, lsn in self._end_lsns.items()]
        self._index.write([*batch, *self._accounts.batch(), *state])
        self._entries.clear()
        self._fresh.clear()
        self._changes.clear()


def load_accounts(index: Index) -> Accounts:
    """The totals that an index holds."""
    return Accounts(
        row
        for prefix in (SEGMENT_PREFIX, CONTAINER_PREFIX)
        for page in pages(index, prefix, prefix + b"\xff" * 16, BATCH_RECORDS)
        for row in page
    )
