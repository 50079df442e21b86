"""What heartbeats cost: idle clusters of several sizes, in one process.

The messages are those of the real servers, encoded and framed, so their number and bytes are exact and the same in each run. CPU time
is this process's, for the logic of all servers and the network in memory; divided by the heartbeats it is what sending one, answering
it, and taking the answer in cost together, at both ends, without TLS and system calls.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from securifile.simulation.cluster import SimulatedCluster

PATIENCE_S = 60.0
"""Virtual seconds within which the nodes of a new cluster run."""

SETTLING_S = 1.0
"""What the start has set going has ended by then."""


@attrs.frozen(kw_only=True)
class Cost:
    """What was measured in one cluster. A node's share is an average over all nodes."""

    nodes: int
    seconds: float
    """Virtual."""
    heartbeats_s: float
    """That one node sends a second, and answers."""
    messages_s: float
    """That one node sends a second, of all kinds: heartbeats and answers are nearly all."""
    bytes_s: float
    """Likewise, before TLS."""
    cpu_us: float
    """Microseconds of CPU for one heartbeat and its answer, at both ends together."""
    core: float
    """Part of a core that one node's logic needs."""


def measure(nodes: int, *, seed: int, seconds: float, cpu: Callable[[], float]) -> Cost:
    """Let an idle cluster of so many nodes and one admin server run.

    Args:
        cpu: seconds of CPU that this process has used.
    """
    cluster = SimulatedCluster(seed, nodes=nodes)
    cluster.begin(patience_s=PATIENCE_S)
    cluster.run(SETTLING_S)
    messages, sent_bytes = cluster.network.writes, cluster.network.written_bytes
    began = cpu()
    cluster.run(seconds)
    used_s = cpu() - began
    messages, sent_bytes = cluster.network.writes - messages, cluster.network.written_bytes - sent_bytes
    servers = nodes + len(cluster.admins)
    # Each server to each other one; admin servers to nodes only, of which all are there.
    beats = (nodes * (servers - 1) + (servers - nodes) * nodes) * seconds / cluster.settings.heartbeat_interval_s
    return Cost(
        nodes=nodes,
        seconds=seconds,
        heartbeats_s=(servers - 1) / cluster.settings.heartbeat_interval_s,
        messages_s=messages / servers / seconds,
        bytes_s=sent_bytes / servers / seconds,
        cpu_us=used_s / beats * 1e6,
        core=used_s / servers / seconds,
    )
