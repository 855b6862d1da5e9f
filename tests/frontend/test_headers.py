"""Request headers: what each becomes, and what each bad value is called."""

import asyncio
import base64
import hashlib

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from ambry.blob.properties import Properties
from ambry.blob.state import NEVER
from ambry.errors import AmbryError, BadDigest, BadRequest, HeadersTooLarge, TooLarge
from ambry.frontend.digests import DigestCheck, parse_content_md5, parse_digest_field, render_repr_digest
from ambry.frontend.headers import GetOption, parse_get_option, parse_put_headers, parse_ttl, required_ttl
from ambry.limits import BLOB_BYTES_MAX, PROPERTY_BYTES_MAX, TTL_SECONDS_MAX, USER_METADATA_BYTES_MAX

NOW_MS = 1_700_000_000_000
MD5 = base64.b64encode(hashlib.md5(b"hello").digest()).decode()
SHA256 = base64.b64encode(hashlib.sha256(b"hello").digest()).decode()


def put(*lines: tuple[str, str]) -> Properties:
    return parse_put_headers(lines).properties


def test_no_header_is_mandatory() -> None:
    sent = parse_put_headers([])
    assert sent.properties == Properties(size=0)
    assert sent.properties.content_type == "application/octet-stream"
    assert (sent.ttl_s, sent.digests, sent.expires_at_ms(NOW_MS)) == (None, {}, NEVER)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([("x-ambry-service-id", "svc")], Properties(size=0, service_id="svc")),
        ([("X-Ambry-Owner-Id", "me")], Properties(size=0, owner_id="me")),
        ([("x-ambry-filename", "a b.txt")], Properties(size=0, filename="a b.txt")),
        ([("x-ambry-filename", "übung.txt")], Properties(size=0, filename="übung.txt")),
        ([("Content-Type", "text/plain; charset=utf-8")], Properties(size=0, content_type="text/plain; charset=utf-8")),
        ([("x-ambry-content-type", "a/b"), ("Content-Type", "c/d")], Properties(size=0, content_type="a/b")),
        ([("Content-Encoding", "gzip")], Properties(size=0, content_encoding="gzip")),
        ([("x-ambry-content-encoding", "br, gzip")], Properties(size=0, content_encoding="br, gzip")),
        ([("x-ambry-um-Color", "red")], Properties(size=0, user_metadata={"Color": "red"})),
        ([("x-ambry-um-empty", "")], Properties(size=0, user_metadata={"empty": ""})),
        ([("x-ambry-enc-um-name", "J%C3%BCrgen+M%0A")], Properties(size=0, user_metadata={"name": "Jürgen M\n"})),
        ([("x-ambry-blob-size", "123")], Properties(size=0)),
        ([("x-ambry-blob-size", "-1")], Properties(size=0)),
        ([("x-ambry-unknown", "x"), ("accept", "y")], Properties(size=0)),
    ],
)
def test_headers_become_properties(lines: list[tuple[str, str]], expected: Properties) -> None:
    assert put(*lines) == expected


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (("x-ambry-content-type", "nonsense"), "x-ambry-content-type"),
        (("Content-Type", "text/"), "Content-Type"),
        (("Content-Type", "te xt/plain"), "Content-Type"),
        (("Content-Type", "text/plän"), "Content-Type"),
        (("x-ambry-content-encoding", "g zip"), "x-ambry-content-encoding"),
        (("Content-Encoding", ","), "Content-Encoding"),
        (("x-ambry-service-id", "a\x01b"), "x-ambry-service-id"),
        (("x-ambry-owner-id", "a\x7fb"), "x-ambry-owner-id"),
        (("x-ambry-owner-id", "a\x85b"), "x-ambry-owner-id"),
        (("x-ambry-filename", "a\udcffb"), "x-ambry-filename"),
        (("x-ambry-ttl", "soon"), "x-ambry-ttl"),
        (("x-ambry-ttl", ""), "x-ambry-ttl"),
        (("x-ambry-ttl", "1.5"), "x-ambry-ttl"),
        (("x-ambry-ttl", "+1"), "x-ambry-ttl"),
        (("x-ambry-ttl", "-2"), "x-ambry-ttl"),
        (("x-ambry-ttl", "\u0661"), "x-ambry-ttl"),
        (("x-ambry-ttl", str(TTL_SECONDS_MAX + 1)), "x-ambry-ttl"),
        (("x-ambry-ttl", "9" * 5000), "x-ambry-ttl"),
        (("x-ambry-blob-size", "big"), "x-ambry-blob-size"),
        (("x-ambry-blob-size", "-2"), "x-ambry-blob-size"),
        (("x-ambry-um-", "x"), "x-ambry-um-"),
        (("x-ambry-um-a", "\udc80"), "x-ambry-um-a"),
        (("x-ambry-enc-um-a", "%"), "x-ambry-enc-um-a"),
        (("x-ambry-enc-um-a", "%zz"), "x-ambry-enc-um-a"),
        (("x-ambry-enc-um-a", "%ff"), "x-ambry-enc-um-a"),
        (("x-ambry-enc-um-a", "ü"), "x-ambry-enc-um-a"),
        (("Content-MD5", "short"), "Content-MD5"),
        (("Content-MD5", "AAAA"), "Content-MD5"),
        (("Content-MD5", MD5 + "="), "Content-MD5"),
        (("Content-Digest", "sha-256=hello"), "content-digest"),
        (("Content-Digest", "sha-256=:AAAA:"), "content-digest"),
        (("Repr-Digest", "nonsense here"), "repr-digest"),
        (("Repr-Digest", f"md5={MD5}"), "repr-digest"),
        (("Repr-Digest", "sha-256"), "repr-digest"),
        (("Repr-Digest", ""), "repr-digest"),
    ],
)
def test_a_bad_value_is_named(line: tuple[str, str], field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_put_headers([line])
    assert caught.value.facts["field"] == field


@pytest.mark.parametrize(
    "lines",
    [
        [("x-ambry-ttl", "1"), ("X-Ambry-TTL", "2")],
        [("x-ambry-um-a", "1"), ("x-ambry-um-A", "2")],
        [("x-ambry-um-a", "1"), ("x-ambry-enc-um-a", "2")],
        [("x-ambry-service-id", "a"), ("x-ambry-service-id", "a")],
        [("Content-MD5", MD5), ("Repr-Digest", f"md5=:{base64.b64encode(bytes(16)).decode()}:")],
    ],
)
def test_what_is_sent_twice_is_refused(lines: list[tuple[str, str]]) -> None:
    with pytest.raises(BadRequest):
        parse_put_headers(lines)


@pytest.mark.parametrize("name", ["x-ambry-service-id", "x-ambry-owner-id", "x-ambry-filename"])
def test_properties_have_their_limit(name: str) -> None:
    assert put((name, "ü" * (PROPERTY_BYTES_MAX // 2))).size == 0
    with pytest.raises(HeadersTooLarge):
        put((name, "ü" * (PROPERTY_BYTES_MAX // 2) + "x"))


def test_user_metadata_has_its_limit_in_bytes_of_utf_8() -> None:
    fits = [("x-ambry-um-a", "x" * (USER_METADATA_BYTES_MAX // 2 - 1))]
    fits.append(("x-ambry-enc-um-b", "%C3%BC" * (USER_METADATA_BYTES_MAX // 4 - 1)))
    assert len(put(*fits).user_metadata) == 2
    with pytest.raises(HeadersTooLarge):
        put(*fits, ("x-ambry-um-cc", "x"))


def test_an_announced_size_beyond_the_limit_is_too_large() -> None:
    with pytest.raises(TooLarge):
        put(("x-ambry-blob-size", str(BLOB_BYTES_MAX + 1)))


@pytest.mark.parametrize(
    ("value", "ttl_s"), [("-1", None), ("0", 0), ("1", 1), ("007", 7), (str(TTL_SECONDS_MAX), TTL_SECONDS_MAX)]
)
def test_a_ttl_is_seconds_or_for_ever(value: str, ttl_s: int | None) -> None:
    assert parse_ttl(value) == ttl_s
    expires = NEVER if ttl_s is None else NOW_MS + ttl_s * 1000
    assert parse_put_headers([("x-ambry-ttl", value)]).expires_at_ms(NOW_MS) == expires


def test_a_ttl_update_needs_its_ttl() -> None:
    assert required_ttl([("x-ambry-ttl", "5")]) == 5
    with pytest.raises(BadRequest) as caught:
        required_ttl([("x-ambry-service-id", "5")])
    assert caught.value.facts["field"] == "x-ambry-ttl"


@pytest.mark.parametrize(
    ("value", "option"),
    [
        (None, GetOption.NONE),
        ("None", GetOption.NONE),
        ("Include_Expired_Blobs", GetOption.EXPIRED),
        ("include_deleted_blobs", GetOption.DELETED),
        ("Include_All", GetOption.ALL),
    ],
)
def test_get_options(value: str | None, option: GetOption) -> None:
    assert parse_get_option(value) is option


@pytest.mark.parametrize("value", ["", "all", "Include", "Include_All "])
def test_unknown_get_options_are_named(value: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_get_option(value)
    assert caught.value.facts["field"] == "x-ambry-get-option"


NAMES = st.sampled_from(
    [
        "x-ambry-ttl",
        "x-ambry-um-a",
        "x-ambry-enc-um-b",
        "Content-Type",
        "Content-MD5",
        "Repr-Digest",
        "x-ambry-blob-size",
        "Content-Digest",
        "x-ambry-filename",
        "Content-Encoding",
        "x-ambry-content-type",
        "x-ambry-um-",
    ]
)
VALUES = st.text(max_size=40) | st.text(alphabet="abcdefgh0123=:,;/% \t-_", max_size=60)


@given(st.lists(st.tuples(NAMES, VALUES), max_size=5))
def test_any_headers_are_understood_or_refused_with_a_name(lines: list[tuple[str, str]]) -> None:
    try:
        sent = parse_put_headers(lines)
    except AmbryError as error:
        assert isinstance(error, BadRequest) and error.facts["field"]
    else:
        assert sent.properties.content_type.isascii()


# --- digests ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "algorithms"),
    [
        (f"md5=:{MD5}:", {"md5"}),
        (f"sha-256=:{SHA256}:", {"sha-256"}),
        (f"sha-256=:{SHA256}:, md5=:{MD5}:", {"md5", "sha-256"}),
        (f" sha-256=:{SHA256}:;q=1 ,unixsum=:AAAA:", {"sha-256"}),
        ("adler32=:AAAA:", set()),
        ("adler=5", set()),
        ("id-sha-256", set()),
    ],
)
def test_digest_fields(value: str, algorithms: set[str]) -> None:
    found = parse_digest_field(value, "Repr-Digest")
    assert set(found) == algorithms
    for algorithm, digest in found.items():
        assert digest == hashlib.new(algorithm.replace("-", ""), b"hello").digest()


@pytest.mark.parametrize("in_thread", [False, True])
def test_digests_are_checked_over_all_pieces(in_thread: bool) -> None:
    piece = b"x" * (200_000 if in_thread else 1000)
    expected = {name: hashlib.new(name.replace("-", ""), piece * 3).digest() for name in ("md5", "sha-256", "sha-512")}

    async def check(pieces: int) -> dict[str, bytes]:
        digests = DigestCheck(expected)
        for _ in range(pieces):
            digests.arrived(piece)
            await digests.gathered(piece)
        return digests.verify()

    assert asyncio.run(check(3)) == expected
    with pytest.raises(BadRequest) as caught:
        asyncio.run(check(2))
    assert caught.value.name == "bad_digest"


def test_what_is_rendered_is_parsed_to_the_same() -> None:
    digests = {"md5": bytes(range(16)), "sha-256": bytes(range(32)), "sha-512": bytes(64)}
    assert parse_digest_field(render_repr_digest(digests), "Repr-Digest") == digests
    assert parse_content_md5(MD5) == hashlib.md5(b"hello").digest()


@pytest.mark.parametrize(
    ("algorithm", "check"),
    [
        ("crc32", "cbf43926"),
        ("crc32c", "e3069283"),
        ("crc64nvme", "ae8b14860a799888"),
        ("xxh3", xxhash.xxh3_64_hexdigest(b"123456789")),
        ("md5", hashlib.md5(b"123456789").hexdigest()),
    ],
)
def test_a_wanted_digest_is_computed_and_a_sent_one_is_checked(algorithm: str, check: str) -> None:
    async def computed(expected: dict[str, bytes], wanted: frozenset[str]) -> dict[str, bytes]:
        digests = DigestCheck(expected, wanted)
        for piece in (b"1234", b"", b"56789"):
            digests.arrived(piece)
            await digests.gathered(piece)
        return digests.verify()

    right = {algorithm: bytes.fromhex(check)}
    sent = parse_put_headers([("Want-Repr-Digest", f"{algorithm}=1, unknown=3, sha-512=0")])
    assert asyncio.run(computed({}, sent.wanted_digests)) == right
    assert asyncio.run(computed(right, frozenset())) == right
    wrong = bytes([right[algorithm][0] ^ 1]) + right[algorithm][1:]
    with pytest.raises(BadDigest):
        asyncio.run(computed({algorithm: wrong}, frozenset()))


@pytest.mark.parametrize("value", ["md5", "md5=11", "md5=:AA==:", "", "md5=1,,"])
def test_a_wish_for_digests_that_cannot_be_read_is_refused(value: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_put_headers([("Want-Repr-Digest", value)])
    assert caught.value.facts["field"] == "want-repr-digest"
