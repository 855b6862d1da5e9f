"""The pages in docs/ say what the code does: format tables, limits, settings, and every example that can be typed.

docs/formats/README.md explains the three kinds of table that are held against the code.
"""

import importlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final

import pytest

from tests import reference, tables

ROOT: Final = Path(__file__).resolve().parent.parent
FORMATS: Final = ROOT / "docs/formats"
KINDS_OF_TABLE: Final = ("Layout", "Values", "Keys")

Row = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A table of a page that names the constant which it must equal."""

    page: str
    kind: str
    constant: str
    columns: Row
    rows: tuple[Row, ...]

    def __str__(self) -> str:
        return f"{self.page}:{self.constant}"


def cells(line: str) -> Row:
    """The cells of one line of a table; backticks are only for the eye."""
    return tuple(cell.strip().strip("`") for cell in line.strip().strip("|").split("|"))


def tables_of(page: Path) -> Iterator[Table]:
    """The marked tables of a page. Everything between ``` is an example and not read."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    pattern = rf"^({'|'.join(KINDS_OF_TABLE)}): `(ambry\.[\w.]+)`\n\n((?:\|.*\n)+)"
    for kind, constant, body in re.findall(pattern, text + "\n", re.MULTILINE):
        lines = body.splitlines()
        assert re.fullmatch(r"[|:\- ]+", lines[1]), f"{page.name}: {constant}: no line below the head of the table"
        yield Table(page.name, kind, constant, cells(lines[0]), tuple(cells(line) for line in lines[2:]))


TABLES: Final = [table for page in sorted(FORMATS.glob("*.md")) for table in tables_of(page)]


def constant_of(name: str) -> Any:
    """`ambry.blob.manifest.LAYOUT`, or an attribute of a class in a module."""
    module, attribute = name.rsplit(".", 1)
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError:
        return getattr(constant_of(module), attribute)


def selected(kind: str) -> list[Table]:
    """Tables of one kind."""
    return [table for table in TABLES if table.kind == kind]


def number_or_none(text: str) -> int | None:
    """`-` stands for what depends on the data."""
    return None if text == "-" else int(text, 0)


@pytest.mark.parametrize("table", selected("Layout"), ids=str)
def test_a_field_table_is_the_layout_of_the_code(table: Table) -> None:
    assert table.columns[:3] == ("offset", "size", "field")
    rows = [(field, number_or_none(offset), number_or_none(size)) for offset, size, field, *_ in table.rows]
    assert rows == [tuple(row) for row in constant_of(table.constant)]


@pytest.mark.parametrize("table", selected("Layout"), ids=str)
def test_fields_follow_each_other_without_gap_or_overlap(table: Table) -> None:
    end: int | None = 0
    for offset, size, field, *_ in table.rows:
        if end is not None and offset != "-":
            assert int(offset) == end, f"{field} begins at {offset}, the field before it ends at {end}"
        end = None if "-" in {offset, size} else int(offset) + int(size)


@pytest.mark.parametrize("table", selected("Values"), ids=str)
def test_a_table_of_numbers_is_the_enumeration_of_the_code(table: Table) -> None:
    assert table.columns[:2] == ("value", "name")
    constant = constant_of(table.constant)
    if isinstance(constant, type) and issubclass(constant, Enum):
        expected = {name.lower(): member.value for name, member in constant.__members__.items()}
    else:
        expected = {str(name).lower(): value for name, value in constant.items()}
    assert {name.lower(): int(value, 0) for value, name, *_ in table.rows} == expected
    assert 0 not in expected.values(), "zero is invalid in every field that says what something is"


@pytest.mark.parametrize("table", selected("Keys"), ids=str)
def test_a_table_of_keys_is_the_mapping_of_the_code(table: Table) -> None:
    assert table.columns[:2] == ("key", "field")
    constant: Mapping[str, str] = constant_of(table.constant)
    assert {field: key for key, field, *_ in table.rows} == dict(constant)


def test_every_layout_of_the_code_is_on_a_page() -> None:
    described = {table.constant for table in selected("Layout")}
    found = {
        f"{'.'.join(path.relative_to(ROOT).with_suffix('').parts)}.{name}"
        for path in sorted((ROOT / "ambry").rglob("*.py"))
        for name in re.findall(r"^((?:[A-Z]+_)*LAYOUT): Final", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert found == described


def test_tables_for_operators_are_what_the_code_says() -> None:
    texts = [page.read_text(encoding="utf-8") for page in tables.PAGES]
    assert sorted(re.findall(r"<!-- table: (.*?) -->", "".join(texts))) == sorted(tables.TABLES)
    assert texts == [tables.written(text) for text in texts], "run `python -m tests.tables`"


def test_the_reference_of_the_client_is_what_the_code_says() -> None:
    assert reference.PAGE.read_text(encoding="utf-8") == reference.page(), "run `python -m tests.reference`"


def pinned(path: Path) -> dict[str, str]:
    """Name to version of every package in a list of requirements."""
    return dict(re.findall(r"^([a-zA-Z0-9_.-]+)==([^ ;\\]+)", path.read_text(encoding="utf-8"), re.MULTILINE))


def test_both_lists_of_requirements_pin_the_same_versions_with_hashes() -> None:
    run, dev = (ROOT / "requirements.lock", ROOT / "requirements-dev.lock")
    assert pinned(run).items() <= pinned(dev).items()
    for path in (run, dev):
        text = path.read_text(encoding="utf-8")
        assert re.fullmatch(r"(\w[\w.-]*==[^\n]*(\n +--hash=sha256:[0-9a-f]{64}[^\n]*)+\n)+", text), "all have hashes"
        assert "://" not in text, "a list of requirements says what, not from where"
