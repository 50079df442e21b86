"""What can go wrong for a client, as exceptions whose text is for a person and says what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class ClientError(Exception):
    """What kept the client from doing what it was asked; the text is for a person and says what to do."""


class Problem(ClientError):
    """A server refused (RFC 9457).

    Attributes:
        status: the HTTP status.
        code: the stable code, as in `securifile.model.errors.Code`; a newer server may know more.
        detail: what is wrong and what to do about it.
        evidence: the other members of the problem.
        retry_after_s: when trying again makes sense, if the server said.
    """

    def __init__(
        self, status: int, code: str, detail: str, evidence: Mapping[str, Any] | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(status, code, detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.evidence = dict(evidence or {})
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.detail


class Unreachable(ClientError):
    """No server could be reached; `reasons` has a pair (URL, why) for each that was tried."""

    def __init__(self, reasons: Sequence[tuple[str, str]]) -> None:
        super().__init__(reasons)
        self.reasons = tuple(reasons)

    def __str__(self) -> str:
        tried = "; ".join(f"{url}: {why}" for url, why in dict(self.reasons).items())
        return f"No server of the cluster can be reached ({tried or 'none is known'}). Check the network and the address, then try again."


class UntrustedServer(ClientError):
    """A server's certificate is not signed by the authority that is trusted; nothing was sent to it."""

    def __init__(self, url: str, why: str) -> None:
        super().__init__(url, why)
        self.url = url
        self.why = why

    def __str__(self) -> str:
        return (
            f"{self.url} cannot be trusted: {self.why}. If it is yours, give its cluster's root certificate with --ca FILE when you log in "
            "(an administrator finds it as ca.pem in the admin server's data folder)."
        )


class Uncertain(ClientError):
    """The connection broke after the request was sent; it may or may not have been carried out."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(what, why)
        self.what = what
        self.why = why

    def __str__(self) -> str:
        return f"It is not known whether this was done ({self.what}: {self.why}). Look before you repeat it."


class Damaged(ClientError):
    """The bytes are not those whose digest is recorded."""


class FileChanged(ClientError):
    """A file was changed by someone while it was being sent, so no one state of it was; nothing is stored."""
