"""A folder becomes a version of a model: what its files are, what of them the store lacks, and the manifest at last.

Of a large file that resembles the one of the same path in the version before, only chunks are sent that are new. A file
that changes meanwhile ends the push; content that was stored by then is found by the next one.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from ambry.client import stopping
from ambry.client.beside import is_beside
from ambry.client.chunking import Chunk, decode_table, encode_table, find_reuse, scan
from ambry.client.contents import Contents
from ambry.client.folders import in_order
from ambry.client.model_manifest import Extent, ModelFile, ModelManifest
from ambry.client.progress import Meter
from ambry.client.transfer import NO_DEADLINE_S
from ambry.errors import BadDigest, BadRequest, FileChanged, ModelDamaged
from ambry.limits import MIB, MODEL_CHUNKED_BYTES_MIN, MODEL_FILES_MAX

if TYPE_CHECKING:
    from ambry.client.client import Client

_PIECE_BYTES: Final = MIB
_RENEW_AFTER_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Found:
    """What a folder holds: files, and folders without any."""

    files: tuple[tuple[str, Path], ...]
    """Path in the model, and where it is."""
    empty_folders: tuple[str, ...]


def matches(path: str, allow: Sequence[str] | None, ignore: Sequence[str] | None) -> bool:
    """Whether a path is wanted. Patterns as of a shell, over the whole path: `*.json`, `onnx/*`."""
    if allow is not None and not any(fnmatchcase(path, pattern) for pattern in allow):
        return False
    return not any(fnmatchcase(path, pattern) for pattern in ignore or ())


def look_at(folder: Path, ignore: Sequence[str] | None) -> Found:
    """What is in a folder. Links to files are followed. Raises BadRequest for what a model cannot have."""
    files: list[tuple[str, Path]] = []
    empty: list[str] = []
    for parent, folders, names in os.walk(folder, onerror=_raise):
        folders.sort()
        base = Path(parent)
        for name in folders:
            path = base / name
            if path.is_symlink() and not _is_ignored(path.relative_to(folder).as_posix(), ignore):
                raise BadRequest(f"{path} is a link to a folder; a model has files", field="folder")
        for name in sorted(names):
            path = base / name
            relative = _text(path.relative_to(folder).as_posix())
            if is_beside(name) or not matches(relative, None, ignore):
                continue
            if not path.is_file():
                raise BadRequest(f"{path} is no file, and no link to one", field="folder")
            files.append((relative, path))
        if not folders and not names and base != folder:
            empty.append(_text(base.relative_to(folder).as_posix()))
    if len(files) > MODEL_FILES_MAX:
        raise BadRequest(f"a model has {MODEL_FILES_MAX} files at most", field="folder")
    return Found(tuple(sorted(files)), tuple(sorted(empty)))


def _is_ignored(path: str, ignore: Sequence[str] | None) -> bool:
    """Whether a folder is left out, by its own path or as all that is below it."""
    return not (matches(path, None, ignore) and matches(f"{path}/", None, ignore))


def _raise(error: OSError) -> None:
    raise error


def _text(path: str) -> str:
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise BadRequest(f"{path!r} is no name in UTF-8", field="folder") from error
    return path


class Push:
    """The files of one push on their way into the store."""

    def __init__(self, client: "Client", contents: Contents, base: ModelManifest | None, meter: Meter,
                 now_s: Callable[[], float], threads: int) -> None:  # fmt: skip
        self._client = client
        self._contents = contents
        self._meter = meter
        self._now_s = now_s
        self._threads = threads
        self._base = {file.path: file for file in (base.files if base is not None else ())}
        self._seen: dict[str, float] = {}
        """Content to when it was seen in the store."""
        self._lock = threading.Lock()
        self.sent_bytes = 0

    def store(self, files: Sequence[tuple[str, Path]]) -> tuple[ModelFile, ...]:
        """Have the content of files in the store. Raises FileChanged."""
        with closing(in_order(self._threads, lambda file: self._file(*file), files)) as stored:
            return tuple(stored)

    def renew(self) -> None:
        """Before the manifest names content: what was seen some time ago is touched, and seen again."""
        old = [digest for digest, seen_s in self._seen.items() if self._now_s() - seen_s > _RENEW_AFTER_S]
        with closing(in_order(self._threads, lambda one: (one, self._contents.renew(one)), old)) as renewed:
            for digest, is_there in renewed:
                if not is_there:
                    raise ModelDamaged("content was deleted while the model was pushed; push again", name=digest)

    def _file(self, path: str, place: Path) -> ModelFile:
        with place.open("rb", buffering=0) as file:
            before = os.fstat(file.fileno())
            size = before.st_size
            digest, chunks = scan(file, wants_chunks=size >= MODEL_CHUNKED_BYTES_MIN, tell=lambda _: stopping.check())
            with self._meter.file(path, path, size) as meter:
                told = _Told(meter)
                stored = self._stored(path, size, digest, chunks, file, told)
                after = os.fstat(file.fileno())
                if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
                    raise FileChanged(f"{place} changed while it was read", name=path)
                told.add(size - told.count)
            return ModelFile(path, size, digest, bool(before.st_mode & 0o100), stored[0], stored[1])

    def _stored(
        self, path: str, size: int, digest: str, chunks: list[Chunk], file: IO[bytes], told: "_Told"
    ) -> tuple[str | None, tuple[Extent, ...]]:
        """Table and extents of a file whose content is in the store now."""
        old = self._base.get(path)
        if old is not None and old.sha256 == digest and self._renewed(old.contents):
            return old.chunks, old.extents
        if not chunks:
            self._ensure_part(digest, file, [(0, size)], told)
            return None, ()
        extents: tuple[Extent, ...] = ()
        if old is not None and not self._contents.exists(digest):
            extents = self._reused(old, chunks, file, told)
        if not extents:
            self._ensure_part(digest, file, [(0, size)], told)
        table, is_sent = self._contents.ensure_bytes(encode_table(chunks))
        self._saw(table, len(chunks) * 36 + 8 if is_sent else 0)
        return table, extents

    def _reused(self, old: ModelFile, chunks: list[Chunk], file: IO[bytes], told: "_Told") -> tuple[Extent, ...]:
        """What a file is put together from when only its new chunks are sent; nothing if that cannot be."""
        if old.chunks is None or not self._contents.exists(old.chunks):
            return ()
        reuse = find_reuse(chunks, decode_table(self._contents.read(old.chunks)), old.pieces)
        if reuse is None or not self._renewed(frozenset(one.content for one in reuse.extents if one.content)):
            return ()
        if not reuse.new:
            return reuse.extents
        digest = sha256()
        for offset, size in reuse.new:
            for piece in _pieces(file, offset, size):
                digest.update(piece)
        self._ensure_part(digest.hexdigest(), file, reuse.new, told)
        return reuse.with_new(digest.hexdigest())

    def _renewed(self, digests: frozenset[str]) -> bool:
        for digest in digests:
            if digest not in self._seen:
                if not self._contents.renew(digest):
                    return False
                self._saw(digest, 0)
        return True

    def _ensure_part(self, digest: str, file: IO[bytes], ranges: Sequence[tuple[int, int]], told: "_Told") -> None:
        size = sum(one for _, one in ranges)

        def send(name: str) -> None:
            try:
                self._client.put(
                    _Ranges(file, ranges, told),  # type: ignore[arg-type] # it has what put asks of a file
                    name, size=size, if_none_match=True, sha256=bytes.fromhex(digest), deadline_s=NO_DEADLINE_S,
                )  # fmt: skip
            except BadDigest as error:
                raise FileChanged("a file changed while it was read, or on its way", name=digest) from error

        if digest not in self._seen:
            is_sent = self._contents.ensure(digest, send)
            self._saw(digest, size if is_sent else 0)

    def _saw(self, digest: str, sent: int) -> None:
        with self._lock:
            self._seen[digest] = self._now_s()
            self.sent_bytes += sent


def _pieces(file: IO[bytes], offset: int, size: int) -> Iterator[bytes]:
    while size:
        piece = os.pread(file.fileno(), min(size, _PIECE_BYTES), offset)
        if not piece:
            raise FileChanged("a file became shorter while it was read")
        yield piece
        offset += len(piece)
        size -= len(piece)


class _Told:
    """How much of one file's size was told as progress."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self.count = 0

    def add(self, count: int) -> None:
        """More of it, or less when it is sent again."""
        self.count += count
        self._meter.add(count)


class _Ranges:
    """Ranges of a file, one behind the other, as a file that can be rewound."""

    def __init__(self, file: IO[bytes], ranges: Sequence[tuple[int, int]], told: _Told) -> None:
        self._file = file
        self._ranges = ranges
        self._told = told
        self._left = self._all()

    def _all(self) -> Iterator[bytes]:
        for offset, size in self._ranges:
            yield from _pieces(self._file, offset, size)

    def seekable(self) -> bool:
        """It can be rewound."""
        return True

    def tell(self) -> int:
        """Whoever asks does so at the beginning."""
        return 0

    def seek(self, offset: int) -> int:
        """To the beginning."""
        assert offset == 0
        self._told.add(-self._told.count)
        self._left = self._all()
        return 0

    def read(self, size: int) -> bytes:
        """The next bytes, none at the end. Raises FileChanged for a file that ends too early."""
        del size
        piece = next(self._left, b"")
        self._told.add(len(piece))
        return piece
