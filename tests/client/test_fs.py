"""`ambry://` for fsspec: its own abstract suite, and what the suite does not ask."""

import contextlib
import itertools
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.tests import abstract

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
    fs.cp_file(f"{base}/a", f"{base}/b")
    assert fs.created(f"{base}/b") == fs.created(f"{base}/a")


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


def test_it_is_registered_under_its_scheme() -> None:
    document = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    assert document["project"]["entry-points"]["fsspec.specs"] == {"ambry": "ambry.client.fs:AmbryFileSystem"}
