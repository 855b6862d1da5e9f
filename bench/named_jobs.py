"""The jobs about names and batches: `python -m bench --only named listing batch`.

Rates stand beside a bare aiohttp application of the same run. What `python -m bench.names` prints in full is measured
here for its bars.
"""

import http.client
import threading
import time
from collections.abc import Callable
from typing import Final

from ambry.limits import KIB
from bench import names
from bench.bodies import bare_path, body, distinct_bodies
from bench.jobs import Plan, run_load
from bench.load import HOST
from bench.results import Key
from bench.servers import Server, fresh_folder, started

_SIZE: Final = 4 * KIB
_BARE: Final = "bare beside names"
_BATCH: Final = 100
_BATCH_CONNECTIONS: Final = 2


def named(plan: Plan) -> None:
    """Puts and gets under names, each beside the bare application, round by round."""
    with fresh_folder() as folder, started("bare", folder, _SIZE) as bare, started("embedded", folder, _SIZE) as store:
        bare_paths = [(bare_path(_SIZE, number), number) for number in range(distinct_bodies(_SIZE))]
        named_paths = names.fill(store)
        first_name = 10_000_000
        for _ in range(plan.rounds):
            for connections in (32, 128):
                report = run_load(names.load_of(bare, connections, plan.seconds, paths=bare_paths))
                plan.results.add(Key("get", _SIZE, connections, _BARE), report)
            puts = names.load_of(store, 128, plan.seconds, put_prefix=f"{names.BASE}/", first_name=first_name)
            report = run_load(puts)
            first_name += 10_000_000
            plan.results.add(Key("named put", _SIZE, 128, "embedded"), report)
            plan.say(f"named put: {report.operations / report.seconds:,.0f}/s")
            report = run_load(names.load_of(store, 32, plan.seconds, paths=named_paths))
            plan.results.add(Key("named get", _SIZE, 32, "embedded"), report)
            plan.say(f"named get: {report.operations / report.seconds:,.0f}/s")
    for name, job, connections in (("named_put_ratio", "named put", 128), ("named_get_ratio", "named get", 32)):
        found = plan.results.ratio(Key(job, _SIZE, connections, "embedded"), Key("get", _SIZE, connections, _BARE))
        if found is not None:
            plan.results.values[name] = found


def listing(plan: Plan) -> None:
    """A million names in one container, and what lists of them cost."""
    table = names.Table()
    with fresh_folder() as folder:
        names.many_names(table, folder / "many", 20_000 if plan.is_quick else 1_000_000)
    plan.results.values |= table.values
    plan.results.problems += table.problems


def batch(plan: Plan) -> None:
    """`/batch/get` of a hundred blobs at a time, over a few connections."""
    with fresh_folder() as folder, started("embedded", folder, _SIZE) as store:
        ids = [_put(store, body(_SIZE, number % distinct_bodies(_SIZE))) for number in range(10 * _BATCH)]
        lists = ["\n".join(ids[at : at + _BATCH]).encode() for at in range(0, len(ids), _BATCH)]
        counts = [0] * _BATCH_CONNECTIONS
        end = time.monotonic() + plan.seconds

        def ask(number: int) -> None:
            connection = http.client.HTTPConnection(HOST, store.port, timeout=30)
            while time.monotonic() < end:
                connection.request("POST", "/batch/get", lists[counts[number] // _BATCH % len(lists)])
                answer = connection.getresponse()
                data = answer.read()
                if answer.status != http.client.OK or len(data) < _BATCH * _SIZE:
                    plan.results.problems.append(f"batch: {answer.status}, {len(data)} bytes")
                    return
                counts[number] += _BATCH
            connection.close()

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(_BATCH_CONNECTIONS)]
        begun = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rate = sum(counts) / (time.monotonic() - begun)
    plan.results.values["batch_get_rate"] = rate
    plan.say(f"batch get: {rate:,.0f} blobs/s")


def _put(store: Server, data: bytes) -> str:
    connection = http.client.HTTPConnection(HOST, store.port, timeout=30)
    connection.request("POST", "/", data)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return str(answer.headers["x-ambry-blob-id"])


NAMED_JOBS: Final[dict[str, Callable[[Plan], None]]] = {"named": named, "listing": listing, "batch": batch}
