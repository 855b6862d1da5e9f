"""Models against a store that runs: what is pushed is pulled, content is stored once; aliases, versions, the cache."""

import os
import random
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from ambry.client import Client
from ambry.client.models import Models, Pushed
from ambry.errors import (
    BadRequest,
    FileChanged,
    NameNotFound,
    NotCached,
    PreconditionFailed,
)
from ambry.limits import KIB, MIB
from tests.client.conftest import bytes_of, written

BASE = "default/default"


def tree(folder: Path) -> dict[str, bytes | None]:
    """What a folder has: bytes of files, None of empty folders."""
    found: dict[str, bytes | None] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
        elif not any(path.iterdir()):
            found[path.relative_to(folder).as_posix()] = None
    return found


@pytest.fixture
def client(url: str, tmp_path: Path) -> Iterator[Client]:
    with Client(url, cache=tmp_path / "cache") as made:
        yield made


@contextmanager
def counted(url: str) -> Iterator[tuple[str, list[int]]]:
    """A way to the store that counts the bytes which come from it."""
    count = [0]
    port = urlsplit(url).port
    listener = socket.create_server(("127.0.0.1", 0))
    sockets: list[socket.socket] = []
    pumps: list[threading.Thread] = []

    def pump(source: socket.socket, target: socket.socket, counter: list[int] | None) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if counter is not None:
                    counter[0] += len(data)
                target.sendall(data)
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        with suppress(OSError):
            while True:
                ours, _ = listener.accept()
                theirs = socket.create_connection(("127.0.0.1", port))
                sockets.extend((ours, theirs))
                for way in ((ours, theirs, None), (theirs, ours, count)):
                    pumps.append(threading.Thread(target=pump, args=way, daemon=True))
                    pumps[-1].start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield "http://{}:{}".format(*listener.getsockname()), count
    with suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    # Clients that outlive the test may keep their connections.
    for connection in sockets:
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
    for one in (thread, *pumps):
        one.join(10)
    for connection in sockets:
        connection.close()


def test_what_is_pushed_is_pulled(client: Client, tmp_path: Path) -> None:
    names = ["config.json", "sub/ü ?#%.bin", "sub/deep/new\nline", "-rf", "a@b", "..a", ".hidden", "sub/same", "empty"]
    files = {name: bytes_of(1000 + 37 * number, number) for number, name in enumerate(names)}
    files |= {"sub/same": files["config.json"], "empty": b"", "weights": bytes_of(9 * MIB, 3)}
    folder = written(tmp_path / "model", files)
    (folder / "nothing/in it").mkdir(parents=True)
    (folder / "-rf").chmod(0o755)
    (folder / "link").symlink_to("config.json")
    pushed = client.push_model(
        folder, f"{BASE}/round/trip", metadata={"loss": 0.5, "good": True}, lineage={"code": "a"}
    )
    assert (pushed.files, pushed.model) == (len(names) + 2, f"{BASE}/round/trip")
    pulled = client.pull_model(f"ambry://{BASE}/round/trip", tmp_path / "copy")
    assert pulled.version == pushed.version
    assert tree(tmp_path / "copy") == tree(folder)
    assert os.access(tmp_path / "copy/-rf", os.X_OK) and not os.access(tmp_path / "copy/config.json", os.X_OK)
    manifest = client.read_manifest(pushed.ref)
    assert (manifest.metadata, manifest.lineage) == ({"loss": 0.5, "good": True}, {"code": "a"})
    assert client.list_models(f"{BASE}/round") == [f"{BASE}/round/trip"]
    assert f"{BASE}/round/trip" in client.list_models(BASE)
    snapshot = client.pull_model(pushed.ref, allow_patterns=["*.json", "sub/*"], ignore_patterns=["*/same"])
    assert sorted(snapshot.files) == ["config.json", "sub/deep/new\nline", "sub/ü ?#%.bin"]
    assert (snapshot.folder / "config.json").read_bytes() == files["config.json"]
    one = client.pull_model(f"{pushed.ref}/sub/same", tmp_path / "one")
    assert one.files == ("sub/same",) and one.loaded_bytes == 0


def test_the_second_pull_moves_no_bodies_and_offline_none_at_all(client: Client, url: str, tmp_path: Path) -> None:
    files = {f"part-{number:03}": bytes_of(20_000 + number, number) for number in range(100)}
    client.push_model(written(tmp_path / "model", files), f"{BASE}/cached")
    first = client.pull_model(f"{BASE}/cached", tmp_path / "first")
    assert first.loaded_bytes == first.size == sum(map(len, files.values()))
    with counted(url) as (way, count), Client(way, cache=tmp_path / "cache") as counting:
        again = counting.pull_model(f"{BASE}/cached", tmp_path / "second")
        assert again.loaded_bytes == 0 and count[0] < 4 * KIB
        into_the_same = counting.pull_model(f"{BASE}/cached", tmp_path / "second")
        assert into_the_same.loaded_bytes == 0
    with Client("http://127.0.0.1:9", cache=tmp_path / "cache") as nowhere:
        assert nowhere.pull_model(f"{BASE}/cached", tmp_path / "third", offline=True).version == first.version
        with pytest.raises(NotCached):
            nowhere.pull_model(f"{BASE}/other", tmp_path / "fourth", offline=True)
        with pytest.raises(NotCached):
            nowhere.pull_model(f"{BASE}/cached@20200101T000000Z-0123456789abcdef", offline=True)
    for name in ("first", "second", "third"):
        assert tree(tmp_path / name) == files


def test_offline_nobody_is_asked_for_what_the_cache_has(
    client: Client, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = f"{BASE}/offline"
    tensor = struct.pack("<Q", 54) + b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}'.ljust(54) + b"\1\2"
    first = client.push_model(written(tmp_path / "model", {"a.safetensors": tensor, "b": b"b"}), model)
    client.pull_model(model, tmp_path / "copy")
    second = client.push_model(written(tmp_path / "model", {"b": b"other"}), model, aliases="new")
    client.read_manifest(second.ref)
    monkeypatch.setenv("AMBRY_OFFLINE", "1")
    with Client("http://127.0.0.1:9", cache=tmp_path / "cache", deadline_s=5) as nowhere:
        with nowhere.open_tensors(f"{model}@latest/a.safetensors") as file:
            assert file.get_tensor("a").tolist() == [1, 2]
        assert nowhere.load_tensors(f"{first.ref}/a.safetensors")["a"].tolist() == [1, 2]
        assert nowhere.read_manifest(model).size == first.size
        assert nowhere.diff_models(model, second.ref).changed == ("b",)
        assert nowhere.verify_model(model, tmp_path / "copy").problems == ()
        assert nowhere.pull_model(model, tmp_path / "other").version == first.version
        for missing in (f"{second.ref}/b", f"{model}@new/b"):
            with pytest.raises(NotCached):
                nowhere.open_tensors(missing)
        with pytest.raises(NotCached):
            nowhere.read_manifest(f"{model}@new")
    with Client(url, cache=tmp_path / "cache") as online:
        assert online.pull_model(f"{model}@new", offline=False).version == second.version
        assert online.verify_model(f"{model}@new").problems == ()
        assert online.set_alias(f"{model}@new", "prod").version == second.version


def test_one_alias_or_pattern_needs_no_list(client: Client, tmp_path: Path) -> None:
    files = {"a.json": b"{}", "b.bin": b"b", "c.tmp": b"c"}
    model = f"{BASE}/single"
    pushed = client.push_model(written(tmp_path / "model", files), model, aliases="prod", ignore_patterns="*.tmp")
    assert [one.aliases for one in client.list_versions(model)] == [("prod",)]
    assert client.pull_model(pushed.ref, tmp_path / "all").files == ("a.json", "b.bin")
    assert client.pull_model(pushed.ref, tmp_path / "allowed", allow_patterns="*.json").files == ("a.json",)
    assert client.pull_model(pushed.ref, tmp_path / "rest", ignore_patterns="*.json").files == ("b.bin",)
    assert client.pull_model(pushed.ref, tmp_path / "none", allow_patterns="").files == ()
    assert client.pull_model(pushed.ref, tmp_path / "none", allow_patterns=[]).files == ()


@pytest.mark.parametrize("name", ["n" * 230, "模" * 50, "m" * 512])
def test_models_of_long_names_are_pulled(client: Client, url: str, tmp_path: Path, name: str) -> None:
    pushed = client.push_model(written(tmp_path / "model", {"a": b"a"}), f"{BASE}/{name}")
    assert client.pull_model(f"{BASE}/{name}").version == pushed.version
    assert client.pull_model(pushed.ref, tmp_path / "copy", offline=True).files == ("a",)
    with Client(url, cache=tmp_path / "cold") as other:
        assert other.collect_content(BASE, is_dry=True).removed == 0


def test_threads_pull_one_model_into_a_cold_cache(client: Client, url: str, tmp_path: Path) -> None:
    files = {f"part-{number}": bytes_of(5000, number) for number in range(10)}
    model = f"{BASE}/{'cold' * 22}"
    for number in range(12):
        client.push_model(written(tmp_path / "model", files | {"number": b"%d" % number}), model)
    expected = files | {"number": b"11"}
    for number in range(3):
        with Client(url, cache=tmp_path / f"cold-{number}") as cold:
            barrier = threading.Barrier(8)

            def pull(number: int, cold: Client = cold, barrier: threading.Barrier = barrier) -> int:
                barrier.wait(30)
                if number % 2:
                    return cold.collect_content(BASE).removed
                # One by one: beside them there may be what other threads are placing.
                folder = cold.pull_model(model).folder
                return sum((folder / name).read_bytes() != data for name, data in expected.items())

            with ThreadPoolExecutor(8) as pool:
                assert list(pool.map(pull, range(8))) == [0] * 8


def test_content_that_is_there_is_not_sent_again(client: Client, tmp_path: Path) -> None:
    files = {f"part-{number}": bytes_of(300_000, 100 + number) for number in range(10)}
    folder = written(tmp_path / "model", files)
    first = client.push_model(folder, f"{BASE}/once")
    assert first.size <= first.sent_bytes < first.size + 10 * KIB
    again = client.push_model(folder, f"{BASE}/once", metadata={"again": True})
    other = client.push_model(folder, f"{BASE}/another")
    assert again.version != first.version and max(again.sent_bytes, other.sent_bytes) < 10 * KIB
    (folder / "part-3").write_bytes(bytes_of(300_000, 99))
    (folder / "part-4").rename(folder / "part-x")
    changed = client.push_model(folder, f"{BASE}/once")
    assert 300_000 <= changed.sent_bytes < 310_000
    diff = client.diff_models(first.ref, changed.ref)
    assert (diff.added, diff.removed, diff.changed) == (("part-x",), ("part-4",), ("part-3",))
    assert len(diff.same) == 8 and diff.new_bytes == 300_000
    assert client.diff_models(first.ref, again.ref).metadata == ("again",)


def test_of_a_large_file_that_changed_a_little_little_is_sent(client: Client, tmp_path: Path) -> None:
    data = bytearray(bytes_of(40 * MIB, 5))
    folder = written(tmp_path / "model", {"checkpoint": bytes(data)})
    client.push_model(folder, f"{BASE}/delta")
    chance = random.Random(6)
    for round_number in range(3):
        for _ in range(3):
            at = chance.randrange(len(data) - 100_000)
            data[at : at + 40_000] = chance.randbytes(40_000)
        # What is inserted moves everything behind it.
        data[1_000_000:1_000_000] = b"inserted" * (round_number + 1)
        (folder / "checkpoint").write_bytes(data)
        pushed = client.push_model(folder, f"{BASE}/delta")
        assert pushed.sent_bytes < 0.05 * pushed.size, pushed
        assert client.verify_model(pushed.ref, reads=True).problems == ()
        pulled = client.pull_model(f"{BASE}/delta", tmp_path / f"copy-{round_number}", copies=True)
        assert (pulled.folder / "checkpoint").read_bytes() == data
    assert len(client.read_manifest(f"{BASE}/delta").files[0].extents) > 6
    again = client.push_model(folder, f"{BASE}/delta")
    assert again.sent_bytes < 10 * KIB
    (folder / "checkpoint").write_bytes(bytes_of(20 * MIB, 7))
    assert client.push_model(folder, f"{BASE}/delta").sent_bytes > 20 * MIB


def test_aliases_move_by_compare_and_swap(client: Client, tmp_path: Path) -> None:
    model = f"{BASE}/aliases"
    versions = [
        client.push_model(written(tmp_path / "model", {"a": bytes([number])}), model, aliases=["latest", f"v{number}"])
        for number in range(3)
    ]
    listed = client.list_versions(model)
    assert [one.version for one in listed] == [one.version for one in versions]
    assert [one.aliases for one in listed] == [("v0",), ("v1",), ("latest", "v2")]
    client.set_alias(versions[0].ref, "prod", expected=None)
    with pytest.raises(PreconditionFailed):
        client.set_alias(versions[1].ref, "prod", expected=None)
    with pytest.raises(PreconditionFailed):
        client.set_alias(versions[1].ref, "prod", expected=versions[2].version)
    client.set_alias(versions[1].ref, "prod", expected=versions[0].version)
    assert client.pull_model(f"{model}@prod").version == versions[1].version
    client.set_alias(f"{model}@v2", "prod")
    assert client.pull_model(f"{model}@prod").version == versions[2].version
    client.delete_alias(model, "v0")
    with pytest.raises(NameNotFound):
        client.pull_model(f"{model}@v0")
    for wrong in ("", "a/b", "-a", "a" * 65, versions[0].version, "ä"):
        with pytest.raises(BadRequest):
            client.set_alias(versions[0].ref, wrong)
    with pytest.raises(NameNotFound):
        client.set_alias(f"{model}@20200101T000000Z-0123456789abcdef", "prod")


def test_of_many_who_swap_an_alias_each_sees_the_one_before(client: Client, tmp_path: Path) -> None:
    model = f"{BASE}/contended"
    first = client.push_model(written(tmp_path / "model", {"a": b"first"}), model, aliases=["prod"])
    others = [
        client.push_model(written(tmp_path / "model", {"a": bytes([number])}), model, aliases=[]) for number in range(8)
    ]
    won: list[str] = []

    def swap(ref: str, version: str) -> None:
        with suppress(PreconditionFailed):
            client.set_alias(ref, "prod", expected=first.version)
            won.append(version)

    threads = [threading.Thread(target=swap, args=(one.ref, one.version)) for one in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(won) == 1
    assert client.pull_model(f"{model}@prod").version == won[0]


def test_two_pushes_of_one_alias_both_arrive_and_one_is_last(client: Client, tmp_path: Path) -> None:
    model = f"{BASE}/two"
    found: list[Pushed] = []

    def push(number: int) -> None:
        folder = written(tmp_path / str(number), {"a": bytes_of(100_000, number), "shared": bytes_of(100_000, 77)})
        found.append(client.push_model(folder, model))

    threads = [threading.Thread(target=push, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    versions = {one.version for one in client.list_versions(model)}
    assert versions == {one.version for one in found} and len(versions) == 4
    assert client.pull_model(model).version in versions
    assert all(client.verify_model(one.ref, reads=True).problems == () for one in found)


def test_models_and_versions_are_deleted_with_their_aliases(client: Client, tmp_path: Path) -> None:
    model = f"{BASE}/deleted"
    pushed = [
        client.push_model(written(tmp_path / "model", {"a": bytes([number])}), model, aliases=[f"v{number}", "latest"])
        for number in range(3)
    ]
    client.push_model(tmp_path / "model", f"{model}/below")
    assert client.delete_model(pushed[2].ref) == [pushed[2].version]
    assert [one.aliases for one in client.list_versions(model)] == [("v0",), ("v1",)]
    with pytest.raises(NameNotFound):
        client.pull_model(f"{model}@latest")
    with pytest.raises(BadRequest):
        client.delete_model(f"{model}@v0")
    assert sorted(client.delete_model(model)) == sorted(one.version for one in pushed[:2])
    assert client.list_versions(model) == []
    assert client.list_models(model) == [f"{model}/below"]


@pytest.mark.parametrize("wrong", ["", "a/b", "a/b/", "a/b/.c", "a/b/../c", "a/b/c@", "a/b/c@!", "a/b/c@v/", "/a/b/c"])
def test_what_names_no_model_is_refused(client: Client, wrong: str) -> None:
    with pytest.raises((BadRequest, NameNotFound)):
        client.pull_model(wrong)


def test_what_no_model_can_have_is_refused_and_nothing_appears(client: Client, tmp_path: Path) -> None:
    folder = written(tmp_path / "model", {"a": b"a", "sub/b": b"b"})

    def refused(part: str) -> None:
        with pytest.raises(BadRequest, match=part):
            client.push_model(folder, f"{BASE}/refused")

    (folder / "loop").symlink_to(folder / "sub")
    refused("loop")
    for pattern in ("loop", "loop/*", "l*"):
        pushed = client.push_model(folder, f"{BASE}/ignored", ignore_patterns=pattern)
        assert [file.path for file in client.read_manifest(pushed.ref).files] == ["a", "sub/b"]
    with pytest.raises(BadRequest, match="loop"):
        client.push_model(folder, f"{BASE}/refused", ignore_patterns=["loop.*", "sub/loop"])
    (folder / "loop").unlink()
    (folder / "dangling").symlink_to(folder / "gone")
    refused("dangling")
    (folder / "dangling").unlink()
    os.mkfifo(folder / "pipe")
    refused("pipe")
    (folder / "pipe").unlink()
    strange = os.fsencode(folder) + b"/\xff"
    Path(os.fsdecode(strange)).write_bytes(b"x")
    refused("UTF-8")
    Path(os.fsdecode(strange)).unlink()
    (tmp_path / "nothing").mkdir()
    with pytest.raises(BadRequest):
        client.push_model(tmp_path / "nothing", f"{BASE}/refused")
    with pytest.raises(FileNotFoundError):
        client.push_model(tmp_path / "missing", f"{BASE}/refused")
    assert client.list_versions(f"{BASE}/refused") == []


def test_a_file_that_changes_while_it_is_pushed_is_noticed(client: Client, tmp_path: Path) -> None:
    folder = written(tmp_path / "model", {"a": b"a" * 1000, "z": b"z"})

    def change(done: int, total: int) -> None:
        with (folder / "z").open("ab") as file:
            file.write(b"more")

    def push_often() -> None:
        for _ in range(200):
            client.push_model(folder, f"{BASE}/changing", aliases=[], progress=change)

    stop = threading.Event()

    def keep_changing() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            (folder / "large").write_bytes(bytes([number % 256]) * (8 * MIB))

    (folder / "large").write_bytes(bytes(8 * MIB))
    thread = threading.Thread(target=keep_changing)
    thread.start()
    try:
        with pytest.raises(FileChanged):
            push_often()
    finally:
        stop.set()
        thread.join(30)
    for one in client.list_versions(f"{BASE}/changing"):
        assert client.verify_model(one.ref, reads=True).problems == ()


def test_nothing_is_written_through_links_of_the_target(client: Client, tmp_path: Path) -> None:
    pushed = client.push_model(written(tmp_path / "model", {"sub/a": b"a", "b": b"b"}), f"{BASE}/through")
    outside = written(tmp_path / "outside", {"keep": b"keep"})
    target = tmp_path / "target"
    target.mkdir()
    (target / "sub").symlink_to(outside)
    with pytest.raises(BadRequest):
        client.pull_model(pushed.ref, target)
    (target / "sub").unlink()
    (target / "b").unlink(missing_ok=True)
    (target / "b").symlink_to(outside / "keep")
    client.pull_model(pushed.ref, target)
    assert tree(target) == {"sub/a": b"a", "b": b"b"}
    assert tree(outside) == {"keep": b"keep"}


def test_the_next_pull_takes_away_what_a_killed_one_left(client: Client, tmp_path: Path) -> None:
    pushed = client.push_model(written(tmp_path / "model", {"sub/a": b"a", "b": b"b"}), f"{BASE}/left")
    left = f".{'0' * 32}.7.140000000000000.ambry-part"
    target = written(tmp_path / "target", {left: b"l", f"sub/{left}": b"l", f"own/{left}": b"l", ".x.ambry-part": b"x"})
    client.pull_model(pushed.ref, target, copies=True)
    assert sorted(tree(target)) == [".x.ambry-part", "b", f"own/{left}", "sub/a"]


def test_files_of_the_folder_that_differ_are_replaced_and_others_stay(client: Client, tmp_path: Path) -> None:
    pushed = client.push_model(written(tmp_path / "model", {"a": b"aaaa", "b": b"bbbb"}), f"{BASE}/replaced")
    target = written(tmp_path / "target", {"a": b"xxxx", "mine": b"mine"})
    for copies in (True, False):
        client.pull_model(pushed.ref, target, copies=copies)
        assert tree(target) == {"a": b"aaaa", "b": b"bbbb", "mine": b"mine"}
    copied = client.pull_model(pushed.ref, target, copies=True).folder / "a"
    copied.write_bytes(b"yyyy")
    assert client.pull_model(pushed.ref, tmp_path / "other").loaded_bytes == 0
    assert (tmp_path / "other/a").read_bytes() == b"aaaa"
    assert client.verify_model(pushed.ref, target).problems == ("a: does not have its SHA-256",)


def test_models_are_reached_by_the_asynchronous_client_too(url: str, tmp_path: Path) -> None:
    import asyncio  # noqa: PLC0415 -- only this test has a loop

    from ambry.client import AsyncClient  # noqa: PLC0415 -- it brings asyncio

    async def story() -> None:
        async with AsyncClient(url, cache=tmp_path / "cache") as client:
            pushed = await client.push_model(written(tmp_path / "model", {"a": b"a"}), f"{BASE}/loop")
            assert (await client.pull_model(f"{BASE}/loop", tmp_path / "copy")).version == pushed.version
            assert [one.version for one in await client.list_versions(f"{BASE}/loop")] == [pushed.version]

    asyncio.run(story())


def test_a_model_has_the_same_content_in_every_cache(client: Client, tmp_path: Path) -> None:
    models = client._models()
    assert isinstance(models, Models)
    pushed = client.push_model(written(tmp_path / "model", {"a": bytes_of(50_000)}), f"{BASE}/same")
    pulled = client.pull_model(pushed.ref)
    digest = client.read_manifest(pushed.ref).files[0].sha256
    assert (pulled.folder / "a").samefile(tmp_path / "cache/content" / digest[:2] / digest)
