"""docs/formats/wire.md and the code say the same. tests/test_docs.py compares its other tables."""

import re
from pathlib import Path
from typing import Final

from ambry import limits
from ambry.errors import ERRORS_BY_CODE
from ambry.protocol import messages, replication_messages
from ambry.protocol.handshake import NONCE_SIZE, PROOF_SIZE, Role
from ambry.protocol.layout import Layout

PAGE: Final = (Path(__file__).parents[2] / "docs/formats/wire.md").read_text(encoding="utf-8")


def table_after(line: str) -> list[list[str]]:
    """The rows of the table below a line of the page, without its head."""
    found = re.search(rf"^{re.escape(line)}\n\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    assert found is not None, line
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in found[1].splitlines()[2:]]


def fields_of(name: str, layout: Layout) -> list[list[str]]:
    return [[name, field, type_.__name__] for field, type_ in layout.fields.items()]


def test_every_field_of_every_message_is_on_the_page_in_order() -> None:
    expected = [row for type_, layout in messages.LAYOUTS.items() for row in fields_of(type_.name, layout)]
    assert [row[:3] for row in table_after("Fields: `LAYOUTS`")] == expected
    for constant in ("REQUEST", "ITEM", "CHANGE_ENTRY", "REPLICA_STATUS"):
        layout = getattr(messages, constant)
        assert [row[:3] for row in table_after(f"Fields: `{constant}`")] == fields_of(layout.name, layout)


def test_every_field_of_replication_is_on_the_page_in_order() -> None:
    for constant in ("POSITION", "PAGE", "PEER_TOKEN", "FETCHED", "RANGE_DIGEST", "LINK", "FEED"):
        layout = getattr(replication_messages, constant)
        assert [row[:3] for row in table_after(f"Fields: `{constant}`")] == fields_of(layout.name, layout)


def test_every_error_is_on_the_page() -> None:
    rows = {int(code): (name, again) for code, name, again in table_after("`code` in ERROR:")}
    assert rows == {code: (error.name, "yes" if error.retryable else "no") for code, error in ERRORS_BY_CODE.items()}


def test_every_limit_on_the_page_has_its_value() -> None:
    rows = {name.strip("`"): int(value) for name, value in table_after("## Limits")}
    assert rows
    assert rows == {name: getattr(limits, name) for name in rows}


def test_numbers_in_the_prose_are_those_of_the_code() -> None:
    prose = " ".join(PAGE.split())
    for sentence in (
        f"at most {limits.NODE_NAME_BYTES_MAX} bytes",
        f"cut to {limits.ERROR_MESSAGE_CHARACTERS_MAX} characters",
        f"exceeds {limits.ERROR_FACTS_BYTES_MAX} bytes",
        f"{Role.CLIENT} client, {Role.SERVER} server",
        f"{NONCE_SIZE} random bytes",
        f"{PROOF_SIZE} bytes, see below",
        f"1 to {limits.KEY_BYTES_MAX} bytes",
        f"at most {limits.BATCH_ENTRIES_MAX} items",
        f"counts {limits.PROPERTIES_BYTES_MAX // limits.KIB} KiB for properties",
        f"at most {limits.HANDSHAKE_HEADER_BYTES_MAX // limits.KIB} KiB",
        f"At most {limits.REQUESTS_PER_CONNECTION_MAX} requests",
        f"more than {limits.CONNECTION_ANSWER_BYTES_MAX // limits.MIB} MiB",
        f"more than {limits.CONNECTION_WRITE_BUFFER_BYTES // limits.MIB} MiB",
        f"nothing for {limits.PING_AFTER_MS // 1000} s",
        f"another {limits.PING_ANSWER_MS // 1000} s",
        f"after {limits.PEER_SILENT_MS // 1000} s of silence",
    ):
        assert sentence in prose, sentence
