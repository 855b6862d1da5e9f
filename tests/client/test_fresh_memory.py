"""Memory that is had ahead of what is read into it: what is in it stays, and all of it is stepped over."""

import json
from pathlib import Path

import numpy as np
import pytest

from ambry.client.fresh_memory import STEP_BYTES, FreshMemory
from ambry.client.safetensors import LocalBytes, TensorFile
from ambry.limits import MIB


@pytest.mark.parametrize("offset", [0, 1, 4095, 4096 + 17])
def test_contents_stay_whatever_is_done_for_their_pages(offset: int) -> None:
    whole = np.arange(9 * MIB, dtype=np.uint64).view(np.uint8)
    part = whole[offset : offset + 70 * MIB + 5]
    expected = part.copy()
    memory = FreshMemory(part.ctypes.data, part.nbytes)
    at = 0
    while at < part.nbytes:
        count = memory.step(at, part.nbytes - at)
        assert 0 < count <= part.nbytes - at
        at += count
    assert at == part.nbytes
    assert np.array_equal(part, expected)
    assert np.array_equal(whole, np.arange(9 * MIB, dtype=np.uint64).view(np.uint8)), "beside it too"


def test_a_small_array_is_read_at_once() -> None:
    array = np.empty(STEP_BYTES * 2, dtype=np.uint8)
    assert FreshMemory(array.ctypes.data, array.nbytes).step(0, array.nbytes) == array.nbytes


def test_a_large_file_is_in_its_arrays_whatever_its_size(tmp_path: Path) -> None:
    expected = np.random.default_rng(7).integers(0, 256, 80 * MIB + 12_345, dtype=np.uint8)
    span = {"dtype": "U8", "shape": [expected.nbytes], "data_offsets": [0, expected.nbytes]}
    header = json.dumps({"all": span}).encode()
    path = tmp_path / "large.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + expected.tobytes())
    with TensorFile(LocalBytes(path), 16, "numpy") as file:
        assert np.array_equal(file.get_tensors()["all"], expected)
