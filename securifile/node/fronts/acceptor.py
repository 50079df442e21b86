"""The listening port of a node with fronts: the node process accepts, and gives each connection away."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from zope.interface import implementer

_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_ACCEPT_AGAIN_S = 0.1
_ACCEPTED_AT_ONCE = 16
BACKLOG = 511


@implementer(IReadDescriptor)
class Acceptor:
    """A listening port whose connections go to fronts, or, when there is none to take one, to a factory here."""

    _log = Logger()

    def __init__(self, reactor: Any, interface: str, port: int, give: Callable[[int], bool], factory: Any) -> None:
        """Listen.

        Raises:
            CannotListenError: the port is taken, or there is no such address.
        """
        self._reactor = reactor
        self._give = give
        self._factory = factory
        family = socket.AF_INET6 if ":" in interface else socket.AF_INET
        try:
            both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
            self._socket = socket.create_server((interface, port), family=family, backlog=BACKLOG, dualstack_ipv6=both)
        except OSError as error:
            raise CannotListenError(interface, port, error) from error
        self._socket.setblocking(False)
        self._timer: Any = None
        reactor.addReader(self)

    def fileno(self) -> int:
        """See `IReadDescriptor`."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """See `IReadDescriptor`."""
        return "HTTPS port"

    def doRead(self) -> None:
        """See `IReadDescriptor`."""
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                accepted, _address = self._socket.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return
            except OSError as error:
                if error.errno not in _NO_DESCRIPTORS:
                    raise
                self._log.error("no connection can be accepted now: {error}", error=str(error))
                self._reactor.removeReader(self)
                self._timer = self._reactor.callLater(_ACCEPT_AGAIN_S, self._go_on)
                return
            with accepted:
                accepted.setblocking(False)
                if not self._give(accepted.fileno()):
                    self._serve(accepted)

    def _serve(self, accepted: socket.socket) -> None:
        try:
            self._reactor.adoptStreamConnection(accepted.fileno(), accepted.family, self._factory)
        except OSError as error:
            # It was gone before it could be asked for its address.
            self._log.debug("a connection has gone: {error}", error=str(error))

    def _go_on(self) -> None:
        self._timer = None
        self._reactor.addReader(self)

    def connectionLost(self, reason: Any) -> None:
        """See `IReadDescriptor`."""
        self.stopListening()

    def stopListening(self) -> None:
        """Accept nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._reactor.removeReader(self)
        self._socket.close()
