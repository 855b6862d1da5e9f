"""The header of a safetensors file: which tensors it has, and where. Pure, and suspicious: the file may be anybody's.

A file is 8 bytes (little-endian) with the size of the header, the header in JSON, and the bytes of the tensors, one
behind the other without a gap. What is not exactly so is refused, so no offset ever leads out of the file.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ambry.errors import BadTensors
from ambry.limits import TENSORS_HEADER_BYTES_MAX

PREFIX_SIZE: Final = 8
DTYPE_BITS: Final = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
_METADATA: Final = "__metadata__"
_DIMENSIONS_MAX: Final = 64
"""Numpy's limit. The product of millions of numbers would take minutes."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor: `start:stop` are its bytes in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class TensorsHeader:
    """What a file has. Tensors are in the order of their bytes."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorInfo]
    data_start: int


def header_size(prefix: bytes, file_size: int) -> int:
    """Bytes of the header, from the first eight of a file. Raises BadTensors."""
    size = int.from_bytes(prefix[:PREFIX_SIZE], "little")
    if file_size < PREFIX_SIZE or len(prefix) < PREFIX_SIZE:
        raise BadTensors("too short for a safetensors file")
    if size > TENSORS_HEADER_BYTES_MAX:
        raise BadTensors(f"a header of {size} bytes; {TENSORS_HEADER_BYTES_MAX} are the most")
    if size > file_size - PREFIX_SIZE:
        raise BadTensors("a header that is longer than its file")
    return size


def parse_header(data: bytes, file_size: int) -> TensorsHeader:
    """The header, from its JSON. Raises BadTensors."""
    if data[:1] != b"{":
        raise BadTensors("a header that does not begin with {")
    try:
        document = json.loads(data, object_pairs_hook=_unique)
        metadata = _metadata(document.pop(_METADATA, {}))
        found = [_tensor(name, entry, PREFIX_SIZE + len(data)) for name, entry in document.items()]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BadTensors(f"a header that is none: {type(error).__name__}") from error
    found.sort(key=lambda tensor: (tensor.start, tensor.stop))
    at = PREFIX_SIZE + len(data)
    for tensor in found:
        if tensor.start != at:
            raise BadTensors("tensors that overlap, or have a gap between them", name=tensor.name[:64])
        at = tensor.stop
    if at != file_size:
        raise BadTensors("tensors that are not all of the file", stop=at, size=file_size)
    return TensorsHeader(metadata, {tensor.name: tensor for tensor in found}, PREFIX_SIZE + len(data))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadTensors("a name that is there twice")
    return found


def _metadata(value: Any) -> dict[str, str]:  # noqa: ANN401 -- JSON of a stranger
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise BadTensors("metadata that is not names and texts")
    return value


def _tensor(name: str, entry: Any, data_start: int) -> TensorInfo:  # noqa: ANN401 -- JSON of a stranger
    dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(shape, list) or len(shape) > _DIMENSIONS_MAX:
        raise BadTensors("a shape that is none", name=name[:64])
    if dtype not in DTYPE_BITS:
        raise BadTensors("a type that is not known", name=name[:64], dtype=str(dtype)[:32])
    for number in (*shape, start, stop):
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 2**63:
            raise BadTensors("a number that is no size", name=name[:64])
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if bits % 8 or (stop - start) * 8 != bits:
        raise BadTensors("a tensor whose bytes do not have its shape", name=name[:64])
    return TensorInfo(name, dtype, tuple(shape), data_start + start, data_start + stop)
