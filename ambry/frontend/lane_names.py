"""What the fast lane knows of names: paths of the plainest form, and names that are at hand.

Everything else, percent-encoding and queries and names that have to be read first, is aiohttp's.
"""

import re
from typing import Final

from ambry.access.accounts import NamedBlobs
from ambry.access.keys import Right
from ambry.access.snapshot import NEVER
from ambry.blob.blob_id import text_from_binary
from ambry.blob.value import value
from ambry.errors import AmbryError, NameNotFound
from ambry.frontend.connection import Services
from ambry.frontend.lane_heads import PostHead
from ambry.frontend.named_operations import Name
from ambry.names.name import check_name

NAMED: Final = b"GET /named/"
PUT_NAMED: Final = b"PUT /named/"

_PATH: Final = re.compile(rb"([0-9A-Za-z._-]{1,64})/([0-9A-Za-z._-]{1,64})/([0-9A-Za-z._~/-]{1,1024})")


@value
class LaneName:
    """What a name stands for, as an answer says it."""

    blob_id: bytes
    text_id: bytes
    version: bytes


def find_named(data: bytes, services: Services) -> LaneName:
    """The blob behind the path of a GET. Raises NameNotFound for a path that is aiohttp's to answer."""
    names = services.names
    matched = _PATH.fullmatch(data, len(NAMED), data.find(b" ", len(NAMED)))
    if matched is None or names is None or names.recent is None:
        raise NameNotFound("not a path of the lane")
    account, container_name, name = matched.groups()
    container = services.access.snapshot.by_name.get((account.decode("ascii"), container_name.decode("ascii")))
    if container is None or container.policy.named_blobs is NamedBlobs.DISABLED:
        raise NameNotFound("not a container of the lane")
    current = names.recent.get((container.account, container.number, name))
    if current is None or current.is_expired(services.clock.now_ms()):
        raise NameNotFound("not at hand")
    return LaneName(
        current.blob_id, text_from_binary(current.blob_id).encode("ascii"), current.version_text.encode("ascii")
    )


def name_to_put(path: bytes, head: PostHead, services: Services) -> Name | None:
    """The name that a put with this head is for, if nothing has to be looked at further. `path` follows PUT_NAMED."""
    access, names = services.access, services.names
    matched = _PATH.fullmatch(path)
    if matched is None or names is None or names.recent is None:
        return None
    caller = head.caller
    if caller is None or caller.snapshot is not access.snapshot or caller.expires_ms != NEVER:
        caller = head.caller = access.lane_caller(head.authorization)
    account, container_name, name = matched.groups()
    container = access.snapshot.by_name.get((account.decode("ascii"), container_name.decode("ascii")))
    if caller is None or container is None:
        return None
    policy = container.policy
    if policy.named_blobs is not NamedBlobs.OPTIONAL or not policy.takes_plain_puts:
        return None
    try:
        caller.admit(container.owner, Right.WRITE)
        return Name(container, check_name(name))
    except AmbryError:
        # The other way to answer meets the same error and says it.
        return None
