"""The body of a request, pulled by its route while it arrives."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from securifile.model.errors import StreamBroken
from securifile.model.interfaces import IByteSource


@implementer(IByteSource)
class RequestBody:
    """Bytes between the connection and the route.

    The connection delivers what comes and looks at `unread` to know when to let the client wait.

    Attributes:
        unread: bytes that wait for a `read`.
        received: bytes that have come.
        closed: whether it has said that it wants no more.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        """Make a body.

        Args:
            changed: called after each `read` and `close`: time to send `100 Continue`, or to let the client go on.
        """
        self.unread = 0
        self.received = 0
        self.closed = False
        self.ended = False
        self._changed = changed
        self._pieces: list[bytes] = []
        self._broken: str | None = None
        self._waiting: Deferred[bytes] | None = None

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
        if self.ended or self._broken is not None:
            return
        self._broken = why
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.errback(StreamBroken(why))

    def _forget(self, deferred: Deferred[bytes]) -> None:
        self._waiting = None
