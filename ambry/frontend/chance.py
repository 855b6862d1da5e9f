"""Chance as an argument: the random part of ids and the choice among partitions. The frontend's one door to it.

Everything else gets a Chance; tests pass one with a fixed sequence.
"""

import os
import random
from typing import Final

_POOL_BYTES: Final = 10 * 256
"""One system call for 256 ids: a call costs about as much as the rest of an id."""


class Chance:
    """Unpredictable bytes from the operating system, and cheap choices that need not be unpredictable."""

    __slots__ = ("_at", "_pool", "_random")

    def __init__(self) -> None:
        self._pool = b""
        self._at = 0
        # Choices spread load; ids are what must not be guessed.
        self._random = random.Random()  # noqa: S311 -- not for secrets

    def unique_10(self) -> bytes:
        """Ten unpredictable bytes, the random part of a blob id."""
        at = self._at
        if at >= len(self._pool):
            self._pool = os.urandom(_POOL_BYTES)
            at = 0
        self._at = at + 10
        return self._pool[at : at + 10]

    def token(self, size: int) -> bytes:
        """`size` unpredictable bytes."""
        return os.urandom(size)

    def below(self, limit: int) -> int:
        """A number from 0 up to, not including, `limit`."""
        assert limit > 0
        return int(self._random.random() * limit)
