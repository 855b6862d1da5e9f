"""A large file into the store in parts: by several connections, and resumed by whoever comes next.

The store keeps the parts; beside the file, `.NAME.ambry-upload` keeps the id of the upload. A part that the store has
is not sent again if the bytes of the file still have its checksum, so a file that was changed in between sends what
changed. The blob appears when all parts are there, whole and with its name, or not at all.
"""

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import xxhash

from ambry.client.beside import UPLOAD, beside, named
from ambry.client.bodies import base64_of
from ambry.client.parallel import Parallel
from ambry.client.progress import Meter
from ambry.client.session import Session, document_of, header_of
from ambry.client.values import Stored, digests_of, path_of
from ambry.errors import AmbryError, BadDigest, BadRequest, FileChanged, NoSuchUpload, NotAllowed
from ambry.limits import BLOB_BYTES_MAX, CHUNK_BYTES_MAX, MIB, UPLOAD_PARTS_MAX

if TYPE_CHECKING:
    from ambry.client.http import Chunks

_PIECE_BYTES: Final = MIB


def _parts_of(after: int, document: Any) -> tuple[dict[int, str], str, int | None]:  # noqa: ANN401 -- JSON of the store
    """Entity tags by the numbers of parts behind `after`, the status, and where the next page begins.

    Raises KeyError, TypeError or ValueError for what says none of that.
    """
    following = document["nextAfter"]
    if following is not None and not int(following) > after:
        raise ValueError("a page that leads to itself")
    return {int(one["part"]): str(one["etag"]) for one in document["parts"]}, document["status"], following


def size_of_parts(size: int, wished: int) -> int:
    """Bytes of a part: as wished, or more where there would be too many; whole chunks, so that none is cut in two."""
    least = max(wished, -(-size // UPLOAD_PARTS_MAX))
    return least if least < CHUNK_BYTES_MAX else -(-least // CHUNK_BYTES_MAX) * CHUNK_BYTES_MAX


class _State:
    """What is kept beside the file: which upload is under way, of what, to where."""

    def __init__(self, path: Path, name: str | None, part_bytes: int, sha256: str | None) -> None:
        """`sha256` is what the upload has said of the whole: only for the same is it gone on with."""
        self.path = path.with_name(beside(path.name, UPLOAD))
        self._head = {"target": name, "part_bytes": part_bytes, **({"sha256": sha256} if sha256 else {})}

    def load(self) -> str | None:
        """The id of the upload to go on with. What cannot be read is named in a warning, and begun anew."""
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            warnings.warn(f"{self.path} cannot be read, the upload begins anew: {error}", RuntimeWarning, stacklevel=2)
            return None
        with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
            check, _, body = text.partition("\n")
            document = json.loads(body)
            if xxhash.xxh3_64_hexdigest(body.encode()) == check and isinstance(document["upload"], str):
                return document["upload"] if {**self._head, "upload": document["upload"]} == document else None
        warnings.warn(f"{self.path} is damaged, the upload begins anew", RuntimeWarning, stacklevel=2)
        return None

    def save(self, upload: str) -> None:
        """Note an upload. In a folder that cannot be written to, nothing is resumed by another process."""
        body = json.dumps({**self._head, "upload": upload})
        with contextlib.suppress(OSError):
            made = self.path.with_name(f"{self.path.name}.{os.getpid()}")
            try:
                made.write_text(f"{xxhash.xxh3_64_hexdigest(body.encode())}\n{body}", encoding="utf-8")
                made.replace(self.path)
            finally:
                made.unlink(missing_ok=True)

    def forget(self) -> None:
        """Nothing is to be resumed."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class PartCheck:
    """What a part must be, as somebody knows who has read it before."""

    etag: str
    """xxh3, in hexadecimal digits."""
    sha256: bytes


class PartUpload:
    """One file on its way. `headers` are those of an upload, `condition` those that are judged at its end.

    `ranges` are the bytes of the file that are sent, offset and size each; without them all. With `checks` of all parts
    nothing else is stored, and a part that the store has is not read to know that. The state is kept beside `path`.
    """

    def __init__(
        self, session: Session, path: Path, file: IO[bytes], name: str | None, meter: Meter, part_bytes: int,
        headers: Mapping[str, str], condition: Mapping[str, str], *, ranges: Sequence[tuple[int, int]] | None = None,
        checks: Sequence[PartCheck] = (),
    ) -> None:  # fmt: skip
        self._session = session
        self._file = file
        self._before = os.fstat(file.fileno())
        self._name = name
        self._meter = meter
        self._headers = headers
        self._condition = condition
        self._ranges = ((0, self._before.st_size),) if ranges is None else ranges
        self._size = sum(size for _, size in self._ranges)
        if self._size > BLOB_BYTES_MAX:
            raise BadRequest(f"a blob has {BLOB_BYTES_MAX} bytes at most", field="size")
        self._part_bytes = size_of_parts(self._size, part_bytes)
        self._state = _State(path, name, self._part_bytes, headers.get("x-ambry-um-sha-256"))
        self._count = -(-self._size // self._part_bytes)
        self._checks = checks
        assert len(checks) in {0, self._count}
        self._found: set[int] = set()
        self._etags: dict[int, str] = {}
        self._path = ""

    @property
    def has_begun(self) -> bool:
        """Whether the store knows of it."""
        return bool(self._path)

    @property
    def sent_bytes(self) -> int:
        """What the store did not have, once it has all."""
        return self._size - sum(stop - start for start, stop in map(self._span, self._found))

    def run(self, threads: int, deadline: float) -> Stored:
        """Store the file. Raises the errors of a put, FileChanged, BadDigest."""
        known = self._resumed(deadline)
        if known is None:
            self._create(deadline)
        try:
            self._send(known or {}, threads, deadline)
            stored = self._complete(deadline)
        except (NoSuchUpload, NotAllowed, BadRequest) as error:
            if known is None or isinstance(error, BadDigest):
                raise
            # What was to be resumed is over, or was completed with other bytes.
            self.give_up()
            self._meter.restart()
            self._create(deadline)
            self._send({}, threads, deadline)
            stored = self._complete(deadline)
        self._state.forget()
        return stored

    def give_up(self) -> None:
        """Abort an upload that nobody goes on with; one that is over is fine."""
        if self.has_begun:
            with contextlib.suppress(AmbryError):
                deadline = self._session.deadline(None)
                self._session.ask("DELETE", self._path, expected=(202,), deadline=deadline).read()
        self._state.forget()

    # --- steps -----------------------------------------------------------------------------------------------------

    def _resumed(self, deadline: float) -> dict[int, str] | None:
        """Parts that the store has, by their number; None where there is nothing to go on with."""
        upload = self._state.load()
        if upload is None:
            return None
        self._path = f"/uploads/{upload}"
        known: dict[int, str] = {}
        after = 0
        while True:
            try:
                parts, status, following = self._session.read_json(
                    f"{self._path}?after={after}", "parts", "status", "nextAfter",
                    deadline=deadline, made=partial(_parts_of, after),
                )  # fmt: skip
            except (NoSuchUpload, BadRequest):
                return None
            known.update(parts)
            if status == "COMPLETED":
                # Its parts are not listed any more: all of them may be what the file has.
                return dict.fromkeys(range(1, self._count + 1), "*")
            if following is None:
                return known
            after = following

    def _create(self, deadline: float) -> None:
        headers = {**self._headers, **self._condition}
        if self._name is not None:
            headers["x-ambry-upload-name"] = path_of(self._name)
        document = self._session.read(
            "/uploads", lambda exchange: document_of(exchange, "uploadId"), method="POST", headers=headers,
            expected=(201,), deadline=deadline,
        )  # fmt: skip
        upload = document["uploadId"]
        self._path = f"/uploads/{upload}"
        self._state.save(upload)

    def _send(self, known: Mapping[int, str], threads: int, deadline: float) -> None:
        """Have every part in the store, and its entity tag here."""
        self._etags.clear()
        self._found.clear()
        parallel = Parallel(threads)

        def begin() -> Callable[[int], None]:
            buffer = memoryview(bytearray(_PIECE_BYTES))

            def work(number: int) -> None:
                if number in known and self._is_same(number, known[number], buffer, parallel):
                    return
                self._put(number, buffer, parallel, deadline)

            return work

        parallel.run(range(1, self._count + 1), begin)
        after = os.fstat(self._file.fileno())
        if (after.st_size, after.st_mtime_ns) != (self._before.st_size, self._before.st_mtime_ns):
            raise FileChanged("the file changed while it was read")

    def _is_same(self, number: int, etag: str, buffer: memoryview, parallel: Parallel) -> bool:
        """Whether the file has the bytes that the store has; `*` is whatever they are."""
        if self._checks:
            own = self._checks[number - 1].etag
        else:
            checksum = xxhash.xxh3_64()
            for piece in self._pieces(number, buffer):
                checksum.update(piece)
                parallel.moved(0)
            own = checksum.hexdigest()
        if etag not in {own, "*"}:
            return False
        self._etags[number] = own
        self._found.add(number)
        self._meter.add(self._span(number)[1] - self._span(number)[0])
        return True

    def _put(self, number: int, buffer: memoryview, parallel: Parallel, deadline: float) -> None:
        start, stop = self._span(number)
        checksum = xxhash.xxh3_64()
        told = 0

        def body() -> "Chunks":
            nonlocal told
            # For each attempt, from the beginning.
            checksum.reset()
            self._meter.add(-told)
            told = 0
            for piece in self._pieces(number, buffer):
                checksum.update(piece)
                yield piece
                told += len(piece)
                self._meter.add(len(piece))
                parallel.moved(len(piece))

        headers = {"Content-Length": str(stop - start)}
        if self._checks:
            headers["Repr-Digest"] = f"sha-256=:{base64_of(self._checks[number - 1].sha256)}:"
        exchange = self._session.ask("PUT", f"{self._path}/{number}", headers=headers, body=body, deadline=deadline)
        exchange.drain()
        etag = exchange.headers.get("etag", "").strip('"')
        if etag != checksum.hexdigest():
            raise BadDigest("the store has other bytes than were sent", field="xxh3")
        if self._checks and etag != self._checks[number - 1].etag:
            raise FileChanged("the file changed since it was read")
        self._etags[number] = etag

    def _complete(self, deadline: float) -> Stored:
        parts = [{"part": number, "etag": self._etags[number]} for number in range(1, self._count + 1)]
        data = json.dumps({"parts": parts}).encode()
        headers = {**self._condition, "Content-Length": str(len(data)), "Content-Type": "application/json"}
        exchange = self._session.ask(
            "POST", self._path, headers=headers, body=lambda: (data,), expected=(201,),
            deadline=deadline,
        )  # fmt: skip
        exchange.drain()
        version = exchange.headers.get("x-ambry-named-version")
        kept = digests_of(exchange.headers.get("repr-digest", ""))
        return Stored(header_of(exchange, "x-ambry-blob-id"), self._size, self._name, version, kept)

    def _span(self, number: int) -> tuple[int, int]:
        return (number - 1) * self._part_bytes, min(number * self._part_bytes, self._size)

    def _pieces(self, number: int, buffer: memoryview) -> Iterator[memoryview]:
        """The bytes of a part, piece by piece in one buffer. Raises FileChanged for a file that became shorter."""
        start, stop = self._span(number)
        before = 0
        for offset, size in self._ranges:
            at, end = offset + max(start - before, 0), offset + min(stop - before, size)
            while at < end:
                with named(self._file.name):
                    count = os.preadv(self._file.fileno(), [buffer[: end - at]], at)
                if not count:
                    raise FileChanged("the file became shorter while it was read")
                yield buffer[:count]
                at += count
            before += size
