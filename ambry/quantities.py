"""Sizes and durations as people write them: "256 MiB", "1.5 h". Pure, and light enough for the client library."""

import re
from collections.abc import Mapping
from typing import Final

from ambry.limits import GIB, KIB, MIB

_SIZE_UNITS: Final = {"B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": 1024 * GIB}
_DURATION_UNITS: Final = {"ms": 1, "s": 1000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}


def parse_size(text: str) -> int | None:
    """Bytes of "256 MiB", "1.5 GiB" or "4096"; None for anything else. Only binary units: MB is ambiguous."""
    return _parse_quantity(text, _SIZE_UNITS)


def parse_duration_ms(text: str) -> int | None:
    """Milliseconds of "5 s", "250 ms", "1.5 h" or "5000"; None for anything else."""
    return _parse_quantity(text, _DURATION_UNITS)


def _parse_quantity(text: str, units: Mapping[str, int]) -> int | None:
    match = re.fullmatch(r"\s*(\d{1,18})(?:\.(\d{1,6}))?\s*([A-Za-z]*)\s*", text, re.ASCII)
    if match is None:
        return None
    whole, fraction, unit = match.groups()
    factor = units.get(unit) if unit else 1
    if factor is None or (fraction and not unit):
        return None
    # Integers all the way: a size that a float rounds is another size.
    return int(whole) * factor + (int(fraction) * factor // 10 ** len(fraction) if fraction else 0)
