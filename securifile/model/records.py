"""Audit records: what is written down about each access and each change of status."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class AuditRecord:
    """One event worth keeping: an access by a person, or a change, challenge or verdict about a server."""

    at: float
    """Wall clock, seconds since 1970."""
    server: str
    """The server that saw it."""
    event: str
    """What happened, a short word: `read`, `write`, `delete`, `sign-in`, `status`, ..."""
    person: str | None = None
    path: str | None = None
    entry: str | None = None
    """Id of the file or folder, as text."""
    status: int | None = None
    """The HTTP status that was answered, for accesses."""
    bytes: int | None = None
    """Bytes of content moved."""
    duration_s: float | None = None
    peer: str | None = None
    """Address of the client, or name of the server it is about."""
    detail: str | None = None
    """More in words: the problem code, the old and new status."""
