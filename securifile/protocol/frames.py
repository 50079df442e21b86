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
    """The stream is complete. Empty."""
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


def encode_frame(kind: FrameKind, *body: bytes) -> bytes:
    """The bytes of a frame whose body is the parts given, one after the other."""
    return b"".join((_HEADER.pack(1 + sum(map(len, body)), kind), *body))


class FrameDecoder:
    """Bytes in, whole frames out, however the bytes are split.

    Keeps at most one unfinished frame, and of that only what has arrived. After a `FrameError` it takes nothing more.
    """

    def __init__(self, limits: FrameLimits | None = None) -> None:
        self._limits = limits if limits is not None else FrameLimits()
        self._length_max = 1 + max(map(self._limits.body_bytes_max, FrameKind))
        self._kept = bytearray()
        self._broken: FrameError | None = None

    @property
    def kept_bytes(self) -> int:
        """How many bytes of an unfinished frame are held."""
        return len(self._kept)

    def receive(self, data: bytes) -> tuple[list[Frame], FrameError | None]:
        """Take bytes.

        Returns:
            The frames that are complete now, and what was wrong after them, if anything was: the frames before an
            error are good. The error is repeated for ever.
        """
        frames: list[Frame] = []
        if self._broken is not None:
            return frames, self._broken
        self._kept += data
        taken = 0
        try:
            while (size := self._next_size(taken)) is not None and len(self._kept) - taken >= size:
                with memoryview(self._kept) as view:
                    body = bytes(view[taken + _HEADER.size : taken + size])
                frames.append(Frame(FrameKind(self._kept[taken + _LENGTH_BYTES]), body))
                taken += size
        except FrameError as error:
            self._broken = error
            self._kept.clear()
            return frames, error
        # Once for each call, not for each frame: removing from the front of a long buffer is what makes decoders quadratic.
        del self._kept[:taken]
        return frames, None

    def _next_size(self, start: int) -> int | None:
        """Bytes of the frame at `start`, header included; None while its header is incomplete."""
        available = len(self._kept) - start
        if available and self._kept[start]:
            raise FrameError("this is not the protocol between SecuriFile servers")
        if available < _LENGTH_BYTES:
            return None
        length = int.from_bytes(self._kept[start : start + _LENGTH_BYTES], "big")
        if not 1 <= length <= self._length_max:
            raise FrameError(f"a frame of {length} bytes; allowed are 1 to {self._length_max}")
        if available < _HEADER.size:
            return None
        try:
            kind = FrameKind(self._kept[start + _LENGTH_BYTES])
        except ValueError:
            raise FrameError(f"a frame of unknown kind {self._kept[start + _LENGTH_BYTES]}") from None
        if length - 1 > self._limits.body_bytes_max(kind):
            raise FrameError(f"a {kind.name} frame of {length - 1} bytes; allowed are {self._limits.body_bytes_max(kind)}")
        return _LENGTH_BYTES + length
