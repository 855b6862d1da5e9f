"""What every message header is made of: a msgpack array whose fields have names and types. See docs/formats/wire.md.

This module knows arrays of fields; what messages there are and what they mean stands in `messages.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

import msgpack

from ambry import limits
from ambry.errors import ProtocolError
from ambry.protocol.datanode import Buffer


class Layout:
    """Names and msgpack types of a message's fields, in order. Integers are not negative and below 2^64."""

    __slots__ = ("_is_sound", "fields", "name", "size")

    def __init__(self, name: str, **fields: type[object]) -> None:
        self.name = name
        self.fields = fields
        self.size = len(fields)
        self._is_sound = _compiled(list(fields.values()))

    def read(self, values: list[Any], at: int = 0) -> list[Any]:
        """The fields of the message, from `values[at]` on. Raises ProtocolError naming the field."""
        fields = values[at : at + self.size]
        if self._is_sound(fields):
            return fields
        raise self._refusal(fields)

    def _refusal(self, fields: list[Any]) -> ProtocolError:
        for (field, type_), value in zip(self.fields.items(), fields, strict=False):
            if type(value) is not type_:
                return wrong(self.name, field, f"is {type(value).__name__}, not {type_.__name__}")
            if isinstance(value, int) and value < 0:
                return wrong(self.name, field, "is negative")
        return wrong(self.name, list(self.fields)[len(fields)], "is missing")


def _compiled(types: list[type[object]]) -> Callable[[list[Any]], bool]:
    """Whether a list has these types, as one expression: half the time of a loop, and done for every message."""
    tests = [f"len(f) == {len(types)}"]
    for index, type_ in enumerate(types):
        tests.append(f"type(f[{index}]) is {type_.__name__}")
        if type_ is int:
            tests.append(f"f[{index}] >= 0")
    checker: Callable[[list[Any]], bool] = eval(f"lambda f: {' and '.join(tests)}")  # noqa: S307 -- types of ours only
    return checker


def wrong(message: str, field: str, why: str) -> ProtocolError:
    """The error for a field of a message."""
    return ProtocolError(f"{message}: {field} {why}", message_type=message, field=field)


@dataclass(slots=True)
class Encoded:
    """A message ready for a frame: its type, its header, and the pieces of its body."""

    type: int
    header: bytes
    pieces: tuple[Buffer, ...]
    body_size: int


_ARRAY_MAX: Final = 1024
assert limits.BATCH_ENTRIES_MAX <= _ARRAY_MAX
assert limits.CHANGES_PER_PAGE_MAX <= _ARRAY_MAX
assert limits.USAGE_PER_PAGE_MAX <= _ARRAY_MAX

pack: Final = cast("Callable[[object], bytes]", msgpack.Packer(autoreset=True, buf_size=4096).pack)
"""msgpack of one value. One packer for all: it resets itself, and nobody packs on another thread."""


def unpack(message: str, header: bytes, array_max: int = _ARRAY_MAX) -> list[Any]:
    """The array that a header holds. Raises ProtocolError. Never allocates more than the header's own scale:
    without `array_max` a few bytes could claim an array of the header's size on each of a thousand levels.
    """
    try:
        values = msgpack.unpackb(header, max_array_len=array_max, max_map_len=64, max_ext_len=0)
    except (ValueError, msgpack.UnpackException) as error:
        raise ProtocolError(f"{message}: the header is not msgpack", message_type=message) from error
    if type(values) is not list:
        raise ProtocolError(f"{message}: the header is not an array", message_type=message)
    return values


def rows_of(message: str, field: str, rows: list[Any]) -> list[list[Any]]:
    """The elements of a list of arrays. Raises ProtocolError."""
    if any(type(row) is not list for row in rows):
        raise wrong(message, field, "has an entry that is not an array")
    return cast("list[list[Any]]", rows)
