"""Uploads in parts, without HTTP: create, put a part, complete, abort, and what is collected afterwards.

What an upload reserved (ids for its manifest, a deadline) is a row of the name store, and so is each part with its
chunks, once these are durable. So any frontend goes on where another one stopped, and whatever was answered can be
asked again. Completing takes three steps, each of which another process may repeat or finish:

1. The parts are chosen and fixed, in one transaction; from here on the bytes of the manifest are determined.
2. The manifest is put under a reserved id. One that fails its quorum leads to the next id, after a transaction that
   says so: an id that was given up is tombstoned, and never named.
3. One transaction gives the name its row and ends the upload, if the manifest is still under the id that counts.

An upload that was begun in another epoch of the name store is not known: its rows may be older than what became of it.
"""

import asyncio
import json
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from xxhash import xxh3_64_hexdigest

from ambry.access.accounts import Container, Durability
from ambry.blob.blob_id import text_from_binary
from ambry.blob.crc_join import join_all
from ambry.blob.manifest import Entry, decode_manifest, encode_manifest
from ambry.blob.properties import Properties, decode_properties, encode_properties
from ambry.clock import Clock
from ambry.errors import (
    AmbryError,
    BadDigest,
    BadRequest,
    BlobCollision,
    NameStoreUnavailable,
    NoSuchUpload,
    TooLarge,
)
from ambry.frontend.digests import DigestCheck
from ambry.frontend.named_operations import Name
from ambry.frontend.operations import Operations
from ambry.frontend.put import PutPlan, Reserved, Source
from ambry.limits import (
    BLOB_BYTES_MAX,
    CLOCK_SKEW_MS_MAX,
    UPLOAD_COLLECT_ROWS,
    UPLOAD_KEPT_MS,
    UPLOAD_PARTS_MAX,
)
from ambry.logs import get_logger
from ambry.names import uploads
from ambry.names.changes import Condition, etags_of, read_current
from ambry.names.rows import NameRow, RowKind, Versions
from ambry.names.sql import FOREVER, Database, Session
from ambry.names.uploads import PartRow, UploadRow, UploadStatus

_log = get_logger(__name__)

ETAG_ALGORITHM: Final = "xxh3"
"""The entity tag of a part is its xxh3 in hexadecimal digits: the same for the same bytes."""

_ALGORITHMS: Final = frozenset({"crc32", ETAG_ALGORITHM})
"""Digests of every part. CRCs of parts make that of the whole, which is kept with the blob."""

_TOGETHER: Final = 64
"""Records that are tombstoned at a time."""


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload as its row says. `blob_id` is empty, and `version_text`, until it is completed."""

    row: UploadRow
    document: Mapping[str, Any]

    @property
    def owner(self) -> bytes:
        """Account and container, as in ids."""
        return self.row.account.to_bytes(4, "big") + self.row.container.to_bytes(4, "big")

    @property
    def status(self) -> UploadStatus:
        """Where it stands."""
        return UploadStatus(self.row.status)

    @property
    def blob_id(self) -> str:
        """Text id of the blob it became."""
        return str(self.document.get("blob", ""))

    @property
    def version_text(self) -> str:
        """Version of the name it became."""
        return str(self.document.get("named_version", ""))

    @property
    def size(self) -> int:
        """Bytes of the blob, once the parts are chosen."""
        return int(self.document.get("size", 0))

    @property
    def reserved(self) -> Reserved:
        """What the chunks of it carry."""
        ids = tuple(b64decode(one) for one in self.document["manifest_ids"])
        return Reserved(ids, self.row.upload_id, int(self.document["deadline_ms"]))

    def plan(self, size: int | None = None, check: DigestCheck | None = None) -> PutPlan:
        """The plan of what is put for it. Its properties are those that the blob gets, without size and digests."""
        return PutPlan(
            decode_properties(b64decode(self.document["properties"])),
            self.row.created_ms,
            int(self.document["expires_at_ms"]),
            size,
            check,
            Durability(self.document["durability"]),
            self.owner,
        )

    def changed(self, **members: object) -> str:
        """The details of the row with other members."""
        return json.dumps({**self.document, **members})


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The parts of a completion, put together."""

    entries: tuple[Entry, ...]
    size: int
    crc32: int


class UploadOperations:
    """The uploads in parts of one frontend process."""

    __slots__ = ("_clock", "_database", "_datacentre", "_operations", "_versions", "collected")

    def __init__(
        self, database: Database, operations: Operations, versions: Versions, clock: Clock, datacentre: int
    ) -> None:
        self._database = database
        self._operations = operations
        self._versions = versions
        self._clock = clock
        self._datacentre = datacentre
        self.collected = 0
        """Uploads that were given up and whose chunks were tombstoned."""

    # --- beginning, and looking ----------------------------------------------------------------------------------

    async def create(self, container: Container, name: Name | None, condition: Condition, plan: PutPlan) -> Upload:
        """Begin an upload. Raises Unavailable, NameStoreUnavailable, and NameExists for a name that is taken."""
        if name is not None:
            await self._check_name(name, condition)
        reserved = self._operations.reserve(plan.created_ms, container.owner)
        document = {
            "manifest_ids": [b64encode(one).decode() for one in reserved.manifest_ids],
            "deadline_ms": reserved.deadline_ms,
            "expires_at_ms": plan.expires_at_ms,
            "durability": plan.durability.value,
            "properties": b64encode(encode_properties(plan.properties)).decode(),
        }

        def job(session: Session) -> UploadRow:
            row = UploadRow(
                reserved.upload_id,
                container.account,
                container.number,
                b"" if name is None else name.name,
                int(UploadStatus.OPEN),
                plan.created_ms,
                reserved.deadline_ms,
                json.dumps({"epoch": _epoch(session), **document}),
            )
            uploads.create(session, row)
            return row

        return _upload_of(await self._database.write(job))

    async def find(self, upload_id: bytes) -> Upload:
        """An upload that is open, being completed or completed. Raises NoSuchUpload."""

        def job(session: Session) -> tuple[UploadRow, str]:
            return uploads.find(session, upload_id), _epoch(session)

        row, epoch = await self._database.read(job)
        upload = _upload_of(row)
        if upload.status is UploadStatus.ABORTED or upload.document["epoch"] != epoch:
            raise NoSuchUpload("the upload was aborted, or began before the name store was restored")
        if upload.status is not UploadStatus.COMPLETED and self._clock.now_ms() >= row.deadline_ms:
            raise NoSuchUpload("the time of the upload is over")
        return upload

    async def parts(self, upload: Upload, after: int, count_max: int) -> list[PartRow]:
        """Parts behind a number, in order; none once the upload is completed."""
        return await self._database.read(
            lambda session: uploads.read_parts(session, upload.row.upload_id, after, count_max)
        )

    # --- parts ---------------------------------------------------------------------------------------------------

    async def put_part(
        self, upload: Upload, number: int, source: Source, size: int | None, digests: Mapping[str, bytes],
        wanted: frozenset[str],
    ) -> PartRow:  # fmt: skip
        """Store a part, in place of the one of its number. Raises as a put, BadDigest, NoSuchUpload, NotAllowed."""
        if upload.status is not UploadStatus.OPEN:
            raise uploads.closed()
        check = DigestCheck(digests, wanted | _ALGORITHMS)
        plan = replace(upload.plan(size, check), properties=Properties(0))
        stored = await self._operations.put_part(source, plan, upload.reserved)
        part = PartRow(
            number,
            stored.entries[0].blob_id if stored.entries else b"",
            stored.size,
            self._clock.now_ms(),
            stored.digests[ETAG_ALGORITHM].hex(),
            json.dumps({
                "entries": b64encode(_packed(stored.entries)).decode() if stored.entries else "",
                "digests": {name: b64encode(digest).decode() for name, digest in stored.digests.items()},
            }),
        )  # fmt: skip
        try:
            replaced = await self._database.write(lambda session: uploads.put_part(session, upload.row.upload_id, part))
        except AmbryError as error:
            if not isinstance(error, NameStoreUnavailable) or error.facts.get("is_certain"):
                self._reclaim(stored.entries, plan.expires_at_ms)
            raise
        if replaced is not None:
            self._reclaim(_entries_of(replaced), plan.expires_at_ms)
        return part

    # --- completing ----------------------------------------------------------------------------------------------

    async def complete(
        self, upload: Upload, name: Name | None, wanted: Mapping[int, str], condition: Condition, crc32: bytes | None
    ) -> Upload:
        """Make a blob of parts, chosen by number and entity tag; with its name, if it has one. Again is the same.

        Raises BadRequest for parts that are not there, BadDigest, NotAllowed for other parts than before, NameExists,
        PreconditionFailed, and the errors of a put. It may then be tried again, or aborted.
        """
        listed = xxh3_64_hexdigest(json.dumps(sorted(wanted.items())).encode())
        if upload.status is UploadStatus.OPEN and name is not None:
            # Parts that were chosen stay chosen; a name that is taken should not go so far.
            await self._check_name(name, condition)
        upload, chosen = await self._choose(upload, wanted, crc32)
        while upload.status is not UploadStatus.COMPLETED:
            upload, entries, level = await self._with_leaves(upload, chosen.entries)
            if upload.status is not UploadStatus.COMPLETED:
                upload = await self._finish(upload, name, condition, entries, level, listed)
        if upload.document["list"] != listed:
            raise BadRequest("the upload was completed with other parts", field="parts")
        return upload

    async def _choose(self, upload: Upload, wanted: Mapping[int, str], crc32: bytes | None) -> tuple[Upload, _Chosen]:
        """Step 1. Sizes and checksums are looked at before, so that nothing is chosen that cannot be completed."""
        upload_id = upload.row.upload_id
        found = _Chosen((), 0, 0)
        if upload.status is UploadStatus.OPEN:
            parts = await self._database.read(
                lambda session: uploads.read_parts(session, upload_id, 0, UPLOAD_PARTS_MAX)
            )
            there = [one for one in parts if wanted.get(one.part) == one.digest]
            if len(there) == len(wanted):
                found = await asyncio.to_thread(_put_together, there)
                _check_whole(found, crc32)
        version = [self._versions.next(self._clock.now_ms()), self._datacentre]
        checksum = b64encode(found.crc32.to_bytes(4, "big")).decode()
        details = upload.changed(version=version, attempt=0, leaves=[], size=found.size, crc32=checksum)
        row, parts, dropped = await self._database.write(
            lambda session: uploads.begin_completion(session, upload_id, wanted, details)
        )
        for part in dropped:
            self._reclaim(_entries_of(part), upload.plan().expires_at_ms)
        return _upload_of(row), await asyncio.to_thread(_put_together, parts)

    async def _with_leaves(self, upload: Upload, entries: Sequence[Entry]) -> tuple[Upload, Sequence[Entry], int]:
        """The entries of the manifest, and its level. Leaves are put once: with others it would be another manifest."""
        each = self._operations.leaf_entries
        if len(entries) <= each:
            return upload, entries, 0
        known = [_entry_of(one) for one in upload.document["leaves"]]
        if not known:
            plan = replace(upload.plan(), properties=Properties(0))
            put = [
                await self._operations.put_leaf(entries[at : at + each], plan, upload.reserved)
                for at in range(0, len(entries), each)
            ]
            upload = await self._advance(upload, leaves=[_packed_entry(one) for one in put])
            known = [_entry_of(one) for one in upload.document.get("leaves", ())]
            if known != put:
                # Another process was faster.
                self._reclaim(put, plan.expires_at_ms)
        return upload, known, 1

    async def _finish(
        self, upload: Upload, name: Name | None, condition: Condition, entries: Sequence[Entry], level: int,
        listed: str,
    ) -> Upload:  # fmt: skip
        """Steps 2 and 3; or the upload as it is by now, if another process went on with it."""
        version = (int(upload.document["version"][0]), int(upload.document["version"][1]))
        size = sum(entry.size for entry in entries)
        plan = upload.plan()
        chosen = replace(plan.properties, size=size, digests={"crc32": b64decode(upload.document["crc32"])})
        plan = replace(plan, properties=chosen if name is None else name.properties(chosen, version))
        attempt = int(upload.document["attempt"])
        try:
            blob_id = await self._operations.put_manifest(entries, level, plan, upload.reserved, attempt)
        except BlobCollision:
            raise
        except AmbryError:
            if attempt + 1 == len(upload.reserved.manifest_ids):
                raise
            given_up = upload.reserved.manifest_ids[attempt]
            upload = await self._advance(upload, attempt=attempt + 1)
            # Not so if another process is at the same attempt with other leaves, or has completed it.
            if int(upload.document.get("attempt", 0)) > attempt:
                self._operations.reclaimer.add([given_up], plan.expires_at_ms)
            return upload
        named = None
        if name is not None:
            key = name.key
            row = NameRow(
                key.account, key.container, key.name, *version, RowKind.PUT, blob_id, size, plan.created_ms,
                min(plan.expires_at_ms, FOREVER),
            )  # fmt: skip
            named = (row, condition)
        now_ms = self._clock.now_ms()
        document = {
            "epoch": upload.document["epoch"], "blob": text_from_binary(blob_id), "named_version": "{version}",
            "list": listed, "size": size, "crc32": upload.document["crc32"],
        }  # fmt: skip
        done = (json.dumps(document), now_ms + UPLOAD_KEPT_MS)
        upload_id, known = upload.row.upload_id, upload.row.details
        outcome = await self._database.write(
            lambda session: uploads.complete(session, upload_id, known, done, named, now_ms)
        )
        if outcome is None:
            return await self.find(upload_id)
        if outcome[1] is not None:
            self._versions.observe(outcome[1].version)
        return _upload_of(outcome[0])

    async def _advance(self, upload: Upload, **members: object) -> Upload:
        """Note a step of a completion; the upload as it is then, which may be another process's doing."""
        upload_id, known, details = upload.row.upload_id, upload.row.details, upload.changed(**members)
        row = await self._database.write(lambda session: uploads.change_completion(session, upload_id, known, details))
        return _upload_of(row)

    async def _check_name(self, name: Name, condition: Condition) -> None:
        now_ms = self._clock.now_ms()
        current = await self._database.read(lambda session: read_current(session, name.key))
        condition.check_put(etags_of(current, now_ms))

    # --- giving up -----------------------------------------------------------------------------------------------

    async def abort(self, upload: Upload) -> None:
        """Give an upload up; its chunks are collected within minutes. Raises NoSuchUpload, NotAllowed."""
        await self._database.write(lambda session: uploads.abort(session, upload.row.upload_id))

    async def collect(self) -> None:
        """Tombstone the chunks of uploads that were aborted or whose time is over, and forget those that ended.

        Every step may be repeated. An upload of another epoch is only forgotten: its blob may have been completed after
        the backup was made, and what no manifest lists is the sweeper's.
        """
        before_ms = self._clock.now_ms() - CLOCK_SKEW_MS_MAX
        after = b""
        while True:
            found, epoch = await self._database.read(
                lambda session: (uploads.find_finished(session, before_ms, after, UPLOAD_COLLECT_ROWS), _epoch(session))  # noqa: B023 -- awaited in this turn
            )
            for row in found:
                try:
                    await self._collect(_upload_of(row), epoch, before_ms)
                except AmbryError as error:
                    _log.warning("an upload was not collected", error=str(error))
            if len(found) < UPLOAD_COLLECT_ROWS:
                return
            after = found[-1].upload_id

    async def _collect(self, upload: Upload, epoch: str, before_ms: int) -> None:
        upload_id = upload.row.upload_id
        if upload.status is not UploadStatus.COMPLETED:
            await self._database.write(lambda session: uploads.abort(session, upload_id))
            is_ours = upload.document["epoch"] == epoch
            expires_at_ms = upload.plan().expires_at_ms
            if is_ours:
                leaves = [_entry_of(one).blob_id for one in upload.document.get("leaves", ())]
                await self._tombstone([*upload.reserved.manifest_ids, *leaves], expires_at_ms)
            while parts := await self.parts(upload, 0, UPLOAD_COLLECT_ROWS):
                if is_ours:
                    for part in parts:
                        await self._tombstone([entry.blob_id for entry in _entries_of(part)], expires_at_ms)
                last = parts[-1].part
                await self._database.write(lambda session: uploads.drop_parts(session, upload_id, last))  # noqa: B023 -- awaited in this turn
            self.collected += 1
        await self._database.write(lambda session: uploads.drop(session, upload_id, before_ms))

    async def _tombstone(self, blob_ids: Sequence[bytes], expires_at_ms: int) -> None:
        reclaimer = self._operations.reclaimer
        for at in range(0, len(blob_ids), _TOGETHER):
            await asyncio.gather(*(reclaimer.tombstone(one, expires_at_ms) for one in blob_ids[at : at + _TOGETHER]))

    def _reclaim(self, entries: Sequence[Entry], expires_at_ms: int) -> None:
        self._operations.reclaimer.add([entry.blob_id for entry in entries], expires_at_ms)


# --- rows and what they say ------------------------------------------------------------------------------------


def _upload_of(row: UploadRow) -> Upload:
    return Upload(row, json.loads(row.details))


def _epoch(session: Session) -> str:
    found = session.row("SELECT value FROM store WHERE key = 'epoch'")
    return "" if found is None else str(found[0])


def digests_of(part: PartRow) -> dict[str, bytes]:
    """The digests that were made of a part."""
    return {name: b64decode(text) for name, text in json.loads(part.details)["digests"].items()}


def _packed(entries: Sequence[Entry]) -> bytes:
    """The chunks of a part, as a manifest has them."""
    return encode_manifest(0, entries)


def _entries_of(part: PartRow) -> tuple[Entry, ...]:
    text = json.loads(part.details)["entries"]
    return decode_manifest(b64decode(text)).entries if text else ()


def _packed_entry(entry: Entry) -> str:
    return b64encode(_packed([entry])).decode()


def _entry_of(text: str) -> Entry:
    return decode_manifest(b64decode(text)).entries[0]


def _put_together(parts: Sequence[PartRow]) -> _Chosen:
    """Chunks, size and CRC-32 of parts one behind the other."""
    entries = tuple(entry for part in parts for entry in _entries_of(part))
    crc32 = join_all((int.from_bytes(digests_of(part)["crc32"], "big"), part.size) for part in parts)
    return _Chosen(entries, sum(part.size for part in parts), crc32)


def _check_whole(chosen: _Chosen, crc32: bytes | None) -> None:
    """Raises BadRequest, TooLarge, BadDigest."""
    if not chosen.entries:
        raise BadRequest("a blob in parts has one byte at least; store an empty one with PUT", field="parts")
    if chosen.size > BLOB_BYTES_MAX:
        raise TooLarge(f"a blob has {BLOB_BYTES_MAX} bytes at most")
    if crc32 is not None and int.from_bytes(crc32, "big") != chosen.crc32:
        raise BadDigest("the parts together have another crc32 than the one sent", field="crc32")
