"""The table of statuses, error bodies, and the order of headers."""

import json
from types import MappingProxyType

import pytest

from ambry import errors
from ambry.blob.properties import Properties
from ambry.blob.state import NEVER, BlobState
from ambry.errors import ERRORS_BY_CODE, AmbryError
from ambry.frontend.answers import (
    REASONS,
    STATUS,
    blob_headers,
    created_answer,
    empty_answer,
    error_answer,
    http_date,
    property_headers,
    status_of,
)

NOW_MS = 1_700_000_000_999
DATE = "Tue, 14 Nov 2023 22:13:20 GMT"


@pytest.mark.parametrize("error", ERRORS_BY_CODE.values(), ids=lambda error: error.name)
def test_every_error_has_an_answer(error: type[AmbryError]) -> None:
    answer = error_answer(error("it went wrong", allow="GET", size=5, field="x"), NOW_MS, "id-1")
    assert answer.status in REASONS and answer.status >= 400
    document = json.loads(answer.body)
    assert document["code"] == error.name
    assert document["request_id"] == "id-1"
    headers = dict(answer.headers)
    assert headers["Content-Length"] == str(len(answer.body))
    assert headers["x-ambry-request-id"] == "id-1"
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert ("Retry-After" in headers) == (answer.status in {429, 503})
    assert ("WWW-Authenticate" in headers) == (answer.status == 401)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.BadRequest, 400),
        (errors.BadBlobId, 400),
        (errors.BadDigest, 400),
        (errors.NoSuchPath, 404),
        (errors.BlobNotFound, 404),
        (errors.MethodNotAllowed, 405),
        (errors.NotAllowed, 409),
        (errors.BlobDeleted, 410),
        (errors.BlobExpired, 410),
        (errors.PreconditionFailed, 412),
        (errors.TooLarge, 413),
        (errors.RangeNotSatisfiable, 416),
        (errors.HeadersTooLarge, 431),
        (errors.AmbryError, 500),
        (errors.BlobCollision, 500),
        (errors.Unavailable, 503),
        (errors.Overloaded, 503),
        (errors.DiskFull, 507),
    ],
)
def test_statuses(error: type[AmbryError], status: int) -> None:
    assert status_of(error("x", allow="", size=0)) == status


def test_the_table_names_no_class_twice_and_covers_the_tree() -> None:
    for error in ERRORS_BY_CODE.values():
        assert any(parent in STATUS for parent in error.__mro__)


@pytest.mark.parametrize("error", [AmbryError, errors.Unavailable, errors.DiskFull, errors.CorruptRecord])
def test_what_is_not_the_clients_fault_is_not_told(error: type[AmbryError]) -> None:
    answer = error_answer(error("segment 5 of disk-a at offset 7", path="disk-a"), NOW_MS, "id-1")
    assert b"disk-a" not in answer.body and b"segment" not in answer.body


def test_damaged_bytes_are_told_from_what_only_takes_another_try() -> None:
    answer = error_answer(errors.CorruptRecord("segment 5", segment=5), NOW_MS, "id-1")
    document = json.loads(answer.body)
    assert (answer.status, document["code"], document["proof"]) == (503, "corrupt_record", "replica")
    assert document["message"] != json.loads(error_answer(errors.Unavailable("x"), NOW_MS, "r").body)["message"]
    assert "damaged or missing" in document["message"]


def test_facts_become_headers() -> None:
    headers = dict(error_answer(errors.MethodNotAllowed("x", allow="GET, HEAD"), NOW_MS, "r").headers)
    assert headers["Allow"] == "GET, HEAD"
    headers = dict(error_answer(errors.RangeNotSatisfiable("x", size=7), NOW_MS, "r").headers)
    assert headers["Content-Range"] == "bytes */7"
    headers = dict(error_answer(errors.Overloaded("x", retry_after_s=9), NOW_MS, "r").headers)
    assert headers["Retry-After"] == "9"


def test_created() -> None:
    answer = created_answer("the-id", NOW_MS, NOW_MS, "r")
    assert answer.status == 201
    assert answer.headers == [
        ("Date", DATE),
        ("Server", "ambry"),
        ("x-ambry-request-id", "r"),
        ("Content-Length", "0"),
        ("Location", "/the-id"),
        ("x-ambry-blob-id", "the-id"),
        ("x-ambry-creation-time", DATE),
        ("X-Content-Type-Options", "nosniff"),
    ]
    assert empty_answer(202, NOW_MS, "r").headers[-2:] == [
        ("Content-Length", "0"),
        ("X-Content-Type-Options", "nosniff"),
    ]


@pytest.mark.parametrize(
    ("state", "ttl", "cache", "version"),
    [
        (BlobState(0, NEVER), "-1", "max-age=31536000", "0"),
        (BlobState(2, NEVER), "-1", "max-age=31536000", "1"),
        (BlobState(0, NOW_MS + 60_000), "60", "max-age=60", "0"),
        (BlobState(0, NOW_MS + 10**12), str(10**9), "max-age=31536000", "0"),
        (BlobState(0, NOW_MS), "0", "no-store", "0"),
        (BlobState(1, NEVER), "-1", "no-store", "0"),
    ],
)
def test_headers_of_a_blob(state: BlobState, ttl: str, cache: str, version: str) -> None:
    assert blob_headers("the-id", NOW_MS, state, NOW_MS, "r", 5) == [
        ("Date", DATE),
        ("Server", "ambry"),
        ("x-ambry-request-id", "r"),
        ("Content-Length", "5"),
        ("Accept-Ranges", "bytes"),
        ("ETag", '"the-id"'),
        ("Last-Modified", DATE),
        ("Cache-Control", cache),
        ("x-ambry-creation-time", DATE),
        ("x-ambry-ttl", ttl),
        ("x-ambry-life-version", version),
    ]


def test_headers_of_properties() -> None:
    properties = Properties(
        size=5,
        content_type="text/plain",
        content_encoding="gzip",
        filename="ä.txt",
        service_id="svc",
        owner_id="me",
        user_metadata=MappingProxyType({"a": "b", "c": "Jürgen\n", "d": " x"}),
        digests=MappingProxyType({"md5": bytes(16)}),
    )
    assert property_headers(properties) == [
        ("Content-Type", "text/plain"),
        ("X-Content-Type-Options", "nosniff"),
        ("Content-Encoding", "gzip"),
        ("Content-Disposition", "inline; filename*=UTF-8''%C3%A4.txt"),
        ("x-ambry-blob-size", "5"),
        ("x-ambry-content-type", "text/plain"),
        ("x-ambry-content-encoding", "gzip"),
        ("x-ambry-service-id", "svc"),
        ("x-ambry-owner-id", "me"),
        ("x-ambry-filename", "ä.txt"),
        ("Repr-Digest", "md5=:AAAAAAAAAAAAAAAAAAAAAA==:"),
        ("x-ambry-um-a", "b"),
        ("x-ambry-enc-um-c", "J%C3%BCrgen%0A"),
        ("x-ambry-enc-um-d", "%20x"),
        ("Content-MD5", "AAAAAAAAAAAAAAAAAAAAAA=="),
    ]


@pytest.mark.parametrize(
    ("content_type", "disposition"),
    [
        ("text/html", "attachment"),
        ("TEXT/HTML; charset=x", "attachment"),
        ("image/svg+xml", "attachment"),
        ("application/xhtml+xml", "attachment"),
        ("text/javascript", "attachment"),
        ("application/xml", "attachment"),
        ("text/plain", None),
        ("image/png", None),
        ("application/octet-stream", None),
    ],
)
def test_what_could_run_in_a_browser_is_an_attachment(content_type: str, disposition: str | None) -> None:
    headers = dict(property_headers(Properties(size=0, content_type=content_type)))
    assert headers.get("Content-Disposition") == disposition
    named = dict(property_headers(Properties(size=0, content_type=content_type, filename='a"b')))
    assert named["Content-Disposition"] == f"{disposition or 'inline'}; filename*=UTF-8''a%22b"


def test_dates() -> None:
    assert http_date(0) == "Thu, 01 Jan 1970 00:00:00 GMT"
    assert http_date(NOW_MS // 1000) == DATE
