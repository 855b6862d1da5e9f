"""Log lines: text on a terminal, one JSON object a line elsewhere. The only door to structlog.

Parts call `get_logger(__name__)` once and log events with facts: `log.warning("put refused", partition=7)`. A request
id that `request_scope` has set is on every line of its task. What libraries write through `logging` takes the same
way out. Secrets do not: values under a key that sounds like one are replaced, whoever logs them. What a client sent
cannot forge lines or grow without bound: control characters are escaped, long values are cut.

A line costs about 30 µs, so nothing is logged per request above level debug; /metrics counts those.
"""

import contextlib
import io
import logging
import re
import sys
from collections.abc import Iterator
from typing import Any, Final, TextIO, TypeAlias, cast

from ambry.limits import LOG_VALUE_CHARACTERS_MAX

# It would draw tracebacks with rich if it could, which we never let it: 0.1 s of every start and 6 MiB for nothing.
_rich = sys.modules.get("rich")
sys.modules["rich"] = cast("Any", None)
try:
    import structlog
finally:
    if _rich is None:
        del sys.modules["rich"]
    else:
        sys.modules["rich"] = _rich
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger  # noqa: E402 -- comes with it

Logger: TypeAlias = FilteringBoundLogger
"""What `get_logger` returns."""

_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}

_SECRET: Final = re.compile(r"secret|password|authori[sz]ation|cookie|token|signature|credential", re.IGNORECASE)
_REMOVED: Final = "[removed]"


def get_logger(name: str) -> Logger:
    """The logger of a module. Good before `configure` too: it looks the configuration up at each line."""
    logger: Logger = structlog.get_logger(logger_name=name.removeprefix("ambry."))
    return logger


def configure(level: str = "info", *, force_json: bool | None = None, stream: TextIO | None = None) -> None:
    """Send lines of `level` (debug, info, warning, error) and above to `stream`, by default standard error.

    `force_json` None means text if the stream is a terminal. Called again it replaces what was set before.
    """
    out = cast("TextIO", _Stream(stream))
    is_terminal = out.isatty()
    is_json = not is_terminal if force_json is None else force_json
    common: list[Processor] = [
        _name,
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.processors.format_exc_info,
        _clean,
    ]
    last: list[Processor] = (
        [structlog.processors.JSONRenderer(default=str)] if is_json else [_text_renderer(is_terminal)]
    )
    structlog.configure(
        processors=[*common, *last],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        # One write a line: workers share the stream, and lines must not be torn.
        logger_factory=structlog.WriteLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    _route_libraries(level, out, common, last)


@contextlib.contextmanager
def request_scope(request_id: str) -> Iterator[None]:
    """Put `request_id` on every line that this task writes inside the block."""
    with structlog.contextvars.bound_contextvars(request_id=request_id):
        yield


class _Stream(io.TextIOBase):
    """A stream whose reader may go away: a log that nobody reads must not end a process, or keep it from ending."""

    def __init__(self, stream: TextIO | None) -> None:
        """None: standard error, whatever that is when a line is written."""
        self._given = stream

    @property
    def _stream(self) -> TextIO:
        return self._given or sys.stderr

    def isatty(self) -> bool:
        """Whether someone watches."""
        return self._stream.isatty()

    def write(self, text: str) -> int:
        """Write, or give up."""
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, or give up."""
        with contextlib.suppress(OSError):
            self._stream.flush()


def _route_libraries(level: str, out: TextIO, common: list[Processor], last: list[Processor]) -> None:
    """Let aiohttp, asyncio and others, which use `logging`, end up in the same stream and form."""
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=common,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    for former in root.handlers[:]:
        root.removeHandler(former)
    root.addHandler(handler)
    # Libraries say at info what we say better; aiohttp would log every request.
    root.setLevel(_LEVELS[level] if level == "debug" else max(_LEVELS[level], logging.WARNING))


def _name(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    record = event.get("_record")
    if isinstance(record, logging.LogRecord):
        event["logger"] = record.name
    else:
        # structlog has a parameter called `logger`, so the name cannot be bound under that key.
        event["logger"] = event.pop("logger_name", "")
    return event


def _clean(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Remove secrets, escape what could forge a line, cut what is too long."""
    for key, value in event.items():
        if key == "exception" or key.startswith("_"):
            continue
        if _SECRET.search(key):
            event[key] = _REMOVED
        elif isinstance(value, bytes | bytearray | memoryview):
            event[key] = _cut(bytes(value[: LOG_VALUE_CHARACTERS_MAX // 2 + 1]).hex())
        elif isinstance(value, str):
            event[key] = _cut(value)
        elif value is not None and not isinstance(value, bool | int | float):
            event[key] = _cut(str(value))
    return event


def _cut(text: str) -> str:
    if len(text) > LOG_VALUE_CHARACTERS_MAX:
        text = text[:LOG_VALUE_CHARACTERS_MAX] + "…"
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def _text_renderer(is_terminal: bool) -> Processor:  # noqa: FBT001 -- structlog's own question
    def time_of_day(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event["timestamp"] = str(event.pop("time", ""))[11:23]
        return event

    console: Any = structlog.dev.ConsoleRenderer(
        colors=is_terminal, exception_formatter=structlog.dev.plain_traceback, pad_event_to=32
    )

    def render(logger: WrappedLogger, method: str, event: EventDict) -> str:
        text = console(logger, method, time_of_day(logger, method, event))
        assert isinstance(text, str)
        return text

    return render
