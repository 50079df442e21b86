"""Refusals as people see them: RFC 9457 problems with a stable code.

One table says which status each code has; nothing else in the house maps errors to statuses.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import attrs

from securifile.model import errors
from securifile.model.errors import Code, Refusal

MEDIA_TYPE = b"application/problem+json"
TYPE_PREFIX = "urn:securifile:problem:"
"""`type` of a problem is this and its code: a name, not an address, since servers have no common one."""
REALM = "SecuriFile"

STATUS: dict[Code, tuple[int, str]] = {
    Code.BAD_REQUEST: (400, "Bad request"),
    Code.BAD_PATH: (400, "Bad path"),
    Code.BAD_JSON: (400, "Bad JSON"),
    Code.BAD_DIGEST: (400, "Digest does not match"),
    Code.BAD_CREDENTIALS: (401, "Wrong credentials"),
    Code.NO_CREDENTIALS: (401, "Credentials needed"),
    Code.ACCOUNT_CLOSED: (403, "Account closed"),
    Code.FORBIDDEN: (403, "Forbidden"),
    Code.NOT_FOUND: (404, "Not found"),
    Code.GONE: (410, "Gone"),
    Code.METHOD_NOT_ALLOWED: (405, "Method not allowed"),
    Code.CONFLICT: (409, "Conflict"),
    Code.EXISTS: (409, "Exists already"),
    Code.NOT_A_FOLDER: (409, "Not a folder"),
    Code.IS_A_FOLDER: (409, "Is a folder"),
    Code.FOLDER_NOT_EMPTY: (409, "Folder not empty"),
    Code.PRECONDITION_FAILED: (412, "Precondition failed"),
    Code.KEY_REUSED: (422, "Idempotency key used for something else"),
    Code.LENGTH_REQUIRED: (411, "Length required"),
    Code.TOO_LARGE: (413, "Too large"),
    Code.MEDIA_TYPE: (415, "Unsupported media type"),
    Code.RANGE: (416, "Range not satisfiable"),
    Code.EXPECTATION: (417, "Expectation failed"),
    Code.TIMEOUT: (408, "Request timeout"),
    Code.TOO_MANY_REQUESTS: (429, "Too many requests"),
    Code.LOCKED: (423, "Locked"),
    Code.QUOTA: (413, "Quota exceeded"),
    Code.ATTEMPT_ABANDONED: (409, "Upload abandoned"),
    Code.BAD_CHECKSUM: (460, "Checksum mismatch"),
    Code.NOT_RUNNING: (503, "Server not running"),
    Code.NO_HOLDER: (503, "No holder available"),
    Code.NO_ROOM: (503, "Not enough servers with room"),
    Code.DISK_FULL: (507, "Disk full"),
    Code.LOG_FULL: (503, "Log is full"),
    Code.CATALOGUE_UNAVAILABLE: (503, "Catalogue unavailable"),
    Code.OUTCOME_UNKNOWN: (500, "Outcome unknown"),
    Code.SHUTTING_DOWN: (503, "Shutting down"),
    Code.INVALID_TOKEN: (401, "Invalid token"),
    Code.TICKET_INVALID: (401, "Invalid ticket"),
    Code.TOO_MANY_REDIRECTS: (503, "Too many redirects"),
    Code.URI_TOO_LONG: (414, "URI too long"),
    Code.HEADERS_TOO_LARGE: (431, "Headers too large"),
    Code.NOT_IMPLEMENTED: (501, "Not implemented"),
    Code.VERSION_NOT_SUPPORTED: (505, "HTTP version not supported"),
    Code.TOO_MANY_CONNECTIONS: (503, "Too many connections"),
    Code.CHALLENGE_FAILED: (500, "Verification failed"),
    Code.UNKNOWN_MESSAGE: (501, "Unknown message"),
    Code.NOT_A_MEMBER: (403, "Not a member of the cluster"),
    Code.BUG: (500, "Internal error"),
}
"""Status and title of each code. 4xx and 503: certainly not done. 500 with `outcome-unknown`: what its name says."""

_RESERVED = frozenset({"type", "title", "status", "code", "detail", "instance"})
_CHALLENGES = (
    (b"WWW-Authenticate", f'Bearer realm="{REALM}"'.encode()),
    (b"WWW-Authenticate", f'Basic realm="{REALM}", charset="UTF-8"'.encode()),
)
_TRY_SOON_S = 2.0
"""Long enough for a fail-over, short against a person's patience."""


@attrs.frozen
class Problem:
    """An answer that says why not; unpacks as (status, headers, body)."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    def __iter__(self) -> Iterator[Any]:
        return iter((self.status, self.headers, self.body))


def status_of(code: Code) -> int:
    """The HTTP status of a code."""
    return STATUS[code][0]


def problem(refusal: Refusal, instance: str | None = None) -> Problem:
    """The answer to a request that was refused.

    Args:
        refusal: its evidence becomes members of the problem beside the standard ones.
        instance: names this occurrence (the request's id), for finding it in the log.
    """
    status, title = STATUS[refusal.code]
    members: dict[str, Any] = {
        "type": TYPE_PREFIX + refusal.code,
        "title": title,
        "status": status,
        "code": str(refusal.code),
        "detail": refusal.detail,
    }
    if instance is not None:
        members["instance"] = instance
    members.update((name, value) for name, value in refusal.evidence.items() if name not in _RESERVED)
    headers = [(b"Content-Type", MEDIA_TYPE), (b"Cache-Control", b"no-store")]
    if refusal.retry_after_s is not None:
        headers.append((b"Retry-After", b"%d" % max(1, math.ceil(refusal.retry_after_s))))
    if status == 401:
        headers.extend(_CHALLENGES)
    if refusal.code is Code.RANGE and isinstance(refusal.evidence.get("size"), int):
        headers.append((b"Content-Range", b"bytes */%d" % refusal.evidence["size"]))
    if refusal.code is Code.METHOD_NOT_ALLOWED and "allow" in refusal.evidence:
        headers.append((b"Allow", ", ".join(sorted(refusal.evidence["allow"])).encode("ascii")))
    return Problem(status, tuple(headers), json.dumps(members, default=_as_text, ensure_ascii=False).encode("utf-8", "replace") + b"\n")


def _as_text(value: object) -> object:
    """Evidence that JSON has no word for: digests as hexadecimal, sets in order, ids and the rest as `str` shows them."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    return str(value)


def refusal_of(error: BaseException) -> Refusal | None:
    """What to tell a person of an exception that is not our bug; None when it must be one.

    A lost peer is not here: whether anything was done then is for the caller to know and say.
    """
    match error:
        case Refusal():
            return error
        case errors.DatabaseUnavailable():
            return Refusal(
                Code.CATALOGUE_UNAVAILABLE, "The catalogue cannot be reached; nothing was done. Try again soon.", retry_after_s=_TRY_SOON_S
            )
        case errors.SpoolFull():
            return Refusal(
                Code.LOG_FULL, "This server can log no more until an admin server takes some; try another or later.", retry_after_s=10.0
            )
        case errors.DiskFull():
            return Refusal(Code.DISK_FULL, "There is no room on this server's disk; nothing was kept.")
        case errors.OutcomeUnknown():
            return Refusal(Code.OUTCOME_UNKNOWN, "The connection to the catalogue was lost while committing: look whether it was done.")
        case _:
            return None


def internal_error() -> Refusal:
    """What a person is told of our bugs: nothing but that the log has it."""
    return Refusal(Code.BUG, "Something went wrong in this server; its log says what. Whether the request was carried out is not known.")
