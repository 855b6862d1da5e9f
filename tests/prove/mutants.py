"""R20: bugs planted in the engine's own source, one at a time, in a copy of the tree; the engine's tests must fail.

A mutant is a piece of source that occurs once, and what stands there instead. It is caught by a test that fails
against it, and does not fail without it. `tests/prove/test_prove.py` asks that all of them still apply; running them
takes minutes and belongs to `make prove`.
"""

import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ambry.cli.local_zookeeper import HOME_VARIABLE
from tests.prove.cluster_mutants import CLUSTER_MUTANTS
from tests.prove.mutant import Mutant
from tests.zookeeper_server import VARIABLE

ROOT: Final = Path(__file__).resolve().parents[2]
PARTS: Final = ("ambry", "tests", "bench", "docs", ".ci")
"""What the tests need of the tree."""

PASSED_ON: Final = ("PATH", HOME_VARIABLE, VARIABLE, "PYTEST_DISABLE_PLUGIN_AUTOLOAD")
"""Of the environment: the rest of it has no say in what a test finds."""

UNDECIDED: Final = "did not end, or not in time"
FALSE: Final = "not caught: without the bug, too, fails"
NOT_LOADED: Final = "not caught: with the bug it does not load:"
"""An import that fails says nothing of what the tests ask."""

SECONDS_MAX: Final = 300.0
"""For the tests of one mutant."""


_COMPACTION: Final = ("tests/storage/test_compaction.py",)
_QUARANTINE: Final = ("tests/storage/test_quarantine.py",)
_LOGS: Final = ("tests/storage/test_failed_logs.py",)
_JOURNAL: Final = ("tests/storage/test_failed_journal.py",)
_INDEX: Final = ("tests/storage/test_failed_index.py",)
_DESCRIPTORS: Final = ("tests/storage/test_descriptors.py",)
_FAULTS: Final = ("tests/datanode/test_disk_faults.py",)
_ERASURE: Final = ("tests/storage/test_erased_journal.py", "tests/datanode/test_erasure.py")
_UPKEEP: Final = ("tests/datanode/test_upkeep.py",)

MUTANTS: Final = (
    Mutant(
        "an index that is opened again lacks what no journal has",
        "ambry/storage/reopening.py",
        "        _restore(index, self._kept)\n",
        "",
        _INDEX,
    ),
    Mutant(
        "an index that is opened again lacks the groups of the journal",
        "ambry/storage/reopening.py",
        "        _redo(IndexUpdates(index, accounts), journal, covered, replicas, applied)\n",
        "",
        _INDEX,
    ),
    Mutant(
        "the group at which the journal failed is redone into an index that is opened again",
        "ambry/storage/journal.py",
        "            if group.sequence > self.sequence:\n",
        "            if False:\n",
        _INDEX,
    ),
    Mutant(
        "a compaction goes on with an index that was opened again meanwhile",
        "ambry/storage/compactor.py",
        "        if self._host.indexes_reopened != self._opening:\n",
        "        if False:\n",
        _INDEX,
    ),
    Mutant(
        "totals stay as they were when the index is opened again",
        "ambry/storage/store.py",
        "            self._index, self._late, self._accounts = reopened.index, reopened.late, reopened.accounts\n",
        "            self._index, self._late = reopened.index, reopened.late\n",
        _INDEX,
    ),
    Mutant(
        "what asks the index goes on while that lacks a group",
        "ambry/storage/store.py",
        "        if self._reopenings.reason is not None:\n            raise",
        "        if False:\n            raise",
        _INDEX,
    ),
    Mutant(
        "the index keeps what it knows of a replica that is gone",
        "ambry/storage/recovery.py",
        "    gone = () if rebuilds else _forget_gone(index, replicas)\n",
        "    gone: tuple[int, ...] = ()\n",
    ),
    Mutant(
        "journal is not synced before the answer",
        "ambry/storage/journal.py",
        "            self._file.pwrite([data], offset)\n            self._file.sync()\n",
        "            self._file.pwrite([data], offset)\n",
    ),
    Mutant(
        "large body is not synced in its log",
        "ambry/storage/commit.py",
        "            run.segment.file.sync()\n",
        "",
    ),
    Mutant(
        "checkpoint does not sync the logs",
        "ambry/storage/checkpoint.py",
        "            segment.file.sync()\n        except",
        "            pass\n        except",
    ),
    Mutant(
        "checkpoint does not flush the index",
        "ambry/storage/store.py",
        "        self.flush_index()\n        if plan.replaces_journal:\n",
        "        if plan.replaces_journal:\n",
    ),
    Mutant(
        "index before the journal",
        "ambry/storage/store.py",
        "            if group.count and (is_taken := self._takes(group)):\n",
        "            if group.count:\n"
        "                self._index.write(group.index_batch(self._accounts, self._late, self._journal.sequence + 1))\n"
        "            if group.count and (is_taken := self._takes(group)):\n",
    ),
    Mutant(
        "an LSN is given out twice",
        "ambry/storage/commit.py",
        "        self.next_lsn = lsn + 1\n",
        "        self.next_lsn = lsn + lsn % 2\n",
    ),
    Mutant(
        "the epoch is not raised",
        "ambry/storage/recovery.py",
        "epoch = max(meta.epoch, checkpoint.epoch) + 1",
        "epoch = max(meta.epoch, checkpoint.epoch, 1)",
    ),
    Mutant(
        "the last group of the journal is dropped",
        "ambry/storage/recovery.py",
        "        journal.secure(groups)\n        if previous is not None:\n",
        "        journal.secure(groups)\n        if previous is not None and self.groups < 0:\n",
    ),
    Mutant(
        "recovery does not secure what it read",
        "ambry/storage/recovery.py",
        "        journal.secure(groups)\n",
        "",
    ),
    Mutant(
        "life is not joined",
        "ambry/storage/index_entry.py",
        "        life=max(header.life, entry.life),\n",
        "        life=header.life,\n",
        ("tests/storage/test_index_entry.py",),
    ),
    Mutant(
        "expiry is not joined",
        "ambry/storage/index_entry.py",
        "        expires_at_ms=max(header.expires_at_ms, entry.expires_at_ms),\n",
        "        expires_at_ms=entry.expires_at_ms,\n",
    ),
    Mutant(
        "the body's checksums are ignored",
        "ambry/storage/record.py",
        "    if not blocks_match(view[header.body_offset : vector_at], view[vector_at:vector_end]):\n",
        "    if False:\n",
        ("tests/storage/test_quarantine.py", "tests/golden"),
    ),
    Mutant(
        "the header's checksum is ignored by reads",
        "ambry/storage/record.py",
        "        xxh3_64_intdigest(view[:CHECKED_SIZE], seed) != header_sum\n        or magic",
        "        magic",
        _QUARANTINE,
    ),
    Mutant(
        "a failed write keeps its place",
        "ambry/storage/commit.py",
        "        run.segment.end = run.start\n",
        "",
    ),
    Mutant(
        "a failed write answers those who lean on it",
        "ambry/storage/commit.py",
        "            if cause is not None:\n",
        "            if cause is not None and False:\n",
        _COMPACTION,
    ),
    Mutant(
        "a sealed segment's length is written before its sync",
        "ambry/storage/replica.py",
        "        if former is not None:\n",
        "        if former is not None:\n            self.open_ended.discard(former.number)\n",
    ),
    Mutant(
        "a new segment is not listed before its records",
        "ambry/storage/replica.py",
        "        write_replica_meta(disk, self.meta(number))\n",
        "",
    ),
    Mutant(
        "compaction does not sync its copies",
        "ambry/storage/compactor.py",
        "        self._disk.run_all([segment.file.sync for segment in self._work.outputs])\n",
        "",
        _COMPACTION,
    ),
    Mutant(
        "compaction moves before it lists its copies",
        "ambry/storage/compactor.py",
        "                self._replica.adopt(self._disk, work.outputs)\n",
        "                self._replica.segments.update({one.number: one for one in work.outputs})\n",
        _COMPACTION,
    ),
    Mutant(
        "compaction does not flush the index before the old segments go",
        "ambry/storage/compactor.py",
        "        self._host.flush_index()\n",
        "",
        _COMPACTION,
    ),
    Mutant(
        "compaction loses tombstones",
        "ambry/storage/compaction_plan.py",
        "        return Fate.BURY\n",
        "        return Fate.FORGET\n",
        _COMPACTION,
    ),
    Mutant(
        "compaction drops the newest change of a blob",
        "ambry/storage/compaction_plan.py",
        "    return header.kind is not RecordKind.PUT and entry.has_body and header.lsn == entry.lsn\n",
        "    return False\n",
        ("tests/storage/test_index_entry.py",),
    ),
    Mutant(
        "compaction does not look again before it moves",
        "ambry/storage/compactor.py",
        "        elif entry.lsn != move.seen.lsn:\n            return False\n",
        "",
        _COMPACTION,
    ),
    Mutant(
        "compaction frees a segment with damage that is needed",
        "ambry/storage/compactor.py",
        "            self._work.damaged.add(source.number)\n",
        "            pass\n",
        _COMPACTION,
    ),
    Mutant(
        "compaction forgets what changed while it copied",
        "ambry/storage/compactor.py",
        "        return {move.source for move in changed}\n",
        "        return set()\n",
        _COMPACTION,
    ),
    Mutant(
        "another round of a compaction moves what the first one has moved",
        "ambry/storage/compactor.py",
        "            work.outputs, work.numbers = [], []\n",
        "",
        _COMPACTION,
    ),
    Mutant(
        "a file is closed under a read of it",
        "ambry/storage/open_files.py",
        "            if not self._busy:\n                number, self._number = self._number, -1\n",
        "            number, self._number = self._number, -1\n",
        ("tests/storage/test_open_files.py",),
    ),
    Mutant(
        "compaction takes the segment that scrub is reading",
        "ambry/datanode/upkeep.py",
        " or (partition, one.number) == self._scrubbed:",
        ":",
        _UPKEEP,
    ),
    Mutant(
        "scrub keeps compaction waiting on a disk that is short of room",
        "ambry/datanode/upkeep.py",
        "            pace(size)\n            between()\n",
        "            pace(size)\n",
        _UPKEEP,
    ),
    Mutant(
        "compaction trusts totals of what is kept for its retention",
        "ambry/datanode/upkeep.py",
        "        return not keeps_dead and self",
        "        return self",
        _UPKEEP,
    ),
    Mutant(
        "a stopped compaction leaves its files",
        "ambry/storage/compactor.py",
        "            self._disk.remove(segment_path(self._replica.partition, number))\n",
        "            pass\n",
        _COMPACTION,
    ),
    Mutant(
        "the last change of a group does not win",
        "ambry/storage/commit.py",
        "self._batches.setdefault(replica.partition, [])",
        "self._batches.setdefault(len(self._batches) + 1000 * replica.partition, [])",
        _COMPACTION,
    ),
    Mutant(
        "retention of deleted blobs is not kept",
        "ambry/storage/compaction_plan.py",
        "entry.time_ms + retention.deleted_ms <= now_ms",
        "entry.time_ms <= now_ms",
        (*_UPKEEP, *_COMPACTION),
    ),
    Mutant(
        "small segments go along however little is freed",
        "ambry/storage/compaction_plan.py",
        "    left = min(left, sum(one.garbage_bytes for one in chosen.values()))\n",
        "",
        _COMPACTION,
    ),
    Mutant(
        "small segments of another expiry class go along",
        "ambry/storage/compaction_plan.py",
        " and one.expiry_class == worthy[0].expiry_class\n",
        "\n",
        _COMPACTION,
    ),
    Mutant(
        "small segments without garbage are never merged",
        "ambry/storage/compaction_plan.py",
        "        if len(members) >= SMALL_SHARE:\n",
        "        if not members:\n",
        _COMPACTION,
    ),
    Mutant(
        "what was appended after a look at a segment is taken for garbage",
        "ambry/storage/survey.py",
        "max(size - self.seen_bytes, 0)",
        "0",
        _UPKEEP,
    ),
    Mutant(
        "scrub never comes back to a segment",
        "ambry/datanode/upkeep.py",
        "        segments.sort()\n",
        "        segments.sort(reverse=True)\n",
        _UPKEEP,
    ),
    Mutant(
        "a hole is not queued for repair",
        "ambry/storage/commit.py",
        "            if not entry.life & 1:\n                run.batch.append((repair_key(key), self._hole_row",
        "            if entry.life & 1:\n                run.batch.append((repair_key(key), self._hole_row",
        _QUARANTINE,
    ),
    Mutant(
        "a repaired blob stays in the queue",
        "ambry/storage/commit.py",
        "            run.batch.append((repair_key(key), None))\n            new_value",
        "            new_value",
        _QUARANTINE,
    ),
    Mutant(
        "held records are forgotten unwritten",
        "ambry/storage/tail.py",
        "        write_records(segment, records)\n        self.let_go",
        "        self.let_go",
        _LOGS,
    ),
    Mutant(
        "a checkpoint does not write what is held",
        "ambry/storage/checkpoint.py",
        "                write_records(segment, plan.held[segment])\n",
        "                pass\n",
        _LOGS,
    ),
    Mutant(
        "what a failed log lost is not fetched from the journal",
        "ambry/storage/store.py",
        "        self._tails.keep(segment, ((entry.offset, bytes(entry.data)) for entry in entries))\n",
        "        self._tails.keep(segment, [(entry.offset, bytes(entry.data)) for entry in entries][:0])\n",
        _LOGS,
    ),
    Mutant(
        "a failed log takes more records",
        "ambry/storage/replica.py",
        "            del self.active[segment.expiry_class]\n            self.sealed_size += segment.end\n",
        "            pass\n",
        _LOGS,
    ),
    Mutant(
        "a failed log is cut back before its records are elsewhere",
        "ambry/storage/store.py",
        "                    relocation.relocate(segment)\n",
        "                    pass\n",
        _LOGS,
    ),
    Mutant(
        "a group that the journal did not take is acknowledged",
        "ambry/storage/store.py",
        "            group.undo()\n            return False\n",
        "            return True\n",
        _JOURNAL,
    ),
    Mutant(
        "a sync of the journal that failed is tried again",
        "ambry/storage/journal.py",
        "        except DiskUnavailable as error:\n            self.failure = error.as_answer()\n            raise\n",
        "        except DiskUnavailable:\n            pass\n",
        _JOURNAL,
    ),
    Mutant(
        "a refused group keeps its place",
        "ambry/storage/store.py",
        "            group.undo()\n",
        "",
        _JOURNAL,
    ),
    Mutant(
        "a refused group stays in memory",
        "ambry/storage/commit.py",
        "                self._tails.let_go(run.segment, tuple(zip(run.offsets, run.journal, strict=True)))\n",
        "                pass\n",
        _JOURNAL,
    ),
    Mutant(
        "a failed journal is replaced before the index is flushed",
        "ambry/storage/store.py",
        "        self.flush_index()\n        if plan.replaces_journal:\n",
        "        if not plan.replaces_journal:\n            self.flush_index()\n        if plan.replaces_journal:\n",
        _JOURNAL,
    ),
    Mutant(
        "another journal begins before its name is durable",
        "ambry/storage/journal.py",
        '        disk.rename(NEXT_PATH, PATH)\n        disk.sync_folder("")\n',
        "        disk.rename(NEXT_PATH, PATH)\n",
        _JOURNAL,
    ),
    Mutant(
        "another journal does not know the ends of the logs",
        "ambry/storage/store.py",
        "Checkpoint(self._generation + 1, RING_AT, sequence, epoch, plan.ends)",
        "Checkpoint(self._generation + 1, RING_AT, sequence, epoch, ())",
        _JOURNAL,
    ),
    Mutant(
        "another journal begins behind a group that it does not have",
        "ambry/storage/store.py",
        "Checkpoint(self._generation + 1, RING_AT, sequence, epoch, plan.ends)",
        "Checkpoint(self._generation + 1, RING_AT, sequence + 1, epoch, plan.ends)",
        _JOURNAL,
    ),
    Mutant(
        "lengths of segments are written down while a refused group may come back",
        "ambry/storage/store.py",
        "        if plan.replaces_journal:\n            # Lengths",
        "        with self._lock:\n            for replica, closed in plan.closed:\n"
        "                replica.close_ends(self._disk, closed)\n"
        "        if plan.replaces_journal:\n            # Lengths",
        _JOURNAL,
    ),
    Mutant(
        "a log that is set aside takes records of a refused group",
        "ambry/storage/journal.py",
        "            if group.sequence > self.sequence:\n",
        "            if False:\n",
        _JOURNAL,
    ),
    Mutant(
        "a log is set aside although the journal cannot be read",
        "ambry/storage/journal.py",
        "        if groups.sequence < self.sequence:\n",
        "        if False:\n",
        _JOURNAL,
    ),
    Mutant(
        "journals are replaced for ever",
        "ambry/storage/store.py",
        "        if self.journals_replaced >= JOURNAL_FAILURES_MAX:\n",
        "        if False:\n",
        _JOURNAL,
    ),
    Mutant(
        "what the logs have of a discarded journal is cut off",
        "ambry/storage/salvage.py",
        "    segment.end = last\n",
        "    segment.end = known\n",
        ("tests/cli/test_discard_journal.py",),
    ),
    Mutant(
        "a damaged block of the index goes unnoticed",
        "ambry/storage/rocks_index.py",
        "            self.damage = self.damage or reason\n",
        "            pass\n",
        _FAULTS,
    ),
    Mutant(
        "a record that cannot be read is given up although nobody else has it",
        "ambry/storage/store.py",
        "in_parts=self.has_peers)",
        "in_parts=True)",
        _FAULTS,
    ),
    Mutant(
        "a disk that reads nothing has its records quarantined",
        "ambry/storage/restoring.py",
        "        segment.file.pread(DATA_OFFSET, 0)\n        for at",
        "        for at",
        _FAULTS,
    ),
    Mutant(
        "the journal's descriptor is given up",
        "ambry/storage/open_files.py",
        "self.is_unsynced or self.is_kept or",
        "self.is_unsynced or",
        ("tests/storage/test_open_files.py", *_FAULTS),
    ),
    Mutant(
        "a log that finds no descriptor counts as failed",
        "ambry/storage/disk.py",
        "    return isinstance(error, DiskFull) or lacks_descriptors(error)\n",
        "    return isinstance(error, DiskFull)\n",
        _DESCRIPTORS,
    ),
    Mutant(
        "logs with unsynced bytes keep the descriptors that the index waits for",
        "ambry/storage/store.py",
        "            assert plan is not None\n            try:\n                self._write_and_sync(plan)\n",
        "            raise\n            try:\n                self._write_and_sync(plan)\n",
        _DESCRIPTORS,
    ),
    Mutant(
        "a log that finds no descriptor is not tried again when the others are synced",
        "ambry/storage/checkpoint.py",
        "if lacks_descriptors(error)]:",
        "if not error]:",
        _DESCRIPTORS,
    ),
    Mutant(
        "what cannot be opened for want of a descriptor is taken for damage",
        "ambry/storage/segment.py",
        "        if lacks_descriptors(error):\n",
        "        if offset < 0:\n",
        _DESCRIPTORS,
    ),
    Mutant(
        "damage in the middle of the journal is taken for its end",
        "ambry/storage/recovery.py",
        "    if applied > groups.sequence or groups.is_cut_short():\n",
        "    if applied > groups.sequence:\n",
        _QUARANTINE,
    ),
    Mutant(
        "a state whose record is damaged is not written again",
        "ambry/storage/restoring.py",
        "        if segment is not None and _state_is_elsewhere(segment, entry):\n",
        "        if segment is None:\n",
        _QUARANTINE,
    ),
    Mutant(
        "scrub passes over the header of a segment",
        "ambry/storage/restoring.py",
        "        found[segment_path(replica.partition, segment.number)] = lambda: _write_header(replica, segment)\n",
        "        pass\n",
        _QUARANTINE,
    ),
    Mutant(
        "what the older checkpoint needs of the journal is erased",
        "ambry/storage/journal.py",
        "        needed = [*self._between(older, newer, is_wrapped=newer_lap > older_lap)]\n",
        "        needed: list[tuple[int, int]] = []\n",
        _ERASURE,
    ),
    Mutant(
        "groups that no checkpoint has are erased from the journal",
        "ambry/storage/journal.py",
        "        if not self._is_empty:\n            needed +=",
        "        if False:\n            needed +=",
        _ERASURE,
    ),
    Mutant(
        "the end of a lap is not erased from the journal",
        "ambry/storage/journal.py",
        "            yield first, max(self._lap_end, first)\n",
        "            yield first, self._usable_end\n",
        _ERASURE,
    ),
    Mutant(
        "that bytes left the logs which have to be erased is not noted",
        "ambry/storage/compactor.py",
        "                self._host.note_freed(self._work.erase_by_ms)\n",
        "                pass\n",
        _ERASURE,
    ),
    Mutant(
        "what leaves the logs while the journal is erased is forgotten",
        "ambry/storage/erasures.py",
        "            if notes == self._notes:\n",
        "            if notes <= self._notes:\n",
        _ERASURE,
    ),
    Mutant(
        "what is in quarantine is not erased",
        "ambry/datanode/upkeep.py",
        "        due = [one for one in remnants if one.erase_at_ms <= now_ms]\n",
        "        due: list[Remnant] = []\n",
        _ERASURE,
    ),
    Mutant(
        "the journal is not erased",
        "ambry/datanode/upkeep.py",
        "            self._store.erase_journal(self._compaction_pace)\n",
        "            self._store.erasures.erased(self._store.erasures.notes)\n",
        _ERASURE,
    ),
    Mutant(
        "late rows of settled groups count",
        "ambry/storage/late_rows.py",
        "        if settled < written <= sequence:\n",
        "        if written != settled:\n",
        (*_LOGS, *_COMPACTION),
    ),
)


def survives(mutant: Mutant, folder: Path, seconds_max: float) -> str:
    """What `first_failure` says of a mutant. `folder` is a copy of the tree."""
    path = folder / mutant.path
    source = path.read_text(encoding="utf-8")
    assert source.count(mutant.old) == 1, f"{mutant.name}: its place is gone"
    path.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        return first_failure(mutant.tests, folder, seconds_max)
    finally:
        path.write_text(source, encoding="utf-8")


def first_failure(tests: tuple[str, ...], folder: Path, seconds_max: float) -> str:
    """The first of these tests that fails in a copy of the tree, or the empty string.

    UNDECIDED if it takes longer than `seconds_max`; NOT_LOADED and the module when one of them cannot be imported.
    """
    environment = {key: os.environ[key] for key in PASSED_ON if key in os.environ}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", *tests],
            cwd=folder,
            env={**environment, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=seconds_max,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return UNDECIDED
    # In the summary, not among the lines of a log: those have more spaces. What is chosen of a test may have some, too.
    failed = re.search(r"^(?:FAILED|ERROR) (\S+\[.*?\]|\S+)(?: - |$)", done.stdout, re.MULTILINE)
    # A process that was killed, or killed itself at the time limit of a test, names no test.
    if not failed:
        return UNDECIDED if done.returncode else ""
    return failed[1] if "::" in failed[1] else f"{NOT_LOADED} {failed[1]}"


def prove_mutants(chosen: int, seconds: float) -> dict[str, object]:
    """As many mutants of the engine as the time allows."""
    return prove_all(MUTANTS, chosen, seconds)


def prove_cluster_mutants(chosen: int, seconds: float) -> dict[str, object]:
    """As many mutants of the code around quorums as the time allows."""
    return prove_all(CLUSTER_MUTANTS, chosen, seconds)


def prove_all(mutants: tuple[Mutant, ...], chosen: int, seconds: float) -> dict[str, object]:
    """As many mutants as the time allows, in an order of chance: which test caught each, and which escaped."""
    order = list(mutants)
    random.Random(chosen).shuffle(order)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in PARTS:
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        found = try_all(order, folder, time.monotonic() + seconds)
    return {
        "mutants": len(mutants),
        "caught": {name: test for name, test in found.items() if is_caught(test)},
        "escaped": [
            f"{name} {test}".strip() for name, test in found.items() if not (is_caught(test) or test == UNDECIDED)
        ],
        "undecided": [name for name, test in found.items() if test == UNDECIDED],
    }


def is_caught(test: str) -> bool:
    """Whether what `try_all` found of a mutant is the name of a test."""
    return test != UNDECIDED and not is_not_caught(test)


def is_not_caught(test: str) -> bool:
    """Whether it says that the mutant escaped."""
    return not test or test.startswith((FALSE, NOT_LOADED))


def try_all(mutants: Sequence[Mutant], folder: Path, end_s: float) -> dict[str, str]:
    """What caught each mutant that there was time for, in a copy of the tree: a test, or one of the words above."""
    found: dict[str, str] = {}
    without_bugs: dict[str, str] = {}
    for mutant in mutants:
        if time.monotonic() >= end_s:
            break
        test = survives(mutant, folder, SECONDS_MAX)
        if is_caught(test):
            # A test that fails anyway, say for want of a program, has caught nothing.
            if test not in without_bugs:
                without_bugs[test] = first_failure((test,), folder, SECONDS_MAX)
            if without_bugs[test]:
                test = f"{FALSE} {test}"
        found[mutant.name] = test
        print(f"  {mutant.name}: {test or 'ESCAPED'}", flush=True)
    return found
