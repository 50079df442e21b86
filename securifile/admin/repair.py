"""Restoring the wanted number of copies: the catalogue says where copies should be, and the nodes fetch them.

Files that a lost or leaving node holds come first, and those with a copy that its node cannot make. The former are found by going
through all copies of such nodes, a page in each round, so that a million files hold nobody up; of those found so far the most endangered
are planned first. Then a part of all files in turn, which finds what a changed r asks for, and what is too much. Every change is
decided again inside its transaction, so that an upload that came between is not undone; of several admin servers the one plans that has
the duty (`admin/duties.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from typing import Any

import attrs
from twisted.logger import Logger

from securifile.admin.duties import May, anybody
from securifile.admin.failing import Stuck, nobody_is_stuck
from securifile.admin.ledger import Decision, Entered, Ledger
from securifile.model.entries import Copy
from securifile.model.facts import File
from securifile.model.ids import EntryId, Position
from securifile.model.repair import Holding, MostEndangered, holding, plan, worth
from securifile.model.roster import Roster
from securifile.sql import directory

ROUND_S = 2.0
"""How often: a few heartbeats; grace times are minutes."""

CHANGED_MAX = 200
"""Files changed with one commit: their facts go to every node in one message."""

LOOKED_AT = 500
"""Files looked at in a round, of all there are: a million in an hour, for a millisecond of each second."""


PAGE = 5000
"""Copies of lost and leaving nodes looked at in a round: a quarter of a second of the database on a busy machine, half a million in three
minutes."""

ENDANGERED_MAX = 10_000
"""Files remembered for planning: minutes of it, in a megabyte."""

REST_ROUNDS = 15
"""After all copies of those nodes were looked at, they are looked at again so many rounds later."""


@attrs.frozen(kw_only=True)
class AtOnce:
    """How many copies may be under way at a time, in the whole cluster, so that what becomes most endangered waits behind little."""

    copies: int = 64
    """However large: enough to keep every node busy."""
    small: int = 1000
    """As long as all together have no more than `bytes`: small files are made by the hundred between two looks."""
    bytes: int = 64 * 1024 * 1024

    def allow(self, coming: Coming) -> bool:
        """Whether so much may be under way."""
        return coming.copies <= self.copies or (coming.copies <= self.small and coming.bytes <= self.bytes)


@attrs.frozen
class Coming:
    """What is being made."""

    copies: int
    bytes: int

    def and_more(self, copies: int, size: int) -> Coming:
        """With so many copies more, of a version of this size."""
        return Coming(self.copies + copies, self.bytes + copies * size)


class Repair:
    """The planner of one admin server."""

    _log = Logger()

    def __init__(
        self,
        *,
        ledger: Ledger,
        roster: Roster,
        wall: Callable[[], float],
        room: Callable[[], Mapping[str, int]],
        below: Callable[[int], int],
        stuck: Callable[[], Stuck] = nobody_is_stuck,
        verifying: Callable[[], Collection[str]] = tuple,
        may: May = anybody,
        page: int = PAGE,
        looked_at: int = LOOKED_AT,
        at_once: AtOnce | None = None,
    ) -> None:
        """Args:
        room: bytes available on each running node.
        stuck: see `FailingCopies.stuck`.
        verifying: nodes that are being verified now.
        may: asked in the transaction; if not, nothing is planned.
        """
        self._ledger = ledger
        self._roster = roster
        self._wall = wall
        self._room = room
        self._below = below
        self._stuck = stuck
        self._verifying = verifying
        self._may = may
        self._page = page
        self._looked_at = looked_at
        self._at_once = at_once or AtOnce()
        self._cursor = b""
        self._endangered = MostEndangered(ENDANGERED_MAX)
        self._readable: tuple[str, ...] = ()
        """Nodes whose copies could be read when the going through began."""
        self._wanting: tuple[str, ...] = ()
        self._left: list[tuple[str, bytes]] = []
        """What is still to be gone through: nodes, and after which file."""
        self._rest = 0

    def holding_of(self, node: str) -> Holding:
        """What copies on a node are worth now."""
        return holding(self._roster.servers.get(node), self._roster.settings, self._wall(), self._verifying())

    async def round(self) -> None:
        """Plan what is most urgent. A chore."""
        stuck = self._stuck()
        asked, urgent, some, coming = await self._ledger.database.read(lambda sql: self._candidates(sql, stuck))
        # The same for all of them, and each asks several times for each of its copies.
        holding_of = cache(self.holding_of)
        files = {file.id: file for file in (*urgent, *some)}
        room = self._room()
        changing: list[EntryId] = []
        put_off: set[EntryId] = set()
        for file in sorted(files.values(), key=lambda file: (worth(file.version, holding_of).readable, file.id)):
            copies = self._plan(file, room, stuck, holding_of)
            if copies is None:
                continue
            made = len({copy.node for copy in copies} - {copy.node for copy in file.version.copies})
            after = coming.and_more(made, file.version.size)
            # What only drops copies need not wait for those that are being made.
            if made == 0 or self._at_once.allow(after):
                coming = after
                changing.append(file.id)
            else:
                put_off.add(file.id)
        self._endangered.forget([id_ for id_ in asked if id_ not in put_off])
        for first in range(0, len(changing), CHANGED_MAX):
            await self._change(changing[first : first + CHANGED_MAX], room, stuck)

    def _plan(self, file: File, room: Mapping[str, int], stuck: Stuck, holding_of: Callable[[str], Holding]) -> tuple[Copy, ...] | None:
        wanted = self._roster.settings.copies_wanted
        nodes = [node for node, attempt in stuck.get(file.id, {}).items() if attempt == file.version.attempt]
        return plan(file.version, wanted, holding_of=holding_of, room=room, below=self._below, stuck=nodes)

    async def _candidates(self, sql: Any, stuck: Stuck) -> tuple[list[EntryId], list[File], list[File], Coming]:
        holders = {node: self.holding_of(node) for node in await directory.holders(sql)}
        good = tuple(node for node in holders if holders[node] is Holding.GOOD)
        leaving = tuple(node for node in holders if holders[node] is Holding.LEAVING)
        wanting = (*leaving, *(node for node in holders if holders[node] is Holding.LOST))
        # Those that cannot be made, because their node or all that they could be made from is away, hold up nothing else.
        # Nor do those of a node that is stuck with any: a full disk has many.
        stuck_nodes = {node for nodes in stuck.values() for node in nodes}
        rows = await sql.query(
            "SELECT count(*), sum(size) FROM (SELECT entries.size FROM copies AS mine JOIN entries ON entries.id = mine.file"
            " WHERE NOT mine.durable AND mine.node IN :good AND EXISTS"
            " (SELECT 1 FROM copies AS source WHERE source.file = mine.file AND source.durable AND source.node IN :readable)"
            " LIMIT :limit) AS coming",
            {"good": tuple(node for node in good if node not in stuck_nodes), "readable": (*good, *leaving), "limit": self._at_once.small},
        )
        coming = Coming(int(rows[0][0]), int(rows[0][1] or 0))
        urgent: list[File] = await directory.files(sql, [file.value for file in sorted(stuck)[: self._looked_at]])
        if (wanting, (*good, *leaving)) != (self._wanting, self._readable):
            self._wanting, self._readable = wanting, (*good, *leaving)
            self._left = [(node, b"") for node in wanting]
            self._endangered.clear()
        asked: list[EntryId] = []
        if self._at_once.allow(coming.and_more(1, 0)):
            await self._go_through(sql)
            asked = self._endangered.first(self._looked_at)
            urgent += await directory.files(sql, [file.value for file in asked])
        rows = await sql.query(
            "SELECT id FROM entries WHERE number IS NOT NULL AND id > :after ORDER BY id LIMIT :limit",
            {"after": self._cursor, "limit": self._looked_at},
        )
        self._cursor = bytes(rows[-1][0]) if len(rows) == self._looked_at else b""
        return asked, urgent, await directory.files(sql, [bytes(row[0]) for row in rows]), coming

    async def _go_through(self, sql: Any) -> None:
        """Look at the next page of what lost and leaving nodes hold."""
        if not self._left:
            self._rest += 1
            if self._rest >= REST_ROUNDS:
                self._left = [(node, b"") for node in self._wanting]
        page = self._page
        while self._left and page:
            self._rest = 0
            node, after = self._left[0]
            # Primary keys on both sides: a source is counted once.
            rows = await sql.query(
                "SELECT mine.file, count(source.node)"
                " FROM (SELECT file FROM copies WHERE node = :node AND file > :after ORDER BY file LIMIT :limit) AS mine"
                " LEFT JOIN copies AS source ON source.file = mine.file AND source.durable AND source.node IN :readable"
                " GROUP BY mine.file ORDER BY mine.file",
                {"node": node, "after": after, "limit": page, "readable": self._readable},
            )
            for file, readable in rows:
                if readable:
                    self._endangered.add(EntryId(bytes(file)), int(readable))
            self._left[:1] = [(node, bytes(rows[-1][0]))] if len(rows) == page else []
            page -= len(rows)

    async def _change(self, ids: Sequence[EntryId], room: Mapping[str, int], stuck: Stuck) -> None:
        if not ids:
            return

        async def decide(sql: Any, position: Position) -> Decision[None]:
            facts: list[File] = []
            if not await self._may(sql):
                return Decision(facts=(), answer=None)
            for file in await directory.files(sql, [id_.value for id_ in ids]):
                copies = self._plan(file, room, stuck, self.holding_of)
                if copies is not None:
                    facts.append(attrs.evolve(file, version=attrs.evolve(file.version, copies=copies)))
            return Decision(facts=tuple(facts), answer=None)

        entered: Entered[None] = await self._ledger.enter("repair", decide)
        for file in entered.facts:
            if isinstance(file, File):
                copies = ", ".join(f"{copy.node}{'' if copy.durable else ' (pending)'}" for copy in file.version.copies)
                self._log.info("copies of {file}: {copies}", file=str(file.id), copies=copies)
