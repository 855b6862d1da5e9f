"""Certificates for tests of TLS, made anew with the openssl command: an authority, a node, and a stranger."""

import ssl
import subprocess
from pathlib import Path


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=30)


def make(folder: Path) -> None:
    """Write ca.pem, node.pem and node.key (signed by it for 127.0.0.1), stranger.pem and stranger.key."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    for name in ("ca", "stranger"):
        files = ["-keyout", f"{name}.key", "-out", f"{name}.pem"]
        # Python 3.13 asks for what an authority may do, and for the key identifiers.
        usage = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
        _openssl(folder, "req", "-x509", *key, "-subj", f"/CN={name}", *usage, *files)
    (folder / "san").write_text(
        "subjectAltName=IP:127.0.0.1\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
    )
    _openssl(folder, "req", *key[:5], "-subj", "/CN=node", "-keyout", "node.key", "-out", "node.csr")
    signing = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "san"]
    _openssl(folder, "x509", "-req", "-in", "node.csr", *signing, "-out", "node.pem")


def server_context(folder: Path) -> ssl.SSLContext:
    """A server that requires a certificate of the authority."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(folder / "ca.pem"))
    context.load_cert_chain(folder / "node.pem", folder / "node.key")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(folder: Path, name: str | None = "node") -> ssl.SSLContext:
    """A client that trusts the authority and shows the certificate `name`, or none."""
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(folder / "ca.pem"))
    if name is not None:
        context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    return context
