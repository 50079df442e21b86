"""Who is talking: TLS or plain text? The first byte tells, and a clear answer saves an operator an hour.

With `--no-tls` on some servers only, each half would see the other's bytes as garbage. A listener wrapped in `tls_only` answers
plain text in plain text, saying what is wrong. One wrapped in `plain_only` does the same to TLS: there the client cannot read the
words, but it sees that this is no TLS, and says that.

    TCP --> sniff --> TLS --> HTTP or Wire          TCP --> sniff --> HTTP or Wire
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress, IProtocolFactory
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure

from securifile.model.errors import Code
from securifile.model.servers import HostPort
from securifile.protocol.connection import goodbye_frame
from securifile.protocol.messages import Refused

_log = Logger()

TLS_HANDSHAKE = 0x16
"""Content type of the record that every TLS client begins with (RFC 8446, section 5.1)."""

SPEAKS_TLS_ONLY = goodbye_frame(Refused(code=Code.BAD_REQUEST.value, detail="this server speaks TLS only; start yours without --no-tls"))
"""What a protocol port answers to plain text: a goodbye that the other server can read and log."""
SPEAKS_PLAIN_ONLY = goodbye_frame(Refused(code=Code.BAD_REQUEST.value, detail="this server runs with --no-tls; start yours with it, too"))
"""What a protocol port without TLS answers to TLS: for the client's TLS no record at all, which it reports (see `wire`)."""


def http_answer(detail: str) -> bytes:
    """An HTTP 400 with an RFC 9457 problem, for an HTTPS port that hears plain text."""
    body = f'{{"type":"about:blank","status":400,"code":"{Code.BAD_REQUEST.value}","title":"Bad Request","detail":"{detail}"}}\n'.encode()
    head = f"HTTP/1.1 400 Bad Request\r\nContent-Type: application/problem+json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


@attrs.frozen(kw_only=True)
class Verdict:
    """What is done with a connection that does not begin as it should."""

    answer: bytes
    """Sent before closing; may be empty."""
    log: Callable[[str], None]


class _Sniffer(ProtocolWrapper):
    """Looks at the first byte, then steps aside."""

    factory: _Sniffing

    def dataReceived(self, data: bytes) -> None:
        if not data:
            return
        if (data[0] == TLS_HANDSHAKE) is self.factory.wants_tls:
            # From here on the bytes go straight to the next layer.
            self.dataReceived = self.wrappedProtocol.dataReceived  # type: ignore[method-assign]
            self.wrappedProtocol.dataReceived(data)
            return
        transport: Any = self.transport
        self.factory.verdict.log(address_of(transport))
        # What else the stranger says is read and forgotten, so that it gets the answer instead of a reset.
        self.dataReceived = _forget  # type: ignore[method-assign]
        transport.unregisterProducer()
        if self.factory.verdict.answer:
            transport.write(self.factory.verdict.answer)
        transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.dataReceived = _forget  # type: ignore[method-assign]
        super().connectionLost(reason)  # type: ignore[no-untyped-call]


def address_of(transport: Any) -> str:
    """Where the other end of a connection is, as people write it: 192.0.2.7:9444."""
    return address_words(transport.getPeer())


def address_words(address: IAddress | None) -> str:
    """An address as people write it."""
    return str(HostPort(address.host, address.port)) if isinstance(address, IPv4Address | IPv6Address) else str(address)


def _forget(data: bytes) -> None:
    pass


class _Sniffing(WrappingFactory[_Sniffer]):
    """A factory whose connections are looked at first."""

    noisy = False
    protocol = _Sniffer

    def __init__(self, wrapped: IProtocolFactory, wants_tls: bool, verdict: Verdict) -> None:
        super().__init__(wrapped)  # type: ignore[no-untyped-call]
        self.wants_tls = wants_tls
        self.verdict = verdict

    def logPrefix(self) -> str:
        # What is behind it: that somebody looks first is nothing to read in a log.
        wrapped: Any = self.wrappedFactory
        return str(wrapped.logPrefix())

    def buildProtocol(self, addr: IAddress | None) -> _Sniffer | None:  # type: ignore[override]
        # `WrappingFactory` would wrap a refusal (None), too.
        inner = self.wrappedFactory.buildProtocol(addr)
        return _Sniffer(self, inner) if inner is not None else None


def tls_only(factory: IProtocolFactory, answer: bytes = SPEAKS_TLS_ONLY) -> Any:
    """`factory` (which must begin with TLS), with `answer` for those who speak plain text."""

    def heard(peer: str) -> None:
        _log.warn("{peer} speaks plain text to a TLS port: if it is a server of the cluster, start it without --no-tls", peer=peer)

    return _Sniffing(factory, True, Verdict(answer=answer, log=heard))


def plain_only(factory: IProtocolFactory, answer: bytes = SPEAKS_PLAIN_ONLY) -> Any:
    """`factory` (plain), closing with a line in the log on those who speak TLS."""

    def heard(peer: str) -> None:
        _log.warn("{peer} speaks TLS, and this server runs with --no-tls: start all servers of the cluster the same way", peer=peer)

    return _Sniffing(factory, False, Verdict(answer=answer, log=heard))
