"""What transfers tell: lines on a terminal, bytes to functions, and branches to callbacks of fsspec."""

import errno
import io
import os
import pty
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.callbacks import Callback

from ambry.client import Client, progress
from ambry.client.progress import Meter
from ambry.limits import MIB
from tests.client.conftest import bytes_of, written

FILES = {"large.bin": bytes_of(20 * MIB), "other.bin": bytes_of(9 * MIB), **{f"small/{n}": b"x" * n for n in range(50)}}
TOTAL = sum(map(len, FILES.values()))


class Terminal:
    """A terminal as standard error, and what was written to it."""

    def __init__(self) -> None:
        self._own, other = pty.openpty()
        self.stream = os.fdopen(other, "w", encoding="utf-8")
        self._data = io.BytesIO()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Not by a fixture: pytest puts its own in between."""
        monkeypatch.setattr(sys, "stderr", self.stream)

    def _read(self) -> None:
        while True:
            try:
                piece = os.read(self._own, 1 << 16)
            except OSError:
                return
            self._data.write(piece)

    def text(self) -> str:
        """All of it. Nothing more is written."""
        self.stream.close()
        self._reader.join()
        os.close(self._own)
        return self._data.getvalue().decode()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    found = Terminal()
    monkeypatch.setattr(progress, "_DRAW_S", 0)
    monkeypatch.setenv("COLUMNS", "120")
    yield found
    if not found.stream.closed:
        found.text()


class Branching(Callback):  # type: ignore[misc] # fsspec has no types
    def __init__(self) -> None:
        super().__init__()
        self.branches: dict[tuple[str, str], Branching] = {}
        self.is_closed = False

    def branched(self, path_1: str, path_2: str, **_: Any) -> "Branching":
        child = self.branches[path_1, path_2] = Branching()
        return child

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written(tmp_path / "folder", FILES)


def test_a_terminal_shows_large_files_under_way_and_the_whole(
    client: Client, folder: Path, tmp_path: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal.use(monkeypatch)
    client.upload_dir(folder, "default/default/terminal", progress=True)
    client.download_dir("default/default/terminal", tmp_path / "down", progress=True)
    text = terminal.text()
    for name in ("folder", "large.bin", "other.bin", "down"):
        assert re.search(rf"{name} +\[#* *\] +\d+%  .*? / .*?/s  \d+ s left", text), name
    assert "small/" not in text
    # Lines are drawn in their own places, and the whole is the last of them.
    assert "\x1b[2A" in text and text.endswith("\x1b[K\x1b[J\r\n")
    assert re.search(r"100%  29.0 MiB / 29.0 MiB[^\n]*\r\n$", text)


@pytest.mark.parametrize("way", ["file up", "file down", "up", "down", "push", "pull"])
def test_what_is_said_of_an_error_stands_below_the_lines(
    client: Client,
    url: str,
    folder: Path,
    tmp_path: Path,
    terminal: Terminal,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    name = f"default/default/below-{way.replace(' ', '-')}"
    path = folder / "large.bin"
    if way in {"file down", "down", "pull"}:
        client.push_model(folder, name) if way == "pull" else client.upload_dir(folder, name)
    terminal.use(monkeypatch)

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "the disk is ill")

    monkeypatch.setattr(os, "preadv" if way in {"file up", "up", "push"} else "pwrite", fail)
    other = Client(url, cache=tmp_path / "cache")
    calls: dict[str, Callable[[], object]] = {
        "file up": lambda: client.upload_file(path, name, progress=True),
        "file down": lambda: client.download_file(f"{name}/large.bin", tmp_path / "target", progress=True),
        "up": lambda: client.upload_dir(folder, name, progress=True),
        "down": lambda: client.download_dir(name, tmp_path / "down", progress=True),
        "push": lambda: client.push_model(folder, name, progress=True),
        "pull": lambda: other.pull_model(name, tmp_path / "down", progress=True),
    }
    with pytest.raises(OSError, match="ill"):
        calls[way]()
    other.close()
    # Nothing was drawn, or the end of it is the end of a line.
    assert re.search(r"(^|\r\n)$", terminal.text())


def test_a_terminal_is_left_alone_where_nobody_wants_it(
    client: Client, folder: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal.use(monkeypatch)
    client.upload_dir(folder, "default/default/silent")
    monkeypatch.setenv("AMBRY_PROGRESS", "0")
    client.upload_dir(folder, "default/default/silent", upsert=True, progress=True)
    assert terminal.text() == ""


def test_names_cannot_write_to_the_terminal_and_lines_do_not_wrap(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal.use(monkeypatch)
    monkeypatch.setenv("COLUMNS", "40")
    with Meter(True, "a\x1b]0;title\x07b\n", 100) as meter:
        meter.add(100)
    text = terminal.text()
    assert "\x1b]" not in text and "a?]0;title?b?" in text
    assert all(len(re.sub(r"\x1b\[\w", "", line)) <= 40 for line in re.split(r"[\r\n]+", text))


def test_a_function_hears_of_a_large_file_as_it_moves(client: Client, folder: Path, tmp_path: Path) -> None:
    for transfer in (
        lambda tell: client.upload_dir(folder, "default/default/function", progress=tell),
        lambda tell: client.download_dir("default/default/function", tmp_path / "down", progress=tell),
    ):
        told: list[tuple[int, int]] = []
        transfer(lambda *one, told=told: told.append(one))
        assert {total for _, total in told} == {TOTAL} and told[-1][0] == TOTAL
        assert [done for done, _ in told] == sorted(done for done, _ in told)
        assert len(told) > 3


@pytest.mark.parametrize("way", ["up", "down", "push", "pull"])
def test_a_callback_gets_a_branch_for_each_file(
    client: Client, url: str, folder: Path, tmp_path: Path, way: str
) -> None:
    name = f"default/default/branches-{way}"
    callback = Branching()
    if way == "up":
        client.upload_dir(folder, name, progress=callback)
    elif way == "down":
        client.upload_dir(folder, name)
        client.download_dir(name, tmp_path / "down", progress=callback)
    elif way == "push":
        client.push_model(folder, name, progress=callback)
    else:
        client.push_model(folder, name)
        with Client(url, cache=tmp_path / "cache") as other:
            other.pull_model(name, tmp_path / "down", progress=callback)
    assert len(callback.branches) == len(FILES)
    assert callback.value == callback.size == TOTAL
    assert all(one.is_closed and one.value == one.size for one in callback.branches.values())
    assert sum(one.size for one in callback.branches.values()) == TOTAL
