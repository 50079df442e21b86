"""What a node costs that has nothing to do."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from securifile.local.cluster import LocalCluster
from securifile.local.processes import ServerProcess

SECONDS = float(os.environ.get("SECURIFILE_IDLE_S", "20"))
SETTLING_S = 8.0
"""What the start has set going, the first scrub and the first rounds of repair too, is over by then."""

SHARE_MAX = 0.03
"""Of a core. CPU time, so that others' load counts only by what it takes from the caches; the figure itself is in docs/reliability.md."""


def cpu_s(server: ServerProcess) -> float:
    """CPU seconds that its process and its fronts have used, their own and the kernel's on their behalf (proc(5): utime and stime)."""
    ticks = 0
    for pid in (server.pid, *server.fronts):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


@pytest.mark.timeout(300)
def test_an_idle_node_with_five_peers_costs_next_to_nothing(cluster_of: Callable[..., LocalCluster]) -> None:
    """Six nodes that nobody asks for anything: heartbeats to five others and the admin server, and that is all."""
    cluster = cluster_of(nodes=6, replicas=2)
    time.sleep(SETTLING_S)
    before = {name: cpu_s(server) for name, server in cluster.servers.items()}
    began = time.monotonic()
    time.sleep(SECONDS)
    elapsed_s = time.monotonic() - began
    shares = {name: (cpu_s(server) - before[name]) / elapsed_s for name, server in cluster.servers.items()}
    print("CPU of idle servers:", {name: f"{share:.2%}" for name, share in shares.items()})
    assert max(shares[name] for name in cluster.nodes) < SHARE_MAX, shares
