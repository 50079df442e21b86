"""When a commit has spread far enough to be answered: no node may serve an older state afterwards.

Every running server has acknowledged it; or, if some are silent, more than half of the nodes have and one
standing period has passed since the commit: by then a silent node has lost its standing.

In either case those that have not acknowledged must not be more than half of all nodes: cut off from the admin servers together, they would
have standing from each other, without ever hearing that they were put down.
"""

from __future__ import annotations

from collections.abc import Collection

from securifile.model.standing import FRESH_INTERVALS


def spread_enough(
    acknowledged: Collection[str], running: Collection[str], nodes: Collection[str], *, waited_s: float, interval_s: float
) -> bool:
    """Whether the answer may go out.

    Args:
        acknowledged: nodes whose index has the commit, the acting one included.
        running: nodes that are held for running now, or were so a standing period ago: who is put down while others still answer
            it does not know of it yet, and serves.
        nodes: all nodes that were ever admitted.
        waited_s: seconds since the commit.
        interval_s: the heartbeat interval.
    """
    if len(set(nodes) - set(acknowledged)) * 2 > len(nodes):
        return False
    if set(running) <= set(acknowledged):
        return True
    majority = len(set(acknowledged) & set(nodes)) * 2 > len(nodes)
    return majority and waited_s >= FRESH_INTERVALS * interval_s
