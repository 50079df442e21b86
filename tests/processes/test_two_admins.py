"""Two admin servers on one PostgreSQL: one dies by `kill -9`, and the other one goes on with everything."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import pytest

from securifile.local.asking import Http
from securifile.local.cluster import LocalCluster
from securifile.local.ports import HOST, anywhere, first_free
from securifile.local.processes import ServerProcess, eventually, read_json, twistd
from tests.processes.actions import BROKEN, Attempt, gap, get, put
from tests.processes.conftest import running
from tests.processes.database import Database

WRITES_WITHIN_S = 6.0
"""A write under way asks the other admin server when it has lost the answer of the first."""
TAKEN_OVER_WITHIN_S = 20.0
"""The lease of a duty, three heartbeats, and a loaded machine."""


@attrs.frozen(kw_only=True)
class Pair:
    """The cluster with its two admin servers."""

    cluster: LocalCluster
    admins: dict[str, ServerProcess]

    def operator(self, admin: str) -> Http:
        """An admin server as its local operator speaks to it."""
        said = read_json(self.admins[admin].data / "operator.json")
        return Http(said["url"], self.cluster.ca_file, f"Bearer {said['token']}")

    def servers(self, admin: str) -> dict[str, str]:
        """Status by name, as an admin server shows them."""
        listed = self.operator(admin).request("GET", "/api/v1/servers").must(200).json()["servers"]
        return {server["name"]: server["status"] for server in listed}

    def revision(self, admin: str) -> int:
        """The last change that an admin server has heard of."""
        text = self.operator(admin).request("GET", "/metrics").must(200).body.decode()
        return next(int(float(line.split()[1])) for line in text.splitlines() if line.startswith("securifile_revision "))


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    folder = Path(tempfile.mkdtemp(prefix="securifile-database-"))
    folder.chmod(0o755)
    with Database(folder) as database, running(request, nodes=3, replicas=1, admin_options=["--dsn", database.dsn]) as cluster:
        data = cluster.directory / "admin2"
        data.mkdir(mode=0o700)
        # As the operator does: the same authority, and otherwise a folder of its own.
        shutil.copytree(cluster.admin.data / "ca", data / "ca")
        ports = first_free(anywhere("admin", 2), {port for uses in cluster.plan.servers.values() for port in uses.values()})
        arguments = ["--data", str(data), "--name", "admin2", "--listen", HOST, "--public", HOST, "--dsn", database.dsn]
        for use, port in ports.items():
            arguments += [f"--{use}-port", str(port)]
        second = ServerProcess("admin2", twistd("securifile-admin", *arguments), data, cluster.directory / "logs" / "admin2.log")
        second.start()
        try:
            second.wait_ready()
            yield Pair(cluster=cluster, admins={"admin1": cluster.admin, "admin2": second})
        finally:
            second.stop(20)
    shutil.rmtree(folder)


def test_both_show_the_same(pair: Pair) -> None:
    """Each lists both and all nodes; what one commits the other hears of at once, not with the next look at the database."""
    assert pair.servers("admin1") == dict.fromkeys(["admin1", "admin2", "node1", "node2", "node3"], "running")
    eventually(lambda: pair.servers("admin2") == pair.servers("admin1"), 10, "both show the same servers")
    # A server that has just started changes nothing until most nodes have told it how far they are.
    early = {"username": "early", "email": "early@example.org", "password": "correct horse"}
    eventually(
        lambda: pair.operator("admin2").request("POST", "/api/v1/users", json=early).status == 201, 10, "the second one takes changes"
    )
    delays = []
    for number in range(6):
        by, other = ("admin1", "admin2") if number % 2 else ("admin2", "admin1")
        account = {"username": f"person{number}", "email": f"person{number}@example.org", "password": "correct horse"}
        pair.operator(by).request("POST", "/api/v1/users", json=account).must(201)
        committed, began = pair.revision(by), time.monotonic()
        eventually(lambda committed=committed, other=other: pair.revision(other) >= committed, 5, "the other has heard of it")
        delays.append(time.monotonic() - began)
    # The look at the database comes each second: without notifications half of them would be later than this.
    assert sorted(delays)[len(delays) // 2] < 0.4, delays


class Load(threading.Thread):
    """Somebody who writes new files, or reads one, as fast as it goes, through all nodes in turn."""

    def __init__(self, pair: Pair, *, name: str, writes: bool) -> None:
        super().__init__(name=name)
        self.attempts: list[Attempt] = []
        self.written: list[str] = []
        self.over = threading.Event()
        self._writes = writes
        self._https = [pair.cluster.http(node, "alice", timeout_s=20) for node in pair.cluster.nodes]

    def run(self) -> None:
        while not self.over.wait(0.02):
            count = len(self.attempts)
            path = f"alice/{self.name}-{count}" if self._writes else "alice/kept"
            attempt = Attempt(time.monotonic(), 0.0, None)
            http = self._https[count % len(self._https)]
            with suppress(*BROKEN):
                attempt.response = put(http, path, path.encode()) if self._writes else get(http, path)
            attempt.ended = time.monotonic()
            self.attempts.append(attempt)
            if self._writes and attempt.status in {200, 201}:
                self.written.append(path)


def statuses(attempts: list[Attempt]) -> dict[int, int]:
    """How many answers of each status."""
    found: dict[int, int] = {}
    for attempt in attempts:
        found[attempt.status] = found.get(attempt.status, 0) + 1
    return found


def test_one_is_killed_under_load(pair: Pair, record_property: Any) -> None:
    """Reads never stop; writes go on within seconds by the other; what was answered 2xx is there."""
    put(pair.cluster.http("node1", "alice"), "alice/kept", b"kept").must(201)
    readers = [Load(pair, name="reader", writes=False)]
    writers = [Load(pair, name=f"writer{number}", writes=True) for number in range(2)]
    for one in readers + writers:
        one.start()
    try:
        eventually(lambda: all(len(one.written) > 10 for one in writers), 30, "writes are under way")
        pair.admins["admin1"].kill()
        killed = time.monotonic()
        eventually(lambda: all(one.attempts[-1].begun > killed + 8 for one in readers + writers), 60, "eight seconds have passed")
    finally:
        for one in readers + writers:
            one.over.set()
        for one in readers + writers:
            one.join()
    for one in readers:
        assert set(statuses(one.attempts)) == {200}, statuses(one.attempts)
    gaps = []
    for one in writers:
        # Certainly not done, or unknown because the answer was lost: never anything else.
        assert set(statuses(one.attempts)) <= {201, 503, 500}, statuses(one.attempts)
        gaps.append(gap(one.attempts))
        for path in one.written:
            assert get(pair.cluster.http("node2", "alice"), path).must(200).body == path.encode()
    print(f"gap of writes {gaps}, of reads {gap(readers[0].attempts):.2f}; writes {[statuses(one.attempts) for one in writers]}")
    assert max(gaps) < WRITES_WITHIN_S


def test_the_other_takes_the_duties_over(pair: Pair) -> None:
    """With the first dead, the second judges a node that dies, and admits it when it is back."""
    pair.cluster.nodes["node3"].kill()
    eventually(lambda: pair.servers("admin2")["node3"] == "down", TAKEN_OVER_WITHIN_S, "node3 is judged")
    pair.cluster.nodes["node3"].start()
    eventually(lambda: pair.servers("admin2")["node3"] == "running", TAKEN_OVER_WITHIN_S, "node3 is admitted")


def test_it_returns(pair: Pair) -> None:
    """Started again, it shows what the other shows, and people and nodes may use either."""
    pair.admins["admin1"].start()
    pair.admins["admin1"].wait_ready()
    # The second one sees it by what it writes down of itself, some seconds later.
    eventually(lambda: pair.servers("admin1") == pair.servers("admin2"), 20, "both show the same servers")
    # The operator's key is drawn anew at each start; sessions are in the database.
    token = pair.cluster.token("alice")
    for admin in pair.admins.values():
        http = Http(read_json(admin.data / "operator.json")["url"], pair.cluster.ca_file, f"Bearer {token}")
        # A server that has just started sends nobody to a node that it has not heard yet.
        eventually(lambda http=http: get(http, "alice/kept").status == 200, 10, "files are there by either")
        assert get(http, "alice/kept").body == b"kept"
    put(pair.cluster.http("node3", "alice"), "alice/after", b"after").must(201)
    eventually(lambda: pair.revision("admin1") == pair.revision("admin2"), 10, "both have heard of everything")
    # A planned stop leaves the duty at once.
    pair.admins["admin2"].stop(20)
    pair.cluster.nodes["node1"].kill()
    eventually(lambda: pair.servers("admin1")["node1"] == "down", TAKEN_OVER_WITHIN_S, "node1 is judged")
    pair.admins["admin2"].start()
    pair.admins["admin2"].wait_ready()
