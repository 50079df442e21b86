"""The read path: from a `GET` to the bytes, here or where the file is.

The origin serves, or the first running replica by priority; every other server redirects there, with a ticket. With
`?relay=1` any server streams the bytes through, for clients that cannot follow.
"""

from __future__ import annotations

from securifile.http.backend import Backend
from securifile.http.content import HeaderList, content_headers
from securifile.http.delivery import Chosen, Delivery, choose
from securifile.http.exchange import Access, Answer, Streamed
from securifile.http.lookup import Lookup
from securifile.http.ranges import (
    Verdict,
    etag_of,
    evaluate,
    parse_preconditions,
)
from securifile.http.redirects import Redirector, check_ticket
from securifile.http.request import Request
from securifile.http.sources import Sources
from securifile.http.targets import Target
from securifile.model.errors import Code, Refusal
from securifile.model.facts import File, Folder
from securifile.model.roles import Action
from securifile.model.serving import serving_order


class Downloads:
    """Gives files on one server; an admin server holds none, and redirects or relays."""

    def __init__(
        self,
        *,
        backend: Backend,
        lookup: Lookup,
        sources: Sources,
        delivery: Delivery,
        redirector: Redirector,
    ) -> None:
        self._backend = backend
        self._lookup = lookup
        self._sources = sources
        self._delivery = delivery
        self._redirector = redirector

    async def get(self, request: Request, access: Access, target: Target) -> Answer | Streamed:
        """Answer `GET` or `HEAD` of a file. Raises `Refusal`."""
        found = await self._lookup.find(access, target, Action.READ)
        if isinstance(found.entry, Folder):
            raise Refusal(Code.IS_A_FOLDER, "This is a folder. Put a slash at the end to list it.")
        check_ticket(access.signed_in, found.entry.id)
        file = await self._lookup.shown(found.entry)
        etag = etag_of(file.id, file.version.number)
        preconditions = parse_preconditions(request.header)
        headers = content_headers(file, etag)
        if evaluate(preconditions, "GET", etag) is Verdict.NOT_MODIFIED:
            return Answer(status=304, headers=tuple(headers))
        chosen = choose(request, preconditions, etag, file.version.size)
        if request.method == b"HEAD":
            return self._head(request, file, headers)
        order = serving_order(file.version, self._backend.is_available)
        if not order:
            raise self._nobody(file)
        if request.query("relay") == "1" or (access.signed_in.ticket is not None and self._backend.name in order):
            order.sort(key=lambda holder: holder != self._backend.name)
        elif order[0] != self._backend.name:
            return self._redirector.to(request, access.signed_in, target, node=order[0], file=file.id)
        return await self._stream(request, access, file, headers, chosen, order)

    def _nobody(self, file: File) -> Refusal:
        servers = self._backend.roster.servers
        tried = [
            {"server": holder, "status": servers[holder].status.value if holder in servers else "removed"}
            for holder in file.version.holders
        ]
        return Refusal(
            Code.NO_HOLDER,
            f"None of the servers that have this file is running: {', '.join(file.version.holders)}. Try again later.",
            retry_after_s=5.0,
            tried=tried,
        )

    def _head(self, request: Request, file: File, headers: HeaderList) -> Streamed:
        request.start(200, headers, file.version.size).finish()
        return Streamed(status=200)

    async def _stream(
        self, request: Request, access: Access, file: File, headers: HeaderList, chosen: Chosen, order: list[str]
    ) -> Streamed:
        source = self._sources.open(file.version, order, chosen.start, chosen.stop)
        try:
            await self._delivery.send(request, access, file.id, source, chosen, headers)
        finally:
            source.close()
        return Streamed(status=chosen.status)
