"""A composite blob's parts by themselves: which chunks it has, and where the n-th one lies.

A simple blob has no chunks; its only segment, number 0, is itself.
"""

from collections.abc import AsyncIterator

from ambry.blob.manifest import Entry
from ambry.errors import NoSuchPath
from ambry.frontend.get import OpenBlob, read_leaf
from ambry.frontend.placement import Placement


async def chunks_of(placement: Placement, blob: OpenBlob) -> AsyncIterator[tuple[Entry, ...]]:
    """The chunks in order, one leaf of the manifest at a time."""
    if blob.manifest is None:
        return
    if blob.manifest.level == 0:
        yield blob.manifest.entries
        return
    for entry in blob.manifest.entries:
        yield (await read_leaf(placement, entry)).entries


async def segment_range(placement: Placement, blob: OpenBlob, number: int) -> tuple[int, int]:
    """Which bytes start:stop of the blob are its chunk `number`, from 0 on. Raises NoSuchPath beyond the last."""
    if blob.manifest is None and number == 0:
        return 0, blob.size
    at = first = 0
    async for entries in chunks_of(placement, blob):
        if number < first + len(entries):
            at += sum(entry.size for entry in entries[: number - first])
            return at, at + entries[number - first].size
        at += sum(entry.size for entry in entries)
        first += len(entries)
    raise NoSuchPath("the blob has fewer segments")
