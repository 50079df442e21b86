"""What a node does for people by asking an admin server, and how it shows itself to the routes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Hashable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from securifile.model.errors import Code, DeadlineExceeded, OutcomeUnknown, PeerUnreachable, Refusal
from securifile.model.facts import Fact, File
from securifile.model.ids import EntryId, Position
from securifile.node.cluster import Cluster
from securifile.node.index import Index
from securifile.protocol import messages as m

T = TypeVar("T")

ACT_S = 10.0
"""How long the catalogue may take: far longer than a transaction, shorter than a person's patience."""

KNOWN_MAX = 2000
"""Answers kept, of about 2 KiB each."""

SPREAD_S = 15.0
"""How long a commit may take to spread before the answer is `outcome-unknown`."""

ADMIN_AGAIN_S = 2.0
"""An admin server, or its database, is back within seconds."""


def no_catalogue() -> Refusal:
    """The refusal while no admin server answers."""
    return Refusal(
        Code.CATALOGUE_UNAVAILABLE,
        "No admin server answers, so nothing can be changed now. Reading goes on. Try again.",
        retry_after_s=ADMIN_AGAIN_S,
    )


class Acting:
    """The `Backend` of a node."""

    def __init__(
        self,
        *,
        clock: IReactorTime,
        wall: Callable[[], float],
        name: str,
        cluster: Cluster,
        index: Index,
        audit: Any,
        random: Callable[[int], bytes],
    ) -> None:
        self._clock = clock
        self._cluster = cluster
        self._index = index
        self._random = random
        self.name = name
        self.wall = wall
        self.audit = audit
        self.roster = cluster.roster
        self._known: dict[Hashable, Any] = {}
        self._known_apart: dict[Hashable, Any] = {}
        """What has nothing to do with files."""
        index.listen(self._forget)

    async def admit(self) -> None:
        """See `Backend`."""
        await self._cluster.admission.admit()

    async def reached(self, position: Position) -> None:
        """See `Backend`; waits as long as a request may."""
        if self._index.position < position:
            self._cluster.heartbeats.hear(position)
            await self._cluster.admission.admit()

    async def read(self, work: Callable[[Any], Awaitable[T]]) -> T:
        """See `Backend`."""
        return await work(self._index.sql)

    async def recall(self, key: Hashable, work: Callable[[Any], Awaitable[T]], *, of_files: bool = True, sql: Any = None) -> T:
        """See `Backend`: from memory until the next change in the index."""
        memory = self._known if of_files else self._known_apart
        if key in memory:
            known: T = memory[key]
            return known
        answer = await work(self._index.sql if sql is None else sql)
        # Within a transaction of the index the answer may be of a state that never comes about.
        if answer is not None and not self._index.is_writing:
            if len(memory) >= KNOWN_MAX:
                memory.clear()
            memory[key] = answer
        return answer

    def _forget(self, fact: Fact) -> None:
        self._known.clear()
        if not isinstance(fact, File):
            self._known_apart.clear()

    def has_catalogue(self) -> bool:
        """Whether an admin server is connected: writes are refused early when none is."""
        return any(map(self._cluster.links.is_connected, self._cluster.admins))

    async def ask_admin(self, message: Any, timeout_s: float = ACT_S) -> Any:
        """Ask the admin server that answers best.

        Raises:
            Refusal: certainly not done; CATALOGUE_UNAVAILABLE when there is nobody to ask.
            OutcomeUnknown: the answer was lost.
        """
        refused = no_catalogue()
        for name in self._cluster.admins:
            link = self._cluster.links.to(name)
            if link is None or not link.connected:
                continue
            try:
                return await link.ask(message, timeout_s)
            except Refusal as refusal:
                if refusal.code is not Code.CATALOGUE_UNAVAILABLE:
                    raise
                # That one has no database now, and did nothing; the next one may have it.
                refused = refusal
            except (DeadlineExceeded, PeerUnreachable) as error:
                raise OutcomeUnknown(f"the answer of {name} was lost: {error}") from error
        raise refused

    async def tell_admins(self, message: Any) -> None:
        """Tell every admin server that is connected; one that does not take it, or does not know such a message, is told the next time."""
        for name in self._cluster.admins:
            link = self._cluster.links.to(name)
            if link is not None and link.connected:
                with suppress(Refusal, DeadlineExceeded, PeerUnreachable):
                    await link.ask(message, ACT_S)

    async def act(self, asked: m.MakeFolder | m.Delete | m.Move | m.SetGrant) -> m.Acted:
        """See `Backend`."""
        acted: m.Acted = await self.ask_admin(asked)
        await self.spread(acted.position, acted.facts)
        return acted

    async def sign_in(self, asked: m.SignIn) -> m.SignedIn:
        """See `Backend`."""
        signed: m.SignedIn = await self.ask_admin(asked)
        await self.spread(signed.position, signed.facts)
        return signed

    async def sign_out(self, asked: m.SignOut) -> m.Acted:
        """See `Backend`."""
        acted: m.Acted = await self.ask_admin(asked)
        await self.spread(acted.position, acted.facts)
        return acted

    async def check_password(self, asked: m.CheckPassword) -> m.PasswordChecked:
        """See `Backend`."""
        checked: m.PasswordChecked = await self.ask_admin(asked)
        return checked

    async def spread(self, position: Position, facts: tuple[Fact, ...], known_by: Collection[str] = ()) -> None:
        """Return when no node serves the state before this commit. Raises `OutcomeUnknown` when that takes too long.

        Args:
            known_by: nodes that have it already.
        """
        if not facts:
            return
        spreading = self._cluster.spreading.spread(position, facts, known_by)
        if spreading.called:
            await spreading
            return
        late = Late(self._clock, SPREAD_S, spreading)
        try:
            await spreading
        except BaseException:
            if late.over:
                raise OutcomeUnknown("the change was made, and too few nodes have confirmed that they know of it") from None
            raise
        finally:
            late.stop()

    async def spread_version(self, committed: m.Committed, *, here: bool) -> None:
        """Return when no node serves a version before this one any more, and people may be shown this one: its commit can be answered.

        Args:
            here: it was committed by the request that is answered, or by one of which nobody can have been told that it is under way. Else
                somebody else may be about to answer it, too.

        Raises:
            OutcomeUnknown: that takes too long.
        """
        settling, version = self._cluster.settling, file_of(committed).version
        began = self._clock.seconds()
        try:
            await self.spread(committed.position, committed.facts, committed.known_by)
        except BaseException:
            if here:
                settling.give_up(committed.attempt)
            raise
        if here:
            settling.settled(version)
        else:
            await settling.concluded(version, began)

    async def shown(self, file: File) -> File | None:
        """See `Backend`."""
        return await self._cluster.settling.shown(file)

    def new_id(self) -> bytes:
        """See `Backend`."""
        return self._random(16)

    def is_available(self, name: str) -> bool:
        """See `Backend`."""
        return self._cluster.is_available(name)

    def lock_holder(self, key: bytes) -> tuple[str, str, float] | None:
        """See `Backend`."""
        held = self._cluster.granter.holder(key)
        return None if held is None else (held[0].person, held[0].node, held[1])

    async def checked(self, file: EntryId) -> Mapping[str, float] | None:
        """See `Backend`: a node knows only of its own copies."""
        return None


def file_of(committed: m.Committed) -> File:
    """The file that a commit was about."""
    file = committed.facts[0]
    assert isinstance(file, File), "a commit's first fact is the file"
    return file


class Late:
    """Cancels a Deferred when it takes too long, and remembers that it did."""

    def __init__(self, clock: IReactorTime, seconds: float, waited: Deferred[Any]) -> None:
        self.over = False
        self._waited = waited
        self._timer = clock.callLater(seconds, self._end)

    def _end(self) -> None:
        self.over = True
        self._waited.cancel()

    def stop(self) -> None:
        """The time does not matter any more."""
        if self._timer.active():
            self._timer.cancel()
