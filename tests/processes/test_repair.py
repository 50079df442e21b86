"""Copies that are lost are made anew elsewhere, surplus ones go, and a drained node can be taken away."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from securifile.local.cluster import LocalCluster
from securifile.local.processes import eventually
from tests.processes.actions import get, noise, put

FILES = 40
SETTLED_S = 30.0


def set_settings(cluster: LocalCluster, **values: object) -> None:
    """Change settings of the cluster."""
    cluster.operator().request("PATCH", "/api/v1/settings", json=values).must(200)


@pytest.fixture(scope="module")
def names(cluster: LocalCluster) -> Iterator[list[str]]:
    """Some files, in a cluster that does not wait long before it repairs."""
    set_settings(cluster, repair_after_s=1.0, repair_after_offline_s=1.0, keep_superseded_s=1.0)
    found = [f"alice/{number:02}" for number in range(FILES)]
    for number, name in enumerate(found):
        put(cluster.http(f"node{number % 5 + 1}", "alice"), name, noise(5000, name)).must(201)
    yield found


def holders(cluster: LocalCluster, name: str) -> list[str]:
    """Who has a durable copy, the origin first."""
    details = cluster.details(name, "alice")
    return [details["origin"], *(replica["server"] for replica in details["replicas"] if replica["durable"])]


def all_are_on(cluster: LocalCluster, names: list[str], allowed: set[str], copies: int) -> bool:
    """Whether each file has this many copies, all of them on these nodes and none pending."""
    for name in names:
        found = holders(cluster, name)
        replicas = cluster.details(name, "alice")["replicas"]
        if len(found) != copies or not set(found) <= allowed or len(replicas) != copies - 1:
            return False
    return True


def test_the_files_of_a_lost_node_are_copied_elsewhere(cluster: LocalCluster, names: list[str]) -> None:
    """A node stays down: every file has three copies on the others again, and where it was the origin another one is."""
    cluster.nodes["node1"].kill()
    cluster.wait_status("down", "node1")
    others = {"node2", "node3", "node4", "node5"}
    eventually(lambda: all_are_on(cluster, names, others, 3), SETTLED_S, "three copies of each file on the other nodes")
    for name in names:
        assert get(cluster.http("node3", "alice"), name).must(200).body == noise(5000, name)


def test_a_node_that_returns_late_is_welcome_and_its_old_copies_go(cluster: LocalCluster, names: list[str]) -> None:
    """It is verified, running again, and drops what is not wanted there any more."""
    cluster.nodes["node1"].start()
    cluster.wait_status("running", "node1", timeout_s=SETTLED_S)
    assert all_are_on(cluster, names, {"node2", "node3", "node4", "node5"}, 3)


def test_changing_r_moves_towards_the_new_r(cluster: LocalCluster, names: list[str]) -> None:
    """Fewer replicas: the surplus goes. More: they are made."""
    everywhere = set(cluster.nodes)
    set_settings(cluster, replicas=1)
    eventually(lambda: all_are_on(cluster, names, everywhere, 2), SETTLED_S, "two copies of each file")
    set_settings(cluster, replicas=3)
    eventually(lambda: all_are_on(cluster, names, everywhere, 4), SETTLED_S, "four copies of each file")
    set_settings(cluster, replicas=2)
    eventually(lambda: all_are_on(cluster, names, everywhere, 3), SETTLED_S, "three copies of each file")


def test_a_drained_node_can_be_removed(cluster: LocalCluster, names: list[str]) -> None:
    """Draining moves its files elsewhere, while it goes on serving; then removing it loses nothing."""
    held = Counter(holder for name in names for holder in holders(cluster, name))
    victim = held.most_common(1)[0][0]
    operator = cluster.operator()
    looked = operator.request("POST", f"/api/v1/servers/{victim}/drain?dry_run=1", body=b"").must(200).json()
    assert (looked["copies"], looked["dry_run"]) == (held[victim], True)
    operator.request("POST", f"/api/v1/servers/{victim}/drain", body=b"").must(200)
    others = set(cluster.nodes) - {victim}
    eventually(lambda: all_are_on(cluster, names, others, 3), SETTLED_S, f"nothing is left on {victim}")
    operator.request("DELETE", f"/api/v1/servers/{victim}").must(204)
    survivor = sorted(others)[0]
    for name in names:
        assert get(cluster.http(survivor, "alice"), name).must(200).body == noise(5000, name)
