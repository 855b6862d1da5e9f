"""A folder becomes a version of a model: what its files are, what of them the store lacks, and the manifest at last.

Of a large file that resembles the one of the same path in the version before, only chunks are sent that are new. A file
that changes meanwhile ends the push; content that was stored by then is found by the next one, and so are the parts of
what is large.
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

from xxhash import xxh3_64

from ambry.client import stopping
from ambry.client.beside import is_beside
from ambry.client.bodies import upload_headers
from ambry.client.chunking import Chunk, decode_table, encode_table, find_reuse, scan
from ambry.client.contents import Contents
from ambry.client.folders import in_order
from ambry.client.model_manifest import Extent, ModelFile, ModelManifest
from ambry.client.part_upload import PartCheck, PartUpload, size_of_parts
from ambry.client.progress import Meter
from ambry.client.session import Session
from ambry.client.transfer import NO_DEADLINE_S
from ambry.errors import (
    BadDigest,
    BadRequest,
    FileChanged,
    ModelDamaged,
    NameExists,
    NoSuchUpload,
    NotAllowed,
    PreconditionFailed,
)
from ambry.limits import MIB, MODEL_CHUNKED_BYTES_MIN, MODEL_FILES_MAX

if TYPE_CHECKING:
    from ambry.client.client import Client

_PIECE_BYTES: Final = MIB
_ONE_STREAM_BYTES_MAX: Final = 16 * MIB
"""What is larger goes in parts."""

_LARGE_BYTES: Final = 256 * MIB
_ATTEMPTS: Final = 3
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

    def __init__(
        self, client: "Client", session: Session, contents: Contents, base: ModelManifest | None, meter: Meter,
        now_s: Callable[[], float], threads: int, upload_path: Callable[[str], Path],
    ) -> None:  # fmt: skip
        """`upload_path` says beside which file it is noted how the upload of a name goes on."""
        self._client = client
        self._session = session
        self._upload_path = upload_path
        self._contents = contents
        self._meter = meter
        self._now_s = now_s
        self._threads = threads
        self._base = {file.path: file for file in (base.files if base is not None else ())}
        self._seen: dict[str, float] = {}
        """Content to when it was seen in the store."""
        self._lock = threading.Lock()
        self._gates: dict[str, threading.Lock] = {}
        """One thread at a time stores a content: files of one model may be the same."""
        self._part_threads = 1
        self.sent_bytes = 0

    def store(self, files: Sequence[tuple[str, Path]]) -> tuple[ModelFile, ...]:
        """Have the content of files in the store. Raises FileChanged."""
        large = sum(path.stat().st_size > _ONE_STREAM_BYTES_MAX for _, path in files)
        self._part_threads = self._threads // min(max(large, 1), self._threads)
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
            checks = _Checks(size)

            def tell(piece: memoryview) -> None:
                stopping.check()
                checks.update(piece)

            digest, chunks = scan(file, wants_chunks=size >= MODEL_CHUNKED_BYTES_MIN, tell=tell)
            if checks.size != size:
                raise FileChanged(f"{place} changed while it was read", name=path)
            with self._meter.file(path, path, size) as told:
                stored = self._stored(path, size, digest, chunks, file, told, checks)
                after = os.fstat(file.fileno())
                if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
                    raise FileChanged(f"{place} changed while it was read", name=path)
                told.at(size, size)
            return ModelFile(path, size, digest, bool(before.st_mode & 0o100), stored[0], stored[1])

    def _stored(
        self, path: str, size: int, digest: str, chunks: list[Chunk], file: IO[bytes], told: Meter, checks: "_Checks"
    ) -> tuple[str | None, tuple[Extent, ...]]:
        """Table and extents of a file whose content is in the store now."""
        old = self._base.get(path)
        if old is not None and old.sha256 == digest and self._renewed(old.contents):
            return old.chunks, old.extents
        if not chunks:
            self._ensure_part(digest, file, [(0, size)], told, checks)
            return None, ()
        extents: tuple[Extent, ...] = ()
        if old is not None and not self._contents.exists(digest):
            extents = self._reused(old, chunks, file, told)
        if not extents:
            self._ensure_part(digest, file, [(0, size)], told, checks)
        table, is_sent = self._contents.ensure_bytes(encode_table(chunks))
        self._saw(table, len(chunks) * 36 + 8 if is_sent else 0)
        return table, extents

    def _reused(self, old: ModelFile, chunks: list[Chunk], file: IO[bytes], told: Meter) -> tuple[Extent, ...]:
        """What a file is put together from when only its new chunks are sent; nothing if that cannot be."""
        if old.chunks is None or not self._contents.exists(old.chunks):
            return ()
        reuse = find_reuse(chunks, decode_table(self._contents.read(old.chunks)), old.pieces)
        if reuse is None or not self._renewed(frozenset(one.content for one in reuse.extents if one.content)):
            return ()
        if not reuse.new:
            return reuse.extents
        digest = sha256()
        checks = _Checks(sum(size for _, size in reuse.new))
        for offset, size in reuse.new:
            for piece in _pieces(file, offset, size):
                digest.update(piece)
                checks.update(memoryview(piece))
        self._ensure_part(digest.hexdigest(), file, reuse.new, told, checks)
        return reuse.with_new(digest.hexdigest())

    def _renewed(self, digests: frozenset[str]) -> bool:
        for digest in digests:
            if digest not in self._seen:
                if not self._contents.renew(digest):
                    return False
                self._saw(digest, 0)
        return True

    def _ensure_part(
        self, digest: str, file: IO[bytes], ranges: Sequence[tuple[int, int]], told: Meter, checks: "_Checks"
    ) -> None:
        size = sum(one for _, one in ranges)
        sent = size

        def send(name: str) -> None:
            nonlocal sent
            try:
                if size > _ONE_STREAM_BYTES_MAX:
                    sent = self._send_parts(name, file, ranges, told, checks.found())
                    return
                self._client.put(
                    _Ranges(file, ranges, told),  # type: ignore[arg-type] # it has what put asks of a file
                    name, size=size, if_none_match=True, sha256=bytes.fromhex(digest), deadline_s=NO_DEADLINE_S,
                )  # fmt: skip
            except BadDigest as error:
                raise FileChanged("a file changed while it was read, or on its way", name=digest) from error

        with self._lock:
            gate = self._gates.setdefault(digest, threading.Lock())
        with gate:
            if digest not in self._seen:
                is_sent = self._contents.ensure(digest, send)
                self._saw(digest, sent if is_sent else 0)

    def _send_parts(
        self, name: str, file: IO[bytes], ranges: Sequence[tuple[int, int]], told: Meter, checks: Sequence[PartCheck]
    ) -> int:
        """Send a content by several connections, what the store lacks of it; how many bytes that was.

        The SHA-256 of each part was taken with that of the whole, from the same bytes, and the store checks it.
        """
        size = sum(one for _, one in ranges)
        for attempt in range(1, _ATTEMPTS + 1):
            upload = PartUpload(
                self._session, self._upload_path(name), file, name, told, _part_bytes(size),
                upload_headers(None, None, None, None, if_match=None, upsert=False), {"If-None-Match": "*"},
                ranges=ranges, checks=checks,
            )  # fmt: skip
            try:
                upload.run(self._part_threads, self._session.deadline(NO_DEADLINE_S))
            except (FileChanged, BadDigest, PreconditionFailed, NameExists):
                # Nobody goes on with it: the file is another one, or the content is there.
                upload.give_up()
                raise
            except (NoSuchUpload, NotAllowed):
                # Another process went on with it too, and has ended it meanwhile.
                if attempt == _ATTEMPTS:
                    raise
                told.restart()
                continue
            # An upload that was completed before says so again, also when its content was collected since.
            if self._client.exists(name):
                return upload.sent_bytes
            told.restart()
        raise ModelDamaged("content was deleted while the model was pushed; push again", name=name)

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


def _part_bytes(size: int) -> int:
    """Few, so that a kill costs little; of large content more, so that there are fewer requests."""
    return size_of_parts(size, 4 * MIB if size < _LARGE_BYTES else 8 * MIB)


class _Checks:
    """Of bytes that are read once, one behind the other: checksums of the parts in which they are sent."""

    def __init__(self, size: int) -> None:
        self._part_bytes = _part_bytes(size) if size > _ONE_STREAM_BYTES_MAX else 0
        self._found: list[PartCheck] = []
        self.size = 0
        self._begin()

    def _begin(self) -> None:
        self._left = self._part_bytes
        self._xxh3 = xxh3_64()
        self._sha256 = sha256()

    def update(self, piece: memoryview) -> None:
        """The next bytes."""
        self.size += len(piece)
        while self._part_bytes and piece:
            some = piece[: self._left]
            self._xxh3.update(some)
            self._sha256.update(some)
            self._left -= len(some)
            if not self._left:
                self._end()
            piece = piece[len(some) :]

    def _end(self) -> None:
        self._found.append(PartCheck(self._xxh3.hexdigest(), self._sha256.digest()))
        self._begin()

    def found(self) -> Sequence[PartCheck]:
        """One for each part, once there are no more bytes."""
        if self._left != self._part_bytes:
            self._end()
        return self._found


class _Ranges:
    """Ranges of a file, one behind the other, as a file that can be rewound."""

    def __init__(self, file: IO[bytes], ranges: Sequence[tuple[int, int]], told: Meter) -> None:
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
        self._told.restart()
        self._left = self._all()
        return 0

    def read(self, size: int) -> bytes:
        """The next bytes, none at the end. Raises FileChanged for a file that ends too early."""
        del size
        piece = next(self._left, b"")
        self._told.add(len(piece))
        return piece
