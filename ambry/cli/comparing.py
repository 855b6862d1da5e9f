"""Two sorted listings side by side, and what differs between them. Pure: entries in, entries out, one at a time."""

import re
from collections.abc import Iterable, Iterator
from enum import Enum

from ambry.cli.places import Entry, path_regex
from ambry.errors import ProtocolError


class Rule(Enum):
    """By what two files of the same key and size are compared."""

    TIME = "time"
    """By their times; where these differ, by their checksums."""
    CHECKSUM = "checksum"
    SIZE = "size"
    """Not at all."""


class Verdict(Enum):
    """What a look at two entries says."""

    SAME = "same"
    DIFFERENT = "different"
    IN_DOUBT = "in doubt"
    """Their checksums will tell."""


def merged(source: Iterable[Entry], target: Iterable[Entry]) -> Iterator[tuple[Entry | None, Entry | None]]:
    """Entries of both with the same key beside each other, in order; None where one of them has none.

    Raises ProtocolError for a listing that is not in order: what it has would look as if it had not.
    """
    left, right = _in_order(source), _in_order(target)
    one, other = next(left, None), next(right, None)
    while one is not None or other is not None:
        if other is None or (one is not None and one.key < other.key):
            yield one, None
            one = next(left, None)
        elif one is None or other.key < one.key:
            yield None, other
            other = next(right, None)
        else:
            yield one, other
            one, other = next(left, None), next(right, None)


def _in_order(listing: Iterable[Entry]) -> Iterator[Entry]:
    before = None
    for entry in listing:
        if before is not None and entry.key <= before:
            raise ProtocolError(f"a listing is not in order: {entry.key[:64]!r} came after {before[:64]!r}")
        before = entry.key
        yield entry


def verdict(source: Entry, target: Entry, rule: Rule, *, is_into_store: bool) -> Verdict:
    """Whether the target has what the source has, as far as entries say.

    A name in a store has the time of its put, which is later than that of the file that was put. A file that came from
    a store has the time of its name.
    """
    if source.size != target.size:
        return Verdict.DIFFERENT
    if rule is Rule.SIZE:
        return Verdict.SAME
    if rule is Rule.CHECKSUM:
        return Verdict.IN_DOUBT
    is_older = source.modified_ms <= target.modified_ms if is_into_store else source.modified_ms == target.modified_ms
    return Verdict.SAME if is_older else Verdict.IN_DOUBT


def without(listing: Iterable[Entry], patterns: Iterable[str]) -> Iterator[Entry]:
    """Entries whose keys match none of the patterns.

    One without a slash is for each part of a key, one with slashes for the whole; what is below a match matches too.
    """
    regexes = [path_regex(pattern if "/" in pattern else f"**/{pattern}") for pattern in patterns]
    if not regexes:
        yield from listing
        return
    excluded = re.compile("|".join(f"(?:{regex}(?:/.*)?)" for regex in regexes), re.DOTALL)
    for entry in listing:
        if not excluded.fullmatch(entry.key):
            yield entry
