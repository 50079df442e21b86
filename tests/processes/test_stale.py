"""A node that was stopped serves nothing old and nothing revoked when it wakes, from its first request on."""

from __future__ import annotations

import os
import threading

from securifile.local.cluster import LocalCluster
from tests.processes.actions import BROKEN, get, noise, put

ROUNDS = int(os.environ.get("SECURIFILE_STALE_ROUNDS", "4"))
SETTLED_S = 30.0


def test_a_stopped_node_wakes_up_to_the_present(cluster: LocalCluster) -> None:
    """Its file is modified and a reader's right taken meanwhile; asked at the very moment it wakes, it gives neither away."""
    cluster.operator().request("PATCH", "/api/v1/settings", json={"repair_after_s": 3600.0}).must(200)
    cluster.add_user("carol")
    for number in range(ROUNDS):
        path, secret = f"alice/stale-{number}", f"alice/secret-{number}"
        put(cluster.http("node1", "alice"), path, b"old").must(201)
        put(cluster.http("node1", "alice"), secret, noise(100, secret)).must(201)
        access = f"/api/v1/access/{secret}"
        cluster.http("node2", "alice").request("PUT", access, json={"user": "carol", "role": "reader"}).must(200)
        get(cluster.http("node1", "carol"), secret).must(200)

        cluster.nodes["node1"].pause()
        others = [cluster.http(name, "alice", timeout_s=20) for name in ("node2", "node3", "node4")]
        others[0].request("PUT", f"/api/v1/files/{path}?relay=1", b"new").must(200)
        others[1].request("DELETE", f"{access}?user=carol").must(204)

        # The questions wait in the stopped node's sockets: they are the first thing it sees.
        answers: list[tuple[str, int, bytes]] = []

        def ask(user: str, what: str, answers: list[tuple[str, int, bytes]] = answers) -> None:
            try:
                response = cluster.http("node1", user, timeout_s=20).request("GET", f"/api/v1/files/{what}?relay=1")
                answers.append((user, response.status, response.body))
            except BROKEN:
                answers.append((user, 0, b""))

        asking = [threading.Thread(target=ask, args=question) for question in (("alice", path), ("carol", secret)) for _ in range(3)]
        for thread in asking:
            thread.start()
        cluster.nodes["node1"].resume()
        for thread in asking:
            thread.join()
        for user, status, body in answers:
            assert user != "carol" or status in {0, 404, 503}, (number, status)
            assert user != "alice" or status in {0, 503} or body == b"new", (number, status, body)
        cluster.wait_status("running", "node1", timeout_s=SETTLED_S)
        assert get(cluster.http("node1", "alice"), path).must(200).body == b"new"
        assert get(cluster.http("node1", "carol"), secret).status == 404
