"""Tensors of torch out of a store are what safetensors' own reader gives. Runs where torch is; no lock has it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from ambry.client import Client
from ambry.client.safetensors import load_file, remote_open

torch: Any = pytest.importorskip("torch")

BASE = "default/default/torch"
TYPES = [
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "uint16", "uint32",
    "uint64", "bool", "complex64", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float8_e4m3fnuz",
    "float8_e5m2fnuz",
]  # fmt: skip
INDICES: list[Any] = [
    0, -1, 6, slice(0, 2), slice(1, 5), slice(None), slice(-3, None), slice(2, 2), slice(0, None, 2),
    (slice(1, 3), slice(0, 2)), (slice(None), 1), (..., 1), (2, slice(1, 3)),
]  # fmt: skip


@pytest.fixture
def client(url: str, tmp_path: Path) -> Iterator[Client]:
    with Client(url, cache=tmp_path / "cache") as made:
        yield made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    from safetensors.torch import save_file  # noqa: PLC0415 -- imports torch

    chance = torch.Generator().manual_seed(1)
    tensors = {name: (torch.rand((7, 3, 5), generator=chance) * 100).to(getattr(torch, name)) for name in TYPES}
    # Sizes that leave what follows at odd offsets of memory.
    tensors |= {"scalar": torch.tensor(3.5), "none": torch.empty((0, 4)), "odd": torch.arange(3, dtype=torch.uint8)}
    tensors |= {"large": torch.rand((3000, 1000), generator=chance)}
    made = tmp_path / "model/a.safetensors"
    made.parent.mkdir()
    save_file(tensors, made, {"format": "pt"})
    return made


def is_same(one: Any, other: Any) -> bool:
    """Whether type, shape and all bits are the same, those of NaN too."""
    bits = [tensor.contiguous().reshape(-1).view(torch.uint8) if tensor.numel() else None for tensor in (one, other)]
    return (one.dtype, one.shape) == (other.dtype, other.shape) and (bits[0] is bits[1] or torch.equal(*bits))


@pytest.mark.parametrize("where", ["blob", "model", "cache"])
def test_tensors_are_those_of_the_library_bit_by_bit(client: Client, path: Path, where: str) -> None:
    ref = f"{BASE}/a"
    if where == "blob":
        client.upload_file(path, ref, upsert=True)
    else:
        pushed = client.push_model(path.parent, f"{BASE}/model-{where}")
        ref = f"{pushed.ref}/a.safetensors"
        if where == "cache":
            client.pull_model(pushed.ref)
    with safe_open(path, framework="pt") as theirs, remote_open(ref, client, framework="pt") as ours:
        assert ours.keys() == sorted(theirs.keys()) and ours.metadata() == theirs.metadata()
        wanted = {name: theirs.get_tensor(name) for name in theirs.keys()}  # noqa: SIM118 -- it is no mapping
        for name, tensor in wanted.items():
            assert is_same(ours.get_tensor(name), tensor), name
            assert ours.get_slice(name).get_shape() == theirs.get_slice(name).get_shape()
            assert ours.get_slice(name).get_dtype() == theirs.get_slice(name).get_dtype()
        for name in ("large", "float32", "bfloat16", "int64", "uint8", "float8_e4m3fn"):
            for index in INDICES:
                assert is_same(ours.get_slice(name)[index], wanted[name][index]), (name, index)
    loaded = load_file(ref, client, framework="pt")
    assert loaded.keys() == wanted.keys() and all(is_same(loaded[name], wanted[name]) for name in wanted)


def test_a_module_takes_the_tensors_and_they_may_be_written_to(client: Client, tmp_path: Path) -> None:
    from safetensors.torch import save_file  # noqa: PLC0415 -- imports torch

    def made() -> Any:
        return torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))

    model, other = made(), made()
    save_file(model.state_dict(), tmp_path / "module.safetensors")
    client.upload_file(tmp_path / "module.safetensors", f"{BASE}/module", upsert=True)
    loaded = client.load_tensors(f"{BASE}/module", framework="pt")
    other.load_state_dict(loaded)
    pictures = torch.rand((4, 64))
    assert torch.equal(model(pictures), other(pictures))
    loaded["0.bias"].zero_()
    assert torch.equal(client.load_tensors(f"{BASE}/module", framework="pt")["0.bias"], model.state_dict()["0.bias"])
