"""docs/client-api.md, made from the docstrings and signatures of the client library: `python -m tests.reference`.

Signatures stand as they are written in the code. A test holds the page against the code, and asks that every argument
of every method is described.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import ambry.client
from ambry.client import aio, contents, fs, model_manifest, model_methods, model_pull, models, reader, safetensors
from tests.tables import sentences_below

ROOT: Final = Path(__file__).resolve().parent.parent
PAGE: Final = ROOT / "docs/client-api.md"
WIDTH: Final = 118

CHAPTERS: Final[tuple[tuple[str, str, tuple[tuple[ModuleType, str], ...]], ...]] = (
    ("The client", "`from ambry.client import Client, AsyncClient`", (
        (ambry.client.client, "Client"), (aio, "AsyncClient"), (ambry.client.settings, "ClientSettings"),
    )),
    ("Blobs, names and files", "What methods of a client give and, the last two, take.", (
        (ambry.client.values, "Stored"), (ambry.client.values, "BlobInfo"), (ambry.client.values, "ListedName"),
        (ambry.client.values, "BatchEntry"), (reader, "BlobReader"), (ambry.client.small_files, "LocalFile"),
        (ambry.client.small_files, "StoredFile"),
    )),
    ("Models", "What `push_model` and the other methods for models give; [the format](formats/model.md).", (
        (models, "Pushed"), (model_pull, "Pulled"), (models, "ModelVersion"), (models, "ModelDiff"),
        (models, "Verified"), (model_manifest, "ModelManifest"), (model_manifest, "ModelFile"),
        (model_manifest, "Extent"), (contents, "Collected"),
    )),
    ("Safetensors", "`from ambry.client.safetensors import remote_open, load_file`", (
        (safetensors, "remote_open"), (safetensors, "load_file"), (safetensors, "TensorFile"),
        (safetensors, "TensorSlice"),
    )),
    ("fsspec", "`ambry://account/container/path`, registered as a file system by `ambry[fsspec]`.", (
        (fs, "AmbryFileSystem"),
    )),
    ("Errors", "`from ambry.errors import ...`; those named above, each with the class it is one of.", (
        (ambry.errors, "AmbryError"),
    )),
)  # fmt: skip
"""What is public, in the order of the page."""

PARTS: Final = {"ModelMethods": model_methods}
"""Classes whose methods are those of the class that is made of them."""

HEAD: Final = """# Reference of the Python client

Written from the docstrings by `python -m tests.reference`; [client.md](client.md) is the page to read first.

"""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Described:
    """A function or class of the page: where it is, how it is written, what it says."""

    name: str
    node: Function | ast.ClassDef
    owner: "Described | None" = None

    @property
    def text(self) -> str:
        """Its docstring."""
        return ast.get_docstring(self.node) or ""


@cache
def tree_of(module: ModuleType) -> ast.Module:
    """The syntax of a module."""
    return ast.parse(inspect.getsource(module))


def found_in(module: ModuleType, name: str) -> Described:
    """A function or class of a module."""
    for node in tree_of(module).body:
        if isinstance(node, Function | ast.ClassDef) and node.name == name:
            return Described(name, node)
    raise AssertionError(f"{module.__name__} has no {name}")


def methods_of(described: Described) -> Iterator[Described]:
    """Public methods and properties of a class, as they come; of operators `[...]` alone. Errors are made by us."""
    if described.name == "AmbryError":
        return
    assert isinstance(described.node, ast.ClassDef)
    parts = [found_in(PARTS[name], name).node for base in described.node.bases if (name := ast.unparse(base)) in PARTS]
    for node in (node for part in (described.node, *parts) for node in part.body):
        if isinstance(node, Function) and (not node.name.startswith("_") or node.name == "__getitem__"):
            yield Described(f"{described.name}.{node.name}", node, described)


def is_property(described: Described) -> bool:
    """Whether a method is read as an attribute."""
    node = described.node
    return isinstance(node, Function) and any(ast.unparse(one) == "property" for one in node.decorator_list)


def everything() -> Iterator[Described]:
    """All that the page describes."""
    for _, _, members in CHAPTERS:
        for module, name in members:
            described = found_in(module, name)
            yield described
            if isinstance(described.node, ast.ClassDef):
                yield from methods_of(described)


# --- signatures ------------------------------------------------------------------------------------------------


def arguments_of(node: Function) -> list[str]:
    """Arguments as they are written, without `self`."""
    given = node.args
    plain = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(plain) - len(given.defaults)) + list(given.defaults)
    written = [argument(one, default) for one, default in zip(plain, defaults, strict=True)]
    if plain and plain[0].arg in {"self", "cls"}:
        written = written[1:]
    if given.vararg is not None:
        written.append(f"*{argument(given.vararg, None)}")
    elif given.kwonlyargs:
        written.append("*")
    written += [argument(one, default) for one, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    return written + ([f"**{argument(given.kwarg, None)}"] if given.kwarg is not None else [])


def argument(node: ast.arg, default: ast.expr | None) -> str:
    """`name: type = default`."""
    text = node.arg if node.annotation is None else f"{node.arg}: {type_text(node.annotation)}"
    if default is None:
        return text
    return f"{text} = {ast.unparse(default)}" if node.annotation is not None else f"{text}={ast.unparse(default)}"


def type_text(node: ast.expr) -> str:
    """A type, without the quotes of what is imported for types alone."""
    return ast.unparse(node).replace("'", "").replace('"', "")


def signature(name: str, node: Function) -> str:
    """On one line where it fits, else a line for each argument."""
    head = f"{'async ' if isinstance(node, ast.AsyncFunctionDef) else ''}{name}("
    tail = ")" if node.returns is None else f") -> {type_text(node.returns)}"
    written = arguments_of(node)
    line = head + ", ".join(written) + tail
    return line if len(line) <= WIDTH else head + "".join(f"\n    {one}," for one in written) + f"\n{tail}"


def constructor(described: Described) -> str:
    """How an object of a class is made; empty where nobody but the library makes one."""
    assert isinstance(described.node, ast.ClassDef)
    if described.name not in {"Client", "AsyncClient", "AmbryFileSystem"}:
        return ""
    made = next(one for one in described.node.body if isinstance(one, Function) and one.name == "__init__")
    made = ast.FunctionDef(**{**vars(made), "returns": None})
    return code(signature(described.name, made))


def code(text: str) -> str:
    """A block that is shown and not run."""
    return f"```text\n{text}\n```\n\n"


# --- docstrings ------------------------------------------------------------------------------------------------


def markdown(text: str) -> str:
    """A docstring: paragraphs as they are, sections as lists."""
    written = []
    for block in re.split(r"\n\n+", text):
        head, *lines = block.split("\n")
        if re.fullmatch(r"[A-Z][a-z ]+:", head) and lines and lines[0].startswith("    "):
            body = textwrap.dedent("\n".join(lines))
            head = "Arguments" if head == "Args:" else head.rstrip(":")
            written.append(f"*{head}*" + ("\n\n" + items(body) if ": " in body else f": {filled(body)}"))
        else:
            written.append(filled(block) if not block.startswith("    ") else block)
    return "\n\n".join(written) + "\n\n"


def items(body: str) -> str:
    """Lines of `name: text`, what is indented below belongs to the line above."""
    found: list[str] = []
    for line in body.split("\n"):
        if line.startswith(" "):
            found[-1] += " " + line.strip()
        else:
            name, _, text = line.partition(": ")
            found.append(f"- `{name}`: {text}")
    return "\n".join(filled(one, "  ") for one in found)


def filled(text: str, indent: str = "") -> str:
    """Lines of the width of the page."""
    return textwrap.fill(
        " ".join(text.split()), WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def fields_of(module: ModuleType, described: Described) -> str:
    """The fields of a dataclass: type, and the sentence below it."""
    cls: Any = getattr(module, described.name)
    if not is_dataclass(cls):
        return ""
    sentences = sentences_below(Path(inspect.getfile(module)))
    lines = []
    for node in described.node.body:
        if isinstance(node, ast.AnnAssign):
            name = ast.unparse(node.target)
            sentence = sentences.get(f"{described.name}.{name}", "")
            lines.append(f"- `{name}: {type_text(node.annotation)}`" + (f": {sentence}" if sentence else ""))
    return "".join(f"{filled(line, '  ')}\n" for line in lines) + "\n"


def same_methods(described: Described) -> str:
    """Methods that AsyncClient has from Client."""
    awaited: dict[str, list[str]] = {"_awaited": [], "_iterated": []}
    for node in described.node.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and isinstance(node.targets[0], ast.Name):
            awaited[ast.unparse(node.value.func)].append(f"`{node.targets[0].id}`")
    if not awaited["_awaited"]:
        return ""
    return (
        filled(f"To be awaited: {', '.join(awaited['_awaited'])}.") + "\n\n"
        + filled(f"For `async for`: {', '.join(awaited['_iterated'])}.") + "\n\n"
    )  # fmt: skip


# --- the page --------------------------------------------------------------------------------------------------


def errors_list() -> str:
    """What each error of the reference means, from its class."""
    names = sorted(set(re.findall(r"\b([A-Z][A-Za-z]+)\b", "".join(one.text for one in everything()))))
    lines = []
    for name in names:
        error = getattr(ambry.errors, name, None)
        if inspect.isclass(error) and issubclass(error, ambry.errors.AmbryError):
            again = "; trying again may help" if error.retryable else ""
            lines.append(f"- `{name}({error.__mro__[1].__name__})`{again}: {' '.join((error.__doc__ or '').split())}")
    return "".join(f"{filled(line, '  ')}\n" for line in lines)


def entry(module: ModuleType, name: str) -> str:
    """A function or class, with its methods."""
    described = found_in(module, name)
    path = Path(inspect.getfile(module)).relative_to(ROOT).as_posix()
    text = f"### `{name}`\n\n"
    source = f"Source: [{path}](../{path})\n\n"
    if isinstance(described.node, Function):
        return text + code(signature(name, described.node)) + markdown(described.text) + source
    text += constructor(described) + markdown(described.text) + fields_of(module, described) + same_methods(described)
    text += source
    for method in methods_of(described):
        assert isinstance(method.node, Function)
        if is_property(method):
            returns = f": {type_text(method.node.returns)}" if method.node.returns is not None else ""
            text += f"#### `{method.name}`\n\n" + code(f"{method.name}{returns}") + markdown(method.text)
        else:
            text += f"#### `{method.name}`\n\n" + code(signature(method.name, method.node)) + markdown(method.text)
    return text


def page() -> str:
    """The whole page."""
    text = HEAD
    for title, sentence, members in CHAPTERS:
        text += f"## {title}\n\n{sentence}\n\n" + "".join(entry(module, name) for module, name in members)
    return text + errors_list()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
