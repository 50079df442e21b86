"""What nodes tell of the soundness of their copies: when each was last read whole, and how they stand on the whole.

These are no facts: no node needs to know what another one checked, so they are neither revisions nor in the feed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import attrs

from securifile.model.ids import EntryId
from securifile.protocol.messages import CopiesChecked, Done

FORGOTTEN_AT_ONCE = 5000
"""Rows looked at in one transaction: some tens of milliseconds."""

TOGETHER = 500
"""Checks noted by one statement: what a node tells at a time when it has just been verified. One statement each took ten times as long."""


@attrs.frozen(kw_only=True)
class Soundness:
    """How the copies of one node stand."""

    oldest_at: float | None
    """When the copy was checked (or, if it never was, committed) that has waited longest; None: it has none."""
    quarantined: int


class Checks:
    """The checks of all copies."""

    def __init__(self, database: Any, wall: Callable[[], float]) -> None:
        self._database = database
        self._wall = wall
        self._after = b""

    async def note(self, told: CopiesChecked, node: str) -> Done:
        """Keep what a node tells. Of copies that the catalogue does not hold for durable there, nothing is kept."""
        now = self._wall()

        async def write(sql: Any) -> None:
            # A clock that is ahead does not make a check younger than it can be.
            checked = [(attempt, min(at, now)) for attempt, at in {copy.attempt.value: copy.at for copy in told.copies}.items()]
            for start in range(0, len(checked), TOGETHER):
                some = checked[start : start + TOGETHER]
                attempts = {f"attempt_{number}": attempt for number, (attempt, _) in enumerate(some)}
                times = {f"at_{number}": at for number, (_, at) in enumerate(some)}
                await sql.execute(_noting(len(some)), {"node": node, **attempts, **times})
            await sql.execute(
                "INSERT INTO scrubs (node, oldest_at, quarantined, told_at) VALUES (:node, :oldest_at, :quarantined, :now)"
                " ON CONFLICT (node) DO UPDATE SET oldest_at = excluded.oldest_at, quarantined = excluded.quarantined,"
                " told_at = excluded.told_at",
                {
                    "node": node,
                    "oldest_at": None if told.oldest_at is None else min(told.oldest_at, now),
                    "quarantined": told.quarantined,
                    "now": now,
                },
            )

        await self._database.transact("note checks", write)
        return Done()

    async def of_file(self, file: EntryId) -> Mapping[str, float]:
        """When the copies of a file's current version were last checked, by node; a copy that never was is not there."""

        async def ask(sql: Any) -> Mapping[str, float]:
            rows = await sql.query(
                "SELECT checks.node, checks.at FROM checks"
                " JOIN entries ON entries.id = checks.file AND entries.attempt = checks.attempt"
                " JOIN copies ON copies.file = checks.file AND copies.node = checks.node AND copies.durable"
                " WHERE checks.file = :file ORDER BY checks.node",
                {"file": file.value},
            )
            return dict(rows)

        found: Mapping[str, float] = await self._database.read(ask)
        return found

    async def of_nodes(self) -> Mapping[str, Soundness]:
        """How the copies of each node stand, by what it told last."""

        async def ask(sql: Any) -> Mapping[str, Soundness]:
            rows = await sql.query("SELECT scrubs.node, oldest_at, quarantined FROM scrubs JOIN servers ON servers.name = scrubs.node")
            return {node: Soundness(oldest_at=oldest_at, quarantined=quarantined) for node, oldest_at, quarantined in rows}

        found: Mapping[str, Soundness] = await self._database.read(ask)
        return found

    async def forget_some(self) -> None:
        """Forget checks of copies that are no more: the next few thousand, in a circle; a chore."""
        after = self._after

        async def forget(sql: Any) -> bytes:
            rows = await sql.query(
                "SELECT file FROM checks WHERE file > :after ORDER BY file LIMIT 1 OFFSET :count",
                {"after": after, "count": FORGOTTEN_AT_ONCE},
            )
            until = bytes(rows[0][0]) if rows else b""
            await sql.execute(
                "DELETE FROM checks WHERE file > :after AND (file <= :until OR :last)"
                " AND NOT EXISTS (SELECT 1 FROM copies WHERE copies.file = checks.file AND copies.node = checks.node)",
                {"after": after, "until": until, "last": not rows},
            )
            await sql.execute("DELETE FROM scrubs WHERE NOT EXISTS (SELECT 1 FROM servers WHERE servers.name = scrubs.node)")
            return until

        self._after = await self._database.transact("forget checks", forget)


@lru_cache(8)
def _noting(count: int) -> str:
    """The statement that notes so many checks."""
    rows = ", ".join(f"(:attempt_{number}, CAST(:at_{number} AS DOUBLE PRECISION))" for number in range(count))
    return (
        f"WITH told (attempt, at) AS (VALUES {rows}) INSERT INTO checks (file, node, attempt, at)"
        " SELECT entries.id, copies.node, entries.attempt, told.at FROM told"
        " JOIN entries ON entries.attempt = told.attempt JOIN copies ON copies.file = entries.id"
        " WHERE copies.node = :node AND copies.durable"
        " ON CONFLICT (file, node) DO UPDATE SET attempt = excluded.attempt, at = excluded.at"
    )
