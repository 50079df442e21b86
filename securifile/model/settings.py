"""The settings of a cluster: an administrator's to change, the same on every server, each with its reason.

They live in the catalogue and reach every node through the feed. Settings of one process (addresses, folders) are
options of its command instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from securifile.model.digests import DigestAlgorithm


def _at_least(minimum: float) -> Callable[[Any, Any, Any], Any]:
    return attrs.validators.ge(minimum)


@attrs.frozen(kw_only=True)
class ClusterSettings:
    """What the administrator decides for the whole cluster."""

    replicas: int = attrs.field(default=2, validator=_at_least(0))
    """r: copies beside the origin's; from 0 to n-1."""
    write_copies: int | None = attrs.field(default=None)
    """Durable copies before a write is answered 2xx; None: more than half of r+1."""
    digest: DigestAlgorithm = DigestAlgorithm.SHA256
    """Algorithm for new versions; each version records its own."""
    heartbeat_interval_s: float = attrs.field(default=0.5, validator=_at_least(0.05))
    """Two a second: three unanswered are noticed within what a person calls "at once"."""
    heartbeats_missed_max: int = attrs.field(default=3, validator=_at_least(1))
    """Unanswered in a row before a server is held for down (the requirement's example)."""
    serve_alone: bool = False
    """Two nodes, one dead, no admin server: may the other go on? Only if they cannot be cut off from each other."""
    lease_s: float = attrs.field(default=10.0, validator=_at_least(1))
    """How long a lock outlives its holder's silence: long against heartbeats, short against patience."""
    upload_rate_min: int = attrs.field(default=1024, validator=_at_least(0))
    """Bytes a second, over a minute: slower bodies are cut off, so that none holds a lease for ever."""
    keep_superseded_s: float = attrs.field(default=600.0, validator=_at_least(0))
    """How long the blob of an older version stays on disk for readers under way."""
    uploads_kept_s: float = attrs.field(default=86400.0, validator=_at_least(60))
    """How long a resumable upload is kept after its last byte: over a night, and the disk is not full of what nobody finishes."""
    uploads_open_max: int = attrs.field(default=100, validator=_at_least(1))
    """Unfinished resumable uploads of one person on one node: a folder's files at a time, and no way to fill a disk with records."""
    resumable_draft: bool = False
    """Are resumable uploads taken as the IETF drafts them, too? Off: the next revision of the draft may mean another thing."""
    session_s: float = attrs.field(default=12 * 3600.0, validator=_at_least(60))
    """A working day: how long a sign-in lasts."""
    ticket_s: float = attrs.field(default=60.0, validator=_at_least(1))
    """How long a redirect may take to be followed."""
    verification_budget_s: float = attrs.field(default=600.0, validator=_at_least(0))
    """How long reading a returning node's files may take; with more, only blocks picked by chance are read of each."""
    repair_after_s: float = attrs.field(default=600.0, validator=_at_least(0))
    """How long a node may be down or failed before its copies are made anew: a restart or a reboot copies nothing."""
    repair_after_offline_s: float = attrs.field(default=3600.0, validator=_at_least(0))
    """The same for a node that the administrator took offline: planned work takes longer."""
    repair_bytes_s: float = attrs.field(default=32 * 1024 * 1024.0, validator=_at_least(0))
    """Bytes a second that one node's repairs may take from people's transfers; 0: no limit."""
    scrub_bytes_s: float = attrs.field(default=8 * 1024 * 1024.0, validator=_at_least(0))
    """Bytes a second that each node reads of its own blobs to find rot: a few per cent of a disk, 20 TB a month; 0: off."""
    scrub_every_s: float = attrs.field(default=86400.0, validator=_at_least(1))
    """No blob is scrubbed again sooner: a small store need not be read all day long, and disks rot in months."""
    certificate_s: float = attrs.field(default=90 * 86400.0, validator=_at_least(60))
    """Lifetime of a server's certificate; renewed after two thirds."""
    feed_kept: int = attrs.field(default=100_000, validator=_at_least(100))
    """Changes kept for nodes that were away; a node older than that gets a snapshot."""

    def __attrs_post_init__(self) -> None:
        if self.write_copies is not None and not 1 <= self.write_copies <= self.replicas + 1:
            raise ValueError(f"write_copies must be from 1 to r+1 = {self.replicas + 1}, not {self.write_copies}")

    @property
    def copies_wanted(self) -> int:
        """Origin and replicas together: r+1."""
        return self.replicas + 1

    @property
    def copies_needed(self) -> int:
        """Durable copies without which a write is not answered 2xx."""
        return self.write_copies if self.write_copies is not None else self.copies_wanted // 2 + 1
