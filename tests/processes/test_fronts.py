"""Nodes with several processes on their HTTPS port: what holds for a node holds for all of them together."""

from __future__ import annotations

import http.client
import json
import os
import re
import resource
import signal
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from securifile.local.asking import BodyCutShort, Http
from securifile.local.cluster import LocalCluster
from securifile.local.processes import command_line, eventually
from securifile.node.fronts.hanging import HANGS_S, LOOK_S, LOOKS
from securifile.node.fronts.supervisor import FULL_S
from tests.processes.actions import BROKEN, MIB, files, get, noise, put

NODE = "node1"
FRONTS = 2
GIVEN_UP_S = LOOKS * LOOK_S + 5.0
"""By then who waits for a node process that hangs is let go, on a machine that has other things to do as well."""
FRESH_S = 1.25
"""How long a standing lasts when nothing more is heard: 2.5 heartbeat intervals."""


@pytest.fixture(scope="module")
def fronted(cluster_of: Callable[..., LocalCluster]) -> LocalCluster:
    """Three nodes, one replica, two processes for people on each."""
    made = cluster_of(nodes=3, replicas=1, https_processes=FRONTS)
    made.add_user("watcher", administrator=True)
    return made


@pytest.fixture(autouse=True)
def all_there(fronted: LocalCluster) -> None:
    """Every front takes connections."""
    fronted.wait_running(*fronted.nodes)
    for name in fronted.nodes:
        http = fronted.http(name)
        eventually(lambda http=http: there(http) == FRONTS, 20, f"the fronts of {name} are there")  # type: ignore[misc]


def there(http: Http) -> int:
    """How many processes for people a node has that take connections."""
    processes: int = http.request("GET", "/readyz").must(200).json()["https_processes"]
    return processes


def answers_of(cluster: LocalCluster) -> list[float]:
    """How many requests each front has answered by itself."""
    text = cluster.http(NODE, "watcher").request("GET", "/metrics").must(200).body.decode()
    return [float(value) for value in re.findall(r"^securifile_https_answered\{.*\} (\S+)$", text, re.MULTILINE)]


def count(cluster: LocalCluster, key: str, name: str = NODE) -> float:
    """A figure of a node, of all its fronts together."""
    text = cluster.http(name, "watcher").request("GET", "/metrics").must(200).body.decode()
    return sum(float(value) for value in re.findall(rf"^securifile_{key}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE))


class Kept:
    """A connection that is used again and again."""

    def __init__(self, cluster: LocalCluster, name: str, user: str) -> None:
        where = urlsplit(cluster.plan.url(name))
        assert where.hostname is not None
        self.connection: http.client.HTTPConnection
        if cluster.ca_file is None:
            self.connection = http.client.HTTPConnection(where.hostname, where.port, timeout=5)
        else:
            trust = ssl.create_default_context(cafile=cluster.ca_file)
            self.connection = http.client.HTTPSConnection(where.hostname, where.port, timeout=5, context=trust)
        self.headers = {"Authorization": f"Bearer {cluster.token(user)}"}

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        self.connection.request(method, path, body, self.headers)
        answer = self.connection.getresponse()
        return answer.status, answer.read()

    def get(self, path: str) -> tuple[int, bytes]:
        return self.ask("GET", files(path))


Connect = Callable[[str, str], Kept]
"""(node, person): a connection for the test that asks."""


@pytest.fixture
def connect(fronted: LocalCluster) -> Iterator[Connect]:
    """Makes connections, and closes them after the test."""
    made: list[Kept] = []

    def make(name: str, user: str) -> Kept:
        made.append(Kept(fronted, name, user))
        return made[-1]

    yield make
    for one in made:
        one.connection.close()


@pytest.fixture
def everywhere(connect: Connect) -> list[Kept]:
    """Connections of alice's to every front of a node: they are given out evenly."""
    kept = [connect(NODE, "alice") for _ in range(2 * FRONTS)]
    for one in kept:
        one.get("alice/nothing")
    return kept


def test_what_was_committed_is_read_at_once_through_every_front(fronted: LocalCluster, everywhere: list[Kept], connect: Connect) -> None:
    """After a write was answered, no front gives the version before, and after a right was taken none gives the file."""
    writer = connect(NODE, "alice")
    readers = [connect(NODE, "bob") for _ in range(2 * FRONTS)]
    writer.ask("PUT", files("alice/current"), b"0")
    before = count(fronted, "https_answered")
    for number in range(1, 25):
        content = str(number).encode()
        assert writer.ask("PUT", files("alice/current"), content)[0] == 200
        assert [one.get("alice/current") for one in everywhere] == [(200, content)] * len(everywhere)
        share = json.dumps({"user": "bob", "role": "reader"}).encode()
        assert writer.ask("PUT", "/api/v1/access/alice/current", share)[0] == 200
        assert [one.get("alice/current") for one in readers] == [(200, content)] * len(readers)
        assert writer.ask("DELETE", "/api/v1/access/alice/current?user=bob")[0] == 204
        assert [one.get("alice/current")[0] for one in readers] == [404] * len(readers)
    assert count(fronted, "https_answered") - before > 24 * len(everywhere), "the fronts passed most of it on"


def test_one_connection_may_ask_for_anything(fronted: LocalCluster, everywhere: list[Kept], connect: Connect) -> None:
    """What a front passes on and what it answers may alternate on a connection, refusals and redirects among it."""
    for one in everywhere:
        assert one.ask("PUT", files("alice/any"), b"any")[0] in {200, 201}
        assert one.get("alice/any") == (200, b"any")
        assert one.ask("GET", files("alice/"))[0] == 200
        assert one.get("alice/missing")[0] == 404
        assert one.ask("HEAD", files("alice/any")) == (200, b"")
        assert one.ask("GET", files("alice/any?relay=1")) == (200, b"any")
        assert json.loads(one.ask("GET", "/readyz")[1])["ready"]
    holders = fronted.holders("alice/any", "alice")
    other = next(name for name in fronted.nodes if name not in holders)
    assert connect(other, "alice").get("alice/any")[0] == 307


def test_who_asked_is_in_the_audit_trail(fronted: LocalCluster) -> None:
    """A file that a front gave is recorded as given, with the client's address, once; and so is what it passed on."""
    path = "alice/noted"
    http = fronted.http(NODE, "alice")
    put(http, path, b"noted").must(201)
    answered = count(fronted, "https_answered")
    for _ in range(5):
        http.request("GET", files(path)).must(200)
    assert count(fronted, "https_answered") == answered + 5

    def lines() -> list[bytes]:
        trail = b"".join(one.read_bytes() for one in Path(fronted.admin.data, "audit").glob("*.log")).splitlines()
        return [line for line in trail if b"alice/noted" in line and b'"127.0.0.1"' in line]

    eventually(lambda: len(lines()) >= 6, 10, "the accesses are recorded")
    assert len(lines()) == 6


def test_a_front_that_is_killed_takes_only_its_own_connections_along(fronted: LocalCluster) -> None:
    """In mid-download: the others get all of their file, and soon there is a new front in its place."""
    size = 48 * MIB
    fronted.http(NODE, "alice", timeout_s=60).request("PUT", files("alice/long"), noise(MIB) * 48).must(201)
    http = fronted.http(NODE, "alice")
    downloads = [http.open("GET", files("alice/long")) for _ in range(2 * FRONTS)]
    received = [len(one.response().read(MIB)) for one in downloads]
    killed = fronted.nodes[NODE].fronts[0]
    os.kill(killed, signal.SIGKILL)
    whole = 0
    for number, one in enumerate(downloads):
        try:
            for data in one.chunks():
                received[number] += len(data)
            whole += received[number] == size
        except (BodyCutShort, *BROKEN):
            pass
        one.close()
    assert whole == FRONTS, received
    eventually(lambda: count(fronted, "https_processes") == FRONTS, 10, "there is a new front")
    assert killed not in fronted.nodes[NODE].fronts
    assert get(http, "alice/long").must(200).body[:MIB] == noise(MIB)


def test_fronts_end_with_their_node(fronted: LocalCluster) -> None:
    """When a node process is killed nobody serves in its name, its port is free, and it can be started again at once."""
    fronts = fronted.nodes[NODE].fronts
    assert len(fronts) == FRONTS
    os.kill(fronts[0], signal.SIGSTOP)
    fronted.nodes[NODE].kill()
    eventually(lambda: not any(command_line(pid) for pid in fronts), 2, "the fronts have ended")
    fronted.nodes[NODE].start()
    fronted.nodes[NODE].wait_ready()
    fronted.wait_running(NODE)


def test_fronts_of_a_node_that_hangs_fall_silent(fronted: LocalCluster, everywhere: list[Kept]) -> None:
    """With the node process stopped, nobody is served any more by the time when its standing has run out, and no transfer goes on."""
    size = 256 * MIB
    fronted.http(NODE, "alice", timeout_s=60).request("PUT", files("alice/huge"), noise(MIB) * 256).must(201)
    put(fronted.http(NODE, "alice"), "alice/small", b"small").must(201)
    kept = everywhere[0]
    assert kept.get("alice/small") == (200, b"small")
    with fronted.http(NODE, "alice").open("GET", files("alice/huge")) as download:
        received = len(download.response().read(MIB))
        fronted.nodes[NODE].pause()
        stopped = last = time.monotonic()
        try:
            kept.connection.timeout = 2
            while time.monotonic() < stopped + 4 * FRESH_S:
                begun = time.monotonic()
                try:
                    assert kept.get("alice/small") == (200, b"small")
                except BROKEN:
                    break
                last = begun
            assert last - stopped <= FRESH_S, "it serves on"
            with pytest.raises((BodyCutShort, *BROKEN)):
                for data in download.chunks():
                    received += len(data)
        finally:
            fronted.nodes[NODE].resume()
    assert received < size


def test_nobody_waits_for_a_node_process_that_hangs(fronted: LocalCluster, everywhere: list[Kept]) -> None:
    """Its fronts refuse at once what only it could answer, and close what it has been given, long before a client would give up."""
    waiting, reading, writing, probing = everywhere
    for one in everywhere:
        one.connection.sock.settimeout(60)
    fronted.nodes[NODE].pause()
    stopped = time.monotonic()
    try:
        waiting.connection.request("PUT", files("alice/waiting"), b"waiting", waiting.headers)
        time_is_up = stopped + HANGS_S + 0.2
        eventually(lambda: time.monotonic() > time_is_up, 10, "the fronts know it")
        begun = time.monotonic()
        answers = [
            reading.ask("GET", files("alice/small")),
            writing.ask("PUT", files("alice/refused"), noise(MIB)),
            probing.ask("GET", "/readyz"),
        ]
        assert time.monotonic() - begun < 1.0
        for status, body in answers:
            refused = json.loads(body)
            assert (status, refused["code"], len(refused["servers"])) == (503, "not-running", 2), refused
        with pytest.raises(BROKEN):
            waiting.connection.getresponse()
        assert time.monotonic() - stopped < GIVEN_UP_S
    finally:
        fronted.nodes[NODE].resume()
    fronted.wait_running(NODE)
    http = fronted.http(NODE, "alice")
    assert get(http, "alice/refused").status == 404
    put(http, "alice/refused", b"again").must(201)
    assert http.request("PUT", files("alice/waiting"), b"waiting", follow=True).must(200, 201)


def test_a_node_that_is_stopped_in_order_gives_what_it_has_begun(fronted: LocalCluster) -> None:
    """A download through a front comes to its end, and its record is kept."""
    content = noise(MIB) * 16
    put(fronted.http(NODE, "alice", timeout_s=60), "alice/parting", content).must(201)
    with fronted.http(NODE, "alice").open("GET", files("alice/parting")) as download:
        received = download.response().read(MIB)
        fronted.nodes[NODE].ask_to_stop()
        for data in download.chunks():
            received += data
    assert received == content
    fronted.nodes[NODE].restart()
    fronted.wait_running(NODE)


def test_a_front_that_has_no_room_is_spared(fronted: LocalCluster, connect: Connect) -> None:
    """Without a free descriptor it loses a connection a second, though it has the fewest; when it has some again it takes its part."""
    put(fronted.http(NODE, "alice"), "alice/spared", b"spared").must(201)
    full = fronted.nodes[NODE].fronts[0]
    limits = resource.prlimit(full, resource.RLIMIT_NOFILE)
    resource.prlimit(full, resource.RLIMIT_NOFILE, (3, limits[1]))
    begun, lost = time.monotonic(), 0
    try:
        for _ in range(40):
            try:
                assert connect(NODE, "alice").get("alice/spared") == (200, b"spared")
            except BROKEN:
                lost += 1
    finally:
        resource.prlimit(full, resource.RLIMIT_NOFILE, limits)
    assert 1 <= lost <= 2 + (time.monotonic() - begun) / FULL_S
    taken = time.monotonic() + 2 * FULL_S
    eventually(lambda: time.monotonic() > taken, 10, "it is asked again")
    before = answers_of(fronted)
    assert [connect(NODE, "alice").get("alice/spared")[0] for _ in range(40)] == [200] * 40
    assert all(later > earlier for earlier, later in zip(before, answers_of(fronted), strict=True))


def test_a_front_that_hangs_is_replaced(fronted: LocalCluster) -> None:
    """New connections go to others after a moment; it is ended, and another one takes its place."""
    put(fronted.http(NODE, "alice"), "alice/served", b"served").must(201)
    hanging = fronted.nodes[NODE].fronts[0]
    os.kill(hanging, signal.SIGSTOP)
    impatient = fronted.http(NODE, "alice", timeout_s=0.5)
    answers = []
    until = time.monotonic() + 20
    while hanging in fronted.nodes[NODE].fronts:
        assert time.monotonic() < until, "it is still there"
        try:
            answers.append(get(impatient, "alice/served").status)
        except BROKEN:
            answers.append(0)
    assert answers.count(0) < 10, answers
    assert answers[-10:] == [200] * 10
    eventually(lambda: len(fronted.nodes[NODE].fronts) == FRONTS, 10, "there is a new one")
