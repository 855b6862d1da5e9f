"""Which chunks nobody will ever read again: pure decisions over what witnesses say of an upload's manifest ids.

A chunk carries the ids that its upload reserved for the manifest, and the deadline after which none of them is put. A
chunk lives while its manifest lives. So a chunk is garbage when, a day after that deadline,

- every reserved id is provably absent, or a tombstone of a failed attempt (*orphan*: the upload never ended), or
- the manifest is there and does not list it (*stray*: an attempt that was made again elsewhere), or
- the manifest was deleted, or has expired, so long ago that nothing brings it back (*dead*).

The day covers the skew of all clocks together. Whatever is not known keeps its chunks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from ambry.limits import SWEEP_ALWAYS_MAX, SWEEP_MARGIN_MS


class Word(Enum):
    """What is known of one reserved id."""

    LIVES = auto()
    DEAD = auto()
    ABSENT = auto()
    UNKNOWN = auto()


@dataclass(frozen=True, slots=True)
class Heard:
    """What the witnesses of one reserved id say together. `since_ms` is when it died, for DEAD."""

    word: Word
    since_ms: int = 0


class Fate(Enum):
    """What becomes of the chunks of an upload."""

    KEEP = auto()
    KEEP_LISTED = auto()
    """Those that the manifest lists; the others are strays."""

    ORPHAN = auto()
    DEAD = auto()


def is_settled(deadline_ms: int, now_ms: int) -> bool:
    """Whether no frontend, however wrong its clock, may still put the manifest of an upload."""
    return now_ms >= deadline_ms + SWEEP_MARGIN_MS


def fate_of(heard: Sequence[Heard], *, deadline_ms: int, now_ms: int, retention_ms: int) -> Fate:
    """What becomes of the chunks of an upload whose reserved ids are as `heard`."""
    words = {one.word for one in heard}
    if not heard or not is_settled(deadline_ms, now_ms):
        return Fate.KEEP
    # One manifest at most was ever acknowledged. If one lives, it is that one, and the other ids are settled too.
    if Word.LIVES in words:
        return Fate.KEEP_LISTED
    if Word.UNKNOWN in words:
        return Fate.KEEP
    deaths = [one.since_ms for one in heard if one.word is Word.DEAD]
    if not deaths:
        return Fate.ORPHAN
    # A tombstone may be that of a failed attempt or that of a delete that can still be undone: the later one counts.
    return Fate.DEAD if now_ms >= max(deaths) + retention_ms + SWEEP_MARGIN_MS else Fate.KEEP


_PERCENT: Final = 100


def is_alarming(taken: int, chunks: int, percent_max: int) -> bool:
    """Whether a pass would take suspiciously many chunks on the strength of what is *not* there.

    Chunks of blobs that somebody deleted do not count: a tombstone is evidence, absence may be our own mistake.
    """
    return taken > max(chunks * percent_max // _PERCENT, SWEEP_ALWAYS_MAX)
