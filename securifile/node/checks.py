"""When each copy on this node was last known to be sound: a table of the index that survives restarts.

A row says since when nothing is known: `at` is when the blob was last read whole and every block of it was good. A copy that was never
read since it came counts from its commit, when its digest was computed from what came in. `told` is false for checks that no
admin server has heard of.

Rows come in two ways: `checked` notes a check, and `enter_some` goes through the copies that the catalogue wants here, a
slice at a time, so that an index of millions holds nobody up. Who finds a row of a copy that is not wanted any more forgets it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from securifile.model.ids import AttemptId
from securifile.node.index import Index
from securifile.protocol.messages import CheckedCopy
from securifile.sql.dialects import insert_rows

SLICE = 500
"""Copies looked at or written down in one go: two milliseconds."""


class Checks:
    """The table of one node."""

    def __init__(self, *, index: Index, wall: Callable[[], float], name: str) -> None:
        self._index = index
        self._wall = wall
        self._name = name
        self._fresh: dict[AttemptId, float] = {}
        self._after = b""

    def checked(self, attempt: AttemptId) -> None:
        """A blob was read whole just now, and is what was committed. Written down by the next `keep`."""
        self._fresh[attempt] = self._wall()

    async def keep(self) -> None:
        """Write down what was checked: one transaction for many."""
        fresh, self._fresh = self._fresh, {}
        if not fresh:
            return

        async def write(sql: Any) -> None:
            rows = [(attempt.value, at, False) for attempt, at in fresh.items()]
            for start in range(0, len(rows), SLICE):
                again = " ON CONFLICT (attempt) DO UPDATE SET at = excluded.at, told = FALSE"
                await sql.execute(*insert_rows("checks", ("attempt", "at", "told"), rows[start : start + SLICE], again))

        try:
            await self._index.transact("keep checks", write)
        except BaseException:
            self._fresh = {**fresh, **self._fresh}
            raise

    async def enter_some(self) -> None:
        """Look at the next copies that this node holds, and enter those that are new here; begins anew after the last."""
        rows = await self._index.sql.query(
            "SELECT copies.file, entries.attempt, entries.committed_at,"
            " EXISTS (SELECT 1 FROM checks WHERE checks.attempt = entries.attempt)"
            " FROM copies JOIN entries ON entries.id = copies.file"
            " WHERE copies.node = :node AND copies.durable AND copies.file > :after ORDER BY copies.file LIMIT :slice",
            {"node": self._name, "after": self._after, "slice": SLICE},
        )
        new = [(bytes(attempt), committed_at) for _, attempt, committed_at, known in rows if not known]

        async def write(sql: Any) -> None:
            for attempt, committed_at in new:
                await sql.execute(
                    "INSERT INTO checks (attempt, at, told) VALUES (:attempt, :at, TRUE) ON CONFLICT (attempt) DO NOTHING",
                    {"attempt": attempt, "at": committed_at},
                )

        if new:
            await self._index.transact("enter copies", write)
        self._after = bytes(rows[-1][0]) if len(rows) == SLICE else b""

    async def due(self, every_s: float, limit: int) -> list[AttemptId]:
        """Blobs that were not checked for so long, the longest waiting first.

        A check in the future was made while the clock was wrong, and counts for nothing.
        """
        now = self._wall()
        rows = await self._index.sql.query(
            "SELECT attempt FROM checks WHERE at <= :before OR at > :now ORDER BY at LIMIT :limit",
            {"before": now - every_s, "now": now, "limit": limit},
        )
        return [AttemptId(bytes(row[0])) for row in rows]

    async def oldest(self) -> float | None:
        """When the longest waiting copy was last known to be sound (wall clock); None when there is no copy."""
        rows = await self._index.sql.query("SELECT at FROM checks ORDER BY at LIMIT 1")
        return float(rows[0][0]) if rows else None

    async def forget(self, attempt: AttemptId) -> None:
        """The blob is gone, or it was bad."""
        self._fresh.pop(attempt, None)

        async def write(sql: Any) -> None:
            await sql.execute("DELETE FROM checks WHERE attempt = :attempt", {"attempt": attempt.value})

        await self._index.transact("forget a check", write)

    async def untold(self, limit: int) -> list[CheckedCopy]:
        """Checks that no admin server has heard of."""
        rows = await self._index.sql.query("SELECT attempt, at FROM checks WHERE NOT told LIMIT :limit", {"limit": limit})
        return [CheckedCopy(attempt=AttemptId(bytes(attempt)), at=at) for attempt, at in rows]

    async def told(self, copies: Sequence[CheckedCopy]) -> None:
        """An admin server has heard of these."""

        async def write(sql: Any) -> None:
            for copy in copies:
                # If it was checked once more meanwhile, that is still to be told.
                await sql.execute(
                    "UPDATE checks SET told = TRUE WHERE attempt = :attempt AND at = :at", {"attempt": copy.attempt.value, "at": copy.at}
                )

        if copies:
            await self._index.transact("told checks", write)
