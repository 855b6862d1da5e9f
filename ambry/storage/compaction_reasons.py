"""Why compaction takes a segment now, or leaves it: in words, for people. Pure.

What it takes is the choice of compaction_plan.py; this only says why.
"""

from collections.abc import Collection, Sequence
from typing import Final

from ambry.limits import MIB
from ambry.storage.compaction_plan import SegmentFacts

APPENDED: Final = "it is still appended to"
UNFINISHED: Final = "the next checkpoint has to write down where it ends"
TURNED_OFF: Final = "compaction is turned off"


def reasons_of(
    facts: Sequence[SegmentFacts], chosen: Collection[int], *, garbage_ratio_min: float, ends: bool
) -> dict[int, str]:
    """Of each segment of a replica that compaction may choose from, by number: why it is among the chosen, or not.

    `ends`: nothing comes to the partition any more, and nothing in it lives.
    """
    worthy = {one.number for one in facts if one.is_worthy(garbage_ratio_min)}
    classes = {one.expiry_class for one in facts if one.number in chosen}
    reasons: dict[int, str] = {}
    for one in facts:
        share = one.garbage_bytes / one.size if one.size else 0.0
        if one.number in chosen and one.number not in worthy:
            reason = "it is small and goes along" if worthy else "it is one of many small ones"
        elif one.number in chosen and one.is_due:
            reason = "nothing in its partition lives" if ends else "something in it has to be erased by now"
        elif one.number in chosen:
            reason = f"{share:.1%} of it is garbage, {garbage_ratio_min:.0%} are enough"
        elif one.garbage_bytes <= 0:
            reason = "nothing in it is garbage"
        elif one.number not in worthy:
            reason = f"{share:.1%} of it is garbage, of {garbage_ratio_min:.0%} that are needed"
        elif one.expiry_class not in classes:
            reason = "another expiry class comes first"
        else:
            reason = f"the {one.kept / MIB:.1f} MiB that it keeps do not fit beside what comes first"
        reasons[one.number] = reason
    return reasons
