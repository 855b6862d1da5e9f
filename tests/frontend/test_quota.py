"""How much a container may hold, and containers that are given up: from DELETE_IN_PROGRESS to nothing left."""

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from ambry.access.accounts import Container, ContainerPolicy
from ambry.access.keys import Masters
from ambry.errors import QuotaExceeded
from ambry.frontend.erasure import policy_of
from ambry.frontend.quota import StorageQuotas, Used
from ambry.limits import CLOSING_ERASURE_DAYS, CLOSING_WAIT_MS
from ambry.names.open import open_database, sqlite_url
from tests.frontend.serving import RawAnswer, Serving, serving

FULL: Final = Container(1, 1, "a", "c", policy=ContainerPolicy(quota_bytes=100, quota_blobs=5))
FREE: Final = Container(1, 2, "a", "d")


def quotas(answers: list[Mapping[bytes, Used]]) -> StorageQuotas:
    async def ask() -> Mapping[bytes, Used]:
        return answers.pop(0)

    return StorageQuotas(ask, lambda: True)


def test_bytes_and_blobs_are_counted_from_what_was_asked_and_what_was_put_since() -> None:
    async def main() -> None:
        storage = quotas([{FULL.owner: (2, 50)}, {FULL.owner: (4, 90)}, {}])
        await storage.refresh()
        storage.reserve(FULL, 40)
        assert storage.used(FULL.owner) == (3, 90)
        with pytest.raises(QuotaExceeded):
            storage.reserve(FULL, 11)
        storage.reserve(FULL, 10)
        await storage.refresh()
        assert storage.used(FULL.owner) == (4, 90)
        storage.reserve(FULL, 0)
        with pytest.raises(QuotaExceeded):
            storage.reserve(FULL, 0)
        storage.reserve(FREE, 10**15)
        await storage.refresh()
        assert storage.used(FULL.owner) == (0, 0)

    asyncio.run(main())


def test_what_is_put_while_the_question_is_under_way_is_not_forgotten() -> None:
    async def main() -> None:
        going = asyncio.Event()

        async def ask() -> Mapping[bytes, Used]:
            await going.wait()
            return {FULL.owner: (1, 10)}

        storage = StorageQuotas(ask, lambda: True)
        storage.reserve(FULL, 10)
        task = asyncio.create_task(storage.refresh())
        await asyncio.sleep(0)
        storage.reserve(FULL, 20)
        assert storage.used(FULL.owner) == (2, 30)
        going.set()
        await task
        assert storage.used(FULL.owner) == (2, 30)

    asyncio.run(main())


# --- over HTTP ---------------------------------------------------------------------------------------------------


def run(folder: Path, test: Callable[[Serving], Coroutine[Any, Any, None]]) -> None:
    """Run a test against a frontend with a name store, where nobody is asked who he is."""

    async def main() -> None:
        database = open_database(sqlite_url(folder))
        try:
            async with serving(nodes=2, database=database, masters=Masters([b"master"])) as running:
                await test(running)
        finally:
            await database.close()

    asyncio.run(main())


def named(container: str) -> dict[str, str]:
    return {"x-ambry-target-account-name": "ours", "x-ambry-target-container-name": container}


async def post(running: Serving, path: str, document: Any, headers: Mapping[str, str] | None = None) -> RawAnswer:
    answer = await running.ask("POST", path, headers, json.dumps(document).encode())
    assert answer.status == 200, answer
    return answer


async def made(running: Serving, **policy: Any) -> None:
    containers = [{"containerName": "c", **policy}, {"containerName": "d"}]
    await post(running, "/accounts", {"accounts": [{"accountName": "ours", "containers": containers}]})


@pytest.mark.usefixtures("both_ways")
def test_a_full_container_takes_no_more_until_something_is_deleted(tmp_path: Path) -> None:
    async def test(running: Serving) -> None:
        await made(running, quotaBytes=1000)
        paths = [await running.put(b"x" * 400, named("c")) for _ in range(2)]
        refused = await running.ask("POST", "/", named("c"), b"x" * 400)
        assert (refused.status, refused.error["code"], refused.headers["retry-after"]) == (429, "quota_exceeded", "10")
        by_name = await running.ask("PUT", "/named/ours/c/name", None, b"x" * 400)
        assert by_name.status == 429
        assert (await running.ask("POST", "/", named("d"), b"x" * 400)).status == 201
        assert (await running.ask("POST", "/", named("c"), b"x" * 200)).status == 201
        storage = running.frontend.services.quotas
        await storage.refresh()
        owner = bytes([0, 0, 0, 1, 0, 0, 0, 1])
        assert storage.used(owner) == (3, 1000)
        assert (await running.ask("DELETE", paths[0])).status == 202
        await storage.refresh()
        assert storage.used(owner) == (2, 600)
        assert (await running.ask("POST", "/", named("c"), b"x" * 400)).status == 201

    run(tmp_path, test)


@pytest.mark.usefixtures("both_ways")
def test_quotas_that_are_only_tracked_let_all_through_and_say_so(tmp_path: Path) -> None:
    async def test(running: Serving) -> None:
        await made(running, quotaBlobs=2, quotaRequestsPerSecond=2, quotaBytesPerSecond=50, quotaMode="TRACKING")
        warned = []
        for number in range(4):
            answer = await running.ask("POST", "/", named("c"), b"x" * 100)
            assert answer.status == 201
            warned.append("x-ambry-user-quota-warning" in answer.headers)
            running.clock.advance(1000 if number == 0 else 0)
        assert warned == [False, True, True, True]
        path = answer.headers["location"]
        assert "x-ambry-user-quota-warning" in (await running.ask("GET", path)).headers
        by_name = await running.ask("PUT", "/named/ours/c/name", None, b"x")
        assert (by_name.status, "x-ambry-user-quota-warning" in by_name.headers) == (201, True)
        metrics = (await running.ask("GET", "/metrics")).body.decode()
        (line,) = [line for line in metrics.splitlines() if line.startswith("ambry_requests_over_quota_total ")]
        assert float(line.split()[1]) >= 5
        assert "ambry_requests_refused_total 0.0" in metrics
        # Once it is enforced, nobody pays for what was let through.
        container = await running.ask("GET", "/accounts/containers", named("c"))
        (found,) = json.loads(container.body)["containers"]
        change = {"containerId": found["containerId"], "snapshotVersion": found["snapshotVersion"],
                  "quotaMode": "THROTTLING", "quotaBlobs": None}  # fmt: skip
        await post(running, "/accounts/containers", {"containers": [change]}, {"x-ambry-target-account-name": "ours"})
        running.clock.advance(3000)
        assert (await running.ask("GET", path)).status == 200

    run(tmp_path, test)


def test_a_container_that_is_given_up_loses_all_its_blobs_and_then_its_name(tmp_path: Path) -> None:
    async def test(running: Serving) -> None:
        await made(running)
        gone = [await running.put(bytes([number]) * 100, named("c")) for number in range(20)]
        assert (await running.ask("PUT", "/named/ours/c/name", None, b"named")).status == 201
        kept = await running.put(b"kept", named("d"))
        assert (await running.ask("DELETE", "/accounts/containers", named("c"))).status == 200
        closing = running.frontend.closing
        assert closing is not None
        await closing.round()
        assert closing.deleted == 0, "other processes may not know of it yet"
        running.clock.advance(CLOSING_WAIT_MS)
        await closing.round()
        assert closing.deleted == 21
        (container,) = [each for each in running.frontend.services.access.snapshot.containers_of(1) if each.number == 1]
        assert container.status == "DELETE_IN_PROGRESS", "the bytes are still there"
        assert (await running.ask("GET", gone[0])).status == 403
        for node in running.nodes.values():
            # What compaction does when the retention of deleted blobs is over.
            for blob_id in [each for each in node.blobs if each[4:12] == container.owner]:
                del node.blobs[blob_id]
        await closing.round()
        (container,) = [each for each in running.frontend.services.access.snapshot.containers_of(1) if each.number == 1]
        assert container.status == "DELETED"
        assert (await running.ask("GET", kept)).body == b"kept"
        again = await post(running, "/accounts/containers", {"containers": [{"containerName": "c"}]}, named("c"))
        assert json.loads(again.body)["containers"][0]["containerId"] == 3
        names = json.loads((await running.ask("GET", "/named/ours/c")).body)
        assert names["entries"] == []

    run(tmp_path, test)


def test_what_was_given_up_is_promised_to_be_gone_and_no_later_than_it_was_before(tmp_path: Path) -> None:
    async def test(running: Serving) -> None:
        containers = [{"containerName": "soon", "erasureDays": 3}, {"containerName": "late", "erasureDays": 300},
                      {"containerName": "never"}, {"containerName": "kept"}]  # fmt: skip
        await post(running, "/accounts", {"accounts": [{"accountName": "ours", "containers": containers}]})

        def promised() -> dict[int, int]:
            snapshot = running.frontend.services.access.snapshot
            return {number: days for account, number, days in policy_of(snapshot, 1, 0).rows if account == 1}

        assert promised() == {1: 3, 2: 300}
        for name in ("soon", "late", "never"):
            assert (await running.ask("DELETE", "/accounts/containers", named(name))).status == 200
        assert promised() == {1: 3, 2: CLOSING_ERASURE_DAYS, 3: CLOSING_ERASURE_DAYS}

    run(tmp_path, test)


def test_an_account_that_is_given_up_goes_with_all_it_has(tmp_path: Path) -> None:
    async def test(running: Serving) -> None:
        await made(running)
        await post(running, "/accounts/keys", {"accountName": "ours", "grants": [{"rights": ["read"]}]})
        await running.put(b"x", named("c"))
        assert (await running.ask("DELETE", "/accounts", named("c"))).status == 200
        running.clock.advance(CLOSING_WAIT_MS)
        closing = running.frontend.closing
        assert closing is not None
        await closing.round()
        for node in running.nodes.values():
            node.blobs.clear()
        await closing.round()
        await closing.round()
        snapshot = running.frontend.services.access.snapshot
        assert "ours" not in snapshot.accounts_by_name
        assert snapshot.accounts[1].status == "DELETED"
        assert not snapshot.keys

    run(tmp_path, test)


def test_nothing_is_gone_as_long_as_a_datanode_has_not_answered(tmp_path: Path) -> None:
    async def test(running: Serving) -> None:
        await made(running)
        await running.ask("DELETE", "/accounts/containers", named("c"))
        running.clock.advance(CLOSING_WAIT_MS)
        closing = running.frontend.closing
        assert closing is not None
        datanodes = dict(closing._datanodes)
        closing._datanodes = {}
        await closing.round()
        assert running.frontend.services.access.snapshot.by_name["ours", "c"].status == "DELETE_IN_PROGRESS"
        closing._datanodes = datanodes
        await closing.round()
        assert ("ours", "c") not in running.frontend.services.access.snapshot.by_name

    run(tmp_path, test)


def test_policies_with_quotas_are_not_for_the_short_way() -> None:
    assert not replace(FULL.policy, quota_blobs=None).takes_plain_puts
    assert FREE.policy.takes_plain_puts
