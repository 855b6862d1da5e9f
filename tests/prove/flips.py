"""R5: damage of everything that the engine has on its disk, planted one by one into a copy of the same small store.

    records    every bit of every record but for bodies, of which one in every 4 KiB, and every bit of segment headers
    blocks     each 4 KiB and each sector of every segment: zeroed, swapped with another, stale, and the file cut there
    files      every bit of disk.meta, replica.meta, the journal's header and its newest checkpoint
    openings   the small files again, every bit of every journal group's header, one in every 512 bytes of its payload,
               and blocks of the journal zeroed, swapped, stale and cut off: seen by an opening
    index      a bit in every 4 KiB of every file of RocksDB, and blocks of them zeroed and cut off

Beside a running store, reads answer right or with an error; upkeep, with a healthy peer, finds it and repairs it; and
then nothing leans on the damage any more: the same is there after a power cut and without the index. An opening has
everything, or refuses; damage at the very end of the journal is what a power cut could have left, so a whole group may
be missing then, never a part. Figures count what was planted, found and repaired; `escaped` says what was not.
"""

import contextlib
import io
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

from ambry.blob.requests import Change, GetAnswer, GetRequest, PutRequest
from ambry.blob.state import NEVER, BlobState
from ambry.clock import SystemClock
from ambry.datanode.upkeep import Upkeep
from ambry.errors import AmbryError, CorruptRecord, DirectoryUnusable, DiskUnavailable, NotHere
from ambry.limits import KIB
from ambry.storage.journal import GROUP_HEADER_SIZE, SLOT_BYTES, SLOTS_AT, decode_group_header
from ambry.storage.journal import PATH as JOURNAL_PATH
from ambry.storage.real_disk import RealDisk
from ambry.storage.recovery import open_store
from ambry.storage.replica_meta import DISK_META_PATH, replica_meta_path
from ambry.storage.rocks_index import RocksIndexSource
from ambry.storage.segment import DATA_OFFSET, ScannedRecord, scan, segment_path
from ambry.storage.sim_disk import SimDisk
from ambry.storage.store import DiskStore
from tests.storage.engine import TINY, WHOLE, Model, World, answer_of, blob_id, body_of, fill_holes, put, update

SETTINGS: Final = replace(TINY, compaction_bytes_per_s=1 << 30, scrub_bytes_per_s=1 << 30)
BLOCK: Final = 4 * KIB
SECTOR: Final = 512
REAL: Final = replace(TINY, segment_bytes=64 * KIB)
INDEX_BLOBS: Final = 4000
STEPS_MAX: Final = 60
AT_LEAST: Final = 15
"""Of every sort of fault, however little time there is."""

WRITTEN_ANEW: Final = frozenset({"small file", "segment header", "journal header"})
ERRORS: Final = (CorruptRecord, NotHere, DiskUnavailable)

Plant: TypeAlias = Callable[[bytearray], None]


@dataclass(frozen=True, slots=True)
class Fault:
    """Damage of one file. `plant` changes its bytes; `kind` is what the figures call it."""

    kind: str
    path: str
    plant: Plant


@dataclass(slots=True)
class Figures:
    """What was planted and what became of it."""

    planted: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    escaped: list[str] = field(default_factory=list)


class Peer:
    """The peer, which has every blob that was ever put."""

    def __init__(self, model: Model) -> None:
        self._blobs = {blob.identity: blob.put for blob in model.blobs.values()}

    def fetch(self, blob_id: bytes) -> PutRequest | None:
        return self._blobs.get(blob_id)


@dataclass(frozen=True, slots=True)
class Filled:
    """A store with a record of every kind, in several segments, with groups in its journal that no checkpoint covers.

    `disk_before` is the disk half-way; `models` what is right without any of those groups, with the first, and so on.
    """

    world: World
    disk_before: SimDisk
    models: list[Model]


def _filled() -> Filled:
    world = World(SETTINGS)
    world.open()
    sizes = (0, 1, 70, 700, 4100, 9000, 70_000)
    for n, size in enumerate(sizes):
        world.commit([put(blob_id(n), body_of(n, size), properties=b"p" * n)])
    world.store.checkpoint()
    disk_before = world.disk.crash(random.Random(0))
    models = [world.models[0].copy()]
    now_ms = world.clock.now_ms()
    hour_ms = now_ms + 3_600_000
    changes = [
        update(blob_id(3), Change.DELETE, time_ms=now_ms),
        update(blob_id(4), Change.DELETE, time_ms=now_ms),
        update(blob_id(4), Change.UNDELETE, time_ms=now_ms),
        update(blob_id(10), Change.EXTEND, BlobState(0, NEVER), time_ms=now_ms),
        update(blob_id(30), Change.JOIN, BlobState(1, 0), time_ms=now_ms),
    ]
    for group in (
        [put(blob_id(n), body_of(n, 900), expires_at_ms=hour_ms) for n in range(10, 14)],
        [put(blob_id(n, partition=2), body_of(n, 3000)) for n in range(20, 24)],
        changes,
        [put(blob_id(n), body_of(n, 5000)) for n in range(40, 43)],
    ):
        world.commit(group)
        models.append(world.models[0].copy())
    return Filled(world, disk_before, models)


# --- what to plant ---------------------------------------------------------------------------------------------


def _bit(at: int, bit: int) -> Plant:
    def plant(data: bytearray) -> None:
        data[at] ^= 1 << bit

    return plant


def _bits(kind: str, path: str, start: int, stop: int) -> Iterator[Fault]:
    for at in range(start, stop):
        for bit in range(8):
            yield Fault(kind, path, _bit(at, bit))


def _some_bits(kind: str, path: str, start: int, stop: int, every: int, chance: random.Random) -> Iterator[Fault]:
    for first in range(start, stop, every):
        yield Fault(kind, path, _bit(chance.randrange(first, min(first + every, stop)), chance.randrange(8)))


def _blocks(path: str, data: bytes, stale: bytes, stop: int, chance: random.Random) -> Iterator[Fault]:
    """Whole blocks and sectors: zeroed, swapped, stale, cut off."""

    def put_at(at: int, piece: bytes) -> Plant:
        def plant(data: bytearray) -> None:
            data[at : at + len(piece)] = piece

        return plant

    def cut_at(at: int) -> Plant:
        def plant(data: bytearray) -> None:
            del data[at:]

        return plant

    for size in (BLOCK, SECTOR):
        places = [(at, min(size, stop - at)) for at in range(0, stop, size)]
        for at, length in places:
            here = data[at : at + length]
            other, _ = chance.choice(places)
            former = stale[at : at + length].ljust(length, b"\x00")
            for kind, piece in (
                ("zeroed", bytes(length)),
                ("swapped", data[other : other + length].ljust(length, b"\x00")),
                ("stale", former),
            ):
                if piece != here:
                    yield Fault(f"block {kind}", path, put_at(at, piece))
            if any(data[at:stop]):
                yield Fault("block cut off", path, cut_at(at))


def _faults_of_logs(world: World, halfway: SimDisk, chance: random.Random) -> list[Fault]:
    faults: list[Fault] = []
    for replica in world.store.replicas:
        for number, segment in replica.segments.items():
            path = segment_path(replica.partition, number)
            faults += _bits("segment header", path, 0, DATA_OFFSET)
            for found in scan(segment):
                assert isinstance(found, ScannedRecord)
                body_at = found.offset + found.header.body_offset
                body_end = body_at + found.header.body_size
                faults += _bits("record", path, found.offset, body_at)
                faults += _some_bits("body", path, body_at, body_end, BLOCK, chance)
                faults += _bits("record", path, body_end, found.offset + found.header.record_size)
            try:
                stale = halfway.read(path)
            except FileNotFoundError:
                stale = b""
            faults += _blocks(path, world.disk.read(path), stale, segment.end, chance)
    return faults


def _faults_of_files(world: World) -> list[Fault]:
    """Small structures that nobody reads while the store runs."""
    faults: list[Fault] = []
    for path in (DISK_META_PATH, *(replica_meta_path(one.partition) for one in world.store.replicas)):
        faults += _bits("small file", path, 0, len(world.disk.read(path)))
    faults += _bits("journal header", JOURNAL_PATH, 0, 32)
    slot_at = SLOTS_AT + world.store._generation % 2 * SLOT_BYTES
    size = 40 + int.from_bytes(world.disk.read(JOURNAL_PATH)[slot_at + 16 : slot_at + 20], "little")
    faults += _bits("checkpoint", JOURNAL_PATH, slot_at, slot_at + size)
    return faults


def _groups(world: World) -> list[tuple[int, int, int]]:
    """(offset, end of the header, end of the payload) of the groups that no checkpoint covers."""
    journal = world.store._journal
    data = world.disk.read(JOURNAL_PATH)
    checkpoint = journal.read_checkpoint()
    assert checkpoint is not None
    found, start = [], checkpoint.position
    while (header := decode_group_header(data[start : start + GROUP_HEADER_SIZE], journal._seed)) is not None:
        end = start + GROUP_HEADER_SIZE + header[3]
        found.append((start, start + GROUP_HEADER_SIZE, end))
        start = end + -end % SECTOR
    return found


def _faults_of_openings(filled: Filled, groups: list[tuple[int, int, int]], chance: random.Random) -> list[Fault]:
    faults = [replace(one, kind=f"{one.kind}, opening") for one in _faults_of_files(filled.world)]
    for start, header_end, end in groups:
        faults += _bits("journal group header", JOURNAL_PATH, start, header_end)
        faults += _some_bits("journal group payload", JOURNAL_PATH, header_end, end, SECTOR, chance)
    data, stale = filled.world.disk.read(JOURNAL_PATH), filled.disk_before.read(JOURNAL_PATH)
    used = range(groups[0][0], groups[-1][2])
    for block in _blocks(JOURNAL_PATH, data[used.start : used.stop], stale[used.start : used.stop], len(used), chance):
        faults.append(Fault(f"journal {block.kind}", JOURNAL_PATH, _shifted(block.plant, used)))
    for replica in filled.world.store.replicas:
        for number in replica.segments:
            faults += _bits("segment header, opening", segment_path(replica.partition, number), 0, DATA_OFFSET)
    return faults


def _shifted(plant: Plant, part: range) -> Plant:
    """The same for a part of a file; what is cut off there is zeros, since a journal keeps its size."""

    def planted(data: bytearray) -> None:
        piece = data[part.start : part.stop]
        plant(piece)
        data[part.start : part.stop] = piece.ljust(len(part), b"\x00")[: len(part)]

    return planted


# --- beside a running store ------------------------------------------------------------------------------------


def _look(world: World, model: Model) -> tuple[list[str], list[str]]:
    """Blobs that are wrong by a model, and blobs that answer with an error."""
    wrong: list[str] = []
    errors: list[str] = []
    for blob in model.blobs.values():
        request = GetRequest(blob.identity, 0, WHOLE)
        expected = model.get(request)
        for get in (world.store.get_now, world.store.get):
            answer = answer_of(partial(get, request))
            if answer is None or answer == expected:
                continue
            is_error = isinstance(answer, type) and issubclass(answer, ERRORS)
            (errors if is_error else wrong).append(f"{blob.identity.hex()}: {str(answer)[:80]}")
    return wrong, errors


def _plant(disk: SimDisk, fault: Fault) -> bytes:
    """Change the bytes of a file, durably; what was there before."""
    before = disk.read(fault.path)
    data = bytearray(before)
    fault.plant(data)
    file = disk.open(fault.path)
    file.truncate(len(data))
    file.pwrite([bytes(data)], 0)
    file.sync()
    return before


def beside(world: World, model: Model, fault: Fault) -> str:
    """Plant it while the store is open: what reads say, whether upkeep finds it, whether everything is right then."""
    left = world.left_with(world.disk, world.source.index.crash_states()[-1])
    left.open()
    before = _plant(left.disk, fault)
    wrong, errors = _look(left, model)
    if wrong:
        return f"WRONG; {wrong}"
    upkeep = Upkeep(left.store, "disk", SETTINGS, left.clock)
    peer = Peer(model)
    for _ in range(STEPS_MAX):
        if not (upkeep.step() or fill_holes(left.store, peer.fetch)):
            break
    if not (errors or upkeep.figures.damages):
        return "ESCAPED; neither a read nor scrub found it"
    if fault.kind in WRITTEN_ANEW and left.disk.read(fault.path) != before:
        return "ESCAPED; it was not written anew"
    for stage in ("after the repair", "after a power cut", "after a kill and without the index"):
        if stage != "after the repair":
            (left.crash if "power" in stage else left.kill)()
            if "index" in stage:
                left.discard_index()
            left.open()
        wrong, errors = _look(left, model)
        if wrong or errors:
            return f"{'WRONG' if wrong else 'ESCAPED'}; {stage} not right: {wrong or errors}"
    return "found and repaired"


# --- seen by an opening ----------------------------------------------------------------------------------------


def opening(filled: Filled, groups: list[tuple[int, int, int]], fault: Fault) -> str:
    """Plant it in a disk that is not in use: the opening has everything, or refuses.

    Only when every group from a place in the journal on is damaged may these be missing, as if they were cut off.
    """
    world, models = filled.world, filled.models
    left = world.left_with(world.disk, world.source.index.crash_states()[0])
    left.index_is_whole = False
    before = _plant(left.disk, fault)
    intact = len(groups)
    if fault.path == JOURNAL_PATH:
        after = left.disk.read(fault.path)
        is_damaged = [before[start:end] != after[start:end] for start, _, end in groups]
        while intact and is_damaged[intact - 1]:
            intact -= 1
        must_refuse = any(is_damaged[:intact])
    else:
        must_refuse = False
    try:
        left.open()
    except DirectoryUnusable:
        return "refused"
    if must_refuse:
        return "WRONG; a group in the middle is missing and nobody says so"
    if all(not any(look) for look in (_look(left, models[-1]),)):
        return "everything is there"
    for count in range(intact, len(groups)):
        missing = _look(left, models[count])
        if not any(missing):
            return "groups at the end are missing, as after a power cut"
    return f"WRONG; {_look(left, models[-1])}"


# --- the index -------------------------------------------------------------------------------------------------


def _open_real(folder: Path) -> DiskStore:
    store, _ = open_store(
        RealDisk(folder),
        RocksIndexSource(folder / "index", 64 * KIB, 256 * KIB),
        settings=REAL,
        clock=SystemClock(),
        random_bytes=random.Random(0).randbytes,
        partitions={1: 1 << 30},
    )
    return store


def _fill_real(folder: Path) -> dict[bytes, bytes]:
    """Some thousand small blobs, so that RocksDB has files of many blocks."""
    folder.mkdir()
    store = _open_real(folder)
    bodies = {blob_id(n): body_of(n, 50) for n in range(INDEX_BLOBS)}
    identities = list(bodies)
    for first in range(0, INDEX_BLOBS, 100):
        store.commit([put(identity, bodies[identity]) for identity in identities[first : first + 100]])
        if first % 1000 == 0:
            store.checkpoint()
    store.close()
    return bodies


def _index_faults(folder: Path, chance: random.Random) -> list[Fault]:
    faults: list[Fault] = []
    for path in sorted((folder / "index").iterdir()):
        data = path.read_bytes()
        if data and not path.name.startswith("LOG"):
            name = f"index/{path.name}"
            faults += _some_bits("index", name, 0, len(data), BLOCK, chance)
            faults += [
                replace(one, kind="index block")
                for one in _blocks(name, data, b"", len(data), chance)
                if chance.random() < 0.2
            ]
    return faults


def index_damage(source: Path, bodies: dict[bytes, bytes], sample: list[bytes], fault: Fault) -> str:
    """Plant it in the index of a closed store: reads are right or fail, and the index made anew has everything."""
    with tempfile.TemporaryDirectory(prefix="ambry-flips-") as name:
        folder = Path(name) / "disk"
        shutil.copytree(source, folder)
        path = folder / fault.path
        data = bytearray(path.read_bytes())
        fault.plant(data)
        path.write_bytes(data)
        outcome = "harmless"
        try:
            store = _open_real(folder)
            try:
                for identity in sample:
                    answer = answer_of(partial(store.get, GetRequest(identity, 0, WHOLE)))
                    if isinstance(answer, GetAnswer) and answer.body == bodies[identity]:
                        continue
                    if not (isinstance(answer, type) and issubclass(answer, ERRORS)):
                        return f"WRONG; {answer}"
                    outcome = "reads fail until it is made anew"
            finally:
                with contextlib.suppress(AmbryError):
                    store.close()
        except DiskUnavailable:
            outcome = "the opening fails until it is made anew"
        if outcome != "harmless":
            RocksIndexSource(folder / "index", 64 * KIB, 256 * KIB).discard()
            store = _open_real(folder)
            answers = [answer_of(partial(store.get, GetRequest(identity, 0, WHOLE))) for identity in bodies]
            store.close()
            if any(
                not isinstance(answer, GetAnswer) or answer.body != body
                for answer, body in zip(answers, bodies.values(), strict=True)
            ):
                return "WRONG; after the index was made anew"
        return outcome


# --- all of it -------------------------------------------------------------------------------------------------


def prove_flips(chosen: int, seconds: float) -> dict[str, object]:
    """Everything once, or as much as there is time for; `escaped` has what was neither harmless nor found, or wrong."""
    chance = random.Random(chosen)
    figures = Figures()
    filled = _filled()
    groups = _groups(filled.world)
    _share(
        figures, seconds * 0.2, _faults_of_openings(filled, groups, chance), chance, partial(opening, filled, groups)
    )
    world = filled.world
    world.store.checkpoint()
    beside_it = partial(beside, world, filled.models[-1])
    # Every copy makes a checkpoint of its own when it is opened, and that is the newest one.
    opened = world.left_with(world.disk, world.source.index.crash_states()[-1])
    opened.open()
    _share(figures, seconds * 0.1, _faults_of_files(opened), chance, beside_it)
    _share(figures, seconds * 0.5, _faults_of_logs(world, filled.disk_before, chance), chance, beside_it)
    with tempfile.TemporaryDirectory(prefix="ambry-flips-") as name:
        source = Path(name) / "disk"
        bodies = _fill_real(source)
        sample = chance.sample(sorted(bodies), INDEX_BLOBS // 10)
        damage = partial(index_damage, source, bodies, sample)
        _share(figures, seconds * 0.2, _index_faults(source, chance), chance, damage)
    return {
        "bits_turned": figures.planted.total(),
        "planted": dict(sorted(figures.planted.items())),
        "left_for_want_of_time": dict(sorted(figures.left.items())),
        "outcomes": dict(sorted(figures.outcomes.items())),
        "wrong_bytes": figures.wrong,
        "escaped": figures.escaped,
    }


def _share(
    figures: Figures, seconds: float, faults: list[Fault], chance: random.Random, judge: Callable[[Fault], str]
) -> None:
    """Plant one after the other in an order of chance, for so long at most, and note what became of each."""
    end_s = time.monotonic() + seconds
    chance.shuffle(faults)
    for number, fault in enumerate(faults):
        if number >= AT_LEAST and time.monotonic() >= end_s:
            figures.left.update(one.kind for one in faults[number:])
            break
        with contextlib.redirect_stdout(io.StringIO()):
            outcome = judge(fault)
        figures.planted[fault.kind] += 1
        short = outcome.partition(";")[0]
        figures.outcomes[f"{fault.kind}: {short}"] += 1
        figures.wrong += short == "WRONG"
        if short in {"WRONG", "ESCAPED"}:
            figures.escaped.append(f"{fault.kind} in {fault.path}: {outcome}")
