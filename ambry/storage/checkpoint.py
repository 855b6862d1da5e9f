"""What a checkpoint has to make durable, and the part of it that waits for files: logs are written and synced.

The order of a checkpoint is the store's: logs, index, lengths, and then the journal, which is freed or replaced.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from ambry.errors import AmbryError, DiskFull, DiskUnavailable
from ambry.storage.disk import Disk, lacks_descriptors
from ambry.storage.journal import Journal
from ambry.storage.replica import Replica
from ambry.storage.segment import Segment
from ambry.storage.tail import Records, write_records


@dataclass(frozen=True, slots=True)
class CheckpointPlan:
    """What a checkpoint has to make durable, as things stood when it began."""

    covered: tuple[int, int, int]
    """Position, sequence and epoch of the journal."""
    held: Mapping[Segment, Records]
    dirty: list[tuple[Replica, Segment]]
    closed: list[tuple[Replica, set[int]]]
    ends: tuple[tuple[int, int, int], ...]
    replaces_journal: bool
    """The journal has failed: nothing is committed before another has taken its place."""


def plan_checkpoint(
    replicas: Iterable[Replica], journal: Journal, held: Mapping[Segment, Records], *, always: bool
) -> CheckpointPlan | None:
    """The plan, or None when nothing changed and not `always`; segments are not dirty any more. Under the lock."""
    replicas = tuple(replicas)
    has_failed = journal.failure is not None
    if not (journal.used_bytes or always or has_failed or any(one.dirty for one in replicas)):
        return None
    plan = CheckpointPlan(
        covered=(journal.position, journal.sequence, journal.epoch),
        held=held,
        dirty=[(replica, replica.segments[number]) for replica in replicas for number in sorted(replica.dirty)],
        closed=[(replica, numbers) for replica in replicas if (numbers := replica.open_ended & replica.sealed)],
        ends=tuple(
            (replica.partition, number, replica.segments[number].end)
            for replica in replicas
            for number in sorted(replica.open_ended)
        ),
        replaces_journal=has_failed,
    )
    for replica in replicas:
        replica.dirty = set()
    return plan


def write_logs(disk: Disk, plan: CheckpointPlan) -> dict[Segment, AmbryError]:
    """Write the tails and sync the logs, beside each other; DiskFull or DiskUnavailable of those that failed.

    There may be more logs than descriptors: what found none is done once more, when the others are synced and may give
    theirs up.
    """
    errors: dict[Segment, AmbryError] = {}

    def write_and_sync(segment: Segment) -> None:
        try:
            if segment in plan.held:
                write_records(segment, plan.held[segment])
            segment.file.sync()
        except (DiskFull, DiskUnavailable) as error:
            errors[segment] = error.as_answer()

    disk.run_all([partial(write_and_sync, segment) for _, segment in plan.dirty])
    for segment in [segment for segment, error in errors.items() if lacks_descriptors(error)]:
        # One at a time: each needs one.
        del errors[segment]
        write_and_sync(segment)
    return errors
