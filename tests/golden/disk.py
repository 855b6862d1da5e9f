"""The folder of a whole disk as a process left it that was killed: checkpointed blobs, others only in the journal, and
segments that were sealed. Written by today's engine over the simulated disk; any later engine has to open it.

The folder is kept as msgpack: [path, size, [[offset, bytes], ...]] for each file, without the blocks that are zero.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import msgpack

from ambry.blob.blob_id import BlobId, Kind, new_unique
from ambry.blob.checksums import checksum_vector, root_of
from ambry.blob.properties import Properties, decode_properties, encode_properties
from ambry.blob.requests import Change, ChangesRequest, GetRequest, PutRequest, StateAnswer, UpdateRequest
from ambry.blob.state import NEVER, BlobState
from ambry.clock import ManualClock
from ambry.config import StorageSettings
from ambry.limits import GIB, JOURNAL_BODY_BYTES_MAX, KIB
from ambry.storage.commit import Mutation
from ambry.storage.journal import RING_AT
from ambry.storage.recovery import open_store
from ambry.storage.sim_disk import SimDisk
from ambry.storage.sim_index import SimIndexSource
from ambry.storage.store import DiskStore

_BLOCK: Final = 512
_TIME_MS: Final = 1_764_000_000_000
_PARTITIONS: Final = {1: GIB, 4: GIB}
_SETTINGS: Final = replace(StorageSettings(), segment_bytes=4 * KIB, journal_bytes=RING_AT + 512 * KIB, reserve_bytes=0)
_SIZES: Final = (0, 1, 45, 700, 3000, JOURNAL_BODY_BYTES_MAX + 12_345)
_COUNT: Final = 12


def _identity(number: int) -> bytes:
    unique = new_unique(_TIME_MS + number, number.to_bytes(10, "big"))
    return BlobId(Kind.SIMPLE, 1, 2, 3, (1, 4)[number % 2], unique).binary()


def _body(number: int) -> bytes:
    """Mostly zeros where it is large, so that the file here stays small."""
    size = _SIZES[number % len(_SIZES)]
    head = f"blob {number}. ".encode() * 300
    return (head + bytes(max(size - len(head), 0)))[:size]


def _put(number: int) -> PutRequest:
    body = _body(number)
    vector = checksum_vector(body)
    properties = encode_properties(Properties(size=len(body), filename=f"{number}.txt"))
    expires_at_ms = NEVER if number % 3 else _TIME_MS + 86_400_000
    return PutRequest(
        _identity(number), _TIME_MS + number, expires_at_ms, properties, body, vector, root_of(vector, len(body))
    )


def _update(number: int, change: Change, expires_at_ms: int = 0) -> UpdateRequest:
    return UpdateRequest(_identity(number), change, BlobState(0, expires_at_ms), _TIME_MS + 1000)


def _open(disk: SimDisk, source: SimIndexSource) -> DiskStore:
    store, _ = open_store(
        disk,
        source,
        settings=_SETTINGS,
        clock=ManualClock(_TIME_MS),
        random_bytes=random.Random(1).randbytes,
        partitions=_PARTITIONS,
    )
    return store


def write_disk() -> bytes:
    """Two openings; the second one has work of its own in the journal when it is killed."""
    disk, source = SimDisk(), SimIndexSource()
    store = _open(disk, source)
    _commit(store, [_put(number) for number in range(6)])
    _commit(store, [_update(1, Change.DELETE), _update(2, Change.DELETE)])
    store.close()
    store = _open(disk, source)
    _commit(store, [_put(number) for number in range(6, 9)])
    store.checkpoint()
    _commit(store, [_put(number) for number in range(9, _COUNT)])
    _commit(store, [_update(2, Change.UNDELETE), _update(3, Change.EXTEND, NEVER), _update(7, Change.DELETE)])
    return _packed(disk)


def _commit(store: DiskStore, requests: list[Mutation]) -> None:
    answers = store.commit(requests)
    assert all(isinstance(answer, StateAnswer) for answer in answers), answers


def _packed(disk: SimDisk) -> bytes:
    folders = [f"partitions/{partition}" for partition in _PARTITIONS]
    paths = ["disk.meta", "journal", *(f"{folder}/{name}" for folder in folders for name in disk.names(folder))]
    files = []
    for path in paths:
        data = disk.read(path)
        blocks = [[at, data[at : at + _BLOCK]] for at in range(0, len(data), _BLOCK) if any(data[at : at + _BLOCK])]
        files.append([path, len(data), blocks])
    packed: bytes = msgpack.packb(files)
    return packed


def opened_disk(packed: bytes) -> tuple[DiskStore, Callable[[random.Random], DiskStore]]:
    """The store of such a disk, and how to open it again after the power went."""
    disk, source = SimDisk(), SimIndexSource()
    for folder in _PARTITIONS:
        disk.make_folder(f"partitions/{folder}")
    for path, size, blocks in msgpack.unpackb(packed):
        file = disk.create(path)
        file.truncate(size)
        for offset, data in blocks:
            file.pwrite([data], offset)
        file.sync()
        file.close()
    store = _open(disk, source)
    return store, lambda chance: _open(disk.crash(chance), source.crash(chance))


def read_disk(packed: bytes) -> object:
    """Every blob with its state, and the feed of changes, as the engine finds them after its recovery."""
    store, _ = opened_disk(packed)
    found: list[object] = []
    for number in range(_COUNT):
        answer = store.get(GetRequest(_identity(number), 0, 2**40, include_deleted=True))
        assert bytes(answer.body) == _body(number), number
        found.append([number, answer.state, answer.created_ms, decode_properties(answer.properties), answer.root])
    changes = [store.changes(ChangesRequest(partition, 0, 1000)) for partition in _PARTITIONS]
    store.close()
    return [found, changes]
