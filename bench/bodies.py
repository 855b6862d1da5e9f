"""The bytes that the benchmark stores: random, and the same in every process that knows size and number.

So the load generator can check what it reads, whoever put it, and the yardstick serves the same bytes from memory.
"""

import random
from functools import lru_cache
from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

_PIECE_BYTES: Final = 4 * MIB
"""Larger bodies repeat one random piece: no layer of the store looks for repetition, and 64 MiB are ready at once."""


def body(size: int, number: int) -> bytes:
    """Body `number` of `size` bytes. Incompressible; bodies of different numbers differ from the first byte on."""
    piece = random.Random(size * 1_000_003 + number).randbytes(min(size, _PIECE_BYTES))
    return (piece * -(-size // _PIECE_BYTES))[:size] if size > len(piece) else piece


@lru_cache(maxsize=64)
def distinct_bodies(size: int) -> int:
    """How many different bodies a job of this size uses: many small ones, few large ones (memory of the clients)."""
    return 512 if size <= 64 * KIB else 16 if size <= MIB else 2


def bare_path(size: int, number: int) -> str:
    """Path under which the yardstick has a body. As long as the path of a blob, so that requests are equally long."""
    return "/" + f"bare-{size}-{number}-".ljust(43, "x")


def size_name(size: int) -> str:
    """`4 KiB`, for tables."""
    return f"{size // MIB} MiB" if size >= MIB else f"{size // KIB} KiB" if size >= KIB else f"{size} B"
