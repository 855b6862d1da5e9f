"""How long a cluster map of 100 000 partitions takes: to load, to change, and in memory. `python -m bench.cluster_map`.

Times are those of the clock and of the processor: on a busy machine only the second ones mean something.

With an address (`host:port/folder`, a folder that nobody used before) also through a real ZooKeeper.
"""

import gc
import resource
import subprocess
import sys
import tempfile
import time

from ambry.cluster import changes
from ambry.cluster.layout import Layout, changed, decode_file, decode_head, encode_file, lay_out, put_together
from ambry.cluster.map import ClusterMap, Datacentre, Disk, Node, Partition, Replica, ReplicaState
from ambry.cluster.zookeeper import Registry
from ambry.limits import GIB

PARTITIONS = 100_000
NODES = 1_000
REPLICAS = 6


def big_map() -> ClusterMap:
    """Two datacentres, four disks a node, six replicas a partition, each with its incarnation."""
    datacentres = {1: Datacentre(1, "east"), 2: Datacentre(2, "west")}
    disks = tuple(Disk(f"/disk{number}", 1 << 44) for number in range(4))
    nodes = {
        f"node-{number}": Node(f"node-{number}", 1 + number % 2, f"rack-{number % 40}", f"host-{number}", 6667, disks)
        for number in range(NODES)
    }
    partitions = {
        number: Partition(
            number,
            100 * GIB,
            number % 10 != 0,
            1,
            tuple(
                Replica(
                    f"node-{(number * 7 + k * 167) % NODES}",
                    f"/disk{number % 4}",
                    ReplicaState.SERVING,
                    (number * 8 + k).to_bytes(16, "big"),
                )
                for k in range(REPLICAS)
            ),
        )
        for number in range(1, PARTITIONS + 1)
    }
    return ClusterMap("bench", 1, datacentres, nodes, partitions)


def load(path: str) -> None:
    """In a process of its own: load a map file, then apply changes that come as pieces."""
    with open(path, "rb") as file:  # noqa: PTH123 -- nothing else is measured here
        data = file.read()
    gc.set_threshold(50_000, 20, 100)  # as every process of the store has it
    began, cpu_began = time.perf_counter(), time.process_time()
    layout = decode_file(data, path)
    took_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
    print(f"loaded from disk in {took_s:.2f} s, {cpu_s:.2f} s of the processor (bar: 2 s)")
    took, cpu = [], []
    for number in range(20):
        after, _ = changed(layout, changes.seal(layout.cluster_map, [10 * (number + 1)], is_sealed=True))
        pieces = dict(after.pieces)
        began, cpu_began = time.perf_counter(), time.process_time()
        found = put_together(decode_head(pieces["head"]), pieces, layout)
        took.append(time.perf_counter() - began)
        cpu.append(time.process_time() - cpu_began)
        assert found is not None
        assert found.cluster_map == after.cluster_map
        layout = found
    for what, times in (("", took), (" of the processor", cpu)):
        median_ms, most_ms = 1000 * sorted(times)[10], 1000 * max(times)
        print(f"one change applied in {median_ms:.1f} ms{what} (median of 20), {most_ms:.1f} ms at worst (bar: 50 ms)")
    print(f"resident at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB (bar: 300 MiB)")


def through_zookeeper(hosts: str, layout: Layout) -> None:
    """The same, from a real server."""
    registry = Registry(hosts)
    registry.start()
    assert registry.wait(30)
    registry.create(layout)
    began = time.perf_counter()
    found = registry.read()
    print(f"read from ZooKeeper in {time.perf_counter() - began:.2f} s")
    began = time.perf_counter()
    after = registry.apply(lambda old: changes.seal(old, [10], is_sealed=True), "seal 10", "bench", found)
    print(f"one change made in {1000 * (time.perf_counter() - began):.1f} ms")
    began = time.perf_counter()
    assert registry.read(found).head == after.head
    print(f"one change read in {1000 * (time.perf_counter() - began):.1f} ms")
    registry.stop()


def main() -> None:
    """Everything, each in a process of its own where memory counts."""
    if len(sys.argv) == 3 and sys.argv[1] == "load":
        load(sys.argv[2])
        return
    layout = lay_out(big_map())
    data = encode_file(layout)
    sizes = [len(piece) for piece in layout.pieces.values()]
    print(f"{PARTITIONS} partitions, {NODES} nodes: {len(sizes)} znodes of {max(sizes)} bytes at most")
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        subprocess.run([sys.executable, "-m", "bench.cluster_map", "load", file.name], check=True)
    if len(sys.argv) == 2:
        through_zookeeper(sys.argv[1], layout)


if __name__ == "__main__":
    main()
