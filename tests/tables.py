"""Tables of docs/*.md that are made from the code: `python -m tests.tables` writes them.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`. The test in test_docs.py asks that the page is what
this module would write, so a changed limit or setting changes the page in the same commit.
"""

import ast
import dataclasses
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import click

from ambry import limits
from ambry.cli.serve import serve
from ambry.config import DatanodeSettings, FrontendSettings, Range, Unit
from ambry.errors import ERRORS_BY_CODE, CannotStart
from ambry.frontend.answers import status_of
from ambry.limits import GIB, KIB, MIB
from tests.prove import results

ROOT: Final = Path(__file__).resolve().parent.parent
PAGES: Final = tuple(sorted((ROOT / "docs").glob("*.md")))
_UNITS_OF_LIMITS: Final = {"KIB", "MIB", "GIB"}


def sentences_below(path: Path) -> dict[str, str]:
    """What stands below each assignment of a module, or of a class in it (`Class.name`), on one line.

    Assignments on lines that follow each other share the sentence below the last of them.
    """
    found: dict[str, str] = {}

    def take(body: list[ast.stmt], prefix: str) -> None:
        sentence, sentence_line = "", 0
        for node in reversed(body):
            match node:
                case ast.ClassDef():
                    take(node.body, f"{node.name}.")
                case ast.Expr(value=ast.Constant(value=str(text))):
                    sentence, sentence_line = " ".join(text.split()).replace("|", r"\|"), node.lineno
                case ast.AnnAssign(target=ast.Name(id=name)):
                    is_near = node.end_lineno is not None and node.end_lineno + 1 == sentence_line
                    found[prefix + name] = sentence if is_near else ""
                    sentence_line = node.lineno if is_near else 0

    take(ast.parse(path.read_text(encoding="utf-8")).body, "")
    return found


def size_text(value: int) -> str:
    """Bytes as people write them: `64 KiB`, `5,120 GiB`."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if value % unit == 0 and value >= unit:
            return f"{value // unit:,} {name}"
    return f"{value:,} B"


def duration_text(value_ms: int) -> str:
    """Milliseconds as people write them: `5 s`, `100 ms`."""
    return f"{value_ms // 1000:,} s" if value_ms % 1000 == 0 else f"{value_ms:,} ms"


def table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    """Markdown."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def limit_text(name: str, value: int) -> str:
    """A limit in the unit that its name says."""
    if "BYTES" in name:
        return size_text(value)
    return duration_text(value) if "_MS" in name else f"{value:,}"


def limits_table() -> str:
    """Every limit: name, value, reason."""
    reasons = sentences_below(ROOT / "ambry/limits.py")

    def rows() -> Iterator[tuple[str, ...]]:
        for name, value in vars(limits).items():
            if name.isupper() and isinstance(value, int) and name not in _UNITS_OF_LIMITS:
                yield f"`{name}`", limit_text(name, value), reasons[name]

    return table(("Limit", "Value", "Why"), rows())


def meanings_of(settings: type) -> dict[str, str]:
    """What each key is for. A key without a sentence shares that of the next; at last, that of the class."""
    sentences = sentences_below(ROOT / "ambry/config.py")
    meaning = " ".join((settings.__doc__ or "").split())
    found = {}
    for field in reversed(dataclasses.fields(settings)):
        meaning = sentences[f"{settings.__name__}.{field.name}"] or meaning
        found[field.name] = meaning
    return found


def settings_rows(settings: type, prefix: str = "") -> Iterator[tuple[str, ...]]:
    """Key, default, range, meaning of every field, nested tables included."""
    hints = typing.get_type_hints(settings, include_extras=True)
    meanings = meanings_of(settings)
    for field in dataclasses.fields(settings):
        hint = hints[field.name]
        classes = [one for one in (hint, *typing.get_args(hint)) if isinstance(one, type)]
        nested = next((one for one in classes if dataclasses.is_dataclass(one)), None)
        if nested is not None:
            yield from settings_rows(nested, f"{prefix}{field.name}.")
            continue
        bounds = next((one for one in typing.get_args(hint) if isinstance(one, Range)), None)
        shown = _shown_with(bounds)
        required = f"required in `[{prefix.rstrip('.')}]`" if prefix else "required"
        default = required if field.default is dataclasses.MISSING else shown(field.default)
        allowed = f"{shown(bounds.low)} to {shown(bounds.high)}" if bounds else _choices(hint)
        yield f"`{prefix}{field.name}`", default, allowed, meanings[field.name]


def _shown_with(bounds: Range | None) -> Callable[[Any], str]:
    def shown(value: Any) -> str:
        if value is None:
            return "none"
        if isinstance(value, bool):
            return str(value).lower()
        if bounds is not None and bounds.unit is Unit.BYTES:
            return size_text(value)
        if bounds is not None and bounds.unit is Unit.MS:
            return duration_text(value)
        return f"{value}"

    return shown


def _choices(hint: Any) -> str:
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return ", ".join(hint)
    if hint is bool:
        return "true, false"
    return "path" if "Path" in str(hint) else "text"


def settings_table(settings: type) -> str:
    """All keys of one process."""
    return table(("Key", "Default", "Allowed", "Meaning"), settings_rows(settings))


def errors_table() -> str:
    """Every error that a client may see: its name, the status, whether trying again may help, what it means."""

    def rows() -> Iterator[tuple[str, ...]]:
        for _, error in sorted(ERRORS_BY_CODE.items()):
            # A process that cannot start answers nobody.
            if not issubclass(error, CannotStart):
                meaning = " ".join((error.__doc__ or "").partition("\n\n")[0].split())
                status = status_of(error("an example"))
                yield f"`{error.name}`", f"{status}", "yes" if error.retryable else "no", meaning

    return table(("Code", "Status", "Try again?", "Meaning"), rows())


def options_table(command: click.Command) -> str:
    """All options of a command."""

    def rows() -> Iterator[tuple[str, ...]]:
        context = click.Context(command)
        for parameter in command.get_params(context):
            record = parameter.get_help_record(context)
            if record is not None and parameter.name != "help":
                yield f"`{record[0]}`", record[1]

    return table(("Option", "Meaning"), rows())


def results_table() -> str:
    """Every run of a proof that is kept."""
    return table(("Run", "Commit", "Took", "Outcome", "Figures"), results.rows())


TABLES: Final[Mapping[str, Callable[[], str]]] = {
    "limits": limits_table,
    "frontend settings": lambda: settings_table(FrontendSettings),
    "datanode settings": lambda: settings_table(DatanodeSettings),
    "serve options": lambda: options_table(serve),
    "errors": errors_table,
    "results": results_table,
}


def written(text: str) -> str:
    """The page with all its tables as the code would have them."""

    def replaced(match: re.Match[str]) -> str:
        return f"<!-- table: {match[1]} -->\n\n{TABLES[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- table: (.*?) -->.*?<!-- end -->", replaced, text, flags=re.DOTALL)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")
