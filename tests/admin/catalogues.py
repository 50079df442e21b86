"""A catalogue for tests, on any database, with helpers that say in one line what a node or a person would ask."""

from __future__ import annotations

import random
from typing import Any

import argon2
import attrs

from securifile.admin.catalogue import Catalogue
from securifile.admin.ledger import Decision
from securifile.admin.people import NewPerson
from securifile.model.digests import DigestAlgorithm
from securifile.model.entries import Copy
from securifile.model.facts import File, Folder, Server
from securifile.model.ids import AttemptId, EntryId
from securifile.model.roles import Role
from securifile.model.servers import ServerKind, Status
from securifile.model.settings import ClusterSettings
from securifile.protocol import messages as m
from securifile.sql import directory
from securifile.workers import InlineWorker

PASSWORD = "correct horse battery"
NODES = ("n1", "n2", "n3")


class World:
    """A catalogue with what it was given: a wall clock that a test sets, and random bytes from a seed."""

    def __init__(self, database: Any, seed: int = 1) -> None:
        self.now = 1_800_000_000.0
        self.random = random.Random(seed)
        self.database = database
        self.catalogue = self.another(database)

    def another(self, database: Any) -> Catalogue:
        """One more catalogue, as another admin server would have."""
        return Catalogue(
            database,
            wall=lambda: self.now,
            random=self.random.randbytes,
            worker=InlineWorker(),
            hasher=argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1),
        )

    async def open(self, settings: ClusterSettings | None = None, life: str = "first life") -> None:
        """Open it, with three running nodes and two people."""
        settings = settings or ClusterSettings(replicas=1, write_copies=1)
        await self.catalogue.open(cluster="test", settings=settings, system_identifier=life)
        for name in NODES:
            await self.join(name)
        for username in ("alice", "bob"):
            await self.add(username)

    async def join(self, name: str, status: Status = Status.RUNNING) -> Server:
        """A node, member by a real invitation, of that status."""
        members = self.catalogue.members
        secret, _ = await members.invite(name)
        await members.enrol(secret, node(name))
        if status is not Status.DOWN:
            await self.hold({name: status})
        return self.catalogue.roster.servers[name]

    async def hold(self, statuses: dict[str, Status]) -> None:
        """Put servers to a status, whatever anybody thinks."""

        async def decide(sql: Any, position: Any) -> Any:
            servers = {server.name: server for server in await directory.servers(sql)}
            facts = tuple(attrs.evolve(servers[name], status=status) for name, status in statuses.items())
            return Decision(facts=facts, answer=None)

        await self.catalogue.ledger.enter("hold", decide)

    async def add(self, username: str, **more: Any) -> None:
        """An account."""
        await self.catalogue.people.add(NewPerson(username=username, email=f"{username}@example.org", password=PASSWORD, **more))

    async def place(self, path: str) -> directory.Place:
        """Where `owner/a/b` leads."""
        owner, *segments = path.split("/")
        place: directory.Place = await self.catalogue.read(lambda sql: directory.place(sql, owner, tuple(segments)))
        return place

    async def entry(self, path: str) -> Any:
        """What is at `owner/a/b`."""
        return (await self.place(path)).entry

    def id(self) -> EntryId:
        """A fresh id."""
        return EntryId(self.random.randbytes(16))

    async def upload(self, path: str, *, by: str | None = None, **more: Any) -> m.Commit:
        """The commit of an upload to `owner/a/b` as things are now: to be passed to `commit`."""
        place = await self.place(path)
        before = place.entry
        parent = place.parent
        assert parent is not None, path
        asked = m.Commit(
            attempt=AttemptId(self.random.randbytes(16)),
            person=by or place.owner,
            owner=place.owner,
            parent=parent.id,
            name=place.segments[-1],
            file=self.id() if before is None else before.id,
            number=before.version.number + 1 if isinstance(before, File) else 1,
            size=10,
            digest=b"\1" * 32,
            algorithm=DigestAlgorithm.SHA256,
            copies=(Copy(node="n1", priority=0, durable=True), Copy(node="n2", priority=1, durable=True)),
        )
        return attrs.evolve(asked, **more)

    async def put(self, path: str, *, by: str | None = None, **more: Any) -> m.Committed:
        """Upload and commit."""
        committed: m.Committed = await self.catalogue.files.commit(await self.upload(path, by=by, **more), "n1")
        return committed

    async def make_folder(self, path: str, *, by: str | None = None) -> Folder:
        """A folder at `owner/a/b`."""
        place = await self.place(path)
        assert place.parent is not None
        asked = m.MakeFolder(person=by or place.owner, owner=place.owner, parent=place.parent.id, name=place.segments[-1], id=self.id())
        acted = await self.catalogue.files.act(asked)
        folder = acted.facts[0]
        assert isinstance(folder, Folder)
        return folder

    async def delete(self, path: str, *, by: str | None = None, recursive: bool = False, version: int | None = None) -> None:
        """Delete what is there."""
        entry = await self.entry(path)
        await self.catalogue.files.act(m.Delete(person=by or path.split("/")[0], entry=entry.id, recursive=recursive, version=version))

    async def move(self, source: str, target: str, *, by: str | None = None) -> None:
        """Move."""
        entry, place = await self.entry(source), await self.place(target)
        assert place.parent is not None
        await self.catalogue.files.act(
            m.Move(person=by or source.split("/")[0], entry=entry.id, parent=place.parent.id, name=place.segments[-1])
        )

    async def grant(self, path: str, username: str, role: Role | None, *, by: str | None = None) -> None:
        """Give or take (None) a right."""
        entry = await self.entry(path)
        await self.catalogue.files.act(m.SetGrant(person=by or path.split("/")[0], entry=entry.id, username=username, role=role))


def node(name: str, number: int = 1) -> Server:
    """A node as it asks to be enrolled."""
    return Server(
        name=name,
        kind=ServerKind.NODE,
        url=f"https://{name}.example:944{number}",
        protocol_address=f"{name}.example:945{number}",
        public_key=name.encode(),
        status=Status.RUNNING,
    )
