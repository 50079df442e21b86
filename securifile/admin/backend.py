"""What an admin server does for people and for nodes: both ask the catalogue, and a commit for a person is spread before it is answered.

A node that asks spreads by itself, so what is here for nodes only commits.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Mapping
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from securifile.admin.catalogue import Catalogue
from securifile.admin.followers import Followers
from securifile.admin.ledger import Entered
from securifile.admin.peers import Peers
from securifile.admin.reconciliation import Reconciling
from securifile.admin.watch import Watch
from securifile.certificates.authority import Authority, BadSigningRequest
from securifile.certificates.identity import leaf_key
from securifile.certificates.names import ServerUri
from securifile.model.errors import Code, DatabaseUnavailable, OutcomeUnknown, Refusal
from securifile.model.facts import Change, Fact, File, Server
from securifile.model.ids import EntryId, Position
from securifile.model.servers import HostPort, ServerKind
from securifile.protocol import messages as m
from securifile.protocol.connection import SETTLING
from securifile.protocol.rpc import Handlers, Peer
from securifile.protocol.settling import Settling
from securifile.protocol.spreading import Spreading

T = TypeVar("T")

SPREAD_S = 15.0
"""How long a commit may take to spread before the answer is `outcome-unknown`."""

DATABASE_AGAIN_S = 2.0
"""The embedded database is started again within seconds."""


def no_database() -> Refusal:
    """The refusal while the database is away."""
    return Refusal(
        Code.CATALOGUE_UNAVAILABLE,
        "The catalogue's database does not answer; nothing was done. Try again soon.",
        retry_after_s=DATABASE_AGAIN_S,
    )


class AdminBackend:
    """The `Backend` of an admin server."""

    _log = Logger()

    def __init__(
        self,
        *,
        clock: IReactorTime,
        wall: Callable[[], float],
        name: str,
        catalogue: Catalogue,
        peers: Peers,
        watch: Watch,
        audit: Any,
        random: Callable[[int], bytes],
    ) -> None:
        self.name = name
        self.roster = catalogue.roster
        self.wall = wall
        self.audit = audit
        self._clock = clock
        self._catalogue = catalogue
        self._watch = watch
        self._random = random
        self._spreading = Spreading(
            clock=clock,
            roster=catalogue.roster,
            name=name,
            ask=peers.ask,
            here=lambda position, facts: succeed(None),
            is_over=watch.endings.is_over,
            # The periodic look sees to the moment in which an earlier commit has not been heard of yet.
            reached=lambda position: succeed(None),
        )
        watch.on_end = self._spreading.look
        self.settling = Settling(
            clock=clock,
            name=name,
            roster=catalogue.roster,
            heartbeats=watch.heartbeats,
            spreading=self._spreading,
            ask=peers.ask,
            tells=lambda node: peers.has_feature(node, SETTLING),
            here=lambda: catalogue.ledger.position,
        )
        catalogue.ledger.listen(self._learn)
        self.has_database = True
        """Whether the database answered when it was last asked."""

    def _learn(self, position: Position, change: Change) -> None:
        for fact in change.facts:
            self._spreading.learn(fact)
            if isinstance(fact, File):
                # Whether the version is another one than before is not known here; if not, that is soon found out.
                self.settling.learn(fact.version, None, position)

    def require_reconciled(self) -> None:
        """Raise `Refusal` while the catalogue may know rights that were taken away since."""
        self._catalogue.ledger.require_reconciled()

    # --- for people: see `Backend` ---

    async def admit(self) -> None:
        """See `Backend`."""
        if not self.has_database:
            raise no_database()

    async def reached(self, position: Position) -> None:
        """See `Backend`: the catalogue is always as far as anybody."""

    async def read(self, work: Callable[[Any], Awaitable[T]]) -> T:
        """See `Backend`."""
        return await self.asking(self._catalogue.read(work))

    async def recall(self, key: Hashable, work: Callable[[Any], Awaitable[T]], *, of_files: bool = True, sql: Any = None) -> T:
        """See `Backend`: the database is asked each time."""
        return await (self.read(work) if sql is None else work(sql))

    async def shown(self, file: File) -> File | None:
        """See `Backend`. The version before is not known here: who wants one that is only just being made waits for it."""
        # Another admin server may have committed it just now.
        await self.asking(self._catalogue.ledger.catch_up())
        return await self.settling.shown(file)

    async def act(self, asked: m.MakeFolder | m.Delete | m.Move | m.SetGrant) -> m.Acted:
        """See `Backend`."""
        acted = await self.asking(self._catalogue.files.act(asked))
        await self.spread(acted.position, acted.facts)
        return acted

    async def sign_in(self, asked: m.SignIn) -> m.SignedIn:
        """See `Backend`."""
        signed = await self.asking(self._catalogue.people.sign_in(asked.username, asked.password, asked.peer))
        await self.spread(signed.position, signed.facts)
        return signed

    async def sign_out(self, asked: m.SignOut) -> m.Acted:
        """See `Backend`."""
        acted = await self.asking(self._catalogue.people.sign_out(asked.token_hash))
        await self.spread(acted.position, acted.facts)
        return acted

    async def check_password(self, asked: m.CheckPassword) -> m.PasswordChecked:
        """See `Backend`."""
        # A password that was changed since must not open anything again.
        self._catalogue.ledger.require_reconciled()
        person = await self.asking(self._catalogue.people.check_password(asked.username, asked.password, asked.peer))
        return m.PasswordChecked(username=person.username, credentials=person.credentials)

    def new_id(self) -> bytes:
        """See `Backend`."""
        return self._random(16)

    def is_available(self, name: str) -> bool:
        """See `Backend`."""
        return self._watch.is_available(name)

    def lock_holder(self, key: bytes) -> tuple[str, str, float] | None:
        """See `Backend`: admin servers grant no leases, so they know none."""
        return None

    async def checked(self, file: EntryId) -> Mapping[str, float] | None:
        """See `Backend`."""
        return await self.asking(self._catalogue.checks.of_file(file))

    # --- what both halves need ---

    async def asking(self, work: Awaitable[T]) -> T:
        """Await something of the catalogue, and know afterwards whether it can be reached.

        Raises:
            Refusal: CATALOGUE_UNAVAILABLE in place of `DatabaseUnavailable`; nothing was done.
            OutcomeUnknown: if it was done, `look_after_feed` will find it.
        """
        try:
            done = await work
        except DatabaseUnavailable as error:
            self.has_database = False
            raise no_database() from error
        self.has_database = True
        return done

    async def enter(self, work: Deferred[Entered[T]]) -> T:
        """Await a change of the catalogue and spread it; its answer."""
        entered = await self.asking(work)
        await self.spread(entered.position, entered.facts)
        return entered.answer

    async def spread(self, position: Position, facts: tuple[Fact, ...]) -> None:
        """Return when no node serves the state before this commit. Raises `OutcomeUnknown` when that takes too long."""
        if not facts:
            return
        spreading = self._spreading.spread(position, facts)
        late = False

        def give_up() -> None:
            nonlocal late
            late = True
            spreading.cancel()

        timer = self._clock.callLater(SPREAD_S, give_up)
        try:
            await spreading
        except BaseException:
            if late:
                raise OutcomeUnknown("the change was made, and too few nodes have confirmed that they know of it") from None
            raise
        finally:
            if timer.active():
                timer.cancel()

    async def look_after_feed(self) -> None:
        """Tell followers what was committed without our knowing (answers lost, other admin servers), and probe the database; a chore."""
        was_away = not self.has_database
        try:
            await self._catalogue.ledger.catch_up()
        except DatabaseUnavailable:
            self.has_database = False
            raise
        self.has_database = True
        if was_away:
            self._log.info("the database answers again")


class NodeHandlers:
    """What an admin server answers to nodes."""

    _log = Logger()

    def __init__(
        self,
        *,
        wall: Callable[[], float],
        catalogue: Catalogue,
        backend: AdminBackend,
        followers: Followers,
        watch: Watch,
        authority: Authority,
        reconciling: Reconciling,
    ) -> None:
        self._wall = wall
        self._catalogue = catalogue
        self._backend = backend
        self._followers = followers
        self._watch = watch
        self._authority = authority
        self._reconciling = reconciling

    @property
    def handlers(self) -> Handlers:
        """By message."""
        files, people = self._catalogue.files, self._catalogue.people
        acting = dict.fromkeys((m.MakeFolder, m.Delete, m.Move, m.SetGrant), self._answering(lambda peer, asked: files.act(asked)))
        return {
            m.Heartbeat: self._watch.heartbeat,
            m.Follow: self._answering(self._follow),
            m.HandIn: self._answering(lambda peer, asked: self._reconciling.take(peer.identity.name, asked)),
            m.Commit: self._answering(self._commit),
            m.OutcomeAsk: self._answering(lambda peer, asked: files.outcome(asked.attempt, asked.abandon)),
            m.KeyAsk: self._answering(lambda peer, asked: files.by_key(asked)),
            **acting,
            m.SignIn: self._answering(lambda peer, asked: people.sign_in(asked.username, asked.password, asked.peer)),
            m.SignOut: self._answering(lambda peer, asked: people.sign_out(asked.token_hash)),
            m.CheckPassword: self._check_password,
            m.CopyMade: self._answering(lambda peer, asked: files.copy_made(asked, peer.identity.name)),
            m.CopyBad: self._answering(lambda peer, asked: files.copy_bad(asked, peer.identity.name)),
            m.CopiesFailing: self._watch.failing.take,
            m.CopiesChecked: self._answering(lambda peer, asked: self._catalogue.checks.note(asked, peer.identity.name)),
            m.RenewCertificate: self._answering(self._renew),
        }

    def _answering(self, work: Callable[[Peer, Any], Awaitable[Any]]) -> Callable[[Peer, Any], Awaitable[Any]]:
        """A handler that says what is known about the outcome when the database fails."""

        async def answer(peer: Peer, asked: Any) -> Any:
            self._watch.check_life(peer)
            try:
                return await self._backend.asking(work(peer, asked))
            except OutcomeUnknown as error:
                raise Refusal(Code.OUTCOME_UNKNOWN, str(error)) from error

        return answer

    async def _commit(self, peer: Peer, asked: m.Commit) -> m.Committed:
        committed = await self._catalogue.files.commit(asked, peer.identity.name)
        return attrs.evolve(committed, known_by=await self._followers.knowing(committed.position))

    async def _follow(self, peer: Peer, asked: m.Follow) -> m.Following:
        self._watch.check_life(peer, asked.boot)
        return await self._followers.follow(peer, asked)

    async def _check_password(self, peer: Peer, asked: m.CheckPassword) -> m.PasswordChecked:
        return await self._backend.check_password(asked)

    async def _renew(self, peer: Peer, asked: m.RenewCertificate) -> m.RenewedCertificate:
        """A new certificate for the asking node and nobody else; the names in it are those under which the catalogue has it."""
        name = peer.identity.name
        server = self._catalogue.roster.servers.get(name)
        if server is None:
            raise Refusal(Code.NOT_A_MEMBER, f"{name} is not a member of this cluster.")
        chain = self.sign(name, asked.csr, hosts_of(server))
        await self._catalogue.members.renew_key(name, leaf_key(chain))
        self._log.info("{node} has a new certificate", node=name)
        return m.RenewedCertificate(chain=chain)

    def sign(self, name: str, csr: bytes, hosts: list[str]) -> bytes:
        """A certificate for a node, with its chain (PEM). Raises `Refusal` BAD_REQUEST."""
        uri = ServerUri(self._authority.cluster, ServerKind.NODE, name)
        lifetime_s = self._catalogue.roster.settings.certificate_s
        try:
            return self._authority.sign_server(csr, uri, hosts, lifetime_s, self._wall())
        except (BadSigningRequest, ValueError) as error:
            raise Refusal(Code.BAD_REQUEST, f"The certificate cannot be made: {error}") from error


def hosts_of(server: Server) -> list[str]:
    """The names and addresses under which a server is reached."""
    authority = server.url.partition("://")[2].partition("/")[0]
    return list(dict.fromkeys(HostPort.parse(text).host for text in (authority, server.protocol_address)))
