"""A blob as a file object: seekable reads by range, with read-ahead. The blob's id is fixed when it is opened."""

import io
from typing import TYPE_CHECKING

from ambry.client.session import Session
from ambry.client.transfer import read_whole
from ambry.client.values import BlobInfo

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class BlobReader(io.RawIOBase):
    """Reads one blob, a raw binary file object. Not for several threads at a time, as any file object with a position.

    `io.BufferedReader(reader)` gives it what else a file has. What is read raises the errors of `Client.get`; short
    reads do not happen before the end.
    """

    def __init__(self, session: Session, info: BlobInfo, read_ahead: int) -> None:
        super().__init__()
        self.info = info
        self._session = session
        self._read_ahead = max(read_ahead, 1)
        self._at = 0
        self._window_start = 0
        self._window = b""

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """The position, in bytes from the beginning."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position; beyond the end is allowed.

        Args:
            offset: Bytes from where `whence` says.
            whence: `io.SEEK_SET`, `io.SEEK_CUR` or `io.SEEK_END`.

        Returns:
            The position, in bytes from the beginning.

        Raises:
            ValueError: A position before the beginning, or another `whence`.
        """
        if whence not in {io.SEEK_SET, io.SEEK_CUR, io.SEEK_END}:
            raise ValueError("whence is SEEK_SET, SEEK_CUR or SEEK_END")
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.info.size}[whence]
        if begin + offset < 0:
            raise ValueError("a position before the beginning")
        self._at = begin + offset
        return self._at

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Fill a buffer as far as the blob goes.

        Args:
            buffer: Any writable buffer of bytes.

        Returns:
            Bytes read; 0 at the end.
        """
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view) and self._at < self.info.size:
            piece = self._piece(len(view) - done)
            view[done : done + len(piece)] = piece
            done += len(piece)
            self._at += len(piece)
        return done

    def readall(self) -> bytes:
        """Everything from the position on."""
        data = bytearray(max(self.info.size - self._at, 0))
        count = self.readinto(data)
        return bytes(data[:count])

    def _piece(self, wanted: int) -> memoryview:
        """Bytes at the position: from the window, or a new one."""
        offset = self._at - self._window_start
        if not 0 <= offset < len(self._window):
            stop = min(self._at + max(wanted, self._read_ahead), self.info.size)
            headers = {"Range": f"bytes={self._at}-{stop - 1}"}
            self._window = read_whole(self._session, f"/{self.info.id}", headers, self._session.deadline(None))
            self._window_start = self._at
            offset = 0
        return memoryview(self._window)[offset : offset + wanted]
