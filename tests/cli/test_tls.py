"""Certificates that are replaced while a process runs."""

import asyncio
import shutil
import ssl
from pathlib import Path

from ambry.cli.tls import follow, following
from ambry.config import FrontendSettings, TlsSettings
from tests.frontend.serving import serving
from tests.transport import certificates


async def shown(context: ssl.SSLContext) -> bytes:
    """The certificate that a server with this context shows to a new client."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    async with server:
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting)
        certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
    assert isinstance(certificate, bytes)
    return certificate


def test_new_certificates_are_taken_up_and_what_is_no_pair_is_not(tmp_path: Path) -> None:
    certificates.make(tmp_path)
    for kind in ("pem", "key"):
        shutil.copy(tmp_path / f"node.{kind}", tmp_path / f"used.{kind}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "used.pem", tmp_path / "used.key")
    follow(context, tmp_path / "used.pem", tmp_path / "used.key")
    node, stranger = (ssl.PEM_cert_to_DER_cert((tmp_path / f"{name}.pem").read_text()) for name in ("node", "stranger"))

    async def main() -> None:
        async with following(poll_ms=20):
            assert await shown(context) == node
            shutil.copy(tmp_path / "stranger.pem", tmp_path / "used.pem")
            await asyncio.sleep(0.2)
            assert await shown(context) == node, "a certificate without its key"
            (tmp_path / "used.key").unlink()
            await asyncio.sleep(0.1)
            assert await shown(context) == node
            shutil.copy(tmp_path / "stranger.key", tmp_path / "used.key")
            async with asyncio.timeout(60):
                while await shown(context) != stranger:
                    await asyncio.sleep(0.05)
            assert await shown(context) == stranger

    asyncio.run(main())


def test_a_frontend_shows_its_new_certificate_to_new_clients(tmp_path: Path) -> None:
    certificates.make(tmp_path)
    for kind in ("pem", "key"):
        shutil.copy(tmp_path / f"node.{kind}", tmp_path / f"used.{kind}")
    tls = TlsSettings(tmp_path / "used.pem", tmp_path / "used.key")

    async def main() -> None:
        async with serving(
            settings=FrontendSettings(cluster_map=Path("map.toml"), datacentre="here", tls=tls)
        ) as running:
            assert running.frontend.tls is not None
            follow(running.frontend.tls, tls.certificate_file, tls.key_file)
            async with following(poll_ms=20):
                trusting = certificates.client_context(tmp_path, None)
                reader, writer = await asyncio.open_connection(running.host, running.port, ssl=trusting)
                for name in ("pem", "key"):
                    shutil.copy(tmp_path / f"stranger.{name}", tmp_path / f"used.{name}")
                async with asyncio.timeout(60):
                    while True:
                        try:
                            _, other = await asyncio.open_connection(running.host, running.port, ssl=trusting)
                        except ssl.SSLCertVerificationError:
                            break
                        other.close()
                        await asyncio.sleep(0.05)
                writer.write(b"GET /healthCheck HTTP/1.1\r\nHost: x\r\n\r\n")
                assert b"200 OK" in await reader.readuntil(b"\r\n"), "a connection that was there goes on"
                writer.close()

    asyncio.run(main())
