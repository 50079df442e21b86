"""One request and its answer, as the routes handle it: what becomes the audit record, what goes back."""

from __future__ import annotations

from typing import Any

import attrs

from securifile.http.authentication import Caller
from securifile.http.backend import Backend
from securifile.http.request import Request
from securifile.model.ids import EntryId
from securifile.model.records import AuditRecord

CLIENT_GONE = 499
"""Recorded when a client left before its answer; nginx's number, for want of a standard one."""


@attrs.define(kw_only=True)
class Access:
    """What is known of a request while it is handled: becomes its audit record."""

    event: str
    caller: Caller | None = None
    path: str | None = None
    entry: EntryId | None = None
    bytes: int | None = None
    detail: str | None = None
    changed: bool = False
    """Something was done, though the method says that it only asks: its record is on the disk before the answer."""

    @property
    def signed_in(self) -> Caller:
        """The caller; every route but the sign-in has one."""
        assert self.caller is not None, "the route authenticates first"
        return self.caller


@attrs.frozen(kw_only=True)
class Answer:
    """What a route answers: JSON, or nothing."""

    status: int
    value: Any = None
    headers: tuple[tuple[bytes, bytes], ...] = ()


@attrs.frozen(kw_only=True)
class Streamed:
    """The route has answered by itself; only the record remains to be written."""

    status: int


def record_of(backend: Backend, request: Request, access: Access, status: int, *, duration_s: float, detail: str | None) -> AuditRecord:
    """The audit record of a request that was answered with `status`."""
    return AuditRecord(
        at=backend.wall(),
        server=backend.name,
        event=access.event,
        person=access.caller.username if access.caller is not None else None,
        path=access.path,
        entry=None if access.entry is None else str(access.entry),
        status=status,
        bytes=access.bytes,
        duration_s=round(duration_s, 6),
        peer=request.peer,
        detail=detail,
    )
