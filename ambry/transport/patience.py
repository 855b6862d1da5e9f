"""How long the ends of a connection wait for each other. The defaults are limits; tests shorten them."""

from dataclasses import dataclass
from typing import Final

from ambry import limits


@dataclass(frozen=True, slots=True)
class Patience:
    """Times in ms. See limits.py for what each one is for."""

    handshake_ms: int = limits.HANDSHAKE_MS
    ping_after_ms: int = limits.PING_AFTER_MS
    ping_answer_ms: int = limits.PING_ANSWER_MS
    peer_silent_ms: int = limits.PEER_SILENT_MS
    reconnect_ms_min: int = limits.RECONNECT_MS_MIN
    reconnect_ms_max: int = limits.RECONNECT_MS_MAX


PATIENCE: Final = Patience()
"""The one that is used unless a test says otherwise."""
