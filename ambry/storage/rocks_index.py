"""The index of one disk in RocksDB, through rocksdict: one database, one column family, no log of its own.

No write-ahead log, because the journal and the logs of the disk are the truth: after a crash RocksDB holds the
batches up to some flush, and recovery puts the later ones again. One column family, because `flush` of rocksdict
covers the default one only. Keys and values are opaque here.

The choices, for 10^8 blobs (two entries each, 27 to 50 bytes of file an entry) on one disk:
- Bloom filters (10 bits of the whole key) and index blocks stay on the heap, not in the block cache: the answer
  "certainly absent", which every put needs, must never wait for a filter that was evicted. They cost about 1.5 bytes
  an entry, 300 MB for 10^8 blobs; the cache has only data blocks.
- RocksDB never stalls a write, since it would do so with the interpreter held, and every thread of the process would
  wait: 128 ms were measured. Level 0 may grow and compaction may lag; the commit groups of the disk are throttled above
  us. Only memtables that wait for their flush have a bound (MEMTABLES_MAX), since they are memory: whoever comes beyond
  it waits here, without the interpreter, before RocksDB is asked.
- Every file of level 0 has something of every partition, so a compaction of it rewrites level 1 as a whole. Each
  checkpoint flushes, after two seconds perhaps a few MiB: level 0 has to have many files for that to be worthwhile.
  Files of the other levels are small, so that each has little in common with the next level.

Measured with rocksdict 0.3.29, Python 3.11, 2 cores, 300 000 blobs over 64 partitions: `write` 0.85 us an entry,
`get_now` 0.8 us when absent and 2.6 us from the cache, `get` 6 us from the cache, `scan` 0.6 us an entry and 40 us to
begin. After a restart the first `get` in a table file opens it; until then `get_now` is never certain about its keys.
`get_now` is RocksDB's KeyMayExist: (False, None) is certain, (True, value)
came from memory, (True, None) needs the disk. `get` and `get_many` use the list form of rocksdict's get, the one that
releases the interpreter; `flush` does too. `write` and `scan` hold it.
"""

import contextlib
import re
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import rocksdict

from ambry.errors import AmbryError, DirectoryInUse, DiskFull, DiskUnavailable
from ambry.limits import GIB, KIB, MIB
from ambry.storage.disk import Disk

MEMTABLES_MAX: Final = 6
"""Memtables in memory, the active one included. Beyond it `write` waits for a flush."""

_SPARE_MEMTABLES: Final = 8
"""RocksDB slows writes down at one memtable below its own limit, and a batch may begin one or two: that is far off."""

_THROTTLE_S: Final = 0.001
"""Between two looks whether a memtable was flushed."""

OPEN_FILES_MAX: Final = 512
"""Table files that RocksDB keeps open; 10^8 blobs are about 400."""

_DESCRIPTORS_TO_OPEN: Final = 32
"""RocksDB opens 16 table files at once, its own few, and one for each flush and compaction."""

_DESCRIPTORS_TO_FLUSH: Final = 8
"""A flush opens the folder, its new table file twice, and that of a compaction which follows it."""

_READS_END_S: Final = 10.0
"""Reads that are under way when a database is closed have ended by then; each takes milliseconds."""

_LEVEL_ZERO_FILES: Final = 12
"""Files of level 0 before they are merged into level 1. Each costs a look for an absent key 0.2 us."""

_LEVEL_ONE_MEMTABLES: Final = 4
_MEMTABLES_TO_FILES: Final = 2

_NEVER: Final = 1 << 20
_BLOCK_BYTES: Final = 4 * KIB

_UNFLUSHED: Final = "rocksdb.num-immutable-mem-table"
_BACKGROUND_ERRORS: Final = "rocksdb.background-errors"
_COMPACTING: Final = ("rocksdb.compaction-pending", "rocksdb.num-running-compactions")
_PROPERTIES: Final = {
    "file_bytes": "rocksdb.total-sst-files-size",
    "memtable_bytes": "rocksdb.cur-size-all-mem-tables",
    "reader_bytes": "rocksdb.estimate-table-readers-mem",
    "cache_bytes": "rocksdb.block-cache-usage",
    "cache_bytes_max": "rocksdb.block-cache-capacity",
}


class RocksIndexSource:
    """The folder of one disk's index. RocksDB's own lock keeps a second process out."""

    def __init__(self, path: Path | str, cache_bytes: int, memtable_bytes: int) -> None:
        self._path = Path(path)
        self._cache_bytes = cache_bytes
        self._memtable_bytes = memtable_bytes

    def open(self) -> "RocksIndex":
        """The index as it is; empty when there is none. Raises DirectoryInUse, DiskUnavailable when it is damaged."""
        return RocksIndex(self._path, self._cache_bytes, self._memtable_bytes)

    def spare_to_open(self, disk: Disk) -> None:
        """Let idle files of the disk make room for the opening of a database. Raises DiskUnavailable."""
        disk.spare_descriptors(_DESCRIPTORS_TO_OPEN)

    def spare_to_flush(self, disk: Disk) -> None:
        """Let idle files of the disk make room for a flush. Raises DiskUnavailable."""
        disk.spare_descriptors(_DESCRIPTORS_TO_FLUSH)

    def discard(self) -> None:
        """Delete the closed index with everything in it. Fine when there is none. Raises DiskUnavailable."""
        # Renamed first: a crash in the middle of a deletion must not leave half a database that still opens.
        discarded = self._path.with_name(self._path.name + ".discarded")
        try:
            for _ in range(2):
                if discarded.exists():
                    shutil.rmtree(discarded)
                if self._path.exists():
                    self._path.rename(discarded)
        except OSError as error:
            raise DiskUnavailable(f"deletion of index {self._path}: {error.strerror}") from error


class RocksIndex:
    """An Index over a RocksDB database in the folder `path`, created when it is missing.

    Any thread may call any method at any time; whoever comes after `close` gets DiskUnavailable. Raises DirectoryInUse
    when another has the database open, DiskUnavailable when it is damaged.
    """

    __slots__ = ("_database", "_is_closed", "_key_may_exist", "_scanning", "_write_options", "damage", "throttled_s")

    def __init__(self, path: Path | str, cache_bytes: int, memtable_bytes: int) -> None:
        self.damage: str = ""
        with self._errors_of(f"open of index {path}"):
            options = _options(cache_bytes, memtable_bytes)
            # Named for the family as well: of one that exists, rocksdict takes the options that its folder remembers
            # otherwise, and those have RocksDB's own cache of 8 MiB.
            self._database = rocksdict.Rdict(str(path), options, column_families={"default": options})
        self._key_may_exist = self._database.key_may_exist
        self._write_options = rocksdict.WriteOptions()
        # The stub calls it a method; it is a property.
        self._write_options.disable_wal = True  # type: ignore[method-assign,assignment]
        self._is_closed = False
        self._scanning = threading.Lock()
        """A scan is under way. A database with an iterator on it stays locked, also when it was closed."""
        self.throttled_s = 0.0
        """How long writes have waited for flushes."""

    def get(self, key: bytes) -> bytes | None:
        """The value of a key, or None. May block; releases the interpreter meanwhile. Raises DiskUnavailable."""
        return self.get_many((key,))[0]

    def get_now(self, key: bytes) -> tuple[bool, bytes | None]:
        """Without blocking: (True, value) or (True, None) when that is certain, (False, None) when a read is needed."""
        try:
            may_exist, value = self._key_may_exist(key, True)  # type: ignore[misc] # the stub returns no pair
        except Exception as error:
            raise self._translated(error, "read of the index") from error
        if may_exist and value is None:
            return False, None
        return True, value

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values in the order of the keys. May block; releases the interpreter meanwhile. Raises DiskUnavailable."""
        with self._errors_of("read of the index"):
            if self._is_closed:
                # rocksdict cannot close a database while somebody reads: who comes late must not keep it open.
                raise rocksdict.DbClosedError
            values: list[bytes | None] = self._database.get(list(keys))  # type: ignore[assignment] # the stub knows no lists
        return values

    def write(self, batch: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Put (key, value) and delete (key, None), in order, all or nothing. Raises DiskUnavailable or DiskFull.

        May wait for a flush, without the interpreter.
        """
        with self._errors_of("write to the index"):
            self._wait_for_flush()
            group = rocksdict.WriteBatch(raw_mode=True)
            put, delete = group.put, group.delete
            for key, value in batch:
                if value is None:
                    delete(key)
                else:
                    put(key, value)
            self._database.write(group, self._write_options)

    def _wait_for_flush(self) -> None:
        """Our own throttle. A database whose flush has failed is not waited for: it says so to whoever writes."""
        ask = self._database.property_int_value
        if (ask(_UNFLUSHED) or 0) < MEMTABLES_MAX - 1:
            return
        began_s = time.monotonic()
        while (ask(_UNFLUSHED) or 0) >= MEMTABLES_MAX - 1 and not ask(_BACKGROUND_ERRORS):
            time.sleep(_THROTTLE_S)
        self.throttled_s += time.monotonic() - began_s

    def scan(self, start: bytes, stop: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """Up to `limit` entries with start <= key < stop, ascending. Keep pages small: it holds the interpreter."""
        if start >= stop:
            return []
        with self._errors_of("scan of the index"), self._scanning:
            return self._scan(start, stop, limit)

    def _scan(self, start: bytes, stop: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        entries: list[tuple[bytes, bytes]] = []
        bounds = rocksdict.ReadOptions()
        bounds.set_iterate_upper_bound(stop)
        iterator = self._database.iter(bounds)
        try:
            iterator.seek(start)
            while len(entries) < limit and iterator.valid():
                entries.append((iterator.key(), iterator.value()))
                iterator.next()
            # An iterator that met a damaged block is not valid either; only its status tells it from the end.
            iterator.status()
        finally:
            # Whoever keeps an error of it would keep it as well.
            del iterator
        return entries

    def flush(self) -> None:
        """Make every batch written so far durable. Raises DiskFull or DiskUnavailable."""
        with self._errors_of("flush of the index"):
            self._database.flush(True)

    def figures(self) -> dict[str, float]:
        """What RocksDB says of itself, in bytes: files, memory, and all it has written since it was opened.

        `flushed_bytes` is what left the memtables, `written_bytes` that and what compaction wrote; `stalls` is how
        often RocksDB held up a write by itself. Raises DiskUnavailable.
        """
        with self._errors_of("figures of the index"):
            database = self._database
            numbers = {name: float(database.property_int_value(key) or 0) for name, key in _PROPERTIES.items()}
            # A flush's own line says what was flushed; the sum over all levels is what was written.
            told = database.property_value("rocksdb.cfstats-no-file-histogram") or ""
        flushed = re.search(r"Flush\(GB\): cumulative ([\d.]+)", told)
        written = re.search(r"Cumulative compaction: ([\d.]+) GB write", told)
        numbers["stalls"] = float(sum(map(int, re.findall(r"total-(?:delays|stops): (\d+)", told))))
        numbers["flushed_bytes"] = float(flushed[1]) * GIB if flushed else 0.0
        numbers["written_bytes"] = float(written[1]) * GIB if written else 0.0
        return numbers

    def is_compacting(self) -> bool:
        """Whether RocksDB has files to merge, or merges them. Raises DiskUnavailable."""
        with self._errors_of("figures of the index"):
            return any(self._database.property_int_value(key) for key in _COMPACTING)

    def close(self) -> None:
        """Flush and close. Closing twice is harmless."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            self.flush()
        finally:
            with self._errors_of("close of the index"):
                self._close()

    def abandon(self) -> None:
        """Close, whatever has failed. Raises DiskUnavailable when a read that is under way does not come to its end."""
        self._is_closed = True
        try:
            self._close()
        except DiskUnavailable:
            raise
        except Exception:  # noqa: BLE001, S110 -- a last flush failed as the one before it, and the database is closed
            pass

    def _close(self) -> None:
        give_up_at_s = time.monotonic() + _READS_END_S
        while True:
            try:
                with self._scanning:
                    self._database.close()
            except RuntimeError as error:
                # "Already borrowed": somebody reads, and nothing was done.
                if time.monotonic() > give_up_at_s:
                    raise DiskUnavailable("a read of the index does not end") from error
                time.sleep(_THROTTLE_S)
            else:
                return

    @contextlib.contextmanager
    def _errors_of(self, what: str) -> Iterator[None]:
        """Catch all: rocksdict raises plain Exception for whatever RocksDB says."""
        try:
            yield
        except Exception as error:
            raise self._translated(error, what) from error

    def _translated(self, error: Exception, what: str) -> AmbryError:
        if isinstance(error, rocksdict.DbClosedError):
            return DiskUnavailable("the index is closed")
        reason = str(error)
        if "While lock file" in reason or "lock hold by current process" in reason:
            return DirectoryInUse(f"{what}: {reason}")
        if reason.startswith("Corruption"):
            # A block without its checksum stays so, and a read of it may be met by anyone.
            self.damage = self.damage or reason
        kind = DiskFull if "No space left" in reason else DiskUnavailable
        return kind(f"{what}: {reason}")


def _options(cache_bytes: int, memtable_bytes: int) -> rocksdict.Options:
    blocks = rocksdict.BlockBasedOptions()
    blocks.set_block_cache(rocksdict.Cache(cache_bytes))
    blocks.set_block_size(_BLOCK_BYTES)
    blocks.set_bloom_filter(10, False)
    blocks.set_cache_index_and_filter_blocks(False)
    blocks.set_format_version(5)
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_block_based_table_factory(blocks)
    # LZ4 took two entries of a blob from 98 to 53 bytes in a trial, and made a read from the cache 3 % slower.
    options.set_compression_type(rocksdict.DBCompressionType.lz4())
    options.set_write_buffer_size(memtable_bytes)
    options.set_max_write_buffer_number(MEMTABLES_MAX + _SPARE_MEMTABLES)
    options.set_max_background_jobs(2)
    options.set_compaction_style(rocksdict.DBCompactionStyle.level())
    options.set_level_zero_file_num_compaction_trigger(_LEVEL_ZERO_FILES)
    options.set_level_zero_slowdown_writes_trigger(_NEVER)
    options.set_level_zero_stop_writes_trigger(_NEVER)
    options.set_soft_pending_compaction_bytes_limit(0)
    options.set_hard_pending_compaction_bytes_limit(0)
    options.set_max_bytes_for_level_base(_LEVEL_ONE_MEMTABLES * memtable_bytes)
    options.set_target_file_size_base(memtable_bytes // _MEMTABLES_TO_FILES)
    options.set_target_file_size_multiplier(2)
    options.set_bytes_per_sync(1 * MIB)
    options.set_max_open_files(OPEN_FILES_MAX)
    # Its own log is for people who debug RocksDB: two files of 1 MiB at most, no statistics.
    options.set_keep_log_file_num(2)
    options.set_max_log_file_size(1 * MIB)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    return options
