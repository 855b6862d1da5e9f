"""What the processes of the store have in common: the loop, signals, logs, and workers that share a port.

SIGTERM and SIGINT ask a process to stop: it takes nothing new, finishes what it has and syncs. A second signal ends
it at once, which is as safe as a crash: what was acknowledged is on disk.
"""

import asyncio
import contextlib
import gc
import os
import resource
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

import uvloop

from ambry import logs
from ambry.config import LogFormat, LogSettings
from ambry.limits import HTTP_CONNECTIONS_MAX

_log = logs.get_logger(__name__)

_FILES_WANTED: Final = 2 * HTTP_CONNECTIONS_MAX
_GC_THRESHOLDS: Final = (50_000, 20, 100)

_RESTART_SECONDS_MIN: Final = 1.0
_RESTART_SECONDS_MAX: Final = 30.0
# A worker that ran for this long did not die at its start; the next restart may be quick again.
_STEADY_SECONDS: Final = 60.0


class Stop:
    """The moment when this process is asked to stop. Made inside the loop; then signals are its business."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._take, number)

    def _take(self, number: signal.Signals) -> None:
        if self._asked.is_set():
            _log.warning("second signal: ending at once", signal=number.name)
            os._exit(128 + number)
        self._asked.set()
        _log.info("stopping", signal=number.name)

    def ask(self) -> None:
        """Stop for a reason of our own."""
        self._asked.set()

    async def wait(self) -> None:
        """Return when the process is to stop."""
        await self._asked.wait()


def configure_logs(settings: LogSettings) -> None:
    """Send log lines where and how the settings say."""
    force_json = {LogFormat.AUTO: None, LogFormat.TEXT: False, LogFormat.JSON: True}[settings.format]
    logs.configure(settings.level, force_json=force_json)


def run(serve: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a process to its end. Errors of the store pass through; the caller has an exit status for them."""
    _allow_files()
    # What was imported stays for ever, and requests make few cycles: looking for garbage at Python's own thresholds
    # took 14 % of the time of small puts.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    uvloop.run(serve())


def _allow_files() -> None:
    """Let this process have as many files and connections as the system allows it at all.

    The usual soft limit of 1024 is for programs that call select().
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES_WANTED if hard == resource.RLIM_INFINITY else min(hard, _FILES_WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Workers:
    """Further processes of ours that share the port. They end with this one, and are started again when they die.

    `arguments` are those of the command line after `ambry`. A worker holds the other end of its standard input: when
    this process is gone, however it went, the worker reads the end of the file and stops.
    """

    def __init__(self, arguments: Sequence[str], count: int) -> None:
        assert count >= 0
        self._command = [sys.executable, "-m", "ambry.cli.main", *arguments]
        self._count = count
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()

    def start(self, *arguments: str) -> None:
        """Start them, with what is known only now. Returns at once; a worker joins the port when it is ready."""
        self._command += arguments
        for number in range(1, self._count + 1):
            self._tasks.append(asyncio.create_task(self._keep(number), name=f"worker {number}"))

    async def stop(self, grace_s: float) -> None:
        """Ask them to stop, and end those that take longer than `grace_s`."""
        self._stopping.set()
        for process in self._running.values():
            _send(process, signal.SIGTERM)
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=grace_s)
            for process in self._running.values():
                _send(process, signal.SIGKILL)
            for task in late:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        wait_s = _RESTART_SECONDS_MIN
        while not self._stopping.is_set():
            started_s = loop.time()
            # A session of its own: Ctrl-C in a terminal is for this process, which then asks its workers.
            process = await asyncio.create_subprocess_exec(
                *self._command, stdin=asyncio.subprocess.PIPE, start_new_session=True
            )
            self._running[number] = process
            if self._stopping.is_set():
                # Asked between the decision to start it and its start.
                _send(process, signal.SIGTERM)
            status = await process.wait()
            del self._running[number]
            if self._stopping.is_set():
                return
            if loop.time() - started_s > _STEADY_SECONDS:
                wait_s = _RESTART_SECONDS_MIN
            _log.error("worker died; starting another", worker=number, status=status, wait_s=wait_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._stopping.wait()
            wait_s = min(2 * wait_s, _RESTART_SECONDS_MAX)


def _send(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except ProcessLookupError:
        # It ended by itself a moment ago.
        return


async def parent_gone() -> None:
    """Return when the process that started this one as a worker is gone."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()
