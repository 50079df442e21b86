"""Sending a person to the server that can answer, with a ticket.

Clients drop `Authorization` when a redirect changes the host, so the redirect's URL says who asks and for what. A
ticket grants nothing: the receiver judges rights by itself.
"""

from __future__ import annotations

from collections.abc import Callable

from securifile.http.authentication import Caller
from securifile.http.exchange import Answer
from securifile.http.request import Request
from securifile.http.targets import Target
from securifile.http.tickets import HOPS_MAX, Ticket, issue, with_ticket
from securifile.model.errors import Code, Refusal
from securifile.model.ids import EntryId, Position
from securifile.model.roster import Roster


class Redirector:
    """Makes redirects of one server."""

    def __init__(
        self, *, name: str, roster: Roster, wall: Callable[[], float], position: Callable[[], Position], sign: Callable[[bytes], bytes]
    ) -> None:
        self._name = name
        self._roster = roster
        self._wall = wall
        self._position = position
        self._sign = sign

    def to(
        self,
        request: Request,
        caller: Caller,
        target: Target,
        *,
        node: str,
        file: EntryId,
        name: str | None = None,
        version: int | None = None,
        relay: bool = False,
    ) -> Answer:
        """A 307 to the same path on `node`.

        Args:
            file: the file's id; for a new path its parent's.
            name: of a new path, in that parent.
            version: for a write, the version it may make.
            relay: whether that node is to see to it, though another one is next in line.

        Raises:
            Refusal: TOO_MANY_REDIRECTS.
        """
        hops = 1 + (caller.ticket.hops if caller.ticket is not None else 0)
        if hops > HOPS_MAX:
            raise Refusal(Code.TOO_MANY_REDIRECTS, "The file is moving between servers just now. Try again.", retry_after_s=1.0)
        ticket = Ticket(
            issuer=self._name,
            person=caller.username,
            method="GET" if request.method == b"HEAD" else request.method.decode("ascii"),
            file=file,
            node=node,
            expires_at=self._wall() + self._roster.settings.ticket_s,
            position=self._position(),
            hops=hops,
            name=name,
            version=version,
            session=None if caller.session is None else caller.session.hex(),
            credentials=caller.person.credentials,
        )
        url = self._roster.servers[node].url + target.url() + ("?relay=1" if relay else "")
        url = with_ticket(url, issue(ticket, self._sign))
        return Answer(status=307, headers=((b"Location", url.encode("ascii")), (b"Cache-Control", b"no-store")))


def check_ticket(caller: Caller, file: EntryId, version: int | None = None, *, name: str | None = None) -> None:
    """Raise `Refusal` when the caller came with a ticket for something else than this.

    Args:
        file: the file's id; for a new path its parent's.
        version: that would be made.
        name: of a new path, in that parent.
    """
    ticket = caller.ticket
    if ticket is None:
        return
    if (ticket.file, ticket.name) != (file, name) or (ticket.version is not None and ticket.version != version):
        raise Refusal(Code.CONFLICT, "The file has changed since the redirect. Ask again.", retry_after_s=0.0)
