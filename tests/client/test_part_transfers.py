"""Large files in parts, up and down: interrupted at any point by real signals, resumed, damaged, changed, disk full."""

import errno
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ambry.cli.ports import free_port
from ambry.client import Client
from ambry.client.part_upload import size_of_parts
from ambry.client.transfer import _part_bytes
from ambry.errors import ConnectionLost, FileChanged, NameExists, NameNotFound
from ambry.limits import CHUNK_BYTES_MAX, GIB, MIB, UPLOAD_PARTS_MAX
from tests.client.conftest import bytes_of, ended, started

BASE = "default/default/parts"
SIZE = 40 * MIB + 17

# The signal comes from within, while the transfer stands still: from outside it may come when all is done.
PROGRAM = """
import os, signal, sys, time
from ambry.client import Client
what, url, path, name, *at = sys.argv[1:]
def told(done, total):
    if at and done >= int(at[0]):
        at.clear()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
with Client(url) as client:
    if what == "up":
        client.upload_file(path, name, part_bytes=1 << 20, progress=told)
    else:
        client.download_file(name, path, part_bytes=1 << 20, progress=told)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "source"
    path.write_bytes(bytes_of(SIZE))
    return path


@pytest.fixture
def copied(source: Path, tmp_path: Path) -> Path:
    """A file of one's own."""
    path = tmp_path / "source"
    path.write_bytes(source.read_bytes())
    return path


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def run_until(what: str, url: str, path: Path, name: str, at: int) -> int:
    """Run a transfer in a process that is interrupted, as by Ctrl-C, once so many bytes are done; its status."""
    command = [sys.executable, "-c", PROGRAM, what, url, str(path), name, str(at)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 or "KeyboardInterrupt" in done.stderr, done.stderr
    return done.returncode


def test_parts_of_a_download_are_larger_where_the_file_is_and_a_crash_costs_an_eighth_at_most() -> None:
    assert _part_bytes(GIB - 1) == 8 * MIB
    assert _part_bytes(GIB) == 32 * MIB
    assert 4 * _part_bytes(GIB) <= GIB // 8


def test_parts_are_whole_chunks_and_never_too_many() -> None:
    assert size_of_parts(40 * MIB, 16 * MIB) == 16 * MIB
    assert size_of_parts(40 * MIB, MIB) == MIB
    assert size_of_parts(40 * MIB, 5 * MIB) == 8 * MIB
    for size in (300 * GIB, 5 * 1024 * GIB):
        part = size_of_parts(size, 16 * MIB)
        assert part % CHUNK_BYTES_MAX == 0
        assert -(-size // part) <= UPLOAD_PARTS_MAX


def test_a_file_in_parts_comes_back_with_the_crc_of_all_its_bytes(client: Client, source: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    stored = client.upload_file(
        source, f"{BASE}/whole", part_bytes=4 * MIB, metadata={"a": "ü"}, content_type="text/plain",
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert (stored.size, stored.name, seen[-1]) == (SIZE, f"{BASE}/whole", (SIZE, SIZE))
    info = client.stat(stored.id)
    assert (info.size, info.filename, info.metadata, info.content_type) == (SIZE, "source", {"a": "ü"}, "text/plain")
    assert list(info.digests) == ["crc32"]
    client.download_file(f"{BASE}/whole", tmp_path / "target", part_bytes=3 * MIB)
    assert (tmp_path / "target").read_bytes() == source.read_bytes()
    assert names_in(source.parent) == ["source"]
    assert names_in(tmp_path) == ["target"]
    nameless = client.upload_file(source, part_bytes=4 * MIB)
    assert client.get(nameless.id, SIZE - 5, SIZE) == source.read_bytes()[-5:]


def test_a_name_that_is_taken_is_refused_and_can_be_replaced(client: Client, source: Path) -> None:
    client.put(b"before", f"{BASE}/taken", upsert=True)
    with pytest.raises(NameExists):
        client.upload_file(source, f"{BASE}/taken", part_bytes=8 * MIB)
    assert client.get(f"{BASE}/taken") == b"before"
    client.upload_file(source, f"{BASE}/taken", part_bytes=8 * MIB, upsert=True)
    assert client.stat(f"{BASE}/taken").size == SIZE
    assert names_in(source.parent) == ["source"]


def test_an_upload_that_is_interrupted_anywhere_leaves_no_name_and_goes_on(
    client: Client, url: str, copied: Path
) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    name = f"{BASE}/interrupted-{seed}"
    for at in sorted(random.Random(seed).sample(range(1, SIZE * 3 // 4), 2)):
        assert run_until("up", url, copied, name, at) != 0
        with pytest.raises(NameNotFound):
            client.stat(name)
        assert ".source.ambry-upload" in names_in(copied.parent)
    sidecar = (copied.parent / ".source.ambry-upload").read_text(encoding="utf-8")
    there = _parts_of(client, json.loads(sidecar.partition("\n")[2])["upload"])
    assert there
    began = bytes_in(client)
    client.upload_file(copied, name, part_bytes=MIB)
    # What had arrived was read and compared, and not sent again.
    assert bytes_in(client) - began <= SIZE - there + 100_000
    assert client.get(name) == copied.read_bytes()
    assert names_in(copied.parent) == ["source"]


def _parts_of(client: Client, upload: str) -> int:
    """Bytes of an upload that the store has."""
    session = client._session
    answer = session.ask("GET", f"/uploads/{upload}", deadline=session.deadline(None)).read()
    return sum(one["size"] for one in json.loads(answer)["parts"])


def bytes_in(client: Client) -> float:
    """Bytes of bodies that the store has taken."""
    session = client._session
    text = session.ask("GET", "/metrics", deadline=session.deadline(None)).read().decode()
    return float(
        next(line.split()[1] for line in text.splitlines() if line.startswith("ambry_request_body_bytes_total"))
    )


def test_a_download_that_is_interrupted_anywhere_leaves_no_file_and_goes_on(
    client: Client, url: str, source: Path, tmp_path: Path
) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    stored = client.upload_file(source, part_bytes=4 * MIB)
    target = tmp_path / "target"
    for at in sorted(random.Random(seed).sample(range(1, SIZE * 3 // 4), 2)):
        assert run_until("down", url, target, stored.id, at) != 0
        assert not target.exists()
    seen: list[int] = []
    client.download_file(stored.id, target, part_bytes=MIB, progress=lambda done, _: seen.append(done))
    assert seen[0] > 0
    assert target.read_bytes() == source.read_bytes()
    assert names_in(tmp_path) == ["target"]


class Cut(Exception):
    """The user has had enough."""


def cut_at(share: float) -> object:
    def cut(done: int, total: int) -> None:
        if done >= total * share:
            raise Cut

    return cut


def test_a_file_that_was_changed_since_is_stored_as_it_is_now(client: Client, copied: Path) -> None:
    with pytest.raises(Cut):
        client.upload_file(copied, f"{BASE}/changed", part_bytes=MIB, progress=cut_at(0.5))
    with copied.open("r+b") as file:
        for at in (0, 3 * MIB + 5, SIZE - 1):
            file.seek(at)
            file.write(b"!")
    client.upload_file(copied, f"{BASE}/changed", part_bytes=MIB)
    assert client.get(f"{BASE}/changed") == copied.read_bytes()
    with pytest.raises(Cut):
        client.upload_file(copied, f"{BASE}/shorter", part_bytes=MIB, progress=cut_at(0.5))
    os.truncate(copied, SIZE // 3)
    client.upload_file(copied, f"{BASE}/shorter", part_bytes=MIB)
    assert client.get(f"{BASE}/shorter") == copied.read_bytes()


def test_a_file_that_changes_while_its_parts_are_read_is_not_stored(client: Client, copied: Path) -> None:
    def change(done: int, total: int) -> None:
        if done < total // 2:
            with copied.open("ab") as file:
                file.write(b"more")

    with pytest.raises(FileChanged):
        client.upload_file(copied, f"{BASE}/changing", part_bytes=MIB, progress=change)
    assert not client.exists(f"{BASE}/changing")
    client.upload_file(copied, f"{BASE}/changing", part_bytes=MIB)
    assert client.get(f"{BASE}/changing") == copied.read_bytes()


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe", b"nonsense\n{}", b"0" * 16 + b'\n{"upload": "../../x"}'])
def test_a_damaged_sidecar_is_named_and_the_transfer_begins_anew(
    client: Client, copied: Path, tmp_path: Path, damage: bytes
) -> None:
    name = f"{BASE}/damaged-{damage.hex()[:20]}"
    with pytest.raises(Cut):
        client.upload_file(copied, name, part_bytes=4 * MIB, progress=cut_at(0.3))
    (tmp_path / ".source.ambry-upload").write_bytes(damage)
    with pytest.warns(RuntimeWarning, match=r"\.source\.ambry-upload"):
        client.upload_file(copied, name, part_bytes=4 * MIB)
    target = tmp_path / "target"
    with pytest.raises(Cut):
        client.download_file(name, target, part_bytes=4 * MIB, progress=cut_at(0.5))
    (tmp_path / ".target.ambry-parts").write_bytes(damage)
    with pytest.warns(RuntimeWarning, match=r"\.target\.ambry-parts"):
        client.download_file(name, target, part_bytes=4 * MIB)
    assert target.read_bytes() == copied.read_bytes()


def test_an_upload_that_the_store_forgot_or_completed_begins_anew(client: Client, copied: Path, tmp_path: Path) -> None:
    sidecar = tmp_path / ".source.ambry-upload"
    session = client._session
    for path in ("aborted", "completed"):
        with pytest.raises(Cut):
            client.upload_file(copied, f"{BASE}/{path}", part_bytes=4 * MIB, progress=cut_at(0.3))
        kept = sidecar.read_bytes()
        upload = json.loads(kept.partition(b"\n")[2])["upload"]
        if path == "aborted":
            session.ask("DELETE", f"/uploads/{upload}", expected=(202,), deadline=session.deadline(None)).read()
        else:
            client.upload_file(copied, f"{BASE}/{path}", part_bytes=4 * MIB)
            sidecar.write_bytes(kept)
            # The answer to the end was lost: asked again, it is the same blob.
            before = client.stat(f"{BASE}/{path}").id
            assert client.upload_file(copied, f"{BASE}/{path}", part_bytes=4 * MIB).id == before
            sidecar.write_bytes(kept)
            with copied.open("r+b") as file:
                file.write(b"changed")
        client.upload_file(copied, f"{BASE}/{path}", part_bytes=4 * MIB, upsert=True)
        assert client.get(f"{BASE}/{path}") == copied.read_bytes()
        assert not sidecar.exists()


def test_a_disk_without_room_for_the_file_is_told_before_the_first_byte_and_keeps_nothing(
    client: Client, url: str, source: Path, tmp_path: Path
) -> None:
    stored = client.upload_file(source, part_bytes=4 * MIB)
    small = tmp_path / "small"
    small.mkdir()
    script = (
        f"mount -t tmpfs -o size=8m none {small} || exit 77; {sys.executable} -c '{PROGRAM}' down {url} {small}/target "
        f"{stored.id}; echo status $?; ls -A {small}"
    )
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script], check=False, capture_output=True, text=True, timeout=60
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("this machine makes no file systems for tests")
    assert "status 1" in done.stdout
    assert f"No space left on device: '{small}/target'" in done.stderr
    assert done.stdout.split("status 1\n")[1].split() == []


@pytest.mark.parametrize("size", [100_000, SIZE])
@pytest.mark.parametrize("in_batch", [False, True])
def test_what_the_disk_refuses_is_told_with_the_name_of_the_file(
    client: Client, url: str, tmp_path: Path, size: int, in_batch: bool
) -> None:
    base = f"{BASE}/refused-{size}-{in_batch}"
    for name in ("a", "target")[not in_batch :]:
        client.put(bytes_of(size if name == "target" else 10), f"{base}/{name}")
    # As a full disk, which no test can have everywhere: no file has more bytes than this.
    program = (
        "import resource, sys; from ambry.client import Client; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))"
        "\ntry: Client(sys.argv[1]).download_dir(*sys.argv[2:])"
        "\nexcept OSError as error: print(error.errno, error.filename)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, url, base, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.split() == [str(errno.EFBIG), str(tmp_path / "target")]
    assert not (tmp_path / "target").exists()


@pytest.fixture
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[subprocess.Popen[str]], str, Path]]:
    """A store of its own: its process, its URL, its folder."""
    folder = tmp_path_factory.mktemp("mortal") / "data"
    process, url = started(folder, free_port())
    processes = [process]
    yield processes, url, folder
    ended(processes[-1])


def test_a_server_that_is_killed_in_the_middle_costs_only_what_was_under_way(
    mortal: tuple[list[subprocess.Popen[str]], str, Path], copied: Path, tmp_path: Path
) -> None:
    processes, url, folder = mortal
    kills: list[int] = []

    def kill(done: int, total: int) -> None:
        if done >= total // 2 and not kills:
            kills.append(done)
            processes[-1].kill()
            ended(processes[-1])

    with Client(url) as client:
        with pytest.raises(ConnectionLost):
            client.upload_file(copied, f"{BASE}/killed", part_bytes=MIB, progress=kill)
        processes.append(started(folder, int(url.rpartition(":")[2]))[0])
        client.upload_file(copied, f"{BASE}/killed", part_bytes=MIB)
        # The other half had arrived before.
        assert bytes_in(client) < SIZE * 0.75
        assert client.get(f"{BASE}/killed") == copied.read_bytes()
