"""Safetensors in a store: what the safetensors library writes is read the same way; what is malicious is refused."""

import json
import random
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from ambry.client import Client
from ambry.client.safetensors import load_file, remote_open
from ambry.client.tensors_header import header_size, parse_header
from ambry.errors import BadTensors, NameNotFound
from ambry.limits import MIB
from tests.client.test_models import counted

BASE = "default/default"
TYPES = ["?", "u1", "i1", "u2", "i2", "f2", "u4", "i4", "f4", "u8", "i8", "f8", "c8"]


@pytest.fixture
def client(url: str, tmp_path: Path) -> Iterator[Client]:
    with Client(url, cache=tmp_path / "cache") as made:
        yield made


def tensors_of(seed: int) -> dict[str, Any]:
    chance = np.random.default_rng(seed)
    found = {f"type {kind}": chance.integers(0, 100, (7, 3, 5)).astype(kind) for kind in TYPES}
    return found | {"scalar": np.array(3.5), "none": np.empty((0, 4)), "large": chance.random((3000, 1000))}


def test_what_the_library_writes_is_read_as_the_library_reads_it(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "model" / "a.safetensors"
    path.parent.mkdir()
    wanted = tensors_of(1)
    save_file(wanted, path, {"format": "np"})
    client.upload_file(path, f"{BASE}/tensors/a", upsert=True)
    pushed = client.push_model(path.parent, f"{BASE}/tensors-model")
    with safe_open(path, framework="numpy") as theirs:
        for ref in (f"{BASE}/tensors/a", f"{pushed.ref}/a.safetensors"):
            with remote_open(ref, client) as ours:
                assert ours.keys() == theirs.keys() and ours.offset_keys() == theirs.offset_keys()
                assert ours.metadata() == theirs.metadata()
                for name in theirs.keys():  # noqa: SIM118 -- it is no mapping
                    assert np.array_equal(ours.get_tensor(name), theirs.get_tensor(name))
                    assert ours.get_tensor(name).dtype == wanted[name].dtype
                    assert ours.get_slice(name).get_shape() == theirs.get_slice(name).get_shape()
                    assert ours.get_slice(name).get_dtype() == theirs.get_slice(name).get_dtype()
            loaded = load_file(ref, client)
            assert all(np.array_equal(loaded[name], tensor) for name, tensor in wanted.items())
            assert loaded.keys() == wanted.keys()
        client.pull_model(pushed.ref)


def test_slices_read_the_rows_that_they_span(client: Client, url: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    wanted = np.arange(2000 * 500, dtype="f8").reshape(2000, 500)
    save_file({"other": np.zeros(1000), "t": wanted}, path)
    client.upload_file(path, f"{BASE}/tensors/rows", upsert=True)
    indices: list[Any] = [
        5, -1, slice(10, 20), slice(10, 100, 7), slice(None, 3), slice(-3, None), slice(5, 5), slice(20, 10),
        (3, 4), (slice(2, 9), slice(None, None, 50)), (..., 1), (slice(0, 2), ..., 3), slice(1990, 4000),
        (7, slice(3, 6)),
    ]  # fmt: skip
    with counted(url) as (way, count), Client(way) as counting, remote_open(f"{BASE}/tensors/rows", counting) as file:
        for index in indices:
            assert np.array_equal(file.get_slice("t")[index], wanted[index]), index
        before = count[0]
        assert np.array_equal(file.get_slice("t")[100:110], wanted[100:110])
        assert count[0] - before < 10 * 500 * 8 + 2000
        for wrong in (2000, -2001, slice(9, 2, -1)):
            with pytest.raises(BadTensors):
                file.get_slice("t")[wrong]
        with pytest.raises(BadTensors):
            file.get_tensor("missing")
        with pytest.raises(BadTensors):
            file.get_slice("missing")


def test_a_file_of_a_model_is_read_from_the_cache_when_it_is_there(client: Client, url: str, tmp_path: Path) -> None:
    path = tmp_path / "model/sub/a.safetensors"
    path.parent.mkdir(parents=True)
    wanted = np.random.default_rng(1).random((300, 10_000))
    save_file({"t": wanted}, path)
    pushed = client.push_model(tmp_path / "model", f"{BASE}/cached-tensors")
    client.pull_model(pushed.ref)
    with counted(url) as (way, count), Client(way, cache=tmp_path / "cache") as counting:
        loaded = counting.load_tensors(f"{BASE}/cached-tensors@latest/sub/a.safetensors")
        assert np.array_equal(loaded["t"], wanted)
        assert count[0] < 4096
        with pytest.raises(NameNotFound):
            counting.open_tensors(f"{pushed.ref}/missing")


def test_a_file_that_is_put_together_from_several_contents_is_read_whole(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "model/a.safetensors"
    path.parent.mkdir()
    wanted = np.random.default_rng(2).random((3, MIB))
    save_file({"t": wanted}, path)
    client.push_model(path.parent, f"{BASE}/pieces")
    wanted[1, 1000:9000] = 0
    save_file({"t": wanted}, path)
    pushed = client.push_model(path.parent, f"{BASE}/pieces")
    assert client.read_manifest(pushed.ref).files[0].extents
    assert np.array_equal(client.load_tensors(f"{pushed.ref}/a.safetensors")["t"], wanted)
    with client.open_tensors(f"{pushed.ref}/a.safetensors") as file:
        assert np.array_equal(file.get_slice("t")[1, 900:10_000], wanted[1, 900:10_000])


def test_without_numpy_the_error_names_it(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"a": np.zeros(3)}, tmp_path / "a")
    client.upload_file(tmp_path / "a", "default/default/no-numpy", upsert=True)
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(BadTensors, match=r"numpy.*ambry\[models\]"):
        client.load_tensors("default/default/no-numpy")


def test_types_that_numpy_lacks_and_frameworks_that_are_not_there_are_named(client: Client) -> None:
    header = json.dumps({"t": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    client.put(struct.pack("<Q", len(header)) + header + b"\0\0\x80\x3f", f"{BASE}/tensors/bf16", upsert=True)
    with remote_open(f"{BASE}/tensors/bf16", client) as file:
        assert file.get_slice("t").get_dtype() == "BF16"
        with pytest.raises(BadTensors, match="ml_dtypes"):
            file.get_tensor("t")
    with pytest.raises(BadTensors, match="torch"):
        load_file(f"{BASE}/tensors/bf16", client, framework="pt")
    with pytest.raises(BadTensors, match="frameworks"):
        remote_open(f"{BASE}/tensors/bf16", client, framework="jax")


# --- headers of strangers --------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {
    "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "b": {"dtype": "U8", "shape": [4], "data_offsets": [8, 12]},
}


def parsed(document: Any, data_size: int = 12) -> Any:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return parse_header(data, 8 + len(data) + data_size)


def test_a_good_header_is_read() -> None:
    found = parsed(GOOD | {"__metadata__": {"k": "v"}})
    assert list(found.tensors) == ["a", "b"] and found.metadata == {"k": "v"}
    assert found.tensors["b"].stop - found.data_start == 12
    assert parsed({}, 0).tensors == {}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data_offsets", [0, 7]), ("data_offsets", [4, 12]), ("data_offsets", [-8, 0]), ("data_offsets", [8, 0]),
        ("data_offsets", [0, 2**70]), ("data_offsets", [0]), ("data_offsets", "08"), ("data_offsets", [0.0, 8.0]),
        ("data_offsets", [False, 8]), ("shape", [3]), ("shape", [-2]), ("shape", [2**62, 2**62]), ("shape", 2),
        ("shape", [2.0]), ("shape", ["2"]), ("shape", {"2": 1}), ("shape", [[2]]), ("dtype", "F33"), ("dtype", 4),
        ("dtype", ["F32"]), ("shape", [2**40] * 100_000), ("dtype", None),
    ],
)  # fmt: skip
def test_a_tensor_that_cannot_be_is_refused(key: str, value: Any) -> None:
    with pytest.raises(BadTensors):
        parsed(GOOD | {"a": GOOD["a"] | {key: value}})


@pytest.mark.parametrize(
    ("document", "size"),
    [
        (GOOD, 11), (GOOD, 13), ({"a": GOOD["a"]}, 12), ({"b": GOOD["b"]}, 12),
        (GOOD | {"c": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}}, 12),
        (GOOD | {"__metadata__": {"k": 1}}, 12), (GOOD | {"__metadata__": []}, 12), ([], 0), (b"", 0), (b"{", 0),
        (b"null", 0), (b" {}", 0), (b"{}x", 0), (b'{"a":1}', 0), (b'{"a":{}}', 0), (b"\xff", 0), (b"{" * 100_000, 0),
        (b'{"a":' * 100_000, 0),
        (json.dumps(GOOD).encode()[:-1] + b', "a": {"dtype":"U8","shape":[0],"data_offsets":[0,0]}}', 12),
        (b'{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,0]}}', 0),
    ],
)  # fmt: skip
def test_a_header_that_cannot_be_is_refused(document: Any, size: int) -> None:
    with pytest.raises(BadTensors):
        parsed(document, size)


@pytest.mark.parametrize("prefix", [b"", b"\0" * 7, b"\xff" * 8, struct.pack("<Q", 100_000_001), struct.pack("<Q", 93)])
def test_a_header_that_is_too_long_is_refused_before_it_is_read(prefix: bytes) -> None:
    with pytest.raises(BadTensors):
        header_size(prefix, 100 if len(prefix) == 8 else len(prefix))
    assert header_size(struct.pack("<Q", 92), 100) == 92


@given(st.binary(max_size=120))
def test_any_bytes_are_a_header_or_refused(data: bytes) -> None:
    with pytest.raises(BadTensors):
        parse_header(b"{" + data, 10**9)


def test_every_changed_byte_of_a_header_is_refused_or_read_within_the_file() -> None:
    good = json.dumps(GOOD).encode()
    chance = random.Random(3)
    for at in range(len(good)):
        for _ in range(8):
            bad = good[:at] + bytes([chance.randrange(256)]) + good[at + 1 :]
            try:
                found = parsed(bad)
            except BadTensors:
                continue
            for tensor in found.tensors.values():
                assert found.data_start <= tensor.start <= tensor.stop <= 8 + len(bad) + 12


def test_blobs_that_are_no_tensors_are_refused_with_an_error_of_the_tree(client: Client) -> None:
    for number, data in enumerate((b"", b"short", struct.pack("<Q", 2**60) + b"{}", b"x" * 300_000)):
        client.put(data, f"{BASE}/tensors/bad-{number}", upsert=True)
        with pytest.raises(BadTensors):
            remote_open(f"{BASE}/tensors/bad-{number}", client)


def test_a_header_longer_than_the_first_read_is_read_whole(client: Client, tmp_path: Path) -> None:
    wanted = {f"tensor with a long name {number:06}": np.array([number]) for number in range(3000)}
    save_file(wanted, tmp_path / "many")
    client.upload_file(tmp_path / "many", f"{BASE}/tensors/many", upsert=True)
    loaded = load_file(f"{BASE}/tensors/many", client)
    assert all(np.array_equal(loaded[name], tensor) for name, tensor in wanted.items())
