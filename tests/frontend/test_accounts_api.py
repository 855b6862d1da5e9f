"""`/accounts`, containers and keys over HTTP: who may, what it does, and that the next request already knows it."""

import asyncio
import hashlib
import io
import json
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from ambry.access.keys import EVERYTHING, Grant, Masters, make_key
from ambry.access.signatures import CONTENT_SHA256, DATE, format_date, sign_request
from ambry.frontend.access import Access
from ambry.logs import configure
from ambry.names import accounts
from ambry.names.open import open_database, sqlite_url
from tests.frontend.serving import RawAnswer, Serving, serving

MASTERS: Final = Masters([b"the master secret of the tests"])
OPERATOR: Final = make_key(MASTERS, b"o" * 10, b"o" * 32, account=None, grants=(Grant(None, EVERYTHING),), now_ms=1)
BODY: Final = b"some bytes"


def run(folder: Path, test: Callable[[Serving], Coroutine[Any, Any, None]], *, is_open: bool = False) -> None:
    """Run a test against a frontend with a name store, in which there is an operator's key."""

    async def main() -> None:
        database = open_database(sqlite_url(folder))
        try:
            await database.write(lambda session: accounts.add_key(session, OPERATOR.key))
            async with serving(
                access=lambda clock: Access(clock, masters=MASTERS, is_open=is_open), masters=MASTERS, database=database
            ) as running:
                await test(running)
        finally:
            await database.close()

    asyncio.run(main())


def as_key(token: str = OPERATOR.token) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def named(account: str, container: str | None = None) -> dict[str, str]:
    found = {"x-ambry-target-account-name": account}
    return found if container is None else found | {"x-ambry-target-container-name": container}


async def send(
    running: Serving, method: str, path: str, document: Any = None, headers: Mapping[str, str] | None = None
) -> RawAnswer:
    """A request of the operator, unless the headers have credentials."""
    body = None if document is None else json.dumps(document).encode()
    return await running.ask(method, path, {**as_key(), **(headers or {})}, body)


async def made(running: Serving, name: str = "ours", *containers: Mapping[str, Any]) -> dict[str, Any]:
    """A new account."""
    answer = await send(
        running, "POST", "/accounts", {"accounts": [{"accountName": name, "containers": [*containers]}]}
    )
    assert answer.status == 200, answer
    found: dict[str, Any] = json.loads(answer.body)["accounts"][0]
    return found


async def new_key(running: Serving, **wish: Any) -> dict[str, Any]:
    answer = await send(running, "POST", "/accounts/keys", wish)
    assert answer.status == 200, answer
    found: dict[str, Any] = json.loads(answer.body)
    return found


def test_an_account_is_made_used_changed_and_closed(tmp_path: Path) -> None:
    async def test(running: Serving) -> None:
        account = await made(running, "ours", {"containerName": "models", "cacheTtlInSecond": 60})
        (container,) = account["containers"]
        assert (account["accountId"], account["snapshotVersion"], account["status"]) == (1, 1, "ACTIVE")
        assert (container["containerName"], container["cacheTtlInSecond"]) == ("models", 60)
        stored = await running.put(BODY, {**as_key(), **named("ours", "models")})
        answer = await running.ask("GET", stored, as_key())
        assert (answer.body, answer.headers["cache-control"]) == (BODY, "max-age=60")
        container["cacheable"] = False
        changed = await send(running, "POST", "/accounts/containers", {"containers": [container]}, named("ours"))
        assert json.loads(changed.body)["containers"][0]["snapshotVersion"] == 2
        assert "no-store" in (await running.ask("GET", stored, as_key())).headers["cache-control"]
        again = await send(running, "POST", "/accounts/containers", {"containers": [container]}, named("ours"))
        assert (again.status, again.error["code"]) == (409, "version_conflict")
        read = await send(running, "GET", "/accounts/containers", None, named("ours", "models"))
        assert json.loads(read.body)["containers"] == json.loads(changed.body)["containers"]
        closed = await send(running, "DELETE", "/accounts/containers", None, named("ours", "models"))
        assert json.loads(closed.body)["containers"][0]["status"] == "DELETE_IN_PROGRESS"
        assert (await running.ask("GET", stored, as_key())).status == 403
        whole = await send(running, "DELETE", "/accounts", None, named("ours"))
        assert json.loads(whole.body)["accounts"][0]["status"] == "DELETE_IN_PROGRESS"
        assert (await send(running, "DELETE", "/accounts", None, named("ours"))).status == 200

    run(tmp_path, test)


def test_a_key_is_made_used_and_removed(tmp_path: Path) -> None:
    async def test(running: Serving) -> None:
        await made(running, "ours", {"containerName": "models"}, {"containerName": "other"})
        key = await new_key(
            running, accountName="ours", grants=[{"containerName": "models", "rights": ["read", "write"]}]
        )
        assert {"keyId", "secret", "token", "accountId", "grants"} <= set(key)
        stored = await running.put(BODY, {**as_key(key["token"]), **named("ours", "models")})
        assert (await running.ask("GET", stored, as_key(key["token"]))).body == BODY
        refused = await running.ask("POST", "/", {**as_key(key["token"]), **named("ours", "other")}, BODY)
        assert refused.status == 403
        listed = await send(running, "GET", "/accounts/keys", None, named("ours"))
        assert key["secret"] not in listed.body.decode() and key["token"] not in listed.body.decode()
        assert [each["keyId"] for each in json.loads(listed.body)["keys"]] == [key["keyId"]]
        removed = await send(running, "DELETE", "/accounts/keys", None, {"x-ambry-key-id": key["keyId"]})
        assert removed.status == 200
        assert (await running.ask("GET", stored, as_key(key["token"]))).status == 401
        assert (await send(running, "DELETE", "/accounts/keys", None, {"x-ambry-key-id": key["keyId"]})).status == 404

    run(tmp_path, test)


PATHS: Final = ("/accounts", "/accounts/containers", "/accounts/keys")
ROLES: Final = ("nobody", "operator", "admin of ours", "admin of a container", "all but admin", "admin of theirs")
CHANGES: Final[dict[tuple[str, str], tuple[Any, dict[str, str]]]] = {
    ("GET", "/accounts"): (None, named("ours")),
    ("POST", "/accounts"): ({"accounts": [{"accountName": "ours", "snapshotVersion": 99}]}, {}),
    ("DELETE", "/accounts"): (None, named("ours")),
    ("GET", "/accounts/containers"): (None, named("ours")),
    ("POST", "/accounts/containers"): (
        {"containers": [{"containerName": "models", "snapshotVersion": 99}]}, named("ours")
    ),
    ("DELETE", "/accounts/containers"): (None, named("ours", "missing")),
    ("GET", "/accounts/keys"): (None, named("ours")),
    ("POST", "/accounts/keys"): (
        {"accountName": "ours", "grants": [{"containerName": "missing", "rights": ["read"]}]}, {}
    ),
    ("DELETE", "/accounts/keys"): (None, {}),
}  # fmt: skip
ALLOWED: Final = {
    "operator": set(CHANGES),
    "admin of ours": {cell for cell in CHANGES if cell[1] != "/accounts" or cell[0] == "GET"},
}
OF_GOOD: Final = {"GET": {200}, "POST": {200, 409, 404}, "DELETE": {200, 404, 400}}


@pytest.mark.parametrize("role", ROLES)
def test_who_may_see_and_change_accounts(tmp_path: Path, role: str) -> None:
    async def test(running: Serving) -> None:
        await made(running, "ours", {"containerName": "models"})
        await made(running, "theirs", {"containerName": "models"})
        wishes: dict[str, Any] = {
            "admin of ours": {"accountName": "ours", "grants": [{"rights": ["admin"]}]},
            "admin of a container": {
                "accountName": "ours",
                "grants": [{"containerName": "models", "rights": ["admin"]}],
            },
            "all but admin": {"accountName": "ours", "grants": [{"rights": ["read", "write", "delete", "list"]}]},
            "admin of theirs": {"accountName": "theirs", "grants": [{"rights": ["admin"]}]},
        }
        headers: dict[str, str] = {}
        if role == "operator":
            headers = as_key()
        elif role != "nobody":
            headers = as_key((await new_key(running, **wishes[role]))["token"])
        victim = await new_key(running, accountName="ours", grants=[{"rights": ["read"]}])
        for (method, path), (document, target) in CHANGES.items():
            sent = target | (
                {"x-ambry-key-id": victim["keyId"]} if (method, path) == ("DELETE", "/accounts/keys") else {}
            )
            if (method, path) == ("DELETE", "/accounts") and role == "operator":
                continue
            body = None if document is None else json.dumps(document).encode()
            answer = await running.ask(method, path, {**headers, **sent}, body)
            wanted = OF_GOOD[method] if (method, path) in ALLOWED.get(role, set()) else {403}
            assert answer.status in wanted, (role, method, path, answer)

    run(tmp_path, test)


def test_nobody_gives_himself_more_than_his_account(tmp_path: Path) -> None:
    async def test(running: Serving) -> None:
        await made(running, "ours")
        await made(running, "theirs", {"containerName": "c"})
        token = (await new_key(running, accountName="ours", grants=[{"rights": ["admin"]}]))["token"]
        for wish in (
            {"grants": [{"rights": ["read"]}]},
            {"accountName": "theirs", "grants": [{"rights": ["read"]}]},
            {"accountName": "missing", "grants": [{"rights": ["read"]}]},
        ):
            answer = await send(running, "POST", "/accounts/keys", wish, as_key(token))
            assert answer.status == 403, wish
        listed = await send(running, "GET", "/accounts", None, as_key(token))
        assert [each["accountName"] for each in json.loads(listed.body)["accounts"]] == ["ours"]
        assert (await send(running, "GET", "/accounts/keys", None, as_key(token))).status == 403
        operators = await send(
            running, "DELETE", "/accounts/keys", None, {**as_key(token), "x-ambry-key-id": OPERATOR.key.key_id}
        )
        assert operators.status == 403

    run(tmp_path, test)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/accounts", b""),
        ("/accounts", b"{"),
        ("/accounts", b"[]"),
        ("/accounts", b'{"accounts": []}'),
        ("/accounts", b'{"accounts": [5]}'),
        ("/accounts", b'{"accounts": [{"accountName": "\xff"}]}'),
        ("/accounts", b'{"accounts": [{"accountName": "a/b"}]}'),
        ("/accounts", b'{"accounts": [{"accountName": "x", "owner": "me"}]}'),
        ("/accounts", b"[" * 100_000),
        ("/accounts/keys", b'{"grants": "all"}'),
        ("/accounts/containers", b'{"containers": [{"containerName": "c", "quotaBytes": -1}]}'),
    ],
)
def test_bodies_that_make_no_sense_are_refused_and_change_nothing(tmp_path: Path, path: str, body: bytes) -> None:
    async def test(running: Serving) -> None:
        version = running.frontend.services.access.snapshot.version
        answer = await running.ask("POST", path, {**as_key(), **named("default")}, body)
        assert (answer.status, answer.error["code"]) == (400, "bad_request")
        await running.frontend.services.directory.refresh()
        assert running.frontend.services.access.snapshot.version == version

    run(tmp_path, test)


def test_a_signed_body_of_json_is_the_one_that_was_signed_or_nothing_happens(tmp_path: Path) -> None:
    async def test(running: Serving) -> None:
        body = b'{"accounts": [{"accountName": "ours"}]}'
        headers = {DATE: format_date(running.clock.now_ms()), CONTENT_SHA256: hashlib.sha256(body).hexdigest()}
        signed = headers | sign_request(
            OPERATOR.secret, OPERATOR.key.key_id, method="POST", path="/accounts", query="",
            headers={"Host": "test", **headers},
        )  # fmt: skip
        altered = await running.ask("POST", "/accounts", signed, body.replace(b"ours", b"mine"))
        assert (altered.status, altered.error["code"]) == (400, "bad_digest")
        assert "mine" not in running.frontend.services.access.snapshot.accounts_by_name
        assert (await running.ask("POST", "/accounts", signed, body)).status == 200

    run(tmp_path, test)


def test_a_body_of_json_has_its_limit(tmp_path: Path) -> None:
    async def test(running: Serving) -> None:
        answer = await running.ask("POST", "/accounts", as_key(), b" " * (2**20 + 1))
        assert (answer.status, answer.error["code"]) == (413, "too_large")

    run(tmp_path, test)


def test_changes_of_another_process_are_seen(tmp_path: Path) -> None:
    async def test(running: Serving) -> None:
        other = open_database(sqlite_url(tmp_path))
        try:
            await other.write(lambda session: accounts.remove_key(session, OPERATOR.key.key_id))
        finally:
            await other.close()
        async with asyncio.timeout(60):
            while (await running.ask("GET", "/accounts", as_key())).status != 401:
                await asyncio.sleep(0.05)
        assert not running.frontend.services.access.snapshot.keys

    run(tmp_path, test)


def test_every_change_leaves_a_line_for_auditors_and_no_secret(tmp_path: Path) -> None:
    out = io.StringIO()
    configure("info", force_json=True, stream=out)
    secrets: list[str] = []

    async def test(running: Serving) -> None:
        await made(running, "ours", {"containerName": "models"})
        key = await new_key(running, accountName="ours", grants=[{"rights": ["read"]}])
        secrets.extend((key["secret"], key["token"]))
        changed = {"containers": [{"containerName": "models", "snapshotVersion": 1, "anonymousRead": True}]}
        await send(running, "POST", "/accounts/containers", changed, named("ours"))
        await send(running, "DELETE", "/accounts/keys", None, {"x-ambry-key-id": key["keyId"]})
        await send(running, "DELETE", "/accounts", None, named("ours"))
        metrics = await running.ask("GET", "/metrics", as_key())
        for hidden in (*secrets, OPERATOR.token, key["keyId"], "ours", "models"):
            assert hidden not in metrics.body.decode()

    run(tmp_path, test)
    text = out.getvalue()
    lines = [json.loads(line) for line in text.splitlines() if '"audit"' in line]
    assert [line["event"] for line in lines] == [
        "container changed", "account changed", "key made", "container changed", "key removed", "account changed",
    ]  # fmt: skip
    assert {line["actor"] for line in lines} == {OPERATOR.key.key_id}
    assert all(len(line["request_id"]) == 24 for line in lines)
    assert json.loads(lines[3]["policy"]) == {"anonymousRead": True}
    for secret in (*secrets, OPERATOR.token, OPERATOR.secret):
        assert secret not in text


def test_without_a_name_store_nothing_can_be_changed() -> None:
    async def main() -> None:
        async with serving() as running:
            listed = await running.ask("GET", "/accounts")
            assert [each["accountName"] for each in json.loads(listed.body)["accounts"]] == ["default"]
            answer = await running.ask("POST", "/accounts", None, b'{"accounts": [{"accountName": "x"}]}')
            assert (answer.status, answer.error["code"]) == (503, "name_store_unavailable")

    asyncio.run(main())
