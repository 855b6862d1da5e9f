"""The tidy test: what the house style asks of every file, as far as a program can see it. CONTRIBUTING.md has the rest.

Each rule is one test that collects every place and prints all of them. An exception stands in a table of this file with
its reason; an exception that nothing needs any more fails too.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Final

from ambry import limits

ROOT: Final = Path(__file__).resolve().parent.parent
FOLDERS: Final = ("ambry", "bench", "config", "docs", "tests", ".ci")
FUNCTION_LINES_MAX: Final = 90
MODULE_LINES_MAX: Final = 800
PROSE_LINE_CHARACTERS_MAX: Final = 200

SAYS_NOTHING: Final = {"util", "utils", "helper", "helpers", "common", "misc", "manager", "managers", "base"}
"""Names of modules that could hold anything, and then do."""

FORBIDDEN_WORDS: Final = {"needle", "volume", "shard", "manager", "util", "utils", "helper", "factory"}
"""Words that docs/GLOSSARY.md replaces by ours, and words that say nothing."""

DECISION_HEADINGS: Final = ("Context", "Decision", "Consequences", "Not chosen")

NAMES_OF_OTHERS: Final = {"tmp_path_factory"}
"""Arguments whose names a library gives: pytest finds a fixture by its name."""

# One letter of each in brackets, so that this file does not find itself.
UNFINISHED: Final = re.compile(
    r"\b(TO[D]O|FIX[M]E|XX[X])\b|Not[I]mplementedError|\bfor n[o]w\b|place[h]older|in a r[e]al (system|deployment)"
)
MACHINE_PATHS: Final = re.compile(r"(?<![\w.~])/(work|tmp|root|home)/[a-z.]")
REGISTRY_HOSTS: Final = re.compile(
    r"(pyp[i]|python[h]osted|npm[j]s|crat[e]s|dock[e]r|qu[a]y|gh[c]r|anacond[a])\.(org|com|io)|index-ur[l]\s*[=h]"
)

DOORS_TO_TIME_AND_CHANCE: Final[Mapping[str, str]] = {
    "ambry/cli/cluster.py": "the fingerprint of a new cluster, and how long a command waits",
    "ambry/cli/dev_cluster.py": "fingerprint and secret of a cluster for trying things out",
    "ambry/datanode/set_aside.py": "hands the operating system's randomness to the engine, for identities",
    "ambry/cluster/membership.py": "what tells this start of a process from its former ones",
    "ambry/cluster/zookeeper.py": "waits for a session on a thread, and dates the history",
    "ambry/cli/check.py": "hands the operating system's randomness to the engine, for identities",
    "ambry/cli/inspect.py": "it opens a store, too",
    "ambry/cli/ports.py": "ports for a cluster for trying things out",
    "ambry/cli/key.py": "the first key of a store is made without a server",
    "ambry/cli/names.py": "epochs of name stores that are rebuilt or copied",
    "ambry/client/chance.py": "the door of the client: jitter of waits",
    "ambry/clock.py": "the clock itself",
    "ambry/cluster/embedded.py": "the default of an argument: identities and the secret of a new data directory",
    "ambry/datanode/local.py": "hands the operating system's randomness to the engine, for identities",
    "ambry/frontend/chance.py": "the door of the frontend: random parts of ids, choice of partitions",
    "ambry/transport/chance.py": "the door of the transport: nonces, and jitter",
    "ambry/storage/sim_disk.py": "takes a seeded random.Random as an argument, asks for nothing itself",
    "ambry/storage/sim_index.py": "takes a seeded random.Random as an argument, asks for nothing itself",
}
"""Files of ambry/ that may ask the operating system for wall time or randomness. All others get them as arguments."""

OWN_ERRORS: Final[Mapping[str, str]] = {
    "ambry/client/stopping.py:Stopped": "ends the threads of work that was given up, and reaches no caller",
    "ambry/client/url_copy.py:_SourceError": "carries an error of a source past code that takes it for one of a store",
    "ambry/protocol/connection.py:_PeerClosed": "carries an error of the tree, never leaves the module",
    "ambry/storage/sim_disk.py:PowerCut": "not an error: the simulated machine stops here",
}
"""Exception classes that are not in errors.py, as path:class."""

CATCH_ALLS: Final[Mapping[str, str]] = {
    "ambry/client/parallel.py:Parallel._work": "the thread that waits raises what any other one met",
    "ambry/client/workers.py:_serve": "whoever waits for the call raises what it met",
    "ambry/datanode/disk_service.py:DiskService._commit": "every caller of a group gets an answer, whatever went wrong",
    "ambry/datanode/disk_service.py:DiskService._read_batch": "so does every reader of a batch",
    "ambry/datanode/upkeep.py:Upkeep.run": "a fault of ours must not end scrub and compaction unnoticed",
    "ambry/frontend/fast_lane.py:FastConnection.look_up": "a mistake in one request must not reach others of its turn",
    "ambry/frontend/fast_lane.py:FastConnection.begin_post": "so it must not here",
    "ambry/names/gather.py:PutGatherer._write": "whoever waits for a put gets an answer",
    "ambry/storage/rocks_index.py:RocksIndex.abandon": "rocksdict raises plain Exception for a last flush that fails",
    "ambry/names/sqlite.py:SqliteDatabase._run": "a job's caller gets what it raised; others of its group go on",
}
"""Functions that catch Exception or BaseException, as path:function. Few: the borders where nothing may get through."""

LONG_FUNCTIONS: Final[Mapping[str, str]] = {}
"""Functions that are longer than FUNCTION_LINES_MAX, as path:function."""

LONG_MODULES: Final[Mapping[str, str]] = {
    "ambry/storage/store.py": "one lock, and all that is done under it, also when logs, journal or index fail",
}
"""Modules that are longer than MODULE_LINES_MAX."""

TESTS_WITHOUT_ASSERTIONS: Final[Mapping[str, str]] = {}
"""Tests whose claim is checked where a reader of the function cannot see it, as path:function."""


def files(*suffixes: str) -> Iterator[Path]:
    """Every text file of the tree that we wrote, those in the root included."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and not {"__pycache__", "results"} & set(path.parts) and matches(path, suffixes):
                yield path
    for path in sorted(ROOT.iterdir()):
        if path.is_file() and matches(path, suffixes) and path.name != ".git":
            yield path


def matches(path: Path, suffixes: tuple[str, ...]) -> bool:
    """Without suffixes, everything that is text."""
    return path.suffix in suffixes if suffixes else path.suffix not in {".pyc", ".so", ".bin"}


def name_of(path: Path) -> str:
    """The path as people write it."""
    return path.relative_to(ROOT).as_posix()


@cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a module."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """All functions with their dotted names, methods and inner ones included."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + node.name, node
            yield from functions(node, prefix + node.name + ".")
        elif isinstance(node, ast.ClassDef):
            yield from functions(node, prefix + node.name + ".")
        else:
            yield from functions(node, prefix)


def assert_only_allowed(found: Mapping[str, str], allowed: Mapping[str, str]) -> None:
    """All that was found is allowed, and all that is allowed was found."""
    unexpected = [f"{place}: {what}" for place, what in found.items() if place not in allowed]
    needless = [f"{place} is an exception that nothing needs" for place in allowed if place not in found]
    assert not unexpected + needless, "\n".join(["", *unexpected, *needless])


def test_every_module_says_what_it_is_for() -> None:
    # An empty file (a package of tests) has nothing to say.
    found = {
        name_of(path): "no docstring"
        for path in files(".py")
        if parsed(path).body and not ast.get_docstring(parsed(path))
    }
    assert_only_allowed(found, {})


def test_module_names_say_something() -> None:
    found = {name_of(path): "the name says nothing" for path in files(".py") if path.stem in SAYS_NOTHING}
    assert_only_allowed(found, {})


def test_nothing_is_left_unfinished() -> None:
    found = {}
    for path in files(".py", ".md", ".toml", ".yml", ".yaml", ""):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if UNFINISHED.search(line):
                found[f"{name_of(path)}:{number}"] = line.strip()
    assert_only_allowed(found, {})


def test_functions_fit_a_screen_and_modules_hold_one_idea() -> None:
    found = {}
    for path in files(".py"):
        for name, node in functions(parsed(path)):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                found[f"{name_of(path)}:{name}"] = f"{lines} lines"
    assert_only_allowed(found, LONG_FUNCTIONS)
    long_modules = {}
    for path in files(".py"):
        lines = path.read_text(encoding="utf-8").count("\n")
        if lines > MODULE_LINES_MAX:
            long_modules[name_of(path)] = f"{lines} lines"
    assert_only_allowed(long_modules, LONG_MODULES)


def defined_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Names that a module gives: functions, classes, arguments, variables, attributes."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.lineno, node.name
            case ast.arg():
                yield node.lineno, node.arg
            case ast.Name(ctx=ast.Store()):
                yield node.lineno, node.id
            case ast.Attribute(ctx=ast.Store()):
                yield node.lineno, node.attr


def words_of(name: str) -> set[str]:
    """`BodyReader` and `body_reader` are both {body, reader}."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def test_names_use_the_words_of_the_glossary() -> None:
    found = {}
    for path in files(".py"):
        for number, name in defined_names(parsed(path)):
            if words_of(name) & FORBIDDEN_WORDS and name not in NAMES_OF_OTHERS:
                found[f"{name_of(path)}:{number}"] = name
    assert_only_allowed(found, {})


def asks_for_time_or_chance(node: ast.AST) -> bool:
    """Imports of random, secrets and uuid; uses of time.time, time.time_ns, datetime.now, os.urandom."""
    match node:
        case ast.Import(names=names):
            return any(alias.name in {"random", "secrets", "uuid"} for alias in names)
        case ast.ImportFrom(module=module, names=names):
            taken = {alias.name for alias in names}
            return module in {"random", "secrets", "uuid"} or (
                module in {"time", "os"} and bool(taken & {"time", "time_ns", "urandom"})
            )
        case ast.Attribute(value=ast.Name(id=base), attr=attribute):
            return (base, attribute) in {("time", "time"), ("time", "time_ns"), ("os", "urandom"), ("datetime", "now")}
    return False


def test_time_and_chance_come_as_arguments() -> None:
    found = {
        name_of(path): "asks for time or randomness itself"
        for path in files(".py")
        if name_of(path).startswith("ambry/") and any(asks_for_time_or_chance(node) for node in ast.walk(parsed(path)))
    }
    assert_only_allowed(found, DOORS_TO_TIME_AND_CHANCE)


def test_errors_are_in_the_one_tree() -> None:
    found = {}
    for path in files(".py"):
        if not name_of(path).startswith("ambry/") or name_of(path) == "ambry/errors.py":
            continue
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef) and any(
                re.search(r"(Error|Exception)$", ast.unparse(base)) for base in node.bases
            ):
                found[f"{name_of(path)}:{node.name}"] = "an error outside errors.py"
    assert_only_allowed(found, OWN_ERRORS)


def catches_all(node: ast.AST) -> bool:
    """An `except` of everything (bare, Exception, BaseException) that does not raise at its end."""
    if not isinstance(node, ast.ExceptHandler):
        return False
    caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
    names = {one.id for one in caught if isinstance(one, ast.Name)}
    is_broad = node.type is None or bool(names & {"Exception", "BaseException"})
    last = node.body[-1]
    # A border that translates (`raise DiskUnavailable(...) from error`) lets nothing get lost.
    return is_broad and not isinstance(last, ast.Raise)


def test_catch_alls_are_few_and_known() -> None:
    found = {}
    for path in files(".py"):
        if name_of(path).startswith("ambry/"):
            for name, function in functions(parsed(path)):
                if any(catches_all(node) for node in ast.walk(function)):
                    found[f"{name_of(path)}:{name}"] = "catches everything"
    assert_only_allowed(found, CATCH_ALLS)


def test_the_tree_knows_no_machine_and_no_registry() -> None:
    found = {}
    for path in files():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if MACHINE_PATHS.search(line) or REGISTRY_HOSTS.search(line):
                found[f"{name_of(path)}:{number}"] = line.strip()[:120]
    assert_only_allowed(found, {})


def test_every_exception_of_a_linter_has_its_reason() -> None:
    found = {}
    for path in files(".py"):
        lines = path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines, 1):
            mark = re.search(
                r"#\s*(noqa|type:\s*ignore|pragma)(:\s*[A-Z]+[0-9]+(,\s*[A-Z]+[0-9]+)*|\[[a-z-, ]+\])?", line
            )
            if mark is None or name_of(path) == "tests/test_tidy.py":
                continue
            reason = line[mark.end() :].strip(" -#:")
            is_explained_above = number > 1 and lines[number - 2].strip().startswith("#")
            if mark[2] is None or (len(reason) < 10 and not is_explained_above):
                found[f"{name_of(path)}:{number}"] = "say which rule, and why not here"
    assert_only_allowed(found, {})


def test_every_limit_has_its_reason() -> None:
    body = parsed(ROOT / "ambry/limits.py").body
    found = {}
    for node, after in zip(body, [*body[1:], ast.Pass()], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            # Two limits on lines that follow each other share the sentence below them.
            is_explained = isinstance(after, ast.Expr | ast.AnnAssign) and after.lineno == (node.end_lineno or 0) + 1
            if not is_explained and node.target.id not in {"KIB", "MIB", "GIB"}:
                found[f"ambry/limits.py:{node.target.id}"] = "no sentence below it"
    assert_only_allowed(found, {})
    assert limits.CHUNK_BYTES_MAX < limits.SEGMENT_BYTES_DEFAULT


def asserts_something(function: ast.AST) -> bool:
    """What a reader of the function can see: assert, raise, pytest.raises, or a call that says that it checks."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assert | ast.Raise):
            return True
        if isinstance(node, ast.With | ast.AsyncWith) and any(
            re.search("raises|warns", ast.dump(item.context_expr)) for item in node.items
        ):
            return True
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if re.match("assert|check|verify|expect|run_state_machine", name or ""):
                return True
    return False


def test_every_test_asserts_something() -> None:
    found = {}
    for path in files(".py"):
        if name_of(path).startswith("tests/"):
            for name, function in functions(parsed(path)):
                if function.name.startswith("test_") and not asserts_something(function):
                    found[f"{name_of(path)}:{name}"] = "asserts nothing that a reader can see"
    assert_only_allowed(found, TESTS_WITHOUT_ASSERTIONS)


def test_every_decision_has_the_same_headings() -> None:
    folder = ROOT / "docs/decisions"
    overview = (folder / "README.md").read_text(encoding="utf-8")
    pages = sorted(folder.glob("[0-9]*.md"))
    assert pages
    found = {}
    for expected, page in enumerate(pages, 1):
        text = page.read_text(encoding="utf-8")
        headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
        # Others may stand between these.
        if [one for one in headings if one in DECISION_HEADINGS] != list(DECISION_HEADINGS):
            found[name_of(page)] = f"headings {headings}"
        elif not text.startswith(f"# {page.name[:4]} "):
            found[name_of(page)] = "the title begins with another number"
        elif not re.match(r"# .*\n\n(Accepted|Superseded by \d{4}), \d{4}-\d{2}-\d{2}\.\n", text):
            found[name_of(page)] = "no status and date below the title"
        elif page.name not in overview:
            found[name_of(page)] = "not listed in README.md"
        elif int(page.name[:4]) != expected:
            found[name_of(page)] = f"number {expected} is missing"
    assert_only_allowed(found, {})


def test_pages_are_plain_english_text() -> None:
    # Latin letters, and the signs that figures and tables need; so no page is half in another language or in emoji.
    plain = re.compile(
        r"[\x20-\x7e\u00a7\u00b0-\u00ff\u2013\u2014\u2018-\u201e\u2026\u2190-\u2193\u221e\u2248\u2260\u2264\u2265⌊⌋·×µ│─├└┌┐┘┤┬┴┼▼▶]*"
    )
    found = {}
    for path in files(".md", ".py", ".toml"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if not plain.fullmatch(line):
                found[f"{name_of(path)}:{number}"] = "a character that is not plain text"
            elif line != line.rstrip():
                found[f"{name_of(path)}:{number}"] = "spaces at the end"
            elif path.suffix == ".md" and not line.startswith("|") and len(line) > PROSE_LINE_CHARACTERS_MAX:
                found[f"{name_of(path)}:{number}"] = f"a line of {len(line)} characters"
    # Tests of decoders feed them other scripts on purpose.
    assert_only_allowed({place: what for place, what in found.items() if not place.startswith("tests/")}, {})
