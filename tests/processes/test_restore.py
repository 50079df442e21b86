"""The catalogue goes back in time under running nodes: nothing acknowledged is lost, and no right that was taken away comes back."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from securifile.admin.backup import copy_database
from securifile.local.cluster import LocalCluster
from securifile.local.processes import environment, eventually
from tests.processes.actions import BROKEN, files, get, noise, put
from tests.processes.conftest import running
from tests.processes.database import Database

FILES = 20
TAKEN_BACK_WITHIN_S = 60.0
"""Nodes connect again within seconds; the machine may be busy."""


def command(cluster: LocalCluster, *words: str) -> str:
    """What `securifile`, as the operator, prints."""
    line = [sys.executable, "-m", "securifile.client", "--operator", str(cluster.admin.data), *words]
    ran = subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def epoch(cluster: LocalCluster) -> Any:
    """What `securifile admin epoch` says, for programs."""
    return json.loads(command(cluster, "--json", "admin", "epoch"))


def access(cluster: LocalCluster, path: str, role: str | None) -> None:
    """Alice gives bob a role on a file of hers, or takes it away."""
    alice, where = cluster.http("node1", "alice"), f"/api/v1/access/alice/{path}"
    if role is None:
        alice.request("DELETE", f"{where}?user=bob").must(204)
    else:
        alice.request("PUT", where, json={"user": "bob", "role": role}).must(200)


def content(number: int, *, again: bool = False) -> bytes:
    """Of a file, by its number; another one after the backup."""
    return noise(2000 + number, f"{number} {again}")


def before(cluster: LocalCluster) -> None:
    """What the backup knows."""
    alice = cluster.http("node1", "alice")
    for number in range(FILES):
        put(alice, f"alice/{number}", content(number)).must(201)
    for path in ("kept", "revoked", "given"):
        put(alice, f"alice/{path}", path.encode()).must(201)
    for path in ("kept", "revoked"):
        access(cluster, path, "reader")
        get(cluster.http("node2", "bob"), f"alice/{path}").must(200)


def after(cluster: LocalCluster) -> None:
    """What it does not know: later versions, new files, a delete, a right taken and a right given."""
    alice = cluster.http("node2", "alice")
    for number in range(FILES // 2):
        put(alice, f"alice/{number}", content(number, again=True)).must(200)
    alice.request("DELETE", files(f"alice/{FILES - 1}"), follow=True).must(204)
    alice.request("PUT", files("alice/folder/")).must(201)
    put(alice, "alice/folder/new", b"new").must(201)
    access(cluster, "revoked", None)
    access(cluster, "given", "editor")
    get(cluster.http("node3", "bob"), "alice/revoked").must(404)


def check(cluster: LocalCluster) -> None:
    """Everything that was acknowledged is there, at every node, and bob has what he had at the end less what he was given last."""
    for node in cluster.nodes:
        alice, bob = cluster.http(node, "alice"), cluster.http(node, "bob")
        for number in range(FILES - 1):
            assert get(alice, f"alice/{number}").must(200).body == content(number, again=number < FILES // 2), (node, number)
        get(alice, f"alice/{FILES - 1}").must(404)
        assert get(alice, "alice/folder/new").must(200).body == b"new"
        assert get(bob, "alice/kept").must(200).body == b"kept"
        get(bob, "alice/revoked").must(404)
        get(bob, "alice/given").must(404)


class Writing(threading.Thread):
    """Alice writes new files one after another, through all nodes in turn, whatever happens."""

    def __init__(self, cluster: LocalCluster) -> None:
        super().__init__()
        self.over = threading.Event()
        self.written: list[str] = []
        self.refused = 0
        self._https = [cluster.http(node, "alice", timeout_s=20) for node in cluster.nodes]

    def run(self) -> None:
        count = 0
        while not self.over.wait(0.02):
            count += 1
            path = f"alice/w{count}"
            with suppress(*BROKEN):
                if put(self._https[count % len(self._https)], path, path.encode()).status in {200, 201}:
                    self.written.append(path)
                else:
                    self.refused += 1


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[LocalCluster]:
    """Three nodes, two replicas."""
    with running(request, nodes=3, replicas=2) as made:
        yield made


def test_a_backup_restored_in_the_place_of_a_lost_admin_server(cluster: LocalCluster) -> None:
    """`securifile admin backup` is put in place of the data folder, as docs/operations.md says; nodes run on and hand in what it lacks."""
    before(cluster)
    backup = cluster.directory / "backup"
    command(cluster, "admin", "backup", str(backup))
    after(cluster)
    cluster.admin.kill()
    cluster.kill_postgres()
    cluster.admin.data.rename(cluster.directory / "lost")
    shutil.copytree(backup, cluster.admin.data, symlinks=True)
    cluster.admin.start()
    cluster.admin.wait_ready()
    began = time.monotonic()
    eventually(lambda: epoch(cluster)["reconciled"], TAKEN_BACK_WITHIN_S, "what was lost is taken back")
    print(f"a restored backup: reconciled {time.monotonic() - began:.1f} s after the admin server was ready")
    check(cluster)
    state = epoch(cluster)
    assert state["epoch"] == 2
    assert any("bob was made an editor" in one["why"] for one in state["left"])
    assert "Epoch 2, reconciled" in command(cluster, "admin", "epoch")
    cluster.wait_running(*cluster.nodes)
    put(cluster.http("node3", "alice"), "alice/0", content(0, again=True)).must(200)
    check(cluster)


def test_a_promoted_standby_that_lost_commits_under_a_running_admin_server(request: pytest.FixtureRequest) -> None:
    """A DSN leads to another timeline from one moment to the next: nothing is written to it before it has taken back what it lost."""
    folder = Path(tempfile.mkdtemp(prefix="securifile-database-"))
    folder.chmod(0o755)
    with Database(folder) as database, running(request, nodes=3, replicas=2, admin_options=["--dsn", database.dsn]) as cluster:
        before(cluster)
        copy_database(folder / "postgres" / "data", folder / "standby")
        after(cluster)
        writing = Writing(cluster)
        writing.start()
        try:
            eventually(lambda: len(writing.written) > 10, 30, "writes are under way")
            database.process.stop(40)
            (folder / "postgres" / "data").rename(folder / "lost")
            (folder / "standby").rename(folder / "postgres" / "data")
            switched, count = time.monotonic(), len(writing.written)
            database.process.start()
            eventually(lambda: len(writing.written) > count + 10, TAKEN_BACK_WITHIN_S, "writes go on")
            print(f"a promoted standby: {time.monotonic() - switched:.1f} s from its start to ten writes; {writing.refused} were refused")
        finally:
            writing.over.set()
            writing.join()
        check(cluster)
        state = epoch(cluster)
        assert (state["epoch"], state["reconciled"]) == (2, True)
        for node in cluster.nodes:
            alice = cluster.http(node, "alice")
            for path in writing.written:
                assert get(alice, path).must(200).body == path.encode(), node
        log = cluster.admin.log.read_text()
        assert "another database answers" in log
    shutil.rmtree(folder)
