"""A node's control connections: one goes out to each other server, and is made again whenever it is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from securifile.model.errors import PeerUnreachable
from securifile.model.facts import Server
from securifile.model.servers import HostPort
from securifile.protocol.connection import SETTLING, UNLOCKING
from securifile.protocol.rpc import Link


class Links:
    """The links of one node, by the name of the server at the other end."""

    _log = Logger()

    def __init__(self, name: str, make: Callable[[Server], Link]) -> None:
        """Args:
        name: of this node, which has no link to itself.
        make: makes a link that is not started yet.
        """
        self._name = name
        self._make = make
        self._links: dict[str, Link] = {}

    def __iter__(self) -> Iterator[str]:
        """To whom there are links."""
        return iter(self._links)

    def to(self, name: str) -> Link | None:
        """The link to another server."""
        return self._links.get(name)

    def ask(self, name: str, message: Any, timeout_s: float) -> Deferred[Any]:
        """Ask another server. Fails with `PeerUnreachable` when there is no link to it."""
        link = self._links.get(name)
        if link is None:
            gone: Deferred[Any] = Deferred()
            gone.errback(PeerUnreachable(f"{name} is not a member of this cluster"))
            return gone
        return link.ask(message, timeout_s)

    def is_connected(self, name: str) -> bool:
        """Whether questions can be asked now."""
        link = self._links.get(name)
        return link is not None and link.connected

    def is_unlocking(self, name: str) -> bool:
        """See `Locks`."""
        link = self._links.get(name)
        return link is not None and link.peer is not None and UNLOCKING in link.peer.features

    def tells_settled(self, name: str) -> bool:
        """See `Settling`."""
        link = self._links.get(name)
        return link is None or link.peer is None or not link.connected or SETTLING in link.peer.features

    def hurry(self, name: str) -> None:
        """That server has just spoken: it can be reached."""
        link = self._links.get(name)
        if link is not None and not link.connected:
            link.hurry()

    def connect(self, server: Server) -> None:
        """A server is a member of the cluster, or has another address now."""
        if server.name == self._name:
            return
        try:
            address = HostPort.parse(server.protocol_address)
        except ValueError as error:
            # The admin server refuses such an address. Should one get by, it must not stop what else is to be learnt.
            self._log.warn("{server} cannot be reached: {problem}", server=server.name, problem=str(error))
            return
        link = self._links.get(server.name)
        if link is None:
            self._links[server.name] = link = self._make(server)
            link.start()
        else:
            link.move(address)

    def drop(self, name: str) -> None:
        """A server is no member any more."""
        link = self._links.pop(name, None)
        if link is not None:
            link.stop()

    async def stop(self) -> None:
        """Close all."""
        links, self._links = self._links, {}
        for link in links.values():
            await link.stop()
