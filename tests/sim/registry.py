"""ZooKeeper as the processes of a simulation see it, behind the methods of `cluster.zookeeper.Registry`.

Transactions are atomic and in one order; that is ZooKeeper's own promise. What goes wrong is everything around them:
the ensemble is away, a process is cut off from it, an answer is lost although the change was made, watches come late
and in any order, and a session that was silent for too long has ended with its ephemerals. Knows layouts; it does not
know what processes do with them.
"""

import asyncio
import random
from collections.abc import Callable, Mapping
from typing import Any, Final

from ambry.cluster.changes import Change
from ambry.cluster.layout import Layout, changed, lay_out
from ambry.cluster.map import ClusterMap
from ambry.errors import RegistryUnavailable
from tests.sim.network import Network

NAME: Final = "zookeeper"
SESSION_S: Final = 6.0
WATCH_S_MAX: Final = 0.5


class Ensemble:
    """The one copy of the layout, and the sessions."""

    def __init__(self, network: Network, cluster_map: ClusterMap, chance: random.Random) -> None:
        self.network = network
        self.chance = chance
        self.layout: Layout = lay_out(cluster_map)
        self.former: list[Layout] = [self.layout]
        self.is_up = True
        self.is_old = False
        self.changes: list[str] = []
        self.live: dict[str, tuple[int, Mapping[str, object]]] = {}
        self.sessions: dict[int, Session] = {}
        self._numbers = 0

    def number(self) -> int:
        """Of a new session."""
        self._numbers += 1
        return self._numbers

    def apply(self, change: Change, what: str) -> None:
        """Make a change of the layout; watches fire later. Raises ChangeRefused."""
        new = change(self.layout.cluster_map)
        if new is self.layout.cluster_map:
            return
        self._replace(changed(self.layout, new)[0], what)
        self.former.append(self.layout)

    def put_back(self, old: Layout) -> None:
        """What is there now is an old copy."""
        self.is_old = True
        self._replace(old, "put back")

    def restore(self, newest: Layout) -> None:
        """An operator has found the newest layout that somebody kept."""
        self.is_old = False
        self._replace(newest, "restored")
        self.former.append(newest)

    def _replace(self, layout: Layout, what: str) -> None:
        self.layout = layout
        self.changes.append(what)
        for session in tuple(self.sessions.values()):
            self.network.loop.call_later(self.chance.random() * WATCH_S_MAX, session.watch)

    def tick(self, now: float) -> None:
        """Sessions that were not heard for long are over."""
        for number, session in tuple(self.sessions.items()):
            if session.is_reachable:
                session.heard = now
            elif self.is_up and now - session.heard > SESSION_S:
                del self.sessions[number]
                session.is_over = True
                for name in [name for name, (owner, _) in self.live.items() if owner == number]:
                    del self.live[name]


class Session:
    """What one process has in the place of a Registry."""

    hosts = NAME
    root = "/"

    def __init__(self, ensemble: Ensemble, process: str, on_event: Callable[[], None]) -> None:
        self._ensemble = ensemble
        self._process = process
        self._on_event = on_event
        self._is_stopped = False
        self.session = 0
        self.is_over = False
        self.heard = 0.0

    def start(self) -> None:
        """Begin a session."""
        self.is_over = False
        self.session = self._ensemble.number()
        self.heard = self._ensemble.network.loop.time()
        self._ensemble.sessions[self.session] = self

    def stop(self) -> None:
        """The process has ended; its session ends later, as nobody says goodbye in a crash."""
        self._is_stopped = True

    def wait(self, wait_s: float) -> bool:
        """Whether there is a session; a simulated process does not wait for one."""
        del wait_s
        return self.is_connected

    def start_over_if_lost(self) -> None:
        """Another session when this one is over."""
        if self.is_over and self.is_reachable:
            self.start()

    @property
    def is_reachable(self) -> bool:
        """Whether messages pass both ways."""
        network = self._ensemble.network
        return (
            self._ensemble.is_up
            and not self._is_stopped
            and (self._process, NAME) not in network.cut
            and (NAME, self._process) not in network.cut
            and not ((server := network.servers.get(self._process)) is not None and server.is_stopped)
        )

    @property
    def is_connected(self) -> bool:
        """Whether there is a session now."""
        return self.is_reachable and not self.is_over

    def watch(self) -> None:
        """The layout has changed; who is not there hears nothing."""
        if self.is_connected:
            self._on_event()

    def read(self, known: Layout | None = None) -> Layout:
        """The layout."""
        self._ask()
        layout = self._ensemble.layout
        return known if known is not None and known.head == layout.head else layout

    def apply(self, change: Change, what: str, who: str, known: Layout | None = None) -> Layout:
        """Make a change; its answer may be lost."""
        del who, known
        self._ask()
        self._ensemble.apply(change, what)
        self._ask()
        return self._ensemble.layout

    def live(self) -> dict[str, dict[str, Any]]:
        """Who lives."""
        self._ask()
        return {name: dict(record) for name, (_, record) in sorted(self._ensemble.live.items())}

    def register(self, name: str, record: Mapping[str, object]) -> None:
        """Nobody asks for it here."""
        del name, record
        self._ask()

    def announce(self, name: str, record: Mapping[str, object]) -> bool:
        """Be among those that live."""
        self._ask()
        owner = self._ensemble.live.get(name)
        if owner is not None and owner[0] != self.session:
            return False
        self._ensemble.live[name] = (self.session, dict(record))
        return True

    def disown(self, name: str, boot: str) -> None:
        """What a former session of this very process has left."""
        self._ask()
        owner = self._ensemble.live.get(name)
        if owner is not None and owner[0] != self.session and owner[1].get("boot") == boot:
            del self._ensemble.live[name]

    def _ask(self) -> None:
        network = self._ensemble.network
        if not self.is_connected or self._ensemble.chance.random() < network.weather.loss:
            raise RegistryUnavailable("ZooKeeper is out of reach")


def cut_off(network: Network, process: str, loop: asyncio.AbstractEventLoop, for_s: float) -> None:
    """A process does not reach ZooKeeper for a while, and goes on with the map that it has."""
    pairs = {(process, NAME), (NAME, process)}
    network.cut |= pairs
    loop.call_later(for_s, network.cut.difference_update, pairs)
