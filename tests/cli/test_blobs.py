"""put, get, stat and rm against a server that misbehaves when told to: exit statuses, files, and what is said."""

import base64
import hashlib
import json
from pathlib import Path

import pytest
from aiohttp import web
from click.testing import CliRunner, Result

from ambry import __version__
from ambry.cli.main import main
from tests.cli.fake_server import fake_server

BLOB_ID = "AQEAAQAAAAAAAAAAAAAAAQGL-Ty0_0123456789abcd"
BODY = bytes(range(256)) * 9000


def run(*arguments: str, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(main, arguments, input=stdin, prog_name="ambry")


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


class Store:
    """A store of one blob, kept in memory, and what it was asked."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.requests: list[web.Request] = []
        self.error: tuple[int, str] | None = None
        self.headers = {
            "x-ambry-blob-size": str(len(BODY)),
            "x-ambry-um-colour": "blue",
            "x-ambry-enc-um-name": "Zo%C3%AB",
            "x-ambry-creation-time": "Tue, 24 Nov 2026 07:00:00 GMT",
            "x-ambry-ttl": "3600",
        }
        self.digest = "sha-256=:" + base64.b64encode(hashlib.sha256(BODY).digest()).decode() + ":"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        if self.error is not None:
            status, text = self.error
            return web.Response(status=status, text=text, content_type="application/json")
        if request.method == "POST":
            self.bodies.append(await request.read())
            return web.Response(status=201, headers={"Location": f"/{BLOB_ID}"})
        if request.method == "DELETE":
            return web.Response(status=202, headers={"x-ambry-request-id": "a1"})
        if request.path.endswith("/BlobInfo"):
            return web.Response(headers=self.headers)
        return web.Response(body=BODY, headers={"Repr-Digest": self.digest, "Content-Encoding": "gzip"})


def test_version_and_help_need_nothing() -> None:
    assert run("--version").output == f"ambry {__version__}\n"
    for command in ("serve", "frontend", "datanode", "put", "get", "stat", "rm"):
        assert command in run("--help").output


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["put"],
        ["put", "x", "--ttl", "soon"],
        ["put", "x", "--ttl", "0"],
        ["put", "x", "--ttl", "9999999999999"],
        ["put", "x", "--um", "novalue"],
        ["put", "x", "--um", "ü=b"],
        ["get", BLOB_ID],
        ["rm"],
        ["stat", BLOB_ID, "--url", "127.0.0.1:1174"],
        ["stat", BLOB_ID, "--url", "file:///etc/passwd"],
    ],
)
def test_wrong_usage_is_status_2(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


def test_put_sends_the_file_and_says_its_id(tmp_path: Path) -> None:
    path = tmp_path / "Über uns.html"
    path.write_bytes(BODY)
    store = Store()
    with fake_server(store.handle) as url:
        result = run(
            "put",
            str(path),
            "--url",
            url,
            "--ttl",
            "7 d",
            "--um",
            "Colour=blue",
            "--um",
            "name=Zoë\n",
            "--service-id",
            "me",
        )
    assert (result.exit_code, result.stdout) == (0, f"{BLOB_ID}\n")
    assert store.bodies == [BODY]
    (request,) = store.requests
    assert request.headers["Content-Length"] == str(len(BODY))
    assert request.headers["x-ambry-ttl"] == str(7 * 86400)
    assert request.headers["x-ambry-um-colour"] == "blue"
    assert request.headers["x-ambry-enc-um-name"] == "Zo%C3%AB%0A"
    assert request.headers["x-ambry-service-id"] == "me"
    assert request.headers["x-ambry-content-type"] == "text/html"
    assert request.headers["x-ambry-filename"] == "Über uns.html"
    assert request.headers["Repr-Digest"] == store.digest


@pytest.mark.parametrize("name", ["a.tar.gz", "a.unknown", "a"])
def test_what_is_not_known_is_bytes(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    store = Store()
    with fake_server(store.handle) as url:
        assert run("put", str(tmp_path / name), "--no-digest", "--url", url).exit_code == 0
    assert "Repr-Digest" not in store.requests[0].headers
    assert store.requests[0].headers["x-ambry-content-type"] == "application/octet-stream"
    assert store.bodies == [b""]


def test_put_takes_standard_input_and_several_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"first")
    store = Store()
    with fake_server(store.handle) as url:
        result = run("put", str(tmp_path / "a"), "-", "--url", url, "--json", stdin=b"second")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["id"] for line in lines] == [BLOB_ID, BLOB_ID]
    assert [line["size"] for line in lines] == [5, 6]
    assert store.bodies == [b"first", b"second"]
    assert "x-ambry-filename" not in store.requests[1].headers


def test_a_file_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"here")
    store = Store()
    with fake_server(store.handle) as url:
        result = run("put", str(tmp_path / "missing"), str(tmp_path), str(tmp_path / "a"), "--url", url)
    assert result.exit_code == 1
    assert store.bodies == [b"here"]
    assert "missing: cannot be read: No such file" in result.stderr
    assert result.stdout == f"{BLOB_ID}  {tmp_path / 'a'}\n"


def test_the_error_of_the_server_is_what_is_said(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"here")
    store = Store()
    store.error = (507, json.dumps({"code": "disk_full", "message": "no space left", "request_id": "r7"}))
    with fake_server(store.handle) as url:
        result = run("put", str(tmp_path / "a"), "--url", url)
        as_json = run("put", str(tmp_path / "a"), "--url", url, "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no space left" in result.stderr and "r7" in result.stderr and "Traceback" not in result.stderr
    said = json.loads(as_json.stdout)["error"]
    assert (said["code"], said["message"], said["request_id"]) == ("disk_full", "no space left", "r7")


@pytest.mark.parametrize("text", ["<html>Bad gateway</html>", "{}", "[]", '"x"', "", "null"])
def test_an_answer_that_is_not_ours_is_an_error_too(text: str) -> None:
    store = Store()
    store.error = (502, text)
    with fake_server(store.handle) as url:
        result = run("stat", BLOB_ID, "--url", url)
    assert result.exit_code == 1
    assert "the server answered 502" in result.stderr


def test_no_server_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"here")
    with fake_server(Store().handle) as url:
        pass
    result = run("put", str(tmp_path / "a"), "--url", url)
    assert result.exit_code == 1
    assert f"no server at {url}" in result.stderr


def test_get_writes_the_stored_bytes_and_nothing_else(tmp_path: Path) -> None:
    with fake_server(Store().handle) as url:
        result = run("get", BLOB_ID, "-o", str(tmp_path / "out"), "--url", url)
        to_stdout = run("get", f"{url}/{BLOB_ID}", "-o", "-", "--url", url)
    assert (result.exit_code, result.stdout) == (0, "")
    assert (tmp_path / "out").read_bytes() == BODY
    assert names(tmp_path) == ["out"]
    assert to_stdout.stdout_bytes == BODY


def test_get_replaces_a_file_only_when_all_is_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("before")
    store = Store()
    store.digest = "sha-256=:" + base64.b64encode(bytes(32)).decode() + ":"
    with fake_server(store.handle) as url:
        result = run("get", BLOB_ID, "-o", str(out), "--url", url)
    assert result.exit_code == 1
    assert "sha-256 digest" in result.stderr
    assert out.read_text() == "before"
    assert names(tmp_path) == ["out"]


def test_a_blob_that_is_cut_off_leaves_no_file(tmp_path: Path) -> None:
    async def cut_off(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Length": str(len(BODY))})
        await answer.prepare(request)
        await answer.write(BODY[:1000])
        assert request.transport is not None
        request.transport.close()
        return answer

    with fake_server(cut_off) as url:
        result = run("get", BLOB_ID, "-o", str(tmp_path / "out"), "--url", url)
    assert result.exit_code == 1
    assert "connection broke" in result.stderr
    assert names(tmp_path) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with fake_server(Store().handle) as url:
        for output in (tmp_path, tmp_path / "no" / "folder"):
            result = run("get", BLOB_ID, "-o", str(output), "--url", url)
            assert result.exit_code == 1
            assert f"{output} cannot be written" in result.stderr
        assert run("get", BLOB_ID, "-o", "/dev/null", "--url", url).exit_code == 0


def test_stat_shows_what_the_server_says() -> None:
    with fake_server(Store().handle) as url:
        text = run("stat", BLOB_ID, "--url", url)
        as_json = run("stat", BLOB_ID, "--url", url, "--json")
    assert text.exit_code == 0
    assert "colour=blue" in text.stdout and str(len(BODY)) in text.stdout
    assert json.loads(as_json.stdout) == {
        "id": BLOB_ID,
        "size": len(BODY),
        "created": "Tue, 24 Nov 2026 07:00:00 GMT",
        "ttl": 3600,
        "expires": "Tue, 24 Nov 2026 08:00:00 GMT",
        "user_metadata": {"colour": "blue", "name": "Zoë"},
    }


def test_rm_deletes_each() -> None:
    store = Store()
    with fake_server(store.handle) as url:
        result = run("rm", BLOB_ID, f"/{BLOB_ID}", "--url", url)
        wrong = run("rm", "../etc/passwd?x", "--url", url)
    assert result.exit_code == 0
    assert [(request.method, request.path) for request in store.requests] == [("DELETE", f"/{BLOB_ID}")] * 2
    assert wrong.exit_code == 1
    assert "is not a blob id" in wrong.stderr
