r"""TLS on a connection in large pieces: Twisted's layer cuts what is written into 16 KiB and what is read into records, each a trip
through Python; here a piece of any size is one `SSL_write` and what has come is one `dataReceived`.

    write    piece --SSL_write--> records in memory --BIO_read--> scratch --send--> socket
                                                                         \-- what the socket does not take --> Twisted's buffer
    read     socket --recv, 256 KiB--> BIO_write --SSL_read, until there is no more--> scratch --> one dataReceived

What is written goes to the socket at once when nothing waits before it: the reactor would first have to be asked whether there is
room, which is a system call or three for each piece. As soon as something is left over the producer has to wait, so that a slow client
holds one piece of memory.

The context must have SSL_MODE_ENABLE_PARTIAL_WRITE cleared (`clear_partial_write`), or one write is one record again.

This is the one module that knows how Twisted's TLS layer and pyOpenSSL's connection work inside; `tests/protocol/test_tls_layer.py`
fails when those parts change (known good: Twisted 26.10, pyOpenSSL 26.4).
"""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.tcp import Connection as TcpConnection
from twisted.protocols.policies import ProtocolWrapper
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

WRITE_BYTES_MAX = 256 * 1024
"""Given to OpenSSL at once. Its records in memory stay within the processor's cache; 1 MiB is slower."""
READ_BYTES_MAX = 256 * 1024
"""Taken from the socket at once."""
SCRATCH_BYTES = 320 * 1024
"""Room for a piece as records: 22 bytes more for each 16 KiB."""

_library: Any = vars(SSL)["_lib"]
_ffi: Any = vars(SSL)["_ffi"]


def clear_partial_write(context: SSL.Context) -> None:
    """Make one write of a large buffer one call: pyOpenSSL sets SSL_MODE_ENABLE_PARTIAL_WRITE, which costs a copy for each record."""
    _library.SSL_CTX_clear_mode(context._context, _library.SSL_MODE_ENABLE_PARTIAL_WRITE)


class _Scratch:
    """Memory that OpenSSL writes to and Python reads from; the reactor's thread needs one, since nothing stays in it."""

    def __init__(self) -> None:
        self.memory = _ffi.new("char[]", SCRATCH_BYTES)
        self.view = memoryview(_ffi.buffer(self.memory))


_scratch = _Scratch()


class LargePieces(BufferingTLSTransport):
    """TLS over a transport; over TCP with short ways."""

    _tcp: TcpConnection | None = None

    def makeConnection(self, transport: Any) -> None:
        """The connection below is there."""
        below = transport
        while isinstance(below, ProtocolWrapper):
            below = below.transport
        if isinstance(below, TcpConnection):
            self._tcp = below
            below.bufferSize = READ_BYTES_MAX
            below.SEND_LIMIT = SCRATCH_BYTES
        super().makeConnection(transport)  # type: ignore[no-untyped-call]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection below is gone."""
        super().connectionLost(reason)
        self._tcp = None

    def _write(self, octets: bytes) -> None:
        """Encrypt and send, or keep what cannot be encrypted before the handshake is over."""
        for start in range(0, len(octets), WRITE_BYTES_MAX):
            if self._lostTLSConnection:
                return
            piece = octets if len(octets) <= WRITE_BYTES_MAX else memoryview(octets)[start : start + WRITE_BYTES_MAX]
            try:
                self._tlsConnection.send(piece)
            except SSL.WantReadError:
                self._bufferedWrite(octets[start:])  # type: ignore[no-untyped-call]
                return
            except SSL.Error:
                self._tlsShutdownFinished(Failure())  # type: ignore[no-untyped-call]
                return
            self._flushSendBIO()

    def _flushSendBIO(self) -> None:
        """Send the records that OpenSSL has made."""
        while True:
            count = _library.BIO_read(self._tlsConnection._from_ssl, _scratch.memory, SCRATCH_BYTES)
            if count <= 0:
                return
            sent = self._send_at_once(count)
            if sent < count:
                below: Any = self.transport
                below.write(bytes(_scratch.view[sent:count]))
                self._let_producer_wait()
            if count < SCRATCH_BYTES:
                return

    def _send_at_once(self, count: int) -> int:
        """Give the first `count` bytes of the scratch memory to the socket, if nothing waits before them; how many it took."""
        tcp = self._tcp
        if tcp is None or tcp.dataBuffer or tcp._tempDataBuffer or not tcp.connected or tcp.disconnecting or tcp._writeDisconnecting:
            return 0
        try:
            return tcp.socket.send(_scratch.view[:count])
        except OSError:
            # Full, or broken: Twisted will find out which.
            return 0

    def _let_producer_wait(self) -> None:
        tcp = self._tcp
        if tcp is not None and tcp.producer is not None and tcp.streamingProducer and not tcp.producerPaused:
            tcp.producerPaused = True
            producer: Any = tcp.producer
            producer.pauseProducing()

    def _flushReceiveBIO(self) -> None:
        """Deliver what OpenSSL can decrypt by now, in one piece."""
        while not self._lostTLSConnection:
            taken, end = self._decrypt()
            if taken and not self._aborted:
                self.wrappedProtocol.dataReceived(taken)
            if end is None:
                if len(taken) < READ_BYTES_MAX:
                    break
            elif not self._lostTLSConnection:
                if end.check(SSL.ZeroReturnError):
                    self._shutdownTLS()  # type: ignore[no-untyped-call]
                    self._tlsShutdownFinished(None)  # type: ignore[no-untyped-call]
                else:
                    self._tlsShutdownFinished(end)  # type: ignore[no-untyped-call]
        if self._tlsConnection is not None:
            # What was received may have led to an answer of TLS itself.
            self._flushSendBIO()

    def _decrypt(self) -> tuple[bytes, Failure | None]:
        """At most `READ_BYTES_MAX` bytes that were said, and why nothing can come after them, if that is so."""
        connection, taken = self._tlsConnection, 0
        while taken < READ_BYTES_MAX:
            count = _library.SSL_read(connection._ssl, _scratch.memory + taken, READ_BYTES_MAX - taken)
            if count <= 0:
                try:
                    connection._raise_ssl_error(connection._ssl, count)
                except SSL.WantReadError:
                    break
                except SSL.Error:
                    return bytes(_scratch.view[:taken]), Failure()
                break
            taken += count
        return bytes(_scratch.view[:taken]), None


class LargePiecesFactory(TLSMemoryBIOFactory):
    """A factory whose connections speak TLS in large pieces."""

    protocol = LargePieces


def tls_in_large_pieces(creator: Any, is_client: bool, factory: Factory, reactor: Any) -> LargePiecesFactory:
    """`factory` behind TLS.

    Args:
        creator: an `IOpenSSLServerConnectionCreator` or, for clients, an `IOpenSSLClientConnectionCreator`; its contexts have
            `clear_partial_write` done.
    """
    return LargePiecesFactory(creator, is_client, factory, reactor)


@implementer(IStreamClientEndpoint)
class TlsInLargePieces:
    """An endpoint that speaks TLS, as its client, over the connection that another endpoint makes."""

    def __init__(self, creator: Any, below: IStreamClientEndpoint, reactor: Any) -> None:
        self._creator = creator
        self._below = below
        self._reactor = reactor

    def connect(self, protocolFactory: Any) -> Any:
        """See `IStreamClientEndpoint`."""
        connecting: Any = self._below.connect(tls_in_large_pieces(self._creator, True, protocolFactory, self._reactor))
        return connecting.addCallback(lambda protocol: protocol.wrappedProtocol)
