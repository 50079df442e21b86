"""Whether this node was removed from the cluster, as far as it can know.

While it follows the feed, the catalogue tells. A node that was away when it was removed gets no feed any more: it knows it from being
turned away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from twisted.logger import Logger

TURNED_AWAY_MAX = 2
"""Times in a row that an admin server does not know this node for a member, before it is believed."""


class Removal:
    """Whether one node was removed."""

    _log = Logger()

    def __init__(self, name: str, is_alone: Callable[[], bool]) -> None:
        """Args:
        name: of this node.
        is_alone: whether it believes that it is a member, and no admin server answers it.
        """
        self._name = name
        self._is_alone = is_alone
        self._told = False
        """Whether the catalogue says so."""
        self._turned_away: Counter[str] = Counter()
        """How often in a row each admin server did not know this node for a member."""

    @property
    def is_removed(self) -> bool:
        """Whether this node was removed from the cluster."""
        return self._told or max(self._turned_away.values(), default=0) >= TURNED_AWAY_MAX

    def told(self) -> None:
        """The catalogue says so."""
        if not self._told:
            self._told = True
            self._say("the catalogue")

    def enrolled(self) -> None:
        """The catalogue says that it is a member."""
        self._told = False

    def answered(self) -> None:
        """An admin server has answered a heartbeat."""
        self._turned_away.clear()

    def turned_away(self, by: str) -> None:
        """An admin server does not know this node for a member.

        It may have just been started, or be asked by a new node just after another admin server has enrolled it. So they have to say it
        twice, while none of them answers.
        """
        if not self._told:
            self._turned_away[by] += 1
            if self._turned_away[by] == TURNED_AWAY_MAX and self._is_alone():
                self._say(by)

    def _say(self, by: str) -> None:
        self._log.critical(
            "this node, {node}, was removed from the cluster, as {by} says: it serves nobody any more. Stop it; to use the machine again,"
            " join under a new invitation with an empty data folder",
            node=self._name,
            by=by,
        )
