"""R12: compaction beside everything else, in every order of turns of a small model, and in orders of chance of more.

The model (`prove_model`) is exhaustive: one act, each two changes of one blob, and a read in three parts, at every
place where a compaction gives way; the power cut in every step of the disk from then on, and every call of the
compaction failing. The schedules (`prove_compaction`) have several actors with programs of chance, orders of turns
of chance, trouble and ends of chance; each is one seed.
"""

import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from ambry.errors import DiskFull, DiskUnavailable
from tests.prove.schedules import (
    ACTS,
    BLOBS,
    BRIEF_CRUMBS,
    CHANGES_OF_A_BLOB,
    CHOSEN,
    CRUMBS,
    DELETED,
    EXPIRED,
    EXTENDED,
    FILLERS,
    HOLE,
    LIVE,
    LONG_DELETED,
    MANY,
    NEW,
    UNDELETED,
    Ending,
    Program,
    Schedule,
    Trouble,
)
from tests.prove.turns import Choose, Turns

WANTED: Final = frozenset(ACTS) | {
    "compacted",
    "kept back",
    "compaction failed",
    "call failed",
    "cut in a recovery",
    "read beside compaction",
    "cut group there",
    "cut group lost",
    "buried",
    "forgotten",
    "index rebuilt",
    "small ones along",
    "small ones merged",
}
"""What a run of more than a few thousand schedules must have met."""

_SMALL: Final = ("checkpoint", "seal", "feed", "survey")
_FALLIBLE: Final = frozenset(
    {"pread", "pwrite", "sync", "create", "replace", "sync_folder", "remove", "get_many", "write", "flush"}
)

Places: TypeAlias = tuple[tuple[int, ...], ...]


class ScheduleFailed(AssertionError):
    """A schedule found something; the message says how to repeat it."""


def alone(_: Turns) -> Choose:
    """The compaction first, and the others when it has ended."""
    return min


@dataclass(frozen=True, slots=True)
class Placed:
    """Actor n + 1 takes its turn number t when the compaction has given way more than `places[n][t]` times.

    Turns behind the last place follow at once.
    """

    places: Places

    def __call__(self, turns: Turns) -> Choose:
        def choose(ready: Sequence[int]) -> int:
            for actor in ready:
                if actor:
                    places = self.places[actor - 1]
                    turn = min(turns.ways[actor], len(places) - 1)
                    if 0 not in ready or turns.ways[0] > places[turn]:
                        return actor
            return 0

        return choose


# --- the model -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Case:
    """Programs at places of the compaction, and which troubles go with it: all calls, all steps, or none."""

    programs: tuple[Program, ...]
    places: Places
    trouble: str = ""

    def runs(self, seed: int) -> Iterator[Schedule]:
        """Every schedule of this case. Some are known only when the first was played."""
        placed = Placed(self.places)
        first = Schedule(self.programs, placed, ending=None if self.trouble else Ending(), seed=seed)
        yield first
        if self.trouble == "calls":
            for call in range(1, len(first.trail) + 1):
                operation = first.trail[call - 1][0]
                if operation not in _FALLIBLE:
                    continue
                for error, done in ((DiskFull, 0), (DiskUnavailable, 1)):
                    number = sum(one[0] != "lock" for one in first.trail[:call])
                    trouble = Trouble(0, number, error, done)
                    yield Schedule(self.programs, placed, trouble, None, seed)
        if self.trouble == "steps":
            # In the steps before its program began, a case is like one that begins later.
            for step in range(first.quiet_steps + 1, first.steps + 1):
                for how in ("crash", "kill"):
                    ending = Ending(how, loses_index=step % 3 == 0)
                    yield Schedule(self.programs, placed, Trouble(stop_after=step), ending, seed)


def model_cases() -> list[Case]:
    """All of the model, in an order."""
    dry = Schedule((), alone, ending=None)
    dry.play()
    # A read of a sealed segment commutes with everything: nobody writes there. Where it has the lock, nobody changes.
    open_places = [
        at for at, (operation, _, is_locked) in enumerate(dry.trail) if operation != "pread" and not is_locked
    ]
    # Without trouble, what the compaction does to files that nobody lists yet commutes as well.
    shared_places = [at for at in open_places if dry.trail[at][0] in {"lock", "get_many", "flush", "remove"}]
    adopted = next(at for at, one in enumerate(dry.trail) if one[0] == "replace")
    read_places = [0, *(at for at, one in enumerate(dry.trail) if at >= adopted and one[0] != "pread")]
    singles: list[tuple[str, int]] = [(name, number) for name in CHANGES_OF_A_BLOB for number in BLOBS]
    singles += [("suspect", LIVE), ("suspect", LONG_DELETED), ("put", NEW)]
    singles += [(name, number) for name in _SMALL for number in range(1, 3 if name == "survey" else 2)]
    cases = [Case((), (), "steps"), Case((), (), "calls")]
    cases += [
        Case(((one,),), ((at,),), trouble)
        for one in singles
        for trouble, places in (("steps", open_places), ("calls", shared_places))
        for at in places
    ]
    pairs = [
        ((first, number), (second, number))
        for number in (LIVE, DELETED, LONG_DELETED, EXPIRED, EXTENDED, UNDELETED, HOLE)
        for first in CHANGES_OF_A_BLOB
        for second in CHANGES_OF_A_BLOB
    ]
    cases += [
        Case(((first,), (second,)), ((one,), (two,)))
        for first, second in pairs
        for index, one in enumerate(shared_places)
        for two in shared_places[index:]
    ]
    cases += [
        Case(((("get", number),),), ((0, first, second, third),))
        for number in (LIVE, DELETED, LONG_DELETED, EXPIRED, EXTENDED)
        for index, first in enumerate(read_places)
        for middle, second in enumerate(read_places[index:], index)
        for third in read_places[middle:]
    ]
    return cases


def prove_model(chosen: int, seconds: float, count: int = 0) -> dict[str, object]:
    """Every case of the model, in an order of chance; fewer, and not exhaustive, when the time does not suffice, or
    when `count` of them are enough.
    """
    end_s = time.monotonic() + seconds
    cases = model_cases()
    order = list(range(len(cases)))
    random.Random(chosen).shuffle(order)
    runs: Counter[str] = Counter()
    hits: Counter[str] = Counter()
    done = 0
    reclaimed = 1.0
    for number in order:
        if done >= count if count else done and time.monotonic() >= end_s:
            break
        for schedule in cases[number].runs(chosen + number):
            try:
                hits.update(schedule.play().hits)
            except Exception as error:
                raise ScheduleFailed(f"case {number}: {schedule}") from error
            reclaimed = min(reclaimed, schedule.reclaimed)
            runs[cases[number].trouble or ("a read" if len(cases[number].programs) == 1 else "two changes")] += 1
        done += 1
    return {
        "is_exhaustive": done == len(cases),
        "cases": done,
        "of": len(cases),
        "schedules": runs.total(),
        "by_kind": dict(runs),
        "reclaimed_percent_min": round(100 * reclaimed, 1),
        "hits": dict(sorted(hits.items())),
    }


# --- schedules of chance -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AtRandom:
    """Whose turn it is by chance: an actor goes on for a while, or each turn is drawn."""

    seed: int
    keeps_on: float

    def __call__(self, _: Turns) -> Choose:
        chance = random.Random(self.seed)
        last = 0

        def choose(ready: Sequence[int]) -> int:
            nonlocal last
            if last not in ready or chance.random() >= self.keeps_on:
                last = chance.choice(ready)
            return last

        return choose


def schedule_of(seed: int) -> Schedule:
    """What this seed says."""
    chance = random.Random(seed)
    is_large = chance.random() < 0.02
    numbers = [*BLOBS, *BLOBS, *FILLERS, NEW, *(chance.sample(MANY, 8) if is_large else ())]
    names = [*ACTS, *CHANGES_OF_A_BLOB, "get", "get"]
    # One writer commits; readers and upkeep are others.
    favourite = chance.choice(numbers)
    programs = tuple(
        tuple(
            (chance.choice(names), favourite if chance.random() < 0.5 else chance.choice(numbers))
            for _ in range(chance.randint(1, 3))
        )
        for _ in range(chance.randint(1, 4))
    )
    trouble = Trouble()
    match chance.randrange(8):
        case 0 | 1:
            trouble = Trouble(stop_after=chance.randint(1, 45))
        case 2:
            trouble = Trouble(
                chance.choice((0, 0, chance.randint(0, len(programs)))),
                chance.randint(1, 45),
                chance.choice((DiskFull, DiskUnavailable)),
                chance.choice((0, 1, 100)),
            )
        case 3:
            trouble = Trouble(room_bytes=chance.choice((0, 500, 1500, 3000, 6000, 9000)))
        case _:
            pass
    ending = None
    if chance.random() < 0.7:
        cuts = tuple(chance.randint(1, 14) for _ in range(chance.choice((0, 0, 1, 2))))
        ending = Ending(chance.choice(("crash", "kill")), loses_index=chance.random() < 0.2, cuts=cuts)
    rounds: tuple[int, ...] = chance.choice(((0,), (0,), (0,), (1,), (2,), (1, 0), (0, 0), (2, 3)))
    keeps_on = chance.choice((0.0, 0.5, 0.8, 0.95))
    has_crumbs = chance.random() < 0.15
    if has_crumbs:
        is_large = False
        crumbs = (*CRUMBS, *BRIEF_CRUMBS)
        programs = tuple(
            tuple((name, chance.choice(crumbs) if chance.random() < 0.5 else number) for name, number in program)
            for program in programs
        )
    if has_crumbs or chance.random() < 0.2:
        rounds = (CHOSEN,) * chance.randint(1, 4)
    return Schedule(programs, AtRandom(seed, keeps_on), trouble, ending, seed, is_large, rounds, has_crumbs)


def prove_compaction(chosen: int, seconds: float, count: int = 0) -> dict[str, object]:
    """Schedules of seeds `chosen`, `chosen` + 1 and so on until the time is over, or `count` of them.

    Raises ScheduleFailed.
    """
    end_s = time.monotonic() + seconds
    done = 0
    reclaimed = 1.0
    hits: Counter[str] = Counter()
    while done < count if count else not done or time.monotonic() < end_s:
        schedule = schedule_of(chosen + done)
        try:
            hits.update(schedule.play().hits)
        except Exception as error:
            repeat = f"python -m tests.prove compaction --seconds 0 --seed {chosen + done}"
            raise ScheduleFailed(f"repeat with: {repeat}\n{schedule}") from error
        reclaimed = min(reclaimed, schedule.reclaimed)
        done += 1
    missed = sorted(WANTED - {hit for hit in hits if hits[hit]})
    assert done < 5000 or not missed, f"never met: {missed}"
    return {
        "schedules": done,
        "reclaimed_percent_min": round(100 * reclaimed, 1),
        "hits": dict(sorted(hits.items())),
    }
