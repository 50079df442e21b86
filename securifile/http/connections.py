"""The connections of one port, and what they share: which there are, which are idle, and who gives way when there are too many."""

from __future__ import annotations

from collections.abc import Callable
from email.utils import formatdate
from typing import Any, Generic, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from securifile.http.limits import Access, HttpLimits


class Connection(Protocol):
    """One of them."""

    def end_soon(self) -> None:
        """End after the answer at hand; at once when there is none."""

    def turn_away(self) -> None:
        """There are too many connections, and none of them is idle."""

    def abort(self, why: str) -> None:
        """Close at once."""


AConnection = TypeVar("AConnection", bound=Connection)


class Connections(Generic[AConnection]):
    """Serves a resource on many connections.

    Attributes:
        limits: new ones count for connections made from then on; `upload_rate_min` at once.
    """

    def __init__(
        self,
        resource: Any,
        clock: IReactorTime,
        limits: HttpLimits,
        log_access: Callable[[Access], None] | None,
        wall: Callable[[], float] | None,
    ) -> None:
        self.resource = resource
        self.clock = clock
        self.limits = limits
        self.log_access = log_access
        self.wall = wall
        self.stopping = False
        self._spelled = -1, b""
        self._channels: dict[AConnection, None] = {}
        self._idle: dict[AConnection, None] = {}
        """In the order in which they became so."""
        self._emptied: list[Deferred[None]] = []

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._channels)

    def date(self, second: int) -> bytes:
        """That second since 1970 as HTTP writes it; spelled once a second, not for each answer."""
        if second != self._spelled[0]:
            self._spelled = second, formatdate(second, usegmt=True).encode("ascii")
        return self._spelled[1]

    def shut_down(self, grace_s: float) -> Deferred[None]:
        """Close what is idle, let answers under way come to their end, and cut off after `grace_s`. Fires when all are closed."""
        self.stopping = True
        done: Deferred[None] = Deferred()
        if not self._channels:
            done.callback(None)
            return done
        self._emptied.append(done)
        end = self.clock.callLater(grace_s, self._cut_off)
        done.addCallback(lambda _: end.cancel() if end.active() else None)
        for channel in list(self._channels):
            channel.end_soon()
        return done

    def _cut_off(self) -> None:
        for channel in list(self._channels):
            channel.abort("This server is being stopped.")

    # --- what channels say ---

    def arrived(self, channel: AConnection) -> None:
        """A connection was made; the longest idle one gives way when there are too many."""
        self._channels[channel] = None
        if self.stopping:
            channel.end_soon()
        elif self.connections > self.limits.connections_max:
            self.make_room(channel)

    def make_room(self, channel: AConnection) -> None:
        """There is one connection too many, since `channel` came."""
        idle = next(iter(self._idle), None)
        if idle is not None:
            idle.end_soon()
        else:
            channel.turn_away()

    def rests(self, channel: AConnection) -> None:
        """It waits for its next request."""
        self._idle[channel] = None

    def is_idle(self, channel: AConnection) -> bool:
        """Whether it waits for its next request."""
        return channel in self._idle

    def begins(self, channel: AConnection) -> bool:
        """A request's first byte has come; whether the channel was waiting between requests."""
        return channel in self._idle and self._idle.pop(channel) is None

    def leaves(self, channel: AConnection) -> None:
        """It takes no request any more."""
        self._idle.pop(channel, None)

    def left(self, channel: AConnection) -> None:
        """The connection is closed."""
        self._idle.pop(channel, None)
        self._channels.pop(channel, None)
        if not self._channels:
            emptied, self._emptied = self._emptied, []
            for deferred in emptied:
                deferred.callback(None)
