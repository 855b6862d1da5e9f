"""Offline checks of one disk: logs and index against each other, and the index made anew from the logs.

Both open the store first, so they begin where a datanode would: journal redone, tails cut. Knows nothing that
`recovery` does not; it only looks at all of it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ambry.blob.state import BlobState, join
from ambry.clock import Clock
from ambry.config import StorageSettings
from ambry.errors import CorruptRecord
from ambry.storage.disk import Disk
from ambry.storage.index import IndexSource
from ambry.storage.index_entry import blob_key, decode_entry
from ambry.storage.recovery import RecoveryReport, open_store
from ambry.storage.segment import Damage, ScannedRecord, scan
from ambry.storage.store import DiskStore


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be, and where."""

    partition: int
    segment: int
    offset: int
    what: str


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a check read, and what it found wrong."""

    partitions: int
    segments: int
    records: int
    log_bytes: int
    recovery: RecoveryReport
    findings: tuple[Finding, ...]


def check_disk(
    disk: Disk,
    index_source: IndexSource,
    *,
    settings: StorageSettings,
    clock: Clock,
    random_bytes: Callable[[int], bytes],
    rebuild: bool,
    progress: Callable[[int], None] = lambda _: None,
) -> CheckReport:
    """Read every record of every segment and hold it against the index; `rebuild` throws the index away first.

    `progress` is told the bytes of log that were read. The caller has the disk's lock. Raises DirectoryUnusable.
    """
    if rebuild:
        index_source.discard()
    store, recovery = open_store(
        disk,
        index_source,
        settings=settings,
        clock=clock,
        random_bytes=random_bytes,
        partitions={},
        progress=progress if rebuild else lambda _: None,
    )
    try:
        return _check(store, recovery, progress)
    finally:
        store.close()


def _check(store: DiskStore, recovery: RecoveryReport, progress: Callable[[int], None]) -> CheckReport:
    records = segments = log_bytes = 0
    findings: list[Finding] = []
    for replica in store.replicas:
        for number, segment in sorted(replica.segments.items()):
            segments += 1
            for found in scan(segment):
                if isinstance(found, Damage):
                    findings.append(Finding(replica.partition, number, found.offset, found.reason))
                    continue
                records += 1
                wrong = _compare(store, found, number)
                if wrong is not None:
                    findings.append(Finding(replica.partition, number, found.offset, wrong))
            log_bytes += segment.end
            progress(segment.end)
    return CheckReport(len(store.replicas), segments, records, log_bytes, recovery, tuple(findings))


def _compare(store: DiskStore, record: ScannedRecord, number: int) -> str | None:
    """What is wrong between a record and the index's entry of its blob, or None."""
    value = store.index.get(blob_key(record.key))
    if value is None:
        return "the index does not know this record's blob"
    try:
        entry = decode_entry(value)
    except CorruptRecord as error:
        return f"the index has a damaged entry for this record's blob: {error}"
    header = record.header
    if entry.lsn < header.lsn:
        return f"the index stands at LSN {entry.lsn}, before this record's {header.lsn}"
    if join(entry.state, BlobState(header.life, header.expires_at_ms)) != entry.state:
        return "the index has an older state of this record's blob"
    if entry.lsn == header.lsn and entry.state != BlobState(header.life, header.expires_at_ms):
        return "the index has a state that the blob's newest record does not have"
    if header.body_size and not entry.has_body:
        return "the index says that the blob has no bytes here"
    if header.body_size and (entry.segment, entry.offset) == (number, record.offset) and entry.root != header.root:
        return "the index has another checksum root for this record"
    return None
