"""Lines N9, N10, N14, N15 and N16 of the acceptance list, against `ambry serve` as a process, over real sockets."""

import http.client
import json
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from tests.cli.processes import serving

BODY: Final = b"some bytes"


class Store:
    """A store that runs."""

    def __init__(self, url: str) -> None:
        self.host = urllib.parse.urlsplit(url).netloc

    def ask(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (names in lower case), body."""
        connection = http.client.HTTPConnection(self.host, timeout=30)
        connection.request(method, path, body, dict(headers or {}))
        answer = connection.getresponse()
        found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        connection.close()
        return found

    def account(self, name: str, **policy: Any) -> dict[str, Any]:
        """A new account with a container `c` of this policy."""
        document = {"accounts": [{"accountName": name, "containers": [{"containerName": "c", **policy}]}]}
        status, _, body = self.ask("POST", "/accounts", None, json.dumps(document).encode())
        assert status == 200, body
        account: dict[str, Any] = json.loads(body)["accounts"][0]
        return account


def named(account: str) -> dict[str, str]:
    return {"x-ambry-target-account-name": account, "x-ambry-target-container-name": "c"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    folder: Path = tmp_path_factory.mktemp("acceptance")
    with serving(folder / "data") as (_, url):
        yield Store(url)


def test_n9_ownership_ttl_and_headers_of_a_container(store: Store) -> None:
    store.account("n9", ttlRequired=True, cacheTtlInSecond=5, contentTypeWhitelistForFilenamesOnDownload=["text/plain"])
    assert store.ask("POST", "/", named("n9"), BODY)[0] == 400
    assert store.ask("POST", "/", named("nobody"), BODY)[0] == 400
    headers = {**named("n9"), "x-ambry-ttl": "1000", "Content-Type": "text/plain", "x-ambry-filename": "a.txt"}
    status, created, _ = store.ask("POST", "/", headers, BODY)
    assert status == 201
    status, got, body = store.ask("GET", created["location"])
    assert (status, body, got["cache-control"]) == (200, BODY, "max-age=5")
    assert got["content-disposition"].startswith("attachment")
    assert store.ask("DELETE", created["location"], {**named("n9"), "x-ambry-target-account-name": "default"})[0] == 412
    assert store.ask("DELETE", created["location"], named("n9"))[0] == 202


def test_n10_the_life_of_signed_urls(store: Store) -> None:
    path = store.ask("POST", "/", None, BODY)[1]["location"]
    wish = {"x-ambry-blob-id": path[1:], "x-ambry-url-ttl-secs": "60"}
    url = store.ask("GET", "/signedUrl", wish)[1]["x-ambry-signed-url"].partition(store.host)[2]
    assert store.ask("GET", url)[2] == BODY
    assert store.ask("GET", url.replace("expires=1", "expires=2"))[0] == 401
    wish = {"x-ambry-url-type": "POST", "x-ambry-max-upload-size": "10"}
    url = store.ask("GET", "/signedUrl", wish)[1]["x-ambry-signed-url"].partition(store.host)[2]
    assert store.ask("POST", url, None, b"x" * 10)[0] == 201
    assert store.ask("POST", url, None, b"x" * 11)[0] == 413
    assert store.ask("DELETE", url)[0] in {401, 405}


def test_n14_accounts_are_made_changed_and_given_up_and_one_change_wins(store: Store) -> None:
    account = store.account("n14")
    change = {"accountId": account["accountId"], "snapshotVersion": account["snapshotVersion"], "status": "INACTIVE"}
    body = json.dumps({"accounts": [change]}).encode()
    assert [store.ask("POST", "/accounts", None, body)[0] for _ in range(2)] == [200, 409]
    assert store.ask("POST", "/", named("n14"), BODY)[0] == 403
    status, _, body = store.ask("DELETE", "/accounts", named("n14"))
    assert (status, json.loads(body)["accounts"][0]["status"]) == (200, "DELETE_IN_PROGRESS")
    assert store.ask("GET", "/accounts", {"x-ambry-target-account-name": "missing"})[0] == 404


def test_n15_preflights_by_container_and_health(store: Store) -> None:
    store.account("n15", accessControlAllowOrigin="https://example.org")
    path = store.ask("POST", "/", named("n15"), BODY)[1]["location"]
    status, headers, _ = store.ask("OPTIONS", path, {"Origin": "https://example.org"})
    assert (status, headers["access-control-allow-origin"]) == (200, "https://example.org")
    assert store.ask("GET", "/healthCheck")[2] == b"GOOD"


def test_n16_beyond_its_rate_a_container_is_told_when_to_come_again(store: Store) -> None:
    store.account("n16", quotaRequestsPerSecond=1)
    answers = [store.ask("POST", "/", named("n16"), BODY) for _ in range(5)]
    assert answers[0][0] == 201
    refused = [headers for status, headers, _ in answers if status == 429]
    assert refused and all(int(headers["retry-after"]) >= 1 for headers in refused)
