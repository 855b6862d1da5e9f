"""What replication costs and how late it is, with real datanode processes: `python -m bench.replication`.

    idle    CPU of 6 datanodes in 2 datacentres that have nothing to do, with 1000 partitions each
    lag     from the durable put in one datacentre to the bytes in the other, under 500 puts/s of 4 KiB
    wan     bytes that the other datacentre read, for each byte that was written; from the same run

The puts go to the three datanodes of one datacentre, as a frontend sends them. WAN bytes are bodies and listings as the
datanodes count them; headers of frames and records are estimated from above and added.
"""

import argparse
import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ambry.blob import blob_id as ids
from ambry.blob.blob_id import BlobId, Kind
from ambry.blob.checksums import checksum_vector, root_of
from ambry.blob.requests import GetRequest, PutRequest
from ambry.blob.state import NEVER
from ambry.errors import AmbryError
from ambry.protocol.replication import ReplicationAction, ReplicationRequest
from ambry.transport.client import RemoteDatanode
from bench.processes import cpu_seconds

SECRET: Final = "a secret of the benchmark"
NODES: Final = {"a1": "east", "a2": "east", "a3": "east", "b1": "west", "b2": "west", "b3": "west"}
BODY_SIZE: Final = 4096
PROPERTIES: Final = b"\x81\xa1z\x1a"
RECORD_HEADER_BYTES: Final = 200
"""More than a fetched record has beside its body: id in the request, and head, vector and properties in the answer."""


def write_files(folder: Path, ports: dict[str, int], partitions: int) -> None:
    """One map, and the settings of each datanode."""
    text = 'fingerprint = "bench"\nversion = 1\nallow_shared_hosts = true\n'
    text += "".join(
        f'[[datacentre]]\nnumber = {number}\nname = "{name}"\n' for number, name in ((1, "east"), (2, "west"))
    )
    for name, datacentre in NODES.items():
        text += f'[[node]]\nname = "{name}"\ndatacentre = "{datacentre}"\nhost = "127.0.0.1"\nport = {ports[name]}\n'
        text += f'[[node.disk]]\npath = "{name}"\ncapacity_bytes = "200 TiB"\n'
    text += f'[[partitions]]\nnumbers = "1-{partitions}"\ncapacity_bytes = "1 GiB"\n'
    text += "".join(f'[[partitions.replica]]\nnode = "{name}"\n' for name in NODES)
    (folder / "cluster.toml").write_text(text)
    for name in NODES:
        (folder / f"{name}.toml").write_text(
            f'cluster_map = "cluster.toml"\nnode = "{name}"\nadmin_port = 0\n'
            '[storage]\nreserve_bytes = "16 MiB"\njournal_bytes = "64 MiB"\n'
            # The first verification of thousands of new segments is work, and none of replication.
            "scrub_bytes_per_s = 0\ncompaction_bytes_per_s = 0\n"
        )


@contextlib.contextmanager
def datanodes(folder: Path, partitions: int) -> Iterator[tuple[dict[str, int], list[int]]]:
    """Six processes that are ready; their ports and process ids. They are gone afterwards."""
    with contextlib.ExitStack() as probes:
        sockets = {name: probes.enter_context(socket.socket()) for name in NODES}
        for probe in sockets.values():
            probe.bind(("127.0.0.1", 0))
        ports = {name: probe.getsockname()[1] for name, probe in sockets.items()}
    write_files(folder, ports, partitions)
    environment = {**os.environ, "AMBRY_CLUSTER_SECRET": SECRET}
    running: list[subprocess.Popen[str]] = []
    try:
        for name in NODES:
            command = [sys.executable, "-m", "ambry.cli.main", "datanode", "--config", str(folder / f"{name}.toml")]
            running.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment))
        for process in running:
            assert process.stderr is not None
            for line in process.stderr:
                if '"ready"' in line:
                    break
        yield ports, [process.pid for process in running]
    finally:
        for process in running:
            process.terminate()
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=20)
            process.kill()


def connect(ports: dict[str, int]) -> dict[str, RemoteDatanode]:
    """A client of each datanode."""
    return {
        name: RemoteDatanode("127.0.0.1", port, name, "bench", SECRET.encode(), "bench") for name, port in ports.items()
    }


def record(partition: int) -> PutRequest:
    """A put of datacentre 1."""
    now_ms = int(time.time() * 1000)
    body = os.urandom(BODY_SIZE)
    vector = checksum_vector(body)
    blob_id = BlobId(Kind.SIMPLE, 1, 1, 1, partition, ids.new_unique(now_ms, os.urandom(10))).binary()
    return PutRequest(blob_id, now_ms, NEVER, PROPERTIES, body, vector, root_of(vector, BODY_SIZE))


async def arrived_s(put: PutRequest, far: list[RemoteDatanode]) -> float:
    """When the bytes were first there in the other datacentre."""
    loop = asyncio.get_running_loop()
    while True:
        for node in far:
            with contextlib.suppress(AmbryError):
                await node.get(GetRequest(put.blob_id, 0, 2**63), loop.time() + 5)
                return loop.time()
        await asyncio.sleep(0.01)


async def measure_lag(ports: dict[str, int], puts_per_s: int, seconds: int, partitions: int) -> None:
    """Put at a rate, and watch every tenth blob arrive."""
    loop = asyncio.get_running_loop()
    nodes = connect(ports)
    near = [nodes[name] for name, datacentre in NODES.items() if datacentre == "east"]
    far = [nodes[name] for name, datacentre in NODES.items() if datacentre == "west"]
    lags: list[float] = []
    failures = 0

    async def put_one(number: int) -> None:
        nonlocal failures
        put = record(1 + number % partitions)
        try:
            await asyncio.gather(*(node.put(put, loop.time() + 20) for node in near))
        except AmbryError:
            failures += 1
            return
        durable_s = loop.time()
        if number % 10 == 0:
            lags.append(await arrived_s(put, far) - durable_s)

    begin_s = loop.time()
    async with asyncio.TaskGroup() as group:
        for number in range(puts_per_s * seconds):
            await asyncio.sleep(max(begin_s + number / puts_per_s - loop.time(), 0))
            group.create_task(put_one(number), name="put")
    took_s = loop.time() - begin_s
    await asyncio.sleep(3)
    read = await wan_bytes(nodes)
    written = puts_per_s * seconds * BODY_SIZE
    lags.sort()
    print(f"puts: {puts_per_s * seconds} in {took_s:.1f} s, {failures} failed, {len(lags)} watched")
    print(
        f"lag: p50 {lags[len(lags) // 2] * 1000:.0f} ms, p99 {lags[len(lags) * 99 // 100] * 1000:.0f} ms, "
        f"most {lags[-1] * 1000:.0f} ms (bar: p99 < 1000 ms)"
    )
    print(f"WAN: {read / written:.3f} bytes read for each byte written (bar: 1.2)")
    for node in nodes.values():
        await node.close()


async def wan_bytes(nodes: dict[str, RemoteDatanode]) -> int:
    """What the datanodes of the other datacentre have read from this one, headers included."""
    loop = asyncio.get_running_loop()
    size = 0
    for name, datacentre in NODES.items():
        if datacentre == "west":
            request = ReplicationRequest(ReplicationAction.TELL, ())
            status = await nodes[name].replication(request, loop.time() + 20)
            for link in status.links:
                if link.datacentre == 1:
                    size += link.listed_bytes + link.fetched_bytes
                    size += link.fetched_bytes // BODY_SIZE * RECORD_HEADER_BYTES
    return size


def measure_idle(pids: list[int], seconds: int) -> None:
    """CPU of processes that have nothing to do."""
    time.sleep(20)
    before = cpu_seconds(pids)
    time.sleep(seconds)
    share = (cpu_seconds(pids) - before) / seconds
    print(f"idle: {share * 100:.1f} % of a core for {len(pids)} datanodes (bar: 5 %)")


def main() -> None:
    """Both measurements, each with fresh datanodes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["idle", "lag"], help="idle, lag")
    parser.add_argument("--partitions", type=int, default=1000, help="of each datanode, for idle")
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--rate", type=int, default=500, help="puts in a second")
    arguments = parser.parse_args()
    for what in arguments.what:
        partitions = arguments.partitions if what == "idle" else 16
        with (
            tempfile.TemporaryDirectory(prefix="ambry-bench-") as folder,
            datanodes(Path(folder), partitions) as (ports, pids),
        ):
            if what == "idle":
                measure_idle(pids, arguments.seconds)
            else:
                asyncio.run(measure_lag(ports, arguments.rate, arguments.seconds, partitions))


if __name__ == "__main__":
    main()
