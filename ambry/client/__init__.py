"""The Python client of an Ambry store: `Client`, and `AsyncClient` with the same methods.

    from ambry.client import Client

    with Client() as client:
        client.upload_file("model.bin", "default/default/models/model.bin")
        client.download_file("default/default/models/model.bin", "copy.bin")

Light on purpose: the standard library and xxhash. HTTP is imported with the first request. Errors are those of
`ambry.errors`, with the request id and the attempts made among their facts.
"""

from typing import TYPE_CHECKING, Any

from ambry.client.client import Client
from ambry.client.reader import BlobReader
from ambry.client.settings import ClientSettings
from ambry.client.small_files import LocalFile, StoredFile
from ambry.client.values import BatchEntry, BlobInfo, ListedName, Stored
from ambry.errors import AmbryError

if TYPE_CHECKING:
    from ambry.client.aio import AsyncClient

__all__ = [
    "AmbryError",
    "AsyncClient",
    "BatchEntry",
    "BlobInfo",
    "BlobReader",
    "Client",
    "ClientSettings",
    "ListedName",
    "LocalFile",
    "Stored",
    "StoredFile",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 -- what a module gives
    """AsyncClient, with its first use: asyncio takes longer to import than all the rest."""
    if name == "AsyncClient":
        from ambry.client.aio import AsyncClient  # noqa: PLC0415 -- loaded on first use

        return AsyncClient
    raise AttributeError(name)
