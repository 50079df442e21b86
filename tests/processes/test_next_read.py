"""How soon somebody else serves a file whose origin is gone: at once when its machine refuses connections, or else a little later."""

from __future__ import annotations

import os
import statistics
import threading
import time
from functools import partial

import pytest

from securifile.local.cluster import ADMIN, LocalCluster
from securifile.local.network import Network
from securifile.local.processes import eventually
from tests.processes.actions import BROKEN, files, noise, put
from tests.processes.conftest import PEOPLE

ROUNDS = int(os.environ.get("SECURIFILE_NEXT_READ_ROUNDS", "2"))
IMPATIENT_S = 0.2
"""After how long a client that was sent to the dead node asks another one."""
WITHIN_S = {"refuses": 1.0, "is silent": 3.0}
"""At once; three heartbeats; and what a loaded machine adds."""
SETTLED_S = 30.0


def next_read(cluster: LocalCluster, path: str, data: bytes, since: float, *, relay: bool, found: dict[str, float]) -> None:
    """Ask one after the other of the nodes that are left until one serves; how long it took since then."""
    others = [name for name in cluster.nodes if name != "node1"]
    for number in range(1000):
        http = cluster.http(others[number % len(others)], "alice", timeout_s=20 if relay else IMPATIENT_S)
        try:
            response = http.request("GET", files(path) + ("?relay=1" if relay else ""), follow=True)
        except BROKEN:
            continue
        if response.status == 200:
            assert response.body == data
            found["through a relay" if relay else "by redirects"] = time.monotonic() - since
            return
    raise AssertionError("nobody serves it")


def is_stored(cluster: LocalCluster, path: str, data: bytes) -> bool:
    """Whether node1 has taken it; a node that has just been started says 503 until it has heard how much room the others have."""
    return put(cluster.http("node1", "alice"), path, data).must(201, 503).status == 201


@pytest.mark.timeout(120 + 30 * ROUNDS)
@pytest.mark.parametrize("machine", ["refuses", "is silent"])
def test_somebody_else_serves_soon(network: Network, networked_cluster: LocalCluster, machine: str) -> None:
    """An origin is killed, its machine lives and refuses connections, or is as silent as without power; its file is asked for."""
    cluster = networked_cluster
    everybody = [ADMIN, PEOPLE, *(name for name in cluster.nodes if name != "node1")]
    times: dict[str, list[float]] = {}
    for number in range(ROUNDS):
        path = f"alice/next {machine} {number}".replace(" ", "-")
        data = noise(100_000, path)
        eventually(partial(is_stored, cluster, path, data), SETTLED_S, "node1 takes uploads")
        found: dict[str, float] = {}
        if machine == "is silent":
            network.cut(["node1"], everybody)
        since = time.monotonic()
        cluster.nodes["node1"].kill()
        asking = [
            threading.Thread(target=next_read, args=(cluster, path, data, since), kwargs={"relay": relay, "found": found})
            for relay in (True, False)
        ]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
        network.mend()
        cluster.nodes["node1"].start()
        cluster.wait_running("node1", timeout_s=SETTLED_S)
        assert len(found) == 2, "both were served"
        for how, seconds in found.items():
            times.setdefault(how, []).append(seconds)
    for how, seconds_each in times.items():
        print(
            f"\nits machine {machine}, {how}: {statistics.median(seconds_each):.2f} s, at most {max(seconds_each):.2f} s; {os.getloadavg()}"
        )
        assert max(seconds_each) < WITHIN_S[machine]
