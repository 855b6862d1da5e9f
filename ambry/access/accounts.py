"""Accounts, containers and what a container asks of its blobs, with their JSON. Names of fields there are Ambry's.

A container is known by two numbers, which stand in every blob id: `owner_key` is these eight bytes. Numbers are never
used again; a name is free again when its container's data are gone. `snapshot_version` grows with every change of the
account or container, so that a change made from an old reading is refused. Pure: this module knows values and JSON; it
does not know where they are kept or who may change them.
"""

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, Final

from ambry.errors import BadRequest
from ambry.limits import (
    ACCOUNT_NUMBER_MAX,
    CONTAINER_LIST_ITEMS_MAX,
    ERASURE_DAYS_MAX,
    POLICY_TEXT_BYTES_MAX,
    QUOTA_MAX,
    TTL_SECONDS_MAX,
)

DEFAULT_NUMBER: Final = 0
"""Number of the account and of the container that every store has from the first day."""

DEFAULT_NAME: Final = "default"

_OWNER: Final = struct.Struct(">II")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ORIGIN: Final = re.compile(r"\*|[a-z][a-z0-9+.-]*://[A-Za-z0-9.\-\[\]:]+")
_MEDIA_TYPE: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_WORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def owner_key(account: int, container: int) -> bytes:
    """The eight bytes of a blob id that say whose it is."""
    return _OWNER.pack(account, container)


class Status(StrEnum):
    """Life of an account or a container. From DELETE_IN_PROGRESS there is no way back."""

    ACTIVE = "ACTIVE"
    INACTIVE = "INACTIVE"
    DELETE_IN_PROGRESS = "DELETE_IN_PROGRESS"
    DELETED = "DELETED"


class Durability(StrEnum):
    """What has to be true before an upload is acknowledged: `x-ambry-durability`, or the rule of a container."""

    SYNCED = "synced"
    """A quorum of the replicas of this datacentre has the bytes on disk."""

    SYNCED_REMOTE = "synced-remote"
    """In addition one replica of another datacentre has."""


class NamedBlobs(StrEnum):
    """What may be done with names in a container."""

    DISABLED = "DISABLED"
    OPTIONAL = "OPTIONAL"
    NO_UPDATE = "NO_UPDATE"


class QuotaMode(StrEnum):
    """What becomes of a request beyond a quota: `quotaMode`."""

    THROTTLING = "THROTTLING"
    """It is refused."""

    TRACKING = "TRACKING"
    """It is served, counted and warned: to find out what a quota would do."""


@dataclass(frozen=True, slots=True)
class ContainerPolicy:
    """What a container asks of its blobs and grants to everybody. None is: no limit, nothing special."""

    ttl_required: bool = False
    """An upload must say when it expires."""
    ttl_warn_only: bool = False
    """An upload that breaks the two rules of TTLs is stored, and warned in its answer."""
    ttl_max_s: int | None = None
    cacheable: bool = True
    cache_ttl_s: int | None = None
    allow_origin: str | None = None
    """Access-Control-Allow-Origin of answers, for pages of other sites."""
    secure_path: bool = False
    """Requests must come through the path prefix that the operator keeps for this."""
    download_types: tuple[str, ...] = ()
    """Media types that browsers save instead of showing."""
    durability: Durability = Durability.SYNCED
    partition_class: str = "default"
    named_blobs: NamedBlobs = NamedBlobs.OPTIONAL
    versioning: bool = False
    erasure_days: int | None = None
    """After its retention, deleted data are gone from every replica within this time."""
    quota_bytes: int | None = None
    quota_blobs: int | None = None
    quota_requests_per_s: int | None = None
    quota_bytes_per_s: int | None = None
    quota_mode: QuotaMode = QuotaMode.THROTTLING
    anonymous_read: bool = False

    @property
    def has_plain_answers(self) -> bool:
        """Whether answers to reads look as they do where nobody asked for anything."""
        return self.cacheable and self.cache_ttl_s is None and self.allow_origin is None and not self.download_types

    @property
    def has_plain_reads(self) -> bool:
        """Whether a read needs no look at the policy at all."""
        return self.has_plain_answers and not self.secure_path and not self.has_rates

    @property
    def takes_plain_puts(self) -> bool:
        """Whether an upload needs no look at the policy at all."""
        asks = self.ttl_required or self.ttl_max_s is not None or self.secure_path or self.has_rates
        return not asks and not self.has_space and self.durability is Durability.SYNCED

    @property
    def has_space(self) -> bool:
        """Whether bytes or blobs are bounded."""
        return self.quota_bytes is not None or self.quota_blobs is not None

    @property
    def has_rates(self) -> bool:
        """Whether requests or bytes per second are bounded."""
        return self.quota_requests_per_s is not None or self.quota_bytes_per_s is not None


PLAIN: Final = ContainerPolicy()

POLICY_KEYS: Final = {
    "ttl_required": "ttlRequired",
    "ttl_warn_only": "ttlWarnOnly",
    "ttl_max_s": "ttlMaxInSecond",
    "cacheable": "cacheable",
    "cache_ttl_s": "cacheTtlInSecond",
    "allow_origin": "accessControlAllowOrigin",
    "secure_path": "securePathRequired",
    "download_types": "contentTypeWhitelistForFilenamesOnDownload",
    "durability": "durabilityClass",
    "partition_class": "replicationPolicy",
    "named_blobs": "namedBlobMode",
    "versioning": "versioning",
    "erasure_days": "erasureDays",
    "quota_bytes": "quotaBytes",
    "quota_blobs": "quotaBlobs",
    "quota_requests_per_s": "quotaRequestsPerSecond",
    "quota_bytes_per_s": "quotaBytesPerSecond",
    "quota_mode": "quotaMode",
    "anonymous_read": "anonymousRead",
}
"""Field of ContainerPolicy to its key in JSON."""

_COUNTS: Final = {
    "ttl_max_s": (1, TTL_SECONDS_MAX),
    "cache_ttl_s": (0, TTL_SECONDS_MAX),
    "erasure_days": (0, ERASURE_DAYS_MAX),
    "quota_bytes": (0, QUOTA_MAX),
    "quota_blobs": (0, QUOTA_MAX),
    "quota_requests_per_s": (1, QUOTA_MAX),
    "quota_bytes_per_s": (1, QUOTA_MAX),
}
_ENUMS: Final[Mapping[str, type[StrEnum]]] = {
    "durability": Durability,
    "named_blobs": NamedBlobs,
    "quota_mode": QuotaMode,
}

assert set(POLICY_KEYS) == {each.name for each in fields(ContainerPolicy)}


@dataclass(frozen=True, slots=True)
class Container:
    """A namespace of an account. `delete_triggered_ms` is when it was given up, else 0."""

    account: int
    number: int
    account_name: str
    name: str
    status: Status = Status.ACTIVE
    policy: ContainerPolicy = field(default_factory=ContainerPolicy)
    snapshot_version: int = 0
    modified_ms: int = 0
    delete_triggered_ms: int = 0

    @property
    def owner(self) -> bytes:
        """Its eight bytes in blob ids."""
        return owner_key(self.account, self.number)

    def as_json(self) -> dict[str, Any]:
        """As answers show it. What is not set is left out."""
        document: dict[str, Any] = {
            "containerId": self.number,
            "containerName": self.name,
            "parentAccountId": self.account,
            "status": self.status.value,
            "snapshotVersion": self.snapshot_version,
            "lastModifiedTime": self.modified_ms,
        }
        if self.delete_triggered_ms:
            document["deleteTriggerTime"] = self.delete_triggered_ms
        return document | policy_json(self.policy)


@dataclass(frozen=True, slots=True)
class Account:
    """A tenant."""

    number: int
    name: str
    status: Status = Status.ACTIVE
    snapshot_version: int = 0
    modified_ms: int = 0
    delete_triggered_ms: int = 0

    def as_json(self, containers: list[Container]) -> dict[str, Any]:
        """As answers show it, with those of its containers that are given."""
        document: dict[str, Any] = {
            "accountId": self.number,
            "accountName": self.name,
            "status": self.status.value,
            "snapshotVersion": self.snapshot_version,
            "lastModifiedTime": self.modified_ms,
        }
        if self.delete_triggered_ms:
            document["deleteTriggerTime"] = self.delete_triggered_ms
        return document | {"containers": [each.as_json() for each in containers]}


DEFAULT_ACCOUNT: Final = Account(DEFAULT_NUMBER, DEFAULT_NAME)
DEFAULT_CONTAINER: Final = Container(DEFAULT_NUMBER, DEFAULT_NUMBER, DEFAULT_NAME, DEFAULT_NAME)


# --- changes as clients send them ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AccountChange:
    """An account that is to be made or changed. Who has no number and no known name is new.

    `snapshot_version` is that of the reading which the change was made from; a new account has none.
    """

    number: int | None
    name: str | None
    status: Status | None
    snapshot_version: int | None
    containers: tuple["ContainerChange", ...] = ()


@dataclass(frozen=True, slots=True)
class ContainerChange:
    """The same for a container. `policy` has only the fields that were sent; null resets one."""

    number: int | None
    name: str | None
    status: Status | None
    snapshot_version: int | None
    policy: Mapping[str, Any] = field(default_factory=dict)


_ACCOUNT_KEYS: Final = {"accountId", "accountName", "status", "snapshotVersion", "containers"}
_CONTAINER_KEYS: Final = {"containerId", "containerName", "status", "snapshotVersion"}
_ANSWERED_KEYS: Final = {"lastModifiedTime", "deleteTriggerTime", "parentAccountId"}
"""What answers have and changes may send back unread."""


def parse_account_change(document: object) -> AccountChange:
    """An account in the JSON of a change. Raises BadRequest."""
    table = _table(document, "account", _ACCOUNT_KEYS)
    containers = table.get("containers", [])
    if not isinstance(containers, list) or len(containers) > CONTAINER_LIST_ITEMS_MAX:
        raise BadRequest(f"containers is a list of {CONTAINER_LIST_ITEMS_MAX} at most", field="containers")
    return AccountChange(
        _count(table, "accountId", ACCOUNT_NUMBER_MAX),
        _name(table, "accountName"),
        _status(table),
        _count(table, "snapshotVersion", QUOTA_MAX),
        tuple(parse_container_change(each) for each in containers),
    )


def parse_container_change(document: object) -> ContainerChange:
    """A container in the JSON of a change. Raises BadRequest."""
    known = _CONTAINER_KEYS | set(POLICY_KEYS.values())
    table = _table(document, "container", known)
    change = ContainerChange(
        _count(table, "containerId", ACCOUNT_NUMBER_MAX),
        _name(table, "containerName"),
        _status(table),
        _count(table, "snapshotVersion", QUOTA_MAX),
        {key: table[key] for key in table if key in POLICY_KEYS.values()},
    )
    parse_policy(change.policy, PLAIN)
    return change


def policy_json(policy: ContainerPolicy) -> dict[str, Any]:
    """A policy in JSON; what is None is left out."""
    found: dict[str, Any] = {}
    for name, key in POLICY_KEYS.items():
        value = getattr(policy, name)
        if value is not None:
            found[key] = list(value) if isinstance(value, tuple) else value.value if name in _ENUMS else value
    return found


def parse_policy(table: Mapping[str, Any], before: ContainerPolicy) -> ContainerPolicy:
    """`before` with what the table sets; null resets a field. Raises BadRequest that names the key."""
    values: dict[str, Any] = {}
    for name, key in POLICY_KEYS.items():
        if key not in table:
            values[name] = getattr(before, name)
        elif table[key] is None:
            values[name] = getattr(PLAIN, name)
        else:
            values[name] = _policy_value(name, key, table[key])
    return ContainerPolicy(**values)


def _policy_value(name: str, key: str, sent: Any) -> Any:  # noqa: ANN401 -- JSON before and after it is checked
    if name in _COUNTS:
        low, high = _COUNTS[name]
        if not isinstance(sent, int) or isinstance(sent, bool) or not low <= sent <= high:
            raise BadRequest(f"{key} is a number from {low} to {high}, or null", field=key)
        return sent
    if name in _ENUMS:
        known = [each.value for each in _ENUMS[name]]
        if sent not in known:
            raise BadRequest(f"{key} is one of {', '.join(known)}", field=key)
        return _ENUMS[name](sent)
    if name == "allow_origin":
        if not isinstance(sent, str) or len(sent) > POLICY_TEXT_BYTES_MAX or not _ORIGIN.fullmatch(sent):
            raise BadRequest(f"{key} is an origin such as https://example.org, or *", field=key)
        return sent
    if name == "partition_class":
        if not isinstance(sent, str) or len(sent) > POLICY_TEXT_BYTES_MAX or not _WORD.fullmatch(sent):
            raise BadRequest(f"{key} is a word", field=key)
        return sent
    if name == "download_types":
        are_types = isinstance(sent, list) and len(sent) <= CONTAINER_LIST_ITEMS_MAX
        if not are_types or not all(isinstance(each, str) and _MEDIA_TYPE.fullmatch(each) for each in sent):
            raise BadRequest(f"{key} is a list of media types", field=key)
        return tuple(each.lower() for each in sent)
    if not isinstance(sent, bool):
        raise BadRequest(f"{key} is true or false", field=key)
    return sent


def checked_name(name: str, what: str) -> str:
    """A name that an account or a container may have. Raises BadRequest."""
    if not name.isascii() or not _NAME.fullmatch(name):
        raise BadRequest(f"{what} has up to 64 letters, digits, '.', '_' and '-', a letter or digit first", field=what)
    return name


def _table(document: object, what: str, known: set[str]) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise BadRequest(f"an {what} is a JSON object", field=what)
    for key in document:
        if key not in known and key not in _ANSWERED_KEYS:
            raise BadRequest("an unknown key; known are " + ", ".join(sorted(known)), field=str(key)[:64])
    return document


def _count(table: Mapping[str, Any], key: str, high: int) -> int | None:
    value = table.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= high:
        raise BadRequest(f"{key} is a number from 0 to {high}", field=key)
    return value


def _name(table: Mapping[str, Any], key: str) -> str | None:
    value = table.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise BadRequest(f"{key} is text", field=key)
    return checked_name(value, key)


def _status(table: Mapping[str, Any]) -> Status | None:
    value = table.get("status")
    settable = (Status.ACTIVE, Status.INACTIVE, Status.DELETE_IN_PROGRESS)
    if value is None:
        return None
    if value not in settable:
        raise BadRequest(f"status is one of {', '.join(settable)}", field="status")
    return Status(value)
