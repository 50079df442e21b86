"""Locking a file on every running server while it is modified.

The acting origin's own table comes first (for a new path: that of the first server by hash), and only who has the first
asks the others: two starters never hold half each. A server that is silent for `SILENCE_S` is left out if more
than half of the running ones granted. A refusal frees what was taken.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from securifile.model.errors import Code, DeadlineExceeded, PeerUnreachable, Refusal
from securifile.model.facts import Fact, File
from securifile.model.ids import AttemptId
from securifile.model.leases import Lease, LeaseTable, new_path_key
from securifile.model.roster import Roster
from securifile.protocol.heartbeats import Ask
from securifile.protocol.messages import LeaseAnswer, LeaseAsk, LeaseRelease

SILENCE_S = 0.3
"""A running server answers within milliseconds; a hanging one must not hold up every writer."""

RENEWALS = 3
"""Renewed three times a term, so that two lost renewals do not lose the lease."""


class Granter:
    """This node's own lease table, as others ask it."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._table = LeaseTable()

    def ask(self, asked: LeaseAsk, node: str) -> LeaseAnswer:
        """Grant or refuse."""
        now = self._clock.seconds()
        wanted = Lease(attempt=asked.attempt, person=asked.person, node=node, expires_at=now + asked.duration_s)
        held = self._table.ask(asked.key, wanted, now)
        return LeaseAnswer(
            granted=held.attempt == asked.attempt, holder=held.person, node=held.node, expires_in_s=max(0.0, held.expires_at - now)
        )

    def look(self, key: bytes) -> LeaseAnswer:
        """Who holds it, for those who only want to know."""
        found = self.holder(key)
        if found is None:
            return LeaseAnswer(granted=True)
        held, left_s = found
        return LeaseAnswer(granted=False, holder=held.person, node=held.node, expires_in_s=left_s)

    def release(self, key: bytes, attempt: AttemptId) -> None:
        """Forget a lease."""
        self._table.release(key, attempt)

    def release_all(self, node: str) -> None:
        """Forget the leases of a node that renews none any more."""
        self._table.release_all(node)

    def learn(self, fact: Fact) -> None:
        """A committed version ends the lease of its attempt, which had the file locked, or the place where it was to be."""
        if isinstance(fact, File):
            for key in (fact.id.value, new_path_key(fact.parent, fact.name)):
                self._table.release(key, fact.version.attempt)

    def holder(self, key: bytes) -> tuple[Lease, float] | None:
        """Who holds it, and for how many seconds still."""
        now = self._clock.seconds()
        held = self._table.holder(key, now)
        return None if held is None else (held, held.expires_at - now)

    def expire(self) -> None:
        """Forget what has expired."""
        self._table.expire(self._clock.seconds())


class Lock:
    """A file locked everywhere, renewed until released.

    Whoever sleeps for longer than a lease may have lost it to somebody else: so it is confirmed before anything is done that only
    its holder may do. (Who falls asleep between the two is stopped by the catalogue's compare-and-swap.)
    """

    _log = Logger()

    def __init__(self, locks: Locks, asked: LeaseAsk, granted_by: set[str], until: float) -> None:
        """Args:
        until: monotonic; until then nobody else was granted it. Counted from asking, as the granters count from a later moment.
        """
        self._locks = locks
        self._asked = asked
        self._granted_by = granted_by
        self._answered = frozenset(granted_by)
        """Those who have answered the last question: no grant of theirs is still on its way."""
        self._until = until
        self._released = False
        self._renewing = False
        self._timer: Any = None
        self._renew_later()

    def _renew_later(self) -> None:
        self._timer = self._locks.clock.callLater(self._asked.duration_s / RENEWALS, self._renew)

    def _renew(self) -> None:
        self._renew_later()
        if not self._renewing:
            self._renewing = True
            renewing = Deferred.fromCoroutine(self._extend())
            # Who finds it lost later, at `confirm`, says so to whoever uploads.
            renewing.addErrback(lambda failure: failure.trap(Refusal))
            renewing.addErrback(lambda failure: self._log.failure("a lease could not be renewed", failure))
            renewing.addBoth(self._renewed)

    def _renewed(self, _: object) -> None:
        self._renewing = False

    async def _extend(self) -> None:
        asked_at = self._locks.clock.seconds()
        self._answered = frozenset()
        self._answered = await self._locks.renew(self._asked, self._granted_by)
        self._until = asked_at + self._asked.duration_s

    async def confirm(self) -> None:
        """Return when the file is still locked, or is locked again because nobody else has taken it meanwhile.

        Raises:
            Refusal: LOCKED, naming who has it now; or NOT_RUNNING, when too few servers answered.
        """
        if self._locks.clock.seconds() >= self._until:
            await self._extend()

    def release(self, known_by: Collection[str] = ()) -> None:
        """Unlock; the others are told in the background, and forget by themselves if they do not hear it. A second time is harmless.

        Args:
            known_by: servers that have heard of this attempt's commit: those who forget its lease by that are not told.
        """
        if not self._released:
            self._released = True
            self._timer.cancel()
            # One that has not answered may still grant it, after it has heard of the commit.
            self._locks.give_back(self._granted_by, self._asked, self._answered.intersection(known_by))


class Locks:
    """Takes locks for uploads through this node."""

    _log = Logger()

    def __init__(
        self,
        *,
        clock: IReactorTime,
        roster: Roster,
        name: str,
        granter: Granter,
        ask: Ask,
        is_doubtful: Callable[[str], bool],
        is_unlocking: Callable[[str], bool],
        is_over: Callable[[str], bool],
        is_available: Callable[[str], bool],
    ) -> None:
        """Args:
        is_unlocking: whether a server forgets an attempt's lease by itself when it hears of the commit.
        is_over: whether a node's admitted life is over, so that nobody serves as it, and it grants nothing to anybody.
            is_available: whether a node answers, as far as is known.
        """
        self.clock = clock
        self._roster = roster
        self._name = name
        self._granter = granter
        self._ask = ask
        self._is_doubtful = is_doubtful
        self._is_unlocking = is_unlocking
        self._is_over = is_over
        self._is_available = is_available

    @property
    def _running(self) -> list[str]:
        """Who has to grant a lock: all that run, but for those that nobody runs as any more."""
        return [name for name in self._roster.running if not self._is_over(name)]

    def take(self, key: bytes, attempt: AttemptId, person: str, first: str) -> Deferred[Lock]:
        """Lock `key` on every running server, asking `first` before the others.

        Raises:
            Refusal: LOCKED, naming who has it and for how long; or NOT_RUNNING, when too few servers answered.
        """
        return Deferred.fromCoroutine(self._take_from(key, attempt, person, first))

    async def _take_from(self, key: bytes, attempt: AttemptId, person: str, first: str) -> Lock:
        """Like `_take`; whoever holds it through a node that is lost is given a moment, in which that one's end is told if it has ended.

        Its person, who was uploading, tries again through another node at once.
        """
        try:
            return await self._take(key, attempt, person, first)
        except Refusal as refusal:
            if refusal.code is not Code.LOCKED or self._is_available(str(refusal.evidence.get("node"))):
                raise
        await deferLater(self.clock, SILENCE_S)
        return await self._take(key, attempt, person, first)

    async def _take(self, key: bytes, attempt: AttemptId, person: str, first: str) -> Lock:
        asked = LeaseAsk(key=key, attempt=attempt, person=person, duration_s=self._roster.settings.lease_s)
        running = self._running
        granted: set[str] = set()
        asked_at = self.clock.seconds()
        try:
            if not self._is_doubtful(first):
                self._judge(await self.ask_all([first], asked), granted)
            self._judge(await self.ask_all([name for name in running if name != first], asked), granted)
            self._check_enough(granted, running)
        except BaseException:
            self.give_back(granted, asked)
            raise
        return Lock(self, asked, granted, asked_at + asked.duration_s)

    async def renew(self, asked: LeaseAsk, names: set[str]) -> frozenset[str]:
        """Have a lease for another term, from those that granted it and every other running server; adds them to `names`.

        Returns:
            Who granted it now.

        Raises:
            Refusal: as `take`. Nothing is given back: the lock is its holder's to release.
        """
        running = self._running
        granted: set[str] = set()
        self._judge(await self.ask_all(sorted(names.union(running)), asked), granted)
        names.update(granted)
        self._check_enough(granted.intersection(running), running)
        return frozenset(granted)

    @staticmethod
    def _check_enough(granted: set[str], running: list[str]) -> None:
        """All running servers, or more than half of them."""
        if len(granted) < len(running) and len(granted) * 2 <= len(running):
            raise Refusal(
                Code.NOT_RUNNING,
                f"Only {len(granted)} of {len(running)} running servers answered when the file was to be locked. Try again.",
                retry_after_s=1.0,
            )

    def _judge(self, answers: dict[str, LeaseAnswer], granted: set[str]) -> None:
        granted.update(name for name, answer in answers.items() if answer.granted)
        for answer in answers.values():
            if not answer.granted:
                raise Refusal(
                    Code.LOCKED,
                    f"{answer.holder} is modifying this file through {answer.node}. Try again when they are done.",
                    retry_after_s=answer.expires_in_s,
                    holder=answer.holder,
                    node=answer.node,
                    expires_in_s=round(answer.expires_in_s, 3),
                )

    async def ask_all(self, names: list[str], asked: LeaseAsk) -> dict[str, LeaseAnswer]:
        """The answers of those that answered in time."""
        asking = [self._ask_one(name, asked) for name in names]
        results: list[tuple[bool, Any]] = await DeferredList(asking, consumeErrors=True)
        answers: dict[str, LeaseAnswer] = {}
        for name, (succeeded, answer) in zip(names, results, strict=True):
            if succeeded:
                answers[name] = answer
            elif not answer.check(DeadlineExceeded, PeerUnreachable, Refusal):
                answer.raiseException()
        return answers

    def _ask_one(self, name: str, asked: LeaseAsk) -> Deferred[LeaseAnswer]:
        if name == self._name:
            own: Deferred[LeaseAnswer] = Deferred()
            own.callback(self._granter.ask(asked, self._name))
            return own
        return self._ask(name, asked, SILENCE_S)

    def give_back(self, names: set[str], asked: LeaseAsk, heard: Collection[str] = ()) -> None:
        """Release at `names`, and at every other node too: one whose grant came too late holds it as well.

        Args:
            heard: who of them has heard of the commit since: such are told only if they do not forget it by that.
        """
        self._granter.release(asked.key, asked.attempt)
        forgotten = {self._name, *filter(self._is_unlocking, heard)}
        for name in sorted({*names, *self._roster.running} - forgotten):
            telling = self._ask(name, LeaseRelease(key=asked.key, attempt=asked.attempt), SILENCE_S)
            telling.addErrback(lambda failure: failure.trap(DeadlineExceeded, PeerUnreachable, Refusal, CancelledError))
            telling.addErrback(lambda failure: self._log.failure("a lease could not be given back", failure))
