"""When a commit has spread far enough to be answered: no node may serve an older state afterwards.

Every running server has acknowledged it; or, if some are silent, more than half of the nodes have and one
standing period has passed since the commit: by then a silent node has lost its standing. Who has ended for certain is not waited for: as
that node nobody can serve who was not admitted later, and so has caught up with the commit (`model/lives.py`).

In either case those that have not acknowledged must not be more than half of all nodes: cut off from the admin servers together, they would
have standing from each other, without ever hearing that they were put down.
"""

from __future__ import annotations

from collections.abc import Collection

from securifile.model.standing import FRESH_INTERVALS


def spread_enough(
    acknowledged: Collection[str],
    running: Collection[str],
    nodes: Collection[str],
    *,
    waited_s: float,
    interval_s: float,
    over: Collection[str] = (),
) -> bool:
    """Whether the answer may go out.

    Args:
        acknowledged: nodes whose index has the commit, the acting one included.
        running: nodes that are held for running now, or were so a standing period ago: who is put down while others still answer
            it does not know of it yet, and serves.
        nodes: all nodes that were ever admitted.
        waited_s: seconds since the commit.
        interval_s: the heartbeat interval.
        over: nodes whose admitted life is over, as known at the position of the commit or later. They are waited for by nobody, and that is
            all: like one that is down, such a node is no part of a majority that has heard of the commit, and it may have confirmed just
            before its end that others have standing.
    """
    if len(set(nodes) - set(acknowledged)) * 2 > len(nodes):
        return False
    if set(running) <= {*acknowledged, *over}:
        return True
    majority = len(set(acknowledged) & set(nodes)) * 2 > len(nodes)
    return majority and waited_s >= FRESH_INTERVALS * interval_s
