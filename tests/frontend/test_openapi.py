"""The OpenAPI description: it has every operation, and the running server answers as it says."""

import asyncio
import json
import re
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from ambry.blob.batch_format import CONTENT_TYPE, encode_put
from ambry.errors import AmbryError
from ambry.frontend.answers import REASONS, STATUS
from ambry.frontend.native import NativeApi
from ambry.frontend.openapi import describe
from ambry.names.open import ensure_epoch, open_database, sqlite_url
from tests.frontend.serving import serving
from tests.frontend.tenants import MASTERS, tenants

EXAMPLES = 10
"""Requests of each operation: sixteen operations and more, some hundred requests, a few seconds."""

CHECKS = (
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
)
# Without this it would not know how to send one: right items, and anything.
schemathesis.openapi.media_type(
    CONTENT_TYPE,
    st.one_of(
        st.binary(max_size=200),
        st.lists(st.binary(max_size=50), max_size=5).map(
            lambda bodies: b"".join(encode_put(b"", len(body), 0) + body for body in bodies)
        ),
    ),
)
SCHEMA = schemathesis.openapi.from_dict(describe())
OPERATIONS = [
    (method.upper(), path)
    for path, methods in describe()["paths"].items()
    for method in methods
    if method != "parameters"
]


@dataclass(frozen=True)
class Store:
    """A frontend that runs, and what is in it."""

    url: str
    blob_id: str
    upload: str


KNOWN: Final = {"account": "ours", "container": "public", "name": "a name"}
"""Values of path parameters that lead somewhere."""


@pytest.fixture(scope="module", params=["with names", "without"])
def store(request: pytest.FixtureRequest, module_folder: Path) -> Iterator[Store]:
    """A frontend on a thread of its own, with a name store or without, where everybody may do everything."""
    path = None if request.param == "without" else module_folder / "names.sqlite"
    ready = threading.Event()
    found: list[Store] = []
    stop: list[Any] = []

    async def main() -> None:
        done = asyncio.Event()
        database = None if path is None else open_database(sqlite_url(path.parent))
        if database is not None:
            await ensure_epoch(database, lambda: "epoch", 0)
        async with serving(
            access=lambda clock: tenants(clock, is_open=True), masters=MASTERS, database=database
        ) as running:
            blob = await running.put(b"hello" * 100)
            upload = "0" * 32
            if database is not None:
                where = {"accountName": "ours", "containers": [{"containerName": "public"}]}
                made = await running.ask("POST", "/accounts", None, json.dumps({"accounts": [where]}).encode())
                named = await running.ask("PUT", "/named/ours/public/a%20name", None, b"named")
                assert (made.status, named.status) == (200, 201)
                upload = json.loads((await running.ask("POST", "/uploads")).body)["uploadId"]
            found.append(Store(f"http://{running.host}:{running.port}", blob[1:], upload))
            stop.append((asyncio.get_running_loop(), done))
            ready.set()
            await done.wait()
        if database is not None:
            await database.close()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert ready.wait(60)
    yield found[0]
    loop, done = stop[0]
    loop.call_soon_threadsafe(done.set)
    thread.join(10)


def test_every_operation_is_described_and_nothing_else() -> None:
    async def operations() -> set[tuple[str, str]]:
        async with serving() as running:
            return NativeApi(running.frontend.services).operations

    assert set(OPERATIONS) == asyncio.run(operations())
    assert len(OPERATIONS) == len(set(OPERATIONS)) > 40


def test_every_status_that_can_be_answered_is_described() -> None:
    paths = describe()["paths"]
    operations = [paths[path][method.lower()] for method, path in OPERATIONS]
    described = {int(status) for one in operations for status in one["responses"]}
    assert {status for cls, status in STATUS.items() if issubclass(cls, AmbryError)} - {405} <= described
    assert described <= set(REASONS)


def test_the_description_is_served(store: Store) -> None:
    with urllib.request.urlopen(store.url + "/openapi.json", timeout=10) as answer:
        assert answer.headers["Content-Type"] == "application/json"
        assert json.load(answer) == describe()


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_the_server_answers_as_described(store: Store, method: str, path: str) -> None:
    seen = []
    known = {**KNOWN, "id": store.blob_id, "upload": store.upload}

    @given(data=st.data())
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    def ask(data: st.DataObject) -> None:
        case = data.draw(SCHEMA[path][method].as_strategy())
        leads_somewhere = data.draw(st.booleans())
        if case.path_parameters and leads_somewhere:
            case.path_parameters.update({key: known[key] for key in case.path_parameters if key in known})
        response = case.call(base_url=store.url)
        seen.append(response.status_code)
        case.validate_response(response, checks=list(CHECKS))

    ask()
    assert seen
    assert 500 not in seen


def test_every_operation_has_an_example_that_is_typed() -> None:
    docs = Path(__file__).resolve().parents[2] / "docs"
    pages = "".join((docs / name).read_text(encoding="utf-8") for name in ("http-api.md", "security.md"))
    commands = "\n".join(re.findall(r"^\$ .*curl .*$", pages, re.MULTILINE))
    missing = []
    for path in describe()["paths"]:
        pattern = re.escape(path).replace(r"/\{id\}", r"\$\w+").replace(r"\{upload\}", r"\$\w+")
        pattern = pattern.replace(r"\{segment\}", "[0-9]").replace(r"\{part\}", "[0-9]")
        pattern = re.sub(r"\\\{(account|container|name)\\\}", r"[\\w.-]+", pattern)
        if not re.search(r"http://127\.0\.0\.1:1174" + pattern + r"(?=[\s\"?)]|$)", commands, re.MULTILINE):
            missing.append(path)
    assert not missing
