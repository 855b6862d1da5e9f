"""`ambry cp`, `mv`, `rm`, `cat` and what looks at places, against a store that runs: files, words, JSON, statuses."""

import errno
import functools
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from ambry.cli.main import main
from ambry.client import Client
from tests.cli.processes import ask
from tests.cli.shell import Shell, files_in
from tests.client.conftest import bytes_of, written
from tests.client.test_interrupts import silent


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- cp --------------------------------------------------------------------------------------------------------


def test_a_file_goes_up_and_comes_down_as_it_was(shell: Shell, tmp_path: Path) -> None:
    data = bytes_of(3_000_000)
    (tmp_path / "a.json").write_bytes(data)
    assert shell.run("cp", str(tmp_path / "a.json"), f"{shell.place}/a.json") == "copied 1 file, 2.9 MiB\n"
    with Client(shell.url) as client:
        assert client.stat(f"{shell.place}/a.json").content_type == "application/json"
    shell.run("cp", f"{shell.place}/a.json", str(tmp_path / "b"))
    assert (tmp_path / "b").read_bytes() == data
    assert names_in(tmp_path) == ["a.json", "b"]


def test_into_a_folder_a_file_keeps_its_name(shell: Shell, tmp_path: Path) -> None:
    written(tmp_path, {"x/a": b"a", "x/b": b"b"})
    shell.run("cp", str(tmp_path / "x/a"), str(tmp_path / "x/b"), f"{shell.place}/sub/")
    assert shell.names() == {"sub/a": b"a", "sub/b": b"b"}
    (tmp_path / "down").mkdir()
    shell.run("cp", f"{shell.place}/sub/a", f"{shell.place}/sub/b", str(tmp_path / "down"))
    assert files_in(tmp_path / "down") == {"a": b"a", "b": b"b"}


def test_a_folder_goes_up_across_and_down_with_odd_names(shell: Shell, tmp_path: Path) -> None:
    odd = ["Zoë", "100% [a]*?", " leading", "trailing ", "-r", "a\\b", "~", "日本/語", ".hidden", "+&=#", "x" * 200]
    files = {name: name.encode() for name in odd}
    written(tmp_path / "up", files)
    shell.run("cp", "-r", str(tmp_path / "up"), f"{shell.place}/one")
    assert shell.names() == {f"one/{name}": data for name, data in files.items()}
    shell.run("cp", "-r", f"{shell.place}/one", f"{shell.place}/two")
    shell.run("cp", "-r", f"{shell.place}/two", str(tmp_path / "down"))
    assert files_in(tmp_path / "down") == files
    # It is there now, so it is the folder that the next one goes into.
    shell.run("cp", "-r", f"{shell.place}/two/", str(tmp_path / "down"))
    assert files_in(tmp_path / "down/two") == files
    shell.run("cp", "-r", f"{tmp_path / 'up'}/.", f"{shell.place}/three/")
    assert {name for name in shell.names() if name.startswith("three/")} == {f"three/{name}" for name in odd}


def test_many_files_of_all_sizes_come_down_as_they_went_up(shell: Shell, tmp_path: Path) -> None:
    sizes = [0, 1, 500_000, 600_000, 9_000_000, *range(100, 400)]
    files = {f"{number % 7}/{number}": bytes_of(size, number) for number, size in enumerate(sizes)}
    written(tmp_path / "up", files)
    shell.run("cp", "-r", str(tmp_path / "up"), shell.place)
    lines = shell.lines("cp", "-r", shell.place, str(tmp_path / "down"))
    assert files_in(tmp_path / "down") == files
    assert sorted(line["size"] for line in lines) == sorted(sizes)


def test_patterns_match_names_and_files(shell: Shell, tmp_path: Path) -> None:
    shell.put(**{"a1.txt": b"1", "a2.txt": b"2", "a3.bin": b"3", "d1/x.txt": b"x", "d1/e/y.txt": b"y", "[1].txt": b"l"})

    def down(pattern: str, *options: str) -> set[str]:
        target = tmp_path / str(len(names_in(tmp_path)))
        target.mkdir()
        shell.run("cp", *options, f"{shell.place}/{pattern}", f"{target}/")
        return set(files_in(target))

    assert down("a*.txt") == {"a1.txt", "a2.txt"}
    assert down("a[!1].*") == {"a2.txt", "a3.bin"}
    assert down("a?.bin") == {"a3.bin"}
    assert down("d*/*.txt") == {"x.txt"}
    assert down("**/*y.txt") == {"y.txt"}
    assert down("d*", "-r") == {"d1/x.txt", "d1/e/y.txt"}
    # What is there by these very letters comes before what they could match.
    assert down("[1].txt") == {"[1].txt"}
    assert "nothing matches the pattern" in shell.run("cp", f"{shell.place}/q*", f"{tmp_path}/", status=1)
    written(tmp_path / "up", {"p1": b"1", "p2": b"2", "q": b"3"})
    shell.run("cp", f"{tmp_path}/up/p?", f"{shell.place}/up/")
    assert {name for name in shell.names() if name.startswith("up/")} == {"up/p1", "up/p2"}


def test_what_is_there_is_replaced_or_with_no_clobber_kept(shell: Shell, tmp_path: Path) -> None:
    written(tmp_path, {"new/a": b"new", "new/b": b"b", "old/a": b"old"})
    shell.put(a=b"old")
    assert shell.run("cp", "-n", str(tmp_path / "new/a"), f"{shell.place}/a") == "copied 0 files, 0 B; skipped 1\n"
    assert shell.names() == {"a": b"old"}
    shell.run("cp", str(tmp_path / "new/a"), f"{shell.place}/a")
    assert shell.names() == {"a": b"new"}
    shell.put(b=b"b")
    skipped = shell.lines("cp", "-n", "-r", f"{shell.place}/", str(tmp_path / "old"))
    assert files_in(tmp_path / "old") == {
        "a": b"old",
        f"{Path(shell.place).name}/a": b"new",
        f"{Path(shell.place).name}/b": b"b",
    }
    assert [line["operation"] for line in skipped] == ["copy", "copy"]
    shell.run("cp", "-n", f"{shell.place}/a", str(tmp_path / "old"))
    assert (tmp_path / "old/a").read_bytes() == b"old"
    large = tmp_path / "large"
    large.write_bytes(bytes(2_000_000))
    assert shell.lines("cp", "-n", str(large), f"{shell.place}/a")[0]["operation"] == "skip"
    assert shell.lines("cp", "-n", f"{shell.place}/b", f"{shell.place}/a")[0]["operation"] == "skip"


def test_a_dry_run_says_all_and_does_nothing(shell: Shell, tmp_path: Path) -> None:
    written(tmp_path / "up", {"a": b"1", "b/c": b"2"})
    shell.put(a=b"here")
    said = shell.run("cp", "-r", "-n", "--dry-run", f"{tmp_path / 'up'}/.", f"{shell.place}/")
    assert said.splitlines() == [
        f"would skip {tmp_path}/up/./a to {shell.place}/a".replace("/./", "/"),
        f"would copy {tmp_path}/up/b/c to {shell.place}/b/c",
    ]
    assert shell.names() == {"a": b"here"}
    moved = shell.lines("mv", "-r", "--dry-run", str(tmp_path / "up"), f"{shell.place}/")
    assert {line["operation"] for line in moved} == {"move"} and all(line["dry_run"] for line in moved)
    assert shell.run("rm", "--dry-run", f"{shell.place}/a") == f"would remove {shell.place}/a\n"
    assert files_in(tmp_path / "up") == {"a": b"1", "b/c": b"2"} and shell.names() == {"a": b"here"}


def test_standard_input_is_copied_and_cat_shows_it(shell: Shell, tmp_path: Path) -> None:
    data = bytes_of(5_000_000)
    shell.run("cp", "-", f"{shell.place}/a", stdin=data)
    done = CliRunner().invoke(main, ["cat", f"{shell.place}/a", f"{shell.place}/a"], env=shell.environment)
    assert done.stdout_bytes == data + data
    (tmp_path / "b").write_bytes(b"b")
    assert shell.run("cat", str(tmp_path / "b")) == "b"
    assert "is a folder" in shell.run("cat", shell.place, status=1)
    assert "there is no such" in shell.run("cat", f"{shell.place}/none", status=1)
    assert "by itself" in shell.run("cp", "-", f"{shell.place}/", status=2)


# --- what is wrong ---------------------------------------------------------------------------------------------


def test_what_a_url_leads_to_is_copied(shell: Shell, tmp_path: Path) -> None:
    written(tmp_path, {"a b.bin": bytes_of(300_000), "c": b"c"})
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = "http://{}:{}".format(*server.server_address)
        shell.run("cp", f"{base}/a%20b.bin?x=[1]*", str(tmp_path / "c"), f"{shell.place}/web/")
        assert shell.names() == {"web/a b.bin": bytes_of(300_000), "web/c": b"c"}
        assert shell.lines("cp", f"{base}/c", f"{shell.place}/one") == [
            {"operation": "copy", "source": f"{base}/c", "target": f"{shell.place}/one", "size": 1}
        ]
        assert "skipped 1" in shell.run("cp", "-n", f"{base}/never", f"{shell.place}/one")
        assert "would copy" in shell.run("cp", "--dry-run", f"{base}/c", f"{shell.place}/two")
        assert "answered 404" in shell.run("cp", f"{base}/never", f"{base}/c", f"{shell.place}/some/", status=1)
        assert "say what to call" in shell.run("cp", f"{base}/", f"{shell.place}/some/", status=1)
        shell.run("cp", f"{base}/c", str(tmp_path / "d"), status=2)
        shell.run("cp", f"{base}/c", f"{base}/c", f"{shell.place}/d", status=2)
        shell.run("mv", f"{base}/c", f"{shell.place}/d", status=2)
        server.shutdown()
    assert sorted(shell.names()) == ["one", "some/c", "web/a b.bin", "web/c"]


def test_wrong_usage_is_status_2(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    for command in ("cp", "mv"):
        refused = shell.run(command, str(tmp_path / "a"), str(tmp_path / "b"), status=2)
        assert "are both on this machine" in " ".join(refused.split()) and str(tmp_path / "a") in refused
    assert not (tmp_path / "b").exists()
    assert "does not end with a slash" in shell.run(
        "cp", str(tmp_path / "a"), str(tmp_path), f"{shell.place}", status=2
    )
    assert "is no folder" in shell.run("cp", f"{shell.place}/*", str(tmp_path / "a"), status=2)
    assert "ACCOUNT/CONTAINER/PATH" in shell.run("cp", "ambry://default", str(tmp_path), status=2)
    assert "s3://x" in shell.run("cp", "s3://x/y", str(tmp_path), status=2)


def test_what_fails_is_named_and_the_rest_is_done(shell: Shell, tmp_path: Path) -> None:
    written(tmp_path, {"good": b"g", "folder/x": b"x"})
    said = shell.run(
        "cp", str(tmp_path / "none"), str(tmp_path / "folder"), str(tmp_path / "good"), f"{shell.place}/", status=1
    )
    assert "none: there is no such file or folder" in said
    assert "folder: it is a folder: --recursive" in said
    assert shell.names() == {"good": b"g"}
    lines = shell.lines("cp", f"{shell.place}/none", f"{shell.place}/good", f"{tmp_path}/", status=1)
    assert lines[0]["error"]["code"] == "name_not_found" and lines[1]["target"] == str(tmp_path / "good")
    assert "already" in shell.run("cp", f"{shell.place}/good", f"{shell.place}/good", f"{tmp_path}/", status=1)
    assert "the same" in shell.run("cp", f"{shell.place}/good", f"{shell.place}/good", status=1)
    assert "into itself" in shell.run("cp", "-r", shell.place, f"{shell.place}/below", status=1)


def test_names_that_cannot_be_local_paths_are_refused(shell: Shell, tmp_path: Path) -> None:
    shell.put(**{"a//b": b"1", "dir/": b"2", "dir/x": b"3", "c": b"4", "c/d": b"5", "y" * 300: b"6"})
    said = shell.run("cp", "-r", shell.place, str(tmp_path / "down"), status=1)
    for name, why in {"a//b": "no path below", "dir/": "no path below", "y" * 300: "File name too long"}.items():
        assert any(f"{shell.place}/{name}: " in line and why in line for line in said.splitlines()), said
    files = files_in(tmp_path / "down")
    assert files.pop("c", b"4") == b"4" and files.pop("c/d", b"5") == b"5"
    assert files == {"dir/x": b"3"}


def test_links_are_followed_to_files_and_never_written_through(shell: Shell, tmp_path: Path) -> None:
    written(tmp_path, {"up/a": b"a", "elsewhere/x": b"x"})
    (tmp_path / "up/link").symlink_to(tmp_path / "up/a")
    (tmp_path / "up/folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "up/broken").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "up/pipe")
    (tmp_path / "up" / os.fsdecode(b"\xff")).symlink_to("x")
    said = shell.run("cp", "-r", str(tmp_path / "up"), shell.place, status=1)
    assert shell.names() == {"a": b"a", "link": b"a"}
    for words in ("link to a folder", "No such file", "no regular file", "not UTF-8"):
        assert words in said
    shell.put(**{"sub/passwd": b"p"})
    (tmp_path / "down").mkdir()
    (tmp_path / "down/sub").symlink_to(tmp_path / "elsewhere")
    said = shell.run("cp", "-r", f"{shell.place}/sub", str(tmp_path / "down"), status=1)
    assert "nothing is written through it" in said and files_in(tmp_path / "elsewhere") == {"x": b"x"}


def test_names_that_no_store_takes_are_named(shell: Shell, tmp_path: Path) -> None:
    written(tmp_path / "up", {"new\nline": b"1", "good": b"2"})
    assert "control characters" in shell.run("cp", "-r", str(tmp_path / "up"), shell.place, status=1)
    assert shell.names() == {"good": b"2"}


def test_a_store_that_is_not_there_is_one_line(shell: Shell, tmp_path: Path) -> None:
    shell.environment["AMBRY_URL"] = "http://127.0.0.1:9"
    (tmp_path / "a").write_bytes(b"a")
    assert "cannot connect" in shell.run("cp", str(tmp_path / "a"), f"{shell.place}/a", status=1)
    assert "cannot connect" in shell.run("cp", f"{shell.place}/a", str(tmp_path / "b"), status=1)
    assert names_in(tmp_path) == ["a"]


def test_a_full_disk_ends_the_copy_and_leaves_nothing_under_a_final_name(shell: Shell, tmp_path: Path) -> None:
    files = {str(number): bytes(100_000) for number in range(60)}
    shell.put(**files, large=bytes(3_000_000))
    target = tmp_path / "down"
    target.mkdir()
    # A limit on the size of files: the kernel refuses the write as it does on a full disk, with another word.
    for source, size_max in ((f"{shell.place}/large", 2_000_000), (shell.place, 50_000)):
        code = f"""
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({size_max}, {size_max}))
sys.argv = ["ambry", "cp", "-r", {source!r}, {str(target)!r}]
from ambry.cli.main import main
main(prog_name="ambry")
"""
        environment = os.environ | shell.environment
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1 and os.strerror(errno.EFBIG) in done.stderr, done.stderr
        assert [name for name in files_in(target) if not name.rpartition("/")[2].startswith(".")] == []


def test_ctrl_c_leaves_nothing_half_written_and_the_next_copy_goes_on(shell: Shell, tmp_path: Path) -> None:
    data = bytes_of(120_000_000)
    shell.put(large=data)
    target = tmp_path / "down"
    command = [sys.executable, "-m", "ambry.cli.main", "cp", f"{shell.place}/large", str(target)]
    environment = os.environ | shell.environment
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while process.poll() is None and not (tmp_path / ".down.ambry-parts").exists():
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    if process.returncode == 0:
        pytest.skip("it was faster than the signal")
    assert (process.returncode, said) == (130, b"ambry: interrupted\n")
    # The signal may come when all is there and is only compared: whole, or not there.
    assert not target.exists() or target.read_bytes() == data
    shell.run("cp", f"{shell.place}/large", str(target))
    assert target.read_bytes() == data and names_in(tmp_path) == ["down"]


def test_ctrl_c_of_a_large_upload_stores_nothing_and_the_next_copy_goes_on(shell: Shell, tmp_path: Path) -> None:
    data = bytes_of(120_000_000)
    (tmp_path / "large").write_bytes(data)
    command = [sys.executable, "-m", "ambry.cli.main", "cp", "-r", f"{tmp_path}/.", f"{shell.place}/"]
    environment = os.environ | shell.environment
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while process.poll() is None and not (tmp_path / ".large.ambry-upload").exists():
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    # The signal may also come when the store has all of it.
    assert (process.returncode, said) == (130, b"ambry: interrupted\n") or process.returncode == 0
    assert shell.names() == ({"large": data} if process.returncode == 0 or shell.names() else {})
    shell.run("cp", "-r", f"{tmp_path}/.", f"{shell.place}/")
    assert shell.names() == {"large": data} and names_in(tmp_path) == ["large"]


@pytest.mark.parametrize("command", ["cp up", "cp down", "sync", "rm"])
def test_ctrl_c_ends_a_command_while_the_store_is_silent(shell: Shell, tmp_path: Path, command: str) -> None:
    files = {f"{number}": bytes_of(300_000, number) for number in range(40)}
    written(tmp_path / "up", files)
    # The test's own place has brackets, which would be a pattern.
    base = f"ambry://default/default/silent-{command[-2:]}"
    there = f"{base}/there"
    shell.run("cp", "-r", f"{tmp_path / 'up'}/.", f"{there}/")
    arguments = {
        "cp up": ["cp", "-r", str(tmp_path / "up"), f"{base}/up"],
        "cp down": ["cp", "-r", there, str(tmp_path / "down")],
        "sync": ["sync", there, str(tmp_path / "down")],
        "rm": ["rm", "-r", there],
    }[command]
    with silent(shell.url, 8_000 if command == "rm" else 2_000_000) as way, subprocess.Popen(
        [sys.executable, "-m", "ambry.cli.main", *arguments],
        env=os.environ | {"AMBRY_URL": way.url}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert way.is_silent.wait(20), (process.poll(), way._left)
        process.send_signal(signal.SIGINT)
        # A silent server is given up after a minute by itself.
        _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (130, b"ambry: interrupted\n")
    with Client(shell.url) as client:
        for one in client.list(f"{base}/up/"):
            assert client.get(str(one.id)) == files[one.name.rpartition("/")[2]]


def test_ctrl_c_of_an_upload_stores_nothing(shell: Shell, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    command = [sys.executable, "-m", "ambry.cli.main", "cp", "-", f"{shell.place}/a"]
    environment = os.environ | shell.environment
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        # More than the pipe holds: when this returns the copy has begun.
        process.stdin.write(bytes(4_000_000))
        process.stdin.flush()
        process.send_signal(signal.SIGINT)
        process.wait(30)
        assert process.stderr is not None
        assert (process.returncode, process.stderr.read()) == (130, b"ambry: interrupted\n")
    assert shell.names() == {}


# --- mv --------------------------------------------------------------------------------------------------------


def test_mv_leaves_nothing_behind(shell: Shell, tmp_path: Path) -> None:
    written(tmp_path / "up", {"a": b"a", "b/c": b"c"})
    assert shell.run("mv", "-r", str(tmp_path / "up"), f"{shell.place}/one") == "moved 2 files, 2 B\n"
    assert not (tmp_path / "up").exists() and shell.names() == {"one/a": b"a", "one/b/c": b"c"}
    shell.run("mv", "-r", f"{shell.place}/one", f"{shell.place}/two")
    assert shell.names() == {"two/a": b"a", "two/b/c": b"c"}
    shell.put(here=b"here")
    assert shell.lines("mv", "-n", f"{shell.place}/two/a", f"{shell.place}/here")[0]["operation"] == "skip"
    shell.run("mv", f"{shell.place}/two/a", f"{shell.place}/here")
    shell.run("mv", "-r", f"{shell.place}/two", f"{shell.place}/here", str(tmp_path))
    assert files_in(tmp_path) == {"two/b/c": b"c", "here": b"a"} and shell.names() == {}


# --- rm --------------------------------------------------------------------------------------------------------


def test_rm_takes_ids_names_patterns_and_folders(shell: Shell) -> None:
    with Client(shell.url) as client:
        first, second = client.put(b"1").id, client.put(b"2").id
        assert shell.run("rm", first, f"/{second}") == f"deleted {first}\ndeleted {second}\n"
        assert not client.exists(first) and not client.exists(second)
        third = client.put(b"3").id
    shell.put(**{"a": b"a", "b1": b"b", "b2": b"b", "f/x": b"x", "f/y/z": b"z", "f": b"f", "keep": b"k"})
    assert shell.run("rm", f"{shell.place}/a", third) == f"deleted {third}\nremoved 1 file\n"
    assert shell.run("rm", f"{shell.place}/b*") == "removed 2 files\n"
    # `f` is a name and a folder: without --recursive it is the name.
    assert len(shell.lines("rm", f"{shell.place}/f")) == 1
    assert "--recursive" in shell.run("rm", f"{shell.place}/f", status=1)
    assert set(shell.names()) == {"f/x", "f/y/z", "keep"}
    removed = sorted(shell.lines("rm", "-r", f"{shell.place}/f/"), key=str)
    assert removed == [{"operation": "remove", "source": f"{shell.place}/f/{name}"} for name in ("x", "y/z")]
    assert set(shell.names()) == {"keep"}
    assert "there is no such" in shell.run("rm", f"{shell.place}/f", status=1)
    assert "is not a blob id" in shell.run("rm", "file.txt", status=1)
    assert "Abort" in shell.run("rm", "-r", "ambry://default/default", status=1)
    assert set(shell.names()) == {"keep"}


# --- ls, find, du, tree, presign -------------------------------------------------------------------------------

LOOKED_AT = {"a": b"a" * 10, "b/c": b"c" * 100, "b/d/e": b"e" * 1000, "b-x": b"x", "f/g.txt": b""}


@pytest.fixture(params=["store", "machine"])
def looked_at(shell: Shell, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place with the same files, in the store and on this machine: commands say the same of both."""
    if request.param == "machine":
        return str(written(tmp_path / "folder", LOOKED_AT))
    shell.place = shell.place.replace("[", "-").replace("]", "")
    shell.put(**LOOKED_AT)
    return shell.place


def test_ls_shows_what_is_in_a_folder(shell: Shell, looked_at: str) -> None:
    assert shell.run("ls", looked_at).split() == ["a", "b-x", "b/", "f/"]
    assert shell.run("ls", "-r", f"{looked_at}/").split() == ["a", "b-x", "b/c", "b/d/e", "f/g.txt"]
    assert shell.run("ls", f"{looked_at}/b", f"{looked_at}/a").split() == [
        f"{looked_at}/b/c", f"{looked_at}/b/d/", f"{looked_at}/a",
    ]  # fmt: skip
    assert set(shell.run("ls", f"{looked_at}/[bf]*").split()) == {f"{looked_at}/{one}" for one in ("b-x", "b/", "f/")}
    size, *_, name = shell.run("ls", "-l", f"{looked_at}/a").split()
    assert (size, name) == ("10", f"{looked_at}/a")
    lines = shell.lines("ls", looked_at)
    assert lines[2]["is_folder"] and lines[0]["size"] == 10 and lines[0]["modified_ms"] > 1_600_000_000_000
    assert lines[2]["name"].rstrip("/") == f"{looked_at}/b"
    assert "there is no such" in shell.run("ls", f"{looked_at}/none", status=1)


def test_find_chooses_by_name_size_and_age(shell: Shell, looked_at: str) -> None:
    def found(*options: str) -> list[str]:
        return [name.removeprefix(f"{looked_at}/") for name in shell.run("find", looked_at, *options).split()]

    assert found() == sorted(LOOKED_AT)
    assert found("--name", "*.txt") == ["f/g.txt"]
    assert found("--name", "?") == ["a", "b/c", "b/d/e"]
    assert found("--min-size", "100") == ["b/c", "b/d/e"]
    assert found("--max-size", "0.5 KiB", "--min-size", "11") == ["b/c"]
    assert found("--newer-than", "1 h") == sorted(LOOKED_AT) and found("--older-than", "1 h") == []
    nul = shell.run("find", looked_at, "--print0", "--name", "[ac]")
    assert nul == f"{looked_at}/a\0{looked_at}/b/c\0"
    assert [line["size"] for line in shell.lines("find", looked_at)] == [10, 1, 100, 1000, 0]
    assert "is no size" in shell.run("find", looked_at, "--min-size", "many", status=2)


def test_du_sums_up(shell: Shell, looked_at: str) -> None:
    assert shell.run("du", "-b", looked_at).split() == ["1111", "5", f"{looked_at}/"]
    found = {line["name"]: (line["files"], line["size"]) for line in shell.lines("du", "-d", "1", looked_at)}
    assert found == {f"{looked_at}/b/": (2, 1100), f"{looked_at}/f/": (1, 0), f"{looked_at}/": (5, 1111)}
    deep = [line["name"].removeprefix(looked_at) for line in shell.lines("du", "-d", "5", looked_at)]
    assert deep == ["/b/d/", "/b/", "/f/", "/"]
    assert "1.1 KiB" in shell.run("du", looked_at)
    assert shell.lines("du", f"{looked_at}/a") == [{"name": f"{looked_at}/a", "files": 1, "size": 10}]


def test_tree_draws(shell: Shell, looked_at: str) -> None:
    assert shell.run("tree", looked_at).splitlines()[1:] == [
        "├── a",
        "├── b-x",
        "├── b/",
        "│   ├── c",
        "│   └── d/",
        "│       └── e",
        "└── f/",
        "    └── g.txt",
    ]
    assert len(shell.run("tree", "-d", "1", looked_at).splitlines()) == 5
    assert [line["depth"] for line in shell.lines("tree", looked_at)] == [0, 1, 1, 1, 2, 2, 3, 1, 2]


def test_a_reader_that_goes_away_ends_the_listing_in_silence(shell: Shell, tmp_path: Path) -> None:
    shell.put(**{f"{number:05}{'x' * 500}": b"" for number in range(300)})
    command = f"{sys.executable} -m ambry.cli.main find {shell.place} | head -1"
    done = subprocess.run(
        command, shell=True, env=os.environ | shell.environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.count("\n") == 1 and done.stderr == ""


def test_a_signed_url_is_good_for_who_has_no_key(shell: Shell) -> None:
    shell.put(**{"with space & ü?": b"data"})
    url = shell.run("presign", f"{shell.place}/with space & ü?", "--expires", "1 min").strip()
    with urllib.request.urlopen(url, timeout=30) as answer:
        assert answer.read() == b"data"
    with Client(shell.url) as client:
        blob_id = client.put(b"by id").id
    with urllib.request.urlopen(shell.lines("presign", blob_id)[0]["url"], timeout=30) as answer:
        assert answer.read() == b"by id"
    url = shell.run("presign", "--method", "PUT", "--max-size", "10", f"{shell.place}/up").strip()
    for body, status in ((b"too many bytes", 413), (b"few bytes", 201)):
        assert ask("PUT", url, body)[0] == status
    assert shell.names()["up"] == b"few bytes"
    assert "account/container/name" in shell.run("presign", "nonsense", status=1)
    assert "field=" in shell.run("presign", "--expires", "100 d", f"{shell.place}/up", status=1)
