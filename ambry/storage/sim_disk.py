"""A disk in memory that knows what a power cut may leave: the engine's tests run on it, and nothing else does.

What is durable and what is not:
- Bytes are durable after `sync` of their file. Until then each write and each truncation may be on the platter,
  missing, or (a write) there in part: whole sectors of 512 bytes, pages of 4 KiB, all but the last byte. They may
  arrive in any order. A file may have its new size without its new bytes; then there are zeros.
- A failed sync never becomes a good one: what it covered is read on, and may be missing after any later power cut
  unless it is written again.
- Names are durable after `sync_folder`. Until then each creation, removal or rename may have happened or not, in any
  combination. A file's sync does not make its name durable; a durable name does not make a file's bytes durable.
- A folder is durable after `make_folder`; a cut inside it may leave it or not.
`crash(random)` returns a disk as the cut might leave it, from the seed alone; `crash_states` lists the extreme ones.
This is more than most file systems would do to us, and less than none of them.

Trouble on demand: `fail` makes one call of an operation raise, after part of its work if asked; `stop_after` cuts the
power at a given mutating step; `capacity_bytes` makes it full; `is_cold` empties the page cache, so that every
`pread_now` declines. Every method may be called by any thread. `before` is told of every call before anything of it
happens: a test may let something else happen there.
"""

import itertools
import random as random_module
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, TypeAlias

from ambry.errors import AmbryError, DiskFull, DiskUnavailable
from ambry.storage.disk import Buffer

SECTOR_BYTES: Final = 512
PAGE_BYTES: Final = 4096
FREE_BYTES_UNBOUNDED: Final = 1 << 50
"""What a disk without a capacity says is free."""

_TEMPORARY_SUFFIX: Final = ".tmp"


class PowerCut(BaseException):
    """The machine lost power in this call, and nothing happens on the disk any more; go on with `crash`.

    Not an Exception: the engine handles errors, and this is none.
    """


class Fate(IntEnum):
    """What became of an unsynced change."""

    LOST = 0
    KEPT = 1
    SECTORS = 2
    PAGES = 3
    HEAD = 4
    LAST_BYTE = 5


@dataclass(frozen=True, slots=True)
class Step:
    """A mutating operation, as the trace has it."""

    operation: str
    path: str
    offset: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True)
class _Write:
    step: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class _Truncate:
    step: int
    size: int


@dataclass(frozen=True, slots=True)
class _Name:
    """A name in a folder gets a file, or loses it (None)."""

    step: int
    name: str
    inode: "_Inode | None"


_FATES_AT_RANDOM: Final[tuple[Fate, ...]] = (Fate.LOST, Fate.LOST, Fate.KEPT, Fate.KEPT, *Fate)
"""Whole changes and missing ones are more likely than torn ones."""

_Change: TypeAlias = _Write | _Truncate | _Name
Decide: TypeAlias = Callable[[_Change], Fate]


class _Inode:
    """A file without its name: what is durable, what a reader sees, and the changes between the two.

    A failed sync dooms the changes it was to make durable: readers go on seeing them, later syncs pass them over, and
    only a later write of the same bytes makes those durable. So synced changes behind a doomed one stay in the list.
    """

    __slots__ = ("changes", "doomed", "durable", "live", "reserved_end", "synced")

    def __init__(self, content: bytes = b"") -> None:
        self.durable = bytearray(content)
        self.live = bytearray(content)
        self.changes: list[_Write | _Truncate] = []
        self.synced: set[int] = set()
        self.doomed: set[int] = set()
        self.reserved_end = 0

    @property
    def used(self) -> int:
        return max(len(self.live), self.reserved_end)

    @property
    def pending(self) -> list[_Write | _Truncate]:
        return [change for change in self.changes if change.step not in self.synced]

    def change(self, change: _Write | _Truncate) -> None:
        _apply(self.live, change)
        self.changes.append(change)

    def sync(self) -> None:
        self.synced |= {change.step for change in self.changes} - self.doomed
        while self.changes and self.changes[0].step in self.synced:
            self.synced.remove(self.changes[0].step)
            _apply(self.durable, self.changes.pop(0))

    def fail_sync(self) -> None:
        self.doomed |= {change.step for change in self.pending}


class _Folder:
    """Names of files: durable ones, those a reader sees, and the changes between the two."""

    __slots__ = ("durable", "is_durable", "live", "pending", "step")

    def __init__(self, step: int) -> None:
        self.durable: dict[str, _Inode] = {}
        self.live: dict[str, _Inode] = {}
        self.pending: list[_Name] = []
        self.is_durable = False
        self.step = step

    def change(self, change: _Name) -> None:
        _apply_name(self.live, change)
        self.pending.append(change)

    def sync(self) -> None:
        for change in self.pending:
            _apply_name(self.durable, change)
        self.pending.clear()


@dataclass(slots=True)
class _Fault:
    operation: str
    calls_left: int
    error: type[AmbryError]
    path: str
    done: int


class SimFile:
    """An open file of a SimDisk. It works on after its name was removed or given to another file."""

    __slots__ = ("_disk", "_inode", "_is_open", "_path", "_sync_failed")

    def __init__(self, disk: "SimDisk", inode: _Inode, path: str) -> None:
        self._disk = disk
        self._inode = inode
        self._path = path
        self._is_open = True
        self._sync_failed = False

    def pread(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes; fewer only at the end of the file."""
        with self._disk.lock:
            fault = self._begin("pread")
            if fault is not None:
                raise fault.error(f"read of {self._path}: as told")
            return bytes(self._inode.live[offset : offset + size])

    def pread_now(self, size: int, offset: int) -> Buffer | None:
        """Exactly `size` bytes, or None when the disk is cold or the file is shorter."""
        with self._disk.lock:
            fault = self._begin("pread_now")
            if fault is not None:
                raise fault.error(f"read of {self._path}: as told")
            if self._disk.is_cold:
                return None
            data = self._inode.live[offset : offset + size]
            return data if len(data) == size else None

    def pwrite(self, pieces: Sequence[Buffer], offset: int) -> None:
        """Write all pieces one after the other. Durable only after `sync`."""
        data = b"".join(bytes(piece) for piece in pieces)
        with self._disk.lock:
            fault = self._begin("pwrite")
            room = self._disk.room_for(self._inode, offset + len(data))
            fits = len(data) if room is None else max(0, len(data) - room)
            if fault is not None:
                fits = min(fits, fault.done)
            if fits > 0:
                self._disk.step(
                    Step("pwrite", self._path, offset, fits),
                    lambda step: self._inode.change(_Write(step, offset, data[:fits])),
                )
            if fault is not None:
                raise fault.error(f"write to {self._path}: as told")
            if fits < len(data):
                raise DiskFull(f"write to {self._path}: no space left")

    def write_out(self, pieces: Sequence[Buffer], offset: int) -> None:
        """As pwrite: when a disk begins with what is not synced yet makes no difference to what a crash may leave."""
        self.pwrite(pieces, offset)

    def sync(self) -> None:
        """Make everything written so far durable. A sync that failed is never retried: later ones fail, too."""
        with self._disk.lock:
            fault = self._begin("sync")
            if self._sync_failed:
                raise DiskUnavailable(f"an earlier sync of {self._path} failed; what it holds is not known")
            self._disk.step(Step("sync", self._path))
            if fault is None or fault.done:
                self._inode.sync()
            if fault is not None:
                self._sync_failed = True
                self._inode.fail_sync()
                raise fault.error(f"sync of {self._path}: as told")

    def size(self) -> int:
        """Bytes of the file."""
        with self._disk.lock:
            self._begin("size")
            return len(self._inode.live)

    def truncate(self, size: int) -> None:
        """Cut or extend with zeros. Durable only after `sync`."""
        with self._disk.lock:
            fault = self._begin("truncate")
            if self._disk.room_for(self._inode, size) is not None:
                raise DiskFull(f"truncation of {self._path}: no space left")
            if fault is None or fault.done:
                if size < len(self._inode.live):
                    self._inode.reserved_end = 0
                self._disk.step(
                    Step("truncate", self._path, size), lambda step: self._inode.change(_Truncate(step, size))
                )
            if fault is not None:
                raise fault.error(f"truncation of {self._path}: as told")

    def reserve(self, offset: int, size: int) -> None:
        """Reserve space without changing the size."""
        with self._disk.lock:
            fault = self._begin("reserve")
            if fault is not None:
                raise fault.error(f"reservation in {self._path}: as told")
            if self._disk.room_for(self._inode, offset + size) is not None:
                raise DiskFull(f"reservation in {self._path}: no space left")
            self._inode.reserved_end = max(self._inode.reserved_end, offset + size)

    def allocate(self, size: int) -> None:
        """Make it `size` bytes long, with space for all of them."""
        with self._disk.lock:
            fault = self._begin("allocate")
            if fault is not None and not fault.done:
                raise fault.error(f"allocation of {self._path}: as told")
            if self._disk.room_for(self._inode, size) is not None:
                raise DiskFull(f"allocation of {self._path}: no space left")
            self._inode.reserved_end = 0
            self._disk.step(Step("allocate", self._path, size), lambda step: self._inode.change(_Truncate(step, size)))
            if fault is not None:
                raise fault.error(f"allocation of {self._path}: as told")

    def allocated(self) -> int:
        """Every byte of a file has space here."""
        return self.size()

    def keep_open(self) -> None:
        """There are always enough descriptors here."""

    def close(self) -> None:
        """Close without a sync. Closing twice is harmless."""
        self._is_open = False

    def _begin(self, operation: str) -> _Fault | None:
        if not self._is_open:
            raise DiskUnavailable(f"{operation} of {self._path}: the file is closed")
        return self._disk.begin(operation, self._path)


class SimDisk:
    """A Disk in memory. `steps` counts the mutating operations so far, `trace` has them."""

    def __init__(self, capacity_bytes: int | None = None) -> None:
        self.lock = threading.RLock()
        self.capacity_bytes = capacity_bytes
        self.is_cold = False
        self.before: Callable[[str, str], None] = _nothing
        self.steps = 0
        self.trace: list[Step] = []
        self._folders: dict[str, _Folder] = {"": _Folder(0)}
        self._folders[""].is_durable = True
        self._faults: list[_Fault] = []
        self._steps_left: int | None = None
        self._is_off = False

    # --- the Disk ----------------------------------------------------------------------------------------------

    def open(self, path: str) -> SimFile:
        """Open an existing file. Raises FileNotFoundError."""
        with self.lock:
            self._begin_or_raise("open", path)
            return SimFile(self, self._inode(path), path)

    def create(self, path: str) -> SimFile:
        """Create an empty file; FileExistsError when there is one. Its name is durable after `sync_folder`."""
        with self.lock:
            fault = self.begin("create", path)
            if fault is not None and not fault.done:
                raise fault.error(f"creation of {path}: as told")
            folder, name = self._place(path)
            if name in folder.live:
                raise FileExistsError(path)
            inode = _Inode()
            self._name_step("create", path, inode)
            if fault is not None:
                raise fault.error(f"creation of {path}: as told")
            return SimFile(self, inode, path)

    def replace(self, path: str, data: bytes) -> None:
        """Put a small file in place as a whole, durably: write, sync, rename, sync the folder; each its own step."""
        with self.lock:
            fault = self.begin("replace", path)
            if fault is not None and fault.done == 0:
                raise fault.error(f"replacement of {path}: as told")
            temporary = path + _TEMPORARY_SUFFIX
            folder, _ = self._place(path)
            if self.room_for(_Inode(), len(data)) is not None:
                raise DiskFull(f"replacement of {path}: no space left")
            inode = _Inode()
            self._name_step("create", temporary, inode)
            self.step(Step("pwrite", temporary, 0, len(data)), lambda step: inode.change(_Write(step, 0, data)))
            self.step(Step("sync", temporary))
            inode.sync()
            # A rename gives the new name and takes the old one; a crash may show both, never neither.
            self._name_step("rename", path, inode)
            folder.change(_Name(self.steps, temporary.rpartition("/")[2], None))
            if fault is not None:
                raise fault.error(f"replacement of {path}: renamed, and then as told")
            self.step(Step("sync_folder", path.rpartition("/")[0]))
            folder.sync()

    def rename(self, source: str, target: str) -> None:
        """Give a file another name of the same folder. A crash may show it under both names, or the old files."""
        with self.lock:
            fault = self.begin("rename", source)
            if fault is None or fault.done:
                folder, name = self._place(source)
                inode = self._inode(source)
                self._name_step("rename", target, inode)
                folder.change(_Name(self.steps, name, None))
            if fault is not None:
                raise fault.error(f"renaming of {source}: as told")

    def read(self, path: str) -> bytes:
        """A small file as a whole. Raises FileNotFoundError."""
        with self.lock:
            self._begin_or_raise("read", path)
            return bytes(self._inode(path).live)

    def names(self, folder: str) -> list[str]:
        """Names in a folder, sorted; empty when there is no such folder."""
        with self.lock:
            self._begin_or_raise("names", folder)
            if folder not in self._folders:
                return []
            names = {name for name in self._folders[folder].live if not name.endswith(_TEMPORARY_SUFFIX)}
            names |= {path.rpartition("/")[2] for path in self._folders if path and path.rpartition("/")[0] == folder}
            return sorted(names)

    def make_folder(self, folder: str) -> None:
        """Create a folder and its parents, durably. Fine when it is there."""
        with self.lock:
            self._begin_or_raise("make_folder", folder)
            parts = folder.split("/") if folder else []
            for count in range(1, len(parts) + 1):
                path = "/".join(parts[:count])
                if path not in self._folders:
                    self._folders[path] = _Folder(self.steps + 1)
                    self.step(Step("make_folder", path))
                if not self._folders[path].is_durable:
                    self.step(Step("sync_folder", path.rpartition("/")[0]))
                    self._folders[path].is_durable = True

    def remove(self, path: str) -> None:
        """Remove a file. Durable only after `sync_folder` of its folder. Fine when it is gone."""
        with self.lock:
            fault = self.begin("remove", path)
            if fault is None or fault.done:
                folder, name = self._place(path)
                if name in folder.live:
                    self._name_step("remove", path, None)
            if fault is not None:
                raise fault.error(f"removal of {path}: as told")

    def sync_folder(self, folder: str) -> None:
        """Make the names in a folder durable."""
        with self.lock:
            fault = self.begin("sync_folder", folder)
            if folder not in self._folders:
                raise FileNotFoundError(folder)
            self.step(Step("sync_folder", folder))
            if fault is None or fault.done:
                self._folders[folder].sync()
                for path, child in self._folders.items():
                    if path and path.rpartition("/")[0] == folder:
                        child.is_durable = True
            if fault is not None:
                raise fault.error(f"sync of folder {folder}: as told")

    def lose_folder(self, folder: str) -> None:
        """A folder and everything in it is gone, durably: somebody removed it, or moved it away."""
        with self.lock:
            for path in [path for path in self._folders if path == folder or path.startswith(f"{folder}/")]:
                del self._folders[path]

    def run_all(self, tasks: Sequence[Callable[[], None]]) -> None:
        """One after the other, forwards or backwards: some may have ended and others not begun when the power goes."""
        failures: list[AmbryError] = []
        for task in tasks if self.steps % 2 else reversed(tasks):
            try:
                task()
            except AmbryError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def spare_descriptors(self, count: int) -> None:
        """There are always enough, unless a fault says otherwise."""
        with self.lock:
            self._begin_or_raise("spare", str(count))

    def free_bytes(self) -> int:
        """Space that is left."""
        with self.lock:
            self._begin_or_raise("free_bytes", "")
            if self.capacity_bytes is None:
                return FREE_BYTES_UNBOUNDED
            return max(0, self.capacity_bytes - self._used())

    # --- trouble -----------------------------------------------------------------------------------------------

    def fail(self, operation: str, nth: int, error: type[AmbryError], *, path: str = "", done: int = 0) -> None:
        """The `nth` call from now (1 is the next) of `operation` on a path that starts with `path` raises `error`.

        `done` is what happens before: bytes of a pwrite; for the others all of it when it is not zero, but for the
        last sync of a replace.
        """
        assert nth >= 1
        with self.lock:
            self._faults.append(_Fault(operation, nth, error, path, done))

    def clear_faults(self) -> None:
        """The disk is healthy again, but open files whose sync failed stay as they are."""
        with self.lock:
            self._faults.clear()

    def stop_after(self, steps: int | None) -> None:
        """Cut the power at the `steps`-th mutating step from now (1 is the next), or never.

        A write or a change of names is under way when the power goes, so `crash` may show it whole, in part or not at
        all; a sync has not happened. After that every call raises PowerCut.
        """
        assert steps is None or steps >= 1
        with self.lock:
            self._steps_left = steps

    def cut_power(self) -> None:
        """Cut the power now: every later call raises PowerCut."""
        with self.lock:
            self._is_off = True

    @property
    def is_off(self) -> bool:
        """The power was cut."""
        return self._is_off

    def restart(self) -> None:
        """The process was killed and the machine was not: what was written is there, no more durable than before.

        Call it after PowerCut, which then stands for SIGKILL. Files of the former process must not be used any more.
        """
        with self.lock:
            self._is_off = False
            self._steps_left = None
            self._faults.clear()

    def contents(self) -> dict[str, bytes]:
        """What a reader sees of every file, by its path."""
        with self.lock:
            return {
                f"{path}/{name}".removeprefix("/"): bytes(inode.live)
                for path, folder in self._folders.items()
                for name, inode in folder.live.items()
            }

    def crash(self, random: random_module.Random) -> "SimDisk":
        """A disk as a power cut at this moment might leave it. This one is left as it is."""
        mode = random.choice(("nothing", "everything", "prefix", "each", "each", "each"))
        with self.lock:
            changes = [change.step for change in self._pending()]
        cut = random.choice(changes) if changes else 0

        def decide(change: _Change) -> Fate:
            if mode == "nothing":
                return Fate.LOST
            if mode == "everything" or (mode == "prefix" and change.step < cut):
                return Fate.KEPT
            if mode == "prefix" and change.step > cut:
                return Fate.LOST
            return random.choice(_FATES_AT_RANDOM)

        return self._image(decide, random)

    def crash_states(self, random: random_module.Random) -> Iterator["SimDisk"]:
        """The extreme disks that a cut may leave: nothing unsynced, everything, each change alone, all but each, each
        prefix of the changes, and each prefix with its last write torn in every way. About seven per unsynced change.
        """
        with self.lock:
            steps = sorted({change.step for change in self._pending()})

        def image(decide: Decide) -> SimDisk:
            return self._image(decide, random)

        yield image(_fates(0, Fate.LOST, Fate.LOST, Fate.LOST))
        yield image(_fates(0, Fate.KEPT, Fate.KEPT, Fate.KEPT))
        for at in steps:
            yield image(_fates(at, Fate.LOST, Fate.KEPT, Fate.LOST))
            yield image(_fates(at, Fate.KEPT, Fate.LOST, Fate.KEPT))
            for fate in Fate:
                yield image(_fates(at, Fate.KEPT, fate, Fate.LOST))

    # --- for SimFile -------------------------------------------------------------------------------------------

    def begin(self, operation: str, path: str) -> _Fault | None:
        """Count a call. Returns the fault that is due, if any. Raises PowerCut when the power is off."""
        self.before(operation, path)
        if self._is_off:
            raise PowerCut(f"{operation} of {path}")
        due = None
        for fault in self._faults:
            if fault.operation == operation and path.startswith(fault.path):
                fault.calls_left -= 1
                if fault.calls_left == 0 and due is None:
                    due = fault
        if due is not None:
            self._faults.remove(due)
        return due

    def step(self, step: Step, change: Callable[[int], None] | None = None) -> None:
        """One mutating step: noted, its change made (unsynced), and perhaps the power cut. Raises PowerCut."""
        self.steps += 1
        self.trace.append(step)
        if change is not None:
            change(self.steps)
        if self._steps_left is not None:
            self._steps_left -= 1
            if self._steps_left == 0:
                self._is_off = True
                raise PowerCut(f"{step.operation} of {step.path}")

    def room_for(self, inode: _Inode, end: int) -> int | None:
        """None when a file may grow to `end`, else the bytes that are missing."""
        if self.capacity_bytes is None:
            return None
        missing = self._used() - inode.used + max(inode.used, end) - self.capacity_bytes
        return missing if missing > 0 and end > inode.used else None

    # --- inside ------------------------------------------------------------------------------------------------

    def _begin_or_raise(self, operation: str, path: str) -> None:
        fault = self.begin(operation, path)
        if fault is not None:
            raise fault.error(f"{operation} of {path}: as told")

    def _name_step(self, operation: str, path: str, inode: _Inode | None) -> None:
        folder, name = self._place(path)
        self.step(Step(operation, path), lambda step: folder.change(_Name(step, name, inode)))

    def _place(self, path: str) -> tuple[_Folder, str]:
        folder, _, name = path.rpartition("/")
        if folder not in self._folders:
            raise FileNotFoundError(path)
        return self._folders[folder], name

    def _inode(self, path: str) -> _Inode:
        folder, name = self._place(path)
        if name not in folder.live:
            raise FileNotFoundError(path)
        return folder.live[name]

    def _inodes(self) -> list[_Inode]:
        """Every file that a name leads to, now or after a crash, in an order that the seed alone decides."""
        found: dict[int, _Inode] = {}
        for _, folder in sorted(self._folders.items()):
            names = [*folder.durable.items(), *folder.live.items()]
            names += [(change.name, change.inode) for change in folder.pending if change.inode is not None]
            for _, inode in names:
                found.setdefault(id(inode), inode)
        return list(found.values())

    def _pending(self) -> list[_Change]:
        changes: list[_Change] = [change for inode in self._inodes() for change in inode.pending]
        for _, folder in sorted(self._folders.items()):
            changes += folder.pending
        return changes

    def _used(self) -> int:
        live = {id(inode): inode for folder in self._folders.values() for inode in folder.live.values()}
        return sum(inode.used for inode in live.values())

    def _image(self, decide: Decide, random: random_module.Random) -> "SimDisk":
        """The disk after a cut, given the fate of every unsynced change. All of it is durable there."""
        with self.lock:
            disk = SimDisk(self.capacity_bytes)
            contents = {}
            for inode in self._inodes():
                contents[id(inode)] = copy = _Inode(_survivor(inode, decide, random))
                copy.reserved_end = inode.reserved_end
            for path, folder in sorted(self._folders.items()):
                is_kept = folder.is_durable or decide(_Name(folder.step, path, None)) is not Fate.LOST
                parent = path.rpartition("/")[0]
                if not is_kept or (path and parent not in disk._folders):
                    continue
                names = dict(folder.durable)
                for change in folder.pending:
                    if decide(change) is not Fate.LOST:
                        _apply_name(names, change)
                left = _Folder(0)
                left.is_durable = True
                left.durable = {name: contents[id(inode)] for name, inode in names.items()}
                left.live = dict(left.durable)
                disk._folders[path] = left
            return disk


def _nothing(operation: str, path: str) -> None:
    pass


def _fates(at: int, before: Fate, here: Fate, after: Fate) -> Decide:
    """The fate of a change by whether it came before the step `at`, in it, or after it."""
    return lambda change: before if change.step < at else after if change.step > at else here


def _apply(content: bytearray, change: _Write | _Truncate) -> None:
    if isinstance(change, _Truncate):
        _resize(content, change.size)
        return
    if change.offset > len(content):
        _resize(content, change.offset)
    content[change.offset : change.offset + len(change.data)] = change.data


def _apply_name(names: dict[str, _Inode], change: _Name) -> None:
    if change.inode is None:
        names.pop(change.name, None)
    else:
        names[change.name] = change.inode


def _resize(content: bytearray, size: int) -> None:
    if size < len(content):
        del content[size:]
    else:
        content.extend(bytes(size - len(content)))


def _survivor(inode: _Inode, decide: Decide, random: random_module.Random) -> bytes:
    """The durable bytes and whatever the fates leave of the unsynced changes."""
    content = bytearray(inode.durable)
    for change in inode.changes:
        fate = Fate.KEPT if change.step in inode.synced else decide(change)
        if isinstance(change, _Truncate):
            if fate is not Fate.LOST:
                _apply(content, change)
            continue
        for start, stop in _surviving_parts(change, fate, random):
            _apply(content, _Write(change.step, change.offset + start, change.data[start:stop]))
        # The size is metadata: it may have arrived although the bytes have not.
        end = change.offset + len(change.data)
        if fate not in (Fate.LOST, Fate.KEPT) and len(content) < end and random.random() < 0.5:
            _resize(content, end)
    return bytes(content)


def _surviving_parts(change: _Write, fate: Fate, random: random_module.Random) -> list[tuple[int, int]]:
    """Ranges of the write's data that reached the disk."""
    size = len(change.data)
    match fate:
        case Fate.LOST:
            return []
        case Fate.KEPT:
            return [(0, size)]
        case Fate.LAST_BYTE:
            return [(0, size - 1)]
        case Fate.HEAD:
            blocks = _blocks(change.offset, size, SECTOR_BYTES)
            return blocks[: random.randrange(len(blocks) + 1)]
        case Fate.SECTORS | Fate.PAGES:
            block_bytes = SECTOR_BYTES if fate is Fate.SECTORS else PAGE_BYTES
            return [block for block in _blocks(change.offset, size, block_bytes) if random.random() < 0.5]


def _blocks(offset: int, size: int, block_bytes: int) -> list[tuple[int, int]]:
    """The data of a write cut at the boundaries of the disk's blocks, as ranges of the data."""
    first = -offset % block_bytes
    cuts = [0, *range(first, size, block_bytes), size]
    return [(start, stop) for start, stop in itertools.pairwise(cuts) if start < stop]
