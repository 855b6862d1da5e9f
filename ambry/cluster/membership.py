"""The cluster map of one process while it runs: from ZooKeeper, and from its own disk while ZooKeeper is away.

Invariant: a process adopts no map of another cluster and none with a lower version than it has seen, ever: an ensemble
that came back empty, or with an old backup, is an outage that an operator ends (`ambry cluster restore`), never a
smaller cluster. So the last map is written to the process's own folder before it is used.

The loop is woken by ZooKeeper's watches and looks by itself every REGISTRY_LOOK_S. Blocking calls run on threads.
"""

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

from ambry.cluster.changes import Change
from ambry.cluster.files import replace_file
from ambry.cluster.layout import Head, Layout, decode_file, encode_file
from ambry.cluster.map import ClusterMap
from ambry.cluster.zookeeper import Registry
from ambry.errors import AmbryError, CannotStart, RegistryUnavailable
from ambry.limits import REGISTRY_LOOK_S, REGISTRY_RETRY_S, REGISTRY_START_S
from ambry.logs import get_logger
from ambry.tasks import end_task

_log = get_logger(__name__)

MAP_FILE: Final = "cluster-map"
"""Name of the last map in a process's state folder."""

OnMap: TypeAlias = Callable[[ClusterMap], Awaitable[None]]


class Membership:
    """The map, kept up to date. Make it, `open` it and `close` it inside one running event loop."""

    def __init__(
        self,
        hosts: str,
        folder: Path,
        *,
        session_s: float = 0,
        start_s: float = REGISTRY_START_S,
        connect: Callable[[str, Callable[[], None], float], Registry] = Registry,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._registry = connect(hosts, self._event, session_s)
        self._path = folder / MAP_FILE
        self._start_s = start_s
        self._layout: Layout | None = None
        self._is_current = False
        self._listeners: list[OnMap] = []
        self._announced: tuple[str, dict[str, object]] | None = None
        self._told: tuple[int, dict[str, object]] | None = None
        self._has_registered = asyncio.Event()
        self._boot = secrets.token_hex(8)
        self._task: asyncio.Task[None] | None = None
        self._trouble = ""
        self._fresh = asyncio.Condition()
        # Maps are adopted one after the other: a change made here and a watch may bring the same one at once.
        self._adopting = asyncio.Lock()
        self._is_hinted = False

    @property
    def cluster_map(self) -> ClusterMap:
        """The newest map that this process knows."""
        assert self._layout is not None
        return self._layout.cluster_map

    @property
    def layout(self) -> Layout:
        """The newest map with its pieces."""
        assert self._layout is not None
        return self._layout

    @property
    def is_current(self) -> bool:
        """Whether ZooKeeper has confirmed the map lately; without it the map is the last one that was known."""
        return self._is_current and self._registry.is_connected

    # --- life --------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """The first map: from ZooKeeper, or the last one on disk. Raises CannotStart when there is neither."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            self._layout = decode_file(await asyncio.to_thread(self._path.read_bytes), str(self._path))
        self._registry.start()
        # Who has a map can begin with it; whoever has none has to wait.
        wait_s = self._start_s if self._layout is None else min(self._start_s, 5.0)
        try:
            if not await asyncio.to_thread(self._registry.wait, wait_s):
                raise RegistryUnavailable(f"ZooKeeper at {self._registry.hosts} is out of reach")
            found = await asyncio.to_thread(self._registry.read, self._layout)
            problem = self._problem_of(found.head)
            if problem:
                raise RegistryUnavailable(problem)
            await self._adopt(found)
        except RegistryUnavailable as error:
            if self._layout is None:
                raise CannotStart(f"{error.message}, and no earlier map is in {self._path}") from error
            self._say_trouble(error)

    def run(self) -> None:
        """Follow the layout from here on."""
        self._task = self._loop.create_task(self._follow(), name="membership")

    async def close(self) -> None:
        """Stop following; this process is no longer among those that live."""
        await end_task(self._task)
        await asyncio.to_thread(self._registry.stop)

    # --- what others ask ---------------------------------------------------------------------------------------

    def on_map(self, listener: OnMap) -> None:
        """Call `listener` with every new map, one after the other."""
        self._listeners.append(listener)

    def look_soon(self) -> None:
        """Somebody knows a newer map: look now."""
        self._is_hinted = True
        self._wake.set()

    async def newer_than(self, version: int, wait_s: float) -> bool:
        """Whether a map above `version` is in use within this time. At once when nobody has said that there is one."""
        if self.cluster_map.version > version:
            return True
        if not self._is_hinted:
            return False
        try:
            async with asyncio.timeout(wait_s), self._fresh:
                await self._fresh.wait_for(lambda: self.cluster_map.version > version)
        except TimeoutError:
            return False
        return True

    async def change(self, change: Change, what: str, who: str) -> ClusterMap:
        """Make a change of the layout, and adopt what came of it. Raises ChangeRefused, RegistryUnavailable.

        An old copy of the layout is not changed: with every change of its own it would come nearer to the version that
        processes know, until they took it for a newer map than theirs.
        """

        def of_ours(old: ClusterMap) -> ClusterMap:
            problem = self._problem_of(old)
            if problem:
                raise RegistryUnavailable(problem)
            return change(old)

        await self._adopt(await asyncio.to_thread(self._registry.apply, of_ours, what, who, self._layout))
        return self.cluster_map

    async def live(self) -> dict[str, dict[str, Any]]:
        """Datanodes that live now, with what they announce. Raises RegistryUnavailable."""
        return await asyncio.to_thread(self._registry.live)

    def announce(self, name: str, record: Mapping[str, object]) -> None:
        """Be among those that live under this name, from the next look on; `record` may change any time."""
        self._announced = (name, dict(record))
        self._wake.set()

    async def registered(self) -> None:
        """Wait until ZooKeeper has what this process announces."""
        await self._has_registered.wait()

    # --- following ---------------------------------------------------------------------------------------------

    def _event(self) -> None:
        # On a thread of the library, perhaps after our loop has ended.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._wake.set)

    async def _follow(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REGISTRY_LOOK_S if self._is_current else REGISTRY_RETRY_S):
                    await self._wake.wait()
            self._wake.clear()
            if not self._registry.is_connected:
                await asyncio.to_thread(self._registry.start_over_if_lost)
                self._say_trouble(RegistryUnavailable(f"ZooKeeper at {self._registry.hosts} is out of reach"))
                continue
            try:
                await self._look()
            except AmbryError as error:
                self._say_trouble(error)

    async def _look(self) -> None:
        await self._tell()
        found = await asyncio.to_thread(self._registry.read, self._layout)
        problem = self._problem_of(found.head)
        if problem:
            raise RegistryUnavailable(problem)
        if self._trouble:
            _log.info("ZooKeeper is back", version=found.head.version)
            self._trouble = ""
        await self._adopt(found)

    async def _tell(self) -> None:
        """Register, and be among those that live, if this process is to and does not already."""
        if self._announced is None:
            return
        name, record = self._announced
        telling = {
            **record,
            "boot": self._boot,
            "pid": os.getpid(),
            "on": socket.gethostname(),
            "map_version": self.cluster_map.version,
        }
        session = self._registry.session
        if self._told == (session, telling):
            return
        await asyncio.to_thread(self._registry.disown, name, self._boot)
        if not await asyncio.to_thread(self._registry.announce, name, telling):
            _log.warning("another process lives under this name, or its session has not ended yet", node=name)
            self._loop.call_later(1.0, self._wake.set)
            return
        await asyncio.to_thread(self._registry.register, name, record)
        self._told = (session, telling)
        self._has_registered.set()

    def _problem_of(self, found: Head | ClusterMap) -> str:
        """Why a layout is not ours to adopt, nor to change; empty when it is."""
        if self._layout is None:
            return ""
        known = self._layout.head
        if found.fingerprint != known.fingerprint:
            return f"the layout is of cluster {found.fingerprint}, this process belongs to {known.fingerprint}"
        if found.version < known.version:
            return (
                f"the layout has version {found.version}, this process knows {known.version}: it was lost or put "
                "back from an old copy; ambry cluster restore rebuilds it"
            )
        return ""

    async def _adopt(self, found: Layout) -> None:
        async with self._adopting:
            await self._adopt_newer(found)

    async def _adopt_newer(self, found: Layout) -> None:
        self._is_current = True
        if found is self._layout or (self._layout is not None and found.head.version <= self._layout.head.version):
            return
        await asyncio.to_thread(_keep, self._path, found)
        self._layout = found
        _log.info("cluster map", version=found.head.version, partitions=len(found.cluster_map.partitions))
        self._is_hinted = False
        for listener in self._listeners:
            await listener(found.cluster_map)
        self._wake.set()  # what this process announces carries the version
        async with self._fresh:
            self._fresh.notify_all()

    def _say_trouble(self, error: AmbryError) -> None:
        """Once for each kind of trouble; it is asked again every few seconds."""
        self._is_current = False
        if error.message != self._trouble:
            self._trouble = error.message
            version = self._layout.head.version if self._layout is not None else 0
            _log.warning("going on with the last known cluster map", why=error.message, version=version)


def _keep(path: Path, layout: Layout) -> None:
    # Workers of one frontend share a folder.
    replace_file(path, encode_file(layout), suffix=f".{os.getpid()}.new")
