"""A node hangs (SIGSTOP) instead of dying: its connections stay open, it answers nothing, and nobody waits for it for long."""

from __future__ import annotations

import time
from collections.abc import Callable

from securifile.local.asking import Http, Response
from securifile.local.cluster import LocalCluster
from tests.processes.actions import BROKEN, Attempt, files, gap, get, noise, put

GAP_MAX_S = 1.0
NOTICED_S = 1.0
"""Two heartbeat intervals: the next one goes out after at most one, and is overdue when the one after it is due."""
IMPATIENT_S = 0.2
"""After how long the client that follows redirects gives up."""


def attempt(ask: Callable[[], Response]) -> Attempt:
    begun = time.monotonic()
    try:
        response = ask()
    except BROKEN:
        response = None
    return Attempt(begun, time.monotonic(), response)


def test_reads_and_writes_go_on(cluster: LocalCluster) -> None:
    """With the origin hanging, reads through any other node have a gap below one second, writes one below five."""
    content = noise(100_000, "paused")
    put(cluster.http("node1", "alice"), "alice/file", content).must(201)
    others = [name for name in cluster.nodes if name != "node1"]
    clients = {name: cluster.http(name, "alice", timeout_s=10) for name in others}
    for client in clients.values():
        client.request("GET", files("alice/file?relay=1")).must(200)

    def read(client: Http) -> Response:
        return client.request("GET", files("alice/file?relay=1"))

    def write(client: Http) -> Response:
        return client.request("PUT", files("alice/new"), b"new", follow=True)

    cluster.nodes["node1"].pause()
    reads: dict[str, list[Attempt]] = {name: [] for name in others}
    writes: list[Attempt] = []
    redirected: list[Attempt] = []
    impatient = cluster.http(others[0], "alice", timeout_s=IMPATIENT_S)
    end = time.monotonic() + 6
    count = 0
    while time.monotonic() < end:
        count += 1
        for name in others:
            reads[name].append(attempt(lambda name=name: read(clients[name])))  # type: ignore[misc]
        if count % 10 == 1:
            name = others[count % len(others)]
            writes.append(attempt(lambda name=name: write(clients[name])))  # type: ignore[misc]
        # A client that follows redirects is sent to the hanging node until somebody notices; it gives up soon, and asks again.
        redirected.append(attempt(lambda: get(impatient, "alice/file")))
    slowest = {name: max(one.ended - one.begun for one in tries) for name, tries in reads.items()}
    assert {one.status for tries in reads.values() for one in tries} == {200}, [one.response for tries in reads.values() for one in tries]
    assert max(slowest.values()) < GAP_MAX_S, slowest
    assert gap(redirected) < NOTICED_S + IMPATIENT_S + 0.5, [(one.begun, one.ended, one.status) for one in redirected]
    assert gap(writes) < 5.0, [(one.begun, one.ended, one.status) for one in writes]
    assert writes[-1].status in {200, 201}, writes[-1].response

    # A new version of the very file whose origin hangs.
    begun = time.monotonic()
    put(clients[others[0]], "alice/file", b"second").must(200)
    assert time.monotonic() - begun < 5.0
    for client in clients.values():
        assert get(client, "alice/file").must(200).body == b"second"


def test_the_paused_node_is_silent_until_it_has_caught_up(cluster: LocalCluster) -> None:
    """Awake again, it serves no older version: first it says 503, then what is current."""
    cluster.nodes["node1"].resume()
    client = cluster.http("node1", "alice", timeout_s=10)
    end = time.monotonic() + 20
    answers: list[int] = []
    while time.monotonic() < end:
        one = attempt(lambda: get(client, "alice/file"))
        answers.append(one.status)
        assert one.status in {0, 200, 503}, one.response
        if one.response is not None and one.status == 200:
            assert one.response.body == b"second"
            break
    assert answers[-1] == 200
    cluster.wait_running("node1")
