"""R6: call number k of a script of everything fails, for every k, in every way a call may fail, once and for ever.

Twice: over the simulated disk, which knows what a failed sync takes with it (then the power goes, too); and over a real
folder, where the system calls themselves are made to fail, EINTR, short writes and short reads included.

After each the store is opened on what is left, by a process without trouble: what was acknowledged is there and equal,
everything else absent or complete. No acknowledgement comes after a failed sync of what it needs: if it did, the power
cut would show it.
"""

import contextlib
import ctypes
import errno
import os
import random
import tempfile
import time
import types
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

from ambry.blob.requests import Change, GetRequest
from ambry.errors import AmbryError, BlobDeleted, BlobNotFound, DirectoryUnusable, DiskFull, DiskUnavailable
from ambry.limits import JOURNAL_BODY_BYTES_MAX
from ambry.storage import open_files, real_disk
from ambry.storage.recovery import open_store
from ambry.storage.sim_disk import SimDisk, _Fault
from tests.storage.engine import WHOLE, Model, World, blob_id, body_of, put, update

Action = Callable[[World], object]


def _puts(first: int, count: int, size: int) -> Action:
    return lambda world: world.commit(
        [put(blob_id(n, partition=1 + n % 2), body_of(n, size)) for n in range(first, first + count)],
        DiskFull,
        DiskUnavailable,
    )


def _change(change: Change, *numbers: int) -> Action:
    return lambda world: world.commit(
        [update(blob_id(n, partition=1 + n % 2), change) for n in numbers], DiskFull, DiskUnavailable
    )


def _look(world: World) -> None:
    """Reads in the middle of the trouble may fail; they never answer with anything else than what is right."""
    model = world.models[0]
    for blob in list(model.blobs.values())[:6]:
        request = GetRequest(blob.identity, 0, WHOLE, include_deleted=True)
        try:
            answer = world.store.get(request)
        except (DiskFull, DiskUnavailable):
            continue
        except AmbryError as error:
            assert type(error) is model.get(request) or len(world.models) > 1, error
            continue
        assert answer == model.get(request) or len(world.models) > 1


def _checkpoint(world: World) -> None:
    world.store.checkpoint()


SCRIPT: Final[tuple[Action, ...]] = (
    _puts(0, 3, 500),
    _puts(10, 1, JOURNAL_BODY_BYTES_MAX + 5),
    _checkpoint,
    _change(Change.DELETE, 0, 1),
    _look,
    _puts(20, 5, 6000),
    _puts(30, 4, 5000),
    _checkpoint,
    _change(Change.DELETE, 20, 22, 24),
    _change(Change.UNDELETE, 0),
    _puts(40, 3, 9000),
    _checkpoint,
    lambda world: world.compact(1, everything=True),
    _look,
    _puts(50, 3, 9000),
    _puts(60, 1, 100),
    _checkpoint,
)


def _run(world: World) -> bool:
    """Open, and go through the script; whether the store could be opened. A store in trouble refuses, no more."""
    try:
        world.open()
    except (DiskFull, DiskUnavailable, DirectoryUnusable):
        return False
    for action in SCRIPT:
        try:
            action(world)
        except (DiskFull, DiskUnavailable):
            continue
        if len(world.models) > 1 and not _has_settled(world):
            break
    return True


def _has_settled(world: World) -> bool:
    """The answer of a group never came; a store that goes on, perhaps with another journal, shows which it was."""
    try:
        world.store.checkpoint()
        for blob in world.models[1].blobs.values():
            # In trouble that stays, nothing can be read either.
            with contextlib.suppress(BlobNotFound, BlobDeleted):
                world.store.get(GetRequest(blob.identity, 0, WHOLE, include_deleted=True))
    except (DiskFull, DiskUnavailable):
        return False
    world.settle()
    return True


class LooseWorld(World):
    """A World where a group may be there in part: some of its requests failed by themselves, before the others did."""

    def settle(self) -> Model:
        """Each request of a group without an answer is absent or complete; which, is decided here."""
        if len(self.models) > 1:
            before, after = self.models
            chosen = Model(dict(before.blobs), after.order)
            for key in [key for key in after.blobs if self._differs(key)]:
                is_there = self._shows(after, key)
                assert is_there or self._shows(before, key), "neither absent nor complete"
                if is_there:
                    chosen.blobs[key] = after.blobs[key]
            self.models = [chosen]
        return super().settle()


# --- the simulated disk ------------------------------------------------------------------------------------------


class FailingDisk(SimDisk):
    """Every operation counts; from number `k` on, one or all fail."""

    def __init__(self, k: int, error: type[AmbryError], *, for_ever: bool, done: int) -> None:
        super().__init__()
        self.calls = 0
        self._k, self._error, self._for_ever, self._done = k, error, for_ever, done
        self.operations: Counter[str] = Counter()

    def begin(self, operation: str, path: str) -> _Fault | None:
        """As the parent, and the fault that is due."""
        fault = super().begin(operation, path)
        self.calls += 1
        self.operations[operation] += 1
        if self.calls == self._k or (self._for_ever and self.calls > self._k > 0):
            return _Fault(operation, 0, self._error, path, self._done)
        return fault

    def heal(self) -> None:
        """No more trouble."""
        self._k = 0


def _simulated(k: int, error: type[AmbryError], *, for_ever: bool, done: int, seed: int) -> tuple[World, FailingDisk]:
    world = LooseWorld(seed=seed)
    disk = FailingDisk(k, error, for_ever=for_ever, done=done)
    world.disk = disk
    _run(world)
    disk.heal()
    return world, disk


def _check_simulated(world: World, end: Callable[[World], None]) -> None:
    end(world)
    world.open()
    world.check()
    world.commit([put(blob_id(500), body_of(500, 4000))])
    world.check()


def sweep_simulated(chosen: int, end_s: float, stride: int) -> Counter[str]:
    """All of it, or until the time is over; every `stride`-th call."""
    runs: Counter[str] = Counter()
    _, disk = _simulated(0, DiskFull, for_ever=False, done=0, seed=chosen)
    total = disk.calls
    runs["simulated calls of the script"] = total
    for k in range(1, total + 1, stride):
        for error in (DiskUnavailable, DiskFull):
            for for_ever in (False, True):
                for done in (0, 700):
                    if time.monotonic() >= end_s:
                        return runs
                    end = World.crash if (k + done) % 3 else World.kill
                    world, _ = _simulated(k, error, for_ever=for_ever, done=done, seed=chosen + k)
                    _check_simulated(world, end)
                    runs["simulated runs"] += 1
    runs["simulated is exhaustive"] = stride == 1
    return runs


# --- system calls ------------------------------------------------------------------------------------------------

CALLS: Final = (
    "open",
    "close",
    "pread",
    "pwrite",
    "pwritev",
    "fstat",
    "ftruncate",
    "fsync",
    "rename",
    "unlink",
    "mkdir",
    "listdir",
    "statvfs",
)

FAULTS: Final = ("EIO", "ENOSPC", "EINTR", "EMFILE", "short", "sync")
"""`short`: half of what was to be read or written. `sync`: only syncs fail, with EIO, and the k-th of them."""


_MEMORY: Final = Path("/dev/shm")


_FALLOCATE: Final[Callable[..., Any]] = real_disk._fallocate or (lambda *_: 0)


class FailingSystem(types.SimpleNamespace):
    """Stands where `real_disk` has the module `os`, and lets one call fail, or all from there on."""

    def __init__(self, k: int, fault: str, *, for_ever: bool) -> None:
        super().__init__(**{name: getattr(os, name) for name in dir(os) if not name.startswith("_")})
        self.calls = 0
        self._was_interrupted = False
        self._k, self._fault, self._for_ever = k, fault, for_ever
        for name in CALLS:
            setattr(self, name, self._failing(name, getattr(os, name)))
        self.fdatasync = self._failing("fsync", os.fdatasync)
        self.preadv = self._failing("pread", os.preadv)
        self.fallocate = self._failing("fallocate", _FALLOCATE)

    def _failing(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def failing(*arguments: Any) -> Any:
            if self._fault == "sync" and name != "fsync":
                return call(*arguments)
            self.calls += 1
            is_due = self.calls == self._k or (self._for_ever and self.calls > self._k > 0)
            if not is_due:
                return call(*arguments)
            if self._fault == "short":
                return _short(name, call, arguments)
            if name == "fallocate":
                # By way of ctypes: the result says that it failed, and the interpreter does not repeat it on EINTR.
                self._was_interrupted = self._fault == "EINTR" and not self._was_interrupted
                if self._fault == "EINTR" and not self._was_interrupted:
                    return call(*arguments)
                ctypes.set_errno(errno.EIO if self._fault == "sync" else getattr(errno, self._fault))
                return -1
            if self._fault == "EINTR":
                # The interpreter repeats a call that a signal interrupted (PEP 475).
                return call(*arguments)
            if name == "close":
                # The descriptor is gone all the same.
                call(*arguments)
            code = errno.EIO if self._fault == "sync" else getattr(errno, self._fault)
            raise OSError(code, os.strerror(code))

        return failing

    def heal(self) -> None:
        """No more trouble."""
        self._k = 0


def _short(name: str, call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """A read or a write that does half of its work, at least one byte."""
    if name == "pwrite":
        data = arguments[1]
        return call(arguments[0], memoryview(data)[: max(1, len(data) // 2)], *arguments[2:]) if data else 0
    if name == "pwritev":
        data = b"".join(bytes(piece) for piece in arguments[1])
        return os.pwrite(arguments[0], data[: max(1, len(data) // 2)], arguments[2])
    if name == "pread" and isinstance(arguments[1], int):
        return call(arguments[0], max(1, arguments[1] // 2), *arguments[2:])
    return call(*arguments)


class RealWorld(LooseWorld):
    """A World on a folder, with the simulated index."""

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__(seed=seed)
        self.real = real_disk.RealDisk(folder)
        self.disk = self.real  # type: ignore[assignment] # a World wants the simulated one, and here needs no more

    def open(self) -> Any:
        """As the parent."""
        self.real.lock()
        self.store, self.report = open_store(
            self.real,
            self.source,
            settings=self.settings,
            clock=self.clock,
            random_bytes=self.random.randbytes,
            partitions=self.partitions,
        )
        return self.report

    def let_go(self) -> None:
        """SIGKILL as far as one process can play it: descriptors are closed, nothing is written."""
        for link in list(Path("/proc/self/fd").iterdir()):
            with contextlib.suppress(OSError):
                if str(link.readlink()).startswith(str(self.real.root)):
                    os.close(int(link.name))
        self.real._lock_descriptor = -1
        self.real._runners.shutdown(wait=True)


def _real(k: int, fault: str, *, for_ever: bool, seed: int) -> int:
    """One run over a folder, and the check of what is left; the number of calls it made."""
    with tempfile.TemporaryDirectory(prefix="ambry-calls-", dir=_MEMORY if _MEMORY.is_dir() else None) as name:
        world = RealWorld(Path(name), seed)
        system = FailingSystem(k, fault, for_ever=for_ever)
        with (
            patch.multiple(
                real_disk,
                os=system,
                _fdatasync=system.fdatasync,
                _preadv=system.preadv,
                _fallocate=system.fallocate,
            ),
            patch.object(open_files, "os", system),
        ):
            _run(world)
        world.let_go()
        left = RealWorld(Path(name), seed)
        left.source = world.source.crash(world.random)
        left.models, left.reclaimed = world.models, world.reclaimed
        try:
            left.open()
            left.check()
            left.commit([put(blob_id(500), body_of(500, 4000))])
            left.check()
        finally:
            left.let_go()
        return system.calls


def sweep_real(chosen: int, end_s: float, stride: int) -> Counter[str]:
    """All of it, or until the time is over; every `stride`-th call."""
    runs: Counter[str] = Counter()
    for fault in FAULTS:
        total = _real(0, fault, for_ever=False, seed=chosen)
        runs[f"real calls of the script: {fault}"] = total
        for k in range(1, total + 1, stride):
            for for_ever in (False, True):
                # One of them at least, however long the simulated ones took.
                if time.monotonic() >= end_s and runs[f"real runs: {FAULTS[0]}"]:
                    return runs
                try:
                    _real(k, fault, for_ever=for_ever, seed=chosen + k)
                except BaseException:
                    print(f"call {k} failed with {fault}, {'for ever' if for_ever else 'once'}")
                    raise
                runs[f"real runs: {fault}"] += 1
    runs["real is exhaustive"] = stride == 1
    return runs


def prove_syscalls(chosen: int, seconds: float) -> dict[str, object]:
    """Everything when there is time for it; a sample when there is little."""
    stride = 1 if seconds >= 300 else 41
    end_s = time.monotonic() + seconds
    random.seed(chosen)
    runs = sweep_simulated(chosen, end_s if stride == 1 else time.monotonic() + seconds / 2, stride)
    runs += sweep_real(chosen, end_s, stride)
    return dict(runs)
