"""Frames: how messages and streams are cut out of a stream of bytes.

    +--------------+-----------+------------------+
    | length (u32) | kind (u8) | body             |      length counts kind and body; big-endian
    +--------------+-----------+------------------+

The first byte of a frame is always zero, because no frame is near 16 MiB long; a TLS record starts with 0x14..0x17 and
HTTP with a letter. So one byte tells who is talking (`sniff`).

A length is judged before anything is kept for it: a hostile one costs its sender the connection and us five bytes.
"""

from __future__ import annotations

import struct
from enum import IntEnum

import attrs

_HEADER = struct.Struct(">IB")
_LENGTH_BYTES = 4

CONTROL_BYTES_MAX = 4 * 1024 * 1024
"""Body of a frame that carries a message: room for a `Changes` or `SnapshotPart` with many thousand facts."""
DATA_BYTES_MAX = 256 * 1024
"""Body of a data frame: measured as the best size between nodes; larger ones delay and are slower."""
HELLO_BYTES_MAX = 4 * 1024
"""Body of the first frame, which is read from strangers."""


class FrameKind(IntEnum):
    """What a frame carries."""

    HELLO = 1
    """Magic and msgpack: who I am. The first frame in each direction, and only that."""
    REQUEST = 2
    """Request id (u32) and message."""
    ANSWER = 3
    """Id of the request that is answered (u32) and message."""
    CANCEL = 4
    """Id of a request of the sender's (u32): the answer is not wanted any more."""
    DATA = 5
    """Bytes of a stream, one at least."""
    END = 6
    """The stream is complete. Empty, or the message that says what was sent."""
    ABORT = 7
    """The stream will not be completed; the message `Refused` says why."""
    GOODBYE = 8
    """The sender closes the connection; the message `Refused` says why."""


class FrameError(Exception):
    """These bytes are not frames of this protocol, or break its limits."""


@attrs.frozen
class Frame:
    """One frame."""

    kind: FrameKind
    body: bytes = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class FrameLimits:
    """How long the body of a frame may be."""

    hello_bytes_max: int = HELLO_BYTES_MAX
    control_bytes_max: int = CONTROL_BYTES_MAX
    data_bytes_max: int = DATA_BYTES_MAX

    def body_bytes_max(self, kind: FrameKind) -> int:
        """The longest body of a frame of this kind."""
        if kind is FrameKind.DATA:
            return self.data_bytes_max
        if kind in (FrameKind.REQUEST, FrameKind.ANSWER):
            return self.control_bytes_max
        return self.hello_bytes_max


def data_header(length: int) -> bytes:
    """What comes before so many bytes of data."""
    return _HEADER.pack(1 + length, FrameKind.DATA)


def encode_frame(kind: FrameKind, *body: bytes) -> bytes:
    """The bytes of a frame whose body is the parts given, one after the other."""
    return b"".join((_HEADER.pack(1 + sum(map(len, body)), kind), *body))


class FrameDecoder:
    """Bytes in, frames out, however the bytes are split. A data frame comes out in the parts in which it comes in: a stream does not
    wait for its frames to be complete, and nothing of it is copied twice.

    Keeps at most one unfinished frame that is no data, and of that only what has arrived. After a `FrameError` it takes nothing more.
    """

    def __init__(self, limits: FrameLimits | None = None) -> None:
        self._limits = limits if limits is not None else FrameLimits()
        self._length_max = 1 + max(map(self._limits.body_bytes_max, FrameKind))
        self._kept = bytearray()
        """Of a frame: its header, and its body unless that is data."""
        self._size = _HEADER.size
        """How long `_kept` becomes: a header, and then the whole frame."""
        self._broken: FrameError | None = None
        self.data_missing = 0
        """How much is still to come of a data frame that has begun."""

    @property
    def kept_bytes(self) -> int:
        """How many bytes of an unfinished frame are held."""
        return len(self._kept)

    @property
    def wanted_bytes(self) -> int:
        """How many bytes would complete a header, or the frame that it announced."""
        return self.data_missing or self._size - len(self._kept)

    def receive(self, data: bytes) -> tuple[list[Frame], FrameError | None]:
        """Take bytes.

        Returns:
            The frames, and parts of data frames, that are complete now, and what was wrong after them, if anything was: what
            came before an error is good. The error is repeated for ever.
        """
        frames: list[Frame] = []
        if self._broken is not None:
            return frames, self._broken
        at = 0
        try:
            while at < len(data):
                wanted = self.wanted_bytes
                part = data if wanted >= len(data) and not at else data[at : at + wanted]
                at += len(part)
                if self.data_missing:
                    self.data_missing -= len(part)
                    frames.append(Frame(FrameKind.DATA, part))
                else:
                    self._kept += part
                    self._look(frames)
        except FrameError as error:
            self._broken = error
            self._kept.clear()
            return frames, error
        return frames, None

    def data_passed(self, count: int) -> None:
        """So many bytes of the data frame at hand were taken by another way than `receive`."""
        assert count <= self.data_missing, "more than the frame has"
        self.data_missing -= count

    def _look(self, frames: list[Frame]) -> None:
        """Judge what is kept of a frame; add it to `frames` when it is whole."""
        kept = self._kept
        if len(kept) <= _HEADER.size:
            kind = self._judge()
            if kind is None:
                return
            self._size = _LENGTH_BYTES + int.from_bytes(kept[:_LENGTH_BYTES], "big")
            if kind is FrameKind.DATA and self._size > _HEADER.size:
                self.data_missing = self._size - _HEADER.size
                kept.clear()
                self._size = _HEADER.size
                return
        if len(kept) == self._size:
            with memoryview(kept) as view:
                frames.append(Frame(FrameKind(kept[_LENGTH_BYTES]), bytes(view[_HEADER.size :])))
            kept.clear()
            self._size = _HEADER.size

    def _judge(self) -> FrameKind | None:
        """What the frame is whose header is kept; None while that is incomplete. Raises `FrameError` as soon as it is a wrong one."""
        kept = self._kept
        if kept[0]:
            raise FrameError("this is not the protocol between SecuriFile servers")
        if len(kept) < _LENGTH_BYTES:
            return None
        length = int.from_bytes(kept[:_LENGTH_BYTES], "big")
        if not 1 <= length <= self._length_max:
            raise FrameError(f"a frame of {length} bytes; allowed are 1 to {self._length_max}")
        if len(kept) < _HEADER.size:
            return None
        try:
            kind = FrameKind(kept[_LENGTH_BYTES])
        except ValueError:
            raise FrameError(f"a frame of unknown kind {kept[_LENGTH_BYTES]}") from None
        if length - 1 > self._limits.body_bytes_max(kind):
            raise FrameError(f"a {kind.name} frame of {length - 1} bytes; allowed are {self._limits.body_bytes_max(kind)}")
        return kind
