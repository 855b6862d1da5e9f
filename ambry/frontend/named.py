"""The named part of the native HTTP API: `/named/ACCOUNT/CONTAINER/NAME`, lists, versions, moves and copies.

A name is resolved to a blob id, and what is answered then is what native.py answers for that id, with two headers more
and a `Cache-Control` that makes caches ask. This module knows aiohttp's requests and the headers of names; what is done
is in named_operations.py, how lists look in named_answers.py, what a name is in `ambry.names`.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final, TypeAlias
from urllib.parse import unquote, unquote_to_bytes

from aiohttp import web

from ambry.access.accounts import Container, NamedBlobs
from ambry.access.keys import Right
from ambry.blob.blob_id import text_from_binary
from ambry.errors import (
    BadRequest,
    BlobDeleted,
    BlobNotFound,
    Forbidden,
    MethodNotAllowed,
    NameStoreUnavailable,
    NoSuchPath,
    TooLarge,
    Unavailable,
)
from ambry.frontend import answers
from ambry.frontend.access import check_secure_path
from ambry.frontend.answers import Answer, Headers
from ambry.frontend.call import Call, RequestBody, Route, body_size, get_option, let_continue
from ambry.frontend.conditions import parse_etags
from ambry.frontend.connection import BodyResponse, Connection, Services
from ambry.frontend.digests import render_repr_digest
from ambry.frontend.headers import expiry, parse_ttl
from ambry.frontend.named_answers import page_json, versions_json
from ambry.frontend.named_feed import encode_page, hand_out, parse_place
from ambry.frontend.named_operations import Name, NamedBlob, NamedOperations
from ambry.frontend.policy import check_ttl
from ambry.frontend.put import PutPlan
from ambry.limits import NAME_LIST_COUNT_MAX
from ambry.names.changes import Condition
from ambry.names.lists import Query
from ambry.names.name import check_text, format_path, parse_path
from ambry.names.rows import NameRow, parse_version

PREFIX: Final = "/named/"
UPSERT: Final = "x-ambry-named-upsert"
MOVE_FROM: Final = "x-ambry-named-move-from"
COPY_FROM: Final = "x-ambry-named-copy-from"

_OF_LISTS: Final = frozenset({"prefix", "delimiter", "start-after", "page", "max-keys", "versions"})
_OF_NAMES: Final = frozenset({"version", "versions"})

Respond: TypeAlias = Callable[[Call], Awaitable[web.StreamResponse]]
MakePlan: TypeAlias = Callable[[Call, Container], tuple[PutPlan, int, Headers]]


@dataclass(frozen=True, slots=True)
class Blobs:
    """What the native API does with a blob whose id is known, and what it makes of an upload's headers."""

    get: Respond
    head: Respond
    put_plan: MakePlan


class NamedApi:
    """Operations on names by path and method."""

    __slots__ = ("_blobs", "_list_routes", "_name_routes", "_services", "feed_routes")

    def __init__(self, services: Services, blobs: Blobs) -> None:
        self._services = services
        self._blobs = blobs
        listing = Route("list_names", self._list)
        self._list_routes = {"GET": listing, "HEAD": listing}
        self.feed_routes = {"GET": Route("names_feed", self._feed)}
        self._name_routes = {
            "GET": Route("get_named", self._get),
            "HEAD": Route("head_named", self._head),
            "PUT": Route("put_named", self._put),
            "DELETE": Route("delete_named", self._delete),
        }

    def find(self, method: str, path: str) -> tuple[Route, str]:
        """The operation behind a path that begins with PREFIX. Raises NoSuchPath, MethodNotAllowed."""
        parts = path[len(PREFIX) :].split("/", 2)
        if len(parts) < 2 or not parts[0] or not parts[1]:
            raise NoSuchPath("a named path is /named/ACCOUNT/CONTAINER, or /named/ACCOUNT/CONTAINER/NAME")
        routes = self._name_routes if len(parts) == 3 and parts[2] else self._list_routes
        found = routes.get(method)
        if found is None:
            raise MethodNotAllowed("the path does not know this method", allow=", ".join(routes))
        return found, path

    @property
    def operations(self) -> set[tuple[str, str]]:
        """(method, path) of everything that is answered, as the OpenAPI description has them."""
        listing = "/named/{account}/{container}"
        found = {(method, listing) for method in self._list_routes}
        return found | {(method, listing + "/{name}") for method in self._name_routes}

    # --- reading -----------------------------------------------------------------------------------------------

    async def _get(self, call: Call) -> web.StreamResponse:
        query = query_of(call, _OF_NAMES)
        if "versions" in query:
            name = self._name(call, Right.LIST)
            return self._json(call, versions_json(await self._names.versions_of(name.key)))
        return await self._read(call, query, self._blobs.get)

    async def _head(self, call: Call) -> web.StreamResponse:
        return await self._read(call, query_of(call, frozenset({"version"})), self._blobs.head)

    async def _read(self, call: Call, query: dict[str, bytes], respond: Respond) -> web.StreamResponse:
        """Find the blob behind a name and answer with it."""
        name = self._name(call, Right.READ)
        named = await self._find(call, name, query)
        try:
            return await respond(_call_for(call, name.container, named))
        except (BlobNotFound, BlobDeleted) as error:
            # The name may have got another blob between the two look-ups.
            again = await self._find(call, name, query)
            if again.blob_id != named.blob_id:
                return await respond(_call_for(call, name.container, again))
            if isinstance(error, BlobNotFound):
                # The row is the proof that the blob was stored.
                raise Unavailable("the name has a blob that no replica has") from error
            raise

    async def _find(self, call: Call, name: Name, query: dict[str, bytes]) -> NamedBlob:
        if "version" in query:
            return await self._names.find_version(name.key, parse_version(_ascii(query, "version")))
        return await self._names.find(name.key, get_option(call))

    async def _list(self, call: Call) -> web.StreamResponse:
        sent = query_of(call, _OF_LISTS)
        account, container_name, *_ = call.subject[len(PREFIX) :].split("/", 2)
        container = self._container(call, account, container_name, Right.LIST)
        query = Query(
            container.account,
            container.number,
            check_text(sent.get("prefix", b"")),
            check_text(sent.get("delimiter", b"")),
            check_text(sent.get("start-after", b"")),
            _ascii(sent, "page") if sent.get("page") else None,
            _count(sent),
        )
        if "versions" in sent:
            return self._json(call, versions_json(await self._names.list_versions(query)))
        page = await self._names.list(query)
        return self._json(call, page_json(page))

    async def _feed(self, call: Call) -> web.StreamResponse:
        """Rows for another datacentre, for whoever may read everything."""
        call.caller.admit_over(None, Right.READ)
        sent = query_of(call, frozenset({"datacentre", "epoch", "after"}))
        for key in ("datacentre", "epoch", "after"):
            if key not in sent:
                raise BadRequest(f"{key} is missing", field=key)
        reader = sent["datacentre"]
        if not reader.isdigit() or len(reader) > 5:
            raise BadRequest("datacentre is the number of who asks", field="datacentre")
        epoch, after = _ascii(sent, "epoch"), parse_place(_ascii(sent, "after"))
        page = await hand_out(self._names.database, int(reader), epoch, after, call.now_ms)
        return self._json(call, encode_page(page))

    # --- writing -----------------------------------------------------------------------------------------------

    async def _put(self, call: Call) -> web.StreamResponse:
        headers = call.request.headers
        query_of(call, frozenset())
        name = self._name(call, Right.WRITE)
        condition = condition_of(call, name.container)
        move_from, copy_from = _single(call, MOVE_FROM), _single(call, COPY_FROM)
        if move_from is None and copy_from is None:
            return await self._upload(call, name, condition)
        if move_from is not None and copy_from is not None:
            raise BadRequest(f"{MOVE_FROM} or {COPY_FROM}, not both", field=COPY_FROM)
        if call.caller.url is not None:
            # The headers are not signed, so they could name anything that the key may read or delete.
            raise Forbidden("a signed URL is good for an upload, not for a move or a copy")
        if body_size(call.request) != 0:
            raise BadRequest("a move or a copy has no body", field="body")
        if move_from is not None:
            call.caller.admit(name.container.owner, Right.DELETE)
            source = Name(name.container, parse_path(move_from))
            row = await self._names.move(source, name, condition)
            return self._created(call, name, row, [])
        assert copy_from is not None
        source_name, version = self._copy_source(call, copy_from)
        ttl = headers.get("x-ambry-ttl")
        expires_at_ms = expiry(None if ttl is None else parse_ttl(ttl), call.now_ms)
        warnings = check_ttl(name.container.policy, expires_at_ms, call.now_ms)
        found = await (
            self._names.find(source_name.key, get_option(call))
            if version is None
            else self._names.find_version(source_name.key, version)
        )
        row = await self._names.copy(found, name, condition, expires_at_ms, lambda: is_gone(call))
        return self._created(call, name, row, warnings)

    async def _upload(self, call: Call, name: Name, condition: Condition) -> web.StreamResponse:
        plan, size_max, warnings = self._blobs.put_plan(call, name.container)
        if plan.size is not None and plan.size > size_max:
            raise TooLarge(f"a blob has {size_max} bytes at most here")
        let_continue(call.request)
        body = RequestBody(call.request, self._services, size_max)
        row = await self._names.put(name, body, plan, condition, lambda: is_gone(call))
        if plan.check is not None:
            warnings = [*warnings, ("Repr-Digest", render_repr_digest(plan.check.verify()))]
        return self._created(call, name, row, warnings)

    async def _delete(self, call: Call) -> web.StreamResponse:
        query = query_of(call, frozenset({"version"}))
        name = self._name(call, Right.DELETE)
        if "version" in query:
            await self._names.purge(name, parse_version(_ascii(query, "version")))
            marker = None
        else:
            marker = await self._names.delete(name, _deletecondition_of(call))
        answer = answers.empty_answer(202, self._services.clock.now_ms(), call.request_id)
        lines = [] if marker is None else [(answers.NAMED_VERSION, marker.version_text)]
        return BodyResponse(Answer(202, answer.headers + lines))

    async def extend(self, call: Call, ttl_s: int | None) -> web.StreamResponse:
        """Let what the name in the subject stands for, and the name, live longer. None is for ever."""
        name = self._subject_sent(call, Right.WRITE)
        expires_at_ms = expiry(ttl_s, call.now_ms)
        warnings = check_ttl(name.container.policy, expires_at_ms, call.now_ms)
        return self._changed(call, await self._names.extend(name.key, expires_at_ms), warnings)

    async def undelete(self, call: Call) -> web.StreamResponse:
        """Take the last delete of the name in the subject back, or that of its blob by id."""
        name = self._subject_sent(call, Right.DELETE)
        return self._changed(call, await self._names.undelete(name), [])

    # --- steps -------------------------------------------------------------------------------------------------

    @property
    def _names(self) -> NamedOperations:
        """Raises NameStoreUnavailable where this frontend has no name store."""
        names = self._services.names
        if names is None:
            raise NameStoreUnavailable("this frontend has no name store", is_certain=True)
        return names

    def _name(self, call: Call, right: Right) -> Name:
        """The name in the path, in a container in which the caller has a right."""
        account, container, text = call.subject[len(PREFIX) :].split("/", 2)
        return Name(self._container(call, account, container, right), parse_path(text))

    def _subject_sent(self, call: Call, right: Right) -> Name:
        """The same for a path that was sent in a header. Raises BadRequest."""
        query_of(call, frozenset())
        parts = call.subject[len(PREFIX) :].split("/", 2)
        if len(parts) != 3 or not all(parts) or "?" in call.subject:
            raise BadRequest("a name is /named/ACCOUNT/CONTAINER/NAME", field="x-ambry-blob-id")
        return self._name(call, right)

    def _changed(self, call: Call, named: NamedBlob, more: Headers) -> web.StreamResponse:
        answer = answers.empty_answer(200, self._services.clock.now_ms(), call.request_id)
        lines = answers.named_lines(text_from_binary(named.blob_id), named.version_text)
        return BodyResponse(Answer(200, [*answer.headers, *lines, *more]))

    def _container(self, call: Call, account: str, container_name: str, right: Right) -> Container:
        """Raises UnknownContainer, Forbidden, PreconditionFailed."""
        container = call.enter(call.caller.admit_named(unquote(account), unquote(container_name), right))
        if container.policy.named_blobs is NamedBlobs.DISABLED:
            raise Forbidden("there are no names in this container")
        return container

    def _copy_source(self, call: Call, text: str) -> tuple[Name, tuple[int, int] | None]:
        """The name in `x-ambry-named-copy-from`, which the caller must be able to read."""
        path, _, query = text.partition("?")
        parts = path[len(PREFIX) :].split("/", 2)
        if not path.startswith(PREFIX) or len(parts) != 3 or (query and not query.startswith("version=")):
            raise BadRequest(f"{COPY_FROM} is a path /named/ACCOUNT/CONTAINER/NAME, as in a request", field=COPY_FROM)
        container = call.caller.admit_named(unquote(parts[0]), unquote(parts[1]), Right.READ)
        check_secure_path(container, is_secure=call.is_secure)
        return Name(container, parse_path(parts[2])), parse_version(query[len("version=") :]) if query else None

    def _created(self, call: Call, name: Name, row: NameRow, more: Headers) -> web.StreamResponse:
        path = f"{PREFIX}{name.container.account_name}/{name.container.name}/{format_path(name.name)}"
        now_ms = self._services.clock.now_ms()
        blob_id = text_from_binary(row.blob_id)
        answer = answers.created_named_answer(path, blob_id, row.version_text, row.created_ms, now_ms, call.request_id)
        return BodyResponse(Answer(201, answer.headers + more))

    def _json(self, call: Call, body: bytes) -> web.StreamResponse:
        now_ms = self._services.clock.now_ms()
        return BodyResponse(answers.text_answer(200, body, answers.JSON_TYPE, now_ms, call.request_id))


def _call_for(call: Call, container: Container, named: NamedBlob) -> Call:
    """The call that asks for the blob itself."""
    text = text_from_binary(named.blob_id)
    lines = answers.named_lines(text, named.version_text)
    return replace(call, subject=text, container=container, named_lines=lines)


def is_gone(call: Call) -> bool:
    """Whether the client has left, or sends no more, which is how leaving looks: nobody may learn of the name."""
    connection = call.request.protocol
    assert isinstance(connection, Connection)
    return connection.has_ended or connection.transport is None or connection.transport.is_closing()


# --- headers and queries ---------------------------------------------------------------------------------------


def query_of(call: Call, known: frozenset[str]) -> dict[str, bytes]:
    """Parameters of the query, percent-decoded. Raises BadRequest for one that is unknown or there twice.

    A misspelt `prefix` must not list, or a misspelt `version` not delete, something else than was meant.
    """
    found: dict[str, bytes] = {}
    text = call.request.rel_url.raw_query_string
    for part in text.split("&") if text else ():
        raw_key, _, raw_value = part.partition("=")
        key = unquote(raw_key)
        if key.startswith("x-ambry-"):
            # Of a signed URL; what it covers was checked.
            continue
        if key not in known:
            which = f"known are {', '.join(sorted(known))}" if known else "there is none here"
            raise BadRequest(f"an unknown parameter of the query; {which}", field=key[:64])
        if key in found:
            raise BadRequest(f"{key} was sent twice", field=key)
        found[key] = unquote_to_bytes(raw_value.replace("+", " ").encode("utf-8", "surrogateescape"))
    return found


def _ascii(query: dict[str, bytes], key: str) -> str:
    try:
        return query[key].decode("ascii")
    except UnicodeDecodeError as error:
        raise BadRequest(f"{key} has only ASCII characters", field=key) from error


def _count(query: dict[str, bytes]) -> int:
    """`max-keys`: more than a page may have is a page."""
    text = query.get("max-keys")
    if text is None:
        return NAME_LIST_COUNT_MAX
    if not text.isdigit() or len(text) > 9 or int(text) < 1:
        raise BadRequest("max-keys is a number from 1 on", field="max-keys")
    return min(int(text), NAME_LIST_COUNT_MAX)


def _single(call: Call, name: str) -> str | None:
    values = call.request.headers.getall(name, [])
    if len(values) > 1:
        raise BadRequest(f"{name} was sent twice", field=name)
    return values[0] if values else None


def condition_of(call: Call, container: Container) -> Condition:
    """What a put says about what is there. Raises BadRequest, Forbidden."""
    upsert = (_single(call, UPSERT) or "false").lower()
    if upsert not in {"true", "false"}:
        raise BadRequest(f"{UPSERT} is true or false", field=UPSERT)
    condition = replace(_deletecondition_of(call), upsert=upsert == "true")
    if container.policy.named_blobs is NamedBlobs.NO_UPDATE:
        if condition.if_match is not None:
            raise Forbidden("names of this container stand for one blob for ever")
        condition = Condition(if_none_match=condition.if_none_match)
    return condition


def _deletecondition_of(call: Call) -> Condition:
    headers = call.request.headers
    for name in ("If-Unmodified-Since", "If-Modified-Since"):
        if name in headers:
            # Ignored, a condition that does not hold would do harm; seconds are too coarse to judge by.
            raise BadRequest(f"a change of a name takes If-Match and If-None-Match, not {name}", field=name)
    return Condition(
        if_match=parse_etags(_joined(call, "If-Match"), "If-Match", is_strong=True),
        if_none_match=parse_etags(_joined(call, "If-None-Match"), "If-None-Match", is_strong=False),
    )


def _joined(call: Call, name: str) -> str | None:
    values = call.request.headers.getall(name, [])
    return ", ".join(values) if values else None
