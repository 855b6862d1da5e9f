"""The client against a store that runs: blobs by id and by name, files, folders, batches."""

import asyncio
import io
import multiprocessing
import os
import random
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ambry.client import AsyncClient, Client
from ambry.errors import (
    AmbryError,
    BadConfiguration,
    BadRequest,
    BlobDeleted,
    BlobNotFound,
    FileChanged,
    NameDeleted,
    NameExists,
    NameNotFound,
    RangeNotSatisfiable,
)
from ambry.limits import MIB
from tests.client.conftest import bytes_of

BASE = "default/default"
UNKNOWN = "AQEAAQAAAAEAAAABAAAAAQ" + "A" * 21


@pytest.mark.parametrize("size", [0, 1, 4096, 64 * 1024 + 1, 9 * MIB + 7])
@pytest.mark.parametrize("kind", ["bytes", "file", "pieces"])
def test_what_is_put_is_got(client: Client, size: int, kind: str) -> None:
    data = bytes_of(size)
    source: Any = {"bytes": data, "file": io.BytesIO(data), "pieces": iter([data[:1000], b"", data[1000:]])}[kind]
    stored = client.put(source, content_type="text/plain", filename="a ä", ttl_s=3600, metadata={"k": "ä b/c+d"})
    assert stored.size == size
    assert client.get(stored.id) == data
    info = client.stat(stored.id)
    assert (info.id, info.size, info.content_type, info.ttl_s) == (stored.id, size, "text/plain", 3600)
    assert info.metadata == {"k": "ä b/c+d"}
    assert set(info.digests) == {"xxh3"}
    if size > 10:
        assert client.get(stored.id, 3, 9) == data[3:9]
        assert client.get(stored.id, size - 2) == data[-2:]
    assert client.get(stored.id, 5, 5) == b""
    client.delete(stored.id)
    client.delete(stored.id)
    with pytest.raises(BlobDeleted):
        client.get(stored.id)
    assert not client.exists(stored.id)
    client.undelete(stored.id)
    client.extend(stored.id, None)
    assert client.stat(stored.id).ttl_s is None


def test_errors_are_those_of_the_store_and_say_what_was_tried(client: Client) -> None:
    with pytest.raises(BlobNotFound) as caught:
        client.stat(UNKNOWN)
    assert caught.value.facts["request_id"]
    assert len(caught.value.facts["attempts"]) == 1  # type: ignore[arg-type] # the list of attempts
    with pytest.raises(RangeNotSatisfiable):
        client.get(client.put(b"abc").id, 7)
    for wrong in ("", "short", "a/b", "/x/y", UNKNOWN + "!", "ambry://a/b"):
        with pytest.raises(BadRequest):
            client.get(wrong)
    with pytest.raises(BadRequest):
        client.get(UNKNOWN, -5)


def test_names_are_put_listed_copied_moved_and_deleted(client: Client) -> None:
    base = f"{BASE}/names"
    names = ["a.txt", "sub/b c.txt", "sub/ü?#%.txt", "sub/deep/d"]
    for number, name in enumerate(names):
        client.put(f"body {number}".encode(), f"ambry://{base}/{name}")
    with pytest.raises(NameExists):
        client.put(b"again", f"{base}/a.txt")
    stored = client.put(b"again", f"{base}/a.txt", upsert=True)
    assert client.get(f"{base}/a.txt") == b"again"
    assert client.stat(f"{base}/a.txt").id == stored.id
    with pytest.raises(AmbryError):
        client.put(b"x", f"{base}/a.txt", if_match=UNKNOWN)
    client.put(b"third", f"{base}/a.txt", if_match=stored.id)
    assert stored.version is not None
    assert client.get(f"{base}/a.txt", version=stored.version) == b"again"
    listed = {entry.name: entry for entry in client.list(f"{base}/")}
    assert sorted(listed) == sorted(f"names/{name}" for name in names)
    assert listed["names/a.txt"].size == 5
    top = list(client.list(f"{base}/", delimiter="/"))
    assert [(entry.name, entry.is_directory) for entry in top] == [("names/a.txt", False), ("names/sub/", True)]
    client.copy(f"{base}/sub/b c.txt", f"{base}/copy")
    client.move(f"{base}/sub/ü?#%.txt", f"{base}/moved ü")
    assert (client.get(f"{base}/copy"), client.get(f"{base}/moved ü")) == (b"body 1", b"body 2")
    with pytest.raises(NameDeleted):
        client.get(f"{base}/sub/ü?#%.txt")
    with pytest.raises(NameNotFound):
        client.get(f"{base}/never")
    with pytest.raises(BadRequest):
        client.move(f"{base}/copy", "default/other/copy")
    client.delete(f"{base}/copy")
    assert not client.exists(f"{base}/copy")


def test_a_blob_is_a_file_that_can_be_sought(client: Client) -> None:
    data = bytes_of(300_000)
    with client.open(client.put(data).id, read_ahead=10_000) as file:
        chance = random.Random(7)
        for _ in range(50):
            at, size = chance.randrange(310_000), chance.randrange(20_000)
            file.seek(at)
            assert file.read(size) == data[at : at + size]
        file.seek(-5, io.SEEK_END)
        assert file.read() == data[-5:]
        assert (file.tell(), file.seek(0), file.readable()) == (300_000, 0, True)
        assert io.BufferedReader(file).read() == data
    with pytest.raises(ValueError, match="before the beginning"), client.open(client.put(b"x").id) as file:
        file.seek(-1)


@pytest.mark.parametrize("size", [0, 5, 3 * MIB, 21 * MIB + 11])
def test_a_file_comes_back_and_progress_adds_up(client: Client, tmp_path: Path, size: int) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(bytes_of(size))
    seen: list[tuple[int, int]] = []
    stored = client.upload_file(source, progress=lambda done, total: seen.append((done, total)))
    if size:
        assert seen[-1] == (size, size)
    seen.clear()
    client.download_file(stored.id, target, part_bytes=MIB, progress=lambda done, total: seen.append((done, total)))
    assert target.read_bytes() == source.read_bytes()
    if size:
        assert seen[-1] == (size, size)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]


def test_a_download_goes_on_where_another_process_ended_and_bad_parts_come_again(
    client: Client, tmp_path: Path
) -> None:
    data = bytes_of(8 * MIB)
    target = tmp_path / "target"
    stored = client.put(data)

    class Cut(Exception):
        """The user has had enough."""

    def cut(done: int, total: int) -> None:
        if done >= total // 2:
            raise Cut

    with pytest.raises(Cut):
        client.download_file(stored.id, target, part_bytes=MIB, progress=cut)
    assert not target.exists()
    part, parts = tmp_path / ".target.ambry-part", tmp_path / ".target.ambry-parts"
    lines = parts.read_text(encoding="utf-8").splitlines()
    assert len(lines) > 2
    with part.open("r+b") as file:
        file.seek(int(lines[1].strip("[]").split(",")[0]) * MIB + 17)
        file.write(b"\0\1\2\3")
    parts.write_text("\n".join(lines) + "\n[nonsense\n", encoding="utf-8")
    seen: list[int] = []
    with pytest.warns(RuntimeWarning, match="damaged"):
        client.download_file(stored.id, target, part_bytes=MIB, progress=lambda done, _: seen.append(done))
    assert target.read_bytes() == data
    assert not part.exists() and not parts.exists()


def test_a_file_that_changes_while_it_is_read_is_not_stored(client: Client, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(3 * MIB))

    def change(done: int, total: int) -> None:
        if done < total:
            with source.open("ab") as file:
                file.write(b"more")

    with pytest.raises(FileChanged):
        client.upload_file(source, f"{BASE}/changed", progress=change)
    assert not client.exists(f"{BASE}/changed")


def test_a_folder_comes_back(client: Client, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for number in range(120):
        path = source / f"{number % 7}" / f"file {number} ü"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes_of(number * 50, number))
    (source / "link").symlink_to(source / "1" / "file 1 ü")
    stored = client.upload_dir(source, f"{BASE}/folder")
    assert len(stored) == 121
    found = client.download_dir(f"{BASE}/folder", tmp_path / "copy")
    assert len(found) == 121
    for path in found:
        assert path.read_bytes() == (source / path.relative_to(tmp_path / "copy")).read_bytes()


def test_a_name_never_leads_out_of_a_folder(tmp_path: Path) -> None:
    from ambry.client.folders import target_of  # noqa: PLC0415 -- what the claim is about

    assert target_of(tmp_path, "a/b") == tmp_path / "a/b"
    for name in ("../x", "a/../../x", "/x", "a//b", "", ".", "a/.", "a\0b"):
        with pytest.raises(BadRequest):
            target_of(tmp_path, name)


def test_batches(client: Client) -> None:
    bodies = [bytes_of(number * 37, number) for number in range(1200)]
    stored = client.put_many(iter(bodies), content_type="text/plain")
    ids = [one.id for one in stored]
    assert [entry.body for entry in client.get_many(ids)] == bodies
    assert [one.info.size for one in client.stat_many(ids) if one.info is not None] == [len(body) for body in bodies]
    assert not any(one.error for one in client.delete_many(ids[:3]))
    entries = list(client.get_many([*ids[2:4], UNKNOWN]))
    assert [type(one.error) for one in entries] == [BlobDeleted, type(None), BlobNotFound]
    assert client.put_many([]) == [] and list(client.get_many([])) == []


def test_threads_share_a_client(client: Client) -> None:
    stored = [client.put(bytes_of(1000, seed)) for seed in range(8)]
    wrong: list[int] = []

    def read(seed: int) -> None:
        wrong.extend(seed for _ in range(20) if client.get(stored[seed].id) != bytes_of(1000, seed))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not wrong


def _child(client: Client, blob_id: str, wanted: bytes) -> None:
    os._exit(0 if all(client.get(blob_id) == wanted for _ in range(20)) else 1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_client_works_on_both_sides_of_a_fork(client: Client) -> None:
    data = bytes_of(5000)
    stored = client.put(data)
    assert client.get(stored.id) == data
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_child, args=(client, stored.id, data)) for _ in range(3)]
    for child in children:
        child.start()
    assert all(client.get(stored.id) == data for _ in range(20))
    for child in children:
        child.join(30)
    assert [child.exitcode for child in children] == [0, 0, 0]


def test_the_asynchronous_client_does_the_same(url: str, tmp_path: Path) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for number in range(5):
            yield bytes([number]) * 1000

    async def story() -> None:
        async with AsyncClient(url) as client:
            stored = await client.put_stream(pieces(), f"{BASE}/async/a", upsert=True)
            assert await client.get(f"{BASE}/async/a") == b"".join(bytes([n]) * 1000 for n in range(5))
            many = await asyncio.gather(*(client.put(bytes([n])) for n in range(50)))
            got = [entry.body async for entry in client.get_many([one.id for one in many])]
            assert got == [bytes([n]) for n in range(50)]
            assert [one.name async for one in client.list(f"{BASE}/async/")] == ["async/a"]
            await client.download_file(stored.id, tmp_path / "file")
            assert (tmp_path / "file").stat().st_size == 5000
            await client.delete(f"{BASE}/async/a")
            with pytest.raises(NameDeleted):
                await client.stat(f"{BASE}/async/a")

    asyncio.run(story())


def test_the_two_clients_have_the_same_methods() -> None:
    def methods(cls: type) -> set[str]:
        return {name for name in dir(cls) if not name.startswith("_")}

    assert methods(Client) == methods(AsyncClient)


def test_settings_come_from_arguments_then_the_environment_then_a_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "client.toml"
    file.write_text(
        '[default]\nurl = "http://one:1"\n[profiles.two]\nurl = ["http://two:2", "three:3"]\ntoken = "secret"\n',
        encoding="utf-8",
    )
    monkeypatch.setenv("AMBRY_CLIENT_CONFIG", str(file))
    monkeypatch.delenv("AMBRY_URL", raising=False)
    assert Client()._settings.urls == ("http://one:1",)
    assert Client(profile="two")._settings.urls == ("http://two:2", "http://three:3")
    assert Client(profile="two")._settings.token == "secret"
    monkeypatch.setenv("AMBRY_URL", "http://four:4,http://five:5")
    assert Client(profile="two")._settings.urls == ("http://four:4", "http://five:5")
    assert Client("http://six:6", token="mine")._settings.token == "mine"
    settings: tuple[dict[str, Any], ...] = (
        {"profile": "none"},
        {"url": "ftp://x"},
        {"url": []},
        {"url": "http://x/path"},
    )
    for wrong in settings:
        with pytest.raises(BadConfiguration):
            Client(**wrong)
    file.write_text("[default]\nulr = 1\n", encoding="utf-8")
    with pytest.raises(BadConfiguration, match="ulr"):
        Client()


def test_the_import_is_fast_and_brings_no_server() -> None:
    # Time of the processor, beside that of a part of Python's own: aiohttp alone takes four times as long as asyncio.
    program = (
        "import sys, time; began = time.process_time(); import {}; took = time.process_time() - began;"
        "heavy = {{'aiohttp', 'uvloop', 'rocksdict', 'kazoo', 'click', 'rich', 'msgpack', 'http.client'}};"
        "print(took); print(sorted(heavy & set(sys.modules)))"
    )
    runs: dict[str, list[float]] = {"ambry.client": [], "asyncio": []}
    for name, took in list(runs.items()) * 5:
        command = [sys.executable, "-c", program.format(name)]
        seconds, heavy = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        assert heavy == "[]"
        took.append(float(seconds))
    assert min(runs["ambry.client"]) < 3 * min(runs["asyncio"]), runs


def test_the_examples_of_the_page_run(url: str) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/client.md").read_text(encoding="utf-8")
    programs = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert programs
    for program in programs:
        text = program.replace("http://127.0.0.1:1174", url)
        result = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
