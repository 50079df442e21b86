"""Reconciling an epoch: what the catalogue lost is taken back from the nodes.

    epoch begins --> nodes follow, compare, hand in --> all have (or the administrator goes on without the rest)
                                                            |
             people may change things again <-- decided (`model/reconciliation.py`), committed, the rest listed

What nodes hand in is kept in the database, so that any admin server can go on with it. One does: the one that has the duty.
A node that comes when the epoch is reconciled hands in, too; then what it knows beyond the others is listed, and nothing is done.

A catalogue that is made anew, because its database is gone, goes the same way (`model/rebuilding.py`). Nodes hand in what is on their
disks, too, and only an administrator says that enough of them have come. Whatever is decided is committed before the epoch is called
reconciled, and can be decided again: who is killed half way has published nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from securifile.admin.duties import Duty
from securifile.admin.ledger import Decision, Ledger, Needs
from securifile.model.entries import Sidecar
from securifile.model.errors import Code, ConstraintViolated, Refusal
from securifile.model.facts import Claim, Fact, File, PersonGone
from securifile.model.ids import BEGINNING, AttemptId, Position
from securifile.model.interfaces import IWorker, Row
from securifile.model.rebuilding import LostBlob, counted, knows_most, lost_blobs, members, on_disks, strangers, why_lost
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

SERVERS_MAX = 1000
"""Far more than there are in a cluster."""

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


@attrs.frozen(kw_only=True)
class Plan:
    """What would be done, or was done, to reconcile the epoch."""

    epoch: int
    facts: tuple[Fact, ...]
    """In groups that are committed in this order."""
    void_passwords: tuple[str, ...]
    left: tuple[Left, ...]
    lost_blobs: tuple[LostBlob, ...]
    knows_most: str | None
    """Of a catalogue that is made anew: the node whose index says what there is."""
    strangers: dict[str, tuple[str, ...]]
    """Of a catalogue that is made anew: see `rebuilding.strangers`; those whom the administrator has spoken about are not here."""

    @property
    def counts(self) -> dict[str, int]:
        """How many people, files and so on are written."""
        return counted(self.facts)


class Reconciling:
    """One admin server's part in it."""

    _log = Logger()

    def __init__(self, *, ledger: Ledger, duty: Duty, worker: IWorker) -> None:
        """Args:
        worker: understands what was handed in: for 100,000 files on three nodes half a minute of work.
        """
        self._worker = worker
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

        async def write(sql: Any) -> None:
            ((epoch, late),) = await sql.query("SELECT epoch, reconciled FROM cluster FOR UPDATE")
            this = {"epoch": epoch, "node": node}
            if handed.number == 0:
                await sql.execute("DELETE FROM claims WHERE epoch = :epoch AND node = :node", this)
                await sql.execute("DELETE FROM held WHERE epoch = :epoch AND node = :node", this)
            claims = handed.claims
            blobs: list[tuple[Sidecar, str | None]] = [(sidecar, None) for sidecar in handed.blobs or ()]
            if late:
                known = await self._known(sql, node, handed.position)
                claims = tuple(claim for claim in claims if claim.at > known)
                blobs = [(lost.sidecar, lost.why) for lost in await self._lost(sql, node, handed.blobs or (), known)]
            for number, claim in enumerate(claims):
                row = {**this, "number": handed.number * 100_000 + number, "body": encode_value(Claim, claim)}
                await sql.execute(
                    "INSERT INTO claims (epoch, node, number, body, why) VALUES (:epoch, :node, :number, :body, :why)",
                    {**row, "why": "the node came when the epoch had been reconciled" if late else None},
                )
            for sidecar, why in blobs:
                await self._keep_blob(sql, this, sidecar, why)
            if handed.last:
                await self._note(sql, this, handed.position, handed.blobs is not None)

        await self._ledger.database.transact("take what is handed in", write)
        if handed.last:
            self._log.warn("{node} has handed in what it knows up to {position}", node=node, position=str(handed.position))
            for watcher in self._on_handed_in:
                watcher(node)
        return m.Done()

    async def _known(self, sql: Any, node: str, position: Position) -> Position:
        """How far the history that this node's index tells is known: by the nodes that handed in when that history ended."""
        rows = await sql.query(
            "SELECT at_epoch, at_revision FROM handed_in WHERE node <> :node AND epoch ="
            " (SELECT min(epoch) FROM handed_in WHERE epoch > :epoch AND node <> :node)",
            {"node": node, "epoch": position.epoch},
        )
        return max((Position(*row) for row in rows), default=BEGINNING)

    async def _lost(self, sql: Any, node: str, blobs: Iterable[Sidecar], known: Position) -> list[LostBlob]:
        """Those of a late node's blobs that may matter."""
        found = []
        for sidecar in blobs:
            rows = await sql.query("SELECT number, attempt FROM entries WHERE id = :id", {"id": sidecar.file})
            if rows and rows[0][1] is not None and bytes(rows[0][1]) == sidecar.attempt.value:
                continue
            why = why_lost(sidecar, rows[0][0] if rows else None, known)
            if why is not None:
                found.append(LostBlob(node=node, sidecar=sidecar, why=why))
        return found

    async def _keep_blob(self, sql: Any, this: dict[str, Any], sidecar: Sidecar, why: str | None) -> None:
        await sql.execute(
            "INSERT INTO held (epoch, node, attempt, body, why) VALUES (:epoch, :node, :attempt, :body, :why)"
            " ON CONFLICT (epoch, node, attempt) DO UPDATE SET why = excluded.why",
            {**this, "attempt": sidecar.attempt.value, "body": encode_value(Sidecar, sidecar), "why": why},
        )

    async def nothing_beyond(self, node: str, position: Position) -> None:
        """A node's index tells the catalogue's own history: it has nothing to hand in."""

        async def write(sql: Any) -> None:
            await self._note(sql, {"epoch": await self._epoch(sql), "node": node}, position, False)

        await self._ledger.database.transact("nothing to hand in", write)

    async def _note(self, sql: Any, this: dict[str, Any], position: Position, blobs: bool) -> None:
        await sql.execute(
            "INSERT INTO handed_in (epoch, node, at_epoch, at_revision, blobs) VALUES (:epoch, :node, :at_epoch, :at_revision, :blobs)"
            " ON CONFLICT (epoch, node) DO UPDATE"
            " SET at_epoch = excluded.at_epoch, at_revision = excluded.at_revision, blobs = excluded.blobs",
            {**this, "at_epoch": position.epoch, "at_revision": position.revision, "blobs": blobs},
        )

    async def _epoch(self, sql: Any) -> int:
        return int((await sql.query("SELECT epoch FROM cluster"))[0][0])

    # --- deciding ---

    async def round(self) -> None:
        """Go on as soon as all nodes have handed in. A chore."""
        if self._ledger.reconciled or self._under_way or not self._duty.is_ours:
            return
        state = await self.state()
        if state.reconciled or state.missing or state.rebuilding:
            return
        await self.accept()

    async def plan(self, without: Iterable[str] = (), trusted: Iterable[str] = ()) -> Plan:
        """What `accept` would do. Raises `Refusal` when there is nothing to go on with."""
        # Understanding so much takes long, for which no transaction is left open.
        rows: _Rows = await self._ledger.database.read(_rows)
        plan: Plan = await self._worker.do(_planned, rows, set(without), set(trusted))
        return plan

    async def accept(self, without: Iterable[str] = (), trusted: Iterable[str] = ()) -> Plan:
        """Go on without the nodes that are missing: the administrator says so. Cancelled, it ends half way, and can be begun again.

        Args:
            without: leave aside what these nodes have handed in.
            trusted: take the word of these though others do not know them as members.

        Raises:
            Refusal: there is nothing to go on with, or it is not said whether to trust a stranger.
        """
        if self._under_way:
            raise Refusal(Code.CONFLICT, "The epoch is being reconciled already.")
        self._under_way = True
        try:
            plan = await self.plan(without, trusted)
            if plan.strangers:
                raise Refusal(Code.CONFLICT, _strange(plan.strangers))
            try:
                for start in range(0, len(plan.facts), FACTS_MAX):
                    await self._commit(plan.epoch, plan.facts[start : start + FACTS_MAX])
            except ConstraintViolated as error:
                # Two indexes that cannot both be right. An administrator decides what a person can decide; nothing is lost meanwhile.
                self._log.critical("what the nodes handed in does not fit together: {problem}", problem=str(error))
                raise
            await self._ledger.database.transact("end the reconciliation", lambda sql: self._end(sql, plan))
            self._log.critical(
                "epoch {epoch} is reconciled: {done} changes made again, {left} left to the administrator",
                epoch=plan.epoch,
                done=len(plan.facts),
                left=len(plan.left) + len(plan.lost_blobs),
            )
        finally:
            self._under_way = False
        await self._ledger.catch_up()
        return plan

    async def _commit(self, epoch: int, facts: Iterable[Fact]) -> None:
        async def decide(sql: Any, position: Position) -> Decision[None]:
            await self._require_open(sql, epoch)
            for fact in facts:
                if isinstance(fact, File):
                    await _remember(sql, fact, position)
                elif isinstance(fact, PersonGone):
                    await sql.execute("DELETE FROM passwords WHERE username = :username", {"username": fact.username})
            return Decision(facts=tuple(facts), answer=None)

        await self._ledger.enter("reconcile", decide, Needs.NOTHING)

    async def _require_open(self, sql: Any, epoch: int) -> None:
        """Raise `Refusal` when another admin server was faster: people may have changed things since."""
        ((now, reconciled),) = await sql.query("SELECT epoch, reconciled FROM cluster FOR UPDATE")
        if reconciled or now != epoch:
            raise Refusal(Code.CONFLICT, f"Epoch {epoch} was reconciled by another admin server, or another epoch has begun.")

    async def _end(self, sql: Any, plan: Plan) -> None:
        epoch = plan.epoch
        await self._require_open(sql, epoch)
        for username in plan.void_passwords:
            await sql.execute("DELETE FROM passwords WHERE username = :username", {"username": username})
        await sql.execute("DELETE FROM claims WHERE epoch = :epoch", {"epoch": epoch})
        await sql.execute("DELETE FROM held WHERE epoch = :epoch", {"epoch": epoch})
        for number, one in enumerate(plan.left):
            body = encode_value(Claim, Claim(fact=one.fact, at=Position(0, 0)))
            await sql.execute(
                "INSERT INTO claims (epoch, node, number, body, why) VALUES (:epoch, '', :number, :body, :why)",
                {"epoch": epoch, "number": number, "body": body, "why": one.why},
            )
        for lost in plan.lost_blobs:
            await self._keep_blob(sql, {"epoch": epoch, "node": lost.node}, lost.sidecar, lost.why)
        # From a catalogue that was made anew nobody can tell what came before.
        await sql.execute("UPDATE cluster SET rebuilt = epoch WHERE rebuilding = :yes", {"yes": True})
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
        if rebuilding and handed_in:
            nodes = await self._members(sql, epoch, max(handed_in, key=lambda name: handed_in[name]))
        left = [
            (row[0], said(decode_value(Claim, bytes(row[1])).fact), row[2])
            for row in await sql.query(
                "SELECT node, body, why FROM claims WHERE why IS NOT NULL ORDER BY epoch, node, number LIMIT :limit", {"limit": LISTED_MAX}
            )
        ]
        left += [
            (row[0], said_of_blob(decode_value(Sidecar, bytes(row[1]))), row[2])
            for row in await sql.query(
                "SELECT node, body, why FROM held WHERE why IS NOT NULL ORDER BY epoch, node, attempt LIMIT :limit", {"limit": LISTED_MAX}
            )
        ]
        return Epoch(
            epoch=epoch,
            reconciled=bool(reconciled),
            rebuilding=bool(rebuilding),
            handed_in=handed_in,
            missing=() if reconciled else tuple(name for name in nodes if name not in handed_in),
            left=tuple(left),
        )

    async def _members(self, sql: Any, epoch: int, node: str) -> list[str]:
        """The nodes that are members by what one of them has handed in: servers come first in that."""
        rows = await sql.query(
            "SELECT body FROM claims WHERE epoch = :epoch AND node = :node ORDER BY number LIMIT :limit",
            {"epoch": epoch, "node": node, "limit": SERVERS_MAX},
        )
        claims = tuple(decode_value(Claim, bytes(row[0])) for row in rows)
        return sorted(members(HandedIn(position=BEGINNING, claims=claims)))

    async def dismiss(self) -> None:
        """The administrator has seen what is left: forget it, and let nodes drop uploads that nobody knows of."""

        async def forget(sql: Any) -> None:
            for table in ("claims", "held"):
                await sql.execute(f"DELETE FROM {table} WHERE why IS NOT NULL")

        await self._ledger.database.transact("dismiss what is left", forget)


@attrs.frozen(kw_only=True)
class _Rows:
    """What was handed in, as it is in the database."""

    epoch: int
    reconciled: bool
    rebuilding: bool
    handed_in: Sequence[Row]
    claims: Sequence[Row]
    held: Sequence[Row]
    snapshot: list[Fact]


async def _rows(sql: Any) -> _Rows:
    ((epoch, reconciled, rebuilding),) = await sql.query("SELECT epoch, reconciled, rebuilding FROM cluster")
    this = {"epoch": epoch}
    return _Rows(
        epoch=epoch,
        reconciled=bool(reconciled),
        rebuilding=bool(rebuilding),
        handed_in=await sql.query("SELECT node, at_epoch, at_revision, blobs FROM handed_in WHERE epoch = :epoch ORDER BY node", this),
        claims=await sql.query("SELECT node, body FROM claims WHERE epoch = :epoch ORDER BY node, number", this),
        held=await sql.query("SELECT node, body FROM held WHERE epoch = :epoch ORDER BY node, attempt", this),
        snapshot=await every_fact(sql),
    )


def _planned(rows: _Rows, without: Set[str], trusted: Set[str]) -> Plan:
    if rows.reconciled:
        raise Refusal(Code.CONFLICT, f"Epoch {rows.epoch} is reconciled already.")
    unknown = sorted((without | trusted) - {row[0] for row in rows.handed_in})
    if unknown:
        raise Refusal(Code.BAD_REQUEST, f"Nothing was handed in by {', '.join(unknown)}.")
    claims: dict[str, list[Claim]] = {}
    for node, body in rows.claims:
        claims.setdefault(node, []).append(decode_value(Claim, bytes(body)))
    handed_in = {
        node: HandedIn(position=Position(at_epoch, at_revision), claims=tuple(claims.get(node, ())))
        for node, at_epoch, at_revision, _ in rows.handed_in
        if node not in without
    }
    found = reconcile(rows.snapshot, handed_in, everything=rows.rebuilding)
    plan = Plan(
        epoch=rows.epoch,
        facts=found.facts,
        void_passwords=found.void_passwords,
        left=found.left,
        lost_blobs=(),
        knows_most=None,
        strangers={},
    )
    return _rebuilt(plan, rows, handed_in, trusted) if rows.rebuilding else plan


def _rebuilt(plan: Plan, rows: _Rows, handed_in: Mapping[str, HandedIn], trusted: Set[str]) -> Plan:
    """The plan for a catalogue that is made anew: checked against what is on the disks."""
    most = knows_most(handed_in)
    if most is None:
        raise Refusal(Code.CONFLICT, "No node has handed in anything yet: without one there is nothing to make the catalogue from.")
    disks: dict[str, dict[AttemptId, Sidecar]] = {node: {} for node, _, _, told in rows.handed_in if told}
    for node, body in rows.held:
        if node in disks:
            sidecar = decode_value(Sidecar, bytes(body))
            disks[node][sidecar.attempt] = sidecar
    facts, without_content = on_disks(plan.facts, disks, handed_in)
    files = {fact.id: fact for fact in (*rows.snapshot, *facts) if isinstance(fact, File)}
    known = max(handed.position for handed in handed_in.values())
    return attrs.evolve(
        plan,
        facts=tuple(facts),
        left=(*plan.left, *without_content),
        lost_blobs=tuple(lost_blobs(files.values(), disks, known)),
        knows_most=most,
        strangers={node: others for node, others in strangers(handed_in).items() if node not in trusted},
    )


def said(fact: Fact) -> str:
    """What a fact is about, in a few words."""
    kind = type(fact).__name__
    values = attrs.asdict(fact, recurse=False)
    shown = {name: value for name, value in values.items() if name in ("id", "owner", "name", "username", "entry", "role", "cluster")}
    return f"{kind}({', '.join(f'{name}={value}' for name, value in shown.items())})"


def said_of_blob(sidecar: Sidecar) -> str:
    """What is known of a blob, in a few words."""
    at = "" if sidecar.committed_at is None else f", committed at {Position(*sidecar.committed_at)}"
    return f"blob {sidecar.attempt} ({sidecar.size} bytes, version {sidecar.version} of {sidecar.file.hex()}{at})"


def _strange(strange: dict[str, tuple[str, ...]]) -> str:
    said = "; ".join(f"{node} is no member by what {', '.join(others)} handed in" for node, others in strange.items())
    return (
        f"{said}. A node that was removed is not to be believed, one that has joined lately is."
        " Say for each: --without NODE leaves aside what it handed in, --trust NODE takes it."
    )


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
