r"""An upload's bytes, taken in by a worker's thread: received, hashed, written and sent on, burst by burst, without the reactor.

    source.lane() --receive--> piece --+--> lanes to the replicas
                                       \--> digest, block checksums, this disk (`DiskBlobWriter.pour`)

Where there is no lane (no TLS, transports in memory, a client that is slow), a burst takes nothing, and what comes next is read and
written in the reactor's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from securifile.model.digests import Hasher
from securifile.model.errors import StreamBroken

BURST_BYTES = 4 * 1024 * 1024
"""After so many others get their turn at the threads, if they wait for it: some milliseconds. Bursts end where the blob has a multiple of
it: so the origin and its replicas end theirs together, and no replica's thread waits for what comes only after another upload's turn.
"""
BURST_BYTES_MAX = 32 * 1024 * 1024
"""After so many the reactor looks at the upload, though nobody else waits: to begin a burst costs half a millisecond, on each node."""

_NOTHING = memoryview(b"")


class Burst:
    """What comes out of one lane, given to others on the way. The reactor's thread makes and closes it; another one calls `receive`."""

    def __init__(
        self,
        lane: Any,
        receivers: Sequence[Any],
        hashers: Sequence[Hasher],
        offset: int = 0,
        others_wait: Callable[[], bool] = lambda: False,
    ) -> None:
        """Args:
        lane: where the bytes come from.
        receivers: `OutgoingLane`s that get them, too.
        hashers: that take them, too.
        offset: how much of the blob came before.
        others_wait: whether it should end where it can.
        """
        self._lane = lane
        self._receivers = list(receivers)
        self._hashers = hashers
        self._wanted = BURST_BYTES - offset % BURST_BYTES
        self._others_wait = others_wait
        self.received = 0
        self.broken: list[Any] = []
        """The receivers that were taken back, and may have missed something."""

    def receive(self) -> memoryview:
        """The next piece, once all receivers have room for it; nothing when the burst is over. The memory is used again for the next."""
        if self._is_over() or not all(self._has_room(receiver) for receiver in list(self._receivers)):
            return _NOTHING
        try:
            piece: memoryview = self._lane.receive(self._wanted - self.received)
        except StreamBroken:
            # Who took it back knows why, and tells whoever reads next.
            return _NOTHING
        if piece:
            self.received += len(piece)
            # First to the others: they have work to do with it, too.
            for receiver in list(self._receivers):
                self._give(receiver, piece)
            for hasher in self._hashers:
                hasher.update(piece)
        return piece

    def _is_over(self) -> bool:
        if self.received < self._wanted:
            return False
        if self.received + BURST_BYTES > BURST_BYTES_MAX or self._others_wait():
            return True
        self._wanted += BURST_BYTES
        return False

    def _has_room(self, receiver: Any) -> bool:
        try:
            clear: bool = receiver.is_clear()
        except StreamBroken:
            self._lose(receiver)
            return True
        return clear

    def _give(self, receiver: Any, piece: memoryview) -> None:
        try:
            receiver.take(piece)
        except StreamBroken:
            self._lose(receiver)

    def _lose(self, receiver: Any) -> None:
        self._receivers.remove(receiver)
        self.broken.append(receiver)


async def take_in(source: Any, writer: Any, receivers: Sequence[Any] = (), hashers: Sequence[Hasher] = ()) -> Burst | None:
    """Have a thread take what `source` gives next, for one burst; None when nothing can be taken that way now.

    Args:
        source: an `IByteSource`, perhaps with a `lane`.
        writer: an `IBlobWriter`, perhaps with a `pour`.
        receivers: lanes, or None where there is none; closed in any case.
    """
    opened: list[Any] = list(receivers)
    try:
        if None in opened or not hasattr(source, "lane") or not hasattr(writer, "pour") or (lane := source.lane()) is None:
            return None
        opened.append(lane)
        burst = Burst(lane, receivers, hashers, writer.received, writer.others_wait)
        await writer.pour(burst.receive)
    finally:
        for one in opened:
            if one is not None:
                one.close()
    return burst


async def take_in_bursts(source: Any, writer: Any) -> None:
    """Have threads take what `source` gives, burst after burst, until nothing came by one. Between two of them the reactor waits, and reads
    nothing of what comes: all of it is the next burst's.
    """
    while (burst := await take_in(source, writer)) is not None and burst.received:
        await source.ready()
