"""Models in trouble: damaged caches, manifests and content, processes side by side, a store that is killed."""

import contextlib
import random
import signal
import subprocess
import sys
import threading
from hashlib import sha256
from pathlib import Path

import pytest

from ambry.cli.ports import free_port
from ambry.client import Client
from ambry.client.contents import Contents
from ambry.errors import AmbryError, ModelDamaged, NameDeleted, NameExists, NameNotFound, PreconditionFailed
from ambry.limits import MIB
from tests.client.conftest import bytes_of, ended, started, written
from tests.client.test_interrupts import interrupted, silent

BASE = "default/default"


def test_a_damaged_cache_is_healed_by_loading_again(url: str, tmp_path: Path) -> None:
    files = {"a": bytes_of(50_000, 1), "b": bytes_of(50_000, 2)}
    with Client(url, cache=tmp_path / "cache") as client:
        pushed = client.push_model(written(tmp_path / "model", files), f"{BASE}/healed")
        client.pull_model(pushed.ref)
        for path in (tmp_path / "cache/content").glob("*/*"):
            path.chmod(0o644)
            path.write_bytes(path.read_bytes()[:-1] + b"!")
        for path in (tmp_path / "cache/records").iterdir():
            path.write_bytes(b"nonsense")
        healed = client.pull_model(f"{BASE}/healed", tmp_path / "copy", verify=True)
        assert healed.loaded_bytes == 100_000
        assert {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()} == files


def test_damage_in_the_store_is_named_and_nothing_is_half_there(url: str, tmp_path: Path) -> None:
    with Client(url, cache=tmp_path / "cache") as client:
        pushed = client.push_model(written(tmp_path / "model", {"a": b"a" * 100, "b": b"b" * 100}), f"{BASE}/damaged")
        content = client.read_manifest(pushed.ref).files[0].sha256
        client.put(b"c" * 100, f"{BASE}/.content/{content}", upsert=True)
        assert client.verify_model(pushed.ref).problems == ()
        assert client.verify_model(pushed.ref, reads=True).problems == ("a: does not have its SHA-256",)
        with pytest.raises(ModelDamaged) as caught:
            client.pull_model(pushed.ref, tmp_path / "copy")
        assert caught.value.facts["name"] == content
        client.delete(f"{BASE}/.content/{content}")
        assert client.verify_model(pushed.ref).problems == (f"a: content {content} is missing",)
        with pytest.raises(ModelDamaged):
            client.pull_model(pushed.ref, tmp_path / "copy")
        assert not (tmp_path / "copy").exists()
        assert client.push_model(tmp_path / "model", f"{BASE}/damaged").sent_bytes < 2000
        assert client.pull_model(pushed.ref, tmp_path / "copy").size == 200
        client.put(b"{}", f"{BASE}/.versions/damaged/{pushed.version}", upsert=True)
        with Client(url, cache=tmp_path / "other") as another, pytest.raises(ModelDamaged):
            another.pull_model(pushed.ref)
        client.put(b"x", f"{BASE}/.aliases/damaged/odd", upsert=True)
        with pytest.raises(ModelDamaged):
            client.pull_model(f"{BASE}/damaged@odd")
        client.delete(f"{BASE}/.aliases/damaged/odd")
        with Client(url, cache=tmp_path / "other") as another, pytest.raises(ModelDamaged):
            another.collect_content(BASE)
        client.delete_model(f"{BASE}/damaged")


def test_a_damaged_alias_is_named_replaced_and_deleted(url: str, tmp_path: Path) -> None:
    model = f"{BASE}/odd"
    folder = written(tmp_path / "model", {"a": b"a"})

    def damage(alias: str) -> None:
        client.put(b"x", f"{BASE}/.aliases/odd/{alias}", upsert=True)

    with Client(url, cache=tmp_path / "cache") as client:
        first = client.push_model(folder, model, aliases=["prod", "good"])
        damage("prod")
        for read in (lambda: client.list_versions(model), lambda: client.pull_model(f"{model}@prod")):
            with pytest.raises(ModelDamaged, match="alias prod"):
                read()
        for expected in (None, first.version):
            with pytest.raises(PreconditionFailed, match="prod"):
                client.set_alias(first.ref, "prod", expected=expected)
        client.set_alias(first.ref, "prod")
        assert client.pull_model(f"{model}@prod").version == first.version
        damage("prod")
        second = client.push_model(folder, model, aliases="prod")
        assert client.pull_model(f"{model}@prod").version == second.version
        damage("prod")
        assert client.delete_model(first.ref) == [first.version]
        with pytest.raises(NameNotFound):
            client.pull_model(f"{model}@good")
        with pytest.raises(ModelDamaged, match="alias prod"):
            client.list_versions(model)
        client.delete_alias(model, "prod")
        assert [one.aliases for one in client.list_versions(model)] == [()]
        damage("other")
        assert client.delete_model(model) == [second.version]
        assert client.list_versions(model) == []
        assert list(client.list(f"{BASE}/.aliases/odd/")) == []


def test_what_no_version_needs_is_collected_beside_pushes(url: str, tmp_path: Path) -> None:
    with Client(url, cache=tmp_path / "cache") as client:
        models = client._models()
        contents = Contents(client, BASE)
        keep = client.push_model(written(tmp_path / "keep", {"k": bytes_of(10_000, 3)}), f"{BASE}/kept")
        shared = {f"s{number}": bytes_of(10_000, 50 + number) for number in range(6)}
        old = client.push_model(written(tmp_path / "old", shared), f"{BASE}/old")
        client.delete_model(old.ref)
        assert client.collect_content(BASE).removed == 0, "it was put less than 7 days ago"
        wrong: list[str] = []
        is_done = threading.Event()

        def collect() -> None:
            while not is_done.is_set():
                contents.collect(lambda: models.used(BASE), kept_s=3600, threads=2, is_dry=False)

        collector = threading.Thread(target=collect)
        collector.start()
        try:
            for number in range(8):
                # As a collector leaves it that was killed before it could look at a touch.
                for listed in list(client.list(f"{BASE}/.content/")):
                    digest = listed.name.removeprefix(".content/")
                    with contextlib.suppress(NameExists, NameNotFound, NameDeleted):
                        client.move(f"{BASE}/.content/{digest}", f"{BASE}/.trash/{digest}")
                folder = written(tmp_path / f"new-{number}", {**shared, "own": bytes_of(5_000, 900 + number)})
                pushed = client.push_model(folder, f"{BASE}/new")
                pulled = client.pull_model(pushed.ref, tmp_path / f"copy-{number}", verify=True)
                wrong += client.verify_model(pushed.ref, pulled.folder).problems
                client.delete_model(pushed.ref)
        finally:
            is_done.set()
            collector.join(60)
        assert wrong == []
        # The collection that ended may have begun before the last move; the next one brings back what is named.
        contents.collect(lambda: models.used(BASE), kept_s=3600, threads=2, is_dry=False)
        assert client.verify_model(keep.ref, reads=True).problems == ()
        assert contents.collect(lambda: models.used(BASE), kept_s=-1, threads=2, is_dry=True).removed >= 6
        assert contents.collect(lambda: models.used(BASE), kept_s=-1, threads=2, is_dry=False).removed >= 6
        digests = {one.name for one in client.list(f"{BASE}/.content/")}
        assert digests == {f".content/{digest}" for digest in models.used(BASE)}


PULLER = """
import sys
from pathlib import Path
from ambry.client import Client
with Client(sys.argv[1], cache=sys.argv[2]) as client:
    pulled = client.pull_model(sys.argv[3], sys.argv[4])
    print(pulled.loaded_bytes)
"""


def test_processes_that_pull_into_one_cache_get_the_same(url: str, tmp_path: Path) -> None:
    files = {f"part-{number}": bytes_of(200_000, number) for number in range(20)} | {"large": bytes_of(20 * MIB, 77)}
    with Client(url, cache=tmp_path / "own") as client:
        pushed = client.push_model(written(tmp_path / "model", files), f"{BASE}/side")
    arguments = [sys.executable, "-c", PULLER, url, str(tmp_path / "cache"), pushed.ref]
    running = [subprocess.Popen([*arguments, str(tmp_path / f"copy-{number}")]) for number in range(3)]
    assert [one.wait(100) for one in running] == [0, 0, 0]
    for number in range(3):
        copy = {path.name: path.read_bytes() for path in (tmp_path / f"copy-{number}").iterdir()}
        assert copy == files


@pytest.mark.parametrize("after", [MIB, 20 * MIB])
def test_a_push_and_a_pull_end_when_they_are_interrupted_and_are_gone_on_with(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    model = f"{BASE}/interrupted-{after}"
    small = {f"part-{number}": bytes_of(300_000, after + number) for number in range(20)}
    files = small | {"large": bytes_of(40 * MIB, after)}
    folder = written(tmp_path / "model", files)
    monkeypatch.setenv("AMBRY_CACHE", str(tmp_path / "cache"))
    with Client(url) as client:
        with silent(url, after) as way:
            interrupted("sync", "push_model", way, folder, model)
        assert client.list_versions(model) == []
        for listed in client.list(f"{BASE}/.content/"):
            if listed.size == 300_000:
                assert sha256(client.get(f"{BASE}/{listed.name}")).hexdigest() == listed.name.rpartition("/")[2]
        assert client.push_model(folder, model).size == sum(map(len, files.values()))
        with silent(url, after) as way:
            interrupted("sync", "pull_model", way, model, tmp_path / "copy")
        assert not (tmp_path / "copy").exists()
        client.pull_model(model, tmp_path / "copy")
        assert {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()} == files


PUSHER = """
import sys
from ambry.client import Client
with Client(sys.argv[1], cache=sys.argv[2], threads=4) as client:
    client.push_model(sys.argv[3], sys.argv[4])
"""


def killed_push(url: str, after: int, cache: Path, folder: Path, model: str) -> None:
    """Push in a process that is killed when so many bytes have passed."""
    with silent(url, after) as way:
        process = subprocess.Popen([sys.executable, "-c", PUSHER, way.url, str(cache), str(folder), model])
        assert way.is_silent.wait(60)
        process.kill()
        process.wait(30)


def test_a_push_that_was_killed_sends_the_rest_of_its_large_files(url: str, tmp_path: Path) -> None:
    model = f"{BASE}/rest"
    data = bytearray(bytes_of(100 * MIB, 9))
    folder = written(tmp_path / "model", {"large": bytes(data)})
    killed_push(url, 50 * MIB, tmp_path / "cache", folder, model)
    assert [path.name for path in folder.iterdir()] == ["large"]
    with Client(url, cache=tmp_path / "cache") as client:
        assert client.list_versions(model) == []
        pushed = client.push_model(folder, model)
        # All but the four parts that were under way.
        assert 40 * MIB < pushed.sent_bytes < 70 * MIB
        assert client.verify_model(model, reads=True).problems == ()
        data[:0] = bytes_of(44 * MIB, 10)
        (folder / "large").write_bytes(data)
        # What is new of a file that resembles the one before goes in parts as well.
        killed_push(url, 42 * MIB, tmp_path / "cache", folder, model)
        again = client.push_model(folder, model)
        assert again.sent_bytes < 30 * MIB
        assert client.verify_model(model, reads=True).problems == ()
        assert not list((tmp_path / "cache/uploads").iterdir())


def test_a_large_file_that_changes_between_two_pushes_is_stored_as_it_is(url: str, tmp_path: Path) -> None:
    model = f"{BASE}/between"
    folder = written(tmp_path / "model", {"large": bytes_of(60 * MIB, 11)})
    killed_push(url, 50 * MIB, tmp_path / "cache", folder, model)
    with (folder / "large").open("r+b") as file:
        file.write(b"changed")
    with Client(url, cache=tmp_path / "cache") as client:
        client.push_model(folder, model)
        assert client.verify_model(model, folder).problems == ()
        assert client.verify_model(model, reads=True).problems == ()


def test_content_that_was_collected_after_its_upload_is_sent_anew(url: str, tmp_path: Path) -> None:
    folder = written(tmp_path / "model", {"a": bytes_of(20 * MIB, 12), "same": bytes_of(20 * MIB, 12)})
    with Client(url, cache=tmp_path / "cache") as client:
        uploads = tmp_path / "cache/uploads"
        kept: list[tuple[Path, bytes]] = []

        def keep(done: int, _: int) -> None:
            if 0 < done < 20 * MIB and not kept:
                kept.extend((path, path.read_bytes()) for path in uploads.glob(".*.ambry-upload"))

        pushed = client.push_model(folder, f"{BASE}/anew", progress=keep)
        assert pushed.sent_bytes < 21 * MIB, "the content of two files is sent once"
        [(path, note)] = kept
        client.delete(f"{BASE}/.content/{client.read_manifest(pushed.ref).files[0].sha256}")
        # As a process leaves it that was killed before it had the answer to its last request.
        path.write_bytes(note)
        assert client.push_model(folder, f"{BASE}/anew").sent_bytes > 20 * MIB
        assert client.verify_model(f"{BASE}/anew", reads=True).problems == ()


@pytest.mark.parametrize("job", ["push", "pull"])
def test_a_command_that_is_interrupted_says_so_by_its_status(url: str, tmp_path: Path, job: str) -> None:
    # Content that no other test has sent to this store.
    folder = written(tmp_path / "model", {"large": bytes_of(40 * MIB, 7700 + len(job)) + job.encode()})
    model = f"{BASE}/command-{job}"
    if job == "pull":
        with Client(url, cache=tmp_path / "own") as client:
            client.push_model(folder, model)
    with silent(url, 20 * MIB) as way:
        command = [sys.executable, "-m", "ambry.cli.main", "model", job]
        command += [str(folder), model] if job == "push" else [model, str(tmp_path / "copy")]
        options = ["--url", way.url, "--cache", str(tmp_path / "cache")]
        process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)
        assert way.is_silent.wait(60)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30)[1].rstrip().endswith("ambry: interrupted")
        assert process.returncode == 130


def test_a_store_that_is_killed_in_the_middle_gets_and_gives_the_whole_model(tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    port = free_port()
    process, url = started(tmp_path / "data", port)
    files = {f"part-{number:02}": chance.randbytes(chance.randrange(2 * MIB)) for number in range(20)}
    folder = written(tmp_path / "model", files | {"large": chance.randbytes(40 * MIB)})
    total = sum(path.stat().st_size for path in folder.iterdir())
    kills = [chance.randrange(1, total)]
    lock = threading.Lock()

    def kill(done: int, _: int) -> None:
        nonlocal process
        with lock:
            if kills and done >= kills[0]:
                kills.pop(0)
                process.kill()
                process.wait(30)
                assert process.stdout is not None
                process.stdout.close()
                process = started(tmp_path / "data", port)[0]

    def until_done(job: str) -> None:
        for _ in range(20):
            with contextlib.suppress(AmbryError):
                if job == "push":
                    client.push_model(folder, f"{BASE}/killed", progress=kill)
                else:
                    client.pull_model(f"{BASE}/killed", tmp_path / "copy", progress=kill)
                return
        raise AssertionError(job)

    with Client(url, cache=tmp_path / "cache") as client:
        until_done("push")
        assert not kills
        kills = [chance.randrange(1, total)]
        until_done("pull")
        assert client.verify_model(f"{BASE}/killed", reads=True).problems == ()
        assert client.verify_model(f"{BASE}/killed", tmp_path / "copy").problems == ()
    ended(process)
