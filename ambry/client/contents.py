"""Content of models: blobs under their SHA-256 in a container, stored once; and the collector of what nobody needs.

Whoever publishes a manifest has created or touched each content that it names within the last day, and has seen it
there *after* that. The collector moves what seems unused away *before* it looks whether somebody touched it. So one of
the two sees the other: docs/decisions has the argument. This module does not know what models are made of.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from ambry.client.folders import in_order
from ambry.client.model_names import CONTENT, TOUCHED, TRASH, is_sha256
from ambry.client.values import BlobInfo, ListedName
from ambry.errors import (
    BlobDeleted,
    BlobExpired,
    BlobNotFound,
    ModelDamaged,
    NameDeleted,
    NameExists,
    NameExpired,
    NameNotFound,
    PreconditionFailed,
)

if TYPE_CHECKING:
    from ambry.client.client import Client

GONE: Final = (BlobNotFound, BlobDeleted, BlobExpired, NameNotFound, NameDeleted, NameExpired)
KEPT_S: Final = 7 * 86_400
"""Content that nobody touched for this long, and no manifest names, is collected."""
KEPT_S_MIN: Final = 86_400
"""Pushes lean on this: what they have touched within a day is not collected."""
_ATTEMPTS: Final = 5
_CLOCK: Final = f"{TOUCHED}collector"


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection found and did; sizes in bytes."""

    kept: int = 0
    kept_size: int = 0
    removed: int = 0
    removed_size: int = 0


class Contents:
    """The content in one container, `account/container`."""

    def __init__(self, client: "Client", container: str) -> None:
        self._client = client
        self._container = container

    def name(self, digest: str) -> str:
        """What a content is called."""
        return f"{self._container}/{CONTENT}{digest}"

    def exists(self, digest: str) -> bool:
        """Whether it is there."""
        return self._client.exists(self.name(digest))

    def renew(self, digest: str) -> bool:
        """Keep a content for another week; says whether it is there, seen after that."""
        self._client.put(b"", f"{self._container}/{TOUCHED}{digest}", upsert=True)
        return self.exists(digest)

    def ensure(self, digest: str, send: Callable[[str], object]) -> bool:
        """Have a content: one that is there is renewed, else `send` puts it under a name. Says whether it was sent.

        `send` puts with `If-None-Match: *`.
        """
        for _ in range(_ATTEMPTS):
            if self.exists(digest) and self.renew(digest):
                return False
            try:
                send(self.name(digest))
                return True
            except (PreconditionFailed, NameExists):
                # Somebody else was faster, or the answer to our first attempt was lost.
                continue
        raise ModelDamaged("a content comes and goes", name=digest)

    def ensure_bytes(self, data: bytes) -> tuple[str, bool]:
        """Have these bytes; their SHA-256, and whether they were sent."""
        digest = sha256(data)
        name = digest.hexdigest()
        return name, self.ensure(
            name, lambda target: self._client.put(data, target, if_none_match=True, sha256=digest.digest())
        )

    def locate(self, digest: str) -> BlobInfo:
        """Where a content is at present. Raises ModelDamaged when it is nowhere."""
        # The collector may be about to bring back what it has moved away.
        for _ in range(_ATTEMPTS):
            for place in (CONTENT, TRASH):
                with contextlib.suppress(*GONE):
                    return self._client.stat(f"{self._container}/{place}{digest}")
        raise ModelDamaged("content of the model is not in the store", name=digest)

    def read(self, digest: str, size: int | None = None) -> bytes:
        """A small content, verified. Raises ModelDamaged."""
        try:
            data = self._client.get(self.name(digest))
        except GONE:
            data = self._client.get(self.locate(digest).id)
        if sha256(data).hexdigest() != digest or (size is not None and len(data) != size):
            raise ModelDamaged("content does not have its SHA-256", name=digest)
        return data

    # --- collecting --------------------------------------------------------------------------------------------

    def collect(self, used: Callable[[], frozenset[str]], *, kept_s: int, threads: int, is_dry: bool) -> Collected:
        """Remove what is not in `used()`, and was neither put nor touched for `kept_s` seconds of the store's clock.

        `used` is asked after the clock was read: what it cannot see yet is published later, so was touched lately.
        """
        since_ms = self._now_ms() - 1000 * kept_s
        wanted = used()
        touched = {_last(one): one.modified_ms for one in self._list(TOUCHED)}
        if not is_dry:
            for left in list(self._list(TRASH)):
                self._judge(_last(left), since_ms, wanted)
        kept, kept_size = 0, 0
        unused: list[ListedName] = []
        for one in self._list(CONTENT):
            digest = _last(one)
            if digest in wanted or not is_sha256(digest) or max(one.modified_ms, touched.get(digest, 0)) >= since_ms:
                kept, kept_size = kept + 1, kept_size + one.size
            else:
                unused.append(one)
        sizes = [one.size for one in unused]
        if not is_dry:
            with contextlib.closing(in_order(threads, lambda one: self._remove(one, since_ms, wanted), unused)) as gone:
                sizes = list(gone)
            self._forget_touches(touched, since_ms)
        return Collected(kept, kept_size, sum(size >= 0 for size in sizes), sum(size for size in sizes if size >= 0))

    def _now_ms(self) -> int:
        """The time of the store: rows are compared with rows."""
        self._client.put(b"", f"{self._container}/{_CLOCK}", upsert=True)
        return next(one.modified_ms for one in self._list(_CLOCK))

    def _list(self, what: str) -> Iterator[ListedName]:
        return self._client.list(f"{self._container}/{what}")

    def _remove(self, one: ListedName, since_ms: int, wanted: frozenset[str]) -> int:
        """Move a content away, then look at it again; its size if it is gone now, else -1."""
        digest = _last(one)
        try:
            self._client.move(self.name(digest), f"{self._container}/{TRASH}{digest}")
        except (*GONE, NameExists):
            return -1
        return one.size if self._judge(digest, since_ms, wanted) else -1

    def _judge(self, digest: str, since_ms: int, wanted: frozenset[str]) -> bool:
        """What becomes of a content that was moved away: it is brought back, or deleted. Whether it was deleted."""
        trash = f"{self._container}/{TRASH}{digest}"
        touched_ms = 0
        for row in self._list(f"{TOUCHED}{digest}"):
            touched_ms = row.modified_ms
        with contextlib.suppress(*GONE, PreconditionFailed):
            moved = self._client.stat(trash)
            if digest in wanted or touched_ms >= since_ms:
                with contextlib.suppress(NameExists):
                    self._client.move(trash, self.name(digest))
                    return False
            # Not wanted, or somebody has put it anew meanwhile.
            self._client.delete(trash, if_match=moved.id)
            return True
        return False

    def _forget_touches(self, touched: dict[str, int], since_ms: int) -> None:
        """Touches that are too old to count keep nothing: what they touched is used, or gone."""
        for digest, modified_ms in touched.items():
            if modified_ms < since_ms and is_sha256(digest):
                name = f"{self._container}/{TOUCHED}{digest}"
                with contextlib.suppress(*GONE, PreconditionFailed):
                    seen = self._client.stat(name)
                    for row in self._list(f"{TOUCHED}{digest}"):
                        if row.id == seen.id and row.modified_ms < since_ms:
                            self._client.delete(name, if_match=seen.id)


def _last(one: ListedName) -> str:
    return one.name.rpartition("/")[2]


def verify_all(contents: Contents, wanted: Iterable[str], threads: int) -> list[str]:
    """Those of some contents that are not there."""
    with contextlib.closing(in_order(threads, lambda one: (one, contents.exists(one)), wanted)) as checked:
        return [digest for digest, is_there in checked if not is_there]
