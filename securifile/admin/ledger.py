"""The ledger: every change of the catalogue, one after another, without gaps.

A writing transaction first raises the revision in the one row of `cluster`. That takes the row's lock, so writers queue
and revisions are handed out in commit order: whoever has seen revision r can ask for "everything after r" and will
miss nothing (a sequence would be handed out before commit, and a slower transaction be overlooked).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from securifile.model.facts import Change, Fact
from securifile.model.ids import Position
from securifile.protocol.codec import decode_value, encode_value
from securifile.sql.facts import apply_fact, every_fact

T = TypeVar("T")

CATCH_UP_MAX = 1000
"""Changes read at once: some hundred kilobytes."""


@attrs.frozen(kw_only=True)
class Decision(Generic[T]):
    """What a change consists of, and what is answered to whoever asked for it."""

    facts: tuple[Fact, ...]
    answer: T


@attrs.frozen(kw_only=True)
class Entered(Generic[T]):
    """A decision after its commit; without facts nothing was changed and the position is merely the present one."""

    position: Position
    facts: tuple[Fact, ...]
    answer: T


class _NothingToChange(Exception):
    """Rolls a transaction back that turned out to have nothing to write."""

    def __init__(self, entered: Entered[Any]) -> None:
        super().__init__()
        self.entered = entered


Listener = Callable[[Position, Change], None]


class Ledger:
    """Writes changes in order, and tells listeners of them in order."""

    _log = Logger()

    def __init__(self, database: Any) -> None:
        self.database = database
        self._listeners: list[Listener] = []
        self._told = Position(0, 0)
        self._waiting: dict[int, Change] = {}

    def listen(self, listener: Listener) -> None:
        """Call `listener` after each commit made here, in order of revision."""
        self._listeners.append(listener)

    def open(self, system_identifier: str) -> Deferred[Position]:
        """Find out, or draw, the epoch; to be called once before anything else.

        Args:
            system_identifier: names the database's present life: PostgreSQL's system identifier and timeline. When it is
                not the one of last time, the database may have gone back in time and a new epoch begins.
        """
        return Deferred.fromCoroutine(self._open(system_identifier))

    async def _open(self, system_identifier: str) -> Position:
        async def begin(sql: Any) -> Position:
            rows = await sql.query("SELECT epoch, revision, system_identifier FROM cluster")
            if not rows:
                await sql.execute(
                    "INSERT INTO cluster (one, epoch, revision, system_identifier) VALUES (1, 1, 0, :id)", {"id": system_identifier}
                )
                return Position(1, 0)
            epoch, revision, known_identifier = rows[0]
            if known_identifier != system_identifier:
                epoch += 1
                await sql.execute("UPDATE cluster SET epoch = :epoch, system_identifier = :id", {"epoch": epoch, "id": system_identifier})
            return Position(epoch, revision)

        self._told = await self.database.transact("open the ledger", begin)
        return self._told

    @property
    def position(self) -> Position:
        """The last change that listeners were told of."""
        return self._told

    def enter(self, name: str, decide: Callable[[Any, Position], Awaitable[Decision[T]]]) -> Deferred[Entered[T]]:
        """Run `decide(sql, position)` and commit the facts it decides on as the change at that position.

        `decide` may also write to tables that are not facts. A decision without facts is rolled back as a whole.

        Raises:
            Refusal: what `decide` raised; nothing is changed.
            DatabaseUnavailable, OutcomeUnknown: as `IDatabase.transact`.
        """
        return Deferred.fromCoroutine(self._enter(name, decide))

    async def _enter(self, name: str, decide: Callable[[Any, Position], Awaitable[Decision[T]]]) -> Entered[T]:
        async def write(sql: Any) -> Entered[T]:
            rows = await sql.query("UPDATE cluster SET revision = revision + 1 RETURNING epoch, revision")
            position = Position(*rows[0])
            decision = await decide(sql, position)
            if not decision.facts:
                before = Position(position.epoch, position.revision - 1)
                raise _NothingToChange(Entered(position=before, facts=(), answer=decision.answer))
            for fact in decision.facts:
                await apply_fact(sql, fact)
            await sql.execute(
                "INSERT INTO changes (epoch, revision, body) VALUES (:epoch, :revision, :body)",
                {
                    "epoch": position.epoch,
                    "revision": position.revision,
                    "body": encode_value(Change, Change(revision=position.revision, facts=decision.facts)),
                },
            )
            return Entered(position=position, facts=decision.facts, answer=decision.answer)

        try:
            entered: Entered[T] = await self.database.transact(name, write)
        except _NothingToChange as nothing:
            return nothing.entered
        self._tell(entered.position, Change(revision=entered.position.revision, facts=entered.facts))
        return entered

    def _tell(self, position: Position, change: Change) -> None:
        # COMMITs are ordered, but their answers arrive on several connections: hold back what comes too early.
        if position.revision <= self._told.revision:
            return
        self._waiting[position.revision] = change
        while (following := self._waiting.pop(self._told.revision + 1, None)) is not None:
            self._told = Position(self._told.epoch, following.revision)
            for listener in self._listeners:
                listener(self._told, following)

    async def catch_up(self) -> None:
        """Tell listeners of commits whose answer was lost, or that another admin server made."""
        while True:
            missed = await self.changes_after(self._told, CATCH_UP_MAX)
            for change in missed:
                self._tell(Position(self._told.epoch, change.revision), change)
            if len(missed) < CATCH_UP_MAX:
                return

    async def begin_epoch(self, beyond: Position) -> Position:
        """Begin a new epoch if the catalogue has not come as far as `beyond`, which a node knows: it went back in time.

        Returns:
            The position afterwards.
        """
        await self.catch_up()

        async def write(sql: Any) -> Position:
            rows = await sql.query("SELECT epoch, revision FROM cluster FOR UPDATE")
            known = Position(*rows[0])
            if known >= beyond:
                return known
            after = Position(max(known.epoch, beyond.epoch) + 1, known.revision)
            await sql.execute("UPDATE cluster SET epoch = :epoch", {"epoch": after.epoch})
            return after

        after: Position = await self.database.transact("begin an epoch", write)
        if after.epoch != self._told.epoch:
            self._log.critical(
                "the catalogue went back in time: a server knows {beyond}, the catalogue {known}; epoch {epoch} begins",
                beyond=str(beyond),
                known=str(self._told),
                epoch=after.epoch,
            )
            self._told = after
            self._waiting.clear()
        return self._told

    async def changes_after(self, position: Position, limit: int) -> list[Change]:
        """Up to `limit` changes after `position`, in order and without a gap."""

        async def ask(sql: Any) -> list[Change]:
            rows = await sql.query(
                "SELECT body FROM changes WHERE epoch = :epoch AND revision > :revision ORDER BY revision LIMIT :limit",
                {"epoch": position.epoch, "revision": position.revision, "limit": limit},
            )
            return [decode_value(Change, bytes(row[0])) for row in rows]

        found: list[Change] = await self.database.read(ask)
        return found

    async def can_continue(self, position: Position) -> bool:
        """Whether the feed can go on from `position`, or the follower needs a snapshot."""
        if position.epoch != self._told.epoch or position.revision > self._told.revision:
            return False

        async def ask(sql: Any) -> bool:
            rows = await sql.query("SELECT min(revision) FROM changes WHERE epoch = :epoch", {"epoch": position.epoch})
            oldest = rows[0][0]
            if oldest is None:
                return position.revision == self._told.revision
            return bool(position.revision >= oldest - 1)

        answer: bool = await self.database.read(ask)
        return answer

    async def snapshot(self) -> tuple[Position, list[Fact]]:
        """Everything there is, at one position."""

        async def ask(sql: Any) -> tuple[Position, list[Fact]]:
            rows = await sql.query("SELECT epoch, revision FROM cluster")
            return Position(*rows[0]), await every_fact(sql)

        found: tuple[Position, list[Fact]] = await self.database.read(ask)
        return found

    async def trim(self, kept: int) -> None:
        """Forget changes older than the last `kept`."""

        async def forget(sql: Any) -> None:
            await sql.execute(
                "DELETE FROM changes WHERE epoch < :epoch OR revision <= :revision",
                {"epoch": self._told.epoch, "revision": self._told.revision - kept},
            )

        await self.database.transact("trim the feed", forget)
