"""TLS towards people: the server shows its certificate, a browser or curl checks it."""

from __future__ import annotations

from typing import Any

import attrs
from OpenSSL import SSL, crypto
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.protocol import Factory
from zope.interface import implementer

from securifile.certificates.identity import Identity
from securifile.protocol.openssl import prepare
from securifile.protocol.tls_layer import tls_in_large_pieces

PROTOCOLS = [b"http/1.1"]
"""What is offered by ALPN (RFC 7301)."""


@implementer(IOpenSSLServerConnectionCreator)
@attrs.define
class HttpsCertificate:
    """The certificate that new connections are shown; a renewed one takes effect without a restart."""

    _context: SSL.Context

    @classmethod
    def of(cls, identity: Identity) -> HttpsCertificate:
        """Show this identity."""
        return cls(https_context(identity))

    def replace(self, identity: Identity) -> None:
        """Show this one from now on."""
        self._context = https_context(identity)

    def serverConnectionForTLS(self, protocol: Any) -> SSL.Connection:
        """See `IOpenSSLServerConnectionCreator`."""
        return SSL.Connection(self._context, None)


def https_context(identity: Identity) -> SSL.Context:
    """TLS 1.3, and 1.2 for clients that need it."""
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE)
    context.set_cipher_list(b"ECDHE+AESGCM:ECDHE+CHACHA20")
    context.use_certificate(crypto.X509.from_cryptography(identity.chain[0]))
    for certificate in identity.chain[1:]:
        context.add_extra_chain_cert(crypto.X509.from_cryptography(certificate))
    context.use_privatekey(crypto.PKey.from_cryptography_key(identity.key))
    context.check_privatekey()
    context.set_alpn_select_callback(_choose)
    prepare(context)
    return context


def _choose(connection: SSL.Connection, offered: list[bytes]) -> Any:
    for protocol in PROTOCOLS:
        if protocol in offered:
            return protocol
    return SSL.NO_OVERLAPPING_PROTOCOLS


def https_factory(reactor: Any, certificate: HttpsCertificate, factory: Factory) -> Any:
    """`factory` behind TLS, for a listening endpoint."""
    return tls_in_large_pieces(certificate, False, factory, reactor)
