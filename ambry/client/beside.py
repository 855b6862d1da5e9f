"""Names of what a transfer keeps beside a file: hidden, in the same folder, so that a rename is atomic.

And the name of the file itself, in errors of what is done by descriptors.
"""

import contextlib
from collections.abc import Iterator
from typing import Final

import xxhash

PART: Final = ".ambry-part"
"""Bytes that have come, until the file has its name."""

PARTS: Final = ".ambry-parts"
"""Which parts of them are there."""

UPLOAD: Final = ".ambry-upload"
"""An upload in parts that goes on."""

_NAME_BYTES_MAX: Final = 255
"""Of one name in the usual file systems."""


def beside(name: str, suffix: str) -> str:
    """`.NAME.suffix`; of a name that is too long for that, its beginning and its checksum."""
    whole = f".{name}{suffix}"
    encoded = name.encode("utf-8", "surrogateescape")
    if len(encoded) + 1 + len(suffix) <= _NAME_BYTES_MAX:
        return whole
    tail = f"~{xxhash.xxh3_64_hexdigest(encoded)}{suffix}"
    room = _NAME_BYTES_MAX - 1 - len(tail)
    return f".{encoded[:room].decode('utf-8', 'ignore')}{tail}"


def is_beside(name: str) -> bool:
    """Whether a file is one of these, and no content."""
    return name.startswith(".") and name.endswith((PART, PARTS, UPLOAD))


@contextlib.contextmanager
def named(path: object) -> Iterator[None]:
    """Let errors of the operating system tell the file of a caller where they tell none, or a descriptor."""
    try:
        yield
    except OSError as error:
        name_it(error, path)
        raise


def name_it(error: OSError, path: object) -> None:
    """Have the file of a caller in an error that tells none, or a descriptor."""
    if error.filename is None or isinstance(error.filename, int):
        error.filename = str(path)
