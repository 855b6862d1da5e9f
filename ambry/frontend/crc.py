"""CRC-32, CRC-32C and CRC-64/NVME with the interface of hashlib: the one door to awscrt.

CRC-32 is that of blob/crc32.py. The other two come from awscrt, which uses the processor's instructions (11 to 18 GB/s
measured, where a table would do 1); it is imported when the first of them is asked for, since it is large and most
uploads want none.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar

from ambry.blob.crc32 import crc32
from ambry.blob.requests import Buffer


@cache
def _awscrt() -> Any:  # noqa: ANN401 -- a module without types
    from awscrt import checksums  # noqa: PLC0415 -- 12 MB and 50 ms that few processes need

    return checksums


class _Crc:
    """A running CRC; `digest` is big-endian, as S3's checksum headers have it."""

    __slots__ = ("_value",)

    size: ClassVar[int] = 4

    def __init__(self) -> None:
        self._value = 0

    def digest(self) -> bytes:
        """The CRC of all bytes taken."""
        return self._value.to_bytes(self.size, "big")


class Crc32(_Crc):
    """CRC-32, of ISO-HDLC, zlib and gzip."""

    __slots__ = ()

    def update(self, data: Buffer, /) -> None:
        """Take the next bytes."""
        self._value = crc32(data, self._value)


class Crc32c(_Crc):
    """CRC-32C, of Castagnoli, iSCSI and S3."""

    __slots__ = ("_crc",)

    def __init__(self) -> None:
        super().__init__()
        self._crc: Callable[[Buffer, int], int] = _awscrt().crc32c

    def update(self, data: Buffer, /) -> None:
        """Take the next bytes."""
        self._value = self._crc(data, self._value)


class Crc64Nvme(_Crc):
    """CRC-64/NVME, S3's default."""

    __slots__ = ("_crc",)

    size: ClassVar[int] = 8

    def __init__(self) -> None:
        super().__init__()
        self._crc: Callable[[Buffer, int], int] = _awscrt().crc64nvme

    def update(self, data: Buffer, /) -> None:
        """Take the next bytes."""
        self._value = self._crc(data, self._value)
