"""CRC-32 as zlib, gzip and ISO-HDLC have it: the one door to isal.

isal uses the processor's instructions for it, 10 to 50 GiB/s measured, where zlib does 3 to 4; it is a part of
`ambry[client]`, and where it is not installed zlib does the same. awscrt, which the server has for other CRCs, takes
longer for this one than zlib.
"""

try:
    from isal.isal_zlib import crc32
except ImportError:
    from zlib import crc32

__all__ = ["crc32"]
