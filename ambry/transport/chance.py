"""The transport's one door to chance: nonces, and the jitter of pauses. Cores get both as arguments."""

import os
import random


def nonce(size: int) -> bytes:
    """`size` unpredictable bytes."""
    return os.urandom(size)


def jittered(pause_ms: float) -> float:
    """Half to one and a half of a pause, so that peers of a node that returns do not all come at once."""
    return pause_ms * (0.5 + random.random())  # noqa: S311 -- it decides nothing but when


def generator() -> random.Random:
    """For what needs many numbers that nobody has to be unable to guess."""
    return random.Random(nonce(16))  # noqa: S311 -- numbers of subscriptions, order of background work
