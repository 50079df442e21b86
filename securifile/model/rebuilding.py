"""Making a catalogue anew from the nodes when its database is gone: pure; `docs/decisions/0014-catalogue-loss.md` has the reasons.

What exists and who may touch it, the indexes say (`reconciliation.py`). What is on the disks, the blobs' sidecars say. Here the two are
compared: a copy that an index believes in and its node does not have is not counted; a file whose content nobody has who came is listed;
and so is a blob that no index names, if it is not one that was superseded or deleted.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence

import attrs

from securifile.model.entries import Sidecar, Version
from securifile.model.facts import Fact, File, Folder, Grant, Person, Server, Session
from securifile.model.ids import AttemptId, EntryId, Position
from securifile.model.reconciliation import HandedIn, Left
from securifile.model.servers import ServerKind

Disks = Mapping[str, Mapping[AttemptId, Sidecar]]
"""What is on the disk of each node that has told so."""


@attrs.frozen(kw_only=True)
class LostBlob:
    """A blob that belongs to nothing known, and why it may matter, in words for an administrator."""

    node: str
    sidecar: Sidecar
    why: str


def on_disks(facts: Iterable[Fact], disks: Disks, came: Container[str]) -> tuple[list[Fact], list[Left]]:
    """The facts with only those copies durable that are there, as far as it was told; and the files without content.

    Args:
        came: the nodes that have handed in anything.
    """
    found: list[Fact] = []
    left: list[Left] = []
    for fact in facts:
        if isinstance(fact, File):
            fact = attrs.evolve(fact, version=_checked(fact.version, disks))
            holders = fact.version.holders
            if not holders:
                left.append(Left(fact=fact, why="no node that has come has its content"))
            elif not any(node in came for node in holders):
                left.append(Left(fact=fact, why=f"its content is on {', '.join(holders)} only, which has not come"))
        found.append(fact)
    return found, left


def _checked(version: Version, disks: Disks) -> Version:
    def is_there(node: str) -> bool:
        if node not in disks:
            return True
        sidecar = disks[node].get(version.attempt)
        return sidecar is not None and (sidecar.size, sidecar.digest) == (version.size, version.digest)

    copies = tuple(attrs.evolve(copy, durable=copy.durable and is_there(copy.node)) for copy in version.copies)
    return attrs.evolve(version, copies=copies)


def lost_blobs(files: Iterable[File], disks: Disks, known: Position) -> list[LostBlob]:
    """Blobs that no file names, and that are not merely superseded or of deleted files.

    Args:
        known: up to here the indexes know everything: a version committed before it that no index names was superseded or deleted.
    """
    current = {file.version.attempt: file for file in files}
    numbers = {file.id: file.version.number for file in current.values()}
    found = []
    for node, sidecars in sorted(disks.items()):
        for attempt, sidecar in sorted(sidecars.items()):
            if attempt in current:
                continue
            why = why_lost(sidecar, numbers.get(EntryId(sidecar.file)), known)
            if why is not None:
                found.append(LostBlob(node=node, sidecar=sidecar, why=why))
    return found


def why_lost(sidecar: Sidecar, current: int | None, known: Position) -> str | None:
    """Why a blob that no file names may matter; None when it does not.

    Args:
        current: the number of the file's current version; None when there is no such file.
    """
    if current is not None and current >= sidecar.version:
        # Superseded, or it lost against another upload that made that version.
        return None
    if sidecar.committed_at is None:
        return "an upload that had not ended as far as its node knows"
    if Position(*sidecar.committed_at) <= known:
        return None
    return f"version {sidecar.version} of a file, committed later than anything that the indexes know"


def knows_most(handed_in: Mapping[str, HandedIn]) -> str | None:
    """The node whose index has come furthest; None when there is none with anything in it."""
    told = [(handed.position, node) for node, handed in handed_in.items() if handed.claims]
    return max(told)[1] if told else None


def members(handed: HandedIn) -> set[str]:
    """The nodes that are members by one node's index."""
    return {claim.fact.name for claim in handed.claims if isinstance(claim.fact, Server) and claim.fact.kind is ServerKind.NODE}


def strangers(handed_in: Mapping[str, HandedIn]) -> dict[str, tuple[str, ...]]:
    """Who has come and is not a member by the index of others who have come, and by whose: a removed node, or one that has just joined.

    A removed node has a valid certificate still. Its word is not taken unless an administrator says so.
    """
    named = {node: members(handed) for node, handed in handed_in.items() if handed.claims}
    found = {node: tuple(other for other, names in sorted(named.items()) if other != node and node not in names) for node in handed_in}
    return {node: others for node, others in sorted(found.items()) if others}


KINDS: Mapping[type, str] = {Person: "people", File: "files", Folder: "folders", Grant: "rights", Session: "sign_ins", Server: "servers"}


def counted(facts: Sequence[Fact]) -> dict[str, int]:
    """How many people, files and so on are in there."""
    return {name: sum(isinstance(fact, kind) for fact in facts) for kind, name in KINDS.items()}
