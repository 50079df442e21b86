"""A copy of a server's audit records for a site's own syslog server: RFC 5424 over TLS (RFC 5425), or over TCP where all TLS is off.

Nobody confirms a copy, so it goes along as best it can: what the site's server did not take while it was away, and what was on its way when
a connection broke, it does not get. The audit trail is that of the admin servers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
from OpenSSL.crypto import Error as BadPem
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.ssl import Certificate, optionsForClientTLS, platformTrust, trustRootFromCertificates
from twisted.python import usage

from securifile.audit.sender import AuditSender
from securifile.audit.spool import Spool
from securifile.model.servers import HostPort
from securifile.process import CannotStart

PEM_END = b"-----END CERTIFICATE-----"

OPTIONS = [
    ["syslog-copy-to", None, None, "A syslog server of the site, HOST:PORT, that is sent a copy of this server's audit records over TLS."],
    ["syslog-copy-ca", None, None, "File with the CA certificates (PEM) that --syslog-copy-to is trusted by; without it, the system's."],
]
"""The same for both kinds of server, as `usage.Options` takes them."""


@attrs.frozen(kw_only=True)
class Site:
    """Where the copy goes."""

    address: HostPort
    ca: Path | None = None
    """Whom its certificate has to be signed by; None: any that the system trusts."""


def site_in(options: Any) -> Site | None:
    """What a command line says of it; None: nothing. Raises `usage.UsageError` saying what to do."""
    text, ca = options["syslog-copy-to"], options["syslog-copy-ca"]
    if text is None:
        if ca is not None:
            raise usage.UsageError("--syslog-copy-ca is of no use without --syslog-copy-to")
        return None
    try:
        return Site(address=HostPort.parse(text), ca=None if ca is None else Path(ca).absolute())
    except ValueError as error:
        raise usage.UsageError(f"--syslog-copy-to: {error}") from error


def copying(site: Site, spool: Spool, *, reactor: Any, random: Callable[[int], bytes], tls: bool) -> AuditSender:
    """A sender of the copy, to be started after the spool was opened, and stopped before it is closed.

    Raises:
        CannotStart: the file with the CA certificates cannot be read, or has none.
    """
    endpoint = _endpoint(site, reactor, tls)
    return AuditSender(spool, lambda: [endpoint], clock=reactor, random=random, confirming=False)


def _endpoint(site: Site, reactor: Any, tls: bool) -> IStreamClientEndpoint:
    plain = HostnameEndpoint(reactor, site.address.host, site.address.port)
    if not tls:
        return plain
    options = optionsForClientTLS(site.address.host, trustRoot=platformTrust() if site.ca is None else _roots(site.ca))
    endpoint: IStreamClientEndpoint = wrapClientTLS(options, plain)
    return endpoint


def _roots(path: Path) -> Any:
    try:
        parts = path.read_bytes().split(PEM_END)[:-1]
        if not parts:
            raise CannotStart(f"--syslog-copy-ca: there is no certificate in {path}")
        return trustRootFromCertificates([Certificate.loadPEM(part + PEM_END + b"\n") for part in parts])
    except OSError as error:
        raise CannotStart(f"--syslog-copy-ca: {error.strerror}: {path}") from error
    except BadPem as error:
        raise CannotStart(f"--syslog-copy-ca: a certificate in {path} cannot be read") from error
