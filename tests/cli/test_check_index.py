"""`ambry datanode check` of a stopped disk says what was wrong with its index, and that it has been made anew."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from click.testing import CliRunner, Result

from ambry.cli.main import main
from ambry.clock import SystemClock
from ambry.config import StorageSettings
from ambry.limits import GIB
from ambry.storage.real_disk import RealDisk
from ambry.storage.recovery import open_store
from ambry.storage.rocks_index import RocksIndexSource
from tests.storage.engine import blob_id, body_of, put

BLOBS: Final = 600
SETTINGS: Final = StorageSettings(journal_bytes=16 << 20, reserve_bytes=0)


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    """A disk that was closed in order, with blocks of its index that no opening reads."""
    folder = tmp_path / "disk"
    folder.mkdir()
    disk = RealDisk(folder)
    disk.lock()
    index = RocksIndexSource(folder / "index", SETTINGS.index_cache_bytes, SETTINGS.index_memtable_bytes)
    store, _ = open_store(
        disk, index, settings=SETTINGS, clock=SystemClock(), random_bytes=os.urandom, partitions={1: GIB}
    )
    for first in range(0, BLOBS, 100):
        store.commit([put(blob_id(n), body_of(n, 100)) for n in range(first, first + 100)])
    store.close()
    disk.unlock()
    return folder


def check(folder: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["datanode", "check", str(folder), *options])


def tables(folder: Path) -> list[Path]:
    return sorted((folder / "index").glob("*.sst"))


def largest(folder: Path) -> Path:
    return max(tables(folder), key=lambda path: path.stat().st_size)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 16
    path.write_bytes(data)


def flip_all(folder: Path) -> str:
    for path in tables(folder):
        flip(path, -4)
    return ".sst"


def remove_one(folder: Path) -> str:
    path = largest(folder)
    path.unlink()
    return path.name


def remove_all(folder: Path) -> str:
    shutil.rmtree(folder / "index")
    return "it is missing"


def findings(result: Result) -> list[str]:
    assert result.exit_code == 1, result.output
    report: dict[str, Any] = json.loads(result.stdout)
    assert report["records"] == BLOBS
    return [one["what"] for one in report["findings"]]


@pytest.mark.parametrize("harm", [flip_all, remove_one, remove_all])
def test_an_index_that_the_opening_made_anew_is_a_finding_with_its_reason(
    folder: Path, harm: Callable[[Path], str]
) -> None:
    reason = harm(folder)
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    (what,) = findings(check(folder, "--json"))
    assert what.startswith("the index was made anew: ")
    assert reason in what
    told = check(copy)
    assert told.exit_code == 1
    assert "the index was made anew: " in told.output
    assert "1 wrong" in told.output
    fine = check(folder)
    assert (fine.exit_code, "all fine" in fine.output) == (0, True), "it is whole again"


def test_a_damaged_block_of_the_index_that_the_check_itself_meets_is_one_finding_and_the_logs_are_read_on(
    folder: Path,
) -> None:
    path = largest(folder)
    flip(path, 2000)
    (what,) = findings(check(folder, "--json"))
    assert what.startswith("the index is damaged")
    assert "--rebuild" in what
    assert path.name in what
    assert check(folder, "--rebuild").exit_code == 0
    assert check(folder).exit_code == 0
