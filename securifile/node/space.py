"""Where there is room for blobs: measured on this node with each round of heartbeats, and told by the others with theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.logger import Logger

from securifile.model.entries import Space


class Spaces:
    """The space of this node and of the others."""

    _log = Logger()

    def __init__(self, measure: Callable[[], Deferred[Any]]) -> None:
        """Args:
        measure: the `Space` of this node's disk.
        """
        self._measure = measure
        self._measuring: Deferred[None] = succeed(None)
        self._available: dict[str, int] = {}
        self.own = Space(used_bytes=0, available_bytes=0)
        """As last measured."""

    def stop(self) -> None:
        """Measure no more."""
        self._measuring.cancel()

    def look(self) -> None:
        """Measure this node's disk, unless that is under way."""
        if self._measuring.called:
            self._measuring = self._measure().addCallback(self._measured).addErrback(self._failed)

    def hear(self, name: str, available_bytes: int) -> None:
        """A node says how many bytes are available there."""
        self._available[name] = available_bytes

    def available(self, name: str) -> int:
        """Available bytes of another node, as it last said."""
        return self._available.get(name, 0)

    def _measured(self, space: Space) -> None:
        self.own = space

    def _failed(self, failure: Any) -> None:
        if not failure.check(CancelledError):
            self._log.failure("the disk's space could not be measured", failure)
