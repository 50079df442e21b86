"""Versions of files: what is in them and where it is."""

from __future__ import annotations

import attrs

from securifile.model.digests import DigestAlgorithm
from securifile.model.ids import AttemptId, EntryId


@attrs.frozen(kw_only=True)
class Copy:
    """One holder of a version: priority 0 is the origin, 1..r the replicas."""

    node: str
    priority: int = attrs.field(validator=attrs.validators.ge(0))
    durable: bool
    """False: this node should have the blob and is not known to have it yet (`pending`)."""


@attrs.frozen(kw_only=True)
class Version:
    """One content a file has or had: immutable, numbered from 1 within the file."""

    number: int = attrs.field(validator=attrs.validators.ge(1))
    attempt: AttemptId
    size: int = attrs.field(validator=attrs.validators.ge(0))
    digest: bytes
    algorithm: DigestAlgorithm
    committed_at: float
    """Wall clock, seconds since 1970."""
    committed_by: str
    """The person whose upload it was."""
    copies: tuple[Copy, ...]
    """In order of priority."""

    @property
    def origin(self) -> str:
        """The node that took the upload, or has taken that place since."""
        return self.copies[0].node

    @property
    def holders(self) -> tuple[str, ...]:
        """Nodes with a durable copy, the origin first, then by priority."""
        return tuple(copy.node for copy in self.copies if copy.durable)


@attrs.frozen(kw_only=True)
class Sidecar:
    """What a node's disk says of one blob, beside its bytes; carries no rights."""

    attempt: AttemptId
    file: bytes
    """The id of the file it is, or was to become, a version of."""
    version: int
    size: int
    digest: bytes
    algorithm: DigestAlgorithm
    committed_at: tuple[int, int] | None
    """(epoch, revision) of the commit; None while staged."""


WHOLE_BYTES_MAX = 64 * 1024
"""Of a blob that is stored in one go: small enough to be held in memory by each server on its way, where a stream takes a dozen steps."""


@attrs.frozen(kw_only=True)
class WholeBlob:
    """A blob, all of it: at most `WHOLE_BYTES_MAX`."""

    attempt: AttemptId
    file: EntryId
    version: int
    algorithm: DigestAlgorithm
    data: bytes = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class BlobSummary:
    """What a finished blob turned out to be."""

    size: int
    digest: bytes
    checksum: bytes | None = None
    """BLAKE3 over the checksums of its blocks, by which two holders can tell that they have the same; None if it was not told."""


@attrs.frozen(kw_only=True)
class Space:
    """Storage of a node."""

    used_bytes: int
    available_bytes: int
