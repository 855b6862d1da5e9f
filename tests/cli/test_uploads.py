"""Uploads in parts over real processes, which are killed between the steps and in the middle of them."""

import json
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from http.client import HTTPException
from pathlib import Path
from signal import SIGKILL
from typing import Final
from urllib.error import URLError

import pytest

from ambry.cli.ports import free_port
from tests.cli.processes import Ambry, ambry, ask, write_cluster
from tests.cli.test_named_cluster import DATANODE, FRONTEND
from tests.postgres_server import fresh_database

CREATED: Final = {200, 201, 202}


class Frontends:
    """One process after the other that serves the same store; at most one lives."""

    def __init__(self, stack: ExitStack, arguments: Sequence[Sequence[str]], urls: list[str]) -> None:
        self._stack = stack
        self._arguments = arguments
        self._urls = urls
        self._turn = -1
        self.process: Ambry
        self.url = ""
        self.next()

    def next(self) -> None:
        """Start the next one, which must answer."""
        self._turn += 1
        which = self._turn % len(self._arguments)
        self.process = self._stack.enter_context(ambry(*self._arguments[which]))
        self.process.wait_for("ready")
        self.url = self._urls[which]

    def ask_and_kill(self, method: str, path: str, body: bytes | None, after_s: float) -> None:
        """Ask, and kill the process meanwhile; nobody hears the answer, if there is one."""

        def asking() -> None:
            try:
                ask(method, self.url + path, body)
            except (URLError, HTTPException, OSError):
                return

        asked = threading.Thread(target=asking)
        asked.start()
        asked.join(after_s)
        self.process.end(SIGKILL)
        asked.join()
        self.next()

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, dict[str, str], bytes]:
        """Ask the one that lives."""
        return ask(method, self.url + path, body)


@contextmanager
def embedded(folder: Path, _postgres: str) -> Iterator[Frontends]:
    port = free_port()
    with ExitStack() as stack:
        arguments = ["serve", str(folder / "data"), "--port", str(port)]
        yield Frontends(stack, [arguments], [f"http://127.0.0.1:{port}"])


@contextmanager
def cluster(folder: Path, postgres: str) -> Iterator[Frontends]:
    """A datanode that lives on, and two frontends in turn over one PostgreSQL database."""
    with ExitStack() as stack:
        store = stack.enter_context(fresh_database(postgres))
        (folder / "disk").mkdir()
        write_cluster(folder, free_port(), str(folder / "disk"))
        (folder / "datanode.toml").write_text(DATANODE)
        stack.enter_context(ambry("datanode", "--config", str(folder / "datanode.toml"))).wait_for("ready")
        arguments: list[list[str]] = []
        urls: list[str] = []
        for number in (1, 2):
            port = free_port()
            settings = folder / f"frontend-{number}.toml"
            settings.write_text(FRONTEND.format(port=port, store=store))
            arguments.append(["frontend", "--config", str(settings)])
            urls.append(f"http://127.0.0.1:{port}")
        yield Frontends(stack, arguments, urls)


@pytest.mark.parametrize("kind", [embedded, cluster])
def test_an_upload_goes_on_after_every_kill_and_its_blob_appears_whole(
    kind: Callable[[Path, str], AbstractContextManager[Frontends]], tmp_path: Path, postgres: str
) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    pieces = [chance.randbytes(size) for size in (9_000_000, 4_194_304, 100)]
    with kind(tmp_path, postgres) as frontends:
        status, headers, _ = frontends.ask("POST", "/uploads", b"")
        assert status in CREATED
        upload = headers["location"]
        frontends.ask_and_kill("PUT", f"{upload}/1", pieces[0], chance.uniform(0, 0.05))
        for number, piece in enumerate(pieces, 1):
            assert frontends.ask("PUT", f"{upload}/{number}", piece)[0] in CREATED
        listed = json.loads(frontends.ask("GET", upload)[2])
        assert [one["size"] for one in listed["parts"]] == [len(piece) for piece in pieces]
        chosen = json.dumps({"parts": [{"part": one["part"], "etag": one["etag"]} for one in listed["parts"]]}).encode()
        frontends.ask_and_kill("POST", upload, chosen, chance.uniform(0, 0.03))
        status, headers, answer = frontends.ask("POST", upload, chosen)
        assert status in CREATED, answer
        blob = headers["location"]
        assert frontends.ask("POST", upload, chosen)[1]["location"] == blob
        assert frontends.ask("GET", blob)[2] == b"".join(pieces)
        # One that is given up is gone, whoever is asked.
        other = frontends.ask("POST", "/uploads", b"")[1]["location"]
        assert frontends.ask("PUT", f"{other}/1", pieces[2])[0] in CREATED
        frontends.ask_and_kill("DELETE", other, None, chance.uniform(0, 0.02))
        frontends.ask("DELETE", other)
        assert frontends.ask("GET", other)[0] == 404
        assert frontends.ask("GET", blob)[2] == b"".join(pieces)
