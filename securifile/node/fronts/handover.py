"""Open connections on their way from one process of a node to another, over a pair of connected sockets (SCM_RIGHTS, unix(7)).

    node process ── a person's connection, as it was accepted ──> front
    node process <── one end of a tunnel, and who is at its other end ── front

Nobody but the two has an end of the pair, and it has no name in any file system: what comes through it is believed.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from zope.interface import implementer

NOTE_BYTES = 128
"""Of the note that goes with a descriptor: an address with its port. Each is of this length, so that none runs into the next."""
BUFFER_BYTES = 512 * 1024
"""Wanted of the system for what is on its way between two processes: a large piece in one go. It may give less."""
AT_ONCE = 16
"""Connections taken before others get their turn."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets that never wait."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for end in ends:
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
    return ends


def hand(through: socket.socket, descriptor: int, note: str = "") -> bool:
    """Give an open descriptor to the other end, which gets one of its own; whether that could be done without waiting."""
    try:
        sent = socket.send_fds(through, [note.encode("ascii").ljust(NOTE_BYTES)], [descriptor])
    except OSError:
        # Full, because the other process does not take any; or it has gone.
        return False
    return sent == NOTE_BYTES


@implementer(IReadDescriptor)
class Taking:
    """Takes what is handed over, on a reactor."""

    _log = Logger()

    def __init__(
        self, reactor: Any, through: socket.socket, taken: Callable[[int, str], None], missed: Callable[[], None] = lambda: None
    ) -> None:
        """Args:
        taken: called with each descriptor, which it must not keep, and its note.
        missed: called for each that was not taken: this process has no descriptors left, or who is at the other end has gone
            (`taken` raised an `OSError`). It is closed.
        """
        self._reactor = reactor
        self._through = through
        self._taken = taken
        self._missed = missed
        reactor.addReader(self)

    def fileno(self) -> int:
        """See `IReadDescriptor`; -1 once it is closed."""
        return self._through.fileno()

    def logPrefix(self) -> str:
        """See `IReadDescriptor`."""
        return "handover"

    def doRead(self) -> None:
        """See `IReadDescriptor`."""
        for _ in range(AT_ONCE):
            try:
                # A read ends where the next descriptor begins: one note at a time.
                note, descriptors, _flags, _address = socket.recv_fds(self._through, NOTE_BYTES, 1)
            except BlockingIOError:
                return
            except OSError:
                note, descriptors = b"", []
            if not note:
                self.close()
                return
            if not descriptors:
                self._log.error("a connection was lost: this process has too many files and connections open")
                self._missed()
            for descriptor in descriptors:
                try:
                    os.set_blocking(descriptor, False)
                    self._taken(descriptor, note.decode("ascii").strip())
                except OSError as error:
                    self._log.info("a connection was lost: {error}", error=str(error))
                    self._missed()
                finally:
                    os.close(descriptor)

    def connectionLost(self, reason: Any) -> None:
        """See `IReadDescriptor`."""
        self.close()

    def close(self) -> None:
        """Take nothing any more. Harmless twice."""
        self._reactor.removeReader(self)
        self._through.close()
