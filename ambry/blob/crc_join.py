"""CRC-32 of bytes that were summed in parts: from the CRCs of two pieces and the size of the second, that of both.

A CRC is a remainder of polynomials over GF(2). Appending n bytes multiplies what was there by x^(8n), so the sum of a
whole is that product, plus the sum of what was appended. Source: zlib's `crc32_combine`.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Final

_POLYNOMIAL: Final = 0xEDB88320
"""Of CRC-32 as in zlib, bits reflected: the highest is the constant term."""

_ONE: Final = 1 << 31


def join_crc32(first: int, second: int, second_size: int) -> int:
    """CRC-32 of two pieces one behind the other, the second of `second_size` bytes."""
    return _product(_power_of_bytes(second_size), first) ^ second


def join_all(pieces: Iterable[tuple[int, int]]) -> int:
    """CRC-32 of pieces in their order, each with its CRC-32 and its size in bytes; 0 for none."""
    joined = 0
    for crc, size in pieces:
        joined = join_crc32(joined, crc, size)
    return joined


@lru_cache(maxsize=64)
def _power_of_bytes(count: int) -> int:
    """x^(8 * count) modulo the polynomial."""
    power, square = _ONE, _ONE >> 8
    while count:
        if count & 1:
            power = _product(square, power)
        square = _product(square, square)
        count >>= 1
    return power


def _product(a: int, b: int) -> int:
    """The product of two polynomials modulo ours."""
    product = 0
    bit = _ONE
    while a:
        if a & bit:
            product ^= b
            a ^= bit
        bit >>= 1
        b = (b >> 1) ^ _POLYNOMIAL if b & 1 else b >> 1
    return product
