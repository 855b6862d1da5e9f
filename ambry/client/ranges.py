"""Ranges of blobs whose bytes are those that the store has: each is compared with a digest that the store made of it.

A range of up to 4 MiB has its xxh3 in the head of its answer. A longer one comes first, and is then asked for by HEAD:
the store reads it once more, and sends a digest. What has another one is read again, from another frontend where there
is one, and an error when it stays so. A store that makes no such digests is believed.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from ambry.client.digests import digest_of
from ambry.client.fresh_memory import Step, at_once
from ambry.client.retry import ATTEMPTS_MAX
from ambry.client.session import Session
from ambry.client.values import digests_of
from ambry.errors import AmbryError, BadDigest, ConnectionLost
from ambry.limits import HEAD_DIGEST_BYTES_MAX

if TYPE_CHECKING:
    from ambry.client.http import Exchange

WANTED: Final = {"Want-Content-Digest": "xxh3=1"}
"""What a request for a range says beside it."""


def read_range(session: Session, path: str, value: str, deadline: float) -> bytes:
    """The bytes of a range in memory; `value` is that of its header. Raises BadDigest, and as Session.read."""
    headers = {"Range": value, **WANTED}

    def take(exchange: "Exchange") -> tuple[bytes, bool, str, str]:
        data = exchange.read()
        place = exchange.headers.get("content-range", "")
        first, _, last = place.removeprefix("bytes ").partition("/")[0].partition("-")
        if exchange.status == 206 and len(data) != int(last) + 1 - int(first):
            raise ConnectionLost("the answer is shorter or longer than it says")
        # Of an empty blob, whose range is the whole of it, there is nothing to compare.
        is_checked = exchange.status == 200 or _is_digest_right(exchange, [data])
        return data, is_checked, exchange.headers.get("etag", ""), first

    for _ in range(ATTEMPTS_MAX):
        data, is_checked, etag, start = session.read(
            path, take, headers=headers, expected=(200, 206), deadline=deadline
        )
        if is_checked:
            return data
        # By its id: the name may stand for another blob by now.
        if not etag:
            return data
        if _is_as_stored(session, f"/{etag.strip(chr(34))}", int(start), memoryview(data), deadline):
            return data
    raise _wrong()


def read_into(session: Session, path: str, start: int, view: memoryview, deadline: float, step: Step = at_once) -> None:
    """Fill a view with the bytes from `start` on, of a blob by its id, by the step.

    Raises BadDigest, and as Session.read.
    """
    at = 0
    # Each attempt asks for what has not come yet.
    headers = {"Range": f"bytes={start}-{start + len(view) - 1}", **WANTED}

    def take(exchange: "Exchange") -> bool:
        nonlocal at
        began = at
        exchange.stream()
        while at < len(view) and (count := exchange.readinto(view[at : at + step(at, len(view) - at)])):
            at += count
        if at < len(view):
            raise ConnectionLost(f"the answer is {len(view) - at} bytes short")
        try:
            is_checked = _is_digest_right(exchange, [view[began:]])
        except BadDigest:
            at = began
            raise
        finally:
            headers["Range"] = f"bytes={start + at}-{start + len(view) - 1}"
        return is_checked and began == 0

    for _ in range(ATTEMPTS_MAX if len(view) else 0):
        is_checked = session.read(path, take, headers=headers, expected=(206,), deadline=deadline)
        if is_checked or _is_as_stored(session, path, start, view, deadline):
            return
        at = 0
        headers["Range"] = f"bytes={start}-{start + len(view) - 1}"
    if len(view):
        raise _wrong()


def _is_digest_right(exchange: "Exchange", pieces: Iterable[bytes | memoryview]) -> bool:
    """Whether the answer had a digest of its bytes. Raises BadDigest for one of others."""
    told = digests_of(exchange.headers.get("content-digest", "")).get("xxh3")
    if told is not None and told != digest_of("xxh3", pieces):
        raise _wrong()
    return told is not None


def stored_digest(session: Session, path: str, start: int, stop: int, algorithm: str, deadline: float) -> str | None:
    """What the store says of bytes `start:stop` of a blob, 256 MiB at most, in base64; None if it says nothing."""
    headers = {"Range": f"bytes={start}-{stop - 1}", "Want-Content-Digest": f"{algorithm}=1"}
    exchange = session.ask("HEAD", path, headers=headers, expected=(206,), deadline=deadline)
    exchange.close()
    return digests_of(exchange.headers.get("content-digest", "")).get(algorithm)


def _is_as_stored(session: Session, path: str, start: int, view: memoryview, deadline: float) -> bool:
    """Whether the store has the same bytes, as far as it says anything."""
    for at in range(0, len(view), HEAD_DIGEST_BYTES_MAX):
        part = view[at : at + HEAD_DIGEST_BYTES_MAX]
        told = stored_digest(session, path, start + at, start + at + len(part), "xxh3", deadline)
        if told not in {None, digest_of("xxh3", [part])}:
            return False
    return True


def _wrong() -> AmbryError:
    return BadDigest("the bytes that came do not have their checksum", field="xxh3")
