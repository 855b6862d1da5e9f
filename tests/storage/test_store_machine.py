"""The engine against a dictionary, with power cuts, kills, failing syncs and lost indexes at any moment.

Acknowledged means there and equal, for ever; not acknowledged means absent or complete, and which of the two is
decided once. After every recovery the same store is used on. What the run must have met is asserted at its end.
"""

from collections import Counter
from dataclasses import replace
from typing import Final

from hypothesis import HealthCheck, Phase, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from ambry.blob.requests import Change, GetRequest, PutRequest
from ambry.blob.state import NEVER, BlobState
from ambry.errors import AmbryError, DiskFull, DiskUnavailable
from ambry.limits import JOURNAL_BODY_BYTES_MAX, KIB
from ambry.storage.commit import Mutation
from ambry.storage.journal import RING_AT
from ambry.storage.sim_disk import PowerCut
from tests.storage.engine import TINY, WHOLE, World, blob_id, body_of, put, update

_FOR_EVER_MS = 10**15

HITS: Counter[str] = Counter()

_identities = st.builds(
    blob_id,
    st.integers(0, 40),
    partition=st.sampled_from([1, 1, 1, 2]),
    container=st.sampled_from([1, 1, 1, 1, 1, 2]),
)
_bodies = st.builds(
    body_of,
    st.integers(0, 3),
    st.sampled_from(
        [0, 500, 3000, 3001, 5000, 9000, 64 * KIB, JOURNAL_BODY_BYTES_MAX + 1, JOURNAL_BODY_BYTES_MAX + 70_000]
    ),
)
_small_bodies = st.builds(body_of, st.integers(0, 3), st.sampled_from([0, 1, 500, 3000, 3001]))
_expiries = st.sampled_from([0, 1000, 2000, NEVER])
_states = st.builds(BlobState, st.integers(0, 3), _expiries)
_puts = st.builds(
    put, _identities, _bodies, expires_at_ms=_expiries, properties=st.sampled_from([b"", b"p", b"q" * 300])
)
_changes = st.sampled_from([Change.DELETE, Change.DELETE, Change.UNDELETE, Change.EXTEND, Change.JOIN])
_updates = st.builds(update, _identities, _changes, _states, time_ms=st.integers(1, 9))


def _fitting(group: list[Mutation]) -> list[Mutation]:
    """As much of a group as the tiny journal takes."""
    size = 1000
    for count, request in enumerate(group):
        size += 700
        if isinstance(request, PutRequest) and len(request.body) <= JOURNAL_BODY_BYTES_MAX:
            size += len(request.body)
        if size > TINY.journal_bytes - RING_AT:
            return group[:count]
    return group


_groups = st.lists(_puts | _updates, min_size=1, max_size=12).map(_fitting)
_endings = st.sampled_from(["crash", "crash", "kill"])
_cuts = st.lists(st.tuples(st.integers(1, 25), _endings), max_size=2)


class StoreMachine(RuleBasedStateMachine):
    """One disk and what happens to it."""

    @initialize(
        seed=st.integers(0, 2**32), retention_ms=st.sampled_from([0, _FOR_EVER_MS, _FOR_EVER_MS]), is_used=st.booleans()
    )
    def start(self, seed: int, retention_ms: int, *, is_used: bool) -> None:
        settings = replace(TINY, deleted_retention_ms=retention_ms, expired_retention_ms=retention_ms)
        self.world = World(settings, seed=seed)
        self.world.open()
        if is_used:
            # Sealed segments with garbage in them, so that compaction has something to do from the start.
            for first in range(0, 12, 4):
                group: list[Mutation] = [put(blob_id(n), body_of(n % 4, 5000)) for n in range(first, first + 4)]
                assert self.world.commit(group) is not None
            self.world.commit([update(blob_id(n), Change.DELETE) for n in range(0, 12, 3)])
            self.world.store.checkpoint()

    # --- use ---------------------------------------------------------------------------------------------------

    @rule(group=_groups)
    def commit(self, group: list[Mutation]) -> None:
        assert self.world.commit(group) is not None
        for request in group:
            self.world.check_read(GetRequest(request.blob_id, 0, WHOLE, include_deleted=True))

    @rule(always=st.booleans())
    def checkpoint(self, always: bool) -> None:
        self.world.store.checkpoint(always=always)

    @rule(identity=_identities, start=st.integers(0, 200_000), size=st.integers(0, 200_000), dead=st.booleans())
    def read_a_range(self, identity: bytes, start: int, size: int, dead: bool) -> None:
        self.world.check_read(GetRequest(identity, start, start + size, include_deleted=dead))

    @rule(disk_is_cold=st.booleans(), index_is_cold=st.booleans())
    def change_the_weather(self, disk_is_cold: bool, index_is_cold: bool) -> None:
        self.world.disk.is_cold = disk_is_cold
        self.world.source.index.is_cold = index_is_cold

    # --- compaction --------------------------------------------------------------------------------------------

    @rule(partition=st.sampled_from([1, 1, 2]), ratio=st.sampled_from([0.0, 0.0, 0.3]))
    def compact(self, partition: int, ratio: float) -> None:
        self.world.store.checkpoint()
        self.world.compact(partition, ratio)

    @rule(steps=st.integers(1, 30), ending=_endings, cuts=_cuts)
    def stop_in_a_compaction(self, steps: int, ending: str, cuts: list[tuple[int, str]]) -> None:
        self.world.store.checkpoint()
        self.world.disk.stop_after(steps)
        self.world.compact(everything=True)
        if self.world.disk.is_off:
            HITS["cut during compaction"] += 1
            self.end(ending)
            self.reopen(cuts)
        else:
            self.world.disk.stop_after(None)

    @rule(
        fault=st.sampled_from(["pread", "pwrite", "sync", "replace", "flush", "write"]),
        nth=st.integers(1, 6),
        error=st.sampled_from([DiskFull, DiskUnavailable]),
        ending=_endings,
        cuts=_cuts,
    )
    def fail_in_a_compaction(
        self, fault: str, nth: int, error: type[AmbryError], ending: str, cuts: list[tuple[int, str]]
    ) -> None:
        """Before it lists what it wrote, a compaction that fails is no failure of the store."""
        self.world.store.checkpoint()
        if fault in {"flush", "write"}:
            self.world.source.index.fail(fault, error, nth)
        else:
            self.world.disk.fail(fault, nth, error, path="partitions")
        self.world.compact(everything=True)
        self.world.disk.clear_faults()
        self.world.source.index.clear_faults()
        if self.world.store.failure is not None:
            self.recover_from_failure(ending, cuts)
        elif not self.world.store.is_writable:
            self.go_on_after_a_checkpoint(ending, cuts)

    @rule(group=_groups, at=st.integers(1, 20))
    def commit_beside_a_compaction(self, group: list[Mutation], at: int) -> None:
        """Also between the look at a record and the move of its entry."""
        calls = 0

        def commit_once(_: int) -> None:
            nonlocal calls
            calls += 1
            if calls == at:
                HITS["commit beside compaction"] += 1
                assert self.world.commit(group) is not None

        self.world.store.checkpoint()
        self.world.compact(everything=True, pace=commit_once)

    # --- the end, and what comes after -------------------------------------------------------------------------

    def end(self, ending: str) -> None:
        if ending == "crash":
            self.world.crash()
        else:
            self.world.kill()

    def reopen(self, cuts: list[tuple[int, str]]) -> None:
        """Open the store again; before that, as many attempts are cut off."""
        for steps, ending in cuts:
            self.world.disk.stop_after(steps)
            try:
                self.world.open()
            except PowerCut:
                HITS["cut during recovery"] += 1
                self.end(ending)
            else:
                self.world.disk.stop_after(None)
                self.world.check()
        self.world.open()
        self.world.check()

    @rule(ending=_endings, cuts=_cuts)
    def stop_at_rest(self, ending: str, cuts: list[tuple[int, str]]) -> None:
        self.end(ending)
        self.reopen(cuts)

    @rule(group=_groups, steps=st.integers(1, 12), ending=_endings, cuts=_cuts)
    def stop_in_a_commit(self, group: list[Mutation], steps: int, ending: str, cuts: list[tuple[int, str]]) -> None:
        self.world.disk.stop_after(steps)
        answers = self.world.commit(group)
        if answers is None:
            self.end(ending)
            self.reopen(cuts)
        else:
            self.world.disk.stop_after(None)

    @rule(steps=st.integers(1, 8), ending=_endings, cuts=_cuts)
    def stop_in_a_checkpoint(self, steps: int, ending: str, cuts: list[tuple[int, str]]) -> None:
        self.world.disk.stop_after(steps)
        try:
            self.world.store.checkpoint(always=True)
        except PowerCut:
            HITS["cut during checkpoint"] += 1
            self.end(ending)
            self.reopen(cuts)
        else:
            self.world.disk.stop_after(None)

    @rule()
    def close_and_open(self) -> None:
        self.world.close()
        assert self.world.open().records_redone == 0
        self.world.check()

    @rule(ending=_endings, cuts=_cuts)
    def lose_the_index(self, ending: str, cuts: list[tuple[int, str]]) -> None:
        self.end(ending)
        self.world.discard_index()
        self.reopen(cuts)

    # --- trouble -----------------------------------------------------------------------------------------------

    @rule(
        group=_groups,
        fault=st.sampled_from(
            [
                ("sync", "journal"),
                ("pwrite", "journal"),
                ("write", ""),
                ("sync", "partitions"),
                ("create", "partitions"),
                ("replace", "partitions"),
            ]
        ),
        done=st.integers(0, 2) | st.integers(3, 2000),
        ending=_endings,
        cuts=_cuts,
    )
    def fail_in_a_commit(
        self, group: list[Mutation], fault: tuple[str, str], done: int, ending: str, cuts: list[tuple[int, str]]
    ) -> None:
        operation, path = fault
        if operation == "write":
            self.world.source.index.fail("write", DiskFull)
        else:
            self.world.disk.fail(operation, 1, DiskUnavailable, path=path, done=done)
        answers = self.world.commit(group, DiskUnavailable)
        if answers is None and self.world.store.failure is None:
            self.go_on_after_a_checkpoint(ending, cuts)
        elif answers is None:
            self.recover_from_failure(ending, cuts)
        else:
            self.world.disk.clear_faults()
            self.world.source.index.clear_faults()

    @rule(
        fault=st.sampled_from([("sync", "journal"), ("sync", "partitions"), ("replace", ""), ("flush", "")]),
        done=st.integers(0, 2),
        ending=_endings,
        cuts=_cuts,
    )
    def fail_in_a_checkpoint(self, fault: tuple[str, str], done: int, ending: str, cuts: list[tuple[int, str]]) -> None:
        operation, path = fault
        if operation == "flush":
            self.world.source.index.fail("flush", DiskUnavailable)
        else:
            self.world.disk.fail(operation, 1, DiskUnavailable, path=path, done=done)
        try:
            self.world.store.checkpoint(always=True)
        except AmbryError:
            if self.world.store.failure is None:
                self.go_on_after_a_checkpoint(ending, cuts)
            else:
                self.recover_from_failure(ending, cuts)
        else:
            self.world.hits["journal replaced"] += operation == "sync" and path == "journal"
            self.world.disk.clear_faults()

    def go_on_after_a_checkpoint(self, ending: str, cuts: list[tuple[int, str]]) -> None:
        """The next checkpoint lets another journal take the failed one's place, or opens the failed index again.

        A group at which the journal failed is not there, and may be after a crash until that is done. One at which the
        index failed is there when it is done, and after a crash before that.
        """
        world = self.world
        world.disk.clear_faults()
        world.source.index.clear_faults()
        is_of_index = not world.store.is_writable
        if len(cuts) == 1:
            self.end(ending)
            self.reopen(cuts)
            return
        # Not settled before: what a crash in the middle makes of the group is only seen after it.
        world.disk.stop_after(cuts[0][0] if cuts else None)
        try:
            world.store.checkpoint()
        except PowerCut:
            HITS["cut while journal or index is replaced"] += 1
            self.end(ending)
            self.reopen(cuts)
        except DiskUnavailable:
            # Too often: the log of a large body may have failed before, and other journals.
            self.recover_from_failure(ending, cuts)
        else:
            world.disk.stop_after(None)
            world.hits["index opened again" if is_of_index else "journal replaced"] += 1
            assert world.store.is_writable
            world.check()
            self.end(ending)
            self.reopen([])

    def recover_from_failure(self, ending: str, cuts: list[tuple[int, str]]) -> None:
        """The store takes nothing more and reads on; the next opening has everything that was acknowledged."""
        HITS["store failed"] += 1
        assert self.world.store.failure is not None
        try:
            self.world.store.commit([update(blob_id(1), Change.DELETE)])
        except DiskUnavailable:
            pass
        else:
            raise AssertionError("a store that has failed took a commit")
        self.world.disk.clear_faults()
        self.world.check()
        self.end(ending)
        self.reopen(cuts)

    @rule(request=_puts | _updates, done=st.integers(0, 5000), full=st.booleans())
    def fail_to_write_one_record(self, request: Mutation, done: int, full: bool) -> None:
        """A write to a log that fails is that request's failure and nobody else's."""
        error = DiskFull if full else DiskUnavailable
        self.world.disk.fail("pwrite", 1, error, path="partitions", done=done)
        if self.world.commit([request], error) is None:
            # The journal had no room, and the checkpoint that was to make some was what met the full disk.
            assert full
            assert self.world.store.failure is None
            self.world.models = self.world.models[:1]
            HITS["no room for a commit"] += 1
        self.world.disk.clear_faults()
        self.world.check_read(GetRequest(request.blob_id, 0, WHOLE, include_deleted=True))

    @rule()
    def look_at_everything(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            # A step that found a bug may have left the disk in any state.
            self.world.kill()
            self.world.open()
            self.world.close()
            self.world.open()
            self.world.check()
            HITS.update(self.world.hits)
            for hit in self.world.hits:
                event(hit)


BRANCHES: Final = frozenset(
    {
        "journal wrapped",
        "segment rolled",
        "index behind",
        "index rebuilt",
        "power cut",
        "killed",
        "cut group there",
        "cut group lost",
        "cut during recovery",
        "cut during checkpoint",
        "cut during compaction",
        "commit beside compaction",
        "compacted",
        "records copied",
        "forgotten",
        "buried",
        "journal replaced",
        "index opened again",
        "store failed",
        "request in trouble",
    }
)
"""What a run of more than a few episodes must have met."""

_ROUNDS_MAX: Final = 6


def test_the_store_is_a_dictionary_that_survives() -> None:
    HITS.clear()
    # A rare branch may need another fifty examples; one that cannot be reached never comes.
    for _ in range(_ROUNDS_MAX):
        run_state_machine_as_test(
            StoreMachine,
            settings=settings(
                max_examples=50,
                stateful_step_count=30,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                # To explain a failure, Hypothesis traces every line, and takes longer than everything else together.
                phases=[Phase.reuse, Phase.generate, Phase.shrink],
            ),
        )
        if all(HITS[hit] for hit in BRANCHES):
            break
    assert {hit for hit in BRANCHES if not HITS[hit]} == set()
