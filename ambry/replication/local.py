"""What replication needs of the datanode it works for: a seam. `datanode.LocalReplicas` is the real one.

All methods may take as long as a disk takes, and raise the errors of `ambry.errors`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from ambry.blob.requests import PutRequest, StateAnswer, UpdateRequest
from ambry.errors import AmbryError
from ambry.protocol.replication import DigestsAnswer, DigestsRequest, RangeAnswer, RangeRequest, Token

Mutation: TypeAlias = PutRequest | UpdateRequest


@dataclass(slots=True)
class Progress:
    """What is to be remembered of one partition: tokens by peer, and blobs whose bytes are missing here."""

    tokens: dict[str, Token] = field(default_factory=dict)
    holes: frozenset[bytes] = frozenset()


class Local(Protocol):
    """The replicas of this datanode."""

    async def look_up(self, blob_ids: Sequence[bytes]) -> list[StateAnswer | None]:
        """What is known of blobs here, of any partitions; None of those that were never seen."""
        ...

    async def apply(self, requests: Sequence[Mutation], deadline: float) -> list[StateAnswer | AmbryError]:
        """Put and join, in order; an answer or an error for each. What was answered is durable."""
        ...

    async def read_tokens(self, partitions: Sequence[int]) -> dict[int, dict[str, Token]]:
        """The tokens that were remembered, by partition and peer."""
        ...

    async def remember(self, progress: Mapping[int, Progress]) -> frozenset[int]:
        """Tokens, durable with what they cover; holes among that are in the repair queue then.

        Returns the partitions of which this is true: a disk that failed does not hold up the others.
        """
        ...

    async def holes(self, cursor: bytes, limit: int) -> tuple[list[bytes], bytes]:
        """Blobs of the repair queue behind a cursor (empty: from the start), and the next one (empty: the end)."""
        ...

    async def forget_hole(self, blob_id: bytes, expired_before_ms: int) -> None:
        """Take a blob off the repair queue that is no hole, or none any more, or that expired before then."""
        ...

    async def digests(self, request: DigestsRequest) -> DigestsAnswer:
        """Digests of states here."""
        ...

    async def states(self, request: RangeRequest) -> RangeAnswer:
        """States here."""
        ...
