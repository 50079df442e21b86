"""The database is gone for good, and the whole admin server but for its authority's backup: the catalogue is made anew from the nodes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from securifile.local.asking import Http, Response
from securifile.local.cluster import LocalCluster
from securifile.local.processes import environment, eventually
from tests.processes.actions import files, get, noise, put
from tests.processes.conftest import running

OLD = "node4"
"""The node that is away when the rest of the story happens, and comes late."""
FILES = 40


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[LocalCluster]:
    """Four nodes, two replicas, three people."""
    with running(request, nodes=4, replicas=2, accounts=("alice", "bob", "carol")) as made:
        yield made


def command(cluster: LocalCluster, *words: str, stdin: str = "", code: int = 0) -> str:
    """What `securifile`, as the operator, prints; its exit code is checked."""
    line = [sys.executable, "-m", "securifile.client", "--operator", str(cluster.admin.data), *words]
    ran = subprocess.run(line, env=environment(), input=stdin, capture_output=True, text=True, timeout=120)
    assert ran.returncode == code, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


def epoch(cluster: LocalCluster) -> Any:
    """What `securifile admin epoch` says, for programs."""
    return json.loads(command(cluster, "--json", "admin", "epoch"))


def body(name: str) -> bytes:
    """Content of a file by its name."""
    return noise(3000, name)


@pytest.fixture(scope="module")
def story(cluster: LocalCluster) -> LocalCluster:
    """What happened before the loss; `node4` knows only the first half of it."""
    alice, bob = cluster.http("node1", "alice"), cluster.http("node2", "bob")
    for number in range(FILES):
        put(alice, f"alice/f{number}", body(f"f{number}")).must(201)
    alice.request("PUT", files("alice/shared/")).must(201)
    for name in ("kept", "revoked"):
        put(alice, f"alice/shared/{name}", body(name)).must(201)
        alice.request("PUT", f"/api/v1/access/alice/shared/{name}", json={"user": "bob", "role": "reader"}).must(200, 201, 204)
    get(bob, "alice/shared/revoked").must(200)
    put(bob, "bob/own", body("own")).must(201)
    cluster.nodes[OLD].stop()
    cluster.wait_status("down", OLD)
    for number in range(FILES // 2, FILES):
        put(alice, f"alice/f{number}", body(f"f{number} again")).must(200)
    alice.request("DELETE", files("alice/f0"), follow=True).must(204)
    alice.request("DELETE", "/api/v1/access/alice/shared/revoked?user=bob").must(204)
    get(bob, "alice/shared/revoked").must(404)
    put(alice, "alice/late", body("late")).must(201)
    return cluster


def read(http: Http, path: str) -> Response:
    """The answer of who has caught up: a node that has heard of a newer state than it knows says 503 until then."""

    def answer() -> Response | None:
        response = get(http, path)
        return None if response.status == 503 else response

    return eventually(answer, 20, f"{path} is served or refused")


def expected(cluster: LocalCluster, node: str) -> None:
    """Everything that was acknowledged is there, by sign-ins from before, and no right more."""
    alice, bob = cluster.http(node, "alice"), cluster.http(node, "bob")
    for number in range(1, FILES):
        wanted = body(f"f{number} again" if number >= FILES // 2 else f"f{number}")
        assert read(alice, f"alice/f{number}").must(200).body == wanted, number
    read(alice, "alice/f0").must(404)
    assert read(alice, "alice/late").must(200).body == body("late")
    assert read(bob, "bob/own").must(200).body == body("own")
    assert read(bob, "alice/shared/kept").must(200).body == body("kept")
    read(bob, "alice/shared/revoked").must(404)


def test_an_empty_database_is_not_begun_in(story: LocalCluster) -> None:
    """An admin server that belonged to a cluster and finds an empty database ends, and says which command there is."""
    cluster = story
    authority = cluster.directory / "ca-backup"
    shutil.copytree(cluster.admin.data / "ca", authority)
    cluster.admin.kill()
    cluster.kill_postgres()
    shutil.rmtree(cluster.admin.data)
    cluster.admin.data.mkdir(mode=0o700)
    shutil.copytree(authority, cluster.admin.data / "ca")
    for _ in range(2):
        cluster.admin.start()
        eventually(lambda: cluster.admin.exit_status is not None, 60, "the admin server has ended")
        assert cluster.admin.exit_status == 1
        assert "admin rebuild-catalogue" in cluster.admin.log_tail(8)
    # Meanwhile people read.
    expected(cluster, "node1")


def test_it_is_made_anew(story: LocalCluster, record_property: Any) -> None:
    """Nodes hand in, the administrator looks and accepts; an admin server killed before that goes on where it was."""
    cluster = story
    assert "start the admin server" in command(cluster, "admin", "rebuild-catalogue")
    cluster.admin.start()
    cluster.admin.wait_ready()
    began = time.monotonic()
    eventually(lambda: len(epoch(cluster)["handed_in"]) == 3, 60, "three nodes have handed in")
    state = epoch(cluster)
    assert state["rebuilding"] and state["missing"] == [OLD]
    get(cluster.http("node1", "alice"), "alice/late").must(200)
    refused = put(cluster.http("node1", "alice"), "alice/never", b"never")
    assert refused.status == 503, refused.body
    shown = command(cluster, "admin", "accept-epoch", "--dry-run")
    assert f"{FILES + 3} files" in shown and "3 people" in shown and "1 rights" in shown, shown
    # Killed now, it asks nobody to begin anew: the consent is in the database.
    cluster.admin.kill()
    cluster.admin.start()
    cluster.admin.wait_ready()
    eventually(lambda: epoch(cluster)["rebuilding"], 30, "it goes on")
    shown = command(cluster, "admin", "accept-epoch")
    assert "is reconciled" in shown and "alice has no password" in shown, shown
    cluster.wait_running("node1", "node2", "node3")
    took = time.monotonic() - began
    for node in ("node1", "node2", "node3"):
        expected(cluster, node)
    record_property("seconds", took)
    print(f"made anew and serving after {took:.1f} s, from the first start of the admin server, with a restart in between")


def test_people_go_on(story: LocalCluster) -> None:
    """Nobody has a password until the operator gives one; sign-ins are as they were, and writes are taken, in a later epoch."""
    cluster = story
    credentials = {"username": "carol", "password": cluster.plan.accounts["carol"]}
    cluster.http("admin1").request("POST", "/api/v1/sessions", json=credentials).must(401)
    command(cluster, "user", "password", "carol", "--password-stdin", stdin=credentials["password"] + "\n")
    cluster.http("admin1").request("POST", "/api/v1/sessions", json=credentials).must(201)
    put(cluster.http("node2", "alice"), "alice/after", body("after")).must(201)
    put(cluster.http("node3", "alice"), "alice/late", body("later")).must(200)
    put(cluster.http("node3", "alice"), "alice/late", body("late")).must(200)
    assert epoch(cluster)["epoch"] >= 2


def test_who_comes_late_knows_nothing_more(story: LocalCluster) -> None:
    """The node that was away is older than what the catalogue was made of: what it has otherwise was replaced or deleted since."""
    cluster = story
    before = epoch(cluster)["left"]
    cluster.nodes[OLD].start()
    cluster.wait_running(OLD)
    assert epoch(cluster)["left"] == before
    expected(cluster, OLD)
    get(cluster.http(OLD, "alice"), "alice/after").must(200)
    command(cluster, "admin", "dismiss-left")
    assert epoch(cluster)["left"] == []
    command(cluster, "admin", "accept-epoch", code=1)
    assert "has a catalogue" in command(cluster, "admin", "rebuild-catalogue", code=1)
