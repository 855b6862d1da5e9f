"""R1: the state machine of the store against its model, driven by nothing but a seed.

Hypothesis runs the same machine in `make test` and shrinks what it finds; for millions of steps its bookkeeping costs
more than the store (45 seconds gave no result and took 866 MB). Here an episode is one seed: a new world, some hundred
steps, an end. A failure names its seed, which repeats it alone, and the steps that led to it.
"""

import random
import resource
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from ambry.blob.requests import Change, GetRequest, PutRequest
from ambry.blob.state import NEVER, BlobState
from ambry.errors import CorruptRecord, DiskFull, DiskUnavailable, NotHere
from ambry.limits import JOURNAL_BODY_BYTES_MAX, KIB
from ambry.storage.commit import Mutation
from ambry.storage.exchange import holes
from ambry.storage.segment import Damage, segment_path
from tests.storage import test_store_machine
from tests.storage.engine import WHOLE, answer_of, blob_id, body_of, put, update
from tests.storage.test_store_machine import BRANCHES, StoreMachine, _fitting

EPISODE_STEPS: Final = 200
STEPS_SHOWN: Final = 12
FOR_EVER_MS: Final = 10**15

WANTED: Final = BRANCHES | {"closed", "damage repaired", "verified by scrub"}
"""What a run of more than a few episodes must have met, with the rules that this machine has beside the other's."""

Arguments = dict[str, object]


class LongMachine(StoreMachine):
    """The machine without Hypothesis: its rules are called as methods. Some rules more, which need no shrinking."""

    planted: list[tuple[tuple[int, int], int]]
    """Partition and segment, and offset, of bits that were turned. The damaged record stays until compaction."""

    def scrub(self) -> None:
        """Every segment is verified; there is no damage that nobody planted."""
        self.world.store.checkpoint()
        damages: list[tuple[int, int, Damage]] = []
        for replica in self.world.store.replicas:
            for number in sorted(replica.segments):
                self.world.store.survey(
                    replica.partition,
                    number,
                    pace=lambda _: None,
                    on_damage=lambda *damage: damages.append(damage),
                )
        for partition, number, damage in damages:
            planted = [at for where, at in self.planted if where == (partition, number)]
            assert any(damage.offset <= at < damage.offset + damage.size for at in planted), damage
        self.world.hits["verified by scrub"] += 1

    def damage_and_repair(self, chance: random.Random) -> None:
        """A bit turns in a record: it is never served, a look at the blob makes a hole, and a peer's put fills it."""
        world = self.world
        world.store.checkpoint()
        model = world.settle()
        living = [
            (key, blob) for key, blob in model.blobs.items() if blob.put is not None and not blob.state.is_deleted
        ]
        if not living or world.reclaimed:
            return
        key, blob = chance.choice(living)
        entry = world._entry(key)
        assert entry is not None
        replica = next(one for one in world.store.replicas if one.partition == int.from_bytes(key[:4], "big"))
        segment = replica.segments[entry.segment]
        at = entry.offset + chance.randrange(entry.body_offset + entry.body_size)
        # By another way into the file: the store's own may have failed a sync, and be done with.
        file = world.disk.open(segment_path(replica.partition, segment.number))
        (before,) = file.pread(1, at)
        file.pwrite([bytes([before ^ 1 << chance.randrange(8)])], at)
        file.sync()
        self.planted.append(((replica.partition, segment.number), at))
        world.damaged.add(key)
        request = GetRequest(blob.identity, 0, WHOLE)
        assert answer_of(lambda: world.store.get(request)) is CorruptRecord
        assert world.store.quarantine_blob(blob.identity)
        assert answer_of(lambda: world.store.get(request)) is NotHere
        assert blob.identity in holes(world.store, b"", 99)
        assert blob.put is not None
        (answer,) = world.store.commit([blob.put])
        assert getattr(answer, "has_body", False)
        assert blob.identity not in holes(world.store, b"", 99)
        # Its newest change is the repair.
        model.order += 1
        model.blobs[key] = replace(blob, order=model.order, time_ms=blob.put.created_ms)
        world.hits["damage repaired"] += 1

    def finish(self) -> None:
        """The end of every episode: an orderly one, and everything is looked at once more."""
        self.world.kill()
        self.world.open()
        self.world.close()
        self.world.open()
        self.world.check()
        test_store_machine.HITS.update(self.world.hits)


def _identity(chance: random.Random) -> bytes:
    return blob_id(
        chance.randrange(41), partition=chance.choice((1, 1, 1, 2)), container=chance.choice((1, 1, 1, 1, 1, 2))
    )


_SIZES: Final = (0, 1, 500, 500, 3000, 3001, 5000, 9000)
_LARGE: Final = (64 * KIB, JOURNAL_BODY_BYTES_MAX + 1, JOURNAL_BODY_BYTES_MAX + 70_000)


def _put(chance: random.Random) -> PutRequest:
    size = chance.choice(_LARGE) if chance.random() < 0.02 else chance.choice(_SIZES)
    expires_at_ms = chance.choice((0, 1000, 2000, NEVER))
    properties = chance.choice((b"", b"p", b"q" * 300))
    body = body_of(chance.randrange(4), size)
    return put(_identity(chance), body, expires_at_ms=expires_at_ms, properties=properties)


def _mutation(chance: random.Random) -> Mutation:
    if chance.random() < 0.5:
        return _put(chance)
    change = chance.choice((Change.DELETE, Change.DELETE, Change.UNDELETE, Change.EXTEND, Change.JOIN))
    state = BlobState(chance.randrange(4), chance.choice((0, 1000, 2000, NEVER)))
    return update(_identity(chance), change, state, time_ms=chance.randint(1, 9))


def _group(chance: random.Random) -> list[Mutation]:
    return _fitting([_mutation(chance) for _ in range(chance.randint(1, 8))])


def _ending(chance: random.Random) -> str:
    return chance.choice(("crash", "crash", "kill"))


def _after(chance: random.Random) -> Arguments:
    """How the store ends, and which attempts to open it are cut off."""
    cuts = [(chance.randint(1, 25), _ending(chance)) for _ in range(chance.choice((0, 0, 1, 2)))]
    return {"ending": _ending(chance), "cuts": cuts}


_COMMIT_FAULTS: Final = (
    ("sync", "journal"),
    ("pwrite", "journal"),
    ("write", ""),
    ("sync", "partitions"),
    ("create", "partitions"),
    ("replace", "partitions"),
)
_CHECKPOINT_FAULTS: Final = (("sync", "journal"), ("sync", "partitions"), ("replace", ""), ("flush", ""))
_COMPACTION_FAULTS: Final = ("pread", "pwrite", "sync", "replace", "flush", "write")

RULES: Final[dict[str, tuple[int, Callable[[random.Random], Arguments]]]] = {
    "commit": (30, lambda chance: {"group": _group(chance)}),
    "checkpoint": (4, lambda chance: {"always": chance.random() < 0.5}),
    "read_a_range": (
        40,
        lambda chance: {
            "identity": _identity(chance),
            "start": chance.choice((0, 0, chance.randrange(10_000), chance.randrange(200_000))),
            "size": chance.choice((0, 1, chance.randrange(10_000), chance.randrange(200_000))),
            "dead": chance.random() < 0.5,
        },
    ),
    "change_the_weather": (
        2,
        lambda chance: {"disk_is_cold": chance.random() < 0.5, "index_is_cold": chance.random() < 0.5},
    ),
    "compact": (3, lambda chance: {"partition": chance.choice((1, 1, 2)), "ratio": chance.choice((0.0, 0.0, 0.3))}),
    "stop_in_a_compaction": (1, lambda chance: {"steps": chance.randint(1, 30), **_after(chance)}),
    "fail_in_a_compaction": (
        1,
        lambda chance: {
            "fault": chance.choice(_COMPACTION_FAULTS),
            "nth": chance.randint(1, 6),
            "error": chance.choice((DiskFull, DiskUnavailable)),
            **_after(chance),
        },
    ),
    "commit_beside_a_compaction": (2, lambda chance: {"group": _group(chance), "at": chance.randint(1, 20)}),
    "stop_at_rest": (1, _after),
    "stop_in_a_commit": (2, lambda chance: {"group": _group(chance), "steps": chance.randint(1, 12), **_after(chance)}),
    "stop_in_a_checkpoint": (1, lambda chance: {"steps": chance.randint(1, 8), **_after(chance)}),
    "close_and_open": (1, lambda _: {}),
    "lose_the_index": (1, _after),
    "fail_in_a_commit": (
        1,
        lambda chance: {
            "group": _group(chance),
            "fault": chance.choice(_COMMIT_FAULTS),
            "done": chance.choice((0, 1, 2, chance.randrange(2000))),
            **_after(chance),
        },
    ),
    "fail_in_a_checkpoint": (
        1,
        lambda chance: {"fault": chance.choice(_CHECKPOINT_FAULTS), "done": chance.randrange(3), **_after(chance)},
    ),
    "fail_to_write_one_record": (
        2,
        lambda chance: {
            "request": _mutation(chance),
            "done": chance.randrange(5000),
            "full": chance.random() < 0.5,
        },
    ),
    "look_at_everything": (1, lambda _: {}),
    "scrub": (1, lambda _: {}),
    "damage_and_repair": (1, lambda chance: {"chance": chance}),
}
"""How often each rule is taken, and what it is given. `tests/prove/test_prove.py` asks that no rule is missing."""


class EpisodeFailed(AssertionError):
    """An episode found something; the message says how to repeat it."""


def run_episode(seed: int, steps: int) -> None:
    """One world from its beginning to its end. Raises EpisodeFailed."""
    chance = random.Random(seed)
    names = list(RULES)
    weights = [RULES[name][0] for name in names]
    machine = LongMachine.__new__(LongMachine)
    machine.planted = []
    taken: deque[tuple[str, Arguments]] = deque(maxlen=STEPS_SHOWN)
    try:
        machine.start(
            seed=chance.randrange(2**32),
            retention_ms=chance.choice((0, FOR_EVER_MS, FOR_EVER_MS)),
            is_used=chance.random() < 0.5,
        )
        for name in chance.choices(names, weights, k=steps):
            arguments = RULES[name][1](chance)
            taken.append((name, arguments))
            getattr(machine, name)(**arguments)
        machine.finish()
    except Exception as error:
        shown = "\n  ".join(
            f"{name}({', '.join(f'{key}={str(value)[:200]}' for key, value in arguments.items())})"
            for name, arguments in taken
        )
        what = f"episode of seed {seed}; repeat it: --seed {seed} --seconds 0; last:\n  {shown}"
        raise EpisodeFailed(what) from error


def prove_machine(chosen: int, seconds: float, steps: int = 0) -> dict[str, object]:
    """Episodes of seeds `chosen`, `chosen` + 1 and so on until the time is over and there were `steps` steps.

    Raises EpisodeFailed.
    """
    test_store_machine.HITS.clear()
    end_s = time.monotonic() + (0.0 if steps else seconds)
    episodes = 0
    while episodes == 0 or episodes * EPISODE_STEPS < steps or time.monotonic() < end_s:
        run_episode(chosen + episodes, EPISODE_STEPS)
        episodes += 1
    hits: Counter[str] = test_store_machine.HITS
    missed = sorted(WANTED - {hit for hit in hits if hits[hit]})
    assert episodes < 20 or not missed, f"never met: {missed}"
    return {
        "episodes": episodes,
        "steps": episodes * EPISODE_STEPS,
        "hits": dict(sorted(hits.items())),
        "rss_mib_max": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
