"""The map of a process: from a real ZooKeeper, from its own disk while there is none, and never a smaller world."""

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ambry.cluster import changes
from ambry.cluster.layout import lay_out, with_version
from ambry.cluster.map import ClusterMap
from ambry.cluster.membership import MAP_FILE, Membership
from ambry.cluster.zookeeper import Registry
from ambry.errors import CannotStart, ChangeRefused, RegistryUnavailable
from tests.cluster.test_changes import node, two_by_three
from tests.zookeeper_server import own_zookeeper

WAIT_S = 30.0


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 100))


@asynccontextmanager
async def registry_of(hosts: str) -> AsyncIterator[Registry]:
    registry = Registry(hosts)
    registry.start()
    assert await asyncio.to_thread(registry.wait, WAIT_S)
    try:
        yield registry
    finally:
        await asyncio.to_thread(registry.stop)


@asynccontextmanager
async def member(hosts: str, folder: Path, start_s: float = WAIT_S) -> AsyncIterator[Membership]:
    membership = Membership(hosts, folder, session_s=2, start_s=start_s)
    try:
        await membership.open()
        membership.run()
        yield membership
    finally:
        await membership.close()


async def until(condition: Any) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.01)


async def until_refused(one: Membership, why: str) -> None:
    """A change is refused for this reason, as soon as the process has a session with the server that was started."""
    async with asyncio.timeout(WAIT_S):
        while True:
            with pytest.raises(RegistryUnavailable) as caught:
                await one.change(lambda old: old, "nothing", "test")
            if why in caught.value.message:
                return
            await asyncio.sleep(0.05)


def test_a_change_reaches_everybody_who_watches(zookeeper: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with registry_of(zookeeper) as registry:
            await asyncio.to_thread(registry.create, lay_out(two_by_three()))
            with pytest.raises(ChangeRefused, match="already"):
                await asyncio.to_thread(registry.create, lay_out(two_by_three()))
            async with member(zookeeper, tmp_path / "a") as one, member(zookeeper, tmp_path / "b") as other:
                seen: list[int] = []

                async def listener(cluster_map: ClusterMap) -> None:
                    seen.append(cluster_map.version)

                other.on_map(listener)
                first = one.cluster_map.version
                new = await one.change(lambda old: changes.seal(old, [2], is_sealed=True), "seal 2", "test")
                assert new.version == first + 1
                await until(lambda: seen == [first + 1])
                assert other.cluster_map == new
                assert other.is_current
                history = await asyncio.to_thread(registry.history, 10)
                assert [(one.version, one.what, one.who) for one in history] == [(new.version, "seal 2", "test")]

    run(scenario())


def test_changes_made_at_once_by_many_are_all_made(zookeeper: str) -> None:
    registries = [Registry(zookeeper) for _ in range(4)]
    for registry in registries:
        registry.start()
        assert registry.wait(WAIT_S)
    try:
        registries[0].create(lay_out(two_by_three()))

        def work(registry: Registry, first: int) -> None:
            for number in range(5):
                name = f"node-{first + number}"
                registry.apply(partial(changes.put_node, node=node(name)), f"add {name}", "test")

        threads = [threading.Thread(target=work, args=(one, 100 * k)) for k, one in enumerate(registries, start=1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        layout = registries[0].read()
        assert len(layout.cluster_map.nodes) == 6 + 4 * 5
        assert layout.head.version == two_by_three().version + 4 * 5
        with pytest.raises(ChangeRefused):
            registries[1].apply(lambda old: changes.remove_node(old, "nobody"), "x", "test")
    finally:
        for registry in registries:
            registry.stop()


def test_without_a_layout_nothing_starts_and_the_words_say_so(zookeeper: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        with pytest.raises(CannotStart, match="there is no cluster in"):
            async with member(zookeeper, tmp_path):
                pass

    run(scenario())


def test_who_lives_is_known_and_a_second_process_of_one_name_is_not_let_in(zookeeper: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with registry_of(zookeeper) as registry:
            await asyncio.to_thread(registry.create, lay_out(two_by_three()))
            async with member(zookeeper, tmp_path / "a") as one:
                one.announce("node-0", {"host": "h"})
                await one.registered()
                assert await asyncio.to_thread(registry.nodes) == {"node-0": {"host": "h"}}
                assert (await asyncio.to_thread(registry.live))["node-0"]["host"] == "h"
                async with member(zookeeper, tmp_path / "b") as second:
                    second.announce("node-0", {"host": "impostor"})
                    await asyncio.sleep(0.5)
                    assert registry.live()["node-0"]["host"] == "h"
                await one.change(lambda old: changes.seal(old, [1], is_sealed=True), "seal", "test")
                await until(lambda: registry.live()["node-0"]["map_version"] == one.cluster_map.version)
            await until(lambda: "node-0" not in registry.live())
            assert registry.nodes()["node-0"]["host"] == "h"

    run(scenario())


def test_zookeeper_is_away_lost_empty_and_restored(tmp_path: Path) -> None:
    """One server through it all: stopped, its data gone, an old copy put back, another cluster in its place."""

    async def scenario() -> None:
        with own_zookeeper() as server:
            async with registry_of(server.hosts) as registry:
                await asyncio.to_thread(registry.create, lay_out(two_by_three()))
            folder = tmp_path / "a"
            async with member(server.hosts, folder) as one:
                one.announce("node-0", {"host": "h"})
                version = (await one.change(lambda old: changes.seal(old, [1], is_sealed=True), "seal", "t")).version

                # Away, for longer than a session lives: the map stays; changes wait; then all is as before.
                await asyncio.to_thread(server.stop)
                await until(lambda: not one.is_current)
                assert one.cluster_map.version == version
                async with member(server.hosts, folder / "copy", start_s=1) as never:
                    assert never.cluster_map.version == version
                await asyncio.to_thread(server.start)
                await until(lambda: one.is_current)
                async with registry_of(server.hosts) as registry:
                    await until(lambda: "node-0" in registry.live())

                # Its data are lost: an outage, not an empty cluster. Datanodes register all the same.
                await asyncio.to_thread(server.stop)
                server.wipe()
                await asyncio.to_thread(server.start)
                async with registry_of(server.hosts) as registry:
                    await until(lambda: "node-0" in registry.nodes())
                    assert one.cluster_map.version == version
                    assert not one.is_current
                    await until_refused(one, "no cluster")

                    # Somebody puts an older version back, or begins another cluster: neither is taken.
                    await asyncio.to_thread(registry.create, lay_out(two_by_three()))
                    await until_refused(one, "cluster restore")
                    # Nor is it changed, however often: it would be taken for a newer map in the end.
                    for _ in range(version + 2):
                        with pytest.raises(RegistryUnavailable, match="cluster restore"):
                            await one.change(lambda old: changes.seal(old, [2], is_sealed=True), "seal", "t")
                    assert registry.read().head.version < version
                    assert one.cluster_map.version == version
                await asyncio.to_thread(server.stop)
                server.wipe()
                await asyncio.to_thread(server.start)
                async with registry_of(server.hosts) as registry:
                    other = changes.empty_map("other", ["x"])
                    await asyncio.to_thread(registry.create, lay_out(changes.add_datacentre(other, "y")))
                    await until_refused(one, "of cluster other")

                # The last map of a process, under a higher version, is the cluster again.
                await asyncio.to_thread(server.stop)
                server.wipe()
                await asyncio.to_thread(server.start)
                async with registry_of(server.hosts) as registry:
                    await asyncio.to_thread(registry.create, with_version(one.layout, version + 1))
                await until(lambda: (one.is_current, one.cluster_map.version) == (True, version + 1))
                assert one.cluster_map.partitions[1].is_sealed

    (tmp_path / "a" / "copy").mkdir(parents=True)

    async def prepared() -> None:
        # The copy of the map that a second process of the same cluster would have.
        task = asyncio.ensure_future(scenario())
        path = tmp_path / "a" / MAP_FILE
        copied = tmp_path / "a" / "copy" / MAP_FILE
        size = 0
        while not task.done():
            if path.exists() and path.stat().st_size != size:
                data = path.read_bytes()
                copied.write_bytes(data)
                size = len(data)
            await asyncio.sleep(0.005)
        await task

    run(prepared())


def test_a_session_that_expires_is_replaced_and_the_process_lives_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        with own_zookeeper() as server:
            async with registry_of(server.hosts) as registry:
                await asyncio.to_thread(registry.create, lay_out(two_by_three()))
                async with member(server.hosts, tmp_path) as one:
                    one.announce("node-0", {"host": "h"})
                    await until(lambda: "node-0" in registry.live())
                    session = one._registry.session
                    password = one._registry._client._session_passwd
                    # A second client with the session's number and password ends it for everybody.
                    from kazoo.client import KazooClient  # noqa: PLC0415 -- only to do what no code of ours does

                    thief = KazooClient(server.hosts, client_id=(session, password))
                    await asyncio.to_thread(thief.start)
                    await asyncio.to_thread(thief.stop)
                    await asyncio.to_thread(thief.close)
                    await until(lambda: one._registry.session != session)
                    await until(lambda: "node-0" in registry.live())
                    new = await one.change(lambda old: changes.seal(old, [1], is_sealed=True), "seal", "t")
                    assert new.partitions[1].is_sealed

    run(scenario())
