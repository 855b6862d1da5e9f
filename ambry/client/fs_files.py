"""Files that are written through fsspec: kept aside, and stored whole when they are closed, or at the commit of a
transaction. What fails, breaks off or is forgotten is not stored.

Those who wrap such a file, for text or compression, close it without a word of what went wrong: this module finds out.
Where the bytes go is its caller's business.
"""

import abc
import asyncio
import dis
import inspect
import io
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import IO, Any, Final, Self

from ambry.limits import MIB

_SPOOL_BYTES: Final = 8 * MIB
_EXITS: Final = frozenset({"__exit__", "__aexit__"})
_WITH_ENDS_BADLY: Final = dis.opmap.get("WITH_EXCEPT_START")
"""The instruction of a `with` that is left by an exception: the files of `io` have an `__exit__` that is no frame."""


class _Discarding(io.IOBase):
    """What is left by an exception is not stored."""

    @abc.abstractmethod
    def discard(self) -> None:
        """Closing it will store nothing."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self.discard()
        super().__exit__(kind, error, traceback)


class WrittenFile(_Discarding, io.RawIOBase):
    """A file that is written, and stored when it is closed; without `autocommit` when `commit` is called after that.

    Args:
        path: For people.
        store: Stores what the file has, which is read from its beginning.
        autocommit: Whether to store it when it is closed.
    """

    def __init__(self, path: str, store: Callable[[IO[bytes]], object], *, autocommit: bool = True) -> None:
        super().__init__()
        self.path = path
        self._store = store
        self._autocommit = autocommit
        self._failure: BaseException | None = None
        self._is_dropped = False
        self._handled = sys.exception()
        self._file = tempfile.SpooledTemporaryFile(_SPOOL_BYTES)  # noqa: SIM115 -- closed in `close`, or by `commit`

    def writable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Bytes written."""
        return self._file.tell()

    def write(self, data: Any) -> int:
        """Take bytes; without keeping them if nothing is to be stored."""
        if self._is_dropped:
            return memoryview(data).nbytes
        try:
            return self._file.write(data)
        except BaseException as error:
            self.fail(error)
            raise

    def fail(self, error: BaseException) -> None:
        """Some of what was to be written is missing, so that closing the file stores nothing, and says so."""
        self._failure = self._failure or error

    def discard(self) -> None:
        """Closing it, or committing it, will store nothing."""
        self._is_dropped = True
        if self.closed:
            self._forget()

    def close(self) -> None:
        """Store what was written. Raises OSError if a write had failed."""
        if self.closed:
            return
        if _breaks_off(self._handled):
            self.discard()
        self._handled = None
        try:
            if self._failure is not None and not self._is_dropped:
                self.discard()
                raise OSError(f"{self.path} is not stored, as a write failed") from self._failure
            if self._autocommit and not self._is_dropped:
                self._store_all()
        finally:
            super().close()
            if self._autocommit or self._is_dropped:
                self._forget()

    def commit(self) -> None:
        """Store what was written, and closed without having been stored. Raises OSError for a file still open."""
        if self._is_dropped:
            return
        if not self.closed:
            self.discard()
            raise OSError(f"{self.path} is not stored, as it was not closed before the end of its transaction")
        try:
            self._store_all()
        finally:
            self.discard()

    def _store_all(self) -> None:
        self._file.seek(0)
        self._store(self._file)

    def _forget(self) -> None:
        # On a full disk what was not written yet is tried once more, in vain.
        with suppress(OSError):
            self._file.close()

    def _dealloc_warn(self, source: object) -> None:
        """Called by the wrappers of `io` for text and buffers that were dropped unclosed, before they close this."""
        self.discard()
        warnings.warn(f"{self.path} was dropped unclosed, and is not stored", ResourceWarning, 2, source)

    def __del__(self) -> None:
        """What was never closed is not known to be whole."""
        if not self.closed:
            self._dealloc_warn(self)
        super().__del__()


class CompressedFile(_Discarding, io.BufferedIOBase):
    """A written file whose bytes are compressed on the way. Closing it closes the file."""

    def __init__(self, file: WrittenFile, compressor: Any) -> None:
        super().__init__()
        self._file = file
        self._compressor = compressor

    def writable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Bytes written, before compression."""
        return int(self._compressor.tell())

    def write(self, data: Any) -> int:
        """Take bytes."""
        try:
            return int(self._compressor.write(data))
        except BaseException as error:
            self._file.fail(error)
            raise

    def discard(self) -> None:
        """Closing it will store nothing."""
        self._file.discard()

    def commit(self) -> None:
        """As that of the file."""
        self._file.commit()

    def close(self) -> None:
        """Store what was written. Raises OSError if a write had failed."""
        if self.closed:
            return
        try:
            try:
                self._compressor.close()
            except BaseException as error:
                self._file.fail(error)
                raise
            finally:
                self._file.close()
        finally:
            super().close()

    def _dealloc_warn(self, source: object) -> None:
        self._file._dealloc_warn(source)  # noqa: SLF001 -- handed through

    def __del__(self) -> None:
        """What was never closed is not known to be whole."""
        if not self.closed:
            self._dealloc_warn(self)
        super().__del__()


class TextFile(_Discarding, io.TextIOWrapper):
    """A written file as text."""

    def __init__(self, file: WrittenFile | CompressedFile, **options: Any) -> None:
        super().__init__(file, **options)  # type: ignore[arg-type] # a raw file that takes all it is given
        self._written = file

    def discard(self) -> None:
        """Closing it will store nothing."""
        self._written.discard()

    def commit(self) -> None:
        """As that of the file."""
        self._written.commit()


class AsyncFile:
    """A file of `open` for `await`: what waits does so on a thread, one call at a time."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._handled = sys.exception()

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return bool(self._file.closed)

    async def read(self, size: int = -1) -> Any:
        """At most `size` bytes, all that are left by default."""
        return await asyncio.to_thread(self._file.read, size)

    async def readline(self) -> Any:
        """Up to the end of a line."""
        return await asyncio.to_thread(self._file.readline)

    async def seek(self, offset: int, whence: int = 0) -> int:
        """Go somewhere else."""
        return int(await asyncio.to_thread(self._file.seek, offset, whence))

    def tell(self) -> int:
        """The position."""
        return int(self._file.tell())

    async def write(self, data: Any) -> int:
        """Take bytes."""
        return int(await asyncio.to_thread(self._file.write, data))

    async def flush(self) -> None:
        """Hand on what was written."""
        await asyncio.to_thread(self._file.flush)

    def discard(self) -> None:
        """Closing it will store nothing."""
        self._file.discard()

    async def close(self) -> None:
        """Store what was written, unless an `async with` is left by an exception."""
        if _breaks_off(self._handled) and hasattr(self._file, "discard"):
            self._file.discard()
        await asyncio.to_thread(self._file.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def _breaks_off(handled: BaseException | None) -> bool:
    """Whether somebody's `with` is ending by an exception other than the one that was `handled` before.

    `fsspec.open` and pandas hand no exception on: their `__exit__` closes the file as if all was well. A plain call of
    `close` in an `except` or a `finally` is not meant: whoever makes it may well want what there is.
    """
    error = sys.exception()
    if error is None or error is handled:
        return False
    frame = inspect.currentframe()
    while frame is not None:
        code = frame.f_code
        if code.co_name in _EXITS or (frame.f_lasti >= 0 and code.co_code[frame.f_lasti] == _WITH_ENDS_BADLY):
            return True
        frame = frame.f_back
    return False
