"""Files up and down, by several connections, resumed by whoever comes next; whole and right, or not there.

Up, large files go in parts (part_upload.py), others in one stream. Down, parts are written to `.NAME.ambry-part`;
`.NAME.ambry-parts` lists, a line each, the blob, and the parts that are there with their checksums. A part counts when
its bytes have the checksum of its line, so neither a crash nor another program can make a wrong one count. Whoever
writes parts has a lock on their file; who comes second waits, and finds the file or goes on with its parts. The number
of connections grows while that makes it faster. Memory: one piece each.
"""

import base64
import contextlib
import errno
import fcntl
import json
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import xxhash

from ambry.blob.crc32 import crc32
from ambry.blob.crc_join import join_all
from ambry.client import stopping
from ambry.client.beside import PART, PARTS, beside, named
from ambry.client.digests import Running, cheapest, digest_of, opened, pieces_of
from ambry.client.landing import Landing, reserve
from ambry.client.parallel import Parallel
from ambry.client.part_upload import PartUpload
from ambry.client.progress import Meter, Progress
from ambry.client.ranges import read_range, stored_digest
from ambry.client.session import Session
from ambry.client.small_files import new_part
from ambry.client.values import BlobInfo, Stored, digests_of
from ambry.errors import (
    BadDigest,
    ConnectionLost,
    DeadlineExceeded,
    FileChanged,
    MethodNotAllowed,
    NameStoreUnavailable,
)
from ambry.limits import GIB, KIB, MIB

if TYPE_CHECKING:
    from ambry.client.client import Client
    from ambry.client.http import Exchange

NO_DEADLINE_S: Final = 30 * 86_400.0
_PIECE_BYTES: Final = MIB
_RECEIVE_BYTES: Final = 128 * KIB
"""Received, summed and written at once. By the megabyte 3 GiB took half as long again, most of it in the kernel's copy
to the page cache."""

_PART_BYTES: Final = 8 * MIB
_LARGE_BYTES: Final = GIB
_LARGE_PART_BYTES: Final = 32 * MIB
"""Of a large file: a quarter of the requests, and a tenth less of the processor. A crash costs each connection a part
at most, so four of them an eighth of the smallest large file."""

_LOOK_S: Final = 0.05
_PATIENCE_S: Final = 60.0
"""Parts that nobody has written to for so long, although somebody has a lock on them, are not waited for any longer."""

_NO_LOCKS: Final = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
"""What file systems without locks answer."""

UPSERT: Final = "x-ambry-named-upsert"
METADATA: Final = "x-ambry-um-"
"""As which the SHA-256 of a file in parts is kept: no store can make it of parts."""


def file_deadline(session: Session, deadline_s: float | None) -> float:
    """The moment until which the transfer of a file may take; without seconds it has none that anybody lives to see."""
    return session.deadline(NO_DEADLINE_S if deadline_s is None else deadline_s)


def read_whole(session: Session, path: str, headers: Mapping[str, str], deadline: float) -> bytes:
    """A body in memory; one that breaks off is asked for again. Raises BadDigest for bytes with another checksum."""
    if "Range" in headers:
        return read_range(session, path, headers["Range"], deadline)

    def take(exchange: "Exchange") -> bytes:
        data = exchange.read()
        _check(exchange.headers.get("repr-digest", ""), data)
        return data

    return session.read(path, take, headers=headers, deadline=deadline)


def _check(header: str, data: bytes) -> None:
    digests = digests_of(header)
    algorithm = cheapest(digests)
    if algorithm is not None and digest_of(algorithm, [data]) != digests[algorithm]:
        raise BadDigest("the bytes that came do not have their checksum", field=algorithm)


# --- up --------------------------------------------------------------------------------------------------------


class _Watched:
    """A file that is read once from its beginning: progress, and whether it stayed the same."""

    def __init__(self, file: IO[bytes], meter: Meter) -> None:
        self._file = file
        self._meter = meter
        self._before = os.fstat(file.fileno())
        self._told = 0

    @property
    def size(self) -> int:
        """Bytes of the file when it was opened."""
        return self._before.st_size

    def seekable(self) -> bool:
        """Whether it can be sent again."""
        return self._file.seekable()

    def tell(self) -> int:
        """The position."""
        return self._file.tell()

    def seek(self, offset: int) -> int:
        """Begin anew."""
        self._meter.add(-self._told)
        self._told = 0
        return self._file.seek(offset)

    def read(self, size: int) -> bytes:
        """The next bytes. Raises FileChanged at the end of a file that is another than it was."""
        with named(self._file.name):
            piece = self._file.read(min(size, self.size - self._file.tell()))
        self._told += len(piece)
        self._meter.add(len(piece))
        if self._file.tell() == self.size or not piece:
            after = os.fstat(self._file.fileno())
            same = (after.st_size, after.st_mtime_ns) == (self._before.st_size, self._before.st_mtime_ns)
            if not same or self._file.tell() != self.size:
                raise FileChanged(
                    f"the file changed while it was read: it had {self.size} bytes, and has {after.st_size}"
                )
        return piece

    def fileno(self) -> int:
        """Its descriptor."""
        return self._file.fileno()


def upload_file(
    client: "Client", session: Session, path: Path, name: str | None, progress: Progress, threads: int,
    part_bytes: int, headers: Mapping[str, str], *, deadline_s: float | None,
    **options: Any,  # noqa: ANN401 -- those of put
) -> Stored:  # fmt: skip
    """Store a file; see Client.upload_file. `headers` say what `options` say."""
    deadline = file_deadline(session, deadline_s)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        with Meter(progress, path.name, size) as meter:
            if size > part_bytes:
                digests = _sha256_of(file) if options.get("sha256") else {}
                headers = {**headers, **{f"{METADATA}{name}": digest for name, digest in digests.items()}}
                condition = {key: value for key, value in headers.items() if key == UPSERT}
                upload = PartUpload(session, path, file, name, meter, part_bytes, headers, condition)
                try:
                    stored = upload.run(threads, deadline)
                    return replace(stored, digests={**stored.digests, **digests})
                except (NameStoreUnavailable, MethodNotAllowed):
                    # A store without names, or an older one: nothing has begun.
                    if upload.has_begun:
                        raise
            watched = _Watched(file, meter)
            return client.put(
                watched,  # type: ignore[arg-type] # it has what put asks of a file
                name, size=watched.size, filename=path.name, deadline_s=session.left_s(deadline), **options,
            )  # fmt: skip


def _sha256_of(file: IO[bytes]) -> dict[str, str]:
    """The SHA-256 of a file as it is kept. Raises FileChanged."""
    before = os.fstat(file.fileno())
    with named(file.name):
        found = digest_of("sha-256", pieces_of(file.fileno()))
    after = os.fstat(file.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise FileChanged("the file changed while it was read")
    return {"sha-256": found}


# --- down ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Source:
    """What is loaded: bytes of one blob or of several, one behind the other."""

    identity: str
    """The same for the same bytes; a download is resumed if it is the same."""
    size: int
    pieces: tuple[tuple[str, int, int], ...]
    """Path, first byte and number of bytes of each."""
    crc32: int | None = None
    """Of all bytes, where it is known and nothing better is."""

    def ranges(self, start: int, stop: int) -> Iterator[tuple[str, int, int]]:
        """Where bytes `start:stop` are: path, first byte, end."""
        at = 0
        for path, offset, size in self.pieces:
            first, last = max(start, at), min(stop, at + size)
            if first < last:
                yield path, offset + first - at, offset + last - at
            at += size


def source_of(info: BlobInfo) -> Source:
    """All bytes of a blob."""
    return Source(info.id, info.size, ((f"/{info.id}", 0, info.size),))


class _Parts:
    """Which parts of a blob are in the file beside the target, kept in a file beside that."""

    def __init__(self, source: Source, target: Path, part_bytes: int) -> None:
        self.target = target
        self.path = target.with_name(beside(target.name, PART))
        self._list: Path | None = target.with_name(beside(target.name, PARTS))
        self._source = source
        self._part_bytes = part_bytes
        self._lock = threading.Lock()
        self.count = -(-source.size // part_bytes)
        self.checks: dict[int, int] = {}
        """Checksums of the parts that are there."""

    def open(self, until: float) -> tuple[int, bool]:
        """A descriptor of the file, which nobody else writes to, and whether somebody else has done so meanwhile.

        Raises DeadlineExceeded when somebody else still writes to it at the moment `until`.
        """
        has_waited = False
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                if not _try_lock(descriptor):
                    has_waited = True
                    if not _wait_for_lock(descriptor, until):
                        break
                # The file that was waited for has its name now, or is gone.
                if _is_at(descriptor, self.path):
                    return descriptor, has_waited
            except BaseException:
                _close(descriptor)
                raise
            _close(descriptor)
        os.close(descriptor)
        # One that nobody resumes; small_files.py takes it away where this process is killed.
        path, descriptor = new_part(str(self.path.parent))
        self.path, self._list = Path(path), None
        return descriptor, has_waited

    def fill(self, descriptor: int) -> list[int]:
        """Have the file of the blob's size; the parts that are missing."""
        found = self._listed()
        if os.fstat(descriptor).st_size != self._source.size:
            os.ftruncate(descriptor, self._source.size)
            self._reserve(descriptor)
        self.checks = {part: check for part, check in found.items() if self._check_of(descriptor, part) == check}
        if self._list is not None:
            # Anew, so that lines are never added to what a crash or something else has torn.
            lines = [self._head(), *([part, check] for part, check in self.checks.items())]
            self._list.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        return [part for part in range(self.count) if part not in self.checks]

    def place(self) -> None:
        """Have the file under its name."""
        # The list first: as soon as the file is gone, another process may begin a list of its own.
        self.forget()
        self.path.replace(self.target)

    def drop(self) -> None:
        """Keep nothing, while the lock is held."""
        self.forget()
        self.path.unlink(missing_ok=True)

    def leave(self) -> None:
        """Keep what can be resumed."""
        if self._list is None:
            self.path.unlink(missing_ok=True)

    def _reserve(self, descriptor: int) -> None:
        try:
            reserve(descriptor, self._source.size)
        except OSError:
            # A disk without room for the whole keeps nothing of it: no part is in a file that had another size.
            self.path.unlink()
            raise

    def span(self, part: int) -> tuple[int, int]:
        """Bytes start:stop of a part."""
        return part * self._part_bytes, min((part + 1) * self._part_bytes, self._source.size)

    def note(self, part: int, check: int) -> None:
        """A part is there."""
        with self._lock:
            self.checks[part] = check
            if self._list is not None:
                with named(self.target), self._list.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([part, check]) + "\n")

    def forget(self) -> None:
        """Nothing is to be resumed."""
        if self._list is not None:
            self._list.unlink(missing_ok=True)

    def crc32(self) -> int:
        """That of the whole, joined from the parts, all of which are there."""
        spans = [self.span(part) for part in range(self.count)]
        return join_all((self.checks[part], stop - start) for part, (start, stop) in enumerate(spans))

    def _head(self) -> dict[str, object]:
        return {
            "id": self._source.identity,
            "size": self._source.size,
            "part_bytes": self._part_bytes,
            "checksum": "xxh3" if self._source.crc32 is None else "crc32",
        }

    def _listed(self) -> dict[int, int]:
        """Parts and checksums of the list; nothing where it is of another blob. What cannot be read is named."""
        found: dict[int, int] = {}
        if self._list is None:
            return found
        try:
            # What follows the last line's end is the line that a crash has torn.
            head, *lines = self._list.read_text(encoding="utf-8").split("\n")[:-1]
            if json.loads(head) == self._head() and self.path.exists():
                for line in lines:
                    part, check = json.loads(line)
                    if isinstance(part, int) and 0 <= part < self.count and isinstance(check, int):
                        found[part] = check
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, RecursionError):
            # What was read before is verified like everything else.
            kept = f"what it still says of {len(found)} parts is verified" if found else "the download begins anew"
            warnings.warn(f"{self._list} is damaged, {kept}", RuntimeWarning, stacklevel=2)
        return found

    def _check_of(self, descriptor: int, part: int) -> int:
        checksum = _running(self._source)
        start, stop = self.span(part)
        while start < stop:
            piece = os.pread(descriptor, min(_PIECE_BYTES, stop - start), start)
            if not piece:
                break
            checksum.update(piece)
            start += len(piece)
        return checksum.value


def _try_lock(descriptor: int) -> bool:
    """Whether nobody else has a lock on a file now. Where there are no locks, nobody has."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def _wait_for_lock(descriptor: int, until: float) -> bool:
    """Wait for the lock of somebody who writes; False for somebody who does not.

    Raises DeadlineExceeded at the moment `until`, Stopped when given up.
    """
    written, since = -1, time.monotonic()
    while not _try_lock(descriptor):
        now, latest = time.monotonic(), os.fstat(descriptor).st_mtime_ns
        if now >= until:
            raise DeadlineExceeded("the deadline passed while another process, or thread, loads the same file")
        if latest != written:
            written, since = latest, now
        if now - since >= _PATIENCE_S:
            return False
        stopping.sleep(_LOOK_S)
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _close(descriptor: int) -> None:
    """Close a file, and its lock also where a child has the descriptor after a fork."""
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


class _Crc32:
    """A running CRC-32."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def update(self, data: "bytes | memoryview") -> None:
        """Take the next bytes."""
        self.value = crc32(data, self.value)


class _Xxh3:
    """A running xxh3-64."""

    __slots__ = ("_made",)

    def __init__(self) -> None:
        self._made = xxhash.xxh3_64()

    @property
    def value(self) -> int:
        """That of all bytes taken."""
        return self._made.intdigest()

    def update(self, data: "bytes | memoryview") -> None:
        """Take the next bytes."""
        self._made.update(data)


def _running(source: Source) -> _Crc32 | _Xxh3:
    """What parts of a source are summed with: a CRC where these together are that of the whole."""
    return _Xxh3() if source.crc32 is None else _Crc32()


def download_file(
    session: Session,
    info: BlobInfo,
    target: Path,
    progress: Progress,
    part_bytes: int | None,
    threads: int,
    deadline: float | None = None,
    *,
    sha256: bytes | bool | None = None,
) -> None:
    """Write a blob to a file; see Client.download_file. Raises BadDigest for a file that is not the blob."""
    expected, sent = info.digests.get("xxh3"), info.digests.get("crc32")
    whole = None if expected is not None or sent is None else int.from_bytes(base64.b64decode(sent), "big")
    source = replace(source_of(info), crc32=whole)
    if part_bytes is None:
        part_bytes = _part_bytes(info.size)

    wanted = {} if expected is None else {"xxh3": expected}
    if sha256:
        kept = info.digests.get("sha-256") if sha256 is True else base64.b64encode(sha256).decode()
        if kept is None:
            raise BadDigest("no SHA-256 was kept with the blob", field="sha-256")
        wanted["sha-256"] = kept

    def check(pieces: Iterator[bytes]) -> None:
        made = {algorithm: Running(algorithm) for algorithm in wanted}
        for piece in pieces:
            for one in made.values():
                one.update(piece)
        for algorithm, one in made.items():
            if one.text != wanted[algorithm]:
                raise BadDigest("the bytes that came do not have their checksum", field=algorithm)

    with Meter(progress, target.name, info.size) as meter:
        download(session, source, target, meter, check if wanted else None, part_bytes, threads, deadline)


def _part_bytes(size: int) -> int:
    """Bytes of a part of a file whose caller has no wish."""
    return _PART_BYTES if size < _LARGE_BYTES else _LARGE_PART_BYTES


def download(
    session: Session,
    source: Source,
    target: Path,
    meter: Meter,
    check: "Callable[[Iterator[bytes]], None] | None",
    part_bytes: int,
    threads: int,
    deadline: float | None = None,
) -> None:
    """Write bytes to a file, once they have the CRC of the source and `check`, which sees all, raised no BadDigest."""
    parts = _Parts(source, target, part_bytes)
    descriptor, has_waited = parts.open(file_deadline(session, None) if deadline is None else deadline)
    try:
        if has_waited and _is_there(target, source, check):
            parts.drop()
            meter.add(source.size)
            return
        with named(target):
            missing = parts.fill(descriptor)
        meter.add(source.size - sum(stop - start for start, stop in map(parts.span, missing)))
        _fetch_all(session, source, parts, missing, descriptor, meter, threads, deadline)
        if not _is_right(descriptor, source, parts, check):
            # Some may have changed on their way: the store says which, and those are loaded again.
            wrong = _wrong_parts(session, source, parts, range(parts.count), deadline)
            meter.add(-sum(stop - start for start, stop in map(parts.span, wrong)))
            _fetch_all(session, source, parts, wrong, descriptor, meter, threads, deadline)
            _verify_at_last(session, descriptor, source, parts, wrong, check, deadline)
        with named(target):
            os.fsync(descriptor)
        parts.place()
    except BaseException:
        parts.leave()
        raise
    finally:
        _close(descriptor)


def _is_right(
    descriptor: int, source: Source, parts: _Parts, check: "Callable[[Iterator[bytes]], None] | None"
) -> bool:
    """Whether the bytes are those of the source; no, where nothing can tell that yet."""
    try:
        _verify(descriptor, source, parts, check)
    except BadDigest:
        return False
    return source.crc32 is not None or check is not None


def _verify_at_last(
    session: Session, descriptor: int, source: Source, parts: _Parts, wrong: Sequence[int],
    check: "Callable[[Iterator[bytes]], None] | None", deadline: float | None,
) -> None:  # fmt: skip
    """Raises BadDigest for bytes that are not those of the source: nothing of them is resumed."""
    try:
        _verify(descriptor, source, parts, check)
        if source.crc32 is None and check is None and _wrong_parts(session, source, parts, wrong, deadline):
            raise BadDigest("the bytes that came do not have their checksum", field="xxh3")
    except BadDigest:
        parts.forget()
        raise


def _wrong_parts(
    session: Session, source: Source, parts: _Parts, among: Sequence[int], deadline: float | None
) -> list[int]:
    """Parts of which the store says another checksum; none where it does not say any."""
    until = file_deadline(session, None) if deadline is None else deadline
    algorithm, size = ("xxh3", 8) if source.crc32 is None else ("crc32", 4)
    wrong = []
    for part in among:
        ranges = list(source.ranges(*parts.span(part)))
        own = base64.b64encode(parts.checks[part].to_bytes(size, "big")).decode()
        # What is put together from several has no checksum there.
        if len(ranges) > 1 or stored_digest(session, *ranges[0], algorithm, until) not in {None, own}:
            wrong.append(part)
    return wrong


def _verify(descriptor: int, source: Source, parts: _Parts, check: "Callable[[Iterator[bytes]], None] | None") -> None:
    """Raises BadDigest for bytes that are not those of the source."""
    if source.crc32 is not None and parts.crc32() != source.crc32:
        raise BadDigest("the bytes that came do not have their checksum", field="crc32")
    if check is not None:
        with named(parts.target):
            check(pieces_of(descriptor))


def _is_there(target: Path, source: Source, check: "Callable[[Iterator[bytes]], None] | None") -> bool:
    """Whether a file has the bytes of a source, as far as there is a checksum that can tell."""
    with opened(target, source.size, follow=False) as descriptor:
        if descriptor is None:
            return False
        if source.crc32 is not None:
            expected = base64.b64encode(source.crc32.to_bytes(4, "big")).decode()
            return digest_of("crc32", pieces_of(descriptor)) == expected
        if check is None:
            return False
        try:
            check(pieces_of(descriptor))
        except BadDigest:
            return False
    return True


def _fetch_all(
    session: Session,
    source: Source,
    parts: _Parts,
    missing: list[int],
    descriptor: int,
    meter: Meter,
    threads: int,
    deadline: float | None,
) -> None:
    """Fetch the missing parts by several threads. Raises the first error."""
    parallel = Parallel(threads)
    landing = Landing(descriptor, parts.target)

    def begin() -> Callable[[int], None]:
        buffer = memoryview(bytearray(_RECEIVE_BYTES))

        def work(part: int) -> None:
            checksum = _running(source)
            at, stop = parts.span(part)

            def take(exchange: "Exchange", left: int) -> int:
                nonlocal at
                count = exchange.readinto(buffer[:left])
                piece = buffer[:count]
                checksum.update(piece)
                landing.write(piece, at)
                at += count
                meter.add(count)
                parallel.moved(count)
                return count

            for path, first, last in source.ranges(at, stop):
                fetch_range(session, path, first, last, take, deadline)
            parts.note(part, checksum.value)
            landing.push(*parts.span(part))

        return work

    try:
        parallel.run(missing, begin)
    finally:
        landing.end()


def fetch_range(
    session: Session,
    path: str,
    start: int,
    stop: int,
    take: "Callable[[Exchange, int], int]",
    deadline: float | None = None,
) -> None:
    """Bytes `start:stop` of a blob. `take` reads at most so many of them; one that breaks off goes on where it was."""
    until = file_deadline(session, None) if deadline is None else deadline
    # Each attempt asks for what has not come yet.
    headers = {"Range": f"bytes={start}-{stop - 1}"}

    def take_all(exchange: "Exchange") -> None:
        nonlocal start
        exchange.stream()
        while start < stop and (count := take(exchange, stop - start)):
            start += count
            headers["Range"] = f"bytes={start}-{stop - 1}"
        if start < stop:
            raise ConnectionLost(f"the answer is {stop - start} bytes short")

    if start < stop:
        session.read(path, take_all, headers=headers, expected=(206,), deadline=until)
