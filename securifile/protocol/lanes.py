"""Streams between servers in a worker's thread, for a burst: what a bulk connection receives or sends next, without the reactor.

They are lanes (`tls_layer.Lane`) that know where frames begin and end. What is in a stream's frames goes by as it is; what else
arrives ends the burst, and is for the reactor's thread.
"""

from __future__ import annotations

from securifile.protocol.connection import Event
from securifile.protocol.frames import DATA_BYTES_MAX
from securifile.protocol.openssl import PIECE_BYTES_MAX
from securifile.protocol.tls_layer import Lane
from securifile.protocol.wire import Wire

NOTHING = memoryview(b"")


class IncomingLane:
    """The stream that arrives on a wire, for one burst. The reactor's thread makes and closes it."""

    def __init__(self, wire: Wire, lane: Lane) -> None:
        self._wire = wire
        self._lane = lane
        self._events: list[Event] = []
        self._closed = False
        self.received = 0
        """Bytes of the stream that it gave."""

    def receive(self, bytes_max: int) -> memoryview:
        """What comes next, at most so much and a frame's content; nothing: the burst is over. The memory is used again for what comes then.

        Raises:
            StreamBroken: the connection was taken back, or is gone.
        """
        connection = self._wire.connection
        while not self._events:
            in_data = connection.data_missing
            # A sender that has begun a burst goes on with it; how long it is until its next one nobody knows.
            piece = self._lane.receive(min(connection.wanted_bytes, PIECE_BYTES_MAX, bytes_max), patient=self.received > 0)
            if not piece:
                break
            with self._lane.turn:
                # Who takes the connection back says something on it, which is another step of the same conversation.
                self._lane.check_open()
                if in_data:
                    connection.data_passed(len(piece))
                    self.received += len(piece)
                    return piece
                self._events = connection.receive(bytes(piece))
        return NOTHING

    def close(self) -> None:
        """The burst is over: the reactor goes on with what came behind it. Harmless twice."""
        if not self._closed:
            self._closed = True
            self._lane.close()
            self._wire.lane_closed(self._lane, self._events)


class OutgoingLane:
    """The stream that goes out on a wire, for one burst. The reactor's thread makes and closes it."""

    def __init__(self, wire: Wire, lane: Lane) -> None:
        self._wire = wire
        self._lane = lane
        self._closed = False
        self.taken = 0
        """Bytes of the stream that it took."""

    def take(self, piece: bytes | memoryview) -> bool:
        """Send a piece in frames; whether more is welcome now. Never waits.

        Raises:
            StreamBroken: the connection was taken back, or is gone; nothing of the piece was sent.
        """
        with self._lane.turn:
            self._lane.check_open()
            self.taken += len(piece)
            for start in range(0, len(piece), DATA_BYTES_MAX):
                part = piece if len(piece) <= DATA_BYTES_MAX else piece[start : start + DATA_BYTES_MAX]
                wants_more = self._lane.take(self._wire.connection.data_header(len(part)), part)
            return wants_more

    def take_patiently(self, piece: bytes | memoryview) -> bool:
        """As `take`, having waited a moment for room for more if need be."""
        return self.take(piece) or self.is_clear()

    def is_clear(self) -> bool:
        """Whether more is welcome, having waited a moment for that if need be. Raises `StreamBroken`."""
        return self._lane.is_clear()

    def close(self) -> None:
        """The burst is over. Harmless twice."""
        if not self._closed:
            self._closed = True
            self._lane.close()
            self._wire.lane_closed(self._lane, [])
