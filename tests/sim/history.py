"""What clients were told, and what may therefore never happen: the judge of a run.

Every blob is its own register: its bytes are known before it is put. Of its state the judge knows which deletes and
undeletes were tried, when, where, and whether they were acknowledged; what was tried without an answer may have
happened at any later time. Judgements are one-sided: whatever could be explained by some order is allowed.
"""

from collections import Counter
from dataclasses import dataclass, field

from ambry.limits import CLOCK_SKEW_MS_MAX


class Violation(AssertionError):
    """Something happened that must never happen."""


@dataclass(slots=True)
class Attempt:
    """One delete or undelete. Times in virtual seconds; `ended` is None while nobody was told of its end."""

    is_delete: bool
    datacentre: int
    begun: float
    ended: float | None = None
    is_acknowledged: bool = False


@dataclass(slots=True)
class Blob:
    """One blob that was acknowledged."""

    blob_id: bytes
    origin: int
    body: bytes
    acknowledged: float
    expires_at_ms: int | None
    attempts: list[Attempt] = field(default_factory=list)
    extensions: int = 0
    """How often it was tried to make it permanent."""
    is_permanent: bool = False
    """One of these was acknowledged."""

    @property
    def deletes(self) -> list[Attempt]:
        """All that were tried."""
        return [one for one in self.attempts if one.is_delete]

    @property
    def undeletes(self) -> list[Attempt]:
        """All that were tried."""
        return [one for one in self.attempts if not one.is_delete]

    def last_delete_is_final(self) -> bool:
        """Whether a delete was acknowledged and no undelete could come after it."""
        acknowledged = [one for one in self.deletes if one.is_acknowledged]
        return bool(acknowledged) and not self.undeletes

    def may_be_expired(self, now_ms: int) -> bool:
        """By some clock, and as far as somebody knows who has not heard of a longer life."""
        return self.expires_at_ms is not None and now_ms > self.expires_at_ms - 2 * CLOCK_SKEW_MS_MAX

    def must_be_expired(self, now_ms: int) -> bool:
        """By every clock, and nobody tried to make it live longer."""
        is_over = self.expires_at_ms is not None and now_ms > self.expires_at_ms + 2 * CLOCK_SKEW_MS_MAX
        return is_over and not self.extensions

    def was_never_deleted(self) -> bool:
        """Whether nothing could have deleted it."""
        return not self.deletes


class History:
    """All blobs of a run and what was seen of them."""

    def __init__(self) -> None:
        self.blobs: list[Blob] = []
        self.counts: Counter[str] = Counter()
        self.operations = 0

    def acknowledged(self, blob: Blob) -> None:
        """A put was acknowledged."""
        self.blobs.append(blob)

    def saw_bytes(
        self,
        blob: Blob,
        body: bytes,
        *,
        start: int,
        stop: int,
        is_quorum: bool,
        datacentre: int,
        begun: float,
        now_ms: int,
    ) -> None:
        """A read gave bytes start:stop."""
        if body != blob.body[start:stop]:
            raise Violation(f"{blob.blob_id.hex()}: wrong bytes {start}:{stop}")
        if blob.must_be_expired(now_ms):
            raise Violation(f"{blob.blob_id.hex()}: read long after it expired")
        if is_quorum and not blob.undeletes:
            for delete in blob.deletes:
                if not delete.is_acknowledged or delete.datacentre not in {datacentre, blob.origin}:
                    continue
                assert delete.ended is not None
                if delete.ended < begun:
                    raise Violation(f"{blob.blob_id.hex()}: a quorum read missed a delete that was acknowledged")

    def saw_gone(self, blob: Blob, *, now_ms: int, is_settled: bool = False) -> None:
        """A read said deleted or expired. `is_settled`: every replica knows of everything."""
        may_be_expired = blob.may_be_expired(now_ms) and not (is_settled and blob.is_permanent)
        if blob.was_never_deleted() and not may_be_expired:
            raise Violation(f"{blob.blob_id.hex()}: gone, and nobody deleted it")

    def saw_not_found(self, blob: Blob, *, now_ms: int) -> None:
        """A read said "not found", which is a proof."""
        if blob.may_be_expired(now_ms) and not blob.is_permanent:
            return  # expired blobs need no tombstone: compaction forgets them
        raise Violation(f"{blob.blob_id.hex()}: not found, and it was acknowledged")
