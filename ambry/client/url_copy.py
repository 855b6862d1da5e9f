"""What a URL leads to into a blob, as it comes.

At most one part of it is in memory, from which a store that does not answer gets it again. A short body is one put; a
long one, or one of unknown length, goes in parts, in order. The blob appears when all of it is stored and has the
digests that were asked for, or that the source has told, or not at all. Errors of the source say that they are
(url_source.py); all others are of the store.
"""

import base64
import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import xxhash

from ambry.client import puts
from ambry.client.bodies import Body, base64_of, upload_headers
from ambry.client.digests import Running, cheapest
from ambry.client.part_upload import size_of_parts
from ambry.client.progress import Meter, Progress
from ambry.client.session import Session, document_of, header_of
from ambry.client.stopping import Stopped
from ambry.client.transfer import UPSERT
from ambry.client.url_source import UrlSource, open_url
from ambry.client.values import Stored, digests_of, path_of
from ambry.errors import AmbryError, BadDigest, MethodNotAllowed, NameStoreUnavailable, TooLarge
from ambry.limits import BLOB_BYTES_MAX, MIB, UPLOAD_PARTS_MAX

if TYPE_CHECKING:
    from ambry.client.client import Client

PART_BYTES: Final = 16 * MIB
_PIECE_BYTES: Final = MIB // 4
_ABORT_S: Final = 10.0
_DOUBLED_AFTER: Final = 2000
"""Of a body of unknown length, parts double after so many: 31 GiB in parts of 16 MiB, and 968 GiB in all."""


def copy_from_url(
    client: "Client", session: Session, url: str, name: str | None, headers: Mapping[str, str],
    options: Mapping[str, Any], progress: Progress, deadline: float, *, sha256: bytes | None, upsert: bool,
) -> Stored:  # fmt: skip
    """See Client.copy_from_url. `options` are some of those of a put."""
    if name is not None:
        path_of(name)
    with open_url(url, headers, deadline) as source:
        found = {**options}
        for key in ("content_type", "filename"):
            found[key] = getattr(source, key) if options[key] is None else options[key]
        sent = upload_headers(**found, if_match=None, upsert=upsert)
        copy = _UrlCopy(client, session, name, sent, deadline)
        with Meter(progress, source.filename or url, source.size) as meter:
            return copy.run(source, meter, sha256)


class _SourceError(Exception):
    """Carries an error of the source through code that would take it for one of the store."""

    def __init__(self, error: AmbryError) -> None:
        super().__init__(str(error))
        self.error = error


class _Taken:
    """What has come of a source: progress, and the digests of all of it."""

    def __init__(self, source: UrlSource, meter: Meter, sha256: bytes | None) -> None:
        told = cheapest(source.digests)
        self._source = source
        self._meter = meter
        self._expected = {} if told is None else {told: source.digests[told]}
        self._own = {} if sha256 is None else {"sha-256": base64_of(sha256)}
        self._running = {name: Running(name) for name in {*self._expected, "sha-256"}}

    def readinto(self, view: memoryview) -> int:
        """The next bytes."""
        try:
            count = self._source.readinto(view)
        except AmbryError as error:
            raise _SourceError(error) from error
        for one in self._running.values():
            one.update(view[:count])
        self._meter.add(count)
        return count

    def digests(self) -> dict[str, str]:
        """Those of all that came. Raises BadDigest if one is another than was told."""
        found = {name: one.text for name, one in self._running.items()}
        for name, digest in self._own.items():
            if found[name] != digest:
                raise BadDigest(f"the source has other bytes: their {name} is {found[name]}", field=name)
        for name, digest in self._expected.items():
            if found[name] != digest:
                raise BadDigest("the bytes that came from the source do not have the digest that it told", field=name)
        return found


class _Part:
    """The bytes of one part: those that have come are kept for another attempt, the others come while they are sent."""

    def __init__(self, taken: _Taken, buffer: bytearray, size: int) -> None:
        """`size` bytes, or fewer if there are no more."""
        self._taken = taken
        self.size = size
        self._view = memoryview(buffer)[:size]
        self._checksum = xxhash.xxh3_64()
        self.count = 0

    @property
    def etag(self) -> str:
        """Its xxh3, as the store tells it of a part."""
        return self._checksum.hexdigest()

    @property
    def is_full(self) -> bool:
        """Whether there is no room for more."""
        return self.count == len(self._view)

    @property
    def data(self) -> memoryview:
        """What has come."""
        return self._view[: self.count]

    def fill(self) -> None:
        """Have all of it; then it has as many bytes as came."""
        for _ in self.pieces():
            pass
        self.size = self.count

    def pieces(self) -> Iterator[memoryview]:
        """All of it, from the beginning."""
        at = 0
        while at < self.count or self._more():
            yield self._view[at : self.count]
            at = self.count

    def _more(self) -> bool:
        view = self._view[self.count : self.count + _PIECE_BYTES]
        count = self._taken.readinto(view)
        self._checksum.update(view[:count])
        self.count += count
        return count > 0


class _UrlCopy:
    """One copy. `headers` are those of an upload."""

    def __init__(
        self, client: "Client", session: Session, name: str | None, headers: Mapping[str, str], deadline: float
    ) -> None:
        self._client = client
        self._session = session
        self._name = name
        self._headers = headers
        self._deadline = deadline

    def run(self, source: UrlSource, meter: Meter, sha256: bytes | None) -> Stored:
        """Store all of a source. Raises the errors of a put and of the source, BadDigest."""
        if (source.size or 0) > BLOB_BYTES_MAX:
            raise TooLarge(f"a blob has {BLOB_BYTES_MAX} bytes at most, and the source has {source.size}")
        taken = _Taken(source, meter, sha256)
        try:
            stored = self._stored(taken, source.size)
        except _SourceError as error:
            raise error.error from error.error.__cause__
        return replace(stored, digests={**stored.digests, **taken.digests()})

    def _stored(self, taken: _Taken, size: int | None) -> Stored:
        if size is not None and size > PART_BYTES:
            return self._in_parts(taken, None, size)
        part = _Part(taken, bytearray(PART_BYTES if size is None else size), PART_BYTES if size is None else size)
        part.fill()
        if size is None and part.is_full:
            return self._in_parts(taken, part, None)
        digests = taken.digests()
        return self._put(Body(part.data, None), base64.b64decode(digests["sha-256"]))

    def _put(self, body: Body, sha256: bytes | None) -> Stored:
        return puts.put(
            self._client, self._session, body, self._name, self._headers, self._deadline, if_match=None, sha256=sha256
        )

    def _stream(self, taken: _Taken, first: _Part | None, size: int | None) -> Stored:
        """By a store without names, or an older one: once, as the bytes are not there for another attempt."""

        def pieces() -> Iterator[bytes]:
            if first is not None:
                yield bytes(first.data)
            view = memoryview(bytearray(_PIECE_BYTES))
            while count := taken.readinto(view):
                yield bytes(view[:count])
            # Before the end of the body goes out: what is wrong is not stored.
            taken.digests()

        return self._put(Body(pieces(), size), None)

    def _in_parts(self, taken: _Taken, first: _Part | None, size: int | None) -> Stored:
        try:
            path = self._begin()
        except (NameStoreUnavailable, MethodNotAllowed):
            return self._stream(taken, first, size)
        try:
            etags, stored_size = self._send(path, taken, first, size)
            taken.digests()
            return self._complete(path, etags, stored_size)
        except BaseException:
            # Nobody else can go on with it.
            with contextlib.suppress(AmbryError, Stopped):
                self._session.ask("DELETE", path, expected=(202,), deadline=self._session.deadline(_ABORT_S)).drain()
            raise

    def _begin(self) -> str:
        headers = dict(self._headers)
        if self._name is not None:
            headers["x-ambry-upload-name"] = path_of(self._name)
        document = self._session.read(
            "/uploads", lambda exchange: document_of(exchange, "uploadId"), method="POST", headers=headers,
            expected=(201,), deadline=self._deadline,
        )  # fmt: skip
        return f"/uploads/{document['uploadId']}"

    def _send(self, path: str, taken: _Taken, first: _Part | None, size: int | None) -> tuple[list[str], int]:
        """Entity tags of all parts, and how many bytes they have."""
        part_bytes = PART_BYTES if size is None else size_of_parts(size, PART_BYTES)
        etags: list[str] = []
        at = 0
        buffer = bytearray()
        part = first
        while True:
            if part is None:
                if len(etags) == UPLOAD_PARTS_MAX:
                    raise TooLarge(f"the source has more than {at} bytes, and did not say so before")
                wanted = part_bytes << len(etags) // _DOUBLED_AFTER if size is None else min(part_bytes, size - at)
                if len(buffer) < wanted:
                    buffer = bytearray(wanted)
                part = _Part(taken, buffer, wanted)
                if size is None:
                    part.fill()
                    if not part.count:
                        return etags, at
            etags.append(self._put_part(path, len(etags) + 1, part))
            at += part.count
            if at == size or not part.is_full:
                return etags, at
            part = None

    def _put_part(self, path: str, number: int, part: _Part) -> str:
        headers = {"Content-Length": str(part.size)}
        exchange = self._session.ask(
            "PUT", f"{path}/{number}", headers=headers, body=part.pieces, deadline=self._deadline
        )
        exchange.drain()
        if exchange.headers.get("etag", "").strip('"') != part.etag:
            raise BadDigest("the store has other bytes than were sent", field="xxh3")
        return part.etag

    def _complete(self, path: str, etags: Sequence[str], size: int) -> Stored:
        data = json.dumps({"parts": [{"part": number, "etag": etag} for number, etag in enumerate(etags, 1)]}).encode()
        condition = {key: value for key, value in self._headers.items() if key == UPSERT}
        headers = {**condition, "Content-Length": str(len(data)), "Content-Type": "application/json"}
        exchange = self._session.ask(
            "POST", path, headers=headers, body=lambda: (data,), expected=(201,), deadline=self._deadline
        )
        exchange.drain()
        version = exchange.headers.get("x-ambry-named-version")
        kept = digests_of(exchange.headers.get("repr-digest", ""))
        return Stored(header_of(exchange, "x-ambry-blob-id"), size, self._name, version, kept)
