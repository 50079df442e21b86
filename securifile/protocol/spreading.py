"""Telling every server of a commit before it is answered: the hands of `model/spreading.py`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from securifile.model.errors import DeadlineExceeded, PeerUnreachable, Refusal
from securifile.model.facts import Fact, Server, ServerGone, Settings
from securifile.model.ids import Position
from securifile.model.roster import Roster
from securifile.model.servers import ServerKind, Status
from securifile.model.spreading import spread_enough
from securifile.model.standing import FRESH_INTERVALS
from securifile.protocol.heartbeats import Ask
from securifile.protocol.messages import Announce

LOOKS = 10
"""How often in a standing period a waiting commit looks whether it is over."""


class Spreading:
    """Announces commits to all nodes, and knows when enough have them."""

    _log = Logger()

    def __init__(
        self,
        *,
        clock: IReactorTime,
        roster: Roster,
        name: str,
        ask: Ask,
        here: Callable[[Position, tuple[Fact, ...]], Deferred[None]],
        is_over: Callable[[str, Position], bool],
        reached: Callable[[Position], Deferred[None]],
    ) -> None:
        """Args:
        name: of this server.
        here: brings the commit into this server's own index.
        is_over: whether the life of a node is over that is the admitted one at that position or later; never before this server knows
            all changes up to there (`reached`), since one of them may have admitted another life.
        reached: fires when it does; may be cancelled.
        """
        self._clock = clock
        self._name = name
        self._roster = roster
        self._ask = ask
        self._here = here
        self.is_over = is_over
        """See above."""
        self._reached = reached
        self._waiting: dict[Callable[[], None], None] = {}
        """Those who wait for a commit to spread: called, each looks again."""
        self._held: dict[str, bool] = {}
        self._left: dict[str, float] = {}
        """Monotonic seconds at which nodes were put down, or removed."""
        self._older: list[tuple[float, float]] = []
        """Longer heartbeat intervals that were the setting before, and until when (monotonic seconds) a silent node may go by them."""

    def learn(self, fact: Fact) -> None:
        """Hear of each change of the catalogue: who is held for running no more may go on serving until their standing has run out."""
        match fact:
            case Settings():
                self._learn_interval(fact.settings.heartbeat_interval_s)
                return
            case Server(kind=ServerKind.NODE):
                runs = fact.status is Status.RUNNING
            case ServerGone():
                runs = False
            case _:
                return
        if self._held.get(fact.name, True) and not runs:
            self._left[fact.name] = self._clock.seconds()
        elif runs:
            self._left.pop(fact.name, None)
        self._held[fact.name] = runs

    def look(self) -> None:
        """Look again whether commits have spread that are waited for: a life is over."""
        for look in list(self._waiting):
            look()

    def _learn_interval(self, interval_s: float) -> None:
        """A node that is cut off does not hear that the interval is shorter now, and believes that it has standing for as long as before.

        For one old period the change itself may still be on its way to those who confirm that standing, and for one more it counts.
        """
        # Whether the roster has heard of the change already depends on whom the listeners are called for first.
        before_s = max(self._roster.interval_before_s, self._roster.settings.heartbeat_interval_s)
        if before_s > interval_s:
            self._older.append((before_s, self._clock.seconds() + 2 * FRESH_INTERVALS * before_s))

    @property
    def interval_s(self) -> float:
        """The longest heartbeat interval that any node may go by now."""
        now = self._clock.seconds()
        self._older = [(interval_s, until) for interval_s, until in self._older if until > now]
        return max(self._roster.settings.heartbeat_interval_s, *(interval_s for interval_s, _ in self._older), 0.0)

    def _needed(self, period_s: float) -> set[str]:
        """Who must know: who is running, and who was so a standing period ago and may not have heard yet that this is over."""
        oldest = self._clock.seconds() - period_s
        self._left = {name: at for name, at in self._left.items() if at > oldest}
        return {*self._roster.running, *self._left}

    def has_spread(self, position: Position, acknowledged: Collection[str], waited_s: float) -> bool:
        """Whether no node can serve an older state than this commit: see `spread_enough`."""
        interval_s = self.interval_s
        needed = self._needed(FRESH_INTERVALS * interval_s)
        over = [name for name in needed if name not in acknowledged and self.is_over(name, position)]
        return spread_enough(acknowledged, needed, self._roster.admitted, waited_s=waited_s, interval_s=interval_s, over=over)

    def spread(self, position: Position, facts: tuple[Fact, ...], known_by: Collection[str] = ()) -> Deferred[None]:
        """Announce a commit; fires when no node can serve an older state any more.

        Args:
            known_by: nodes whose indexes have it already, this one perhaps among them; they are not told.

        It does so within a standing period even when nodes are silent, unless most of them are: then it goes on waiting for
        a majority, and the caller's own deadline decides.
        """
        if self._name in known_by and self.has_spread(position, known_by, 0.0):
            return succeed(None)
        return Deferred.fromCoroutine(self._spread(position, facts, known_by))

    async def _spread(self, position: Position, facts: tuple[Fact, ...], known_by: Collection[str]) -> None:
        began = self._clock.seconds()
        acknowledged: set[str] = set(known_by)
        enough: Deferred[None] = Deferred()
        patience_s = FRESH_INTERVALS * self.interval_s

        def look() -> None:
            if not enough.called and self.has_spread(position, acknowledged, self._clock.seconds() - began):
                enough.callback(None)

        async def tell(name: str) -> None:
            while name in self._roster.servers:
                try:
                    await self._ask(name, Announce(position=position, facts=facts), patience_s)
                except (DeadlineExceeded, PeerUnreachable, Refusal):
                    await deferLater(self._clock, self._roster.settings.heartbeat_interval_s / 5)
                    look()
                    continue
                acknowledged.add(name)
                look()
                return

        async def here() -> None:
            await self._here(position, facts)
            acknowledged.add(self._name)
            look()

        telling = [Deferred.fromCoroutine(here())] if self._name not in known_by else []
        telling += [Deferred.fromCoroutine(tell(name)) for name in self._roster.nodes if name != self._name and name not in known_by]
        telling.append(self._reached(position).addCallback(lambda _: look()))
        for one in telling:
            one.addErrback(self._report)
        timer = self._clock.callLater(patience_s, look)
        again: Any = None

        def look_again() -> None:
            nonlocal again
            again = self._clock.callLater(patience_s / LOOKS, look_again)
            look()

        look_again()
        self._waiting[look] = None
        try:
            await enough
        finally:
            del self._waiting[look]
            again.cancel()
            if timer.active():
                timer.cancel()
            for one in telling:
                one.cancel()

    def _report(self, failure: Any) -> None:
        if not failure.check(CancelledError):
            self._log.failure("an announcement failed", failure)
