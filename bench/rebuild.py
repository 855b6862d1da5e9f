"""`python -m bench.rebuild`: how fast the index of a disk is made anew from its logs, and how fast a check is.

    python -m bench.rebuild                                  300 000 records of 200 B to 4 KiB, 4 GB of 64 KiB
    python -m bench.rebuild --records 1000000 --gigabytes 10

Writes a store of each kind through the engine, closes it, then runs what `ambry datanode check --rebuild` and
`ambry datanode check` run, in this process. Prints one JSON line for each. The files may be in the page cache: what
is measured is the code, not the disk. Bars: 100 000 records/s for small ones, 200 MB/s for bodies of 64 KiB.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

from ambry.blob.blob_id import BlobId, Kind, new_unique
from ambry.blob.checksums import checksum_vector, root_of
from ambry.blob.requests import PutRequest
from ambry.blob.state import NEVER
from ambry.clock import SystemClock
from ambry.config import StorageSettings
from ambry.limits import GIB, KIB
from ambry.storage.real_disk import RealDisk
from ambry.storage.rebuild import check_disk
from ambry.storage.recovery import open_store
from ambry.storage.rocks_index import RocksIndexSource

PARTITIONS: Final = 8
LARGE_BODY_BYTES: Final = 64 * KIB
SETTINGS: Final = replace(StorageSettings(), reserve_bytes=GIB)


def make_put(number: int, body: bytes, partition: int) -> PutRequest:
    """A put of blob `number`."""
    unique = new_unique(1_700_000_000_000 + number // 20, random.Random(number).randbytes(10))
    vector = checksum_vector(body)
    blob_id = BlobId(Kind.SIMPLE, 1, 1, 1, partition, unique).binary()
    return PutRequest(blob_id, 1_700_000_000_000, NEVER, b"", body, vector, root_of(vector, len(body)))


def _fill(folder: Path, count: int, sizes: tuple[int, int]) -> None:
    chance = random.Random(1)
    pool = chance.randbytes(1 << 20)
    store, _ = open_store(
        RealDisk(folder),
        _index(folder),
        settings=SETTINGS,
        clock=SystemClock(),
        random_bytes=os.urandom,
        partitions=dict.fromkeys(range(1, PARTITIONS + 1), 1024 * GIB),
    )
    per_group = 512 if sizes[1] < LARGE_BODY_BYTES else 64
    for first in range(0, count, per_group):
        group = []
        for number in range(first, min(first + per_group, count)):
            size = chance.randint(*sizes)
            at = chance.randrange(len(pool) - size)
            group.append(make_put(number, pool[at : at + size], 1 + number // 16 % PARTITIONS))
        store.commit(group)
    store.close()


def _index(folder: Path) -> RocksIndexSource:
    return RocksIndexSource(folder / "index", SETTINGS.index_cache_bytes, SETTINGS.index_memtable_bytes)


def _measure(folder: Path, what: str, *, rebuild: bool) -> bool:
    began_s, began_cpu_s = time.monotonic(), time.process_time()
    report = check_disk(
        RealDisk(folder),
        _index(folder),
        settings=SETTINGS,
        clock=SystemClock(),
        random_bytes=os.urandom,
        rebuild=rebuild,
    )
    seconds, cpu_s = time.monotonic() - began_s, time.process_time() - began_cpu_s
    row = {
        "what": f"{'rebuild' if rebuild else 'check'}, {what}",
        "records": report.records,
        "log_mb": round(report.log_bytes / 1e6),
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_s, 2),
        "records_per_s": round(report.records / seconds),
        "mb_per_s": round(report.log_bytes / 1e6 / seconds),
        "findings": len(report.findings),
    }
    print(json.dumps(row), flush=True)
    return not report.findings


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.rebuild", description=__doc__.partition("\n")[0])
    parser.add_argument("--records", type=int, default=300_000, help="small records")
    parser.add_argument("--gigabytes", type=float, default=4.0, help="bodies of 64 KiB")
    parser.add_argument("--directory", type=Path, help="where to write the stores; a temporary folder otherwise")
    arguments = parser.parse_args()
    is_fine = True
    kinds = (
        ("bodies of 200 B to 4 KiB", arguments.records, (200, 4 * KIB)),
        ("bodies of 64 KiB", int(arguments.gigabytes * 1e9) // LARGE_BODY_BYTES, (LARGE_BODY_BYTES, LARGE_BODY_BYTES)),
    )
    for what, count, sizes in kinds:
        folder = Path(tempfile.mkdtemp(prefix="ambry-rebuild-", dir=arguments.directory))
        try:
            _fill(folder, count, sizes)
            is_fine &= _measure(folder, what, rebuild=True)
            is_fine &= _measure(folder, what, rebuild=False)
        finally:
            shutil.rmtree(folder)
    sys.exit(0 if is_fine else 1)


if __name__ == "__main__":
    main()
