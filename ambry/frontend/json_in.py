"""JSON that clients send. Knows no documents; what is in them is their readers' business."""

import json
from typing import Any, Final


def parse_json(data: bytes | str) -> Any:  # noqa: ANN401 -- whatever JSON says
    """What a text of JSON says. Raises ValueError, also for an object in which a key is there twice.

    Of two values a proxy or a log may have believed the other one, as with headers.
    """
    try:
        text = data if isinstance(data, str) else data.decode(json.detect_encoding(data), "surrogatepass")
        return _DECODER.decode(text)
    except RecursionError as error:
        raise ValueError("too deep") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_object)
"""Made once: `json.loads` makes one for each text, as soon as there is a hook."""
