"""The native HTTP API as the command line uses it: one blob at a time, streamed, verified by length and digest; JSON.

It knows HTTP and bytes; files, terminals and exit statuses are its callers'. Errors of the server come back as the
classes of `ambry.errors` that they were there, found by the name in the JSON of the answer.
"""

import asyncio
import base64
import contextlib
import hashlib
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from types import TracebackType
from typing import Any, Final, Self

import aiohttp

from ambry.errors import ERRORS_BY_CODE, AmbryError, BadDigest, BadRequest, ConnectionLost, Unavailable
from ambry.limits import MIB

PIECE_BYTES: Final = 1 * MIB
_ERROR_BODY_BYTES_MAX: Final = 64 * 1024
_CONNECT_SECONDS: Final = 10
# A server answers a put after it has synced; a minute of silence means that nobody is there any more.
_SILENCE_SECONDS: Final = 60
_ERRORS_BY_NAME: Final = {error.name: error for error in ERRORS_BY_CODE.values()}
_DIGESTS: Final = {"sha-256": "sha256", "sha-512": "sha512", "md5": "md5"}


class BlobClient:
    """A session with one server. Use as an async context manager."""

    def __init__(self, url: str, token: str | None = None) -> None:
        if not re.match(r"https?://[^/\s]+", url):
            raise BadRequest(f"{url!r} is not the URL of a server, such as http://127.0.0.1:1174", field="url")
        self._url = url.rstrip("/")
        self._token = token
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers={} if self._token is None else {"Authorization": f"Bearer {self._token}"},
            # Stored bytes as they are: a blob put with a content encoding keeps it.
            auto_decompress=False,
            read_bufsize=PIECE_BYTES,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENCE_SECONDS),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()

    async def put(self, pieces: AsyncIterator[bytes], size: int | None, headers: Mapping[str, str]) -> str:
        """Store a blob and return its id. `size` None sends it in chunks, for a source of unknown length."""
        lengths = {} if size is None else {"Content-Length": str(size)}
        async with self._request("POST", "/", headers={**headers, **lengths}, data=pieces) as answer:
            location = answer.headers.get("Location", "")
            if not location:
                raise Unavailable("the server stored the blob and did not say under which id")
            return location.rsplit("/", 1)[-1]

    async def get(self, blob_id: str, write: Callable[[bytes], object], begin: Callable[[int], object]) -> int:
        """Hand the blob's bytes to `write`, piece by piece in a thread, and return their number.

        `begin` is told the size first. Raises BadDigest if they do not have the digest that the server named, and
        ConnectionLost if the blob was cut off.
        """
        async with self._request("GET", f"/{_checked(blob_id)}") as answer:
            begin(int(answer.headers.get("Content-Length", "0")))
            digests = _expected_digests(answer.headers.get("Repr-Digest", ""))
            received = 0
            async for piece in answer.content.iter_chunked(PIECE_BYTES):
                received += len(piece)
                await asyncio.to_thread(_take, piece, write, digests)
            announced = answer.headers.get("Content-Length")
            if announced is not None and received != int(announced):
                raise ConnectionLost(f"{blob_id}: cut off after {received} of {announced} bytes")
            for algorithm, (digest, expected) in digests.items():
                if digest.digest() != expected:
                    raise BadDigest(f"{blob_id}: what arrived does not have the blob's {algorithm} digest")
            return received

    async def stat(self, blob_id: str) -> dict[str, str]:
        """All headers of the blob, names in lower case."""
        async with self._request("GET", f"/{_checked(blob_id)}/BlobInfo") as answer:
            return {name.lower(): value for name, value in answer.headers.items()}

    async def document(
        self, method: str, path: str, headers: Mapping[str, str], document: object = None
    ) -> dict[str, Any]:
        """JSON out, JSON in: accounts, containers, keys."""
        body = None if document is None else json.dumps(document).encode()
        async with self._request(method, path, headers=headers, data=body) as answer:
            found: dict[str, Any] = json.loads(await answer.read())
            return found

    @contextlib.asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        data: AsyncIterator[bytes] | bytes | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer of success, whose body has not been read. Other answers are raised."""
        assert self._session is not None
        try:
            async with self._session.request(
                method, self._url + path, headers=headers, data=data, allow_redirects=False
            ) as answer:
                if answer.status >= 300:
                    raise _error_of(answer.status, await answer.content.read(_ERROR_BODY_BYTES_MAX))
                yield answer
        except aiohttp.ClientConnectorError as error:
            raise Unavailable(f"no server at {self._url}: {error.strerror or error}") from error
        except TimeoutError as error:
            raise Unavailable(f"{self._url} did not answer in time") from error
        except aiohttp.ClientError as error:
            raise ConnectionLost(f"{self._url}: the connection broke: {error or type(error).__name__}") from error


def _checked(blob_id: str) -> str:
    """The id alone, from an id, a path or a URL."""
    text = blob_id.rstrip("/").rsplit("/", 1)[-1]
    if not re.fullmatch(r"[A-Za-z0-9_\-]{1,64}", text, re.ASCII):
        raise BadRequest(f"{blob_id!r} is not a blob id", field="blob id")
    return text


def _error_of(status: int, body: bytes) -> AmbryError:
    """The error in the JSON of an answer, or what the status says where there is none."""
    try:
        said = json.loads(body)
        name, message, request_id = str(said["code"]), str(said["message"]), str(said.get("request_id", ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        return AmbryError(f"the server answered {status}")
    facts: dict[str, object] = {"request_id": request_id} if request_id else {}
    return _ERRORS_BY_NAME.get(name, AmbryError)(message, **facts)


def _expected_digests(header: str) -> dict[str, tuple["hashlib._Hash", bytes]]:
    """The digests of a Repr-Digest header (RFC 9530) that this client can compute: algorithm to (hash, expected)."""
    found: dict[str, tuple[hashlib._Hash, bytes]] = {}
    for match in re.finditer(r"([a-z0-9\-]+)=:([A-Za-z0-9+/=]+):", header):
        if match[1] in _DIGESTS:
            digest = hashlib.new(_DIGESTS[match[1]], usedforsecurity=False)
            found[match[1]] = (digest, base64.b64decode(match[2]))
    return found


def _take(piece: bytes, write: Callable[[bytes], object], digests: Mapping[str, tuple["hashlib._Hash", bytes]]) -> None:
    for digest, _ in digests.values():
        digest.update(piece)
    write(piece)
