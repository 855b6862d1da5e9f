"""`AsyncClient`: the methods of `Client` for programs with an event loop, each on a thread of the client's own.

A transfer waits for sockets and disks, where threads cost nothing that a loop would save; so both clients are one code.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, ParamSpec, Self, TypeVar

from ambry.client.client import Client
from ambry.client.reader import BlobReader
from ambry.client.values import BatchEntry, BlobInfo, ListedName, Stored

if TYPE_CHECKING:
    from ambry.client.contents import Collected
    from ambry.client.model_manifest import ModelManifest
    from ambry.client.model_pull import Pulled
    from ambry.client.models import ModelDiff, ModelVersion, Pushed, Verified
    from ambry.client.safetensors import TensorFile

_P = ParamSpec("_P")
_T = TypeVar("_T")
_THREADS: Final = 64
_PAGE: Final = 200


class AsyncClient:
    """As `Client`; every method that waits is to be awaited, and what iterates does so with `async for`."""

    def __init__(
        self,
        url: str | Sequence[str] | None = None,
        *,
        token: str | None = None,
        profile: str | None = None,
        deadline_s: float = 300.0,
        threads: int = 16,
        cache: str | os.PathLike[str] | None = None,
    ) -> None:
        self._client = Client(url, token=token, profile=profile, deadline_s=deadline_s, threads=threads, cache=cache)
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="ambry client")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Hang up. The client is not used again."""
        self._client.close()
        self._pool.shutdown(wait=False)

    async def _run(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(call, *args, **kwargs))

    async def _each(self, items: Iterator[_T]) -> AsyncIterator[_T]:
        """The items of an iterator that waits, a few at a time."""

        def some() -> list[_T]:
            return [item for _, item in zip(range(_PAGE), items, strict=False)]

        while page := await self._run(some):
            for item in page:
                yield item

    async def put(self, data: Any, name: str | None = None, **options: Any) -> Stored:  # noqa: ANN401 -- as Client.put
        """See Client.put."""
        return await self._run(self._client.put, data, name, **options)

    async def put_stream(
        self, pieces: Iterable[bytes] | AsyncIterator[bytes], name: str | None = None, *, upsert: bool = False
    ) -> Stored:
        """See Client.put_stream; the pieces may also come from an asynchronous iterator."""
        if isinstance(pieces, AsyncIterator):
            pieces = _pulled(asyncio.get_running_loop(), pieces)
        return await self._run(self._client.put_stream, pieces, name, upsert=upsert)

    async def get(self, ref: str, start: int = 0, stop: int | None = None, **options: Any) -> bytes:  # noqa: ANN401 -- as Client.get
        """See Client.get."""
        return await self._run(self._client.get, ref, start, stop, **options)

    async def open(self, ref: str, *, read_ahead: int = 4 * 1024 * 1024) -> BlobReader:
        """See Client.open; the reader itself waits, so read on a thread."""
        return await self._run(self._client.open, ref, read_ahead=read_ahead)

    async def stat(self, ref: str, **options: Any) -> BlobInfo:  # noqa: ANN401 -- as Client.stat
        """See Client.stat."""
        return await self._run(self._client.stat, ref, **options)

    async def exists(self, ref: str) -> bool:
        """See Client.exists."""
        return await self._run(self._client.exists, ref)

    async def delete(self, ref: str, **options: Any) -> None:  # noqa: ANN401 -- as Client.delete
        """See Client.delete."""
        await self._run(self._client.delete, ref, **options)

    async def extend(self, blob_id: str, ttl_s: int | None) -> None:
        """See Client.extend."""
        await self._run(self._client.extend, blob_id, ttl_s)

    async def undelete(self, blob_id: str) -> None:
        """See Client.undelete."""
        await self._run(self._client.undelete, blob_id)

    async def signed_url(self, ref: str, **options: Any) -> str:  # noqa: ANN401 -- as Client.signed_url
        """See Client.signed_url."""
        return await self._run(self._client.signed_url, ref, **options)

    def list(self, ref: str, **options: Any) -> AsyncIterator[ListedName]:  # noqa: ANN401 -- as Client.list
        """See Client.list."""
        return self._each(self._client.list(ref, **options))

    async def copy(self, source: str, target: str, *, upsert: bool = False) -> Stored:
        """See Client.copy."""
        return await self._run(self._client.copy, source, target, upsert=upsert)

    async def move(self, source: str, target: str, *, upsert: bool = False) -> Stored:
        """See Client.move."""
        return await self._run(self._client.move, source, target, upsert=upsert)

    async def put_many(self, bodies: Iterable[bytes], **options: Any) -> Sequence[Stored]:  # noqa: ANN401 -- as Client.put_many
        """See Client.put_many."""
        return await self._run(self._client.put_many, bodies, **options)

    def get_many(self, ids: Iterable[str]) -> AsyncIterator[BatchEntry]:
        """See Client.get_many."""
        return self._each(self._client.get_many(ids))

    def stat_many(self, ids: Iterable[str]) -> AsyncIterator[BatchEntry]:
        """See Client.stat_many."""
        return self._each(self._client.stat_many(ids))

    def delete_many(self, ids: Iterable[str]) -> AsyncIterator[BatchEntry]:
        """See Client.delete_many."""
        return self._each(self._client.delete_many(ids))

    async def upload_file(self, path: Any, name: str | None = None, **options: Any) -> Stored:  # noqa: ANN401 -- as Client.upload_file
        """See Client.upload_file."""
        return await self._run(self._client.upload_file, path, name, **options)

    async def download_file(self, ref: str, path: Any, **options: Any) -> BlobInfo:  # noqa: ANN401 -- as Client.download_file
        """See Client.download_file."""
        return await self._run(self._client.download_file, ref, path, **options)

    async def upload_small(self, files: Any, container: str, **options: Any) -> Sequence[Any]:  # noqa: ANN401 -- as Client.upload_small
        """See Client.upload_small."""
        return await self._run(self._client.upload_small, files, container, **options)

    async def upload_dir(self, folder: Any, prefix: str, **options: Any) -> Sequence[Stored]:  # noqa: ANN401 -- as Client.upload_dir
        """See Client.upload_dir."""
        return await self._run(self._client.upload_dir, folder, prefix, **options)

    async def download_dir(self, prefix: str, folder: Any, **options: Any) -> Sequence[Any]:  # noqa: ANN401 -- as Client.download_dir
        """See Client.download_dir."""
        return await self._run(self._client.download_dir, prefix, folder, **options)

    async def push_model(self, folder: Any, model: str, **options: Any) -> "Pushed":  # noqa: ANN401 -- as Client.push_model
        """See Client.push_model."""
        return await self._run(self._client.push_model, folder, model, **options)

    async def pull_model(self, model: str, folder: Any = None, **options: Any) -> "Pulled":  # noqa: ANN401 -- as Client.pull_model
        """See Client.pull_model."""
        return await self._run(self._client.pull_model, model, folder, **options)

    async def verify_model(self, model: str, folder: Any = None, *, reads: bool = False) -> "Verified":  # noqa: ANN401 -- as Client.verify_model
        """See Client.verify_model."""
        return await self._run(self._client.verify_model, model, folder, reads=reads)

    async def diff_models(self, old: str, new: str) -> "ModelDiff":
        """See Client.diff_models."""
        return await self._run(self._client.diff_models, old, new)

    async def list_models(self, container: str) -> Sequence[str]:
        """See Client.list_models."""
        return await self._run(self._client.list_models, container)

    async def list_versions(self, model: str) -> Sequence["ModelVersion"]:
        """See Client.list_versions."""
        return await self._run(self._client.list_versions, model)

    async def read_manifest(self, model: str) -> "ModelManifest":
        """See Client.read_manifest."""
        return await self._run(self._client.read_manifest, model)

    async def set_alias(self, model: str, alias: str, *, expected: str | None = "*") -> "ModelVersion":
        """See Client.set_alias."""
        return await self._run(self._client.set_alias, model, alias, expected=expected)

    async def delete_alias(self, model: str, alias: str) -> None:
        """See Client.delete_alias."""
        await self._run(self._client.delete_alias, model, alias)

    async def delete_model(self, model: str) -> Sequence[str]:
        """See Client.delete_model."""
        return await self._run(self._client.delete_model, model)

    async def collect_content(self, container: str, *, is_dry: bool = False) -> "Collected":
        """See Client.collect_content."""
        return await self._run(self._client.collect_content, container, is_dry=is_dry)

    async def open_tensors(self, ref: str, *, framework: str = "numpy") -> "TensorFile":
        """See Client.open_tensors; the file itself waits, so read on a thread."""
        return await self._run(self._client.open_tensors, ref, framework=framework)

    async def load_tensors(self, ref: str, *, framework: str = "numpy") -> dict[str, Any]:
        """See Client.load_tensors."""
        return await self._run(self._client.load_tensors, ref, framework=framework)


def _pulled(loop: asyncio.AbstractEventLoop, pieces: AsyncIterator[bytes]) -> Iterator[bytes]:
    """The pieces of an asynchronous iterator for a thread that waits for each."""

    async def following() -> bytes | None:
        async for piece in pieces:
            return piece
        return None

    while (piece := asyncio.run_coroutine_threadsafe(following(), loop).result()) is not None:
        yield piece
