"""Somebody sets the wall clock of a server an hour forward or back, as everything in its process sees it: Python, OpenSSL, PostgreSQL."""

from __future__ import annotations

import os
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from shutil import which

import pytest

from securifile.local.cluster import ADMIN, LocalCluster
from securifile.local.processes import eventually, twistd
from tests.processes.actions import BROKEN, files
from tests.processes.conftest import running
from tests.processes.database import ask_catalogue

HOUR_S = 3600
SECONDS = float(os.environ.get("SECURIFILE_CLOCK_S", "1"))
"""How long people work at each time that the clock shows."""
pytestmark = pytest.mark.skipif(which("cc") is None, reason="no process can be shown another time: there is no C compiler here")


def library(folder: Path) -> Path:
    """What stands before a process' wall clock; in the cluster's folder, where PostgreSQL, too, gets there with the user it has."""
    made = folder / "wall_clock.so"
    if not made.exists():
        source = Path(__file__).with_name("wall_clock.c")
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", made, source, "-ldl"], check=True, capture_output=True, timeout=60)
    return made


def clock_of(data: Path) -> Path:
    """The file that says how wrong the clock of a server with this data folder is."""
    return data.with_name(data.name + ".clock")


class People(AbstractContextManager["People"]):
    """Readers and writers through all servers, following redirects with their tickets, from entering to leaving."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster
        self._enough = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(name, number)) for number, name in enumerate([*cluster.nodes, ADMIN])]
        self.answers: Counter[str] = Counter()
        self.refused: list[str] = []

    def __enter__(self) -> People:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *why: object) -> None:
        self._enough.set()
        for thread in self._threads:
            thread.join()

    def _work(self, server: str, number: int) -> None:
        # Each writes a file of his own, and reads those of all.
        http = self._cluster.http(server, "carol")
        count = 0
        while not self._enough.wait(0.02):
            count += 1
            name = f"carol/clock-{number if count % 4 == 0 else count % 4}"
            method, body = ("PUT", f"{count}".encode()) if count % 4 == 0 else ("GET", None)
            try:
                answer = http.request(method, files(name), body, follow=True)
            except BROKEN as error:
                self.refused.append(f"{method} {name} through {server}: {error!r}")
                continue
            self.answers[f"{method} {answer.status}"] += 1
            if answer.status not in {200, 201}:
                self.refused.append(f"{method} {name} through {server}: {answer.status} {answer.body.decode(errors='replace')}")


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[LocalCluster]:
    """Three nodes, one replica, and clocks that can be set."""

    def with_a_clock(plugin: str, *arguments: str) -> list[str]:
        data = Path(arguments[arguments.index("--data") + 1])
        clock = clock_of(data)
        if not clock.exists():
            clock.write_bytes(bytes(8))
        return ["env", f"LD_PRELOAD={library(data.parent)}", f"WALL_CLOCK_AHEAD={clock}", *twistd(plugin, *arguments)]

    with running(request, nodes=3, replicas=1, run=with_a_clock) as made:
        # Accounts begin to be valid when they are made: hers is a day old, so that an hour back is not before it.
        made.add_user("carol", valid_from=(datetime.now(UTC) - timedelta(days=1)).isoformat())
        for number in range(4):
            made.http("node1", "carol").request("PUT", files(f"carol/clock-{number}"), b"first", follow=True).must(201)
        yield made


def set_clock(cluster: LocalCluster, name: str, ahead_s: int) -> None:
    """Set the clock of a server: so far ahead of the machine's. In place, because the processes have the file mapped."""
    with clock_of(cluster.servers[name].data).open("r+b") as file:
        file.write(ahead_s.to_bytes(8, "little", signed=True))


def said(cluster: LocalCluster, name: str, words: str) -> int:
    """How often the log of a server has these words."""
    return cluster.servers[name].log.read_text(encoding="utf-8", errors="replace").count(words)


def changes_of_status(cluster: LocalCluster) -> list[tuple[object, ...]]:
    """What the audit trail has of servers that were held for something else."""
    return ask_catalogue(cluster, "SELECT peer, detail FROM audit WHERE event = 'status' ORDER BY at")


def test_on_a_node(cluster: LocalCluster) -> None:
    """Forward, right, back, right: no request fails, nobody changes status, nothing is said but a warning for each time it is wrong."""
    before = changes_of_status(cluster)
    with People(cluster) as people:
        for wrong, ahead_s in enumerate((HOUR_S, -HOUR_S), start=1):
            set_clock(cluster, "node2", ahead_s)
            eventually(lambda wrong=wrong: said(cluster, "node2", "s off the admin server's") == wrong, 10, "the node warns")
            threading.Event().wait(SECONDS)
            set_clock(cluster, "node2", 0)
            eventually(lambda wrong=wrong: said(cluster, "node2", "clock is right again") == wrong, 10, "the node says that it is right")
            threading.Event().wait(SECONDS)
    print(f"\nan hour forward and back on a node: {dict(people.answers)}")
    assert people.refused == []
    assert changes_of_status(cluster) == before
    assert set(cluster.statuses().values()) == {"running"}
    # Sessions, tickets and uploads of the time in between are what they would have been.
    assert said(cluster, "node2", "s off the admin server's") == 2
    assert said(cluster, "node2", "Traceback") == 0


def test_a_node_that_starts_with_a_wrong_clock(cluster: LocalCluster) -> None:
    """It is verified and running as with a right one, and takes the sessions that others made."""
    set_clock(cluster, "node2", -HOUR_S)
    cluster.nodes["node2"].restart()
    cluster.wait_running("node2", timeout_s=30)
    with People(cluster) as people:
        threading.Event().wait(SECONDS)
    set_clock(cluster, "node2", 0)
    assert people.refused == []


def test_on_the_admin_server(cluster: LocalCluster) -> None:
    """Its clock is the cluster's: the nodes follow it, nobody changes status, who is signed in stays so, and signing in works.

    What has an end by that clock ends by it. Nodes hear of the new time one after the other, within a heartbeat: a redirect between two of
    them may lead to a ticket that is over, which says that the request has to be sent again.
    """
    before = changes_of_status(cluster)
    with People(cluster) as people:
        for ahead_s in (HOUR_S, 0, -HOUR_S, 0):
            set_clock(cluster, ADMIN, ahead_s)
            threading.Event().wait(SECONDS)
            credentials = {"username": "carol", "password": cluster.plan.accounts["carol"]}
            signed_in = cluster.http("node1").request("POST", "/api/v1/sessions", json=credentials, follow=True).must(201).json()
            listed = cluster.http("node3").request("GET", "/api/v1/shared", headers={"Authorization": f"Bearer {signed_in['token']}"})
            listed.must(200)
    print(f"\nan hour forward and back on the admin server: {dict(people.answers)}")
    assert [one for one in people.refused if "ticket-invalid" not in one] == []
    assert len(people.refused) < sum(people.answers.values()) / 5
    assert changes_of_status(cluster) == before
    assert set(cluster.statuses().values()) == {"running"}
    for node in cluster.nodes:
        assert said(cluster, node, "Traceback") == 0
