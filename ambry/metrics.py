"""What a process counts, and how Prometheus reads it. The only door to prometheus_client.

Counting must cost next to nothing (a GET takes about 15 µs in all), so series are plain integers and lists, and the
client library sees them only when someone scrapes. Labels are fixed when a series is registered, never taken from a
request: the number of series is bounded by the code, whatever clients send (guarantee G7). Nothing here is global:
each process makes one Metrics and hands it to its parts; tests make as many as they like.

A series has one writer at a time (the event loop, or the one thread of a disk): increments are not atomic across
threads. Readers may be anywhere. This module does not know what it counts, except HTTP requests.
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, Literal, TypeAlias

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ambry.limits import METRIC_SERIES_MAX

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""Of what `Metrics.render` returns."""

OPERATIONS: Final = (
    "put_blob",
    "get_blob",
    "head_blob",
    "blob_info",
    "user_metadata",
    "delete_blob",
    "update_ttl",
    "undelete_blob",
    "put_named",
    "get_named",
    "head_named",
    "delete_named",
    "list_names",
    "names_feed",
    "health_check",
    "metrics",
)
"""Operations of the native HTTP API. What is none of them is counted as OTHER."""

OTHER: Final = "other"
"""Label for an operation or a status that is not in the fixed set."""

STATUSES: Final = (*(status.value for status in HTTPStatus), 499)
"""HTTP statuses that are counted one by one. 499: the client went away before the answer."""

# 100 µs is a cached read; 30 s is the deadline of a request between processes.
SECONDS_BOUNDS: Final = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0
)  # fmt: skip
"""Upper bounds of histograms of seconds."""

COUNT_BOUNDS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)
"""Upper bounds of histograms of small counts, such as the records of a commit group."""

BYTES_BOUNDS: Final = tuple(float(1 << power) for power in range(10, 31, 2))
"""Upper bounds of histograms of bytes: 1 KiB to 1 GiB."""


class Counter:
    """A number that only grows. On a hot path add to `value` directly."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def add(self, count: float = 1) -> None:
        """Count `count` more."""
        self.value += count


class Gauge:
    """A number that goes up and down. On a hot path assign `value` directly."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def add(self, count: float = 1) -> None:
        """Add `count`, which may be negative."""
        self.value += count

    def set(self, value: float) -> None:
        """Replace the value."""
        self.value = value


class Histogram:
    """Counts of observations per bucket, and their sum. `counts[i]` has those at most `bounds[i]`, not cumulated."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        assert self.bounds == tuple(sorted(set(self.bounds)))
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """Observations so far."""
        return sum(self.counts)


Labels: TypeAlias = tuple[str, ...]
Kind: TypeAlias = Literal["counter", "gauge", "histogram"]
Series: TypeAlias = Counter | Gauge | Histogram | Callable[[], float]


@dataclass(slots=True)
class _Family:
    """All series of one name. Their label names are those of the first one registered."""

    name: str
    text: str
    kind: Kind
    label_names: Labels
    series: dict[Labels, Series] = field(default_factory=dict)

    def export(self) -> Metric:
        match self.kind:
            case "histogram":
                histograms = HistogramMetricFamily(self.name, self.text, labels=self.label_names)
                for labels, series in self.series.items():
                    assert isinstance(series, Histogram)
                    histograms.add_metric(labels, _buckets(series.bounds, series.counts), series.total)
                return histograms
            case "counter":
                counters = CounterMetricFamily(self.name, self.text, labels=self.label_names)
                for labels, series in self.series.items():
                    counters.add_metric(labels, _read(series))
                return counters
            case "gauge":
                gauges = GaugeMetricFamily(self.name, self.text, labels=self.label_names)
                for labels, series in self.series.items():
                    gauges.add_metric(labels, _read(series))
                return gauges


def _read(series: Series) -> float:
    if isinstance(series, Counter | Gauge):
        return series.value
    assert not isinstance(series, Histogram)
    return series()


def _buckets(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """Cumulated counts as the exposition format wants them."""
    cumulated = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip((*bounds, float("inf")), counts, strict=True):
        cumulated += count
        buckets.append(("+Inf" if bound == float("inf") else repr(bound), cumulated))
    return buckets


class _Row:
    """What one operation has done: answers by status, and how long they took."""

    __slots__ = ("buckets", "seconds", "statuses")

    def __init__(self) -> None:
        self.statuses: dict[int, int] = dict.fromkeys((*STATUSES, 0), 0)
        self.buckets = [0] * (len(SECONDS_BOUNDS) + 1)
        self.seconds = 0.0


class RequestMetrics:
    """Requests by operation and status, and how long each took. Hot path: `observe`, and the plain attributes."""

    __slots__ = ("_other", "_rows", "bytes_in", "bytes_out", "connections", "in_flight")

    def __init__(self, operations: Iterable[str]) -> None:
        self._rows: dict[str, _Row] = {operation: _Row() for operation in operations}
        self._other = self._rows.setdefault(OTHER, _Row())
        self.bytes_in = 0
        self.bytes_out = 0
        self.in_flight = 0
        self.connections = 0

    def observe(
        self,
        operation: str,
        status: int,
        seconds: float,
        _bisect: Callable[[Sequence[float], float], int] = bisect_left,
        _bounds: Sequence[float] = SECONDS_BOUNDS,
    ) -> None:
        """Count one answered request. The last two parameters are there to be locals: 0.2 µs."""
        row = self._rows.get(operation)
        if row is None:
            row = self._other
        row.buckets[_bisect(_bounds, seconds)] += 1
        row.seconds += seconds
        statuses = row.statuses
        if status in statuses:
            statuses[status] += 1
        else:
            statuses[0] += 1

    def export(self) -> Iterator[Metric]:
        """The families of requests. Statuses that never occurred are left out."""
        requests = CounterMetricFamily(
            "ambry_requests", "Requests answered, by operation and status.", labels=("operation", "status")
        )
        seconds = HistogramMetricFamily(
            "ambry_request_seconds", "From the request's first byte to its answer's last.", labels=("operation",)
        )
        for operation, row in self._rows.items():
            for status, count in row.statuses.items():
                if count:
                    requests.add_metric((operation, str(status) if status else OTHER), count)
            seconds.add_metric((operation,), _buckets(SECONDS_BOUNDS, row.buckets), row.seconds)
        yield requests
        yield seconds
        yield CounterMetricFamily("ambry_request_body_bytes", "Bytes of request bodies received.", self.bytes_in)
        yield CounterMetricFamily("ambry_answer_body_bytes", "Bytes of answer bodies sent.", self.bytes_out)
        yield GaugeMetricFamily("ambry_requests_in_flight", "Requests being answered.", self.in_flight)
        yield GaugeMetricFamily("ambry_connections", "Client connections open.", self.connections)


class _Families(Collector):
    """The side of a Metrics that the client library sees."""

    def __init__(self, requests: RequestMetrics, families: dict[str, _Family]) -> None:
        self._requests = requests
        self._families = families

    def describe(self) -> list[Metric]:
        """Nothing: names are kept apart by `Metrics`, and a description would run every callback."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Read every series once."""
        yield from self._requests.export()
        for family in tuple(self._families.values()):
            yield family.export()


class Metrics:
    """All metrics of one process.

    `counter`, `gauge` and `histogram` return a series to write to; asked again for the same name and labels they
    return the same one. `watch_counter` and `watch_gauge` take a function that is called at each scrape, on the
    thread that renders: it must be fast and must not raise. Names of counters are given without `_total`.
    """

    __slots__ = ("_families", "_registry", "requests")

    def __init__(self, operations: Iterable[str] = OPERATIONS) -> None:
        self.requests = RequestMetrics(operations)
        self._families: dict[str, _Family] = {}
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Families(self.requests, self._families))
        ProcessCollector(registry=self._registry)
        started_s = time.monotonic()
        self.watch_gauge(
            "ambry_up_seconds", "Since the process made its metrics.", lambda: time.monotonic() - started_s
        )

    def counter(self, name: str, text: str, **labels: str) -> Counter:
        """The counter `name`_total with these labels."""
        series = self._series(name, text, "counter", labels, Counter)
        assert isinstance(series, Counter)
        return series

    def gauge(self, name: str, text: str, **labels: str) -> Gauge:
        """The gauge `name` with these labels."""
        series = self._series(name, text, "gauge", labels, Gauge)
        assert isinstance(series, Gauge)
        return series

    def histogram(self, name: str, text: str, bounds: Sequence[float] = SECONDS_BOUNDS, **labels: str) -> Histogram:
        """The histogram `name` with these labels. `bounds` are ascending upper bounds, without infinity."""
        series = self._series(name, text, "histogram", labels, lambda: Histogram(bounds))
        assert isinstance(series, Histogram)
        return series

    def watch_counter(self, name: str, text: str, read: Callable[[], float], **labels: str) -> None:
        """Let `read` say the value of counter `name`_total at each scrape. The newest `read` replaces a former one."""
        self._watch(name, text, "counter", read, labels)

    def watch_gauge(self, name: str, text: str, read: Callable[[], float], **labels: str) -> None:
        """Let `read` say the value of gauge `name` at each scrape. The newest `read` replaces a former one."""
        self._watch(name, text, "gauge", read, labels)

    def render(self) -> bytes:
        """All metrics in the text format of Prometheus; CONTENT_TYPE is its type."""
        return generate_latest(self._registry)

    def _family(self, name: str, text: str, kind: Kind, labels: dict[str, str]) -> _Family:
        assert not name.endswith("_total")
        family = self._families.setdefault(name, _Family(name, text, kind, tuple(labels)))
        assert family.kind == kind
        assert family.label_names == tuple(labels)
        return family

    def _series(self, name: str, text: str, kind: Kind, labels: dict[str, str], make: Callable[[], Series]) -> Series:
        family = self._family(name, text, kind, labels)
        values = tuple(labels.values())
        found = family.series.get(values)
        if found is None:
            # A label that grows without bound is a bug of ours, not of a client.
            assert len(family.series) < METRIC_SERIES_MAX
            found = family.series[values] = make()
        return found

    def _watch(self, name: str, text: str, kind: Kind, read: Callable[[], float], labels: dict[str, str]) -> None:
        family = self._family(name, text, kind, labels)
        assert len(family.series) < METRIC_SERIES_MAX
        family.series[tuple(labels.values())] = read
