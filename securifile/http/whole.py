"""Bytes that are here already, as a source."""

from __future__ import annotations

from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from securifile.model.interfaces import IByteSource


@implementer(IByteSource)
class Whole:
    """All of it at the first reading, then nothing."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self) -> Deferred[bytes]:
        """See `IByteSource`."""
        data, self._data = self._data, b""
        return succeed(data)

    def close(self) -> None:
        """See `IByteSource`."""
