"""Asking frontends of another datacentre for what they hand out: of whom, with which token, and how much at most."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from aiohttp import ClientSession, ClientTimeout

from ambry.errors import BadConfiguration, NameStoreUnavailable
from ambry.limits import REQUEST_DEADLINE_MS


@dataclass(frozen=True, slots=True)
class FeedSource:
    """Another datacentre: its number in the map, the URL of its frontends, and a key's token that may read there."""

    datacentre: int
    name: str
    url: str
    token: str


def token_from(path: Path, read: Callable[[Path], str] = Path.read_text) -> str:
    """The token in a file. Raises BadConfiguration."""
    try:
        return read(path).strip()
    except OSError as error:
        raise BadConfiguration(f"{path}: the token of a feed cannot be read: {error.strerror}") from error


def session_to(source: FeedSource) -> ClientSession:
    """Connections to a source, with its token."""
    timeout = ClientTimeout(total=REQUEST_DEADLINE_MS / 1000)
    return ClientSession(timeout=timeout, headers={"Authorization": f"Bearer {source.token}"})


async def ask(
    http: ClientSession, source: FeedSource, path: str, query: Mapping[str, str], bytes_max: int, too_much: str
) -> bytes:
    """The body of an answer. Raises NameStoreUnavailable for one that is no 200, or longer: it sends `too_much`."""
    async with http.get(source.url.rstrip("/") + path, params=query) as answer:
        body = bytearray()
        async for piece in answer.content.iter_any():
            body += piece
            if len(body) > bytes_max:
                raise NameStoreUnavailable(f"{source.name} sends {too_much}", is_certain=True)
        if answer.status != 200:
            raise NameStoreUnavailable(f"{source.name} answered {answer.status}", is_certain=True)
    return bytes(body)
