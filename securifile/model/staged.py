"""Resumable uploads as they rest on the disks of their holders: docs/decisions/0015-resumable-uploads.md."""

from __future__ import annotations

import attrs

from securifile.model.digests import DigestAlgorithm
from securifile.model.ids import AttemptId, EntryId


@attrs.frozen(kw_only=True)
class StagedUpload:
    """What a resumable upload is to become. Never changes."""

    attempt: AttemptId
    person: str
    path: str | None
    """`owner/folder/name`; None of a partial upload, which becomes a part of another."""
    file: EntryId
    """The id that the file gets if there is none at the path."""
    algorithm: DigestAlgorithm
    created_at: float
    """Wall clock, seconds since 1970."""
    length: int | None = None
    """None: it is told later."""
    metadata: str = ""
    """As the client wrote it."""
    concat: str | None = None
    """`partial`, or `final;` with the parts, as the client wrote it."""
    if_match: str | None = None
    if_none_match: str | None = None
    digest: bytes | None = None
    """What the digest of the whole must be, if the client said so."""


@attrs.frozen(kw_only=True)
class Note:
    """How far a holder is with an upload: what it has fsynced."""

    offset: int
    length: int | None
    """Of the whole, once it is known."""
    expires_at: float
    """Wall clock, seconds since 1970."""
