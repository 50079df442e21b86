"""TLS between servers: 1.3 only, both ends with a certificate of the servers' authority.

The certificate of a peer must chain to an intermediate that signs *servers* (people's certificates have another one) and carry
exactly one URI name:

    securifile://CLUSTER/node/NAME      securifile://CLUSTER/admin/NAME

That name is the identity; DNS names in a certificate are for browsers and mean nothing here. service-identity compares a URI's scheme
and host only (RFC 6125, section 6.5.2: there the rest of a URI is not an identity), so the whole URI is read and compared by ourselves.
Whether that server is a member *now* is judged after the hello (`wire`).
"""

from __future__ import annotations

from typing import Any

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL, crypto
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator, IOpenSSLServerConnectionCreator, IStreamClientEndpoint, ITransport
from twisted.internet.protocol import Factory
from zope.interface import implementer

from securifile.certificates.identity import Identity, TrustAnchors
from securifile.certificates.identity import uri_of as certified_uri
from securifile.certificates.names import ServerUri
from securifile.model.errors import Code
from securifile.model.servers import HostPort
from securifile.protocol.connection import PeerIdentity
from securifile.protocol.openssl import prepare
from securifile.protocol.tls_layer import TlsInLargePieces, tls_in_large_pieces
from securifile.protocol.wire import Connector, NotAcceptable

_CHAIN_DEPTH_MAX = 3


@attrs.frozen(kw_only=True)
class Credentials:
    """What a server shows, and whom it believes. All PEM."""

    key: bytes = attrs.field(repr=False)
    chain: bytes = attrs.field(repr=False)
    """Its own certificate first, then the intermediate."""
    trust: bytes = attrs.field(repr=False)
    """The intermediates that sign servers: one, or two while one is replaced. Nothing above them is needed."""

    @classmethod
    def of(cls, identity: Identity, anchors: TrustAnchors) -> Credentials:
        """What the certificates room keeps, as it is needed here."""
        return cls(key=identity.key_pem, chain=identity.chain_pem, trust=anchors.servers)


class CurrentCredentials:
    """The credentials that new connections use; a renewed certificate takes effect without a restart."""

    def __init__(self, credentials: Credentials) -> None:
        self.replace(credentials)

    def replace(self, credentials: Credentials) -> None:
        """Use these from now on. Raises `ValueError` or `SSL.Error` when key and chain do not fit; then nothing changes."""
        client, server = client_context(credentials), server_context(credentials)
        self.credentials = credentials
        self.client_context = client
        self.server_context = server


def server_context(credentials: Credentials) -> SSL.Context:
    """The context of the side that accepts connections; it demands a certificate."""
    context = _context(credentials)
    # Sessions would be resumed without showing the certificate again.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(SSL.OP_NO_TICKET)
    return context


def client_context(credentials: Credentials) -> SSL.Context:
    """The context of the side that connects."""
    return _context(credentials)


def _context(credentials: Credentials) -> SSL.Context:
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    key: Any = serialization.load_pem_private_key(credentials.key, None)
    leaf, *above = x509.load_pem_x509_certificates(credentials.chain)
    context.use_certificate(leaf)
    for certificate in above:
        context.add_extra_chain_cert(certificate)
    context.use_privatekey(key)
    context.check_privatekey()
    store = context.get_cert_store()
    if store is None:
        raise ValueError("no certificate store")
    for certificate in x509.load_pem_x509_certificates(credentials.trust):
        store.add_cert(crypto.X509.from_cryptography(certificate))
    # The intermediate itself is the anchor: a chain that goes around it, by way of the root, is not wanted.
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN | crypto.X509StoreFlags.X509_STRICT)
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, _verified)
    context.set_verify_depth(_CHAIN_DEPTH_MAX)
    prepare(context)
    return context


def _verified(connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, ok: int) -> bool:
    return bool(ok)


def identity_of(certificate: x509.Certificate) -> PeerIdentity:
    """Whose certificate this is. Raises `NotAcceptable`: not a server's, or not in the form agreed."""
    try:
        uri = certified_uri(certificate)
    except (ValueError, x509.DuplicateExtension) as error:
        raise NotAcceptable(f"the certificate's name: {error}") from None
    if not isinstance(uri, ServerUri):
        raise NotAcceptable(f"the certificate's name {uri} is not that of a server")
    return PeerIdentity(cluster=uri.cluster, kind=uri.kind, name=uri.name)


def uri_of(identity: PeerIdentity) -> str:
    """The URI name of a server, as its certificate carries it."""
    return str(ServerUri(identity.cluster, identity.kind, identity.name))


def identify(transport: ITransport) -> PeerIdentity:
    """The `Identify` for TLS connections: who the certificate says is at the other end. Raises `NotAcceptable`."""
    certificate: crypto.X509 | None = transport.getPeerCertificate()  # type: ignore[attr-defined]
    if certificate is None:
        raise NotAcceptable("no certificate was shown", Code.NO_CREDENTIALS)
    return identity_of(certificate.to_cryptography())


@implementer(IOpenSSLServerConnectionCreator)
@attrs.frozen
class _Accepting:
    _current: CurrentCredentials

    def serverConnectionForTLS(self, protocol: Any) -> SSL.Connection:
        return SSL.Connection(self._current.server_context, None)


@implementer(IOpenSSLClientConnectionCreator)
@attrs.frozen
class _Connecting:
    _current: CurrentCredentials

    def clientConnectionForTLS(self, protocol: Any) -> SSL.Connection:
        # No SNI: the names that count are URIs, and a listener has one certificate.
        return SSL.Connection(self._current.client_context, None)


def tls_factory(reactor: Any, current: CurrentCredentials, factory: Factory) -> Any:
    """`factory` behind mutual TLS, for a listening endpoint. Its protocols' `identify` must be the one above."""
    return tls_in_large_pieces(_Accepting(current), False, factory, reactor)


def tls_connector(reactor: Any, current: CurrentCredentials, bind_address: bytes | None = None) -> Connector:
    """How to connect with mutual TLS. Whether it is the expected server is judged by the wire, before anything is said to it."""

    def connect(address: HostPort, expected: PeerIdentity) -> IStreamClientEndpoint:
        plain = HostnameEndpoint(reactor, address.host, address.port, bindAddress=bind_address)
        return TlsInLargePieces(_Connecting(current), plain, reactor)

    return connect
