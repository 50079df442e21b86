"""Taking back what a catalogue lost: pure comparing and deciding; `docs/decisions/0013-lost-commits.md` has the reasons.

A catalogue that was restored from a backup is at an earlier point of the history that the nodes' indexes have seen. An index is no
history: it has the present state of each thing. So a node compares its index with the catalogue's snapshot and hands in every thing that
differs, with the position up to which it knows that thing. Of each thing the state with the highest position is the last one, because
the lost history was one line; a node that hands in nothing about a thing says that it is as in the snapshot, up to where its index is.

What is then done again: versions, folders, moves, deletions, and whatever takes rights away. What gives rights is not: it is listed for
the administrator. So nobody can do more afterwards than they could at the end of the lost history, nor more than the backup says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

import attrs

from securifile.model.facts import (
    Claim,
    EntryGone,
    Fact,
    File,
    Folder,
    Grant,
    GrantGone,
    Person,
    PersonGone,
    Server,
    ServerGone,
    Session,
    SessionGone,
    Settings,
)
from securifile.model.ids import BEGINNING, EntryId, Position
from securifile.model.roles import Role, strongest
from securifile.model.servers import ServerKind, Status

Limit = TypeVar("Limit", int, float)

ENTRY_ID_BYTES = 16

Thing = tuple[str, bytes]
"""The kind and the name of what a fact is about."""


def thing_of(fact: Fact) -> Thing:
    """What a fact is about: two facts about the same thing replace one another."""
    match fact:
        case Person() | PersonGone():
            return "person", fact.username.encode()
        case Session() | SessionGone():
            return "session", fact.token_hash
        case Folder() | File() | EntryGone():
            return "entry", fact.id.value
        case Grant() | GrantGone():
            return "grant", fact.entry.value + fact.username.encode()
        case Server() | ServerGone():
            return "server", fact.name.encode()
        case Settings():
            return "settings", b""


def gone(fact: Fact) -> Fact | None:
    """The fact that says that the thing of this one is gone; None where that cannot be."""
    match fact:
        case Person():
            return PersonGone(username=fact.username)
        case Session():
            return SessionGone(token_hash=fact.token_hash)
        case Folder() | File():
            return EntryGone(id=fact.id)
        case Grant():
            return GrantGone(entry=fact.entry, username=fact.username)
        case Server():
            return ServerGone(name=fact.name)
        case _:
            return None


def gone_thing(thing: Thing) -> Fact | None:
    """The fact that says that this is gone; None for kinds whose end takes other things along."""
    kind, name = thing
    match kind:
        case "grant":
            return GrantGone(entry=EntryId(name[:ENTRY_ID_BYTES]), username=name[ENTRY_ID_BYTES:].decode())
        case "session":
            return SessionGone(token_hash=name)
        case _:
            return None


def differences(own: Iterable[Fact], snapshot: Iterable[Fact]) -> list[Fact]:
    """What `own` says otherwise than `snapshot`: things that differ or are missing there, and things that are gone here."""
    theirs = {thing_of(fact): fact for fact in snapshot}
    found = []
    for fact in own:
        if theirs.pop(thing_of(fact), None) != fact:
            found.append(fact)
    return found + [lost for lost in map(gone, theirs.values()) if lost is not None]


@attrs.frozen(kw_only=True)
class HandedIn:
    """All that one node handed in."""

    position: Position
    """How far its index was: of every other thing it says up to there that it is as in the snapshot."""
    claims: tuple[Claim, ...] = ()


@attrs.frozen(kw_only=True)
class Left:
    """What was not done again, and why, in words for an administrator."""

    fact: Fact
    why: str


@attrs.frozen(kw_only=True)
class Reconciliation:
    """What to do."""

    facts: tuple[Fact, ...]
    """To be applied in this order."""
    void_passwords: tuple[str, ...]
    """People whose password was changed: the old one must not open anything again, and the new one is known to nobody."""
    left: tuple[Left, ...]


def last_claims(handed_in: Mapping[str, HandedIn]) -> list[Claim]:
    """Of each thing the claim with the highest position, unless a node that knows it up to a higher one finds it as in the snapshot."""
    best: dict[Thing, Claim] = {}
    told: dict[Thing, set[str]] = {}
    for node, handed in sorted(handed_in.items()):
        for claim in handed.claims:
            thing = thing_of(claim.fact)
            told.setdefault(thing, set()).add(node)
            if thing not in best or claim.at > best[thing].at:
                best[thing] = claim
    return [
        claim
        for thing, claim in sorted(best.items())
        if all(claim.at >= handed.position for node, handed in handed_in.items() if node not in told[thing])
    ]


def reconcile(snapshot: Iterable[Fact], handed_in: Mapping[str, HandedIn], *, everything: bool = False) -> Reconciliation:
    """Decide what to do again.

    Args:
        snapshot: the catalogue as it is.
        handed_in: by node.
        everything: the catalogue is empty because its database is gone: what the nodes say is all there is, rights too.
    """
    known = max((handed.position for handed in handed_in.values()), default=BEGINNING)
    return _Deciding(snapshot, known if everything else None).decide(last_claims(handed_in))


class _Deciding:
    def __init__(self, snapshot: Iterable[Fact], known: Position | None) -> None:
        """Args:
        known: when what the nodes say is all there is: how far the index has come that knows most.
        """
        self._now = {thing_of(fact): fact for fact in snapshot}
        self._everything = known is not None
        self._known = known or BEGINNING
        self._left: list[Left] = []
        self._void: list[str] = []
        self._first: list[Fact] = []
        """Servers, people, settings: what files and folders stand on."""
        self._last: list[Fact] = []
        """Rights and sign-ins."""
        self._entries: dict[EntryId, Folder | File] = {}
        self._gone: list[EntryGone] = []

    def decide(self, claims: Iterable[Claim]) -> Reconciliation:
        for claim in claims:
            fact, now = claim.fact, self._now.get(thing_of(claim.fact))
            if fact == now:
                continue
            match fact:
                case Settings():
                    self._settings(fact)
                case Server() | ServerGone():
                    self._server(fact, now)
                case Person() | PersonGone():
                    self._person(fact, now)
                case Session():
                    if claim.at <= self._known:
                        self._last.append(fact)
                case Grant():
                    self._grant(fact, now, claim.at <= self._known)
                case SessionGone() | GrantGone():
                    if now is not None:
                        self._last.append(fact)
                case EntryGone():
                    if now is not None:
                        self._gone.append(fact)
                case File() | Folder():
                    self._entry(fact, now)
        placed = self._placed()
        return Reconciliation(facts=(*self._first, *placed, *self._last), void_passwords=tuple(self._void), left=tuple(self._left))

    def _leave(self, fact: Fact, why: str) -> None:
        self._left.append(Left(fact=fact, why=why))

    def _settings(self, fact: Settings) -> None:
        if self._everything:
            self._first.append(fact)
        else:
            self._leave(fact, "the settings were other ones; set them again if they are wanted")

    def _server(self, fact: Server | ServerGone, now: Fact | None) -> None:
        # Admin servers write themselves down.
        if isinstance(fact, ServerGone):
            if isinstance(now, Server) and now.kind is ServerKind.NODE:
                self._first.append(fact)
        elif fact.kind is ServerKind.NODE:
            if isinstance(now, Server):
                # It has just said itself where it is reached.
                self._first.append(attrs.evolve(fact, url=now.url, protocol_address=now.protocol_address))
            elif self._everything:
                # Whoever was running goes on; what has changed with it since, heartbeats and its boot will tell.
                self._first.append(fact)
            else:
                # Its certificate is signed by the cluster's authority; it serves after it has been verified.
                self._first.append(attrs.evolve(fact, status=Status.DOWN))

    def _person(self, fact: Person | PersonGone, now: Fact | None) -> None:
        if isinstance(fact, PersonGone):
            if now is not None:
                self._first.append(fact)
            return
        if not isinstance(now, Person):
            self._first.append(fact if self._everything else attrs.evolve(fact, administrator=False))
            if fact.administrator and not self._everything:
                self._leave(fact, f"{fact.username} was an administrator; make them one again if that is right")
            self._leave(fact, f"{fact.username} has no password: give them a new one")
            return
        merged = attrs.evolve(
            now,
            administrator=now.administrator and fact.administrator,
            disabled=now.disabled or fact.disabled,
            valid_from=max(now.valid_from, fact.valid_from),
            valid_until=_least(now.valid_until, fact.valid_until),
            quota_bytes=_least(now.quota_bytes, fact.quota_bytes),
            credentials=max(now.credentials, fact.credentials),
        )
        if merged != now:
            self._first.append(merged)
        if merged.credentials != now.credentials:
            self._void.append(fact.username)
            self._leave(fact, f"the password of {fact.username} was changed, and only the old one is known: give them a new one")
        if attrs.evolve(merged, credentials=fact.credentials) != fact:
            self._leave(fact, f"the account of {fact.username} was another one in some respect: look at it")

    def _grant(self, fact: Grant, now: Fact | None, is_known: bool) -> None:
        is_less = isinstance(now, Grant) and now.role is not fact.role and strongest([now.role, fact.role]) is now.role
        if is_known or is_less:
            self._last.append(fact)
        else:
            self._leave(fact, f"{fact.username} was made {_role(fact.role)}; grant it again if that is right")

    def _entry(self, fact: File | Folder, now: Fact | None) -> None:
        if isinstance(fact, File) and isinstance(now, File):
            before, after = now.version, fact.version
            if after.number < before.number or (after.number == before.number and after.attempt != before.attempt):
                self._leave(fact, f"version {after.number} of the file is another one than the catalogue's")
                return
        self._entries[fact.id] = fact

    def _placed(self) -> list[Fact]:
        """Files, folders and deletions, in an order in which no name is ever there twice, and no parent missing."""
        known = {fact.id: fact for fact in self._now.values() if isinstance(fact, (File, Folder))}
        while True:
            ordered, left = self._in_order(known)
            # What cannot be where it was stays where it is, and there it is in the way of others.
            staying = [one for one in left if isinstance(one.fact, (File, Folder)) and one.fact.id in known]
            if not staying:
                self._left += left
                return [*self._stepping_aside(ordered, known), *self._gone, *ordered]
            for one in staying:
                assert isinstance(one.fact, (File, Folder))
                del self._entries[one.fact.id]
            self._left += staying

    def _in_order(self, known: Mapping[EntryId, File | Folder]) -> tuple[list[File | Folder], list[Left]]:
        """Those of the entries that find their place, parents first; and those that do not."""
        going = {fact.id for fact in self._gone}
        staying = {id_: entry for id_, entry in known.items() if id_ not in going and id_ not in self._entries}
        places = {(entry.parent, entry.name): id_ for id_, entry in staying.items()}
        standing = {id_ for id_, entry in staying.items() if isinstance(entry, Folder)}
        owners = self._owners()
        waiting, ordered, left = dict(sorted(self._entries.items())), list[File | Folder](), list[Left]()
        while ready := [entry for entry in waiting.values() if entry.parent is None or entry.parent in standing]:
            for entry in ready:
                del waiting[entry.id]
                if entry.owner not in owners:
                    left.append(Left(fact=entry, why=f"its owner {entry.owner} does not exist"))
                elif entry.parent is not None and places.setdefault((entry.parent, entry.name), entry.id) != entry.id:
                    left.append(Left(fact=entry, why=f"there is something else called {entry.name} in its folder"))
                else:
                    ordered.append(entry)
                    if isinstance(entry, Folder):
                        standing.add(entry.id)
        left += [Left(fact=entry, why="the folder that it was in does not exist") for entry in waiting.values()]
        return ordered, left

    def _owners(self) -> set[str]:
        owners = {fact.username for fact in self._now.values() if isinstance(fact, Person)}
        for fact in self._first:
            if isinstance(fact, Person):
                owners.add(fact.username)
            elif isinstance(fact, PersonGone):
                owners.discard(fact.username)
        return owners

    def _stepping_aside(self, ordered: list[File | Folder], known: Mapping[EntryId, File | Folder]) -> list[Fact]:
        """Entries that move get out of the way first: to their owner's root, where nothing that is deleted takes them along."""
        roots = {entry.owner: id_ for id_, entry in known.items() if entry.parent is None}
        aside: list[Fact] = []
        for entry in ordered:
            before = known.get(entry.id)
            if before is not None and before.parent is not None and (before.parent, before.name) != (entry.parent, entry.name):
                aside.append(attrs.evolve(before, parent=roots[before.owner], name=f"{before.name}.{before.id}"))
        return aside


def _least(one: Limit | None, other: Limit | None) -> Limit | None:
    """The narrower of two limits; None is no limit."""
    return other if one is None else one if other is None else min(one, other)


def _role(role: Role) -> str:
    return f"an {role}" if role is Role.EDITOR else f"a {role}"
