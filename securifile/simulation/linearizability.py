"""Whether all that people were told of one file can be true: linearizability of a versioned register, decided exactly.

The register holds (number, content), at first (0, nothing). A write makes it (number + 1, its content) and is told
the new number; a read is told both. A history is *linearizable* (Herlihy and Wing, 1990) when each operation can be
given one instant between its beginning and its end at which it happens all at once. Of a write that was not answered
nobody knows whether it happened; if so, at any time after its beginning.

For registers in general this needs a search (Wing and Gong, 1993; the problem is NP-complete: Gibbons and Korach,
1997). Here the answers carry version numbers, and no two writes have the same content, and so a look at each
operation is enough:

**The rule.** Give the write that made version v the rank 2v, and each read of v the rank 2v + 1. The history is
linearizable if and only if

1. version, content and write belong together one to one: each content that was read is that of a write, and of the
   version that this was told;
2. no operation ended before another one of a lower rank began;
3. each version below the highest one known, of which nobody was told who made it, can be given a write of its own
   among those that were neither answered nor read, so that 2 stays true.

**Why.** By 1, the register's numbers leave no choice but to have the operations happen in the order of their ranks,
where only reads of one version may change places. *Only if*: instants are in the order of ranks, and an operation
that ended before another began has the earlier instant. *If*: order the operations by rank, reads of one version by
their beginnings. By 2 nobody stands behind one that began after their end; that is an order of real time as well, so
instants can be found (go through the order, each time taking the latest beginning so far). For 3: a write that was
not answered has no end, so that it is never the one that ended before. Rank 2v suits it if no operation of a higher
rank ended before it began: it began by the *limit* of v, the earliest end among the ranks above 2v. Limits do not
fall as v grows, so who can be given one version can be given each later one, and giving the writes in the order of
their beginnings to the versions in theirs succeeds whenever anything does.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable

import attrs


@attrs.frozen(kw_only=True)
class Written:
    """A write that was told which version it made."""

    content: Hashable
    version: int = attrs.field(validator=attrs.validators.ge(1))
    begun: float
    ended: float


@attrs.frozen(kw_only=True)
class Unanswered:
    """A write of which nobody can say whether, or when, it is done. One that was certainly refused is no part of the history."""

    content: Hashable
    begun: float


@attrs.frozen(kw_only=True)
class Read:
    """What was there: version 0 when there was nothing."""

    content: Hashable | None
    version: int = attrs.field(validator=attrs.validators.ge(0))
    begun: float
    ended: float

    def __attrs_post_init__(self) -> None:
        if (self.version == 0) is not (self.content is None):
            raise ValueError("version 0, and only that, has no content")


Event = Written | Unanswered | Read


@attrs.frozen
class Impossible:
    """Why a history cannot be.

    Attributes:
        reason: for people.
        events: those that cannot be true together.
    """

    reason: str
    events: tuple[Event, ...]


@attrs.frozen
class _Placed:
    """An operation whose place in the order is known."""

    rank: int
    begun: float
    ended: float
    event: Event


def judge(events: Iterable[Event]) -> list[Impossible]:
    """What is wrong with the history of one file; empty if and only if it is linearizable.

    Raises:
        ValueError: two writes have the same content; then what was read does not say who wrote it.
    """
    history = list(events)
    writes: dict[Hashable, Written | Unanswered] = {}
    for event in history:
        if not isinstance(event, Read):
            if event.content in writes:
                raise ValueError(f"two writes have the content {event.content!r}")
            writes[event.content] = event
    found, made = _belonging(history, writes)
    placed = [_placed(event, made) for event in history if isinstance(event, Read) or event.content in made]
    found += _order(placed)
    spare = [event for event in history if isinstance(event, Unanswered) and event.content not in made]
    return found + _missing(placed, sorted(spare, key=lambda write: write.begun), set(made.values()))


def _belonging(history: list[Event], writes: dict[Hashable, Written | Unanswered]) -> tuple[list[Impossible], dict[Hashable, int]]:
    """Rule 1: what breaks it, and the version of each content of which one is known."""
    found: list[Impossible] = []
    contents: dict[int, Event] = {}
    made: dict[Hashable, int] = {}
    witness: dict[Hashable, Event] = {}
    for event in history:
        if isinstance(event, Unanswered) or event.content is None:
            continue
        if event.content not in writes:
            found.append(Impossible("what was read was not written", (event,)))
        other = contents.setdefault(event.version, event)
        if not isinstance(other, Unanswered) and other.content != event.content:
            found.append(Impossible("one version has two contents", (other, event)))
        if made.setdefault(event.content, event.version) != event.version:
            found.append(Impossible("one write made two versions", (witness[event.content], event)))
        witness.setdefault(event.content, event)
    return found, made


def _placed(event: Event, made: dict[Hashable, int]) -> _Placed:
    if isinstance(event, Unanswered):
        return _Placed(2 * made[event.content], event.begun, math.inf, event)
    return _Placed(2 * event.version + isinstance(event, Read), event.begun, event.ended, event)


def _order(placed: list[_Placed]) -> list[Impossible]:
    """Rule 2: each operation that began when one of a higher rank had ended, with the highest of those."""
    found: list[Impossible] = []
    by_end = sorted(placed, key=lambda one: one.ended)
    ended = 0
    highest: _Placed | None = None
    for one in sorted(placed, key=lambda one: one.begun):
        while by_end[ended].ended < one.begun:
            if highest is None or by_end[ended].rank > highest.rank:
                highest = by_end[ended]
            ended += 1
        if highest is not None and highest.rank > one.rank:
            found.append(Impossible("the second began when the first, which comes after it, had ended", (highest.event, one.event)))
    return found


def _missing(placed: list[_Placed], spare: list[Unanswered], known: set[int]) -> list[Impossible]:
    """Rule 3: the first version that nobody can have made.

    Args:
        spare: writes that may have made any, by their beginnings.
        known: versions of which it is known who made them.
    """
    by_rank = sorted(placed, key=lambda one: one.rank, reverse=True)
    newest = by_rank[0].rank // 2 if by_rank else 0
    limits: dict[int, float] = {}
    limit, above = math.inf, 0
    for version in range(newest, 0, -1):
        while above < len(by_rank) and by_rank[above].rank > 2 * version:
            limit = min(limit, by_rank[above].ended)
            above += 1
        limits[version] = limit
    holes = [version for version in range(1, newest + 1) if version not in known]
    for place, version in enumerate(holes):
        if place >= len(spare) or spare[place].begun > limits[version]:
            later = tuple(one.event for one in placed if one.rank > 2 * version)[:2]
            return [Impossible(f"nobody can have made version {version} in time for what came after it", later)]
    return []
