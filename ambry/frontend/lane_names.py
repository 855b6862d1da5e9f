"""What the fast lane knows of names: paths of the plainest form, and names that are at hand.

Everything else, percent-encoding and queries and names that have to be read first, is aiohttp's.
"""

import re
from typing import Final

from ambry.access.accounts import NamedBlobs
from ambry.blob.blob_id import text_from_binary
from ambry.blob.value import value
from ambry.errors import NameNotFound
from ambry.frontend.connection import Services

NAMED: Final = b"GET /named/"

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
