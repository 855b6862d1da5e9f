"""The OpenAPI 3.1 description of the HTTP API, served at `/openapi.json`.

Written by hand, operation by operation, and held against the routes by a test and against the running server by
schemathesis. Headers are described once and named by the operations that read them.
"""

import json
from functools import cache
from typing import Any, Final, TypeAlias

from ambry import __version__
from ambry.blob.batch_format import CONTENT_TYPE
from ambry.limits import UPLOAD_PARTS_MAX

Document: TypeAlias = dict[str, Any]

_ID: Final = {"type": "string", "pattern": "^[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]$"}
_TTL: Final = {"type": "integer", "minimum": -1, "maximum": 3_162_240_000}


def _header(name: str, text: str, schema: Document | None = None, *, required: bool = False) -> Document:
    return {
        "name": name,
        "in": "header",
        "description": text,
        "required": required,
        "schema": schema or {"type": "string"},
    }


_PRINTABLE: Final = {"type": "string", "pattern": "^[!-~]([ -~]*[!-~])?$", "maxLength": 1000}

PARAMETERS: Final[Document] = {
    "id": {"name": "id", "in": "path", "required": True, "schema": _ID, "description": "A blob id."},
    "segment": {
        "name": "segment",
        "in": "path",
        "required": True,
        "schema": {"type": "integer", "minimum": 0, "maximum": 999_999_999},
        "description": "Number of a chunk, from 0 on.",
    },
    "range": _header(
        "Range",
        "`bytes=a-b`, `bytes=a-`, `bytes=-n`, or several of them.",
        {"type": "string", "pattern": "^bytes=[0-9]{1,15}-$"},
    ),
    "if-match": _header("If-Match", "Entity tags, one of which must be the blob's."),
    "if-none-match": _header("If-None-Match", "Entity tags, none of which may be the blob's."),
    "get-option": _header(
        "x-ambry-get-option",
        "Whether blobs that are gone are answered while their bytes are there.",
        {"type": "string", "enum": ["None", "Include_Expired_Blobs", "Include_Deleted_Blobs", "Include_All"]},
    ),
    "read": _header("x-ambry-read", "Join the states of a quorum first.", {"type": "string", "enum": ["quorum"]}),
    "account": _header("x-ambry-target-account-name", "Account of the blob; together with the container.", _PRINTABLE),
    "container": _header("x-ambry-target-container-name", "Container of the blob.", _PRINTABLE),
    "ttl": _header("x-ambry-ttl", "Seconds until it expires; -1 for ever.", _TTL),
    "ttl-required": _header("x-ambry-ttl", "Seconds from now until it expires; -1 for ever.", _TTL, required=True),
    "service-id": _header("x-ambry-service-id", "Who stores it.", _PRINTABLE),
    "owner-id": _header("x-ambry-owner-id", "Whose it is.", _PRINTABLE),
    "filename": _header("x-ambry-filename", "File name, given back on reads.", _PRINTABLE),
    "content-type": _header(
        "x-ambry-content-type",
        "Media type, given back on reads; counts more than Content-Type.",
        {"type": "string", "pattern": "^[a-z]{1,20}/[a-z]{1,20}$"},
    ),
    "want-repr-digest": _header(
        "Want-Repr-Digest",
        "Digests to compute and keep: md5, sha, sha-256, sha-512, crc32, crc32c, crc64nvme, xxh3.",
        {"type": "string", "pattern": "^(md5|sha|sha-256|sha-512|crc32|crc32c|crc64nvme|xxh3)=[0-9]$"},
    ),
    "want-content-digest": _header(
        "Want-Content-Digest",
        "Digests of the bytes of the answer: of one range of a GET up to 4 MiB, of a HEAD up to 256 MiB.",
        {"type": "string", "pattern": "^(md5|sha|sha-256|sha-512|crc32|crc32c|crc64nvme|xxh3)=[0-9]$"},
    ),
    "upsert": _header(
        "x-ambry-named-upsert", "Whether a name may get another blob.", {"type": "string", "enum": ["true", "false"]}
    ),
    "move-from": _header("x-ambry-named-move-from", "A name of the container, which this one replaces.", _PRINTABLE),
    "copy-from": _header("x-ambry-named-copy-from", "Path of a name, whose bytes this one gets.", _PRINTABLE),
    "subject": _header(
        "x-ambry-blob-id",
        "An id, or `/named/ACCOUNT/CONTAINER/NAME`.",
        {"type": "string", "pattern": _ID["pattern"]},
        required=True,
    ),
    "resolve-range": _header(
        "x-ambry-resolve-range-on-empty-blob",
        "Whether a range of an empty blob is all of it.",
        {"type": "string", "enum": ["true", "false"]},
    ),
    "upload-name": _header(
        "x-ambry-upload-name", "Path of the name that the blob gets, /named/ACCOUNT/CONTAINER/NAME.", _PRINTABLE
    ),
    "stats-type": _header(
        "x-ambry-stats-type", "What rows are of.", {"type": "string", "enum": ["ACCOUNT_REPORT", "PARTITION_REPORT"]}
    ),
}
"""Parameters by the name that operations use."""

_OF_READ: Final = ("id", "get-option", "read", "account", "container")
_OF_CONDITIONS: Final = ("range", "want-content-digest", "if-match", "if-none-match", "resolve-range")
_OF_UPLOAD: Final = ("ttl", "service-id", "owner-id", "filename", "content-type", "want-repr-digest")

SCHEMAS: Final[Document] = {
    "Error": {
        "type": "object",
        "required": ["code", "message", "request_id"],
        "properties": {
            "code": {"type": "string", "description": "Stable, for programs."},
            "message": {"type": "string", "description": "For people."},
            "request_id": {"type": "string"},
            "field": {"type": "string", "description": "What is to blame, where one value is."},
            "proof": {
                "type": "string",
                "enum": ["quorum", "replica", "name_store", "none"],
                "description": "Who vouches for it, of an answer about what is or is not there.",
            },
        },
    },
    "Node": {
        "type": "object",
        "required": ["name", "datacentre", "rack", "host", "port"],
        "properties": {
            "name": {"type": "string"},
            "datacentre": {"type": "string"},
            "rack": {"type": "string"},
            "host": {"type": "string"},
            "port": {"type": "integer"},
        },
    },
    "Usage": {
        "type": "object",
        "required": ["account", "container", "live_count", "live_bytes", "dead_count", "dead_bytes"],
        "properties": {
            "partition": {"type": "integer"},
            "account": {"type": "integer"},
            "container": {"type": "integer"},
            "account_name": {"type": ["string", "null"]},
            "container_name": {"type": ["string", "null"]},
            "live_count": {"type": "integer"},
            "live_bytes": {"type": "integer"},
            "dead_count": {"type": "integer", "description": "Deleted, not reclaimed yet."},
            "dead_bytes": {"type": "integer"},
        },
    },
}

_ERRORS: Final = {
    400: "A value cannot be used; `field` names it.",
    401: "Credentials are missing, or no good.",
    403: "The credentials do not allow this.",
    404: "There is nothing of this name.",
    405: "The path does not know the method.",
    409: "The state does not allow the change.",
    410: "The blob was deleted, or has expired.",
    412: "A condition does not hold.",
    413: "Larger than is allowed.",
    416: "No byte lies in the range.",
    429: "More than the container may ask; see Retry-After.",
    431: "Headers beyond their limit.",
    500: "The store made a mistake.",
    503: "Not now; see Retry-After.",
    507: "No space for another blob.",
}


def _refusal(status: int) -> Document:
    error = {"schema": {"$ref": "#/components/schemas/Error"}}
    return {"description": _ERRORS[status], "content": {"application/json": error}}


def operation(
    name: str,
    summary: str,
    answers: dict[int, Document],
    *,
    parameters: tuple[str, ...] = (),
    body: Document | None = None,
    errors: tuple[int, ...] = (),
    is_head: bool = False,
) -> Document:
    """One operation. Errors that any request may meet come by themselves."""
    always = (400, 401, 403, 412, 429, 431, 500, 503)
    refusals = {status: _refusal(status) for status in sorted({*always, *errors})}
    if is_head:
        refusals = {status: {"description": _ERRORS[status]} for status in refusals}
    document: Document = {
        "operationId": name,
        "summary": summary,
        "responses": {str(status): answer for status, answer in sorted({**refusals, **answers}.items())},
    }
    if parameters:
        document["parameters"] = [{"$ref": f"#/components/parameters/{one}"} for one in parameters]
    if body is not None:
        document["requestBody"] = body
    return document


def _says(text: str) -> Document:
    return {"description": text}


def _bytes(text: str, media_type: str = "*/*") -> Document:
    return {"description": text, "content": {media_type: {}}}


def _json(text: str, properties: Document) -> Document:
    schema = {"type": "object", "required": list(properties), "properties": properties}
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _upload() -> Document:
    form = {"type": "object", "required": ["Blob"], "properties": {"Blob": {"type": "string", "format": "binary"}}}
    return {
        "description": "The bytes, of any size, with a length or in chunks; or a form with the file as its last part.",
        "content": {"application/octet-stream": {}, "multipart/form-data": {"schema": form}},
    }


_IDS: Final[Document] = {
    "description": "One blob id a line, 10 000 at most.",
    "content": {"text/plain": {"schema": {"type": "string"}}},
}
_ITEMS: Final[Document] = {
    "description": "Items as docs/formats/batch.md has them.",
    "content": {CONTENT_TYPE: {"schema": {"type": "string", "format": "binary"}}},
}
_RETRIED: Final = (404, 410)


def _blob_paths() -> Document:
    read = (*_OF_READ, *_OF_CONDITIONS)
    whole, part, same = _bytes("The blob."), _bytes("Parts of it."), _says("The client has it already.")
    seen = {200: whole, 206: part, 304: same}
    stated = {status: _says(answer["description"]) for status, answer in seen.items()}
    state = ("id", "account", "container")
    segment = ("segment", *_OF_READ, "range")
    gone: Document = {"errors": _RETRIED}
    return {
        "/{id}": {
            "get": operation("get_blob", "A blob, or ranges of it", seen, parameters=read, errors=(*_RETRIED, 416)),
            "head": operation(
                "head_blob", "What GET would say", stated, parameters=read, errors=(*_RETRIED, 416), is_head=True
            ),
            "delete": operation("delete_blob", "Delete", {202: _says("Deleted.")}, parameters=state, **gone),
        },
        "/{id}/BlobInfo": {
            "get": operation("blob_info", "All that is known", {200: _says("Headers.")}, parameters=_OF_READ, **gone)
        },
        "/{id}/UserMetadata": {
            "get": operation(
                "user_metadata", "User metadata", {200: _says("Headers.")}, parameters=_OF_READ, errors=_RETRIED
            )
        },
        "/{id}/Segment/{segment}": {
            "get": operation(
                "segment",
                "One chunk of a composite blob",
                {200: _bytes("The chunk."), 206: part},
                parameters=segment,
                errors=(*_RETRIED, 416),
            )
        },
        "/{id}/BlobChunkIds": {
            "get": operation(
                "chunk_ids",
                "Ids of the chunks",
                {200: _json("In order.", {"blobChunkIds": {"type": "array", "items": _ID}})},
                parameters=_OF_READ,
                errors=_RETRIED,
            )
        },
        "/{id}/Replicas": {
            "get": operation(
                "replicas",
                "Where the blob's partition is kept",
                {200: _json("One for each replica.", {"partition": {"type": "integer"}, "replicas": _nodes()})},
                parameters=state,
            )
        },
        "/{id}/ttl": {
            "put": operation(
                "update_ttl",
                "Let a blob live longer",
                {200: _says("Done, durably.")},
                parameters=("ttl-required", *state),
                errors=(*_RETRIED, 409),
            )
        },
        "/{id}/undelete": {
            "put": operation(
                "undelete_blob",
                "Bring a deleted blob back",
                {200: _says("It lives.")},
                parameters=state,
                errors=(*_RETRIED, 409),
            )
        },
    }


def _nodes() -> Document:
    return {"type": "array", "items": {"$ref": "#/components/schemas/Node"}}


def _store_paths() -> Document:
    upload = operation(
        "put_blob",
        "Store a blob",
        {201: _says("Stored, durably; the id is in Location and x-ambry-blob-id.")},
        parameters=_OF_UPLOAD,
        body=_upload(),
        errors=(404, 413, 507),
    )
    items = {200: _bytes("An answer for each, and the end.", CONTENT_TYPE)}
    extended = operation(
        "update_ttl_of",
        "Let what a header names live longer; without a TTL for ever",
        {200: _says("Done, durably.")},
        parameters=("subject", "ttl", "account", "container"),
        errors=(*_RETRIED, 409),
    )
    undeleted = operation(
        "undelete_of",
        "Take the last delete of what a header names back",
        {200: _says("It lives.")},
        parameters=("subject", "account", "container"),
        errors=(*_RETRIED, 409),
    )
    return {
        "/updateTtl": {"put": extended},
        "/undelete": {"put": undeleted},
        "/": {"post": upload, "put": {**upload, "operationId": "put_blob_by_put"}},
        "/batch/get": {
            "post": operation("batch_get", "Many blobs", items, parameters=("get-option",), body=_IDS, errors=(413,))
        },
        "/batch/stat": {
            "post": operation(
                "batch_stat", "What is known of many blobs", items, parameters=("get-option",), body=_IDS, errors=(413,)
            )
        },
        "/batch/delete": {"post": operation("batch_delete", "Delete many blobs", items, body=_IDS, errors=(413,))},
        "/batch/put": {
            "post": operation("batch_put", "Store many small blobs", items, body=_ITEMS, errors=(404, 413, 507))
        },
    }


def _operators_paths() -> Document:
    usage = {
        "taken_ms": {"type": "integer"},
        "is_complete": {"type": "boolean"},
        "unreached": {"type": "array", "items": {"type": "string"}},
        "rows": {"type": "array", "items": {"$ref": "#/components/schemas/Usage"}},
    }
    cluster = {
        "fingerprint": {"type": "string"},
        "version": {"type": "integer"},
        "datacentres": {"type": "array"},
        "nodes": {"type": "array"},
        "partitions": {"type": "array"},
    }
    peers = operation(
        "peers", "Datanodes that share a partition with one", {200: _json("Peers.", {"peers": _nodes()})}, errors=(404,)
    )
    peers["parameters"] = [
        {"name": "name", "in": "query", "required": True, "schema": {"type": "string"}},
        {"name": "port", "in": "query", "schema": {"type": "integer", "minimum": 0, "maximum": 65_535}},
    ]
    feed = operation(
        "names_feed",
        "Rows of names in commit order, for the frontends of another datacentre",
        {
            200: _json(
                "A page.",
                {
                    "epoch": {"type": "string"},
                    "after": {"type": "string"},
                    "behindMs": {"type": "integer"},
                    "rows": {"type": "array", "items": {"type": "object"}},
                },
            )
        },
        errors=(404,),
    )
    feed["parameters"] = [
        {"name": "datacentre", "in": "query", "required": True, "schema": {"type": "integer", "minimum": 1}},
        {"name": "epoch", "in": "query", "required": True, "schema": {"type": "string"}},
        {"name": "after", "in": "query", "required": True, "schema": {"type": "string", "examples": ["0.0"]}},
    ]
    copied = operation(
        "accounts_feed",
        "All accounts, containers and keys, for the frontends of another datacentre",
        {
            200: _json(
                "One version; no tables if the reader has it.",
                {"epoch": {"type": "string"}, "version": {"type": "integer"}, "tables": {"type": ["object", "null"]}},
            )
        },
    )
    copied["parameters"] = [
        {"name": "epoch", "in": "query", "schema": {"type": "string"}},
        {"name": "version", "in": "query", "schema": {"type": "integer", "minimum": 0}},
    ]
    return {
        "/accountsFeed": {"get": copied},
        "/peers": {"get": peers},
        "/getClusterMapSnapshot": {
            "get": operation("cluster_map", "The cluster map", {200: _json("The whole map.", cluster)})
        },
        "/statsReport": {
            "get": operation(
                "stats_report", "What containers use", {200: _json("Seconds old.", usage)}, parameters=("stats-type",)
            )
        },
        "/signedUrl": {
            "get": operation("signed_url", "A URL for others", {200: _says("In x-ambry-signed-url.")}, errors=(404,))
        },
        "/namesFeed": {"get": feed},
        "/healthCheck": {"get": operation("health_check", "Whether it serves", {200: _bytes("GOOD", "text/plain")})},
        "/metrics": {"get": operation("metrics", "Prometheus", {200: _bytes("Metrics.", "text/plain")})},
        "/openapi.json": {
            "get": operation("openapi", "This description", {200: _bytes("OpenAPI 3.1.", "application/json")})
        },
    }


def _in_path(name: str, text: str, example: str) -> Document:
    schema = {"type": "string", "pattern": "^[a-z][a-z0-9-]{0,30}$", "examples": [example]}
    return {"name": name, "in": "path", "required": True, "description": text, "schema": schema}


def _in_query(name: str, text: str, schema: Document | None = None) -> Document:
    return {"name": name, "in": "query", "description": text, "schema": schema or {"type": "string", "maxLength": 50}}


def _names_paths() -> Document:
    whole, part, same = _bytes("The blob."), _bytes("Parts of it."), _says("The client has it already.")
    read = ("get-option", "read", *_OF_CONDITIONS)
    changed = ("if-match", "if-none-match")
    gone = (404, 410)
    version = _in_query("version", "One version.", {"type": "string", "pattern": "^[0-9]{1,12}-[0-9]$"})
    listing = _json("Names in order; null: nothing follows.", {
        "entries": {"type": "array", "items": {"type": "object"}}, "nextPageToken": {"type": ["string", "null"]}
    })  # fmt: skip
    listed = operation("list_names", "Names of a container", {200: listing}, errors=(404,))
    listed["parameters"] = [
        _in_query("prefix", "How names begin."),
        _in_query("delimiter", "Names with it behind the prefix count as one directory."),
        _in_query("start-after", "The name after which to begin."),
        _in_query("max-keys", "Entries at most.", {"type": "integer", "minimum": 1, "maximum": 1000}),
        _in_query("page", "The nextPageToken of the page before."),
        _in_query("versions", "All versions, not names.", {"type": "string", "enum": [""]}),
    ]
    get = operation(
        "get_named", "The blob behind a name", {200: whole, 206: part, 304: same}, parameters=read, errors=(*gone, 416)
    )
    get["parameters"].append(version)
    stated = {200: _says("Headers."), 206: _says("Headers."), 304: same}
    put = operation(
        "put_named",
        "Store a blob under a name; or move or copy a name",
        {201: _says("Stored, durably, with its name.")},
        parameters=("upsert", "move-from", "copy-from", *changed, *_OF_UPLOAD),
        body=_upload(),
        errors=(*gone, 409, 413, 507),
    )
    del put["requestBody"]["content"]["multipart/form-data"]
    container = [
        _in_path("account", "Name of an account.", "default"),
        _in_path("container", "Name of a container.", "default"),
    ]
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "pattern": "^[a-z.]{1,20}$"}}
    return {
        "/named/{account}/{container}": {"parameters": container, "get": listed},
        "/named/{account}/{container}/{name}": {
            "parameters": [*container, {**name, "description": "Up to 1024 bytes of UTF-8; slashes are part of it."}],
            "get": get,
            "head": operation(
                "head_named", "What GET would say", stated, parameters=read, errors=(*gone, 416), is_head=True
            ),
            "put": put,
            "delete": operation(
                "delete_named", "Delete a name", {202: _says("Deleted.")}, parameters=changed, errors=(*gone, 409)
            ),
        },
    }


def _uploads_paths() -> Document:
    upload = {
        "name": "upload", "in": "path", "required": True, "description": "The id of an upload in parts.",
        "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
    }  # fmt: skip
    part = {
        "name": "part", "in": "path", "required": True, "description": "Number of a part; parts follow in order.",
        "schema": {"type": "integer", "minimum": 1, "maximum": UPLOAD_PARTS_MAX},
    }  # fmt: skip
    stated = _json("What is known of it.", {
        "uploadId": {"type": "string"},
        "status": {"type": "string", "enum": ["OPEN", "COMPLETING", "COMPLETED"]},
        "name": {"type": ["string", "null"]},
        "createdMs": {"type": "integer"},
        "deadlineMs": {"type": "integer", "description": "Until when it can be completed, or is remembered."},
        "parts": {"type": "array", "items": {"type": "object"}},
        "nextAfter": {"type": ["integer", "null"], "description": "The `after` of the next page."},
    })  # fmt: skip
    one = {"type": "object", "required": ["part", "etag"], "properties": {
        "part": {"type": "integer", "minimum": 1}, "etag": {"type": "string"}
    }}  # fmt: skip
    chosen: Document = {
        "type": "object",
        "required": ["parts"],
        "properties": {"parts": {"type": "array", "items": one}},
    }
    listed = operation("list_parts", "An upload in parts and its parts", {200: stated}, errors=(404,))
    listed["parameters"] = [
        _in_query("after", "The number behind which to begin.", {"type": "integer", "minimum": 0, "maximum": 9999}),
        _in_query("max-parts", "Parts at most.", {"type": "integer", "minimum": 1, "maximum": 1000}),
    ]
    body: Document = {"description": "The bytes.", "content": {"application/octet-stream": {}}}
    put = operation(
        "put_part",
        "Store a part, in place of the one of its number",
        {200: _says("Stored, durably; its ETag completes the upload.")},
        parameters=("want-repr-digest",),
        body=body,
        errors=(404, 409, 413, 507),
    )
    begun = operation(
        "create_upload",
        "Begin an upload in parts",
        {201: stated},
        parameters=("upload-name", "upsert", "if-match", "if-none-match", *_OF_UPLOAD[:-1]),
        errors=(404, 409),
    )
    completed = operation(
        "complete_upload",
        "Make the blob of parts, with its name",
        {201: _says("Stored, durably, with its name.")},
        parameters=("upsert", "if-match", "if-none-match"),
        body={"required": True, "content": {"application/json": {"schema": chosen}}},
        errors=(404, 409, 413, 507),
    )
    aborted = operation("abort_upload", "Give it up", {202: _says("Given up.")}, errors=(404, 409))
    return {
        "/uploads": {"post": begun},
        "/uploads/{upload}": {"parameters": [upload], "get": listed, "post": completed, "delete": aborted},
        "/uploads/{upload}/{part}": {"parameters": [upload, part], "put": put},
    }


def _accounts_paths() -> Document:
    done = {200: _bytes("As docs/security.md says.", "application/json")}
    document = {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}
    paths: Document = {}
    for path, what in (("accounts", "accounts"), ("accounts/containers", "containers"), ("accounts/keys", "keys")):
        named = ("account", "container")
        paths[f"/{path}"] = {
            "get": operation(
                f"get_{what}", f"The {what} that the caller may change", done, parameters=named, errors=(404,)
            ),
            "post": operation(
                f"change_{what}",
                f"Make or change {what}",
                done,
                parameters=named,
                body=document,
                errors=(404, 409, 413),
            ),
            "delete": operation(
                f"delete_{what}", f"Delete one of the {what}", done, parameters=named, errors=(404, 409)
            ),
        }
    return paths


_HEAD_TOO: Final = (
    "/healthCheck", "/metrics", "/{id}/BlobInfo", "/{id}/UserMetadata", "/{id}/Segment/{segment}",
    "/named/{account}/{container}",
)  # fmt: skip
"""Paths whose HEAD is their GET without the body."""


def _with_heads(paths: Document) -> Document:
    for path in _HEAD_TOO:
        get = paths[path]["get"]
        answers = {status: {"description": one["description"]} for status, one in get["responses"].items()}
        paths[path]["head"] = {**get, "operationId": f"{get['operationId']}_head", "responses": answers}
    return paths


def describe() -> Document:
    """The whole description."""
    paths = {
        **_store_paths(),
        **_blob_paths(),
        **_names_paths(),
        **_uploads_paths(),
        **_accounts_paths(),
        **_operators_paths(),
    }
    preflight = operation("preflight", "What pages of other sites may do with the container", {200: _says("Headers.")})
    paths["/{id}"]["options"] = {**preflight, "parameters": [{"$ref": "#/components/parameters/id"}]}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Ambry", "version": __version__, "description": "A distributed, immutable blob store."},
        "paths": _with_heads(paths),
        "components": {
            "parameters": PARAMETERS,
            "schemas": SCHEMAS,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"bearer": []}],
    }


@cache
def rendered() -> bytes:
    """The description as it is served."""
    return json.dumps(describe()).encode() + b"\n"
