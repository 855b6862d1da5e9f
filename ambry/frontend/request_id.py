"""Request ids: on every answer and every log line of a request, so that one can be found by the other.

A random prefix for the process and a counter: unique across processes and restarts, and a few hundred nanoseconds.
"""

from itertools import count

from ambry.frontend.chance import Chance


class RequestIds:
    """The request ids of one process. An id has 24 characters: 16 of the process, 8 or more of the counter."""

    __slots__ = ("_counter", "_prefix")

    def __init__(self, chance: Chance) -> None:
        self._prefix = chance.token(8).hex()
        self._counter = count(1)

    def new(self) -> str:
        """The next id."""
        return f"{self._prefix}{next(self._counter):08x}"
