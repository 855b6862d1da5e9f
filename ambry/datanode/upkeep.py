"""Upkeep of one disk in the background: compaction of what is worth it, and scrub of everything else, at a given pace.

One thread for each disk does one thing at a time: it compacts while there is garbage enough, and otherwise verifies the
segment whose last verification is the oldest. A survey is remembered with the moment before which it cannot be out of
date, so a segment full of blobs that were deleted yesterday is read once, not over and over.

The less room there is, the more compaction comes first: it rests less, takes less garbage for enough, and scrub lets it
go between two of its steps. It yields (`pace`), and `stop` ends it between two records. Scrub gives way most: while
blobs are read from the disk it goes at a sixteenth of its rate, until it is OVERDUE.
Knows when; how fast is the pace's, and what is garbage and what is damage is the store's.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from ambry import logs
from ambry.blob.state import NEVER
from ambry.clock import Clock
from ambry.config import StorageSettings
from ambry.datanode.pace import Pace
from ambry.errors import AmbryError, DiskFull, ShuttingDown
from ambry.limits import MIB
from ambry.metrics import Metrics
from ambry.storage.compaction_plan import SegmentFacts, facts_of, room_of
from ambry.storage.disk import lacks_descriptors
from ambry.storage.exchange import holes, lives
from ambry.storage.expiry_class import UPPER_BOUNDS_MS
from ambry.storage.inspection import (
    choose_for,
    garbage_ratio_for,
    holds_live,
    is_worth_sealing,
    must_be_sealed,
    surveyed,
    takes_no_puts,
)
from ambry.storage.rebuild import CheckReport, check_store
from ambry.storage.remains import Remnant
from ambry.storage.seal_state import is_sealed_for_good
from ambry.storage.segment import DATA_OFFSET, Damage
from ambry.storage.store import DiskStore
from ambry.storage.survey import Survey

_log = logs.get_logger(__name__)

IDLE_S: Final = 5.0
"""Between two looks for something to do, at least."""

IDLE_RATIO: Final = 300.0
"""A look that found nothing is followed by a rest of this many times its own duration: a third of a percent of a core,
however many partitions there are."""

IDLE_S_MAX: Final = 60.0
"""The longest rest."""

FAILURE_S_MAX: Final = 600.0
"""Longest pause after a failure."""

SUSPECTS_MAX: Final = 1024
"""Blobs that reads found damaged and that wait for the next step; what does not fit is found by scrub."""

REPAIRS_COUNTED_MAX: Final = 1000
"""Up to so many blobs that wait for their bytes are counted at every step."""

SCRUB_PART: Final = 10.0
"""On such a disk a scrub that is under way gets this part of the time of compaction, however much there is to compact:
damage has to be found there, too."""

OVERDUE: Final = 2
"""So many intervals after it was verified, or made, a segment is scrubbed at the full rate, whoever reads meanwhile."""

LOOK_S: Final = 1.0
"""On a disk that is short of room, between two looks for what to compact, also while scrub is at a segment."""

CHECK_BYTES_PER_S: Final = 64 * MIB
"""A check that somebody waits for: faster than scrub, and it gives way to commits all the same."""

ERASURE_LOOK_MS: Final = 3_600_000
"""A segment with dead blobs is read again for what has to be erased after so long at the earliest."""

ERASURE_MARGIN: Final = 4
"""The journal is erased when so small a part of the shortest promise is left before the deadline."""

RETRY_MS: Final = 86_400_000
"""A segment that compaction could not free is left alone for this long."""

FIRST_RETRY_MS: Final = 60_000
"""The first time, and for blobs that changed meanwhile, only for this long: on a full disk a day of it would be the
space that is missing."""


@dataclass(slots=True)
class UpkeepFigures:
    """What upkeep did since the process started, and what it knows."""

    compactions: int = 0
    bytes_copied: int = 0
    bytes_freed: int = 0
    bytes_verified: int = 0
    damages: int = 0
    quarantined: int = 0
    repairs_waiting: int = 0
    garbage_bytes: int = 0
    last_compaction_ms: int = 0
    blobs_reclaimed: int = 0
    erase_by_ms: int = 0
    erasures_overdue: int = 0
    failures: int = 0
    sealed_for_good: int = 0
    spent: int = 0
    dropped: int = 0
    verified_ratio: float = 0.0
    oldest_ms: int = 0


class Upkeep:
    """The background work of one disk. `run` is a thread's; `step` does one piece of it, for tests."""

    def __init__(
        self,
        store: DiskStore,
        name: str,
        settings: StorageSettings,
        clock: Clock,
        *,
        commit_s: Callable[[], float] = lambda: 0.0,
        has_readers: Callable[[], bool] = lambda: False,
    ) -> None:
        self._store = store
        self._name = name
        self._settings = settings
        self._clock = clock
        self._stopping = threading.Event()
        self._wanted = threading.Event()
        self._commit_s = commit_s
        self._log_bytes = 0
        self._scrubbed: tuple[int, int] | None = None
        self._compaction_pace = self._pace(settings.compaction_bytes_per_s, room=self._room)
        self._scrub_pace = self._pace(settings.scrub_bytes_per_s)
        self._patient_pace = self._pace(
            settings.scrub_bytes_per_s, lambda: has_readers() and not self._has_pressing_work()
        )
        self._suspects: deque[bytes] = deque(maxlen=SUSPECTS_MAX)
        self._not_before: dict[tuple[int, int], int] = {}
        self._written: dict[tuple[int, int], int] = {}
        """Segments that compaction wrote lately, and until when in ms."""
        self._renewed: dict[tuple[int, int], list[Damage]] = {}
        self._failures_in_a_row = 0
        self._dropping: dict[int, Callable[[], None]] = {}
        self._spent_at: dict[int, int] = {}
        self.sealed_for_good: Mapping[int, int] = {}
        """Partitions that take no new blobs any more, and since when in ms. Replaced as a whole, for any thread."""
        self.ending: frozenset[int] = frozenset()
        """Others that the cluster map has sealed: what is dead in them is reclaimed however little it is."""
        self.spent: frozenset[int] = frozenset()
        """Of those sealed for good, partitions in which nothing lives and nothing is kept. Replaced as a whole."""
        self.figures = UpkeepFigures()
        # What cannot be read now is found out by the first step.
        with contextlib.suppress(AmbryError):
            surveys = {one.partition: self._surveys(one.partition) for one in store.replicas}
            self.sealed_for_good = self._sealed_by(surveys, clock.now_ms())
        self.sealed_at_start = frozenset(self.sealed_for_good)
        """Those of `sealed_for_good` that were so before anything was taken."""

    def _pace(
        self,
        bytes_per_s: int,
        has_readers: Callable[[], bool] = lambda: False,
        room: Callable[[], float] = lambda: 1.0,
    ) -> Pace:
        return Pace(max(bytes_per_s, 1), self._stopping, self._commit_s, self._clock.monotonic, has_readers, room)

    def _room(self) -> float:
        """How much room there is, as `room_of` has it; of a disk that does not say, enough."""
        with contextlib.suppress(AmbryError):
            return room_of(self._store.free_bytes(), self._log_bytes, self._settings.segment_bytes)
        return 1.0

    def _has_pressing_work(self) -> bool:
        """Whether something waits for scrub to be through with a segment: a repair, a replica to drop, a full disk."""
        return self._wanted.is_set() or self._room() < 1

    def stop(self) -> None:
        """Let `run` end soon. From any thread."""
        self._stopping.set()
        self._wanted.set()

    def look_soon(self) -> None:
        """There may be something to do: do not wait for the next look. From any thread."""
        self._wanted.set()

    def drop(self, partition: int, when_done: Callable[[], None]) -> None:
        """Remove a replica with the next step, for good; then `when_done` is called, on upkeep's thread."""
        self._dropping[partition] = when_done
        self.look_soon()

    def suspect(self, blob_id: bytes) -> None:
        """A read found this blob damaged or unreadable; it is looked at soon. From any thread."""
        self._suspects.append(blob_id)
        self._wanted.set()

    def lives(self, partition: int) -> bool:
        """Whether any blob of a partition lives or has its bytes still. May block for long. Raises NoSuchReplica."""
        self._store.replica(partition)
        return lives(self._store, partition, self._clock.now_ms())

    def check(self) -> CheckReport:
        """Hold log and index of the open store against each other, at CHECK_BYTES_PER_S. May block for long.

        Raises ShuttingDown when the disk is to be closed.
        """
        return check_store(self._store, self._clock, progress=self._pace(CHECK_BYTES_PER_S))

    def run(self) -> None:
        """Work until `stop`, or until the store has failed."""
        while not self._stopping.is_set() and self._store.failure is None:
            self._wanted.clear()
            waits_for_room = False
            started_s = self._clock.monotonic()
            try:
                has_worked = self.step()
            except ShuttingDown:
                return
            except DiskFull as error:
                _log.warning("compaction waits for room", disk=self._name, reason=str(error))
                has_worked, waits_for_room = False, True
            except AmbryError as error:
                self._failed(error)
                has_worked = False
            except Exception as error:  # noqa: BLE001 -- a fault of ours must not end scrub and compaction unnoticed
                self._failed(error)
                has_worked = False
            else:
                self._failures_in_a_row = 0
            if not has_worked:
                # Longer after every failure: what fails again reads and logs the same again.
                took_s = self._clock.monotonic() - started_s
                idle_s = min(max(IDLE_S, IDLE_RATIO * took_s), IDLE_S_MAX)
                if waits_for_room:
                    # However long it had worked before it met the full disk: nothing else makes room.
                    idle_s = IDLE_S
                self._idle(min(idle_s * 2**self._failures_in_a_row, FAILURE_S_MAX))

    def _idle(self, idle_s: float) -> None:
        """Wait until there may be something to do: not for long on a disk that is short of room, or becomes so."""
        while idle_s > 0 and not self._stopping.is_set():
            is_short = not self._failures_in_a_row and self._room() < 1
            wait_s = min(idle_s, LOOK_S if is_short else IDLE_S)
            if self._wanted.wait(wait_s) or is_short:
                return
            idle_s -= wait_s

    def _failed(self, error: Exception) -> None:
        self.figures.failures += 1
        self._failures_in_a_row += 1
        is_ours = not isinstance(error, AmbryError)
        if lacks_descriptors(error):
            _log.error("upkeep waits for descriptors; raise LimitNOFILE", disk=self._name, reason=str(error))
            return
        _log.error("upkeep failed", disk=self._name, reason=repr(error), exc_info=error if is_ours else None)

    def step(self) -> bool:
        """Suspects and replicas to drop, then one compaction or the check of one segment; False if there was nothing.

        Raises ShuttingDown, DiskFull, DiskUnavailable.
        """
        now_ms = self._clock.now_ms()
        self._log_bytes = sum(replica.log_size for replica in self._store.replicas)
        has_worked = self._quarantine_suspects() | self._drop()
        self.figures.repairs_waiting = len(holes(self._store, b"", REPAIRS_COUNTED_MAX))
        if has_worked:
            return True
        remnants = self._store.remnants()
        surveys = {replica.partition: self._surveys(replica.partition) for replica in self._store.replicas}
        self._report_erasure(surveys, remnants, now_ms)
        self._seal_for_good(surveys, now_ms)
        if self._settings.compaction_bytes_per_s and self._erase_elsewhere(remnants, now_ms):
            return True
        if self._compact_any(surveys, now_ms):
            return True
        return bool(self._settings.scrub_bytes_per_s) and self._scrub(surveys, now_ms)

    # --- quarantine --------------------------------------------------------------------------------------------

    def _quarantine_suspects(self) -> bool:
        has_found = False
        while self._suspects:
            has_found |= self._store.quarantine_blob(self._suspects.popleft())
        return has_found

    def _drop(self) -> bool:
        """Remove a replica of a retired partition; True when there was one."""
        for partition in tuple(self._dropping):
            self._store.drop_replica(partition)
            self._dropping.pop(partition)()
            self.figures.dropped += 1
            _log.info("the replica of a retired partition is gone", disk=self._name, partition=partition)
            return True
        return False

    # --- compaction --------------------------------------------------------------------------------------------

    def _compact_any(self, surveys: dict[int, dict[int, Survey]], now_ms: int) -> bool:
        """Compact in one partition, that with the most garbage by the totals first; False when none is worth it."""
        if not self._settings.compaction_bytes_per_s:
            return False
        self.figures.garbage_bytes = 0
        garbage = {
            partition: sum(one.garbage_bytes for one in self._store.segment_facts(partition)) for partition in surveys
        }
        for partition in sorted(surveys, key=lambda one: (-garbage[one], one)):
            if self._compact(partition, surveys[partition], now_ms):
                return True
        return False

    def _compact(self, partition: int, surveys: dict[int, Survey], now_ms: int) -> bool:
        room = self._room()
        ratio = garbage_ratio_for(self._settings, room)
        facts: list[SegmentFacts] = []
        ends = self._ends(partition)
        if ends or self._store.erasures.now:
            self._seal_what_is_due(partition, surveys, now_ms, ends=ends)
        if takes_no_puts(self._store):
            self._seal_garbage(partition, surveys, now_ms, ratio, room)
        for one in self._store.segment_facts(partition):
            if self._not_before.get((partition, one.number), 0) > now_ms or (partition, one.number) == self._scrubbed:
                continue
            survey = surveys.get(one.number)
            if self._is_known(partition, one.number, now_ms) and one.buried_bytes >= max(ratio * one.size, 1):
                # Compaction reads and verifies it as well: a look before would only take as long again.
                facts.append(replace(one, kept_bytes=one.size - one.buried_bytes, is_due=ends))
                continue
            if self._needs_look(one, survey, now_ms, ratio):
                survey = self._survey(partition, one.number, self._compaction_pace)
            # What nobody has looked through may all have to stay.
            if survey is None:
                facts.append(replace(one, kept_bytes=one.size, is_due=ends and one.dead_bytes > 0))
            else:
                facts.append(surveyed(one, survey, now_ms, ends=ends))
        self.figures.garbage_bytes += sum(one.garbage_bytes for one in facts)
        numbers = choose_for(self._store, self._settings, facts, now_ms, room)
        if not numbers:
            return False
        needed = sum(one.size - one.garbage_bytes for one in facts if one.number in numbers)
        report = self._store.compact(
            partition, numbers, pace=self._compaction_pace, on_damage=self._on_damage, needed_bytes=needed
        )
        self._written = {key: until_ms for key, until_ms in self._written.items() if until_ms > now_ms}
        self._written |= {(partition, number): now_ms + FIRST_RETRY_MS for number in report.written}
        for number in report.kept_back:
            is_known = (partition, number) in self._not_before and number in report.damaged
            self._not_before[partition, number] = now_ms + (RETRY_MS if is_known else FIRST_RETRY_MS)
        figures = self.figures
        figures.compactions += 1
        figures.bytes_copied += report.bytes_copied
        figures.bytes_freed += report.bytes_freed
        figures.last_compaction_ms = now_ms
        figures.blobs_reclaimed += report.blobs_buried + report.blobs_forgotten
        _log.info(
            "compacted",
            disk=self._name,
            partition=partition,
            segments=list(report.compacted),
            kept_back=list(report.kept_back),
            bytes_copied=report.bytes_copied,
            bytes_freed=report.bytes_freed,
        )
        return True

    def _is_known(self, partition: int, number: int, now_ms: int) -> bool:
        """Whether what the totals call dead in a segment is garbage: without retention all of it is.

        Not for a minute in what compaction wrote: by a clock that is ahead of ours a blob may have been deleted in a
        moment that is still to come, and would be copied from segment to segment until then.
        """
        keeps_dead = self._store.retention.deleted_ms or self._store.erasures.now
        return not keeps_dead and self._written.get((partition, number), 0) <= now_ms

    def _needs_look(self, one: SegmentFacts, survey: Survey | None, now_ms: int, ratio: float) -> bool:
        """Whether only a look says how much of a segment is garbage, and that may be worth a compaction."""
        return (survey is None or self._is_outdated(one, survey, now_ms)) and (
            one.garbage_bytes >= ratio * one.size
            or _may_have_expired(one, self._store.retention.expired_ms, now_ms)
            or self._may_be_to_erase(one.dead_bytes, survey, now_ms)
        )

    def _seal_garbage(self, partition: int, surveys: dict[int, Survey], now_ms: int, ratio: float, room: float) -> None:
        """Where no puts are taken an active segment never becomes full, and what is garbage in it would stay for ever.

        So it is sealed as soon as a compaction would be worth it, with a few KiB of the reserve for the next one.
        """
        to_seal: list[int] = []
        for segment in list(self._store.replica(partition).active.values()):
            one = facts_of(segment, self._store.accounts.of_segment(partition, segment.number))
            survey = surveys.get(segment.number)
            if one.size and self._needs_look(one, survey, now_ms, ratio):
                survey = surveys[segment.number] = self._survey(partition, segment.number, self._compaction_pace)
            if survey is not None and is_worth_sealing(
                self._store, self._settings, surveyed(one, survey, now_ms, ends=False), now_ms, room
            ):
                to_seal.append(segment.number)
        self._seal(partition, to_seal)

    def _seal(self, partition: int, numbers: list[int]) -> None:
        for number in numbers:
            self._store.seal_active(partition, number)
        if numbers:
            # Compaction takes what has its length in replica.meta, and a checkpoint writes that.
            self._store.checkpoint()

    def _is_outdated(self, one: SegmentFacts, survey: Survey, now_ms: int) -> bool:
        """Whether more may be garbage than the survey saw: by the clock, in what came after it, or deleted since."""
        if now_ms >= survey.next_ms or survey.seen_bytes < one.size:
            return True
        unaccounted = survey.kept_bytes - one.live_bytes - one.dead_bytes
        if survey.damages and now_ms < survey.verified_at_ms + RETRY_MS:
            # Damage that nobody can name is kept, and no total has it: it is not read again at every look.
            unaccounted = 0
        # What was deleted after the survey is kept for its retention from then on; changes of state are small.
        may_be_due = one.dead_bytes > 0 and self._may_be_over(survey, now_ms)
        return unaccounted > 0 or may_be_due or self._may_be_to_erase(one.dead_bytes, survey, now_ms)

    # --- erasure -----------------------------------------------------------------------------------------------

    def _may_be_to_erase(self, dead_bytes: int, survey: Survey | None, now_ms: int) -> bool:
        """Whether only another look says if a segment holds what has to be erased by now."""
        erasure = self._store.erasures.now
        if not erasure:
            return False
        if survey is None or survey.erasure_digest != erasure.digest:
            return True
        # What was due may have been undeleted; what was deleted since the look is due a retention later, or more.
        is_due = survey.verified_at_ms < survey.erase_at_ms <= now_ms
        soonest_ms = max(self._store.retention.deleted_ms + erasure.shortest_ms // 2, ERASURE_LOOK_MS)
        return is_due or (dead_bytes > 0 and now_ms >= survey.verified_at_ms + soonest_ms)

    def _may_be_over(self, survey: Survey, now_ms: int) -> bool:
        """Whether what was dead at the last look, or died since, may be out of its retention."""
        return now_ms >= survey.verified_at_ms + max(self._store.retention.deleted_ms, FIRST_RETRY_MS)

    def _ends(self, partition: int) -> bool:
        """Whether nothing comes to a partition any more, and nothing in it lives."""
        if partition not in self.sealed_for_good and partition not in self.ending:
            return False
        return not holds_live(self._store.accounts, partition)

    def _seal_what_is_due(self, partition: int, surveys: dict[int, Survey], now_ms: int, *, ends: bool) -> None:
        """Compaction never takes an active segment; one that holds what is due is sealed before it is full."""
        replica = next(one for one in self._store.replicas if one.partition == partition)
        to_seal: list[int] = []
        for segment in list(replica.active.values()):
            number = segment.number
            survey = surveys.get(number)
            dead_bytes = self._store.accounts.of_segment(partition, number).dead_bytes
            is_unknown = survey is None or now_ms >= survey.next_ms or not survey.seen_bytes
            may_end = ends and dead_bytes > 0 and is_unknown
            if segment.end > DATA_OFFSET and (may_end or self._may_be_to_erase(dead_bytes, survey, now_ms)):
                survey = surveys[number] = self._survey(partition, number, self._compaction_pace)
            if survey is not None and must_be_sealed(survey, dead_bytes, now_ms, ends=ends):
                to_seal.append(number)
        self._seal(partition, to_seal)

    def _erase_elsewhere(self, remnants: list[Remnant], now_ms: int) -> bool:
        """Remove what has to be erased and is not in a log; whether there was anything to do."""
        due = [one for one in remnants if one.erase_at_ms <= now_ms]
        if due:
            self._store.remove_remnants(due)
            _log.info("erased from quarantine", disk=self._name, files=[one.path for one in due])
        erasures = self._store.erasures
        # Late, since it is done once for all that left the logs until then.
        margin_ms = erasures.now.shortest_ms // ERASURE_MARGIN
        is_due = bool(erasures.now) and erasures.journal_by_ms - margin_ms <= now_ms
        if is_due:
            self._store.erase_journal(self._compaction_pace)
            _log.info("erased from the journal", disk=self._name)
        return bool(due) or is_due

    def _report_erasure(self, surveys: dict[int, dict[int, Survey]], remnants: list[Remnant], now_ms: int) -> None:
        deadlines = [survey.erase_by_ms for known in surveys.values() for survey in known.values()]
        deadlines += [one.erase_by_ms for one in remnants]
        if self._store.erasures.now:
            deadlines.append(self._store.erasures.journal_by_ms)
        there = [by_ms for by_ms in deadlines if by_ms < NEVER]
        # 0 says that there is none; what nobody knows the time of is overdue.
        self.figures.erase_by_ms = max(min(there), 1) if there else 0
        self.figures.erasures_overdue = sum(by_ms < now_ms for by_ms in there)

    def _seal_for_good(self, surveys: dict[int, dict[int, Survey]], now_ms: int) -> None:
        """Tombstones stay, so a partition that is full of them stays so: it takes no puts, and is spent in the end."""
        before = self.sealed_for_good
        sealed = self._sealed_by(surveys, now_ms)
        for partition in sealed:
            self._store.seal_for_good(partition)
        for partition in sorted(sealed.keys() - before.keys()):
            _log.warning("partition is sealed for good: too many tombstones", disk=self._name, partition=partition)
        uses = self._store.accounts.of_containers() if sealed else {}
        kept = {partition for (partition, _, _), use in uses.items() if use.live_count or use.dead_count}
        self.sealed_for_good = sealed
        # A blob that lives and whose bytes are lost is in the repair queue: its partition is not spent.
        self.spent = frozenset(one for one in sealed.keys() - kept if self._is_spent(one, now_ms))
        self.figures.sealed_for_good = len(sealed)
        self.figures.spent = len(self.spent)

    def _sealed_by(self, surveys: dict[int, dict[int, Survey]], now_ms: int) -> dict[int, int]:
        """Partitions that have too many tombstones, and since when that is known.

        One that had stays: segments that compaction wrote have no survey yet, and tombstones never go. replica.meta
        remembers it.
        """
        replicas = self._store.replicas
        capacities = {replica.partition: replica.capacity for replica in replicas}
        known_ms = {replica.partition: replica.sealed_for_good_ms for replica in replicas if replica.sealed_for_good_ms}
        before = known_ms | dict(self.sealed_for_good)
        return {
            partition: before.get(partition, now_ms)
            for partition, known in surveys.items()
            if partition in before
            or is_sealed_for_good(
                tombstone_bytes=sum(survey.tombstone_bytes for survey in known.values()),
                capacity=capacities.get(partition, NEVER),
            )
        }

    def _is_spent(self, partition: int, now_ms: int) -> bool:
        """Goes through a partition once for each state that it is in."""
        end_lsn = self._store.replica(partition).end_lsn
        if self._spent_at.get(partition) != end_lsn:
            if lives(self._store, partition, now_ms):
                return False
            self._spent_at[partition] = end_lsn
        return True

    # --- scrub -------------------------------------------------------------------------------------------------

    def _scrub(self, surveys: dict[int, dict[int, Survey]], now_ms: int) -> bool:
        segments: list[tuple[int, int, int, int]] = []
        size = seen = 0
        for replica in self._store.replicas:
            for number, segment in sorted(replica.segments.items()):
                survey = surveys[replica.partition].get(number)
                verified_at_ms = 0 if survey is None else survey.verified_at_ms
                # No byte of a segment is older than the segment.
                waits_since_ms = max(verified_at_ms, segment.created_ms)
                segments.append((verified_at_ms, replica.partition, number, waits_since_ms))
                size += segment.end - DATA_OFFSET
                seen += 0 if survey is None else min(survey.seen_bytes, segment.end - DATA_OFFSET)
        if not segments:
            return False
        segments.sort()
        self.figures.verified_ratio = seen / size if size else 1.0
        self.figures.oldest_ms = min(since_ms for *_, since_ms in segments)
        oldest_ms, partition, number, waits_since_ms = segments[0]
        if oldest_ms + self._settings.scrub_interval_ms > now_ms:
            return False
        for path in self._store.restore_files(partition, number):
            self.figures.damages += 1
            _log.error("a damaged file was written anew", disk=self._name, path=path)
        is_overdue = waits_since_ms + OVERDUE * self._settings.scrub_interval_ms <= now_ms
        self._scrubbed = (partition, number)
        try:
            self._survey(partition, number, self._scrub_pace if is_overdue else self._patient_pace, self._between())
        finally:
            self._scrubbed = None
        return True

    def _between(self) -> Callable[[], None]:
        """What scrub does between two steps: on a disk that is short of room it lets others have the thread.

        Compaction of all but the segment that scrub is reading, and what reads found damaged, which it would otherwise
        keep waiting longer now. So nobody waits for the end of what another does.
        """
        next_s = self._clock.monotonic() + LOOK_S

        def look() -> None:
            nonlocal next_s
            now_s = self._clock.monotonic()
            if now_s < next_s or self._room() >= 1:
                return
            self._quarantine_suspects()
            surveys = {replica.partition: self._surveys(replica.partition) for replica in self._store.replicas}
            has_worked = self._compact_any(surveys, self._clock.now_ms())
            ended_s = self._clock.monotonic()
            next_s = ended_s + ((ended_s - now_s) / SCRUB_PART if has_worked else LOOK_S)

        return look

    def _survey(self, partition: int, number: int, pace: Pace, between: Callable[[], None] = lambda: None) -> Survey:
        before = pace.bytes
        unnamed: list[Damage] = []

        def on_damage(_partition: int, _number: int, damage: Damage) -> None:
            self._on_damage(_partition, _number, damage)
            if damage.header is None:
                unnamed.append(damage)

        def step(size: int) -> None:
            pace(size)
            between()

        survey = self._store.survey(partition, number, pace=step, on_damage=on_damage)
        self.figures.bytes_verified += pace.bytes - before
        # What stays damaged is met by every look, and was dealt with by the first.
        if unnamed and self._renewed.get((partition, number)) != unnamed:
            count = self._store.renew_states(partition, number, unnamed, pace)
            self._renewed[partition, number] = unnamed
            _log.info("states were written again", disk=self._name, partition=partition, segment=number, blobs=count)
        return survey

    def _surveys(self, partition: int) -> dict[int, Survey]:
        """Those of segments that are there; a number may have been given to another segment since."""
        replica = self._store.replica(partition)
        created = {number: segment.created_ms for number, segment in list(replica.segments.items())}
        return {
            number: survey
            for number, survey in self._store.surveys(partition).items()
            if survey.verified_at_ms >= created.get(number, NEVER)
        }

    def _on_damage(self, partition: int, segment: int, damage: Damage) -> None:
        self.figures.damages += 1
        _log.error(
            "damaged record",
            disk=self._name,
            partition=partition,
            segment=segment,
            offset=damage.offset,
            size=damage.size,
            reason=damage.reason,
        )
        for blob_id in self._store.quarantine(partition, segment, damage, self._scrub_pace):
            self.figures.quarantined += 1
            self._wanted.set()
            _log.error("bytes of a blob are quarantined", disk=self._name, partition=partition, blob_id=blob_id.hex())

    def watch(self, metrics: Metrics) -> None:
        """Register what upkeep does."""
        figures, disk = self.figures, self._name
        counters: list[tuple[str, str, Callable[[], float]]] = [
            ("ambry_disk_compactions", "Compactions done.", lambda: figures.compactions),
            ("ambry_disk_compaction_copied_bytes", "Bytes that compaction copied.", lambda: figures.bytes_copied),
            ("ambry_disk_compaction_freed_bytes", "Bytes that compaction freed.", lambda: figures.bytes_freed),
            (
                "ambry_disk_verified_bytes",
                "Bytes of records read and verified by scrub.",
                lambda: figures.bytes_verified,
            ),
            (
                "ambry_disk_damages",
                "Damaged places that upkeep met; one that stays counts again.",
                lambda: figures.damages,
            ),
            ("ambry_disk_quarantined", "Blobs whose damaged bytes were set aside.", lambda: figures.quarantined),
            (
                "ambry_disk_reclaimed_blobs",
                "Blobs whose bytes compaction reclaimed: deleted or expired longer ago than their retention.",
                lambda: figures.blobs_reclaimed,
            ),
            ("ambry_disk_upkeep_failures", "Steps of upkeep that failed.", lambda: figures.failures),
            (
                "ambry_disk_repairs",
                "Blobs that lacked their bytes, or had them damaged, and got them back, from a peer for the most part.",
                lambda: self._store.holes_filled,
            ),
            (
                "ambry_disk_replicas_dropped",
                "Replicas of retired partitions that were removed.",
                lambda: figures.dropped,
            ),
        ]
        gauges: list[tuple[str, str, Callable[[], float]]] = [
            (
                "ambry_disk_repairs_waiting",
                "Blobs that live and wait for their bytes from a peer, up to 1000: damaged here, or never here.",
                lambda: figures.repairs_waiting,
            ),
            ("ambry_disk_garbage_bytes", "Garbage found by the last look.", lambda: figures.garbage_bytes),
            (
                "ambry_disk_compaction_last_seconds",
                "When the last compaction ended, in seconds since 1970; 0 for none since the start.",
                lambda: figures.last_compaction_ms / 1000,
            ),
            (
                "ambry_disk_erase_by_seconds",
                "The first deadline of an erasure, in seconds since 1970; 0 for none.",
                lambda: figures.erase_by_ms / 1000,
            ),
            (
                "ambry_disk_partitions_sealed_for_good",
                "Partitions that have too many tombstones to take new blobs.",
                lambda: figures.sealed_for_good,
            ),
            (
                "ambry_disk_partitions_spent",
                "Of those, partitions in which nothing lives any more: they may be retired.",
                lambda: figures.spent,
            ),
            (
                "ambry_disk_erasure_containers",
                "Containers whose dead bytes have to be gone in time, by the settings and by their policies.",
                lambda: len(self._store.erasures.now),
            ),
            (
                "ambry_disk_erasures_overdue",
                "Segments and other files with bytes that should have been erased by now, or may have some.",
                lambda: figures.erasures_overdue,
            ),
            (
                "ambry_disk_verified_ratio",
                "Share of the bytes of records that were verified since they were written.",
                lambda: figures.verified_ratio,
            ),
            (
                "ambry_disk_oldest_verification_seconds",
                "Since when the byte that waits longest has not been verified, in seconds since 1970; 0 at first.",
                lambda: figures.oldest_ms / 1000,
            ),
        ]
        for name, text, read in counters:
            metrics.watch_counter(name, text, read, disk=disk)
        for name, text, read in gauges:
            metrics.watch_gauge(name, text, read, disk=disk)


def _may_have_expired(one: SegmentFacts, expired_ms: int, now_ms: int) -> bool:
    """Whether the blobs of an expiry class have outlived it: the totals count the expired as live."""
    if one.expiry_class == 0:
        return False
    return now_ms >= one.created_ms + UPPER_BOUNDS_MS[one.expiry_class - 1] + expired_ms
