"""What the benchmark found: measurements, the ratios between them, the bars, and how all that is printed.

A measurement is one job of one size on one layout over some connections, in rounds. Ratios are taken round by round,
between runs that followed each other, and the median counts: the machine may be slower now than a minute ago.
"""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from bench.bodies import KIB, MIB, size_name
from bench.histogram import Histogram
from bench.load import Report


@dataclass(frozen=True, slots=True)
class Key:
    """What was measured: job is get, put or mixed; layout one of servers.LAYOUTS, or dd."""

    job: str
    size: int
    connections: int
    layout: str

    def __str__(self) -> str:
        return f"{self.job} {size_name(self.size)} x{self.connections} {self.layout}"


@dataclass(slots=True)
class Results:
    """Everything of one run. `rounds` has a report for each round, in order; `values` has single numbers."""

    rounds: dict[Key, list[Report]] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(self, key: Key, report: Report) -> None:
        """Take one round."""
        self.rounds.setdefault(key, []).append(report)
        if report.errors:
            self.problems.append(f"{key}: {report.errors} errors, the first: {report.error_example}")
        if report.mismatches:
            self.problems.append(f"{key}: {report.mismatches} of {report.verified} bodies were not what was put")

    def rates(self, key: Key) -> list[float]:
        """Operations/s, round by round."""
        return [report.operations / report.seconds for report in self.rounds.get(key, [])]

    def ratio(self, key: Key, to: Key) -> float | None:
        """The median of the ratios of the rounds; None when one of the two was not measured."""
        pairs = list(zip(self.rates(key), self.rates(to), strict=False))
        return statistics.median(mine / other for mine, other in pairs if other) if pairs else None


@dataclass(frozen=True, slots=True)
class Bar:
    """A number to reach. `value` is None when this run did not measure it."""

    name: str
    value: float | None
    limit: float
    unit: str
    is_upper: bool = False

    @property
    def is_met(self) -> bool | None:
        """None when it was not measured."""
        if self.value is None:
            return None
        return self.value <= self.limit if self.is_upper else self.value >= self.limit


def bars(results: Results) -> list[Bar]:
    """The bars of the store, with what this run says of them."""

    def ratio(job: str, size: int, connections: int, layout: str, to_job: str, to_layout: str) -> float | None:
        return results.ratio(Key(job, size, connections, layout), Key(to_job, size, connections, to_layout))

    def value(name: str, divisor: float = 1.0) -> float | None:
        found = results.values.get(name)
        return None if found is None else found / divisor

    small = 4 * KIB
    large = 64 * MIB
    get_32 = ratio("get", small, 32, "embedded", "get", "bare")
    put_128 = ratio("put", small, 128, "embedded", "get", "bare")
    put_32 = ratio("put", small, 32, "embedded", "get", "bare")
    far_get_32 = ratio("get", small, 32, "separate", "get", "bare")
    far_put_128 = ratio("put", small, 128, "separate", "get", "bare")
    far_put_32 = ratio("put", small, 32, "separate", "get", "bare")
    large_get = ratio("get", large, 1, "embedded", "get", "bare")
    large_put = ratio("put", large, 4, "embedded", "put", "dd")
    return [
        Bar("GET 4 KiB, embedded, 32 connections, to bare GET", get_32, 2.0, "x"),
        Bar("POST 4 KiB, embedded, 128 connections, to bare GET", put_128, 0.75, "x"),
        Bar("POST 4 KiB, embedded, 32 connections, to bare GET", put_32, 0.5, "x"),
        Bar("GET 4 KiB, separate, 32 connections, to bare GET", far_get_32, 1.2, "x"),
        Bar("POST 4 KiB, separate, 128 connections, to bare GET", far_put_128, 0.5, "x"),
        Bar("POST 4 KiB, separate, 32 connections, to bare GET", far_put_32, 0.5, "x"),
        Bar("GET 64 MiB, embedded, 1 connection, to bare GET", large_get, 0.4, "x"),
        Bar("POST 64 MiB, embedded, 4 connections, to dd conv=fdatasync", large_put, 0.7, "x"),
        Bar("POST 4 KiB over 64 partitions, 128, to 1 partition", value("partitions_ratio"), 0.9, "x"),
        Bar("GET 4 KiB with a token, 32 connections, to anonymous", value("access_ratio"), 0.7, "x"),
        Bar("PUT under a name 4 KiB, 128 connections, to bare GET", value("named_put_ratio"), 0.25, "x"),
        Bar("GET by name 4 KiB, 32 connections, to bare GET", value("named_get_ratio"), 0.7, "x"),
        Bar("lists of 10^6 names, full pages", value("list_rate"), 100_000.0, "names/s"),
        Bar("first page of a list, p99", value("list_p99_ms"), 20.0, "ms", is_upper=True),
        Bar("puts of names, the last to the first 10 %", value("names_growth"), 0.7, "x"),
        Bar("/batch/get of 100 blobs of 4 KiB", value("batch_get_rate"), 40_000.0, "blobs/s"),
        Bar("RSS idle", value("rss_idle_bytes", MIB), 100.0, "MiB", is_upper=True),
        Bar("RSS, 16 uploads of 1 GiB, 16 slow readers", value("rss_peak_bytes", MIB), 400.0, "MiB", is_upper=True),
        Bar("start until the first answer", value("start_seconds"), 1.5, "s", is_upper=True),
        Bar("start with 10^6 blobs after kill -9", value("reopen_seconds"), 5.0, "s", is_upper=True),
        Bar("POST 4 KiB, 3 replicas, synced on 2, 128, to 1 replica", value("replicas_ratio"), 0.35, "x"),
        Bar("GET in the second after SIGKILL of a datanode, p99", value("kill_p99_ms"), 300.0, "ms", is_upper=True),
        Bar("GET in the second after SIGSTOP of a datanode, p99", value("stop_p99_ms"), 500.0, "ms", is_upper=True),
    ]


_COLUMNS: Final = (
    "job", "size", "conns", "layout", "ops/s", "to bare", "MiB/s",
    "p50 ms", "p90 ms", "p99 ms", "max ms", "CPU s/1000", "load CPU",
)  # fmt: skip


def summary(results: Results, key: Key) -> dict[str, Any]:
    """One measurement as numbers, over its rounds: median rate, latencies of all operations together."""
    reports = results.rounds[key]
    latency = Histogram()
    for report in reports:
        latency.add(report.get_ns)
        latency.add(report.put_ns)
    operations = sum(report.operations for report in reports)
    rate = statistics.median(results.rates(key))
    return {
        "job": key.job,
        "size": key.size,
        "connections": key.connections,
        "layout": key.layout,
        "rounds": results.rates(key),
        "operations": operations,
        "operations_per_second": rate,
        "mib_per_second": rate * key.size / MIB,
        "ratio_to_bare": results.ratio(key, Key(key.job, key.size, key.connections, "bare")),
        "p50_ms": latency.percentile(50) / 1e6,
        "p90_ms": latency.percentile(90) / 1e6,
        "p99_ms": latency.percentile(99) / 1e6,
        "max_ms": latency.value_max / 1e6,
        "cpu_seconds_per_1000": 1000 * sum(report.server_cpu_seconds for report in reports) / max(operations, 1),
        "load_cpu_share": statistics.mean(report.own_cpu_share for report in reports),
        "verified": sum(report.verified for report in reports),
        "mismatches": sum(report.mismatches for report in reports),
        "errors": sum(report.errors for report in reports),
    }


def table(results: Results) -> str:
    """All measurements, aligned."""
    rows: list[tuple[str, ...]] = [_COLUMNS]
    for key in sorted(results.rounds, key=lambda key: (key.size, key.job, key.connections, key.layout)):
        found = summary(results, key)
        ratio = found["ratio_to_bare"]
        rows.append(
            (
                key.job,
                size_name(key.size),
                str(key.connections),
                key.layout,
                f"{found['operations_per_second']:.0f}" if found["operations_per_second"] >= 100
                else f"{found['operations_per_second']:.1f}",
                "" if ratio is None else f"{ratio:.2f}",
                f"{found['mib_per_second']:.0f}",
                *(f"{found[name]:.2f}" for name in ("p50_ms", "p90_ms", "p99_ms", "max_ms")),
                f"{found['cpu_seconds_per_1000']:.3f}",
                f"{found['load_cpu_share']:.0%}",
            )
        )  # fmt: skip
    return _aligned(rows)


def bar_table(found: Iterable[Bar]) -> str:
    """The bars, aligned."""
    rows: list[tuple[str, ...]] = [("bar", "limit", "found", "")]
    for bar in found:
        sign = "<=" if bar.is_upper else ">="
        value = "-" if bar.value is None else f"{bar.value:.2f} {bar.unit}"
        rows.append(
            (
                bar.name,
                f"{sign} {bar.limit:g} {bar.unit}",
                value,
                {True: "met", False: "NOT MET", None: "not measured"}[bar.is_met],
            )
        )
    return _aligned(rows)


def _aligned(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        # Words to the left, numbers to the right.
        cells = [
            cell.rjust(width) if cell[:1].isdigit() and number > 0 else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
