"""What pandas, pyarrow and zarr write to `ambry://` URLs they read back, whole and in part."""

import itertools
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import zarr

from ambry.client.fs import AmbryFileSystem
from tests.client.test_models import counted

fsspec.register_implementation("ambry", AmbryFileSystem, clobber=True)
_places = itertools.count()
ROWS = 20_000


@pytest.fixture
def base() -> str:
    return f"default/default/round-trips-{next(_places)}"


@pytest.fixture
def options(url: str) -> dict[str, Any]:
    """What pandas and zarr hand over to the file system."""
    return {"endpoint_url": url}


@pytest.fixture
def fs(url: str) -> AmbryFileSystem:
    return AmbryFileSystem(url=url, skip_instance_cache=True)


@pytest.fixture
def frame() -> pd.DataFrame:
    chance = np.random.default_rng(1)
    return pd.DataFrame(
        {
            "id": np.arange(ROWS),
            "score": chance.random(ROWS),
            "label": chance.choice(["cat", "dog", 'ü, "quoted"\nlines'], ROWS),
            "when": pd.Timestamp("2026-11-30") + pd.to_timedelta(chance.integers(0, 10**6, ROWS), unit="s"),
            "maybe": np.where(chance.random(ROWS) < 0.5, np.nan, 1.5),
        }
    )


# --- pandas ----------------------------------------------------------------------------------------------------


def test_pandas_reads_the_parquet_that_it_wrote(frame: pd.DataFrame, base: str, options: dict[str, Any]) -> None:
    url = f"ambry://{base}/frame.parquet"
    frame.to_parquet(url, storage_options=options)
    pd.testing.assert_frame_equal(pd.read_parquet(url, storage_options=options), frame)
    some = pd.read_parquet(url, columns=["score"], filters=[("id", ">=", ROWS - 5)], storage_options=options)
    pd.testing.assert_frame_equal(some.reset_index(drop=True), frame[["score"]][-5:].reset_index(drop=True))
    # Written over, as a file of a disk would be.
    frame[:3].to_parquet(url, storage_options=options)
    pd.testing.assert_frame_equal(pd.read_parquet(url, storage_options=options), frame[:3])
    with pytest.raises(FileNotFoundError):
        pd.read_parquet(f"ambry://{base}/never.parquet", storage_options=options)


@pytest.mark.parametrize("ending", ["csv", "csv.gz"])
def test_pandas_reads_the_csv_that_it_wrote(
    frame: pd.DataFrame, base: str, options: dict[str, Any], ending: str
) -> None:
    url = f"ambry://{base}/frame.{ending}"
    frame.to_csv(url, index=False, storage_options=options)
    found = pd.read_csv(url, parse_dates=["when"], storage_options=options)
    pd.testing.assert_frame_equal(found, frame, check_dtype=False)
    with pd.read_csv(url, chunksize=ROWS // 4, storage_options=options) as pieces:
        assert [len(piece) for piece in pieces] == [ROWS // 4] * 4
    assert list(pd.read_csv(url, nrows=3, usecols=["id"], storage_options=options)["id"]) == [0, 1, 2]


# --- pyarrow ---------------------------------------------------------------------------------------------------


def test_pyarrow_reads_the_dataset_of_several_files_that_it_wrote(
    frame: pd.DataFrame, base: str, fs: AmbryFileSystem
) -> None:
    table = pa.Table.from_pandas(frame, preserve_index=False)
    pads.write_dataset(
        table, f"{base}/set", filesystem=fs, format="parquet", max_rows_per_file=3000, max_rows_per_group=3000,
    )  # fmt: skip
    assert len(fs.find(f"{base}/set")) == -(-ROWS // 3000)
    found = pads.dataset(f"{base}/set", filesystem=fs, format="parquet")
    assert len(found.files) == -(-ROWS // 3000)
    assert found.count_rows() == ROWS
    assert found.to_table().sort_by("id").equals(table)
    some = found.to_table(columns=["id", "label"], filter=(pads.field("id") >= 5999) & (pads.field("id") < 6002))
    assert sorted(some["id"].to_pylist()) == [5999, 6000, 6001]
    assert some.column_names == ["id", "label"]


def test_pyarrow_writes_partitions_as_folders_and_replaces_one_of_them(base: str, fs: AmbryFileSystem) -> None:
    table = pa.table({"year": [2024, 2025, 2025, 2026], "value": [1.0, 2.0, 3.0, 4.0]})
    pq.write_to_dataset(table, f"{base}/years", partition_cols=["year"], filesystem=fs)
    assert sorted(fs.ls(f"{base}/years", detail=False)) == [f"{base}/years/year={year}" for year in (2024, 2025, 2026)]
    found = pq.read_table(f"{base}/years", filesystem=fs, filters=[("year", "=", 2025)])
    assert sorted(found["value"].to_pylist()) == [2.0, 3.0]
    pq.write_to_dataset(
        pa.table({"year": [2025], "value": [9.0]}), f"{base}/years", partition_cols=["year"], filesystem=fs,
        existing_data_behavior="delete_matching",
    )  # fmt: skip
    assert sorted(pq.read_table(f"{base}/years", filesystem=fs)["value"].to_pylist()) == [1.0, 4.0, 9.0]


def test_pyarrow_reads_one_column_without_the_others(url: str, base: str, fs: AmbryFileSystem) -> None:
    chance = np.random.default_rng(2)
    table = pa.table({f"c{number}": chance.random(200_000) for number in range(10)})
    pq.write_table(table, f"{base}/wide.parquet", filesystem=fs, compression="none", use_dictionary=False)
    size = fs.size(f"{base}/wide.parquet")
    assert size > 10 * 200_000 * 8
    with counted(url) as (way, count):
        counting = AmbryFileSystem(url=way, skip_instance_cache=True)
        with counting.open(f"{base}/wide.parquet", block_size=64 * 1024) as file:
            found = pq.ParquetFile(file).read(columns=["c7"])
        assert found["c7"].equals(table["c7"])
        assert count[0] < size // 5


def test_files_of_pyarrow_are_listed_moved_and_removed_by_its_own_calls(base: str, fs: AmbryFileSystem) -> None:
    theirs = pa.fs.PyFileSystem(pa.fs.FSSpecHandler(fs))
    with theirs.open_output_stream(f"{base}/d/a") as stream:
        stream.write(b"hello")
    info = theirs.get_file_info(f"{base}/d/a")
    assert (info.type, info.size) == (pa.fs.FileType.File, 5)
    theirs.move(f"{base}/d/a", f"{base}/d/b")
    assert [one.path for one in theirs.get_file_info(pa.fs.FileSelector(f"{base}/d"))] == [f"{base}/d/b"]
    with theirs.open_input_file(f"{base}/d/b") as file:
        assert (file.size(), file.read_at(3, 1)) == (5, b"ell")
    theirs.delete_dir(f"{base}/d")
    assert theirs.get_file_info(f"{base}/d/b").type == pa.fs.FileType.NotFound


# --- zarr ------------------------------------------------------------------------------------------------------


@pytest.fixture
def numbers() -> np.ndarray:
    return np.random.default_rng(3).random((100, 80)).astype("f4")


def test_zarr_reads_the_array_that_it_wrote_also_in_part(
    numbers: np.ndarray, base: str, options: dict[str, Any], fs: AmbryFileSystem
) -> None:
    url = f"ambry://{base}/array.zarr"
    made = zarr.create_array(url, shape=numbers.shape, chunks=(30, 30), dtype="f4", storage_options=options)
    made[:] = numbers
    chunks = {path: entry["id"] for path, entry in fs.find(f"{base}/array.zarr/c", detail=True).items()}
    assert len(chunks) == 4 * 3

    opened = zarr.open_array(url, mode="r+", storage_options=options)
    assert (opened.shape, opened.chunks, opened.dtype) == ((100, 80), (30, 30), np.dtype("f4"))
    assert np.array_equal(opened[:], numbers)
    assert np.array_equal(opened[25:35, 50:], numbers[25:35, 50:])
    assert opened[99, 79] == numbers[99, 79]

    # What is written in part replaces the chunks that it touches and no others.
    opened[0:5, 0:40] = 7
    numbers[0:5, 0:40] = 7
    now = {path: entry["id"] for path, entry in fs.find(f"{base}/array.zarr/c", detail=True).items()}
    assert {path for path in now if now[path] != chunks[path]} == {f"{base}/array.zarr/c/0/{n}" for n in (0, 1)}
    assert np.array_equal(zarr.open_array(url, mode="r", storage_options=options)[:], numbers)


def test_zarr_reads_a_part_without_the_rest(numbers: np.ndarray, url: str, base: str) -> None:
    large = np.tile(numbers, (20, 20))
    place = f"ambry://{base}/large.zarr"
    zarr.create_array(place, data=large, chunks=(200, 200), compressors=None, storage_options={"endpoint_url": url})
    with counted(url) as (way, count):
        opened = zarr.open_array(place, mode="r", storage_options={"endpoint_url": way})
        assert np.array_equal(opened[150:250, 10:20], large[150:250, 10:20])
        # Two chunks of 160 000 bytes each of 80.
        assert count[0] < 3 * 160_000 < large.nbytes // 20


def test_zarr_keeps_groups_attributes_and_what_grows(
    numbers: np.ndarray, base: str, options: dict[str, Any], fs: AmbryFileSystem
) -> None:
    url = f"ambry://{base}/group.zarr"
    root = zarr.create_group(url, attributes={"title": "räume"}, storage_options=options)
    grown = root.create_group("inner").create_array("grows", shape=(10, 80), chunks=(10, 80), dtype="f4")
    grown[:] = numbers[:10]
    grown.append(numbers[10:])
    found = zarr.open_group(url, mode="r", storage_options=options)
    assert dict(found.attrs) == {"title": "räume"}
    assert np.array_equal(found["inner/grows"][:], numbers)
    assert sorted(found["inner"].array_keys()) == ["grows"] and sorted(found.group_keys()) == ["inner"]
    del zarr.open_group(url, mode="r+", storage_options=options)["inner"]
    assert fs.find(f"{base}/group.zarr") == [f"{base}/group.zarr/zarr.json"]


def test_inner_chunks_of_zarr_are_ranges_of_one_blob(
    numbers: np.ndarray, base: str, url: str, fs: AmbryFileSystem
) -> None:
    large = np.tile(numbers, (4, 5))
    place = f"ambry://{base}/sharded.zarr"
    zarr.create_array(
        place, data=large, chunks=(20, 20), shards=(400, 400), compressors=None, storage_options={"endpoint_url": url}
    )
    assert len(fs.find(f"{base}/sharded.zarr/c")) == 1
    with counted(url) as (way, count):
        opened = zarr.open_array(place, mode="r", storage_options={"endpoint_url": way})
        assert np.array_equal(opened[100:110, 300:310], large[100:110, 300:310])
        assert count[0] < large.nbytes // 20
