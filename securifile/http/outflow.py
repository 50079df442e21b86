"""What a connection sends: no faster than the client takes it, and not to one that takes nothing for too long."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from zope.interface import implementer

from securifile.http.limits import HttpLimits
from securifile.model.errors import StreamBroken


@implementer(IPushProducer)
class Outflow:
    """The way to the transport, which says when it is full and when it is empty.

    Attributes:
        is_full: the transport wants no more for now.
    """

    def __init__(self, clock: IReactorTime, limits: HttpLimits, changed: Callable[[], None], stalled: Callable[[], None]) -> None:
        """Args:
        changed: told when the transport is full, and when it is empty again.
        stalled: told when the client has taken nothing for too long.
        """
        self._clock = clock
        self._limits = limits
        self._changed = changed
        self._stalled = stalled
        self._transport: Any = None
        self._lost = False
        self._ending = False
        self._waiting: list[Deferred[None]] = []
        self._timer: IDelayedCall | None = None
        self._given_bytes = 0
        """To the transport, since it last said that it is empty."""
        self.is_full = False

    def begin(self, transport: Any) -> None:
        """The connection was made."""
        self._transport = transport
        transport.registerProducer(self, True)

    def send(self, pieces: Sequence[bytes], length: int) -> None:
        """Give bytes to the transport.

        Args:
            length: how many of them count for the time that the client is given: those of content.
        """
        if self._lost:
            return
        self._given_bytes += length
        if len(pieces) == 1:
            self._transport.write(pieces[0])
        else:
            self._transport.writeSequence(pieces)

    def lane(self) -> Any:
        """See `ResponseSink.lane`."""
        make = getattr(self._transport, "lane", None)
        return None if make is None or self._lost or self._ending or self.is_full else make()

    def count(self, length: int) -> None:
        """So many bytes were given to the transport by another way than `send`."""
        self._given_bytes += length

    def room(self) -> Deferred[None]:
        """Fires when the transport wants more; fails with `StreamBroken` when the client goes."""
        if not self.is_full:
            return succeed(None)
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        return waiting

    def end(self) -> float:
        """Nothing more will be sent; how many seconds more than usual the client may take to read what was."""
        self._ending = True
        self._stop_timer()
        self._transport.unregisterProducer()
        return self._given_bytes / self._limits.download_rate_min if self.is_full else 0.0

    def lost(self) -> None:
        """The connection is gone, and whoever waits for room is told so."""
        self._lost = True
        self._stop_timer()
        waiting, self._waiting = self._waiting, []
        for deferred in waiting:
            if not deferred.called:
                deferred.errback(StreamBroken("The client has gone."))

    # --- what the transport says ---

    def pauseProducing(self) -> None:
        """The transport is full."""
        if self.is_full:
            return
        self.is_full = True
        patience_s = self._limits.send_stall_s + self._given_bytes / self._limits.download_rate_min
        self._timer = self._clock.callLater(patience_s, self._timer_over)
        self._changed()

    def resumeProducing(self) -> None:
        """The transport is empty."""
        self.is_full = False
        self._given_bytes = 0
        self._stop_timer()
        waiting, self._waiting = self._waiting, []
        for deferred in waiting:
            if not deferred.called:
                deferred.callback(None)
        self._changed()

    def stopProducing(self) -> None:
        """The transport is going; the channel's `connectionLost` follows."""

    def _timer_over(self) -> None:
        self._timer = None
        self._stalled()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
