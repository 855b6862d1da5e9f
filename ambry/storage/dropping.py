"""The end of a replica: its rows in the index and its files, once the store does not answer for it any more.

Order: replica.meta goes first, so that a crash leaves no replica that opens with half of its rows; then the rows,
durably; then the logs, and what quarantine had saved of them. Done again it goes on where it was. The bytes of small
records stay in the journal until its ring comes round, or is erased because of a promise.
"""

from typing import Final

from ambry.storage.disk import Disk
from ambry.storage.index import Index, pages
from ambry.storage.index_entry import end_lsn_key, partition_range
from ambry.storage.remains import QUARANTINE_FOLDER
from ambry.storage.replica_meta import replica_meta_path
from ambry.storage.segment import partition_folder

KEY_SPACES: Final = (b"b", b"c", b"u", b"v", b"q", b"t", b"a")
"""Of the index, those whose keys begin with a partition."""

_ROWS_PER_BATCH: Final = 1000


def remove_replica(disk: Disk, index: Index, partition: int) -> None:
    """Remove everything of a partition. May block for long. Raises DiskUnavailable."""
    folder = partition_folder(partition)
    names = disk.names(folder)
    if names:
        disk.remove(replica_meta_path(partition))
        disk.sync_folder(folder)
    for prefix in KEY_SPACES:
        start, _ = partition_range(prefix, partition)
        # Names of peers may be longer than any other key.
        stop = (int.from_bytes(start, "big") + 1).to_bytes(len(start), "big")
        for page in pages(index, start, stop, _ROWS_PER_BATCH):
            index.write([(key, None) for key, _ in page])
    index.write([(end_lsn_key(partition), None)])
    index.flush()
    for name in names:
        disk.remove(f"{folder}/{name}")
    saved = [name for name in disk.names(QUARANTINE_FOLDER) if name.startswith(f"{partition}-")]
    for name in saved:
        disk.remove(f"{QUARANTINE_FOLDER}/{name}")
    if names:
        disk.sync_folder(folder)
    if saved:
        disk.sync_folder(QUARANTINE_FOLDER)
