"""The one error tree. Each class has a stable wire code (docs/formats/wire.md) and a stable name for clients.

A class says whose fault it is and whether trying again may help; the message carries the facts. Codes are on the
wire between processes and names are in answers to clients: neither is ever renumbered, renamed or used again.
`frontend/answers.py` has the one table from class to HTTP status. Nothing else maps errors.
"""

from typing import ClassVar, Final, Self


class AmbryError(Exception):
    """Root of all errors that the store raises on purpose.

    `message` says what happened, `facts` has what goes with it; for whoever asked a store `request_id`, `status`,
    `frontend` and `attempts`, a line for each. `retryable` says whether the same call may succeed later.
    """

    code: ClassVar[int] = 1
    name: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, **facts: object) -> None:
        super().__init__(message)
        self.message = message
        self.facts = facts

    def __str__(self) -> str:
        if not self.facts:
            return self.message
        return f"{self.message} ({', '.join(f'{key}={value}' for key, value in self.facts.items())})"

    def as_answer(self) -> Self:
        """The error as a value, without the frames that it passed: they hold bodies, and often the error itself.

        Such a circle is freed by the search for garbage alone, which is rare; a full disk would fill memory with them.
        """
        self.__traceback__ = self.__cause__ = self.__context__ = None
        return self


# --- the caller's fault: the same request will fail again ------------------------------------------------------


class BadRequest(AmbryError):
    """A value that the caller sent cannot be used; `field` in the facts names it."""

    code = 10
    name = "bad_request"


class BadBlobId(BadRequest):
    """Not a blob id, or one of a version that this process does not know."""

    code = 11
    name = "bad_blob_id"


class BadDigest(BadRequest):
    """The bytes that arrived do not have the digest that the client sent."""

    code = 12
    name = "bad_digest"


class TooLarge(AmbryError):
    """A blob, a header or a message beyond its limit."""

    code = 13
    name = "too_large"


class HeadersTooLarge(TooLarge):
    """Request headers or user metadata beyond their limit."""

    code = 14
    name = "headers_too_large"


class RangeNotSatisfiable(AmbryError):
    """No byte of the blob lies in the ranges asked for. Facts: `size`."""

    code = 15
    name = "range_not_satisfiable"


class PreconditionFailed(AmbryError):
    """If-Match or If-Unmodified-Since does not hold."""

    code = 16
    name = "precondition_failed"


class NotAllowed(AmbryError):
    """The state does not allow the change: a shorter TTL, the undelete of a live blob, a part of what is complete."""

    code = 17
    name = "not_allowed"


class MethodNotAllowed(AmbryError):
    """The path exists and does not know the method. Facts: `allow`."""

    code = 18
    name = "method_not_allowed"


class NoSuchPath(AmbryError):
    """No operation has this path."""

    code = 19
    name = "no_such_path"


class NameExists(AmbryError):
    """The name is taken, and the request did not say that it may be replaced."""

    code = 24
    name = "name_exists"


class NoSuchUpload(AmbryError):
    """No upload in parts has this id: it never began, was aborted, or its time is over. Its parts are gone."""

    code = 26
    name = "no_such_upload"


class BadName(BadRequest):
    """Not a name: empty, too long, not UTF-8, with control characters, or with `.` or `..` as a part."""

    code = 25
    name = "bad_name"


# --- certain outcomes ------------------------------------------------------------------------------------------


class BlobNotFound(AmbryError):
    """A witness says that it has never stored this id."""

    code = 30
    name = "blob_not_found"


class BlobDeleted(AmbryError):
    """The id was deleted, and its tombstone is kept. Of an undelete: its bytes are gone, and it cannot come back."""

    code = 31
    name = "blob_deleted"


class BlobExpired(AmbryError):
    """The id's TTL has passed."""

    code = 32
    name = "blob_expired"


class BlobCollision(AmbryError):
    """Another blob is already stored under this id. Never resolved silently."""

    code = 33
    name = "blob_collision"


class NameNotFound(AmbryError):
    """The name store has nothing under this name, or not this version."""

    code = 34
    name = "name_not_found"


class NameDeleted(AmbryError):
    """The newest version of the name is a delete marker, or the version was removed."""

    code = 35
    name = "name_deleted"


class NameExpired(AmbryError):
    """The TTL of the name's newest version has passed."""

    code = 36
    name = "name_expired"


# --- a replica, a disk or a peer cannot answer now: another one may --------------------------------------------


class NotHere(AmbryError):
    """The replica knows that the blob lives and has no bytes of it (a hole, queued for repair)."""

    code = 40
    name = "not_here"
    retryable = True


class CorruptRecord(AmbryError):
    """The bytes of a blob are damaged or missing on all its replicas. Facts of a record: partition, segment, offset."""

    code = 41
    name = "corrupt_record"
    retryable = True


class DiskFull(AmbryError):
    """No space for another put; reads and deletes go on."""

    code = 42
    name = "disk_full"
    retryable = True


class DiskUnavailable(AmbryError):
    """The disk failed, or its store is closed."""

    code = 43
    name = "disk_unavailable"
    retryable = True


class NoSuchReplica(AmbryError):
    """This datanode has no replica of the partition, or the request was made under an older map: reload it."""

    code = 44
    name = "no_such_replica"
    retryable = True


class Overloaded(AmbryError):
    """A queue is full. Facts: `retry_after_s`."""

    code = 45
    name = "overloaded"
    retryable = True


class DeadlineExceeded(AmbryError):
    """The deadline of the request passed before the answer was known."""

    code = 46
    name = "deadline_exceeded"
    retryable = True


class Unavailable(AmbryError):
    """Too few replicas answered to be certain of the outcome."""

    code = 47
    name = "unavailable"
    retryable = True


class ConnectionLost(AmbryError):
    """The connection to a peer closed before it answered."""

    code = 48
    name = "connection_lost"
    retryable = True


class ShuttingDown(AmbryError):
    """The process is finishing what it has and takes nothing new."""

    code = 49
    name = "shutting_down"
    retryable = True


class StaleMap(NoSuchReplica):
    """The sender's map is older than the partition's membership here. It reloads the map and asks again."""

    code = 50
    name = "stale_map"


class RegistryUnavailable(AmbryError):
    """ZooKeeper is out of reach, or has no layout. Changes of the map wait; everything else goes on."""

    code = 51
    name = "registry_unavailable"
    retryable = True


class NameStoreUnavailable(AmbryError):
    """The name store is locked, full or out of reach. Facts: `is_certain`, whether surely nothing was changed."""

    code = 52
    name = "name_store_unavailable"
    retryable = True


class QuotaExceeded(AmbryError):
    """A container has used up its requests or bytes per second, or its space. Facts: `retry_after_s`."""

    code = 53
    name = "quota_exceeded"
    retryable = True


# --- who may do what -------------------------------------------------------------------------------------------


class Unauthenticated(AmbryError):
    """Credentials that are wrong, expired or altered, or of two kinds at once; without any it is forbidden."""

    code = 80
    name = "unauthenticated"


class Forbidden(AmbryError):
    """The caller may not do this, or not with this account or container."""

    code = 81
    name = "forbidden"


class ChangeRefused(AmbryError):
    """A change of the cluster map, or of accounts away from their home, that would break a promise or names nothing."""

    code = 82
    name = "change_refused"


class VersionConflict(AmbryError):
    """The account or container was changed since it was read, or the name is taken. Read again, then change."""

    code = 83
    name = "version_conflict"


class UnknownContainer(BadRequest):
    """No account or container of that name."""

    code = 84
    name = "unknown_container"


class NoSuchAccount(AmbryError):
    """No account, container or key of that name, where one is asked for itself."""

    code = 85
    name = "no_such_account"


# --- between processes -----------------------------------------------------------------------------------------


class ProtocolError(AmbryError):
    """Bytes on a connection that no peer of ours sends. The connection is closed."""

    code = 60
    name = "protocol_error"


class HandshakeRefused(AmbryError):
    """Hello of another protocol version, another cluster, or without the cluster secret."""

    code = 61
    name = "handshake_refused"


# --- at start: the process ends with exit status 2 -------------------------------------------------------------


class CannotStart(AmbryError):
    """The process refuses to start; the message says why and what to do."""

    code = 70
    name = "cannot_start"


class BadConfiguration(CannotStart):
    """An unknown key, a wrong type or a value out of range. The message names the key and the file."""

    code = 71
    name = "bad_configuration"


class DirectoryInUse(CannotStart):
    """Another process has the data directory."""

    code = 72
    name = "directory_in_use"


class DirectoryUnusable(CannotStart):
    """A data directory that is missing, not writable, or of a newer format."""

    code = 73
    name = "directory_unusable"


def _subclasses(root: type[AmbryError]) -> list[type[AmbryError]]:
    found = [root]
    for child in root.__subclasses__():
        found += _subclasses(child)
    return found


# --- of the client library -------------------------------------------------------------------------------------


class FileChanged(AmbryError):
    """A file of the client changed while it was read; nothing was stored."""

    code = 90
    name = "file_changed"


class ModelDamaged(AmbryError):
    """A manifest, or bytes of a model, are not what their SHA-256 says. Facts: `name`."""

    code = 91
    name = "model_damaged"


class NotCached(AmbryError):
    """The client works offline, and its cache does not have this. Facts: `name`."""

    code = 92
    name = "not_cached"


class BadTensors(AmbryError):
    """A file that is no valid safetensors file, or has no such tensor."""

    code = 93
    name = "bad_tensors"


class SourceFailed(AmbryError):
    """What a client copies into a store could not be read; the store is not at fault. Facts: `url`, `attempts`."""

    code = 94
    name = "source_failed"


ERRORS_BY_CODE: Final[dict[int, type[AmbryError]]] = {error.code: error for error in _subclasses(AmbryError)}
"""Wire code to class. An unknown code of a newer peer is read as AmbryError."""

assert len(ERRORS_BY_CODE) == len(_subclasses(AmbryError)), "two errors share a wire code"


def error_from_code(code: int, message: str, facts: dict[str, object] | None = None) -> AmbryError:
    """The error that a peer sent. Codes that this version does not know become an AmbryError."""
    return ERRORS_BY_CODE.get(code, AmbryError)(message, **(facts or {}))
