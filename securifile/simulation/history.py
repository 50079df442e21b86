"""What people did in a run, and what they were told: the history that the judges read.

An operation begins, and ends in one of three ways: it was answered, or it was refused with certainty, or nobody can say. Contents are
made from the operation's number, so that any content that is read names the write it comes from, and whether it is whole.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum

import attrs


class Kind(StrEnum):
    """What a person asks for."""

    SIGN_IN = "sign-in"
    READ = "read"
    WRITE = "write"
    DELETE = "delete"
    MOVE = "move"
    FOLDER = "folder"
    GRANT = "grant"
    REVOKE = "revoke"


class Outcome(StrEnum):
    """What is known of its end."""

    DONE = "done"
    """2xx."""
    REFUSED = "refused"
    """Certainly not done: 4xx, or 503 whose `code` says that nothing was done."""
    UNKNOWN = "unknown"
    """Any other 5xx, a broken connection, no answer in time."""


@attrs.define(kw_only=True)
class Operation:
    """One wish of one person."""

    number: int
    person: str
    kind: Kind
    path: str
    server: str
    """Whom the person asked first."""
    began: float
    """Virtual seconds."""
    to: str | None = None
    """Where it is moved."""
    other: str | None = None
    """Whose right it is about."""
    role: str | None = None
    size: int = 0
    """Of what is written."""
    ended: float | None = None
    outcome: Outcome = Outcome.UNKNOWN
    status: int | None = None
    code: str | None = None
    detail: str | None = None
    """Of a problem: what the person reads."""
    etag: str | None = None
    answered_by: str | None = None
    """The server whose answer it was, after redirects."""
    asked_last: float | None = None
    """When the request that was answered was sent: after redirects, later than `began`."""
    content: bytes | None = attrs.field(default=None, repr=False)
    """What was read, whole."""
    partial: bytes = attrs.field(default=b"", repr=False)
    """What of it had come when the answer broke off."""
    hops: int = 0
    given: list[tuple[float, int]] = attrs.field(factory=list, repr=False)
    """Of a slow read: how many bytes the server had given to the network by when."""

    @property
    def text(self) -> str:
        """One line of the printed history."""
        about = {
            Kind.MOVE: f" -> {self.to}",
            Kind.GRANT: f" {self.other} {self.role}",
            Kind.REVOKE: f" {self.other}",
            Kind.WRITE: f" {self.size} bytes",
        }.get(self.kind, "")
        found = ""
        if self.content is not None:
            found = f" read {len(self.content)} bytes {hashlib.sha256(self.content).hexdigest()[:12]}"
        ended = "never" if self.ended is None else f"{self.ended:.6f}"
        said = "no answer" if self.status is None else f"{self.status}{f' {self.code}' if self.code else ''}"
        via = self.server if self.answered_by in (None, self.server) else f"{self.server}>{self.answered_by}"
        etag = f" {self.etag}" if self.etag else ""
        wish = f"#{self.number} {self.person} {self.kind} {self.path}{about} at {via}"
        return f"{self.began:.6f} {ended} {wish}: {self.outcome} {said}{etag}{found}"


def content_of(number: int, size: int) -> bytes:
    """What the write of that number writes: its number and size, then bytes that follow from them."""
    head = b"write %d of %d bytes\n" % (number, size)
    block = hashlib.sha256(head).digest()
    return (head + block * (size // len(block) + 1))[:size]


def author_of(content: bytes) -> tuple[int, int] | None:
    """(number, size) of the write that a content begins with; None when it is nobody's."""
    words = content.split(b"\n", 1)[0].split(b" ")
    if len(words) != 5 or words[0] != b"write" or words[2] != b"of" or not (words[1].isdigit() and words[3].isdigit()):
        return None
    return int(words[1]), int(words[3])


@attrs.frozen(kw_only=True)
class Reach:
    """Who can send to whom from an instant on: both processes run, and the way is not cut."""

    at: float
    ways: frozenset[tuple[str, str]]
    """From whom, to whom."""
    nodes: frozenset[str]
    admins: frozenset[str]
