"""`python -m bench.folders`: a folder of small files through `ambry cp`, `sync` and `rm`, processes as people run them.

    python -m bench.folders                   20,000 files of 1 to 100 KB
    python -m bench.folders --files 2000      the same in short, to see that it works

Against `ambry serve` on this machine, which has the same cores. Of each command: files in a second, CPU time of client
and server for each file, and the client's peak of resident memory. Ends with status 1 when files that came down are not
those that went up; whether the bar of 3,000 files/s is met depends on the machine. Traffic goes to this machine only.
"""

import argparse
import filecmp
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import psutil

from bench.files import Server
from bench.models import Report, working

PLACE: Final = "ambry://default/default/folder"
BAR: Final = 3000


def made(folder: Path, count: int, seed: int) -> int:
    """Files of 1 to 100 KB, a hundred in a folder; their bytes in total."""
    chance = random.Random(seed)
    total = 0
    for number in range(count):
        path = folder / f"{number // 100:04}" / f"{number:06}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = chance.randint(1000, 100_000)
        path.write_bytes(chance.randbytes(size))
        total += size
    return total


def cpu_s(pid: int) -> float:
    """CPU seconds of a process and those that it has started."""
    process = psutil.Process(pid)
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return sum(one.user + one.system for one in times)


class Commands:
    """Runs `ambry` and says what it took."""

    def __init__(self, server: Server, files: int) -> None:
        self._server = server
        self._environment = os.environ | {"AMBRY_URL": f"http://127.0.0.1:{server.port}"}
        self._files = files

    def run(self, label: str, *arguments: str) -> None:
        """One command, and a line."""
        before = cpu_s(self._server.pid)
        began = time.perf_counter()
        command = [sys.executable, "-m", "ambry.cli.main", *arguments]
        pid = os.posix_spawn(command[0], command, self._environment)
        _, status, usage = os.wait4(pid, 0)
        took_s = time.perf_counter() - began
        if status:
            raise SystemExit(f"{' '.join(arguments)}: {os.waitstatus_to_exitcode(status)}")
        rate = self._files / took_s
        client_us = 1e6 * (usage.ru_utime + usage.ru_stime) / self._files
        server_us = 1e6 * (cpu_s(self._server.pid) - before) / self._files
        print(
            f"{label:34} {rate:8.0f} files/s  CPU per file: client {client_us:5.0f} us, server {server_us:5.0f} us;"
            f"  {usage.ru_maxrss // 1024} MiB",
            flush=True,
        )


def are_equal(one: Path, other: Path) -> bool:
    """Whether two folders have the same files."""
    names = [
        sorted(path.relative_to(top).as_posix() for path in top.rglob("*") if path.is_file()) for top in (one, other)
    ]
    return names[0] == names[1] and filecmp.cmpfiles(one, other, names[0], shallow=False)[0] == names[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--folder", type=Path, help="where the files are made (here); needs six times their size")
    options = parser.parse_args(arguments)
    report = Report()
    with working(options.folder) as folder:
        up, down, again = folder / "up", folder / "down", folder / "again"
        total = made(up, options.files, options.seed)
        print(f"seed {options.seed}, {options.files} files, {total / 1e6:.0f} MB; bar {BAR} files/s", flush=True)
        server = Server(folder)
        server.start()
        try:
            commands = Commands(server, options.files)
            commands.run("cp -r, up", "cp", "-r", str(up), PLACE)
            commands.run("cp -r, down", "cp", "-r", PLACE, str(down))
            report.check("what came down is what went up", is_right=are_equal(up, down))
            commands.run("sync up, nothing to do", "sync", str(up), PLACE)
            commands.run("sync up, all by checksum", "sync", "--checksum", str(up), PLACE)
            commands.run("sync down, all", "sync", PLACE, str(again))
            report.check("what sync brought is what went up", is_right=are_equal(up, again))
            commands.run("sync down, nothing to do", "sync", PLACE, str(again))
            commands.run("sync up, all into another folder", "sync", str(up), f"{PLACE}-2")
            commands.run("du", "du", PLACE)
            commands.run("rm -r", "rm", "-r", PLACE)
        finally:
            server.kill()
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
