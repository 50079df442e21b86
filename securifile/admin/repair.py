"""Restoring the wanted number of copies: the catalogue says where copies should be, and the nodes fetch them.

In each round the files that a lost or leaving node holds come first, the most endangered of them before the others; then a part of all
files in turn, which finds what a changed r asks for, and what is too much. Every change is decided again inside its transaction, so
that an upload that came between is not undone, and several admin servers may do this at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
from twisted.logger import Logger

from securifile.admin.ledger import Decision, Entered, Ledger
from securifile.model.facts import File
from securifile.model.ids import EntryId, Position
from securifile.model.repair import Holding, holding, plan, worth
from securifile.model.roster import Roster
from securifile.sql import directory

ROUND_S = 2.0
"""How often: a few heartbeats; grace times are minutes."""

COMING_MAX = 64
"""Copies being made at a time, in the whole cluster: enough to keep every node busy, few enough that what is most endangered does not
wait behind what was planned long ago."""

LOOKED_AT = 500
"""Files looked at in a round, of all there are: a million in an hour, for a millisecond of each second."""


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
    ) -> None:
        """Args:
        room: bytes available on each running node.
        """
        self._ledger = ledger
        self._roster = roster
        self._wall = wall
        self._room = room
        self._below = below
        self._cursor = b""

    def holding_of(self, node: str) -> Holding:
        """What copies on a node are worth now."""
        return holding(self._roster.servers.get(node), self._roster.settings, self._wall())

    async def round(self) -> None:
        """Plan what is most urgent. A chore."""
        urgent, some, coming = await self._ledger.database.read(self._candidates)
        budget = COMING_MAX - coming
        wanted = self._roster.settings.copies_wanted
        files = {file.id: file for file in (*urgent, *some)}
        changing = [file for file in files.values() if self._plan(file, wanted) is not None]
        changing.sort(key=lambda file: (worth(file.version, self.holding_of).readable, file.id))
        await self._change([file.id for file in changing[: max(budget, 0)]], wanted)

    def _plan(self, file: File, wanted: int) -> Any:
        return plan(file.version, wanted, holding_of=self.holding_of, room=self._room(), below=self._below)

    async def _candidates(self, sql: Any) -> tuple[list[File], list[File], int]:
        holders = [row[0] for row in await sql.query("SELECT DISTINCT node FROM copies ORDER BY node")]
        wanting = tuple(node for node in holders if self.holding_of(node) in (Holding.LOST, Holding.LEAVING))
        urgent: list[File] = []
        if wanting:
            rows = await sql.query(
                "SELECT mine.file FROM copies AS mine JOIN copies AS other ON other.file = mine.file WHERE mine.node IN :nodes"
                " GROUP BY mine.file ORDER BY count(DISTINCT other.node), mine.file LIMIT :limit",
                {"nodes": wanting, "limit": LOOKED_AT},
            )
            urgent = await self._files(sql, rows)
        rows = await sql.query(
            "SELECT id FROM entries WHERE number IS NOT NULL AND id > :after ORDER BY id LIMIT :limit",
            {"after": self._cursor, "limit": LOOKED_AT},
        )
        self._cursor = bytes(rows[-1][0]) if len(rows) == LOOKED_AT else b""
        coming = await sql.query("SELECT count(*) FROM copies WHERE NOT durable")
        return urgent, await self._files(sql, rows), int(coming[0][0])

    async def _files(self, sql: Any, rows: Sequence[Any]) -> list[File]:
        found = [await directory.entry_by_id(sql, EntryId(bytes(row[0]))) for row in rows]
        return [file for file in found if isinstance(file, File)]

    async def _change(self, ids: Sequence[EntryId], wanted: int) -> None:
        if not ids:
            return

        async def decide(sql: Any, position: Position) -> Decision[None]:
            facts = []
            for id_ in ids:
                file = await directory.entry_by_id(sql, id_)
                copies = self._plan(file, wanted) if isinstance(file, File) else None
                if copies is not None:
                    assert isinstance(file, File)
                    facts.append(attrs.evolve(file, version=attrs.evolve(file.version, copies=copies)))
            return Decision(facts=tuple(facts), answer=None)

        entered: Entered[None] = await self._ledger.enter("repair", decide)
        for file in entered.facts:
            if isinstance(file, File):
                copies = ", ".join(f"{copy.node}{'' if copy.durable else ' (pending)'}" for copy in file.version.copies)
                self._log.info("copies of {file}: {copies}", file=str(file.id), copies=copies)
