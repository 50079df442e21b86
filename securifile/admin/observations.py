"""What is seen of the servers, written down for people and for the other admin servers: opinions, heartbeats, storage.

None of it is a fact of the catalogue, and nothing is decided by it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from securifile.model.ids import Position
from securifile.model.servers import Status


@attrs.frozen(kw_only=True)
class Seen:
    """What the last heartbeat of a server told."""

    at: float
    """Wall clock of the admin server."""
    position: Position
    used_bytes: int
    available_bytes: int


class Observations:
    """The matrix, the last heartbeats, and the series of storage."""

    def __init__(self, database: Any, *, wall: Callable[[], float]) -> None:
        """Args:
        database: an `IDatabase`.
        """
        self._database = database
        self._wall = wall

    async def keep_matrix(self, opinions: Mapping[tuple[str, str], Status]) -> None:
        """Write down who holds whom for what, and since when."""
        now = self._wall()

        async def write(sql: Any) -> None:
            for (observer, subject), status in sorted(opinions.items()):
                await sql.execute(
                    "INSERT INTO judgements (observer, subject, status, since) VALUES (:observer, :subject, :status, :now)"
                    " ON CONFLICT (observer, subject) DO UPDATE SET since = CASE WHEN judgements.status = excluded.status"
                    " THEN judgements.since ELSE excluded.since END, status = excluded.status",
                    {"observer": observer, "subject": subject, "status": status.value, "now": now},
                )

        await self._database.transact("keep the matrix", write)

    async def observers_of(self, name: str) -> list[tuple[str, Status, float]]:
        """(observer, status, since) for each server that judges `name`."""

        async def ask(sql: Any) -> list[tuple[str, Status, float]]:
            rows = await sql.query("SELECT observer, status, since FROM judgements WHERE subject = :name ORDER BY observer", {"name": name})
            return [(row[0], Status(row[1]), row[2]) for row in rows]

        found: list[tuple[str, Status, float]] = await self._database.read(ask)
        return found

    async def keep_heartbeats(self, seen: Mapping[str, Seen], *, sample: bool) -> None:
        """Write down the last heartbeats, and with `sample` a point of each server's storage series."""

        async def write(sql: Any) -> None:
            for name, one in sorted(seen.items()):
                row = {
                    "server": name,
                    "at": one.at,
                    "epoch": one.position.epoch,
                    "revision": one.position.revision,
                    "used": one.used_bytes,
                    "available": one.available_bytes,
                }
                await sql.execute(
                    "INSERT INTO heartbeats (server, at, epoch, revision, used_bytes, available_bytes)"
                    " VALUES (:server, :at, :epoch, :revision, :used, :available) ON CONFLICT (server) DO UPDATE SET at = excluded.at,"
                    " epoch = excluded.epoch, revision = excluded.revision, used_bytes = excluded.used_bytes,"
                    " available_bytes = excluded.available_bytes WHERE excluded.at >= heartbeats.at",
                    row,
                )
                if sample:
                    await sql.execute(
                        "INSERT INTO storage_samples (server, at, used_bytes, available_bytes)"
                        " VALUES (:server, :at, :used, :available) ON CONFLICT (server, at) DO NOTHING",
                        {key: row[key] for key in ("server", "at", "used", "available")},
                    )

        await self._database.transact("keep heartbeats", write)

    async def keep_own_heartbeat(self, name: str, at: float, position: Position) -> None:
        """Write down that this admin server is there; whatever its clock showed before."""

        async def write(sql: Any) -> None:
            await sql.execute(
                "INSERT INTO heartbeats (server, at, epoch, revision, used_bytes, available_bytes)"
                " VALUES (:server, :at, :epoch, :revision, 0, 0) ON CONFLICT (server) DO UPDATE SET at = excluded.at,"
                " epoch = excluded.epoch, revision = excluded.revision",
                {"server": name, "at": at, "epoch": position.epoch, "revision": position.revision},
            )

        await self._database.transact("keep own heartbeat", write)

    async def last_heartbeats(self) -> dict[str, Seen]:
        """What was last written down of each server."""

        async def ask(sql: Any) -> dict[str, Seen]:
            rows = await sql.query("SELECT server, at, epoch, revision, used_bytes, available_bytes FROM heartbeats")
            return {row[0]: Seen(at=row[1], position=Position(row[2], row[3]), used_bytes=row[4], available_bytes=row[5]) for row in rows}

        found: dict[str, Seen] = await self._database.read(ask)
        return found

    async def storage(self, name: str, since: float, until: float, points: int) -> Sequence[tuple[float, int, int]]:
        """At most `points` samples (time, used, available) of a server's storage, evenly spread over [since, until)."""
        width = max((until - since) / points, 1e-6)

        async def ask(sql: Any) -> Sequence[tuple[float, int, int]]:
            rows = await sql.query(
                "SELECT max(at), max(used_bytes), min(available_bytes) FROM storage_samples"
                " WHERE server = :name AND at >= :since AND at < :until"
                " GROUP BY CAST((at - :since) / :width AS BIGINT) ORDER BY 1",
                {"name": name, "since": since, "until": until, "width": width},
            )
            return [(row[0], row[1], row[2]) for row in rows]

        found: Sequence[tuple[float, int, int]] = await self._database.read(ask)
        return found
