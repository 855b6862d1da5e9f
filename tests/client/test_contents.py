"""The collector beside pushes, readers and other collectors, in any order of their requests: content in use stays.

The store here is a dictionary that answers one request at a time; a seed says whose request is next.
"""

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from typing import Any, Final

import pytest

from ambry.client.contents import KEPT_S, Contents
from ambry.client.values import BlobInfo, ListedName, Stored
from ambry.errors import ConnectionLost, ModelDamaged, NameExists, NameNotFound, PreconditionFailed

BASE: Final = "a/c"
DATA: Final = b"content"
DIGEST: Final = sha256(DATA).hexdigest()
START_MS: Final = 1_700_000_000_000


class Turns:
    """Lets one of those who want to ask a store do so; whose turn it is comes from a seed."""

    def __init__(self, seed: int, actors: int) -> None:
        self._chance = random.Random(seed)
        self._changed = threading.Condition()
        self._alive = set(range(actors))
        self._waiting: set[int] = set()
        self._next: int | None = None

    @contextmanager
    def taken(self, actor: int) -> Iterator[None]:
        with self._changed:
            self._waiting.add(actor)
            self._pick()
            assert self._changed.wait_for(lambda: self._next == actor, 30)
            self._waiting.discard(actor)
            self._next = None
            yield

    def end(self, actor: int) -> None:
        with self._changed:
            self._alive.discard(actor)
            self._pick()

    def _pick(self) -> None:
        if self._next is None and self._waiting and self._waiting == self._alive:
            self._next = self._chance.choice(sorted(self._waiting))
            self._changed.notify_all()


class Names:
    """What a store has: name to id, bytes and when."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[str, bytes, int]] = {}
        self.now_ms = START_MS
        self.count = 0

    def write(self, name: str, data: bytes, at_ms: int | None = None) -> str:
        self.count += 1
        self.rows[name] = (f"id-{self.count}", data, self.now_ms if at_ms is None else at_ms)
        return f"id-{self.count}"


class Asking:
    """What `Contents` asks of a client; ends with an error after so many requests."""

    def __init__(self, names: Names, turns: Turns, actor: int, requests: int = 10_000) -> None:
        self._names = names
        self._turns = turns
        self._actor = actor
        self._left = requests

    @contextmanager
    def _turn(self) -> Iterator[dict[str, tuple[str, bytes, int]]]:
        with self._turns.taken(self._actor):
            self._left -= 1
            if self._left < 0:
                raise ConnectionLost("killed")
            self._names.now_ms += 1
            yield self._names.rows

    def put(self, data: bytes, name: str, *, if_none_match: bool = False, **_: Any) -> Stored:
        with self._turn() as rows:
            if if_none_match and name in rows:
                raise PreconditionFailed("there")
            return Stored(self._names.write(name, data), len(data), name)

    def exists(self, name: str) -> bool:
        with self._turn() as rows:
            return name in rows

    def stat(self, name: str) -> BlobInfo:
        with self._turn() as rows:
            if name not in rows:
                raise NameNotFound(name)
            return BlobInfo(rows[name][0], len(rows[name][1]), "", rows[name][2])

    def get(self, ref: str) -> bytes:
        with self._turn() as rows:
            for name, (blob_id, data, _) in rows.items():
                if ref in {name, blob_id}:
                    return data
            raise NameNotFound(ref)

    def move(self, source: str, target: str) -> None:
        with self._turn() as rows:
            if source not in rows:
                raise NameNotFound(source)
            if target in rows:
                raise NameExists(target)
            rows[target] = rows.pop(source)

    def delete(self, name: str, *, if_match: str) -> None:
        with self._turn() as rows:
            if name not in rows:
                raise NameNotFound(name)
            if rows[name][0] != if_match:
                raise PreconditionFailed(name)
            del rows[name]

    def list(self, prefix: str) -> Iterator[ListedName]:
        with self._turn() as rows:
            found = [
                ListedName(name.removeprefix(f"{BASE}/"), id=row[0], size=len(row[1]), modified_ms=row[2])
                for name, row in sorted(rows.items())
                if name.startswith(prefix)
            ]
        yield from found


MANIFEST: Final = f"{BASE}/.versions/m/1"


def used_by(asking: Asking) -> Callable[[], frozenset[str]]:
    """The content that manifests name, as the collector asks for it."""
    return lambda: frozenset({DIGEST}) if any(True for _ in asking.list(f"{BASE}/.versions/")) else frozenset()


def started(names: Names, begin: str) -> None:
    """What was there before: content that nobody has touched for long, here or moved away, or none."""
    if "content" in begin:
        names.write(f"{BASE}/.content/{DIGEST}", DATA, 0)
    if "trash" in begin:
        names.write(f"{BASE}/.trash/{DIGEST}", DATA, 0)
    if "touched" in begin:
        names.write(f"{BASE}/.touched/{DIGEST}", b"", 0)


def run(seed: int, begin: str, *, dies_after: int) -> tuple[Names, list[str]]:
    """A push, a reader of what it has published, and two collectors, one of which may be killed."""
    names, turns, wrong = Names(), Turns(seed, 4), list[str]()
    started(names, begin)
    published = threading.Event()

    def push(asking: Asking) -> None:
        contents = Contents(asking, BASE)  # type: ignore[arg-type] # what it asks of a client
        contents.ensure_bytes(DATA)
        asking.put(b"manifest", MANIFEST)
        published.set()

    def read(asking: Asking) -> None:
        contents = Contents(asking, BASE)  # type: ignore[arg-type] # what it asks of a client
        for _ in range(40):
            if asking.exists(MANIFEST):
                if contents.read(DIGEST) != DATA:
                    wrong.append("other bytes")
                return

    def collect(asking: Asking) -> None:
        contents = Contents(asking, BASE)  # type: ignore[arg-type] # what it asks of a client
        contents.collect(used_by(asking), kept_s=KEPT_S, threads=1, is_dry=False)

    def act(actor: int, job: Callable[[Asking], None], requests: int) -> None:
        try:
            with suppress(ConnectionLost):
                job(Asking(names, turns, actor, requests))
        except Exception as error:  # noqa: BLE001 -- whatever it is, the test says so
            wrong.append(f"{job.__name__}: {error!r}")
        finally:
            turns.end(actor)

    jobs = ((push, 10_000), (read, 10_000), (collect, 10_000), (collect, dies_after))
    threads = [threading.Thread(target=act, args=(number, job, most)) for number, (job, most) in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert published.is_set() or wrong
    return names, wrong


def alone(names: Names) -> Asking:
    return Asking(names, Turns(0, 1), 0)


@pytest.mark.parametrize("begin", ["content", "content touched", "trash", "trash touched", "content trash", ""])
def test_no_order_of_requests_loses_what_a_push_reuses(begin: str) -> None:
    for seed in range(120):
        names, wrong = run(seed, begin, dies_after=seed % 16 if seed % 2 else 10_000)
        assert not wrong, (seed, begin, wrong)
        asking = alone(names)
        contents = Contents(asking, BASE)  # type: ignore[arg-type] # what it asks of a client
        assert contents.read(DIGEST) == DATA, (seed, begin)
        contents.collect(used_by(asking), kept_s=KEPT_S, threads=1, is_dry=False)
        assert contents.exists(DIGEST), (seed, begin)
        assert f"{BASE}/.trash/{DIGEST}" not in names.rows


def test_content_that_nobody_needs_goes_after_its_time_and_not_before() -> None:
    names = Names()
    asking = alone(names)
    contents = Contents(asking, BASE)  # type: ignore[arg-type] # what it asks of a client
    contents.ensure_bytes(DATA)
    assert contents.renew(DIGEST)

    def collected(*, is_dry: bool = False) -> int:
        return contents.collect(frozenset, kept_s=KEPT_S, threads=1, is_dry=is_dry).removed

    assert collected() == 0
    names.now_ms += 1000 * KEPT_S - 1000
    assert collected() == 0
    names.now_ms += 2000
    assert collected(is_dry=True) == 1
    assert contents.exists(DIGEST)
    assert collected() == 1
    assert sorted(names.rows) == [f"{BASE}/.touched/collector"]
    with pytest.raises(ModelDamaged):
        contents.read(DIGEST)


def test_content_that_a_manifest_names_stays_for_ever() -> None:
    names = Names()
    contents = Contents(alone(names), BASE)  # type: ignore[arg-type] # what it asks of a client
    contents.ensure_bytes(DATA)
    names.now_ms += 1000 * KEPT_S * 100
    report = contents.collect(lambda: frozenset({DIGEST}), kept_s=KEPT_S, threads=1, is_dry=False)
    assert (report.kept, report.kept_size, report.removed) == (1, len(DATA), 0)
    assert contents.read(DIGEST) == DATA
