"""Holders of a file die one after the other, by `kill -9`; people go on reading while one is left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import pytest

from securifile.local.cluster import LocalCluster
from securifile.local.processes import eventually
from tests.processes.actions import BROKEN, MIB, files, get, noise, put
from tests.processes.conftest import running

HEARTBEAT_S = 0.5
WELL_AGAIN_S = 3 * HEARTBEAT_S + 1.5
"""Three heartbeats, and what a loaded machine may need to start and hear them."""


@pytest.fixture(scope="module", params=[0, 2], ids=["one process", "fronts"])
def cluster(request: pytest.FixtureRequest) -> Iterator[LocalCluster]:
    """Five nodes, two replicas, TLS, each with as many processes for people beside its own."""
    with running(request, https_processes=request.param) as made:
        yield made


@pytest.fixture(scope="module")
def content() -> bytes:
    return noise(4 * MIB, "failover")


@pytest.fixture(scope="module")
def holders(cluster: LocalCluster, content: bytes) -> list[str]:
    """A file of alice's, and who holds it: the origin, then priority 1 and 2."""
    put(cluster.http("node1", "alice"), "alice/film.bin", content).must(201)
    return cluster.holders("alice/film.bin", "alice")


def kill_in_a_download_loop(cluster: LocalCluster, victim: str, heir: str, survivors: list[str], content: bytes) -> None:
    """Downloads through the survivors; after a few the victim is killed; soon every download comes from the heir."""
    begun = killed = None
    rounds_after = 0
    for count in range(1000):
        node = survivors[count % len(survivors)]
        if count == 3:
            cluster.nodes[victim].kill()
            killed = time.monotonic()
        begun = time.monotonic()
        try:
            response = get(cluster.http(node, "alice", timeout_s=5), "alice/film.bin")
        except BROKEN as error:
            answer, served_by = repr(error), None
        else:
            answer, served_by = str(response.status), cluster.server_at(response.url)
            assert response.status in {200, 503}, response.body
            if response.status == 200:
                assert response.body == content
        if killed is None:
            assert (answer, served_by) == ("200", victim)
        elif begun > killed + WELL_AGAIN_S:
            assert answer == "200", f"through {node}, {begun - killed:.1f} s after {victim} was killed"
            assert served_by == heir
            rounds_after += 1
            if rounds_after == 2 * len(survivors):
                return


def test_reads_move_from_holder_to_holder(cluster: LocalCluster, content: bytes, holders: list[str]) -> None:
    """The origin serves; killed, priority 1; killed, priority 2; killed, a 503 that names those that were tried."""
    assert len(holders) == 3
    assert holders[0] == "node1"
    survivors = [name for name in cluster.nodes if name not in holders]
    kill_in_a_download_loop(cluster, holders[0], holders[1], survivors, content)
    kill_in_a_download_loop(cluster, holders[1], holders[2], survivors, content)
    cluster.nodes[holders[2]].kill()
    for node in survivors:
        eventually(partial(gives_up, cluster, node), WELL_AGAIN_S, f"{node} sends nobody to the dead")
        response = get(cluster.http(node, "alice"), "alice/film.bin").must(503)
        assert response.code == "no-holder-available"
        assert "Retry-After" in response.headers
        assert [holder for holder in holders if holder not in response.body.decode()] == [], response.body


def gives_up(cluster: LocalCluster, node: str) -> bool:
    """Whether that node knows that there is nobody to send people to."""
    return cluster.http(node, "alice").request("GET", files("alice/film.bin")).status != 307


def test_all_return(cluster: LocalCluster, content: bytes, holders: list[str]) -> None:
    """Started again, they are verified and running, and the file comes from its origin again."""
    for name in holders:
        cluster.nodes[name].start()
    cluster.wait_running(*holders, timeout_s=30)
    for node in cluster.nodes:
        response = get(cluster.http(node, "alice"), "alice/film.bin").must(200)
        assert response.body == content
