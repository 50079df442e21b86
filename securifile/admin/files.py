"""Files, folders and rights in the catalogue: every change of them is decided here, in one transaction each (commits: `commits.py`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import Deferred

from securifile.admin.commits import Commits, check_person, check_role, under_key
from securifile.admin.copies import Copies
from securifile.admin.ledger import Decision, Entered, Ledger
from securifile.model.errors import Code, Refusal
from securifile.model.facts import Entry, EntryGone, File, Folder, Grant, GrantGone
from securifile.model.ids import AttemptId, EntryId, Position
from securifile.model.roles import Action, Role
from securifile.protocol import messages as m
from securifile.protocol.codec import decode_value
from securifile.sql import directory


class Files:
    """Commits of versions, and what people do with files and folders."""

    def __init__(self, ledger: Ledger, wall: Callable[[], float]) -> None:
        self._ledger = ledger
        self._wall = wall
        self._commits = Commits(ledger, wall)
        self._copies = Copies(ledger)

    # --- versions ---

    def commit(self, asked: m.Commit, node: str) -> Deferred[m.Committed]:
        """Make an attempt a version: see `Commits.commit`."""
        return self._commits.commit(asked, node)

    def outcome(self, attempt: AttemptId, abandon: bool) -> Deferred[m.Outcome]:
        """How an attempt ended; with `abandon` it ends now if it has not yet, and can never be committed afterwards."""
        return Deferred.fromCoroutine(self._outcome(attempt, abandon))

    async def _outcome(self, attempt: AttemptId, abandon: bool) -> m.Outcome:
        async def ask(sql: Any) -> m.Outcome:
            if abandon:
                # In the same queue as commits: one of the two is first, and the other finds it.
                await self._ledger.guard(sql)
                if await sql.query("SELECT 1 FROM held WHERE attempt = :attempt", {"attempt": attempt.value}):
                    # Left to the administrator when the catalogue was made anew: nobody knows whether it was committed.
                    return m.Outcome(ended=None)
                await sql.execute(
                    "INSERT INTO attempts (attempt, ended, ended_at) VALUES (:attempt, 'abandoned', :at) ON CONFLICT (attempt) DO NOTHING",
                    {"attempt": attempt.value, "at": self._wall()},
                )
            rows = await sql.query("SELECT ended, answer FROM attempts WHERE attempt = :attempt", {"attempt": attempt.value})
            if not rows:
                return m.Outcome(ended=None)
            ended, answer = rows[0]
            return m.Outcome(ended=ended, committed=decode_value(m.Committed, bytes(answer)) if answer is not None else None)

        found: m.Outcome = await self._ledger.database.transact("outcome", ask)
        return found

    def by_key(self, asked: m.KeyAsk) -> Deferred[m.Outcome]:
        """What was answered under an Idempotency-Key. Raises `Refusal` when it was used for something else."""
        return Deferred.fromCoroutine(self._key(asked))

    async def _key(self, asked: m.KeyAsk) -> m.Outcome:
        async def ask(sql: Any) -> m.Outcome:
            rows = await sql.query(
                "SELECT request, answer FROM attempts WHERE person = :person AND idempotency_key = :key",
                {"person": asked.person, "key": asked.key},
            )
            if not rows:
                return m.Outcome(ended=None)
            request, answer = rows[0]
            return m.Outcome(
                ended="committed", committed=under_key(asked.request, bytes(request), decode_value(m.Committed, bytes(answer)))
            )

        found: m.Outcome = await self._ledger.database.read(ask)
        return found

    # --- copies ---

    def copy_made(self, asked: m.CopyMade, node: str) -> Deferred[m.Done]:
        """Note that a node has the blob that it was to have: see `Copies.note`."""
        return self._copies.note(asked.file, asked.attempt, node, durable=True)

    def copy_bad(self, asked: m.CopyBad, node: str) -> Deferred[m.Done]:
        """Note that a node's copy cannot be used: it is pending again."""
        return self._copies.note(asked.file, asked.attempt, node, durable=False)

    # --- folders, deletes, moves, rights ---

    def act(self, asked: m.MakeFolder | m.Delete | m.Move | m.SetGrant) -> Deferred[m.Acted]:
        """Do what a person asks for with a file or folder.

        Raises:
            Refusal: nothing was changed; the code says why. What the person may not even read is `not-found`.
        """
        return Deferred.fromCoroutine(self._act(asked))

    async def _act(self, asked: m.MakeFolder | m.Delete | m.Move | m.SetGrant) -> m.Acted:
        async def decide(sql: Any, position: Position) -> Decision[None]:
            now = self._wall()
            if isinstance(asked, m.MakeFolder):
                return await self._make_folder(sql, asked, now)
            if isinstance(asked, m.Delete):
                return await self._delete(sql, asked, now)
            if isinstance(asked, m.Move):
                return await self._move(sql, asked, now)
            return await self._set_grant(sql, asked, now)

        entered: Entered[None] = await self._ledger.enter(type(asked).__name__, decide)
        return m.Acted(position=entered.position, facts=entered.facts)

    async def _make_folder(self, sql: Any, asked: m.MakeFolder, now: float) -> Decision[None]:
        parent = await self._authorised(sql, asked.person, asked.parent, Action.CREATE, now)
        await self._free(sql, parent, asked.name)
        return Decision(facts=(Folder(id=asked.id, owner=parent.owner, parent=parent.id, name=asked.name, created_at=now),), answer=None)

    async def _delete(self, sql: Any, asked: m.Delete, now: float) -> Decision[None]:
        entry = await self._authorised(sql, asked.person, asked.entry, Action.DELETE, now)
        if entry.parent is None:
            raise Refusal(Code.FORBIDDEN, "A person's root folder cannot be deleted. Delete what is in it.")
        if isinstance(entry, File):
            if asked.version is not None and asked.version != entry.version.number:
                raise Refusal(Code.PRECONDITION_FAILED, "The file has been modified since. Look at it, then delete again.")
        elif not asked.recursive and await directory.children(sql, entry.id, "", 1):
            raise Refusal(Code.FOLDER_NOT_EMPTY, "The folder is not empty. Add ?recursive=1 to delete everything in it.")
        return Decision(facts=(EntryGone(id=entry.id),), answer=None)

    async def _move(self, sql: Any, asked: m.Move, now: float) -> Decision[None]:
        entry = await self._authorised(sql, asked.person, asked.entry, Action.MOVE, now)
        parent = await self._authorised(sql, asked.person, asked.parent, Action.MOVE, now)
        if entry.parent is None:
            raise Refusal(Code.FORBIDDEN, "A person's root folder cannot be moved.")
        if entry.owner != parent.owner:
            raise Refusal(Code.FORBIDDEN, "A move cannot change the owner. Download and upload instead.")
        if any(above.id == entry.id for above in await directory.ancestry(sql, parent.id)):
            raise Refusal(Code.CONFLICT, "A folder cannot be moved into itself.")
        if entry.parent == parent.id and entry.name == asked.name:
            return Decision(facts=(), answer=None)
        await self._free(sql, parent, asked.name)
        return Decision(facts=(attrs.evolve(entry, parent=parent.id, name=asked.name),), answer=None)

    async def _set_grant(self, sql: Any, asked: m.SetGrant, now: float) -> Decision[None]:
        leaving = asked.username == asked.person and asked.role is None
        entry = await self._authorised(sql, asked.person, asked.entry, Action.READ if leaving else Action.SHARE, now)
        if asked.username == entry.owner:
            raise Refusal(Code.FORBIDDEN, "The owner's rights cannot be given or taken.")
        if asked.role is None:
            if asked.username not in {grant.username for grant in await directory.grants_on(sql, entry.id)}:
                raise Refusal(Code.NOT_FOUND, f"{asked.username} has no right of their own here.")
            return Decision(facts=(GrantGone(entry=entry.id, username=asked.username),), answer=None)
        if asked.role is Role.OWNER:
            raise Refusal(Code.BAD_REQUEST, "Ownership cannot be given. Choose master, editor or reader.")
        if await directory.person(sql, asked.username) is None:
            raise Refusal(Code.NOT_FOUND, f"There is no person {asked.username}.")
        grant = Grant(entry=entry.id, username=asked.username, role=asked.role, granted_by=asked.person)
        return Decision(facts=(grant,), answer=None)

    async def _free(self, sql: Any, parent: Entry, name: str) -> None:
        if not isinstance(parent, Folder):
            raise Refusal(Code.NOT_A_FOLDER, "The path leads through a file. Choose a folder.")
        if await directory.child(sql, parent.id, name) is not None:
            raise Refusal(Code.EXISTS, "There is something at this path already. Choose another name, or delete it first.")

    async def _authorised(self, sql: Any, username: str, entry: EntryId, action: Action, now: float) -> Entry:
        """The entry, if the person may do that with it at this moment."""
        check_person(await directory.person(sql, username), now)
        chain = await directory.ancestry(sql, entry)
        check_role(await directory.role_along(sql, username, chain), action)
        return chain[-1]
