"""Questions about people, files and rights, on both engines."""

from __future__ import annotations

from random import Random
from typing import Any

import attrs
import pytest
import pytest_twisted

from securifile.model import facts as f
from securifile.model.ids import AttemptId, EntryId
from securifile.model.roles import Role
from securifile.model.servers import ServerKind
from securifile.sql import directory
from securifile.sql.sqlite import SqliteDatabase, run_now
from securifile.sql.tables import FACT_TABLES, spelled
from tests.histories import NODES, PEOPLE, History, World, history
from tests.sql.test_facts import PASTS, Tables, file_in, tables

__all__ = ["tables"]


def path_of(world: World, entry: f.Entry) -> tuple[str, ...]:
    """The names from beneath the root down to the entry."""
    names: list[str] = []
    while entry.parent is not None:
        names.insert(0, entry.name)
        entry = world.entries[entry.parent]
    return tuple(names)


@pytest.mark.parametrize("past", PASTS)
@pytest_twisted.ensureDeferred
async def test_every_entry_is_found_by_its_path_and_by_its_id(tables: Tables, past: History) -> None:
    """A path leads to what is there, with all its copies in order, and its chain is the ancestry of that entry."""
    await tables.empty()
    await tables.apply(past.facts)
    world = past.world

    async def ask(sql: Any) -> None:
        for entry in world.entries.values():
            path = path_of(world, entry)
            found = await directory.place(sql, entry.owner, path)
            assert found.entry == entry
            assert found.chain == await directory.ancestry(sql, entry.id)
            assert found.parent == (None if entry.parent is None else world.entries[entry.parent])
            assert await directory.entry_by_id(sql, entry.id) == entry
            if isinstance(entry, f.File):
                assert await directory.file_by_attempt(sql, entry.id, entry.version.attempt) == entry
                assert await directory.file_by_attempt(sql, entry.id, AttemptId(b"?" * 16)) is None
            else:
                below = {one.name: one for one in world.entries.values() if one.parent == entry.id}
                assert await directory.children(sql, entry.id, "", 100) == [below[name] for name in sorted(below)]
                beyond = await directory.place(sql, entry.owner, (*path, "nothing", "here"))
                assert (beyond.entry, beyond.parent) == (None, None)
                new = await directory.place(sql, entry.owner, (*path, "nothing"))
                assert (new.entry, new.parent) == (None, entry)
        for entry_id in (EntryId(b"?" * 16),):
            assert await directory.entry_by_id(sql, entry_id) is None
            assert await directory.ancestry(sql, entry_id) == ()

    await tables.do(ask)


@pytest.mark.parametrize("past", PASTS)
@pytest_twisted.ensureDeferred
async def test_a_role_is_inherited_and_the_strongest_counts(tables: Tables, past: History) -> None:
    """A person is the owner of all that is theirs; else the strongest of what was granted on the entry and above it."""
    await tables.empty()
    await tables.apply(past.facts)
    world = past.world
    order = [Role.MASTER, Role.EDITOR, Role.READER]

    async def ask(sql: Any) -> None:
        for entry in world.entries.values():
            chain = await directory.ancestry(sql, entry.id)
            above = {one.id for one in chain}
            for username in PEOPLE:
                given_roles = {grant.role for grant in world.grants.values() if grant.username == username and grant.entry in above}
                expected = Role.OWNER if entry.owner == username else next((role for role in order if role in given_roles), None)
                assert await directory.role_along(sql, username, chain) is expected
            own = [grant for grant in world.grants.values() if grant.entry == entry.id]
            assert await directory.grants_on(sql, entry.id) == sorted(own, key=lambda grant: grant.username)
        assert await directory.role_along(sql, "ann", ()) is None

    await tables.do(ask)


@pytest.mark.parametrize("past", PASTS)
@pytest_twisted.ensureDeferred
async def test_lists_are_complete_page_by_page(tables: Tables, past: History) -> None:
    """What is shared with a person, and the files a person owns, come in pages that together are everything, with paths."""
    await tables.empty()
    await tables.apply(past.facts)
    world = past.world

    async def pages(question: Any, sql: Any, username: str) -> list[directory.Located]:
        found: list[directory.Located] = []
        while page := await question(sql, username, found[-1].entry.id.value if found else b"", 2):
            found += page
        return found

    async def ask(sql: Any) -> None:
        for username in PEOPLE:
            shared = await pages(directory.shared_with, sql, username)
            granted = {grant.entry: grant.role for grant in world.grants.values() if grant.username == username}
            assert {one.entry.id: one.role for one in shared} == granted
            assert len(shared) == len(granted)
            files = await pages(directory.files_of, sql, username)
            assert [one.entry for one in files] == sorted(
                (one for one in world.entries.values() if isinstance(one, f.File) and one.owner == username), key=lambda one: one.id
            )
            for one in shared + files:
                assert one.segments == path_of(world, one.entry)

    await tables.do(ask)


@pytest.mark.parametrize("past", PASTS)
@pytest_twisted.ensureDeferred
async def test_what_a_node_holds_is_shared_with_others_or_its_alone(tables: Tables, past: History) -> None:
    """Page by page: all that it holds, and of each whether one of the other nodes that were asked about holds it, too."""
    await tables.empty()
    await tables.apply(past.facts)
    files = {entry.id: entry for entry in past.world.entries.values() if isinstance(entry, f.File)}

    async def held_by(sql: Any, node: str, others: list[str]) -> list[directory.Held]:
        found: list[directory.Held] = []
        while page := await directory.held_by(sql, node, others, found[-1].file.value if found else b"", 2):
            found += page
        return found

    async def ask(sql: Any) -> None:
        for node in NODES:
            held = sorted(id_ for id_, file in files.items() if node in file.version.holders)
            for number in range(2 ** len(NODES)):
                others = [other for at, other in enumerate(NODES) if number >> at & 1 and other != node]
                assert await held_by(sql, node, others) == [
                    directory.Held(file=id_, size=files[id_].version.size, elsewhere=not set(files[id_].version.holders).isdisjoint(others))
                    for id_ in held
                ]

    await tables.do(ask)


@pytest_twisted.ensureDeferred
async def test_people_sessions_and_servers_are_found(tables: Tables) -> None:
    """Each is found by its name, and what is not there is None."""
    past = history(Random(8), 80)
    await tables.apply(past.facts)
    world = past.world

    async def ask(sql: Any) -> None:
        for name in PEOPLE:
            assert await directory.person(sql, name) == world.people.get(name)
            assert await directory.person_by_login(sql, name) == world.people.get(name)
            assert await directory.person_by_login(sql, f"{name}@example.org") == world.people.get(name)
        assert await directory.person_by_login(sql, "@example.org") is None
        for token, session in world.sessions.items():
            assert await directory.session(sql, token) == session
        assert await directory.session(sql, b"?") is None
        for name in NODES:
            assert await directory.server(sql, name) == world.servers.get(name)
        assert await directory.servers(sql) == [server for _, server in sorted(world.servers.items())]
        for kind in ServerKind:
            assert {one.kind for one in await directory.servers(sql, kind)} <= {kind}
        assert await directory.settings(sql) == world.settings

    await tables.do(ask)


@pytest_twisted.ensureDeferred
async def test_an_empty_index_knows_nothing(tables: Tables) -> None:
    """Before the first feed every question has an answer: none."""

    async def ask(sql: Any) -> None:
        assert await directory.settings(sql) is None
        assert await directory.usage(sql, "ann") == directory.Usage(files=0, bytes=0)
        empty = await directory.place(sql, "ann", ("a",))
        assert (empty.chain, empty.entry, empty.parent) == ((), None, None)
        assert (await directory.place(sql, "ann", ())).entry is None

    await tables.do(ask)


@pytest_twisted.ensureDeferred
async def test_a_path_does_not_lead_through_a_file(tables: Tables) -> None:
    """Beneath a file there is nothing, and nothing can be made there."""
    root = f.Folder(id=EntryId(b"r" * 16), owner="ann", parent=None, name="ann", created_at=0.0)
    file = attrs.evolve(file_in(root, b"d"), name="f")
    await tables.apply([root, file])

    async def ask(sql: Any) -> None:
        through = await directory.place(sql, "ann", ("f", "g"))
        assert (through.entry, through.parent, through.chain) == (None, None, (root, file))

    await tables.do(ask)


@attrs.define
class Counted:
    """Questions, counted."""

    sql: Any
    questions: int = 0

    async def query(self, *asked: Any) -> Any:
        self.questions += 1
        return await self.sql.query(*asked)


@pytest_twisted.ensureDeferred
async def test_a_page_takes_few_questions(tables: Tables) -> None:
    """However many files a page has: they and their copies are asked for together, and each folder above them once."""
    root = f.Folder(id=EntryId(b"r" * 16), owner="ann", parent=None, name="ann", created_at=0.0)
    folder = attrs.evolve(root, id=EntryId(b"s" * 16), parent=root.id, name="s")
    letters = [bytes([ord("a") + number]) for number in range(15)]
    files = [attrs.evolve(file_in(folder, letter), name=letter.decode()) for letter in letters]
    grants = [f.Grant(entry=file.id, username="bob", role=Role.READER, granted_by="ann") for file in files]
    await tables.apply([root, folder, *files, *grants])

    async def ask(sql: Any) -> None:
        for username, question in (("ann", directory.files_of), ("bob", directory.shared_with)):
            counted = Counted(sql)
            found = await question(counted, username, b"", 1000)
            assert [one.segments for one in found] == [("s", letter.decode()) for letter in letters]
            assert counted.questions <= 5

    await tables.do(ask)


def test_a_node_finds_a_path_without_looking_through_all_files() -> None:
    """Each question on the way has an index of its own for all that it names: the files that the owner has do not count."""
    database = SqliteDatabase(None)
    for statement in spelled(FACT_TABLES, "sqlite"):
        database.sql.execute_now(statement)
    plans: list[str] = []

    class Planned:
        """Asks, and notes how the answer is looked for."""

        async def query(self, statement: str, parameters: Any) -> Any:
            plans.extend(row[3] for row in database.sql.query_now(f"EXPLAIN QUERY PLAN {statement}", parameters))
            return database.sql.query_now(statement, parameters)

    run_now(directory.root(Planned(), "ann"))
    run_now(directory.child(Planned(), EntryId(b"r" * 16), "f"))
    assert plans == ["SEARCH entries USING INDEX entries_in_folder (parent=? AND name=?)"] * 2
