"""The one door to ZooKeeper: the layout, registrations and who lives. Normative text: docs/formats/zookeeper.md.

    ROOT/layout                   the head of the layout; its pieces are its children
    ROOT/history/0000000012       what the change to that version was, by whom and when
    ROOT/nodes/NAME               what a datanode says of itself; stays when it is gone
    ROOT/live/NAME                the same process while it lives (ephemeral)

Every method blocks for REGISTRY_WAIT_S at most and raises RegistryUnavailable when ZooKeeper does not answer, or has no
layout; callers with an event loop use a thread. `on_event` is called, on a thread of the library, whenever something
may have changed: a watch fired, or the session was lost or found again.
An ensemble without a layout is an outage here, never an empty cluster: only `create` writes where there is none.
"""

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from kazoo.client import KazooClient
from kazoo.exceptions import (
    BadVersionError,
    KazooException,
    NodeExistsError,
    NoNodeError,
)
from kazoo.handlers.threading import KazooTimeoutError
from kazoo.retry import KazooRetry

from ambry.cluster.changes import Change
from ambry.cluster.layout import HEAD, Layout, changed, decode_head, put_together
from ambry.errors import BadConfiguration, ChangeRefused, RegistryUnavailable
from ambry.limits import REGISTRY_HISTORY_MAX, REGISTRY_SESSION_S, REGISTRY_WAIT_S

ROOT: Final = "/ambry"
_READS_MAX: Final = 20
_APPLIES_MAX: Final = 50
# The library repeats each of its own troubles on several lines; ours says once that ZooKeeper is lost or found.
logging.getLogger("kazoo").setLevel(logging.CRITICAL)


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One change of the layout."""

    version: int
    time_ms: int
    who: str
    what: str


class Registry:
    """A client of the ensemble. `hosts` is "host:port,host:port/folder"; the folder is ROOT unless given."""

    def __init__(self, hosts: str, on_event: Callable[[], None] = lambda: None, session_s: float = 0) -> None:
        addresses, slash, folder = hosts.partition("/")
        if not addresses or " " in addresses:
            raise BadConfiguration(f"{hosts!r} is not a list of ZooKeeper servers such as host:2181,host:2181")
        self.hosts = addresses
        self.root = f"/{folder.strip('/')}" if slash and folder.strip("/") else ROOT
        self._on_event = on_event
        self._session_s = session_s or REGISTRY_SESSION_S
        self._lost_at: float | None = None
        self._client = self._new_client()

    def _new_client(self) -> KazooClient:
        client = KazooClient(
            hosts=self.hosts,
            timeout=self._session_s,
            connection_retry=KazooRetry(max_tries=-1, delay=0.1, backoff=2, max_delay=2.0),
            command_retry=KazooRetry(max_tries=0),
        )
        client.add_listener(self._state_changed)
        return client

    # --- the connection ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to connect, and go on trying for ever. Does not wait."""
        self._client.start_async()

    def wait(self, wait_s: float) -> bool:
        """Whether there is a session within this time."""
        give_up_at = time.monotonic() + wait_s
        while not self._client.connected and time.monotonic() < give_up_at:
            time.sleep(0.02)
        return bool(self._client.connected)

    def stop(self) -> None:
        """Hang up; ephemerals go."""
        self._client.remove_listener(self._state_changed)
        self._client.stop()
        with contextlib.suppress(KazooException):
            self._client.close()

    def start_over_if_lost(self) -> None:
        """Forget a session that has been away for longer than it can live, and begin another one.

        A server refuses a client that has seen more than the server has, for ever: that is what an ensemble that lost
        its data does to everybody who knew it before.
        """
        if self._client.connected:
            self._lost_at = None
            return
        now = time.monotonic()
        if self._lost_at is None:
            self._lost_at = now
        elif now - self._lost_at > self._session_s:
            self._lost_at = now
            self.stop()
            self._client = self._new_client()
            self.start()

    @property
    def is_connected(self) -> bool:
        """Whether there is a session now."""
        return bool(self._client.connected)

    @property
    def session(self) -> int:
        """Number of the session; 0 without one."""
        return int(self._client.client_id[0]) if self._client.client_id else 0

    def _state_changed(self, state: str) -> None:
        del state
        self._on_event()

    def _watched(self, _event: object) -> None:
        self._on_event()

    # --- the layout --------------------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Whether there is a layout."""
        with self._translated():
            return self._ask(self._client.exists_async(self._path("layout"))) is not None

    def create(self, layout: Layout) -> None:
        """Write the first layout of a cluster. Raises ChangeRefused where there is one."""
        with self._translated():
            for name in ("history", "nodes", "live"):
                with contextlib.suppress(NodeExistsError):
                    self._ask(self._client.create_async(self._path(name), makepath=True))
            transaction = self._client.transaction()
            transaction.create(self._path("layout"), layout.pieces[HEAD])
            for name in sorted(layout.head.pieces):
                transaction.create(self._path("layout", name), layout.pieces[name])
            results = self._ask(transaction.commit_async())
        if any(isinstance(result, NodeExistsError) for result in results):
            raise ChangeRefused(f"there is a cluster in {self.hosts}{self.root} already")
        self._check(results)

    def read(self, known: Layout | None = None) -> Layout:
        """The layout as it is now; only pieces that changed since `known` are fetched. A watch is left on its head."""
        with self._translated():
            for _ in range(_READS_MAX):
                layout = self._read_once(known)[0]
                if layout is not None:
                    return layout
        raise RegistryUnavailable("the layout changes faster than it can be read")

    def _read_once(self, known: Layout | None) -> tuple[Layout | None, int]:
        data, stat = self._ask(self._client.get_async(self._path("layout"), watch=self._watched))
        head = decode_head(data)
        if known is not None and head.fingerprint != known.head.fingerprint:
            known = None
        if known is not None and head == known.head:
            return known, stat.version
        old = known.head.pieces if known is not None else {}
        names = [name for name, version in head.pieces.items() if old.get(name) != version]
        # All asked at once: a hundred pieces cost one round trip.
        asked = [self._client.get_async(self._path("layout", name)) for name in names]
        pieces = dict(known.pieces) if known is not None else {}
        try:
            pieces.update((name, self._ask(one)[0]) for name, one in zip(names, asked, strict=True))
        except NoNodeError:
            return None, 0
        return put_together(head, pieces, known), stat.version

    def apply(self, change: Change, what: str, who: str, known: Layout | None = None) -> Layout:
        """Make a change of whatever the layout is now, in one transaction; again when another one came first.

        Returns the layout after it, which is the same when there was nothing to change. Raises ChangeRefused.
        """
        for _ in range(_APPLIES_MAX):
            with self._translated():
                known, head_version = self._read_stable(known)
                new_map = change(known.cluster_map)
                if new_map is known.cluster_map:
                    return known
                layout, names = changed(known, new_map)
                results = self._ask(self._write(known, layout, names, head_version, what, who).commit_async())
                if not any(isinstance(result, Exception) for result in results):
                    self._trim_history(layout.head.version)
                    return layout
                if not any(isinstance(result, BadVersionError | NodeExistsError) for result in results):
                    self._check(results)
        raise RegistryUnavailable("others change the layout faster than this change can be made")

    def _read_stable(self, known: Layout | None) -> tuple[Layout, int]:
        for _ in range(_READS_MAX):
            layout, head_version = self._read_once(known)
            if layout is not None:
                return layout, head_version
        raise RegistryUnavailable("the layout changes faster than it can be read")

    def _write(
        self, known: Layout, layout: Layout, names: frozenset[str], head_version: int, what: str, who: str
    ) -> Any:
        transaction = self._client.transaction()
        transaction.check(self._path("layout"), head_version)
        transaction.set_data(self._path("layout"), layout.pieces[HEAD])
        for name in sorted(names):
            if name in known.head.pieces:
                transaction.set_data(self._path("layout", name), layout.pieces[name])
            else:
                transaction.create(self._path("layout", name), layout.pieces[name])
        entry = {"time_ms": int(time.time() * 1000), "who": who, "what": what[:400], "pieces": sorted(names)}
        transaction.create(self._path("history", f"{layout.head.version:010d}"), json.dumps(entry).encode())
        return transaction

    def _trim_history(self, version: int) -> None:
        if version % 100:
            return
        names = sorted(self._ask(self._client.get_children_async(self._path("history"))))
        for name in names[:-REGISTRY_HISTORY_MAX]:
            with contextlib.suppress(NoNodeError):
                self._ask(self._client.delete_async(self._path("history", name)))

    def history(self, limit: int) -> list[HistoryEntry]:
        """The newest changes, newest first."""
        with self._translated():
            names = sorted(self._ask(self._client.get_children_async(self._path("history"))), reverse=True)[:limit]
            found = [(int(name), self._json("history", name)) for name in names]
        return [
            HistoryEntry(version, one.get("time_ms", 0), one.get("who", ""), one.get("what", ""))
            for version, one in found
            if one is not None
        ]

    # --- datanodes ---------------------------------------------------------------------------------------------

    def register(self, name: str, record: Mapping[str, object]) -> None:
        """Say what a datanode is. Works in an ensemble without a layout too: a restore finds the datanodes so."""
        path = self._path("nodes", name)
        data = json.dumps(record).encode()
        with self._translated():
            try:
                former = self._ask(self._client.get_async(path))[0]
            except NoNodeError:
                with contextlib.suppress(NodeExistsError):
                    self._ask(self._client.create_async(path, data, makepath=True))
                return
            if former != data:
                self._ask(self._client.set_async(path, data))

    def announce(self, name: str, record: Mapping[str, object]) -> bool:
        """Be among those that live, or say something new; False while another session has the name."""
        path = self._path("live", name)
        data = json.dumps(record).encode()
        with self._translated():
            for _ in range(_READS_MAX):
                try:
                    _, stat = self._ask(self._client.get_async(path))
                    if stat.ephemeralOwner != self.session:
                        return False
                    self._ask(self._client.set_async(path, data))
                    return True
                except NoNodeError:
                    with contextlib.suppress(NodeExistsError):
                        self._ask(self._client.create_async(path, data, ephemeral=True, makepath=True))
                        return True
        return False

    def disown(self, name: str, boot: str) -> None:
        """Remove what a former session of this very process left behind."""
        with self._translated(), contextlib.suppress(NoNodeError):
            data, stat = self._ask(self._client.get_async(self._path("live", name)))
            if stat.ephemeralOwner != self.session and json.loads(data).get("boot") == boot:
                self._ask(self._client.delete_async(self._path("live", name), version=stat.version))

    def forget(self, name: str) -> None:
        """Take the registration of a datanode away."""
        with self._translated(), contextlib.suppress(NoNodeError):
            self._ask(self._client.delete_async(self._path("nodes", name)))

    def nodes(self) -> dict[str, dict[str, Any]]:
        """What datanodes have said of themselves, by name."""
        return self._records("nodes")

    def live(self) -> dict[str, dict[str, Any]]:
        """Those that live now, by name."""
        return self._records("live")

    def _records(self, folder: str) -> dict[str, dict[str, Any]]:
        with self._translated():
            try:
                names = self._ask(self._client.get_children_async(self._path(folder)))
            except NoNodeError:
                return {}
            asked = {name: self._client.get_async(self._path(folder, name)) for name in names}
            found = {}
            for name, one in asked.items():
                with contextlib.suppress(NoNodeError, ValueError):
                    found[name] = json.loads(self._ask(one)[0])
            return found

    # --- the library -------------------------------------------------------------------------------------------

    def _path(self, *names: str) -> str:
        return "/".join((self.root, *names))

    def _json(self, *names: str) -> dict[str, Any] | None:
        with contextlib.suppress(NoNodeError, ValueError):
            found = json.loads(self._ask(self._client.get_async(self._path(*names)))[0])
            return found if isinstance(found, dict) else None
        return None

    def _ask(self, answer: Any) -> Any:
        return answer.get(timeout=REGISTRY_WAIT_S)

    def _check(self, results: list[object]) -> None:
        errors = [result for result in results if isinstance(result, Exception)]
        if errors:
            raise RegistryUnavailable(f"ZooKeeper refused a transaction: {errors[-1]!r}")

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Errors of the library as ours."""
        try:
            yield
        except NoNodeError as error:
            raise RegistryUnavailable(f"there is no cluster in {self.hosts}{self.root}") from error
        except KazooTimeoutError as error:
            raise RegistryUnavailable(f"ZooKeeper at {self.hosts} is out of reach") from error
        except KazooException as error:
            text = str(error) or type(error).__name__
            raise RegistryUnavailable(f"ZooKeeper at {self.hosts} did not do it: {text}") from error
