"""The SHA-256 of what is sent: in the answer, kept, and compared when it comes back, however it was sent."""

import base64
import hashlib
import io
from pathlib import Path

import pytest

from ambry.client import Client
from ambry.errors import BadDigest
from ambry.limits import MIB
from tests.client.conftest import bytes_of

BASE = "default/default/digests"
DATA = bytes_of(3 * MIB + 5)
DIGEST = hashlib.sha256(DATA).digest()
TEXT = base64.b64encode(DIGEST).decode()


def sources() -> list[object]:
    return [DATA, io.BytesIO(DATA), (DATA[at : at + 99_999] for at in range(0, len(DATA), 99_999))]


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("own", [True, DIGEST])
def test_a_put_gives_the_sha256_back_and_so_does_stat(client: Client, number: int, own: bool | bytes) -> None:
    stored = client.put(sources()[number], f"{BASE}/put", upsert=True, sha256=own)  # type: ignore[arg-type] # one of each
    assert stored.digests["sha-256"] == TEXT and "xxh3" in stored.digests
    assert client.stat(stored.id).digests["sha-256"] == TEXT


def test_without_a_wish_nobody_computes_it(client: Client) -> None:
    stored = client.put(DATA)
    assert set(stored.digests) == set(client.stat(stored.id).digests) == {"xxh3"}


@pytest.mark.parametrize("part_bytes", [MIB, 16 * MIB])
def test_a_file_is_sent_with_it_and_comes_back_with_it(client: Client, tmp_path: Path, part_bytes: int) -> None:
    path, target = tmp_path / "file", tmp_path / "target"
    path.write_bytes(DATA)
    stored = client.upload_file(path, sha256=True, part_bytes=part_bytes)
    assert stored.digests["sha-256"] == client.stat(stored.id).digests["sha-256"] == TEXT
    for own in (True, DIGEST):
        assert client.download_file(stored.id, target, sha256=own, part_bytes=MIB).digests["sha-256"] == TEXT
        assert target.read_bytes() == DATA
        target.unlink()
    with pytest.raises(BadDigest) as caught:
        client.download_file(stored.id, target, sha256=hashlib.sha256(b"other").digest(), part_bytes=MIB)
    assert caught.value.facts["field"] == "sha-256"
    assert not target.exists()
    with pytest.raises(BadDigest, match="no SHA-256 was kept"):
        client.download_file(client.put(DATA).id, target, sha256=True)


def test_an_upload_that_was_begun_with_another_sha256_is_not_gone_on_with(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "file"

    class Cut(Exception):
        """The user has had enough."""

    def cut(done: int, total: int) -> None:
        if done >= 2 * MIB:
            raise Cut

    for first, second in ((True, True), (True, False), (False, True)):
        path.write_bytes(DATA)
        with pytest.raises(Cut):
            client.upload_file(path, f"{BASE}/changed", part_bytes=MIB, sha256=first, progress=cut, upsert=True)
        assert (tmp_path / ".file.ambry-upload").exists()
        changed = DATA[:-1] + b"!"
        path.write_bytes(changed)
        stored = client.upload_file(path, f"{BASE}/changed", part_bytes=MIB, sha256=second, upsert=True)
        kept = client.stat(stored.id).digests.get("sha-256")
        assert kept == (base64.b64encode(hashlib.sha256(changed).digest()).decode() if second else None)
        client.download_file(stored.id, tmp_path / "target", sha256=second)
