"""Every role by every operation by every kind of credentials, and every way to forge, age, replay and carry them over.

A role is a key with one right in one place. What it may do follows from two columns: which right an operation needs,
and where. A test says that no operation is missing.
"""

import asyncio
import base64
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pytest

from ambry.access.keys import Grant, NewKey, Right, make_key
from ambry.access.signatures import CONTENT_SHA256, DATE, SignedUrl, format_date, sign_request
from ambry.clock import Clock
from ambry.frontend.access import Access
from ambry.frontend.connection import Connection
from ambry.frontend.fast_lane import FastConnection
from ambry.frontend.native import NativeApi
from ambry.names.open import ensure_epoch, open_database, sqlite_url
from tests.frontend.serving import RawAnswer, Serving, request_bytes, serving
from tests.frontend.tenants import DATA, MASTERS, NOW_MS, OURS, PUBLIC, THEIRS, into

BODY: Final = b"some bytes"

# --- roles -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Role:
    """A key: rights in a container of an account, in the account (container None), or in the store (both None)."""

    rights: Right
    account: int | None = None
    container: int | None = None
    is_expired: bool = False
    is_removed: bool = False


_SINGLE: Final = {"read": Right.READ, "write": Right.WRITE, "delete": Right.DELETE, "list": Right.LIST,
                  "admin": Right.ADMIN}  # fmt: skip
_ALL: Final = Right.READ | Right.WRITE | Right.DELETE | Right.LIST | Right.ADMIN
ROLES: Final[dict[str, Role]] = {
    **{f"{name} in the container": Role(right, 1, 1) for name, right in _SINGLE.items()},
    **{f"{name} in the account": Role(right, 1) for name, right in _SINGLE.items()},
    **{f"{name} in the store": Role(right) for name, right in _SINGLE.items()},
    "all in another container": Role(_ALL, 1, 2),
    "all in another account": Role(_ALL, 2),
    "all in the container": Role(_ALL, 1, 1),
    "all in the store": Role(_ALL),
    "expired": Role(_ALL, is_expired=True),
    "removed": Role(_ALL, is_removed=True),
}


def _key_of(number: int, role: Role) -> NewKey:
    seed = bytes([100 + number])
    return make_key(
        MASTERS,
        seed * 10,
        seed * 32,
        account=role.account,
        grants=(Grant(role.container, role.rights),),
        now_ms=NOW_MS,
        expires_ms=NOW_MS if role.is_expired else None,
    )


KEYS: Final = {name: _key_of(number, role) for number, (name, role) in enumerate(ROLES.items())}
OPERATOR: Final = KEYS["all in the store"]


def tenants(clock: Clock) -> Access:
    access = Access(clock, masters=MASTERS, is_open=False)
    access.adopt(replace(DATA, keys=tuple(KEYS[name].key for name, role in ROLES.items() if not role.is_removed)))
    return access


# --- operations --------------------------------------------------------------------------------------------------

CONTAINER, ACCOUNT, STORE, ANYBODY = "container", "account", "store", "anybody"


@dataclass(frozen=True)
class Operation:
    """A request, the right that it needs and where; `good` is its status for whoever has it."""

    method: str
    path: str
    right: Right
    scope: str
    good: int
    headers: Mapping[str, str] | None = None
    body: bytes | None = None

    @property
    def described(self) -> tuple[str, str]:
        """Method and path as the API lists its operations."""
        path = self.path.replace("{blob}", "/{id}").replace("{gone}", "/{id}").replace("Segment/0", "Segment/{segment}")
        path = path.replace("{upload}/1", "{upload}/{part}")
        return self.method, path.replace("ours/private", "{account}/{container}").replace("there", "{name}").replace(
            "{new}", "{name}"
        ).partition("?")[0]


_OWNER: Final = into(OURS)
_NAME: Final = "/named/ours/private/there"
OPERATIONS: Final = [
    *(
        Operation(method, "{blob}" + rest, Right.READ, CONTAINER, 200)
        for method in ("GET", "HEAD")
        for rest in ("", "/BlobInfo", "/UserMetadata", "/Segment/0")
    ),
    Operation("GET", "{blob}/Replicas", Right.READ, CONTAINER, 200),
    Operation("GET", "{blob}/BlobChunkIds", Right.READ, CONTAINER, 200),
    Operation("DELETE", "{blob}", Right.DELETE, CONTAINER, 202),
    Operation("PUT", "{blob}/ttl", Right.WRITE, CONTAINER, 200, {"x-ambry-ttl": "-1"}),
    Operation("PUT", "{gone}/undelete", Right.DELETE, CONTAINER, 200),
    Operation("PUT", "/updateTtl", Right.WRITE, CONTAINER, 200, {"x-ambry-blob-id": "{blob}"}),
    Operation("PUT", "/updateTtl", Right.WRITE, CONTAINER, 200, {"x-ambry-blob-id": _NAME}),
    Operation("PUT", "/undelete", Right.DELETE, CONTAINER, 200, {"x-ambry-blob-id": "{gone}"}),
    Operation("PUT", "/undelete", Right.DELETE, CONTAINER, 200, {"x-ambry-blob-id": "/named/ours/private/deleted"}),
    Operation("POST", "/", Right.WRITE, CONTAINER, 201, _OWNER, BODY),
    Operation("PUT", "/", Right.WRITE, CONTAINER, 201, _OWNER, BODY),
    Operation("POST", "/batch/put", Right.WRITE, CONTAINER, 200, _OWNER, b""),
    Operation("POST", "/uploads", Right.WRITE, CONTAINER, 201, _OWNER, b""),
    Operation("GET", "/uploads/{upload}", Right.WRITE, CONTAINER, 200),
    Operation("PUT", "/uploads/{upload}/1", Right.WRITE, CONTAINER, 200, None, BODY),
    Operation("POST", "/uploads/{upload}", Right.WRITE, CONTAINER, 400, None, b"{}"),
    Operation("DELETE", "/uploads/{upload}", Right.WRITE, CONTAINER, 202),
    Operation("GET", _NAME, Right.READ, CONTAINER, 200),
    Operation("HEAD", _NAME, Right.READ, CONTAINER, 200),
    Operation("GET", _NAME + "?versions", Right.LIST, CONTAINER, 200),
    Operation("GET", "/named/ours/private", Right.LIST, CONTAINER, 200),
    Operation("HEAD", "/named/ours/private", Right.LIST, CONTAINER, 200),
    Operation("PUT", "/named/ours/private/{new}", Right.WRITE, CONTAINER, 201, None, BODY),
    Operation("DELETE", _NAME, Right.DELETE, CONTAINER, 202),
    Operation("GET", "/signedUrl", Right.READ, CONTAINER, 200, {"x-ambry-blob-id": "{blob}"}),
    Operation("GET", "/signedUrl", Right.READ, CONTAINER, 200, {"x-ambry-blob-id": _NAME}),
    Operation("GET", "/signedUrl", Right.WRITE, CONTAINER, 200, {"x-ambry-url-type": "POST", **_OWNER}),
    Operation("GET", "/signedUrl", Right.WRITE, CONTAINER, 200, {"x-ambry-url-type": "PUT", "x-ambry-blob-id": _NAME}),
    Operation("GET", "/accounts", Right.ADMIN, ACCOUNT, 200, {"x-ambry-target-account-name": "ours"}),
    Operation("POST", "/accounts", Right.ADMIN, STORE, 400, None, b"{}"),
    Operation("DELETE", "/accounts", Right.ADMIN, STORE, 400),
    Operation("GET", "/accounts/containers", Right.ADMIN, ACCOUNT, 200, _OWNER),
    Operation("POST", "/accounts/containers", Right.ADMIN, ACCOUNT, 400, _OWNER, b"{}"),
    Operation("DELETE", "/accounts/containers", Right.ADMIN, ACCOUNT, 404,
              {**_OWNER, "x-ambry-target-container-name": "missing"}),
    Operation("GET", "/accounts/keys", Right.ADMIN, ACCOUNT, 200, {"x-ambry-target-account-name": "ours"}),
    Operation("POST", "/accounts/keys", Right.ADMIN, ACCOUNT, 404, None,
              b'{"accountName": "ours", "grants": [{"containerName": "missing", "rights": ["read"]}]}'),
    Operation("DELETE", "/accounts/keys", Right.ADMIN, ACCOUNT, 200, {"x-ambry-key-id": "{victim}"}),
    Operation("GET", "/metrics", Right.READ, STORE, 200),
    Operation("HEAD", "/metrics", Right.READ, STORE, 200),
    Operation("GET", "/peers", Right.READ, STORE, 400),
    Operation("GET", "/getClusterMapSnapshot", Right.READ, STORE, 200),
    Operation("GET", "/statsReport", Right.READ, STORE, 200),
    Operation("GET", "/namesFeed?datacentre=2&epoch=&after=0.0", Right.READ, STORE, 200),
    Operation("GET", "/accountsFeed", Right.ADMIN, STORE, 200),
    Operation("GET", "/healthCheck", Right(0), ANYBODY, 200),
    Operation("HEAD", "/healthCheck", Right(0), ANYBODY, 200),
    Operation("GET", "/openapi.json", Right(0), ANYBODY, 200),
    Operation("OPTIONS", "{blob}", Right(0), ANYBODY, 200),
]  # fmt: skip
BATCHES: Final = {"get": Right.READ, "stat": Right.READ, "delete": Right.DELETE}


def test_no_operation_is_missing() -> None:
    async def operations() -> set[tuple[str, str]]:
        async with serving() as run:
            return NativeApi(run.frontend.services).operations

    found = {one.described for one in OPERATIONS} | {("POST", f"/batch/{what}") for what in BATCHES}
    assert asyncio.run(operations()) - found == set()


def may(role: Role, right: Right, scope: str) -> bool:
    """What the two columns say."""
    if scope == ANYBODY:
        return True
    if right not in role.rights:
        return False
    if role.account is None:
        return True
    if scope == STORE or role.account != 1:
        return False
    return role.container is None or (scope == CONTAINER and role.container == 1)


class Tenants:
    """A frontend with a blob, a deleted blob and names of OURS, which are there again before every request."""

    def __init__(self, run: Serving) -> None:
        self.run = run
        self.number = 0
        self.is_changed = True
        self.blob = self.gone = self.new = self.upload = ""

    async def prepare(self) -> None:
        """Everything as it was, if a request may have changed it."""
        owner = {"Authorization": f"Bearer {OPERATOR.token}"}
        self.number += 1
        self.new = f"new-{self.number}"
        if self.is_changed:
            self.is_changed = False
            self.blob = await self.run.put(BODY, {**owner, **_OWNER})
            self.gone = await self.run.put(BODY, {**owner, **_OWNER})
            await self.run.ask("DELETE", self.gone, owner)
            upsert = {**owner, "x-ambry-named-upsert": "true"}
            for name in ("there", "deleted"):
                assert (await self.run.ask("PUT", f"/named/ours/private/{name}", upsert, BODY)).status == 201
            await self.run.ask("DELETE", "/named/ours/private/deleted", owner)
            if self.run.frontend.services.uploads is not None:
                begun = await self.run.ask("POST", "/uploads", {**owner, **_OWNER}, b"")
                self.upload = begun.headers["x-ambry-upload-id"]

    def filled(self, text: str) -> str:
        """A path or a value with the things of this moment."""
        text = text.replace("{blob}", self.blob).replace("{gone}", self.gone).replace("{new}", self.new)
        text = text.replace("{upload}", self.upload)
        return text.replace("{victim}", KEYS["list in the account"].key.key_id)

    async def ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None) -> RawAnswer:
        """A request of which only status and error are looked at: some answers have no length."""
        client = await self.run.connect()
        await client.send(request_bytes(method, path, {**headers, "Connection": "close"}, body))
        answered = await client.ended()
        head, _, rest = answered.partition(b"\r\n\r\n")
        self.is_changed |= method not in {"GET", "HEAD"} and b" 2" in head[:11]
        lines = [line.partition(": ") for line in head.decode().split("\r\n")[1:]]
        return RawAnswer(int(head.split(b" ", 2)[1]), {name.lower(): value for name, _, value in lines}, rest)


KINDS: Final = ("bearer", "signature", "url")


def credentials(
    kind: str, made: NewKey, method: str, path: str, headers: Mapping[str, str], body: bytes | None, now_ms: int
) -> tuple[str, dict[str, str]]:
    """Path and headers of the request with credentials of a kind."""
    sent = dict(headers)
    if kind == "bearer":
        return path, {**sent, "Authorization": f"Bearer {made.token}"}
    if kind == "url":
        bare, _, query = path.partition("?")
        assert not query
        url = SignedUrl(
            made.key.key_id, "GET" if method == "HEAD" else method, bare, now_ms // 1000 + 60, None,
            sent.get("x-ambry-target-account-name"), sent.get("x-ambry-target-container-name"),
        )  # fmt: skip
        return url.signed_with(made.secret), sent
    sent |= {DATE: format_date(now_ms), CONTENT_SHA256: hashlib.sha256(body or b"").hexdigest()}
    if path == "/batch/put":
        sent[CONTENT_SHA256] = "UNSIGNED-PAYLOAD"
    bare, _, query = path.partition("?")
    signed = sign_request(
        made.secret, made.key.key_id, method=method, path=bare, query=query, headers={"Host": "test", **sent}
    )
    return path, sent | signed


def url_status(one: Operation, role: Role) -> int | None:
    """What a signed URL of the role is answered; None where the operation cannot be signed."""
    if one.method in {"DELETE", "OPTIONS"} or "?" in one.path:
        return None
    if role.is_expired or role.is_removed:
        return 401
    is_of_path = one.scope in {CONTAINER, ANYBODY} and one.path not in {"/signedUrl", "/updateTtl", "/undelete"}
    return one.good if is_of_path and may(role, one.right, one.scope) else 403


@pytest.mark.parametrize(("kind", "way"), [("bearer", Connection), *((kind, FastConnection) for kind in KINDS)])
def test_every_cell(kind: str, way: type[Connection], tmp_path: Path) -> None:
    cells = 0

    async def main() -> None:
        nonlocal cells
        database = open_database(sqlite_url(tmp_path))
        await ensure_epoch(database, lambda: "epoch", NOW_MS)
        async with serving(access=tenants, database=database, masters=MASTERS, connection_class=way) as run:
            there = Tenants(run)
            data = run.frontend.services.access.snapshot
            for one in OPERATIONS:
                for name, role in ROLES.items():
                    if run.frontend.services.access.snapshot is not data:
                        # A key was removed, with what the database knows of keys: nothing.
                        run.frontend.services.access.snapshot = data
                    await there.prepare()
                    headers = {key: there.filled(value) for key, value in (one.headers or {}).items()}
                    path = there.filled(one.path)
                    wanted: int | None
                    if kind == "url":
                        wanted = url_status(one, role)
                    elif role.is_expired or role.is_removed:
                        wanted = 401
                    else:
                        wanted = one.good if may(role, one.right, one.scope) else 403
                    if wanted is None:
                        continue
                    path, sent = credentials(kind, KEYS[name], one.method, path, headers, one.body, run.clock.now_ms())
                    answer = await there.ask(one.method, path, sent, one.body)
                    expected = {wanted} | ({404} if "{victim}" in str(one.headers) and wanted == 200 else set())
                    assert answer.status in expected, (name, one, answer)
                    cells += 1
                    if answer.status in {401, 403} and one.method != "HEAD":
                        assert answer.error["code"] == ("unauthenticated" if answer.status == 401 else "forbidden")
                    assert b"raceback" not in answer.body and str(tmp_path).encode() not in answer.body
        await database.close()

    asyncio.run(main())
    assert cells > 500


@pytest.mark.usefixtures("both_ways")
def test_who_shows_nothing_may_read_what_is_public_and_no_more(tmp_path: Path) -> None:
    async def main() -> None:
        database = open_database(sqlite_url(tmp_path))
        async with serving(access=tenants, database=database, masters=MASTERS) as run:
            there = Tenants(run)
            for one in OPERATIONS:
                await there.prepare()
                headers = {key: there.filled(value) for key, value in (one.headers or {}).items()}
                answer = await there.ask(one.method, there.filled(one.path), headers, one.body)
                assert answer.status == (one.good if one.scope == ANYBODY else 403), (one, answer)
            # The same in a container that everybody may read: what needs READ, and nothing else.
            owner = {"Authorization": f"Bearer {OPERATOR.token}"}
            for one in OPERATIONS:
                if one.scope != CONTAINER or one.path == "/signedUrl":
                    continue
                there.blob = await run.put(BODY, {**owner, **into(PUBLIC)})
                there.gone = await run.put(BODY, {**owner, **into(PUBLIC)})
                await run.ask("DELETE", there.gone, owner)
                upsert = {**owner, "x-ambry-named-upsert": "true"}
                await run.ask("PUT", "/named/ours/public/there", upsert, BODY)
                public = {
                    key: there.filled(value).replace("private", "public") for key, value in (one.headers or {}).items()
                }
                path = there.filled(one.path).replace("private", "public")
                answer = await there.ask(one.method, path, public, one.body)
                assert answer.status == (one.good if one.right is Right.READ else 403), (one, answer)
        await database.close()

    asyncio.run(main())


@pytest.mark.usefixtures("both_ways")
def test_every_item_of_a_batch_is_judged_by_the_rights_of_its_own_container(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(access=tenants) as run:
            there = Tenants(run)
            owner = {"Authorization": f"Bearer {OPERATOR.token}"}
            for name, role in ROLES.items():
                for what, right in BATCHES.items():
                    paths = [await run.put(BODY, {**owner, **into(one)}) for one in (OURS, THEIRS)]
                    body = b"\n".join(path[1:].encode() for path in paths)
                    for kind in ("bearer", "signature"):
                        path, sent = credentials(
                            kind, KEYS[name], "POST", f"/batch/{what}", {}, body, run.clock.now_ms()
                        )
                        answer = await there.ask("POST", path, sent, body)
                        if role.is_expired or role.is_removed:
                            assert answer.status == 401
                            continue
                        assert answer.status == 200
                        theirs = right in role.rights and role.account in {None, 2}
                        allowed = may(role, right, CONTAINER) + theirs
                        assert answer.body.count(b'"forbidden"') == 2 - allowed, (name, what, answer)
                    if what == "delete":
                        gone = [(await run.ask("GET", one, owner)).status == 410 for one in paths]
                        can = not (role.is_expired or role.is_removed)
                        assert gone == [can and may(role, right, CONTAINER), can and theirs]

    asyncio.run(main())


# --- forged, altered, replayed, carried over ---------------------------------------------------------------------


def bent(text: str) -> Iterable[str]:
    """Texts that are one character away."""
    for at in range(0, len(text), max(1, len(text) // 12)):
        yield text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]
    yield text[:-1]
    yield text + "A"
    yield text.swapcase()


@pytest.mark.usefixtures("both_ways")
def test_credentials_that_are_one_character_away_are_nobodys() -> None:
    async def main() -> None:
        async with serving(access=tenants) as run:
            there = Tenants(run)
            owner = {"Authorization": f"Bearer {OPERATOR.token}"}
            blob = await run.put(BODY, {**owner, **_OWNER})
            made = KEYS["read in the container"]
            for token in bent(made.token):
                assert (await there.ask("GET", blob, {"Authorization": f"Bearer {token}"}, None)).status == 401
            _, sent = credentials("signature", made, "GET", blob, {}, None, run.clock.now_ms())
            assert (await there.ask("GET", blob, sent, None)).status == 200
            for name in sent:
                for value in bent(sent[name]):
                    answer = await there.ask("GET", blob, {**sent, name: value}, None)
                    assert answer.status == 401, (name, value, answer)
                assert (await there.ask("GET", blob, {k: v for k, v in sent.items() if k != name}, None)).status in (
                    {401} if name != "Authorization" else {403}
                )
            url, _ = credentials("url", made, "GET", blob, {}, None, run.clock.now_ms())
            assert (await there.ask("GET", url, {}, None)).status == 200
            at = url.index("?") + 1
            for query in bent(url[at:]):
                assert (await there.ask("GET", url[:at] + query, {}, None)).status in {401, 403}, query
            for more in ("&x=1", "&x-ambry-expires=9999999999", "&x-ambry-get-option=Include_All"):
                assert (await there.ask("GET", url + more, {}, None)).status == 401

    asyncio.run(main())


@pytest.mark.usefixtures("both_ways")
def test_what_was_signed_for_one_thing_is_no_good_for_another_or_at_another_time() -> None:
    """Replayed to another path, method, host, tenant, after its time, before it, and after its key."""

    async def main() -> None:
        async with serving(access=tenants) as run:
            there = Tenants(run)
            owner = {"Authorization": f"Bearer {OPERATOR.token}"}
            made = KEYS["all in the container"]
            blob, other = [await run.put(BODY, {**owner, **_OWNER}) for _ in range(2)]
            theirs = await run.put(BODY, {**owner, **into(THEIRS)})
            now_ms = run.clock.now_ms()
            _, sent = credentials("signature", made, "GET", blob, {}, None, now_ms)
            url, _ = credentials("url", made, "GET", blob, {}, None, now_ms)
            query = url[url.index("?") :]
            for method, path in (("GET", other), ("GET", theirs), ("GET", blob + "/BlobInfo"), ("DELETE", blob),
                                 ("PUT", blob + "/undelete"), ("PUT", blob + "/ttl"), ("GET", "/metrics"),
                                 ("GET", "/accounts"), ("POST", "/")):  # fmt: skip
                assert (await there.ask(method, path, sent, None)).status == 401, (method, path)
                assert (await there.ask(method, path + query, {}, None)).status == 401, (method, path)
            assert (await there.ask("HEAD", blob, sent, None)).status == 401
            assert (await there.ask("HEAD", url, {}, None)).status == 200
            assert (await there.ask("GET", blob, {**sent, "Host": "elsewhere"}, None)).status in {400, 401}
            for minutes in (-16, 16):
                _, aged = credentials("signature", made, "GET", blob, {}, None, now_ms + minutes * 60_000)
                assert (await there.ask("GET", blob, aged, None)).status == 401
            run.clock.advance(59_000)
            assert (await there.ask("GET", url, {}, None)).status == 200
            assert (await there.ask("GET", blob, sent, None)).status == 200, "again within its minutes: TLS hides it"
            run.clock.advance(1_000)
            assert (await there.ask("GET", url, {}, None)).status == 401
            run.clock.advance(15 * 60_000)
            assert (await there.ask("GET", blob, sent, None)).status == 401
            # Without its key nothing of it is left.
            fresh, _ = credentials("url", made, "GET", blob, {}, None, run.clock.now_ms())
            assert (await there.ask("GET", fresh, {}, None)).status == 200
            kept = tuple(one for one in run.frontend.services.access.snapshot.keys.values() if one != made.key)
            run.frontend.services.access.adopt(replace(DATA, version=2, keys=kept))
            assert (await there.ask("GET", fresh, {}, None)).status == 401

    asyncio.run(main())


@pytest.mark.usefixtures("both_ways")
def test_ids_with_other_owners_kinds_and_partitions_written_into_them_name_nothing() -> None:
    async def main() -> None:
        async with serving(access=tenants) as run:
            there = Tenants(run)
            owner = {"Authorization": f"Bearer {OPERATOR.token}"}
            theirs = await run.put(BODY, {**owner, **into(THEIRS)})
            binary = base64.urlsafe_b64decode(theirs[1:] + "=")
            for role in ("all in the container", "read in the account"):
                who = {"Authorization": f"Bearer {KEYS[role].token}"}
                for at in range(len(binary)):
                    for bit in (0, 7):
                        forged = bytearray(binary)
                        forged[at] ^= 1 << bit
                        text = base64.urlsafe_b64encode(bytes(forged)).decode().rstrip("=")
                        answer = await there.ask("GET", f"/{text}", who, None)
                        assert answer.status in {400, 403, 404, 503}, (at, bit, answer)
                        assert BODY not in answer.body
                forged = bytearray(binary)
                forged[4:12] = OURS.owner
                text = base64.urlsafe_b64encode(bytes(forged)).decode().rstrip("=")
                for method in ("GET", "HEAD"):
                    assert (await there.ask(method, f"/{text}", who, None)).status == 404

    asyncio.run(main())
