"""What is said when a returning node is verified: proofs, and what a challenger found."""

from __future__ import annotations

from enum import StrEnum

import attrs

from securifile.model.ids import AttemptId, EntryId


class Verdict(StrEnum):
    """What a challenger finds for one file."""

    OK = "ok"
    STALE = "stale"
    MISSING = "missing"
    CORRUPT = "corrupt"
    GONE = "gone"

    @property
    def is_bad(self) -> bool:
        """Whether it makes the returning node failed."""
        return self in (Verdict.MISSING, Verdict.CORRUPT)


@attrs.frozen(kw_only=True)
class Proof:
    """What the returning node answers for one file."""

    attempt: AttemptId
    present: bool
    plain: bytes = b""
    """Digest of the whole blob by the version's algorithm; empty when only blocks were asked for, or it cannot be read."""
    keyed: bytes = b""
    """BLAKE3 of the same bytes, keyed with the nonce; empty when the blob cannot be read."""
    knows: int | None = None
    """The file's current version by the prover's index, when the blob is not there."""
    problem: str = ""
    """Why the blob cannot be read, in words."""
    passing: bool = False
    """With `problem`: it says nothing about the disk, and may be gone a moment later. Ask again."""


@attrs.frozen(kw_only=True)
class Reading:
    """What a server read of its own copy for the same question; without `keyed`: it is not there or cannot be read."""

    plain: bytes = b""
    """Digest of the whole blob; empty when it was not computed."""
    keyed: bytes = b""
    present: bool = True
    noted: bytes = b""
    """The digest in its sidecar."""
    problem: str = ""
    """Why it cannot be read, in words."""
    passing: bool = False
    """With `problem`: it says nothing about the disk."""


@attrs.frozen(kw_only=True)
class BadCopy:
    """A file whose copy on the returning node is not what it should be."""

    file: EntryId
    attempt: AttemptId
    verdict: Verdict
    reason: str = ""
    """What the prover said of it, if it could not read it."""


@attrs.frozen(kw_only=True)
class Report:
    """What one challenger found."""

    challenger: str
    files: int
    bytes: int
    whole: bool
    bad: tuple[BadCopy, ...] = ()
    """The first of them; enough to name, however many there are."""
    bad_count: int = 0
    own_bad: int = 0
    """Copies of the challenger's own that it found rotten on the way."""
    interrupted: str | None = None
    """Why the prover made no progress any more, as seen from the challenger."""
    unheard: bool = False
    """With `interrupted`: no answer came, or the connection was lost. That may be the fault of the way between the two."""
