"""Whom the client believes: the root certificate of its cluster, and nobody else if there is one.

A cluster signs its servers' certificates itself, so the root is given once, at the first sign-in, and kept with the
session. Without one, the authorities that this machine trusts are asked, for clusters with public certificates.
Names are checked by service-identity; an IP address must be in the certificate as an address.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from OpenSSL.crypto import FILETYPE_PEM, load_certificate
from OpenSSL.crypto import Error as CryptoError
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.internet.ssl import Certificate, TLSVersion, optionsForClientTLS, platformTrust, trustRootFromCertificates

from securifile.client.wire import Origin

_BEGIN = "-----BEGIN CERTIFICATE-----"
_END = "-----END CERTIFICATE-----"


def certificates_of(pem: str) -> list[Certificate]:
    """The certificates in PEM text, whatever stands between them.

    Raises:
        ValueError: there is none, or one cannot be read.
    """
    blocks = [_BEGIN + part.partition(_END)[0] + _END + "\n" for part in pem.split(_BEGIN)[1:]]
    if not blocks:
        raise ValueError("there is no certificate in it: a file that begins with -----BEGIN CERTIFICATE----- is wanted")
    try:
        return [Certificate(load_certificate(FILETYPE_PEM, block.encode())) for block in blocks]
    except (CryptoError, ValueError):
        raise ValueError("a certificate in it cannot be read") from None


def _plain(reactor: Any, origin: Origin) -> IStreamClientEndpoint:
    """TCP. An address is connected to directly: for names, an endpoint notices a refused connection only 0.3 s later."""
    if isIPAddress(origin.host):
        return TCP4ClientEndpoint(reactor, origin.host, origin.port)
    if isIPv6Address(origin.host):
        return TCP6ClientEndpoint(reactor, origin.host, origin.port)
    return HostnameEndpoint(reactor, origin.host, origin.port)


def endpoints(reactor: IReactorTime, root_pem: str | None) -> Callable[[Origin], IStreamClientEndpoint]:
    """Where to connect for an origin: TCP for http, TLS 1.3 for https.

    Args:
        reactor: makes the connections; IReactorTCP and IReactorPluggableNameResolver too.
        root_pem: the certificates to trust, alone; None for those that this machine trusts.

    Raises:
        ValueError: `root_pem` holds no certificate.
    """
    trust = platformTrust() if root_pem is None else trustRootFromCertificates(certificates_of(root_pem))

    def endpoint(origin: Origin) -> IStreamClientEndpoint:
        plain = _plain(reactor, origin)
        if origin.scheme == "http":
            return plain
        options = optionsForClientTLS(origin.host, trustRoot=trust, extraCertificateOptions={"raiseMinimumTo": TLSVersion.TLSv1_3})
        return wrapClientTLS(options, plain)

    return endpoint
