"""What cannot be a setting, a name or a text is an error of the tree that names it; and clients that are dropped go."""

import gc
import os
import weakref
from pathlib import Path

import pytest

from ambry.client import Client
from ambry.client.http import Pool
from ambry.errors import BadConfiguration, BadRequest

BASE = "default/default/arguments"
HALF = os.fsdecode(b"caf\xe9")


@pytest.mark.parametrize(
    "url", ["http://h:99999", "http://h:0", "http://h:port", "http://[::1", "ftp://h", "http://u:p@h", "http://h/x", ""]
)
def test_a_url_that_cannot_be_used_is_told_when_the_client_is_made(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AMBRY_URL", "AMBRY_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(BadConfiguration) as caught:
        Client([url])
    assert caught.value.facts["field"] == "url"


@pytest.mark.parametrize(
    ("text", "profile", "field"),
    [
        ("[default]\nurl = 5", None, "url"),
        ("[default]\nurl = [1]", None, "url"),
        ("[default]\nurl = true", None, "url"),
        ("[default]\nurl = {a = 1}", None, "url"),
        ("[default]\nurl = 'http://h'\ntoken = 5", None, "token"),
        ("default = 3", None, "profile"),
        ("profiles = 3", "training", "profile"),
        ("[profiles]\ntraining = 3", "training", "profile"),
        ("[[profiles]]\ntraining = 3", "training", "profile"),
    ],
)
def test_a_file_of_settings_that_cannot_be_used_is_told(
    text: str, profile: str | None, field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.joinpath("client.toml").write_text(text)
    monkeypatch.setenv("AMBRY_CLIENT_CONFIG", str(tmp_path / "client.toml"))
    for name in ("AMBRY_URL", "AMBRY_PROFILE", "AMBRY_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(BadConfiguration) as caught:
        Client(profile=profile)
    assert caught.value.facts["field"] == field


def test_a_file_whose_name_cannot_be_sent_is_told(client: Client, tmp_path: Path) -> None:
    for name in (HALF, "two\nlines"):
        path = tmp_path / name
        path.write_bytes(b"hello")
        for part_bytes in (3, 100):
            with pytest.raises(BadRequest) as caught:
                client.upload_file(path, f"{BASE}/file", part_bytes=part_bytes)
            assert caught.value.facts["field"] == "x-ambry-filename"
            assert repr(name) in caught.value.message
    assert not client.exists(f"{BASE}/file")


def test_names_and_texts_that_are_not_utf_8_are_told(client: Client) -> None:
    name = f"{BASE}/{HALF}"
    for call in (
        lambda: client.put(b"x", name),
        lambda: client.get(name),
        lambda: client.copy(f"{BASE}/a", name),
        lambda: client.move(name, f"{BASE}/a"),
        lambda: list(client.list(name)),
        lambda: client.put(b"x", metadata={"key": HALF}),
        lambda: client.put(b"x", metadata={"schlüssel": "x"}),
        lambda: client.put(b"x", content_type="a\r\nb: c"),
    ):
        with pytest.raises(BadRequest):
            call()


def test_clients_that_are_dropped_are_gone(url: str) -> None:
    seen: list[weakref.ref[object]] = []
    for _ in range(10):
        client = Client(url)
        assert not client.exists(f"{BASE}/nothing")
        seen += [weakref.ref(client._session), weakref.ref(client._session._connections())]
        client.close()
        del client
    gc.collect()
    assert not [one for one in seen if one() is not None]


def test_a_child_uses_no_connection_of_its_parent(url: str) -> None:
    pool = Pool()
    pool.exchange(url, "GET", "/healthCheck", {}, None, 30, can_repeat=True).read()
    assert pool._free[url]
    child = os.fork()
    if child == 0:
        os._exit(1 if pool._free else 0)
    assert os.waitpid(child, 0)[1] == 0
    assert pool._free[url]
    pool.close()
