"""Whose life is over among the servers that connect here: the hands of `model/lives.py`.

Each heartbeat says whose life it comes from, and so whose the connection is. That a life is over is told on a notice connection, by the
sentinel beside the process that has ended.
"""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakKeyDictionary

from twisted.logger import Logger

from securifile.model.ids import Position
from securifile.model.lives import Lives
from securifile.model.roster import Roster
from securifile.protocol.messages import Done, Ended
from securifile.protocol.rpc import Handlers, Peer


class Endings:
    """The ends of other servers' lives, as this server was told of them."""

    _log = Logger()

    def __init__(self, *, roster: Roster, position: Callable[[], Position], ended: Callable[[str, str], None]) -> None:
        """Args:
        position: up to where this server knows the catalogue.
        ended: told of a life that is over, by the server's name and its `boot`.
        """
        self._roster = roster
        self._position = position
        self._ended = ended
        self._life_of: WeakKeyDictionary[Peer, str] = WeakKeyDictionary()
        self.lives = Lives()

    @property
    def handlers(self) -> Handlers:
        """What is answered on notice connections."""
        return {Ended: self._hear}

    def speaks(self, peer: Peer, boot: str) -> None:
        """A server says on that connection which life of it speaks."""
        self._life_of[peer] = boot
        name = peer.identity.name
        if not self.lives.speaks(name, boot):
            self._log.error("{server} lives, and its process was said to have ended: that is not believed again", server=name)

    def life_of(self, peer: Peer) -> str | None:
        """Whose life a connection is, as far as it has told."""
        return self._life_of.get(peer)

    def _hear(self, peer: Peer, message: Ended) -> Done:
        name = peer.identity.name
        # What that life said before its end and is still on its way is not to be taken for a sign of life.
        for other, life in list(self._life_of.items()):
            if other.identity.name == name and life == message.boot:
                other.cut()
        if self.lives.end(name, message.boot, self._position().epoch):
            self._log.info("the process of {server} has ended", server=name)
            self._ended(name, message.boot)
        return Done()

    def is_over(self, name: str, position: Position) -> bool:
        """Whether the life of a server is over that is the admitted one at that position or later.

        Never before this server knows all changes up to there, since one of them may have admitted another life.
        """
        server, known = self._roster.servers.get(name), self._position()
        is_known = known.epoch == position.epoch and known >= position
        return is_known and server is not None and self.lives.is_over(name, server.boot, known.epoch)

    def forget(self, name: str) -> None:
        """That server is no member any more."""
        self.lives.forget(name)
