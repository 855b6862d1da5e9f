"""`python -m bench.models`: files, models and safetensors through a store of this machine, beside `curl` in one run.

    python -m bench.models                    a checkpoint of 2 GiB, a file of 4 GiB, 20 000 small files
    python -m bench.models --only files       some of `files`, `large`, `many`, `checkpoints`, `imports`
    python -m bench.models --mib 256          the same in short, to see that it works; its times mean little
    python -m bench.models --kills 2          the server is killed while the model is pushed, and while it is pulled

Made files: 20 000 of 1 to 100 KB, one of 4 GiB, one checkpoint in safetensors, of which 1 % is changed in 200 runs at
random places, and a model of 100 small files. Prints each bar with what was measured, and ends with status 1 when bytes
were wrong; whether bars of time are met depends on the machine. Traffic goes to this machine only.
"""

import argparse
import contextlib
import ctypes
import filecmp
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

from ambry.client import Client
from ambry.client.model_pull import Pulled
from ambry.client.models import Pushed
from ambry.errors import AmbryError
from ambry.limits import MIB
from bench.files import Server

Done = TypeVar("Done")
BASE: Final = "default/default"
RUNS: Final = 200
SHARE: Final = 0.01
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_MAX: Final = -4
"""Of mallopt(3)."""

JOBS: Final = ("files", "large", "many", "checkpoints", "imports")
ATTEMPTS: Final = 50


class Report:
    """Bars, and what was measured."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def bar(self, name: str, value: float, limit: float, unit: str) -> None:
        """A value that should be at most its limit."""
        print(f"{name:58} {value:9.3f} {unit:3} (bar {limit:g})  {'met' if value <= limit else 'NOT MET'}", flush=True)

    def least(self, name: str, value: float, limit: float, unit: str) -> None:
        """A value that should be at least its limit."""
        print(f"{name:58} {value:9.3f} {unit:3} (bar {limit:g})  {'met' if value >= limit else 'NOT MET'}", flush=True)

    def check(self, what: str, *, is_right: bool) -> None:
        """Something that must be so on any machine."""
        if not is_right:
            self.problems.append(what)
            print(f"WRONG: {what}", flush=True)


def timed(job: Callable[[], Any]) -> float:
    """Seconds that a job takes."""
    began = time.perf_counter()
    job()
    return time.perf_counter() - began


def made_checkpoint(path: Path, size: int, seed: int) -> None:
    """A safetensors file of random bytes, written piece by piece; four tensors of equal size."""
    each = size // 4 // 4096 * 4096
    tensors = {
        f"layer.{number}": {
            "dtype": "F32", "shape": [each // 4096, 1024], "data_offsets": [number * each, (number + 1) * each],
        }
        for number in range(4)
    }  # fmt: skip
    header = json.dumps(tensors).encode()
    header += b" " * (-len(header) % 8)
    chance = np.random.default_rng(seed)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for _ in range(4):
            for at in range(0, each, 16 * MIB):
                file.write(chance.bytes(min(16 * MIB, each - at)))


def change(path: Path, seed: int) -> None:
    """Change 1 % of a file's bytes in runs at random places; the header stays."""
    chance = random.Random(seed)
    size = path.stat().st_size
    run = int(size * SHARE / RUNS)
    with path.open("r+b") as file:
        for _ in range(RUNS):
            file.seek(chance.randrange(4096, size - run))
            file.write(chance.randbytes(run))


class Killer:
    """Kills the server at moments drawn from a seed, counted in bytes of progress, and starts it again."""

    def __init__(self, server: Server, moments: list[int]) -> None:
        self._server = server
        self._moments = sorted(moments)
        self._lock = threading.Lock()

    def __call__(self, done: int, total: int) -> None:
        """As progress of a transfer."""
        del total
        with self._lock:
            if self._moments and done >= self._moments[0]:
                self._moments.pop(0)
                self._server.kill()
                print(f"  killed at {done / MIB:.0f} MiB; answers again after {self._server.start():.1f} s", flush=True)


def until_done(job: Callable[[], Done]) -> Done:
    """Again after each error, as whoever runs it by hand would."""
    for _ in range(ATTEMPTS - 1):
        with contextlib.suppress(AmbryError):
            return job()
    return job()


def checkpoints(report: Report, client: Client, server: Server, folder: Path, options: argparse.Namespace) -> None:
    """Push, push what changed, pull, and tensors."""
    model = folder / "checkpoint"
    model.mkdir()
    path = model / "model.safetensors"
    made_checkpoint(path, options.mib * MIB, options.seed)
    size = path.stat().st_size
    chance = random.Random(options.seed)

    def killer() -> Killer:
        return Killer(server, [chance.randrange(1, size + 1) for _ in range(options.kills)])

    # One for all attempts of a job: what goes on after a kill must be able to come to its end.
    kill = killer()
    first: Pushed = until_done(lambda: client.push_model(model, f"{BASE}/checkpoint", progress=kill))
    change(path, options.seed + 1)
    kill_again = killer()
    changed: Pushed = until_done(lambda: client.push_model(model, f"{BASE}/checkpoint", progress=kill_again))
    report.check("both pushes are versions", is_right=first.version != changed.version)
    report.bar("push with 1 % changed: share of the bytes", changed.sent_bytes / changed.size, 0.05, "")
    kill_pull = killer()
    pulled: Pulled = until_done(lambda: client.pull_model(changed.ref, folder / "copy", progress=kill_pull))
    found = client.verify_model(changed.ref, pulled.folder)
    report.check("what was pulled has its SHA-256", is_right=not found.problems)
    report.check("so has what the store has", is_right=not client.verify_model(first.ref, reads=True).problems)
    blob = client.upload_file(path)
    _tensors(report, client, server, (blob.id, f"{changed.ref}/model.safetensors", path), options, "")
    _keep_memory()
    loaded = client.load_tensors(blob.id)
    del loaded
    where = (blob.id, f"{changed.ref}/model.safetensors", path)
    _tensors(report, client, server, where, options, ", into memory that the process has")
    loaded = client.load_tensors(blob.id)
    expected = np.memmap(path, np.float32, "r", offset=size - 4 * loaded["layer.0"].nbytes)
    joined = np.concatenate([loaded[f"layer.{number}"].reshape(-1) for number in range(4)])
    report.check("tensors are the file's", is_right=np.array_equal(joined.view(np.uint8), expected.view(np.uint8)))


def _tensors(
    report: Report,
    client: Client,
    server: Server,
    where: tuple[str, str, Path],
    options: argparse.Namespace,
    memory: str,
) -> None:
    """Whole files into arrays, from the store and from the cache; `where` has the blob, the model's file, the file."""
    blob_id, of_model, path = where
    for _ in range(options.rounds):
        curl_s = timed(lambda: subprocess.run(
            ["curl", "-sSf", "-o", "/dev/null", f"http://127.0.0.1:{server.port}/{blob_id}"], check=True))  # fmt: skip
        store_s = timed(lambda: client.load_tensors(blob_id))
        copy_s = timed(lambda: np.array(np.memmap(path, np.uint8, "r")))
        cache_s = timed(lambda: client.load_tensors(of_model))
        report.bar(f"safetensors into arrays, of the time of curl to /dev/null{memory}", store_s / curl_s, 1.3, "x")
        report.bar(f"the same from the cache, of reading and copying the file{memory}", cache_s / copy_s, 1.5, "x")


def _keep_memory() -> None:
    """From here on the allocator keeps what was freed, and the next array is in it.

    A virtual machine may give freed memory back to its host, and asks for it page by page when it is used again: with
    2 GiB of arrays that takes up to three times as long as filling them, and says nothing of the store or the client.
    """
    libc = ctypes.CDLL(None)
    assert libc.mallopt(_M_MMAP_MAX, 0) == 1
    assert libc.mallopt(_M_TRIM_THRESHOLD, -1) == 1


def small_files(report: Report, client: Client, folder: Path, options: argparse.Namespace) -> None:
    """A folder of many small files, up and down."""
    chance = random.Random(options.seed)
    source = folder / "small"
    for number in range(options.files):
        path = source / f"{number % 97:02}" / f"file-{number:05}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chance.randbytes(chance.randrange(1000, 100_001)))
    for number in range(options.rounds):
        up_s = timed(lambda: client.upload_dir(source, f"{BASE}/small-{number}"))  # noqa: B023 -- called at once
        report.least("small files up, a second", options.files / up_s, 3000, "1/s")
        # All copies stay to the end: ext4 passes over the places of files that were removed in the last minutes, one by
        # one for each new file, and the next round would measure that.
        copy = folder / f"small-copy-{number}"
        down_s = timed(lambda: client.download_dir(f"{BASE}/small-{number}", copy))  # noqa: B023 -- called at once
        report.least("small files down, a second", options.files / down_s, 3000, "1/s")
        paths = [path.relative_to(source) for path in source.rglob("*") if path.is_file()]
        same = all((copy / path).read_bytes() == (source / path).read_bytes() for path in paths)
        report.check("small files are the same", is_right=same and len(paths) == options.files)
    for number in range(options.rounds):
        shutil.rmtree(folder / f"small-copy-{number}")
    shutil.rmtree(source)


_TRANSFER: Final = """
import sys, time
from ambry.client import Client
what, url, path, ref = sys.argv[1:]
with Client(url) as client:
    began = time.perf_counter()
    if what == "up":
        ref = client.upload_file(path).id
    else:
        client.download_file(ref, path)
    took_s = time.perf_counter() - began
# Not getrusage: the peak that it tells may be that of the process that was forked.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(took_s, int(peak.split()[1]) / 1024, time.process_time(), ref)
"""


def transferred(what: str, url: str, path: Path, ref: str) -> tuple[float, float, float, str]:
    """Seconds, MiB of memory at most, seconds of processor, and the blob, of a transfer in a process of its own."""
    command = [sys.executable, "-c", _TRANSFER, what, url, str(path), ref]
    words = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return float(words[0]), float(words[1]), float(words[2]), words[3]


def large_file(report: Report, url: str, folder: Path, options: argparse.Namespace) -> None:
    """One large file up and down, beside curl over one connection."""
    path, copy = folder / "large", folder / "large-copy"
    block = random.Random(options.seed).randbytes(64 * MIB)
    with path.open("wb") as file:
        for number in range(int(options.gib * 16)):
            file.write(number.to_bytes(8, "big") + block[8:])
    size = path.stat().st_size
    for number in range(options.rounds):
        target = f"{url}/named/{BASE}/curl-{number}"
        _even(folder, size)
        curl_up_s = timed(lambda: subprocess.run(
            ["curl", "-sSf", "-o", "/dev/null", "-T", str(path), target], check=True))  # noqa: B023 -- called at once # fmt: skip
        _even(folder, size)
        up_s, up_mib, up_cpu_s, ref = transferred("up", url, path, "-")
        print(f"  up {size / up_s / 1e6:.0f} MB/s, curl {size / curl_up_s / 1e6:.0f}; {up_cpu_s:.1f} s of client")
        report.least("one large file up, of the rate of curl", curl_up_s / up_s, 0.8, "x")
        report.bar("memory of the client meanwhile", up_mib, 300, "MiB")
        _even(folder, size)
        curl_down_s = timed(lambda: subprocess.run(
            ["curl", "-sSf", "-o", str(copy), f"{url}/{ref}"], check=True))  # noqa: B023 -- called at once # fmt: skip
        sync_s = timed(lambda: _sync(copy))
        copy.unlink()
        _even(folder, size)
        down_s, down_mib, down_cpu_s, _ = transferred("down", url, copy, ref)
        print(
            f"  down {size / down_s / 1e6:.0f} MB/s, curl {size / curl_down_s / 1e6:.0f}, "
            f"{size / (curl_down_s + sync_s) / 1e6:.0f} with a sync; {down_cpu_s:.1f} s of client"
        )
        print(f"  down, of the rate of curl and a sync: {(curl_down_s + sync_s) / down_s:.3f} x")
        report.least("one large file down, of the rate of curl to a file", curl_down_s / down_s, 1.0, "x")
        report.bar("memory of the client meanwhile", down_mib, 300, "MiB")
        report.check("the large file is the same", is_right=filecmp.cmp(path, copy, shallow=False))
        copy.unlink()
    path.unlink()


def _even(folder: Path, size: int) -> None:
    """Before each transfer the same: nothing that waits for the disk, and memory for the page cache of its file.

    A virtual machine may have given memory back to its host, and asks for it page by page. Whoever came after a file
    was removed found its pages, and took half the time of whoever came before.
    """
    os.sync()
    path, piece = folder / "even", bytes(4 * MIB)
    with path.open("wb", buffering=0) as file:
        for _ in range(size // len(piece)):
            file.write(piece)
    path.unlink()


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def many_files(report: Report, client: Client, folder: Path, options: argparse.Namespace) -> None:
    """The second pull of a model of 100 files."""
    model = folder / "many"
    model.mkdir()
    chance = random.Random(options.seed)
    for number in range(100):
        (model / f"part-{number:03}").write_bytes(chance.randbytes(100_000))
    pushed = client.push_model(model, f"{BASE}/many")
    report.check(
        "the first pull loads all", is_right=client.pull_model(pushed.ref, folder / "a").loaded_bytes == 10_000_000
    )
    for number in range(options.rounds):
        began = time.perf_counter()
        pulled = client.pull_model(f"{BASE}/many", folder / f"b-{number}")
        took_ms = 1000 * (time.perf_counter() - began)
        report.bar("second pull of 100 files into an empty folder", took_ms, 100, "ms")
        report.check("the second pull moves no bodies", is_right=pulled.loaded_bytes == 0)
    report.check("all files are right", is_right=not client.verify_model(pushed.ref, folder / "b-0").problems)


def imports(report: Report) -> None:
    """The import of the library, by itself; its modules are compiled before, as an installer leaves them."""
    program = "import time; began = time.perf_counter(); import ambry.client; print(time.perf_counter() - began)"
    with tempfile.TemporaryDirectory() as compiled:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": compiled, "PYTHONDONTWRITEBYTECODE": ""}
        command = [sys.executable, "-c", program]
        runs = [
            float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
            for _ in range(6)
        ]
    report.bar("import ambry.client, the fastest of five", 1000 * min(runs[1:]), 100, "ms")


@contextlib.contextmanager
def working(folder: Path | None) -> Iterator[Path]:
    """A folder that is gone afterwards."""
    made = Path(tempfile.mkdtemp(prefix="ambry-models-", dir=folder or "."))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=2048, help="size of the checkpoint")
    parser.add_argument("--kills", type=int, default=0, help="SIGKILLs during each push, and during the pull")
    parser.add_argument("--gib", type=float, default=4.0, help="size of the large file")
    parser.add_argument("--files", type=int, default=20_000, help="small files")
    parser.add_argument("--only", nargs="+", choices=JOBS, default=JOBS, help="jobs to run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--folder", type=Path, help="where the files are made (here); needs eight times their size")
    options = parser.parse_args()
    print(f"seed {options.seed}, {options.mib} MiB", flush=True)
    report = Report()
    with working(options.folder) as folder:
        server = Server(folder)
        server.start()
        try:
            with Client(f"http://127.0.0.1:{server.port}", cache=folder / "cache") as client:
                jobs: dict[str, Callable[[], None]] = {
                    "files": lambda: small_files(report, client, folder, options),
                    "large": lambda: large_file(report, f"http://127.0.0.1:{server.port}", folder, options),
                    "many": lambda: many_files(report, client, folder, options),
                    "checkpoints": lambda: checkpoints(report, client, server, folder, options),
                    "imports": lambda: imports(report),
                }
                for name in options.only:
                    jobs[name]()
        finally:
            server.kill()
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
