"""`/accounts`, `/accounts/containers` and `/accounts/keys`: JSON in, JSON out. Routes and fields are Ambry's, and keys.

An operator is who has the right `admin` in the whole store: accounts are his. Containers and keys of an account are of
whoever has `admin` in the whole of it. Everybody sees what he may change, and no more.
"""

import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Final, TypeAlias

from aiohttp import web

from ambry.access.accounts import Account, Container, parse_account_change, parse_container_change
from ambry.access.keys import Right, parse_key_request
from ambry.access.snapshot import Caller, Snapshot
from ambry.errors import BadDigest, BadRequest, Forbidden, NameStoreUnavailable, NoSuchAccount
from ambry.frontend import answers
from ambry.frontend.access import ACCOUNT_HEADER, CONTAINER_HEADER
from ambry.frontend.accounts_feed import PATH as FEED
from ambry.frontend.answers import JSON_TYPE
from ambry.frontend.call import Call, Methods, Operation, RequestBody, Route, let_continue
from ambry.frontend.connection import BodyResponse, Services
from ambry.frontend.directory import Directory
from ambry.frontend.json_in import parse_json
from ambry.limits import CONTAINER_LIST_ITEMS_MAX, JSON_BODY_BYTES_MAX
from ambry.names.home import AccessCopy, encode_copy, read_copy
from ambry.names.open import read_epoch
from ambry.names.sql import Session

Document: TypeAlias = dict[str, Any]
AccountsOperation: TypeAlias = Callable[[Caller, Mapping[str, str], bytes], Awaitable[Document]]

_ACCOUNT_ID_HEADER: Final = "x-ambry-target-account-id"
_IGNORE_CONTAINERS: Final = "x-ambry-ignore-containers"
_KEY_HEADER: Final = "x-ambry-key-id"


class AccountsApi:
    """The operations, by path and method."""

    __slots__ = ("_services",)

    def __init__(self, services: Services) -> None:
        self._services = services

    def routes(self) -> dict[str, Methods]:
        """Path to method to operation."""
        return {
            FEED: {"GET": Route("accounts_feed", self._feed)},
            "/accounts": {
                "GET": self._route("get_accounts", self._get_accounts),
                "POST": self._route("change_accounts", self._post_accounts),
                "DELETE": self._route("delete_account", self._delete_account),
            },
            "/accounts/containers": {
                "GET": self._route("get_containers", self._get_containers),
                "POST": self._route("change_containers", self._post_containers),
                "DELETE": self._route("delete_container", self._delete_container),
            },
            "/accounts/keys": {
                "GET": self._route("get_keys", self._get_keys),
                "POST": self._route("make_key", self._post_key),
                "DELETE": self._route("remove_key", self._delete_key),
            },
        }

    async def _feed(self, call: Call) -> web.StreamResponse:
        """All of the newest version, for the frontends of another datacentre: for who may change everything."""
        call.caller.admit_over(None, Right.ADMIN)
        database = self._services.database
        if database is None:
            raise NameStoreUnavailable("this frontend has no name store", is_certain=True)
        query = call.request.rel_url.query
        epoch, version = query.get("epoch", ""), query.get("version", "0")
        if not (version.isascii() and version.isdecimal() and len(version) <= 18):
            raise BadRequest("version is a number", field="version")

        def read(session: Session) -> AccessCopy:
            return read_copy(session, read_epoch(session).number, epoch, int(version))

        body = encode_copy(await database.read(read))
        now_ms = self._services.clock.now_ms()
        return BodyResponse(answers.text_answer(200, body, JSON_TYPE, now_ms, call.request_id))

    def _route(self, label: str, operation: AccountsOperation) -> Route:
        return Route(label, self._answering(operation))

    def _answering(self, operation: AccountsOperation) -> Operation:
        """An operation on documents as one on requests."""

        async def answer(call: Call) -> web.StreamResponse:
            let_continue(call.request)
            body = await self._body(call)
            document = await operation(call.caller, call.request.headers, body)
            text = json.dumps(document).encode() + b"\n"
            now_ms = self._services.clock.now_ms()
            return BodyResponse(answers.text_answer(200, text, JSON_TYPE, now_ms, call.request_id))

        return answer

    async def _body(self, call: Call) -> bytes:
        """All of a body of JSON. Raises TooLarge, and BadDigest if it is not the one that was signed."""
        source = RequestBody(call.request, self._services, JSON_BODY_BYTES_MAX)
        pieces = []
        while piece := await source.read():
            pieces.append(piece)
        body = b"".join(pieces)
        wanted = call.caller.body_sha256
        if wanted is not None and hashlib.sha256(body).hexdigest() != wanted:
            raise BadDigest("the body is not the one that was signed", field="body")
        return body

    @property
    def _snapshot(self) -> Snapshot:
        return self._services.access.snapshot

    @property
    def _directory(self) -> Directory:
        return self._services.directory

    # --- accounts ----------------------------------------------------------------------------------------------

    async def _get_accounts(self, caller: Caller, headers: Mapping[str, str], body: bytes) -> Document:
        """One account by name or number, or all that the caller may change."""
        del body
        snapshot = self._snapshot
        if ACCOUNT_HEADER in headers or _ACCOUNT_ID_HEADER in headers:
            found = [self._account(caller, headers)]
        else:
            found = [account for account in snapshot.accounts_by_name.values() if _is_admin(caller, account.number)]
            if not found:
                caller.admit_over(None, Right.ADMIN)
        hides = headers.get(_IGNORE_CONTAINERS, "false").lower() == "true"
        return {"accounts": [_shown(snapshot, account, hides=hides) for account in found]}

    async def _post_accounts(self, caller: Caller, headers: Mapping[str, str], body: bytes) -> Document:
        del headers
        caller.admit_over(None, Right.ADMIN)
        changes = [parse_account_change(each) for each in _list(body, "accounts")]
        changed = await self._directory.change_accounts(caller, changes)
        return {"accounts": [_shown(self._snapshot, account, hides=False) for account in changed]}

    async def _delete_account(self, caller: Caller, headers: Mapping[str, str], body: bytes) -> Document:
        """It is closed at once; its data go over time, and then its name is free."""
        del body
        caller.admit_over(None, Right.ADMIN)
        closed = await self._directory.close_account(caller, self._account(caller, headers))
        return {"accounts": [_shown(self._snapshot, closed, hides=False)]}

    # --- containers --------------------------------------------------------------------------------------------

    async def _get_containers(self, caller: Caller, headers: Mapping[str, str], body: bytes) -> Document:
        del body
        if CONTAINER_HEADER in headers:
            return {"containers": [self._container(caller, headers).as_json()]}
        account = self._account(caller, headers)
        return {"containers": [each.as_json() for each in self._snapshot.containers_of(account.number)]}

    async def _post_containers(self, caller: Caller, headers: Mapping[str, str], body: bytes) -> Document:
        account = self._account(caller, headers)
        changes = [parse_container_change(each) for each in _list(body, "containers")]
        changed = await self._directory.change_containers(caller, account.number, changes)
        return {"containers": [each.as_json() for each in changed]}

    async def _delete_container(self, caller: Caller, headers: Mapping[str, str], body: bytes) -> Document:
        del body
        closed = await self._directory.close_container(caller, self._container(caller, headers))
        return {"containers": [closed.as_json()]}

    # --- keys --------------------------------------------------------------------------------------------------

    async def _get_keys(self, caller: Caller, headers: Mapping[str, str], body: bytes) -> Document:
        del body
        keys = self._snapshot.keys.values()
        if ACCOUNT_HEADER in headers or _ACCOUNT_ID_HEADER in headers:
            number = self._account(caller, headers).number
            keys_of = [key for key in keys if key.account == number]
        else:
            caller.admit_over(None, Right.ADMIN)
            keys_of = list(keys)
        return {"keys": [key.as_json() for key in sorted(keys_of, key=lambda key: (key.created_ms, key.key_id))]}

    async def _post_key(self, caller: Caller, headers: Mapping[str, str], body: bytes) -> Document:
        """The one answer that has the secret and the token."""
        del headers
        request = parse_key_request(_json(body))
        if request.expires_ms is not None and request.expires_ms <= self._services.clock.now_ms():
            # Seconds, or a time from now on, where milliseconds of a moment are meant: the key would never be good.
            raise BadRequest(
                "expirationTime is a moment that has passed; it is in ms since 1970", field="expirationTime"
            )
        if request.account_name is None:
            caller.admit_over(None, Right.ADMIN)
        else:
            self._account(caller, {ACCOUNT_HEADER: request.account_name})
        made = await self._directory.make_key(caller, request)
        return {**made.key.as_json(), "secret": made.secret, "token": made.token}

    async def _delete_key(self, caller: Caller, headers: Mapping[str, str], body: bytes) -> Document:
        del body
        key_id = headers.get(_KEY_HEADER)
        if key_id is None:
            raise BadRequest(f"{_KEY_HEADER} says which key", field=_KEY_HEADER)
        key = self._snapshot.keys.get(key_id)
        if key is None:
            caller.admit_over(None, Right.ADMIN)
            raise NoSuchAccount("no such key")
        caller.admit_over(key.account, Right.ADMIN)
        await self._directory.remove_key(caller, key_id)
        return {"keys": [key.as_json()]}

    # --- who is meant ------------------------------------------------------------------------------------------

    def _account(self, caller: Caller, headers: Mapping[str, str]) -> Account:
        """The account that headers name, by someone who may change it. Raises Forbidden, NoSuchAccount, BadRequest."""
        snapshot = self._snapshot
        account: Account | None
        name, number = headers.get(ACCOUNT_HEADER), headers.get(_ACCOUNT_ID_HEADER)
        if name is not None and number is not None:
            raise BadRequest(f"{ACCOUNT_HEADER} or {_ACCOUNT_ID_HEADER}, not both", field=_ACCOUNT_ID_HEADER)
        if name is not None:
            account = snapshot.accounts_by_name.get(name)
        elif number is not None and number.isascii() and number.isdigit() and len(number) <= 10:
            account = snapshot.accounts.get(int(number))
        else:
            raise BadRequest(f"{ACCOUNT_HEADER} or {_ACCOUNT_ID_HEADER} says which account", field=ACCOUNT_HEADER)
        if account is None:
            # Who may not know it is not told that it does not exist.
            caller.admit_over(None, Right.ADMIN)
            raise NoSuchAccount("no such account")
        caller.admit_over(account.number, Right.ADMIN)
        return account

    def _container(self, caller: Caller, headers: Mapping[str, str]) -> Container:
        account = self._account(caller, headers)
        container = self._snapshot.by_name.get((account.name, headers.get(CONTAINER_HEADER, "")))
        if container is None:
            raise NoSuchAccount(f"no such container; {CONTAINER_HEADER} says which")
        return container


def _is_admin(caller: Caller, account: int) -> bool:
    try:
        caller.admit_over(account, Right.ADMIN)
    except Forbidden:
        return False
    return True


def _shown(snapshot: Snapshot, account: Account, *, hides: bool) -> Document:
    return account.as_json([] if hides else [
        # As it is kept, not as the account's own status lets it look.
        replace(each, account_name=account.name) for each in snapshot.containers_of(account.number)
    ])  # fmt: skip


def _json(body: bytes) -> object:
    try:
        return parse_json(body)
    except ValueError as error:
        raise BadRequest("the body is no JSON, or has a key twice", field="body") from error


def _list(body: bytes, key: str) -> list[object]:
    document = _json(body)
    items = document.get(key) if isinstance(document, dict) else None
    if not isinstance(items, list) or not 0 < len(items) <= CONTAINER_LIST_ITEMS_MAX:
        raise BadRequest(f'the body is {{"{key}": [...]}} with 1 to {CONTAINER_LIST_ITEMS_MAX} of them', field=key)
    return items
