"""Log lines: one JSON object or one line of text each, with the request id, without secrets."""

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from ambry.limits import LOG_VALUE_CHARACTERS_MAX
from ambry.logs import configure, get_logger, request_scope


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(out: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_lines_are_json_where_there_is_no_terminal() -> None:
    out = io.StringIO()
    configure("info", stream=out)
    get_logger("ambry.storage.store").info("opened", partitions=3, ready=True)
    (line,) = lines(out)
    time = line.pop("time")
    assert isinstance(time, str) and time.endswith("Z")
    assert line == {"event": "opened", "level": "info", "logger": "storage.store", "partitions": 3, "ready": True}


def test_lines_are_text_on_a_terminal() -> None:
    out = Terminal()
    configure("info", stream=out)
    get_logger("ambry.x").warning("slow disk", disk="disk0")
    text = out.getvalue()
    assert "slow disk" in text and "disk0" in text and text.count("\n") == 1
    with pytest.raises(json.JSONDecodeError):
        json.loads(text)


def test_the_form_can_be_forced() -> None:
    out = Terminal()
    configure("info", force_json=True, stream=out)
    get_logger("ambry.x").info("a")
    assert lines(out)[0]["event"] == "a"
    plain = io.StringIO()
    configure("info", force_json=False, stream=plain)
    get_logger("ambry.x").info("a")
    assert not plain.getvalue().startswith("{")


def test_less_important_lines_are_left_out() -> None:
    out = io.StringIO()
    configure("warning", stream=out)
    log = get_logger("ambry.x")
    log.debug("no")
    log.info("no")
    log.warning("yes")
    log.error("yes")
    assert [line["event"] for line in lines(out)] == ["yes", "yes"]


def test_the_request_id_is_on_every_line_of_its_scope_and_on_no_other() -> None:
    out = io.StringIO()
    configure("info", stream=out)
    log = get_logger("ambry.x")
    with request_scope("r-1"):
        log.info("inside")
        logging.getLogger("aiohttp").warning("also inside")
    log.info("outside")
    assert [line.get("request_id") for line in lines(out)] == ["r-1", "r-1", None]


@pytest.mark.parametrize("key", ["secret", "cluster_secret", "Authorization", "password", "bearer_token", "Set-Cookie"])
def test_secrets_are_removed(key: str) -> None:
    out = io.StringIO()
    configure("info", stream=out)
    get_logger("ambry.x").info("hello", **{key: "hunter2"})
    assert "hunter2" not in out.getvalue()
    assert lines(out)[0][key] == "[removed]"


@pytest.mark.parametrize("is_json", [True, False])
def test_a_value_cannot_forge_a_line(is_json: bool) -> None:
    out = io.StringIO()
    configure("info", force_json=is_json, stream=out)
    get_logger("ambry.x").info("got", filename='x\n{"event": "forged"}', colour="\x1b[31mred")
    logging.getLogger("library").warning("path %s", "a\nb")
    assert len(out.getvalue().splitlines()) == 2
    assert "\x1b[31mred" not in out.getvalue()


def test_long_values_are_cut_and_bytes_are_hexadecimal() -> None:
    out = io.StringIO()
    configure("info", stream=out)
    get_logger("ambry.x").info("got", header="a" * 1_000_000, blob_id=b"\x01\xff", body=bytes(1_000_000))
    (line,) = lines(out)
    assert line["blob_id"] == "01ff"
    assert len(str(line["header"])) < LOG_VALUE_CHARACTERS_MAX + 16
    assert len(str(line["body"])) < LOG_VALUE_CHARACTERS_MAX + 16


def test_lines_of_libraries_take_the_same_way() -> None:
    out = io.StringIO()
    configure("info", stream=out)
    logging.getLogger("asyncio").error("task %s failed", 7)
    logging.getLogger("aiohttp.access").info("GET /")
    (line,) = lines(out)
    assert (line["event"], line["logger"], line["level"]) == ("task 7 failed", "asyncio", "error")


@pytest.mark.parametrize("source", ["ours", "library"])
def test_an_exception_is_on_the_line_with_its_traceback(source: str) -> None:
    out = io.StringIO()
    configure("info", stream=out)
    try:
        raise ValueError("broken")
    except ValueError:
        if source == "ours":
            get_logger("ambry.x").exception("failed")
        else:
            logging.getLogger("library").exception("failed")
    (line,) = lines(out)
    assert line["event"] == "failed"
    assert "ValueError: broken" in str(line["exception"])


def test_a_log_that_nobody_reads_does_not_end_the_process() -> None:
    class Gone(io.StringIO):
        def write(self, _text: str, /) -> int:
            raise BrokenPipeError(32, "Broken pipe")

        def flush(self) -> None:
            raise BrokenPipeError(32, "Broken pipe")

    configure("info", stream=Gone())
    get_logger("ambry.x").warning("one")
    logging.getLogger("library").warning("two")
    assert logging.getLogger().handlers
