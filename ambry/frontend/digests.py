"""Digests that a client sends with a body: Content-MD5 (RFC 1864), Content-Digest and Repr-Digest (RFC 9530).

They are of the plain bytes, are checked before anything is acknowledged, and are kept with the blob. On uploads both
digest fields mean the same here, since nothing transforms a body on its way in. Algorithms that are not known are
ignored, as the RFC asks; a field that cannot be read, or a digest of the wrong size, is the client's mistake.
"""

import asyncio
import binascii
import hashlib
import re
from collections.abc import Mapping
from typing import Final, Protocol

from ambry.blob.requests import Buffer
from ambry.errors import BadDigest, BadRequest
from ambry.limits import KIB

SIZES: Final = {"md5": 16, "sha-256": 32, "sha-512": 64}
"""Digest algorithms by their name in RFC 9530, and the bytes of each."""

_HASHLIB_NAMES: Final = {"md5": "md5", "sha-256": "sha256", "sha-512": "sha512"}

_IN_THREAD_BYTES_MIN: Final = 128 * KIB
"""SHA-512 of this takes about 200 µs; hashing more on the loop would hold up others longer than a thread hop."""

# A dictionary of byte sequences, RFC 8941: key, '=', ':' base64 ':', parameters that mean nothing here.
_MEMBER: Final = re.compile(r'[ \t]*([a-z*][a-z0-9_.*-]*)=:([A-Za-z0-9+/=]*):((?:;[^,"]*)?)[ \t]*')
_OTHER_MEMBER: Final = re.compile(r"[ \t]*[a-z*][a-z0-9_.*-]*(?:=[^,:]*)?[ \t]*")


class _Hash(Protocol):
    def update(self, data: Buffer, /) -> None: ...
    def digest(self) -> bytes: ...


def parse_content_md5(value: str) -> bytes:
    """The 16 bytes of a Content-MD5 header. Raises BadRequest."""
    return _decode(value, "md5", "Content-MD5")


def parse_digest_field(value: str, field: str) -> dict[str, bytes]:
    """The digests of known algorithms in a Content-Digest or Repr-Digest header. Raises BadRequest."""
    found: dict[str, bytes] = {}
    for member in value.split(","):
        matched = _MEMBER.fullmatch(member)
        if matched is None:
            if _OTHER_MEMBER.fullmatch(member) and member.split("=")[0].strip() not in SIZES:
                continue
            raise BadRequest(f"{field} is no dictionary of digests", field=field)
        algorithm, text = matched[1], matched[2]
        if algorithm in SIZES:
            found[algorithm] = _decode(text, algorithm, field)
    return found


def render_repr_digest(digests: Mapping[str, bytes]) -> str:
    """The value of a Repr-Digest header."""
    return ", ".join(
        f"{algorithm}=:{render_base64(digest)}:" for algorithm, digest in sorted(digests.items()) if algorithm in SIZES
    )


def render_base64(data: bytes) -> str:
    """Base64 with padding, as Content-MD5 has it."""
    return binascii.b2a_base64(data, newline=False).decode("ascii")


def _decode(text: str, algorithm: str, field: str) -> bytes:
    try:
        digest = binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise BadRequest(f"{field} is not base64", field=field) from error
    if len(digest) != SIZES[algorithm]:
        raise BadRequest(f"{field}: {algorithm} has {SIZES[algorithm]} bytes, not {len(digest)}", field=field)
    return digest


class DigestCheck:
    """Compares the digests that the client sent with the bytes that arrive."""

    __slots__ = ("_expected", "_hashes")

    def __init__(self, expected: Mapping[str, bytes]) -> None:
        self._expected = dict(expected)
        self._hashes: dict[str, _Hash] = {
            algorithm: hashlib.new(_HASHLIB_NAMES[algorithm], usedforsecurity=False) for algorithm in expected
        }

    async def update(self, piece: Buffer) -> None:
        """Take the next bytes. A big piece is hashed on a thread; it must not change meanwhile."""
        if len(piece) < _IN_THREAD_BYTES_MIN:
            self._update(piece)
        else:
            await asyncio.get_running_loop().run_in_executor(None, self._update, piece)

    def verify(self) -> dict[str, bytes]:
        """The digests, once all bytes were taken. Raises BadDigest."""
        for algorithm, computed in self._hashes.items():
            if computed.digest() != self._expected[algorithm]:
                raise _mismatch(algorithm)
        return dict(self._expected)

    def _update(self, piece: Buffer) -> None:
        for computed in self._hashes.values():
            computed.update(piece)


def _mismatch(algorithm: str) -> BadDigest:
    return BadDigest(f"the {algorithm} digest of the body is another than the one sent", field=algorithm)
