"""Who is asking: from the header, or the ticket, of a request to a person whose account is open now."""

from __future__ import annotations

import attrs

from securifile.http.backend import Backend
from securifile.http.identity import BasicCache, BasicPassword, BearerToken, parse_authorization, token_hash
from securifile.http.request import Request
from securifile.http.tickets import Ticket, verify
from securifile.model.errors import Code, Refusal
from securifile.model.facts import Person
from securifile.model.people import check_account
from securifile.protocol import messages as m
from securifile.sql import directory


@attrs.frozen(kw_only=True)
class Caller:
    """A person who has shown who they are, and how."""

    person: Person
    session: bytes | None = attrs.field(default=None, repr=False)
    """Hash of the session's token, when it was one."""
    ticket: Ticket | None = None
    session_until: float | None = None
    """Wall clock at which the session ends by itself."""

    @property
    def username(self) -> str:
        """The person's name."""
        return self.person.username

    def has_ended(self, wall: float) -> bool:
        """Whether the session or the account has ended by itself, going by what was known last: time to ask again."""
        return any(until is not None and until <= wall for until in (self.session_until, self.person.valid_until))


class Authenticator:
    """Finds out who is asking. Rights are judged afterwards, each time anew."""

    def __init__(self, backend: Backend, cache: BasicCache) -> None:
        self._backend = backend
        self._cache = cache

    async def caller(self, request: Request) -> Caller:
        """Who is asking.

        Raises:
            Refusal: NO_CREDENTIALS, BAD_CREDENTIALS, ACCOUNT_CLOSED or TICKET_INVALID.
        """
        text = request.query("ticket")
        if text is not None:
            return await self._by_ticket(request, text)
        credentials = parse_authorization(request.header("authorization"))
        if isinstance(credentials, BearerToken):
            return await self._by_token(token_hash(credentials.token))
        if isinstance(credentials, BasicPassword):
            return await self._by_password(credentials, request.peer)
        raise Refusal(
            Code.NO_CREDENTIALS,
            "Sign in first: send Authorization: Bearer with a token from POST /api/v1/sessions, or user name and password (curl -u).",
        )

    async def again(self, caller: Caller) -> Caller:
        """The caller as known now: for whoever has been at it for a while. Raises `Refusal` when the sign-in or the account has ended."""
        if caller.session is not None:
            return attrs.evolve(await self._by_token(caller.session), ticket=caller.ticket)
        person = await self._person(caller.username)
        if person.credentials != caller.person.credentials:
            raise Refusal(Code.BAD_CREDENTIALS, "The password was changed. Sign in again.")
        return attrs.evolve(caller, person=person)

    async def _by_token(self, hashed: bytes) -> Caller:
        session = await self._backend.recall(("session", hashed), lambda sql: directory.session(sql, hashed), of_files=False)
        if session is None or session.expires_at <= self._backend.wall():
            raise Refusal(Code.BAD_CREDENTIALS, "This sign-in has expired or was ended. Sign in again.")
        return Caller(person=await self._person(session.username), session=hashed, session_until=session.expires_at)

    async def _by_password(self, basic: BasicPassword, peer: str) -> Caller:
        known = await self._backend.read(lambda sql: directory.person_by_login(sql, basic.username))
        username = self._cache.look(basic, lambda name: known.credentials if known is not None and known.username == name else None)
        if username is None:
            checked = await self._backend.check_password(m.CheckPassword(username=basic.username, password=basic.password, peer=peer))
            self._cache.remember(basic, checked.username, checked.credentials)
            username = checked.username
        return Caller(person=await self._person(username))

    async def _by_ticket(self, request: Request, text: str) -> Caller:
        backend = self._backend
        if not request.path.startswith(b"/api/v1/files/") or request.path.endswith(b"/"):
            raise Refusal(Code.TICKET_INVALID, "A ticket is for the content of a file only. Sign in for anything else.")
        ticket = verify(
            text,
            now=backend.wall(),
            this_node=backend.name,
            method="GET" if request.method == b"HEAD" else request.method.decode("ascii", "replace"),
            public_key_of=backend.roster.public_key,
            is_running=backend.roster.is_running,
        )
        await backend.reached(ticket.position)
        if ticket.session is not None:
            return attrs.evolve(await self._by_token(bytes.fromhex(ticket.session)), ticket=ticket)
        person = await self._person(ticket.person)
        if person.credentials != ticket.credentials:
            raise Refusal(Code.TICKET_INVALID, "The password was changed since this redirect. Sign in again.")
        return Caller(person=person, ticket=ticket)

    async def _person(self, username: str) -> Person:
        person = await self._backend.recall(("person", username), lambda sql: directory.person(sql, username), of_files=False)
        if person is None:
            raise Refusal(Code.ACCOUNT_CLOSED, "This account does not exist any more.")
        check_account(person, self._backend.wall())
        return person
