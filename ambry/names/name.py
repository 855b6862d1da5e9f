"""What a name is: 1 to 1024 bytes of UTF-8 without control characters; `/` is a letter like others.

Names are bytes from here on: they sort by their bytes in every database, and nothing folds or normalises them. A part
between slashes that is `.` or `..` is refused: browsers, proxies and clients resolve it on their way, so that such a
name could not be asked for, and a client that writes names as files would leave its folder. Percent-encoding is taken
away once; what is left of one that was put on twice is part of the name.
"""

import re
from typing import Final
from urllib.parse import quote, unquote_to_bytes

from ambry.errors import BadName
from ambry.limits import NAME_BYTES_MAX

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_DOTS: Final = re.compile(rb"(?:^|/)\.{1,2}(?:/|$)")
_BAD_PERCENT: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def check_name(name: bytes) -> bytes:
    """The name, if it is one. Raises BadName."""
    if not 1 <= len(name) <= NAME_BYTES_MAX:
        raise BadName(f"a name has from 1 to {NAME_BYTES_MAX} bytes of UTF-8, not {len(name)}", field="name")
    check_text(name)
    if _DOTS.search(name):
        raise BadName("no part of a name is . or ..", field="name")
    return name


def check_text(text: bytes) -> bytes:
    """A piece of a name, such as a prefix: well-formed UTF-8 without control characters, not too long."""
    if len(text) > NAME_BYTES_MAX:
        raise BadName(f"a name has {NAME_BYTES_MAX} bytes of UTF-8 at most, not {len(text)}", field="name")
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadName("a name is UTF-8", field="name") from error
    if _CONTROL.search(decoded):
        raise BadName("a name has no control characters", field="name")
    return text


def parse_path(text: str) -> bytes:
    """The name in the rest of a path, as it came in the request line. Raises BadName."""
    raw = text.encode("utf-8", "surrogateescape")
    if _BAD_PERCENT.search(raw):
        raise BadName("a % in a path is followed by two hexadecimal digits", field="name")
    return check_name(unquote_to_bytes(raw))


def format_path(name: bytes) -> str:
    """The name as it stands in a path: what `parse_path` reads."""
    return quote(name, safe="/")


def after_prefix(prefix: bytes) -> bytes | None:
    """The least bytes that sort behind everything that begins with `prefix`; None if there is no such end."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else None
