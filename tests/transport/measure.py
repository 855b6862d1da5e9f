"""How many requests a second pass between two processes: `python -m tests.transport.measure`. Not a test.

One process has a DatanodeServer before a datanode in memory, this one a RemoteDatanode; both on uvloop. What is
measured is the protocol, the sockets and the futures, without disks and without HTTP.
"""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import uvloop

from ambry.protocol.datanode import GetRequest
from ambry.transport.client import RemoteDatanode
from ambry.transport.server import DatanodeServer
from tests.memory_datanode import MemoryDatanode, put_request
from tests.transport.ends import CLUSTER, HOST, NODE, SECRET, blob_id, far

BLOBS = 1000
BODY_BYTES = 4096
REQUESTS = 50_000


async def serve() -> None:
    """Serve on a free port, say which, and end with standard input."""
    datanode = MemoryDatanode(NODE)
    for number in range(BLOBS):
        await datanode.put(put_request(blob_id(number), os.urandom(BODY_BYTES)), far())
    server = DatanodeServer(datanode, NODE, CLUSTER, SECRET)
    print((await server.start(HOST, 0))[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(1)
    print(f"server: {time.process_time():.2f} s of CPU in all")


async def ask(port: int) -> None:
    """Print rates of gets and puts with 32 and 128 requests at a time."""
    datanode = RemoteDatanode(HOST, port, NODE, CLUSTER, SECRET, "measure")
    put = put_request(blob_id(BLOBS), os.urandom(BODY_BYTES))
    gets = [GetRequest(blob_id(number), 0, 2**22) for number in range(BLOBS)]

    async def get(numbers: Iterator[int]) -> None:
        for number in numbers:
            await datanode.get(gets[number % len(gets)], far())

    async def store(numbers: Iterator[int]) -> None:
        for _ in numbers:
            await datanode.put(put, far())

    for name, work in (("get", get), ("put", store)):
        for concurrency in (32, 128):
            left = iter(range(REQUESTS))

            wall, cpu = time.perf_counter(), time.process_time()
            await asyncio.gather(*(work(left) for _ in range(concurrency)))
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            print(f"{name} {concurrency:4}: {REQUESTS / wall:8.0f}/s, client {cpu / REQUESTS * 1e6:.1f} µs of CPU each")
    await datanode.close()


def main() -> None:
    """Run the server as a child, and the client here."""
    if sys.argv[1:] == ["serve"]:
        uvloop.run(serve())
        return
    command = [sys.executable, "-m", "tests.transport.measure", "serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        uvloop.run(ask(int(child.stdout.readline())))
        print(child.communicate()[0], end="")


if __name__ == "__main__":
    main()
