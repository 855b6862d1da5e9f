"""A version of a model becomes a folder: what the cache lacks is loaded, the folder gets links to it.

Nothing is written outside of the folder: paths are checked by the manifest, and links in the folder are not followed.
"""

import contextlib
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ambry.client.cache import Cache, Placer, is_placed, tidy
from ambry.client.contents import Contents
from ambry.client.folders import in_order
from ambry.client.model_manifest import Extent, ModelFile
from ambry.client.progress import Meter
from ambry.client.session import Session
from ambry.client.transfer import Source, download, fetch_range
from ambry.errors import BadDigest, BadRequest, ModelDamaged, NotCached
from ambry.limits import MIB

if TYPE_CHECKING:
    from ambry.client.http import Exchange

PART_BYTES: Final = 8 * MIB
_SMALL_BYTES: Final = 4 * MIB
_STREAM_BYTES: Final = 4 * MIB


@dataclass(frozen=True, slots=True)
class Pulled:
    """What a pull did; sizes in bytes."""

    folder: Path
    version: str
    files: tuple[str, ...]
    size: int
    loaded_bytes: int
    """What came from the store; the rest was in the cache or in the folder."""


def source_of(contents: Contents, extents: Sequence[Extent], identity: str) -> Source:
    """Where the bytes of a file are in the store at present. Raises ModelDamaged for content that is not there."""
    ids = {digest: contents.locate(digest) for digest in {extent.content for extent in extents}}
    for extent in extents:
        if extent.offset + extent.size > ids[extent.content].size:
            raise ModelDamaged("content of the model is shorter than it was", name=extent.content)
    pieces = tuple((f"/{ids[extent.content].id}", extent.offset, extent.size) for extent in extents)
    return Source(identity, sum(extent.size for extent in extents), pieces)


class Pull:
    """The files of one pull on their way into a folder. `contents` None: offline."""

    def __init__(
        self, session: Session, contents: Contents | None, cache: Cache, meter: Meter, threads: int, *, verify: bool
    ) -> None:
        self._session = session
        self._contents = contents
        self._cache = cache
        self._meter = meter
        self._threads = threads
        self._verify = verify
        self.loaded_bytes = 0

    def load(self, files: Sequence[ModelFile]) -> None:
        """Have the content of files in the cache. Raises ModelDamaged, NotCached."""
        unique = {file.sha256: file for file in files}
        missing = []
        for file in unique.values():
            if self._cache.find(file.sha256, file.size, verify=self._verify) is None:
                missing.append(file)
            else:
                self._meter.add(file.size)
        if missing and self._contents is None:
            raise NotCached("the cache lacks files of the model", name=missing[0].path)
        self.loaded_bytes = sum(file.size for file in missing)
        large = [file for file in missing if file.size > _SMALL_BYTES]
        small = [file for file in missing if file.size <= _SMALL_BYTES]
        if small:
            with contextlib.closing(in_order(self._threads, self._load, small)) as loaded:
                for _ in loaded:
                    pass
        # One after the other: each has all connections to itself.
        for file in large:
            self._load(file)
        self._cache.use(unique)

    def _load(self, file: ModelFile) -> None:
        assert self._contents is not None
        contents = self._contents
        is_small = file.size <= _SMALL_BYTES and not file.extents

        def load(target: Path) -> None:
            if is_small:
                target.write_bytes(contents.read(file.sha256, file.size))
                meter.add(file.size)
                return
            source = source_of(contents, file.pieces, file.sha256)
            threads = 1 if file.size <= _SMALL_BYTES else self._threads
            download(self._session, source, target, meter, lambda pieces: _check(file, pieces), PART_BYTES, threads)

        with self._meter.file(file.path, file.path, file.size) as meter:
            self._cache.fetch(file.sha256, file.size, load)

    def fill(self, folder: Path, files: Sequence[ModelFile], empty_folders: Sequence[str], *, copies: bool) -> None:
        """Give a folder the files, from the cache."""
        made: set[Path] = set()
        placer = Placer(copies=copies)
        for path in empty_folders:
            _make_folders(folder, folder / path, made)
        for file in files:
            target = folder / file.path
            if target.parent not in made:
                _make_folders(folder, target.parent, made)
                tidy(target.parent)
            if not self._is_there(target, file, copies=copies):
                if target.is_dir() and not target.is_symlink():
                    raise BadRequest(f"{target} is a folder, and a file of the model", field="folder")
                placer.place(self._cache.path_of(file.sha256), target, is_executable=file.is_executable)

    def _is_there(self, target: Path, file: ModelFile, *, copies: bool) -> bool:
        if self._verify or not is_placed(target, file.sha256, file.size):
            return False
        found = target.lstat()
        is_own = found.st_nlink == 1
        return bool(found.st_mode & 0o100) == file.is_executable and (is_own or not copies)


def _check(file: ModelFile, pieces: Iterator[bytes]) -> None:
    digest = sha256()
    for piece in pieces:
        digest.update(piece)
    if digest.hexdigest() != file.sha256:
        raise BadDigest("a file of the model does not have its SHA-256", field=file.path)


def _make_folders(folder: Path, target: Path, made: set[Path]) -> None:
    """Folders down to `target`, none of them a link that leads elsewhere. `folder` itself may be one."""
    if target in made:
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder
    for step in target.relative_to(folder).parts:
        path /= step
        with contextlib.suppress(FileExistsError):
            path.mkdir()
        if not stat.S_ISDIR(path.lstat().st_mode):
            raise BadRequest(f"{path} is no folder; nothing is written through links", field="folder")
    made.add(target)


def stream(session: Session, source: Source) -> Iterator[bytes]:
    """The bytes of a source, one piece after the other."""
    buffer = memoryview(bytearray(_STREAM_BYTES))
    for path, start, stop in source.ranges(0, source.size):
        for at in range(start, stop, _STREAM_BYTES):
            filled = bytearray()
            end = min(at + _STREAM_BYTES, stop)

            def take(exchange: "Exchange", left: int, filled: bytearray = filled) -> int:
                count = exchange.readinto(buffer[:left])
                filled.extend(buffer[:count])
                return count

            fetch_range(session, path, at, end, take)
            yield bytes(filled)


def is_same(session: Session, contents: Contents, file: ModelFile) -> bool:
    """Whether the store's bytes of a file have its SHA-256."""
    digest = sha256()
    for piece in stream(session, source_of(contents, file.pieces, file.sha256)):
        digest.update(piece)
    return digest.hexdigest() == file.sha256
