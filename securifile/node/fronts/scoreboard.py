"""The scoreboard: a page of memory that a node process and its fronts share, for what has to be known without asking.

    node process ── may serve until …, the index has changed n times ──> fronts
    fronts       ── connections ended, requests answered, passed on ──> node process

The name is Apache's, for the same thing. Each cell is eight bytes, aligned, and has one writer; the processor writes it at once, so that
nobody reads half of one. A right in it is always a right *until a time* on the clock that all processes of a machine share
(`securifile.process.monotonic`): a node process that hangs, or is stopped, gives no more of it, and what it gave runs out.
"""

from __future__ import annotations

import mmap
import os
from collections import Counter
from typing import Any

from securifile.model.ids import AttemptId

_FRONT_CELLS = 8
_YOUNG_BYTES = 1 << 16
"""For the young versions, by the first two bytes of the attempt, which is random: when there are a thousand, one in sixty others is taken
for one."""
_FIRST_FRONT = 16
_CELL_BYTES = 8


class _Cell:
    """One cell as an attribute of the scoreboard."""

    def __init__(self, number: int, view: str) -> None:
        self._number = number
        self._view = view

    def __get__(self, board: Any, owner: type) -> Any:
        return getattr(board, self._view)[self._number]

    def __set__(self, board: Any, value: Any) -> None:
        getattr(board, self._view)[self._number] = value


class Scoreboard:
    """The page, as one process has it in its memory."""

    serves_until = _Cell(0, "times")
    """Monotonic seconds until which a person may be served; long ago while the node has no standing, or has to catch up."""
    goes_on_until = _Cell(1, "times")
    """Monotonic seconds until which transfers under way may go on: to be behind for a moment does not end them."""
    wall_offset = _Cell(2, "times")
    """The cluster's wall clock less the monotonic clock, seconds."""
    changes = _Cell(3, "counts")
    """Twice the number of times that the index was committed to; odd while that is done. What was remembered at another count is void, and
    at an odd one nothing is remembered: else one front could give from memory what another one has seen to be over."""
    server_changes = _Cell(4, "counts")
    """How often servers or settings have changed."""
    left = _Cell(5, "counts")
    """How often a blob has left the store: files that are kept open must be closed."""
    everything_young = _Cell(7, "counts")
    """1 while every version is young; see `model/settling.py`."""
    alive_at = _Cell(8, "times")
    """Monotonic seconds at which the node process last gave the right to serve anew, or found that there is none: its beat."""
    has_room = _Cell(6, "counts")
    """1 while the audit spool has room for a new request's record."""

    def __init__(self, descriptor: int, fronts: int) -> None:
        """Args:
        descriptor: of the memory, as `make_memory` gives it; needed no longer than this takes.
        fronts: how many there are places for.
        """
        self._memory = mmap.mmap(descriptor, bytes_of(fronts))
        self._young = memoryview(self._memory)[bytes_of(fronts) - _YOUNG_BYTES :]
        self.times = memoryview(self._memory).cast("d")
        self.counts = memoryview(self._memory).cast("Q")
        self.fronts = [FrontScore(self.counts, _FIRST_FRONT + number * _FRONT_CELLS) for number in range(fronts)]

    def set_young(self, place: int, young: bool) -> None:
        """Say whether there are young versions of a place (`young_place`)."""
        self._young[place] = young

    def may_be_young(self, attempt: AttemptId) -> bool:
        """Whether that version may be young: one that is not said to be never is."""
        return bool(self.everything_young) or self._young[young_place(attempt)] != 0

    def withdraw(self) -> None:
        """Nobody is served any more, from now on."""
        self.serves_until = self.goes_on_until = float("-inf")


class YoungMarks:
    """The young versions of the node process on the scoreboard: its `Marks` (`protocol/settling.py`)."""

    def __init__(self, board: Scoreboard) -> None:
        self._board = board
        self._young: Counter[int] = Counter()
        """How many there are, by place."""

    def mark(self, attempt: AttemptId) -> None:
        """See `Marks`."""
        place = young_place(attempt)
        self._young[place] += 1
        self._board.set_young(place, True)

    def unmark(self, attempt: AttemptId) -> None:
        """See `Marks`."""
        place = young_place(attempt)
        self._young[place] -= 1
        if not self._young[place]:
            del self._young[place]
            self._board.set_young(place, False)

    def mark_everything(self, everything: bool) -> None:
        """See `Marks`."""
        self._board.everything_young = int(everything)
        if everything:
            for place in self._young:
                self._board.set_young(place, False)
            self._young.clear()


class FrontScore:
    """What one front tells of itself."""

    def __init__(self, counts: memoryview[int], first: int) -> None:
        self._counts = counts
        self._first = first

    def clear(self) -> None:
        """A new process has this place."""
        for number in range(_FRONT_CELLS):
            self._counts[self._first + number] = 0

    @property
    def ended(self) -> int:
        """Connections that were handed to it and are closed."""
        return self._counts[self._first]

    @property
    def answered(self) -> int:
        """Requests that it answered by itself."""
        return self._counts[self._first + 1]

    @property
    def passed_on(self) -> int:
        """Requests, or connections full of them, that it gave to the node process."""
        return self._counts[self._first + 2]

    @property
    def missed(self) -> int:
        """Connections that were handed to it, and for which it had no room; they count as ended, too."""
        return self._counts[self._first + 3]

    def count_ended(self) -> None:
        """One more connection is closed."""
        self._counts[self._first] += 1

    def count_answered(self) -> None:
        """One more request was answered here."""
        self._counts[self._first + 1] += 1

    def count_passed_on(self) -> None:
        """One more was passed on."""
        self._counts[self._first + 2] += 1

    def count_missed(self) -> None:
        """One more was handed over in vain."""
        self._counts[self._first + 3] += 1
        self.count_ended()


def bytes_of(fronts: int) -> int:
    """The size of the memory for so many fronts."""
    return (_FIRST_FRONT + fronts * _FRONT_CELLS) * _CELL_BYTES + _YOUNG_BYTES


def young_place(attempt: AttemptId) -> int:
    """Where on the scoreboard it stands whether a version is young."""
    return int.from_bytes(attempt.value[:2], "big")


def make_memory(fronts: int) -> int:
    """Memory without a name, all zero, that lives as long as somebody has it; its descriptor."""
    descriptor = os.memfd_create("securifile-scoreboard")
    os.ftruncate(descriptor, bytes_of(fronts))
    return descriptor
