"""The stream of a blob on a bulk connection, seen from one end: as something to read from, or to write to.

Who reads may let the other end wait: while more than `UNREAD_BYTES_MAX` is not consumed the socket is not read. Who writes waits while the
transport's buffer is full. Both give lanes (`lanes`), by which a worker's thread does it for a while.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from zope.interface import implementer

from securifile.model.errors import StreamBroken
from securifile.model.interfaces import IByteSource
from securifile.protocol.frames import DATA_BYTES_MAX
from securifile.protocol.lanes import IncomingLane, OutgoingLane
from securifile.protocol.messages import Message
from securifile.protocol.wire import Wire

UNREAD_BYTES_MAX = 1024 * 1024
"""Received and not consumed, before the socket is not read any more: four frames."""


class _Watch:
    """Breaks what is waited for when it takes too long."""

    def __init__(self, clock: IReactorTime, stall_s: float, broken: Callable[[], None]) -> None:
        self._clock = clock
        self._stall_s = stall_s
        self._broken = broken
        self._call: IDelayedCall | None = None

    def begin(self) -> None:
        """Something is waited for from now on."""
        self.end()
        self._call = self._clock.callLater(self._stall_s, self._broken)

    def end(self) -> None:
        """It has come."""
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call = None


@implementer(IByteSource)
class Incoming:
    """The stream that arrives on a wire, as something to read from."""

    def __init__(self, wire: Wire, stall_s: float, on_close: Callable[[], None]) -> None:
        self._wire = wire
        self._on_close = on_close
        self._chunks: deque[bytes] = deque()
        self._unread_bytes = 0
        self._held = False
        self._ended = False
        self._closed = False
        self._problem: Exception | None = None
        self.sent: Message | None = None
        """What was said at the end."""
        self._waiting: Deferred[bytes] | None = None
        self._watching: Deferred[None] | None = None
        self._watch = _Watch(wire.clock, stall_s, self._stalled)
        self._stall_s = stall_s

    @property
    def unread_bytes(self) -> int:
        """What is held for the reader."""
        return self._unread_bytes

    def read(self) -> Deferred[bytes]:
        """The next chunk."""
        assert self._waiting is None, "one read at a time"
        if self._closed:
            return fail(StreamBroken("the stream was closed by its reader"))
        if self._chunks:
            data = self._chunks.popleft()
            self._unread_bytes -= len(data)
            self._release()
            return succeed(data)
        if self._problem is not None:
            return fail(self._problem)
        if self._ended:
            return succeed(b"")
        self._waiting = Deferred(self._forget)
        self._watch.begin()
        return self._waiting

    def lane(self) -> IncomingLane | None:
        """A way for a worker's thread to receive what comes next, until it is closed; None when there is none now."""
        if self._chunks or self._closed or self._ended or self._problem is not None or self._waiting is not None:
            return None
        lane = self._wire.lane(receives=True)
        return None if lane is None else IncomingLane(self._wire, lane)

    def ready(self) -> Deferred[None]:
        """Fires when more has come, or the stream has ended or is broken: at once, or when what has come can be received by a lane."""
        if self._chunks or self._closed or self._ended or self._problem is not None or not self._wire.watch(self._tell):
            return succeed(None)
        self._watching = Deferred(self._forget)
        self._watch.begin()
        return self._watching

    def close(self) -> None:
        """No more is wanted."""
        if self._closed:
            return
        self._closed = True
        self._chunks.clear()
        self._unread_bytes = 0
        self._tell()
        self._watch.end()
        self._release()
        if not self._ended and self._problem is None:
            self._on_close()

    def feed(self, data: bytes) -> None:
        """Bytes have arrived."""
        if self._closed:
            return
        if self._waiting is not None:
            self._fire().callback(data)
            return
        self._chunks.append(data)
        self._unread_bytes += len(data)
        self._tell()
        if self._unread_bytes > UNREAD_BYTES_MAX and not self._held:
            self._held = True
            self._wire.hold()

    def finish(self, sent: Message | None) -> None:
        """The stream is complete; what was said of it."""
        self._ended, self.sent = True, sent
        if self._held:
            # The connection is free for the next transfer, even while this one is still being read.
            self._held = False
            self._wire.unhold()
        self._tell()
        if self._waiting is not None:
            self._fire().callback(b"")

    def fail(self, problem: Exception) -> None:
        """The stream is broken; what has arrived can still be read."""
        if self._ended or self._problem is not None:
            return
        self._problem = problem
        self._tell()
        if self._waiting is not None:
            self._fire().errback(problem)

    def _tell(self) -> None:
        if self._watching is not None:
            watching, self._watching = self._watching, None
            self._watch.end()
            watching.callback(None)

    def _fire(self) -> Deferred[bytes]:
        waiting, self._waiting = self._waiting, None
        assert waiting is not None
        self._watch.end()
        return waiting

    def _forget(self, waiting: Deferred[Any]) -> None:
        self._waiting = self._watching = None
        self._watch.end()

    def _release(self) -> None:
        if self._held and self._unread_bytes <= UNREAD_BYTES_MAX - DATA_BYTES_MAX:
            self._held = False
            self._wire.unhold()

    def _stalled(self) -> None:
        self.fail(StreamBroken(f"{self._wire.identity} sent nothing for {self._stall_s:g} s"))
        self._wire.cut()


class Outgoing:
    """The stream that this side sends on a wire: cut into frames, waiting while the transport is full."""

    def __init__(self, wire: Wire, stall_s: float) -> None:
        self._wire = wire
        self._ready = True
        self._problem: Exception | None = None
        self._waiting: Deferred[None] | None = None
        self._watch = _Watch(wire.clock, stall_s, self._stalled)
        self._stall_s = stall_s

    def write(self, data: bytes) -> Deferred[None]:
        """Send; fires when the transport takes more."""
        assert self._waiting is None, "one write at a time"
        if self._problem is not None:
            return fail(self._problem)
        if not self._wire.usable:
            return fail(StreamBroken(f"the connection to {self._wire.identity} is closed"))
        for start in range(0, len(data), DATA_BYTES_MAX):
            piece = data if len(data) <= DATA_BYTES_MAX else data[start : start + DATA_BYTES_MAX]
            self._wire.send(self._wire.connection.data(piece))
        if self._ready:
            return succeed(None)
        self._waiting = Deferred(self._forget)
        self._watch.begin()
        return self._waiting

    def lane(self) -> OutgoingLane | None:
        """A way for a worker's thread to send what comes next, until it is closed; None when there is none now."""
        if self._problem is not None or not self._ready or self._waiting is not None:
            return None
        lane = self._wire.lane(receives=False)
        return None if lane is None else OutgoingLane(self._wire, lane)

    def writable(self, ready: bool) -> None:
        """The transport is full, or has drained."""
        self._ready = ready
        if ready and self._waiting is not None:
            self._fire().callback(None)

    def fail(self, problem: Exception) -> None:
        """Nothing more can be written."""
        self._problem = self._problem or problem
        if self._waiting is not None:
            self._fire().errback(self._problem)

    def _fire(self) -> Deferred[None]:
        waiting, self._waiting = self._waiting, None
        assert waiting is not None
        self._watch.end()
        return waiting

    def _forget(self, waiting: Deferred[None]) -> None:
        self._waiting = None
        self._watch.end()

    def _stalled(self) -> None:
        self.fail(StreamBroken(f"{self._wire.identity} took nothing for {self._stall_s:g} s"))
        self._wire.cut()
