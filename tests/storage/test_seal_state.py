"""Seal states: a full replica stays sealed until there is real room again."""

from ambry.limits import BODY_BYTES_MAX, GIB, REPLICA_WRITABLE_PERCENT
from ambry.storage.seal_state import is_sealed_now

CAPACITY = GIB


def test_a_replica_is_sealed_when_the_largest_record_does_not_fit() -> None:
    full = CAPACITY - BODY_BYTES_MAX
    assert not is_sealed_now(was_sealed=False, log_size=full, capacity=CAPACITY)
    assert is_sealed_now(was_sealed=False, log_size=full + 1, capacity=CAPACITY)


def test_a_sealed_replica_takes_puts_again_only_when_there_is_real_room() -> None:
    enough = CAPACITY * REPLICA_WRITABLE_PERCENT // 100
    assert is_sealed_now(was_sealed=True, log_size=enough + 1, capacity=CAPACITY)
    assert not is_sealed_now(was_sealed=True, log_size=enough, capacity=CAPACITY)
    # One that never was full is writable up to the last record.
    assert not is_sealed_now(was_sealed=False, log_size=enough + 1, capacity=CAPACITY)
