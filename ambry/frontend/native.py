"""The native HTTP API over aiohttp: from a request to an operation, and from its outcome to a response.

Paths and headers are Ambry's. This module decides nothing about blobs (operations.py), headers (headers.py), ranges and
conditions (conditions.py) or statuses (answers.py); it knows aiohttp's requests and responses, and when a connection
has to be broken so that no client takes half a body for a whole one.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from aiohttp import HttpVersion10, web
from aiohttp.web_request import BaseRequest

from ambry.access.accounts import Container, Durability
from ambry.access.keys import Right
from ambry.access.signatures import CONTENT_SHA256
from ambry.blob.requests import Buffer
from ambry.errors import (
    AmbryError,
    BadRequest,
    Forbidden,
    MethodNotAllowed,
    NoSuchPath,
    PreconditionFailed,
    TooLarge,
)
from ambry.frontend import answers, conditions, openapi
from ambry.frontend.access import admit_upload
from ambry.frontend.accounts_api import AccountsApi
from ambry.frontend.answers import Answer, Headers
from ambry.frontend.batch import BatchReads
from ambry.frontend.batch_put import BatchPut
from ambry.frontend.call import (
    Call,
    Methods,
    RequestBody,
    Route,
    admitted,
    body_size,
    get_option,
    is_quorum,
    let_continue,
    owner_sent,
    started,
)
from ambry.frontend.chunks_api import ChunksApi
from ambry.frontend.cluster_api import ClusterApi
from ambry.frontend.conditions import ByteRange, Multipart, Outcome
from ambry.frontend.connection import BodyResponse, Services
from ambry.frontend.digests import DigestCheck, parse_wanted, render_repr_digest
from ambry.frontend.form import FormBody, is_form
from ambry.frontend.get import OpenBlob
from ambry.frontend.headers import check_lines, expiry, parse_put_headers, parse_resolves_empty, parse_ttl, required_ttl
from ambry.frontend.named import PREFIX as NAMED
from ambry.frontend.named import Blobs, NamedApi
from ambry.frontend.named_feed import PATH as NAMES_FEED
from ambry.frontend.placement import OWNER_AT
from ambry.frontend.policy import check_ttl, preflight_headers, with_policy
from ambry.frontend.put import PutPlan, Source
from ambry.frontend.shares import Visit
from ambry.frontend.signed_url import container_of_path, parse_url_wish
from ambry.frontend.uploads_api import PATH as UPLOADS
from ambry.frontend.uploads_api import UploadsApi
from ambry.limits import BLOB_BYTES_MAX, HEAD_DIGEST_BYTES_MAX, KIB, RANGE_DIGEST_BYTES_MAX
from ambry.logs import get_logger, request_scope
from ambry.metrics import CONTENT_TYPE as METRICS_TYPE
from ambry.metrics import OTHER

_log = get_logger(__name__)

_CLIENT_GONE: Final = 499
"""Status in the metrics for a request whose client did not wait for the answer."""

_ONE_WRITE_BYTES_MAX: Final = 64 * KIB
"""Bodies up to this are copied behind their headers; above it the copy costs more than a second write."""

_WANTED: Final = "Want-Content-Digest"
_QUOTA_WARNING: Final = "x-ambry-user-quota-warning"
_RESOLVES_EMPTY: Final = "x-ambry-resolve-range-on-empty-blob"
_CONDITIONS: Final = ("If-Match", "If-Unmodified-Since", "If-None-Match", "If-Modified-Since")


class NativeApi:
    """The operations of the native API by path and method. `handle` is aiohttp's handler."""

    __slots__ = (
        "_blob",
        "_fixed",
        "_named",
        "_of_blob",
        "_preflight_route",
        "_services",
        "_undelete_route",
        "_update_ttl_route",
        "_uploads",
    )

    def __init__(self, services: Services) -> None:
        self._services = services
        put = Route("put_blob", self._put_blob)
        health = Route("health_check", self._health_check)
        metrics = Route("metrics", self._metrics)
        blob_info = Route("blob_info", self._blob_info, Right.READ)
        user_metadata = Route("user_metadata", self._user_metadata, Right.READ)
        signed_url = Route("signed_url", self._signed_url)
        chunks, cluster, reads = ChunksApi(services), ClusterApi(services), BatchReads(services)
        segment = Route("segment", chunks.segment, Right.READ)
        self._preflight_route = Route("preflight", self._preflight)
        self._uploads = UploadsApi(services, self._named_plan)
        self._named = NamedApi(services, Blobs(self._get_blob, self._head_blob, self._named_plan))
        self._fixed: dict[str, Methods] = {
            "/": {"POST": put, "PUT": put},
            "/healthCheck": {"GET": health, "HEAD": health},
            "/metrics": {"GET": metrics, "HEAD": metrics},
            "/openapi.json": {"GET": Route("openapi", self._openapi)},
            "/signedUrl": {"GET": signed_url},
            "/updateTtl": {"PUT": Route("update_ttl", self._update_ttl_of)},
            "/undelete": {"PUT": Route("undelete_blob", self._undelete_of)},
            NAMES_FEED: self._named.feed_routes,
            **AccountsApi(services).routes(),
            "/batch/get": {"POST": Route("batch_get", reads.get)},
            "/batch/stat": {"POST": Route("batch_stat", reads.stat)},
            "/batch/delete": {"POST": Route("batch_delete", reads.delete)},
            "/batch/put": {"POST": Route("batch_put", self._batch_put)},
            "/peers": {"GET": Route("peers", cluster.peers)},
            "/getClusterMapSnapshot": {"GET": Route("cluster_map", cluster.cluster_map)},
            "/statsReport": {"GET": Route("stats_report", cluster.stats_report)},
        }
        self._update_ttl_route = Route("update_ttl", self._update_ttl, Right.WRITE)
        self._undelete_route = Route("undelete_blob", self._undelete_blob, Right.DELETE)
        self._blob: Methods = {
            "GET": Route("get_blob", self._get_blob, Right.READ),
            "HEAD": Route("head_blob", self._head_blob, Right.READ),
            "DELETE": Route("delete_blob", self._delete_blob, Right.DELETE),
        }
        self._of_blob: dict[str, Methods] = {
            "BlobInfo": {"GET": blob_info, "HEAD": blob_info},
            "UserMetadata": {"GET": user_metadata, "HEAD": user_metadata},
            "ttl": {"PUT": self._update_ttl_route},
            "Replicas": {"GET": Route("replicas", cluster.replicas, Right.READ)},
            "BlobChunkIds": {"GET": Route("chunk_ids", chunks.chunk_ids, Right.READ)},
            "Segment": {"GET": segment, "HEAD": segment},
            "undelete": {"PUT": self._undelete_route},
        }

    async def handle(self, request: BaseRequest) -> web.StreamResponse:
        """Answer a request. Whatever happens is answered, counted, or breaks the connection."""
        services = self._services
        began = services.clock.monotonic()
        request_id = services.request_ids.new()
        requests = services.metrics.requests
        requests.in_flight += 1
        label = OTHER
        status = _CLIENT_GONE
        visit = Visit(services.shares, began)
        size = 0
        try:
            with request_scope(request_id):
                try:
                    if request.version < HttpVersion10:
                        # The parser takes it, and an answer to it would have no head.
                        raise BadRequest("HTTP of a version that has no heads", field="request")
                    path, is_secure = services.access.without_prefix(request.rel_url.raw_path)
                    route, subject = self._find(request, path)
                    label = route.label
                    call = self._call(request, request_id, subject, visit, is_secure=is_secure)
                    response = await route.operation(admitted(call, route))
                except AmbryError as error:
                    response = self._failed(request, error, request_id)
            if visit.is_over and not response.prepared:
                response.headers[_QUOTA_WARNING] = "beyond the quota of the container, which is only tracked"
            if services.is_stopping:
                response.force_close()
            status = response.status
            size = _body_bytes(request, response)
            return response
        except Exception as error:
            status = _CLIENT_GONE if isinstance(error, ConnectionError) else 500
            raise
        finally:
            requests.in_flight -= 1
            now = services.clock.monotonic()
            visit.end(size, now)
            requests.observe(label, status, now - began)

    def _call(self, request: BaseRequest, request_id: str, subject: str, visit: Visit, *, is_secure: bool) -> Call:
        """The request, and who it comes from. Raises Unauthenticated."""
        services = self._services
        url, headers = request.rel_url, request.headers
        caller = services.access.caller(
            request.method, url.raw_path, url.raw_query_string, headers.getall("Authorization", []), headers.items
        )
        return Call(request, request_id, services.clock.now_ms(), subject, caller, visit, is_secure)

    def _find(self, request: BaseRequest, path: str) -> tuple[Route, str]:
        """The operation behind a path and a method.

        Raises NoSuchPath, MethodNotAllowed; HeadersTooLarge and BadRequest for lines that no operation takes.
        """
        check_lines(request.raw_headers)
        subject = ""
        if request.method == "OPTIONS":
            return self._preflight_route, path
        if path.startswith(NAMED):
            return self._named.find(request.method, path)
        if path == UPLOADS or path.startswith(UPLOADS + "/"):
            return self._uploads.find(request.method, path)
        methods = self._fixed.get(path)
        if methods is None:
            subject, slash, rest = path[1:].partition("/")
            if rest.startswith("Segment/"):
                rest = "Segment" if rest.count("/") == 1 else ""
            elif rest == "Segment":
                rest = ""
            methods = self._of_blob.get(rest) if slash else self._blob
        if methods is None or not path.startswith("/"):
            raise NoSuchPath("no operation has this path")
        found = methods.get(request.method)
        if found is None:
            raise MethodNotAllowed("the path does not know this method", allow=", ".join(methods))
        return found, subject

    def _failed(self, request: BaseRequest, error: AmbryError, request_id: str) -> web.StreamResponse:
        answer = answers.error_answer(error.as_answer(), self._services.clock.now_ms(), request_id)
        if request.writer.output_size > 0:
            # Headers are out. Nothing but a broken connection says that the rest does not come.
            _log.warning("an answer broke off", error=str(error))
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError("the answer broke off") from error
        if answer.status >= 500:
            _log.warning("request failed", status=answer.status, error=str(error), kind=error.name)
        response = BodyResponse(answer)
        if not request.content.is_eof():
            # The rest of the body is not worth reading, and the next request would come behind it.
            response.force_close()
        return response

    # --- put ---------------------------------------------------------------------------------------------------

    async def _put_blob(self, call: Call) -> web.StreamResponse:
        request = call.request
        container = call.enter(admit_upload(call.caller, owner_sent(request)))
        size_max = _size_max(call)
        if (body_size(request) or 0) > size_max:
            raise TooLarge(f"a blob has {size_max} bytes at most here")
        source: Source = RequestBody(request, self._services, size_max)
        if is_form(request):
            if call.caller.body_sha256 is not None:
                raise BadRequest("a form is signed as UNSIGNED-PAYLOAD", field=CONTENT_SHA256)
            let_continue(request)
            source = form = FormBody(request, self._services, size_max)
            plan, warnings = self._put_plan(call, container, await form.open(), None)
        else:
            plan, warnings = self._put_plan(call, container, request.headers.items(), body_size(request))
        call.visit.is_over |= self._services.quotas.reserve(container, plan.size or 0)
        let_continue(request)
        blob_id = await self._services.operations.put(source, plan)
        now_ms = self._services.clock.now_ms()
        answer = answers.created_answer(blob_id, call.now_ms, now_ms, call.request_id)
        headers = answer.headers + warnings
        if plan.check is not None:
            headers.append(("Repr-Digest", render_repr_digest(plan.check.verify())))
        return BodyResponse(Answer(answer.status, headers))

    async def _batch_put(self, call: Call) -> web.StreamResponse:
        """Many small blobs."""
        return await BatchPut(self._services, call).run()

    def _named_plan(self, call: Call, container: Container) -> tuple[PutPlan, int, Headers]:
        """The same for an upload under a name, and how large it may be."""
        plan, warnings = self._put_plan(call, container, call.request.headers.items(), body_size(call.request))
        call.visit.is_over |= self._services.quotas.reserve(container, plan.size or 0)
        return plan, _size_max(call), warnings

    @staticmethod
    def _put_plan(
        call: Call, container: Container, lines: Iterable[tuple[str, str]], size: int | None
    ) -> tuple[PutPlan, Headers]:
        """What is known of an upload from its header lines, and what its container finds wrong with it.

        Raises BadRequest where the container insists.
        """
        sent = parse_put_headers(lines)
        digests = dict(sent.digests)
        if call.caller.body_sha256 is not None:
            signed = bytes.fromhex(call.caller.body_sha256)
            if digests.setdefault("sha-256", signed) != signed:
                raise BadRequest("two sha-256 digests that differ", field=CONTENT_SHA256)
        expires_at_ms = sent.expires_at_ms(call.now_ms)
        warnings = check_ttl(container.policy, expires_at_ms, call.now_ms)
        check = DigestCheck(digests, sent.wanted_digests) if digests or sent.wanted_digests else None
        durability = max(
            sent.durability, container.policy.durability, key=lambda each: each is Durability.SYNCED_REMOTE
        )
        plan = PutPlan(sent.properties, call.now_ms, expires_at_ms, size, check, durability, container.owner)
        return plan, warnings

    # --- get ---------------------------------------------------------------------------------------------------

    async def _get_blob(self, call: Call) -> web.StreamResponse:
        """GET: the head of the blob is read together with what is known of it, unless it may not be wanted."""
        headers = call.request.headers
        blob_id, option = call.blob_id, get_option(call)
        specs = conditions.parse_range(headers.get("Range"))
        operations = self._services.operations
        is_plain = not specs and not any(name in headers for name in _CONDITIONS)
        share = operations.budget.piece_bytes() if is_plain else 0
        await operations.budget.enter(share, call.container.owner)
        try:
            blob = await operations.open(blob_id, option, head_size=share, is_quorum=is_quorum(call))
            operations.budget.give(share - len(blob.head))
            share = len(blob.head)
            if not is_plain and _is_not_modified(call, blob):
                return _not_modified(call, blob)
            ranges = _ranges(call, blob, specs)
            if ranges:
                return await self._send_ranges(call, blob, ranges)
            return await self._send_whole(call, blob)
        finally:
            operations.budget.give(share)

    async def _head_blob(self, call: Call) -> web.StreamResponse:
        """HEAD: the headers of the GET with the same headers."""
        specs = conditions.parse_range(call.request.headers.get("Range"))
        wanted = _wanted_digests(call)
        operations = self._services.operations
        option, quorum = get_option(call), is_quorum(call)
        if wanted:
            blob = await operations.open(call.blob_id, option, head_size=0, is_quorum=quorum)
        else:
            blob = await operations.stat(call.blob_id, option, is_quorum=quorum)
        if _is_not_modified(call, blob):
            return _not_modified(call, blob)
        ranges = _ranges(call, blob, specs)
        headers = self._partial(call, blob, ranges)[0] if ranges else _whole_headers(call, blob)
        one = ranges[0] if ranges else ByteRange(0, blob.size)
        if wanted and len(ranges) <= 1 and one.size <= HEAD_DIGEST_BYTES_MAX:
            headers.append(("Content-Digest", await self._digest(blob, one, wanted)))
        return BodyResponse(Answer(206 if ranges else 200, headers))

    async def _digest(self, blob: OpenBlob, one: ByteRange, wanted: frozenset[str]) -> str:
        """The digests of a range, which is read for them."""
        check = DigestCheck({}, wanted)
        reader = self._services.operations.reader(blob, one.start, one.stop)
        try:
            while piece := await reader.next():
                await check.update(piece)
        finally:
            await reader.close()
        return render_repr_digest(check.verify())

    async def _send_whole(self, call: Call, blob: OpenBlob) -> web.StreamResponse:
        headers = _whole_headers(call, blob)
        if len(blob.head) == blob.size <= _ONE_WRITE_BYTES_MAX:
            self._services.metrics.requests.bytes_out += blob.size
            return BodyResponse(Answer(200, headers, bytes(blob.head)))
        response = started(200, headers)
        await response.prepare(call.request)
        if blob.head:
            await self._write(response, blob.head)
        await self._send_bytes(response, blob, len(blob.head), blob.size)
        await response.write_eof()
        return response

    def _partial(self, call: Call, blob: OpenBlob, ranges: tuple[ByteRange, ...]) -> tuple[Headers, Multipart | None]:
        multipart = None
        if len(ranges) > 1:
            # Random, so that no blob can hold it on purpose.
            boundary = self._services.operations.chance.token(16).hex()
            multipart = Multipart(ranges, blob.size, blob.properties.content_type, boundary)
        size = ranges[0].size if multipart is None else multipart.size
        multipart_type = None if multipart is None else multipart.content_type
        common = _blob_headers(call, blob, size)
        headers = answers.partial_headers(common, blob.properties, ranges, multipart_type)
        return with_policy(headers, call.container.policy), multipart

    async def _send_ranges(self, call: Call, blob: OpenBlob, ranges: tuple[ByteRange, ...]) -> web.StreamResponse:
        headers, multipart = self._partial(call, blob, ranges)
        wanted = _wanted_digests(call)
        if wanted and multipart is None and ranges[0].size <= RANGE_DIGEST_BYTES_MAX:
            return await self._send_digested(call, headers, blob, ranges[0], wanted)
        response = started(206, headers)
        await response.prepare(call.request)
        for place, one in enumerate(ranges):
            if multipart is not None:
                await response.write(multipart.heads[place])
            await self._send_bytes(response, blob, one.start, one.stop)
        await response.write_eof(b"" if multipart is None else multipart.closing)
        return response

    async def _send_digested(
        self, call: Call, headers: Headers, blob: OpenBlob, one: ByteRange, wanted: frozenset[str]
    ) -> web.StreamResponse:
        """One range, with its digests before it."""
        async with self._services.operations.held(blob, one.start, one.stop) as data:
            check = DigestCheck({}, wanted)
            await check.update(data)
            response = started(206, [*headers, ("Content-Digest", render_repr_digest(check.verify()))])
            await response.prepare(call.request)
            await self._write(response, data)
            await response.write_eof()
        return response

    async def _send_bytes(self, response: web.StreamResponse, blob: OpenBlob, start: int, stop: int) -> None:
        reader = self._services.operations.reader(blob, start, stop)
        try:
            while piece := await reader.next():
                await self._write(response, piece)
        finally:
            await reader.close()

    async def _write(self, response: web.StreamResponse, piece: Buffer) -> None:
        """Write a piece and wait until the client has taken all but a little of it."""
        self._services.metrics.requests.bytes_out += len(piece)
        await response.write(piece)

    async def _blob_info(self, call: Call) -> web.StreamResponse:
        """All that is known of a blob, as headers."""
        blob = await self._services.operations.stat(call.blob_id, get_option(call), is_quorum=is_quorum(call))
        headers = _blob_headers(call, blob, 0) + answers.described_headers(blob.properties)
        return BodyResponse(Answer(200, with_policy(headers, call.container.policy)))

    async def _user_metadata(self, call: Call) -> web.StreamResponse:
        """The user metadata of a blob, as headers."""
        blob = await self._services.operations.stat(call.blob_id, get_option(call), is_quorum=is_quorum(call))
        answer = answers.empty_answer(200, call.now_ms, call.request_id)
        return BodyResponse(Answer(200, answer.headers + answers.user_metadata_headers(blob.properties)))

    # --- changes of a state ------------------------------------------------------------------------------------

    async def _delete_blob(self, call: Call) -> web.StreamResponse:
        await self._services.operations.delete(call.blob_id)
        return self._empty(202, call)

    async def _update_ttl(self, call: Call) -> web.StreamResponse:
        """The TTL counts from now; -1 is for ever."""
        return await self._extend(call, required_ttl(call.request.headers.items()))

    async def _extend(self, call: Call, ttl_s: int | None) -> web.StreamResponse:
        expires_at_ms = expiry(ttl_s, call.now_ms)
        warnings = check_ttl(call.container.policy, expires_at_ms, call.now_ms)
        await self._services.operations.extend(call.blob_id, expires_at_ms)
        if self._services.names is not None:
            await self._services.names.extend_name_of(call.blob_id, expires_at_ms)
        answer = answers.empty_answer(200, self._services.clock.now_ms(), call.request_id)
        return BodyResponse(Answer(200, answer.headers + warnings))

    async def _undelete_blob(self, call: Call) -> web.StreamResponse:
        await self._services.operations.undelete(call.blob_id)
        return self._empty(200, call)

    async def _update_ttl_of(self, call: Call) -> web.StreamResponse:
        """`PUT /updateTtl`, the original's way: `x-ambry-blob-id` says of what, and without a TTL it is for ever."""
        ttl = call.request.headers.get("x-ambry-ttl")
        ttl_s = None if ttl is None else parse_ttl(ttl)
        call = _with_subject_sent(call)
        if call.subject.startswith(NAMED):
            return await self._named.extend(call, ttl_s)
        return await self._extend(admitted(call, self._update_ttl_route), ttl_s)

    async def _undelete_of(self, call: Call) -> web.StreamResponse:
        """`PUT /undelete`, the same way: an id, or a name whose last delete is taken back."""
        call = _with_subject_sent(call)
        if call.subject.startswith(NAMED):
            return await self._named.undelete(call)
        return await self._undelete_blob(admitted(call, self._undelete_route))

    def _empty(self, status: int, call: Call) -> web.StreamResponse:
        return BodyResponse(answers.empty_answer(status, self._services.clock.now_ms(), call.request_id))

    # --- access ------------------------------------------------------------------------------------------------

    async def _signed_url(self, call: Call) -> web.StreamResponse:
        """A URL that its holder may use once and again until it expires, in `x-ambry-signed-url`."""
        caller = call.caller
        wish = parse_url_wish(call.request.headers, call.now_ms)
        if wish.url.method == "POST":
            named = None if wish.url.account_name is None else (wish.url.account_name, str(wish.url.container_name))
            admit_upload(caller, named)
        elif wish.blob_id is not None:
            caller.admit(wish.blob_id[OWNER_AT], Right.READ)
        else:
            caller.admit_named(*wish.named, Right.READ if wish.url.method == "GET" else Right.WRITE)
        signed = self._services.access.sign_url(caller, wish.url)
        answer = answers.empty_answer(200, self._services.clock.now_ms(), call.request_id)
        host = call.request.headers.get("Host", "")
        headers = [*answer.headers, ("x-ambry-signed-url", f"{call.request.scheme}://{host}{signed}")]
        return BodyResponse(Answer(200, [*headers, ("Cache-Control", "no-store")]))

    async def _preflight(self, call: Call) -> web.StreamResponse:
        """OPTIONS of any path: what pages of other sites may do with the container behind it."""
        snapshot = self._services.access.snapshot
        container = container_of_path(snapshot, call.subject)
        answer = answers.empty_answer(200, self._services.clock.now_ms(), call.request_id)
        wanted = call.request.headers.get("Access-Control-Request-Headers")
        policy = None if container is None else container.policy
        return BodyResponse(Answer(200, answer.headers + preflight_headers(policy, wanted)))

    # --- the process itself ------------------------------------------------------------------------------------

    async def _health_check(self, call: Call) -> web.StreamResponse:
        """GOOD as long as the process takes requests."""
        is_good = not self._services.is_stopping
        status, body = (200, b"GOOD") if is_good else (503, b"BAD")
        return BodyResponse(answers.text_answer(status, body, "text/plain", call.now_ms, call.request_id))

    async def _metrics(self, call: Call) -> web.StreamResponse:
        call.caller.admit_over(None, Right.READ)
        body = self._services.metrics.render()
        return BodyResponse(answers.text_answer(200, body, METRICS_TYPE, call.now_ms, call.request_id))

    @staticmethod
    async def _openapi(call: Call) -> web.StreamResponse:
        """The description of this API."""
        body = openapi.rendered()
        return BodyResponse(answers.text_answer(200, body, answers.JSON_TYPE, call.now_ms, call.request_id))

    @property
    def operations(self) -> set[tuple[str, str]]:
        """(method, path) of everything that is answered, as the OpenAPI description has them."""
        found = {(method, path) for path, methods in self._fixed.items() for method in methods}
        found |= {(method, "/{id}") for method in (*self._blob, "OPTIONS")}
        for rest, methods in self._of_blob.items():
            path = f"/{{id}}/{rest}" + ("/{segment}" if rest == "Segment" else "")
            found |= {(method, path) for method in methods}
        return found | self._named.operations | self._uploads.operations


# --- requests --------------------------------------------------------------------------------------------------


def _with_subject_sent(call: Call) -> Call:
    """The call about what `x-ambry-blob-id` names: an id, or the path of a name. Raises BadRequest, Forbidden."""
    if call.caller.url is not None:
        # The header is not signed, so it could be about anything.
        raise Forbidden("a signed URL is good for its path only")
    subject = call.request.headers.get("x-ambry-blob-id", "")
    if not subject:
        raise BadRequest("x-ambry-blob-id says of which blob: an id, or /named/ACCOUNT/CONTAINER/NAME",
                         field="x-ambry-blob-id")  # fmt: skip
    return replace(call, subject=subject if subject.startswith(NAMED) else subject.removeprefix("/"))


def _size_max(call: Call) -> int:
    """Bytes that an upload may have; a signed URL may say less."""
    url = call.caller.url
    return BLOB_BYTES_MAX if url is None or url.size_max is None else min(url.size_max, BLOB_BYTES_MAX)


def _wanted_digests(call: Call) -> frozenset[str]:
    """Digests of the content of the answer that the client asks for. Raises BadRequest."""
    wanted = call.request.headers.getall(_WANTED, [])
    return parse_wanted(", ".join(wanted), _WANTED) if wanted else frozenset()


def _is_not_modified(call: Call, blob: OpenBlob) -> bool:
    """Whether the client has the blob already. Raises PreconditionFailed, and BadRequest for malformed conditions."""
    headers = call.request.headers
    found = {name.lower(): ", ".join(headers.getall(name)) for name in _CONDITIONS if name in headers}
    outcome = conditions.evaluate(found, answers.etag_of(blob.text_id), blob.created_ms // 1000)
    if outcome is Outcome.FAILED:
        raise PreconditionFailed("the blob is not as If-Match or If-Unmodified-Since want it")
    return outcome is Outcome.NOT_MODIFIED


def _ranges(call: Call, blob: OpenBlob, specs: tuple[conditions.RangeSpec, ...]) -> tuple[ByteRange, ...]:
    """The ranges to send; empty for the whole blob. Raises RangeNotSatisfiable."""
    if_range = call.request.headers.get("If-Range")
    if specs and not blob.size and parse_resolves_empty(call.request.headers.get(_RESOLVES_EMPTY)):
        return ()
    if not specs or not conditions.range_applies(if_range, answers.etag_of(blob.text_id), blob.created_ms // 1000):
        return ()
    return conditions.resolve_ranges(specs, blob.size)


# --- responses -------------------------------------------------------------------------------------------------


def _blob_headers(call: Call, blob: OpenBlob, content_length: int) -> Headers:
    headers = answers.blob_headers(
        blob.text_id, blob.created_ms, blob.state, call.now_ms, call.request_id, content_length
    )
    return answers.named_headers(headers, call.named_lines) if call.named_lines else headers


def _whole_headers(call: Call, blob: OpenBlob) -> Headers:
    headers = _blob_headers(call, blob, blob.size) + answers.property_headers(blob.properties)
    return with_policy(headers, call.container.policy)


def _not_modified(call: Call, blob: OpenBlob) -> web.StreamResponse:
    """304, with the headers of the 200 that caches want."""
    kept = {"Date", "Server", "x-ambry-request-id", "ETag", "Last-Modified", "Cache-Control"}
    kept.update(name for name, _ in call.named_lines)
    headers = [line for line in _blob_headers(call, blob, 0) if line[0] in kept]
    return BodyResponse(Answer(304, with_policy(headers, call.container.policy)))


def _body_bytes(request: BaseRequest, response: web.StreamResponse) -> int:
    """Bytes of bodies that came and went with a request."""
    if request.method == "HEAD":
        return request.content.total_bytes
    # An answer whose length was not known beforehand has been sent by now.
    length = response.headers.get("Content-Length")
    return request.content.total_bytes + (response.body_length if length is None else int(length))
