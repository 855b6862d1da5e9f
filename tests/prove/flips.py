"""R5: every bit of headers, keys, properties and small files, and one bit in every 4 KiB of bodies, turned one by one.

With a bit turned, a read answers with the right bytes or with an error, and scrub finds it; a small file with a bit
turned makes the opening refuse, or changes nothing.
"""

import random
import time
from functools import partial

from ambry.blob.requests import GetRequest
from ambry.errors import AmbryError, DirectoryUnusable
from ambry.storage.record import HEADER_SIZE
from ambry.storage.segment import DATA_OFFSET, Damage, scan
from ambry.storage.sim_disk import SimDisk
from tests.storage.engine import TINY, WHOLE, World, answer_of, blob_id, body_of, put

SMALL_FILES = ("disk.meta", "partitions/1/replica.meta")
BLOBS = 12


def _filled() -> World:
    world = World(TINY)
    world.open()
    for n in range(BLOBS):
        world.commit([put(blob_id(n), body_of(n, 9000 if n % 3 else 70), properties=b"p" * n)])
    world.store.checkpoint()
    return world


def prove_flips(chosen: int, seconds: float) -> dict[str, object]:
    """Bits turned, and how many were found; `escaped` counts what was neither harmless nor found."""
    chance = random.Random(chosen)
    end_s = time.monotonic() + seconds
    turned = found = escaped = wrong = 0
    world = _filled()
    places = []
    for n in range(BLOBS):
        entry = world._entry(blob_id(n)[12:])
        assert entry is not None
        for at in range(HEADER_SIZE + 32 + n):
            places += [(n, entry, at, bit) for bit in range(8)]
        places += [
            (n, entry, at + chance.randrange(4096), chance.randrange(8)) for at in range(0, entry.body_size, 4096)
        ]
    chance.shuffle(places)
    for n, entry, at, bit in places:
        if time.monotonic() >= end_s:
            break
        segment = world.store.replicas[0].segments[entry.segment]
        offset = entry.offset + min(at, entry.body_offset + entry.body_size - 1)
        assert offset >= DATA_OFFSET
        before = segment.file.pread(1, offset)
        segment.file.pwrite([bytes([before[0] ^ 1 << bit])], offset)
        request = GetRequest(blob_id(n), 0, WHOLE)
        answer = answer_of(partial(world.store.get, request))
        is_error = isinstance(answer, type) and issubclass(answer, AmbryError)
        wrong += not is_error and answer != world.models[0].get(request)
        is_found = is_error and any(isinstance(one, Damage) for one in scan(segment))
        turned, found, escaped = turned + 1, found + is_found, escaped + (not is_found)
        segment.file.pwrite([before], offset)
    refused = harmless = 0
    # What was turned back is to be on the platter, too.
    for segment in world.store.replicas[0].segments.values():
        segment.file.sync()
    world.close()
    for path in SMALL_FILES:
        data = world.disk.read(path)
        for at in range(8 * len(data)):
            if time.monotonic() >= end_s + seconds / 2:
                break
            left = world.left_with(_turned(world.disk, path, data, at), world.source.index.crash_states()[-1])
            try:
                left.open()
            except DirectoryUnusable:
                refused += 1
            else:
                left.check()
                harmless += 1
    return {
        "bits_turned": turned,
        "found": found,
        "escaped": escaped,
        "wrong_bytes": wrong,
        "small_files_refused": refused,
        "small_files_harmless": harmless,
    }


def _turned(disk: SimDisk, path: str, data: bytes, at: int) -> SimDisk:
    copy = disk.crash(random.Random(0))
    changed = bytearray(data)
    changed[at // 8] ^= 1 << at % 8
    copy.replace(path, bytes(changed))
    return copy
