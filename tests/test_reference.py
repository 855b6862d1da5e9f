"""The reference of the Python client is made from the code, and says something of all that is public."""

import ast
import builtins
import inspect
import re
from typing import Any

import pytest

import ambry.client
from ambry.client import AsyncClient, Client
from tests import reference
from tests.reference import Described, Function

CALLS = [one for one in reference.everything() if isinstance(one.node, Function)]


def public(cls: type) -> dict[str, Any]:
    found = {name: value for part in reversed(cls.__mro__[:-1]) for name, value in vars(part).items()}
    return {name: value for name, value in found.items() if not name.startswith("_")}


def test_all_that_the_package_gives_is_on_the_page() -> None:
    described = {one.name for one in reference.everything()}
    assert set(ambry.client.__all__) <= described
    assert {f"Client.{name}" for name in public(Client)} <= described


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_every_argument_of_a_call_is_described(call: Described) -> None:
    assert isinstance(call.node, Function)
    known = call.text + (call.owner.text if call.owner is not None else "")
    given = call.node.args
    names = {one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)} - {"self", "cls"}
    if call.owner is not None and call.owner.name == "AmbryFileSystem":
        # Theirs are fsspec's, which describes them.
        names = set()
    assert sorted(name for name in names if not re.search(rf"(\b{name}: |`{name}`)", known)) == []
    # Whoever asks a store or takes arguments can fail: the call says how, or its class does for all of them.
    assert not names or "Raises:" in known or call.name.endswith(("seek", "readinto")), call.name


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_every_error_of_a_docstring_exists(call: Described) -> None:
    _, _, raises = call.text.partition("Raises:")
    names = re.findall(r"^    ([A-Za-z]+): ", raises, re.MULTILINE)
    known = {**vars(builtins), **vars(ambry.errors)}
    assert [
        name for name in names if not (inspect.isclass(known.get(name)) and issubclass(known[name], Exception))
    ] == []
    assert "Raises:" not in call.text or names


def test_both_clients_have_the_same_methods_with_the_same_arguments() -> None:
    assert public(Client).keys() == public(AsyncClient).keys()
    for name, method in public(Client).items():
        ours, theirs = inspect.signature(method), inspect.signature(getattr(AsyncClient, name))
        assert list(ours.parameters) == list(theirs.parameters), name
        is_waited_for = inspect.iscoroutinefunction(vars(AsyncClient)[name])
        assert is_waited_for != inspect.isasyncgenfunction(vars(AsyncClient)[name]), name


def test_signatures_are_shown_as_they_are_written() -> None:
    node = ast.parse("async def f(self, a: 'B', /, c: int = 3, *d: int, e=None, **g: str) -> 'B | None': ...").body[0]
    assert isinstance(node, Function)
    assert reference.signature("f", node) == "async f(a: B, c: int = 3, *d: int, e=None, **g: str) -> B | None"
    text = "First\nline.\n\nArgs:\n    a: One\n        thing.\n    b: Another.\n\nReturns:\n    What it is.\n"
    assert reference.markdown(text) == (
        "First line.\n\n*Arguments*\n\n- `a`: One thing.\n- `b`: Another.\n\n*Returns*: What it is.\n\n"
    )
