"""What Linux says of processes: CPU time and resident memory, from /proc."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
_UTIME_FIELD: Final = 11
"""utime and stime are fields 14 and 15 of /proc/PID/stat; the name, field 2, may hold spaces, so count behind it."""


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of the processes so far, all threads. In steps of a hundredth of a second."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[_UTIME_FIELD]) + int(fields[_UTIME_FIELD + 1])
    return ticks / _TICKS_PER_SECOND


def rss_bytes(pids: Iterable[int]) -> int:
    """Resident memory of the processes now."""
    return sum(_status_kib(pid, "VmRSS") for pid in pids) * 1024


def _status_kib(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    return 0


def with_children(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    for parent in found:
        children = Path(f"/proc/{parent}/task/{parent}/children")
        found += [int(child) for child in children.read_text().split()] if children.exists() else []
    return found
