"""Properties of a put record: a msgpack map with short keys. Normative text: docs/formats/record.md.

Properties are encoded once, by the frontend that accepted the blob, and travel as bytes: whoever stores, replicates
or compacts them copies them. So keys that this version does not know are kept, and a newer version may add some.
Absent keys mean the default. Never give a key another meaning: these bytes are on disk.
"""

from collections.abc import Mapping
from dataclasses import field
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final

import msgpack

from ambry.blob.value import value
from ambry.errors import CorruptRecord
from ambry.limits import PROPERTIES_BYTES_MAX

DEFAULT_CONTENT_TYPE: Final = "application/octet-stream"

KEYS: Final = {
    "size": "z",  # plain bytes of the whole blob, before compression and encryption; of a composite: all chunks
    "content_type": "t",
    "content_encoding": "e",
    "filename": "f",
    "service_id": "s",
    "owner_id": "o",
    "user_metadata": "u",  # map of text to text
    "account_name": "a",  # with container and name: `ambry names rebuild` needs no other source
    "container_name": "c",
    "name": "n",
    "name_version": "v",  # [hybrid logical clock, datacentre]
    "name_kind": "k",  # record about a name without a body: 2 delete marker, 3 purge of this version; absent: a put
    "name_blob": "b",  # delete marker: binary id of the blob that the name passed on
    "name_target": "w",  # delete marker: the name in the same container that has the blob from this version on
    "manifest_ids": "m",  # chunk only: binary ids that the upload reserved for its manifest
    "upload_id": "i",  # chunk only: 16 bytes
    "deadline_ms": "d",  # chunk only: the manifest is put before this moment or never
    "digests": "g",  # map of algorithm to bytes, of the plain bytes
    "frames": "r",  # [codec, frame size, ...] of a compressed or encrypted body
    "level": "l",  # manifest only: 0 lists chunks, 1 lists manifests
}
"""Field of Properties to its key on disk."""

_FIELD_OF_KEY: Final = {key: name for name, key in KEYS.items()}
assert len(_FIELD_OF_KEY) == len(KEYS)


def _no_entries() -> Mapping[str, Any]:
    return MappingProxyType({})


@value
class Properties:
    """What is known of a blob beside its bytes. `unknown` holds the keys of newer versions, as they came."""

    size: int
    content_type: str = DEFAULT_CONTENT_TYPE
    content_encoding: str | None = None
    filename: str | None = None
    service_id: str | None = None
    owner_id: str | None = None
    user_metadata: Mapping[str, str] = field(default_factory=_no_entries)
    account_name: str | None = None
    container_name: str | None = None
    name: str | None = None
    name_version: tuple[int, int] | None = None
    name_kind: int | None = None
    name_blob: bytes | None = None
    name_target: str | None = None
    manifest_ids: tuple[bytes, ...] = ()
    upload_id: bytes | None = None
    deadline_ms: int | None = None
    digests: Mapping[str, bytes] = field(default_factory=_no_entries)
    frames: tuple[Any, ...] | None = None
    level: int | None = None
    unknown: Mapping[str, Any] = field(default_factory=_no_entries)


_ACCOUNT: Final = KEYS["account_name"]
_CONTAINER: Final = KEYS["container_name"]
_NAME: Final = KEYS["name"]
_NAME_VERSION: Final = KEYS["name_version"]

_DEFAULTS: Final = Properties(size=-1)


def document_of(properties: Properties) -> dict[str, Any]:
    """What the record holds, by its keys. Defaults are left out; `size` is always there."""
    document: dict[str, Any] = {}
    for name, key in KEYS.items():
        value = getattr(properties, name)
        if value != getattr(_DEFAULTS, name):
            document[key] = dict(value) if isinstance(value, Mapping) else value
    document.update(properties.unknown)
    return document


def encode_properties(properties: Properties) -> bytes:
    """The bytes that the record holds."""
    return encode_document(document_of(properties))


def encode_document(document: Mapping[str, Any]) -> bytes:
    """The same of properties that are at hand as `document_of` has them."""
    data: bytes = msgpack.packb(document)
    return data


def encode_named(
    document: Mapping[str, Any], account_name: str, container_name: str, name: str, version: tuple[int, int]
) -> bytes:
    """The same of a blob with a name; the rest of its properties is at hand as a document. For the hot path."""
    own = {_ACCOUNT: account_name, _CONTAINER: container_name, _NAME: name, _NAME_VERSION: version}
    return encode_document({**document, **own})


_CACHED_BYTES_MAX: Final = 512
"""Most blobs of a service have the same few properties; the cache below stays under 8 MiB."""


def decode_properties(data: bytes) -> Properties:
    """Read the bytes of a record. Raises CorruptRecord when they are not properties of ours."""
    if len(data) > PROPERTIES_BYTES_MAX:
        raise CorruptRecord(f"properties of {len(data)} bytes, the limit is {PROPERTIES_BYTES_MAX}")
    return _decode_cached(data) if len(data) <= _CACHED_BYTES_MAX else _decode(data)


def _decode(data: bytes) -> Properties:
    try:
        document = msgpack.unpackb(data)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise CorruptRecord("properties are not msgpack") from error
    if not isinstance(document, dict):
        raise CorruptRecord("properties are not a map")
    values: dict[str, Any] = {}
    unknown: dict[str, Any] = {}
    for key, content in document.items():
        if not isinstance(key, str):
            raise CorruptRecord("properties with a key that is not text")
        name = _FIELD_OF_KEY.get(key)
        if name is None:
            unknown[key] = content
        else:
            values[name] = _checked(name, content)
    if "size" not in values:
        raise CorruptRecord("properties without a size")
    return Properties(**values, unknown=MappingProxyType(unknown))


_decode_cached = lru_cache(maxsize=4096)(_decode)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _checked(name: str, value: Any) -> Any:
    """A value of the type that its field promises. Raises CorruptRecord."""
    match name:
        case "size" | "deadline_ms" | "level" | "name_kind":
            good = _is_count(value)
        case "upload_id" | "name_blob":
            good = isinstance(value, bytes)
        case "user_metadata":
            good = isinstance(value, dict) and all(isinstance(v, str) for pair in value.items() for v in pair)
            value = MappingProxyType(value) if good else value
        case "digests":
            good = isinstance(value, dict) and all(
                isinstance(k, str) and isinstance(v, bytes) for k, v in value.items()
            )
            value = MappingProxyType(value) if good else value
        case "manifest_ids":
            good = isinstance(value, list) and all(isinstance(one, bytes) for one in value)
            value = tuple(value) if good else value
        case "name_version":
            good = isinstance(value, list) and len(value) == 2 and all(_is_count(one) for one in value)
            value = tuple(value) if good else value
        case "frames":
            good = isinstance(value, list)
            value = tuple(value) if good else value
        case _:
            good = isinstance(value, str)
    if not good:
        raise CorruptRecord(f"property {name} has a value of type {type(value).__name__}")
    return value
