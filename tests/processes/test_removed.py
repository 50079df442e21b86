"""A node that was removed while it was away is told so when it comes back, and its certificate opens nothing."""

from __future__ import annotations

from securifile.local.cluster import LocalCluster
from securifile.local.processes import eventually
from tests.processes.actions import get, put

SETTLED_S = 30.0


def test_a_node_that_was_removed_while_it_was_away(small_cluster: LocalCluster) -> None:
    """Nobody tells it as long as it is away. Back, it serves nobody, says why, and does not ask again and again."""
    cluster = small_cluster
    put(cluster.http("node1", "alice"), "alice/a", b"here").must(201)
    removed = cluster.servers["node3"]
    removed.stop()
    cluster.operator().request("DELETE", "/api/v1/servers/node3?force=1").must(204)
    removed.start()
    removed.wait_ready()
    eventually(lambda: "was removed from the cluster, as admin" in removed.log.read_text(), SETTLED_S, "its log says so")
    refused = get(cluster.http("node3", "alice"), "alice/a")
    assert refused.status == 503 and "removed from the cluster" in refused.body.decode()
    assert cluster.http("node3").request("GET", "/readyz").status == 503
    assert removed.log.read_text().count("was removed from the cluster, as admin") == 1
    assert get(cluster.http("node1", "alice"), "alice/a").must(200).body == b"here"
