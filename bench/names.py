"""`python -m bench.names`: named puts and gets beside a bare aiohttp application, lists, and millions of names.

    python -m bench.names                    four runs; a few minutes, most of them for filling a store with names
    python -m bench.names --names 10000000   the last run with ten million names (about 3 GB, half an hour)
    python -m bench.names --only-many --bulk --names 10000000   only that, and the middle of them written in bulk
    python -m bench.names --quick            the same in short, to see that it works

Prints a table: what was measured, and the bar where there is one. Names come in no order, which is the hard case: each
put changes another page of each tree.
"""

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import sqlite3
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ambry.names import changes
from ambry.names.changes import UNCONDITIONAL
from ambry.names.open import open_database
from ambry.names.rows import COLUMNS, CURRENT_COLUMNS, NameRow, RowKind, version_at
from bench.bodies import bare_path, distinct_bodies
from bench.jobs import run_load
from bench.load import HOST, Load, Report, name_of
from bench.processes import cpu_seconds
from bench.servers import Server, fresh_folder, started

_SIZE: Final = 4096
BASE: Final = "/named/default/default"
_WARM_UP_SECONDS: Final = 0.5
_NOW_MS: Final = 1_764_000_000_000
_GROUP: Final = 256
"""Names of one commit: about what gathers at 128 connections while two commits are under way."""


@dataclass(slots=True)
class Table:
    """What was measured, in the order in which it was."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    values: dict[str, float] = field(default_factory=dict)

    def add(self, what: str, value: str, bar: str = "") -> None:
        """One line, said at once."""
        self.rows.append((what, value, bar))
        print(f"{what:58} {value:>22}  {bar}", flush=True)

    def check(self, what: str, report: Report) -> None:
        """A run with errors, or with bytes that are not those that were put, is no measurement."""
        if report.errors or report.mismatches:
            self.problems.append(f"{what}: {report.errors} errors, {report.mismatches} wrong: {report.error_example}")


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short runs, few names")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement (3)")
    parser.add_argument("--names", type=int, default=1_000_000, help="names in the run with many (1000000)")
    parser.add_argument("--bulk", action="store_true", help="measure only the first and the last 100 000 of them")
    parser.add_argument("--only-many", action="store_true", help="only the run with many")
    options = parser.parse_args()
    seconds = 1.0 if options.quick else options.seconds
    count = 20_000 if options.quick else options.names
    table = Table()
    with fresh_folder() as folder:
        if not options.only_many:
            _over_http(table, folder, seconds)
        many_names(table, folder / "many", count, in_bulk=options.bulk)
    for problem in table.problems:
        print(f"PROBLEM: {problem}")
    return 1 if table.problems else 0


# --- over HTTP -------------------------------------------------------------------------------------------------


def _over_http(table: Table, folder: Path, seconds: float) -> None:
    with started("bare", folder, _SIZE) as bare, started("embedded", folder, _SIZE) as store:
        paths = [(bare_path(_SIZE, number), number) for number in range(distinct_bodies(_SIZE))]
        yardstick = {}
        for connections in (32, 128):
            report = run_load(load_of(bare, connections, seconds, paths=paths))
            yardstick[connections] = report.operations / report.seconds
            table.check("bare", report)
            table.add(f"bare aiohttp, GET, {connections} connections", f"{yardstick[connections]:,.0f}/s")
        put = run_load(load_of(store, 128, seconds, put_prefix=f"{BASE}/"))
        table.check("named PUT", put)
        rate = put.operations / put.seconds
        table.add("named PUT 4 KiB, synced, 128 connections", f"{rate:,.0f}/s", _ratio(rate, yardstick[128], 0.25))
        named = fill(store)
        for what, found, bar in (("named GET 4 KiB", named, 0.7), ("GET by id 4 KiB", _ids(store, named), 0.0)):
            report = run_load(load_of(store, 32, seconds, paths=found))
            table.check(what, report)
            rate = report.operations / report.seconds
            table.add(f"{what}, warm, 32 connections", f"{rate:,.0f}/s", _ratio(rate, yardstick[32], bar))


def load_of(
    server: Server,
    connections: int,
    seconds: float,
    *,
    paths: list[tuple[str, int]] | None = None,
    put_prefix: str = "",
    first_name: int = 0,
) -> Load:
    """Gets of `paths`, or puts of names below a prefix."""
    return Load(
        server.port,
        connections,
        _SIZE,
        seconds,
        _WARM_UP_SECONDS,
        put_percent=0 if paths else 100,
        paths=paths or (),
        put_prefix=put_prefix,
        first_name=first_name,
        server_pids=server.pids,
    )


def fill(store: Server) -> list[tuple[str, int]]:
    """Names with the bodies that the generator expects, one after the other."""
    count = 1024
    load = Load(store.port, 1, _SIZE, 60, count=count, put_percent=100, put_prefix=f"{BASE}/warm/")
    report = run_load(load)
    assert not report.errors, report.error_example
    bodies = distinct_bodies(_SIZE)
    found = [(f"{BASE}/warm/{name_of(number).decode()}", (number - 1) % bodies) for number in range(1, count + 1)]
    # Each is read once: it is warm names that are measured.
    _ids(store, found)
    return found


def _ids(store: Server, named: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """The same blobs by their ids."""
    connection = http.client.HTTPConnection(HOST, store.port, timeout=30)
    found = []
    for path, number in named:
        connection.request("HEAD", path)
        answer = connection.getresponse()
        answer.read()
        found.append((f"/{answer.headers['x-ambry-blob-id']}", number))
    connection.close()
    return found


def _ratio(rate: float, yardstick: float, bar: float) -> str:
    found = f"{rate / yardstick:.2f} x"
    return f"{found} (bar {bar:.2f} x: {'met' if rate >= bar * yardstick else 'not met'})" if bar else found


# --- many names ------------------------------------------------------------------------------------------------


def many_names(table: Table, folder: Path, count: int, *, in_bulk: bool = False) -> None:
    """Fill the name store of a stopped store, then list it over HTTP."""
    with started("embedded", folder, _SIZE) as store:
        path = store.folder / "data" / "names.sqlite"
    asyncio.run(filled(table, path, count, in_bulk=in_bulk))
    size = sum(each.stat().st_size for each in path.parent.glob("names.sqlite*"))
    table.add("bytes of the name store for one name", f"{size / count:,.0f}")
    with started("embedded", folder, _SIZE) as store:
        _lists(table, store, count)


async def filled(table: Table, path: Path, count: int, *, in_bulk: bool = False) -> None:
    """Put names as a busy frontend does, in groups that share statements and a commit; the rate tenth by tenth.

    Beside the rate stands the CPU time of a put, which says the same on a machine that does other things as well.
    `in_bulk` measures only the beginning and the end, and writes what lies between in the order of names.
    """
    early_end = min(100_000, count // 10)
    ends = sorted({early_end, *(count * tenth // 10 for tenth in range(1, 11))})
    if in_bulk:
        ends = [early_end, count - early_end, count]
    measured: list[tuple[float, float]] = []
    first = 0
    for end in ends:
        if in_bulk and end == ends[1]:
            _write_between(path, first, end)
            table.add(f"names in bulk, {first:,} to {end:,}", "not measured")
        else:
            measured.append(await _put_names(path, first, end))
            rate, cpu = measured[-1]
            table.add(
                f"names put in groups of {_GROUP}, {first:,} to {end:,}", f"{rate:,.0f}/s", f"CPU {cpu * 1e6:.0f} us"
            )
        first = end
    growth = measured[-1][0] / measured[0][0]
    table.values["names_growth"] = growth
    table.add(
        f"the last to the first {early_end:,}",
        f"{growth:.2f} x",
        f"(bar for 10^7: 0.70 x), by CPU {measured[0][1] / measured[-1][1]:.2f} x",
    )


async def _put_names(path: Path, first: int, end: int) -> tuple[float, float]:
    """Names per second, and seconds of CPU for each."""
    database = open_database(f"sqlite:{path}")
    begun, cpu = time.perf_counter(), time.process_time()
    for at in range(first, end, _GROUP):
        puts = [(_row(number), UNCONDITIONAL) for number in range(at, min(at + _GROUP, end))]
        await database.write(lambda session: changes.put_each(session, puts, _NOW_MS))  # noqa: B023 -- awaited in this turn
    took, used = time.perf_counter() - begun, time.process_time() - cpu
    await database.close()
    return (end - first) / took, used / (end - first)


def _write_between(path: Path, first: int, end: int) -> None:
    """Names that only have to be there, written in their order and in two passes, so that pages are as full as usual.

    A store that loses power meanwhile is begun anew, so nothing is synced.
    """
    columns = f"account, container, name, {CURRENT_COLUMNS}, position"
    insert = f"INSERT INTO names ({COLUMNS}, source, arrived_ms, is_alone) VALUES ({', '.join('?' * 15)}, 1)"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for setting in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-262144"):
            connection.execute(f"PRAGMA {setting}")
        for half in (range(first, end, 2), range(first + 1, end, 2)):
            last = connection.execute("SELECT MAX(position) FROM names").fetchone()[0]
            connection.execute("BEGIN")
            connection.executemany(insert, ((*_row(number).values(), 0, _NOW_MS) for number in half))
            # By number first, since that is the order of positions; sorted on the way into the tree of names.
            connection.execute(
                f"INSERT INTO current_names ({columns}) SELECT {columns} FROM names WHERE position > ?"
                " ORDER BY account, container, name",
                (last,),
            )
            connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode=WAL")


def _row(number: int) -> NameRow:
    """Names in 1000 folders of 100 folders each."""
    digest = name_of(number)
    name = b"%03d/%02d/%s" % (int(digest[:8], 16) % 1000, int(digest[8:], 16) % 100, digest)
    return NameRow(0, 0, name, version_at(_NOW_MS), 1, RowKind.PUT, os.urandom(32), _SIZE, _NOW_MS)


def _lists(table: Table, store: Server, count: int) -> None:
    connection = http.client.HTTPConnection(HOST, store.port, timeout=60)

    def page(query: str) -> dict[str, Any]:
        connection.request("GET", f"{BASE}?{query}")
        answer = connection.getresponse()
        found: dict[str, Any] = json.loads(answer.read())
        if answer.status != http.client.OK:
            table.problems.append(f"list {query}: {found}")
        return found

    names, token, begun, cpu = 0, "", time.perf_counter(), cpu_seconds(store.pids)
    while names < min(count, 1_000_000):
        found = page(f"page={token}" if token else "")
        names += len(found["entries"])
        token = found["nextPageToken"]
        if token is None:
            break
    rate = names / (time.perf_counter() - begun)
    cpu_us = (cpu_seconds(store.pids) - cpu) / names * 1e6
    table.values["list_rate"] = rate
    table.add(
        "list in full pages over HTTP, JSON parsed", f"{rate:,.0f} names/s", f"(bar 100,000: {_met(rate >= 1e5)})"
    )
    table.add("the server's CPU for each name of it", f"{cpu_us:.1f} us")
    for what, query in _FIRST_PAGES.items():
        page(query)
        times = []
        for _ in range(100):
            begun = time.perf_counter()
            page(query)
            times.append((time.perf_counter() - begun) * 1000)
        p99 = statistics.quantiles(times, n=100)[98]
        table.values["list_p99_ms"] = max(table.values.get("list_p99_ms", 0.0), p99)
        shown = f"{statistics.median(times):,.1f}, {p99:,.1f} ms"
        table.add(f"first page, {what}: p50, p99", shown, f"(bar 20 ms: {_met(p99 < 20)})")
    connection.close()


_FIRST_PAGES: Final = {
    "of all": "",
    "with delimiter, 1000 folders": "delimiter=/",
    "below a folder, with delimiter": "prefix=500/&delimiter=/",
    "two levels down": "prefix=500/50/&delimiter=/",
    "in the middle": "start-after=500/50/8",
}


def _met(is_met: bool) -> str:  # noqa: FBT001 -- a fact to words
    return "met" if is_met else "not met"


if __name__ == "__main__":
    sys.exit(main())
