"""The smallest cluster: one node, no replicas."""

from __future__ import annotations

from collections.abc import Callable

from securifile.local.cluster import LocalCluster
from tests.processes.actions import files, get, noise, put, sha256


def test_one_node_is_enough(cluster_of: Callable[..., LocalCluster]) -> None:
    """Upload, list, download, a new version, delete; and after `kill -9` what was acknowledged is there."""
    cluster = cluster_of(nodes=1, replicas=0)
    http = cluster.http("node1", "alice")
    first, second = noise(3_000_000, 1), noise(3_000_000, 2)
    made = put(http, "alice/file", first).must(201)
    said = made.json()
    assert (said["version"], said["size"], said["digest"], said["origin"], said["replicas"]) == (1, len(first), sha256(first), "node1", [])
    assert said["copies"] == {"wanted": 1, "durable": 1}
    assert [entry["name"] for entry in http.request("GET", files("alice/")).must(200).json()["entries"]] == ["file"]
    assert get(http, "alice/file").must(200).body == first
    put(http, "alice/file", second, If_Match='"not-this"').must(412)
    assert put(http, "alice/file", second, If_Match=made.headers["ETag"]).must(200).json()["version"] == 2
    cluster.nodes["node1"].kill()
    cluster.nodes["node1"].start()
    cluster.nodes["node1"].wait_ready()
    cluster.wait_running("node1", timeout_s=20)
    assert get(http, "alice/file").must(200).body == second
    http.request("DELETE", files("alice/file")).must(204)
    get(http, "alice/file").must(404)
    put(http, "alice/file", b"another").must(201)
