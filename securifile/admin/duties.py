"""Duties with one doer: of several admin servers on one database, which one judges, verifies, plans repairs and trims the feed now.

The duty is a row in the database with its holder and a turn, which the holder raises every second. No clock is compared with another:
who wants the duty watches the row, and takes it when its turn has not moved for a lease, by its own monotonic clock. The holder, for
its part, counts from when it *asked* for its last turn, and stops well before the others can think that it is gone.

A holder that was paused may wake in the middle of an act. So each act asks, within its transaction, whether the duty is still held by
who acts (`still_ours`), and is nothing if not.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

TURN_S = 1.0
"""How often the holder says that it is there, and the others look."""

LEASE_S = 4.0
"""Without a new turn for so long the holder is gone: three turns may be late."""

HELD_S = 3.0
"""So long after it asked for its last turn the holder acts: shorter than the lease, for a clock that runs slowly."""

DEAF_S = 15.0
"""How much longer an admin server waits that hears no node: whom it would judge, another one may hear well."""

WATCHING = "watching"
"""Judging nodes, verifying those that return, planning repairs, reconciling, trimming the feed."""


class Duty:
    """One duty, as one admin server sees it."""

    _log = Logger()

    def __init__(self, *, clock: IReactorTime, database: Any, holder: str, name: str = WATCHING) -> None:
        """Args:
        database: an `IDatabase`.
        holder: this admin server's name.
        """
        self._clock = clock
        self._database = database
        self._holder = holder
        self._name = name
        self._until = float("-inf")
        self._seen: tuple[str, int] | None = None
        self._seen_since = clock.seconds()

    @property
    def is_ours(self) -> bool:
        """Whether this server may act now."""
        return self._clock.seconds() < self._until

    @property
    def doer(self) -> str | None:
        """Who had the duty when it was last looked; None when nobody had."""
        return self._seen[0] or None if self._seen is not None else None

    async def look(self, able: bool = True) -> None:
        """Take the next turn, or the duty if nobody has it any more. A chore.

        Args:
            able: whether this server hears nodes at all; one that does not leaves the duty to another.
        """
        asked_at = self._clock.seconds()

        async def take(sql: Any) -> tuple[str, int]:
            this = {"name": self._name, "holder": self._holder}
            await sql.execute("INSERT INTO duties (name, holder, turn) VALUES (:name, '', 0) ON CONFLICT (name) DO NOTHING", this)
            ((holder, turn),) = await sql.query("SELECT holder, turn FROM duties WHERE name = :name FOR UPDATE", this)
            if holder in ("", self._holder):
                mine = able or self._has_stood((holder, turn), asked_at, DEAF_S)
            else:
                mine = self._has_stood((holder, turn), asked_at, LEASE_S if able else LEASE_S + DEAF_S)
            if not mine:
                return holder, turn
            await sql.execute("UPDATE duties SET holder = :holder, turn = :turn WHERE name = :name", {**this, "turn": turn + 1})
            return self._holder, turn + 1

        found = await self._database.transact("take a turn", take)
        if found != self._seen:
            if found[0] != self.doer:
                self._log.info("{server} does the {duty} now", server=found[0] or "nobody", duty=self._name)
            if found[0] == self._holder:
                self._until = asked_at + HELD_S
            self._seen, self._seen_since = found, self._clock.seconds()
        if found[0] != self._holder:
            self._until = float("-inf")

    def _has_stood(self, row: tuple[str, int], now: float, seconds: float) -> bool:
        return row == self._seen and now - self._seen_since >= seconds

    async def still_ours(self, sql: Any) -> bool:
        """Whether it is ours, asked within the transaction of an act: until that ends nobody takes it away."""
        rows = await sql.query("SELECT holder FROM duties WHERE name = :name FOR SHARE", {"name": self._name})
        return bool(rows and rows[0][0] == self._holder)

    async def leave(self) -> None:
        """Leave it to another at once, at a planned stop. Raises `DatabaseUnavailable`."""
        self._until = float("-inf")

        async def give_up(sql: Any) -> None:
            await sql.execute(
                "UPDATE duties SET holder = '', turn = turn + 1 WHERE name = :name AND holder = :holder",
                {"name": self._name, "holder": self._holder},
            )

        await self._database.transact("leave a duty", give_up)


May = Callable[[Any], Awaitable[bool]]
"""Whether who acts still may, asked within the transaction."""


async def anybody(sql: Any) -> bool:
    """For acts that need no duty."""
    return True
