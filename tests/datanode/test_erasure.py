"""Erasure: what is dead in a container with a deadline is gone in time, for one blob in a full segment too."""

import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest

from ambry.blob.requests import Change, StateAnswer
from ambry.blob.state import NEVER
from ambry.clock import ManualClock
from ambry.config import ErasureSettings
from ambry.datanode import upkeep as upkeep_module
from ambry.datanode.upkeep import Upkeep
from ambry.errors import AmbryError, DiskUnavailable
from ambry.limits import JOURNAL_BODY_BYTES_MAX
from ambry.storage.compaction_plan import Erasure
from ambry.storage.index_entry import blob_key, decode_entry
from ambry.storage.journal import PATH
from ambry.storage.survey import Survey, decode_survey, encode_survey
from tests.storage.engine import TINY, World, blob_id, body_of, put, update

DAY_MS = 86_400_000
DAYS = 20
SETTINGS = replace(
    TINY, compaction_bytes_per_s=1 << 30, scrub_bytes_per_s=1 << 30, erasure=(ErasureSettings(1, 1, DAYS),)
)
UNTOUCHED = replace(SETTINGS, erasure=(ErasureSettings(1, 2, DAYS),))


def _filled(*, expires_at_ms: int = NEVER) -> World:
    world = World(SETTINGS)
    world.open()
    for first in range(0, 24, 4):
        world.commit(
            [
                put(blob_id(n), body_of(n, 1500), expires_at_ms=expires_at_ms if n == 5 else NEVER)
                for n in range(first, first + 4)
            ]
        )
    world.store.checkpoint()
    return world


def _work(world: World, upkeep: Upkeep) -> None:
    for _ in range(100):
        if not upkeep.step():
            return
        world.store.checkpoint()
    raise AssertionError("upkeep does not come to rest")


def _has_bytes(world: World, number: int) -> bool:
    """Whether the blob's body is in any file of the disk's logs."""
    body = body_of(number, 1500)
    segments = [segment for replica in world.store.replicas for segment in replica.segments.values()]
    return any(body in segment.pread(segment.end, 0) for segment in segments)


@pytest.mark.parametrize("number", [5, 23], ids=["in a sealed segment", "in the active segment"])
def test_one_deleted_blob_is_gone_before_its_deadline_although_there_is_little_garbage(number: int) -> None:
    world = _filled()
    upkeep = Upkeep(world.store, "disk", SETTINGS, world.clock)
    world.commit([update(blob_id(number), Change.DELETE, time_ms=world.clock.now_ms())])
    world.store.checkpoint()
    world.clock.advance(8 * DAY_MS)
    _work(world, upkeep)
    assert _has_bytes(world, number), "half of the time is not over, and there is no other reason to compact"
    assert upkeep.figures.erasures_overdue == 0
    assert world.clock.now_ms() < upkeep.figures.erase_by_ms <= world.clock.now_ms() + DAYS * DAY_MS
    world.clock.advance(11 * DAY_MS)
    _work(world, upkeep)
    assert not _has_bytes(world, number)
    assert upkeep.figures.blobs_reclaimed == 1
    upkeep.step()
    assert world.clock.now_ms() < upkeep.figures.erase_by_ms, "the journal may have it"
    world.clock.advance(upkeep.figures.erase_by_ms - world.clock.now_ms())
    _work(world, upkeep)
    upkeep.step()
    assert (upkeep.figures.erase_by_ms, upkeep.figures.erasures_overdue) == (0, 0)
    world.check()
    world.crash()
    world.open()
    assert not _has_bytes(world, number)
    world.check()


def _holders(world: World, marks: Sequence[bytes]) -> list[str]:
    """Files of the disk, as a reader sees them and as any power cut may leave them, that have one of these."""
    disks = [world.disk, *world.disk.crash_states(world.random)]
    return sorted(
        {path for disk in disks for path, content in disk.contents().items() if any(mark in content for mark in marks)}
    )


def _until_reported(world: World, upkeep: Upkeep) -> None:
    """Let days pass until upkeep says that nothing has to be erased any more."""
    for _ in range(3 * DAYS):
        _work(world, upkeep)
        if upkeep.figures.erase_by_ms == 0:
            return
        assert upkeep.figures.erasures_overdue == 0
        world.clock.advance(DAY_MS)
    raise AssertionError("it is not erased")


@pytest.mark.parametrize("size", [1500, JOURNAL_BODY_BYTES_MAX + 1], ids=["small", "large"])
@pytest.mark.parametrize("trouble", ["", "quarantined", "quarantined, then repaired", "killed", "in a failed journal"])
def test_once_an_erasure_is_reported_no_file_has_a_byte_of_the_blob(size: int, trouble: str) -> None:
    world = _filled()
    upkeep = Upkeep(world.store, "disk", SETTINGS, world.clock)
    _until_reported(world, upkeep)
    blob, body, properties = blob_id(700), body_of(700, size), body_of(701, 90)
    world.commit([put(blob, body, properties=properties)])
    world.commit([put(blob_id(701), body_of(702, 900))])
    if trouble == "in a failed journal":
        world.disk.fail("sync", 1, DiskUnavailable, path="journal", done=1)
        world.store.checkpoint()
        assert world.store.journals_replaced == 1
    world.store.checkpoint()
    marks = [body[:64], body[-64:], properties]
    assert PATH in _holders(world, marks) or trouble == "in a failed journal"
    if trouble.startswith("quarantined"):
        entry = decode_entry(world.store.index.get(blob_key(blob)) or b"")
        file = world.store.replica(1).segments[entry.segment].file
        middle = entry.offset + entry.body_offset + size // 2
        file.pwrite([bytes(200)], middle)
        file.sync()
        upkeep.suspect(blob)
        _work(world, upkeep)
        assert any(path.startswith("quarantine/") for path in _holders(world, marks))
    if trouble.endswith("repaired"):
        assert not isinstance(world.store.commit([put(blob, body, properties=properties)])[0], AmbryError)
    (answer,) = world.store.commit([update(blob, Change.DELETE, time_ms=world.clock.now_ms())])
    assert isinstance(answer, StateAnswer)
    world.store.checkpoint()
    world.clock.advance(7 * DAY_MS)
    if trouble == "killed":
        world.clock.advance(12 * DAY_MS)
        while upkeep.figures.compactions == 0:
            assert upkeep.step()
        world.kill()
        world.open()
        upkeep = Upkeep(world.store, "disk", SETTINGS, world.clock)
    _until_reported(world, upkeep)
    assert _holders(world, marks) == []
    world.kill()
    world.open()
    upkeep = Upkeep(world.store, "disk", SETTINGS, world.clock)
    _work(world, upkeep)
    assert (upkeep.figures.erase_by_ms, _holders(world, marks)) == (0, [])


def test_an_expired_blob_is_erased_too() -> None:
    world = World(SETTINGS)
    world = _filled(expires_at_ms=world.clock.now_ms() + DAY_MS)
    upkeep = Upkeep(world.store, "disk", SETTINGS, world.clock)
    world.clock.advance((2 + DAYS) * DAY_MS - 1)
    _work(world, upkeep)
    assert not _has_bytes(world, 5)
    assert upkeep.figures.erasures_overdue == 0
    world.check()


def test_other_containers_keep_what_is_not_worth_a_compaction() -> None:
    world = _filled()
    upkeep = Upkeep(world.store, "disk", UNTOUCHED, world.clock)
    world.store.erasures.now = Erasure({(1, 2): DAYS})
    world.commit([update(blob_id(5), Change.DELETE, time_ms=world.clock.now_ms())])
    world.store.checkpoint()
    world.clock.advance(400 * DAY_MS)
    _work(world, upkeep)
    assert _has_bytes(world, 5)
    # A policy that comes later finds what has been dead for long, and what is past its time is said to be so.
    world.store.erasures.now = Erasure({(1, 1): DAYS})
    assert upkeep.step()
    _work(world, upkeep)
    assert not _has_bytes(world, 5)


def test_an_undeleted_blob_stays() -> None:
    world = _filled()
    upkeep = Upkeep(world.store, "disk", SETTINGS, world.clock)
    world.commit([update(blob_id(5), Change.DELETE, time_ms=world.clock.now_ms())])
    world.store.checkpoint()
    world.clock.advance(3 * DAY_MS)
    _work(world, upkeep)
    world.commit([update(blob_id(5), Change.UNDELETE, time_ms=world.clock.now_ms())])
    world.clock.advance(40 * DAY_MS)
    _work(world, upkeep)
    assert _has_bytes(world, 5)
    world.check()


def test_a_survey_from_before_there_was_erasure_is_read() -> None:
    survey = Survey(1, 2, 3, 4, 5, 6, 7, 8)
    assert decode_survey(encode_survey(survey)) == survey
    assert decode_survey(encode_survey(survey)[:32]) == Survey(1, 2, 3, 4)


class BrokenClock(ManualClock):
    """A clock that fails in a way that nobody foresaw."""

    is_broken = False

    def now_ms(self) -> int:
        if self.is_broken:
            raise ZeroDivisionError
        return super().now_ms()


def test_an_error_that_nobody_foresaw_does_not_end_upkeep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep_module, "IDLE_S", 0.001)
    world = _filled()
    clock = BrokenClock()
    upkeep = Upkeep(world.store, "disk", SETTINGS, clock)
    clock.is_broken = True
    thread = threading.Thread(target=upkeep.run)
    thread.start()
    for _ in range(5000):
        if upkeep.figures.failures >= 3:
            break
        thread.join(0.002)
    assert thread.is_alive()
    clock.is_broken = False
    for _ in range(5000):
        if upkeep.figures.bytes_verified:
            break
        thread.join(0.002)
    assert upkeep.figures.bytes_verified > 0, "it did not go on"
    upkeep.stop()
    thread.join(10)
    assert not thread.is_alive()
