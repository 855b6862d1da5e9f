"""`ambry://account/container/name` for everything that uses fsspec.

A name is a path; a directory is there as long as a name lies below it, so making one does nothing. Writes appear whole
when the file is closed, or at the end of a transaction, and not at all if something fails before (fs_files.py). A
rename is one change of names in the store. Nothing that was listed is remembered: the next look sees what others have
done.
"""

import asyncio
import errno
import io
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final

from fsspec.asyn import AsyncFileSystem, _run_coros_in_chunks, sync
from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.compression import compr
from fsspec.core import get_compression

from ambry.client.aio import AsyncClient
from ambry.client.client import Client
from ambry.client.fs_files import AsyncFile, CompressedFile, TextFile, WrittenFile
from ambry.client.fs_ranges import Range, joined
from ambry.client.model_names import is_kept
from ambry.client.values import ListedName
from ambry.errors import (
    AmbryError,
    BlobDeleted,
    BlobExpired,
    BlobNotFound,
    NameDeleted,
    NameExists,
    NameExpired,
    NameNotFound,
    PreconditionFailed,
    RangeNotSatisfiable,
)
from ambry.limits import KIB, MIB

_GAP_BYTES: Final = 64 * KIB
"""Ranges so near to each other are asked for together: the bytes between cost less than a request."""

_GONE: Final = (BlobNotFound, BlobDeleted, BlobExpired, NameNotFound, NameDeleted, NameExpired)


class AmbryFileSystem(AsyncFileSystem):  # type: ignore[misc] # fsspec has no types
    """Names of a store as files, for everything that uses fsspec; paths are `account/container/name`.

    Its methods are fsspec's, those with another meaning here are below. Sizes and positions are bytes. `info` has
    `size`, `id` (of the blob), `version` (of the name), `ContentType` and `created` (seconds since 1970).

    Args:
        url: As of `ambry.client.Client`; so are the next two.
        token: Bearer token of an access key.
        profile: Table of the configuration file.
        endpoint_url: The same as `url`, for `storage_options={"endpoint_url": ...}`: functions of fsspec have a `url`
            of their own.
        options: As fsspec's own, `skip_instance_cache` for one.

    Raises:
        FileNotFoundError: No such name.
        FileExistsError: The name is taken, of a file opened with `xb` or written with `mode="create"`.
        AmbryError: Any other refusal, as of `Client`.
    """

    protocol = "ambry"
    root_marker = ""

    def __init__(
        self, url: Any = None, token: str | None = None, profile: str | None = None, *, endpoint_url: Any = None,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(**options)
        frontends = endpoint_url if url is None else url
        self._async = AsyncClient(frontends, token=token, profile=profile)
        self._sync = Client(frontends, token=token, profile=profile)

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        """`account/container/name` without a slash at its end."""
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        text = os.fspath(path).removeprefix("ambry://").removeprefix("ambry::")
        return text.strip("/")

    # --- what is there -----------------------------------------------------------------------------------------

    async def _info(self, path: str, **_: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        if path.count("/") >= 2:
            with suppress(*_GONE):
                info = await self._async.stat(path)
                return {
                    "name": path, "size": info.size, "type": "file", "id": info.id, "version": info.version,
                    "ContentType": info.content_type, "created": info.created_ms / 1000,
                }  # fmt: skip
        if path.count("/") >= 1:
            prefix = path if path.count("/") == 1 else f"{path}/"
            async for _entry in self._async.list(prefix, delimiter="/"):
                return _directory(path)
            if path.count("/") == 1:
                return _directory(path)
        if not path or path.count("/") == 0:
            return _directory(path)
        raise FileNotFoundError(path)

    async def _ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        path = self._strip_protocol(path)
        if path.count("/") < 1:
            raise FileNotFoundError(f"{path}: list a container, account/container")
        base = "/".join(path.split("/", 2)[:2])
        prefix = path if path.count("/") == 1 else f"{path}/"
        found = [_listed(base, entry) async for entry in self._async.list(prefix, delimiter="/")]
        found = [entry for entry in found if entry["name"] != path]
        if not found and path.count("/") > 1:
            found = [await self._info(path)]
            if found[0]["type"] == "directory":
                raise FileNotFoundError(path)
        return found if detail else [entry["name"] for entry in found]

    def created(self, path: str) -> datetime:
        """When the blob behind a name was put, in UTC."""
        return datetime.fromtimestamp(self.info(path)["created"], UTC)

    def modified(self, path: str) -> datetime:
        """As `created`: a blob never changes, a name that gets other bytes gets another blob."""
        return self.created(path)

    # --- bytes -------------------------------------------------------------------------------------------------

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        path = self._strip_protocol(path)
        try:
            first, last = start or 0, end
            if first < 0 or (last is not None and last < 0):
                size = (await self._async.stat(path)).size
                first, last = _from_begin(first, size), size if last is None else _from_begin(last, size)
            return await self._async.get(path, first, last)
        except RangeNotSatisfiable:
            return b""
        except _GONE as error:
            raise FileNotFoundError(path) from error

    async def _cat_ranges(
        self, paths: Any, starts: Any, ends: Any, max_gap: int | None = None, batch_size: int | None = None,
        on_error: str = "return", **_: Any,
    ) -> list[Any]:  # fmt: skip
        """Ranges of files; those that are near each other, in one request. `max_gap`: bytes between them, 64 KiB."""
        if not isinstance(paths, list):
            raise TypeError("paths are a list")
        begins = starts if isinstance(starts, Iterable) else [starts] * len(paths)
        stops = ends if isinstance(ends, Iterable) else [ends] * len(paths)
        names = [self._strip_protocol(path) for path in paths]
        ranges = [Range(*one) for one in zip(range(len(names)), names, begins, stops, strict=True)]
        found: list[Any] = [None] * len(ranges)

        async def fetch(several: list[Range]) -> None:
            path, first, last = several[0].path, several[0].start, several[-1].stop
            if len(several) > 1:
                last = max(one.stop or 0 for one in several)
            try:
                data = await self._cat_file(path, first, last)
            except (AmbryError, OSError) as error:
                if on_error != "return":
                    raise
                for one in several:
                    found[one.number] = error
                return
            for one in several:
                found[one.number] = data if len(several) == 1 else one.within(data, first or 0)

        groups = joined(ranges, _GAP_BYTES if max_gap is None else max_gap)
        await _run_coros_in_chunks(list(map(fetch, groups)), batch_size=batch_size or self.batch_size, nofiles=True)
        return found

    async def _pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        path = self._strip_protocol(path)
        if mode == "create" and await self._exists(path):
            raise FileExistsError(path)
        if self._intrans:
            await asyncio.to_thread(self._defer, io.BytesIO(value), path, mode)
            return
        with _taken(path):
            await self._async.put(bytes(value), path, upsert=mode != "create")

    async def _put_file(
        self, lpath: str, rpath: str, callback: Any = DEFAULT_CALLBACK, mode: str = "overwrite", **_: Any
    ) -> None:
        if await asyncio.to_thread(Path(lpath).is_dir):
            return
        rpath = self._strip_protocol(rpath)
        if mode == "create" and await self._exists(rpath):
            raise FileExistsError(rpath)
        if self._intrans:
            await asyncio.to_thread(self._defer_file, Path(lpath), rpath, mode)
            return
        with _taken(rpath):
            await self._async.upload_file(lpath, rpath, upsert=mode != "create", progress=callback)

    def _defer_file(self, path: Path, name: str, mode: str) -> None:
        with path.open("rb") as file:
            self._defer(file, name, mode)

    def _defer(self, source: IO[bytes], path: str, mode: str) -> None:
        """Have bytes stored at the end of the transaction."""
        with self._written(path, upsert=mode != "create", autocommit=False) as file:
            shutil.copyfileobj(source, file)
        self.transaction.files.append(file)

    async def _get_file(self, rpath: str, lpath: Any, callback: Any = DEFAULT_CALLBACK, **_: Any) -> None:
        rpath = self._strip_protocol(rpath)
        if hasattr(lpath, "write"):
            lpath.write(await self._cat_file(rpath))
            return
        try:
            info = await self._async.stat(rpath)
        except _GONE as error:
            if await self._isdir(rpath):
                _make_folder(Path(lpath))
                return
            raise FileNotFoundError(rpath) from error
        _make_folder(Path(lpath).parent)
        await self._async.download_file(info.id, lpath, progress=callback)

    def open(
        self, path: str, mode: str = "rb", block_size: int | None = None, cache_options: Any = None,
        compression: str | None = None, **options: Any,
    ) -> Any:  # fmt: skip
        """A name as a file. What is written is stored when it is closed, or at the end of the transaction.

        Nothing is stored of a file that is left by an exception, of which a write failed (closing it raises OSError),
        or that is dropped unclosed.

        Args:
            path: `account/container/name`.
            mode: `r`, `w`, `x` (the name must be free, also when it is closed) or `a` (the name must stand for the same
                bytes when it is closed, else that is OSError, ESTALE); text without a `b`.
            block_size: Bytes that are asked for at a time, for reading.
            cache_options: Not used.
            compression: Its name, as fsspec has it, or `infer`: by the path.
            options: `encoding`, `errors` and `newline` of text; `autocommit`, False: store it when `commit` is called.
        """
        if "r" in mode:
            return super().open(path, mode, block_size, cache_options, compression, **options)
        text = {key: options.pop(key) for key in ("encoding", "errors", "newline") if key in options}
        file = super().open(path, mode.replace("b", "").replace("t", "") + "b", block_size, **options)
        method = get_compression(path, compression)
        if method is not None:
            file = CompressedFile(file, compr[method](file, mode=mode[0]))
        return file if "b" in mode else TextFile(file, **text)

    def _open(
        self, path: str, mode: str = "rb", block_size: int | None = None, autocommit: bool = True, **_: Any
    ) -> io.IOBase:
        path = self._strip_protocol(path)
        if mode == "rb":
            try:
                reader = self._sync.open(path, read_ahead=block_size or 4 * MIB)
            except _GONE as error:
                raise FileNotFoundError(path) from error
            return io.BufferedReader(reader)
        if mode not in {"wb", "xb", "ab"}:
            raise ValueError(f"mode {mode}")
        if mode == "ab":
            return self._appended(path, autocommit=autocommit)
        if mode == "xb" and self._sync.exists(path):
            raise FileExistsError(path)
        return self._written(path, upsert=mode != "xb", autocommit=autocommit)

    def _appended(self, path: str, *, autocommit: bool) -> WrittenFile:
        """A file that begins with what is there, and takes its place only if nobody else has done so meanwhile."""
        try:
            found = self._sync.stat(path)
            with self._sync.open(found.id) as before:
                file = self._written(path, upsert=True, autocommit=autocommit, replaces=found.id)
                try:
                    shutil.copyfileobj(before, file, 4 * MIB)
                except BaseException:
                    file.discard()
                    file.close()
                    raise
                return file
        except _GONE:
            return self._written(path, upsert=False, autocommit=autocommit)

    def _written(self, path: str, *, upsert: bool, autocommit: bool, replaces: str | None = None) -> WrittenFile:
        """`replaces`: the blob that the name must stand for when it is stored."""

        def store(file: IO[bytes]) -> None:
            try:
                with _taken(path):
                    self._sync.put(file, path, upsert=upsert and replaces is None, if_match=replaces)
            except PreconditionFailed as error:
                changed = "was changed since it was opened to be appended to, and what was appended is not stored"
                raise OSError(errno.ESTALE, changed, path) from error

        return WrittenFile(path, store, autocommit=autocommit)

    async def open_async(self, path: str, mode: str = "rb", **options: Any) -> AsyncFile:
        """As `open`, for `await`: a file whose methods wait on threads."""
        return AsyncFile(await asyncio.to_thread(self.open, path, mode, **options))

    def sign(self, path: str, expiration: int = 300, method: str = "GET", **_: Any) -> str:
        """A URL with which anybody may read a file, or with `PUT` upload one, for `expiration` seconds."""
        return self._sync.signed_url(self._strip_protocol(path), method=method, ttl_s=int(expiration))

    # --- changes -----------------------------------------------------------------------------------------------

    async def _rm_file(self, path: str, **_: Any) -> None:
        path = self._strip_protocol(path)
        try:
            await self._async.delete(path)
        except _GONE as error:
            if not await self._isdir(path):
                raise FileNotFoundError(path) from error

    async def _rm(
        self, path: Any, recursive: bool = False, batch_size: int | None = None, maxdepth: int | None = None,
        models: bool = False, **_: Any,
    ) -> None:  # fmt: skip
        paths = await self._expand_path(path, recursive=recursive, maxdepth=maxdepth)
        if not models:
            self._spare_models(paths, path)
        files = [one for one in paths if one.count("/") >= 2]
        await super()._rm([one for one in files if await self._async.exists(one)], batch_size=batch_size)

    def _spare_models(self, paths: Iterable[str], named: Any) -> None:
        """Raises PermissionError for names that models need, unless they were named as such."""
        literal = {self._strip_protocol(one) for one in ([named] if isinstance(named, str) else named)}
        for path in paths:
            if path not in literal and is_kept("/".join(path.split("/")[2:])):
                raise PermissionError(f"models need {path}: models=True takes such names too")

    def touch(self, path: str, truncate: bool = True, **_: Any) -> None:
        """Make an empty file. What is there is made empty, or without `truncate` left as it is: its time stays."""
        with suppress(FileExistsError):
            self.pipe_file(path, b"", mode="overwrite" if truncate else "create")

    async def _cp_file(self, path1: str, path2: str, pairs: list[tuple[str, str]] | None = None, **_: Any) -> None:
        path1, path2 = self._strip_protocol(path1), self._strip_protocol(path2)
        if pairs is not None:
            pairs.append((path1, path2))
            return
        try:
            await self._async.copy(path1, path2, upsert=True)
        except _GONE as error:
            if not await self._isdir(path1):
                raise FileNotFoundError(path1) from error

    async def _mv_file(self, path1: str, path2: str, **_: Any) -> None:
        path1, path2 = self._strip_protocol(path1), self._strip_protocol(path2)
        try:
            if path1.split("/")[:2] == path2.split("/")[:2]:
                await self._async.move(path1, path2, upsert=True)
            else:
                blob_id = (await self._async.stat(path1)).id
                await self._async.copy(path1, path2, upsert=True)
                await self._async.delete(path1, if_match=blob_id)
        except _GONE as error:
            raise FileNotFoundError(path1) from error

    def mv_file(self, path1: str, path2: str) -> None:
        """Rename one file: in its container atomically, into another one by copying it; no bytes move."""
        sync(self.loop, self._mv_file, path1, path2)

    def mv(
        self, path1: Any, path2: Any, recursive: bool = False, maxdepth: int | None = None, models: bool = False,
        **_: Any,
    ) -> None:  # fmt: skip
        """Rename files, with `recursive` all those of a directory, each as `mv_file` does it: blobs keep their ids.

        Args:
            path1: A file, a directory, a pattern, or a list of files.
            path2: Where it goes: into a directory if that is one or ends with a slash, else to that very name.
            recursive: Also directories.
            maxdepth: Levels of directories.
            models: Also names that models need.

        Raises:
            FileNotFoundError: Nothing is there.
            ValueError: A directory goes into itself; nothing is renamed.
            PermissionError: Names that models need, without `models`; nothing is renamed.
        """
        sync(self.loop, self._mv, path1, path2, recursive, maxdepth, models)

    async def _mv(self, path1: Any, path2: Any, recursive: bool, maxdepth: int | None, models: bool) -> None:
        pairs: list[tuple[str, str]] = []
        # fsspec's rules for what goes where are those of copying.
        await self._copy(path1, path2, recursive=recursive, maxdepth=maxdepth, on_error="raise", pairs=pairs)
        pairs = [(one, other) for one, other in pairs if one != other and one.count("/") >= 2]
        sources = {one for one, _ in pairs}
        if not models:
            self._spare_models(sources, path1)
        for _, other in pairs:
            if other in sources:
                raise ValueError(f"{other} is renamed itself: a directory cannot go into itself")

        async def move(one: str, other: str) -> None:
            try:
                await self._mv_file(one, other)
            except FileNotFoundError:
                # A directory, which has gone with the names below it.
                if not any(source.startswith(f"{one}/") for source in sources):
                    raise

        moves = [move(one, other) for one, other in pairs]
        for found in await _run_coros_in_chunks(
            moves, batch_size=self.batch_size, nofiles=True, return_exceptions=True
        ):
            if isinstance(found, BaseException):
                raise found

    async def _mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        """Directories come with the names below them."""

    async def _makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Directories come with the names below them."""

    async def _rmdir(self, path: str) -> None:
        """Directories go with the names below them."""

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, Any]:
        del path
        return {}


@contextmanager
def _taken(path: str) -> Iterator[None]:
    """A name that somebody else has taken meanwhile is taken in the words of files."""
    try:
        yield
    except NameExists as error:
        raise FileExistsError(path) from error


def _make_folder(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)


def _directory(path: str) -> dict[str, Any]:
    return {"name": path, "size": 0, "type": "directory"}


def _listed(base: str, entry: ListedName) -> dict[str, Any]:
    path = f"{base}/{entry.name}".rstrip("/")
    if entry.is_directory:
        return _directory(path)
    return {"name": path, "size": entry.size, "type": "file", "id": entry.id, "version": entry.version}


def _from_begin(offset: int, size: int) -> int:
    return max(offset + size, 0) if offset < 0 else min(offset, size)
