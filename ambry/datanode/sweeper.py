"""The sweeper: collects the chunks of aborted uploads and of blobs that are gone, without help from any frontend.

It runs where a partition's leader is (the first replica of the originating datacentre, in map order, whose node
answers), once in a while, and goes through the chunks of that partition by its feed of changes. What becomes of them
is decided in sweep_plan.py; what is asked goes through the Datanode interface: the chunk's properties here, the
manifest's state from as many witnesses as a "not found" needs, and a tombstone at the end for every chunk that goes.

A pass that would take more than a share of the chunks takes none, says so loudly, and leaves the rest to an operator.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Final, TypeVar

from ambry.blob.blob_id import Kind
from ambry.blob.manifest import Manifest, decode_manifest
from ambry.blob.properties import Properties, decode_properties
from ambry.blob.requests import Change, ChangeEntry, ChangesRequest, GetAnswer, GetRequest, StateAnswer, UpdateRequest
from ambry.blob.state import BlobState
from ambry.clock import Clock
from ambry.cluster.map import ClusterMap, Replica, ReplicaState
from ambry.cluster.quorum import StateSurvey, Verdict, reply_of, told_state
from ambry.config import StorageSettings
from ambry.datanode.sweep_plan import Fate, Heard, Word, fate_of, is_alarming, is_settled
from ambry.errors import AmbryError, BlobDeleted, CorruptRecord, Unavailable
from ambry.limits import BODY_BYTES_MAX, CHANGES_PER_PAGE_MAX, REQUEST_DEADLINE_MS, SWEEP_UPLOADS_KNOWN_MAX
from ambry.logs import get_logger
from ambry.metrics import Metrics
from ambry.protocol.datanode import Datanode

_log = get_logger(__name__)

_LEADER_ANSWER_S: Final = 5.0
_FIRST_PASS_S: Final = 600.0
"""A process that was just started has better things to do."""

_REST_S: Final = 0.05
"""After each page: 20 000 chunks a second at most."""


@dataclass(slots=True)
class SweepReport:
    """What one pass over a partition saw and did, in chunks."""

    chunks: int = 0
    settled: int = 0
    kept: int = 0
    unknown: int = 0
    orphans: int = 0
    strays: int = 0
    dead: int = 0
    tombstoned: int = 0
    alarms: int = 0

    def add(self, other: "SweepReport") -> None:
        """Count another pass in."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


@dataclass(slots=True)
class _Upload:
    """What is known of one upload during a pass."""

    fate: Fate
    time_ms: int
    is_certain: bool
    listed: frozenset[bytes] = frozenset()


@dataclass(slots=True)
class _Pass:
    """One pass over one partition while it goes on."""

    partition: int
    now_ms: int
    report: SweepReport = field(default_factory=SweepReport)
    uploads: dict[bytes, _Upload] = field(default_factory=dict)
    absent: list[tuple[bytes, BlobState, int]] = field(default_factory=list)
    dead: list[tuple[bytes, BlobState, int]] = field(default_factory=list)


class Sweeper:
    """The sweeper of one datanode. `datanodes` leads to every node of the map, this one included."""

    def __init__(
        self,
        node: str,
        local: Datanode,
        datanodes: Mapping[str, Datanode],
        cluster_map: Callable[[], ClusterMap],
        settings: StorageSettings,
        clock: Clock,
    ) -> None:
        self._node = node
        self._local = local
        self._datanodes = datanodes
        self._map = cluster_map
        self._settings = settings
        self._clock = clock
        self.total = SweepReport()
        self.passes = 0
        self.is_alarmed = False

    async def run(self) -> None:
        """Pass after pass, until cancelled."""
        interval_s = self._settings.sweep_interval_ms / 1000
        await asyncio.sleep(min(_FIRST_PASS_S, interval_s))
        while True:
            await self.sweep_all()
            await asyncio.sleep(interval_s)

    async def sweep_all(self) -> None:
        """One pass over every partition that this node leads."""
        self.is_alarmed = False
        for partition in sorted(self._map().partitions):
            try:
                if await self._leads(partition):
                    await self.sweep(partition)
            except AmbryError as error:
                _log.warning("a partition was not swept", partition=partition, error=str(error))

    async def sweep(self, partition: int) -> SweepReport:
        """One pass over one partition. Raises what the local replica raises."""
        going = _Pass(partition, self._clock.now_ms())
        report = going.report
        percent_max = self._settings.sweep_percent_max
        async for entry in self._chunks(partition):
            report.chunks += 1
            await self._judge(entry, going)
        if is_alarming(len(going.absent), report.chunks, percent_max):
            report.alarms = 1
            self.is_alarmed = True
            _log.error(
                "sweep stopped: too many chunks would go; nothing of what seems orphaned was touched",
                partition=partition,
                chunks=report.chunks,
                orphans=report.orphans,
                strays=report.strays,
                percent_max=percent_max,
            )
            going.absent.clear()
        for blob_id, state, time_ms in going.absent + going.dead:
            report.tombstoned += await self._tombstone(partition, blob_id, state, time_ms)
        self.passes += 1
        self.total.add(report)
        _log.info("swept", partition=partition, **{each.name: getattr(report, each.name) for each in fields(report)})
        return report

    # --- what is there -----------------------------------------------------------------------------------------

    async def _leads(self, partition: int) -> bool:
        """Whether no replica before this node's, in map order, has a node that answers."""
        for replica in self._here(partition):
            if replica.node == self._node:
                return True
            datanode = self._datanodes.get(replica.node)
            if datanode is not None:
                try:
                    await datanode.status(asyncio.get_running_loop().time() + _LEADER_ANSWER_S)
                except AmbryError:
                    continue
                return False
        return False

    def _here(self, partition: int) -> Sequence[Replica]:
        cluster_map = self._map()
        node = cluster_map.nodes.get(self._node)
        if node is None:
            return ()
        replicas = cluster_map.replicas_in(partition, node.datacentre)
        return [replica for replica in replicas if replica.state is ReplicaState.SERVING]

    async def _chunks(self, partition: int) -> AsyncIterator[ChangeEntry]:
        """Live chunks of this datacentre in a partition, with their bytes here."""
        origin = self._map().nodes[self._node].datacentre.to_bytes(2, "big")
        after_lsn = 0
        while True:
            request = ChangesRequest(partition, after_lsn, CHANGES_PER_PAGE_MAX)
            page = await self._local.changes(request, _deadline())
            for entry in page.entries:
                blob_id = entry.blob_id
                is_ours = blob_id[1] == Kind.CHUNK and blob_id[2:4] == origin
                if is_ours and entry.has_body and not entry.state.is_deleted:
                    yield entry
            if not page.entries:
                return
            after_lsn = page.entries[-1].lsn
            await asyncio.sleep(_REST_S)

    # --- what becomes of it ------------------------------------------------------------------------------------

    async def _judge(self, entry: ChangeEntry, going: _Pass) -> None:
        report = going.report
        properties = await self._properties(entry.blob_id)
        if properties is None or properties.deadline_ms is None or properties.upload_id is None:
            report.unknown += 1
            return
        if not is_settled(properties.deadline_ms, going.now_ms):
            return
        report.settled += 1
        upload = going.uploads.get(properties.upload_id)
        if upload is None:
            if len(going.uploads) >= SWEEP_UPLOADS_KNOWN_MAX:
                going.uploads.clear()
            upload = going.uploads[properties.upload_id] = await self._look_up(properties, going.now_ms)
        if not upload.is_certain:
            report.unknown += 1
        elif upload.fate is Fate.DEAD:
            report.dead += 1
            going.dead.append((entry.blob_id, entry.state, upload.time_ms))
        elif upload.fate is Fate.ORPHAN:
            report.orphans += 1
            going.absent.append((entry.blob_id, entry.state, upload.time_ms))
        elif upload.fate is Fate.KEEP_LISTED and entry.blob_id not in upload.listed:
            report.strays += 1
            going.absent.append((entry.blob_id, entry.state, upload.time_ms))
        else:
            report.kept += 1

    async def _properties(self, blob_id: bytes) -> Properties | None:
        try:
            answer = await self._local.get(GetRequest(blob_id, 0, 0), _deadline())
            return decode_properties(answer.properties)
        except AmbryError:
            return None

    async def _look_up(self, properties: Properties, now_ms: int) -> _Upload:
        """What is to become of an upload's chunks. Asks for its manifest, and for what that lists if it lives."""
        assert properties.deadline_ms is not None
        retention_ms = self._settings.deleted_retention_ms
        heard = [await self._hear(one, now_ms) for one in properties.manifest_ids]
        fate = fate_of(heard, deadline_ms=properties.deadline_ms, now_ms=now_ms, retention_ms=retention_ms)
        # What is dead has had its retention: its tombstone says when it died, so that its space is free soon.
        time_ms = max((one.since_ms for one in heard), default=0) or properties.deadline_ms
        if fate is Fate.KEEP_LISTED:
            living = [one for one, word in zip(properties.manifest_ids, heard, strict=True) if word.word is Word.LIVES]
            try:
                listed = frozenset([chunk for one in living for chunk in await self._listed(one)])
            except AmbryError:
                return _Upload(Fate.KEEP, time_ms, is_certain=False)
            return _Upload(fate, properties.deadline_ms, is_certain=True, listed=listed)
        return _Upload(fate, time_ms, is_certain=not any(one.word is Word.UNKNOWN for one in heard))

    async def _hear(self, manifest_id: bytes, now_ms: int) -> Heard:
        """The state of a reserved id, by as many witnesses of its datacentre as a "not found" needs."""
        if self._map().is_retired(int.from_bytes(manifest_id[12:16], "big")):
            return Heard(Word.ABSENT)
        replicas, listed = self._serving(manifest_id)
        survey = StateSurvey([1] * len(replicas), [1], [1], {1: listed})
        survey.to_ask()
        died_ms = 0
        request = GetRequest(manifest_id, 0, 0)
        asked = [(self._datanodes.get(replica.node), replica) for replica in replicas]
        futures = [None if node is None else node.get(request, _deadline()) for node, _ in asked]
        for place, future in enumerate(futures):
            answer: GetAnswer | AmbryError = Unavailable("no connection")
            if future is not None:
                answer = await _settled(future)
            if isinstance(answer, GetAnswer):
                survey.answered(place, answer.state)
                continue
            told = told_state(answer)
            if told is None:
                survey.failed(place, reply_of(answer, asked[place][1].incarnation))
                continue
            survey.answered(place, told, has_body=False)
            time_ms = answer.facts.get("time_ms")
            if isinstance(answer, BlobDeleted):
                # A tombstone that does not say when it was made is taken for one that was made now.
                died_ms = max(died_ms, time_ms if isinstance(time_ms, int) else now_ms)
        verdict = survey.verdict() if replicas else Verdict.UNAVAILABLE
        if verdict is Verdict.NOT_FOUND:
            return Heard(Word.ABSENT)
        if verdict is not Verdict.DONE or survey.joined is None:
            return Heard(Word.UNKNOWN)
        if survey.joined.is_deleted:
            return Heard(Word.DEAD, died_ms)
        if survey.joined.is_expired(now_ms):
            return Heard(Word.DEAD, survey.joined.expires_at_ms)
        return Heard(Word.LIVES)

    def _serving(self, blob_id: bytes) -> tuple[list[Replica], int]:
        """The replicas of the originating datacentre that are witnesses, and how many it lists."""
        partition, origin = int.from_bytes(blob_id[12:16], "big"), int.from_bytes(blob_id[2:4], "big")
        found = self._map().replicas_in(partition, origin)
        return [replica for replica in found if replica.state is ReplicaState.SERVING], len(found)

    async def _listed(self, manifest_id: bytes) -> list[bytes]:
        """Every chunk and leaf that a manifest lists. Raises when it cannot be read."""
        manifest = await self._manifest(manifest_id)
        found = [entry.blob_id for entry in manifest.entries]
        if manifest.level:
            for leaf_id in tuple(found):
                found += [entry.blob_id for entry in (await self._manifest(leaf_id)).entries]
        return found

    async def _manifest(self, blob_id: bytes) -> Manifest:
        last: AmbryError = Unavailable("no replica of a manifest can be asked")
        for replica in self._serving(blob_id)[0]:
            datanode = self._datanodes.get(replica.node)
            if datanode is None:
                continue
            try:
                answer = await datanode.get(GetRequest(blob_id, 0, BODY_BYTES_MAX), _deadline())
                if len(answer.body) != answer.body_size:
                    raise CorruptRecord("a manifest is larger than any record")
                return decode_manifest(answer.body)
            except AmbryError as error:
                last = error
        raise last

    async def _tombstone(self, partition: int, blob_id: bytes, state: BlobState, time_ms: int) -> bool:
        """Let a chunk die here and, as far as they can be reached, on the other replicas of this datacentre."""
        request = UpdateRequest(blob_id, Change.JOIN, BlobState(state.life | 1, state.expires_at_ms), time_ms)
        here = self._local.update(request, _deadline())
        others = [self._datanodes.get(one.node) for one in self._here(partition) if one.node != self._node]
        futures = [one.update(request, _deadline()) for one in others if one is not None]
        for future in futures:
            await _settled(future)
        outcome: StateAnswer | AmbryError = await _settled(here)
        return isinstance(outcome, StateAnswer)

    # --- what is told ------------------------------------------------------------------------------------------

    def watch(self, metrics: Metrics) -> None:
        """Register what the sweeper does."""
        total = self.total
        counters: list[tuple[str, str, Callable[[], float]]] = [
            ("ambry_sweep_passes", "Passes of the sweeper over a partition.", lambda: self.passes),
            ("ambry_sweep_chunks", "Chunks that it looked at.", lambda: total.chunks),
            ("ambry_sweep_orphans", "Chunks of uploads that never ended.", lambda: total.orphans),
            ("ambry_sweep_strays", "Chunks that their blob does not list.", lambda: total.strays),
            ("ambry_sweep_dead", "Chunks of blobs that were deleted or have expired.", lambda: total.dead),
            ("ambry_sweep_unknown", "Chunks of which too little was known.", lambda: total.unknown),
            ("ambry_sweep_tombstoned", "Chunks that it collected.", lambda: total.tombstoned),
            ("ambry_sweep_alarms", "Passes that would have taken too many chunks.", lambda: total.alarms),
        ]
        for name, text, read in counters:
            metrics.watch_counter(name, text, read)
        metrics.watch_gauge(
            "ambry_sweep_is_alarmed", "1 when the last passes had an alarm.", lambda: float(self.is_alarmed)
        )


_Answer = TypeVar("_Answer")


async def _settled(future: "asyncio.Future[_Answer]") -> _Answer | AmbryError:
    """The answer of a datanode, or its error as a value."""
    try:
        return await future
    except AmbryError as error:
        return error


def _deadline() -> float:
    return asyncio.get_running_loop().time() + REQUEST_DEADLINE_MS / 1000
