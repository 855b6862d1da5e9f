"""`python -m bench.files`: real files of this machine through the store, with SIGKILL in between. Not a timing.

    python -m bench.files                        the standard library and the environment's packages
    python -m bench.files --big-gib 5 /usr/lib   also a folder of shared libraries, and one made file of 5 GiB
    python -m bench.files --kills 5 --seed 7     five kills, at moments drawn from the seed

Files are put by several threads, by Content-Length and chunked in turn, while the server is killed at random moments
and started again on the same directory. A put that was not acknowledged is tried again. At the end, after one more
kill, every acknowledged file is read back whole and by random ranges and compared with what is on the disk now, by
SHA-256. Ends with status 1 at the first difference. Traffic goes to this machine only.
"""

import argparse
import contextlib
import hashlib
import http.client
import os
import queue
import random
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final, Protocol

PIECE_BYTES: Final = 1 << 20
ATTEMPTS_MAX: Final = 200
"""A put is tried again this often while the server is away; each waits 0.1 s."""
START_S_MAX: Final = 60.0
RANGES_PER_FILE: Final = 3


@dataclass(slots=True)
class Progress:
    """What happened so far, shared by the threads."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    stored: list[tuple[Path, str, str]] = field(default_factory=list)
    retries: int = 0
    put_bytes: int = 0
    read_bytes: int = 0
    ranges: int = 0
    problems: list[str] = field(default_factory=list)


class Server:
    """`ambry serve` on a directory, killed and started again at will."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Start it; seconds until it answered."""
        log = (self._folder / "serve.log").open("ab")
        command = [
            sys.executable,
            "-m",
            "ambry.cli.main",
            "serve",
            "--port",
            str(self.port),
            str(self._folder / "data"),
        ]
        began_s = time.monotonic()
        self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        log.close()
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/healthCheck", timeout=5).close()
                return time.monotonic() - began_s
            if self._process.poll() is not None or time.monotonic() - began_s > START_S_MAX:
                raise SystemExit(f"the server did not start:\n{(self._folder / 'serve.log').read_text()[-2000:]}")
            time.sleep(0.02)

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def rss_bytes(self) -> int:
        """Peak resident memory so far."""
        assert self._process is not None
        for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
        return 0


def files_below(folders: Sequence[Path]) -> list[Path]:
    """Regular files below the folders, each once."""
    found = {path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}
    return sorted(path for path in found if os.access(path, os.R_OK))


def pieces_of(file: BinaryIO) -> Iterator[bytes]:
    """A file in pieces of 1 MiB."""
    while piece := file.read(PIECE_BYTES):
        yield piece


def digest_of(path: Path) -> str:
    """SHA-256 of a file, read anew."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def put(port: int, path: Path, *, is_chunked: bool) -> str:
    """Put one file; its location. Raises OSError or HTTPException when it was not acknowledged."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    with contextlib.closing(connection), path.open("rb") as file:
        headers = {"Content-Type": "application/octet-stream", "x-ambry-filename": path.name.encode().hex()}
        if not is_chunked:
            headers["Content-Length"] = str(path.stat().st_size)
        connection.request("POST", "/", pieces_of(file), headers, encode_chunked=is_chunked)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != http.client.CREATED:
            raise http.client.HTTPException(f"{answer.status} {body[:200]!r}")
        return answer.headers["Location"]


class HasPort(Protocol):
    """Where to put the next file."""

    @property
    def port(self) -> int:
        """On this machine."""
        ...


def put_all(server: HasPort, paths: Sequence[Path], threads: int, progress: Progress) -> Iterator[None]:
    """Put all files on several threads; yields every 50 ms while they run."""
    work: queue.SimpleQueue[Path] = queue.SimpleQueue()
    for path in paths:
        work.put(path)

    def run() -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                _put_one(server, work.get_nowait(), progress)

    running = [threading.Thread(target=run, daemon=True) for _ in range(threads)]
    for thread in running:
        thread.start()
    while any(thread.is_alive() for thread in running):
        yield
        time.sleep(0.05)


def _put_one(server: HasPort, path: Path, progress: Progress) -> None:
    before = digest_of(path)
    for _ in range(ATTEMPTS_MAX):
        try:
            location = put(server.port, path, is_chunked=len(progress.stored) % 2 == 1)
        except (OSError, http.client.HTTPException):
            with progress.lock:
                progress.retries += 1
            time.sleep(0.1)
            continue
        with progress.lock:
            progress.stored.append((path, location, before))
            progress.put_bytes += path.stat().st_size
        return
    progress.problems.append(f"{path} could not be put in {ATTEMPTS_MAX} attempts")


def check(port: int, entry: tuple[Path, str, str], chance: random.Random, progress: Progress) -> None:
    """Read one file back, whole and by ranges."""
    path, location, digest = entry
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    with contextlib.closing(connection):
        connection.request("GET", location)
        answer = connection.getresponse()
        found = hashlib.sha256()
        size = 0
        while piece := answer.read(PIECE_BYTES):
            found.update(piece)
            size += len(piece)
        progress.read_bytes += size
        if answer.status != http.client.OK or found.hexdigest() != digest:
            progress.problems.append(f"{path}: GET {location} answered {answer.status} and {size} other bytes")
            return
        with path.open("rb") as file:
            for _ in range(RANGES_PER_FILE if size else 0):
                start = chance.randrange(size)
                stop = min(size, start + 1 + int(chance.paretovariate(0.5)))
                connection.request("GET", location, headers={"Range": f"bytes={start}-{stop - 1}"})
                part = connection.getresponse()
                body = part.read()
                file.seek(start)
                progress.ranges += 1
                if part.status != http.client.PARTIAL_CONTENT or body != file.read(stop - start):
                    progress.problems.append(f"{path}: bytes {start}-{stop - 1} of {location} are others")


def make_big_file(folder: Path, size_gib: int, seed: int) -> Path:
    """A file of random bytes, the same for the same seed."""
    path = folder / f"made-{size_gib}GiB"
    chance = random.Random(seed)
    with path.open("wb") as file:
        for _ in range(size_gib * 64):
            file.write(chance.randbytes(16 * PIECE_BYTES))
    return path


def main() -> None:
    """Run the proof as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    library = [Path(sysconfig.get_paths()["stdlib"]), Path(sysconfig.get_paths()["purelib"])]
    parser.add_argument("folders", nargs="*", type=Path, default=library)
    parser.add_argument("--files", type=int, default=0, help="as many files, drawn at random (0: all)")
    parser.add_argument("--big-gib", type=int, default=0, help="also one made file of this size")
    parser.add_argument("--kills", type=int, default=3, help="SIGKILLs while files are put")
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="ambry-files-", dir="."))
    server = Server(folder)
    try:
        _prove(server, folder, options)
    finally:
        with contextlib.suppress(AssertionError):
            server.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _prove(server: Server, folder: Path, options: argparse.Namespace) -> None:
    chance = random.Random(options.seed)
    paths = files_below(options.folders)
    if options.files:
        paths = chance.sample(paths, min(options.files, len(paths)))
    if options.big_gib:
        paths.append(make_big_file(folder, options.big_gib, options.seed))
    chance.shuffle(paths)
    total = sum(path.stat().st_size for path in paths)
    print(f"{len(paths)} files, {total / 2**20:.0f} MiB", flush=True)
    server.start()
    progress = Progress()
    kills = sorted(chance.uniform(0, 0.9) for _ in range(options.kills))
    for _ in put_all(server, paths, options.threads, progress):
        # By files and by bytes: a single large file would otherwise put off all kills until it is done.
        if kills and (progress.put_bytes / max(total, 1) + len(progress.stored) / len(paths)) / 2 >= kills[0]:
            kills.pop(0)
            _restart(server, progress)
    _restart(server, progress)
    for number, entry in enumerate(progress.stored):
        check(server.port, entry, chance, progress)
        if number % 500 == 0:
            print(f"  {number} of {len(progress.stored)} read back", flush=True)
    print(
        f"{len(progress.stored)} files put ({progress.retries} attempts were cut off), "
        f"{progress.read_bytes / 2**20:.0f} MiB read back, {progress.ranges} ranges; "
        f"peak memory of the server {server.rss_bytes() / 2**20:.0f} MiB"
    )
    for problem in progress.problems:
        print("WRONG:", problem)
    if progress.problems or len(progress.stored) != len(paths):
        raise SystemExit(1)
    print("all equal")


def _restart(server: Server, progress: Progress) -> None:
    server.kill()
    print(f"  killed after {len(progress.stored)} files; answers again after {server.start():.2f} s", flush=True)


if __name__ == "__main__":
    main()
