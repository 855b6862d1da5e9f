"""Manifests: bytes and values, both ways; any bytes are a manifest or CorruptRecord; ranges against brute force."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ambry.blob import manifest as fmt
from ambry.blob.manifest import Entry, Manifest, decode_manifest, encode_manifest, entries_in_range
from ambry.errors import CorruptRecord
from ambry.limits import MANIFEST_ENTRIES_MAX

ENTRIES = st.builds(
    Entry,
    blob_id=st.binary(min_size=32, max_size=32),
    size=st.integers(1, 2**40),
    root=st.integers(0, 2**64 - 1),
)
GOOD = [Entry(bytes([number]) * 32, number * 1000 + 1, number) for number in range(3)]


@given(st.sampled_from([0, 1]), st.lists(ENTRIES, min_size=1, max_size=20))
def test_a_manifest_survives_its_bytes(level: int, entries: list[Entry]) -> None:
    data = encode_manifest(level, entries)
    manifest = decode_manifest(data)
    assert manifest == Manifest(level, tuple(entries), sum(entry.size for entry in entries))
    assert decode_manifest(memoryview(data)) == decode_manifest(bytearray(data)) == manifest
    assert len(data) == fmt.HEADER_SIZE + len(entries) * fmt.ENTRY_SIZE


def test_a_manifest_of_the_most_entries_survives_and_one_more_does_not() -> None:
    entry = GOOD[0]
    data = encode_manifest(0, [entry] * MANIFEST_ENTRIES_MAX)
    assert len(decode_manifest(data).entries) == MANIFEST_ENTRIES_MAX
    header = struct.pack("<4sBBHIIQ", b"AMNF", 1, 0, 0, MANIFEST_ENTRIES_MAX + 1, 0, MANIFEST_ENTRIES_MAX + 1)
    with pytest.raises(CorruptRecord, match="entries"):
        decode_manifest(header + data[fmt.HEADER_SIZE :] + data[-fmt.ENTRY_SIZE :])


def test_every_cut_is_seen() -> None:
    data = encode_manifest(0, GOOD)
    for size in range(len(data)):
        with pytest.raises(CorruptRecord):
            decode_manifest(data[:size])
    with pytest.raises(CorruptRecord):
        decode_manifest(data + b"\0")


def test_every_flipped_bit_of_the_header_is_seen_but_that_of_the_level() -> None:
    good = encode_manifest(0, GOOD)
    level_bit = 5 * 8
    for bit in range(fmt.HEADER_SIZE * 8):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        if bit == level_bit:
            assert decode_manifest(data).level == 1
            continue
        with pytest.raises(CorruptRecord):
            decode_manifest(bytes(data))


def test_no_entry_is_empty() -> None:
    data = bytearray(encode_manifest(0, GOOD))
    total = sum(entry.size for entry in GOOD)
    struct.pack_into("<Q", data, fmt.HEADER_SIZE + 32, 0)
    struct.pack_into("<Q", data, 16, total - GOOD[0].size)
    with pytest.raises(CorruptRecord, match="sizes"):
        decode_manifest(bytes(data))
    struct.pack_into("<I", data, 8, 0)
    with pytest.raises(CorruptRecord, match="0 entries"):
        decode_manifest(bytes(data[: fmt.HEADER_SIZE]))


@given(
    st.binary(max_size=200)
    | st.builds(
        lambda count, size, tail: struct.pack("<4sBBHIIQ", b"AMNF", 1, 0, 0, count, 0, size) + tail,
        st.integers(0, 2**32 - 1),
        st.integers(0, 2**64 - 1),
        st.binary(max_size=150),
    )
)
def test_any_bytes_are_a_manifest_or_corrupt(data: bytes) -> None:
    try:
        manifest = decode_manifest(data)
    except CorruptRecord:
        return
    assert encode_manifest(manifest.level, manifest.entries) == data


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.data())
@settings(max_examples=300)
def test_entries_in_range_are_those_that_brute_force_finds(sizes: list[int], data: st.DataObject) -> None:
    entries = tuple(Entry(bytes([number]) * 32, size, number) for number, size in enumerate(sizes))
    manifest = Manifest(0, entries, sum(sizes))
    start = data.draw(st.integers(0, manifest.size))
    stop = data.draw(st.integers(start, manifest.size))
    every_byte = [(entry, at) for entry in entries for at in range(entry.size)]
    found = [(entry, at) for entry, first, last in entries_in_range(manifest, start, stop) for at in range(first, last)]
    assert found == every_byte[start:stop]
    assert all(first < last for _, first, last in entries_in_range(manifest, start, stop))
