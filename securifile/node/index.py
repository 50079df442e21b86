"""The index: a node's own copy of what it needs of the catalogue to serve people without asking.

The watermark (`position`) moves in the same SQLite transaction as the changes that move it, in order and without a gap. An
announcement from a peer is one change of the feed that comes by itself. If it is the next one it is applied as such; if
something between is still missing, it is kept for its turn, and what stands by itself in it is applied at once and *stamped*,
so that older states of the same thing, which the feed has yet to bring, do not undo it. At its turn it is applied once
more, because something between may have taken it along: a new password ends sessions, a person's end takes their rights.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from securifile.model import facts as f
from securifile.model.entries import Sidecar
from securifile.model.ids import BEGINNING, AttemptId, Position
from securifile.model.reconciliation import differences, gone_thing, thing_of
from securifile.sql.facts import Renewed, Superseded, apply_fact, apply_facts, every_fact
from securifile.sql.sqlite import SqliteDatabase
from securifile.sql.tables import FACT_TABLE_NAMES, FACT_TABLES, spelled

OWN_TABLES = (
    "CREATE TABLE watermark (one BIGINT PRIMARY KEY CHECK (one = 1), epoch BIGINT NOT NULL, revision BIGINT NOT NULL,"
    " marked BIGINT NOT NULL, mark BLOB NOT NULL)",
    "INSERT INTO watermark (one, epoch, revision, marked, mark) VALUES (1, 0, 0, 0, x'')",
    "CREATE TABLE stamps (kind TEXT NOT NULL, thing BLOB NOT NULL,"
    " epoch BIGINT NOT NULL, revision BIGINT NOT NULL, PRIMARY KEY (kind, thing))",
    # Blobs on this node's disk that the catalogue no longer names as current, and since when (wall clock).
    "CREATE TABLE superseded (attempt BLOB PRIMARY KEY, file BLOB NOT NULL, since REAL NOT NULL)",
    # Copies that this node holds, and since when nothing is known of their soundness (`checks.py`).
    "CREATE TABLE checks (attempt BLOB PRIMARY KEY, at REAL NOT NULL, told BOOLEAN NOT NULL)",
    "CREATE INDEX checks_by_age ON checks (at)",
    "CREATE INDEX checks_untold ON checks (attempt) WHERE NOT told",
)

_WATERMARK = "UPDATE watermark SET epoch = :epoch, revision = :revision, marked = :marked, mark = :mark"

SCHEMA = 1
"""Kept in SQLite's `user_version`; an index of another schema is thrown away and fed anew."""

AHEAD_MAX = 1000
"""Announced changes kept for their turn; more are left to the feed."""

RECENT_MAX = 1000
"""Changes kept in memory for peers that missed them while no admin server answers."""

T = TypeVar("T")

Listener = Callable[[f.Fact], None]


def _may_overtake(fact: f.Fact) -> bool:
    """Whether an announced fact may be applied before the feed brings what lies between.

    Things that stand by themselves may. What takes other things along waits for them: a folder's end or change of
    place, a person's end or new password (the feed may have yet to bring the sessions that it ends).
    """
    return isinstance(fact, f.File | f.Grant | f.GrantGone | f.Session | f.SessionGone | f.Settings | f.Server)


class Index:
    """The facts in SQLite, and how far the feed has come."""

    _log = Logger()

    def __init__(self, database: SqliteDatabase, wall: Callable[[], float]) -> None:
        self._database = database
        self.wall = wall
        """Dates what is superseded: the time of the cluster, once the node goes by it."""
        self._listeners: list[Listener] = []
        self._waiting: list[tuple[Position, Deferred[None]]] = []
        self._ahead: dict[int, f.Change] = {}
        self._recent: deque[f.Change] = deque(maxlen=RECENT_MAX)
        self.position = BEGINNING
        self.marked, self.mark = 0, b""
        """The last revision whose mark is known, and the mark: announcements bring changes without."""
        self.node: str | None = None
        """The name of the node whose index it is: its own copies that are not wanted any more are noted as superseded."""
        self._renewed: Callable[[Renewed, Position], None] = lambda renewed, position: None
        self._everything: Callable[[Position], None] = lambda position: None
        self.snapshots = 0
        """How many snapshots were taken since the start: each may have left out what this node still has on its disk."""

    @property
    def sql(self) -> Any:
        """For questions (`securifile.sql.directory`): what is committed here now."""
        return self._database.sql

    @property
    def is_writing(self) -> bool:
        """Whether a transaction is under way, or waits for its turn."""
        return self._database.is_writing

    def transact(self, name: str, work: Callable[[Any], Awaitable[T]]) -> Deferred[T]:
        """Write to the node's own tables, those that no fact touches: see `IDatabase.transact`."""
        return self._database.transact(name, work)

    def listen(self, listener: Listener) -> None:
        """Call `listener(fact)` after each fact has been committed here."""
        self._listeners.append(listener)

    def watch_commits(self, around: Callable[[], None]) -> None:
        """Call `around()` just before and just after each commit: another process sees what is committed before anybody is told of it."""
        self._database.around_commit = around

    def watch_versions(self, renewed: Callable[[Renewed, Position], None], everything: Callable[[Position], None]) -> None:
        """Be told of versions before anybody can see them, within the transaction that makes them visible.

        Args:
            renewed: called as `renewed(what, position)`: it was committed by then.
            everything: called as `everything(position)` when a snapshot of that position is taken.
        """
        self._renewed, self._everything = renewed, everything

    async def open(self) -> None:
        """Make the tables when there are none; find the watermark."""
        rows = await self.sql.query("PRAGMA user_version")
        if rows[0][0] not in (0, SCHEMA):
            self._log.warn("the index has schema {found}, not {wanted}: it is made anew", found=rows[0][0], wanted=SCHEMA)
            for (name,) in await self.sql.query("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"):
                await self.sql.execute(f"DROP TABLE {name}")
        if rows[0][0] != SCHEMA:

            async def make(sql: Any) -> None:
                for statement in (*spelled(FACT_TABLES, "sqlite"), *OWN_TABLES):
                    await sql.execute(statement)
                await sql.execute(f"PRAGMA user_version = {SCHEMA}")

            await self._database.transact("make the index", make)
        epoch, revision, self.marked, mark = (await self.sql.query("SELECT epoch, revision, marked, mark FROM watermark"))[0]
        self.position, self.mark = Position(epoch, revision), bytes(mark)

    # --- the feed ---

    async def apply_changes(self, epoch: int, changes: Iterable[f.Change]) -> None:
        """Apply the next changes of the feed, and announced ones whose turn has come; those at or below the watermark are passed over.

        Raises:
            ValueError: there is a gap: the feed must be asked for again.
        """
        await self._apply(epoch, changes)
        await self._take_turns()

    async def _apply(self, epoch: int, changes: Iterable[f.Change]) -> None:
        came = list(changes)
        fresh = [change for change in came if Position(epoch, change.revision) > self.position]
        if epoch == self.position.epoch:
            for change in came:
                # What was announced before its turn comes by the feed as well, and only there it has a mark.
                if change.mark and change.revision > self.marked:
                    self.marked, self.mark = change.revision, change.mark
        if not fresh:
            return
        if epoch != self.position.epoch or fresh[0].revision != self.position.revision + 1:
            raise ValueError(f"the feed goes on at {epoch}.{fresh[0].revision}, and the index is at {self.position}")
        start, reached = self.position, Position(epoch, fresh[-1].revision)

        async def write(sql: Any) -> list[f.Fact]:
            # While this waited for its turn to write, another delivery or a snapshot may have moved the watermark.
            known = await self._watermark(sql)
            if known != start:
                raise ValueError(f"the feed was to go on at {start}, and the index is at {known} meanwhile")
            renewed: list[Renewed] = []
            if not await sql.query("SELECT 1 FROM stamps LIMIT 1"):
                every = [fact for change in fresh for fact in change.facts]
                await self._note(sql, await apply_facts(sql, every, renewed), renewed, reached)
                await sql.execute(_WATERMARK, {**attrs.asdict(reached), "marked": self.marked, "mark": self.mark})
                return every
            applied: list[f.Fact] = []
            for change in fresh:
                at = Position(epoch, change.revision)
                for fact in change.facts:
                    if await self._stamp(sql, fact) > at:
                        await self._note_skipped(sql, fact)
                        continue
                    renewed = []
                    await self._note(sql, await apply_fact(sql, fact, renewed), renewed, at)
                    applied.append(fact)
            await sql.execute("DELETE FROM stamps WHERE epoch < :epoch OR revision <= :revision", attrs.asdict(reached))
            await sql.execute(_WATERMARK, {**attrs.asdict(reached), "marked": self.marked, "mark": self.mark})
            return applied

        applied = await self._database.transact("apply changes", write)
        self._recent.extend(fresh)
        self._moved(reached, applied)

    async def announced(self, position: Position, facts: tuple[f.Fact, ...]) -> bool:
        """Take what a peer says was committed at `position`; whether the index has it now.

        If not, it will when the feed has brought what lies between (`reached`).
        """
        if position <= self.position:
            return True
        if position.epoch != self.position.epoch:
            return False
        if len(self._ahead) < AHEAD_MAX or position.revision == self.position.revision + 1:
            self._ahead[position.revision] = f.Change(revision=position.revision, facts=facts)
        await self._take_turns()
        return position <= self.position or await self._overtake(position, facts)

    async def _take_turns(self) -> None:
        """Apply the announced changes whose turn it is."""
        while (following := self._ahead.pop(self.position.revision + 1, None)) is not None:
            try:
                await self._apply(self.position.epoch, [following])
            except ValueError:
                # Another delivery or a snapshot was faster, and brought it.
                return

    async def _overtake(self, position: Position, facts: tuple[f.Fact, ...]) -> bool:
        """Apply an announced change before its turn, if all of it can be."""
        if not all(_may_overtake(fact) for fact in facts):
            return False
        if any([isinstance(fact, f.File) and await self._place_taken(fact) for fact in facts]):
            return False

        async def write(sql: Any) -> list[f.Fact]:
            applied: list[f.Fact] = []
            for fact in facts:
                if await self._stamp(sql, fact) >= position:
                    continue
                renewed: list[Renewed] = []
                await self._note(sql, await apply_fact(sql, fact, renewed), renewed, position)
                kind, thing = thing_of(fact)
                await sql.execute(
                    "INSERT INTO stamps (kind, thing, epoch, revision) VALUES (:kind, :thing, :epoch, :revision)"
                    " ON CONFLICT (kind, thing) DO UPDATE SET epoch = excluded.epoch, revision = excluded.revision",
                    {"kind": kind, "thing": thing, **attrs.asdict(position)},
                )
                applied.append(fact)
            return applied

        for fact in await self._database.transact("apply an announcement", write):
            self._tell(fact)
        return True

    def recent_after(self, position: Position) -> tuple[f.Change, ...]:
        """The changes after `position`, for a peer that missed them; empty when they are not at hand without a gap."""
        if position.epoch != self.position.epoch:
            return ()
        after = tuple(change for change in self._recent if change.revision > position.revision)
        return after if after and after[0].revision == position.revision + 1 else ()

    def reached(self, position: Position) -> Deferred[None]:
        """Fires when the watermark is at or after `position`. May be cancelled."""
        if self.position >= position:
            return succeed(None)
        waiting: Deferred[None] = Deferred(lambda d: self._waiting.remove((position, d)) if (position, d) in self._waiting else None)
        self._waiting.append((position, waiting))
        return waiting

    async def replace(self, position: Position, facts: Iterable[f.Fact], mark: bytes = b"") -> None:
        """Put a snapshot in place of everything: one transaction, so that readers see the old index or the new.

        Blobs that the snapshot does not name are *not* noted as superseded: what became of them is asked
        of the catalogue, attempt by attempt. A snapshot from before the watermark, overtaken by announcements on its way,
        is not taken.
        """
        if position < self.position:
            self._log.info("a snapshot at {position} comes late: the index is at {known}", position=str(position), known=str(self.position))
            return
        every = list(facts)
        members = {fact.name for fact in every if isinstance(fact, f.Server)}
        # Listeners hear of what there is; of servers they must hear, too, which are members no more.
        gone = [
            f.ServerGone(name=name) for (name,) in await self.sql.query("SELECT name FROM servers ORDER BY name") if name not in members
        ]

        async def write(sql: Any) -> bool:
            # While it waited for its turn to write, the feed may have gone on.
            if position < await self._watermark(sql):
                return False
            self._everything(position)
            for table in (*FACT_TABLE_NAMES, "stamps"):
                await sql.execute(f"DELETE FROM {table}")
            for fact in every:
                await apply_fact(sql, fact)
            await sql.execute(_WATERMARK, {**attrs.asdict(position), "marked": position.revision, "mark": mark})
            return True

        if not await self._database.transact("take a snapshot", write):
            self._log.info("a snapshot at {position} comes late", position=str(position))
            return
        self.marked, self.mark = position.revision, mark
        self.snapshots += 1
        self._recent.clear()
        self._ahead.clear()
        self._moved(position, [*gone, *every])

    async def _watermark(self, sql: Any) -> Position:
        """How far the index is on the disk, within a transaction."""
        rows = await sql.query("SELECT epoch, revision FROM watermark")
        return Position(*rows[0])

    async def _place_taken(self, fact: f.File) -> bool:
        """Whether another entry is where this file will be: a change that the feed has yet to bring deleted or moved it."""
        return bool(
            await self.sql.query(
                "SELECT 1 FROM entries WHERE parent = :parent AND name = :name AND id <> :id",
                {"parent": fact.parent.value, "name": fact.name, "id": fact.id.value},
            )
        )

    async def _stamp(self, sql: Any, fact: f.Fact) -> Position:
        """Where the thing's announced state, applied before its turn, was committed."""
        kind, thing = thing_of(fact)
        rows = await sql.query("SELECT epoch, revision FROM stamps WHERE kind = :kind AND thing = :thing", {"kind": kind, "thing": thing})
        return Position(*rows[0]) if rows else BEGINNING

    async def _note_skipped(self, sql: Any, fact: f.Fact) -> None:
        """A version that was never current here, because a later one was announced first, is superseded all the same."""
        if isinstance(fact, f.File):
            rows = await sql.query("SELECT attempt FROM entries WHERE id = :id", {"id": fact.id.value})
            if not rows or bytes(rows[0][0]) != fact.version.attempt.value:
                await self._note(sql, [Superseded(file=fact.id, attempt=fact.version.attempt)])

    async def _note(self, sql: Any, superseded: list[Superseded], renewed: Iterable[Renewed] = (), position: Position = BEGINNING) -> None:
        for new in renewed:
            self._renewed(new, position)
        for one in superseded:
            if one.node is not None and one.node != self.node:
                continue
            await sql.execute(
                "INSERT INTO superseded (attempt, file, since) VALUES (:attempt, :file, :since) ON CONFLICT (attempt) DO NOTHING",
                {"attempt": one.attempt.value, "file": one.file.value, "since": self.wall()},
            )

    def _moved(self, position: Position, facts: Iterable[f.Fact]) -> None:
        self.position = position
        self._ahead = {revision: change for revision, change in self._ahead.items() if revision > position.revision}
        for fact in facts:
            self._tell(fact)
        due = [waiting for at, waiting in self._waiting if at <= position]
        self._waiting = [(at, waiting) for at, waiting in self._waiting if at > position]
        for waiting in due:
            if not waiting.called:  # cancelled by what one before it has set going
                waiting.callback(None)

    def _tell(self, fact: f.Fact) -> None:
        for listener in self._listeners:
            listener(fact)

    async def claims(self, snapshot: Iterable[f.Fact]) -> list[f.Claim]:
        """What this index has otherwise than a snapshot of a catalogue that went back in time, and up to where it knows each thing.

        What was announced before its turn and is gone is told though the snapshot does not have it either: another index may have it.
        """
        own = await every_fact(self.sql)
        found = differences(own, snapshot)
        told = {thing_of(fact) for fact in (*own, *found)}
        for kind, thing in await self.sql.query("SELECT kind, thing FROM stamps ORDER BY kind, thing"):
            if (kind, bytes(thing)) not in told and (lost := gone_thing((kind, bytes(thing)))) is not None:
                found.append(lost)
        return [f.Claim(fact=fact, at=max(self.position, await self._stamp(self.sql, fact))) for fact in found]

    async def with_commits(self, sidecars: Iterable[Sidecar]) -> list[Sidecar]:
        """The sidecars of this node's disk, those that this index knows to be committed as committed by now: sidecars note it late."""
        found = []
        for sidecar in sidecars:
            if sidecar.committed_at is None and (await self.names(sidecar.attempt) or await self.is_superseded(sidecar.attempt)):
                sidecar = attrs.evolve(sidecar, committed_at=attrs.astuple(self.position))
            found.append(sidecar)
        return found

    # --- what may be deleted from the disk ---

    async def superseded_before(self, wall: float) -> list[AttemptId]:
        """Attempts that stopped being current before `wall`."""
        rows = await self.sql.query("SELECT attempt FROM superseded WHERE since <= :wall ORDER BY since LIMIT 1000", {"wall": wall})
        return [AttemptId(bytes(row[0])) for row in rows]

    async def is_superseded(self, attempt: AttemptId) -> bool:
        """Whether it is noted that this attempt was current once and is not any more."""
        return bool(await self.sql.query("SELECT 1 FROM superseded WHERE attempt = :attempt", {"attempt": attempt.value}))

    async def forget_superseded(self, attempt: AttemptId) -> None:
        """Its blob is gone from the disk."""
        await self.sql.execute("DELETE FROM superseded WHERE attempt = :attempt", {"attempt": attempt.value})
        await self.sql.execute("DELETE FROM checks WHERE attempt = :attempt", {"attempt": attempt.value})

    async def wants(self, attempt: AttemptId) -> bool:
        """Whether this attempt is some file's current version and this node is to hold it."""
        return bool(
            await self.sql.query(
                "SELECT 1 FROM entries JOIN copies ON copies.file = entries.id WHERE attempt = :attempt AND node = :node LIMIT 1",
                {"attempt": attempt.value, "node": self.node},
            )
        )

    async def names(self, attempt: AttemptId) -> bool:
        """Whether some file's current version is this attempt."""
        return bool(await self.sql.query("SELECT 1 FROM entries WHERE attempt = :attempt LIMIT 1", {"attempt": attempt.value}))
