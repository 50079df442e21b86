"""Reconciling an epoch: what the catalogue lost is taken back from the nodes.

    epoch begins --> nodes follow, compare, hand in --> all have (or the administrator goes on without the rest)
                                                            |
             people may change things again <-- decided (`model/reconciliation.py`), committed, the rest listed

What nodes hand in is kept in the database, so that any admin server can go on with it. One does: the one that has the duty.
A node that comes when the epoch is reconciled hands in, too; then all of it is listed and nothing is done.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from securifile.admin.duties import Duty
from securifile.admin.ledger import Decision, Ledger, Needs
from securifile.model.errors import Code, ConstraintViolated, Refusal
from securifile.model.facts import Claim, Fact, File, PersonGone
from securifile.model.ids import Position
from securifile.model.reconciliation import HandedIn, Left, reconcile
from securifile.model.servers import ServerKind
from securifile.protocol import messages as m
from securifile.protocol.codec import decode_value, encode_value
from securifile.sql import directory
from securifile.sql.facts import every_fact

ROUND_S = 0.5
"""How often to look whether all nodes have handed in: people wait."""

FACTS_MAX = 500
"""Committed at once."""

LISTED_MAX = 10_000
"""What an administrator can look through; the rest is counted."""


@attrs.frozen(kw_only=True)
class Epoch:
    """The state of the present epoch, for an administrator."""

    epoch: int
    reconciled: bool
    rebuilding: bool
    """Whether all of the catalogue is made anew from the nodes: then only an administrator knows when all are there."""
    handed_in: dict[str, Position]
    missing: tuple[str, ...]
    left: tuple[tuple[str, str, str], ...]
    """(node, what, why it was not done again)"""


class Reconciling:
    """One admin server's part in it."""

    _log = Logger()

    def __init__(self, *, ledger: Ledger, duty: Duty) -> None:
        self._ledger = ledger
        self._duty = duty
        self._under_way = False
        self._on_handed_in: list[Any] = []

    def watch(self, handed_in: Any) -> None:
        """Call `handed_in(node)` when a node has handed in everything."""
        self._on_handed_in.append(handed_in)

    # --- nodes ---

    async def take(self, node: str, handed: m.HandIn) -> m.Done:
        """Keep a part of what a node hands in."""
        late = self._ledger.reconciled

        async def write(sql: Any) -> None:
            this = {"epoch": await self._epoch(sql), "node": node}
            if handed.number == 0:
                await sql.execute("DELETE FROM claims WHERE epoch = :epoch AND node = :node", this)
            for number, claim in enumerate(handed.claims):
                row = {**this, "number": handed.number * 100_000 + number, "body": encode_value(Claim, claim)}
                await sql.execute(
                    "INSERT INTO claims (epoch, node, number, body, why) VALUES (:epoch, :node, :number, :body, :why)",
                    {**row, "why": "the node came when the epoch had been reconciled" if late else None},
                )
            if handed.last:
                await self._note(sql, this, handed.position)

        await self._ledger.database.transact("take what is handed in", write)
        if handed.last:
            self._log.warn("{node} has handed in what it knows up to {position}", node=node, position=str(handed.position))
            for watcher in self._on_handed_in:
                watcher(node)
        return m.Done()

    async def nothing_beyond(self, node: str, position: Position) -> None:
        """A node's index tells the catalogue's own history: it has nothing to hand in."""

        async def write(sql: Any) -> None:
            await self._note(sql, {"epoch": await self._epoch(sql), "node": node}, position)

        await self._ledger.database.transact("nothing to hand in", write)

    async def _note(self, sql: Any, this: dict[str, Any], position: Position) -> None:
        await sql.execute(
            "INSERT INTO handed_in (epoch, node, at_epoch, at_revision) VALUES (:epoch, :node, :at_epoch, :at_revision)"
            " ON CONFLICT (epoch, node) DO UPDATE SET at_epoch = excluded.at_epoch, at_revision = excluded.at_revision",
            {**this, "at_epoch": position.epoch, "at_revision": position.revision},
        )

    async def _epoch(self, sql: Any) -> int:
        return int((await sql.query("SELECT epoch FROM cluster"))[0][0])

    # --- deciding ---

    async def round(self) -> None:
        """Go on as soon as all nodes have handed in. A chore."""
        if self._ledger.reconciled or not self._duty.is_ours:
            return
        state = await self.state()
        if state.reconciled or state.missing or state.rebuilding:
            return
        await self._reconcile()

    async def accept(self) -> Epoch:
        """Go on without the nodes that are missing: the administrator says so. Raises `Refusal` when there is nothing to go on with."""
        state = await self.state()
        if state.reconciled:
            raise Refusal(Code.CONFLICT, f"Epoch {state.epoch} is reconciled already.")
        await self._reconcile()
        return await self.state()

    async def _reconcile(self) -> None:
        if self._under_way:
            return
        self._under_way = True
        try:
            snapshot, handed_in, rebuilding = await self._ledger.database.read(self._everything)
            found = reconcile(snapshot, handed_in, everything=rebuilding)
            facts = list(found.facts)
            try:
                for start in range(0, len(facts), FACTS_MAX):
                    await self._commit(facts[start : start + FACTS_MAX])
            except ConstraintViolated as error:
                # Two indexes that cannot both be right. An administrator decides what a person can decide; nothing is lost meanwhile.
                self._log.critical("what the nodes handed in does not fit together: {problem}", problem=str(error))
                raise
            await self._ledger.database.transact("end the reconciliation", lambda sql: self._end(sql, found.void_passwords, found.left))
            self._log.critical(
                "epoch {epoch} is reconciled: {done} changes made again, {left} left to the administrator",
                epoch=self._ledger.position.epoch,
                done=len(found.facts),
                left=len(found.left),
            )
        finally:
            self._under_way = False
        await self._ledger.catch_up()

    async def _everything(self, sql: Any) -> tuple[list[Fact], dict[str, HandedIn], bool]:
        ((epoch, rebuilding),) = await sql.query("SELECT epoch, rebuilding FROM cluster")
        claims: dict[str, list[Claim]] = {}
        for node, body in await sql.query("SELECT node, body FROM claims WHERE epoch = :epoch ORDER BY node, number", {"epoch": epoch}):
            claims.setdefault(node, []).append(decode_value(Claim, bytes(body)))
        rows = await sql.query("SELECT node, at_epoch, at_revision FROM handed_in WHERE epoch = :epoch ORDER BY node", {"epoch": epoch})
        handed_in = {row[0]: HandedIn(position=Position(row[1], row[2]), claims=tuple(claims.get(row[0], ()))) for row in rows}
        return await every_fact(sql), handed_in, bool(rebuilding)

    async def _commit(self, facts: Iterable[Fact]) -> None:
        async def decide(sql: Any, position: Position) -> Decision[None]:
            for fact in facts:
                if isinstance(fact, File):
                    await _remember(sql, fact, position)
                elif isinstance(fact, PersonGone):
                    await sql.execute("DELETE FROM passwords WHERE username = :username", {"username": fact.username})
            return Decision(facts=tuple(facts), answer=None)

        await self._ledger.enter("reconcile", decide, Needs.NOTHING)

    async def _end(self, sql: Any, void_passwords: Iterable[str], left: Iterable[Left]) -> None:
        for username in void_passwords:
            await sql.execute("DELETE FROM passwords WHERE username = :username", {"username": username})
        epoch = await self._epoch(sql)
        await sql.execute("DELETE FROM claims WHERE epoch = :epoch", {"epoch": epoch})
        for number, one in enumerate(left):
            body = encode_value(Claim, Claim(fact=one.fact, at=Position(0, 0)))
            await sql.execute(
                "INSERT INTO claims (epoch, node, number, body, why) VALUES (:epoch, '', :number, :body, :why)",
                {"epoch": epoch, "number": number, "body": body, "why": one.why},
            )
        await sql.execute("UPDATE cluster SET reconciled = :yes, rebuilding = :no", {"yes": True, "no": False})

    # --- for the administrator ---

    def state(self) -> Deferred[Epoch]:
        """The present epoch."""
        found: Deferred[Epoch] = self._ledger.database.read(self._state)
        return found

    async def _state(self, sql: Any) -> Epoch:
        ((epoch, reconciled, rebuilding),) = await sql.query("SELECT epoch, reconciled, rebuilding FROM cluster")
        rows = await sql.query("SELECT node, at_epoch, at_revision FROM handed_in WHERE epoch = :epoch ORDER BY node", {"epoch": epoch})
        handed_in = {row[0]: Position(row[1], row[2]) for row in rows}
        nodes = [server.name for server in await directory.servers(sql, ServerKind.NODE)]
        left = await sql.query(
            "SELECT node, body, why FROM claims WHERE why IS NOT NULL ORDER BY epoch, node, number LIMIT :limit", {"limit": LISTED_MAX}
        )
        return Epoch(
            epoch=epoch,
            reconciled=bool(reconciled),
            rebuilding=bool(rebuilding),
            handed_in=handed_in,
            missing=() if reconciled else tuple(name for name in nodes if name not in handed_in),
            left=tuple((row[0], _said(decode_value(Claim, bytes(row[1])).fact), row[2]) for row in left),
        )


def _said(fact: Fact) -> str:
    """What a fact is about, in a few words."""
    kind = type(fact).__name__
    values = attrs.asdict(fact, recurse=False)
    shown = {name: value for name, value in values.items() if name in ("id", "owner", "name", "username", "entry", "role", "cluster")}
    return f"{kind}({', '.join(f'{name}={value}' for name, value in shown.items())})"


async def _remember(sql: Any, file: File, position: Position) -> None:
    """How the attempt ended, for the node that asks; and the version."""
    version = file.version
    answer = m.Committed(position=position, facts=(file,), attempt=version.attempt, created=version.number == 1)
    await sql.execute(
        "INSERT INTO attempts (attempt, ended, person, answer, ended_at) VALUES (:attempt, 'committed', :person, :answer, :at)"
        " ON CONFLICT (attempt) DO NOTHING",
        {
            "attempt": version.attempt.value,
            "person": version.committed_by,
            "answer": encode_value(m.Committed, answer),
            "at": version.committed_at,
        },
    )
    await sql.execute(
        "INSERT INTO versions (file, number, attempt, size, digest, algorithm, origin, committed_at, committed_by, epoch, revision)"
        " VALUES (:file, :number, :attempt, :size, :digest, :algorithm, :origin, :at, :by, :epoch, :revision)"
        " ON CONFLICT (file, number) DO NOTHING",
        {
            "file": file.id.value,
            "number": version.number,
            "attempt": version.attempt.value,
            "size": version.size,
            "digest": version.digest,
            "algorithm": version.algorithm.value,
            "origin": version.origin,
            "at": version.committed_at,
            "by": version.committed_by,
            "epoch": position.epoch,
            "revision": position.revision,
        },
    )
