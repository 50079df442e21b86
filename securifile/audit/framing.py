"""Syslog messages on a stream: the octet counting of RFC 5425 (4.3).

    SYSLOG-FRAME = MSG-LEN SP SYSLOG-MSG        "5 hello11 hello again"

The length is in decimal, without leading zeros. A stream that breaks this has lost its place and cannot find it again.
"""

from __future__ import annotations

import re

import attrs

from securifile.audit.records import MESSAGE_BYTES_MAX

_LENGTH = re.compile(rb"([1-9][0-9]*) ")


def encode_frame(message: bytes) -> bytes:
    """One message, framed. An empty one cannot be said (RFC 5425: MSG-LEN is not zero)."""
    if not message:
        raise ValueError("a syslog message is not empty")
    return b"%d %s" % (len(message), message)


@attrs.frozen(kw_only=True)
class FramingError:
    """The stream is not RFC 5425, or a message is too long; nothing can be read from it any more."""

    reason: str


class FrameDecoder:
    """Cuts the bytes of one stream into messages, however they were split on their way.

    It holds at most one unfinished message of `limit_bytes` and what was last received.
    """

    def __init__(self, limit_bytes: int = MESSAGE_BYTES_MAX) -> None:
        self._limit_bytes = limit_bytes
        self._digits_max = len(str(limit_bytes))
        self._received = bytearray()
        self._broken = False

    @property
    def clean(self) -> bool:
        """Whether the stream may end here: not in the middle of a message."""
        return not self._received and not self._broken

    def receive(self, data: bytes) -> list[bytes | FramingError]:
        """Take the next bytes; the messages that are now complete. A `FramingError` is the last event there is."""
        events: list[bytes | FramingError] = []
        if self._broken:
            return events
        self._received += data
        at = 0
        while at < len(self._received):
            length = _LENGTH.match(self._received, at, at + self._digits_max + 1)
            if length is None:
                head = bytes(self._received[at : at + self._digits_max + 1])
                if len(head) > self._digits_max or not re.fullmatch(rb"[1-9][0-9]*", head):
                    events.append(self._break("a frame does not begin with the length of a message"))
                break
            size = int(length[1])
            if size > self._limit_bytes:
                events.append(self._break(f"a message of {size} bytes; at most {self._limit_bytes} are taken"))
                break
            end = length.end() + size
            if end > len(self._received):
                break
            events.append(bytes(self._received[length.end() : end]))
            at = end
        # After an error the place is lost: what is left would never be used.
        del self._received[: len(self._received) if self._broken else at]
        return events

    def _break(self, reason: str) -> FramingError:
        self._broken = True
        return FramingError(reason=reason)
