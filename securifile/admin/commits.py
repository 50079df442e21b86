"""Commits of versions: those that wait at the same time are decided together, in one transaction.

    commit ──► waiting ──► a group ──► lock the ledger's row            ┐
    commit ──►                         look up attempts and places      │ one transaction, four trips to the database,
    commit ──►                         decide, one after the other      │ however many commits are in the group
                                       write everything, COMMIT         ┘

A group is what has gathered while the group before was under way and the row was being locked; nobody waits for company. Each commit is
decided as if it came alone after those before it: it gets the next revision, or a refusal of its own, which costs the others nothing, since
nothing is written before all are decided. Should the database refuse what was written, each is decided again, alone.

What changes seldom (servers, settings, people, folders and the rights on them) is remembered from group to group, for as long as the
ledger's row shows that nothing was committed but what was heard of here, and until something is heard of that is not a file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from securifile.admin.ledger import Decisions, Ledger, following
from securifile.model.entries import Copy, Version
from securifile.model.errors import Code, DatabaseUnavailable, OutcomeUnknown, Refusal
from securifile.model.facts import Change, Entry, Fact, File, Folder, Person, Server, Settings
from securifile.model.ids import AttemptId, EntryId, Position
from securifile.model.people import check_account
from securifile.model.roles import Action, Role, permits
from securifile.model.servers import Status
from securifile.protocol import messages as m
from securifile.protocol.codec import decode_value, encode_value
from securifile.sql import directory
from securifile.sql.dialects import insert_rows
from securifile.sql.facts import ENTRY_COLUMNS, entry_of, put_files

T = TypeVar("T")

GROUP_MAX = 64
"""Commits in one transaction: a statement of some hundred kilobytes, and at most some ten milliseconds for those that come next."""

REMEMBERED_MAX = 10_000
"""Answers that are remembered, of about 1 KiB each."""

RETRY_SOON_S = 1.0
"""When a refused commit is worth a new upload: the cluster's status settles within a few heartbeats."""


@attrs.frozen(eq=False)
class _Waiting:
    """A commit that is to be decided, and who asked for it."""

    asked: m.Commit
    node: str
    answer: Deferred[m.Committed]


class Commits:
    """Makes attempts versions."""

    _log = Logger()

    def __init__(self, ledger: Ledger, wall: Callable[[], float]) -> None:
        self._ledger = ledger
        self._wall = wall
        self._waiting: deque[_Waiting] = deque()
        self._deciding = False
        self._remembered: dict[Hashable, Any] = {}
        self._judging = Judging
        ledger.listen(self._learn)
        ledger.on_renewal(self._renew)

    def commit(self, asked: m.Commit, node: str) -> Deferred[m.Committed]:
        """Make an attempt a version, if it is the next one (compare-and-swap) and may be made.

        Committing a committed attempt again, or another attempt under the same Idempotency-Key, gives the first answer.
        Cancelled before it is decided, it is not done; later it may be.

        Args:
            node: that asks.

        Raises:
            Refusal: nothing was committed; the code says why.
            DatabaseUnavailable: nothing was committed.
            OutcomeUnknown: ask how the attempt ended.
        """
        waiting = _Waiting(asked, node, Deferred())
        self._waiting.append(waiting)
        if not self._deciding:
            self._deciding = True
            deciding = Deferred.fromCoroutine(self._decide_all())
            deciding.addErrback(lambda failure: self._log.failure("deciding commits has stopped", failure))
        return waiting.answer

    async def _decide_all(self) -> None:
        try:
            while self._waiting:
                await self._decide_together()
        finally:
            self._deciding = False

    async def _decide_together(self) -> None:
        """Decide those that wait, and answer each. Never raises but when it is cancelled."""
        group: list[_Waiting] = []

        def gather() -> list[_Waiting]:
            # Not before the ledger's row is locked: so those are in it who came meanwhile.
            while self._waiting and len(group) < GROUP_MAX:
                group.append(self._waiting.popleft())
            return group

        try:
            outcomes = await self._ledger.enter_all("commit", lambda sql, before: self._in_one(sql, before, gather()))
        except (Refusal, DatabaseUnavailable, OutcomeUnknown) as error:
            # Before the row was locked it is the same for all that wait.
            for one in group or gather():
                _answer(one, error)
        except Exception as error:
            # Something in one of them; that one alone has to answer for it.
            self._log.warn("{count} commits are decided one by one: {problem}", count=len(group), problem=str(error))
            for one in group or gather():
                await self._decide_alone(one)
        else:
            for one, outcome in zip(group, outcomes, strict=True):
                _answer(one, outcome)

    async def _decide_alone(self, one: _Waiting) -> None:
        try:
            (outcome,) = await self._ledger.enter_all("commit", lambda sql, before: self._in_one(sql, before, [one]))
        except Exception as error:
            _answer(one, error)
        else:
            _answer(one, outcome)

    async def _in_one(self, sql: Any, before: Position, group: Sequence[_Waiting]) -> Decisions[list[m.Committed | Exception]]:
        # The row that orders all commits says whether something was committed that was not heard of here.
        remembered = self._remembered if before == self._ledger.position else {}
        if len(remembered) > REMEMBERED_MAX:
            remembered.clear()
        judging = self._judging(sql, remembered, self._wall(), before)
        await judging.look([one.asked for one in group])
        outcomes: list[m.Committed | Exception] = []
        for one in group:
            try:
                # Who was cancelled meanwhile hears nothing of it.
                outcomes.append(_cancelled() if one.answer.called else await judging.decide(one.asked, one.node))
            except Refusal as refusal:
                outcomes.append(refusal)
        judging.write()
        return Decisions(changes=judging.changes, answer=outcomes)

    def _learn(self, position: Position, change: Change) -> None:
        # Nothing lies beneath a file.
        if not all(isinstance(fact, File) for fact in change.facts):
            self._remembered.clear()

    async def _renew(self) -> None:
        self._remembered.clear()


def _answer(one: _Waiting, outcome: m.Committed | Exception) -> None:
    if one.answer.called:
        return
    if isinstance(outcome, Exception):
        one.answer.errback(outcome)
    else:
        one.answer.callback(outcome)


def _cancelled() -> Refusal:
    return Refusal(Code.TIMEOUT, "The commit was cancelled before it was decided.")


class Judging:
    """The decisions of one group, within its transaction: what was looked up, what was decided, what is to be written."""

    def __init__(self, sql: Any, remembered: dict[Hashable, Any], now: float, before: Position) -> None:
        """Args:
        remembered: answers to questions about what is not a file, as of `before`.
        now: wall clock.
        before: of the last change.
        """
        self._sql = sql
        self._remembered = remembered
        self._now = now
        self._position = before
        self._ended: dict[AttemptId, m.Committed | None] = {}
        """How attempts ended; None: abandoned."""
        self._keys: dict[tuple[str, str], tuple[bytes, m.Committed]] = {}
        """By person and Idempotency-Key: what was asked for, and answered."""
        self._entries: dict[EntryId, Entry] = {}
        self._places: dict[tuple[EntryId | None, str], Entry] = {}
        """What is there, by folder and name. Files are without their copies, which are to be replaced."""
        self._used: dict[str, int] = {}
        """Bytes, of owners whose quota had to be looked at."""
        self._made: list[tuple[m.Commit, File, File | None, m.Committed]] = []
        """What is asked for, the file as it becomes, and as it was; and the answer."""

    @property
    def changes(self) -> tuple[tuple[Fact, ...], ...]:
        """The facts of each change, in order."""
        return tuple((file,) for _, file, _, _ in self._made)

    async def look(self, asked: Sequence[m.Commit]) -> None:
        """Look up what the commits are about, with one question of each kind for all."""
        rows = await self._sql.query(
            "SELECT attempt, ended, answer FROM attempts WHERE attempt IN :attempts",
            {"attempts": tuple(one.attempt.value for one in asked)},
        )
        for attempt, ended, answer in rows:
            self._ended[AttemptId(bytes(attempt))] = _committed(answer) if ended == "committed" else None
        keyed = [one for one in asked if one.key is not None]
        if keyed:
            rows = await self._sql.query(
                "SELECT person, idempotency_key, request, answer FROM attempts WHERE person IN :people AND idempotency_key IN :keys",
                {"people": {one.person for one in keyed}, "keys": {one.key for one in keyed}},
            )
            self._keys = {(person, key): (bytes(request), _committed(answer)) for person, key, request, answer in rows}
        rows = await self._sql.query(
            f"SELECT {ENTRY_COLUMNS} FROM entries WHERE id IN :ids"
            f" UNION ALL SELECT {ENTRY_COLUMNS} FROM entries WHERE parent IN :parents AND name IN :names",
            {
                "ids": tuple(one.file.value for one in asked),
                "parents": {one.parent.value for one in asked},
                "names": {one.name for one in asked},
            },
        )
        for row in rows:
            self._note(entry_of(row, ()))

    def _note(self, entry: Entry) -> None:
        self._entries[entry.id] = entry
        self._places[entry.parent, entry.name] = entry

    # --- deciding ---

    async def decide(self, asked: m.Commit, node: str) -> m.Committed:
        """The answer to a commit; if it is done only now, as the next change. Raises `Refusal`."""
        earlier = self._earlier(asked)
        if earlier is not None:
            return earlier
        copies = await self._counted_copies(asked, node)
        before = await self._writable(asked)
        version = Version(
            number=asked.number,
            attempt=asked.attempt,
            size=asked.size,
            digest=asked.digest,
            algorithm=asked.algorithm,
            committed_at=self._now,
            committed_by=asked.person,
            copies=copies,
        )
        file = (
            attrs.evolve(before, version=version)
            if before is not None
            else File(id=asked.file, owner=asked.owner, parent=asked.parent, name=asked.name, created_at=self._now, version=version)
        )
        self._position = following(self._position)
        answer = m.Committed(position=self._position, facts=(file,), attempt=asked.attempt, created=before is None)
        self._made.append((asked, file, before, answer))
        self._ended[asked.attempt] = answer
        if asked.key is not None:
            self._keys[asked.person, asked.key] = (asked.request, answer)
        self._note(file)
        if file.owner in self._used:
            self._used[file.owner] += asked.size - (0 if before is None else before.version.size)
        return answer

    def _earlier(self, asked: m.Commit) -> m.Committed | None:
        if asked.attempt in self._ended:
            committed = self._ended[asked.attempt]
            if committed is None:
                raise Refusal(Code.ATTEMPT_ABANDONED, "This upload was given up before it was committed. Upload again.")
            return committed
        if asked.key is None or (asked.person, asked.key) not in self._keys:
            return None
        return under_key(asked.request, *self._keys[asked.person, asked.key])

    async def _counted_copies(self, asked: m.Commit, node: str) -> tuple[Copy, ...]:
        """The copies as they are recorded: one on a server that is not running does not count as durable."""
        servers: list[Server] = await self._recall("servers", lambda: directory.servers(self._sql))
        running = {server.name for server in servers if server.status is Status.RUNNING}
        if node not in running:
            raise Refusal(Code.NOT_RUNNING, f"Node {node} is not running. Upload to another node.", retry_after_s=RETRY_SOON_S)
        copies = tuple(attrs.evolve(copy, durable=copy.durable and copy.node in running) for copy in asked.copies)
        settings: Settings | None = await self._recall("settings", lambda: directory.settings(self._sql))
        assert settings is not None, "a catalogue has settings from its first transaction on"
        durable = sum(copy.durable for copy in copies)
        if durable < settings.settings.copies_needed:
            raise Refusal(
                Code.NO_ROOM,
                f"Only {durable} running nodes have the file, {settings.settings.copies_needed} are needed. Upload again.",
                retry_after_s=RETRY_SOON_S,
                durable=durable,
                needed=settings.settings.copies_needed,
            )
        return copies

    async def _writable(self, asked: m.Commit) -> File | None:
        """The file as it is now (None: it will be new), after checking everything that must hold at this moment."""
        before: File | None = None
        if asked.number == 1:
            chain = await self._chain(asked.parent)
            await self._check_permitted(asked.person, chain, Action.CREATE)
            if not isinstance(chain[-1], Folder):
                raise Refusal(Code.NOT_A_FOLDER, "The path leads through a file. Choose a folder.")
            if chain[-1].owner != asked.owner:
                raise Refusal(Code.CONFLICT, f"The folder is not {asked.owner}'s any more. Look at it, then upload again.")
            if (asked.parent, asked.name) in self._places or asked.file in self._entries:
                raise Refusal(Code.CONFLICT, "Someone else created this path at the same time. Look at it, then upload again.")
        else:
            entry = self._entries.get(asked.file)
            above = () if entry is None or entry.parent is None else await self._chain(entry.parent)
            await self._check_permitted(asked.person, () if entry is None else (*above, entry), Action.MODIFY)
            if not isinstance(entry, File) or entry.version.number != asked.number - 1:
                raise Refusal(Code.CONFLICT, "Someone else modified this file at the same time. Look at it, then upload again.")
            before = entry
        await self._check_quota(asked, before, asked.owner if before is None else before.owner)
        return before

    async def _check_permitted(self, username: str, chain: Sequence[Entry], action: Action) -> None:
        """Raise `Refusal` unless the person may do that with the last entry of a chain at this moment."""
        check_person(await self._person(username), self._now)
        key = ("role", username, *(entry.id for entry in chain))
        check_role(await self._recall(key, lambda: directory.role_along(self._sql, username, chain)), action)

    async def _check_quota(self, asked: m.Commit, before: File | None, username: str) -> None:
        owner = await self._person(username)
        if owner is None or owner.quota_bytes is None:
            return
        if username not in self._used:
            self._used[username] = (await directory.usage(self._sql, username)).bytes + sum(
                file.version.size - (0 if was is None else was.version.size) for _, file, was, _ in self._made if file.owner == username
            )
        size_before = 0 if before is None else before.version.size
        after = self._used[username] + asked.size - size_before
        if after > owner.quota_bytes and asked.size > size_before:
            raise Refusal(
                Code.QUOTA,
                f"This needs {after} bytes, and the quota of {username} is {owner.quota_bytes}. Delete something first.",
                quota=owner.quota_bytes,
                used=self._used[username],
            )

    # --- what changes seldom ---

    async def _person(self, username: str) -> Person | None:
        person: Person | None = await self._recall(("person", username), lambda: directory.person(self._sql, username))
        return person

    async def _chain(self, folder: EntryId) -> tuple[Entry, ...]:
        """The entries from the root down to this one."""
        key = ("chain", folder)
        if key in self._remembered:
            known: tuple[Entry, ...] = self._remembered[key]
            return known
        chain = await directory.ancestry(self._sql, folder)
        if chain and isinstance(chain[-1], Folder):
            # A file may be moved, and nobody who remembers folders would notice.
            self._remembered[key] = chain
        return chain

    async def _recall(self, key: Hashable, ask: Callable[[], Awaitable[T]]) -> T:
        if key not in self._remembered:
            self._remembered[key] = await ask()
        known: T = self._remembered[key]
        return known

    # --- writing ---

    def write(self) -> None:
        """Put everything that was decided into the tables, as one message with the COMMIT."""
        if not self._made:
            return
        versions = [(asked, file, file.version, answer) for asked, file, _, answer in self._made]
        self._sql.later(
            *insert_rows(
                "attempts",
                ("attempt", "ended", "person", "idempotency_key", "request", "answer", "ended_at"),
                [
                    (one.attempt.value, "committed", asked.person, asked.key, asked.request, encode_value(m.Committed, answer), self._now)
                    for asked, _, one, answer in versions
                ],
            )
        )
        self._sql.later(
            *insert_rows(
                "versions",
                (
                    "file",
                    "number",
                    "attempt",
                    "size",
                    "digest",
                    "algorithm",
                    "origin",
                    "committed_at",
                    "committed_by",
                    "epoch",
                    "revision",
                ),
                [
                    (
                        file.id.value,
                        one.number,
                        one.attempt.value,
                        one.size,
                        one.digest,
                        one.algorithm.value,
                        one.origin,
                        one.committed_at,
                        one.committed_by,
                        answer.position.epoch,
                        answer.position.revision,
                    )
                    for _, file, one, answer in versions
                ],
            )
        )
        put_files(self._sql, [(file, None if before is None else before.version.size) for _, file, before, _ in self._made])


def _committed(answer: Any) -> m.Committed:
    committed: m.Committed = decode_value(m.Committed, bytes(answer))
    return committed


def under_key(request: bytes, first: bytes, committed: m.Committed) -> m.Committed:
    """What was answered under an Idempotency-Key, if the `first` request under it was the same. Raises `Refusal`."""
    if first != request:
        raise Refusal(
            Code.KEY_REUSED, "This Idempotency-Key was already used for another path or precondition. Use a new key for a new request."
        )
    return committed


def check_person(person: Person | None, now: float) -> None:
    """Raise `Refusal` ACCOUNT_CLOSED unless the person may do anything at this moment."""
    if person is None:
        raise Refusal(Code.ACCOUNT_CLOSED, "This account does not exist any more.")
    check_account(person, now)


def check_role(role: Role | None, action: Action) -> None:
    """Raise `Refusal` unless the role permits the action. What may not even be read is `not-found`."""
    if not permits(role, Action.READ):
        raise Refusal(Code.NOT_FOUND, "There is nothing here, or nothing that you may see.")
    if not permits(role, action):
        raise Refusal(Code.FORBIDDEN, f"You may not do this: it needs the right to {action}, and you are {role} here.", role=str(role))
