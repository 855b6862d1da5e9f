"""`Client`: blobs by id and by name, for programs that wait. No event loop, no thread unless a transfer has several.

Every method may be called from several threads, and after a fork. `deadline_s` bounds a whole operation, retries
included. Large files are transfer.py's, folders folders.py's, batches batches.py's.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import urlencode

from ambry.client import batches, folders, name_changes, puts, small_files, transfer
from ambry.client.bodies import Body, Source, upload_headers
from ambry.client.model_methods import ModelMethods
from ambry.client.progress import Progress
from ambry.client.reader import BlobReader
from ambry.client.session import Session, header_of, info_from
from ambry.client.settings import load_settings
from ambry.client.values import (
    BatchEntry,
    BlobInfo,
    ListedName,
    Stored,
    Way,
    container_path,
    page_of,
    path_of,
    range_of,
    with_version,
)
from ambry.errors import AmbryError, NotAllowed, PreconditionFailed
from ambry.limits import MIB

if TYPE_CHECKING:
    from ambry.client.http import Exchange
    from ambry.client.models import Models
    from ambry.client.safetensors import TensorFile
    from ambry.client.small_files import LocalFile, StoredFile

__all__ = ["Client"]

_PAGE: Final = 1000


class Client(ModelMethods):
    """A store behind one or several frontends.

    A blob is named by its id (43 characters) or by `account/container/name`, also written with `ambry://` before it.
    Sizes and positions are bytes, names that end with `_s` are seconds, with `_ms` milliseconds; moments are ms since
    1970, by the clock of the store.

    Args:
        url: One URL, several with commas between, or a list; default AMBRY_URL, a profile, http://127.0.0.1:1174.
        token: Bearer token of an access key; default AMBRY_TOKEN, or the profile's.
        profile: Table `profiles.NAME` of ~/.config/ambry/client.toml; default AMBRY_PROFILE.
        deadline_s: Seconds that an operation may take unless its call says otherwise; transfers of files have none.
        threads: Connections that one transfer uses at most.
        cache: Folder that keeps content of models; default AMBRY_CACHE, ~/.cache/ambry.

    Arguments of many methods:
        ref: A blob, by its id or its name.
        version: Version of the name; default the newest.
        ids: Blobs, by their ids.
        model: `account/container/model`; where a version is meant with `@VERSION` or `@ALIAS`, else `@latest` is.
        name: `account/container/name` of what is stored; without it the blob is known by the id in the answer.
        content_type: Media type; the store says `application/octet-stream` of what has none.
        ttl_s: Seconds after which a blob expires; None: never.
        metadata: Names (ASCII) and texts that are kept with a blob.
        deadline_s: Seconds that this call may take, retries included; None: those of the client.
        upsert: Whether a name that is taken stands for the new blob from then on; the old version is kept beside it.
        progress: True for lines on a terminal, of the whole and of large files under way (silent elsewhere, and with
            AMBRY_PROGRESS=0), a function of bytes done and in total, or a Callback of fsspec, `branched` for each file
            of several. A function is called by any thread, one at a time.

    Raises:
        BadConfiguration: When it is made: a URL, a profile or a file of settings that cannot be used.
        BadRequest: Any call: what names no blob, or no container; UnknownContainer for one that is not there.
        Unauthenticated: Any call: a token that does not hold.
        Forbidden: Any call: no token where one is needed, or a key without the right for this.
        DeadlineExceeded: Any call: no answer in time.
        ConnectionLost: Any call: no frontend answered, in five attempts and within the budget of retries.
        Unavailable: Any call: the store cannot answer at present; likewise Overloaded, QuotaExceeded, DiskFull,
            DiskUnavailable, ShuttingDown and NameStoreUnavailable, after the retries.
    """

    def __init__(
        self,
        url: str | Sequence[str] | None = None,
        *,
        token: str | None = None,
        profile: str | None = None,
        deadline_s: float = 300.0,
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
        sha256: bytes | bool | None = None,
        deadline_s: float | None = None,
    ) -> Stored:
        """Store bytes, a file object or an iterable of bytes; durable when this returns.

        Bytes and files that can be rewound are sent again when a connection fails; what cannot be read twice is sent
        once. The checksum (xxh3) of what was sent is compared with that of what the store has.

        Args:
            data: Bytes, a file object that is read from where it stands, or an iterable of bytes.
            size: Bytes of a file object or an iterable, neither more nor fewer, if known; else it is sent in chunks.
            filename: What browsers call it when they save it.
            if_match: The id that the name must stand for until then.
            if_none_match: Whether the name must be free.
            sha256: The 32 bytes of its SHA-256: the store takes nothing else, and keeps it. True: it is computed while
                the bytes are sent, here and in the store, kept, and in the `digests` of the answer.

        Raises:
            NameExists: The name is taken, and neither `upsert` nor `if_match` was said.
            PreconditionFailed: `if_match` or `if_none_match` does not hold.
            BadRequest: More or fewer bytes than `size`, or what is not bytes; FileChanged for a file of another size.
            BadDigest: What arrived has another checksum than what was sent, or than `sha256`; it is not kept.
            BadName: A name that is too long, or has control characters.
            TooLarge: More bytes than a blob can have; HeadersTooLarge for metadata.
        """
        headers = upload_headers(content_type, filename, ttl_s, metadata, if_match=if_match, upsert=upsert)
        if if_none_match:
            headers["If-None-Match"] = "*"
        until = self._session.deadline(deadline_s)
        own = sha256 if isinstance(sha256, bytes) else None
        body = Body(data, size, wants_sha256=sha256 is True)
        return puts.put(self, self._session, body, name, headers, until, if_match=if_match, sha256=own)

    def put_stream(
        self, pieces: Iterable[bytes], name: str | None = None, *, upsert: bool = False, deadline_s: float | None = None
    ) -> Stored:
        """Store bytes of unknown length as they come, without a second attempt.

        Args:
            pieces: The bytes, in order; each is sent when it comes.
            deadline_s: Seconds that all of it may take; None: any number. A source that waits is not interrupted.

        Raises:
            NameExists: The name is taken.
            ConnectionLost: The connection broke; nothing is stored.
            BadDigest: The store has other bytes than were sent.
        """
        seconds = transfer.NO_DEADLINE_S if deadline_s is None else deadline_s
        return self.put(pieces, name, upsert=upsert, deadline_s=seconds)

    def get(
        self, ref: str, start: int = 0, stop: int | None = None, *, version: str | None = None,
        deadline_s: float | None = None,
    ) -> bytes:  # fmt: skip
        """Bytes `start:stop` of a blob, the whole of it by default, in memory.

        Args:
            start: The first byte, counted from 0.
            stop: The byte behind the last one; None, or more than there are: to the end.

        Raises:
            BlobNotFound: No such id; BlobDeleted, BlobExpired if there was one.
            NameNotFound: No such name; NameDeleted, NameExpired if there was one.
            RangeNotSatisfiable: The blob ends before `start`.
            BadDigest: What came, five times, has not the checksum that the store keeps, or makes of a range.
        """
        headers = {} if start == 0 and stop is None else {"Range": range_of(start, stop)}
        if stop is not None and stop <= start:
            return b""
        path = with_version(path_of(ref), version)
        deadline = self._session.deadline(deadline_s)
        return transfer.read_whole(self._session, path, headers, deadline)

    def open(self, ref: str, *, read_ahead: int = 4 * MIB) -> BlobReader:
        """A blob as a file object that can be read and sought.

        Args:
            read_ahead: Bytes that are asked for at a time, and kept; a larger read asks for as many as it needs.

        Raises:
            BlobNotFound: No such id; BlobDeleted, BlobExpired if there was one.
            NameNotFound: No such name; NameDeleted, NameExpired if there was one.
        """
        return BlobReader(self._session, self.stat(ref), read_ahead)

    def stat(self, ref: str, *, version: str | None = None, deadline_s: float | None = None) -> BlobInfo:
        """What is known of a blob: size, times, metadata, digests; no bytes of it.

        Raises:
            BlobNotFound: No such id; BlobDeleted, BlobExpired if there was one.
            NameNotFound: No such name; NameDeleted, NameExpired if there was one.
        """
        path = with_version(path_of(ref), version)
        deadline = self._session.deadline(deadline_s)

        def take(exchange: "Exchange") -> BlobInfo | None:
            return info_from(exchange, ref) if exchange.status == 200 else None

        expected = (200, 400, 401, 403, 404, 410, 412)
        first = {"Range": "bytes=0-0"}
        while (info := self._session.read(path, take, method="HEAD", expected=expected, deadline=deadline)) is None:
            # The answer to a HEAD has no body that says why. Who is answered has come meanwhile.
            self._session.ask("GET", path, headers=first, expected=(206, 416), deadline=deadline).close()
        return info

    def exists(self, ref: str, *, deadline_s: float | None = None) -> bool:
        """Whether there is such a blob; False for one that was deleted or has expired."""
        deadline = self._session.deadline(deadline_s)
        exchange = self._session.ask("HEAD", path_of(ref), expected=(200, 404, 410), deadline=deadline)
        exchange.close()
        return exchange.status == 200

    def delete(
        self, ref: str, *, version: str | None = None, if_match: str | None = None, deadline_s: float | None = None
    ) -> None:
        """Delete a blob, a name, or one version of a name; what is deleted already is fine.

        A deleted blob can be brought back (`undelete`) until its space is collected, seven days by default.

        Args:
            version: Version of the name that is removed; without it the name gets a marker that says that it is
                deleted.
            if_match: The id that the name must stand for.

        Raises:
            BlobNotFound: No such id.
            NameNotFound: No such name.
            PreconditionFailed: The name stands for another blob.
        """
        headers = {} if if_match is None else {"If-Match": f'"{if_match}"'}
        path = with_version(path_of(ref), version)
        deadline = self._session.deadline(deadline_s)
        try:
            self._session.ask("DELETE", path, headers=headers, expected=(202,), deadline=deadline).drain()
        except PreconditionFailed as error:
            if not (name_changes.is_unsure(error) and name_changes.is_gone(self, ref)):
                raise

    def extend(self, blob_id: str, ttl_s: int | None, *, deadline_s: float | None = None) -> None:
        """Let a blob live longer.

        Args:
            blob_id: The blob, by its id.
            ttl_s: Seconds from now, never fewer than it has left; None: for ever.

        Raises:
            NotAllowed: It would live shorter.
            BlobNotFound: No such id; BlobDeleted, BlobExpired if there was one.
        """
        headers = {"x-ambry-ttl": "-1" if ttl_s is None else str(ttl_s)}
        deadline = self._session.deadline(deadline_s)
        self._session.ask("PUT", f"{path_of(blob_id)}/ttl", headers=headers, deadline=deadline).drain()

    def undelete(self, blob_id: str, *, deadline_s: float | None = None) -> None:
        """Bring a deleted blob back.

        Args:
            blob_id: The blob, by its id.

        Raises:
            NotAllowed: It is not deleted.
            BlobDeleted: Its retention is over, and its bytes are gone.
            BlobNotFound: No such id; BlobExpired if its TTL has passed.
        """
        try:
            self._session.ask(
                "PUT", f"{path_of(blob_id)}/undelete", deadline=self._session.deadline(deadline_s)
            ).drain()
        except NotAllowed as error:
            if not (name_changes.is_unsure(error) and self.exists(blob_id)):
                raise

    def signed_url(
        self, ref: str, *, method: str = "GET", ttl_s: int = 300, size_max: int | None = None,
        deadline_s: float | None = None,
    ) -> str:  # fmt: skip
        """A URL with which anybody may read a blob, or with PUT upload one under a name, for a while.

        It has the rights of this client's key and no more.

        Args:
            method: `GET`, or `PUT` for a name.
            ttl_s: Seconds for which it holds.
            size_max: Bytes that an upload may have at most.

        Raises:
            BadRequest: A life that is too long.
            Forbidden: What the key may not do itself.
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
        return self._session.read(
            "/signedUrl", lambda exchange: header_of(exchange, "x-ambry-signed-url"), headers=headers, deadline=deadline
        )

    # --- names -------------------------------------------------------------------------------------------------

    def list(self, ref: str, *, delimiter: str | None = None, start_after: str | None = None) -> Iterator[ListedName]:
        """Names of a container in the order of their bytes, a page (1000) in a request as they are needed.

        Args:
            ref: `account/container`; with more behind it, `account/container/PREFIX`, names that begin with that.
            delimiter: Mostly `/`: names that have it behind the prefix are one entry for all, a directory.
            start_after: Names up to this one are left out.

        Yields:
            Names, each with id, size, version and time of its newest version; deleted ones are left out.
        """
        path, prefix = container_path(ref)
        query = {"prefix": prefix, "max-keys": str(_PAGE)}
        if delimiter is not None:
            query["delimiter"] = delimiter
        if start_after is not None:
            query["start-after"] = start_after
        way = Way()
        while True:
            target = f"{path}?{urlencode(query)}"
            until = self._session.deadline(None)
            page, following = self._session.read_json(
                target, "entries", "nextPageToken", deadline=until, made=partial(page_of, way)
            )
            yield from page
            if following is None:
                return
            query["page"] = following

    def copy(self, source: str, target: str, *, upsert: bool = False, deadline_s: float | None = None) -> Stored:
        """Give the name `target` the bytes of `source`, in the store: none are moved. Both: `account/container/name`.

        Raises:
            NameNotFound: The source is not there; NameDeleted, NameExpired if it was.
            NameExists: The target is taken.
        """
        deadline = self._session.deadline(deadline_s)
        return name_changes.copy(self, self._session, source, target, deadline, upsert=upsert)

    def move(self, source: str, target: str, *, upsert: bool = False, deadline_s: float | None = None) -> Stored:
        """Let `target` stand for what `source` stands for, which is gone then: a rename within a container, atomic.

        Raises:
            BadRequest: Two containers: copy, then delete.
            NameNotFound: The source is not there; NameDeleted, NameExpired if it was.
            NameExists: The target is taken.
        """
        deadline = self._session.deadline(deadline_s)
        return name_changes.move(self, self._session, source, target, deadline, upsert=upsert)

    # --- many, and large ---------------------------------------------------------------------------------------

    def put_many(self, bodies: Iterable[bytes], *, content_type: str | None = None) -> Sequence[Stored]:
        """Store many small blobs by id, hundreds in a request.

        Args:
            bodies: The bytes of each, 4 MiB at most.
            content_type: Media type of all of them.

        Returns:
            What was stored, in order.

        Raises:
            TooLarge: One of them is too large. Of this and other errors the first is raised; others may be stored.
        """
        return batches.put_many(self._session, bodies, content_type)

    def get_many(self, ids: Iterable[str]) -> Iterator[BatchEntry]:
        """Many small blobs, up to 500 in a request, as they are needed.

        Yields:
            For each, in order, its bytes, which have their checksum, or its own error.
        """
        return batches.read_many(self._session, "get", ids)

    def stat_many(self, ids: Iterable[str]) -> Iterator[BatchEntry]:
        """What is known of many blobs, without their bytes.

        Yields:
            For each, in order, what is known of it, or its own error.
        """
        return batches.read_many(self._session, "stat", ids)

    def delete_many(self, ids: Iterable[str]) -> Iterator[BatchEntry]:
        """Delete many blobs.

        Yields:
            For each, in order, an entry, with an error if it was not deleted.
        """
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
        sha256: bool = False,
        progress: Progress = None,
        part_bytes: int = 16 * MIB,
        deadline_s: float | None = None,
    ) -> Stored:
        """Store a file; one that is larger than `part_bytes` in parts of this size, by several connections.

        What had arrived of a file in parts when the process ended is verified, and not sent again by the next call for
        the same file and name: `.NAME.ambry-upload` beside the file has the id of the upload, for seven days.

        Args:
            path: The file.
            sha256: Whether its SHA-256 is computed, kept with the blob, and in the `digests` of the answer and of
                `stat`. A file in parts is read once more for it, before it is sent.
            part_bytes: Bytes of a part; more where there would be too many parts.
            deadline_s: Seconds that all of it may take; None: any number.

        Raises:
            FileChanged: The file changed while it was read; nothing is stored.
            NameExists: The name is taken.
            BadDigest: The store has other bytes than were sent.
            OSError: The file cannot be read.
        """
        path = Path(path)
        headers = upload_headers(content_type, path.name, ttl_s, metadata, if_match=None, upsert=upsert)
        return transfer.upload_file(
            self, self._session, path, name, progress, self._threads, part_bytes, headers, deadline_s=deadline_s,
            content_type=content_type, ttl_s=ttl_s, metadata=metadata, upsert=upsert, sha256=sha256 or None,
        )  # fmt: skip

    def download_file(
        self,
        ref: str,
        path: str | os.PathLike[str],
        *,
        sha256: bytes | bool | None = None,
        progress: Progress = None,
        part_bytes: int | None = None,
        deadline_s: float | None = None,
    ) -> BlobInfo:
        """Write a blob to a file, by several connections at a time.

        The file appears whole, verified and synced under its name or not at all. What was loaded of it when the process
        ended (`.NAME.ambry-part`) is verified and used by the next call.

        Args:
            path: The file; its folder is there.
            sha256: The 32 bytes of the SHA-256 that it must have; True: the one that was kept with the blob.
            part_bytes: Bytes of a part, which one connection loads; None: 8 MiB, 32 MiB for a file of 1 GiB or more.
            deadline_s: Seconds that all of it may take; None: any number.

        Raises:
            BlobNotFound: No such id; BlobDeleted, BlobExpired if there was one.
            NameNotFound: No such name; NameDeleted, NameExpired if there was one.
            BadDigest: The bytes that came do not have the blob's checksum, or SHA-256; or none was kept, with True.
            OSError: The file cannot be written, or the disk is full.
        """
        deadline = transfer.file_deadline(self._session, deadline_s)
        info = self.stat(ref, deadline_s=deadline_s)
        transfer.download_file(
            self._session, info, Path(path), progress, part_bytes, self._threads, deadline, sha256=sha256
        )
        return info

    def copy_from_url(
        self,
        url: str,
        name: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        content_type: str | None = None,
        filename: str | None = None,
        ttl_s: int | None = None,
        metadata: Mapping[str, str] | None = None,
        upsert: bool = False,
        sha256: bytes | None = None,
        progress: Progress = None,
        deadline_s: float | None = None,
    ) -> Stored:
        """Store what a URL leads to, as it comes through this machine; a part of it (16 MiB mostly) is in memory.

        A source that breaks off is asked for the rest, if it says by a strong entity tag or a date that it is the same
        still, and a store that does not answer gets the part again. Redirects are followed, to http and https alone.
        Bytes are stored as they are sent. What the source tells of their digests (`Repr-Digest`) must hold.

        Args:
            url: `http://`, `https://` or `file:///`; without a user, and with the host asked directly, by no proxy.
            headers: What the source is asked with, as Authorization; such secrets go to no other host.
            content_type: Media type; None: the source's.
            filename: What browsers call it when they save it; None: the last step of the URL.
            sha256: The 32 bytes of its SHA-256: nothing else is stored.
            progress: As everywhere; 0 bytes in total stand for a source that does not say how many it has.
            deadline_s: Seconds that all of it may take; None: any number.

        Returns:
            What was stored; its `digests` have the SHA-256.

        Raises:
            SourceFailed: The source cannot be read, or breaks off and cannot be gone on with; nothing is stored.
            FileChanged: The source changed while it was read; nothing is stored.
            BadDigest: The bytes do not have `sha256`, or what the source said; or the store has others than were sent.
            BadRequest: No such URL.
            NameExists: The name is taken.
            TooLarge: More bytes than a blob can have.
        """
        from ambry.client.url_copy import copy_from_url  # noqa: PLC0415 -- loaded on first use

        options = {"content_type": content_type, "filename": filename, "ttl_s": ttl_s, "metadata": metadata}
        until = transfer.file_deadline(self._session, deadline_s)
        return copy_from_url(
            self, self._session, url, name, headers or {}, options, progress, until, sha256=sha256, upsert=upsert
        )

    def upload_small(
        self, files: "Sequence[LocalFile]", container: str, *, upsert: bool = False
    ) -> "Sequence[Stored | AmbryError | OSError]":
        """Store small files in one request.

        Args:
            files: Files of 512 KiB each at most, a few MiB together, and their names.
            container: `account/container`.

        Returns:
            For each, in order: what was stored, or why it was not, as `upload_file` would raise it.
        """
        container_path(container)
        return small_files.upload_each(self, self._session, container, files, upsert=upsert)

    def download_small(self, files: "Sequence[StoredFile]") -> "Sequence[BlobInfo | AmbryError | OSError]":
        """Write small blobs to files by one request, synced together, each whole under its name or not there.

        Args:
            files: Blobs of 512 KiB each at most, a few MiB together, and where they go.

        Returns:
            For each, in order: what was written, or why it was not, as `download_file` would raise it.
        """
        return small_files.download_each(self, self._session, files)

    def upload_dir(
        self, folder: str | os.PathLike[str], prefix: str, *, upsert: bool = False, progress: Progress = None
    ) -> Sequence[Stored]:
        """Store every file below a folder as `prefix/RELATIVE/PATH`, several at a time, small ones hundreds in a
        request.

        Links to files are followed, those to folders are not; empty folders have no names. After a break, call again:
        without `upsert` what is stored with the same bytes, for ever, is not sent again.

        Args:
            folder: The folder.
            prefix: `account/container`, or `account/container/PATH`.

        Returns:
            What was stored, in the order of the paths.

        Raises:
            FileChanged: A file changed while it was read. Of this and other errors the first is raised; what was stored
                before it stays.
            NameExists: A name is taken, by other bytes.
            OSError: The folder or a file cannot be read.
        """
        return folders.upload_dir(self, self._session, Path(folder), prefix, self._threads, progress, upsert=upsert)

    def download_dir(self, prefix: str, folder: str | os.PathLike[str], *, progress: Progress = None) -> Sequence[Path]:
        """Write every blob whose name begins with `prefix/` to a file below a folder, several at a time.

        Each file appears whole, verified and synced, or not at all; what has its name already is read, and replaced if
        it does not have the blob's size and checksum. So a call that broke off is made again.

        Args:
            prefix: `account/container`, or `account/container/PATH`.
            folder: The folder; it is made if it is not there.

        Returns:
            The files, in the order of their names.

        Raises:
            BadRequest: A name that is no path below the folder, as one with `..`.
            BadDigest: The bytes that came do not have a blob's checksum.
            OSError: A file cannot be written, or the disk is full.
        """
        return folders.download_dir(self, self._session, prefix, Path(folder), self._threads, progress)

    # --- models ------------------------------------------------------------------------------------------------

    def _models(self) -> "Models":
        from ambry.client.cache import open_cache  # noqa: PLC0415 -- loaded on first use
        from ambry.client.models import Models  # noqa: PLC0415 -- loaded on first use

        return Models(self, self._session, self._threads, open_cache(os.environ, self._cache))

    def open_tensors(self, ref: str, *, framework: str = "numpy") -> "TensorFile":
        """A safetensors file, with the methods of `safetensors.safe_open`; only what is asked for is read.

        Args:
            ref: A file of a model, `account/container/model@VERSION/path`, read from the cache if it is there; or a
                blob.
            framework: `numpy`, or `pt` for tensors of torch.

        Raises:
            BadTensors: No safetensors file: sizes, types or offsets that do not fit.
            NameNotFound: No such file, version or name.
        """
        from ambry.client.safetensors import open_ref  # noqa: PLC0415 -- on first use

        found = self._models().find_file(ref) if "@" in ref else transfer.source_of(self.stat(ref))
        return open_ref(self._session, found, self._threads, framework)

    def load_tensors(self, ref: str, *, framework: str = "numpy") -> dict[str, Any]:
        """All tensors of a safetensors file by name, by several connections straight into one array that they share.

        Args:
            ref: As of `open_tensors`.
            framework: `numpy`, or `pt` for tensors of torch.

        Returns:
            An array for each name, with the shape and type that the header says; all are views of the same memory.

        Raises:
            BadTensors: No safetensors file, or a type that the framework lacks.
            NameNotFound: No such file, version or name.
        """
        with self.open_tensors(ref, framework=framework) as file:
            return file.get_tensors()
