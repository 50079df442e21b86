"""Leases: the lock on a file while somebody modifies it, granted by every running server.

A lease gives early refusal; the compare-and-swap at the commit gives safety. Leases travel as durations: the granter
counts from receipt, the holder from sending, so the holder always believes in it for less long.
"""

from __future__ import annotations

import hashlib

import attrs

from securifile.model.ids import AttemptId, EntryId


@attrs.frozen(kw_only=True)
class Lease:
    """Who may modify one file, and until when by the granter's monotonic clock."""

    attempt: AttemptId
    person: str
    node: str
    expires_at: float


def new_path_key(parent: EntryId, name: str) -> bytes:
    """What is locked for a file that does not exist yet: the place where it will be."""
    return hashlib.sha256(b"path\0" + parent.value + name.encode()).digest()[:16]


def first_granter(key: bytes, servers: list[str]) -> str:
    """The server that is asked first for a new path, so that two starters never hold half each (rendezvous hashing)."""
    return max(servers, key=lambda name: hashlib.sha256(key + name.encode()).digest())


class LeaseTable:
    """The leases one server has granted."""

    def __init__(self) -> None:
        self._leases: dict[bytes, Lease] = {}

    def ask(self, key: bytes, wanted: Lease, now: float) -> Lease:
        """Grant or renew `wanted` unless another attempt holds an unexpired lease; whoever holds it afterwards."""
        held = self._leases.get(key)
        if held is not None and held.attempt != wanted.attempt and held.expires_at > now:
            return held
        self._leases[key] = wanted
        return wanted

    def release(self, key: bytes, attempt: AttemptId) -> None:
        """Forget the lease, if `attempt` still has it."""
        held = self._leases.get(key)
        if held is not None and held.attempt == attempt:
            del self._leases[key]

    def release_all(self, node: str) -> None:
        """Forget what that node holds."""
        self._leases = {key: lease for key, lease in self._leases.items() if lease.node != node}

    def holder(self, key: bytes, now: float) -> Lease | None:
        """Who holds it now."""
        held = self._leases.get(key)
        return held if held is not None and held.expires_at > now else None

    def expire(self, now: float) -> None:
        """Forget what has expired, so that the table does not grow with crashed holders."""
        self._leases = {key: lease for key, lease in self._leases.items() if lease.expires_at > now}
