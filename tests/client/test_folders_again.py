"""Folders that go up or down a second time: what is there with the same bytes stays, and nothing else counts."""

import os
from pathlib import Path

import pytest

from ambry.client import Client
from ambry.client.small_files import SMALL_BYTES
from ambry.errors import NameExists
from ambry.limits import MIB
from tests.client.conftest import bytes_of, written
from tests.client.test_part_transfers import bytes_in

BASE = "default/default/again"
FILES = {
    **{f"{number % 5}/file {number} ü": bytes_of(number * 37 % 9001, number) for number in range(900)},
    **{name: bytes_of(1000, 7) for name in ("a", "b", "ab", "0/z")},
    "empty": b"",
    "alone/file": b"alone",
    "large": bytes_of(SMALL_BYTES + 1),
    "larger": bytes_of(9 * MIB),
    "parts": bytes_of(17 * MIB),
}


def test_a_second_upload_sends_nothing_and_says_what_is_stored(client: Client, tmp_path: Path) -> None:
    source = written(tmp_path, FILES)
    first = client.upload_dir(source, f"{BASE}/up")
    began = bytes_in(client)
    seen: list[tuple[int, int]] = []
    assert client.upload_dir(source, f"{BASE}/up", progress=lambda *now: seen.append(now)) == first
    total = sum(len(data) for data in FILES.values())
    assert seen[-1] == (total, total)
    # The first that are found to be taken were sent: a batch for each thread, and one file between.
    assert bytes_in(client) - began < 14 * MIB
    assert [one.id for one in client.upload_dir(source, f"{BASE}/up", upsert=True)] != [one.id for one in first]


@pytest.mark.parametrize("name", ["a", "0/z", "alone/file", "large", "parts"])
def test_other_bytes_under_a_name_are_refused_whatever_their_size(client: Client, tmp_path: Path, name: str) -> None:
    prefix = f"{BASE}/other-{name}"
    others = {"a": FILES["a"], "0/z": FILES["0/z"], name: FILES[name]}
    source = written(tmp_path, others)
    client.upload_dir(source, prefix)
    data = bytearray(FILES[name])
    data[len(data) // 2] ^= 1
    for changed in (bytes(data), bytes(data) + b"!"):
        (source / name).write_bytes(changed)
        with pytest.raises(NameExists):
            client.upload_dir(source, prefix)
        assert client.get(f"{prefix}/{name}") == FILES[name]
    client.upload_dir(source, prefix, upsert=True)
    assert client.get(f"{prefix}/{name}") == changed


def test_the_same_bytes_that_expire_are_not_stored(client: Client, tmp_path: Path) -> None:
    source = written(tmp_path, {"a": b"a", "b": b"b"})
    client.put(b"a", f"{BASE}/expires/a", ttl_s=3600)
    with pytest.raises(NameExists):
        client.upload_dir(source, f"{BASE}/expires")


def test_a_second_download_leaves_what_is_right_and_replaces_what_is_not(client: Client, tmp_path: Path) -> None:
    client.upload_dir(written(tmp_path / "source", FILES), f"{BASE}/down", upsert=True)
    target = tmp_path / "target"
    paths = client.download_dir(f"{BASE}/down", target)
    before = {path: path.stat().st_ino for path in paths}
    wrong = [target / name for name in ("a", "0/z", "empty", "large", "parts")]
    for path in wrong[:2]:
        path.write_bytes(FILES["a"][:-1] + b"!")
    (target / "empty").unlink()
    (target / "empty").symlink_to("alone/file")
    os.truncate(target / "large", 5)
    (target / "parts").unlink()
    seen: list[tuple[int, int]] = []
    assert client.download_dir(f"{BASE}/down", target, progress=lambda *now: seen.append(now)) == paths
    total = sum(len(data) for data in FILES.values())
    assert seen[-1] == (total, total)
    assert {path.relative_to(target).as_posix(): path.read_bytes() for path in paths} == FILES
    assert not any(path.is_symlink() for path in paths)
    assert {path for path in paths if path.stat().st_ino == before[path]} >= set(paths) - set(wrong)
    client.download_dir(f"{BASE}/down", target)
    client.delete(f"{BASE}/down/a")
    client.put(FILES["a"][::-1], f"{BASE}/down/a", upsert=True)
    client.download_dir(f"{BASE}/down", target)
    assert (target / "a").read_bytes() == FILES["a"][::-1]
