"""`ambry sync`: the comparison by itself, and against a store that runs, with what may go wrong."""

import os
import random
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambry.cli.comparing import Rule, Verdict, merged, verdict, without
from ambry.cli.places import Entry, Local, Remote, _walk
from ambry.cli.progress import Transferring
from ambry.cli.transfers import Job, Manner, Transfers
from ambry.client import Client
from ambry.errors import ProtocolError
from ambry.limits import MIB
from tests.cli.shell import Shell, files_in
from tests.client.conftest import bytes_of, written

KEYS = st.sets(st.text(st.sampled_from("ab/-.é\U0001f600\uffff"), min_size=1, max_size=4))


def entry(key: str, size: int = 1, modified_ms: int = 0) -> Entry:
    return Entry(key, size, modified_ms)


# --- the comparison --------------------------------------------------------------------------------------------


@given(KEYS, KEYS)
def test_a_merge_has_every_key_once_beside_its_equal(left: set[str], right: set[str]) -> None:
    pairs = list(merged(map(entry, sorted(left)), map(entry, sorted(right))))
    keys = [(one or other).key for one, other in pairs]  # type: ignore[union-attr] # one of them is there
    assert keys == sorted(left | right)
    for key, (one, other) in zip(keys, pairs, strict=True):
        assert ((one is not None), (other is not None)) == (key in left, key in right)


def test_a_merge_reads_many_entries_as_it_goes() -> None:
    read = 0

    def listing(step: int) -> Iterator[Entry]:
        nonlocal read
        for number in range(0, 50_000 * step, step):
            read += 1
            yield entry(f"{number:08}")

    for count, _ in enumerate(merged(listing(1), listing(1)), 1):
        assert read <= 2 * count + 2
    assert read == 100_000
    read = 0
    for count, _ in enumerate(islice(merged(listing(1), listing(2)), 1000), 1):
        assert read <= 2 * count + 2


def test_a_listing_out_of_order_is_refused_before_anything_looks_missing() -> None:
    with pytest.raises(ProtocolError):
        list(merged(map(entry, ["b", "a"]), map(entry, ["a", "b"])))
    with pytest.raises(ProtocolError):
        list(merged([], map(entry, ["a", "a"])))


@pytest.mark.parametrize(
    ("source", "target", "rule", "is_into_store", "expected"),
    [
        (entry("a", 1, 5), entry("a", 2, 5), Rule.SIZE, True, Verdict.DIFFERENT),
        (entry("a", 1, 5), entry("a", 1, 1), Rule.SIZE, True, Verdict.SAME),
        (entry("a", 1, 5), entry("a", 1, 5), Rule.CHECKSUM, False, Verdict.IN_DOUBT),
        (entry("a", 1, 5), entry("a", 1, 6), Rule.TIME, True, Verdict.SAME),
        (entry("a", 1, 6), entry("a", 1, 5), Rule.TIME, True, Verdict.IN_DOUBT),
        (entry("a", 1, 5), entry("a", 1, 6), Rule.TIME, False, Verdict.IN_DOUBT),
        (entry("a", 1, 5), entry("a", 1, 5), Rule.TIME, False, Verdict.SAME),
    ],
)
def test_sizes_and_times_say_what_is_the_same(
    source: Entry, target: Entry, rule: Rule, is_into_store: bool, expected: Verdict
) -> None:
    assert verdict(source, target, rule, is_into_store=is_into_store) is expected


def test_patterns_exclude_parts_and_paths_with_what_is_below() -> None:
    keys = ["a.tmp", "b", "c/a.tmp/x", "c/d", "logs/1/2", "x/logs/3"]

    def left(*patterns: str) -> list[str]:
        return [one.key for one in without(map(entry, keys), patterns)]

    assert left() == keys
    assert left("*.tmp") == ["b", "c/d", "logs/1/2", "x/logs/3"]
    assert left("logs/*") == ["a.tmp", "b", "c/a.tmp/x", "c/d", "x/logs/3"]
    assert left("logs", "?") == ["a.tmp"]
    assert left("**/d") == [key for key in keys if key != "c/d"]


def test_a_walk_of_a_folder_is_in_the_order_of_a_stores_names(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    names = set()
    for _ in range(300):
        parts = ["".join(chance.choices("ab-.é\U0001f600\uffff0", k=chance.randint(1, 3))) for _ in range(3)]
        path = tmp_path.joinpath(*parts[: chance.randint(1, 3)])
        if "." in parts or ".." in parts or any(one.is_file() for one in path.parents) or path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        names.add(path.relative_to(tmp_path).as_posix())
    walked = [one.key for one in _walk(tmp_path, lambda name, error: pytest.fail(name))]
    assert len(walked) > 50 and walked == sorted(names, key=str.encode)


# --- a store ---------------------------------------------------------------------------------------------------


def test_a_folder_is_kept_equal_up_and_down(shell: Shell, tmp_path: Path) -> None:
    files = {"a": b"a", "b/c": b"c", "b-d": b"d" * 1000, "large": bytes_of(2_000_000)}
    up, down = written(tmp_path / "up", files), tmp_path / "down"
    assert shell.run("sync", str(up), shell.place) == "copied 4 files, 1.9 MiB\n"
    assert shell.names() == files
    assert shell.run("sync", f"{up}/", f"{shell.place}/") == "copied 0 files, 0 B; same 4\n"
    assert shell.run("sync", shell.place, str(down)) == "copied 4 files, 1.9 MiB\n"
    assert files_in(down) == files
    assert shell.run("sync", shell.place, str(down)) == "copied 0 files, 0 B; same 4\n"
    # And from what came down: its times are those of the names.
    assert shell.run("sync", str(down), shell.place) == "copied 0 files, 0 B; same 4\n"
    written(up, {"a": b"A", "new": b"n"})
    lines = shell.lines("sync", str(up), shell.place)
    assert {line["target"] for line in lines} == {f"{shell.place}/a", f"{shell.place}/new"}
    assert shell.run("sync", shell.place, str(down)) == "copied 2 files, 2 B; same 3\n"
    assert files_in(down) == files_in(up)
    assert shell.run("sync", shell.place, f"{shell.place}-copy") == "copied 5 files, 1.9 MiB\n"
    assert shell.run("sync", shell.place, f"{shell.place}-copy") == "copied 0 files, 0 B; same 5\n"


def test_a_file_that_was_touched_is_not_sent_again(shell: Shell, tmp_path: Path) -> None:
    up = written(tmp_path / "up", {str(number): bytes([number]) for number in range(9)})
    shell.run("sync", str(up), shell.place)
    for path in up.iterdir():
        os.utime(path, (4_000_000_000, 4_000_000_000))
    (up / "3").write_bytes(b"!")
    os.utime(up / "3", (4_000_000_000, 4_000_000_000))
    assert shell.run("sync", str(up), shell.place) == "copied 1 file, 1 B; same 8\n"
    # What is here under another time than the name's gets that time once it was compared.
    assert shell.run("sync", shell.place, str(up)) == "copied 0 files, 0 B; same 9\n"
    assert all(path.stat().st_mtime < 4_000_000_000 for path in up.iterdir())


def test_checksum_and_size_only_do_what_they_say(shell: Shell, tmp_path: Path) -> None:
    up = written(tmp_path / "up", {"a": b"a", "b": b"b"})
    shell.run("sync", str(up), shell.place)
    (up / "a").write_bytes(b"A")
    os.utime(up / "a", (1_000_000_000, 1_000_000_000))
    assert shell.run("sync", str(up), shell.place) == "copied 0 files, 0 B; same 2\n"
    assert shell.run("sync", "--checksum", str(up), shell.place) == "copied 1 file, 1 B; same 1\n"
    assert shell.names()["a"] == b"A"
    (up / "a").write_bytes(b"x")
    os.utime(up / "a", (4_000_000_000, 4_000_000_000))
    assert shell.run("sync", "--size-only", str(up), shell.place) == "copied 0 files, 0 B; same 2\n"
    assert "not both" in shell.run("sync", "--size-only", "--checksum", str(up), shell.place, status=2)


@pytest.mark.parametrize("direction", ["up", "down"])
def test_delete_takes_away_what_the_source_lacks(shell: Shell, tmp_path: Path, direction: str) -> None:
    shell.place = shell.place.replace("[", "-").replace("]", "")
    here = {"a": b"a", "b/c": b"c", "now/a/folder": b"f", "file": b"f"}
    there = {"a": b"a", "old/x/y": b"y", "old-z": b"z", "now": b"n", "file/was/a/folder": b"w", "keep.tmp": b"k"}
    if direction == "up":
        source, target = str(written(tmp_path / "here", here)), shell.place
        shell.put(**there)
    else:
        source, target = shell.place, str(written(tmp_path / "there", there))
        shell.put(**here)

    def in_target() -> dict[str, bytes]:
        return shell.names() if direction == "up" else files_in(tmp_path / "there")

    options = ("--delete", "--exclude", "*.tmp")
    dry = shell.run("sync", *options, "--dry-run", source, target).splitlines()
    gone = {f"would remove {target}/{name}" for name in there if name not in here and name != "keep.tmp"}
    assert {line for line in dry if "remove" in line} == gone and in_target() == there
    lines = shell.lines("sync", *options, source, target)
    assert {f"would remove {line['source']}" for line in lines if line["operation"] == "remove"} == gone
    assert in_target() == here | {"keep.tmp": b"k"}
    assert not (tmp_path / "there/old").exists()
    assert "removed 1 file" in shell.run("sync", "--delete", source, target)
    assert in_target() == here


def test_nothing_is_deleted_for_a_source_that_is_missing_empty_or_in_trouble(shell: Shell, tmp_path: Path) -> None:
    shell.put(a=b"a", z=b"z")
    assert "there is no such folder" in shell.run("sync", "--delete", str(tmp_path / "none"), shell.place, status=1)
    (tmp_path / "empty").mkdir()
    assert "nothing was deleted" in shell.run("sync", "--delete", str(tmp_path / "empty"), shell.place, status=1)
    trouble = written(tmp_path / "trouble", {"b": b"b"})
    (trouble / "broken").symlink_to(tmp_path / "nowhere")
    said = shell.run("sync", "--delete", str(trouble), shell.place, status=1)
    assert "broken" in said and "nothing more is deleted" in said
    assert shell.names() == {"a": b"a", "b": b"b", "z": b"z"}
    # Down, what cannot be written here ends the deleting as well: it comes first, and stops where the listing does.
    down = written(tmp_path / "down", {"x": b"x"})
    assert "there is no such folder" in shell.run("sync", "--delete", f"{shell.place}/none", str(down), status=1)
    assert files_in(down) == {"x": b"x"}


def test_wrong_usage_and_names_that_cannot_be_files(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "are both on this machine" in shell.run("sync", str(tmp_path), str(tmp_path), status=2)
    assert "in the other" in shell.run("sync", shell.place, f"{shell.place}/below", status=2)
    assert "in the other" in shell.run("sync", f"{shell.place}/below", shell.place, status=2)
    shell.put(**{"a//b": b"1", "c": b"2"})
    assert "is no folder" in shell.run("sync", shell.place, str(tmp_path / "file"), status=1)
    assert "there is no such folder" in shell.run("sync", str(tmp_path / "file"), shell.place, status=1)
    assert "no path below a folder" in shell.run("sync", shell.place, str(tmp_path / "down"), status=1)
    assert files_in(tmp_path / "down") == {"c": b"2"}


def test_transfers_take_few_jobs_ahead_of_what_they_have_done(shell: Shell, tmp_path: Path) -> None:
    up = written(tmp_path / "up", {f"{number}": b"x" for number in range(200)})
    taken = 0

    def jobs() -> Iterator[Job]:
        nonlocal taken
        for number in range(200):
            taken += 1
            target = Remote("default/default", f"{shell.place.rpartition('/')[2]}/{number}")
            # Larger than what goes with others in one request, as far as the list knows.
            yield Job(Local(str(up / str(number))), target, MIB)

    with Client(shell.url) as client:
        transfers = Transfers(client, Manner(), Transferring(), threading.Event())
        for done, outcome in enumerate(transfers.run(jobs()), 1):
            assert outcome.error is None and taken - done <= 40
    assert taken == 200 and len(shell.names()) == 200


# --- a container with models -----------------------------------------------------------------------------------


@pytest.fixture
def container(shell: Shell, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """One of the test's own, with a model and a file."""
    name = request.node.name.replace("_", "-")[5:]
    shell.run("container", "create", name)
    with Client(shell.url) as client:
        client.push_model(written(tmp_path / "model", {"weights": b"w" * 1000}), f"default/{name}/net")
        client.put(b"f", f"default/{name}/file")
    return f"ambry://default/{name}"


def model_is_whole(shell: Shell, container: str) -> bool:
    with Client(shell.url) as client:
        return not client.verify_model(f"{container}/net", reads=True).problems


def test_sync_copies_and_deletes_no_name_that_models_need(shell: Shell, container: str, tmp_path: Path) -> None:
    up = written(tmp_path / "up", {"other": b"o", ".versions/net/mine": b"m"})
    for command in (("sync", "--delete"), ("sync", "--delete", "--dry-run")):
        shell.run(*command, str(up), container)
        assert shell.run("find", container, "--name", "file") == ""
        assert model_is_whole(shell, container)
    assert "mine" not in shell.run("find", container)
    shell.run("sync", container, str(tmp_path / "down"))
    assert files_in(tmp_path / "down") == {"other": b"o"}
    assert "--models" in shell.run("sync", str(up), f"{container}/.content", status=2)
    shell.run("sync", "--models", container, str(tmp_path / "all"))
    assert len(files_in(tmp_path / "all")) == 4
    shell.run("sync", "--models", "--delete", str(up), container)
    assert shell.run("find", container).splitlines() == [f"{container}/.versions/net/mine", f"{container}/other"]


def test_cp_and_mv_of_a_container_pass_by_what_models_need(shell: Shell, container: str, tmp_path: Path) -> None:
    shell.run("cp", "-r", container, str(tmp_path / "copy"))
    assert files_in(tmp_path / "copy") == {"file": b"f"}
    (tmp_path / "all").mkdir()
    shell.run("mv", f"{container}/**", str(tmp_path / "all"))
    assert files_in(tmp_path / "all") == {"file": b"f"}
    shell.run("mv", "-r", container, f"{container}/moved/", status=1)
    shell.run("mv", "-r", container, str(tmp_path / "moved"))
    back = written(tmp_path / "back", {".content/x": b"x", "y": b"y"})
    shell.run("cp", "-r", f"{back}/.", f"{container}/")
    assert shell.run("ls", container).split()[-1] == "y" and "x" not in shell.run("ls", f"{container}/.content").split()
    (alias,) = shell.run("find", f"{container}/.aliases").split()
    assert "--models" in shell.run("mv", alias, str(tmp_path), status=2)
    assert "--models" in shell.run("cp", str(back / "y"), alias, status=2)
    shell.run("cp", alias, str(tmp_path / "alias"))
    assert model_is_whole(shell, container)
    shell.run("cp", "-r", "--models", container, str(tmp_path / "whole"))
    assert sorted(path.name for path in (tmp_path / "whole").iterdir()) == [".aliases", ".content", ".versions", "y"]


def test_rm_of_a_container_with_models_is_refused_as_a_whole(shell: Shell, container: str) -> None:
    before = shell.run("find", container)
    for refused in (container, f"{container}/", f"{container}/.versions", f"{container}/.content/"):
        assert "--models" in shell.run("rm", "-r", "-y", refused, status=1)
        assert "--models" in shell.run("rm", "-r", "-y", "--dry-run", refused, status=1)
    assert shell.run("rm", before.split()[0], status=1).count("--models") == 1
    assert shell.run("find", container) == before
    assert shell.run("rm", f"{container}/**", status=1).count("--models") == 1
    assert shell.run("find", container).split() == before.split()[:-1] and model_is_whole(shell, container)
    shell.run("rm", "-r", "-y", "--models", container)
    assert shell.run("find", container) == ""
