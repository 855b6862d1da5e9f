"""What a frontend does with named blobs, without HTTP: put, find, delete, purge, move, copy.

A put stores the blob first, its properties saying account, container, name and version, and then writes the row: only
the row makes the name visible, and a blob that does not get one is taken back here, or by the collector of orphans if
this process dies in between. Changes without a blob (delete, purge, move) leave a zero-byte record of the same kind in
the logs before their row, so that the logs alone tell the whole history of names.

When the name store cannot say whether a row was written, the blob is left alone: it has a row, or the collector finds
out after a day that it has none.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ambry.access.accounts import Container
from ambry.blob.blob_id import Kind, binary_from_text, parse_binary
from ambry.blob.properties import Properties, encode_named
from ambry.blob.requests import Buffer
from ambry.blob.state import NEVER
from ambry.clock import Clock
from ambry.errors import (
    AmbryError,
    BadRequest,
    BlobDeleted,
    BlobExpired,
    BlobNotFound,
    DeadlineExceeded,
    NameDeleted,
    NameExpired,
    NameNotFound,
    NameStoreUnavailable,
    NotAllowed,
)
from ambry.frontend.headers import GetOption
from ambry.frontend.operations import Operations
from ambry.frontend.put import NOTHING, PutPlan, Source
from ambry.limits import NAME_CHECK_FIRST_BYTES, NAME_ORPHAN_AGE_MS, UPLOAD_DEADLINE_MS
from ambry.names import changes
from ambry.names.changes import Condition
from ambry.names.gather import PutGatherer
from ambry.names.lists import Page, Query, VersionPage, list_names, list_versions
from ambry.names.recent import RecentNames, read_with_position
from ambry.names.rows import Current, Key, NameRow, RowKind, Versions, effective, owns_its_blob, parse_version
from ambry.names.sql import FOREVER, Answer, Database, Job
from ambry.names.sqlite import SqliteDatabase


@dataclass(frozen=True, slots=True)
class NamedBlob:
    """What a name or one of its versions stands for."""

    blob_id: bytes
    version_text: str


@dataclass(frozen=True, slots=True)
class Name:
    """A name with its container."""

    container: Container
    name: bytes

    @property
    def key(self) -> Key:
        """The same in the name store."""
        return Key(self.container.account, self.container.number, self.name)

    def properties(self, properties: Properties, version: tuple[int, int]) -> Properties:
        """Properties of a record that belongs to this name."""
        return replace(
            properties,
            account_name=self.container.account_name,
            container_name=self.container.name,
            name=self.name.decode("utf-8"),
            name_version=version,
        )


class _Counted:
    """A body that counts itself, and says at its end whether whoever sent it is still there."""

    __slots__ = ("_source", "size")

    def __init__(self, source: Source) -> None:
        self._source = source
        self.size = 0

    async def read(self) -> bytes:
        """The next bytes."""
        piece = await self._source.read()
        self.size += len(piece)
        return piece


class _Pieces:
    """The bytes of a blob that is read, as the source of another one."""

    __slots__ = ("_next",)

    def __init__(self, following: Callable[[], Awaitable[Buffer]]) -> None:
        self._next = following

    async def read(self) -> bytes:
        """The next piece; a copy, since the reader takes its own back."""
        return bytes(await self._next())


class NamedOperations:
    """The operations of one frontend process on names."""

    __slots__ = ("_clock", "_datacentre", "_gatherer", "_operations", "database", "recent", "versions")

    def __init__(self, database: Database, operations: Operations, clock: Clock, datacentre: int) -> None:
        self.database = database
        self._operations = operations
        self._clock = clock
        self._datacentre = datacentre
        self.versions = Versions()
        self.recent = RecentNames(database.loop_reader()) if isinstance(database, SqliteDatabase) else None
        """Names at hand, where the store is embedded. The fast lane asks for them."""
        self._gatherer = PutGatherer(database, self.recent) if isinstance(database, SqliteDatabase) else None

    # --- put ---------------------------------------------------------------------------------------------------

    async def put(
        self, name: Name, source: Source, plan: PutPlan, condition: Condition, is_gone: Callable[[], bool]
    ) -> NameRow:
        """Store a body and let the name stand for it. Raises the errors of a put, NameExists, PreconditionFailed.

        `is_gone` says, when the body is stored, whether the client has left; then nothing is visible and nothing stays.
        """
        if plan.size is None or plan.size >= NAME_CHECK_FIRST_BYTES:
            # A body that would be refused afterwards is not worth taking.
            await self._check_put(name.key, condition)
        version = (self.versions.next(plan.created_ms), self._datacentre)
        counted = _Counted(source)
        plan = replace(plan, properties=name.properties(plan.properties, version), owner=name.container.owner)
        blob_id = binary_from_text((await self._operations.put(counted, plan)).encode("ascii"))
        row = _put_row(name.key, version, blob_id, counted.size, plan)
        self._check_stored(row, plan, is_gone)
        return await self._begin_write(row, plan, condition)

    def put_small(
        self,
        name: Name,
        body: Buffer,
        document: Mapping[str, Any],
        plan: PutPlan,
        condition: Condition,
        is_gone: Callable[[], bool],
        *,
        check: int = 0,
    ) -> "asyncio.Future[NameRow]":
        """The same for a body of at most CHUNK_BYTES_MAX that is here: futures and callbacks, no task of its own.

        `document` is what the plan's properties are in the record, with the size of the body; `check` as in
        Operations.put_small.
        """
        version = (self.versions.next(plan.created_ms), self._datacentre)
        container = name.container
        stored = self._operations.put_small(
            body,
            encode_named(document, container.account_name, container.name, name.name.decode("utf-8"), version),
            plan.created_ms,
            plan.expires_at_ms,
            container.owner,
            durability=plan.durability,
            check=check,
        )
        outcome: asyncio.Future[NameRow] = asyncio.get_running_loop().create_future()

        def write_row(stored: "asyncio.Future[str]") -> None:
            if _pass_error_on(stored, outcome):
                return
            row = _put_row(name.key, version, binary_from_text(stored.result().encode("ascii")), len(body), plan)
            try:
                self._check_stored(row, plan, is_gone)
            except AmbryError as error:
                outcome.set_exception(error)
                return
            self._begin_write(row, plan, condition).add_done_callback(end)

        def end(written: "asyncio.Future[NameRow]") -> None:
            if not _pass_error_on(written, outcome):
                outcome.set_result(written.result())

        stored.add_done_callback(write_row)
        return outcome

    def _check_stored(self, row: NameRow, plan: PutPlan, is_gone: Callable[[], bool]) -> None:
        """Whether a blob that is stored may get its row; otherwise it is taken back. Raises BadRequest, ..."""
        error: AmbryError | None = None
        if is_gone():
            error = BadRequest("the client closed the connection before the name was written", field="connection")
        elif self._clock.now_ms() - plan.created_ms > _row_deadline_ms(row.blob_id):
            # The collector might already take the blob for an orphan.
            error = DeadlineExceeded("the upload took longer than a name waits for it")
        if error is not None:
            self._take_back(row.blob_id, plan.expires_at_ms)
            raise error

    def _begin_write(self, row: NameRow, plan: PutPlan, condition: Condition) -> "asyncio.Future[NameRow]":
        """Write the row of a blob that was stored; without a row the blob is taken back."""
        now_ms = self._clock.now_ms()
        written: asyncio.Future[NameRow]
        if self._gatherer is not None:
            written = self._gatherer.put(row, condition, now_ms)
        else:
            job = self.database.write(lambda session: changes.put(session, row, condition, now_ms))
            written = asyncio.get_running_loop().create_task(job, name="put a name")
        written.add_done_callback(lambda written: self._end_write(row, plan, written))
        return written

    def _end_write(self, row: NameRow, plan: PutPlan, written: "asyncio.Future[NameRow]") -> None:
        if written.cancelled():
            # Nobody can say whether there is a row; the collector finds out.
            return
        error = written.exception()
        if error is None:
            self.versions.observe(written.result().version)
        elif not isinstance(error, NameStoreUnavailable) or error.facts.get("is_certain"):
            self._take_back(row.blob_id, plan.expires_at_ms)

    async def _check_put(self, key: Key, condition: Condition) -> None:
        now_ms = self._clock.now_ms()
        current = await self.database.read(lambda session: changes.read_current(session, key))
        condition.check_put(changes.etags_of(current, now_ms))

    def _take_back(self, blob_id: bytes, expires_at_ms: int) -> None:
        self._operations.reclaimer.add([blob_id], expires_at_ms)

    # --- find --------------------------------------------------------------------------------------------------

    async def find(self, key: Key, option: GetOption) -> NamedBlob:
        """What a name stands for. Raises NameNotFound, NameDeleted, NameExpired."""
        current = await self._find_current(key)
        if current.is_expired(self._clock.now_ms()) and not option.includes_expired:
            raise NameExpired("the name has expired")
        return NamedBlob(current.blob_id, current.version_text)

    async def _find_current(self, key: Key) -> Current:
        """Raises NameNotFound, NameDeleted."""
        recent = self.recent
        if recent is None:
            return await self.database.read(lambda session: changes.find(session, key))
        recent.begin_turn()
        current = recent.get((key.account, key.container, key.name))
        if current is not None:
            return current
        current, position = await self.database.read(lambda session: read_with_position(session, key))
        if current is None:
            return await self.database.read(lambda session: changes.find(session, key))
        recent.note(key, current, position)
        return current

    async def find_version(self, key: Key, version: tuple[int, int]) -> NamedBlob:
        """What one version of a name stands for. Raises NameNotFound, NameDeleted."""
        row = await self.database.read(lambda session: changes.find_version(session, key, version))
        return NamedBlob(row.blob_id, row.version_text)

    async def list(self, query: Query) -> Page:
        """A page of names."""
        now_ms = self._clock.now_ms()
        return await self.database.read(lambda session: list_names(session, query, now_ms))

    async def versions_of(self, key: Key) -> VersionPage:
        """All versions of one name, newest first."""
        return VersionPage(effective(await self.database.read(lambda session: changes.read_all(session, key))), None)

    async def list_versions(self, query: Query) -> VersionPage:
        """A page of versions."""
        return await self.database.read(lambda session: list_versions(session, query))

    # --- changes without a body --------------------------------------------------------------------------------

    async def delete(self, name: Name, condition: Condition) -> NameRow | None:
        """Let a name be gone. What it stood for can still be read by its version, until its retention is over.

        None: it was gone already. Raises NameNotFound, PreconditionFailed.
        """
        now_ms = self._clock.now_ms()
        current = await self._current_or_deleted(name.key)
        condition.check(changes.etags_of(current, now_ms))
        if current is None:
            return None
        version = (max(self.versions.next(now_ms), current.version + 1), self._datacentre)
        record = await self._put_record(name, Properties(0, name_kind=RowKind.MARKER), version)
        marker = _marker(name.key, version, record, now_ms)
        written = await self._write(lambda session: changes.delete(session, marker, condition, now_ms), record)
        if written is None:
            self._take_back(record, NEVER)
        else:
            self.versions.observe(written.version)
        return written

    async def purge(self, name: Name, version: tuple[int, int]) -> None:
        """Take one version away for good, and delete its blob. Raises NameNotFound, NotAllowed."""
        now_ms = self._clock.now_ms()
        key = name.key
        rows = await self.database.read(lambda session: changes.read_all(session, key))
        if not any((row.version, row.datacentre) == version for row in rows):
            raise NameNotFound("the name has no such version")
        record = await self._put_record(name, Properties(0, name_kind=RowKind.PURGE), version)
        freed = await self._write(lambda session: changes.purge(session, key, version, record, now_ms), record)
        if freed is not None:
            await self._delete_blob(freed)

    async def move(self, source: Name, target: Name, condition: Condition) -> NameRow:
        """Give what a name stands for another name of its container. Raises NameNotFound, NameExists, NotAllowed."""
        now_ms = self._clock.now_ms()
        current = await self._current_or_deleted(source.key)
        if current is None or current.is_expired(now_ms):
            raise NameNotFound("there is nothing under the name that is to be moved")
        await self._check_put(target.key, condition)
        version = (max(self.versions.next(now_ms), current.version + 1), self._datacentre)
        properties = Properties(
            0, name_kind=RowKind.MARKER, name_blob=current.blob_id, name_target=target.name.decode("utf-8")
        )
        record = await self._put_record(source, properties, version)
        marker = _marker(source.key, version, record, now_ms)
        moved = await self._write(
            lambda session: changes.move(session, marker, target.key, current.blob_id, condition, now_ms), record
        )
        self.versions.observe(moved.target.version)
        return moved.target

    async def copy(
        self, source: NamedBlob, target: Name, condition: Condition, expires_at_ms: int, is_gone: Callable[[], bool]
    ) -> NameRow:
        """Store the bytes of a blob once more, under another name: a copy is new bytes. Raises as get and put."""
        operations = self._operations
        blob = await operations.open(source.blob_id, GetOption.NONE, head_size=0)
        reader = operations.reader(blob, 0, blob.size)
        kept = blob.properties
        properties = Properties(
            0,
            content_type=kept.content_type,
            content_encoding=kept.content_encoding,
            filename=kept.filename,
            service_id=kept.service_id,
            owner_id=kept.owner_id,
            user_metadata=kept.user_metadata,
        )
        plan = PutPlan(properties, self._clock.now_ms(), expires_at_ms, blob.size)
        try:
            return await self.put(target, _Pieces(reader.next), plan, condition, is_gone)
        finally:
            await reader.close()

    # --- living on ---------------------------------------------------------------------------------------------

    async def extend(self, key: Key, expires_at_ms: int) -> NamedBlob:
        """Let what a name stands for live longer, and the name with it. Raises NameNotFound, ..., NotAllowed."""
        found = await self.find(key, GetOption.NONE)
        await self._operations.extend(found.blob_id, expires_at_ms)
        await self._extend_row(key, parse_version(found.version_text), expires_at_ms)
        return found

    async def extend_name_of(self, blob_id: bytes, expires_at_ms: int) -> None:
        """Let the name under which a blob was put live as long as the blob, which was extended by its id.

        One that was moved since has another name, which its record does not know.
        """
        stored = (await self._operations.stat(blob_id, GetOption.ALL)).properties
        if stored.name is None or stored.name_kind is not None:
            return
        owner = parse_binary(blob_id)
        key = Key(owner.account, owner.container, stored.name.encode("utf-8"))
        # Not by the version in the record: the row may have got a higher one.
        rows = await self.database.read(lambda session: changes.read_all(session, key))
        of_blob = next((row for row in rows if row.kind == RowKind.PUT and row.blob_id == blob_id), None)
        if of_blob is not None:
            with contextlib.suppress(NameNotFound):
                await self._extend_row(key, (of_blob.version, of_blob.datacentre), expires_at_ms)

    async def _extend_row(self, key: Key, version: tuple[int, int], expires_at_ms: int) -> None:
        now_ms = self._clock.now_ms()
        until_ms = _row_expiry(expires_at_ms)
        await self.database.write(lambda session: changes.extend(session, key, version, until_ms, now_ms))

    async def undelete(self, name: Name) -> NamedBlob:
        """Bring back what a name stood for before it was deleted, or its blob if that was deleted by its id.

        Raises NameNotFound if it never was, NameDeleted or BlobDeleted if nothing is left, NotAllowed if it lives.
        """
        key = name.key
        rows = await self.database.read(lambda session: changes.read_all(session, key))
        versions = effective(rows)
        if not versions:
            raise NameNotFound("there is nothing under this name")
        top = versions[0]
        if top.kind == RowKind.PUT:
            await self._operations.undelete(top.blob_id)
            return NamedBlob(top.blob_id, top.version_text)
        if top.passed_on:
            raise NotAllowed("the blob of this name has another name now")
        below = versions[1] if len(versions) > 1 else None
        if below is None or not owns_its_blob(below, rows):
            raise NameDeleted("the name was deleted, and nothing is left of what it stood for")
        await self.purge(name, (top.version, top.datacentre))
        return await self.find(key, GetOption.EXPIRED)

    # --- steps -------------------------------------------------------------------------------------------------

    async def _current_or_deleted(self, key: Key) -> Current | None:
        """What a name stands for, None if it was deleted. Raises NameNotFound if it never was."""
        found = await self.database.read(
            lambda session: (changes.read_current(session, key), changes.is_known(session, key))
        )
        if not found[1]:
            raise NameNotFound("there is nothing under this name")
        return found[0]

    async def _put_record(self, name: Name, properties: Properties, version: tuple[int, int]) -> bytes:
        plan = PutPlan(name.properties(properties, version), self._clock.now_ms(), NEVER, 0, owner=name.container.owner)
        return binary_from_text((await self._operations.put(NOTHING, plan)).encode("ascii"))

    async def _write(self, job: Job[Answer], record: bytes) -> Answer:
        """Write what a zero-byte record says; where that surely did not happen, the record is taken back."""
        try:
            return await self.database.write(job)
        except AmbryError as error:
            if not isinstance(error, NameStoreUnavailable) or error.facts.get("is_certain"):
                self._take_back(record, NEVER)
            raise

    async def _delete_blob(self, blob_id: bytes) -> None:
        """Delete a blob that lost its owner; one that is gone already is fine."""
        try:
            await self._operations.delete(blob_id)
        except (BlobNotFound, BlobDeleted, BlobExpired):
            return


def _put_row(key: Key, version: tuple[int, int], blob_id: bytes, size: int, plan: PutPlan) -> NameRow:
    return NameRow(
        key.account,
        key.container,
        key.name,
        *version,
        RowKind.PUT,
        blob_id,
        size,
        plan.created_ms,
        _row_expiry(plan.expires_at_ms),
    )


def _pass_error_on(done: "asyncio.Future[Any]", outcome: "asyncio.Future[NameRow]") -> bool:
    """Whether a step failed or was cancelled; then so is the outcome."""
    if outcome.done():
        return True
    if done.cancelled():
        outcome.cancel()
        return True
    error = done.exception()
    if error is not None:
        outcome.set_exception(error)
    return error is not None


def _marker(key: Key, version: tuple[int, int], record: bytes, now_ms: int) -> NameRow:
    return NameRow(key.account, key.container, key.name, *version, RowKind.MARKER, record, 0, now_ms)


def _row_deadline_ms(blob_id: bytes) -> int:
    """How long after the beginning of its upload a blob may get its row."""
    is_composite = blob_id[1] == Kind.COMPOSITE
    return NAME_ORPHAN_AGE_MS // 2 + (UPLOAD_DEADLINE_MS if is_composite else 0)


def _row_expiry(expires_at_ms: int) -> int:
    return min(expires_at_ms, FOREVER)
