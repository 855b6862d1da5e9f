"""`ambry datanode inspect` and `compaction --plan` on the disk of a stopped datanode."""

import json
from dataclasses import replace
from pathlib import Path

from click.testing import CliRunner

from ambry.blob.requests import Change
from ambry.cli.datanode import datanode
from ambry.clock import SystemClock
from ambry.config import StorageSettings
from ambry.limits import GIB, KIB
from ambry.storage.exchange import Progress, remember
from ambry.storage.real_disk import RealDisk
from ambry.storage.recovery import open_store
from ambry.storage.rocks_index import RocksIndexSource
from tests.storage.engine import blob_id, body_of, put, update


def _write(folder: Path, blobs: int = 12) -> None:
    """Blobs in several segments, the first six of them deleted."""
    settings = replace(StorageSettings(), segment_bytes=64 * KIB, journal_bytes=16 << 20, reserve_bytes=0)
    index = RocksIndexSource(folder / "index", settings.index_cache_bytes, settings.index_memtable_bytes)
    store, _ = open_store(
        RealDisk(folder), index, settings=settings, clock=SystemClock(), random_bytes=bytes, partitions={1: GIB}
    )
    for n in range(blobs):
        store.commit([put(blob_id(n), body_of(n, 20_000))])
    store.commit([update(blob_id(n), Change.DELETE, time_ms=1) for n in range(6)])
    remember(store, {1: Progress({"peer": (bytes(range(16)), 77)})}, 5)
    store.close()


def test_inspect_shows_replicas_segments_records_entries_and_tokens(tmp_path: Path) -> None:
    _write(tmp_path)
    result = CliRunner().invoke(datanode, ["inspect", str(tmp_path)])
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["what"] for row in rows].count("replica") == 1
    assert [row["what"] for row in rows].count("segment") >= 3
    assert sum(row["what"] == "record" and row["kind"] == "put" for row in rows) == 12
    entries = {row["blob_id"]: row for row in rows if row["what"] == "entry"}
    assert entries[blob_id(3).hex()]["life"] == 1
    assert entries[blob_id(9).hex()]["body_size"] == 20_000
    tokens = [row for row in rows if row["what"] == "token"]
    assert tokens == [
        {"what": "token", "partition": 1, "peer": "peer", "incarnation": bytes(range(16)).hex(), "lsn": 77}
    ]


def test_the_plan_shows_what_compaction_would_take(tmp_path: Path) -> None:
    _write(tmp_path, 24)
    result = CliRunner().invoke(datanode, ["compaction", "--plan", "--json", str(tmp_path)])
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert rows[0]["is_chosen"]
    # Their deletes are long ago: the tombstones are all that stays of them.
    assert rows[0]["kept_bytes"] < 1000
    # Segments of this test are small for a store of the usual settings: as much goes along as garbage is freed.
    garbage = sum(row["size"] - row["kept_bytes"] for row in rows if row["is_chosen"])
    assert sum(row["kept_bytes"] for row in rows if row["is_chosen"]) <= garbage
    assert not rows[-1]["is_chosen"]
    assert "are enough" in rows[0]["reason"]
    assert (rows[-1]["is_active"], rows[-1]["reason"]) == (True, "it is still appended to")
    assert "Only the running datanode knows" in result.stderr
    text = CliRunner().invoke(datanode, ["compaction", "--plan", str(tmp_path)])
    assert f"{sum(row['is_chosen'] for row in rows)} of {len(rows)} segments, 0 of them sealed first" in text.stdout
    assert all(row["reason"] in text.stdout for row in rows)


def test_a_folder_without_a_store_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(datanode, ["inspect", str(tmp_path)])
    assert result.exit_code != 0
    assert not list(tmp_path.iterdir())
