"""The one error tree: codes and names are on the wire and in answers, so they stay what they are for ever."""

from typing import Final

import pytest

from ambry import errors
from ambry.clock import ManualClock, SystemClock
from ambry.errors import ERRORS_BY_CODE, AmbryError, Overloaded, error_from_code

GIVEN_OUT: Final = {
    1: "internal_error",
    10: "bad_request",
    11: "bad_blob_id",
    12: "bad_digest",
    13: "too_large",
    14: "headers_too_large",
    15: "range_not_satisfiable",
    16: "precondition_failed",
    17: "not_allowed",
    18: "method_not_allowed",
    19: "no_such_path",
    24: "name_exists",
    25: "bad_name",
    26: "no_such_upload",
    30: "blob_not_found",
    31: "blob_deleted",
    32: "blob_expired",
    33: "blob_collision",
    34: "name_not_found",
    35: "name_deleted",
    36: "name_expired",
    40: "not_here",
    41: "corrupt_record",
    42: "disk_full",
    43: "disk_unavailable",
    44: "no_such_replica",
    45: "overloaded",
    46: "deadline_exceeded",
    47: "unavailable",
    48: "connection_lost",
    49: "shutting_down",
    50: "stale_map",
    51: "registry_unavailable",
    52: "name_store_unavailable",
    53: "quota_exceeded",
    60: "protocol_error",
    61: "handshake_refused",
    70: "cannot_start",
    71: "bad_configuration",
    72: "directory_in_use",
    73: "directory_unusable",
    80: "unauthenticated",
    81: "forbidden",
    82: "change_refused",
    83: "version_conflict",
    84: "unknown_container",
    85: "no_such_account",
    90: "file_changed",
    91: "model_damaged",
    92: "not_cached",
    93: "bad_tensors",
    94: "source_failed",
}
"""Add a line for a new error. Never change or remove one: older processes and clients know them."""


def test_codes_and_names_are_those_that_were_given_out() -> None:
    assert {code: error.name for code, error in ERRORS_BY_CODE.items()} == GIVEN_OUT
    assert len(set(GIVEN_OUT.values())) == len(GIVEN_OUT)


@pytest.mark.parametrize("error", ERRORS_BY_CODE.values(), ids=lambda error: error.name)
def test_an_error_survives_its_code_message_and_facts(error: type[AmbryError]) -> None:
    sent = error("what happened", field="x", size=3)
    received = error_from_code(sent.code, sent.message, sent.facts)
    assert type(received) is error
    assert (received.message, received.facts) == (sent.message, sent.facts)
    assert str(received) == "what happened (field=x, size=3)"


def test_an_error_of_a_newer_peer_is_an_error() -> None:
    received = error_from_code(9_999, "something new")
    assert type(received) is AmbryError
    assert str(received) == "something new"


def test_what_the_caller_did_wrong_is_not_worth_trying_again() -> None:
    for code, error in ERRORS_BY_CODE.items():
        assert error.retryable == (40 <= code < 60), error.name
    assert Overloaded("full").retryable
    assert not errors.BlobNotFound("no").retryable


def test_a_manual_clock_moves_only_when_told() -> None:
    clock = ManualClock(5_000)
    assert (clock.now_ms(), clock.monotonic()) == (5_000, 0.0)
    clock.advance(1_500)
    assert (clock.now_ms(), clock.monotonic()) == (6_500, 1.5)


def test_the_system_clock_counts_milliseconds_and_seconds() -> None:
    clock = SystemClock()
    before = clock.monotonic()
    assert clock.now_ms() > 1_700_000_000_000
    assert clock.monotonic() >= before
