"""Safetensors files in a store, or in the local cache: headers and single tensors by range, whole files into arrays.

    from ambry.client.safetensors import remote_open

    with remote_open("default/default/bert@prod/model.safetensors") as file:
        bias = file.get_tensor("bias")
        rows = file.get_slice("embedding")[100:200]

As `safetensors.safe_open`. Arrays are numpy's, or torch's with `framework="pt"`; both are imported when needed.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from ambry.client.fresh_memory import FreshMemory, Step, at_once
from ambry.client.parallel import Parallel
from ambry.client.ranges import read_into
from ambry.client.session import Session
from ambry.client.tensors_header import PREFIX_SIZE, TensorInfo, TensorsHeader, header_size, parse_header
from ambry.client.transfer import Source, file_deadline
from ambry.errors import BadTensors
from ambry.limits import KIB, MIB

if TYPE_CHECKING:
    from ambry.client.client import Client

FRAMEWORKS: Final = ("numpy", "np", "pt", "torch")
_FIRST_READ_BYTES: Final = 100 * KIB
"""One request has prefix and header of nearly every file."""
_PARTS: Final = 8
_PART_BYTES_MIN: Final = 8 * MIB
_PART_BYTES_MAX: Final = 256 * MIB
"""Read at once. Of 2 GiB, parts of 32 MiB took a tenth more of the server's processor, parts of 8 MiB two fifths."""

_THREADS_FIRST: Final = 2
"""A store of this machine is no faster with more; 2 GiB by four, in parts of 128 MiB, took a fifth longer."""

_LOCAL_THREADS_MAX: Final = 4
"""Copying from the page cache: beyond the processors, more threads only wait for each other."""

_NUMPY: Final = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8",
    "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8", "C64": "<c8",
}  # fmt: skip
_ML_DTYPES: Final = {
    "BF16": "bfloat16", "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip
_TORCH: Final = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "F32": "float32", "F64": "float64", "C64": "complex64",
} | _ML_DTYPES  # fmt: skip


class Bytes(Protocol):
    """A file that is read by ranges, by several threads at a time."""

    size: int

    def read_into(self, offset: int, view: memoryview, step: Step = at_once) -> None:
        """Fill a view with the bytes from an offset on, by the step."""
        ...


class StoredBytes:
    """A file in a store."""

    def __init__(self, session: Session, source: Source) -> None:
        self._session = session
        self._source = source
        self.size = source.size

    def read_into(self, offset: int, view: memoryview, step: Step = at_once) -> None:
        """Fill a view: one request for each content that its bytes are in."""
        at = 0
        until = file_deadline(self._session, None)
        for path, start, stop in self._source.ranges(offset, offset + len(view)):
            part = view[at : at + stop - start]
            read_into(self._session, path, start, part, until, partial(_step_behind, step, at))
            at += stop - start


def _step_behind(step: Step, before: int, at: int, left: int) -> int:
    """The step, of a view that begins behind so many bytes."""
    return step(before + at, left)


class LocalBytes:
    """A file of this machine; open as long as somebody holds it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self.size = os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def read_into(self, offset: int, view: memoryview, step: Step = at_once) -> None:
        """Fill a view. Raises BadTensors for a file that became shorter."""
        at = 0
        while at < len(view):
            count = os.preadv(self._file.fileno(), [view[at : at + step(at, len(view) - at)]], offset + at)
            if not count:
                raise BadTensors("the file became shorter")
            at += count


def remote_open(uri: str, client: "Client | None" = None, *, framework: str = "numpy") -> "TensorFile":
    """A safetensors file in a store, or in the local cache; only what is asked for is read.

    Args:
        uri: A file of a model, `account/container/model@VERSION/path`; or a blob, by id or name.
        client: Who asks; None: a client of the environment.
        framework: `numpy`, or `pt` for tensors of torch.

    Raises:
        BadTensors: No safetensors file: sizes, types or offsets that do not fit.
        NameNotFound: No such file, version or name.
    """
    if client is None:
        from ambry.client.client import Client  # noqa: PLC0415 -- it imports this module

        client = Client()
    return client.open_tensors(uri, framework=framework)


def load_file(uri: str, client: "Client | None" = None, *, framework: str = "numpy") -> dict[str, Any]:
    """All tensors of a safetensors file, by several connections straight into one array that they share.

    Args:
        uri: As of `remote_open`.
        client: Who asks; None: a client of the environment.
        framework: `numpy`, or `pt` for tensors of torch.

    Returns:
        An array for each name, with the shape and type that the header says; all are views of the same memory.

    Raises:
        BadTensors: No safetensors file, or a type that the framework lacks.
        NameNotFound: No such file, version or name.
    """
    with remote_open(uri, client, framework=framework) as file:
        return file.get_tensors()


def open_ref(session: Session, found: Path | Source, threads: int, framework: str) -> "TensorFile":
    """A file of this machine, or in a store. Raises as Client.open_tensors."""
    data = LocalBytes(found) if isinstance(found, Path) else StoredBytes(session, found)
    try:
        return TensorFile(data, threads, framework)
    except BaseException:
        if isinstance(data, LocalBytes):
            data.close()
        raise


class TensorFile:
    """A safetensors file that is open: the methods of `safetensors.safe_open`. Threads may share it.

    Types are those of the [format](https://github.com/huggingface/safetensors#format): BOOL, U8 to U64, I8 to I64, F16
    to F64 and C64 as arrays of numpy; BF16 and F8 need `ml_dtypes`, or torch with `framework="pt"`. F4 and F6 have no
    arrays.
    """

    def __init__(self, data: Bytes, threads: int, framework: str) -> None:
        if framework not in FRAMEWORKS:
            raise BadTensors(f"frameworks are {', '.join(FRAMEWORKS)}")
        self._data = data
        self._threads = threads
        self._is_torch = framework in {"pt", "torch"}
        self._header = _read_header(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(self._data, LocalBytes):
            self._data.close()

    def keys(self) -> list[str]:
        """Names of the tensors, sorted."""
        return sorted(self._header.tensors)

    def offset_keys(self) -> list[str]:
        """Names of the tensors in the order of their bytes."""
        return list(self._header.tensors)

    def metadata(self) -> dict[str, str]:
        """What the file says beside its tensors: names and texts."""
        return dict(self._header.metadata)

    def get_tensor(self, name: str) -> Any:
        """A tensor: an array with the shape and type that the header says.

        Args:
            name: The tensor.

        Raises:
            BadTensors: None has this name, or the framework lacks its type.
        """
        info = self._info(name)
        return self._array(self._read(info.start, info.stop), info.dtype, info.shape)

    def get_slice(self, name: str) -> "TensorSlice":
        """A tensor of which only what is asked for with `[...]` is read.

        Args:
            name: The tensor.

        Raises:
            BadTensors: None has this name.
        """
        return TensorSlice(self._info(name), self._part)

    def get_tensors(self) -> dict[str, Any]:
        """All tensors, read at once into one piece of memory that they share.

        Returns:
            An array for each name, with the shape and type that the header says.

        Raises:
            BadTensors: The framework lacks a type.
        """
        start = self._header.data_start
        data = self._read(start, self._data.size)
        return {
            name: self._array(data[info.start - start : info.stop - start], info.dtype, info.shape)
            for name, info in self._header.tensors.items()
        }

    def _info(self, name: str) -> TensorInfo:
        info = self._header.tensors.get(name)
        if info is None:
            raise BadTensors("the file has no such tensor", name=name)
        return info

    def _part(self, info: TensorInfo, start: int, stop: int, shape: tuple[int, ...]) -> Any:
        return self._array(self._read(info.start + start, info.start + stop), info.dtype, shape)

    def _read(self, start: int, stop: int) -> Any:
        """Bytes of the file as an array of bytes: parts at a time, each straight to its place."""
        try:
            import numpy as np  # noqa: PLC0415 -- an extra: ambry[models]
        except ImportError as error:
            raise BadTensors("tensors need numpy, which is not installed: pip install 'ambry[models]'") from error
        found = np.empty(stop - start, dtype=np.uint8)
        view: memoryview = found.data
        memory = FreshMemory(found.ctypes.data, len(view))
        size = min(max(-(-len(view) // _PARTS), _PART_BYTES_MIN), _PART_BYTES_MAX)
        if isinstance(self._data, LocalBytes):
            parallel = Parallel(min(self._threads, _LOCAL_THREADS_MAX))
        else:
            parallel = Parallel(self._threads, _THREADS_FIRST)

        def work(at: int) -> None:
            part = view[at : at + size]
            self._data.read_into(start + at, part, lambda inside, left: memory.step(at + inside, left))
            parallel.moved(len(part))

        parallel.run(range(0, len(view), size), lambda: work)
        return found

    def _array(self, data: Any, dtype: str, shape: tuple[int, ...]) -> Any:
        return _torch_tensor(data, dtype, shape) if self._is_torch else _numpy_array(data, dtype, shape)


class TensorSlice:
    """A tensor before it is read: `slice[10:20]`, `slice[3, 4]`, `slice[..., 1]` read the rows that the first index
    spans.
    """

    def __init__(self, info: TensorInfo, read: Callable[[TensorInfo, int, int, tuple[int, ...]], Any]) -> None:
        self._info = info
        self._read = read

    def get_shape(self) -> list[int]:
        """Sizes of its dimensions, outermost first; empty for a single number."""
        return list(self._info.shape)

    def get_dtype(self) -> str:
        """Its type, in safetensors' words: `F32`, `BF16`."""
        return self._info.dtype

    def __getitem__(self, index: Any) -> Any:
        """Part of the tensor, with the shape that numpy gives to `array[index]`.

        What the first index spans is read, the others choose from it. An index that is no number or slice there, as
        `...`, reads the whole tensor.

        Args:
            index: Numbers, slices with steps forward, `...`, `None`, or a tuple of such.

        Raises:
            BadTensors: A row that is not there, a slice that goes backward, or rows that do not end with a byte.
        """
        index = index if isinstance(index, tuple) else (index,)
        info = self._info
        rows = info.shape[0] if info.shape else 0
        if not rows or not index or not isinstance(index[0], int | slice):
            return self._read(info, 0, info.stop - info.start, info.shape)[index]
        chosen = _chosen(index[0], rows)
        if not chosen:
            return self._read(info, 0, 0, (0, *info.shape[1:]))[(slice(0, 0), *index[1:])]
        first, last = min(chosen[0], chosen[-1]), max(chosen[0], chosen[-1]) + 1
        row_size, rest = divmod(info.stop - info.start, rows)
        if rest:
            raise BadTensors("rows that do not end with a byte", name=info.name)
        part = self._read(info, first * row_size, last * row_size, (last - first, *info.shape[1:]))
        if isinstance(index[0], int):
            return part[(0, *index[1:])]
        return part[(slice(chosen[0] - first, None, chosen.step), *index[1:])]


def _chosen(index: int | slice, rows: int) -> range:
    """The rows that an index chooses, as a range. Raises BadTensors for one that is not there."""
    if isinstance(index, slice):
        chosen = range(rows)[index]
        if chosen.step < 0:
            raise BadTensors("slices go forward")
        return chosen
    if not -rows <= index < rows:
        raise BadTensors(f"row {index} of {rows}")
    return range(index % rows, index % rows + 1)


def _read_header(data: Bytes) -> TensorsHeader:
    first = bytearray(min(_FIRST_READ_BYTES, data.size))
    data.read_into(0, memoryview(first))
    size = header_size(bytes(first[:PREFIX_SIZE]), data.size)
    if PREFIX_SIZE + size <= len(first):
        return parse_header(bytes(first[PREFIX_SIZE : PREFIX_SIZE + size]), data.size)
    rest = bytearray(PREFIX_SIZE + size - len(first))
    data.read_into(len(first), memoryview(rest))
    return parse_header(bytes(first[PREFIX_SIZE:] + rest), data.size)


def _numpy_array(data: Any, dtype: str, shape: tuple[int, ...]) -> Any:
    if dtype in _NUMPY:
        return data.view(_NUMPY[dtype]).reshape(shape)
    try:
        import ml_dtypes  # noqa: PLC0415 -- only for types that numpy lacks
    except ImportError as error:
        raise BadTensors(f'numpy has no {dtype}: install ml_dtypes, or say framework="pt"') from error
    if dtype not in _ML_DTYPES:
        raise BadTensors(f"no array has the type {dtype}")
    return data.view(getattr(ml_dtypes, _ML_DTYPES[dtype])).reshape(shape)


def _torch_tensor(data: Any, dtype: str, shape: tuple[int, ...]) -> Any:
    try:
        import torch  # noqa: PLC0415 -- whoever wants its tensors has it
    except ImportError as error:
        raise BadTensors('framework="pt" needs torch, which is not installed') from error
    kind = getattr(torch, _TORCH.get(dtype, ""), None)
    if kind is None:
        raise BadTensors(f"this torch has no {dtype}")
    if not data.size:
        return torch.empty(shape, dtype=kind)
    # Bytes of one tensor inside of many need not lie as the type wants them.
    aligned = data if data.ctypes.data % 16 == 0 else data.copy()
    return torch.from_numpy(aligned).view(kind).reshape(shape)
