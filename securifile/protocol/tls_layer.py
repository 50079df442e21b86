r"""TLS on a connection in large pieces: Twisted's layer cuts what is written into 16 KiB and what is read into records, each a trip
through Python; here a piece of any size is one `SSL_write` and what has come is one `dataReceived`.

    write    piece --SSL_write--> records in memory --BIO_read--> scratch --send--> socket
                                                                         \-- what the socket does not take --> Twisted's buffer
    read     socket --recv, 256 KiB--> BIO_write --SSL_read, until there is no more--> scratch --> one dataReceived

What is written goes to the socket at once when nothing waits before it: the reactor would first have to be asked whether there is
room, which is a system call or three for each piece. As soon as something is left over the producer has to wait, so that a slow client
holds one piece of memory.

A **lane** lends the connection to a worker's thread for a burst, so that reading, checking, encrypting and sending run on another
processor than the reactor; or receiving, decrypting, hashing and writing. The thread never waits for long: what the socket does not
take or have ends the burst, what was not sent goes to Twisted's buffer, and the reactor waits for the rest. Whoever uses the
connection holds its lock, the thread for a piece at a time; a lane that was closed takes and gives nothing any more, and so the
reactor can cut a transfer off within a piece.

While a lane receives, the reactor does not read. It goes on with that in its next round, unless another lane has come by then, or it
was asked only to tell when there is something to read (`watch`), for a lane that takes all of it.

A connection that moved large pieces and has been at rest for a second gives back what OpenSSL took for them: whoever is slow, or keeps
a connection for later, costs a file descriptor and little memory.

The context must be prepared (`openssl.prepare`), or one write is one record again.

This is the one module that knows how Twisted's TLS layer works inside, as `openssl` is for pyOpenSSL; `tests/protocol/test_tls_layer.py`
fails when those parts change (known good: Twisted 26.10).
"""

from __future__ import annotations

import select
import threading
from collections.abc import Callable
from typing import Any

from OpenSSL import SSL
from twisted.internet.interfaces import IDelayedCall, IStreamClientEndpoint
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.tcp import Connection as TcpConnection
from twisted.protocols.policies import ProtocolWrapper
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from securifile.model.errors import StreamBroken
from securifile.protocol.openssl import KEEP_LOCK_BYTES_MAX, READ_BYTES_MAX, SCRATCH_BYTES, WRITE_BYTES_MAX, Records, scratch

REST_S = 1.0
"""So long nothing may move on a connection before its buffers shrink: to make them grow again costs as much as encrypting a mebibyte."""

WAITS_MAX = 64
"""How often a burst may wait for the other end: 4 MiB in the 64 KiB that a system gives and takes at once."""
WAIT_MS = 2
"""For how long each time. Who needs longer is not worth a thread; asking the reactor costs a tenth of that."""
PATIENCE_WAITS = 10
"""So many waits in one are spent on another server that is in the middle of a burst: it waits for a core."""


class LargePieces(BufferingTLSTransport):
    """TLS over a transport; over TCP with short ways."""

    _tcp: TcpConnection | None = None
    _made_records: Records | None = None
    _moved = False
    """Whether large pieces went by since the last look whether the connection rests."""
    _look_at_rest: IDelayedCall | None = None
    """Set while the buffers may be large."""
    _lane: Lane | None = None
    _left = b""
    """Records that a lane made and the socket did not take; nothing may overtake them."""
    _read_end: Failure | None = None
    """Why nothing comes any more, found by a lane and not acted upon yet."""
    _reading_held = False
    """Whether whoever is above wants to receive nothing."""
    _unread = False
    """Whether a lane may have left something that was to be delivered when nothing was wanted."""
    _reading_on: IDelayedCall | None = None
    """Set after a lane that received, until the reactor reads again."""
    _own_socket: Any = None
    """A descriptor for lanes, until the connection rests: the reactor's may be closed, and its number used again, at any time."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._turn = threading.RLock()

    def lane(self, *, receives: bool = False) -> Lane | None:
        """A way for another thread to write next, for which nothing else may be written until it is closed, or, when it `receives`, to
        read next; None when there is none now: not over TCP, not yet or no longer connected, or with something waiting to be sent.
        """
        tcp = self._tcp
        if tcp is None or self._lane is not None or not self._handshakeDone or self._aborted or self._lostTLSConnection:
            return None
        self._aggregator.flush()
        if self._appSendBuffer or not self._is_clear() or (receives and (self._reading_held or self._read_end is not None)):
            return None
        if receives:
            self._do_not_read_on()
            tcp.stopReading()
            # The round of the reactor that is under way may have found that there is something to read before this was said.
            tcp.doRead = _read_nothing  # type: ignore[method-assign]
        self._moves_much()
        if self._own_socket is None:
            self._own_socket = tcp.socket.dup()
        self._lane = Lane(self, self._own_socket, receives)
        return self._lane

    def watch(self, told: Callable[[], None]) -> bool:
        """Read nothing more, and call `told` once, as soon as there is something to read. If no lane is made in it that receives, what has
        come is delivered as ever. False: there is something already, or it cannot be said now.
        """
        tcp = self._tcp
        if tcp is None or self._lane is not None or not self._handshakeDone or self._aborted or self._lostTLSConnection:
            return False
        if self._reading_held or self._read_end is not None or self.records().kept_bytes():
            return False
        self._do_not_read_on()

        def tell() -> None:
            tcp.stopReading()
            vars(tcp).pop("doRead")
            self._read_on_later()
            told()

        tcp.doRead = tell  # type: ignore[method-assign]
        tcp.startReading()
        return True

    def pauseProducing(self) -> None:
        """Deliver nothing until told to."""
        self._reading_held = True
        below: Any = self.transport
        below.pauseProducing()

    def resumeProducing(self) -> None:
        """Deliver what comes."""
        self._reading_held = False
        if self._unread:
            self._unread = False
            self._read_on_later()
        elif not self._lane_receives() and self._reading_on is None:
            below: Any = self.transport
            below.resumeProducing()

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
            self._close_own_socket()
            if self._tcp is not None:
                vars(self._tcp).pop("doRead", None)
            super().connectionLost(reason)
            # With what OpenSSL keeps, up to two thirds of a mebibyte: whoever was above may refer to this for longer.
            self._made_records = None
            self._tcp = None
            self._do_not_read_on()
            if self._look_at_rest is not None:
                self._look_at_rest.cancel()
                self._look_at_rest = None

    def dataReceived(self, octets: bytes) -> None:
        """Bytes from below."""
        with self._turn:
            if not self._handshakeDone:
                super().dataReceived(octets)  # type: ignore[no-untyped-call]
                return
            if len(octets) > KEEP_LOCK_BYTES_MAX:
                self._moves_much()
            self.records().came(octets)
            if self._appSendBuffer:
                self._unbufferPendingWrites()  # type: ignore[no-untyped-call]
            self._flushReceiveBIO()

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

    def _close_own_socket(self) -> None:
        if self._own_socket is not None:
            self._own_socket.close()
            self._own_socket = None

    def lane_closed(self, received: bool) -> None:
        """What a lane left over goes on in the usual way. Called by the lane."""
        self._lane = None
        if received and self._tcp is not None:
            vars(self._tcp).pop("doRead")
        if self._tlsConnection is not None:
            self._flushSendBIO()
        if received and self._tcp is not None and not self._aborted:
            self._read_on_later()

    def _lane_receives(self) -> bool:
        return self._lane is not None and self._lane.receives

    def _read_on_later(self) -> None:
        """In the next round: who closed a lane has to count first, and often there is another lane by then."""
        if self._tcp is not None and self._reading_on is None:
            reactor: Any = self._tcp.reactor
            self._reading_on = reactor.callLater(0, self._read_on)

    def _do_not_read_on(self) -> None:
        if self._reading_on is not None:
            self._reading_on.cancel()
            self._reading_on = None

    def _read_on(self) -> None:
        """Deliver what a lane has left, and read again."""
        self._reading_on = None
        with self._turn:
            if self._tcp is None or self._lane is not None or self._tlsConnection is None:
                return
            if self._reading_held:
                self._unread = True
                return
            self._flushReceiveBIO()
            if not self._reading_held and not self._lane_receives() and self._reading_on is None and self._tcp is not None:
                self._tcp.resumeProducing()

    def _write(self, octets: bytes) -> None:
        """Encrypt and send, or keep what cannot be encrypted before the handshake is over."""
        with self._turn:
            self._write_in_turn(octets)

    def _write_in_turn(self, octets: bytes) -> None:
        if len(octets) > KEEP_LOCK_BYTES_MAX:
            self._moves_much()
        for start in range(0, len(octets), WRITE_BYTES_MAX):
            if self._lostTLSConnection:
                return
            piece = octets if len(octets) <= WRITE_BYTES_MAX else memoryview(octets)[start : start + WRITE_BYTES_MAX]
            try:
                self.records().write(piece)
            except SSL.WantReadError:
                self._bufferedWrite(octets[start:])  # type: ignore[no-untyped-call]
                return
            except SSL.Error:
                self._tlsShutdownFinished(Failure())  # type: ignore[no-untyped-call]
                return
            self._flushSendBIO(few=len(piece) <= KEEP_LOCK_BYTES_MAX)

    def records(self) -> Records:
        """This connection's. Twisted makes the connection, and uses it at once."""
        if self._made_records is None:
            self._made_records = Records(self._tlsConnection)
        return self._made_records

    def _moves_much(self) -> None:
        self._moved = True
        if self._look_at_rest is None and self._tcp is not None:
            self._look_again()

    def _look_again(self) -> None:
        assert self._tcp is not None
        reactor: Any = self._tcp.reactor
        self._look_at_rest = reactor.callLater(REST_S, self._has_it_rested)

    def _has_it_rested(self) -> None:
        self._look_at_rest = None
        with self._turn:
            if self._moved or self._lane is not None:
                self._moved = False
                self._look_again()
            elif self._tlsConnection is not None:
                self._close_own_socket()
                self.records().shrink()

    def _flushSendBIO(self, *, few: bool = True) -> None:
        """Send the records that OpenSSL has made, usually few."""
        with self._turn:
            if self._left:
                left, self._left = self._left, b""
                self._leave_to_twisted(left)
            while (count := self.records().seal(few=few)) > 0:
                view = scratch.view[:count]
                sent = send_now(self._tcp.socket, view) if self._tcp is not None and self._is_clear() else 0
                if sent < count:
                    self._leave_to_twisted(bytes(view[sent:]))
                if count < SCRATCH_BYTES:
                    return

    def _is_clear(self) -> bool:
        """Whether what is sent now would overtake nothing, and the socket is there to take it. Also for a lane's thread: Twisted empties
        its buffers only after it has sent what was in them.
        """
        return not self._left and self._is_clear_below()

    def _is_clear_below(self) -> bool:
        """Whether Twisted has sent all that it was given."""
        tcp = self._tcp
        return (
            tcp is not None
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
        # A lane may begin within a delivery: what comes next is its.
        while not self._lostTLSConnection and not self._lane_receives():
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
        taken = self.decrypt_into(scratch.memory, READ_BYTES_MAX)
        return bytes(scratch.view[:taken]), self._read_end

    def decrypt_into(self, memory: Any, room: int) -> int:
        """Put what was said, as far as its records are here, into `memory`; how many bytes. What ends it is noted in `_read_end`."""
        if self._read_end is not None:
            return 0
        taken, self._read_end = self.records().read_into(memory, room)
        return taken


def _read_nothing() -> None:
    """In place of a connection's `doRead`, while a lane reads."""


class Lane:
    """A TLS connection, lent to a worker's thread for one burst.

    The reactor's thread makes it and closes it; the other one calls `take` and `is_clear`, or `receive`.

    Attributes:
        turn: the connection's lock. A thread that holds it and finds the lane open (`check_open`) is alone with the connection.
        receives: whether the reactor leaves reading to it.
        taken: bytes that were taken so far.
        received: bytes that were received so far.
    """

    def __init__(self, layer: LargePieces, own_socket: Any, receives: bool) -> None:
        """Args:
        own_socket: another descriptor than the reactor's. It stays open while the lane is.
        """
        self.taken = 0
        self.received = 0
        self.receives = receives
        self.turn = layer._turn
        self._layer: LargePieces | None = layer
        self._socket = own_socket
        self._waits_left = WAITS_MAX

    def check_open(self) -> LargePieces:
        """The connection. Raises `StreamBroken` when it was taken back."""
        if self._layer is None:
            raise StreamBroken("the connection was taken back")
        return self._layer

    def take(self, *pieces: bytes | memoryview) -> bool:
        """Encrypt and send pieces of together at most `WRITE_BYTES_MAX`; whether more is welcome now. Never waits for the client.

        Raises:
            StreamBroken: the lane is closed; nothing of the pieces was taken.
        """
        with self.turn:
            layer = self.check_open()
            for piece in pieces:
                layer.records().write(piece)
                self.taken += len(piece)
            while (count := layer.records().seal()) > 0:
                view = scratch.view[:count]
                sent = send_now(self._socket, view) if layer._is_clear() else 0
                layer._left += view[sent:]
            return layer._is_clear()

    def is_clear(self) -> bool:
        """Whether more is welcome, having waited a moment for that if need be. Raises `StreamBroken`."""
        while True:
            with self.turn:
                layer = self.check_open()
                if layer._left and layer._is_clear_below():
                    layer._left = layer._left[send_now(self._socket, memoryview(layer._left)) :]
                if layer._is_clear():
                    return True
                if not self._may_wait():
                    return False
                waiting = self._poll(select.POLLOUT)
            if not waiting.poll(WAIT_MS):
                return False

    def receive(self, count: int, *, patient: bool = False) -> memoryview:
        """What the other end says next, `count` bytes (at most `PIECE_BYTES_MAX`) or, when it makes a pause, fewer. With none the burst
        is over. The memory is the thread's, and used again for what it receives next.

        Args:
            patient: whether more is to be expected after a longer pause, too.

        Raises:
            StreamBroken: the lane is closed.
        """
        memory, view = scratch.room_for_piece()
        taken = 0
        while True:
            with self.turn:
                layer = self.check_open()
                came = layer.decrypt_into(memory + taken, count - taken)
                taken += came
                self.received += came
                if taken == count or layer._read_end is not None:
                    break
                come = self._fill(layer)
                if come == 0 or (come is None and not self._may_wait()):
                    break
                waiting = None if come else self._poll(select.POLLIN)
            if waiting is not None and not (waiting.poll(WAIT_MS) or (patient and self._wait_on(waiting))):
                break
        return view[:taken]

    def _fill(self, layer: LargePieces) -> int | None:
        """Give OpenSSL what the socket has; how many bytes, 0 at its end, None when there are none now."""
        try:
            # As much as a piece is as records, with a frame's header: the rest of it would be a step of its own.
            came = self._socket.recv_into(scratch.view, SCRATCH_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            # Twisted will find out what it is.
            return 0
        if came:
            layer.records().came_to_scratch(came)
        return int(came)

    def _may_wait(self, waits: int = 1) -> bool:
        self._waits_left -= waits
        return self._waits_left >= 0

    def _wait_on(self, waiting: Any) -> bool:
        return self._may_wait(PATIENCE_WAITS) and bool(waiting.poll(PATIENCE_WAITS * WAIT_MS))

    def _poll(self, event: int) -> Any:
        waiting = select.poll()
        waiting.register(self._socket, event)
        return waiting

    def close(self) -> int:
        """Give the connection back; how many bytes were taken. From now on not a byte more. Harmless twice."""
        with self.turn:
            layer, self._layer = self._layer, None
            if layer is not None:
                layer.lane_closed(self.receives)
            return self.taken


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
        creator: an `IOpenSSLServerConnectionCreator` or, for clients, an `IOpenSSLClientConnectionCreator`; its contexts are prepared
            (`openssl.prepare`).
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
