"""When a new version of a file may be shown to people, so that files are atomic registers (linearizable: Herlihy and Wing, 1990).

A commit becomes known to the nodes one after the other, and a node that has just been stopped or cut off may go on giving the version
before for a standing period. So a version is *young* to a server that has heard of it, until the server knows that it is *settled*: that no
node can give the version before any more (`model/spreading.py`). What anybody is shown is settled; while a version is not, people are shown
the one before.

Who says whether it is settled is its **acting origin**, the node that committed it and answers the writer. Somebody must have the last
word: else one reader could be told "not yet" after another one has concluded "by now" without it.

    committed ──┬─ the origin: "under way"  ── the reader shows the version before; said until DENIED_INTERVALS after the beginning
                ├─ the origin: "settled"    ── the reader shows it
                └─ neither                  ── the reader concludes by itself, CERTAIN_INTERVALS after it has learned of the commit

A commit is begun before it is made, and made before anybody learns of it. So whoever says "under way" says it before anybody concludes
anything, on all clocks that run equally fast.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from enum import StrEnum

import attrs

from securifile.model.entries import Version
from securifile.model.ids import BEGINNING, AttemptId, Position
from securifile.model.standing import FRESH_INTERVALS

DENIED_INTERVALS = 2.4
"""Heartbeat intervals, from before the commit was asked for, within which its acting origin may say that it is under way: as long as a
commit spreads when nodes are silent. A little less than `CERTAIN_INTERVALS`, for clocks that do not run equally fast."""

CERTAIN_INTERVALS = FRESH_INTERVALS
"""Heartbeat intervals, from when it learned of the commit, after which a server may conclude without the acting origin."""

YOUNG_MAX = 10_000
"""Young versions that are remembered, of about a kilobyte each: what a thousand uploads a second make in several standing periods. When
there are more, everything is held for young that this server has heard of by then."""

SETTLED_MAX = 10_000
"""Attempts of which is remembered that they are settled: for those who ask, and while everything is held for young."""


class Word(StrEnum):
    """What a server knows of an attempt that it may be the acting origin of."""

    SETTLED = "settled"
    UNDER_WAY = "under-way"
    """It was not settled when this was said, and nobody can have concluded that it is."""
    UNKNOWN = "unknown"
    """Nothing of that can be said here."""


@attrs.frozen(kw_only=True)
class Learned:
    """What was committed by a position, and since when a server knows of it."""

    position: Position
    at: float
    """Monotonic seconds, not before the commit."""

    def may_conclude(self, now: float, interval_s: float) -> bool:
        """Whether nobody is told any more that it is under way.

        Args:
            interval_s: the longest heartbeat interval that any node may go by.
        """
        return now >= self.at + CERTAIN_INTERVALS * interval_s


@attrs.frozen(kw_only=True)
class Young:
    """A version of which a server does not know whether it is settled."""

    version: Version
    learned: Learned
    before: Callable[[], Version | None] | None = attrs.field(default=None, eq=False)
    """The version before it (None: there was no file); None in place of the function: not known."""


def denied_until(now: float, interval_s: float) -> float:
    """Until when (monotonic seconds) a commit that is asked for from `now` on may be said to be under way.

    Args:
        interval_s: the heartbeat interval.
    """
    return now + DENIED_INTERVALS * interval_s


class Remembered:
    """Attempts that are settled, the latest of them."""

    def __init__(self, most: int = SETTLED_MAX) -> None:
        self._most = most
        self._attempts: dict[AttemptId, None] = {}

    def __contains__(self, attempt: AttemptId) -> bool:
        return attempt in self._attempts

    def add(self, attempt: AttemptId) -> None:
        """Remember it, in place of the one that was added first."""
        self._attempts.pop(attempt, None)
        self._attempts[attempt] = None
        if len(self._attempts) > self._most:
            del self._attempts[next(iter(self._attempts))]


class YoungVersions:
    """What is young to one server."""

    def __init__(self, most: int = YOUNG_MAX) -> None:
        self._most = most
        self._young: dict[AttemptId, Young] = {}
        self._settled = Remembered()
        self.everything: Learned | None = None
        """If not None, every version that was committed by then is young, unless it is remembered as settled."""

    def __bool__(self) -> bool:
        return bool(self._young) or self.everything is not None

    def __len__(self) -> int:
        return len(self._young)

    def __iter__(self) -> Iterator[Young]:
        """Those that are known one by one, the one first that was learned of first."""
        return iter(list(self._young.values()))

    def add(self, young: Young) -> bool:
        """Take one more; False if that changes nothing. If there is no room, everything is held for young from now on."""
        attempt = young.version.attempt
        if attempt in self._settled or attempt in self._young:
            return False
        if len(self._young) >= self._most:
            self.add_everything(young.learned)
        else:
            self._young[attempt] = young
        return True

    def add_everything(self, learned: Learned) -> None:
        """Hold every version for young; what was before each of them is not known."""
        self._young.clear()
        self.everything = learned

    def find(self, version: Version) -> Young | None:
        """This version, if it is young."""
        found = self._young.get(version.attempt)
        if found is None and self.everything is not None and version.attempt not in self._settled:
            return Young(version=version, learned=self.everything)
        return found

    def settle(self, attempt: AttemptId) -> bool:
        """This attempt is settled; whether it was one of those that are known one by one."""
        self._settled.add(attempt)
        return self._young.pop(attempt, None) is not None

    def is_settled(self, attempt: AttemptId) -> bool:
        """Whether it is remembered that this attempt is settled."""
        return attempt in self._settled


class Evidence:
    """How far the other servers are by their own word, and since when more than half of the nodes are so far."""

    def __init__(self) -> None:
        self._majority: deque[tuple[float, Position]] = deque()
        """Positions that more than half knew, each later than the one before, and when that was seen (monotonic seconds)."""

    def note(self, now: float, known: Mapping[str, Position], nodes: Collection[str], period_s: float) -> None:
        """Take what is known at this moment.

        Args:
            known: how far each server is, at least.
            nodes: those of which more than half count.
            period_s: as in `lasting`.
        """
        positions = sorted((known.get(name, BEGINNING) for name in nodes), reverse=True)
        position = positions[len(positions) // 2] if positions else BEGINNING
        if not self._majority or position > self._majority[-1][1]:
            self._majority.append((now, position))
        while len(self._majority) > 1 and self._majority[1][0] <= now - period_s:
            self._majority.popleft()

    def lasting(self, now: float, period_s: float) -> Position:
        """What more than half of the nodes have known for at least `period_s`.

        Who was silent for all that time has lost its standing: of those who could confirm it, one would have told it of a later position.
        """
        return max((position for at, position in self._majority if at <= now - period_s), default=BEGINNING)


def knowing(known: Mapping[str, Position], position: Position) -> set[str]:
    """Who is at `position`, or after it."""
    return {name for name, reached in known.items() if reached >= position}
