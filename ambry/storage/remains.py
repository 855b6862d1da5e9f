"""What of erased blobs is on a disk beside its logs: in freed groups of the journal, and in copies of what was damaged.

Bytes that leave the logs because they have to be erased may still be in the journal's ring, which nothing overwrites on
an idle disk; so its freed part is overwritten with zeros, in small steps between commits. `Erasures` remembers by when
(docs/decisions/0025). Damaged records are kept in `quarantine` for people to look at, and a damaged journal that was
discarded under another name: no promise waits for that.
Knows files, keys and times; the steps in the journal are the store's.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ambry.blob.blob_id import BINARY_SIZE
from ambry.blob.state import NEVER
from ambry.errors import DiskFull
from ambry.storage.compaction_plan import Erasure, Retention
from ambry.storage.disk import Disk
from ambry.storage.index import Index
from ambry.storage.index_entry import Entry, blob_key, decode_entry
from ambry.storage.journal import KEPT_PREFIX

QUARANTINE_FOLDER: Final = "quarantine"
"""Below the disk's folder: damaged records as they were found, <partition>-<segment>-<offset>-<blob id>.record."""

_SUFFIX: Final = ".record"


@dataclass(frozen=True, slots=True)
class Remnant:
    """A file with bytes that have to be erased: from when on it may go for that, and by when it has to be gone."""

    path: str
    erase_at_ms: int
    erase_by_ms: int


def save_damaged(disk: Disk, partition: int, entry: Entry, blob_id: bytes, data: bytes) -> None:
    """Keep damaged bytes for whoever wants to look at them; without room for that, they are not kept.

    Under their own name from the first byte on: what a crash leaves of them is found like all others.
    """
    path = f"{QUARANTINE_FOLDER}/{partition}-{entry.segment:08d}-{entry.offset}-{blob_id.hex()}{_SUFFIX}"
    disk.make_folder(QUARANTINE_FOLDER)
    disk.remove(path)
    with contextlib.suppress(DiskFull):
        file = disk.create(path)
        try:
            file.pwrite([data], 0)
            file.sync()
        except DiskFull:
            disk.remove(path)
        finally:
            file.close()
        disk.sync_folder(QUARANTINE_FOLDER)


def quarantined(disk: Disk, index: Index, erasure: Erasure, retention: Retention) -> Iterator[Remnant]:
    """The files in quarantine that have to go because of a promise. A name without a blob id is due at once. May block.

    Raises DiskUnavailable.
    """
    for name in disk.names(QUARANTINE_FOLDER):
        blob_id = _blob_of(name)
        value = index.get(blob_key(blob_id)) if blob_id is not None else None
        entry = decode_entry(value) if value is not None else None
        # Of a blob that the index does not know any more nobody can say since when it was over.
        times = (0, 0) if blob_id is None else erasure.times_of(blob_id, entry, 0, retention)
        if times[1] < NEVER:
            yield Remnant(f"{QUARANTINE_FOLDER}/{name}", *times)


def _blob_of(name: str) -> bytes | None:
    """The blob that a file in quarantine is of; None when its name does not say so, as those of former versions."""
    blob_id = b""
    with contextlib.suppress(ValueError):
        blob_id = bytes.fromhex(name.removesuffix(_SUFFIX).rpartition("-")[2])
    return blob_id if len(blob_id) == BINARY_SIZE else None


def remove_files(disk: Disk, paths: list[str]) -> None:
    """Remove files of one folder or another, durably. Raises DiskUnavailable."""
    for path in paths:
        disk.remove(path)
    for folder in sorted({path.rpartition("/")[0] for path in paths}):
        disk.sync_folder(folder)


def kept_journals(disk: Disk) -> list[str]:
    """Damaged journals that were discarded and are kept beside the one in use."""
    return [name for name in disk.names("") if name.startswith(KEPT_PREFIX)]
