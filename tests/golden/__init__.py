"""Golden files: bytes that released code wrote, and what they mean. Today's decoders read all of them, for ever.

`NAME.vN.bin` holds the bytes, `NAME.vN.json` what a decoder makes of them. Files are added, never changed:

    python -m tests.golden        writes the files of cases that have none yet

When a format gets a new version, its case below gets the new number and writes new files; the old ones stay, and the
reader of the case reads both.
"""

import dataclasses
import enum
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ambry.errors import AmbryError

FOLDER: Final = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Case:
    """One format: its present version, how to write an example of it, and how to read one of any version."""

    name: str
    version: int
    write: Callable[[], bytes]
    read: Callable[[bytes], object]
    is_always_written_alike: bool = True

    @property
    def stem(self) -> str:
        """Name of both files without what tells them apart."""
        return f"{self.name}.v{self.version}"


def plain(value: Any) -> Any:
    """A value as JSON can say it: bytes in hexadecimal, classes by name, enumerations by member."""
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, bytes | bytearray | memoryview):
        return f"hex:{bytes(value).hex()}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"": type(value).__name__, **fields}
    if isinstance(value, AmbryError):
        return {"": type(value).__name__, "message": value.message, "facts": plain(value.facts)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {"": type(value).__name__, **plain(value._asdict())}
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [plain(one) for one in value]
    assert value is None or isinstance(value, bool | int | str | float), f"no JSON for {value!r}"
    return value


def described(value: object) -> str:
    """The text of the JSON file."""
    return json.dumps(plain(value), indent=1, ensure_ascii=True) + "\n"
