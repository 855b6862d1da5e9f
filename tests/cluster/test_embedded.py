"""The embedded registry: made once, the same ever after, one process at a time, and never made over what exists."""

import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambry.cluster.embedded import (
    MAP_KEYS,
    PARTITION_KEYS,
    EmbeddedRegistry,
    decode_map,
    default_partitions,
    encode_map,
)
from ambry.cluster.map import Disk
from ambry.errors import BadConfiguration, CannotStart, DirectoryInUse, DirectoryUnusable
from ambry.limits import GIB, REPLICAS_PER_DISK_MAX, SECRET_BYTES_MIN


def opened(folder: Path, partitions: int | None = None) -> EmbeddedRegistry:
    """Open and close: what a process saw."""
    registry = EmbeddedRegistry.open(folder, partitions)
    registry.close()
    return registry


def map_file(folder: Path) -> Path:
    return folder / "registry" / "cluster-map"


def test_a_first_start_makes_everything(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "data"
    registry = opened(folder)
    assert registry.is_new
    assert (folder / "disk0").is_dir()
    assert len(registry.secret) >= SECRET_BYTES_MIN
    assert (folder / "registry" / "secret").stat().st_mode & 0o777 == 0o600
    assert registry.node.disks[0].path == str(folder / "disk0")
    assert 4 <= len(registry.cluster_map.partitions) <= 64
    assert registry.cluster_map.writable_partitions(registry.datacentre) == tuple(registry.cluster_map.partitions)
    total = sum(partition.capacity for partition in registry.cluster_map.partitions.values())
    assert total >= registry.node.disks[0].capacity


def test_a_second_start_finds_the_same(tmp_path: Path) -> None:
    first = opened(tmp_path / "data")
    second = opened(tmp_path / "data")
    assert not second.is_new
    assert second.cluster_map == first.cluster_map
    assert second.secret == first.secret


def test_two_stores_have_nothing_in_common(tmp_path: Path) -> None:
    one, two = opened(tmp_path / "1"), opened(tmp_path / "2")
    assert one.cluster_map.fingerprint != two.cluster_map.fingerprint
    assert one.node.name != two.node.name
    assert one.secret != two.secret


def test_a_directory_that_is_in_use_is_refused_until_it_is_let_go(tmp_path: Path) -> None:
    registry = EmbeddedRegistry.open(tmp_path / "data")
    with pytest.raises(DirectoryInUse, match=str(os.getpid())):
        EmbeddedRegistry.open(tmp_path / "data")
    registry.close()
    opened(tmp_path / "data")


def test_a_refused_start_does_not_keep_the_lock(tmp_path: Path) -> None:
    opened(tmp_path / "data", 8)
    with pytest.raises(CannotStart):
        EmbeddedRegistry.open(tmp_path / "data", 4)
    with (tmp_path / "data" / "registry" / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_directory_may_be_moved(tmp_path: Path) -> None:
    before = opened(tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    after = opened(tmp_path / "new")
    assert after.cluster_map.fingerprint == before.cluster_map.fingerprint
    assert after.node.disks[0].path == str(tmp_path / "new" / "disk0")
    (replica,) = after.cluster_map.partitions[1].replicas
    assert replica.disk_path == after.node.disks[0].path


def test_partitions_are_added_and_never_taken_away(tmp_path: Path) -> None:
    first = opened(tmp_path / "data", 2)
    assert sorted(first.cluster_map.partitions) == [1, 2]
    grown = opened(tmp_path / "data", 5)
    assert sorted(grown.cluster_map.partitions) == [1, 2, 3, 4, 5]
    assert grown.cluster_map.version == first.cluster_map.version + 1
    assert {number: grown.cluster_map.partitions[number] for number in (1, 2)} == first.cluster_map.partitions
    with pytest.raises(CannotStart, match="has 5 partitions"):
        EmbeddedRegistry.open(tmp_path / "data", 4)
    again = opened(tmp_path / "data")
    assert again.cluster_map == grown.cluster_map


@pytest.mark.parametrize("partitions", [0, -1, REPLICAS_PER_DISK_MAX + 1])
def test_a_number_of_partitions_out_of_range_makes_nothing(tmp_path: Path, partitions: int) -> None:
    with pytest.raises(BadConfiguration):
        EmbeddedRegistry.open(tmp_path / "data", partitions)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("size", [0, 1, GIB, 50 * GIB, 400 * GIB, 401 * GIB, 10**15])
def test_default_partitions_are_enough_for_the_disk_within_their_bounds(size: int) -> None:
    count = default_partitions(size)
    assert 4 <= count <= 64
    assert count in (4, 64) or (count - 1) * 100 * GIB < size <= count * 100 * GIB


def test_a_folder_with_something_else_in_it_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(DirectoryUnusable, match=r"thesis\.tex"):
        EmbeddedRegistry.open(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_root_of_a_file_system_is_fine(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    assert opened(tmp_path).is_new


def test_blobs_without_a_registry_are_not_hidden_by_a_new_one(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    opened(folder)
    (folder / "disk0" / "journal").write_bytes(b"blobs")
    map_file(folder).unlink()
    with pytest.raises(DirectoryUnusable, match="cluster-map is missing"):
        EmbeddedRegistry.open(folder)
    shutil.rmtree(folder / "registry")
    with pytest.raises(DirectoryUnusable, match="not a data directory"):
        EmbeddedRegistry.open(folder)


def test_a_first_start_that_was_cut_off_is_done_again(tmp_path: Path) -> None:
    for step, names in enumerate([[], ["lock"], ["lock", "secret"], ["lock", "secret", "cluster-map.new"]]):
        folder = tmp_path / str(step)
        (folder / "registry").mkdir(parents=True)
        for name in names:
            (folder / "registry" / name).write_bytes(b"0123456789abcdef0123" if name == "secret" else b"torn")
        assert opened(folder).is_new
        assert not opened(folder).is_new


def test_a_newer_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    opened(tmp_path / "data")
    path = map_file(tmp_path / "data")
    newer = path.read_bytes().replace(b"ambry-registry 1 ", b"ambry-registry 2 ", 1)
    path.write_bytes(newer)
    with pytest.raises(DirectoryUnusable, match="format 2"):
        EmbeddedRegistry.open(tmp_path / "data")
    assert path.read_bytes() == newer


def test_every_damaged_byte_is_noticed(tmp_path: Path) -> None:
    opened(tmp_path / "data", 4)
    path = map_file(tmp_path / "data")
    good = path.read_bytes()
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 0x01
        with pytest.raises(DirectoryUnusable):
            decode_map(bytes(bad), path)
    for size in range(len(good)):
        with pytest.raises(DirectoryUnusable):
            decode_map(good[:size], path)


@given(st.binary(max_size=200))
def test_no_bytes_make_the_decoder_fall_over(data: bytes) -> None:
    with pytest.raises(DirectoryUnusable):
        decode_map(data, Path("cluster-map"))


def test_what_is_encoded_is_decoded(tmp_path: Path) -> None:
    stored = decode_map(map_file_after_start(tmp_path).read_bytes(), Path("x"))
    sealed = {number: dataclasses.replace(each, is_sealed=True) for number, each in stored.partitions.items()}
    changed = dataclasses.replace(stored, version=9, partitions=sealed)
    assert decode_map(encode_map(changed), Path("x")) == changed


def map_file_after_start(folder: Path) -> Path:
    opened(folder / "data", 3)
    return map_file(folder / "data")


def test_the_file_holds_no_path_of_this_machine_and_no_secret(tmp_path: Path) -> None:
    registry = opened(tmp_path / "data")
    text = map_file(tmp_path / "data").read_text()
    assert str(tmp_path) not in text
    assert registry.secret.decode() not in text
    assert json.loads(text.split("\n", 1)[1])["disk"]["path"] == "disk0"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DirectoryUnusable, match="file/data"):
        EmbeddedRegistry.open(tmp_path / "file" / "data")
    with pytest.raises(DirectoryUnusable, match="cannot be used"):
        EmbeddedRegistry.open(tmp_path / "file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_directory_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(DirectoryUnusable):
            EmbeddedRegistry.open(tmp_path / "data")
    finally:
        tmp_path.chmod(0o700)


FORMAT_1 = b"""\
ambry-registry 1 DIGEST
{
 "fingerprint": "00112233445566778899aabbccddeeff",
 "version": 7,
 "node": "node-01234567",
 "disk": {
  "path": "disk0",
  "capacity": 1000000000000
 },
 "partitions": [
  {
   "number": 1,
   "capacity": 107374182400,
   "is_sealed": true,
   "membership": 3
  },
  {
   "number": 2,
   "capacity": 107374182400,
   "is_sealed": false,
   "membership": 1
  }
 ]
}"""


def signed(text: bytes) -> bytes:
    """With the digest of what follows the first line."""
    body = text.split(b"\n", 1)[1]
    return text.replace(b"DIGEST", hashlib.sha256(body).hexdigest().encode(), 1)


def test_a_file_of_format_1_is_read_and_written_as_it_always_was() -> None:
    data = signed(FORMAT_1)
    stored = decode_map(data, Path("x"))
    assert stored.fingerprint == "00112233445566778899aabbccddeeff"
    assert stored.version == 7
    assert stored.nodes["node-01234567"].disks == (Disk("disk0", 10**12),)
    assert (stored.partitions[1].is_sealed, stored.partitions[1].membership) == (True, 3)
    assert stored.partitions[2].capacity == 100 * GIB
    assert encode_map(stored) == data


def test_keys_of_a_later_version_are_ignored() -> None:
    later = FORMAT_1.replace(b'"version": 7', b'"version": 7, "colour": "blue"').replace(
        b'"membership": 3', b'"membership": 3, "class": "archive"'
    )
    assert decode_map(signed(later), Path("x")) == decode_map(signed(FORMAT_1), Path("x"))


@pytest.mark.parametrize(
    "change", [(b'"version"', b'"Version"'), (b"[", b'{"a":'), (b'"disk0"', b"disk0"), (b"{", b"")]
)
def test_a_map_that_was_made_by_hand_and_wrong_is_refused(change: tuple[bytes, bytes]) -> None:
    with pytest.raises(DirectoryUnusable, match="not written by ambry"):
        decode_map(signed(FORMAT_1.replace(*change, 1)), Path("x"))


def test_the_page_names_every_key() -> None:
    written = json.loads(FORMAT_1.split(b"\n", 1)[1])
    assert set(written) == set(MAP_KEYS.values())
    assert set(written["partitions"][0]) == set(PARTITION_KEYS.values())
