"""`ambry://` for fsspec: its own abstract suite, and what the suite does not ask."""

import asyncio
import contextlib
import itertools
import random
import time
import tomllib
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
import pytest
from click.testing import CliRunner
from fsspec.tests import abstract

from ambry.cli.main import main
from ambry.client import AsyncClient, Client
from ambry.client.fs import AmbryFileSystem

fsspec.register_implementation("ambry", AmbryFileSystem, clobber=True)
_places = itertools.count()


class Fixtures(abstract.AbstractFixtures):
    @pytest.fixture
    def fs(self, url: str) -> AmbryFileSystem:
        return AmbryFileSystem(url=url, skip_instance_cache=True)

    @pytest.fixture
    def fs_path(self) -> str:
        return f"default/default/fs-{next(_places)}"

    @pytest.fixture
    def fs_join(self) -> Any:
        return lambda *parts: "/".join(parts)

    @pytest.fixture
    def supports_empty_directories(self) -> bool:
        return False


class TestCopy(abstract.AbstractCopyTests, Fixtures):
    pass


class TestGet(abstract.AbstractGetTests, Fixtures):
    pass


class TestPut(abstract.AbstractPutTests, Fixtures):
    pass


class TestOpen(abstract.AbstractOpenTests, Fixtures):
    pass


class TestPipe(abstract.AbstractPipeTests, Fixtures):
    pass


@pytest.fixture
def fs(url: str) -> AmbryFileSystem:
    return AmbryFileSystem(url=url, skip_instance_cache=True)


@pytest.fixture
def base() -> str:
    return f"default/default/own-{next(_places)}"


def test_a_file_appears_when_it_is_closed_and_not_if_it_breaks_off(fs: AmbryFileSystem, base: str) -> None:
    with fs.open(f"{base}/a", "wb") as file:
        file.write(b"hel")
        assert not fs.exists(f"{base}/a")
        file.write(b"lo")
    assert fs.cat_file(f"{base}/a", 1, -1) == b"ell"
    with contextlib.suppress(ZeroDivisionError), fs.open(f"{base}/b", "wb") as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert not fs.exists(f"{base}/b")
    with fs.open(f"{base}/a", "ab") as file:
        file.write(b" you")
    with fs.open(f"ambry://{base}/a", "r") as file:
        assert file.read() == "hello you"
    with pytest.raises(FileNotFoundError):
        fs.open(f"{base}/never")


def test_a_rename_is_one_change_of_a_name(fs: AmbryFileSystem, base: str) -> None:
    fs.pipe_file(f"{base}/old", b"x")
    before = fs.info(f"{base}/old")["id"]
    fs.mv(f"{base}/old", f"{base}/new")
    assert fs.info(f"{base}/new")["id"] == before
    assert not fs.exists(f"{base}/old")
    with pytest.raises(FileNotFoundError):
        fs.mv_file(f"{base}/old", f"{base}/new")


def test_a_file_is_as_old_as_its_blob(fs: AmbryFileSystem, base: str) -> None:
    fs.pipe_file(f"{base}/a", b"x")
    now = datetime.now(UTC)
    # The store's clock is this machine's, in whole seconds.
    assert now - timedelta(minutes=1) < fs.created(f"{base}/a") <= now
    assert fs.modified(f"{base}/a") == fs.created(f"{base}/a")
    made = fs.created(f"{base}/a")
    # The next second, so that what is as old as that cannot be taken for what is new.
    while datetime.now(UTC) < made + timedelta(seconds=1):
        time.sleep(0.01)
    fs.cp_file(f"{base}/a", f"{base}/copy")
    fs.mv_file(f"{base}/a", f"{base}/moved")
    # A copy is a blob of its own, and what is renamed stays the same.
    assert fs.created(f"{base}/moved") == made < fs.created(f"{base}/copy")


def test_lists_walks_and_removals(fs: AmbryFileSystem, base: str) -> None:
    fs.pipe({f"{base}/a": b"1", f"{base}/d/b": b"22", f"{base}/d/e/c": b"333"})
    assert sorted(fs.ls(base, detail=False)) == [f"{base}/a", f"{base}/d"]
    assert sorted(fs.find(base)) == [f"{base}/a", f"{base}/d/b", f"{base}/d/e/c"]
    assert fs.du(base) == 6
    assert sorted(fs.glob(f"{base}/**/c")) == [f"{base}/d/e/c"]
    assert fs.isdir(f"{base}/d") and not fs.isfile(f"{base}/d")
    fs.rm(f"{base}/d", recursive=True)
    assert fs.find(base) == [f"{base}/a"]
    with pytest.raises(FileNotFoundError):
        fs.ls(f"{base}/d")


def test_a_directory_is_renamed_in_the_store_and_keeps_its_ids(fs: AmbryFileSystem, base: str) -> None:
    fs.pipe({f"{base}/d/a": b"1", f"{base}/d/e/b": b"2", f"{base}/d/e/f/c": b"3"})
    before = {path[len(base) + 3 :]: info["id"] for path, info in fs.find(f"{base}/d", detail=True).items()}
    fs.mv(f"{base}/d", f"{base}/new", recursive=True)
    after = {path[len(base) + 5 :]: info["id"] for path, info in fs.find(f"{base}/new", detail=True).items()}
    assert after == before and len(after) == 3
    assert not fs.exists(f"{base}/d")
    fs.mv(f"{base}/new", f"{base}/new/below", recursive=True)
    assert sorted(fs.find(base)) == [f"{base}/new/below/{name}" for name in ("a", "e/b", "e/f/c")]
    with pytest.raises(FileNotFoundError):
        fs.mv(f"{base}/never", f"{base}/x", recursive=True)
    with pytest.raises(ValueError, match="itself"):
        fs.mv([f"{base}/new/below/a", f"{base}/new/below/e/b"], [f"{base}/new/below/e/b", f"{base}/x"])
    fs.mv([f"{base}/new/below/a", f"{base}/new/below/e/b"], [f"{base}/1", f"{base}/2"])
    fs.mv(f"{base}/new/**/c", f"{base}/into/")
    assert sorted(fs.find(base)) == [f"{base}/1", f"{base}/2", f"{base}/into/c"]


def test_names_that_models_need_are_spared(fs: AmbryFileSystem, url: str, tmp_path: Path) -> None:
    made = CliRunner().invoke(main, ["container", "create", "models"], env={"AMBRY_URL": url})
    assert made.exit_code == 0
    with Client(url) as client:
        (tmp_path / "weights").write_bytes(b"w")
        client.push_model(tmp_path, "default/models/net")
        fs.pipe_file("default/models/file", b"f")
        with pytest.raises(PermissionError, match="models=True"):
            fs.rm("default/models", recursive=True)
        with pytest.raises(PermissionError, match="models=True"):
            fs.mv("default/models", "default/models/old", recursive=True)
        assert fs.exists("default/models/file")
        assert not client.verify_model("default/models/net", reads=True).problems
    fs.rm("default/models", recursive=True, models=True)
    assert fs.find("default/models") == []


def test_ranges_are_those_of_slices_and_neighbours_come_together(
    fs: AmbryFileSystem, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"{base}/{name}": random.Random(name).randbytes(300_000) for name in "ab"} | {f"{base}/empty": b""}
    fs.pipe(files)
    chance = random.Random(7)
    ends: list[int | None] = [None, 0, 1, -1, -70_000, 300_000, 400_000]
    wanted: list[tuple[Any, ...]] = [
        (path, *(chance.choice([*ends, *(chance.randrange(300_000) for _ in range(9))]) for _ in range(2)))
        for path in [*files] * 40
    ]
    expected = [files[path][start:stop] for path, start, stop in wanted]
    paths, starts, stops = (list(column) for column in zip(*wanted, strict=True))
    assert fs.cat_ranges(paths, starts, stops, on_error="raise") == expected
    assert fs.cat_ranges(paths, starts, stops, max_gap=0) == expected
    asked: list[tuple[object, ...]] = []
    ask = AsyncClient.get

    def get(self: AsyncClient, *one: Any) -> Any:
        asked.append(one)
        return ask(self, *one)

    monkeypatch.setattr(AsyncClient, "get", get)
    monkeypatch.delattr(AsyncClient, "stat")
    found = fs.cat_ranges([f"{base}/a"] * 100, range(0, 100_000, 1000), range(900, 100_900, 1000))
    assert found == [files[f"{base}/a"][at : at + 900] for at in range(0, 100_000, 1000)]
    assert asked == [(f"{base}/a", 0, 99_900)]
    errors = fs.cat_ranges([f"{base}/a", f"{base}/never"], 0, 2)
    assert errors[0] == files[f"{base}/a"][:2] and isinstance(errors[1], FileNotFoundError)


def test_urls_can_be_signed_and_files_touched(fs: AmbryFileSystem, base: str) -> None:
    fs.pipe_file(f"{base}/a", b"signed")
    with urllib.request.urlopen(fs.sign(f"ambry://{base}/a", expiration=60)) as answer:
        assert answer.read() == b"signed"
    fs.touch(f"{base}/a", truncate=False)
    assert fs.cat_file(f"{base}/a") == b"signed"
    fs.touch(f"{base}/a")
    fs.touch(f"{base}/b", truncate=False)
    assert fs.cat_file(f"{base}/a") == fs.cat_file(f"{base}/b") == b""


def test_files_can_be_awaited(url: str, base: str) -> None:
    async def work() -> None:
        fs = AmbryFileSystem(url=url, asynchronous=True, skip_instance_cache=True)
        async with await fs.open_async(f"{base}/a", "wb") as file:
            assert await file.write(b"hello\nyou") == 9 and file.tell() == 9
        async with await fs.open_async(f"{base}/a") as file:
            assert await file.readline() == b"hello\n"
            assert await file.seek(1) == 1 and await file.read() == b"ello\nyou"
        with contextlib.suppress(ZeroDivisionError):
            async with await fs.open_async(f"{base}/b", "w", compression="gzip") as file:
                await file.write("half")
                raise ZeroDivisionError
        assert not await fs._exists(f"{base}/b")

    asyncio.run(work())


def test_it_is_registered_under_its_scheme() -> None:
    document = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    assert document["project"]["entry-points"]["fsspec.specs"] == {"ambry": "ambry.client.fs:AmbryFileSystem"}
