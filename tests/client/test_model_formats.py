"""Manifests and tables of chunks: bytes and values both ways, whatever bytes there are; what of chunks is reused."""

import io
import json
import random
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambry.client.chunking import Chunk, decode_table, encode_table, find_reuse, scan
from ambry.client.model_manifest import Extent, ModelFile, ModelManifest, decode_manifest, encode_manifest, slices
from ambry.client.model_names import parse_model, version_of
from ambry.errors import BadRequest, ModelDamaged
from ambry.limits import MIB

A, B = "a" * 64, "b" * 64
MANIFEST = ModelManifest(
    "bert",
    1_700_000_000_000,
    (
        ModelFile("a", 3, A, is_executable=True),
        ModelFile("sub/b", 10, B, False, A, (Extent(A, 5, 4), Extent(B, 0, 6))),
    ),
    ("empty",),
    {"loss": 0.5, "text": "ä", "good": True, "n": 3},
    {"parent": "x"},
)


def test_a_manifest_is_the_same_both_ways_and_always_the_same_bytes() -> None:
    data = encode_manifest(MANIFEST)
    assert decode_manifest(data, sha256(data).hexdigest()) == MANIFEST
    assert encode_manifest(decode_manifest(data)) == data
    with pytest.raises(ModelDamaged):
        decode_manifest(data, A)
    assert MANIFEST.contents == {A, B}


WRONG: list[tuple[str, Any]] = [
    ("format", "other"), ("version", 2), ("version", None), ("model", 1), ("created_ms", -1), ("created_ms", True),
    ("files", None), ("files", [{}]), ("files", [1]), ("empty_folders", ["a"]), ("empty_folders", ["../x"]),
    ("metadata", {"a": []}), ("lineage", {"a": 1}), ("metadata", []),
]  # fmt: skip
WRONG_FILES: list[tuple[str, Any]] = [
    ("path", "../a"), ("path", "/a"), ("path", "a//b"), ("path", "a/."), ("path", ""), ("path", "a\0"), ("path", "sub"),
    ("path", "sub/b"), ("path", "sub/b/c"), ("size", -1), ("size", 2**63), ("size", 1.5), ("sha256", A[1:]),
    ("sha256", A.upper()), ("executable", 1), ("chunks", "x"), ("extents", [[A, 0, 4]]), ("extents", [[A, 0]]),
    ("extents", {}),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_manifest_with_a_wrong_value_is_refused(key: str, value: Any) -> None:
    document = json.loads(encode_manifest(MANIFEST))
    with pytest.raises(ModelDamaged):
        decode_manifest(json.dumps(document | {key: value}).encode())


@pytest.mark.parametrize(("key", "value"), WRONG_FILES)
def test_a_manifest_with_a_wrong_file_is_refused(key: str, value: Any) -> None:
    document = json.loads(encode_manifest(MANIFEST))
    document["files"][0][key] = value
    with pytest.raises(ModelDamaged):
        decode_manifest(json.dumps(document).encode())


@given(st.binary(max_size=200))
def test_any_bytes_are_a_manifest_or_damaged(data: bytes) -> None:
    with pytest.raises(ModelDamaged):
        decode_manifest(data)


@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=4))
def test_a_manifest_whose_bytes_were_changed_does_not_have_its_digest(at: int, other: bytes) -> None:
    good = encode_manifest(MANIFEST)
    at %= len(good)
    bad = good[:at] + other + good[at + len(other) :]
    if bad != good:
        with pytest.raises(ModelDamaged):
            decode_manifest(bad, sha256(good).hexdigest())


@given(st.binary(max_size=200))
def test_any_bytes_are_a_table_or_damaged(data: bytes) -> None:
    try:
        assert encode_table(decode_table(data)) == data
    except ModelDamaged:
        assert data[:8] != b"ACHT\1\0\0\0" or len(data) > 8


def test_a_table_is_the_same_both_ways_and_nothing_of_it_is_left_out() -> None:
    chunks = [Chunk(bytes([number]) * 32, 1000 + number) for number in range(20)]
    data = encode_table(chunks)
    assert decode_table(data) == chunks
    for count in range(len(data)):
        if (count - 8) % 36:
            with pytest.raises(ModelDamaged):
                decode_table(data[:count])


def test_chunks_are_the_whole_file_and_the_digest_is_its() -> None:
    data = random.Random(1).randbytes(3 * MIB + 17)
    told: list[int] = []
    digest, chunks = scan(io.BytesIO(data), wants_chunks=True, tell=lambda piece: told.append(len(piece)))
    assert digest == sha256(data).hexdigest() == scan(io.BytesIO(data), wants_chunks=False)[0]
    assert sum(told) == sum(chunk.size for chunk in chunks) == len(data)
    at = 0
    for chunk in chunks:
        assert sha256(data[at : at + chunk.size]).digest() == chunk.sha256
        at += chunk.size
    assert scan(io.BytesIO(b""), wants_chunks=True) == (sha256(b"").hexdigest(), [])


@pytest.mark.parametrize("seed", range(12))
def test_a_file_put_together_from_another_one_is_that_file(seed: int) -> None:
    chance = random.Random(seed)
    contents = {"old": chance.randbytes(4 * MIB)}
    data = contents["old"]
    pieces: tuple[Extent, ...] = (Extent("old", 0, len(data)),)
    old_chunks = scan(io.BytesIO(data), wants_chunks=True)[1]
    reused = 0
    for step in range(4):
        edited = bytearray(data)
        for _ in range(chance.randrange(4)):
            at = chance.randrange(len(edited))
            kind = chance.randrange(3)
            size = chance.randrange(1, 50_000)
            edited[at : at + (0 if kind == 0 else size)] = b"" if kind == 1 else chance.randbytes(size)
        data = bytes(edited)
        chunks = scan(io.BytesIO(data), wants_chunks=True)[1]
        found = find_reuse(chunks, old_chunks, pieces)
        if found is None:
            contents[f"whole {step}"], pieces = data, (Extent(f"whole {step}", 0, len(data)),)
        else:
            reused += 1
            contents[f"new {step}"] = b"".join(data[offset : offset + size] for offset, size in found.new)
            pieces = found.with_new(f"new {step}")
        assert b"".join(contents[one.content][one.offset : one.offset + one.size] for one in pieces) == data
        old_chunks = chunks
    assert reused


def test_a_file_of_which_most_is_new_is_stored_as_a_whole() -> None:
    old, new = (scan(io.BytesIO(random.Random(seed).randbytes(MIB)), wants_chunks=True)[1] for seed in (1, 2))
    pieces = (Extent(A, 0, MIB),)
    assert find_reuse(new, old, pieces) is None
    assert find_reuse(old, old, pieces) is not None
    assert find_reuse(old, old, (Extent(A, 0, MIB - 1),)) is None, "a table of another file"


@given(st.lists(st.integers(0, 9), max_size=6), st.integers(0, 30), st.integers(0, 30))
def test_slices_are_the_bytes_asked_for(sizes: list[int], start: int, size: int) -> None:
    pieces = [Extent(str(number), 100, one) for number, one in enumerate(sizes)]
    every = [(one.content, one.offset + at) for one in pieces for at in range(one.size)]
    found = [(one.content, one.offset + at) for one in slices(pieces, start, size) for at in range(one.size)]
    assert found == every[start : start + size]


def test_versions_sort_as_they_were_made_and_name_their_digest() -> None:
    assert version_of(0, A) == "19700101T000000Z-" + "a" * 16
    ref = parse_model(f"ambry://a/b/c/d@{version_of(5000, B)}/x/y")
    assert (ref.container, ref.model, ref.selector, ref.file) == ("a/b", "c/d", "19700101T000005Z-" + "b" * 16, "x/y")
    assert parse_model(str(ref)) == ref
    with pytest.raises(BadRequest):
        parse_model("a/b/" + "c" * 600)
