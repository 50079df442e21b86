"""What can go wrong, as values that travel: from catalogue to node, from server to person.

A `Refusal` is an answer: the request was understood and is certainly not done. It has a stable code (the `code` of the
RFC 9457 problem a person sees), a sentence that says what to do, and its evidence. The other exceptions are
the world failing; each says what is known about the outcome.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any


class Code(StrEnum):
    """The stable codes of refusals; `http/problems.py` has the status of each."""

    BAD_REQUEST = "bad-request"
    BAD_PATH = "bad-path"
    BAD_JSON = "bad-json"
    BAD_DIGEST = "digest-mismatch"
    BAD_CHECKSUM = "checksum-mismatch"
    BAD_CREDENTIALS = "bad-credentials"
    NO_CREDENTIALS = "no-credentials"
    ACCOUNT_CLOSED = "account-closed"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not-found"
    GONE = "gone"
    METHOD_NOT_ALLOWED = "method-not-allowed"
    CONFLICT = "conflict"
    EXISTS = "exists"
    NOT_A_FOLDER = "not-a-folder"
    IS_A_FOLDER = "is-a-folder"
    FOLDER_NOT_EMPTY = "folder-not-empty"
    PRECONDITION_FAILED = "precondition-failed"
    KEY_REUSED = "idempotency-key-reused"
    LENGTH_REQUIRED = "length-required"
    TOO_LARGE = "too-large"
    MEDIA_TYPE = "unsupported-media-type"
    RANGE = "range-not-satisfiable"
    EXPECTATION = "expectation-failed"
    TIMEOUT = "request-timeout"
    TOO_MANY_REQUESTS = "too-many-requests"
    LOCKED = "locked"
    QUOTA = "quota-exceeded"
    ATTEMPT_ABANDONED = "attempt-abandoned"
    NOT_RUNNING = "not-running"
    NO_HOLDER = "no-holder-available"
    NO_ROOM = "not-enough-nodes-with-room"
    DISK_FULL = "disk-full"
    LOG_FULL = "log-spool-full"
    CATALOGUE_UNAVAILABLE = "catalogue-unavailable"
    OUTCOME_UNKNOWN = "outcome-unknown"
    SHUTTING_DOWN = "shutting-down"
    INVALID_TOKEN = "invalid-token"
    TICKET_INVALID = "ticket-invalid"
    TOO_MANY_REDIRECTS = "too-many-redirects"
    URI_TOO_LONG = "uri-too-long"
    HEADERS_TOO_LARGE = "headers-too-large"
    NOT_IMPLEMENTED = "not-implemented"
    VERSION_NOT_SUPPORTED = "http-version-not-supported"
    TOO_MANY_CONNECTIONS = "too-many-connections"
    CHALLENGE_FAILED = "verification-failed"
    UNKNOWN_MESSAGE = "unknown-message"
    NOT_A_MEMBER = "not-a-member"
    BUG = "internal-error"


class Refusal(Exception):
    """The request is refused and certainly not done.

    Attributes:
        code: the stable code.
        detail: one or two sentences for a person: what is wrong and what to do about it.
        evidence: JSON-able facts by name (who holds the lock, which holders were tried, ...).
        retry_after_s: when trying again makes sense, if it does.
    """

    def __init__(self, code: Code, detail: str, *, retry_after_s: float | None = None, **evidence: Any) -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail
        self.evidence = evidence
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}"


class DatabaseUnavailable(Exception):
    """The catalogue's database cannot be reached; nothing was committed."""


class OutcomeUnknown(Exception):
    """The connection was lost after COMMIT was sent: the transaction may or may not have happened."""


class StatementFailed(Exception):
    """The database refused a statement; its transaction can only be given up."""


class ConstraintViolated(StatementFailed):
    """A statement would have broken a rule of its table: unique, foreign key, not null, check."""


class PeerUnreachable(Exception):
    """There is no connection to that server, or it was lost before the answer came."""


class TurnedAway(PeerUnreachable):
    """That server knows of no such member of the cluster as this one."""


class DeadlineExceeded(Exception):
    """The peer did not answer within the time that the request was given."""


class StreamBroken(Exception):
    """The other end of a stream of bytes went away before its end."""


class NoSuchBlob(Exception):
    """This node's disk has no such blob."""


class BlobExists(Exception):
    """A blob of that attempt is already there."""


class DiskFull(Exception):
    """The file system has no room for more; what was begun is removed."""


class CorruptBlock(Exception):
    """A block's checksum differs from the recorded one: these bytes must not be delivered.

    Attributes:
        attempt: the `AttemptId` of the blob, where it is known.
        block: the number of the block, from 0; None when it is the sidecar that is damaged.
    """

    def __init__(self, detail: str, *, attempt: Any = None, block: int | None = None) -> None:
        super().__init__(detail)
        self.attempt = attempt
        self.block = block


class SpoolFull(Exception):
    """The audit spool has reached its limit because no admin server confirms; requests are refused until it drains."""
