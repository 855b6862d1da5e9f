"""What `GET /signedUrl` is asked for, and which container a path is about. Pure: headers and paths in, values out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from ambry.access.accounts import DEFAULT_CONTAINER, Container
from ambry.access.signatures import URL_METHODS, SignedUrl, checked_url_ttl
from ambry.access.snapshot import Snapshot
from ambry.blob.blob_id import TEXT_SIZE, binary_from_text
from ambry.errors import BadBlobId, BadRequest
from ambry.frontend.access import ACCOUNT_HEADER, CONTAINER_HEADER
from ambry.frontend.placement import OWNER_AT
from ambry.limits import BLOB_BYTES_MAX, SIGNED_URL_TTL_S_DEFAULT

_NAMED: Final = "/named/"


@dataclass(frozen=True, slots=True)
class UrlWish:
    """A URL that somebody wants signed; `url` has no key yet. For a GET by id, `blob_id`; else the path's container."""

    url: SignedUrl
    blob_id: bytes | None
    named: tuple[str, str]


def parse_url_wish(headers: Mapping[str, str], now_ms: int) -> UrlWish:
    """Read the headers of `GET /signedUrl`, which are Ambry's. Raises BadRequest, BadBlobId.

    `x-ambry-url-type` is GET, POST, or PUT for an upload under a name; `x-ambry-blob-id` an id or `/named/...`.
    """
    method = headers.get("x-ambry-url-type", "GET")
    if method not in URL_METHODS:
        raise BadRequest(f"x-ambry-url-type is one of {', '.join(sorted(URL_METHODS))}", field="x-ambry-url-type")
    expires_s = now_ms // 1000 + checked_url_ttl(headers.get("x-ambry-url-ttl-secs"), SIGNED_URL_TTL_S_DEFAULT)
    size_max = None if method == "GET" else _size_max(headers.get("x-ambry-max-upload-size"))
    subject = headers.get("x-ambry-blob-id", "")
    if method == "POST":
        url = SignedUrl(
            "", method, "/", expires_s, size_max, headers.get(ACCOUNT_HEADER), headers.get(CONTAINER_HEADER)
        )
        if (url.account_name is None) != (url.container_name is None):
            raise BadRequest(f"{ACCOUNT_HEADER} and {CONTAINER_HEADER} come together", field=ACCOUNT_HEADER)
        return UrlWish(url, None, ("", ""))
    named = named_container(subject)
    if named is not None:
        return UrlWish(SignedUrl("", method, subject, expires_s, size_max), None, named)
    if method == "PUT":
        raise BadRequest(
            "an upload by PUT is under a name: x-ambry-blob-id is /named/ACCOUNT/CONTAINER/NAME",
            field="x-ambry-blob-id",
        )
    subject = subject.removeprefix("/")
    if not subject:
        raise BadRequest(
            "x-ambry-blob-id says what the URL is for: an id, or /named/ACCOUNT/CONTAINER/NAME", field="x-ambry-blob-id"
        )
    blob_id = _binary(subject)
    return UrlWish(SignedUrl("", method, f"/{subject}", expires_s), blob_id, ("", ""))


def named_container(path: str) -> tuple[str, str] | None:
    """Account and container of a path of a named blob; None for another path."""
    if not path.startswith(_NAMED) or not path.isascii() or not path.isprintable() or set(path) & set(" ?#"):
        return None
    account, _, rest = path[len(_NAMED) :].partition("/")
    container = rest.partition("/")[0]
    return (unquote(account), unquote(container)) if account and container else None


def container_of_path(snapshot: Snapshot, path: str) -> Container | None:
    """The container that a path is about, whether the caller may know it or not; the default one for other paths."""
    named = named_container(path)
    if named is not None:
        return snapshot.by_name.get(named)
    subject = path[1:].partition("/")[0]
    if len(subject) == TEXT_SIZE:
        try:
            return snapshot.containers.get(_binary(subject)[OWNER_AT])
        except BadBlobId:
            return None
    return snapshot.containers.get(DEFAULT_CONTAINER.owner)


def _binary(text: str) -> bytes:
    try:
        return binary_from_text(text.encode("ascii"))
    except UnicodeEncodeError as error:
        raise BadBlobId("a blob id has only letters, digits, '-' and '_'", field="blob id") from error


def _size_max(text: str | None) -> int:
    if text is None:
        return BLOB_BYTES_MAX
    if not (text.isascii() and text.isdigit() and len(text) < 18) or int(text) > BLOB_BYTES_MAX:
        raise BadRequest(f"x-ambry-max-upload-size is from 0 to {BLOB_BYTES_MAX}", field="x-ambry-max-upload-size")
    return int(text)
