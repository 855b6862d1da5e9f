"""Digests of a body: Content-MD5 (RFC 1864), Content-Digest, Repr-Digest and what asks for them (RFC 9530).

They are of the plain bytes, are checked before anything is acknowledged, and are kept with the blob. On uploads both
digest fields mean the same here, since nothing transforms a body on its way in. Algorithms that are not known are
ignored, as the RFC asks; a field that cannot be read, or a digest of the wrong size, is the client's mistake. CRCs and
xxh3 are big-endian.
"""

import asyncio
import binascii
import hashlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Final, Protocol

from xxhash import xxh3_64

from ambry.blob.requests import Buffer
from ambry.errors import BadDigest, BadRequest
from ambry.frontend.crc import Crc32, Crc32c, Crc64Nvme
from ambry.limits import KIB

SIZES: Final = {
    "md5": 16, "sha": 20, "sha-256": 32, "sha-512": 64, "crc32": 4, "crc32c": 4, "crc64nvme": 8, "xxh3": 8
}  # fmt: skip
"""Digest algorithms by their name in RFC 9530 (the CRCs and xxh3 by their usual one), and the bytes of each. `sha` is
SHA-1, which proves nothing against an attacker."""

CHECKSUM_PREFIX: Final = "x-amz-checksum-"
CHECKSUM_HEADERS: Final = {
    f"{CHECKSUM_PREFIX}{name}": algorithm
    for name, algorithm in {
        "crc32": "crc32", "crc32c": "crc32c", "crc64nvme": "crc64nvme", "sha1": "sha", "sha256": "sha-256"
    }.items()
}  # fmt: skip
"""The headers by which clients of S3 send the same: base64, one algorithm each."""

_IN_THREAD_BYTES_MIN: Final = 128 * KIB
"""SHA-512 of this takes about 200 µs; hashing more on the loop would hold up others longer than a thread hop."""

_QUICK: Final = frozenset({"crc32", "xxh3"})
"""Computed at 10 GB/s and more, CRC-32 without isal at 3: 256 KiB, the most that comes at once, take 10 to 90 µs."""

# A dictionary of byte sequences, RFC 8941: key, '=', ':' base64 ':', parameters that mean nothing here.
_MEMBER: Final = re.compile(r'[ \t]*([a-z*][a-z0-9_.*-]*)=:([A-Za-z0-9+/=]*):((?:;[^,"]*)?)[ \t]*')
_OTHER_MEMBER: Final = re.compile(r"[ \t]*[a-z*][a-z0-9_.*-]*(?:=[^,:]*)?[ \t]*")
_WISH: Final = re.compile(r"[ \t]*([a-z*][a-z0-9_.*-]*)=([0-9]|10)[ \t]*")


class _Hash(Protocol):
    def update(self, data: Buffer, /) -> None: ...
    def digest(self) -> bytes: ...


_HASHES: Final[Mapping[str, Callable[[], _Hash]]] = {
    "md5": partial(hashlib.md5, usedforsecurity=False),
    "sha": partial(hashlib.sha1, usedforsecurity=False),
    "sha-256": hashlib.sha256,
    "sha-512": hashlib.sha512,
    "crc32": Crc32,
    "crc32c": Crc32c,
    "crc64nvme": Crc64Nvme,
    "xxh3": xxh3_64,
}
assert set(_HASHES) == set(SIZES)


def parse_content_md5(value: str) -> bytes:
    """The 16 bytes of a Content-MD5 header. Raises BadRequest."""
    return _decode(value, "md5", "Content-MD5")


def parse_checksum(field: str, value: str) -> dict[str, bytes]:
    """The digest in one of CHECKSUM_HEADERS. Raises BadRequest."""
    algorithm = CHECKSUM_HEADERS[field]
    return {algorithm: _decode(value, algorithm, field)}


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


def parse_wanted(value: str, field: str = "Want-Repr-Digest") -> frozenset[str]:
    """Known algorithms that a header asks for; weight 0 is "not this one". Raises BadRequest."""
    wanted: set[str] = set()
    for member in value.split(","):
        matched = _WISH.fullmatch(member)
        if matched is None:
            raise BadRequest(f"{field} is no dictionary of weights from 0 to 10", field=field.lower())
        if matched[1] in SIZES and matched[2] != "0":
            wanted.add(matched[1])
    return frozenset(wanted)


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
    """Compares the digests that the client sent with the bytes that arrive, and computes those that it wants."""

    __slots__ = ("_expected", "_hashes", "_slow")

    def __init__(self, expected: Mapping[str, bytes], wanted: Collection[str] = ()) -> None:
        self._expected = dict(expected)
        self._hashes = {algorithm: _HASHES[algorithm]() for algorithm in sorted({*expected, *wanted})}
        self._slow = [computed for algorithm, computed in self._hashes.items() if algorithm not in _QUICK]

    def arrived(self, piece: Buffer) -> None:
        """Take the next bytes as they come: what is quick is computed now, while they are in the processor's caches."""
        for algorithm in _QUICK & self._hashes.keys():
            self._hashes[algorithm].update(piece)

    async def gathered(self, piece: Buffer) -> None:
        """Take the same bytes in larger pieces: what is slow is computed, on a thread if there is much of it.

        The piece must not change meanwhile.
        """
        if self._slow:
            await _computed(self._slow, piece)

    async def update(self, piece: Buffer) -> None:
        """Take the next bytes in place of both. A big piece is hashed on a thread; it must not change meanwhile."""
        await _computed(list(self._hashes.values()), piece)

    def verify(self) -> dict[str, bytes]:
        """The digests, once all bytes were taken. Raises BadDigest."""
        found = {algorithm: computed.digest() for algorithm, computed in self._hashes.items()}
        for algorithm, digest in self._expected.items():
            if found[algorithm] != digest:
                raise _mismatch(algorithm)
        return found


async def _computed(hashes: Sequence[_Hash], piece: Buffer) -> None:
    if len(piece) < _IN_THREAD_BYTES_MIN:
        _update(hashes, piece)
    else:
        await asyncio.get_running_loop().run_in_executor(None, _update, hashes, piece)


def _update(hashes: Sequence[_Hash], piece: Buffer) -> None:
    for computed in hashes:
        computed.update(piece)


def _mismatch(algorithm: str) -> BadDigest:
    return BadDigest(f"the {algorithm} digest of the body is another than the one sent", field=algorithm)
