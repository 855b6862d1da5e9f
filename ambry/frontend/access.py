"""Who a request comes from: credentials of HTTP to a Caller, under the snapshot of this moment.

Four ways: nothing at all, a bearer token, a signature of the request, a signed URL. Whoever shows credentials is judged
by them, also where authentication is off, so that a mistake shows before it matters; two kinds at once are refused.
A snapshot is replaced by a newer one, never changed, and the check of a token is two look-ups.
This module knows headers and queries; who may do what is in `ambry.access`, what a request does in native.py.
"""

from collections.abc import Callable, Iterable
from typing import Final, Protocol, TypeAlias

from ambry.access.accounts import DEFAULT_CONTAINER, Container
from ambry.access.keys import AccessKey, Masters, Right
from ambry.access.signatures import (
    SCHEME,
    UNSIGNED,
    SignedUrl,
    check_request,
    check_signed_url,
    is_signed_url,
    parse_authorization,
    parse_signed_url,
)
from ambry.access.snapshot import NEVER, AccessData, Caller, Snapshot
from ambry.clock import Clock
from ambry.errors import AmbryError, BadRequest, Forbidden, PreconditionFailed, Unauthenticated
from ambry.limits import BEARER_TOKEN_CHARACTERS_MAX

ACCOUNT_HEADER: Final = "x-ambry-target-account-name"
CONTAINER_HEADER: Final = "x-ambry-target-container-name"
_BEARER: Final = "Bearer "
_STORE_KEY: Final = "url-"
"""How the key of a signed URL is called that was made for someone without one, where authentication is off."""

Lines: TypeAlias = Iterable[tuple[str, str]]


class LaneHead(Protocol):
    """Head of an upload that the fast lane has recognised; who it is from is remembered in it."""

    authorization: str | None
    named: tuple[str, str] | None
    caller: Caller | None
    owner: bytes


class Access:
    """What one frontend process knows of accounts and keys."""

    __slots__ = ("_clock", "_masters", "is_open", "secure_prefix", "snapshot")

    def __init__(
        self, clock: Clock, *, masters: Masters | None = None, is_open: bool = True, secure_prefix: str | None = None
    ) -> None:
        """Without masters no signature is good. `is_open`: authentication is off."""
        self._clock = clock
        self._masters = masters
        self.is_open = is_open
        self.secure_prefix = secure_prefix
        self.snapshot = Snapshot(AccessData(0), is_open=is_open)

    def adopt(self, data: AccessData) -> None:
        """Use a newer version from here on. Never an older one: a key that was taken away does not come back."""
        if data.version > self.snapshot.version:
            self.snapshot = Snapshot(data, is_open=self.is_open)

    def without_prefix(self, path: str) -> tuple[str, bool]:
        """The path behind the operator's secure prefix, and whether it had it."""
        prefix = self.secure_prefix
        if prefix is None or not path.startswith(prefix + "/"):
            return path, False
        return path[len(prefix) :], True

    # --- who is it ---------------------------------------------------------------------------------------------

    def caller(
        self, method: str, path: str, query: str, authorization: list[str], lines: Callable[[], Lines]
    ) -> Caller:
        """Who asks; `path` and `query` as sent, `lines` gives all headers. Raises Unauthenticated."""
        if not authorization:
            if query and is_signed_url(query):
                return self._by_url(method, path, query)
            return self.snapshot.anonymous
        if len(authorization) > 1 or (query and is_signed_url(query)):
            raise Unauthenticated("credentials of one kind, once")
        value = authorization[0]
        if value.startswith(SCHEME):
            return self._by_signature(method, path, query, value, lines())
        return self.by_bearer(value)

    def by_bearer(self, authorization: str) -> Caller:
        """Who has the token of an Authorization header. Raises Unauthenticated."""
        token = authorization[len(_BEARER) :].strip()
        is_bearer = authorization[: len(_BEARER)].lower() == _BEARER.lower()
        if not is_bearer or not token or len(token) > BEARER_TOKEN_CHARACTERS_MAX:
            raise Unauthenticated(f"Authorization is Bearer TOKEN, or begins with {SCHEME}")
        caller = self.snapshot.caller_of_token(token)
        if caller is None:
            raise Unauthenticated("no such token")
        assert caller.key is not None
        self._check_expiry(caller.key)
        return caller

    def lane_caller(self, authorization: str | None) -> Caller | None:
        """As `caller`, for who shows nothing or a good token; None for everybody else."""
        if authorization is None:
            return self.snapshot.anonymous
        try:
            return self.by_bearer(authorization)
        except Unauthenticated:
            return None

    def admits(self, head: LaneHead) -> bool:
        """Whether an upload with this head may be taken without a further look, and to which container it goes."""
        caller = head.caller
        if caller is not None and caller.snapshot is self.snapshot and caller.expires_ms == NEVER:
            return True
        head.caller = None
        caller = self.lane_caller(head.authorization)
        if caller is None:
            return False
        try:
            container = admit_upload(caller, head.named)
        except AmbryError:
            # The other way to answer meets the same error and says it.
            return False
        if not container.policy.takes_plain_puts:
            return False
        head.caller, head.owner = caller, container.owner
        return True

    def _by_signature(self, method: str, path: str, query: str, authorization: str, lines: Lines) -> Caller:
        signed = parse_authorization(authorization)
        key = self.snapshot.keys.get(signed.key_id)
        digest = check_request(
            self.secret_of(key),
            signed,
            method=method,
            path=path,
            query=query,
            headers=lines,
            now_ms=self._clock.now_ms(),
        )
        assert key is not None
        self._check_expiry(key)
        return Caller(self.snapshot, key, body_sha256=None if digest == UNSIGNED else digest)

    def _by_url(self, method: str, path: str, query: str) -> Caller:
        url, signed, signature = parse_signed_url(path, query)
        key = self.snapshot.keys.get(url.key_id)
        secret = self.secret_of(key)
        is_of_store = key is None and self.is_open and url.key_id.startswith(_STORE_KEY) and self._masters is not None
        if is_of_store:
            assert self._masters is not None
            secret = self._masters.url_secret(url.key_id.removeprefix(_STORE_KEY))
        check_signed_url(secret, url, signed, signature, method=method, now_ms=self._clock.now_ms())
        if key is not None:
            self._check_expiry(key)
        return Caller(self.snapshot, key, is_trusted=is_of_store, url=url)

    def _check_expiry(self, key: AccessKey) -> None:
        if key.is_expired(self._clock.now_ms()):
            raise Unauthenticated("the key has expired")

    def secret_of(self, key: AccessKey | None) -> str | None:
        """The secret behind a key; None for one that nobody has or whose master is gone."""
        if key is None or self._masters is None:
            return None
        return self._masters.secret_of(key.key_id, key.master)

    # --- URLs for others ---------------------------------------------------------------------------------------

    def sign_url(self, caller: Caller, url: SignedUrl) -> str:
        """Path and query of a URL with the caller's own key; its rights are judged when it is used, too.

        Raises Forbidden for a caller who has no key to sign with.
        """
        if self._masters is None or caller.url is not None:
            raise Forbidden("there is no key to sign with")
        if caller.key is not None:
            secret, key_id = self.secret_of(caller.key), caller.key.key_id
        elif self.is_open:
            mark = self._masters.current
            secret, key_id = self._masters.url_secret(mark), _STORE_KEY + mark
        else:
            raise Forbidden("there is no key to sign with")
        if secret is None:
            raise Forbidden("the master secret of this key is no longer listed; make a new key")
        return SignedUrl(
            key_id, url.method, url.path, url.expires_s, url.size_max, url.account_name, url.container_name
        ).signed_with(secret)


# --- whose is it -----------------------------------------------------------------------------------------------


def sent_owner(sent: Callable[[str], list[str]]) -> tuple[str, str] | None:
    """Account and container that headers name; None if they name none. `sent` gives all values of a header.

    Raises BadRequest for one without the other.
    """
    accounts, containers = sent(ACCOUNT_HEADER), sent(CONTAINER_HEADER)
    if not accounts and not containers:
        return None
    if len(accounts) != 1 or len(containers) != 1:
        which = ACCOUNT_HEADER if len(accounts) != 1 else CONTAINER_HEADER
        raise BadRequest(f"{ACCOUNT_HEADER} and {CONTAINER_HEADER} come together, and each once", field=which)
    return accounts[0], containers[0]


def admit_upload(caller: Caller, named: tuple[str, str] | None) -> Container:
    """The container that an upload without a name goes to. Raises Forbidden, UnknownContainer."""
    url = caller.url
    if url is not None:
        of_url = (url.account_name, url.container_name)
        if None in of_url:
            of_url = (DEFAULT_CONTAINER.account_name, DEFAULT_CONTAINER.name)
        if named is not None and named != of_url:
            raise Forbidden("the signed URL is for another container")
        named = (str(of_url[0]), str(of_url[1]))
    if named is None:
        return caller.admit(DEFAULT_CONTAINER.owner, Right.WRITE)
    return caller.admit_named(*named, Right.WRITE)


def check_owner(container: Container, named: tuple[str, str] | None) -> None:
    """Raise PreconditionFailed if headers name another container than the one the id is of."""
    if named is not None and named != (container.account_name, container.name):
        raise PreconditionFailed("the blob is in another container than the headers say")


def check_secure_path(container: Container, *, is_secure: bool) -> None:
    """Raise Forbidden for a request that did not come through the operator's prefix, where the container asks so."""
    if container.policy.secure_path and not is_secure:
        raise Forbidden("the container is reached through the secure path only")
