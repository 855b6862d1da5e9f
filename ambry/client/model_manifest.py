"""The manifest of a model version, docs/formats/model.md: what files it has, and which content each is made of. Pure.

A manifest may come from anybody, so paths are checked: none leads out of a folder, none is twice or a folder as well.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final

from ambry.client.model_names import is_sha256
from ambry.errors import ModelDamaged
from ambry.limits import MODEL_EXTENTS_MAX, MODEL_FILES_MAX, MODEL_MANIFEST_BYTES_MAX

FORMAT: Final = "ambry-model"
VERSION: Final = 1
Value = str | int | float | bool
"""What metadata can say of a model."""

MANIFEST_KEYS: Final = {
    "format": "format",
    "version": "version",
    "model": "model",
    "created_ms": "created_ms",
    "files": "files",
    "empty_folders": "empty_folders",
    "metadata": "metadata",
    "lineage": "lineage",
}
FILE_KEYS: Final = {
    "path": "path",
    "size": "size",
    "sha256": "sha256",
    "is_executable": "executable",
    "chunks": "chunks",
    "extents": "extents",
}


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes `offset:offset + size` of the content with a SHA-256."""

    content: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file of a model; `size` in bytes."""

    path: str
    """With `/` between its parts, below the folder of the model."""
    size: int
    sha256: str
    is_executable: bool = False
    chunks: str | None = None
    """SHA-256 of the content that has the file's table of chunks."""
    extents: tuple[Extent, ...] = ()
    """What it is put together from; empty: it is one content, under its own SHA-256."""

    @property
    def pieces(self) -> tuple[Extent, ...]:
        """Where its bytes are, in order."""
        return self.extents or (Extent(self.sha256, 0, self.size),)

    @property
    def contents(self) -> frozenset[str]:
        """All content that must be there for this file."""
        own = frozenset(extent.content for extent in self.pieces)
        return own if self.chunks is None else own | {self.chunks}


def slices(pieces: Sequence[Extent], start: int, size: int) -> Iterator[Extent]:
    """Where bytes `start:start + size` of what is made of pieces are."""
    at = 0
    for piece in pieces:
        first, last = max(start, at), min(start + size, at + piece.size)
        if first < last:
            yield Extent(piece.content, piece.offset + first - at, last - first)
        at += piece.size
        if at >= start + size:
            return


@dataclass(frozen=True, slots=True)
class ModelManifest:
    """One version of a model, as its blob says it (docs/formats/model.md)."""

    model: str
    created_ms: int
    files: tuple[ModelFile, ...]
    empty_folders: tuple[str, ...] = ()
    metadata: Mapping[str, Value] = field(default_factory=dict)
    lineage: Mapping[str, str] = field(default_factory=dict)
    """Where it comes from: `parent`, `dataset`, `code`, as its makers say."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def contents(self) -> frozenset[str]:
        """All content that this version is made of."""
        return frozenset[str]().union(*(file.contents for file in self.files))


def encode_manifest(manifest: ModelManifest) -> bytes:
    """The bytes of a manifest, always the same for the same manifest."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "model": manifest.model,
        "created_ms": manifest.created_ms,
        "files": [_file_document(file) for file in manifest.files],
        "empty_folders": list(manifest.empty_folders),
        "metadata": dict(manifest.metadata),
        "lineage": dict(manifest.lineage),
    }
    return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _file_document(file: ModelFile) -> dict[str, object]:
    document: dict[str, object] = {"path": file.path, "size": file.size, "sha256": file.sha256}
    if file.is_executable:
        document["executable"] = True
    if file.chunks is not None:
        document["chunks"] = file.chunks
    if file.extents:
        document["extents"] = [[extent.content, extent.offset, extent.size] for extent in file.extents]
    return document


def decode_manifest(data: bytes, digest: str | None = None) -> ModelManifest:
    """The manifest that bytes are; `digest` is their SHA-256, if it is known. Raises ModelDamaged for anything else."""
    if digest is not None and sha256(data).hexdigest() != digest:
        raise ModelDamaged("the manifest does not have its SHA-256")
    if len(data) > MODEL_MANIFEST_BYTES_MAX:
        raise ModelDamaged(f"a manifest has {MODEL_MANIFEST_BYTES_MAX} bytes at most")
    try:
        document = json.loads(data)
        if document["format"] != FORMAT or document["version"] != VERSION:
            raise ModelDamaged(f"not a manifest of a model in version {VERSION}")
        manifest = ModelManifest(
            model=_text(document["model"]),
            created_ms=_count(document["created_ms"]),
            files=tuple(_file(entry) for entry in _list(document["files"], MODEL_FILES_MAX)),
            empty_folders=tuple(_path(entry) for entry in _list(document["empty_folders"], MODEL_FILES_MAX)),
            metadata={_text(key): _value(value) for key, value in document["metadata"].items()},
            lineage={_text(key): _text(value) for key, value in document["lineage"].items()},
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelDamaged(f"not the manifest of a model: {type(error).__name__}") from error
    _check_tree(manifest)
    return manifest


def _file(entry: Mapping[str, Any]) -> ModelFile:
    extents = tuple(_extent(one) for one in _list(entry.get("extents", []), MODEL_EXTENTS_MAX))
    chunks = entry.get("chunks")
    executable = entry.get("executable", False)
    if not isinstance(executable, bool):
        raise TypeError("executable")
    file = ModelFile(
        path=_path(entry["path"]),
        size=_count(entry["size"]),
        sha256=_sha256(entry["sha256"]),
        is_executable=executable,
        chunks=None if chunks is None else _sha256(chunks),
        extents=extents,
    )
    if extents and sum(extent.size for extent in extents) != file.size:
        raise ModelDamaged("the pieces of a file do not have its size", name=file.path)
    return file


def _extent(entry: list[Any]) -> Extent:
    content, offset, size = entry
    return Extent(_sha256(content), _count(offset), _count(size))


def _list(value: object, count_max: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > count_max:
        raise TypeError("list")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("text")
    # Raises for half a pair of surrogates, which JSON can say and UTF-8 cannot.
    value.encode()
    return value


def _value(value: object) -> Value:
    if not isinstance(value, str | int | float | bool):
        raise TypeError("value")
    if isinstance(value, str):
        _text(value)
    return value


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise TypeError("count")
    return value


def _sha256(value: object) -> str:
    if not is_sha256(value):
        raise TypeError("sha256")
    return str(value)


def _path(value: object) -> str:
    path = _text(value)
    if "\0" in path or any(step in {"", ".", ".."} for step in path.split("/")):
        raise ModelDamaged("a path that leads out of the folder of its model", name=path[:64])
    return path


def _check_tree(manifest: ModelManifest) -> None:
    paths = [file.path for file in manifest.files]
    known = set(paths)
    if len(known) != len(paths):
        raise ModelDamaged("a path that is there twice")
    for path in (*paths, *manifest.empty_folders):
        steps = path.split("/")
        for count in range(1, len(steps)):
            if "/".join(steps[:count]) in known:
                raise ModelDamaged("a path that is a file and a folder", name=path[:64])
    if known.intersection(manifest.empty_folders):
        raise ModelDamaged("a path that is a file and a folder")
