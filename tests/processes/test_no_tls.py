"""`--no-tls` on every server turns encryption off, loudly; a server with TLS and one without do not speak to each other."""

from __future__ import annotations

from collections.abc import Callable

from securifile.local.cluster import LocalCluster
from securifile.local.processes import eventually
from tests.processes.actions import get, noise, put


def test_everything_works_in_the_clear(cluster_of: Callable[..., LocalCluster]) -> None:
    """Without TLS files go up and down as ever; every log and every status output warns."""
    cluster = cluster_of(nodes=3, replicas=1, tls=False)
    assert cluster.plan.url("node1").startswith("http://")
    content = noise(1_000_000, "clear")
    put(cluster.http("node1", "alice"), "alice/file", content).must(201)
    for name in cluster.nodes:
        assert get(cluster.http(name, "alice"), "alice/file").must(200).body == content
    for server in cluster.servers.values():
        assert " IS OFF" in server.log.read_text(), f"{server.name} does not warn"
    warnings = cluster.operator().request("GET", "/api/v1/servers").must(200).json()["warnings"]
    assert any("TLS IS OFF" in warning for warning in warnings), warnings


def test_a_server_without_tls_is_refused(small_cluster: LocalCluster) -> None:
    """A node that is started without TLS finds no peer in a cluster with it; a log says why; the others go on."""
    cluster = small_cluster
    node = cluster.nodes["node3"]
    usual = list(node.command)
    node.stop()
    said_before = {name: server.log.stat().st_size for name, server in cluster.servers.items()}
    node.command = [*usual, "--no-tls"]
    node.start()
    cluster.wait_status("down", "node3", timeout_s=20)

    def somebody_says_so() -> bool:
        news = [server.log.read_bytes()[said_before[name] :].decode(errors="replace") for name, server in cluster.servers.items()]
        return any("TLS" in line and "node3" not in line.split("twistd")[0] for text in news for line in text.splitlines())

    eventually(somebody_says_so, 10, "a log speaks of TLS")
    put(cluster.http("node1", "alice"), "alice/meanwhile", b"meanwhile").must(201)
    assert cluster.statuses()["node3"] == "down"
    node.stop()
    node.command = usual
    node.start()
    node.wait_ready()
    cluster.wait_running("node3")
    assert get(cluster.http("node3", "alice"), "alice/meanwhile").must(200).body == b"meanwhile"
