"""A node process that hangs, as its fronts see it: whoever speaks with them is not made to wait for it.

beat on the scoreboard   |  |  |  |                    stopped, out of memory, at a disk that hangs
a new request            passed on ──┤ 2 s ├── 503      certainly not done: nothing of it was passed on
one that was passed on   waits ───────────────┤ 10 s ├── closed: nobody knows
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from securifile.model.errors import Code, Refusal
from securifile.node.fronts.scoreboard import Scoreboard

HANGS_S = 2.0
"""Ten beats. A node process that has done nothing for so long has sent no heartbeats either, and has no standing as a rule."""
LOOK_S = 1.0
LOOKS = 10
"""Looks without a beat after which requests that were passed on are given up. Counted, not timed: after all processes of a machine were
stopped together, the front may be the first to go on. By then an upload's lock has run out, if `lease_s` is what it is at first."""


class Hanging:
    """Watches the beat of the node process."""

    _log = Logger()

    def __init__(
        self, clock: IReactorTime, board: Scoreboard, *, name: str, others: Callable[[], list[str]], give_up: Callable[[], int]
    ) -> None:
        """Args:
        name: of this node.
        others: the addresses of nodes that can be asked instead.
        give_up: closes the connections that wait for the node process, and says how many there were.
        """
        self._clock = clock
        self._board = board
        self._name = name
        self._others = others
        self._give_up = give_up
        self._seen = board.alive_at
        self._missed = 0
        self._looking = LoopingCall(self._look)
        self._looking.clock = clock

    def start(self) -> None:
        """Look again and again from now on."""
        self._looking.start(LOOK_S)

    def refusal(self) -> Refusal | None:
        """What a new request is told that only the node process could answer; None while that is there."""
        if self._clock.seconds() - self._board.alive_at < HANGS_S:
            return None
        return Refusal(
            Code.NOT_RUNNING,
            f"Node {self._name} serves nobody now: its process does not answer. Use another server.",
            retry_after_s=1.0,
            servers=self._others(),
        )

    def _look(self) -> None:
        seen = self._board.alive_at
        if seen != self._seen:
            if self._missed >= LOOKS:
                self._log.warn("the node process is there again")
            self._seen, self._missed = seen, 0
            return
        self._missed += 1
        if self._missed >= LOOKS:
            count = self._give_up()
            if count or self._missed == LOOKS:
                self._log.error("the node process hangs: {count} connections that waited for it are closed", count=count)
