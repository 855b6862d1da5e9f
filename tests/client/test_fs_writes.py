"""What is written through fsspec is stored whole or not at all, whatever it is wrapped in, and whatever fails."""

import contextlib
import errno
import gc
import gzip
import hashlib
import io
import itertools
import os
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pytest

from ambry.client import Client
from ambry.client.fs import AmbryFileSystem
from ambry.limits import MIB

fsspec.register_implementation("ambry", AmbryFileSystem, clobber=True)
_places = itertools.count()

WAYS: dict[str, Callable[[Any, str], Any]] = {
    "bytes": lambda fs, path: fs.open(path, "wb"),
    "text": lambda fs, path: fs.open(path, "w"),
    "compressed": lambda fs, path: fs.open(path, "wb", compression="gzip"),
    "compressed text": lambda fs, path: fs.open(path, "wt", compression="gzip", encoding="utf-8"),
    "fsspec bytes": lambda fs, path: fsspec.open(f"ambry://{path}", "wb", endpoint_url=fs.endpoint),
    "fsspec text": lambda fs, path: fsspec.open(f"ambry://{path}", "w", endpoint_url=fs.endpoint),
    "fsspec text, opened": lambda fs, path: fsspec.open(f"ambry://{path}", "w", endpoint_url=fs.endpoint).open(),
    "text over bytes": lambda fs, path: io.TextIOWrapper(fs.open(path, "wb")),
    "buffer over bytes": lambda fs, path: io.BufferedWriter(fs.open(path, "wb")),
    "fsspec compressed": lambda fs, path: fsspec.open(
        f"ambry://{path}", "wt", compression="gzip", endpoint_url=fs.endpoint
    ),
}


class Broken(Exception):
    pass


@pytest.fixture
def fs(url: str) -> AmbryFileSystem:
    made = AmbryFileSystem(url=url, skip_instance_cache=True)
    made.endpoint = url
    return made


@pytest.fixture
def path() -> str:
    return f"default/default/written-{next(_places)}"


@pytest.fixture(params=list(WAYS))
def opened(request: pytest.FixtureRequest, fs: AmbryFileSystem, path: str) -> Callable[[], Any]:
    return lambda: WAYS[request.param](fs, path)


def fill(file: Any, size: int) -> None:
    """Bytes, or as many letters."""
    is_text = hasattr(file, "encoding")
    for _ in range(0, size, 1 << 16):
        file.write(os.urandom(1 << 15).hex() if is_text else os.urandom(1 << 16))


def test_a_file_is_stored_when_it_is_closed(opened: Callable[[], Any], fs: AmbryFileSystem, path: str) -> None:
    with opened() as file:
        fill(file, 1 << 17)
        assert not fs.exists(path)
    data = fs.cat_file(path)
    assert len(gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data) == 1 << 17


def test_a_file_left_by_an_exception_is_not_stored(opened: Callable[[], Any], fs: AmbryFileSystem, path: str) -> None:
    with pytest.raises(Broken), opened() as file:  # noqa: PT012 -- the block is what fails
        fill(file, 1 << 20)
        raise Broken
    assert not fs.exists(path)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_file_that_is_dropped_unclosed_is_not_stored(
    opened: Callable[[], Any], fs: AmbryFileSystem, path: str
) -> None:
    file = opened()
    if isinstance(file, fsspec.core.OpenFile):
        file = file.open()
    fill(file, 1 << 17)
    del file
    gc.collect()
    assert not fs.exists(path)


def test_whoever_drops_a_file_is_warned(fs: AmbryFileSystem, path: str) -> None:
    with pytest.warns(ResourceWarning, match="not stored"):
        fs.open(path, "w").write("x")


def test_a_file_of_which_a_write_failed_is_not_stored_by_closing_it(
    opened: Callable[[], Any], fs: AmbryFileSystem, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a disk that is full.
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "write", _full_at(1 << 16))
    file = opened()
    handle = file.open() if isinstance(file, fsspec.core.OpenFile) else file
    with contextlib.suppress(OSError):
        fill(handle, 1 << 20)
    with pytest.raises(OSError, match=r"not stored|No space"):
        handle.close()
    with contextlib.suppress(OSError):
        file.close()
    assert not fs.exists(path)


def _full_at(size: int) -> Callable[[Any, bytes], int]:
    write = tempfile.SpooledTemporaryFile.write

    def limited(self: Any, data: bytes) -> int:
        room = size - self.tell()
        if len(data) > room:
            write(self, data[:room])
            raise OSError(28, "No space left on device")
        return write(self, data)

    return limited


def test_an_explicit_close_in_a_handler_stores_what_there_is(fs: AmbryFileSystem, path: str) -> None:
    file = fs.open(path, "wb")
    file.write(b"until here")
    try:
        raise Broken
    except Broken:
        file.close()
    assert fs.cat_file(path) == b"until here"
    try:
        raise Broken
    except Broken:
        with fsspec.open(f"ambry://{path}-report", "w", endpoint_url=fs.endpoint) as report:
            report.write("broken")
    assert fs.cat_file(f"{path}-report") == b"broken"


def test_a_table_that_breaks_off_is_not_stored(fs: AmbryFileSystem, path: str) -> None:
    class Bad:
        def __str__(self) -> str:
            raise Broken

    options = {"endpoint_url": fs.endpoint}
    with pytest.raises(Broken):
        pd.DataFrame({"a": [*"x" * 200_000, Bad()]}).to_csv(f"ambry://{path}", storage_options=options)
    assert not fs.exists(path)
    pd.DataFrame({"a": [1]}).to_csv(f"ambry://{path}.gz", storage_options=options, index=False)
    assert gzip.decompress(fs.cat_file(f"{path}.gz")) == b"a\n1\n"


# --- transactions ----------------------------------------------------------------------------------------------


def written(fs: AmbryFileSystem, path: str, folder: Path) -> Iterator[str]:
    """Write in every way, and say each name."""
    with fs.open(f"{path}/bytes", "wb") as file:
        file.write(b"1")
    yield f"{path}/bytes"
    with fs.open(f"{path}/text", "w", compression="gzip") as file:
        file.write("2")
    yield f"{path}/text"
    fs.pipe_file(f"{path}/pipe", b"3")
    yield f"{path}/pipe"
    (folder / "here").write_bytes(b"4")
    fs.put_file(str(folder / "here"), f"{path}/put")
    yield f"{path}/put"


def test_files_of_a_transaction_appear_at_its_end(fs: AmbryFileSystem, path: str, tmp_path: Path) -> None:
    with fs.transaction:
        names = list(written(fs, path, tmp_path))
        assert not fs.exists(path)
    assert sorted(fs.find(path)) == sorted(names)
    assert fs.cat_file(f"{path}/bytes") == b"1" and fs.cat_file(f"{path}/put") == b"4"
    fs.pipe_file(f"{path}/after", b"5")
    assert fs.exists(f"{path}/after")


def test_a_transaction_that_breaks_off_leaves_nothing(fs: AmbryFileSystem, path: str, tmp_path: Path) -> None:
    with pytest.raises(Broken), fs.transaction:  # noqa: PT012 -- the block is what fails
        list(written(fs, path, tmp_path))
        raise Broken
    assert not fs.exists(path)
    with fs.transaction:
        with contextlib.suppress(Broken), fs.open(f"{path}/half", "wb") as file:
            file.write(b"half")
            raise Broken
        fs.pipe_file(f"{path}/whole", b"whole")
    assert fs.find(path) == [f"{path}/whole"]


def test_a_file_still_open_at_the_end_of_a_transaction_is_refused(fs: AmbryFileSystem, path: str) -> None:
    with pytest.raises(OSError, match="not closed"), fs.transaction:  # noqa: PT012 -- the block is what fails
        file = fs.open(path, "wb")
        file.write(b"x")
    file.close()
    assert not fs.exists(path)


def test_a_file_without_autocommit_waits_for_its_commit(fs: AmbryFileSystem, path: str) -> None:
    for name, ending in (("kept", "commit"), ("dropped", "discard")):
        file = fs.open(f"{path}/{name}", "w", autocommit=False)
        file.write("x")
        file.close()
        assert not fs.exists(f"{path}/{name}")
        getattr(file, ending)()
    assert fs.find(path) == [f"{path}/kept"]


# --- names that somebody else takes ----------------------------------------------------------------------------


def test_a_name_that_is_taken_meanwhile_is_a_file_that_exists(fs: AmbryFileSystem, path: str, url: str) -> None:
    with Client(url) as other:
        with pytest.raises(FileExistsError), fs.open(path, "xb") as file:  # noqa: PT012 -- the block is what fails
            file.write(b"late")
            other.put(b"early", path)
        with pytest.raises(FileExistsError):
            fs.open(path, "x")
        with pytest.raises(FileExistsError), fs.transaction:  # noqa: PT012 -- the block is what fails
            fs.pipe_file(f"{path}-2", b"late", mode="create")
            other.put(b"early", f"{path}-2")
    assert fs.cat_file(path) == fs.cat_file(f"{path}-2") == b"early"


def test_of_two_who_append_none_takes_away_what_the_other_has_written(fs: AmbryFileSystem) -> None:
    base = f"default/default/appended-{next(_places)}"
    fs.pipe_file(f"{base}/log", b"0")
    one, other = fs.open(f"{base}/log", "ab"), fs.open(f"{base}/log", "ab")
    one.write(b"1")
    other.write(b"2")
    one.close()
    with pytest.raises(OSError, match="changed since it was opened") as caught:
        other.close()
    assert caught.value.errno == errno.ESTALE
    assert fs.cat_file(f"{base}/log") == b"01"
    with fs.open(f"{base}/log", "a") as file:
        file.write("3")
    assert fs.cat_file(f"{base}/log") == b"013"
    one, other = fs.open(f"{base}/new", "ab"), fs.open(f"{base}/new", "ab")
    one.write(b"1")
    other.write(b"2")
    one.close()
    with pytest.raises(FileExistsError):
        other.close()
    assert fs.cat_file(f"{base}/new") == b"1"


def test_appending_to_a_large_file_takes_the_memory_of_a_small_one(fs: AmbryFileSystem, client: Client) -> None:
    path, data = f"default/default/written-{next(_places)}", os.urandom(48 * MIB)
    client.put(data, path)
    expected = hashlib.sha256(data + b"more").digest()
    del data
    tracemalloc.start()
    try:
        with fs.open(path, "ab") as file:
            file.write(b"more")
        # What is spooled, what is read ahead, and the copies of these that are made on the way.
        assert tracemalloc.get_traced_memory()[1] <= 32 * MIB
    finally:
        tracemalloc.stop()
    assert hashlib.sha256(client.get(path)).digest() == expected
