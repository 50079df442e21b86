"""A node that was stopped, or cut off from servers but not from people, serves nothing old and nothing revoked."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator

import attrs
import pytest

from securifile.local.cluster import ADMIN, LocalCluster
from securifile.local.network import Network
from securifile.local.processes import eventually
from tests.processes.actions import BROKEN, get, noise, put

ROUNDS = int(os.environ.get("SECURIFILE_STALE_ROUNDS", "3"))
SETTLED_S = 30.0
NODE = "node1"
PAUSE_S = 0.02
"""Between two questions of one who asks all the time."""


@attrs.define
class Asking:
    """People who ask the node all the time, and what may not be answered to questions that began after it was answered to others."""

    cluster: LocalCluster
    path: str
    """Alice's, modified meanwhile."""
    secret: str
    """Carol's to read, until she may not any more."""
    over: threading.Event = attrs.Factory(threading.Event)
    modified: threading.Event = attrs.Factory(threading.Event)
    """The new version was answered."""
    revoked: threading.Event = attrs.Factory(threading.Event)
    """That the right was taken was answered."""
    answers: Counter[str] = attrs.Factory(Counter)
    wrong: list[str] = attrs.Factory(list)

    def once(self, user: str) -> None:
        """Ask, and judge the answer."""
        path, too_late = (self.path, self.modified.is_set()) if user == "alice" else (self.secret, self.revoked.is_set())
        try:
            response = self.cluster.http(NODE, user, timeout_s=20).request("GET", f"/api/v1/files/{path}?relay=1")
        except BROKEN as error:
            self.answers[type(error).__name__] += 1
            return
        self.answers[f"{user} {response.status}{' afterwards' if too_late else ''}"] += 1
        old = response.status == 200 and (user == "carol" or response.body != b"new")
        if (too_late and old) or response.status not in {200, 404, 503}:
            self.wrong.append(f"{user} asked for {path}: {response.status} {response.body[:200]!r}")

    def until_over(self, user: str) -> None:
        """Ask again and again."""
        while not self.over.wait(PAUSE_S):
            self.once(user)


def rounds(cluster: LocalCluster, what: str) -> Iterator[Asking]:
    """A file and a secret for each round, whose origin is the node."""
    # Down again and again, and never for long: nothing is copied elsewhere.
    cluster.operator().request("PATCH", "/api/v1/settings", json={"repair_after_s": 3600.0}).must(200)
    if "carol" not in cluster.plan.accounts:
        cluster.add_user("carol")
    for number in range(ROUNDS):
        asking = Asking(cluster, f"alice/{what}-{number}", f"alice/{what}-secret-{number}")
        put(cluster.http(NODE, "alice"), asking.path, b"old").must(201)
        put(cluster.http(NODE, "alice"), asking.secret, noise(100, asking.secret)).must(201)
        access = f"/api/v1/access/{asking.secret}"
        cluster.http("node2", "alice").request("PUT", access, json={"user": "carol", "role": "reader"}).must(200)
        get(cluster.http(NODE, "carol"), asking.secret).must(200)
        yield asking
        assert asking.wrong == [], f"round {number}"
        cluster.wait_status("running", NODE, timeout_s=SETTLED_S)

        def serves_it(path: str = asking.path) -> bool:
            response = get(cluster.http(NODE, "alice"), path).must(200, 503)
            assert response.status == 503 or response.body == b"new"
            return response.status == 200

        eventually(serves_it, SETTLED_S, "the new version is served")
        get(cluster.http(NODE, "carol"), asking.secret).must(404, 503)


def change(asking: Asking) -> None:
    """Through other nodes: the file is modified, and the right taken."""
    others = [asking.cluster.http(name, "alice", timeout_s=20) for name in ("node2", "node3")]
    others[0].request("PUT", f"/api/v1/files/{asking.path}?relay=1", b"new").must(200)
    asking.modified.set()
    others[1].request("DELETE", f"/api/v1/access/{asking.secret}?user=carol").must(204)
    asking.revoked.set()


def started(questions: list[threading.Thread]) -> list[threading.Thread]:
    for thread in questions:
        thread.start()
    return questions


@pytest.mark.timeout(120 + 20 * ROUNDS)
def test_a_stopped_node_wakes_up_to_the_present(cuttable_cluster: LocalCluster) -> None:
    """Asked at the very moment it wakes, it gives neither the old bytes nor what was taken away."""
    answers: Counter[str] = Counter()
    for asking in rounds(cuttable_cluster, "stopped"):
        cuttable_cluster.nodes[NODE].pause()
        change(asking)
        # The questions wait in the stopped node's sockets: they are the first thing it sees.
        waiting = started([threading.Thread(target=asking.once, args=(user,)) for user in ("alice", "carol") for _ in range(3)])
        cuttable_cluster.nodes[NODE].resume()
        for thread in waiting:
            thread.join()
        answers += asking.answers
    print(f"\n{ROUNDS} rounds: {dict(answers)}")


@pytest.mark.timeout(120 + 20 * ROUNDS)
def test_a_node_that_only_people_reach_lives_in_the_present(network: Network, networked_cluster: LocalCluster) -> None:
    """Asked all the time while it is cut off, and while it comes back, it gives nothing old and nothing that was taken away by then."""
    answers: Counter[str] = Counter()
    servers = [ADMIN, *(name for name in networked_cluster.nodes if name != NODE)]
    for asking in rounds(networked_cluster, "cut-off"):
        asked = started([threading.Thread(target=asking.until_over, args=(user,)) for user in ("alice", "carol")])
        try:
            network.cut([NODE], servers)
            change(asking)
            for user in ("alice", "carol"):
                asking.once(user)
            network.mend()
            networked_cluster.wait_running(NODE, timeout_s=SETTLED_S)
        finally:
            network.mend()
            asking.over.set()
            for thread in asked:
                thread.join()
        answers += asking.answers
    assert answers["alice 503 afterwards"] >= ROUNDS and answers["alice 200 afterwards"] > 0, answers
    print(f"\n{ROUNDS} rounds: {dict(answers)}")
