"""The local cache: right or loaded again, one loader at a time, room that is made, links that show who wrote."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest

from ambry.client.cache import Cache, Placer, file_digest, is_placed, open_cache, stamp_of, tidy
from ambry.errors import BadConfiguration, ModelDamaged
from ambry.limits import GIB, MIB


def loaded(cache: Cache, data: bytes) -> Path:
    return cache.fetch(sha256(data).hexdigest(), len(data), lambda path: path.write_bytes(data))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", GIB)


def test_content_is_loaded_once_and_only_if_it_is_right(cache: Cache) -> None:
    path = loaded(cache, b"data")
    digest = sha256(b"data").hexdigest()
    assert path.read_bytes() == b"data" and not path.stat().st_mode & 0o222

    def never(path: Path) -> None:
        raise AssertionError(path)

    assert cache.fetch(digest, 4, never) == path == cache.find(digest, 4)
    with pytest.raises(ModelDamaged):
        cache.fetch("0" * 64, 4, lambda path: path.write_bytes(b"data"))
    with pytest.raises(ModelDamaged):
        cache.fetch(sha256(b"data!").hexdigest(), 5, lambda path: path.write_bytes(b"data"))
    assert cache.find("0" * 64, 4) is None
    assert not [one for one in (cache.folder / "partial").iterdir() if not one.name.startswith(".")]


@pytest.mark.parametrize("bad", [b"", b"dat", b"DATA", b"data!"])
def test_content_that_was_written_to_is_noticed_and_loaded_again(cache: Cache, bad: bytes) -> None:
    path = loaded(cache, b"data")
    path.chmod(0o644)
    path.write_bytes(bad)
    assert cache.find(path.name, 4) is None
    assert loaded(cache, b"data").read_bytes() == b"data"


def test_content_that_rotted_silently_is_found_when_it_is_read(cache: Cache) -> None:
    path = loaded(cache, b"data")
    path.chmod(0o644)
    path.write_bytes(b"DATA")
    os.utime(path, ns=(0, stamp_of(path.name)))
    assert cache.find(path.name, 4) == path
    assert cache.verify() == (0, [path.name])
    assert cache.find(path.name, 4, verify=True) is None
    assert loaded(cache, b"data").read_bytes() == b"data"


def test_content_that_was_only_touched_is_still_right(cache: Cache) -> None:
    path = loaded(cache, b"data")
    os.utime(path)
    assert cache.find(path.name, 4) == path
    assert path.stat().st_mtime_ns == stamp_of(path.name)


def test_threads_that_want_the_same_load_it_once(cache: Cache) -> None:
    loads: list[int] = []
    barrier = threading.Barrier(8)

    def load(path: Path) -> None:
        loads.append(1)
        path.write_bytes(b"data")

    def fetch() -> None:
        barrier.wait(30)
        cache.fetch(sha256(b"data").hexdigest(), 4, load)

    threads = [threading.Thread(target=fetch) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert loads == [1]


PROGRAM = """
import sys
from hashlib import sha256
from pathlib import Path
from ambry.client.cache import Cache
cache = Cache(Path(sys.argv[1]), 10**9)
for number in range(60):
    data = b"%d" % number * 1000
    def load(path):
        path.write_bytes(data)
        with (Path(sys.argv[1]) / "loads").open("a") as file:
            file.write(f"{number}\\n")
    with cache.in_use():
        assert cache.fetch(sha256(data).hexdigest(), len(data), load).read_bytes() == data
"""


def test_processes_that_want_the_same_load_it_once(cache: Cache) -> None:
    cache.folder.mkdir()
    running = [subprocess.Popen([sys.executable, "-c", PROGRAM, str(cache.folder)]) for _ in range(3)]
    assert [one.wait(60) for one in running] == [0, 0, 0]
    loads = (cache.folder / "loads").read_text().split()
    assert sorted(loads, key=int) == [str(number) for number in range(60)]


def test_room_is_made_by_what_was_not_used_for_longest(cache: Cache, tmp_path: Path) -> None:
    paths = [loaded(cache, bytes([number]) * 1000) for number in range(10)]
    for age, path in enumerate(paths):
        os.utime(path, ns=(age, stamp_of(path.name)))
    cache.use([paths[0].name])
    for number in (1, 9):
        folder = cache.snapshot(f"version-{number}")
        folder.mkdir(parents=True)
        Placer(copies=False).place(paths[number], folder / "file", is_executable=False)
    Placer(copies=False).place(paths[2], tmp_path / "mine", is_executable=False)
    pruned = cache.prune(4000)
    assert pruned is not None
    assert (pruned.removed, pruned.removed_size, pruned.kept, pruned.kept_size) == (6, 6000, 4, 4000)
    assert [path.exists() for path in paths] == [True, *[False] * 6, *[True] * 3]
    assert sorted(one.name for one in (cache.folder / "snapshots").iterdir()) == ["version-9"]
    assert (tmp_path / "mine").read_bytes() == b"\2" * 1000
    assert cache.prune(4000) == cache.prune(10_000)
    assert Cache(tmp_path / "none", 0).prune() is not None


def test_room_is_made_of_snapshots_that_have_files_of_their_own(cache: Cache) -> None:
    path = loaded(cache, b"data" * 1000)
    kept = loaded(cache, b"kept" * 1000)
    os.utime(path, ns=(0, stamp_of(path.name)))
    for copies, executable in ((True, False), (False, True), (False, False)):
        for source in (path, kept):
            target = cache.snapshot(f"{source is kept}-{copies}-{executable}") / "sub/file"
            target.parent.mkdir(parents=True)
            Placer(copies=copies).place(source, target, is_executable=executable)
    # What a user has written is nobody's to remove, as long as nothing else there takes room.
    mine = cache.snapshot("mine") / "notes"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    cache.prune(4000)
    assert {one.name.partition("-")[0] for one in (cache.folder / "snapshots").iterdir()} == {"True", "mine"}
    kept.unlink()
    cache.prune(4000)
    assert [one.name for one in (cache.folder / "snapshots").iterdir()] == ["mine"]


def test_nobody_makes_room_while_a_pull_is_under_way(cache: Cache) -> None:
    path = loaded(cache, b"data")
    with cache.in_use():
        with cache.in_use():
            assert cache.prune(0, waits=False) is None
        assert path.exists()
    assert cache.prune(0, waits=False) is not None
    assert not path.exists()


def test_what_is_placed_is_known_until_it_is_written_to(cache: Cache, tmp_path: Path) -> None:
    source = loaded(cache, b"data")
    target = tmp_path / "target"
    for copies, executable in ((False, False), (True, False), (False, True), (False, False)):
        Placer(copies=copies).place(source, target, is_executable=executable)
        assert target.read_bytes() == b"data" and is_placed(target, source.name, 4)
        assert os.access(target, os.X_OK) == executable
        Placer(copies=copies).place(source, target, is_executable=executable)
    Placer(copies=True).place(source, target, is_executable=False)
    target.write_bytes(b"DATA")
    assert not is_placed(target, source.name, 4) and source.read_bytes() == b"data"
    assert not is_placed(tmp_path / "missing", source.name, 4)
    assert [one.name for one in tmp_path.iterdir() if one.name.startswith(".")] == []
    assert file_digest(tmp_path / "missing") is None


COPIER = """
import sys
from pathlib import Path
from ambry.client.cache import Placer
Placer(copies=True).place(Path(sys.argv[1]), Path(sys.argv[2]), is_executable=False)
"""


def test_what_a_killed_process_has_copied_is_taken_away_and_what_a_living_one_copies_is_not(tmp_path: Path) -> None:
    source, target = tmp_path / ("ab" * 32), tmp_path / "folder/target"
    os.mkfifo(source)
    target.parent.mkdir()
    (target.parent / ".mine.1.2.ambry-part").write_bytes(b"mine")
    (target.parent / f".{'cd' * 16}.1.2.ambry-part").symlink_to(source)
    process = subprocess.Popen([sys.executable, "-c", COPIER, str(source), str(target)])
    with source.open("wb", buffering=0) as pipe:
        # More than it reads at once: by then some is written, and it waits for the rest.
        pipe.write(bytes(6 * MIB))
        tidy(target.parent)
        [left] = target.parent.glob(f".{'ab' * 16}.*")
        assert left.stat().st_size > 0
        process.kill()
        process.wait(30)
    assert left.exists()
    tidy(target.parent)
    assert len(list(target.parent.iterdir())) == 2
    tidy(tmp_path / "missing")


def test_what_is_copied_while_others_tidy_arrives(cache: Cache, tmp_path: Path) -> None:
    source = loaded(cache, b"data" * 1000)
    is_done = threading.Event()

    def tidy_all_the_time() -> None:
        while not is_done.is_set():
            tidy(tmp_path)

    thread = threading.Thread(target=tidy_all_the_time)
    thread.start()
    try:
        for number in range(500):
            Placer(copies=number % 2 == 0).place(source, tmp_path / "target", is_executable=False)
            assert is_placed(tmp_path / "target", source.name, 4000)
    finally:
        is_done.set()
        thread.join(30)


def test_records_are_what_was_remembered_last(cache: Cache) -> None:
    assert cache.recall("a/b@c") is None
    cache.remember("a/b@c", b"1")
    cache.remember("a/b@c", b"2")
    assert cache.recall("a/b@c") == b"2"


@pytest.mark.parametrize("name", ["a/b/" + "n" * 512, "a/b/" + "模" * 512, "a/b/c%2Fd", "a/b/c/d"])
def test_records_have_names_of_any_length_and_are_not_mixed_up(cache: Cache, name: str) -> None:
    cache.remember(name, b"1")
    cache.remember(f"{name}!", b"2")
    assert (cache.recall(name), cache.recall(f"{name}!")) == (b"1", b"2")


def test_threads_that_remember_at_once_all_arrive(cache: Cache) -> None:
    model = "a/b/.versions/" + "n" * 85
    barrier = threading.Barrier(8)

    def remember(number: int) -> None:
        barrier.wait(30)
        for count in range(200):
            cache.remember(f"{model}/{count}", b"same")
            cache.remember(f"{model}/{number}-{count}", b"own")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(remember, range(8)))
    assert all(cache.recall(f"{model}/{number}-7") == b"own" for number in range(8))
    assert list((cache.folder / "partial").iterdir()) == []


def test_room_that_is_made_takes_nothing_away_from_who_remembers(cache: Cache) -> None:
    cache.remember("alias", b"0")
    is_done = threading.Event()

    def make_room() -> None:
        while not is_done.is_set():
            cache.prune(0)

    pruner = threading.Thread(target=make_room)
    pruner.start()
    try:
        for number in range(300):
            cache.remember("alias", b"%d" % number)
    finally:
        is_done.set()
        pruner.join(30)
    assert cache.recall("alias") == b"299"


def test_where_the_cache_is_comes_from_arguments_and_the_environment(tmp_path: Path) -> None:
    assert open_cache({"HOME": "/h"}).folder == Path("/h/.cache/ambry")
    assert open_cache({"XDG_CACHE_HOME": "/x"}).folder == Path("/x/ambry")
    opened = open_cache({"XDG_CACHE_HOME": "/x", "AMBRY_CACHE": "/y", "AMBRY_CACHE_BYTES": "17"})
    assert (opened.folder, opened.size_max) == (Path("/y"), 17)
    assert open_cache({"AMBRY_CACHE": "/y"}, tmp_path).folder == tmp_path


def test_how_large_the_cache_may_be_has_units_and_what_is_no_size_is_refused(tmp_path: Path) -> None:
    for text, size in (("10 GiB", 10 * GIB), ("1.5GiB", 3 * GIB // 2), ("0", 0), ("", 100 * GIB)):
        assert open_cache({"AMBRY_CACHE_BYTES": text}, tmp_path).size_max == size
    for wrong in ("10GB", "ten", "-1", "1e9"):
        with pytest.raises(BadConfiguration, match="AMBRY_CACHE_BYTES"):
            open_cache({"AMBRY_CACHE_BYTES": wrong}, tmp_path)
