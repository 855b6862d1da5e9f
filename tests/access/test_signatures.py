"""Signatures of requests and of URLs: what is genuine passes, and nothing that was altered does."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambry.access.signatures import (
    CONTENT_SHA256,
    DATE,
    EMPTY_SHA256,
    UNSIGNED,
    SignedUrl,
    check_request,
    check_signed_url,
    format_date,
    parse_authorization,
    parse_signed_url,
    sign_request,
)
from ambry.errors import Unauthenticated
from ambry.limits import SIGNATURE_SKEW_MS, SIGNED_URL_TTL_S_MAX

NOW_MS = 1_700_000_000_000
SECRET = "a secret of somebody"
BODY_SHA256 = hashlib.sha256(b"body").hexdigest()


def signed_lines(**changes: str) -> list[tuple[str, str]]:
    """The headers of a signed request."""
    headers = {"Host": "store", DATE: format_date(NOW_MS), CONTENT_SHA256: BODY_SHA256, "x-ambry-ttl": "60"} | changes
    signature = sign_request(SECRET, "AKX", method="POST", path="/a%20b", query="x=1", headers=headers)
    return [*headers.items(), *signature.items()]


def check(
    lines: list[tuple[str, str]],
    *,
    method: str = "POST",
    path: str = "/a%20b",
    query: str = "x=1",
    now_ms: int = NOW_MS,
    secret: str | None = SECRET,
) -> str:
    """What the frontend would say."""
    authorization = dict(lines)["Authorization"]
    signed = parse_authorization(authorization)
    return check_request(secret, signed, method=method, path=path, query=query, headers=lines, now_ms=now_ms)


def test_a_genuine_request_passes_and_says_what_its_body_is() -> None:
    assert check(signed_lines()) == BODY_SHA256
    assert check(signed_lines(**{CONTENT_SHA256: UNSIGNED})) == UNSIGNED
    assert check([*signed_lines(), ("User-Agent", "x"), ("Content-Length", "4"), ("Accept", "*/*")]) == BODY_SHA256


@pytest.mark.parametrize(
    "change", [{"method": "PUT"}, {"path": "/a b"}, {"path": "/"}, {"query": ""}, {"query": "x=2"}]
)
def test_a_signature_is_for_one_method_path_and_query(change: dict[str, str]) -> None:
    with pytest.raises(Unauthenticated, match="not its signature"):
        check(signed_lines(), **change)  # type: ignore[arg-type] # of several keywords, mypy sees the types together


@pytest.mark.parametrize("wait_ms", [-SIGNATURE_SKEW_MS - 1000, SIGNATURE_SKEW_MS + 1000, 10**11])
def test_a_request_that_is_replayed_later_is_refused(wait_ms: int) -> None:
    with pytest.raises(Unauthenticated, match="minutes of now"):
        check(signed_lines(), now_ms=NOW_MS + wait_ms)


@pytest.mark.parametrize(
    "line",
    [
        ("x-ambry-ttl", "61"),
        ("X-Ambry-Owner-Id", "me"),
        ("Content-Type", "text/html"),
        ("Range", "bytes=0-1"),
        ("If-Match", "*"),
        ("Content-MD5", "x"),
        ("host", "another"),
    ],
)
def test_headers_that_change_what_is_done_cannot_be_added_or_altered(line: tuple[str, str]) -> None:
    with pytest.raises(Unauthenticated):
        check([*signed_lines(), line])
    replaced = [each for each in signed_lines() if each[0].lower() != line[0].lower()]
    with pytest.raises(Unauthenticated):
        check([*replaced, line])


@pytest.mark.parametrize("name", ["Host", DATE, CONTENT_SHA256, "x-ambry-ttl"])
def test_a_signed_header_cannot_be_left_out(name: str) -> None:
    with pytest.raises(Unauthenticated):
        check([line for line in signed_lines() if line[0] != name])


def test_every_bit_of_a_signature_counts() -> None:
    lines = signed_lines()
    good = dict(lines)["Authorization"]
    at = good.index("Signature=") + len("Signature=")
    for place in range(at, len(good)):
        altered = good[:place] + ("0" if good[place] != "0" else "1") + good[place + 1 :]
        with pytest.raises(Unauthenticated):
            check([*lines[:-1], ("Authorization", altered)])


def test_an_unknown_key_and_a_wrong_signature_get_the_same_answer() -> None:
    with pytest.raises(Unauthenticated) as unknown:
        check(signed_lines(), secret=None)
    with pytest.raises(Unauthenticated) as wrong:
        check(signed_lines(), secret="another secret")
    assert str(unknown.value) == str(wrong.value)


def test_nobody_can_sign_with_the_empty_secret_of_an_unknown_key() -> None:
    headers = {"Host": "store", DATE: format_date(NOW_MS), CONTENT_SHA256: EMPTY_SHA256}
    lines = [*headers.items(), *sign_request("", "AKX", method="GET", path="/", query="", headers=headers).items()]
    with pytest.raises(Unauthenticated):
        check(lines, method="GET", path="/", query="", secret=None)
    url = SignedUrl("AKX", "GET", "/", NOW_MS // 1000 + 10).signed_with("")
    path, _, query = url.partition("?")
    with pytest.raises(Unauthenticated):
        check_signed_url(None, *parse_signed_url(path, query), method="GET", now_ms=NOW_MS)


@given(st.text(max_size=200))
def test_any_authorization_is_read_or_refused(text: str) -> None:
    try:
        assert parse_authorization("AMBRY-HMAC-SHA256 " + text).key_id
    except Unauthenticated as error:
        assert error.message


# --- URLs --------------------------------------------------------------------------------------------------------


def opened(text: str, *, method: str = "GET", now_ms: int = NOW_MS, secret: str | None = SECRET) -> SignedUrl:
    """The URL, if it is genuine."""
    path, _, query = text.partition("?")
    url, signed, signature = parse_signed_url(path, query)
    check_signed_url(secret, url, signed, signature, method=method, now_ms=now_ms)
    return url


UPLOAD = SignedUrl("AKX", "POST", "/", NOW_MS // 1000 + 60, 1000, "some account", "con&tainer=x")
GET = SignedUrl("AKX", "GET", "/named/a/b/c%2Fd", NOW_MS // 1000 + 60)


def test_a_signed_url_says_what_it_was_signed_for() -> None:
    assert opened(GET.signed_with(SECRET)) == GET
    assert opened(GET.signed_with(SECRET), method="HEAD") == GET
    assert opened(UPLOAD.signed_with(SECRET), method="POST") == UPLOAD


@pytest.mark.parametrize(("url", "method"), [(GET, "DELETE"), (GET, "POST"), (UPLOAD, "GET"), (UPLOAD, "HEAD")])
def test_a_signed_url_is_for_one_method(url: SignedUrl, method: str) -> None:
    with pytest.raises(Unauthenticated):
        opened(url.signed_with(SECRET), method=method)


def test_a_signed_url_ends() -> None:
    text = GET.signed_with(SECRET)
    assert opened(text, now_ms=GET.expires_s * 1000 - 1)
    for now_ms in (GET.expires_s * 1000, GET.expires_s * 1000 + 10**9):
        with pytest.raises(Unauthenticated, match="expired"):
            opened(text, now_ms=now_ms)
    endless = SignedUrl("AKX", "GET", "/x", NOW_MS // 1000 + SIGNED_URL_TTL_S_MAX + 3600)
    with pytest.raises(Unauthenticated, match="at most"):
        opened(endless.signed_with(SECRET))


def test_a_signed_url_ends_with_its_key() -> None:
    with pytest.raises(Unauthenticated):
        opened(GET.signed_with(SECRET), secret="the secret of the key after it")
    with pytest.raises(Unauthenticated):
        opened(GET.signed_with(SECRET), secret=None)


@pytest.mark.parametrize("url", [GET, UPLOAD])
def test_no_character_of_a_signed_url_can_be_changed_added_or_taken_away(url: SignedUrl) -> None:
    text = url.signed_with(SECRET)
    for place in range(len(text)):
        for altered in (
            text[:place] + text[place + 1 :],
            text[:place] + "1" + text[place:],
            f"{text[:place]}~{text[place + 1 :]}",
        ):
            if altered != text:
                with pytest.raises(Unauthenticated):
                    opened(altered, method=url.method)


@pytest.mark.parametrize(
    "query",
    [
        "",
        "x-ambry-signature=" + "0" * 64,
        "&x-ambry-signature=" + "0" * 64,
        "x-ambry-key=a&x-ambry-key=b&x-ambry-url-type=GET&x-ambry-expires=1&x-ambry-signature=" + "0" * 64,
        "&".join(["x-ambry-key=a"] * 100) + "&x-ambry-signature=" + "0" * 64,
        "x-ambry-key=a&x-ambry-url-type=DELETE&x-ambry-expires=1&x-ambry-signature=" + "0" * 64,
        "x-ambry-key=a&x-ambry-url-type=GET&x-ambry-expires=1e9&x-ambry-signature=" + "0" * 64,
    ],
)
def test_a_query_that_is_no_signed_url_is_refused(query: str) -> None:
    with pytest.raises(Unauthenticated):
        parse_signed_url("/", query)
