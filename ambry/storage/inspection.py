"""What a store holds, for people: compaction's plan, and segments, records and index entries as plain values.

Nothing here changes anything, but for what opening a store does. Values are numbers, strings and lists, ready for JSON.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ambry.blob.state import NEVER
from ambry.config import StorageSettings
from ambry.storage.compaction_plan import SegmentFacts, choose
from ambry.storage.exchange import read_tokens
from ambry.storage.index import pages
from ambry.storage.index_entry import decode_entry, partition_range
from ambry.storage.segment import Damage, ScannedRecord, scan_readable
from ambry.storage.store import DiskStore
from ambry.storage.survey import Survey

_ENTRIES_PER_PAGE = 256


@dataclass(frozen=True, slots=True)
class PlanRow:
    """A sealed segment, and whether compaction would take it now. Sizes in bytes."""

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


def compaction_plan(store: DiskStore, settings: StorageSettings, now_ms: int) -> list[PlanRow]:
    """Every sealed segment, surveyed now, by partition and number. Reads them all."""
    rows: list[PlanRow] = []
    for replica in store.replicas:
        partition = replica.partition
        facts = [
            surveyed(one, store.survey(partition, one.number, pace=lambda _: None), now_ms)
            for one in store.segment_facts(partition)
        ]
        chosen = choose_for(store, settings, facts, now_ms)
        rows += [
            PlanRow(
                replica.partition,
                one.number,
                one.size,
                one.live_bytes,
                one.dead_bytes,
                one.size - one.garbage_bytes,
                one.garbage_bytes / one.size if one.size else 0.0,
                one.expiry_class,
                max(now_ms - one.created_ms, 0),
                one.score(now_ms),
                one.number in chosen,
            )
            for one in facts
        ]
    return rows


def surveyed(facts: SegmentFacts, survey: Survey, now_ms: int) -> SegmentFacts:
    """What is known of a segment after a look at it."""
    return replace(facts, kept_bytes=survey.kept_of(facts.size), is_due=survey.erase_at_ms <= now_ms)


def choose_for(
    store: DiskStore, settings: StorageSettings, facts: Sequence[SegmentFacts], now_ms: int
) -> tuple[int, ...]:
    """The segments of one replica that compaction takes now: the one rule, for upkeep and for whoever asks."""
    return choose(
        facts,
        now_ms=now_ms,
        garbage_ratio_min=settings.compaction_garbage_percent / 100,
        output_bytes_max=min(settings.segment_bytes, store.compaction_room()),
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
