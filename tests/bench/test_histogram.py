"""The histogram against sorting."""

import json

from hypothesis import given
from hypothesis import strategies as st

from bench.histogram import Histogram, bucket_of, lowest_of

VALUES = st.lists(st.integers(0, 10**12), min_size=1, max_size=200)


@given(st.integers(0, 2**63))
def test_a_bucket_holds_its_lowest_value_and_is_at_most_one_64th_wide(value: int) -> None:
    lowest = lowest_of(bucket_of(value))
    assert lowest <= value
    assert value - lowest <= value / 64
    assert bucket_of(lowest) == bucket_of(value)


def test_buckets_follow_each_other_without_a_gap() -> None:
    assert [bucket_of(lowest_of(bucket)) for bucket in range(2000)] == list(range(2000))
    assert all(lowest_of(bucket) < lowest_of(bucket + 1) for bucket in range(2000))


@given(VALUES, st.sampled_from([1, 50, 90, 99, 100]))
def test_a_percentile_is_that_of_the_sorted_values_but_for_the_width_of_a_bucket(
    values: list[int], percent: int
) -> None:
    histogram = Histogram()
    histogram.add_all(values)
    exact = sorted(values)[-(-len(values) * percent // 100) - 1]
    assert histogram.percentile(percent) == lowest_of(bucket_of(exact))
    assert histogram.value_max == max(values)


@given(VALUES, VALUES)
def test_adding_two_histograms_is_counting_all_values(left: list[int], right: list[int]) -> None:
    both, one, other = Histogram(), Histogram(), Histogram()
    both.add_all(left + right)
    one.add_all(left)
    other.add_all(right)
    one.add(Histogram.from_json(json.loads(json.dumps(other.to_json()))))
    assert one == both
    assert one.total == len(left) + len(right)


def test_nothing_counted_has_no_percentile() -> None:
    assert Histogram().percentile(99) == 0
