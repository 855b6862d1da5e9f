"""`Client`: blobs by id and by name, for programs that wait. No event loop, no thread unless a transfer has several.

Every method may be called from several threads, and after a fork. `deadline_s` bounds a whole operation, retries
included. Large files are transfer.py's, folders folders.py's, batches batches.py's.
"""

import base64
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Final, Self
from urllib.parse import urlencode

import xxhash

from ambry.client import batches, folders, small_files, transfer
from ambry.client.progress import Progress
from ambry.client.reader import BlobReader
from ambry.client.session import Session
from ambry.client.settings import load_settings
from ambry.client.values import (
    SCHEME,
    BatchEntry,
    BlobInfo,
    ListedName,
    Stored,
    container_path,
    digests_of,
    info_of,
    path_of,
    quote_name,
)
from ambry.errors import AmbryError, BadDigest, BadRequest, NameExists
from ambry.limits import MIB

if TYPE_CHECKING:
    from ambry.client.contents import Collected
    from ambry.client.model_manifest import ModelManifest
    from ambry.client.model_pull import Pulled
    from ambry.client.models import ModelDiff, Models, ModelVersion, Pushed, Verified
    from ambry.client.safetensors import TensorFile
    from ambry.client.small_files import LocalFile

__all__ = ["Client"]

Buffer = bytes | bytearray | memoryview
Source = Buffer | IO[bytes] | Iterable[bytes]

_DEADLINE_S: Final = 300.0
_PIECE_BYTES: Final = MIB
_PAGE: Final = 1000


class Client:
    """A store behind one or several frontends.

    Args:
        url: One URL, several with commas between, or a list; default AMBRY_URL, a profile, http://127.0.0.1:1174.
        token: Bearer token of an access key; default AMBRY_TOKEN, or the profile's.
        profile: Table `profiles.NAME` of ~/.config/ambry/client.toml.
        deadline_s: Seconds that an operation may take unless its call says otherwise; transfers of files have none.
        threads: Connections that one transfer uses at most.
        cache: Folder that keeps content of models; default AMBRY_CACHE, ~/.cache/ambry.
    """

    def __init__(
        self,
        url: str | Sequence[str] | None = None,
        *,
        token: str | None = None,
        profile: str | None = None,
        deadline_s: float = _DEADLINE_S,
        threads: int = 16,
        cache: str | os.PathLike[str] | None = None,
    ) -> None:
        self._settings = load_settings(os.environ, url, token, profile)
        self._session = Session(self._settings, deadline_s=deadline_s)
        self._threads = threads
        self._cache = cache

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up. The client may be used again."""
        self._session.close()

    # --- blobs -------------------------------------------------------------------------------------------------

    def put(
        self,
        data: Source,
        name: str | None = None,
        *,
        size: int | None = None,
        content_type: str | None = None,
        filename: str | None = None,
        ttl_s: int | None = None,
        metadata: Mapping[str, str] | None = None,
        if_match: str | None = None,
        if_none_match: bool = False,
        upsert: bool = False,
        sha256: bytes | None = None,
        deadline_s: float | None = None,
    ) -> Stored:
        """Store bytes, a file object or an iterable of bytes; durable when this returns.

        Without `name` the blob is known by the id in the answer. With `account/container/name` it gets that name:
        NameExists if it is taken, unless `upsert`, or `if_match` names the id that it stands for. Bytes and files that
        can be rewound are sent again when a connection fails; what cannot be read twice is sent once. The checksum of
        what was sent is compared with that of what the store has. With `sha256` the store takes nothing else than bytes
        that have it, and keeps it: BadDigest.
        """
        headers = _upload_headers(content_type, filename, ttl_s, metadata, if_match=if_match, upsert=upsert)
        if if_none_match:
            headers["If-None-Match"] = "*"
        body = _Body(data, size)
        headers.update(body.headers)
        if sha256 is not None:
            own = f"sha-256=:{_base64(sha256)}:"
            headers["Repr-Digest"] = f"{headers['Repr-Digest']}, {own}" if "Repr-Digest" in headers else own
        path, method = ("/", "POST") if name is None else (path_of(name), "PUT")
        try:
            exchange = self._session.ask(
                method,
                path,
                headers=headers,
                body=body.chunks,
                expected=(201,),
                deadline=self._session.deadline(deadline_s),
                can_repeat=body.can_repeat,
            )
        except NameExists as error:
            stored = self._stored_before(name, body, error)
            if stored is None:
                raise
            return stored
        exchange.read()
        found = digests_of(exchange.headers.get("repr-digest", "")).get("xxh3")
        blob_id = exchange.headers["x-ambry-blob-id"]
        if found is not None and found != body.digest:
            self.delete(blob_id)
            raise BadDigest("the store has other bytes than were sent", field="xxh3")
        return Stored(blob_id, body.size, name, exchange.headers.get("x-ambry-named-version"))

    def put_stream(self, pieces: Iterable[bytes], name: str | None = None, *, upsert: bool = False) -> Stored:
        """Store bytes of unknown length as they come; without a deadline, and without a second attempt."""
        return self.put(pieces, name, upsert=upsert, deadline_s=transfer.NO_DEADLINE_S)

    def get(
        self, ref: str, start: int = 0, stop: int | None = None, *, version: str | None = None,
        deadline_s: float | None = None,
    ) -> bytes:  # fmt: skip
        """Bytes `start:stop` of a blob, the whole of it by default, in memory.

        Raises BlobNotFound, BlobDeleted, BlobExpired, NameNotFound, RangeNotSatisfiable.
        """
        headers = {} if start == 0 and stop is None else {"Range": _range(start, stop)}
        if stop is not None and stop <= start:
            return b""
        path = _with_version(path_of(ref), version)
        deadline = self._session.deadline(deadline_s)
        return transfer.read_whole(self._session, path, headers, deadline)

    def open(self, ref: str, *, read_ahead: int = 4 * MIB) -> BlobReader:
        """A blob as a file object that can be read and sought; `read_ahead` bytes are asked for at a time."""
        return BlobReader(self._session, self.stat(ref), read_ahead)

    def stat(self, ref: str, *, version: str | None = None, deadline_s: float | None = None) -> BlobInfo:
        """What is known of a blob. Raises as `get`."""
        path = _with_version(path_of(ref), version)
        deadline = self._session.deadline(deadline_s)
        refusals = (400, 401, 403, 404, 410, 412)
        exchange = self._session.ask("HEAD", path, expected=(200, *refusals), deadline=deadline)
        exchange.close()
        if exchange.status == 200:
            return info_of(exchange.headers, ref)
        # The answer to a HEAD has no body that says why.
        self._session.ask("GET", path, headers={"Range": "bytes=0-0"}, expected=(206, 416), deadline=deadline).close()
        return self.stat(ref, version=version, deadline_s=deadline_s)

    def exists(self, ref: str, *, deadline_s: float | None = None) -> bool:
        """Whether there is such a blob. Errors that are no answer to this are raised."""
        exchange = self._session.ask(
            "HEAD", path_of(ref), expected=(200, 404, 410), deadline=self._session.deadline(deadline_s)
        )
        exchange.close()
        return exchange.status == 200

    def delete(
        self, ref: str, *, version: str | None = None, if_match: str | None = None, deadline_s: float | None = None
    ) -> None:
        """Delete a blob, a name, or one version of a name. An id that is deleted already is fine."""
        headers = {} if if_match is None else {"If-Match": f'"{if_match}"'}
        path = _with_version(path_of(ref), version)
        deadline = self._session.deadline(deadline_s)
        self._session.ask("DELETE", path, headers=headers, expected=(202,), deadline=deadline).read()

    def extend(self, blob_id: str, ttl_s: int | None, *, deadline_s: float | None = None) -> None:
        """Let a blob live `ttl_s` seconds from now, for ever with None. Never shorter."""
        headers = {"x-ambry-ttl": "-1" if ttl_s is None else str(ttl_s)}
        deadline = self._session.deadline(deadline_s)
        self._session.ask("PUT", f"{path_of(blob_id)}/ttl", headers=headers, deadline=deadline).read()

    def undelete(self, blob_id: str, *, deadline_s: float | None = None) -> None:
        """Bring a deleted blob back."""
        self._session.ask("PUT", f"{path_of(blob_id)}/undelete", deadline=self._session.deadline(deadline_s)).read()

    def signed_url(
        self, ref: str, *, method: str = "GET", ttl_s: int = 300, size_max: int | None = None,
        deadline_s: float | None = None,
    ) -> str:  # fmt: skip
        """A URL with which anybody may read a blob, or with PUT upload one under a name, for `ttl_s` seconds.

        It has the rights of this client's key and no more. `size_max` bounds the bytes of an upload. Raises BadRequest
        for a life that is too long, Forbidden for what the key may not do itself.
        """
        path = path_of(ref)
        headers = {
            "x-ambry-url-type": method,
            "x-ambry-url-ttl-secs": str(ttl_s),
            "x-ambry-blob-id": path if path.startswith("/named/") else path[1:],
        }
        if size_max is not None:
            headers["x-ambry-max-upload-size"] = str(size_max)
        deadline = self._session.deadline(deadline_s)
        exchange = self._session.ask("GET", "/signedUrl", headers=headers, deadline=deadline)
        exchange.read()
        return exchange.headers["x-ambry-signed-url"]

    # --- names -------------------------------------------------------------------------------------------------

    def list(self, ref: str, *, delimiter: str | None = None, start_after: str | None = None) -> Iterator[ListedName]:
        """Names of `account/container` or, with more behind it, those that begin with that; page by page."""
        path, prefix = container_path(ref)
        query = {"prefix": prefix, "max-keys": str(_PAGE)}
        if delimiter is not None:
            query["delimiter"] = delimiter
        if start_after is not None:
            query["start-after"] = start_after
        while True:
            target = f"{path}?{urlencode(query)}"
            document = json.loads(self._session.ask("GET", target, deadline=self._session.deadline(None)).read())
            for entry in document["entries"]:
                yield _listed(entry)
            if document["nextPageToken"] is None:
                return
            query["page"] = document["nextPageToken"]

    def copy(self, source: str, target: str, *, upsert: bool = False, deadline_s: float | None = None) -> Stored:
        """Give a name the bytes of another one, on the server. Both are `account/container/name`."""
        return self._change_name(target, {"x-ambry-named-copy-from": path_of(source)}, upsert, deadline_s)

    def move(self, source: str, target: str, *, upsert: bool = False, deadline_s: float | None = None) -> Stored:
        """Rename within a container, atomically. Raises BadRequest for two containers: copy, then delete."""
        old, new = source.removeprefix(SCHEME).split("/", 2), target.removeprefix(SCHEME).split("/", 2)
        if len(old) != 3 or old[:2] != new[:2]:
            raise BadRequest("a name moves within its container", field="target")
        return self._change_name(target, {"x-ambry-named-move-from": quote_name(old[2])}, upsert, deadline_s)

    def _change_name(self, target: str, headers: dict[str, str], upsert: bool, deadline_s: float | None) -> Stored:  # noqa: FBT001 -- handed through
        if upsert:
            headers["x-ambry-named-upsert"] = "true"
        exchange = self._session.ask(
            "PUT", path_of(target), headers=headers, expected=(201,), deadline=self._session.deadline(deadline_s)
        )
        exchange.read()
        version = exchange.headers.get("x-ambry-named-version")
        return Stored(exchange.headers["x-ambry-blob-id"], self.stat(target).size, target, version)

    def _stored_before(self, name: str | None, body: "_Body", error: AmbryError) -> Stored | None:
        """The blob of a put whose first answer was lost, and which therefore finds its own name taken."""
        attempts = error.facts.get("attempts")
        if name is None or not isinstance(attempts, list) or len(attempts) < 2:
            return None
        info = self.stat(name)
        if info.size != body.size or info.digests.get("xxh3") != body.digest:
            return None
        return Stored(info.id, info.size, name, info.version)

    # --- many, and large ---------------------------------------------------------------------------------------

    def put_many(self, bodies: Iterable[bytes], *, content_type: str | None = None) -> Sequence[Stored]:
        """Store many small blobs (4 MiB each at most) by id, hundreds in a request. Raises the first error."""
        return batches.put_many(self._session, bodies, content_type)

    def get_many(self, ids: Iterable[str]) -> Iterator[BatchEntry]:
        """Many small blobs by id, in order; an entry has its own error."""
        return batches.read_many(self._session, "get", ids)

    def stat_many(self, ids: Iterable[str]) -> Iterator[BatchEntry]:
        """What is known of many blobs, in order."""
        return batches.read_many(self._session, "stat", ids)

    def delete_many(self, ids: Iterable[str]) -> Iterator[BatchEntry]:
        """Delete many blobs; an entry has its own error."""
        return batches.read_many(self._session, "delete", ids)

    def upload_file(
        self,
        path: str | os.PathLike[str],
        name: str | None = None,
        *,
        content_type: str | None = None,
        ttl_s: int | None = None,
        metadata: Mapping[str, str] | None = None,
        upsert: bool = False,
        progress: Progress = None,
        part_bytes: int = 16 * MIB,
    ) -> Stored:
        """Store a file; one that is larger than `part_bytes` in parts of this size, by several connections.

        Raises FileChanged if it changes while it is read: then nothing is stored. What had arrived of a file in parts
        when the process ended is verified, and not sent again by the next call for the same file and name.
        """
        path = Path(path)
        headers = _upload_headers(content_type, path.name, ttl_s, metadata, if_match=None, upsert=upsert)
        return transfer.upload_file(
            self, self._session, path, name, progress, self._threads, part_bytes, headers,
            content_type=content_type, ttl_s=ttl_s, metadata=metadata, upsert=upsert,
        )  # fmt: skip

    def download_file(
        self, ref: str, path: str | os.PathLike[str], *, progress: Progress = None, part_bytes: int = 8 * MIB
    ) -> BlobInfo:
        """Write a blob to a file, by several connections at a time.

        The file appears whole, verified, under its name or not at all. What was loaded of it when the process ended
        is verified and used by the next call.
        """
        info = self.stat(ref)
        transfer.download_file(self._session, info, Path(path), progress, part_bytes, self._threads)
        return info

    def upload_small(
        self, files: "Sequence[LocalFile]", container: str, *, upsert: bool = False
    ) -> "Sequence[Stored | AmbryError | OSError]":
        """Store small files (512 KiB each at most, a few MiB together) in `account/container`, in one request.

        For each, in order: what was stored, or why it was not, as `upload_file` would raise it. Raises what concerns
        all of them.
        """
        container_path(container)
        return small_files.upload_each(self, self._session, container, files, upsert=upsert)

    def upload_dir(
        self, folder: str | os.PathLike[str], prefix: str, *, upsert: bool = False, progress: Progress = None
    ) -> Sequence[Stored]:
        """Store every file below a folder as `prefix/RELATIVE/PATH`, several at a time; links to files are followed."""
        return folders.upload_dir(self, self._session, Path(folder), prefix, self._threads, progress, upsert=upsert)

    def download_dir(self, prefix: str, folder: str | os.PathLike[str], *, progress: Progress = None) -> Sequence[Path]:
        """Write every blob whose name begins with `prefix/` to a file below a folder, several at a time."""
        return folders.download_dir(self, self._session, prefix, Path(folder), self._threads, progress)

    # --- models ------------------------------------------------------------------------------------------------

    def _models(self) -> "Models":
        from ambry.client.cache import open_cache  # noqa: PLC0415 -- loaded on first use
        from ambry.client.models import Models  # noqa: PLC0415 -- loaded on first use

        return Models(self, self._session, self._threads, open_cache(os.environ, self._cache))

    def push_model(
        self,
        folder: str | os.PathLike[str],
        model: str,
        *,
        aliases: Sequence[str] = ("latest",),
        metadata: Mapping[str, str | int | float | bool] | None = None,
        lineage: Mapping[str, str] | None = None,
        ignore_patterns: Sequence[str] | None = None,
        progress: Progress = None,
    ) -> "Pushed":
        """Store the files of a folder as a new version of a model, `account/container/model`.

        The version appears when everything it needs is stored; then the aliases move to it. What the store has already
        is not sent again, of large files that changed a little only what is new (with `ambry[models]`). A push that
        broke off is made again; it finds what was sent. Raises FileChanged, and BadRequest for what no model can have:
        links to folders, files that are none, names that are not UTF-8.
        """
        return self._models().push(
            folder, model,
            aliases=aliases, metadata=metadata, lineage=lineage, ignore_patterns=ignore_patterns, progress=progress,
        )  # fmt: skip

    def pull_model(
        self,
        model: str,
        folder: str | os.PathLike[str] | None = None,
        *,
        allow_patterns: Sequence[str] | None = None,
        ignore_patterns: Sequence[str] | None = None,
        offline: bool | None = None,
        verify: bool = False,
        copies: bool = False,
        progress: Progress = None,
    ) -> "Pulled":
        """Have the files of a model in a folder; by default in one of the cache, where they are not to be changed.

        `model` is `account/container/model`, with `@VERSION` or `@ALIAS` (`@latest` without one). Files come by the
        cache and are clones of what is there, or links to it, which are read-only; with `copies` they are files of
        their own. What is there already is not loaded again; `verify` reads all of it first. `offline` (default:
        AMBRY_OFFLINE) asks nobody but the cache. Raises NameNotFound, NotCached, ModelDamaged.
        """
        return self._models().pull(
            model, folder,
            allow_patterns=allow_patterns, ignore_patterns=ignore_patterns, offline=offline, verify=verify,
            copies=copies, progress=progress,
        )  # fmt: skip

    def verify_model(
        self, model: str, folder: str | os.PathLike[str] | None = None, *, reads: bool = False
    ) -> "Verified":
        """Whether the store has all content of a version, or, with a folder, whether that has its files.

        With `reads` all bytes are read from the store and must have their SHA-256.
        """
        return self._models().verify(model, folder, reads=reads)

    def diff_models(self, old: str, new: str) -> "ModelDiff":
        """What differs between two versions, by their manifests."""
        return self._models().diff(old, new)

    def list_models(self, container: str) -> Sequence[str]:
        """Models in `account/container`; with more behind it, those that begin with that."""
        return self._models().models(container)

    def list_versions(self, model: str) -> Sequence["ModelVersion"]:
        """Versions of a model, oldest first, with their aliases."""
        return self._models().versions(model)

    def read_manifest(self, model: str) -> "ModelManifest":
        """What a version is made of."""
        return self._models().manifest(model)

    def set_alias(self, model: str, alias: str, *, expected: str | None = "*") -> "ModelVersion":
        """Let an alias stand for `account/container/model@VERSION`, by compare-and-swap.

        `expected` is the version that it must stand for until then, None if there must be no such alias, `*` for
        whatever there is. Raises PreconditionFailed.
        """
        return self._models().set_alias(model, alias, expected=expected)

    def delete_alias(self, model: str, alias: str) -> None:
        """Take an alias of a model away."""
        self._models().delete_alias(model, alias)

    def delete_model(self, model: str) -> Sequence[str]:
        """Delete one version, `...@VERSION`, or all of a model, and the aliases of what is gone; which versions.

        Content that no version needs any more goes with `collect_content`.
        """
        return self._models().delete(model)

    def collect_content(self, container: str, *, is_dry: bool = False) -> "Collected":
        """Remove content in `account/container` that no version names and nobody stored or reused for 7 days.

        Pushes may be under way. With `is_dry` nothing is removed.
        """
        return self._models().collect(container, is_dry=is_dry)

    def open_tensors(self, ref: str, *, framework: str = "numpy") -> "TensorFile":
        """A safetensors file, with the methods of `safetensors.safe_open`; only what is asked for is read.

        `ref` is a file of a model, `account/container/model@VERSION/path`, read from the cache if it is there, or a
        blob. `framework` is `numpy` or `pt` (torch). Raises BadTensors for what is no safetensors file.
        """
        from ambry.client.safetensors import LocalBytes, StoredBytes, TensorFile  # noqa: PLC0415 -- on first use

        found: Path | transfer.Source
        if "@" in ref:
            found = self._models().find_file(ref)
        else:
            info = self.stat(ref)
            found = transfer.Source(info.id, info.size, ((f"/{info.id}", 0, info.size),))
        data = LocalBytes(found) if isinstance(found, Path) else StoredBytes(self._session, found)
        try:
            return TensorFile(data, self._threads, framework)
        except BaseException:
            if isinstance(data, LocalBytes):
                data.close()
            raise

    def load_tensors(self, ref: str, *, framework: str = "numpy") -> dict[str, Any]:
        """All tensors of a safetensors file by name, by several connections; see `open_tensors`."""
        with self.open_tensors(ref, framework=framework) as file:
            return file.get_tensors()


class _Body:
    """What is uploaded: how often it can be read, and its checksum."""

    def __init__(self, data: Source, size: int | None) -> None:
        self._data = data
        self.size = 0
        self.digest = ""
        self.can_repeat = True
        self.headers: dict[str, str] = {}
        self._rewind: Callable[[], object] | None = None
        if isinstance(data, bytes | bytearray | memoryview):
            self.size = len(data)
            self.digest = _base64(xxhash.xxh3_64(data).digest())
            self.headers = {"Content-Length": str(self.size), "Repr-Digest": f"xxh3=:{self.digest}:"}
            return
        self.headers["Want-Repr-Digest"] = "xxh3=1"
        if size is None:
            self.headers["Transfer-Encoding"] = "chunked"
        else:
            self.headers["Content-Length"] = str(size)
        self.can_repeat = False
        file: Any = data
        if hasattr(file, "seekable") and file.seekable():
            start = file.tell()
            self._rewind = lambda: file.seek(start)
            self.can_repeat = True

    def chunks(self) -> Iterable[Buffer]:
        """The bytes, from the beginning."""
        data = self._data
        if isinstance(data, bytes | bytearray | memoryview):
            view = memoryview(data)
            for at in range(0, len(view), _PIECE_BYTES):
                yield view[at : at + _PIECE_BYTES]
            return
        if self._rewind is not None:
            self._rewind()
        checksum = xxhash.xxh3_64()
        self.size = 0
        read = getattr(data, "read", None)
        pieces = iter(lambda: read(_PIECE_BYTES), b"") if read is not None else iter(data)
        for piece in pieces:
            checksum.update(piece)
            self.size += len(piece)
            yield piece
        self.digest = _base64(checksum.digest())


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _upload_headers(
    content_type: str | None,
    filename: str | None,
    ttl_s: int | None,
    metadata: Mapping[str, str] | None,
    *,
    if_match: str | None,
    upsert: bool,
) -> dict[str, str]:
    headers = {"x-ambry-service-id": "ambry-client"}
    named = {"x-ambry-content-type": content_type, "x-ambry-filename": filename}
    headers.update({name: value for name, value in named.items() if value is not None})
    if ttl_s is not None:
        headers["x-ambry-ttl"] = str(ttl_s)
    for key, text in (metadata or {}).items():
        headers[f"x-ambry-enc-um-{key}"] = quote_name(text).replace("/", "%2F").replace("+", "%2B")
    if if_match is not None:
        headers["If-Match"] = f'"{if_match}"'
    if upsert:
        headers["x-ambry-named-upsert"] = "true"
    return headers


def _range(start: int, stop: int | None) -> str:
    if start < 0 or (stop is not None and stop < 0):
        raise BadRequest("a range counts from the beginning", field="start")
    return f"bytes={start}-" if stop is None else f"bytes={start}-{stop - 1}"


def _with_version(path: str, version: str | None) -> str:
    return path if version is None else f"{path}?{urlencode({'version': version})}"


def _listed(entry: Mapping[str, object]) -> ListedName:
    if entry["isDirectory"]:
        return ListedName(str(entry["blobName"]), is_directory=True)
    return ListedName(
        str(entry["blobName"]),
        id=str(entry["blobId"]),
        size=int(str(entry["blobSize"])),
        modified_ms=int(str(entry["modifiedTimeMs"])),
        version=str(entry["version"]),
    )
