"""The read path: from a `GET` to the bytes, here or where the file is.

The origin serves, or the first running replica by priority; every other server redirects there, with a ticket. With
`?relay=1` any server streams the bytes through, for clients that cannot follow.
"""

from __future__ import annotations

from securifile.http.backend import Backend
from securifile.http.channel import Request
from securifile.http.content import HeaderList, content_headers
from securifile.http.delivery import Delivery
from securifile.http.exchange import Access, Answer, Streamed
from securifile.http.lookup import Found, Lookup
from securifile.http.ranges import (
    ByteRange,
    Verdict,
    content_range,
    etag_of,
    evaluate,
    parse_preconditions,
    parse_range,
    range_applies,
    unsatisfied_range,
)
from securifile.http.redirects import Redirector, check_ticket
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
        file = found.entry
        if isinstance(file, Folder):
            raise Refusal(Code.IS_A_FOLDER, "This is a folder. Put a slash at the end to list it.")
        check_ticket(access.signed_in, file.id)
        etag = etag_of(file.id, file.version.number)
        preconditions = parse_preconditions(request.header)
        headers = content_headers(file, etag)
        if evaluate(preconditions, "GET", etag) is Verdict.NOT_MODIFIED:
            return Answer(status=304, headers=tuple(headers))
        wanted: ByteRange | None = None
        # Of all methods only GET knows ranges; HEAD answers as if there were none (RFC 9110, section 14.2).
        if request.method == b"GET" and range_applies(preconditions, etag):
            try:
                wanted = parse_range(request.header("range"), file.version.size)
            except Refusal:
                request.setHeader(b"Content-Range", unsatisfied_range(file.version.size).encode("ascii"))
                raise
        if request.method == b"HEAD":
            return self._head(request, file, headers)
        order = serving_order(file.version, self._backend.is_available)
        if not order:
            raise self._nobody(file)
        if request.query("relay") == "1" or (access.signed_in.ticket is not None and self._backend.name in order):
            order.sort(key=lambda holder: holder != self._backend.name)
        elif order[0] != self._backend.name:
            return self._redirector.to(request, access.signed_in, target, node=order[0], file=file.id)
        return await self._stream(request, access, found, file, headers, wanted, order)

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
        self, request: Request, access: Access, found: Found, file: File, headers: HeaderList, wanted: ByteRange | None, order: list[str]
    ) -> Streamed:
        size = file.version.size
        start, stop = (0, size) if wanted is None else (wanted.start, wanted.stop)
        status = 200 if wanted is None else 206
        if wanted is not None:
            headers.append((b"Content-Range", content_range(wanted, size).encode("ascii")))
        source = self._sources.open(file.version, order, start, stop)
        try:
            await self._delivery.send(request, access, found.entry.id, source, status=status, headers=headers, length=stop - start)
        finally:
            source.close()
        return Streamed(status=status)
