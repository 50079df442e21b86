"""One request and its answer, as the routes handle it: what becomes the audit record, what goes back."""

from __future__ import annotations

from typing import Any

import attrs

from securifile.http.authentication import Caller
from securifile.model.ids import EntryId


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
