"""Which requests a datanode refuses because of the cluster map: those of partitions that it is not listed in, and
changes from a sender whose map is older than the partition's membership here. To such a sender it does not say either
that it has not got a blob; what it has, it gives.

A sender stamps its requests with the version of the map that chose their replicas. `membership` of a partition is the
version in which its replicas last changed, so a sender with that version or a later one knows who they are. One with
an earlier version might count the answer of a replica that does not count any more, and is told to reload its map.
Knows maps and requests; it does not wait and holds no replica.
"""

from collections.abc import Callable, Mapping
from typing import Final

from ambry.blob.requests import ChangesRequest, GetRequest, PutRequest, UpdateRequest
from ambry.cluster.map import ClusterMap
from ambry.errors import AmbryError, BlobNotFound, NoSuchReplica, StaleMap

_PARTITION_AT: Final = slice(12, 16)


class Fence:
    """The membership of a datanode's partitions under the map that it uses."""

    __slots__ = ("_listed", "_node", "_on_newer", "_retired", "version")

    def __init__(self, node: str, on_newer: Callable[[], None] = lambda: None) -> None:
        """`on_newer` is called when a sender knows a newer map."""
        self._node = node
        self._on_newer = on_newer
        self._listed: Mapping[int, int] = {}
        self._retired: frozenset[int] = frozenset()
        self.version = 0

    def adopt(self, cluster_map: ClusterMap) -> None:
        """Judge by this map from now on."""
        node = self._node
        self._listed = {
            number: partition.membership
            for number, partition in cluster_map.partitions.items()
            if any(replica.node == node for replica in partition.replicas)
        }
        self._retired = cluster_map.retired
        self.version = cluster_map.version

    def refusal(self, request: object, sent: int) -> AmbryError | None:
        """Why a request that was stamped with `sent` is refused, or None."""
        if sent > self.version:
            self._on_newer()
        if isinstance(request, PutRequest | UpdateRequest):
            return self._refusal(int.from_bytes(request.blob_id[_PARTITION_AT], "big"), sent)
        if isinstance(request, GetRequest):
            return self._refusal(int.from_bytes(request.blob_id[_PARTITION_AT], "big"), None)
        if isinstance(request, ChangesRequest):
            return self._refusal(request.partition, None)
        if isinstance(request, tuple):
            for item in request:
                found = self.refusal(item, sent)
                if isinstance(found, StaleMap):
                    return found
        return None

    def told(self, request: object, sent: int, outcome: object) -> object:
        """The outcome of a request as its sender may hear it. A sender that does not know the partition's replicas
        counts a "not found" against a quorum that is not the one that writes meet now: it is told to reload its map.
        """
        if isinstance(outcome, list) and isinstance(request, tuple):
            return [self.told(item, sent, one) for item, one in zip(request, outcome, strict=True)]
        if isinstance(outcome, BlobNotFound) and isinstance(request, GetRequest):
            return self._refusal(int.from_bytes(request.blob_id[_PARTITION_AT], "big"), sent) or outcome
        return outcome

    def _refusal(self, partition: int, sent: int | None) -> AmbryError | None:
        membership = self._listed.get(partition)
        if membership is None and sent is None and partition in self._retired:
            # Whoever reads under an older map is told that nothing is there, which is true for ever.
            return None
        if membership is None:
            return NoSuchReplica("the map lists no replica of this partition here", partition=partition)
        if sent is not None and sent < membership:
            return StaleMap("the sender's map is too old", partition=partition, sent=sent, membership=membership)
        return None
