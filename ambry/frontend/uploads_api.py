"""`/uploads`: uploads in parts over HTTP. What is done is upload_operations.py's; this module knows requests and JSON.

Whoever may write to the container of an upload may go on with it; the id, 128 random bits, is no secret.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote

from aiohttp import web

from ambry.access.accounts import Container, NamedBlobs
from ambry.access.keys import Right
from ambry.errors import BadDigest, BadRequest, Forbidden, MethodNotAllowed, NameStoreUnavailable, NoSuchPath, TooLarge
from ambry.frontend import answers
from ambry.frontend.access import admit_upload
from ambry.frontend.answers import Answer, Headers
from ambry.frontend.call import Call, RequestBody, Route, body_size, let_continue, owner_sent
from ambry.frontend.connection import BodyResponse, Services
from ambry.frontend.digests import render_base64, render_repr_digest
from ambry.frontend.headers import parse_put_headers
from ambry.frontend.json_in import parse_json
from ambry.frontend.named import PREFIX as NAMED
from ambry.frontend.named import MakePlan, condition_of, query_of
from ambry.frontend.named_operations import Name
from ambry.frontend.upload_operations import Upload, UploadOperations, digests_of
from ambry.limits import UPLOAD_LIST_BYTES_MAX, UPLOAD_PART_BYTES_MAX, UPLOAD_PARTS_MAX
from ambry.names.name import format_path, parse_path
from ambry.names.uploads import PartRow, UploadStatus

PATH: Final = "/uploads"
UPLOAD_NAME: Final = "x-ambry-upload-name"
UPLOAD_ID: Final = "x-ambry-upload-id"

_ID: Final = re.compile("[0-9a-f]{32}")
_ETAG: Final = re.compile('"?([0-9a-f]{16})"?')
_PARTS_PER_PAGE: Final = 1000


class UploadsApi:
    """Operations on uploads by path and method."""

    __slots__ = ("_create", "_of_part", "_of_upload", "_plan", "_services")

    def __init__(self, services: Services, put_plan: MakePlan) -> None:
        self._services = services
        self._plan = put_plan
        self._create = {"POST": Route("create_upload", self._begin)}
        self._of_upload = {
            "GET": Route("list_parts", self._list),
            "POST": Route("complete_upload", self._complete),
            "DELETE": Route("abort_upload", self._abort),
        }
        self._of_part = {"PUT": Route("put_part", self._put_part)}

    def find(self, method: str, path: str) -> tuple[Route, str]:
        """The operation behind a path that begins with PATH. Raises NoSuchPath, MethodNotAllowed."""
        parts = path.removeprefix(PATH).split("/")
        if parts[0] or len(parts) > 3 or not all(parts[1:]):
            raise NoSuchPath("a path of uploads is /uploads, /uploads/UPLOAD or /uploads/UPLOAD/PART")
        routes = (self._create, self._of_upload, self._of_part)[len(parts) - 1]
        found = routes.get(method)
        if found is None:
            raise MethodNotAllowed("the path does not know this method", allow=", ".join(routes))
        return found, path

    @property
    def operations(self) -> set[tuple[str, str]]:
        """(method, path) of everything that is answered, as the OpenAPI description has them."""
        paths = (PATH, f"{PATH}/{{upload}}", f"{PATH}/{{upload}}/{{part}}")
        routes = (self._create, self._of_upload, self._of_part)
        return {(method, path) for path, methods in zip(paths, routes, strict=True) for method in methods}

    # --- operations ----------------------------------------------------------------------------------------------

    async def _begin(self, call: Call) -> web.StreamResponse:
        """Its headers are those of the upload of the whole; the bytes and their digests come with the parts."""
        query_of(call, frozenset())
        uploads = self._uploads
        name = self._name_sent(call)
        container = call.enter(admit_upload(call.caller, owner_sent(call.request))) if name is None else name.container
        if body_size(call.request) != 0:
            raise BadRequest("the beginning of an upload in parts has no body", field="body")
        plan, _, warnings = self._plan(call, container)
        if plan.check is not None and call.caller.body_sha256 is None:
            raise BadRequest("digests belong to the parts of an upload in parts", field="repr-digest")
        # A condition is judged at the end; one that cannot be met is told here.
        upload = await uploads.create(container, name, condition_of(call, container), plan)
        body = _document(upload, [], None)
        location = [("Location", f"{PATH}/{upload.row.upload_id.hex()}"), (UPLOAD_ID, upload.row.upload_id.hex())]
        return self._json(call, 201, body, [*location, *warnings])

    async def _put_part(self, call: Call) -> web.StreamResponse:
        query_of(call, frozenset())
        upload, container = await self._entered(call)
        number = _number(call.subject.rpartition("/")[2])
        size = body_size(call.request)
        if (size or 0) > UPLOAD_PART_BYTES_MAX:
            raise TooLarge(f"a part has {UPLOAD_PART_BYTES_MAX} bytes at most")
        sent = parse_put_headers(call.request.headers.items())
        digests = dict(sent.digests)
        if call.caller.body_sha256 is not None:
            signed = bytes.fromhex(call.caller.body_sha256)
            if digests.setdefault("sha-256", signed) != signed:
                raise BadRequest("two sha-256 digests that differ", field="repr-digest")
        call.visit.is_over |= self._services.quotas.reserve(container, size or 0)
        let_continue(call.request)
        body = RequestBody(call.request, self._services, UPLOAD_PART_BYTES_MAX)
        part = await self._uploads.put_part(upload, number, body, size, digests, sent.wanted_digests)
        answer = answers.empty_answer(200, self._services.clock.now_ms(), call.request_id)
        lines = [("ETag", f'"{part.digest}"'), ("Repr-Digest", render_repr_digest(digests_of(part)))]
        return BodyResponse(Answer(200, answer.headers + lines))

    async def _list(self, call: Call) -> web.StreamResponse:
        query = query_of(call, frozenset({"after", "max-parts"}))
        upload, _ = await self._entered(call)
        after = _count(query, "after", 0, UPLOAD_PARTS_MAX)
        count = _count(query, "max-parts", _PARTS_PER_PAGE, 999_999_999)
        page = min(max(count, 1), _PARTS_PER_PAGE)
        parts = await self._uploads.parts(upload, after, page + 1)
        following = parts[page - 1].part if len(parts) > page else None
        return self._json(call, 200, _document(upload, parts[:page], following), [])

    async def _complete(self, call: Call) -> web.StreamResponse:
        query_of(call, frozenset())
        upload, container = await self._entered(call)
        let_continue(call.request)
        sent = parse_put_headers(call.request.headers.items()).digests
        unknown = sorted(set(sent) - {"crc32"})
        if unknown:
            raise BadRequest(f"parts do not tell the {unknown[0]} of the whole; crc32 can be sent", field="repr-digest")
        wanted = await self._listed(call)
        name = None if not upload.row.name else Name(container, upload.row.name)
        done = await self._uploads.complete(upload, name, wanted, condition_of(call, container), sent.get("crc32"))
        now_ms, created_ms = self._services.clock.now_ms(), upload.row.created_ms
        if name is None:
            answer = answers.created_answer(done.blob_id, created_ms, now_ms, call.request_id)
        else:
            path = f"{NAMED}{container.account_name}/{container.name}/{format_path(name.name)}"
            answer = answers.created_named_answer(
                path, done.blob_id, done.version_text, created_ms, now_ms, call.request_id
            )
        lines = [("x-ambry-blob-size", str(done.size)), ("Repr-Digest", f"crc32=:{done.document['crc32']}:")]
        return BodyResponse(Answer(201, answer.headers + lines))

    async def _abort(self, call: Call) -> web.StreamResponse:
        query_of(call, frozenset())
        upload, _ = await self._entered(call)
        await self._uploads.abort(upload)
        return BodyResponse(answers.empty_answer(202, self._services.clock.now_ms(), call.request_id))

    # --- steps ---------------------------------------------------------------------------------------------------

    @property
    def _uploads(self) -> UploadOperations:
        """Raises NameStoreUnavailable where this frontend has no name store."""
        uploads = self._services.uploads
        if uploads is None:
            raise NameStoreUnavailable("this frontend has no name store, which uploads in parts need", is_certain=True)
        return uploads

    async def _entered(self, call: Call) -> tuple[Upload, Container]:
        """The upload in the path, for somebody who may write there. Raises NoSuchUpload, Forbidden."""
        text = call.subject.removeprefix(PATH).split("/")[1]
        if not _ID.fullmatch(text):
            raise BadRequest("the id of an upload has 32 hexadecimal digits in lower case", field="upload")
        upload = await self._uploads.find(bytes.fromhex(text))
        return upload, call.enter(call.caller.admit(upload.owner, Right.WRITE))

    def _name_sent(self, call: Call) -> Name | None:
        """The name that the blob is to have. Raises BadRequest, UnknownContainer, Forbidden."""
        values = call.request.headers.getall(UPLOAD_NAME, [])
        if not values:
            return None
        if call.caller.url is not None:
            # The header is not signed, so it could be any name that the key may write.
            raise Forbidden("a signed URL is good for its path, not for a name in a header")
        parts = values[0].removeprefix(NAMED).split("/", 2)
        if len(values) > 1 or not values[0].startswith(NAMED) or len(parts) != 3 or not all(parts):
            raise BadRequest(
                f"{UPLOAD_NAME} is a path /named/ACCOUNT/CONTAINER/NAME, as in a request", field=UPLOAD_NAME
            )
        container = call.enter(call.caller.admit_named(unquote(parts[0]), unquote(parts[1]), Right.WRITE))
        if container.policy.named_blobs is NamedBlobs.DISABLED:
            raise Forbidden("there are no names in this container")
        return Name(container, parse_path(parts[2]))

    async def _listed(self, call: Call) -> Mapping[int, str]:
        """Number and entity tag of each part that the blob is made of. Raises BadRequest, BadDigest, TooLarge."""
        body = RequestBody(call.request, self._services, UPLOAD_LIST_BYTES_MAX)
        data = b""
        while piece := await body.read():
            data += piece
        wanted_sha256 = call.caller.body_sha256
        if wanted_sha256 is not None and _sha256(data) != wanted_sha256:
            raise BadDigest("the body is not the one that was signed", field="body")
        try:
            document = parse_json(data)
        except ValueError as error:
            raise BadRequest('the body is JSON: {"parts": [{"part": 1, "etag": "..."}, ...]}', field="body") from error
        parts = document.get("parts") if isinstance(document, dict) else None
        if not isinstance(parts, list) or not parts or len(parts) > UPLOAD_PARTS_MAX or set(document) != {"parts"}:
            raise BadRequest(f"the body lists 1 to {UPLOAD_PARTS_MAX} parts, and nothing else", field="parts")
        found: dict[int, str] = {}
        before = 0
        for one in parts:
            number, etag = (one.get("part"), one.get("etag")) if isinstance(one, dict) else (None, None)
            matched = _ETAG.fullmatch(etag) if isinstance(etag, str) else None
            if type(number) is not int or not before < number <= UPLOAD_PARTS_MAX or matched is None:
                raise BadRequest("parts are listed in order, each with part and etag as it was answered", field="parts")
            found[number] = matched[1]
            before = number
        return found

    def _json(self, call: Call, status: int, document: Mapping[str, Any], lines: Headers) -> web.StreamResponse:
        body = json.dumps(document).encode() + b"\n"
        now_ms = self._services.clock.now_ms()
        answer = answers.text_answer(status, body, answers.JSON_TYPE, now_ms, call.request_id)
        return BodyResponse(Answer(status, answer.headers + lines, answer.body))


_STATUS: Final = {
    UploadStatus.OPEN: "OPEN",
    UploadStatus.COMPLETING: "COMPLETING",
    UploadStatus.COMPLETED: "COMPLETED",
}


def _document(upload: Upload, parts: list[PartRow], following: int | None) -> dict[str, Any]:
    """What is told of an upload."""
    document: dict[str, Any] = {
        "uploadId": upload.row.upload_id.hex(),
        "status": _STATUS[upload.status],
        "name": upload.row.name.decode() or None,
        "createdMs": upload.row.created_ms,
        "deadlineMs": upload.row.deadline_ms,
        "parts": [
            {
                "part": part.part,
                "size": part.size,
                "etag": part.digest,
                "digests": {name: render_base64(digest) for name, digest in sorted(digests_of(part).items())},
            }
            for part in parts
        ],
        "nextAfter": following,
    }
    if upload.status is UploadStatus.COMPLETED:
        document["blobId"] = upload.blob_id
        document["version"] = upload.version_text or None
    return document


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and 1 <= int(text) <= UPLOAD_PARTS_MAX):
        raise BadRequest(f"parts are numbered from 1 to {UPLOAD_PARTS_MAX}", field="part")
    return int(text)


def _count(query: Mapping[str, bytes], key: str, default: int, limit: int) -> int:
    text = query.get(key)
    if text is None:
        return default
    if not text.isdigit() or len(text) > 9 or int(text) > limit:
        raise BadRequest(f"{key} is a number", field=key)
    return int(text)
