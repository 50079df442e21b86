"""The gate: at the first bytes of each request it is decided who answers, this front or the node process.

    TLS ── gate ──┬── HTTP channel of this front        "GET /api/v1/files/…", complete and without more behind it, while it may be able to
                  └── tunnel ── node process            everything else; and what this front finds that it cannot answer

Nothing of a request that is passed on was answered, and all of what the client said goes along: the node process judges it from its first
byte. So a front needs to know no more than the most frequent requests, and to refuse nobody, unless the node process hangs (`hanging.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IAddress, IReactorTime, ISSLTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure

from securifile.http.channel import HttpChannel, HttpFactory
from securifile.http.limits import HttpLimits
from securifile.model.errors import Code, Refusal
from securifile.node.fronts.tunnel import FrontEnd, Patience

OWN = (b"GET /api/v1/files/", b"HEAD /api/v1/files/")
"""How requests begin that a front may answer."""
PARKED_S = 30.0
"""A tunnel that nobody has used for so long is not used again: the node process closes it after 75 s, perhaps just now."""
CANNOT_PASS_ON = Refusal(Code.TOO_MANY_CONNECTIONS, "This server can take no more requests now; try another or later.", retry_after_s=1.0)


def may_answer(data: bytes) -> bool:
    """Whether these bytes are one whole head of a request for a file, with nothing behind it."""
    return data.startswith(OWN) and data.find(b"\r\n\r\n") == len(data) - 4 and not data.startswith(b"/ ", data.find(b" ", 5) - 1)


class Gate(ProtocolWrapper):
    """A person's connection."""

    factory: Gates
    wrappedProtocol: Any
    transport: Any

    def __init__(self, factory: Gates, channel: HttpChannel) -> None:
        super().__init__(factory, channel)
        self._channel: HttpChannel | None = channel
        self._said = b""
        """What the client said since the last answer: of a request that the channel has."""
        self._tunnel: FrontEnd | None = None
        self._rested_at: float | None = None
        """When the tunnel became idle; None while it is used, or there is none."""
        self._patience: Patience | None = None
        self._given_bytes = 0
        self._over = False
        self._closing: Any = None

    # --- the client ---

    def dataReceived(self, data: bytes) -> None:
        """The client speaks."""
        if self._over:
            return
        if self._channel is not None and self._said:
            # Sent before the answer to the last: it waits, and the client with it when it is much.
            self._said += data
            if len(self._said) > self.factory.http.limits.held_bytes_max:
                self.transport.pauseProducing()
            return
        self._begin(data)

    def _begin(self, data: bytes) -> None:
        """The first bytes of a request, or, with a tunnel in use, any."""
        if self._tunnel is not None and self._channel is None and self._rested_at is None:
            self._tunnel.write(data)
        elif may_answer(data):
            if self._channel is None:
                self._open_channel()
            self._said = data
            assert self._channel is not None
            self._channel.dataReceived(data)
        else:
            self._pass_on(data)

    def _open_channel(self) -> None:
        """After requests that were passed on, one that need not be."""
        self._leave_tunnel()
        self._channel = self.wrappedProtocol = self.factory.http.buildProtocol(None)
        self._channel.makeConnection(self)  # type: ignore[no-untyped-call]

    def channel_rests(self) -> None:
        """The channel waits for its next request."""
        said, self._said = self._said, b""
        later = said[said.find(b"\r\n\r\n") + 4 :]
        if later:
            self.factory.clock.callLater(0, self._go_on, later)

    def _go_on(self, later: bytes) -> None:
        if not self._over:
            self.transport.resumeProducing()
            self._begin(later)

    def pass_on(self) -> None:
        """The request that the channel has is for the node process, which gets it from its first byte."""
        said, self._said = self._said, b""
        if not self._over:
            self._pass_on(said)

    def _pass_on(self, data: bytes) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            # For the channel it is as if the client had gone.
            self.wrappedProtocol = _nobody
            self.transport.unregisterProducer()
            channel.connectionLost(Failure(ConnectionDone()))
        refusal = self.factory.refusal()
        if refusal is not None:
            self._turn_away(refusal, silent=data.startswith(b"HEAD "))
            return
        self.factory.passed_on()
        tunnel = self._tunnel
        if tunnel is not None and self._rested_at is not None and self.factory.clock.seconds() - self._rested_at > PARKED_S:
            self._drop_tunnel()
            tunnel = None
        if tunnel is None:
            tunnel = self._tunnel = FrontEnd(self)
            if not self.factory.open_tunnel(tunnel, self.transport.getPeer()):
                self._tunnel = None
                self._turn_away(CANNOT_PASS_ON, silent=data.startswith(b"HEAD "))
                return
        if self._patience is None:
            self._patience = Patience(self.factory.clock, self._patience_s, tunnel.transport, self.abort)
            self.transport.registerProducer(self._patience, True)
            tunnel.transport.registerProducer(self.transport, True)
            self.transport.resumeProducing()
        self._rested_at = None
        self.factory.resting.pop(self, None)
        tunnel.write(data)

    def _turn_away(self, refusal: Refusal, silent: bool) -> None:
        """Answer with a refusal, and end; what the client still says is dropped."""
        self._leave_tunnel()
        self._over = True
        channel: HttpChannel = self.factory.http.buildProtocol(None)
        self.wrappedProtocol = channel
        channel.makeConnection(self)  # type: ignore[no-untyped-call]
        channel.refuse(refusal, silent)

    def _patience_s(self) -> float:
        limits = self.factory.http.limits
        return limits.send_stall_s + self._given_bytes / limits.download_rate_min

    # --- the tunnel ---

    def tunnel_says(self, data: bytes) -> None:
        """Bytes for the client."""
        if self._over or self._patience is None:
            return
        if not self._patience.waits:
            self._given_bytes = 0
        self._given_bytes += len(data)
        self.transport.write(data)

    def tunnel_rests(self, tunnel: FrontEnd) -> None:
        """The node process waits for the next request, and so does this gate."""
        if tunnel is self._tunnel and self._channel is None and not self._over:
            self._rested_at = self.factory.clock.seconds()
            self.factory.resting[self] = None

    def tunnel_ends(self, tunnel: FrontEnd) -> None:
        """The node process has said all; so the client's connection ends, unless the tunnel was idle."""
        if tunnel is not self._tunnel or self._over:
            return
        if self._channel is not None:
            self._drop_tunnel()
            return
        patience_s = self.factory.http.limits.linger_s
        if self._patience is not None and self._patience.waits:
            patience_s += self._patience_s()
        self._leave_tunnel()
        self._end(patience_s)

    def tunnel_lost(self, tunnel: FrontEnd) -> None:
        """The node process cut the answer off, or has gone."""
        if tunnel is not self._tunnel:
            return
        if self._channel is not None:
            self._tunnel = None
        else:
            self.abort()

    def _leave_tunnel(self) -> None:
        """Nothing comes of the tunnel now."""
        if self._patience is not None and self._tunnel is not None:
            self._patience.stop()
            self._patience = None
            self.transport.unregisterProducer()
            self._tunnel.transport.unregisterProducer()
        self.factory.resting.pop(self, None)

    def _drop_tunnel(self) -> None:
        self._leave_tunnel()
        tunnel, self._tunnel = self._tunnel, None
        self._rested_at = None
        if tunnel is not None:
            tunnel.transport.loseConnection()

    @property
    def waits(self) -> bool:
        """Whether the node process has a request of the client's, and has not answered all of it."""
        return self._tunnel is not None and self._channel is None and self._rested_at is None and not self._over

    # --- the end ---

    def give_way(self) -> None:
        """End between two requests."""
        if not self._over:
            self._leave_tunnel()
            self._end(self.factory.http.limits.linger_s)

    def _end(self, patience_s: float) -> None:
        """Close when the client has what was said; what it still says is dropped."""
        self._over = True
        self._closing = self.factory.clock.callLater(patience_s, self.abort)
        self.transport.resumeProducing()
        if ISSLTransport(self.transport, None) is not None:
            # This sends close_notify, and goes on reading (and dropping) until the client's own.
            self.transport.loseConnection()
        else:
            self.transport.loseWriteConnection()

    def abort(self) -> None:
        """Close at once, so that the client cannot take what it got for the whole."""
        self._over = True
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The client has gone, or we closed."""
        self._over = True
        if self._closing is not None and self._closing.active():
            self._closing.cancel()
        self._drop_tunnel()
        super().connectionLost(reason)  # type: ignore[no-untyped-call]
        self.factory.left()


class _Nobody(Protocol):
    """What a gate wraps while its client speaks with the node process."""


_nobody = _Nobody()


class Gates(WrappingFactory[Gate]):
    """Makes the gates of one front."""

    noisy = False

    def __init__(
        self,
        *,
        clock: IReactorTime,
        http: GateHttpFactory,
        open_tunnel: Callable[[FrontEnd, IAddress], bool],
        passed_on: Callable[[], None],
        ended: Callable[[], None],
        refusal: Callable[[], Refusal | None],
    ) -> None:
        """Args:
        open_tunnel: connects an end with the node process; False when that cannot be.
        passed_on: called with each request that is.
        ended: called with each connection that was closed.
        refusal: what is said instead of passing a request on, while the node process is not there.
        """
        super().__init__(http)  # type: ignore[no-untyped-call]
        http.gates = self
        self.clock = clock
        self.http = http
        self.open_tunnel = open_tunnel
        self.passed_on = passed_on
        self.resting: dict[Gate, None] = {}
        """Those whose tunnel waits for its next request, in the order in which they began to."""
        self.refusal = refusal
        self._ended = ended
        self._emptied: list[Deferred[None]] = []

    def buildProtocol(self, addr: IAddress | None) -> Gate:
        """A gate for a new connection."""
        return Gate(self, self.http.buildProtocol(addr))

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self.protocols)

    def left(self) -> None:
        """A connection is closed."""
        self._ended()
        if not self.protocols:
            emptied, self._emptied = self._emptied, []
            for deferred in emptied:
                deferred.callback(None)

    def give_up(self) -> int:
        """Close the connections whose requests the node process has, as nobody will answer them soon; how many."""
        waiting = [gate for gate in self.protocols if gate.waits]
        for gate in waiting:
            gate.abort()
        return len(waiting)

    def shut_down(self, grace_s: float) -> Deferred[None]:
        """Let answers come to their end, here and through tunnels; fires when all connections are closed, the rest after `grace_s`."""
        done: Deferred[None] = Deferred()
        if not self.protocols:
            done.callback(None)
            return done
        self._emptied.append(done)
        end = self.clock.callLater(grace_s, self._cut_off)
        done.addCallback(lambda _: end.cancel() if end.active() else None)
        self.http.shut_down(grace_s)
        return done

    def _cut_off(self) -> None:
        for gate in list(self.protocols):
            gate.abort()


class GateHttpFactory(HttpFactory):
    """HTTP behind gates: its limit of connections counts all of them."""

    gates: Gates

    @classmethod
    def of(cls, resource: Any, clock: IReactorTime, limits: HttpLimits, wall: Callable[[], float]) -> GateHttpFactory:
        """See `http_factory`."""
        return cls(resource, clock, limits, None, wall)

    @property
    def connections(self) -> int:
        """How many there are, those with a tunnel too."""
        return self.gates.connections

    def make_room(self, channel: HttpChannel) -> None:
        """The gate that rests for longest gives way, or an idle channel."""
        gate = next(iter(self.gates.resting), None)
        if gate is not None:
            gate.give_way()
        else:
            super().make_room(channel)

    def rests(self, channel: HttpChannel) -> None:
        """It waits for its next request."""
        super().rests(channel)
        gate: Any = channel.transport
        gate.channel_rests()
