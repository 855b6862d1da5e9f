"""What an operator may tune: settings as frozen dataclasses, and the one loader from TOML to them.

A field is a key; its annotation says type, unit and range, so the loader needs no second description and an unknown
key, a wrong type or a value out of range is named with its file and line before anything starts. Sizes are bytes or
strings such as "256 MiB", durations milliseconds or strings such as "5 s"; the field's name says the base unit.
Relative paths are relative to the file they stand in. Limits of the product are in limits.py, not here.
This module knows files and values; it does not know what the settings do.
"""

import dataclasses
import os
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

from ambry import limits
from ambry.errors import BadConfiguration
from ambry.limits import GIB, MIB
from ambry.quantities import parse_duration_ms, parse_size

SECRET_VARIABLE: Final = "AMBRY_CLUSTER_SECRET"  # noqa: S105 -- a name, not a secret
"""Environment variable with the cluster secret, for those who keep secrets out of files."""


class Unit(StrEnum):
    """What the number of a setting counts."""

    COUNT = "count"
    BYTES = "bytes"
    MS = "milliseconds"


@dataclass(frozen=True, slots=True)
class Range:
    """Annotation of an integer: its unit, and the values that are allowed, both ends included."""

    unit: Unit
    low: int
    high: int


Port = Annotated[int, Range(Unit.COUNT, 0, 65_535)]
"""A TCP port. 0 lets the system choose one; the process logs which."""


@dataclass(frozen=True, slots=True)
class ErasureSettings:
    """A container whose dead bytes have to be gone from the disk so many days after their retention."""

    account: Annotated[int, Range(Unit.COUNT, 0, limits.ACCOUNT_NUMBER_MAX)]
    container: Annotated[int, Range(Unit.COUNT, 0, limits.ACCOUNT_NUMBER_MAX)]
    days: Annotated[int, Range(Unit.COUNT, 0, limits.ERASURE_DAYS_MAX)]


@dataclass(frozen=True, slots=True)
class StorageSettings:
    """The storage engine of a datanode; the same for each of its disks."""

    segment_bytes: Annotated[int, Range(Unit.BYTES, 16 * MIB, limits.SEGMENT_BYTES_MAX)] = limits.SEGMENT_BYTES_DEFAULT
    """Size of a new log segment. What exists keeps its size."""

    journal_bytes: Annotated[int, Range(Unit.BYTES, limits.JOURNAL_BYTES_MIN, 4 * GIB)] = limits.JOURNAL_BYTES
    """Size of the journal of a disk: bounds the time of a recovery."""

    checkpoint_interval_ms: Annotated[int, Range(Unit.MS, 100, 600_000)] = 2_000
    """The journal is emptied this often even if it is far from full."""

    reserve_bytes: Annotated[int, Range(Unit.BYTES, 16 * MIB, 1024 * GIB)] = limits.DISK_RESERVE_BYTES
    """Below this much free space puts are refused; reads and deletes go on. Three quarters of it are in the file
    `reserve`, which counts as free, and which nobody else can fill."""

    deleted_retention_ms: Annotated[int, Range(Unit.MS, 0, 3650 * 86_400_000)] = 7 * 86_400_000
    """A deleted blob can be undeleted for this long; then compaction may reclaim its bytes."""

    expired_retention_ms: Annotated[int, Range(Unit.MS, 0, 3650 * 86_400_000)] = 86_400_000
    """An expired blob's bytes stay this long: more than any clock is wrong."""

    sweep_interval_ms: Annotated[int, Range(Unit.MS, 60_000, 365 * 86_400_000)] = 86_400_000
    """Between two passes of the sweeper, which collects chunks that no blob owns any more."""

    sweep_percent_max: Annotated[int, Range(Unit.COUNT, 0, 100)] = 1
    """A pass of the sweeper that would take more than this share of a partition's chunks takes none and raises an
    alarm. Chunks of deleted blobs do not count."""

    compaction_bytes_per_s: Annotated[int, Range(Unit.BYTES, 0, 16 * GIB)] = 32 * MIB
    """Compaction reads at most this much of a disk in a second while there is room, and less while commits are slow;
    the less room there is, the more it may. 0 turns it off."""

    compaction_garbage_percent: Annotated[int, Range(Unit.COUNT, 1, 99)] = 25
    """A segment is compacted when this share of it is garbage; down to a quarter of it, the less room there is."""

    scrub_bytes_per_s: Annotated[int, Range(Unit.BYTES, 0, 16 * GIB)] = 8 * MIB
    """Scrub reads at most this much of a disk in a second; less while commits are slow, and down to a sixteenth while
    blobs are read from the disk; 0 turns it off."""

    scrub_interval_ms: Annotated[int, Range(Unit.MS, 1000, 3650 * 86_400_000)] = 7 * 86_400_000
    """A segment that was verified is not verified again before this time has passed. When twice the time has passed,
    scrub gives way to reads no longer."""

    index_cache_bytes: Annotated[int, Range(Unit.BYTES, MIB, 256 * GIB)] = limits.INDEX_CACHE_BYTES
    """Block cache of a disk's index."""

    index_memtable_bytes: Annotated[int, Range(Unit.BYTES, MIB, GIB)] = limits.INDEX_MEMTABLE_BYTES
    """Memtable of a disk's index."""

    erasure: tuple[ErasureSettings, ...] = ()
    """Containers with a deadline for what is dead: tables of `account`, `container` (their numbers) and `days`."""


@dataclass(frozen=True, slots=True)
class ReplicationSettings:
    """How a datanode reads from the datanodes that have replicas of its partitions."""

    near_pace_ms: Annotated[int, Range(Unit.MS, limits.POLL_PACE_MS, 10_000)] = 100
    """A peer in the same datacentre answers at most this often: frontends write to all replicas there anyway."""

    far_pace_ms: Annotated[int, Range(Unit.MS, limits.POLL_PACE_MS, 10_000)] = limits.POLL_PACE_MS
    """A peer in another datacentre answers at most this often."""

    near_delay_ms: Annotated[int, Range(Unit.MS, 0, 60_000)] = 2_000
    """A body is fetched from a peer in the same datacentre when no frontend has brought it for this long."""

    takeover_ms: Annotated[int, Range(Unit.MS, 100, 600_000)] = 10_000
    """A replica that is silent this long does not read from other datacentres any more; the next one does."""

    fresh_bytes_per_s: Annotated[int, Range(Unit.BYTES, 0, 16 * GIB)] = 0
    """Bodies of new blobs from one peer in a second at most; 0 is no limit."""

    catch_up_bytes_per_s: Annotated[int, Range(Unit.BYTES, 0, 16 * GIB)] = 64 * MIB
    """Bodies from one peer in a second at most where a replica has a long way to go; 0 is no limit."""

    repair_bytes_per_s: Annotated[int, Range(Unit.BYTES, 0, 16 * GIB)] = 16 * MIB
    """Bodies that were lost or missed, in a second at most; 0 is no limit."""

    anti_entropy_interval_ms: Annotated[int, Range(Unit.MS, 1_000, 3650 * 86_400_000)] = 86_400_000
    """Every partition is compared with every peer it is read from once in this time."""


class LogFormat(StrEnum):
    """How log lines look. AUTO is text on a terminal and JSON elsewhere."""

    AUTO = "auto"
    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """The least important lines that are written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class LogSettings:
    """Log lines on standard error."""

    level: LogLevel = LogLevel.INFO
    format: LogFormat = LogFormat.AUTO


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """Certificate chain and private key, both PEM, of a port that speaks TLS."""

    certificate_file: Path
    key_file: Path


@dataclass(frozen=True, slots=True)
class NodeTlsSettings:
    """Mutual TLS between frontends and datanodes: own certificate and key, and the authority of the cluster (PEM)."""

    certificate_file: Path
    key_file: Path
    authority_file: Path


class Authentication(StrEnum):
    """Whether requests have to show credentials. AUTO: where the frontend can be reached from other machines."""

    AUTO = "auto"
    REQUIRED = "required"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class NameFeedSettings:
    """Another datacentre whose names are fetched. The key behind the token needs the right to read everything there."""

    datacentre: str
    """Its name in the cluster map."""

    url: str
    """Where its frontends are reached."""

    token_file: Path
    """File with the token of an access key of that datacentre."""


@dataclass(frozen=True, slots=True)
class FrontendSettings:
    """`ambry frontend --config FILE`."""

    datacentre: str
    """Name of the datacentre in the map that this frontend is in: puts go to replicas there."""

    cluster_map: Path | None = None
    """The static cluster map, another TOML file; or `zookeeper`."""

    zookeeper: str | None = None
    """ZooKeeper servers that hold the cluster map, "host:port,host:port", perhaps with a folder behind them."""

    state_folder: Path | None = None
    """With `zookeeper`: folder of this process for the last map that it knows. Each process has its own."""

    secret_file: Path | None = None
    """File with the cluster secret; SECRET_VARIABLE is read where this is not given."""

    host: str = "127.0.0.1"
    port: Port = 1174
    """Address and port that clients reach."""

    name_store: str | None = None
    """Where names, accounts and keys are: sqlite:FILE, or postgresql://USER@HOST/DATABASE. Without it there is the
    default account only."""

    authentication: Authentication = Authentication.AUTO
    """Whether requests have to show credentials; auto: if the address can be reached from other machines."""

    insecure_listen: bool = False
    """Listen beyond loopback without authentication: whoever reaches the port may do everything."""

    master_secret_file: Path | None = None
    """Master secrets of access keys, one a line, the newest first; without it, one derived from the cluster secret."""

    secure_path_prefix: str | None = None
    """Path prefix behind which containers are reached that want the secure path."""

    workers: Annotated[int, Range(Unit.COUNT, 1, 256)] = 1
    """Processes that share the port."""

    shutdown_grace_ms: Annotated[int, Range(Unit.MS, 0, 600_000)] = 10_000
    """After SIGTERM, requests in flight have this long to finish."""

    name_feeds: tuple[NameFeedSettings, ...] = ()
    """The other datacentres whose names are to be found here, too."""

    accounts_home: NameFeedSettings | None = None
    """The datacentre in which accounts, containers and keys are changed, if it is another one. The key behind its token
    has the right `admin` in the whole store."""

    tls: TlsSettings | None = None
    node_tls: NodeTlsSettings | None = None
    log: LogSettings = field(default_factory=LogSettings)


@dataclass(frozen=True, slots=True)
class DiskSettings:
    """One disk of a datanode: its folder, and the bytes that partitions may take there."""

    path: Path
    capacity_bytes: Annotated[int, Range(Unit.BYTES, 64 * MIB, 1024 * 1024 * GIB)]


@dataclass(frozen=True, slots=True)
class DatanodeSettings:
    """`ambry datanode --config FILE`. With a static map, address and disks are there, under `node`; with ZooKeeper
    they are here, and the datanode registers them.
    """

    cluster_map: Path | None = None
    """The static cluster map, another TOML file; or `zookeeper`."""

    node: str | None = None
    """Name of this datanode in the map. With `zookeeper` it may be left out: one is made at the first start."""

    zookeeper: str | None = None
    """ZooKeeper servers that hold the cluster map, "host:port,host:port", perhaps with a folder behind them."""

    state_folder: Path | None = None
    """With `zookeeper`: folder of this datanode for its identity and the last map that it knows."""

    datacentre: str | None = None
    """With `zookeeper`: the name of its datacentre."""

    rack: str = "rack"
    """With `zookeeper`: what fails together with this datanode."""

    host: str = "127.0.0.1"
    port: Port = 6667
    """With `zookeeper`: where other processes reach this datanode."""

    disk: tuple[DiskSettings, ...] = ()
    """With `zookeeper`: its disks."""

    secret_file: Path | None = None
    """File with the cluster secret; SECRET_VARIABLE is read where this is not given."""

    listen_host: str | None = None
    """Address to listen on where it is not the host of the map."""

    admin_host: str = "127.0.0.1"
    admin_port: Port = 6668
    """Plain HTTP for /metrics and /healthCheck."""

    shutdown_grace_ms: Annotated[int, Range(Unit.MS, 0, 600_000)] = 10_000
    """After SIGTERM, requests in flight have this long to finish."""

    node_tls: NodeTlsSettings | None = None
    storage: StorageSettings = field(default_factory=StorageSettings)
    replication: ReplicationSettings = field(default_factory=ReplicationSettings)
    log: LogSettings = field(default_factory=LogSettings)


SettingsT = TypeVar("SettingsT")


@dataclass(frozen=True, slots=True)
class Source:
    """The file that settings come from; finds the line of a key for error messages."""

    path: Path
    text: str

    def error(self, keys: tuple[str | int, ...], problem: str) -> BadConfiguration:
        """An error that names file, line and key."""
        name = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".")
        line = line_of(self.text, keys)
        where = f"{self.path}:{line}" if line else f"{self.path}"
        return BadConfiguration(f"{where}: {name}: {problem}" if name else f"{where}: {problem}")


def load(path: Path, settings: type[SettingsT]) -> SettingsT:
    """Read a TOML file into a dataclass. Raises BadConfiguration, which names the file and the key."""
    source, table = read_toml(path)
    return parse_table(table, settings, source)


def read_toml(path: Path) -> tuple[Source, dict[str, object]]:
    """The file and its top table. Raises BadConfiguration for a file that cannot be read or is not TOML."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfiguration(f"{path}: cannot be read: {error}") from error
    try:
        return Source(path, text), tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadConfiguration(f"{path}: not TOML: {error}") from error


def parse_table(
    table: Mapping[str, object], settings: type[SettingsT], source: Source, keys: tuple[str | int, ...] = ()
) -> SettingsT:
    """A table of TOML as a dataclass; `keys` is where the table stands in the file."""
    assert dataclasses.is_dataclass(settings)
    hints = typing.get_type_hints(settings, include_extras=True)
    fields = {each.name: each for each in dataclasses.fields(settings)}
    for key in table:
        if key not in fields:
            raise source.error((*keys, key), f"unknown key; known are {', '.join(sorted(fields))}")
    values: dict[str, object] = {}
    for name, each in fields.items():
        if name in table:
            values[name] = parse_value(table[name], hints[name], source, (*keys, name))
        elif each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
            raise source.error(keys, f"key {name!r} is missing")
    return typing.cast("SettingsT", settings(**values))


def parse_value(value: object, hint: object, source: Source, keys: tuple[str | int, ...]) -> object:
    """A value of TOML as what the annotation `hint` asks for."""
    origin = typing.get_origin(hint)
    if origin is Annotated:
        base, bounds = typing.get_args(hint)[:2]
        assert base is int
        assert isinstance(bounds, Range)
        return _parse_int(value, bounds, source, keys)
    if origin in (typing.Union, types.UnionType):
        (inner,) = (each for each in typing.get_args(hint) if each is not type(None))
        return parse_value(value, inner, source, keys)
    if origin is tuple:
        inner = typing.get_args(hint)[0]
        if not isinstance(value, list):
            raise source.error(keys, f"must be a list, not {_kind(value)}")
        return tuple(parse_value(each, inner, source, (*keys, index)) for index, each in enumerate(value))
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise source.error(keys, f"must be a table, not {_kind(value)}")
        return parse_table(value, typing.cast("type[Any]", hint), source, keys)
    if hint is bool:
        if not isinstance(value, bool):
            raise source.error(keys, f"must be true or false, not {_kind(value)}")
        return value
    if not isinstance(value, str):
        raise source.error(keys, f"must be a string, not {_kind(value)}")
    return _parse_text(value, hint, source, keys)


def _parse_text(value: str, hint: object, source: Source, keys: tuple[str | int, ...]) -> object:
    if not value:
        raise source.error(keys, "must not be empty")
    if hint is str:
        return value
    if hint is Path:
        return source.path.parent / Path(value).expanduser()
    assert isinstance(hint, type)
    assert issubclass(hint, StrEnum), f"no parser for {hint}"
    try:
        return hint(value)
    except ValueError as error:
        raise source.error(keys, f"must be one of {', '.join(hint)}, not {value!r}") from error


def _parse_int(value: object, bounds: Range, source: Source, keys: tuple[str | int, ...]) -> int:
    if isinstance(value, str) and bounds.unit is not Unit.COUNT:
        number = parse_size(value) if bounds.unit is Unit.BYTES else parse_duration_ms(value)
        if number is None:
            example = "256 MiB" if bounds.unit is Unit.BYTES else "5 s"
            raise source.error(keys, f'{value!r} is not a number of {bounds.unit} such as "{example}"')
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    else:
        raise source.error(keys, f"must be an integer, not {_kind(value)}")
    if not bounds.low <= number <= bounds.high:
        raise source.error(keys, f"must be from {bounds.low} to {bounds.high} ({bounds.unit}), not {number}")
    return number


def load_secret(path: Path | None, environment: Mapping[str, str] = os.environ) -> bytes:
    """The cluster secret from a file, or from SECRET_VARIABLE where there is no file. Surrounding space is dropped.

    Raises BadConfiguration if there is none, if it is too short to be one, or if others may read the file. The
    message never has the secret in it.
    """
    if path is None:
        secret = environment.get(SECRET_VARIABLE, "").strip().encode()
        origin = SECRET_VARIABLE
        if not secret:
            raise BadConfiguration(f"no cluster secret: give secret_file, or set {SECRET_VARIABLE}")
    else:
        origin = str(path)
        try:
            mode = path.stat().st_mode
            secret = path.read_bytes().strip()
        except OSError as error:
            raise BadConfiguration(f"{path}: the cluster secret cannot be read: {error}") from error
        if mode & 0o077:
            raise BadConfiguration(f"{path}: others may read the cluster secret: chmod 600 {path}")
    if len(secret) < limits.SECRET_BYTES_MIN:
        raise BadConfiguration(f"{origin}: a cluster secret has {limits.SECRET_BYTES_MIN} characters at least")
    return secret


def load_secret_lines(path: Path) -> list[bytes]:
    """The secrets of a file, one a line, for its owner's eyes only. Raises BadConfiguration, as `load_secret`."""
    lines = [line.strip() for line in load_secret(path).splitlines() if line.strip()]
    if any(len(line) < limits.SECRET_BYTES_MIN for line in lines):
        raise BadConfiguration(f"{path}: each secret has {limits.SECRET_BYTES_MIN} characters at least")
    return lines


def line_of(text: str, keys: tuple[str | int, ...]) -> int | None:
    """The line, from 1, where `keys` is set or its nearest table begins; None where that is not plain to see.

    Reads headers and keys line by line; a key inside a multi-line value may mislead it, which costs a wrong number
    in an error message and nothing else.
    """
    seen: dict[tuple[str, ...], int] = {}
    here: tuple[str | int, ...] = ()
    best: tuple[int, int] | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[\[?\s*([\w.\- \"]+?)\s*\]\]?", line):
            names = tuple(part.strip(' "') for part in header[1].split("."))
            if line.lstrip().startswith("[["):
                seen[names] = seen.get(names, -1) + 1
                for below in [each for each in seen if each[: len(names)] == names and each != names]:
                    del seen[below]
            here = ()
            for depth in range(len(names)):
                here += (names[depth],)
                if names[: depth + 1] in seen:
                    here += (seen[names[: depth + 1]],)
            found = here
        elif key := re.match(r"\s*([\w\-]+|\"[^\"]+\")\s*=", line):
            found = (*here, key[1].strip('"'))
        else:
            continue
        if found == keys[: len(found)] and (best is None or len(found) > best[0]):
            best = (len(found), number)
    return best[1] if best else None


def _kind(value: object) -> str:
    names = {bool: "a boolean", int: "an integer", float: "a float", str: "a string", list: "a list", dict: "a table"}
    return names.get(type(value), type(value).__name__)
