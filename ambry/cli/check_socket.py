"""How `ambry datanode check` reaches a disk that is in use: a Unix socket in the disk's folder, both of its ends.

The process that has the disk's lock listens there, so the socket is made anew by each, and whatever an earlier process
left is taken away first. Only the owner of the folder may connect. It speaks HTTP and knows one path, /check.
"""

import asyncio
import contextlib
import dataclasses
import http.client
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from ambry.datanode.local import LocalDatanode
from ambry.errors import AmbryError, DirectoryInUse
from ambry.logs import get_logger
from ambry.storage.rebuild import CheckReport, Finding

_log = get_logger(__name__)

SOCKET_NAME: Final = "check.sock"
_PATH: Final = "/check"


async def serve_checks(local: LocalDatanode, stack: contextlib.AsyncExitStack) -> None:
    """Answer checks of every disk until `stack` unwinds. A disk whose file system has no sockets goes without."""
    for folder in local.folders:
        try:
            listener = _listen(folder)
        except OSError as error:
            _log.warning("the disk cannot be checked while it is in use", folder=str(folder), reason=str(error))
            continue
        stack.callback((folder / SOCKET_NAME).unlink, missing_ok=True)
        app = web.Application()
        app.router.add_get(_PATH, _Door(local, folder).answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.SockSite(runner, listener).start()


class _Door:
    """One disk's: one check at a time."""

    def __init__(self, local: LocalDatanode, folder: Path) -> None:
        self._local = local
        self._folder = folder
        self._is_checking = asyncio.Lock()

    async def answer(self, _request: web.Request) -> web.Response:
        """The report as JSON, after as long as reading the disk takes."""
        if self._is_checking.locked():
            return web.json_response({"error": "a check of this disk is under way"}, status=409)
        async with self._is_checking:
            try:
                report = await self._local.check_folder(self._folder)
            except AmbryError as error:
                return web.json_response({"error": f"the check did not end: {error.message}"}, status=503)
        return web.json_response(dataclasses.asdict(report))


def ask_for_check(folder: Path, in_use: DirectoryInUse) -> CheckReport:
    """What the process that has a disk finds on it. Blocks. Raises DirectoryInUse when there is nobody to ask, or it
    does not answer.
    """
    connection = _Connection(folder)
    try:
        connection.request("GET", _PATH)
        answer = connection.getresponse()
        document = json.loads(answer.read())
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise DirectoryInUse(f"{in_use.message}, and it does not answer at {SOCKET_NAME}: {error!r}") from error
    finally:
        connection.close()
    if answer.status != http.client.OK:
        raise DirectoryInUse(f"{in_use.message}: {document['error']}")
    return _report_of(document)


def _report_of(document: dict[str, Any]) -> CheckReport:
    findings = tuple(Finding(**one) for one in document.pop("findings"))
    return CheckReport(**document, findings=findings)


class _Connection(http.client.HTTPConnection):
    """HTTP over the socket of a disk. Without a time limit: a large disk takes hours."""

    def __init__(self, folder: Path) -> None:
        super().__init__("disk")
        self._folder = folder

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        with _short_path(self._folder) as path:
            self.sock.connect(path)


def _listen(folder: Path) -> socket.socket:
    """Raises OSError."""
    (folder / SOCKET_NAME).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    try:
        with _short_path(folder) as path:
            listener.bind(path)
        (folder / SOCKET_NAME).chmod(0o600)
    except OSError:
        listener.close()
        raise
    return listener


@contextlib.contextmanager
def _short_path(folder: Path) -> Iterator[str]:
    """A path to the socket of a folder: the address of a socket has room for 107 bytes, a folder's path may need more.

    Raises OSError.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET_NAME}"
    finally:
        os.close(descriptor)
