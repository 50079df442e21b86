"""The body of a request, pulled by its route while it arrives."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from securifile.model.errors import StreamBroken
from securifile.model.interfaces import IByteSource
from securifile.protocol.openssl import PIECE_BYTES_MAX
from securifile.protocol.tls_layer import Lane

LANE_BYTES_MIN = 512 * 1024
"""What has to be left of a body for a thread to take it: less has come before one has begun."""
BURST_BYTES_MIN = 256 * 1024
"""A burst that came to less was not worth a thread: the client, or its network, is slow."""
LANE_AGAIN_BYTES = 1024 * 1024
"""So many bytes of a slow client's come by way of the reactor before a thread is tried again."""


class BodyLane:
    """The body that arrives on a connection, for a worker's thread, for one burst. The reactor's thread makes and closes it."""

    def __init__(self, lane: Lane, missing: int, over: Callable[[int], None]) -> None:
        """Args:
        missing: how much of the body is to come.
        over: told by `close` how much came.
        """
        self._lane = lane
        self._missing = missing
        self._over = over
        self._closed = False

    def receive(self, bytes_max: int) -> memoryview:
        """What comes next, at most so much; nothing: the burst is over. The memory is used again for what comes then.

        Raises:
            StreamBroken: the connection was taken back, or is gone.
        """
        piece = self._lane.receive(min(self._missing, PIECE_BYTES_MAX, bytes_max))
        self._missing -= len(piece)
        return piece

    def close(self) -> None:
        """The burst is over. Harmless twice."""
        if not self._closed:
            self._closed = True
            self._lane.close()
            self._over(self._lane.received)


@implementer(IByteSource)
class RequestBody:
    """Bytes between the connection and the route.

    The connection delivers what comes and looks at `unread` to know when to let the client wait.

    Attributes:
        unread: bytes that wait for a `read`.
        received: bytes that have come.
        closed: whether it has said that it wants no more.
    """

    def __init__(self, changed: Callable[[], None], lane: Callable[[], BodyLane | None] = lambda: None) -> None:
        """Make a body.

        Args:
            changed: called after each `read` and `close`: time to send `100 Continue`, or to let the client go on.
            lane: makes a lane for what comes next.
        """
        self.unread = 0
        self.received = 0
        self.closed = False
        self.ended = False
        self._changed = changed
        self._pieces: list[bytes] = []
        self._broken: str | None = None
        self._waiting: Deferred[bytes] | None = None
        self._make_lane = lane
        self._lane: BodyLane | None = None
        self._lane_from = 0
        """When so many bytes have come a lane may be made."""

    def read(self) -> Deferred[bytes]:
        """The next bytes; see `IByteSource`. Fails with `StreamBroken` when the client went away or was cut off."""
        assert self._waiting is None, "only one read at a time"
        if self._pieces:
            data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
            self._pieces, self.unread = [], 0
            self._changed()
            return succeed(data)
        if self._broken is not None:
            return fail(StreamBroken(self._broken))
        if self.ended or self.closed:
            return succeed(b"")
        waiting = self._waiting = Deferred(self._forget)
        self._changed()
        return waiting

    def lane(self) -> BodyLane | None:
        """A way for a worker's thread to take what comes next, until it is closed; None when there is none now."""
        if self._pieces or self._broken is not None or self.ended or self.closed or self.received < self._lane_from:
            return None
        self._lane = self._make_lane()
        return self._lane

    def passed(self, count: int, ended: bool) -> None:
        """So many bytes came by a lane, which is closed; `ended`: with the last."""
        self._lane = None
        self.received += count
        self.ended = ended
        if count < BURST_BYTES_MIN:
            self._lane_from = self.received + LANE_AGAIN_BYTES

    def close(self) -> None:
        """No more is wanted: what is there and what still comes is dropped."""
        if not self.closed:
            self.closed = True
            self._pieces, self.unread = [], 0
            self._changed()

    def deliver(self, pieces: list[bytes], ended: bool) -> None:
        """Take what has come; `ended`: it was the last."""
        self.ended = ended
        length = sum(map(len, pieces))
        self.received += length
        if self.closed:
            pieces, length = [], 0
        self._pieces += pieces
        self.unread += length
        if self._waiting is not None and (self._pieces or ended):
            waiting, self._waiting = self._waiting, None
            data = b"".join(self._pieces)
            self._pieces, self.unread = [], 0
            waiting.callback(data)

    def break_off(self, why: str) -> None:
        """It will never be complete. What has come stays readable."""
        if self._lane is not None:
            self._lane.close()
        if self.ended or self._broken is not None:
            return
        self._broken = why
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.errback(StreamBroken(why))

    def _forget(self, deferred: Deferred[bytes]) -> None:
        self._waiting = None
