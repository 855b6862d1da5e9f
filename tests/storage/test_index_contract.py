"""What the engine relies on, asked of every Index, by hand and against a dictionary."""

import random
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ambry.errors import DirectoryInUse, DiskFull, DiskUnavailable
from ambry.limits import KIB, MIB
from ambry.storage.index import Index, IndexSource
from ambry.storage.rocks_index import RocksIndex, RocksIndexSource
from ambry.storage.sim_index import SimIndex, SimIndexSource


def rocks(path: Path) -> RocksIndex:
    return RocksIndex(path, cache_bytes=1 * MIB, memtable_bytes=1 * MIB)


@pytest.fixture(params=["rocks", "simulated"])
def index(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Index]:
    opened: Index = rocks(tmp_path / "index") if request.param == "rocks" else SimIndex()
    yield opened
    opened.close()


def test_an_empty_index_has_nothing(index: Index) -> None:
    assert index.get(b"a") is None
    assert index.get_now(b"a") == (True, None)
    assert index.get_many([b"a", b"b"]) == [None, None]
    assert index.get_many([]) == []
    assert index.scan(b"", b"\xff", 10) == []


def test_a_batch_is_visible_at_once(index: Index) -> None:
    index.write([(b"a", b"1"), (b"b", b""), (b"c", b"3")])
    assert index.get(b"a") == b"1"
    assert index.get(b"b") == b""
    assert index.get_now(b"b") == (True, b"")
    assert index.get_now(b"c") == (True, b"3")
    assert index.get_many([b"c", b"x", b"a", b"c"]) == [b"3", None, b"1", b"3"]


def test_the_last_of_a_batch_wins(index: Index) -> None:
    index.write([(b"a", b"1"), (b"a", b"2"), (b"b", b"1"), (b"b", None), (b"c", None), (b"c", b"1")])
    assert index.get_many([b"a", b"b", b"c"]) == [b"2", None, b"1"]
    assert index.scan(b"", b"\xff", 10) == [(b"a", b"2"), (b"c", b"1")]


def test_what_is_deleted_is_certainly_absent(index: Index) -> None:
    index.write([(b"a", b"1"), (b"b", b"1")])
    index.flush()
    index.write([(b"a", None), (b"never there", None)])
    assert index.get(b"a") is None
    assert index.get_now(b"a") == (True, None)
    index.flush()
    assert index.get_many([b"a", b"b"]) == [None, b"1"]
    is_certain, value = index.get_now(b"a")
    assert value is None
    assert is_certain or index.get(b"a") is None


def test_get_now_is_right_whenever_it_is_certain(index: Index) -> None:
    entries = {b"%05d" % number: b"value %d" % number for number in range(2000)}
    index.write(list(entries.items()))
    index.flush()
    for key in [b"%05d" % number for number in range(0, 4000, 7)]:
        is_certain, value = index.get_now(key)
        assert not is_certain or value == entries.get(key)
        assert is_certain or value is None
        # A read fetches the block: from then on the answer needs no I/O.
        assert index.get(key) == entries.get(key)
        assert index.get_now(key) == (True, entries.get(key))


def test_scan_is_ordered_bytewise_and_half_open(index: Index) -> None:
    keys = [b"\x00", b"\x00\x00", b"a", b"a\x00", b"ab", b"b", b"\x7f", b"\x80", b"\xff", b"\xff\xff"]
    shuffled = keys.copy()
    random.Random(3).shuffle(shuffled)
    index.write([(key, key) for key in shuffled])
    assert [key for key, _ in index.scan(b"", b"\xff\xff\xff", 100)] == keys
    assert [key for key, _ in index.scan(b"a", b"b", 100)] == [b"a", b"a\x00", b"ab"]
    assert [key for key, _ in index.scan(b"a\x00", b"b\x00", 2)] == [b"a\x00", b"ab"]
    assert index.scan(b"b", b"a", 100) == []
    assert index.scan(b"a", b"a", 100) == []
    assert index.scan(b"a", b"b", 0) == []


def test_scan_sees_flushed_and_unflushed_as_one(index: Index) -> None:
    index.write([(b"%03d" % number, b"old") for number in range(0, 100, 2)])
    index.flush()
    index.write([(b"%03d" % number, b"new") for number in range(1, 100, 2)] + [(b"050", None), (b"052", b"newer")])
    entries = index.scan(b"049", b"054", 100)
    assert entries == [(b"049", b"new"), (b"051", b"new"), (b"052", b"newer"), (b"053", b"new")]


def test_closing_twice_is_harmless_and_using_a_closed_index_is_an_error(index: Index) -> None:
    index.write([(b"a", b"1")])
    index.close()
    index.close()
    calls: list[Callable[[], object]] = [
        lambda: index.get(b"a"),
        lambda: index.get_now(b"a"),
        lambda: index.get_many([b"a"]),
        lambda: index.write([(b"a", b"2")]),
        lambda: index.scan(b"a", b"b", 1),
        index.flush,
    ]
    for call in calls:
        with pytest.raises(DiskUnavailable):
            call()


def test_readers_never_see_half_a_batch(index: Index) -> None:
    def write() -> None:
        for number in range(300):
            index.write([(b"a", b"%d" % number), (b"b", b"%d" % number)])
            if number % 100 == 0:
                index.flush()
        done.set()

    done = threading.Event()
    index.write([(b"a", b"0"), (b"b", b"0")])
    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        entries = dict(index.scan(b"a", b"c", 10))
        assert entries[b"a"] == entries[b"b"]
    writer.join()


_key = st.binary(min_size=1, max_size=3)
_batch = st.lists(st.tuples(_key, st.none() | st.binary(max_size=4)), max_size=8)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(steps=st.lists(_batch | st.just("flush"), max_size=12), probes=st.lists(_key, max_size=8))
@pytest.mark.parametrize("kind", ["rocks", "simulated"])
def test_an_index_is_a_sorted_dictionary(
    kind: str, tmp_path_factory: pytest.TempPathFactory, steps: list[object], probes: list[bytes]
) -> None:
    model: dict[bytes, bytes] = {}
    index: Index = SimIndex() if kind == "simulated" else rocks(tmp_path_factory.mktemp("index"))
    for step in steps:
        if isinstance(step, list):
            index.write(step)
            for key, value in step:
                model.pop(key, None)
                if value is not None:
                    model[key] = value
        else:
            index.flush()
    assert index.scan(b"", b"\xff" * 4, 1000) == sorted(model.items())
    asked = [*probes, *model]
    assert index.get_many(asked) == [model.get(key) for key in asked]
    for key in asked:
        assert index.get_now(key) in ((True, model.get(key)), (False, None))
    index.close()


@pytest.mark.parametrize("kind", ["rocks", "simulated"])
def test_a_source_opens_what_was_closed_until_it_is_discarded(kind: str, tmp_path: Path) -> None:
    rocks_source = RocksIndexSource(tmp_path / "index", 1 * MIB, 1 * MIB)
    source: IndexSource = SimIndexSource() if kind == "simulated" else rocks_source
    source.discard()
    index = source.open()
    index.write([(b"a", b"1")])
    index.close()
    again = source.open()
    assert again.get(b"a") == b"1"
    again.close()
    source.discard()
    source.discard()
    empty = source.open()
    assert empty.get(b"a") is None
    empty.close()


# --- RocksDB ---------------------------------------------------------------------------------------------------


def test_what_was_closed_is_there_again(tmp_path: Path) -> None:
    index = rocks(tmp_path / "index")
    index.write([(b"a", b"1")])
    index.close()
    again = rocks(tmp_path / "index")
    assert again.get(b"a") == b"1"
    again.close()


def test_a_locked_index_is_in_use(tmp_path: Path) -> None:
    index = rocks(tmp_path / "index")
    with pytest.raises(DirectoryInUse, match="lock"):
        rocks(tmp_path / "index")
    index.close()


@pytest.mark.parametrize("name", ["CURRENT", "MANIFEST"])
def test_a_damaged_index_is_unavailable_and_says_why(tmp_path: Path, name: str) -> None:
    index = rocks(tmp_path / "index")
    index.write([(b"a", b"1")])
    index.close()
    for path in (tmp_path / "index").glob(name + "*"):
        path.write_bytes(b"damage")
    with pytest.raises(DiskUnavailable, match="open of index"):
        rocks(tmp_path / "index")


def test_a_damaged_index_can_be_discarded(tmp_path: Path) -> None:
    source = RocksIndexSource(tmp_path / "index", 1 * MIB, 1 * MIB)
    source.open().close()
    (tmp_path / "index" / "CURRENT").write_bytes(b"damage")
    with pytest.raises(DiskUnavailable):
        source.open()
    # What an interrupted attempt to discard an earlier one may have left.
    (tmp_path / "index.discarded").mkdir()
    (tmp_path / "index.discarded" / "file").write_bytes(b"")
    source.discard()
    assert list(tmp_path.iterdir()) == []
    source.open().close()


def test_the_configuration_file_of_rocksdict_may_be_torn(tmp_path: Path) -> None:
    """It is written at every open and never synced, so a power cut may leave anything of it."""
    for content in (b"", b'{"raw_', None):
        index = rocks(tmp_path / "index")
        index.write([(b"a", b"1")])
        index.close()
        if content is None:
            (tmp_path / "index" / "rocksdict-config.json").unlink()
        else:
            (tmp_path / "index" / "rocksdict-config.json").write_bytes(content)
        again = rocks(tmp_path / "index")
        assert again.get(b"a") == b"1"
        again.close()


def test_a_killed_process_leaves_at_least_what_it_flushed(tmp_path: Path) -> None:
    """Batches after the flush may be there, and then as a prefix; with no log of RocksDB's own they usually are not."""
    script = """
        import os, signal, sys
        from ambry.storage.rocks_index import RocksIndex
        index = RocksIndex(sys.argv[1], 1 << 20, 1 << 16)
        for number in range(20_000):
            index.write([(b"a%06d" % number, b"x" * 20), (b"b%06d" % number, b"y" * 20)])
            if number == 5_000:
                index.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "index")]
    assert subprocess.run(command, check=False, timeout=60).returncode == -9
    index = rocks(tmp_path / "index")
    left = [key[1:] for key, _ in index.scan(b"a", b"b", 100_000)]
    right = [key[1:] for key, _ in index.scan(b"b", b"c", 100_000)]
    index.close()
    assert left == right == [b"%06d" % number for number in range(len(left))]
    assert len(left) > 5_000


# --- the simulated one -----------------------------------------------------------------------------------------


def test_a_crash_keeps_a_prefix_not_older_than_the_flush() -> None:
    index = SimIndex()
    for number in range(3):
        index.write([(b"%d" % number, b"x")])
    index.flush()
    for number in range(3, 6):
        index.write([(b"%d" % number, b"x"), (b"0", b"%d" % number)])
    lengths = {len(index.crash(random.Random(seed)).scan(b"", b"z", 100)) for seed in range(50)}
    assert lengths == {3, 4, 5, 6}
    assert [len(state.scan(b"", b"z", 100)) for state in index.crash_states()] == [3, 4, 5, 6]
    assert index.get(b"0") == b"5"
    assert index.crash_states()[0].get(b"0") == b"x"


def test_a_cold_index_never_answers_at_once() -> None:
    index = SimIndex({b"a": b"1"})
    index.is_cold = True
    assert index.get_now(b"a") == (False, None)
    assert index.get(b"a") == b"1"


def test_a_call_fails_when_told() -> None:
    index = SimIndex()
    index.fail("write", DiskFull)
    with pytest.raises(DiskFull):
        index.write([(b"a", b"1")])
    assert index.get(b"a") is None
    index.write([(b"a", b"1")])
    assert index.get(b"a") == b"1"


def test_a_writer_that_is_faster_than_flushes_waits_here_and_not_in_rocksdb(tmp_path: Path) -> None:
    chance = random.Random(20_261_130)
    # Memtables this small are full after a few batches, and a flush, which syncs a file, takes longer than that.
    index = RocksIndex(tmp_path / "index", cache_bytes=1 * MIB, memtable_bytes=64 * KIB)
    entries: dict[bytes, bytes] = {}
    while index.throttled_s < 0.05:
        batch = {chance.randbytes(16): chance.randbytes(80) for _ in range(100)}
        index.write(list(batch.items()))
        entries |= batch
        assert len(entries) < 2_000_000, "flushes are faster than it can write"
    figures = index.figures()
    assert figures["stalls"] == 0, "RocksDB holds up the writer with the interpreter held"
    assert figures["memtable_bytes"] < 10 * 64 * KIB
    some = chance.sample(sorted(entries), 500)
    assert index.get_many(some) == [entries[key] for key in some]
    index.close()


def test_an_index_that_is_there_is_opened_with_the_cache_that_is_asked_for(tmp_path: Path) -> None:
    for cache_bytes in (1 * MIB, 64 * MIB, 3 * MIB):
        index = RocksIndex(tmp_path / "index", cache_bytes, memtable_bytes=1 * MIB)
        assert index.figures()["cache_bytes_max"] == cache_bytes
        index.write([(b"a", b"1")])
        index.close()
