"""The load generator: its parser on bytes, and a short run against a server of its own kind."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.load import Load, Report, operations_of, parse_head, self_test

HEAD = b"HTTP/1.1 200 OK\r\nDate: now\r\nContent-Length: 17\r\nServer: x\r\n\r\n"


def test_a_whole_head_gives_status_length_and_size() -> None:
    assert parse_head(bytearray(HEAD + b"body"), len(HEAD) + 4) == (200, 17, len(HEAD))


@given(st.integers(0, len(HEAD) - 1))
def test_a_part_of_a_head_is_incomplete_whatever_the_buffer_holds_behind_it(size: int) -> None:
    assert parse_head(bytearray(HEAD), size) is None


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "without Content-Length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n", "invalid literal"),
        (b"220 ready\r\n\r\n", "not an answer"),
        (b"x" * 20_000, "no end"),
    ],
)
def test_what_the_generator_cannot_read_is_an_error(head: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_head(bytearray(head), len(head))


LOAD = Load(port=1, connections=1, size=100, seconds=1.0, paths=(("/one", 0), ("/two", 1)))


@given(st.integers(1, 99))
def test_puts_are_mixed_in_evenly(put_percent: int) -> None:
    operations = operations_of(dataclasses.replace(LOAD, put_percent=put_percent))
    puts = [operation.is_put for operation in operations]
    for count in range(1, len(puts) + 1):
        assert abs(sum(puts[:count]) - count * put_percent / 100) < 1


@pytest.mark.parametrize(
    "change",
    [{"seconds": 0}, {"seconds": 1e6}, {"count": 0}, {"count": 10**9}, {"connections": 10**5}, {"paths": ()}],
    ids=str,
)
def test_a_load_without_an_end_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"beyond|nothing to get"):
        dataclasses.replace(LOAD, **change).check()  # type: ignore[arg-type] # changes of several types


def test_a_short_run_counts_what_it_did_and_verifies_bodies() -> None:
    report = self_test(size=4096, connections=4, seconds=0.3)
    assert report.errors == 0, report.error_example
    assert report.operations > 0
    assert report.get_ns.total == report.operations
    assert report.verified > 0
    assert report.mismatches == 0
    assert Report.from_json(report.to_json()) == report
