"""The ledger: every change of the catalogue, one after another, without gaps.

A writing transaction first locks the one row of `cluster`, which has the revision. So writers queue and revisions are handed out in
commit order: whoever has seen revision r can ask for "everything after r" and will miss nothing (a sequence would be handed out before
commit, and a slower transaction be overlooked). One transaction may make several changes, each with a revision of its own.

Several admin servers may share the database. A commit notifies the others, which then catch up; should no notification come, a
chore catches up each second.

A restored backup or a promoted standby takes the catalogue back in time. Then an *epoch* begins, which is not `reconciled` until the nodes
have handed in what they know beyond it (`admin/reconciliation.py`); until then people change nothing, and nobody signs in. It is
noticed by what does not fit: the database's identity, a revision handed out twice, or a node whose index has come further, or has
at the same revision a change with another *mark* (eight random bytes that each change carries).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from typing import Any, Generic, TypeVar

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from securifile.model.errors import Code, DatabaseUnavailable, Refusal
from securifile.model.facts import Change, Fact
from securifile.model.ids import BEGINNING, Position
from securifile.model.interfaces import Row
from securifile.process import CannotStart
from securifile.protocol.codec import decode_value, encode_value
from securifile.sql.dialects import POSTGRESQL, insert_rows
from securifile.sql.facts import apply_facts, every_fact

T = TypeVar("T")

CATCH_UP_MAX = 1000
"""Changes read at once: some hundred kilobytes."""

CHANNEL = "securifile"
"""On which an admin server notifies the others of its commits."""

MARK_BYTES = 8

SOON_S = 2.0
"""When to try again what waits for nodes: a few heartbeats."""


class Needs(Enum):
    """What must hold before a change may be made."""

    NODES = "nodes"
    """More than half of the nodes have told how far they are, and it is not beyond the catalogue; the usual."""
    RECONCILED = "reconciled"
    """The epoch is reconciled: for changes without which the nodes could not return."""
    NOTHING = "nothing"
    """For what belongs to the reconciliation itself, and for what an admin server says of itself."""


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


@attrs.frozen(kw_only=True)
class Decisions(Generic[T]):
    """Several changes, made in one transaction."""

    changes: tuple[tuple[Fact, ...], ...]
    """The facts of each, in order; they are in the tables already."""
    answer: T


class _NothingToChange(Exception):
    """Rolls a transaction back that turned out to have nothing to write."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer


class CatalogueGone(CannotStart):
    """The database is empty, and a catalogue was to be in it."""


class WhenEmpty(Enum):
    """What to do with a database in which there is no catalogue."""

    BEGIN = "begin"
    """Begin a cluster."""
    REFUSE = "refuse"
    """Leave it alone: there was a catalogue, and it may come back."""
    REBUILD = "rebuild"
    """Make the catalogue anew from what the nodes know."""


class WentBack(DatabaseUnavailable):
    """The database has gone back in time, or begun another epoch, since it was last asked; nothing was done."""


Listener = Callable[[Position, Change], None]


class Ledger:
    """Writes changes in order, and tells listeners of them in order."""

    _log = Logger()

    def __init__(self, database: Any, random: Callable[[int], bytes]) -> None:
        """Args:
        random: so many random bytes, for marks.
        """
        self.database = database
        self._random = random
        self._listeners: list[Listener] = []
        self._on_renewal: list[Callable[[], Awaitable[None]]] = []
        self._told = Position(0, 0)
        self._waiting: dict[int, Change] = {}
        self._history: str | None = None
        """Which history the connection told over which the epoch was found out."""
        self._hearing: Deferred[None] | None = None
        self._more_news = False
        self.has_company: Callable[[], bool] = lambda: True
        """Whether there are other admin servers, who want to be notified."""
        self.waits_for_nodes: Callable[[], str | None] = lambda: None
        """Why people may not change anything yet: how far the nodes are is not known. None: they may."""
        self.reconciled = True
        """Whether the present epoch is, as far as is known here."""
        self.rebuilding = False
        """Whether all of the catalogue is being made anew from the nodes."""

    def listen(self, listener: Listener) -> None:
        """Call `listener` after each commit made here, in order of revision."""
        self._listeners.append(listener)

    def on_renewal(self, renew: Callable[[], Awaitable[None]]) -> None:
        """Call `renew` when another epoch has begun: what was learnt from changes may not be so any more."""
        self._on_renewal.append(renew)

    def open(self, system_identifier: str, when_empty: WhenEmpty = WhenEmpty.BEGIN) -> Deferred[Position]:
        """Find out, or draw, the epoch; to be called once before anything else.

        Args:
            system_identifier: names the database's present life: PostgreSQL's system identifier and timeline. When it is
                not the one of last time, the database may have gone back in time and a new epoch begins.

        Raises:
            CatalogueGone: it is empty, and is to be left alone then.
        """
        return Deferred.fromCoroutine(self._open(system_identifier, when_empty))

    async def _open(self, system_identifier: str, when_empty: WhenEmpty) -> Position:
        rebuild = when_empty is WhenEmpty.REBUILD

        async def begin(sql: Any) -> tuple[Position, bool, bool, str | None]:
            return *await find(sql), getattr(sql, "history", None)

        async def find(sql: Any) -> tuple[Position, bool, bool]:
            rows = await sql.query("SELECT epoch, revision, system_identifier, reconciled, rebuilding FROM cluster FOR UPDATE")
            if not rows:
                if when_empty is WhenEmpty.REFUSE:
                    raise CatalogueGone("there is no catalogue in the database")
                await sql.execute(
                    "INSERT INTO cluster (one, epoch, revision, system_identifier, began, reconciled, rebuilding, mark)"
                    " VALUES (1, 1, 0, :id, 0, :reconciled, :rebuilding, :none)",
                    {"id": system_identifier, "reconciled": not rebuild, "rebuilding": rebuild, "none": b""},
                )
                return Position(1, 0), not rebuild, rebuild
            epoch, revision, known_identifier, reconciled, rebuilding = rows[0]
            if known_identifier == system_identifier:
                return Position(epoch, revision), bool(reconciled), bool(rebuilding)
            await sql.execute("UPDATE cluster SET system_identifier = :id", {"id": system_identifier})
            return *await self._new_epoch(sql, Position(epoch, revision), epoch + 1), bool(rebuilding)

        before, was_reconciled = self._told, self.reconciled
        self._told, self.reconciled, self.rebuilding, self._history = await self.database.transact("open the ledger", begin)
        self._waiting.clear()
        if not self.reconciled:
            self._log.critical("epoch {epoch} of the catalogue is not reconciled with the nodes yet", epoch=self._told.epoch)
        if before.epoch and (before.epoch != self._told.epoch or was_reconciled != self.reconciled):
            await self._renew()
        return self._told

    async def _new_epoch(self, sql: Any, known: Position, epoch: int) -> tuple[Position, bool]:
        """Begin it; whether it is reconciled, because there are no nodes that could know more."""
        rows = await sql.query("SELECT count(*) FROM servers WHERE kind = 'node'")
        ((rebuilding,),) = await sql.query("SELECT rebuilding FROM cluster")
        reconciled = not rows[0][0] and not rebuilding
        await sql.execute(
            "UPDATE cluster SET epoch = :epoch, began = revision, reconciled = :reconciled", {"epoch": epoch, "reconciled": reconciled}
        )
        return Position(epoch, known.revision), reconciled

    async def _renew(self) -> None:
        for renew in self._on_renewal:
            await renew()

    @property
    def position(self) -> Position:
        """The last change that listeners were told of."""
        return self._told

    def enter(
        self, name: str, decide: Callable[[Any, Position], Awaitable[Decision[T]]], needs: Needs = Needs.NODES
    ) -> Deferred[Entered[T]]:
        """Run `decide(sql, position)` and commit the facts it decides on as the change at that position.

        `decide` may also write to tables that are not facts. A decision without facts is rolled back as a whole.

        Raises:
            Refusal: what `decide` raised, or CATALOGUE_UNAVAILABLE when what the change `needs` is not there; nothing is changed.
            DatabaseUnavailable, OutcomeUnknown: as `IDatabase.transact`.
        """
        return Deferred.fromCoroutine(self._enter(name, decide, needs))

    async def _enter(self, name: str, decide: Callable[[Any, Position], Awaitable[Decision[T]]], needs: Needs) -> Entered[T]:
        async def decide_one(sql: Any, before: Position) -> Decisions[Entered[T]]:
            position = following(before)
            decision = await decide(sql, position)
            if not decision.facts:
                return Decisions(changes=(), answer=Entered(position=before, facts=(), answer=decision.answer))
            await apply_facts(sql, decision.facts)
            return Decisions(changes=(decision.facts,), answer=Entered(position=position, facts=decision.facts, answer=decision.answer))

        return await self.enter_all(name, decide_one, needs)

    def enter_all(self, name: str, decide: Callable[[Any, Position], Awaitable[Decisions[T]]], needs: Needs = Needs.NODES) -> Deferred[T]:
        """Run `decide(sql, before)` and commit the changes it decides on, and has made in the tables, as those after position `before`.

        All of them are committed or none is; each has a revision of its own, and listeners hear of each in order. Decisions without
        changes are rolled back as a whole.

        Returns:
            Fires with the decisions' answer.

        Raises:
            Refusal, DatabaseUnavailable, OutcomeUnknown: as `enter`; an unknown outcome is the same for all of them.
        """
        return Deferred.fromCoroutine(self._enter_all(name, decide, needs))

    async def _enter_all(self, name: str, decide: Callable[[Any, Position], Awaitable[Decisions[T]]], needs: Needs) -> T:
        why = self.waits_for_nodes() if needs is Needs.NODES else None
        if why is not None:
            raise Refusal(Code.CATALOGUE_UNAVAILABLE, f"Nothing can be changed yet: {why}. Try again soon.", retry_after_s=SOON_S)
        known = self._told

        async def write(sql: Any) -> tuple[Position, list[Change], T]:
            self._check_identity(sql)
            rows = await sql.query("SELECT epoch, revision, reconciled FROM cluster FOR UPDATE")
            _require(rows)
            before = Position(*rows[0][:2])
            if before.epoch != known.epoch or before.revision < known.revision:
                raise WentBack(f"the catalogue was at {known} and is at {before}")
            if needs is not Needs.NOTHING and not rows[0][2]:
                raise not_reconciled()
            decided = await decide(sql, before)
            if not decided.changes:
                raise _NothingToChange(decided.answer)
            changes = [
                Change(revision=revision, facts=facts, mark=self._random(MARK_BYTES))
                for revision, facts in enumerate(decided.changes, before.revision + 1)
            ]
            self._write_down(sql, before.epoch, changes, needs)
            return before, changes, decided.answer

        answer: T
        try:
            before, changes, answer = await self.database.transact(name, write)
        except _NothingToChange as nothing:
            answer = nothing.answer
            return answer
        except WentBack:
            self.hear_news()
            raise
        for change in changes:
            self._tell(Position(before.epoch, change.revision), change)
        return answer

    def _write_down(self, sql: Any, epoch: int, changes: Sequence[Change], needs: Needs) -> None:
        last = changes[-1]
        sql.later(
            *insert_rows(
                "changes",
                ("epoch", "revision", "mark", "body"),
                [(epoch, change.revision, change.mark, encode_value(Change, change)) for change in changes],
            )
        )
        sql.later("UPDATE cluster SET revision = :revision, mark = :mark", {"revision": last.revision, "mark": last.mark})
        if self._notifies(needs):
            sql.later("SELECT pg_notify(:channel, :news)", {"channel": CHANNEL, "news": str(Position(epoch, last.revision))})

    async def guard(self, sql: Any) -> None:
        """For transactions beside `enter` that must not happen in a database that went back in time; takes the row that orders all.

        Raises:
            DatabaseUnavailable, Refusal.
        """
        self._check_identity(sql)
        rows = await sql.query("SELECT reconciled FROM cluster FOR UPDATE")
        _require(rows)
        if not rows[0][0]:
            raise not_reconciled()

    def require_reconciled(self) -> None:
        """Raise `Refusal` while the epoch is not reconciled: for those who would trust an old right."""
        if not self.reconciled:
            raise not_reconciled()

    def doubt(self) -> None:
        """Another database answers than the one before: trust nothing that it says until it is known how far it is."""
        self.reconciled = False
        self.hear_news()

    def _check_identity(self, sql: Any) -> None:
        history = getattr(sql, "history", None)
        if history != self._history:
            raise WentBack(f"the database was {self._history} and is {history}")

    def _notifies(self, needs: Needs) -> bool:
        # An admin server that comes knows the others better than itself.
        return bool(self.database.dialect == POSTGRESQL and (needs is Needs.NOTHING or self.has_company()))

    def _tell(self, position: Position, change: Change) -> None:
        # COMMITs are ordered, but their answers arrive on several connections: hold back what comes too early.
        if position.revision <= self._told.revision:
            return
        self._waiting[position.revision] = change
        while (following := self._waiting.pop(self._told.revision + 1, None)) is not None:
            self._told = Position(self._told.epoch, following.revision)
            for listener in self._listeners:
                listener(self._told, following)

    def hear_news(self, news: str = "") -> None:
        """Catch up now, because somebody committed something; once for all that is heard of meanwhile.

        Args:
            news: the position it is about, as notified; empty: not known.
        """
        if news and news == str(self._told):
            return
        if self._hearing is not None:
            self._more_news = True
            return
        self._hearing = Deferred.fromCoroutine(self.catch_up())
        self._hearing.addErrback(self._not_heard)
        self._hearing.addCallback(lambda _: self._heard())

    def _not_heard(self, failure: Any) -> None:
        # The chore tries again, and says so.
        if not failure.check(DatabaseUnavailable, CancelledError):
            self._log.failure("catching up failed", failure)

    def _heard(self) -> None:
        self._hearing = None
        more, self._more_news = self._more_news, False
        if more:
            self.hear_news()

    async def catch_up(self) -> None:
        """Tell listeners of commits whose answer was lost, or that another admin server made; join in an epoch that was begun."""
        while True:
            known = self._told
            history, (epoch, revision, began, reconciled, self.rebuilding), missed = await self._look(known)
            if history is not None and history != self._history:
                await self._open(history, WhenEmpty.REFUSE)
                continue
            was_reconciled, self.reconciled = self.reconciled, reconciled
            if was_reconciled != reconciled and epoch == known.epoch:
                await self._renew()
            if epoch < known.epoch or (epoch == known.epoch and revision < known.revision):
                await self._begin_epoch(known)
                return
            if epoch > known.epoch:
                if epoch > self._told.epoch:
                    self._log.critical("epoch {epoch} of the catalogue has begun", epoch=epoch)
                    self._told = Position(epoch, began)
                    self._waiting.clear()
                    await self._renew()
                continue
            for change in missed:
                self._tell(Position(known.epoch, change.revision), change)
            if len(missed) < CATCH_UP_MAX:
                return

    async def _look(self, known: Position) -> tuple[str | None, tuple[int, int, int, bool, bool], list[Change]]:
        async def ask(sql: Any) -> tuple[str | None, tuple[int, int, int, bool, bool], list[Change]]:
            rows = await sql.query("SELECT epoch, revision, began, reconciled, rebuilding FROM cluster")
            _require(rows)
            epoch, revision, began, reconciled, rebuilding = rows[0]
            missed = await _changes(sql, known, CATCH_UP_MAX) if epoch == known.epoch and revision > known.revision else []
            return getattr(sql, "history", None), (epoch, revision, began, bool(reconciled), bool(rebuilding)), missed

        found: tuple[str | None, tuple[int, int, int, bool, bool], list[Change]] = await self.database.read(ask)
        return found

    async def begin_epoch(self, beyond: Position) -> Position:
        """Begin a new epoch if the catalogue has not come as far as `beyond`, which a node knows: it went back in time.

        Returns:
            The position afterwards.
        """
        await self.catch_up()
        return await self._begin_epoch(beyond)

    async def diverged(self, other: Position) -> Position:
        """Begin a new epoch, after that of `other`, which a node has in place of our own history; nothing if it has begun already."""

        async def write(sql: Any) -> tuple[Position, bool]:
            ((epoch, revision, reconciled),) = await sql.query("SELECT epoch, revision, reconciled FROM cluster FOR UPDATE")
            known = Position(epoch, revision)
            if epoch > other.epoch:
                return known, bool(reconciled)
            return await self._new_epoch(sql, known, other.epoch + 1)

        return await self._begun(await self.database.transact("begin an epoch", write), other)

    async def _begin_epoch(self, beyond: Position) -> Position:
        async def write(sql: Any) -> tuple[Position, bool]:
            ((epoch, revision, reconciled),) = await sql.query("SELECT epoch, revision, reconciled FROM cluster FOR UPDATE")
            known = Position(epoch, revision)
            if known >= beyond:
                return known, bool(reconciled)
            return await self._new_epoch(sql, known, max(epoch, beyond.epoch) + 1)

        return await self._begun(await self.database.transact("begin an epoch", write), beyond)

    async def _begun(self, begun: tuple[Position, bool], beyond: Position) -> Position:
        after, reconciled = begun
        if after.epoch != self._told.epoch:
            self._log.critical(
                "the catalogue went back in time: a server knows {beyond}, the catalogue {known}; epoch {epoch} begins",
                beyond=str(beyond),
                known=str(self._told),
                epoch=after.epoch,
            )
            self._told, self.reconciled = after, reconciled
            self._waiting.clear()
            await self._renew()
        return self._told

    async def shares(self, position: Position, mark: bytes, marked: int) -> bool:
        """Whether an index at `position` tells our history, as far as can be known: what it has more, or otherwise, would be missing here.

        Args:
            mark: that of the change at revision `marked`, at or before the position; empty when the index does not know it.
        """

        async def ask(sql: Any) -> bool:
            ((head, rebuilding, rebuilt),) = await sql.query("SELECT revision, rebuilding, rebuilt FROM cluster")
            if rebuilding or BEGINNING < position < Position(rebuilt, 0):
                return False
            if position == BEGINNING:
                return True
            if position.revision > head:
                return False
            ours = {
                row[1]: (row[0], bytes(row[2]))
                for row in await sql.query(
                    "SELECT epoch, revision, mark FROM changes WHERE revision IN :two", {"two": (position.revision, marked)}
                )
            }
            # What was trimmed cannot be compared; nor is a mark needed for an epoch that differs.
            at, then = ours.get(position.revision), ours.get(marked)
            return (at is None or at[0] == position.epoch) and (then is None or not mark or then[1] == mark)

        shared: bool = await self.database.read(ask)
        return shared

    async def was_rebuilt(self) -> bool:
        """Whether the catalogue is, or once was, made anew from the nodes."""

        async def ask(sql: Any) -> bool:
            ((rebuilding, rebuilt),) = await sql.query("SELECT rebuilding, rebuilt FROM cluster")
            return bool(rebuilding or rebuilt)

        found: bool = await self.database.read(ask)
        return found

    async def changes_after(self, position: Position, limit: int) -> list[Change]:
        """Up to `limit` changes after `position`, in order and without a gap."""
        found: list[Change] = await self.database.read(lambda sql: _changes(sql, position, limit))
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
        position, _, facts = await self.marked_snapshot()
        return position, facts

    async def marked_snapshot(self) -> tuple[Position, bytes, list[Fact]]:
        """The same, with the mark of the last change before it."""

        async def ask(sql: Any) -> tuple[Position, bytes, list[Fact]]:
            ((epoch, revision, mark),) = await sql.query("SELECT epoch, revision, mark FROM cluster")
            return Position(epoch, revision), bytes(mark), await every_fact(sql)

        found: tuple[Position, bytes, list[Fact]] = await self.database.read(ask)
        return found

    async def trim(self, kept: int) -> None:
        """Forget changes older than the last `kept`."""

        async def forget(sql: Any) -> None:
            await sql.execute(
                # Those of earlier epochs, too: by them a node's history is compared with ours.
                "DELETE FROM changes WHERE revision <= :revision",
                {"revision": self._told.revision - kept},
            )

        await self.database.transact("trim the feed", forget)


def following(position: Position) -> Position:
    """The position of the next change."""
    return Position(position.epoch, position.revision + 1)


def _require(rows: Sequence[Row]) -> None:
    """Raise `DatabaseUnavailable` when the row that orders all commits is not there: somebody has emptied the database under us."""
    if not rows:
        raise DatabaseUnavailable("there is no catalogue in the database any more")


async def _changes(sql: Any, position: Position, limit: int) -> list[Change]:
    rows = await sql.query(
        "SELECT body FROM changes WHERE epoch = :epoch AND revision > :revision ORDER BY revision LIMIT :limit",
        {"epoch": position.epoch, "revision": position.revision, "limit": limit},
    )
    return [decode_value(Change, bytes(row[0])) for row in rows]


def not_reconciled() -> Refusal:
    """The refusal while what the catalogue lost is being taken back from the nodes."""
    return Refusal(
        Code.CATALOGUE_UNAVAILABLE,
        "The catalogue went back in time, and waits for the nodes to hand in what they know beyond it. Nothing can be changed until then."
        " An administrator sees who is missing at GET /api/v1/epoch, and goes on without them by POST /api/v1/epoch/accept.",
        retry_after_s=SOON_S,
    )
