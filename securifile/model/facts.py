"""Facts: the full current state of one thing in the catalogue, or that the thing is gone.

A fact is the unit of the change feed, of a snapshot, of an announcement and of the index. Applying one twice does no
harm, and a newer one makes the older one superfluous.
"""

from __future__ import annotations

import attrs

from securifile.model.entries import Version
from securifile.model.ids import EntryId, Position
from securifile.model.roles import Role
from securifile.model.servers import ServerKind, Status
from securifile.model.settings import ClusterSettings


@attrs.frozen(kw_only=True)
class Person:
    """A person as every server knows them: no password, not even its hash."""

    username: str
    email: str
    administrator: bool
    valid_from: float
    """Wall clock, seconds since 1970."""
    valid_until: float | None
    disabled: bool
    quota_bytes: int | None
    """None: no limit."""
    credentials: int
    """Grows when the password changes, so that what was cached or signed in with the old one is void."""


@attrs.frozen(kw_only=True)
class PersonGone:
    """A person that was removed, with all that was theirs."""

    username: str


@attrs.frozen(kw_only=True)
class Session:
    """A sign-in: the SHA-256 of its bearer token, never the token."""

    token_hash: bytes = attrs.field(repr=False)
    username: str
    expires_at: float


@attrs.frozen(kw_only=True)
class SessionGone:
    """A sign-in that was ended."""

    token_hash: bytes = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class Folder:
    """A folder. The root folder of a person has no parent, and the person's name."""

    id: EntryId
    owner: str
    parent: EntryId | None
    name: str
    created_at: float


@attrs.frozen(kw_only=True)
class File:
    """A file with its current version."""

    id: EntryId
    owner: str
    parent: EntryId
    name: str
    created_at: float
    version: Version


@attrs.frozen(kw_only=True)
class EntryGone:
    """A file or folder that was deleted."""

    id: EntryId


@attrs.frozen(kw_only=True)
class Grant:
    """A person's right on a file, or on a folder and all beneath it."""

    entry: EntryId
    username: str
    role: Role
    granted_by: str


@attrs.frozen(kw_only=True)
class GrantGone:
    """A right that was taken away."""

    entry: EntryId
    username: str


@attrs.frozen(kw_only=True)
class Server:
    """A member of the cluster."""

    name: str
    kind: ServerKind
    url: str
    """Where people reach it: `https://host:port` (`http://` when TLS is off)."""
    protocol_address: str
    """Where peers reach it: `host:port`."""
    public_key: bytes
    """DER SubjectPublicKeyInfo of its certificate; tickets are checked with it."""
    status: Status
    """The summary over all observers (section 3)."""
    syslog_address: str = ""
    """Where an admin server takes audit records: `host:port`; empty for a node."""
    boot: str = ""
    """The life of the node's process that was admitted; another one is not running until it has been verified."""
    offline: bool = False
    """The administrator has taken it offline."""
    draining: bool = False
    """The administrator wants its files elsewhere."""
    since: float = 0.0
    """Wall clock of the last change of its status."""


@attrs.frozen(kw_only=True)
class ServerGone:
    """A server that was removed: its certificate opens nothing any more."""

    name: str


@attrs.frozen(kw_only=True)
class Settings:
    """The cluster's id and settings."""

    cluster: str
    settings: ClusterSettings


Entry = File | Folder

Fact = Person | PersonGone | Session | SessionGone | Folder | File | EntryGone | Grant | GrantGone | Server | ServerGone | Settings


@attrs.frozen(kw_only=True)
class Claim:
    """The state of one thing, as one index knows it up to a position of a history that the catalogue may have lost."""

    fact: Fact
    at: Position


@attrs.frozen(kw_only=True)
class Change:
    """What one committed revision changed."""

    revision: int
    facts: tuple[Fact, ...]
    mark: bytes = b""
    """Random; tells this change from another one of the same revision in a history that was lost. Empty: not known."""
