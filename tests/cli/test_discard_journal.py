"""`ambry datanode check --discard-journal`: a disk that is refused because of its journal comes back, and what is lost
is named. Over real files, and stopped in every step over simulated ones.
"""

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from click.testing import CliRunner, Result

from ambry.blob.blob_id import text_from_binary
from ambry.blob.requests import Change, GetRequest, PutRequest, StateAnswer
from ambry.cli.datanode import datanode
from ambry.clock import SystemClock
from ambry.config import StorageSettings
from ambry.errors import BlobDeleted, BlobNotFound, DirectoryUnusable
from ambry.limits import GIB, JOURNAL_BODY_BYTES_MAX
from ambry.storage.commit import Mutation
from ambry.storage.journal import NEXT_PATH, PATH, SLOT_BYTES, SLOTS_AT
from ambry.storage.real_disk import RealDisk
from ambry.storage.recovery import open_store
from ambry.storage.rocks_index import RocksIndexSource
from ambry.storage.salvage import salvage
from ambry.storage.sim_disk import PowerCut
from ambry.storage.sim_index import SimIndexSource
from ambry.storage.store import DiskStore
from tests.storage.engine import TINY, WHOLE, World, answer_of, blob_id, body_of, put, update

SETTINGS: Final = replace(StorageSettings(), journal_bytes=16 << 20, reserve_bytes=0)

BEFORE: Final = [put(blob_id(n), body_of(n, 1000)) for n in range(4)]
SYNCED: Final = put(blob_id(4), body_of(4, JOURNAL_BODY_BYTES_MAX + 1))
HELD: Final = [put(blob_id(n), body_of(n, 2000)) for n in range(5, 8)]
AFTER: Final = put(blob_id(9), body_of(9, 3000))


def opened(folder: Path) -> tuple[RealDisk, DiskStore]:
    disk = RealDisk(folder)
    disk.lock()
    index = RocksIndexSource(folder / "index", SETTINGS.index_cache_bytes, SETTINGS.index_memtable_bytes)
    try:
        store, _ = open_store(
            disk, index, settings=SETTINGS, clock=SystemClock(), random_bytes=os.urandom, partitions={1: GIB}
        )
    except DirectoryUnusable:
        disk.unlock()
        raise
    return disk, store


def killed(tmp_path: Path, *, knows: bool) -> tuple[Path, list[int]]:
    """A disk as SIGKILL leaves it, and where its groups begin; whether the index has all of them.

    Behind a checkpoint: a large body, three blobs with the delete of an old one, and one more blob.
    """
    folder = tmp_path / "live"
    folder.mkdir()
    disk, store = opened(folder)
    store.commit(BEFORE)
    store.checkpoint()
    starts = []
    groups: list[list[Mutation]] = [[SYNCED], [*HELD, update(blob_id(0), Change.DELETE, time_ms=1)], [AFTER]]
    for group in groups:
        starts.append(store._journal.position)
        assert all(isinstance(answer, StateAnswer) for answer in store.commit(group))
    if knows:
        store.index.flush()
    left = tmp_path / "left"
    shutil.copytree(folder, left, ignore=shutil.ignore_patterns("LOCK", "lock"))
    store.close()
    disk.unlock()
    return left, starts


def flip(path: Path, *places: int) -> None:
    with path.open("r+b") as file:
        for at in places:
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1]))


def discard(folder: Path, *options: str) -> Result:
    return CliRunner().invoke(datanode, ["check", str(folder), "--discard-journal", *options])


def report_of(result: Result) -> dict[str, Any]:
    assert result.exit_code == 1, result.output
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def body(store: DiskStore, request: PutRequest) -> object:
    found = answer_of(lambda: store.get(GetRequest(request.blob_id, 0, WHOLE)))
    return bytes(found.body) if found is not None and not isinstance(found, type) else found


def check_use(folder: Path, there: list[PutRequest]) -> DiskStore:
    """The disk starts, has these blobs, takes others, and starts again."""
    for number in (100, 101):
        disk, store = opened(folder)
        assert not (folder / "index.former").exists()
        assert not (folder / NEXT_PATH).exists()
        for request in there:
            assert body(store, request) == request.body
        another = put(blob_id(number), body_of(number, 500))
        assert isinstance(store.commit([another])[0], StateAnswer)
        there = [*there, another]
        store.close()
        disk.unlock()
    return store


def outcome(folder: Path, request: PutRequest) -> object:
    disk, store = opened(folder)
    found = body(store, request)
    store.close()
    disk.unlock()
    return found


def test_a_group_in_the_middle_is_lost_and_the_index_names_what_was_in_it(tmp_path: Path) -> None:
    folder, starts = killed(tmp_path, knows=True)
    flip(folder / PATH, starts[1] + 100)
    damaged = (folder / PATH).read_bytes()
    with pytest.raises(DirectoryUnusable, match="discard-journal"):
        opened(folder)
    report = report_of(discard(folder, "--json"))
    assert report["groups_redone"] == 2
    (missing,) = report["groups_missing"]
    assert missing[0] == missing[1]
    assert report["groups_unknown"] == []
    assert {one["blob_id"]: one["what"] for one in report["lost"]} == {
        **{text_from_binary(request.blob_id): "the blob" for request in HELD},
        text_from_binary(blob_id(0)): "its delete",
    }
    (kept,) = folder.glob("journal.damaged-*")
    assert kept.name == report["kept_as"]
    assert kept.read_bytes() == damaged
    # What came after the lost group is there, and the blob whose delete was lost is back: it was said to be.
    check_use(folder, [*BEFORE, SYNCED, AFTER])
    assert outcome(folder, HELD[0]) is BlobNotFound


def test_what_the_logs_have_all_the_same_is_not_lost(tmp_path: Path) -> None:
    folder = tmp_path / "live"
    folder.mkdir()
    disk, store = opened(folder)
    store.commit(BEFORE)
    store.checkpoint()
    start = store._journal.position
    store.commit(HELD)
    for segment in store.replicas[0].segments.values():
        store._tails.write(segment)
    store.commit([SYNCED])
    store.commit([AFTER])
    store.index.flush()
    left = tmp_path / "left"
    shutil.copytree(folder, left, ignore=shutil.ignore_patterns("LOCK", "lock"))
    store.close()
    disk.unlock()
    flip(left / PATH, start + 100)
    report = report_of(discard(left, "--json"))
    assert len(report["groups_missing"]) == 1
    assert report["lost"] == []
    check_use(left, [*BEFORE, *HELD, SYNCED, AFTER])


def test_what_nobody_knows_is_counted(tmp_path: Path) -> None:
    folder, starts = killed(tmp_path, knows=False)
    flip(folder / PATH, starts[1] + 100)
    result = discard(folder)
    assert result.exit_code == 1
    assert "not known: what was acknowledged in commit groups" in result.stdout
    assert "at most 512 operations" in result.stdout
    assert "kept as journal.damaged-" in result.stdout
    assert "lost:" not in result.stdout
    check_use(folder, [*BEFORE, SYNCED, AFTER])


@pytest.mark.parametrize("what", ["header", "checkpoints", "zeroed", "missing"])
def test_a_journal_without_its_head_or_without_anything_comes_back_as_far_as_it_goes(tmp_path: Path, what: str) -> None:
    folder, _ = killed(tmp_path, knows=True)
    path = folder / PATH
    match what:
        case "header":
            flip(path, 9)
        case "checkpoints":
            flip(path, SLOTS_AT + 9, SLOTS_AT + SLOT_BYTES + 9)
        case "zeroed":
            path.write_bytes(bytes(path.stat().st_size))
        case _:
            path.unlink()
    with pytest.raises(DirectoryUnusable, match="discard-journal"):
        opened(folder)
    report = report_of(discard(folder, "--json"))
    lost = {one["blob_id"] for one in report["lost"]}
    named = {text_from_binary(request.blob_id) for request in (*HELD, AFTER)} | {text_from_binary(blob_id(0))}
    if what in {"header", "checkpoints"}:
        assert lost == set()
        check_use(folder, [*BEFORE[1:], SYNCED, *HELD, AFTER])
        assert outcome(folder, BEFORE[0]) is BlobDeleted
    else:
        # The logs have what was checkpointed, and the large body.
        assert lost == named
        assert report["may_lack_newest"]
        check_use(folder, [*BEFORE, SYNCED])
    assert bool(report["kept_as"]) == (what != "missing")


def test_a_journal_that_is_whole_is_not_discarded(tmp_path: Path) -> None:
    folder, _ = killed(tmp_path, knows=True)
    before = (folder / PATH).read_bytes()
    result = discard(folder)
    assert isinstance(result.exception, DirectoryUnusable) or result.exit_code == 2
    assert "is whole" in f"{result.exception} {result.output}"
    assert (folder / PATH).read_bytes() == before
    assert not (folder / "index.former").exists()
    check_use(folder, [SYNCED, *HELD, AFTER])


def test_an_index_that_cannot_be_read_either_names_nothing_and_the_rest_comes_back(tmp_path: Path) -> None:
    folder, starts = killed(tmp_path, knows=True)
    flip(folder / PATH, starts[1] + 100)
    for file in (folder / "index").glob("MANIFEST*"):
        file.write_bytes(b"?" * 100)
    report = report_of(discard(folder, "--json"))
    assert report["lost"] == []
    assert len(report["groups_unknown"]) == 1
    check_use(folder, [*BEFORE, SYNCED, AFTER])


# --- every step ------------------------------------------------------------------------------------------------


def damaged_world() -> World:
    world = World(TINY)
    world.open()
    world.commit([put(blob_id(n, partition=1 + n % 2), body_of(n, 5000)) for n in range(6)])
    world.store.checkpoint()
    start = world.store._journal.position
    world.commit([put(blob_id(20), body_of(20, 500))])
    world.commit([put(blob_id(n, partition=1 + n % 2), body_of(n, 5000)) for n in range(6, 12)])
    world.commit([update(blob_id(2), Change.DELETE)])
    world.kill()
    file = world.disk.open(PATH)
    file.pwrite([bytes([file.pread(1, start + 100)[0] ^ 1])], start + 100)
    file.sync()
    return world


def salvage_world(world: World) -> None:
    former = world.source.index.crash_states()[-1]
    salvage(
        world.disk,
        SimIndexSource(),
        former,
        settings=TINY,
        clock=world.clock,
        random_bytes=random.Random(0).randbytes,
    )


@pytest.mark.parametrize("ending", [World.crash, World.kill])
def test_a_stop_in_any_step_leaves_a_disk_with_which_it_can_be_done_again(ending: Callable[[World], None]) -> None:
    steps, again = 0, 0
    while True:
        steps += 1
        world = damaged_world()
        world.disk.stop_after(steps)
        try:
            salvage_world(world)
        except PowerCut:
            pass
        else:
            break
        ending(world)
        try:
            salvage_world(world)
            again += 1
        except DirectoryUnusable as error:
            # It had come so far that the disk can be started.
            assert "is whole" in str(error)
        check_salvaged(world)
    assert again > 5
    world.disk.stop_after(None)
    check_salvaged(world)


def outcome_of(world: World) -> object:
    return body(world.store, put(blob_id(20), b""))


def check_salvaged(world: World) -> None:
    world.source = SimIndexSource()
    world.index_is_whole = False
    (model,) = world.models
    for end in (world.kill, world.crash):
        world.open()
        # The blob of the damaged group may be in its log: it was written there when the log had enough.
        assert outcome_of(world) in {BlobNotFound, body_of(20, 500)}
        for blob in model.blobs.values():
            if blob.identity != blob_id(20):
                world.check_read(GetRequest(blob.identity, 0, WHOLE, include_deleted=True))
        answers = world.store.commit([put(blob_id(40), body_of(40, 3000))])
        assert isinstance(answers[0], StateAnswer)
        end()
