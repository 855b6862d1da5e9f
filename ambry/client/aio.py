"""`AsyncClient`: the methods of `Client` for programs with an event loop, each on a thread of the client's own.

A transfer waits for sockets and disks, where threads cost nothing that a loop would save; so both clients are one code.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from functools import partial, wraps
from types import TracebackType
from typing import Any, Concatenate, Final, ParamSpec, Self, TypeVar

from ambry.client.client import Client
from ambry.client.parallel import LEAVE_S
from ambry.client.stopping import Stop, current
from ambry.client.values import Stored
from ambry.client.workers import Workers

_P = ParamSpec("_P")
_T = TypeVar("_T")
_THREADS: Final = 64
_PAGE: Final = 200


def _awaited(
    method: Callable[Concatenate[Client, _P], _T],
) -> Callable[Concatenate["AsyncClient", _P], Coroutine[Any, Any, _T]]:
    """A method of `Client` to be awaited: the same arguments, answer and errors."""

    @wraps(method)
    async def call(self: "AsyncClient", /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await self._run(partial(method, self._client, *args, **kwargs))

    return call


def _iterated(
    method: Callable[Concatenate[Client, _P], Iterator[_T]],
) -> Callable[Concatenate["AsyncClient", _P], AsyncIterator[_T]]:
    """A method of `Client` that gives an iterator, for `async for`: a few items at a time come from a thread."""

    @wraps(method)
    async def call(self: "AsyncClient", /, *args: _P.args, **kwargs: _P.kwargs) -> AsyncIterator[_T]:
        items = method(self._client, *args, **kwargs)

        def some() -> list[_T]:
            return [item for _, item in zip(range(_PAGE), items, strict=False)]

        while page := await self._run(some):
            for item in page:
                yield item

    return call


class AsyncClient:
    """As `Client`: what waits there is awaited here, what iterates there does so with `async for`.

    Every method has the arguments, the answer and the errors of the one of `Client` that has its name, unless it is
    described here. The file objects that `open` and `open_tensors` give wait themselves, so read them on a thread
    (`asyncio.to_thread`). A call that is cancelled ends, and so does what it was doing: files appear whole or not at
    all, and the next call goes on with them.

    Args:
        url: As of `Client`; so are all others.
        token: Bearer token of an access key.
        profile: Table of the configuration file.
        deadline_s: Seconds that an operation may take.
        threads: Connections that one transfer uses at most; up to 64 calls run at the same time, others wait.
        cache: Folder that keeps content of models.

    Raises:
        BadConfiguration: As `Client`.
    """

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
        self._workers = Workers(_THREADS, "ambry client")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Hang up. Unlike a `Client`, this one is not used again."""
        self._client.close()
        self._workers.close()

    async def _run(self, call: Callable[[], _T]) -> _T:
        stop = Stop()
        future = self._workers.submit(call, stop)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            stop.set()
            if not future.cancelled():
                # Whoever calls again finds no thread of this call at work.
                end = asyncio.wrap_future(future)
                end.add_done_callback(_passed_over)
                await asyncio.wait((end,), timeout=LEAVE_S)
            raise

    async def put_stream(
        self, pieces: Iterable[bytes] | AsyncIterator[bytes], name: str | None = None, *, upsert: bool = False,
        deadline_s: float | None = None,
    ) -> Stored:  # fmt: skip
        """As `Client.put_stream`; the pieces may also come from an asynchronous iterator.

        Args:
            pieces: The bytes, in order.
            name: `account/container/name`; without it the blob is known by its id.
            upsert: Whether a name that is taken is replaced.
            deadline_s: Seconds that all of it may take; None: any number.
        """
        taken = _pulled(asyncio.get_running_loop(), pieces) if isinstance(pieces, AsyncIterator) else pieces
        return await self._run(partial(self._client.put_stream, taken, name, upsert=upsert, deadline_s=deadline_s))

    put = _awaited(Client.put)
    get = _awaited(Client.get)
    open = _awaited(Client.open)
    stat = _awaited(Client.stat)
    exists = _awaited(Client.exists)
    delete = _awaited(Client.delete)
    extend = _awaited(Client.extend)
    undelete = _awaited(Client.undelete)
    signed_url = _awaited(Client.signed_url)

    list = _iterated(Client.list)
    copy = _awaited(Client.copy)
    move = _awaited(Client.move)

    put_many = _awaited(Client.put_many)
    get_many = _iterated(Client.get_many)
    stat_many = _iterated(Client.stat_many)
    delete_many = _iterated(Client.delete_many)
    upload_file = _awaited(Client.upload_file)
    download_file = _awaited(Client.download_file)
    copy_from_url = _awaited(Client.copy_from_url)
    upload_small = _awaited(Client.upload_small)
    download_small = _awaited(Client.download_small)
    upload_dir = _awaited(Client.upload_dir)
    download_dir = _awaited(Client.download_dir)

    push_model = _awaited(Client.push_model)
    pull_model = _awaited(Client.pull_model)
    verify_model = _awaited(Client.verify_model)
    diff_models = _awaited(Client.diff_models)
    list_models = _awaited(Client.list_models)
    list_versions = _awaited(Client.list_versions)
    read_manifest = _awaited(Client.read_manifest)
    set_alias = _awaited(Client.set_alias)
    delete_alias = _awaited(Client.delete_alias)
    delete_model = _awaited(Client.delete_model)
    collect_content = _awaited(Client.collect_content)
    open_tensors = _awaited(Client.open_tensors)
    load_tensors = _awaited(Client.load_tensors)


def _pulled(loop: asyncio.AbstractEventLoop, pieces: AsyncIterator[bytes]) -> Iterator[bytes]:
    """The pieces of an asynchronous iterator for a thread that waits for each."""

    async def following() -> bytes | None:
        async for piece in pieces:
            return piece
        return None

    stop = current()
    assert stop is not None
    while True:
        future = asyncio.run_coroutine_threadsafe(following(), loop)
        key = stop.add(future.cancel)
        try:
            piece = future.result()
        except CancelledError:
            stop.check()
            raise
        finally:
            stop.remove(key)
        if piece is None:
            return
        yield piece


def _passed_over(done: "asyncio.Future[Any]") -> None:
    """Nobody waits for what came of a call that was cancelled."""
    if not done.cancelled():
        done.exception()
