"""TLS contexts of the wire protocol. What is wrong with a certificate is said at start, with the name of the file."""

import ssl

from ambry.config import NodeTlsSettings
from ambry.errors import BadConfiguration


def node_server_context(settings: NodeTlsSettings) -> ssl.SSLContext:
    """For the port of a datanode: both ends show a certificate of the cluster's authority. Raises BadConfiguration."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    _load(context, settings)
    _trust(context, settings)
    return context


def node_client_context(settings: NodeTlsSettings) -> ssl.SSLContext:
    """For connections to datanodes. Names are not compared: the handshake proves who a node is. As above."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    _load(context, settings)
    _trust(context, settings)
    return context


def _load(context: ssl.SSLContext, settings: NodeTlsSettings) -> None:
    try:
        context.load_cert_chain(settings.certificate_file, settings.key_file)
    except OSError as error:
        raise BadConfiguration(
            f"{settings.certificate_file} and {settings.key_file} are not a certificate and its key: {error}"
        ) from error


def _trust(context: ssl.SSLContext, settings: NodeTlsSettings) -> None:
    try:
        context.load_verify_locations(settings.authority_file)
    except OSError as error:
        raise BadConfiguration(f"{settings.authority_file} has no certificates: {error}") from error
