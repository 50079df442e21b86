"""Sending what somebody may read, the part that they asked for, for as long as they may.

It is cut off when the right to it ends, and short when nobody can go on giving it.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

import attrs
from twisted.internet.defer import Deferred

from securifile.http.authentication import Authenticator
from securifile.http.backend import Backend
from securifile.http.content import HeaderList
from securifile.http.exchange import Access
from securifile.http.lookup import authorise
from securifile.http.ranges import Preconditions, content_range, parse_range, range_applies, unsatisfied_range
from securifile.http.request import Request
from securifile.http.transfers import Transfer, Transfers
from securifile.model.errors import Code, Refusal, StreamBroken
from securifile.model.ids import EntryId
from securifile.model.roles import Action, Role
from securifile.sql import directory


@attrs.frozen(kw_only=True)
class Chosen:
    """The bytes [start, stop) of a content that are to be sent, and what the answer says of them."""

    status: int
    start: int
    stop: int
    headers: tuple[tuple[bytes, bytes], ...]


def choose(request: Request, preconditions: Preconditions, etag: str, size: int) -> Chosen:
    """All of a content, or the range that a `GET` asks for.

    Of all methods only `GET` knows ranges; `HEAD` answers as if there were none (RFC 9110, section 14.2).

    Raises:
        Refusal: RANGE (416), with the `Content-Range` that tells the size.
    """
    if request.method == b"GET" and range_applies(preconditions, etag):
        try:
            wanted = parse_range(request.header("range"), size)
        except Refusal:
            request.setHeader(b"Content-Range", unsatisfied_range(size).encode("ascii"))
            raise
        if wanted is not None:
            headers = ((b"Content-Range", content_range(wanted, size).encode("ascii")),)
            return Chosen(status=206, start=wanted.start, stop=wanted.stop, headers=headers)
    return Chosen(status=200, start=0, stop=size, headers=())


class Source(Protocol):
    """Bytes to be sent, in pieces; closed by who opened it."""

    def read(self) -> Deferred[bytes]:
        """The next piece; nothing at the end. Raises `StreamBroken` or `Refusal` when there will be no more."""


class Pouring(Protocol):
    """A source that may be able to give what comes next from a worker's thread."""

    def pour(self, lane: Any) -> Deferred[int]:
        """Give bytes to a `Lane` for a while, and close it; how many it took. 0: what comes next has to be read."""


class Delivery:
    """Sends contents on one server."""

    def __init__(self, *, backend: Backend, authenticator: Authenticator, transfers: Transfers) -> None:
        self._backend = backend
        self._authenticator = authenticator
        self._transfers = transfers

    async def send(self, request: Request, access: Access, entry: EntryId, source: Source, chosen: Chosen, headers: HeaderList) -> None:
        """Answer with all of `source`, the bytes `chosen`, which the caller may read because they may read `entry`. Raises `Refusal`."""
        access.bytes = 0
        pouring: Pouring | None = cast(Pouring, source) if hasattr(source, "pour") else None
        # The first bytes before the status: while nothing is sent, "nobody has it" is still a clean answer.
        data = await source.read()
        sink: Any = None
        reasons: list[str] = []

        def cut(reason: str) -> None:
            reasons.append(reason)
            if sink is not None:
                sink.abort()

        async def check() -> None:
            access.caller = await self._authenticator.again(access.signed_in)

            async def role(sql: Any) -> Role | None:
                return await directory.role_along(sql, access.signed_in.username, await directory.ancestry(sql, entry))

            authorise(await self._backend.read(role), Action.READ)

        def has_ended() -> bool:
            return access.signed_in.has_ended(self._backend.wall())

        with self._transfers.watched(Transfer(entry=entry, check=check, cut=cut, has_ended=has_ended)):
            if self._transfers.changed_at >= request.begun_at:
                # Since the rights were judged nobody watched: the first bytes may have taken seconds.
                await check()
            if reasons:
                raise Refusal(Code.FORBIDDEN, reasons[0])
            sink = request.start(chosen.status, [*headers, *chosen.headers], chosen.stop - chosen.start)
            try:
                while data:
                    await sink.write(data)
                    access.bytes += len(data)
                    if pouring is not None:
                        await _pour(pouring, sink, access)
                    data = await source.read()
                sink.finish()
            except (StreamBroken, Refusal) as error:
                # The client has gone, was cut off, or nobody is left to go on: the answer ends short, which the length shows.
                sink.abort()
                access.detail = reasons[0] if reasons else str(error)


async def _pour(source: Pouring, sink: Any, access: Access) -> None:
    """Send by lanes, burst by burst, as far as that is possible. Raises as `Source.read` and the sink's `write`."""
    while (lane := sink.lane()) is not None:
        try:
            await source.pour(lane)
        finally:
            taken = lane.close()
            access.bytes = (access.bytes or 0) + taken
            sink.sent(taken)
        await sink.room()
        if not taken:
            return
