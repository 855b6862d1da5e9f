"""TLS contexts of the wire protocol, and certificates that are replaced while a process runs.

What is wrong with a certificate is said at start, with the name of the file. Afterwards the files of every context are
looked at now and then; new ones serve new connections, and those that are no pair are left until they are changed
again. Connections that exist keep what they began with.
"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final
from weakref import WeakKeyDictionary

from ambry.config import NodeTlsSettings
from ambry.errors import BadConfiguration
from ambry.limits import CERTIFICATE_POLL_MS
from ambry.logs import get_logger
from ambry.tasks import end_task

_log = get_logger(__name__)

_files: Final[WeakKeyDictionary[ssl.SSLContext, tuple[Path, Path]]] = WeakKeyDictionary()
"""Certificate and key of every context of this process that is to be kept up to date."""


def node_server_context(settings: NodeTlsSettings) -> ssl.SSLContext:
    """For the port of a datanode: both ends show a certificate of the cluster's authority. Raises BadConfiguration."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    _load(context, settings)
    _trust(context, settings)
    return context


def node_client_context(settings: NodeTlsSettings) -> ssl.SSLContext:
    """For connections to datanodes. Names are not compared: the handshake proves who a node is. As above."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    _load(context, settings)
    _trust(context, settings)
    return context


def _load(context: ssl.SSLContext, settings: NodeTlsSettings) -> None:
    try:
        context.load_cert_chain(settings.certificate_file, settings.key_file)
    except OSError as error:
        raise BadConfiguration(
            f"{settings.certificate_file} and {settings.key_file} are not a certificate and its key: {error}"
        ) from error
    follow(context, settings.certificate_file, settings.key_file)


def _trust(context: ssl.SSLContext, settings: NodeTlsSettings) -> None:
    try:
        context.load_verify_locations(settings.authority_file)
    except OSError as error:
        raise BadConfiguration(f"{settings.authority_file} has no certificates: {error}") from error


# --- replaced certificates -------------------------------------------------------------------------------------


def follow(context: ssl.SSLContext, certificate_file: Path, key_file: Path) -> None:
    """Keep a context up to date with its files, as long as `following` runs."""
    _files[context] = (certificate_file, key_file)


@contextlib.asynccontextmanager
async def following(poll_ms: int = CERTIFICATE_POLL_MS) -> AsyncIterator[None]:
    """Look after the certificates of all contexts of the process until the block ends."""
    task = asyncio.create_task(_follow_all(poll_ms / 1000), name="follow certificates")
    try:
        yield
    finally:
        await end_task(task)


async def _follow_all(poll_s: float) -> None:
    stamps = {context: _stamp(files) for context, files in _files.items()}
    while True:
        await asyncio.sleep(poll_s)
        for context, files in list(_files.items()):
            stamp = _stamp(files)
            if stamp != stamps.get(context, stamp):
                _reload(context, *files)
            stamps[context] = stamp


def _stamp(files: tuple[Path, Path]) -> tuple[object, ...]:
    """Changes when one of the files is written or replaced."""
    found: list[object] = []
    for path in files:
        try:
            status = path.stat()
        except OSError:
            found.append(None)
        else:
            found.append((status.st_ino, status.st_mtime_ns, status.st_size))
    return tuple(found)


def _reload(context: ssl.SSLContext, certificate_file: Path, key_file: Path) -> None:
    """Take up new files, if they are a certificate and its key."""
    try:
        # First into one that nobody uses: half of a pair must not spoil the other.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate_file, key_file)
        context.load_cert_chain(certificate_file, key_file)
    except OSError as error:
        _log.warning("a new certificate cannot be used; the old one is", file=str(certificate_file), error=str(error))
    else:
        _log.info("a new certificate is used", file=str(certificate_file))
