"""What a store holds, for people: compaction's plan, and segments, records and index entries as plain values.

Nothing here changes anything, but for what opening a store does. Values are numbers, strings and lists, ready for JSON.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ambry.blob.state import NEVER
from ambry.config import StorageSettings
from ambry.limits import BODY_BYTES_MAX
from ambry.storage.accounts import Accounts
from ambry.storage.compaction_plan import SegmentFacts, choose, facts_of, ratio_share, room_of
from ambry.storage.compaction_reasons import APPENDED, TURNED_OFF, UNFINISHED, reasons_of
from ambry.storage.exchange import read_tokens
from ambry.storage.index import pages
from ambry.storage.index_entry import decode_entry, partition_range
from ambry.storage.replica import Replica
from ambry.storage.seal_state import is_sealed_for_good
from ambry.storage.segment import Damage, ScannedRecord, scan_readable
from ambry.storage.store import DiskStore
from ambry.storage.survey import Survey

_ENTRIES_PER_PAGE = 256


@dataclass(frozen=True, slots=True)
class PlanRow:
    """A segment, and whether compaction would take it now and why, or why not. Sizes in bytes, age in ms.

    An active segment that is chosen is sealed first.
    """

    partition: int
    segment: int
    size: int
    live_bytes: int
    dead_bytes: int
    kept_bytes: int
    garbage_ratio: float
    expiry_class: int
    age_ms: int
    score: float
    is_chosen: bool
    is_active: bool
    reason: str


def compaction_plan(store: DiskStore, settings: StorageSettings, now_ms: int) -> list[PlanRow]:
    """Every segment, surveyed now, by partition and number. Reads them all; nothing changes but what is known of them.

    It is what upkeep would do next in each partition, but for what only a running datanode knows: segments that it
    leaves alone for a time since it could not free them, and partitions that the cluster map has sealed.
    """
    log_bytes = sum(replica.log_size for replica in store.replicas)
    room = room_of(store.free_bytes(), log_bytes, settings.segment_bytes)
    return [row for replica in store.replicas for row in _plan_of(store, settings, replica, now_ms, room)]


def _plan_of(store: DiskStore, settings: StorageSettings, replica: Replica, now_ms: int, room: float) -> list[PlanRow]:
    partition = replica.partition
    surveys = {number: store.survey(partition, number, pace=lambda _: None) for number in sorted(replica.segments)}
    tombstone_bytes = sum(survey.tombstone_bytes for survey in surveys.values())
    is_full = is_sealed_for_good(tombstone_bytes=tombstone_bytes, capacity=replica.capacity)
    ends = is_full and not holds_live(store.accounts, partition)
    facts = {
        number: surveyed(
            facts_of(replica.segments[number], store.accounts.of_segment(partition, number)), survey, now_ms, ends=ends
        )
        for number, survey in surveys.items()
    }
    active = {segment.number for segment in replica.active.values()}
    to_seal = {one for one in active if must_be_sealed(surveys[one], facts[one].dead_bytes, now_ms, ends=ends)}
    if takes_no_puts(store):
        to_seal |= {one for one in active if is_worth_sealing(store, settings, facts[one], now_ms, room)}
    ready = to_seal | {one.number for one in store.segment_facts(partition)}
    reasons = dict.fromkeys(active - to_seal, APPENDED)
    chosen: tuple[int, ...] = ()
    if settings.compaction_bytes_per_s:
        candidates = [facts[number] for number in sorted(ready)]
        chosen = choose_for(store, settings, candidates, now_ms, room)
        ratio = garbage_ratio_for(settings, room)
        reasons |= reasons_of(candidates, chosen, garbage_ratio_min=ratio, ends=ends)
    else:
        reasons = dict.fromkeys(facts, TURNED_OFF)
    return [
        PlanRow(
            partition,
            number,
            one.size,
            one.live_bytes,
            one.dead_bytes,
            one.kept,
            one.garbage_bytes / one.size if one.size else 0.0,
            one.expiry_class,
            max(now_ms - one.created_ms, 0),
            one.score(now_ms) if one.size else 0.0,
            number in chosen,
            number in active,
            reasons.get(number, UNFINISHED),
        )
        for number, one in facts.items()
    ]


def surveyed(facts: SegmentFacts, survey: Survey, now_ms: int, *, ends: bool) -> SegmentFacts:
    """What is known of a segment after a look at it. `ends`: in its partition whatever is dead is due."""
    is_due = survey.erase_at_ms <= now_ms or (ends and facts.dead_bytes > 0)
    return replace(facts, kept_bytes=survey.kept_of(facts.size), is_due=is_due)


def must_be_sealed(survey: Survey, dead_bytes: int, now_ms: int, *, ends: bool) -> bool:
    """Whether an active segment is sealed so that compaction may take it, which never takes one that is appended to."""
    has_garbage = survey.kept_bytes < survey.seen_bytes
    return survey.erase_at_ms <= now_ms or (ends and dead_bytes > 0 and has_garbage)


def garbage_ratio_for(settings: StorageSettings, room: float) -> float:
    """The share of garbage with which a segment is worth a compaction; `room` as in `choose`."""
    return settings.compaction_garbage_percent / 100 * ratio_share(room)


def takes_no_puts(store: DiskStore) -> bool:
    """Whether so little is free that no active segment becomes full any more."""
    return store.free_bytes() < BODY_BYTES_MAX


def is_worth_sealing(
    store: DiskStore, settings: StorageSettings, facts: SegmentFacts, now_ms: int, room: float
) -> bool:
    """Whether an active segment that never becomes full is sealed: as soon as compaction would take it by itself."""
    return bool(choose_for(store, settings, [facts], now_ms, room))


def holds_live(accounts: Accounts, partition: int) -> bool:
    """Whether anything in a partition lives, by its totals."""
    return any(use.live_count for (of, _, _), use in accounts.of_containers().items() if of == partition)


def choose_for(
    store: DiskStore, settings: StorageSettings, facts: Sequence[SegmentFacts], now_ms: int, room: float = 1.0
) -> tuple[int, ...]:
    """The segments of one replica that compaction takes now, of those that it may choose from: the one rule, for upkeep
    and for whoever asks.

    The caller knows which these are: sealed ones, with active ones that had to be sealed (`must_be_sealed`), without
    those that it leaves alone for a time, each with what is due in it (`surveyed`).

    `room` is as in `choose`.
    """
    return choose(
        facts,
        now_ms=now_ms,
        garbage_ratio_min=settings.compaction_garbage_percent / 100,
        output_bytes_max=min(settings.segment_bytes, store.compaction_room()),
        room=room,
    )


def describe(store: DiskStore) -> Iterator[dict[str, object]]:
    """Replicas, segments with their records and damages, index entries, and how far each peer's feed was read.

    `what` says which one a value is.
    """
    for replica in store.replicas:
        partition = replica.partition
        yield {
            "what": "replica",
            "partition": partition,
            "incarnation": replica.incarnation.hex(),
            "capacity": replica.capacity,
            "log_size": replica.log_size,
            "end_lsn": replica.end_lsn,
        }
        surveys = store.surveys(partition)
        for number, segment in sorted(replica.segments.items()):
            survey = surveys.get(number)
            yield {
                "what": "segment",
                "partition": partition,
                "segment": number,
                "end": segment.end,
                "is_sealed": number in replica.sealed,
                "expiry_class": segment.expiry_class,
                "created_ms": segment.created_ms,
                "tombstone_bytes": survey.tombstone_bytes if survey is not None else None,
                "verified_at_ms": survey.verified_at_ms if survey is not None else None,
                "erase_by_ms": survey.erase_by_ms if survey is not None and survey.erase_by_ms < NEVER else None,
            }
            for found in scan_readable(segment):
                yield (
                    _record(partition, number, found)
                    if not isinstance(found, Damage)
                    else {
                        "what": "damage",
                        "partition": partition,
                        "segment": number,
                        "offset": found.offset,
                        "size": found.size,
                        "reason": found.reason,
                    }
                )
        yield from _entries(store, partition)
        for peer, (incarnation, lsn) in sorted(read_tokens(store, partition).items()):
            yield {"what": "token", "partition": partition, "peer": peer, "incarnation": incarnation.hex(), "lsn": lsn}


def _record(partition: int, number: int, found: ScannedRecord) -> dict[str, object]:
    header = found.header
    return {
        "what": "record",
        "partition": partition,
        "segment": number,
        "offset": found.offset,
        "record_size": header.record_size,
        "kind": header.kind.name.lower(),
        "blob_id": found.key.hex(),
        "lsn": header.lsn,
        "life": header.life,
        "expires_at_ms": header.expires_at_ms,
        "time_ms": header.time_ms,
        "body_size": header.body_size,
        "properties_size": header.properties_size,
        "root": f"{header.root:016x}",
    }


def _entries(store: DiskStore, partition: int) -> Iterator[dict[str, object]]:
    for page in pages(store.index, *partition_range(b"b", partition), _ENTRIES_PER_PAGE):
        for key, value in page:
            entry = decode_entry(value)
            yield {
                "what": "entry",
                "partition": partition,
                "blob_id": (entry.id_head + key[1:]).hex(),
                "has_body": entry.has_body,
                "segment": entry.segment,
                "offset": entry.offset,
                "record_size": entry.record_size,
                "body_size": entry.body_size,
                "life": entry.life,
                "expires_at_ms": entry.expires_at_ms,
                "lsn": entry.lsn,
                "time_ms": entry.time_ms,
                "root": f"{entry.root:016x}",
            }
