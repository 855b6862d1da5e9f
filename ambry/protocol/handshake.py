"""Hello and Proof: who speaks at the other end, before anything else is said. Normative text: docs/formats/wire.md.

The one who connects (client) sends Hello; the other (server) answers Hello and Proof; the client sends Proof. Each
Hello has a nonce of 32 random bytes. A proof is the HMAC-SHA256, with the cluster secret as key, over the role of the
one who proves and both Hello headers as they were on the wire. So it covers both nonces, roles, node names,
fingerprints and versions: nothing in them can be changed on the way, a proof cannot be replayed, and none can be sent
back to where it came from.

The secret is never sent. Whoever talks to a server or a client of ours sees an HMAC, so a secret must be long enough
not to be guessed. Without TLS what follows is neither encrypted nor protected against changes on the way.
"""

import hashlib
import hmac
from enum import IntEnum
from typing import Final, NamedTuple

from ambry import limits
from ambry.errors import HandshakeRefused
from ambry.protocol.layout import pack, unpack, wrong
from ambry.protocol.messages import LAYOUTS, MessageType

PROTOCOL_LOWEST: Final = 1
PROTOCOL_HIGHEST: Final = 1
"""Versions of the protocol that this process speaks. The highest that both speak is spoken."""

NONCE_SIZE: Final = 32
PROOF_SIZE: Final = 32

_LABEL: Final = b"ambry wire proof 1\x00"


class Role(IntEnum):
    """Who connected and who listened. Never renumber: on the wire, and in proofs."""

    CLIENT = 1
    SERVER = 2


class Hello(NamedTuple):
    """What one side says of itself. `time_ms` is its wall clock, for the other to see the skew."""

    lowest: int
    highest: int
    role: int
    node: str
    fingerprint: str
    nonce: bytes
    time_ms: int


class Peer(NamedTuple):
    """Who is at the other end, proved; `clock_ahead_ms` is how far its wall clock is before ours."""

    node: str
    version: int
    clock_ahead_ms: int


def encode_hello(hello: Hello) -> bytes:
    """The header of a Hello frame."""
    assert len(hello.nonce) == NONCE_SIZE
    assert len(hello.node.encode()) <= limits.NODE_NAME_BYTES_MAX
    assert len(hello.fingerprint.encode()) <= limits.NODE_NAME_BYTES_MAX
    return pack([*hello])


def decode_hello(header: bytes) -> Hello:
    """Raises ProtocolError."""
    hello = Hello(*LAYOUTS[MessageType.HELLO].read(unpack("hello", header, array_max=64)))
    if len(hello.nonce) != NONCE_SIZE:
        raise wrong("hello", "nonce", f"has {len(hello.nonce)} bytes, not {NONCE_SIZE}")
    return hello


def agree(ours: Hello, theirs: Hello, expected_node: str | None) -> int:
    """The protocol version to speak. Raises HandshakeRefused; says what differs, and never a secret."""
    version = min(ours.highest, theirs.highest)
    if version < max(ours.lowest, theirs.lowest):
        spoken = f"{theirs.lowest} to {theirs.highest}"
        here = f"{ours.lowest} to {ours.highest}"
        raise HandshakeRefused(f"the peer speaks protocol versions {spoken}, this process {here}")
    if theirs.role == ours.role or theirs.role not in (Role.CLIENT, Role.SERVER):
        raise HandshakeRefused("the peer has the same role", role=theirs.role)
    if theirs.fingerprint != ours.fingerprint:
        raise HandshakeRefused("the peer belongs to another cluster", fingerprint=theirs.fingerprint)
    if expected_node is not None and theirs.node != expected_node:
        raise HandshakeRefused("another node answers at this address", expected=expected_node, node=theirs.node)
    return version


def proof(secret: bytes, role: Role, client_hello: bytes, server_hello: bytes) -> bytes:
    """What `role` sends to prove that it has the secret. The headers are those on the wire."""
    parts = (bytes([role]), len(client_hello).to_bytes(4, "big"), client_hello, server_hello)
    return hmac.new(secret, _LABEL + b"".join(parts), hashlib.sha256).digest()


def encode_proof(value: bytes) -> bytes:
    """The header of a Proof frame."""
    return pack([value])


def check_proof(header: bytes, expected: bytes) -> None:
    """Raises ProtocolError, or HandshakeRefused when the peer does not have the secret."""
    (value,) = LAYOUTS[MessageType.PROOF].read(unpack("proof", header, array_max=64))
    if not hmac.compare_digest(value, expected):
        raise HandshakeRefused("the peer does not have the cluster secret")
