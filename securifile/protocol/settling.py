"""Showing people only versions that are settled: the hands of `model/settling.py`.

Each server that shows files has one: it learns of each version before people can see it, and is asked which version of a file may be shown.
Nodes also tell others of the commits that they themselves have begun.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from securifile.model.entries import Version
from securifile.model.errors import Code, DeadlineExceeded, PeerUnreachable, Refusal
from securifile.model.facts import File
from securifile.model.ids import AttemptId, Position
from securifile.model.roster import Roster
from securifile.model.settling import CERTAIN_INTERVALS, Evidence, Learned, Word, Young, YoungVersions, denied_until, knowing
from securifile.protocol.heartbeats import Ask, Heartbeats
from securifile.protocol.messages import SettledAnswer, SettledAsk
from securifile.protocol.rpc import Handlers, Peer
from securifile.protocol.spreading import Spreading

ASK_S = 0.15
"""How long the acting origin is waited for: a hundred times what it takes when it is there; a reader is to wait less than half a second."""

AGAIN_S = 0.05
"""Before it is looked again whether a version is settled. Mostly a commit has spread after a few milliseconds."""

WAIT_PERIODS = 2
"""How many standing periods a person waits for certainty: it mostly takes one, and half a heartbeat. Another server may know better."""

LOOKS = 25
"""How often in a standing period it is looked what has become certain: twenty times a second, and only while something is young."""

BEGUN_MAX = 10_000
"""Commits under way here that are remembered; there are never so many."""


class Marks(Protocol):
    """Where other processes see what is young, before they can see the versions themselves. They may take more for young than is."""

    def mark(self, attempt: AttemptId) -> None:
        """This attempt is young."""

    def unmark(self, attempt: AttemptId) -> None:
        """It was marked, and is not young any more."""

    def mark_everything(self, everything: bool) -> None:
        """Everything is young from now on, and nothing is marked by itself; or that is over."""


class Unseen:
    """`Marks` where there are no other processes."""

    def mark(self, attempt: AttemptId) -> None:
        """See `Marks`."""

    def unmark(self, attempt: AttemptId) -> None:
        """See `Marks`."""

    def mark_everything(self, everything: bool) -> None:
        """See `Marks`."""


class Settling:
    """What one server knows of versions that may not be shown yet."""

    _log = Logger()

    def __init__(
        self,
        *,
        clock: IReactorTime,
        name: str,
        roster: Roster,
        heartbeats: Heartbeats,
        spreading: Spreading,
        ask: Ask,
        tells: Callable[[str], bool],
        here: Callable[[], Position],
    ) -> None:
        """Args:
        name: of this server.
        tells: False for a server that is connected and takes no `SettledAsk`: the release before shows versions at once.
        here: how far this server knows the catalogue.
        """
        self._clock = clock
        self._name = name
        self._roster = roster
        self._heartbeats = heartbeats
        self._spreading = spreading
        self._ask = ask
        self._tells = tells
        self._here = here
        self._young = YoungVersions()
        self._evidence = Evidence()
        self._begun: dict[AttemptId, float] = {}
        """Commits that were asked for here and are not settled, and until when (monotonic seconds) that may be said."""
        self._timer: Any = None
        self._stopped = False
        self._marks: Marks = Unseen()

    def show_on(self, marks: Marks) -> None:
        """Mark what is young there, too, from now on."""
        self._marks = marks
        marks.mark_everything(self._young.everything is not None)
        for young in self._young:
            marks.mark(young.version.attempt)

    def stop(self) -> None:
        """Look no more."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- the acting origin ---

    def begin(self, attempt: AttemptId) -> None:
        """A commit is about to be asked for, for the first time in this attempt's life: nobody can know of it yet."""
        if len(self._begun) >= BEGUN_MAX:
            del self._begun[next(iter(self._begun))]
        self._begun[attempt] = denied_until(self._clock.seconds(), self._roster.settings.heartbeat_interval_s)

    def give_up(self, attempt: AttemptId) -> None:
        """It was not committed, or nobody here waits for it to spread any more."""
        self._begun.pop(attempt, None)

    def settled(self, version: Version) -> None:
        """No node can give the version before any more."""
        self._begun.pop(version.attempt, None)
        self._settle(version.attempt)

    def tell(self, version: Version) -> None:
        """Let who is taken for its acting origin know that it is settled, if that is another node."""
        if version.origin != self._name and self._tells(version.origin):
            telling = self._ask(version.origin, SettledAsk(attempt=version.attempt, settled=True), ASK_S)
            telling.addErrback(lambda failure: failure.trap(DeadlineExceeded, PeerUnreachable, Refusal))
            telling.addErrback(lambda failure: self._log.failure("a settled version could not be told of", failure))

    @property
    def handlers(self) -> Handlers:
        """What is answered to other servers."""
        return {SettledAsk: self._answer}

    def _answer(self, peer: Peer, asked: SettledAsk) -> SettledAnswer:
        if asked.settled:
            self._settle(asked.attempt)
        return SettledAnswer(word=self._word(asked.attempt).value)

    def _word(self, attempt: AttemptId) -> Word:
        """What this server, as the acting origin, says of an attempt. At the moment at which the clock is read it is so."""
        if self._young.is_settled(attempt):
            return Word.SETTLED
        until = self._begun.get(attempt)
        return Word.UNDER_WAY if until is not None and self._clock.seconds() < until else Word.UNKNOWN

    # --- learning ---

    def learn(self, version: Version, before: Callable[[], Version | None] | None, position: Position) -> None:
        """A version is about to be visible here, which was committed by `position`.

        Args:
            before: gives the version before it; see `Young`.
        """
        young = Young(version=version, learned=Learned(position=position, at=self._clock.seconds()), before=before)
        if self._young.add(young):
            if len(self._young):
                self._marks.mark(version.attempt)
            else:
                self._marks.mark_everything(True)
            self._look_later()

    def learn_everything(self, position: Position) -> None:
        """All that was committed by `position` may be new here: at the start, and with a snapshot."""
        self._marks.mark_everything(True)
        self._young.add_everything(Learned(position=position, at=self._clock.seconds()))
        self._look_later()

    def _settle(self, attempt: AttemptId) -> None:
        if self._young.settle(attempt):
            self._marks.unmark(attempt)

    # --- certainty ---

    def _period_s(self) -> float:
        return CERTAIN_INTERVALS * self._spreading.interval_s

    def _look_later(self) -> None:
        if self._timer is None and self._young and not self._stopped:
            self._timer = self._clock.callLater(self._period_s() / LOOKS, self._look)

    def _look(self) -> None:
        """Forget what is certain by now, whether or not somebody asks for it."""
        self._timer = None
        known = self._known()
        for young in self._young:
            if self._is_certain(young.learned, young.version.origin, known):
                self._settle(young.version.attempt)
            elif not young.learned.may_conclude(self._clock.seconds(), self._spreading.interval_s):
                # Those after it were learned of later.
                break
        if self._young.everything is not None and self._is_certain(self._young.everything, None, known):
            self._young.everything = None
            self._marks.mark_everything(False)
        self._look_later()

    def _known(self) -> dict[str, Position]:
        """How far each server is, by its last heartbeat, and this one; seen at this moment."""
        known = {name: one.position for name, one in self._heartbeats.acknowledgements.items()}
        known[self._name] = self._here()
        self._evidence.note(self._clock.seconds(), known, self._roster.admitted, self._period_s())
        return known

    def _is_certain(self, learned: Learned, origin: str | None, known: Mapping[str, Position]) -> bool:
        """Whether it is clear without the acting origin that what was learned of has spread, and that nobody is told otherwise any more."""
        position = learned.position
        if known[self._name] < position:
            # Of who is a member, and running, less may be known here than has to be.
            return False
        if self._roster.admitted == [self._name]:
            return True
        now = self._clock.seconds()
        is_over = origin is not None and self._spreading.is_over(origin, position)
        if not is_over and not learned.may_conclude(now, self._spreading.interval_s):
            return False
        period_s = self._period_s()
        lasted = self._evidence.lasting(now, period_s) >= position
        return self._spreading.has_spread(position, knowing(known, position), period_s if lasted else 0.0)

    # --- people ---

    async def shown(self, file: File) -> File | None:
        """The file with the version that people may be shown, of those up to the one that it has; None: there was none before it.

        Raises:
            Refusal: NOT_RUNNING: that cannot be said now.
        """
        version: Version | None = file.version
        until = self._clock.seconds() + WAIT_PERIODS * self._period_s()
        while version is not None and (young := self._young.find(version)) is not None:
            word = await self._ask_origin(version)
            if word is Word.SETTLED or self._is_certain(young.learned, version.origin, self._known()):
                self._settle(version.attempt)
            elif word is Word.UNDER_WAY and young.before is not None:
                version = young.before()
            elif self._clock.seconds() >= until:
                raise Refusal(
                    Code.NOT_RUNNING,
                    f"A version of this has just been made, and {self._name} cannot be certain that all nodes know of it. Try again.",
                    retry_after_s=1.0,
                )
            else:
                await deferLater(self._clock, AGAIN_S)
        if version is None or version is file.version:
            return None if version is None else file
        return attrs.evolve(file, version=version)

    async def concluded(self, version: Version, since: float) -> None:
        """Return when nobody is told any more that this version is under way; it has spread already.

        Args:
            since: a moment after its commit, monotonic seconds.
        """
        learned = Learned(position=self._here(), at=since)
        while not learned.may_conclude(self._clock.seconds(), self._spreading.interval_s):
            if await self._ask_origin(version) is Word.SETTLED:
                break
            await deferLater(self._clock, AGAIN_S)
        self._settle(version.attempt)

    async def _ask_origin(self, version: Version) -> Word:
        """What the acting origin says; UNKNOWN when it says nothing."""
        origin = version.origin
        if origin == self._name:
            return self._word(version.attempt)
        if not self._tells(origin):
            return Word.SETTLED
        asking: Deferred[SettledAnswer] = self._ask(origin, SettledAsk(attempt=version.attempt), ASK_S)
        try:
            return Word((await asking).word)
        except (DeadlineExceeded, PeerUnreachable, Refusal, ValueError):
            return Word.UNKNOWN
