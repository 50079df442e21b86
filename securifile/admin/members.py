"""Servers in the catalogue: who is a member, and what each is held for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred

from securifile.admin.addresses import check_addresses, check_hosts, check_own
from securifile.admin.duties import May, anybody
from securifile.admin.ledger import Decision, Entered, Ledger, Needs
from securifile.http.identity import new_token
from securifile.model.errors import Code, Refusal
from securifile.model.facts import Fact, Server, ServerGone, Settings
from securifile.model.ids import Position
from securifile.model.matrix import summarise
from securifile.model.servers import ServerKind, Status, check_server_name
from securifile.model.settings import ClusterSettings
from securifile.sql import directory

PAGE = 20_000
"""Copies looked at in one question: a second of the database on a busy machine."""

INVITE_S = 24 * 3600.0
"""An invitation is carried to the new machine within a day, or made anew."""


@attrs.frozen(kw_only=True)
class StatusChange:
    """One server's summary changed."""

    server: str
    before: Status
    after: Status


class Members:
    """The servers of the cluster and its settings."""

    def __init__(self, ledger: Ledger, *, wall: Callable[[], float], random: Callable[[int], bytes]) -> None:
        self._ledger = ledger
        self._wall = wall
        self._random = random

    def begin(self, cluster: str, settings: ClusterSettings) -> Deferred[Entered[Settings]]:
        """Make sure that the catalogue has a cluster id and settings; what is there already stays."""

        async def decide(sql: Any, position: Position) -> Decision[Settings]:
            known = await directory.settings(sql)
            if known is not None:
                return Decision(facts=(), answer=known)
            fact = Settings(cluster=cluster, settings=settings)
            return Decision(facts=(fact,), answer=fact)

        return self._ledger.enter("begin", decide, Needs.NOTHING)

    def set_settings(self, settings: ClusterSettings) -> Deferred[Entered[None]]:
        """Change the cluster's settings. Raises `Refusal` when they cannot be met by the nodes there are."""

        async def decide(sql: Any, position: Position) -> Decision[None]:
            known = await directory.settings(sql)
            assert known is not None
            nodes = len(await directory.servers(sql, ServerKind.NODE))
            if settings.replicas > max(0, nodes - 1) and settings.replicas > known.settings.replicas:
                raise Refusal(
                    Code.CONFLICT, f"With {nodes} nodes there can be at most {max(0, nodes - 1)} replicas. Add nodes first.", nodes=nodes
                )
            fact = attrs.evolve(known, settings=settings)
            return Decision(facts=() if fact == known else (fact,), answer=None)

        return self._ledger.enter("set settings", decide)

    # --- membership ---

    async def invite(self, name: str) -> tuple[str, float]:
        """A one-time secret with which the node `name` may join, and when it expires. Raises `Refusal`."""
        try:
            check_server_name(name)
        except ValueError as error:
            raise Refusal(Code.BAD_REQUEST, str(error)) from error
        secret = new_token(self._random)
        expires_at = self._wall() + INVITE_S

        async def write(sql: Any) -> None:
            known = await directory.server(sql, name)
            if known is not None and known.kind is ServerKind.ADMIN:
                raise Refusal(Code.EXISTS, f"{name} is an admin server. Choose another name.")
            if known is not None:
                raise Refusal(Code.EXISTS, f"{name} is a member already. Remove it first, or choose another name.")
            if await sql.query("SELECT 1 FROM copies WHERE node = :name LIMIT 1", {"name": name}):
                # A new node of the old name would be taken for a holder of what only the old one had.
                raise Refusal(Code.EXISTS, f"There are files with copies on a node {name} that was removed. Choose another name.")
            await sql.execute("DELETE FROM invites WHERE name = :name OR expires_at <= :now", {"name": name, "now": self._wall()})
            await sql.execute(
                "INSERT INTO invites (secret_hash, name, expires_at) VALUES (:hash, :name, :at)",
                {"hash": _secret_hash(secret), "name": name, "at": expires_at},
            )

        await self._ledger.database.transact("invite", write)
        return secret, expires_at

    async def invites(self) -> list[tuple[str, float]]:
        """Names that are invited, and until when."""

        async def ask(sql: Any) -> list[tuple[str, float]]:
            rows = await sql.query("SELECT name, expires_at FROM invites WHERE expires_at > :now ORDER BY name", {"now": self._wall()})
            return [(row[0], row[1]) for row in rows]

        found: list[tuple[str, float]] = await self._ledger.database.read(ask)
        return found

    def enrol(self, secret: str, node: Server, hosts: Sequence[str] = ()) -> Deferred[Entered[None]]:
        """Make an invited node a member; the secret is used up. It is `down` until its heartbeats are answered.

        Args:
            hosts: what its certificate says that it is reached by.
        """

        async def decide(sql: Any, position: Position) -> Decision[None]:
            members = await directory.servers(sql)
            check_addresses(node, members)
            check_own(node, members)
            check_hosts(node, hosts, members)
            used = await sql.execute(
                "DELETE FROM invites WHERE secret_hash = :hash AND name = :name AND expires_at > :now",
                {"hash": _secret_hash(secret), "name": node.name, "now": self._wall()},
            )
            if not used:
                raise Refusal(
                    Code.INVALID_TOKEN,
                    "This join token was used already, has expired, or is for another name. Make a new one: securifile node invite NAME.",
                )
            return Decision(facts=(attrs.evolve(node, status=Status.DOWN, since=self._wall()),), answer=None)

        return self._ledger.enter("enrol", decide, Needs.RECONCILED)

    def put_admin(self, admin: Server) -> Deferred[Entered[None]]:
        """Write down an admin server as it is now."""

        async def decide(sql: Any, position: Position) -> Decision[None]:
            known = await directory.server(sql, admin.name)
            if known is not None and known.kind is not ServerKind.ADMIN:
                raise Refusal(Code.EXISTS, f"{admin.name} is the name of a node. Start this admin server with another --name.")
            return Decision(facts=() if known == admin else (admin,), answer=None)

        return self._ledger.enter("put admin server", decide, Needs.NOTHING)

    def readdress(self, name: str, url: str, protocol_address: str) -> Deferred[Entered[None]]:
        """A node came back with other addresses."""

        async def decide(sql: Any, position: Position) -> Decision[None]:
            known = await directory.server(sql, name)
            if known is None:
                raise Refusal(Code.NOT_A_MEMBER, f"{name} is not a member of this cluster.")
            fact = attrs.evolve(known, url=url, protocol_address=protocol_address)
            members = await directory.servers(sql)
            check_addresses(fact, members)
            if fact == known:
                return Decision(facts=(), answer=None)
            check_own(fact, members)
            return Decision(facts=(fact,), answer=None)

        return self._ledger.enter("readdress", decide, Needs.NOTHING)

    def renew_key(self, name: str, public_key: bytes) -> Deferred[Entered[None]]:
        """A node got a certificate for another key."""

        async def decide(sql: Any, position: Position) -> Decision[None]:
            known = await directory.server(sql, name)
            if known is None:
                raise Refusal(Code.NOT_A_MEMBER, f"{name} is not a member of this cluster.")
            fact = attrs.evolve(known, public_key=public_key)
            return Decision(facts=() if fact == known else (fact,), answer=None)

        return self._ledger.enter("renew key", decide, Needs.RECONCILED)

    def remove(self, name: str, *, only_look: bool = False, force: bool = False) -> Deferred[Entered[None]]:
        """Remove a node: its certificate opens nothing any more. Refused while it would cost a file its last copy on a running node.

        It is also refused while the node runs, is not being drained, and files would be left with one copy where more are wanted.

        Args:
            force: never mind that files are left with one copy; with none, it is refused all the same.
            only_look: change nothing, but refuse what would be refused.
        """
        return Deferred.fromCoroutine(self._remove(name, only_look, force))

    async def _remove(self, name: str, only_look: bool, force: bool) -> Entered[None]:
        # For a million files this takes seconds, in which nobody else could commit; and it is a warning, not a promise.
        single = 0 if force else await _left_single(self._ledger.database, name)

        async def decide(sql: Any, position: Position) -> Decision[None]:
            known = await directory.server(sql, name)
            if known is None or known.kind is not ServerKind.NODE:
                raise Refusal(Code.NOT_FOUND, f"There is no node {name}.")
            _, only = await _copies_on(sql, name)
            if only:
                raise Refusal(
                    Code.CONFLICT,
                    f"{only} files have a copy on {name} and none on another running node."
                    f" Have them copied first (securifile node drain {name}), or delete them.",
                    files=only,
                )
            settings = await directory.settings(sql)
            asked_for = settings is None or settings.settings.copies_wanted > 1
            if known.status is Status.RUNNING and not known.draining and asked_for and single:
                raise Refusal(
                    Code.CONFLICT,
                    f"{single} files would be left with one copy: the next disk that dies takes them along."
                    f" Drain {name} first (securifile node drain {name}), or send the request with ?force=1.",
                    files=single,
                )
            if only_look:
                return Decision(facts=(), answer=None)
            for table in ("judgements", "heartbeats"):
                column = "subject" if table == "judgements" else "server"
                await sql.execute(f"DELETE FROM {table} WHERE {column} = :name", {"name": name})
            await sql.execute("DELETE FROM judgements WHERE observer = :name", {"name": name})
            return Decision(facts=(ServerGone(name=name),), answer=None)

        return await self._ledger.enter("remove node", decide, Needs.RECONCILED)

    # --- status ---

    def judge(
        self, opinions: Mapping[tuple[str, str], Status], admins: Mapping[str, Status], boots: Mapping[str, str], may: May = anybody
    ) -> Deferred[Entered[tuple[StatusChange, ...]]]:
        """Take the observers' opinions, keep the matrix, and change the summary where they demand it.

        Args:
            opinions: (observer, subject) -> status, of every node that reports.
            admins: what the admin servers' own heartbeats say of each node.
            boots: the life of each node's process, by its last heartbeat.
            may: asked in the transaction; if not, nothing happens.
        """

        async def decide(sql: Any, position: Position) -> Decision[tuple[StatusChange, ...]]:
            if not await may(sql):
                return Decision(facts=(), answer=())
            servers = {server.name: server for server in await directory.servers(sql, ServerKind.NODE)}
            held = {name: server.status for name, server in servers.items()}
            known = {pair: status for pair, status in opinions.items() if set(pair) <= set(servers)}
            own = {name: status for name, status in admins.items() if name in servers}
            after = summarise(held, known, own, absent(servers.values(), boots))
            changed = [name for name in sorted(held) if after[name] is not held[name]]
            facts: tuple[Fact, ...] = tuple(attrs.evolve(servers[name], status=after[name], since=self._wall()) for name in changed)
            return Decision(facts=facts, answer=tuple(StatusChange(server=name, before=held[name], after=after[name]) for name in changed))

        return self._ledger.enter("judge", decide, Needs.RECONCILED)

    def rejoined(self, name: str, boot: str, good: bool, may: May = anybody) -> Deferred[Entered[tuple[StatusChange, ...]]]:
        """A returning node was verified: admit this life of it, or hold it for failed. Nothing, if it is not `down` any more.

        Args:
            may: asked in the transaction; if not, nothing happens.
        """

        async def decide(sql: Any, position: Position) -> Decision[tuple[StatusChange, ...]]:
            server = await directory.server(sql, name)
            if not await may(sql) or server is None or server.status is not Status.DOWN or server.offline:
                return Decision(facts=(), answer=())
            fact = attrs.evolve(server, boot=boot, status=Status.RUNNING if good else Status.FAILED, since=self._wall())
            return Decision(facts=(fact,), answer=(StatusChange(server=name, before=server.status, after=fact.status),))

        return self._ledger.enter("rejoined", decide, Needs.RECONCILED)

    def set_offline(self, name: str, offline: bool) -> Deferred[Entered[tuple[StatusChange, ...]]]:
        """Take a node offline, or let it return: either way it is `down` until it has been verified. Raises `Refusal`."""

        async def decide(sql: Any, position: Position) -> Decision[tuple[StatusChange, ...]]:
            server = await directory.server(sql, name)
            if server is None or server.kind is not ServerKind.NODE:
                raise Refusal(Code.NOT_FOUND, f"There is no node {name}.")
            if not offline and server.status is Status.RUNNING:
                return Decision(facts=(), answer=())
            if (server.offline, server.status) == (offline, Status.DOWN):
                return Decision(facts=(), answer=())
            fact = attrs.evolve(server, offline=offline, status=Status.DOWN, since=self._wall())
            return Decision(facts=(fact,), answer=(StatusChange(server=name, before=server.status, after=fact.status),))

        return self._ledger.enter("set offline", decide, Needs.RECONCILED)

    def drain(self, name: str, draining: bool, *, only_look: bool = False) -> Deferred[Entered[None]]:
        """Have the files of a node kept elsewhere, or no longer; with `only_look` nothing is changed. Raises `Refusal`."""

        async def decide(sql: Any, position: Position) -> Decision[None]:
            server = await directory.server(sql, name)
            if server is None or server.kind is not ServerKind.NODE:
                raise Refusal(Code.NOT_FOUND, f"There is no node {name}.")
            known = await directory.settings(sql)
            assert known is not None
            staying = [node for node in await directory.servers(sql, ServerKind.NODE) if node.name != name and not node.draining]
            if draining and len(staying) < known.settings.copies_wanted:
                raise Refusal(
                    Code.CONFLICT,
                    f"{len(staying)} nodes would stay for {known.settings.copies_wanted} copies. Add a node, or lower replicas.",
                    staying=len(staying),
                )
            fact = attrs.evolve(server, draining=draining)
            return Decision(facts=() if only_look or fact == server else (fact,), answer=None)

        return self._ledger.enter("drain", decide)

    async def copies_on(self, name: str) -> tuple[int, int]:
        """How many copies a node is to hold, and how many of those that it has are the only one on a running node."""
        found: tuple[int, int] = await self._ledger.database.read(lambda sql: _copies_on(sql, name))
        return found


def absent(servers: Iterable[Server], boots: Mapping[str, str]) -> frozenset[str]:
    """Nodes that are down whatever anybody thinks: taken offline, or a new process that nobody has verified."""
    return frozenset(server.name for server in servers if server.offline or boots.get(server.name, server.boot) != server.boot)


async def _copies_on(sql: Any, name: str) -> tuple[int, int]:
    """See `Members.copies_on`: what a node had that is down, or gone, is no copy to rely on when another one is taken away."""
    held = await sql.query("SELECT count(*) FROM copies WHERE node = :name", {"name": name})
    only = await sql.query(
        "SELECT count(*) FROM copies AS mine WHERE node = :name AND durable AND NOT EXISTS"
        " (SELECT 1 FROM copies AS other JOIN servers ON servers.name = other.node AND servers.status = :running"
        " WHERE other.file = mine.file AND other.node <> :name AND other.durable)",
        {"name": name, "running": Status.RUNNING.value},
    )
    return int(held[0][0]), int(only[0][0])


async def _left_single(database: Any, name: str) -> int:
    """How many files would have one copy on running nodes if a node that has a copy of them were gone; counted a page at a time."""
    found, after = 0, b""

    async def look(sql: Any) -> Sequence[Any]:
        rows: Sequence[Any] = await sql.query(
            "SELECT mine.file, count(servers.name)"
            " FROM (SELECT file, durable FROM copies WHERE node = :name AND file > :after ORDER BY file LIMIT :limit) AS mine"
            " LEFT JOIN copies AS other ON other.file = mine.file AND other.node <> :name AND other.durable AND mine.durable"
            " LEFT JOIN servers ON servers.name = other.node AND servers.status = :running"
            " GROUP BY mine.file ORDER BY mine.file",
            {"name": name, "after": after, "limit": PAGE, "running": Status.RUNNING.value},
        )
        return rows

    while rows := await database.read(look):
        found += sum(count == 1 for _, count in rows)
        after = bytes(rows[-1][0])
    return found


def _secret_hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
