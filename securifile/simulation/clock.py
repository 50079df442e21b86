"""Virtual time: one queue of events for all, and a clock for each process.

A process may be paused: its timers wait, and fire late when it goes on, in the order in which they were due. It may die:
its timers never fire. Each process counts its monotonic seconds from another beginning, so that a reading of one clock which
strays to another process does harm that is seen.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

from twisted.internet.error import AlreadyCalled, AlreadyCancelled
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure
from zope.interface import implementer

BEGINNING = 1_800_000_000.0
"""Wall clock at the beginning of each run: 2027-01-15."""

EVENTS_AT_ONCE_MAX = 200_000
"""Events without time going on: more means that two timers of no seconds wake each other for ever."""


class StandsStill(Exception):
    """Time does not go on: events make events at the same instant without end."""


@implementer(IDelayedCall)
class SimulatedCall:
    """A timer."""

    __slots__ = ("_arguments", "_done", "_function", "_keywords", "_time", "at", "owner", "place")

    def __init__(self, time: VirtualTime, owner: ProcessClock | None, at: float, function: Any, arguments: Any, keywords: Any) -> None:
        self.at = at
        self.owner = owner
        self.place = 0
        """Which of its places in the queue counts."""
        self._time = time
        self._function = function
        self._arguments = arguments
        self._keywords = keywords
        self._done: type[Exception] | None = None

    def getTime(self) -> float:
        """When it fires, on its owner's clock."""
        return self.at + (self.owner.offset_s if self.owner is not None else 0.0)

    def cancel(self) -> None:
        """Never fire."""
        self._check()
        self._done = AlreadyCancelled
        self._function = self._arguments = self._keywords = None

    def delay(self, secondsLater: float) -> None:
        """Fire later."""
        self._check()
        self._time.put(self, self.at + secondsLater)

    def reset(self, secondsFromNow: float) -> None:
        """Fire so long from now."""
        self._check()
        self._time.put(self, self._time.now + secondsFromNow)

    def active(self) -> bool:
        """Whether it will fire."""
        return self._done is None

    def fire(self) -> None:
        """It is time."""
        self._done = AlreadyCalled
        function, arguments, keywords = self._function, self._arguments, self._keywords
        self._function = self._arguments = self._keywords = None
        function(*arguments, **keywords)

    def _check(self) -> None:
        if self._done is not None:
            raise self._done()


@implementer(IReactorTime)
class VirtualTime:
    """The queue of all events; a clock itself, for what no process owns."""

    def __init__(self) -> None:
        self.now = 0.0
        self.fired = 0
        """Events so far."""
        self.failures: list[Failure] = []
        """What events raised; a reactor would log it and go on."""
        self._queue: list[tuple[float, int, SimulatedCall]] = []
        self._places = 0

    def seconds(self) -> float:
        """Seconds since the run began."""
        return self.now

    def callLater(self, delay: float, callable: Callable[..., Any], *args: object, **kwargs: object) -> SimulatedCall:
        """See `IReactorTime`."""
        return self.add(None, delay, callable, args, kwargs)

    def getDelayedCalls(self) -> list[SimulatedCall]:
        """What is still to come."""
        return [call for _, place, call in self._queue if call.active() and call.place == place]

    def add(self, owner: ProcessClock | None, delay: float, function: Any, arguments: Any, keywords: Any) -> SimulatedCall:
        """A new timer for a process, or for nobody."""
        if delay < 0:
            raise ValueError(f"{delay} seconds from now is in the past")
        call = SimulatedCall(self, owner, self.now + delay, function, arguments, keywords)
        self.put(call, call.at)
        return call

    def put(self, call: SimulatedCall, at: float) -> None:
        """Give a timer its place in the queue; another it may have does not count any more."""
        self._places += 1
        call.at, call.place = at, self._places
        heappush(self._queue, (at, self._places, call))

    def put_back(self, held: list[SimulatedCall]) -> None:
        """Timers that were due while their process could not run keep their order."""
        for call in held:
            heappush(self._queue, (call.at, call.place, call))

    def run_until(self, until: float, enough: Callable[[], bool] = lambda: False) -> bool:
        """Let everything happen up to that time, or until `enough`, asked after each event; whether it was enough."""
        queue = self._queue
        at_once = 0
        while queue and queue[0][0] <= until:
            at, place, call = heappop(queue)
            if not call.active() or call.place != place:
                continue
            if call.owner is not None and not call.owner.runs:
                call.owner.hold(call)
                continue
            if at > self.now:
                self.now, at_once = at, 0
            at_once += 1
            if at_once > EVENTS_AT_ONCE_MAX:
                raise StandsStill(f"{at_once} events at {self.now}, the last of them {call._function}")
            self.fired += 1
            try:
                call.fire()
            except Exception:
                self.failures.append(Failure())
            if enough():
                return True
        self.now = max(self.now, until)
        return enough()


@implementer(IReactorTime)
class ProcessClock:
    """The clocks of one process: monotonic seconds and timers, and wall time that can be set."""

    def __init__(self, time: VirtualTime, offset_s: float = 0.0) -> None:
        self.offset_s = offset_s
        """Where its monotonic seconds begin."""
        self.wall_ahead_s = 0.0
        """How far its wall clock is ahead of the right time."""
        self._time = time
        self._held: list[SimulatedCall] = []
        self._paused = False
        self._dead = False

    @property
    def runs(self) -> bool:
        """Whether its timers fire."""
        return not (self._paused or self._dead)

    @property
    def is_dead(self) -> bool:
        """Whether it never runs again."""
        return self._dead

    def seconds(self) -> float:
        """Monotonic; goes on while the process is paused."""
        return self._time.now + self.offset_s

    def wall(self) -> float:
        """Seconds since 1970, as the process is told."""
        return BEGINNING + self._time.now + self.wall_ahead_s

    def callLater(self, delay: float, callable: Callable[..., Any], *args: object, **kwargs: object) -> SimulatedCall:
        """See `IReactorTime`."""
        return self._time.add(self, delay, callable, args, kwargs)

    def getDelayedCalls(self) -> list[SimulatedCall]:
        """What this process waits for."""
        return [call for call in self._time.getDelayedCalls() if call.owner is self]

    def hold(self, call: SimulatedCall) -> None:
        """A timer that was due while the process could not run. Those of the dead are kept, too: see `SimulatedCluster.bury`."""
        self._held.append(call)

    def pause(self) -> None:
        """Stop running, as with SIGSTOP."""
        self._paused = True

    def resume(self) -> None:
        """Go on; what was due fires at once."""
        self._paused = False
        held, self._held = self._held, []
        self._time.put_back(held)

    def die(self) -> None:
        """Never run again."""
        self._dead = True
