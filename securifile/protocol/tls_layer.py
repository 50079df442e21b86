r"""TLS on a connection in large pieces: Twisted's layer cuts what is written into 16 KiB and what is read into records, each a trip
through Python; here a piece of any size is one `SSL_write` and what has come is one `dataReceived`.

    write    piece --SSL_write--> records in memory --BIO_read--> scratch --send--> socket
                                                                         \-- what the socket does not take --> Twisted's buffer
    read     socket --recv, 256 KiB--> BIO_write --SSL_read, until there is no more--> scratch --> one dataReceived

What is written goes to the socket at once when nothing waits before it: the reactor would first have to be asked whether there is
room, which is a system call or three for each piece. As soon as something is left over the producer has to wait, so that a slow client
holds one piece of memory.

A **lane** lends the connection to a worker's thread for a burst, so that reading, checking, encrypting and sending run on another
processor than the reactor. The thread never waits for the client: what the socket does not take ends the burst and goes to Twisted's
buffer. Whoever uses the connection holds its lock, the thread for a piece at a time; a lane that was closed takes nothing any more,
and so the reactor can cut a transfer off within a piece.

The context must have SSL_MODE_ENABLE_PARTIAL_WRITE cleared (`clear_partial_write`), or one write is one record again.

This is the one module that knows how Twisted's TLS layer and pyOpenSSL's connection work inside; `tests/protocol/test_tls_layer.py`
fails when those parts change (known good: Twisted 26.10, pyOpenSSL 26.4).
"""

from __future__ import annotations

import threading
from typing import Any

from OpenSSL import SSL
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.tcp import Connection as TcpConnection
from twisted.protocols.policies import ProtocolWrapper
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from securifile.model.errors import StreamBroken

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


class _Scratch(threading.local):
    """Memory that OpenSSL writes to and Python reads from: one for each thread, since nothing stays in it."""

    def __init__(self) -> None:
        self.memory = _ffi.new("char[]", SCRATCH_BYTES)
        self.view = memoryview(_ffi.buffer(self.memory))


_scratch = _Scratch()


class LargePieces(BufferingTLSTransport):
    """TLS over a transport; over TCP with short ways."""

    _tcp: TcpConnection | None = None
    _lane: Lane | None = None
    _left = b""
    """Records that a lane made and the socket did not take; nothing may overtake them."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._turn = threading.RLock()

    def lane(self) -> Lane | None:
        """A way for another thread to write next, for which nothing else may be written until it is closed; None when there is none now:
        not over TCP, not yet or no longer connected, or with something waiting to be sent.
        """
        tcp = self._tcp
        if tcp is None or self._lane is not None or not self._handshakeDone or self._aborted or self._lostTLSConnection:
            return None
        self._aggregator.flush()
        if self._appSendBuffer or not self._is_clear():
            return None
        self._lane = Lane(self, tcp.socket.dup(), self._tlsConnection)
        return self._lane

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
        with self._turn:
            self._end_lane()
            super().connectionLost(reason)
            self._tcp = None

    def dataReceived(self, octets: bytes) -> None:
        """Bytes from below."""
        with self._turn:
            super().dataReceived(octets)  # type: ignore[no-untyped-call]

    def abortConnection(self) -> None:
        """Cut it off; a lane gives nothing any more."""
        with self._turn:
            self._end_lane()
            super().abortConnection()  # type: ignore[no-untyped-call]

    def _shutdownTLS(self) -> None:
        with self._turn:
            super()._shutdownTLS()  # type: ignore[no-untyped-call]

    def _end_lane(self) -> None:
        if self._lane is not None:
            self._lane.close()

    def lane_closed(self) -> None:
        """What a lane left over goes on in the usual way. Called by the lane."""
        self._lane = None
        if self._tlsConnection is not None:
            self._flushSendBIO()

    def _write(self, octets: bytes) -> None:
        """Encrypt and send, or keep what cannot be encrypted before the handshake is over."""
        with self._turn:
            self._write_in_turn(octets)

    def _write_in_turn(self, octets: bytes) -> None:
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
        with self._turn:
            if self._left:
                left, self._left = self._left, b""
                self._leave_to_twisted(left)
            while (count := seal(self._tlsConnection)) > 0:
                view = _scratch.view[:count]
                sent = send_now(self._tcp.socket, view) if self._tcp is not None and self._is_clear() else 0
                if sent < count:
                    self._leave_to_twisted(bytes(view[sent:]))
                if count < SCRATCH_BYTES:
                    return

    def _is_clear(self) -> bool:
        """Whether what is sent now would overtake nothing, and the socket is there to take it. Also for a lane's thread: Twisted empties
        its buffers only after it has sent what was in them.
        """
        tcp = self._tcp
        return (
            tcp is not None
            and not self._left
            and not (tcp.dataBuffer or tcp._tempDataBuffer)
            and bool(tcp.connected)
            and not (tcp.disconnecting or tcp._writeDisconnecting)
        )

    def _leave_to_twisted(self, records: bytes) -> None:
        below: Any = self.transport
        below.write(records)
        self._let_producer_wait()

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
                    self._shutdownTLS()
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


class Lane:
    """A TLS connection, lent to a worker's thread for one burst.

    The reactor's thread makes it and closes it; the other one calls `take`.
    """

    def __init__(self, layer: LargePieces, own_socket: Any, connection: SSL.Connection) -> None:
        """Args:
        own_socket: a descriptor of its own for the same connection: the layer's may be closed, and its number used again, at any time.
        """
        self.taken = 0
        """Bytes taken so far."""
        self._layer: LargePieces | None = layer
        self._turn = layer._turn
        self._socket = own_socket
        self._connection = connection

    def take(self, piece: bytes) -> bool:
        """Encrypt and send a piece of at most `WRITE_BYTES_MAX`; whether more is welcome now. Never waits for the client.

        Raises:
            StreamBroken: the lane is closed; nothing of the piece was taken.
        """
        with self._turn:
            layer = self._layer
            if layer is None:
                raise StreamBroken("the connection was taken back")
            self._connection.send(piece)
            self.taken += len(piece)
            while (count := seal(self._connection)) > 0:
                view = _scratch.view[:count]
                sent = send_now(self._socket, view) if layer._is_clear() else 0
                layer._left += view[sent:]
            return layer._is_clear()

    def close(self) -> int:
        """Give the connection back; how many bytes were taken. From now on not a byte more. Harmless twice."""
        with self._turn:
            layer, self._layer = self._layer, None
            if layer is not None:
                self._socket.close()
                layer.lane_closed()
            return self.taken


def seal(connection: SSL.Connection) -> int:
    """Bring records that OpenSSL has made into this thread's scratch memory; how many bytes, or not above zero when there are none."""
    count: int = _library.BIO_read(connection._from_ssl, _scratch.memory, SCRATCH_BYTES)
    return count


def send_now(socket: Any, view: memoryview) -> int:
    """Give bytes to a socket that does not block; how many it took."""
    try:
        sent: int = socket.send(view)
    except OSError:
        # Full, or broken: Twisted will find out which.
        return 0
    return sent


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

    def __repr__(self) -> str:
        return f"TLS over {self._below!r}"

    def connect(self, protocolFactory: Any) -> Any:
        """See `IStreamClientEndpoint`."""
        connecting: Any = self._below.connect(tls_in_large_pieces(self._creator, True, protocolFactory, self._reactor))
        return connecting.addCallback(lambda protocol: protocol.wrappedProtocol)
