"""The client's door to randomness: jitter of waits, and where a client begins among its frontends."""


def fraction() -> float:
    """A number in 0..1; predictable for whoever wants to predict waits."""
    import random  # noqa: PLC0415 -- it brings hashlib and OpenSSL, a tenth of the library's import

    return random.random()  # noqa: S311 -- it spreads waits, it guards nothing


def below(limit: int) -> int:
    """A number from 0 to `limit` - 1."""
    return int(fraction() * limit)
