"""The failure detector: the pure rule that judges the absence of heartbeats.

Each server keeps one `Pulse` for each other server. The service sends a heartbeat every interval and tells the pulse
what happened; the pulse tells what the peer is held for.

A peer that is held for down and answers again is not believed at once, because a node that was away may hold old files: it has
to be verified, and the cluster says when it is running again (`docs/decisions/0010-returning-nodes.md`). Only an observer that was
alone with its doubts believes it at once.
"""

from __future__ import annotations

import attrs

from securifile.model.servers import Status


@attrs.frozen(kw_only=True)
class Pulse:
    """What one server has seen of another's heartbeats."""

    status: Status
    """What the peer is held for."""
    waiting: int | None = None
    """Number of the last heartbeat sent, while it is unanswered."""
    unanswered: int = 0
    """Heartbeats in a row that were not answered when the next was due."""

    @property
    def doubtful(self) -> bool:
        """Whether at least one heartbeat is overdue: the peer may be gone, and is passed over where there is a choice."""
        return self.unanswered > 0 or self.status is not Status.RUNNING


def sending(pulse: Pulse, number: int, missed_max: int) -> Pulse:
    """Heartbeat `number` goes out now; if the one before is still unanswered, that one has been missed.

    Args:
        missed_max: after how many missed in a row the peer is held for down.
    """
    if pulse.waiting is None:
        return attrs.evolve(pulse, waiting=number)
    unanswered = pulse.unanswered + 1
    status = Status.DOWN if unanswered >= missed_max else pulse.status
    return Pulse(status=status, waiting=number, unanswered=unanswered)


def answered(pulse: Pulse, cluster: Status) -> Pulse:
    """An answer came; `cluster` is what the cluster as a whole holds the peer for."""
    alone = pulse.status is Status.DOWN and cluster is Status.RUNNING
    return Pulse(status=Status.RUNNING if alone else pulse.status)


def verified(pulse: Pulse, verdict: Status) -> Pulse:
    """The cluster has verified the peer and holds it for `verdict` now.

    So it answered others until a moment ago, and what it did not answer while it was away counts no more: else the next heartbeat, which is
    due before this server's own first answer, would put it down again.
    """
    return pulse if pulse.status is verdict else Pulse(status=verdict)
