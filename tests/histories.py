"""Histories that a catalogue could have had: changes that follow from one another, and what is true after them.

The `World` is the dumb model: dictionaries instead of tables. Names and ids are few, so that things meet.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import attrs
from hypothesis import strategies as st

from securifile.model import facts as f
from securifile.model.digests import DigestAlgorithm
from securifile.model.entries import Copy, Version
from securifile.model.ids import AttemptId, EntryId
from securifile.model.roles import GRANTABLE
from securifile.model.servers import ServerKind, Status
from securifile.model.settings import ClusterSettings

PEOPLE = ("ann", "ben")
NAMES = ("a", "b")
NODES = ("n1", "n2", "n3")

Choose = Callable[[Any], Any]
"""One of some: hypothesis, or a random choice."""


@attrs.define
class World:
    """Everything that is true now."""

    people: dict[str, f.Person] = attrs.field(factory=dict)
    sessions: dict[bytes, f.Session] = attrs.field(factory=dict)
    entries: dict[EntryId, f.Entry] = attrs.field(factory=dict)
    grants: dict[tuple[EntryId, str], f.Grant] = attrs.field(factory=dict)
    servers: dict[str, f.Server] = attrs.field(factory=dict)
    settings: f.Settings | None = None
    superseded: set[AttemptId] = attrs.field(factory=set)
    drawn: int = 0

    def facts(self) -> set[f.Fact]:
        """What is true, as facts."""
        told: set[f.Fact] = {
            *self.people.values(),
            *self.sessions.values(),
            *self.entries.values(),
            *self.grants.values(),
            *self.servers.values(),
        }
        return told if self.settings is None else told | {self.settings}

    def usage(self) -> dict[str, tuple[int, int]]:
        """Files and bytes of everybody who owns any."""
        files = [entry for entry in self.entries.values() if isinstance(entry, f.File)]
        return {
            owner: (sum(file.owner == owner for file in files), sum(file.version.size for file in files if file.owner == owner))
            for owner in {file.owner for file in files}
        }

    def beneath(self, entry: EntryId) -> list[EntryId]:
        """The entry and all beneath it."""
        found = [entry]
        for folder in found:
            found += [one.id for one in self.entries.values() if one.parent == folder]
        return found

    def apply(self, fact: f.Fact) -> None:
        """Let a fact become true."""
        match fact:
            case f.Person():
                before = self.people.get(fact.username)
                self.people[fact.username] = fact
                if before is not None and (fact.disabled or before.credentials != fact.credentials):
                    self._end_sessions(fact.username)
            case f.PersonGone():
                del self.people[fact.username]
                self._end_sessions(fact.username)
                self.grants = {key: grant for key, grant in self.grants.items() if grant.username != fact.username}
            case f.Session():
                self.sessions[fact.token_hash] = fact
            case f.SessionGone():
                del self.sessions[fact.token_hash]
            case f.Folder():
                self.entries[fact.id] = fact
            case f.File():
                old = self.entries.get(fact.id)
                if isinstance(old, f.File) and old.version.attempt != fact.version.attempt:
                    self.superseded.add(old.version.attempt)
                self.entries[fact.id] = fact
            case f.EntryGone():
                for entry in self.beneath(fact.id):
                    old = self.entries.pop(entry)
                    if isinstance(old, f.File):
                        self.superseded.add(old.version.attempt)
                    self.grants = {key: grant for key, grant in self.grants.items() if grant.entry != entry}
            case f.Grant():
                self.grants[(fact.entry, fact.username)] = fact
            case f.GrantGone():
                del self.grants[(fact.entry, fact.username)]
            case f.Server():
                self.servers[fact.name] = fact
            case f.ServerGone():
                del self.servers[fact.name]
            case f.Settings():
                self.settings = fact

    def _end_sessions(self, username: str) -> None:
        self.sessions = {key: one for key, one in self.sessions.items() if one.username != username}

    def _draw(self) -> bytes:
        self.drawn += 1
        return self.drawn.to_bytes(16)

    # --- what could happen next ---

    def next_change(self, choose: Choose) -> tuple[f.Fact, ...]:
        """The facts of something that a catalogue could decide on now; they are true afterwards."""
        possible = [found for found in (move(self, choose) for move in _MOVES) if found]
        facts: tuple[f.Fact, ...] = choose(possible)
        for fact in facts:
            self.apply(fact)
        return facts


Move = Callable[[World, Choose], tuple[f.Fact, ...]]


def _files(world: World) -> list[f.File]:
    return [entry for entry in world.entries.values() if isinstance(entry, f.File)]


def _folders(world: World) -> list[f.Folder]:
    return [entry for entry in world.entries.values() if isinstance(entry, f.Folder)]


def _free_places(world: World, folders: list[f.Folder]) -> list[tuple[f.Folder, str]]:
    taken = {(entry.parent, entry.name) for entry in world.entries.values()}
    return [(folder, name) for folder in folders for name in NAMES if (folder.id, name) not in taken]


def _add_person(world: World, choose: Choose) -> tuple[f.Fact, ...]:
    absent = [name for name in PEOPLE if name not in world.people]
    if not absent:
        return ()
    name = choose(absent)
    person = f.Person(
        username=name,
        email=f"{name}@example.org",
        administrator=choose([False, True]),
        valid_from=0.5,
        valid_until=choose([None, 9.0]),
        disabled=False,
        quota_bytes=choose([None, 2**40]),
        credentials=int.from_bytes(world._draw()),
    )
    return person, f.Folder(id=EntryId(world._draw()), owner=name, parent=None, name=name, created_at=1.0)


def _change_person(world: World, choose: Choose) -> tuple[f.Fact, ...]:
    if not world.people:
        return ()
    person = choose(list(world.people.values()))
    return (
        choose(
            [
                attrs.evolve(person, credentials=person.credentials + 1),
                attrs.evolve(person, disabled=not person.disabled),
                attrs.evolve(person, administrator=not person.administrator),
            ]
        ),
    )


def _remove_person(world: World, choose: Choose) -> tuple[f.Fact, ...]:
    if not world.people:
        return ()
    name = choose(list(world.people))
    root = next(folder for folder in _folders(world) if folder.parent is None and folder.owner == name)
    return f.EntryGone(id=root.id), f.PersonGone(username=name)


def _sign_in(world: World, choose: Choose) -> tuple[f.Fact, ...]:
    able = [person.username for person in world.people.values() if not person.disabled]
    return (f.Session(token_hash=world._draw(), username=choose(able), expires_at=7.25),) if able else ()


def _sign_out(world: World, choose: Choose) -> tuple[f.Fact, ...]:
    return (f.SessionGone(token_hash=choose(list(world.sessions))),) if world.sessions else ()


def _make_folder(world: World, choose: Choose) -> tuple[f.Fact, ...]:
    free = _free_places(world, _folders(world))
    if not free:
        return ()
    parent, name = choose(free)
    return (f.Folder(id=EntryId(world._draw()), owner=parent.owner, parent=parent.id, name=name, created_at=2.0),)


def _version(world: World, choose: Choose, number: int) -> Version:
    holders = choose([NODES[:1], NODES[:2], NODES[1:], NODES])
    attempt = AttemptId(world._draw())
    return Version(
        number=number,
        attempt=attempt,
        size=choose([0, 3, 10]),
        digest=attempt.value * 2,
        algorithm=choose([DigestAlgorithm.SHA256, DigestAlgorithm.SHA3_512]),
        committed_at=3.0,
        committed_by=choose(PEOPLE),
        copies=tuple(Copy(node=node, priority=priority, durable=priority < 2) for priority, node in enumerate(holders)),
    )


def _make_file(world: World, choose: Choose) -> tuple[f.Fact, ...]:
    free = _free_places(world, _folders(world))
    if not free:
        return ()
    parent, name = choose(free)
    version = _version(world, choose, 1)
    return (f.File(id=EntryId(world._draw()), owner=parent.owner, parent=parent.id, name=name, created_at=2.5, version=version),)


def _modify(world: World, choose: Choose) -> tuple[f.Fact, ...]:
    if not _files(world):
        return ()
    file = choose(_files(world))
    return (attrs.evolve(file, version=_version(world, choose, file.version.number + 1)),)


def _repair(world: World, choose: Choose) -> tuple[f.Fact, ...]:
    pending = [file for file in _files(world) if not all(copy.durable for copy in file.version.copies)]
    if not pending:
        return ()
    file = choose(pending)
    copies = tuple(attrs.evolve(copy, durable=True) for copy in file.version.copies)
    return (attrs.evolve(file, version=attrs.evolve(file.version, copies=copies)),)


def _move(world: World, choose: Choose) -> tuple[f.Fact, ...]:
    movable = [entry for entry in world.entries.values() if entry.parent is not None]
    if not movable:
        return ()
    entry = choose(movable)
    below = world.beneath(entry.id)
    free = _free_places(world, [folder for folder in _folders(world) if folder.owner == entry.owner and folder.id not in below])
    if not free:
        return ()
    parent, name = choose(free)
    return (attrs.evolve(entry, parent=parent.id, name=name),)


def _delete(world: World, choose: Choose) -> tuple[f.Fact, ...]:
    there = [entry.id for entry in world.entries.values() if entry.parent is not None]
    return (f.EntryGone(id=choose(there)),) if there else ()


def _give(world: World, choose: Choose) -> tuple[f.Fact, ...]:
    if not world.entries or not world.people:
        return ()
    entry, who = choose(list(world.entries)), choose(list(world.people))
    return (f.Grant(entry=entry, username=who, role=choose(GRANTABLE), granted_by=choose(PEOPLE)),)


def _take(world: World, choose: Choose) -> tuple[f.Fact, ...]:
    if not world.grants:
        return ()
    entry, who = choose(list(world.grants))
    return (f.GrantGone(entry=entry, username=who),)


def _put_server(world: World, choose: Choose) -> tuple[f.Fact, ...]:
    name = choose(NODES)
    return (
        f.Server(
            name=name,
            kind=choose(ServerKind),
            url=f"https://{name}:9443",
            protocol_address=f"{name}:9444",
            public_key=b"key of " + name.encode(),
            status=choose(Status),
            syslog_address=choose(["", f"{name}:6514"]),
            boot=choose(["", "b1", "b2"]),
            offline=choose([False, True]),
        ),
    )


def _remove_server(world: World, choose: Choose) -> tuple[f.Fact, ...]:
    return (f.ServerGone(name=choose(list(world.servers))),) if world.servers else ()


def _set(world: World, choose: Choose) -> tuple[f.Fact, ...]:
    settings = ClusterSettings(replicas=choose([0, 1, 2]), digest=choose(DigestAlgorithm), write_copies=choose([None, 1]))
    return (f.Settings(cluster="c", settings=settings),)


_MOVES: tuple[Move, ...] = (
    _add_person,
    _make_file,
    _modify,
    _make_folder,
    _move,
    _delete,
    _give,
    _take,
    _sign_in,
    _sign_out,
    _change_person,
    _remove_person,
    _repair,
    _put_server,
    _remove_server,
    _set,
)


@attrs.frozen
class History:
    """Changes from revision 1 on, and what is true after the last."""

    changes: tuple[f.Change, ...]
    world: World = attrs.field(repr=False)

    @property
    def facts(self) -> list[f.Fact]:
        """All facts, in order."""
        return [fact for change in self.changes for fact in change.facts]


def history(random: Random, length: int) -> History:
    """A history of that many changes; the first makes a person, without whom little can happen."""

    def choose(some: Any) -> Any:
        return random.choice(list(some))

    world = World()
    changes = []
    for revision in range(1, length + 1):
        if revision == 1:
            facts = _add_person(world, choose)
            for fact in facts:
                world.apply(fact)
        else:
            facts = world.next_change(choose)
        changes.append(f.Change(revision=revision, facts=facts))
    return History(tuple(changes), world)


@st.composite
def histories(draw: st.DrawFn, length_max: int = 30) -> History:
    """Histories of up to so many changes."""
    random = draw(st.randoms(use_true_random=False))
    return history(random, draw(st.integers(1, length_max)))
