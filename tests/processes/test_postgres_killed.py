"""Embedded PostgreSQL dies by `kill -9`: writes are refused, reads go on, and then all is well again."""

from __future__ import annotations

import threading
import time

from securifile.local.cluster import ClusterError, LocalCluster
from securifile.local.processes import eventually
from tests.processes.actions import get, put

OUTAGE_S = 4.0


def test_writes_are_refused_and_reads_go_on(small_cluster: LocalCluster) -> None:
    """Without PostgreSQL a write says 503 with `Retry-After` and is not done; reads are served; it is started again by itself."""
    cluster = small_cluster
    put(cluster.http("node1", "alice"), "alice/kept", b"kept").must(201)
    over = threading.Event()

    def hold_down() -> None:
        """Kill it again as often as it is started again."""
        while not over.is_set():
            try:
                cluster.kill_postgres()
            except (ClusterError, ProcessLookupError):
                over.wait(0.005)

    killer = threading.Thread(target=hold_down)
    killer.start()
    try:
        eventually(lambda: cluster.postgres_pid() is None, 10, "PostgreSQL is down")
        begun, refused, done = time.monotonic(), [], []
        count = 0
        while time.monotonic() < begun + OUTAGE_S:
            count += 1
            node = f"node{count % 3 + 1}"
            assert get(cluster.http(node, "alice"), "alice/kept").must(200).body == b"kept"
            response = put(cluster.http(node, "alice"), f"alice/new-{count}", b"new").must(201, 503)
            if response.status == 503:
                assert response.headers["Retry-After"] is not None
                refused.append(count)
            else:
                done.append(count)
    finally:
        over.set()
        killer.join()
    assert refused

    def write_again() -> bool:
        return put(cluster.http("node2", "alice"), "alice/after", b"after").status in {200, 201}

    eventually(write_again, 30, "writes are taken again")
    for count in refused:
        get(cluster.http("node3", "alice"), f"alice/new-{count}").must(404)
    for count in done:
        get(cluster.http("node3", "alice"), f"alice/new-{count}").must(200)
    cluster.wait_running(*cluster.nodes)
