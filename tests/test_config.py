"""Settings: what is written is what is loaded, and every mistake is named with file, line and key."""

import dataclasses
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambry import limits
from ambry.config import (
    SECRET_VARIABLE,
    DatanodeSettings,
    FrontendSettings,
    LogFormat,
    LogLevel,
    StorageSettings,
    line_of,
    load,
    load_secret,
)
from ambry.errors import BadConfiguration
from ambry.quantities import parse_duration_ms, parse_size

DATANODE = """\
# a comment
node = "datanode-1"
cluster_map = "cluster.toml"
secret_file = "/etc/ambry/secret"
shutdown_grace_ms = "3 s"

[storage]
segment_bytes = "128 MiB"
checkpoint_interval_ms = 500

[log]
level = "debug"
format = "json"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "settings.toml"
    path.write_text(text)
    return path


def test_a_file_becomes_settings_and_the_rest_is_default(tmp_path: Path) -> None:
    settings = load(write(tmp_path, DATANODE), DatanodeSettings)
    assert settings.node == "datanode-1"
    assert settings.cluster_map == tmp_path / "cluster.toml"
    assert settings.secret_file == Path("/etc/ambry/secret")
    assert settings.shutdown_grace_ms == 3000
    assert settings.storage == StorageSettings(segment_bytes=128 * limits.MIB, checkpoint_interval_ms=500)
    assert settings.log.level is LogLevel.DEBUG
    assert settings.log.format is LogFormat.JSON
    assert settings.admin_host == "127.0.0.1"


def test_default_settings_are_the_limits() -> None:
    settings = StorageSettings()
    assert settings.segment_bytes == limits.SEGMENT_BYTES_DEFAULT
    assert settings.journal_bytes == limits.JOURNAL_BYTES
    assert settings.reserve_bytes == limits.DISK_RESERVE_BYTES


@pytest.mark.parametrize(
    ("change", "line", "problem"),
    [
        (('node = "datanode-1"', "node = 1"), 2, "node: must be a string, not an integer"),
        (('node = "datanode-1"', 'node = ""'), 2, "node: must not be empty"),
        (('node = "datanode-1"', "node = ["), None, "not TOML"),
        (('node = "datanode-1"', "nodes = 3"), 2, "nodes: unknown key; known are"),
        (('node = "datanode-1"', 'disk = [{path = "x"}]'), None, "key 'capacity_bytes' is missing"),
        (('"128 MiB"', '"128 MB"'), 8, "storage.segment_bytes: '128 MB' is not a number of bytes"),
        (('"128 MiB"', "true"), 8, "storage.segment_bytes: must be an integer, not a boolean"),
        (('"128 MiB"', "1.5"), 8, "storage.segment_bytes: must be an integer, not a float"),
        (('"128 MiB"', "12"), 8, "storage.segment_bytes: must be from 16777216 to 2147483648 (bytes), not 12"),
        (("segment_bytes", "segment_byte"), 8, "storage.segment_byte: unknown key"),
        (("= 500", '= "1 year"'), 9, "storage.checkpoint_interval_ms: '1 year' is not a number of milliseconds"),
        (("= 500", "= 1"), 9, "storage.checkpoint_interval_ms: must be from 100"),
        (('"debug"', '"loud"'), 12, "log.level: must be one of debug, info, warning, error, not 'loud'"),
        (("[storage]", "[[storage]]"), None, "storage: must be a table, not a list"),
        (("[storage]", "[storrage]"), 7, "storrage: unknown key"),
    ],
)
def test_a_mistake_is_named_with_file_line_and_key(
    tmp_path: Path, change: tuple[str, str], line: int | None, problem: str
) -> None:
    assert change[0] in DATANODE
    path = write(tmp_path, DATANODE.replace(*change, 1))
    with pytest.raises(BadConfiguration) as caught:
        load(path, DatanodeSettings)
    where = f"{path}:{line}: " if line else str(path)
    assert str(caught.value).startswith(where)
    assert problem in str(caught.value)


def test_a_boolean_is_not_a_number_and_a_number_is_no_boolean(tmp_path: Path) -> None:
    good = 'cluster_map = "c"\ndatacentre = "here"\ninsecure_listen = true\nport = 0\n'
    assert load(write(tmp_path, good), FrontendSettings).insecure_listen is True
    for bad in (good.replace("true", "1"), good.replace("= 0", "= false"), good.replace("= 0", '= "1174"')):
        with pytest.raises(BadConfiguration):
            load(write(tmp_path, bad), FrontendSettings)


def test_a_missing_or_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadConfiguration, match=r"nowhere\.toml"):
        load(tmp_path / "nowhere.toml", FrontendSettings)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(BadConfiguration, match=r"binary\.toml"):
        load(binary, FrontendSettings)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("256 MiB", 256 * 2**20),
        ("256MiB", 256 * 2**20),
        (" 1.5 GiB ", 3 * 2**29),
        ("0 B", 0),
        ("2 TiB", 2**41),
        ("1 MB", None),
        ("1 mib", None),
        ("1.5", None),
        ("-1 MiB", None),
        ("MiB", None),
        ("", None),
        ("1e3", None),
        ("1 MiB 2", None),
        ("١ MiB", None),
        ("9" * 40, None),
    ],
)
def test_sizes(text: str, size: int | None) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "duration_ms"),
    [
        ("5 s", 5000),
        ("250ms", 250),
        ("1.5 h", 5_400_000),
        ("2 min", 120_000),
        ("1 d", 86_400_000),
        ("7", 7),
        ("5 sec", None),
        ("5 m", None),
        ("s", None),
        ("-5 s", None),
    ],
)
def test_durations(text: str, duration_ms: int | None) -> None:
    assert parse_duration_ms(text) == duration_ms


@given(st.integers(0, 10**12), st.sampled_from(["B", "KiB", "MiB", "GiB", "TiB"]))
def test_every_whole_size_is_exact(count: int, unit: str) -> None:
    factor = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}[unit]
    assert parse_size(f"{count} {unit}") == count * factor


@given(st.text(max_size=30))
def test_no_text_makes_the_parsers_fall_over(text: str) -> None:
    for parse in (parse_size, parse_duration_ms):
        value = parse(text)
        assert value is None or value >= 0


def test_the_secret_comes_from_a_file_or_from_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("0123456789abcdef\n")
    path.chmod(0o600)
    assert load_secret(path, {}) == b"0123456789abcdef"
    assert load_secret(None, {SECRET_VARIABLE: "fedcba9876543210"}) == b"fedcba9876543210"


def test_a_secret_that_is_missing_short_or_open_to_others_is_refused_and_never_shown(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    with pytest.raises(BadConfiguration, match="secret"):
        load_secret(path, {})
    with pytest.raises(BadConfiguration, match=SECRET_VARIABLE):
        load_secret(None, {})
    with pytest.raises(BadConfiguration, match="at least") as caught:
        load_secret(None, {SECRET_VARIABLE: "hunter2"})
    assert "hunter2" not in str(caught.value)
    path.write_text("0123456789abcdef\n")
    path.chmod(0o644)
    with pytest.raises(BadConfiguration, match="chmod 600") as caught:
        load_secret(path, {})
    assert "0123456789abcdef" not in str(caught.value)


def test_the_line_of_a_key_in_a_list_of_tables() -> None:
    text = '[[node]]\nname = "a"\n[[node.disk]]\npath = "x"\n[[node.disk]]\npath = "y"\n[[node]]\nname = "b"\n'
    text += '[[node.disk]]\npath = "z"\n[log]\nlevel = "info"\n'
    assert line_of(text, ("node", 0, "name")) == 2
    assert line_of(text, ("node", 0, "disk", 1, "path")) == 6
    assert line_of(text, ("node", 1, "name")) == 8
    assert line_of(text, ("node", 1, "disk", 0, "path")) == 10
    assert line_of(text, ("node", 1, "rack")) == 7
    assert line_of(text, ("log", "level")) == 12
    assert line_of(text, ("absent",)) is None


TABLES = {"disk", "tls", "node_tls", "name_feeds", "accounts_home"}
CONFIG = Path(__file__).parents[1] / "config"


@pytest.mark.parametrize(("name", "settings"), [("frontend", FrontendSettings), ("datanode", DatanodeSettings)])
def test_the_examples_show_every_key_with_its_default(
    name: str, settings: type[FrontendSettings] | type[DatanodeSettings]
) -> None:
    path = CONFIG / f"{name}.toml"
    loaded = load(path, settings)
    text = path.read_text()
    for field in dataclasses.fields(settings):
        is_table = dataclasses.is_dataclass(getattr(loaded, field.name)) or field.name in TABLES
        assert re.search(rf"^(# )?\[+{field.name}\]+$" if is_table else rf"^(# )?{field.name} = ", text, re.MULTILINE)
        if field.name in {"cluster_map", "node"}:
            continue  # either these or those of ZooKeeper: the example has to choose
        if field.default is not dataclasses.MISSING:
            assert getattr(loaded, field.name) == field.default, field.name
        elif field.default_factory is not dataclasses.MISSING:
            assert getattr(loaded, field.name) == field.default_factory(), field.name
    if isinstance(loaded, DatanodeSettings):
        for field in dataclasses.fields(StorageSettings):
            assert f"\n{field.name} = " in text
