"""Signatures with an access key's secret: of requests, and of URLs that can be given away. HMAC-SHA-256.

A signed request covers method, path and query as sent, every header that could change what it does, the moment, and
the digest of its body. A signed URL covers method, path, all of its query, and with that its expiry, its container and
its size limit. Both name the key, so a key that is deleted ends them. docs/security.md has the text of both for those
who write another client. Pure: clients sign with the same functions with which the frontend checks.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote, unquote

from ambry.errors import BadRequest, Unauthenticated
from ambry.limits import SIGNATURE_SKEW_MS, SIGNED_QUERY_PARAMETERS_MAX, SIGNED_URL_TTL_S_MAX

SCHEME: Final = "AMBRY-HMAC-SHA256"
DATE: Final = "x-ambry-date"
CONTENT_SHA256: Final = "x-ambry-content-sha256"
UNSIGNED: Final = "UNSIGNED-PAYLOAD"
EMPTY_SHA256: Final = hashlib.sha256(b"").hexdigest()

URL_SCHEME: Final = "AMBRY-URL-HMAC-SHA256"
URL_KEY: Final = "x-ambry-key"
URL_METHOD: Final = "x-ambry-url-type"
URL_EXPIRES: Final = "x-ambry-expires"
URL_SIZE: Final = "x-ambry-max-upload-size"
URL_ACCOUNT: Final = "x-ambry-target-account-name"
URL_CONTAINER: Final = "x-ambry-target-container-name"
URL_SIGNATURE: Final = "x-ambry-signature"
URL_PARAMETERS: Final = frozenset({URL_KEY, URL_METHOD, URL_EXPIRES, URL_SIZE, URL_ACCOUNT, URL_CONTAINER})
URL_METHODS: Final = frozenset({"GET", "POST", "PUT"})

_AUTHORIZATION: Final = re.compile(
    rf"{SCHEME} Credential=([A-Za-z0-9-]{{1,64}}), ?SignedHeaders=([a-z0-9;-]{{1,4096}}), ?Signature=([0-9a-f]{{64}})"
)
_DATE: Final = re.compile(r"\d{8}T\d{6}Z")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_MUST_BE_SIGNED: Final = ("x-ambry-", "content-", "repr-digest", "if-", "range")
_NEED_NOT_BE_SIGNED: Final = frozenset({"content-length"})
_INTEGER: Final = re.compile(r"[0-9]{1,16}")


# --- requests --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """What an Authorization header of our scheme says."""

    key_id: str
    signed_headers: tuple[str, ...]
    signature: str


def parse_authorization(value: str) -> SignedRequest:
    """Read an Authorization header of SCHEME. Raises Unauthenticated."""
    match = _AUTHORIZATION.fullmatch(value)
    if match is None:
        raise Unauthenticated(f"Authorization is: {SCHEME} Credential=KEY, SignedHeaders=a;b, Signature=HEX")
    return SignedRequest(match[1], tuple(match[2].split(";")), match[3])


def format_date(now_ms: int) -> str:
    """The value of `x-ambry-date` for a moment."""
    return datetime.fromtimestamp(now_ms // 1000, UTC).strftime("%Y%m%dT%H%M%SZ")


def sign_request(
    secret: str, key_id: str, *, method: str, path: str, query: str, headers: Mapping[str, str]
) -> dict[str, str]:
    """The headers that sign a request, `x-ambry-date` and `x-ambry-content-sha256` among `headers`.

    `path` and `query` are as they will be sent, percent-encoded. All of `headers` are signed, Host must be there.
    """
    lower = {name.lower(): value for name, value in headers.items()}
    assert {"host", DATE, CONTENT_SHA256} <= set(lower)
    names = tuple(sorted(set(lower) - _NEED_NOT_BE_SIGNED))
    signature = _signature(secret, _request_text(method, path, query, lower, names))
    return {"Authorization": f"{SCHEME} Credential={key_id}, SignedHeaders={';'.join(names)}, Signature={signature}"}


def check_request(
    secret: str | None,
    signed: SignedRequest,
    *,
    method: str,
    path: str,
    query: str,
    headers: Iterable[tuple[str, str]],
    now_ms: int,
) -> str:
    """The digest that the body must have, or UNSIGNED. Raises Unauthenticated.

    Without a secret, for a key that nobody knows, the same work is done before the same answer.
    """
    lower: dict[str, str] = {}
    for name, value in headers:
        if lower.setdefault(name.lower(), value) is not value and name.lower() in signed.signed_headers:
            raise Unauthenticated(f"{name} was sent twice and signed once")
    covered = set(signed.signed_headers)
    for needed in ("host", DATE, CONTENT_SHA256):
        if needed not in covered or needed not in lower:
            raise Unauthenticated(f"{needed} must be sent and signed")
    for name in lower:
        if name.startswith(_MUST_BE_SIGNED) and name not in covered and name not in _NEED_NOT_BE_SIGNED:
            raise Unauthenticated(f"{name} must be signed")
    if missing := [name for name in signed.signed_headers if name not in lower]:
        raise Unauthenticated(f"{missing[0]} was signed and not sent")
    expected = _signature(secret or "", _request_text(method, path, query, lower, signed.signed_headers))
    if not hmac.compare_digest(expected, signed.signature) or secret is None:
        raise Unauthenticated("no such key, or not its signature of this request")
    moment = _moment_ms(lower[DATE])
    if moment is None or abs(moment - now_ms) > SIGNATURE_SKEW_MS:
        raise Unauthenticated(f"{DATE} is not within {SIGNATURE_SKEW_MS // 60_000} minutes of now")
    digest = lower[CONTENT_SHA256]
    if digest != UNSIGNED and not _SHA256.fullmatch(digest):
        raise Unauthenticated(f"{CONTENT_SHA256} is a SHA-256 in hex, or {UNSIGNED}")
    return digest


def _moment_ms(text: str) -> int | None:
    if not _DATE.fullmatch(text):
        return None
    try:
        return int(datetime.strptime(text, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()) * 1000
    except ValueError:
        return None


def _request_text(method: str, path: str, query: str, headers: Mapping[str, str], names: Iterable[str]) -> str:
    """What is signed. Header values are one line each, so no value can pass for another header."""
    listed = tuple(names)
    lines = [SCHEME, method, path, query, *(f"{name}:{headers[name].strip()}" for name in listed), ";".join(listed)]
    return "\n".join(lines)


def _signature(secret: str, text: str) -> str:
    return hmac.new(secret.encode(), text.encode("utf-8", "surrogateescape"), "sha256").hexdigest()


# --- URLs ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SignedUrl:
    """What a signed URL allows: one method (with GET also HEAD) on one path until a moment.

    For an upload: into which container, and how many bytes at most.
    """

    key_id: str
    method: str
    path: str
    expires_s: int
    size_max: int | None = None
    account_name: str | None = None
    container_name: str | None = None

    def signed_with(self, secret: str) -> str:
        """Path and query, signed."""
        pairs = {URL_KEY: self.key_id, URL_METHOD: self.method, URL_EXPIRES: str(self.expires_s)}
        if self.size_max is not None:
            pairs[URL_SIZE] = str(self.size_max)
        if self.account_name is not None:
            pairs[URL_ACCOUNT] = self.account_name
        if self.container_name is not None:
            pairs[URL_CONTAINER] = self.container_name
        query = "&".join(f"{name}={quote(value, safe='')}" for name, value in sorted(pairs.items()))
        signature = _signature(secret, _url_text(self.path, query))
        return f"{self.path}?{query}&{URL_SIGNATURE}={signature}"


def is_signed_url(query: str) -> bool:
    """Whether somebody has signed a URL with this query, or pretends that."""
    return URL_SIGNATURE in query


def parse_signed_url(path: str, query: str) -> tuple[SignedUrl, str, str]:
    """What a URL allows if it is genuine, the part of its query that was signed, and the signature.

    The signature is the last parameter, as `signed_with` puts it. Raises Unauthenticated.
    """
    signed, found, signature = query.rpartition(f"&{URL_SIGNATURE}=")
    if not found or not _SHA256.fullmatch(signature):
        raise Unauthenticated(f"a signed URL ends with {URL_SIGNATURE}")
    pairs: dict[str, str] = {}
    parts = signed.split("&")
    if len(parts) > SIGNED_QUERY_PARAMETERS_MAX:
        raise Unauthenticated("too many parameters in a signed URL")
    for part in parts:
        name, _, value = part.partition("=")
        if name not in URL_PARAMETERS or name in pairs:
            raise Unauthenticated("an unknown parameter in a signed URL, or one that is there twice")
        pairs[name] = unquote(value)
    method, expires, size = pairs.get(URL_METHOD, ""), pairs.get(URL_EXPIRES, ""), pairs.get(URL_SIZE)
    if method not in URL_METHODS or not _INTEGER.fullmatch(expires) or URL_KEY not in pairs:
        raise Unauthenticated(f"a signed URL has {URL_KEY}, {URL_METHOD} and {URL_EXPIRES}")
    if size is not None and not _INTEGER.fullmatch(size):
        raise Unauthenticated(f"{URL_SIZE} is a number of bytes")
    url = SignedUrl(
        pairs[URL_KEY],
        method,
        path,
        int(expires),
        None if size is None else int(size),
        pairs.get(URL_ACCOUNT),
        pairs.get(URL_CONTAINER),
    )
    return url, signed, signature


def check_signed_url(
    secret: str | None, url: SignedUrl, signed_query: str, signature: str, *, method: str, now_ms: int
) -> None:
    """Raise Unauthenticated unless the URL is genuine, not expired, and for this method."""
    expected = _signature(secret or "", _url_text(url.path, signed_query))
    if not hmac.compare_digest(expected, signature) or secret is None:
        raise Unauthenticated("no such key, or not its signature of this URL")
    if url.expires_s * 1000 <= now_ms:
        raise Unauthenticated("the signed URL has expired")
    if url.expires_s * 1000 > now_ms + 1000 * SIGNED_URL_TTL_S_MAX + SIGNATURE_SKEW_MS:
        raise Unauthenticated(f"a signed URL lasts {SIGNED_URL_TTL_S_MAX} s at most")
    if method != url.method and not (method == "HEAD" and url.method == "GET"):
        raise Unauthenticated(f"the signed URL is for {url.method}")


def checked_url_ttl(text: str | None, default_s: int) -> int:
    """Seconds of `x-ambry-url-ttl-secs`. Raises BadRequest."""
    if text is None:
        return default_s
    if not _INTEGER.fullmatch(text) or not 0 < int(text) <= SIGNED_URL_TTL_S_MAX:
        raise BadRequest(f"x-ambry-url-ttl-secs is from 1 to {SIGNED_URL_TTL_S_MAX}", field="x-ambry-url-ttl-secs")
    return int(text)


def _url_text(path: str, signed_query: str) -> str:
    return f"{URL_SCHEME}\n{path}\n{signed_query}"
