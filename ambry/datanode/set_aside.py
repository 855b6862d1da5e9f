"""Before a disk is opened: replicas that the map does not list any more move to `removed/`, for a retention.

Nothing is deleted because the map lacks it: an operator who took off the wrong replica finds its logs there. What the
index of the disk has of a replica that is gone is forgotten when the disk is opened next.
"""

import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Final

from ambry.clock import Clock
from ambry.config import StorageSettings
from ambry.limits import REMOVED_RETENTION_S
from ambry.logs import get_logger
from ambry.storage.real_disk import RealDisk
from ambry.storage.recovery import open_store
from ambry.storage.rocks_index import RocksIndexSource

_log = get_logger(__name__)

REMOVED_FOLDER: Final = "removed"


def set_aside(path: Path, listed: Collection[int], settings: StorageSettings, clock: Clock) -> list[int]:
    """Set aside what is not listed, and delete what was set aside long ago. Returns the partitions. Blocks.

    Raises what opening the disk raises.
    """
    folder = path / "partitions"
    found = [int(one.name) for one in folder.iterdir() if one.name.isdecimal()] if folder.is_dir() else []
    extra = sorted(set(found) - set(listed))
    if extra:
        _move(path, extra, settings, clock)
    _forget_old(path / REMOVED_FOLDER, clock.now_ms() // 1000)
    return extra


def _move(path: Path, partitions: list[int], settings: StorageSettings, clock: Clock) -> None:
    disk = RealDisk(str(path))
    disk.lock()
    try:
        # Once through recovery and a checkpoint: then the logs have everything, and the journal nothing of them.
        index = RocksIndexSource(disk.root / "index", settings.index_cache_bytes, settings.index_memtable_bytes)
        store, _ = open_store(disk, index, settings=settings, clock=clock, random_bytes=os.urandom, partitions={})
        store.close()
        removed = path / REMOVED_FOLDER
        removed.mkdir(exist_ok=True)
        for partition in partitions:
            target = removed / f"{partition}-{clock.now_ms() // 1000}"
            (path / "partitions" / str(partition)).rename(target)
            _log.warning("a replica that the map does not list is set aside", partition=partition, path=str(target))
        for one in (path / "partitions", removed):
            disk.sync_folder(one.name)
    finally:
        disk.unlock()


def _forget_old(removed: Path, now_s: int) -> None:
    if not removed.is_dir():
        return
    for one in removed.iterdir():
        _, _, moved_s = one.name.rpartition("-")
        if moved_s.isdecimal() and now_s - int(moved_s) > REMOVED_RETENTION_S:
            shutil.rmtree(one, ignore_errors=True)
            _log.info("a replica that was set aside long ago is deleted", path=str(one))
