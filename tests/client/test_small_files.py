"""Folders of small files in batches: whole, verified, each judged by itself; answers that get lost, names replaced."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import xxhash

from ambry.client import BlobInfo, Client, Stored, batches, small_files
from ambry.client.beside import PART, PARTS, UPLOAD, beside, is_beside
from ambry.client.small_files import SMALL_BYTES, LocalFile, StoredFile, batched
from ambry.errors import FileChanged, NameDeleted, NameExists, NameNotFound
from tests.client.conftest import bytes_of, written

BASE = "default/default/small"


def folder_of(path: Path) -> dict[str, bytes]:
    return {one.relative_to(path).as_posix(): one.read_bytes() for one in path.rglob("*") if one.is_file()}


def files(count: int) -> dict[str, bytes]:
    found = {f"{number % 7}/file {number} ü": bytes_of(number * 97 % 9001, number) for number in range(count)}
    return {**found, "large": bytes_of(SMALL_BYTES + 1), "empty": b"", "limit": bytes_of(SMALL_BYTES)}


def test_batches_keep_the_order_and_large_items_are_alone() -> None:
    sizes = [1, SMALL_BYTES, SMALL_BYTES + 1, 5, 6, *([SMALL_BYTES] * 9), 0]
    items = [LocalFile(Path("x"), str(number), size) for number, size in enumerate(sizes)]
    found = [[item.size for item in batch] for batch in batched(items)]
    assert [size for batch in found for size in batch] == sizes
    assert found[:3] == [[1, SMALL_BYTES], [SMALL_BYTES + 1], [5, 6, *([SMALL_BYTES] * 7)]]
    assert list(batched([])) == []


def test_a_folder_goes_up_and_comes_back_with_names_sizes_and_checksums(client: Client, tmp_path: Path) -> None:
    source = written(tmp_path / "source", files(900))
    seen: list[tuple[int, int]] = []
    stored = client.upload_dir(source, f"{BASE}/all", progress=lambda done, total: seen.append((done, total)))
    total = sum(len(data) for data in files(900).values())
    assert (len(stored), seen[-1]) == (903, (total, total))
    one = next(item for item in stored if item.name == f"{BASE}/all/3/file 10 ü")
    info = client.stat(one.name or "")
    assert (info.id, info.version, info.size, info.filename) == (one.id, one.version, one.size, "file 10 ü")
    assert "xxh3" in info.digests
    paths = client.download_dir(f"{BASE}/all", tmp_path / "copy")
    assert len(paths) == 903
    assert folder_of(tmp_path / "copy") == folder_of(source)


def test_a_folder_goes_up_with_links_to_files_and_without_other_links(client: Client, tmp_path: Path) -> None:
    source = written(tmp_path / "source", {"file": b"1", "b/file": b"22", "b/c/file": b"333", "a": b""})
    links = {"link": "b/file", "b/circle": "circle", "b/gone": "nowhere", "folder": "b", "through": "file/x"}
    for link, target in links.items():
        (source / link).symlink_to(target)
    (source / ".x.ambry-part").write_bytes(b"rest of a transfer")
    stored = client.upload_dir(f"{source}/", f"{BASE}/links")
    names = ["a", "file", "link", "b/file", "b/c/file"]
    assert [(one.name, one.size) for one in stored] == [
        (f"{BASE}/links/{name}", (source / name).stat().st_size) for name in names
    ]
    with pytest.raises(NotADirectoryError):
        client.upload_dir(source / "file", f"{BASE}/links")


def test_one_name_that_is_taken_is_told_and_upsert_replaces_it(client: Client, tmp_path: Path) -> None:
    source = written(tmp_path / "source", {"a": b"new a", "b": b"new b"})
    client.put(b"old", f"{BASE}/taken/b")
    with pytest.raises(NameExists):
        client.upload_dir(source, f"{BASE}/taken")
    assert client.get(f"{BASE}/taken/b") == b"old"
    client.upload_dir(source, f"{BASE}/taken", upsert=True)
    assert client.get(f"{BASE}/taken/b") == b"new b"


@contextmanager
def losing_answers(url: str, path: str) -> Iterator[tuple[str, list[str]]]:
    """A way to a store that cuts the first answer to a POST of `path`, after the store has given it."""
    host, _, port = url.removeprefix("http://").partition(":")
    listener = socket.create_server(("127.0.0.1", 0))
    lost: list[str] = []

    def pipe(source: socket.socket, sink: socket.socket, is_answer: list[bool]) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if source is not sink and data.startswith(f"POST {path}".encode()) and not lost:
                    lost.append(path)
                    is_answer.append(True)
                if data.startswith(b"HTTP/1.1") and is_answer:
                    break
                sink.sendall(data)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        with suppress(OSError):
            while True:
                inner, _ = listener.accept()
                outer = socket.create_connection((host, int(port)))
                cut: list[bool] = []
                for pair in ((inner, outer), (outer, inner)):
                    threads.append(threading.Thread(target=pipe, args=(*pair, cut), daemon=True))
                    threads[-1].start()
                opened.extend((inner, outer))

    opened: list[socket.socket] = []
    threads: list[threading.Thread] = []
    serving = threading.Thread(target=serve, daemon=True)
    serving.start()
    yield "http://{}:{}".format(*listener.getsockname()), lost
    with suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    serving.join(10)
    for one in opened:
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join(10)
    for one in opened:
        one.close()


def test_a_batch_whose_answer_was_lost_is_sent_again_and_finds_its_own_names(url: str, tmp_path: Path) -> None:
    source = written(tmp_path / "source", {f"{number}": bytes_of(300, number) for number in range(20)})
    with losing_answers(url, "/batch/put") as (way, lost), Client(way) as client:
        stored = client.upload_dir(source, f"{BASE}/lost")
        assert lost == ["/batch/put"]
        assert len({one.id for one in stored}) == 20
        assert all(client.stat(one.name or "").id == one.id for one in stored)


def test_a_name_that_is_replaced_after_it_was_listed_is_loaded_as_it_is_now(client: Client, tmp_path: Path) -> None:
    source = written(tmp_path / "source", {f"{number}": bytes_of(300, number) for number in range(20)})
    client.upload_dir(source, f"{BASE}/replaced")
    copy = tmp_path / "copy"
    copy.mkdir()
    files = listed(client, f"{BASE}/replaced/", copy)
    client.put(b"newest", f"{BASE}/replaced/7", upsert=True)
    client.delete(next(file.id for file in files if file.path.name == "7"))
    outcomes = client.download_small(files)
    ids = [outcome.id for outcome in outcomes if isinstance(outcome, BlobInfo)]
    alone = [file.path.name for file, blob_id in zip(files, ids, strict=True) if blob_id != file.id]
    assert alone == ["7"]
    assert folder_of(copy) == {**folder_of(source), "7": b"newest"}


@pytest.mark.parametrize("size", [100, 600_000])
def test_a_file_may_have_the_longest_name_that_there_is(client: Client, tmp_path: Path, size: int) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    there.mkdir()
    names = ["n" * 255, "ü" * 127, "n" * 254]
    for name in names:
        (there / name).write_bytes(name.encode()[:1] * size)
    prefix = f"default/default/long{size}/"
    client.upload_dir(there, prefix)
    client.download_dir(prefix, back)
    assert {path.name: path.read_bytes() for path in back.iterdir()} == {
        path.name: path.read_bytes() for path in there.iterdir()
    }
    assert sorted(path.name for path in there.iterdir()) == sorted(names), "nothing is left beside them"


def test_names_beside_a_file_differ_as_the_files_do_and_are_known_again() -> None:
    long = ["a" * 255, "a" * 254 + "b", "é" * 127]
    for suffix in (PART, PARTS, UPLOAD):
        names = [beside(name, suffix) for name in (*long, "short")]
        assert len(set(names)) == 4
        assert all(len(name.encode()) <= 255 and is_beside(name) for name in names)
    assert beside("short", PART) == ".short.ambry-part"
    assert not is_beside("short.ambry-part")


@pytest.mark.parametrize("change", ["grows", "shrinks", "is written over", "shrinks before"])
def test_a_file_that_changes_while_it_is_read_is_refused_and_no_other(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    source = written(tmp_path / "source", {name: name.encode() * 1000 for name in "abc"})
    # Listed when it had another size: no change while it is read.
    files = [LocalFile(path, f"small/{change}/{path.name}", 7) for path in sorted(source.iterdir())]
    read, changed = os.readv, source / "b"

    def read_and_change(descriptor: int, buffers: Sequence[memoryview]) -> int:
        is_it = os.fstat(descriptor).st_ino == changed.stat().st_ino
        if is_it and change == "shrinks before":
            os.truncate(changed, 999)
        count = read(descriptor, buffers)
        if is_it and change == "grows":
            os.truncate(changed, 1001)
        elif is_it and change == "shrinks":
            os.truncate(changed, 999)
        elif is_it and change == "is written over":
            changed.write_bytes(b"B" * 1000)
            os.utime(changed, ns=(1, 1))
        return count

    monkeypatch.setattr(os, "readv", read_and_change)
    kinds = [type(outcome) for outcome in client.upload_small(files, "default/default")]
    assert kinds == [Stored, FileChanged, Stored]
    assert [client.get(f"{BASE}/{change}/{name}") for name in "ac"] == [b"a" * 1000, b"c" * 1000]
    with pytest.raises(NameNotFound):
        client.stat(f"{BASE}/{change}/b")


def test_a_file_that_comes_in_pieces_and_is_larger_than_listed_is_stored_whole(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = written(tmp_path / "source", {name: bytes_of(100_000, ord(name)) for name in "abc"})
    read = os.readv
    monkeypatch.setattr(os, "readv", lambda descriptor, buffers: read(descriptor, [buffers[0][:30_000]]))
    files = [LocalFile(path, f"small/pieces/{path.name}", 1) for path in sorted(source.iterdir())]
    outcomes = client.upload_small(files, "default/default", upsert=True)
    assert [outcome.size for outcome in outcomes if isinstance(outcome, Stored)] == [100_000] * 3
    assert all(client.get(f"{BASE}/pieces/{name}") == (source / name).read_bytes() for name in "abc")


def listed(client: Client, prefix: str, folder: Path) -> list[StoredFile]:
    return [
        StoredFile(f"default/default/{entry.name}", entry.id or "", entry.size, folder / entry.name.rpartition("/")[2])
        for entry in client.list(prefix)
    ]


def test_each_file_that_comes_down_has_an_outcome_of_its_own(client: Client, tmp_path: Path) -> None:
    source = written(tmp_path / "source", {name: name.encode() * 100 for name in "abcdef"})
    client.upload_dir(source, f"{BASE}/outcomes")
    target = tmp_path / "target"
    target.mkdir()
    files = listed(client, f"{BASE}/outcomes/", target)
    files[0] = replace(files[0], modified_ms=1_000_000_000_123)
    (target / "b").mkdir()
    files[2] = replace(files[2], path=target / "nowhere/c")
    client.delete(f"{BASE}/outcomes/d")
    client.delete(files[3].id)
    # By its name, and with its time, as it is not what was listed.
    client.put(b"new", f"{BASE}/outcomes/e", upsert=True)
    client.delete(files[4].id)
    files[4] = replace(files[4], modified_ms=2_000_000_000_000)
    kinds = [type(outcome) for outcome in client.download_small(files)]
    assert kinds == [BlobInfo, IsADirectoryError, FileNotFoundError, NameDeleted, BlobInfo, BlobInfo]
    assert (target / "a").read_bytes() == b"a" * 100 and (target / "a").stat().st_mtime_ns == 1_000_000_000_123_000_000
    assert (target / "e").read_bytes() == b"new" and (target / "e").stat().st_mtime_ns == 2_000_000_000_000_000_000
    assert sorted(path.name for path in target.iterdir()) == ["a", "b", "e", "f"], "nothing is left beside them"
    assert client.download_small([]) == []


@pytest.mark.parametrize("harm", ["a byte", "the check", "the length"])
def test_bytes_that_are_harmed_on_their_way_never_reach_a_file(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    source = written(tmp_path / "source", {name: bytes_of(5_000, ord(name)) for name in "abc"})
    client.upload_dir(source, f"{BASE}/harmed", upsert=True)
    target = tmp_path / "target"
    target.mkdir()
    ask, load, alone = batches.ask_batch, Client.download_file, []

    def ask_and_harm(*args: Any) -> Any:
        items, request_id = ask(*args)
        item, head, body = items[1]
        if harm == "a byte":
            body[3_000] ^= 1
        elif harm == "the check":
            # Bytes and check agree, so only the digest that the store keeps tells.
            body[3_000] ^= 1
            item = replace(item, check=xxhash.xxh3_64_intdigest(body))
        else:
            body = body[:-1]
            item = replace(item, check=xxhash.xxh3_64_intdigest(body))
        items[1] = item, head, body
        return items, request_id

    def load_and_note(client: Client, ref: str, path: Path) -> BlobInfo:
        alone.append(path.name)
        return load(client, ref, path)

    monkeypatch.setattr(batches, "ask_batch", ask_and_harm)
    monkeypatch.setattr(Client, "download_file", load_and_note)
    client.download_small(listed(client, f"{BASE}/harmed/", target))
    assert alone == ["b"]
    assert folder_of(target) == folder_of(source)


def test_two_that_load_the_same_files_never_show_half_of_one(client: Client, tmp_path: Path) -> None:
    source = written(tmp_path / "source", {f"{number}": bytes_of(20_000, number) for number in range(100)})
    client.upload_dir(source, f"{BASE}/twice")
    target = tmp_path / "target"
    target.mkdir()
    files = listed(client, f"{BASE}/twice/", target)
    wanted = folder_of(source)
    ended = threading.Event()
    seen: list[str] = []

    def watch() -> None:
        while not ended.is_set():
            for name, body in wanted.items():
                with suppress(FileNotFoundError):
                    if (target / name).read_bytes() != body:
                        seen.append(name)

    watching = threading.Thread(target=watch)
    watching.start()
    with ThreadPoolExecutor(4) as pool:
        outcomes = [one for some in pool.map(client.download_small, [files] * 8) for one in some]
    ended.set()
    watching.join()
    assert seen == []
    assert all(isinstance(outcome, BlobInfo) for outcome in outcomes)
    assert folder_of(target) == wanted


_KILLED = """
import os, signal, sys
from pathlib import Path
from ambry.client import Client, small_files
small_files._finish = lambda parts: os.kill(os.getpid(), signal.SIGKILL)
with Client(sys.argv[1]) as client:
    client.download_dir(sys.argv[2], sys.argv[3])
"""


def test_what_a_killed_download_left_is_taken_away_by_one_a_day_later(
    url: str, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = written(tmp_path / "source", {f"{number % 3}/{number}": bytes_of(300, number) for number in range(20)})
    client.upload_dir(source, f"{BASE}/killed")
    target = tmp_path / "target"
    ended = subprocess.run([sys.executable, "-c", _KILLED, url, f"{BASE}/killed", str(target)], check=False)
    assert ended.returncode == -signal.SIGKILL
    left = {path for path in target.rglob("*") if path.is_file()}
    assert len(left) == 20 and all(is_beside(path.name) for path in left)
    # What only looks like one of them.
    large = written(target / "0", {".12-3.ambry-part": b"of a large file", ".12-3.ambry-parts": b"its list"})
    others = written(target / "0", {".12-x.ambry-part": b"", "12-3.ambry-part": b"", ".x12-3.ambry-part": b""})
    kept = {path for folder in (large, others) for path in folder.iterdir()} - left
    link = target / "0/.5-6.ambry-part"
    link.symlink_to("nowhere")
    client.download_dir(f"{BASE}/killed", target)
    assert left < {path for path in target.rglob("*") if path.is_file()}, "they may be of a process that lives"
    monkeypatch.setattr(small_files, "_LEFT_AFTER_NS", 0)
    monkeypatch.setattr(small_files, "_looked", set())
    client.download_dir(f"{BASE}/killed", target)
    found = {path for path in target.rglob("*") if path.is_file()}
    assert found == kept | {target / name for name in folder_of(source)}
    assert link.is_symlink()


@pytest.mark.parametrize("taken", [[0], [2], [0, 1, 2]])
def test_who_finds_its_parts_taken_away_loads_these_files_again(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: list[int]
) -> None:
    source = written(tmp_path / "source", {name: bytes_of(300, ord(name)) for name in "abc"})
    client.upload_dir(source, f"{BASE}/taken-away", upsert=True)
    target = tmp_path / "target"
    target.mkdir()
    sync = small_files._sync

    def take_and_sync(paths: Sequence[str]) -> None:
        for number in taken:
            Path(paths[number]).unlink()
        sync(paths)

    monkeypatch.setattr(small_files, "_sync", take_and_sync)
    outcomes = client.download_small(listed(client, f"{BASE}/taken-away/", target))
    assert [type(outcome) for outcome in outcomes] == [BlobInfo] * 3
    assert folder_of(target) == folder_of(source)


def test_an_answer_that_breaks_off_is_made_up_for_one_by_one(url: str, tmp_path: Path) -> None:
    source = written(tmp_path / "source", {f"{number}": bytes_of(300, number) for number in range(5)})
    with losing_answers(url, "/batch/get") as (way, lost), Client(way) as client:
        client.upload_dir(source, f"{BASE}/broken")
        client.download_dir(f"{BASE}/broken", tmp_path / "target")
        assert lost == ["/batch/get"]
    assert folder_of(tmp_path / "target") == folder_of(source)
